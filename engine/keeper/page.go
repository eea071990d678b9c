package keeper

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

// DefaultBudget is how long hvid, or one of its ring goroutines with a request in its
// hands, may stand still before the keeper takes over. A ring goroutine answers within
// microseconds, and waits 100 ms at most for a vCPU to leave its processor
// (vmevent). With the time that recovery takes, a guest runs again within a second.
const DefaultBudget = 400 * time.Millisecond

// looks is how many looks without a change make a budget. One more comes before
// them, at which the change was still seen.
const looks = 2

// What lies where in the shared memory. Each word has a cache line of its own:
// what one ring goroutine writes is not slowed down by another's.
const (
	lineSize = 64
	// offHVID beats as long as hvid lives, offKeeper as long as the keeper does.
	offHVID, offKeeper = 0, lineSize
	// offRings is one more than the highest pulse that was ever given out.
	offRings = 2 * lineSize
	offPulse = 3 * lineSize
	// maxRings is how many rings can be watched at once. Those beyond are served
	// like the others, and only hvid as a whole is watched for them.
	maxRings = 4096
	memSize  = (offPulse + maxRings*lineSize + 4095) &^ 4095
)

// page is the memory that hvid and the keeper share.
type page struct{ mem []byte }

// newPage makes one, and the file by which it is handed on. Nothing of it is left
// in dir.
func newPage(dir string) (*page, *os.File, error) {
	f, err := os.CreateTemp(dir, ".keeper.*")
	if err != nil {
		return nil, nil, fmt.Errorf("keeper: memory to share: %w", err)
	}
	if err := errors.Join(os.Remove(filepath.Clean(f.Name())), f.Truncate(memSize)); err != nil {
		return nil, nil, errors.Join(fmt.Errorf("keeper: memory to share: %w", err), f.Close())
	}
	p, err := mapPage(f)
	if err != nil {
		return nil, nil, errors.Join(err, f.Close())
	}
	return p, f, nil
}

func mapPage(f *os.File) (*page, error) {
	mem, err := syscall.Mmap(int(f.Fd()), 0, memSize, syscall.PROT_READ|syscall.PROT_WRITE, syscall.MAP_SHARED)
	if err != nil {
		return nil, fmt.Errorf("keeper: map the shared memory: %w", os.NewSyscallError("mmap", err))
	}
	return &page{mem}, nil
}

func (p *page) hvid() *atomic.Uint64       { return word(p.mem, offHVID) }
func (p *page) keeper() *atomic.Uint64     { return word(p.mem, offKeeper) }
func (p *page) rings() *atomic.Uint64      { return word(p.mem, offRings) }
func (p *page) pulse(i int) *atomic.Uint64 { return word(p.mem, offPulse+i*lineSize) }
func (p *page) close() error               { return os.NewSyscallError("munmap", syscall.Munmap(p.mem)) }
func (p *page) ringCount() int             { return int(min(p.rings().Load(), maxRings)) }

// pulses gives them out.
type pulses struct {
	page *page
	mu   sync.Mutex
	used [maxRings]bool
}

// take returns a pulse that nobody has, and what gives it back. There may be none
// left: it is then one that nobody watches.
func (p *pulses) take() (pulse *atomic.Uint64, release func()) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for i := range p.used {
		if p.used[i] {
			continue
		}
		p.used[i] = true
		w := p.page.pulse(i)
		w.Store(0)
		p.page.rings().Store(max(p.page.rings().Load(), uint64(i)+1))
		return w, sync.OnceFunc(func() {
			p.mu.Lock()
			defer p.mu.Unlock()
			w.Store(0)
			p.used[i] = false
		})
	}
	return new(atomic.Uint64), func() {}
}

// watch looks for what stands still.
type watch struct {
	page   *page
	pardon pardon
	heart  stopwatch
	rings  [maxRings]stopwatch
}

// stopwatch counts the looks at which a word had not changed.
type stopwatch struct {
	last  uint64
	still int
}

func (s *stopwatch) look(now uint64) (still int) {
	if now != s.last {
		s.last, s.still = now, 0
		return 0
	}
	s.still++
	return s.still
}

// look is to be called once in a budget's looks-th part. It says what has stood
// still for so many of them, if anything has, and was not kept from running.
func (w *watch) look() (why string) {
	suspect := w.heart.look(w.page.hvid().Load())
	why = "hvid stands still"
	for i := range w.page.ringCount() {
		now := w.page.pulse(i).Load()
		// Even is one that waits for requests, for as long as it may be.
		if still := w.rings[i].look(now); now&1 != 0 && still > suspect {
			suspect, why = still, "a ring goroutine stands still with a request in its hands"
		}
	}
	switch {
	case suspect == 0:
		w.pardon.reset()
	case suspect < looks:
		w.pardon.mark()
	case !w.pardon.due():
		return why
	}
	return ""
}
