package engine

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/xen-hvi/hvi/engine/guard"
	"github.com/xen-hvi/hvi/engine/guest/linux"
	"github.com/xen-hvi/hvi/engine/x86"
	"github.com/xen-hvi/hvi/engine/xen"
)

// What the kernel patches in its code is compared with what that code was when it was
// restricted. To read and sum up all of it takes sixty milliseconds of a processor, for which
// the guest would stand still just before its first process. It need not: nobody changes what
// is restricted but by an event, and of what the kernel itself patches in the meantime the
// ring goroutine keeps what it was. So it is read when the guest has booted, by a goroutine of
// its own and at leisure, or at once where it is wanted.

const (
	// takeTextAfter is how long after its guard was armed the kernel's code is read.
	takeTextAfter = 30 * time.Second
	// takeTextRest is how many times as long as it reads it rests.
	takeTextRest = 3
	// originalsRoom is how many pages may be patched until then. A Debian that boots patches
	// some sixty. Where there are more the code is read at once, and the kernel's stores
	// are tried again until that is done.
	originalsRoom = 256
)

// textTaking is the reading of a kernel's code that is under way, or waits for its time.
type textTaking struct {
	originals *guard.Originals
	cancel    context.CancelFunc
	hurried   sync.Once
	hurry     chan struct{} // closed for no more rest
	ended     chan struct{}
	result    chan takenText
	// doubted are pages of which nobody knows what they were, as was told.
	doubted map[x86.GFN]struct{}
}

// takenText is what came of it.
type takenText struct {
	scanner guard.Scanner
	err     error
}

// takeText begins to take the kernel's code for right. The domain is paused, and its code
// was restricted just now or has been since this was called for the first time.
func (s *Session) takeText(a *guard.Armed, patched *guard.Patched) {
	p := &s.patching
	if p.taking != nil {
		return // with the originals that the set was given
	}
	ctx, cancel := context.WithCancel(context.Background())
	t := &textTaking{
		originals: guard.NewOriginals(patched.Pages(), originalsRoom), cancel: cancel, hurry: make(chan struct{}),
		ended: make(chan struct{}), result: make(chan takenText, 1), doubted: map[x86.GFN]struct{}{},
	}
	p.taking = t
	patched.UseOriginals(t.originals)
	target := guard.Target{Kernel: s.kernel, Boot: s.arming, Actions: s.actions()}
	wait := s.takeTextAfter
	go func() {
		defer close(t.ended)
		if t.rest(ctx, wait) {
			r := takenText{}
			r.scanner, r.err = t.read(ctx, s.hv, s.info, a.Guard, target)
			t.result <- r
		}
	}()
}

// keepOriginals has the set that has just been made keep what pages were, if that is wanted
// since another one was armed.
func (s *Session) keepOriginals() {
	if _, p := s.set.Patched(); p != nil && s.patching.taking != nil {
		p.UseOriginals(s.patching.taking.originals)
	}
}

// rest waits for so long, or until there is a hurry. It reports false if ctx ended.
func (t *textTaking) rest(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-timer.C:
	case <-t.hurry:
	}
	return true
}

func (t *textTaking) read(ctx context.Context, hv Hypervisor, info xen.DomainInfo, g guard.Guard, target guard.Target) (sc guard.Scanner, err error) {
	mem := newReading(ctx, nil, hv.OpenMemoryFor(info.ID, xen.InARow))
	defer func() { err = errors.Join(err, mem.Close()) }()
	target.Kernel = target.Kernel.Over(mem)
	worked := time.Now()
	target.Taking = linux.Taking{
		Original: t.originals.Page,
		Rest: func() {
			t.rest(ctx, takeTextRest*time.Since(worked))
			worked = time.Now()
		},
	}
	return g.Scan(&target)
}

// hurryUp has it not wait any longer.
func (t *textTaking) hurryUp() { t.hurried.Do(func() { close(t.hurry) }) }

// textTaken delivers what came of it.
func (s *Session) textTaken() <-chan takenText {
	if s.patching.taking == nil {
		return nil
	}
	return s.patching.taking.result
}

// useText has what is patched be compared with the kernel's code, which is known now.
func (s *Session) useText(r takenText) {
	p := &s.patching
	p.taking = nil
	defer s.dropOriginals() // what waits for room goes on
	if r.err != nil {
		s.patchingUnknown(p.armed, r.err)
		p.armed, p.patched = nil, nil
		clear(p.run)
		p.row, p.front = false, 0
	} else {
		p.scan = s.patchingScan(p.armed, r.scanner)
		for _, o := range p.pages {
			if o.module == nil {
				o.scan = p.scan
			}
		}
	}
	s.wakePatching()
}

// dropOriginals has nobody keep what pages were: not the guards that are followed, nor those
// that are being armed.
func (s *Session) dropOriginals() {
	if p := s.patching.patched; p != nil {
		p.UseOriginals(nil)
	}
	if s.set == nil {
		return
	}
	if _, p := s.set.Patched(); p != nil {
		p.UseOriginals(nil)
	}
}

// stopTaking ends it, and returns when none of the guest's memory is mapped for it any more.
func (s *Session) stopTaking() {
	t := s.patching.taking
	if t == nil {
		return
	}
	t.cancel()
	<-t.ended
	s.dropOriginals()
	s.patching.taking = nil
}

// doubtUnknown tells of a page that may have been written, or be another one, while nobody
// knew yet what it was. One that the kernel has patched is compared later.
func (s *Session) doubtUnknown(gfn x86.GFN, page int) {
	p := &s.patching
	if p.taking == nil {
		return
	}
	p.taking.hurryUp()
	if _, told := p.taking.doubted[gfn]; told || p.taking.originals.Page(page) != nil {
		return
	}
	p.taking.doubted[gfn] = struct{}{}
	c := guard.Change{
		Addr: s.kernel.TextStart.Page() + x86.VirtAddr(page)<<x86.PageShift,
		Note: "the guest has put another page here, or written it while nothing restricted it, before hvi knew what it held: it may be changed anywhere",
	}
	var now [maxFoundBytes]byte
	if err := s.memory.ReadPhys(gfn.Addr(), now[:]); err == nil {
		c.Now = now[:]
	} else {
		c.Note += fmt.Sprintf("; it can't be read: %v", err)
	}
	s.countFound(p.armed.Guard.Name, 1)
	s.tellChange(p.armed.Guard.Name, s.outcomeFound(p.armed.Guard.Name), c, true)
}
