package engine_test

import (
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/xen-hvi/hvi/engine"
	"github.com/xen-hvi/hvi/engine/guest/linux/linuxtest"
	"github.com/xen-hvi/hvi/engine/journal"
	"github.com/xen-hvi/hvi/engine/ledger"
	"github.com/xen-hvi/hvi/engine/policy"
	"github.com/xen-hvi/hvi/engine/x86"
	"github.com/xen-hvi/hvi/engine/xen"
	"github.com/xen-hvi/hvi/engine/xen/abi"
	"github.com/xen-hvi/hvi/engine/xen/mutate"
	"github.com/xen-hvi/hvi/engine/xen/xentest"
)

// life is something that a guest goes through with hvi, to the end of its
// protection. It may be left by runtime.Goexit when hvid is dead.
type life func(l *living)

// living is one run of a life, with a hvid of its own.
type living struct {
	*world
	died <-chan struct{} // closed when it, or the guest, is no more

	mu   sync.Mutex
	over bool // the guest makes no more events of its own
}

// must reports what failed, unless something has come between.
func (l *living) must(err error) {
	l.t.Helper()
	select {
	case <-l.died:
	default:
		if err != nil {
			l.t.Error(err)
		}
	}
}

// running has hvi attach to a guest that runs, protect it, and let go.
func running(l *living) {
	l.engine.Gate(l.info, true)
	l.engine.Appeared(l.info, "web")
	l.event(abi.VMEventReasonMovToMSR, 0)
	l.must(l.engine.Detach(l.t.Context(), 7))
}

// breaking does the same with breakpoints, in a third view.
func breaking(l *living) {
	l.engine.Gate(l.info, true)
	l.engine.Appeared(l.info, "web")
	l.must(l.engine.SetBreakpoint(l.t.Context(), 7, where, true))
	l.must(l.engine.Detach(l.t.Context(), 7))
}

// switching does it with a policy of two views and a breakpoint, from one view into
// the other and back.
func switching(l *living) {
	l.engine.Gate(l.info, true)
	l.engine.Appeared(l.info, "web")
	l.must(l.engine.SetBreakpoint(l.t.Context(), 7, where, true))
	for _, view := range []string{"maintenance", "strict"} {
		l.must(l.engine.SwitchView(l.t.Context(), 7, view, journal.Peer{}))
	}
	l.must(l.engine.Detach(l.t.Context(), 7))
}

// booting has a guest come, be held, boot, and be let go. Its toolstack holds it
// all the while.
func booting(l *living) {
	early := l.guest.Regs[0]
	early.LSTAR, early.RIP = 0, 0x1000200
	l.dom.SetRegisters(0, early)
	l.setState(0)
	l.copyMemory()
	l.engine.Gate(l.info, false)
	l.engine.Appeared(l.info, "web")
	l.event(abi.VMEventReasonMovToMSR, l.guest.Regs[0].LSTAR)
	l.dom.SetRegisters(0, l.guest.Regs[0])
	l.setState(linuxtest.Running - 1)
	l.copyMemory()
	l.event(abi.VMEventReasonMemAccess, 0)
	l.must(l.engine.Detach(l.t.Context(), 7))
}

// event has the guest do something that is reported, and waits for the answer: a
// write of LSTAR, or of system_state. Nothing happens where nobody listens.
func (l *living) event(reason uint32, lstar uint64) {
	l.mu.Lock()
	if l.over {
		l.mu.Unlock()
		runtime.Goexit()
	}
	answered := l.dom.Answered()
	l.dom.Responses()
	err := l.dom.Send(l.entry(reason, lstar))
	l.mu.Unlock()
	if err != nil {
		return
	}
	for {
		select {
		case <-answered:
			if len(l.dom.Responses()) > 0 {
				return
			}
		case <-l.died:
			runtime.Goexit()
		}
	}
}

func (w *world) entry(reason uint32, lstar uint64) []byte {
	f := &w.layout.VMEvent
	e := make([]byte, f.Size)
	put := func(off, n int, v uint64) {
		for i := range n {
			e[off+i] = byte(v >> (8 * i))
		}
	}
	put(f.OffFlags, 4, abi.VMEventFlagVCPUPaused)
	put(f.OffReason, 4, uint64(reason))
	regs := &w.guest.Regs[0]
	put(f.Regs.RIP, 8, regs.RIP)
	put(f.Regs.CR3, 8, regs.CR3)
	put(f.Regs.CR4, 8, regs.CR4)
	put(f.Regs.MSREFER, 8, regs.EFER)
	put(f.Regs.GSBase, 8, regs.GSBase)
	switch reason {
	case abi.VMEventReasonMovToMSR:
		put(f.MovToMSR.MSR, 8, x86.MSRLSTAR)
		put(f.MovToMSR.New, 8, lstar)
	case abi.VMEventReasonMemAccess:
		as := w.guest.AddressSpace()
		tr, err := as.Translate(w.guest.Addr("system_state"))
		if err != nil {
			panic(err)
		}
		put(f.MemAccess.GFN, 8, uint64(tr.Phys.GFN()))
		put(f.MemAccess.Offset, 8, tr.Phys.Offset())
		put(f.MemAccess.Flags, 4, abi.MemAccessR|abi.MemAccessW)
	}
	return e
}

// live runs a life in a new hvid, with which it does not come to its end if that
// dies before, as arranged. It reports whether it did.
func (w *world) live(what life, d xentest.Death) (died bool) {
	w.t.Helper()
	host, err := w.xen.Host()
	if err != nil {
		w.t.Fatal(err)
	}
	l := &living{world: w, died: w.xen.Arrange(d)}
	w.host = host
	w.engine = w.newEngine()
	done := make(chan struct{})
	go func() {
		defer close(done)
		what(l)
	}()
	select {
	case <-done:
		// Goexit closes it, too.
		select {
		case <-l.died:
			died = true
		default:
		}
	case <-l.died:
		died = true
	}
	l.mu.Lock()
	l.over = true
	l.mu.Unlock()
	if died {
		w.closeFiles()
		w.engine = nil // nothing of it answers any more
	} else {
		if err := errors.Join(w.engine.Close(), host.Close()); err != nil {
			w.t.Error(err)
		}
	}
	return died
}

// comeBack recovers as a fresh process does, which may die of it, too, as arranged.
func (w *world) comeBack(release bool, d xentest.Death) (died bool) {
	w.t.Helper()
	host, err := w.xen.Host()
	if err != nil {
		w.t.Fatal(err)
	}
	dead := w.xen.Arrange(d)
	done := make(chan error, 1)
	go func() {
		_, err := engine.Recover(engine.OnXen(host), mutate.New(host), w.dir, release, slog.New(slog.DiscardHandler))
		done <- errors.Join(err, host.Close())
	}()
	select {
	case err := <-done:
		if err != nil {
			w.t.Errorf("recover: %v", err)
		}
		return false
	case <-dead:
		w.closeFiles()
		return true
	}
}

// closeFiles closes the ledgers of a dead process, as the kernel does. Whoever in it
// had them open waits for ever, and doesn't come to miss them. What else it had open
// stays so, and is not looked at again.
func (w *world) closeFiles() {
	w.t.Helper()
	fds, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		w.t.Fatal(err)
	}
	for _, e := range fds {
		fd, err := strconv.Atoi(e.Name())
		if err != nil || w.open[fd] {
			continue
		}
		file, err := os.Readlink("/proc/self/fd/" + e.Name())
		switch {
		case err != nil: // it was this directory
		case strings.HasPrefix(file, w.dir+"/"):
			_ = syscall.Close(fd)
		case strings.HasPrefix(file, "socket:"), strings.HasPrefix(file, "anon_inode:"):
			w.open[fd] = true
		}
	}
}

// never is a death that doesn't come.
var never = xentest.Death{}

// tear puts half a line behind each ledger: its writer died while it wrote what
// comes next.
func (w *world) tear() {
	files, _ := filepath.Glob(filepath.Join(w.dir, "*.jsonl"))
	for _, name := range files {
		f, err := os.OpenFile(name, os.O_WRONLY|os.O_APPEND, 0)
		if err == nil {
			_, err = f.WriteString(`{"phase":"int`)
			err = errors.Join(err, f.Close())
		}
		if err != nil {
			w.t.Fatal(err)
		}
	}
}

// lives are those of the tests below, each with a host it is for.
var lives = []struct {
	name   string
	life   life
	cfg    xentest.Config
	spec   xentest.Spec
	pauses int // of the toolstack, all the time
	views  []policy.View
}{
	{"access", running, xentest.Config{}, xentest.Spec{VCPUs: 2}, 0, nil},
	{"views", running, xentest.Config{AltP2M: true}, xentest.Spec{VCPUs: 2, AltP2M: xen.AltP2MExternal, PagingPool: 1 << 20}, 0, nil},
	{"breakpoints", breaking, xentest.Config{AltP2M: true}, xentest.Spec{VCPUs: 2, AltP2M: xen.AltP2MExternal, PagingPool: 1 << 20}, 0, nil},
	{"two views", switching, xentest.Config{AltP2M: true}, xentest.Spec{VCPUs: 2, AltP2M: xen.AltP2MExternal, PagingPool: 1 << 20}, 0, twoViews},
	{"registers", running, xentest.Config{AMD: true}, xentest.Spec{VCPUs: 2}, 0, nil},
	{"old Xen", running, xentest.Config{Release: xen.Release{Major: 4, Minor: 11}, AltP2M: true}, xentest.Spec{VCPUs: 2, PagingPool: 1 << 20}, 0, nil},
	{"a new guest", booting, xentest.Config{AltP2M: true}, xentest.Spec{Pauses: 1, VCPUs: 2, AltP2M: xen.AltP2MExternal, PagingPool: 1 << 20}, 1, nil},
	{"a new guest on AMD", booting, xentest.Config{AMD: true}, xentest.Spec{Pauses: 1, VCPUs: 1}, 1, nil},
}

func newKilledWorld(t *testing.T, cfg xentest.Config, spec xentest.Spec, views ...policy.View) *world {
	return newKilledWorldOf(t, linuxtest.Config{}, cfg, spec, views...)
}

// newKilledWorldOf is newKilledWorld with another guest.
func newKilledWorldOf(t *testing.T, guest linuxtest.Config, cfg xentest.Config, spec xentest.Spec, views ...policy.View) *world {
	w := newWorldOf(t, guest, cfg, spec)
	if len(views) > 0 {
		w.decl = declareViews(t, views...)
	}
	w.dir, w.open = memoryDir(t), map[int]bool{}
	go func() { // nobody reads what is recorded
		for {
			select {
			case <-w.events.got:
			case <-t.Context().Done():
				return
			}
		}
	}()
	w.setState(linuxtest.Running)
	w.copyMemory()
	w.dom.SetRegisters(0, w.guest.Regs[0])
	return w
}

// memoryDir returns a directory in memory if the machine has a place for one, as
// the ledgers' own is in /run: there are thousands of deaths, and a disk would be
// waited for at each line.
func memoryDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("/dev/shm", "hvi-killed-*")
	if err != nil {
		return t.TempDir()
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	return dir
}

// deaths are the ways to die with a call: before it, after it, or while the line is
// written that comes after it.
var deaths = []struct {
	name  string
	after bool
	torn  bool
}{
	{"before", false, false},
	{"after", true, false},
	{"writing, after", true, true},
}

// TestKilledAnywhere has hvid die with each of the calls by which it changes
// something of a domain, in each way there is, and the guest cause another event
// before anybody knows. Then somebody recovers, who dies with each call of that,
// and somebody else does it again. Each time the guest must be as if nobody had
// ever looked, and can be attached to.
func TestKilledAnywhere(t *testing.T) {
	tried := lives
	if testing.Short() { // below the race detector, which is after other things
		tried = tried[1:2]
	}
	for _, c := range tried {
		t.Run(c.name, func(t *testing.T) {
			w := newKilledWorld(t, c.cfg, c.spec, c.views...)
			kills, again := 0, 0
			for _, how := range deaths {
				for call := 1; w.live(c.life, xentest.Death{Call: call, After: how.after}); call++ {
					kills++
					if how.torn {
						w.tear()
					}
					w.late()
					for at := 1; w.comeBack(false, xentest.Death{Call: at, After: how.after}); at++ {
						again++
					}
					w.free(fmt.Sprintf("hvid died %s call %d", how.name, call), c.pauses)
					if t.Failed() {
						t.FailNow()
					}
				}
				w.free("hvid lived", c.pauses)
			}
			if kills < 40 {
				t.Errorf("only %d deaths", kills)
			}
			t.Logf("%d deaths of hvid, %d of who recovered", kills, again)
		})
	}
}

// late has the guest cause an event that the dead hvid will never answer, if its
// vCPU runs.
func (w *world) late() {
	if w.dom.EventPauses(0) > 0 || w.dom.Pauses() > 0 {
		return
	}
	// There may be no ring any more, and no room in it.
	_ = w.dom.Send(w.entry(abi.VMEventReasonMovToMSR, 0))
}

// free checks that the guest runs as if nobody had ever looked, but for its
// toolstack's pauses.
func (w *world) free(when string, pauses int) {
	w.t.Helper()
	for _, left := range w.dom.Clean() {
		w.t.Errorf("%s: left in Xen: %s", when, left)
	}
	if n := w.dom.Pauses(); n != pauses {
		w.t.Errorf("%s: %d pauses are left, want %d", when, n, pauses)
	}
	if files, err := os.ReadDir(w.dir); err != nil || len(files) != 0 {
		w.t.Errorf("%s: ledgers left: %v %v", when, files, err)
	}
}

// TestKilledAtRandom does the same a thousand times, at random: another life each
// time, with as many deaths of those who recover as it takes.
func TestKilledAtRandom(t *testing.T) {
	const seed = 1
	kills := 1000
	if testing.Short() {
		kills = 50
	}
	random := rand.New(rand.NewPCG(seed, seed))
	worlds := make([]*world, len(lives))
	for n := 0; n < kills; {
		i := random.IntN(len(lives))
		c := lives[i]
		if worlds[i] == nil {
			worlds[i] = newKilledWorld(t, c.cfg, c.spec, c.views...)
		}
		w := worlds[i]
		how := deaths[random.IntN(len(deaths))]
		if !w.live(c.life, xentest.Death{Call: 1 + random.IntN(60), After: how.after}) {
			continue
		}
		n++
		if how.torn {
			w.tear()
		}
		w.late()
		for w.comeBack(false, xentest.Death{Call: 1 + random.IntN(25), After: random.IntN(2) == 0}) {
			n++
			if random.IntN(2) == 0 {
				w.late()
			}
		}
		w.free(fmt.Sprintf("kill %d, %s, died %s a call", n, c.name, how.name), c.pauses)
		if t.Failed() {
			t.FailNow()
		}
	}
}

// TestKilledFailClosed does it to a guest that may not run when hvid fails. Once it
// is protected it stands still, whenever hvid dies, until it is protected again, or
// somebody says that it may run.
func TestKilledFailClosed(t *testing.T) {
	step := 1
	if testing.Short() {
		step = 8
	}
	w := newKilledWorld(t, xentest.Config{}, xentest.Spec{VCPUs: 2})
	w.decl.Spec.OnEngineFailure = policy.Pause
	held := 0
	for _, after := range []bool{false, true} {
		for call := 1; w.live(running, xentest.Death{Call: call, After: after}); call += step {
			w.late()
			must := w.ledgerHas(ledger.OpFailClosed)
			for at := 1; w.comeBack(false, xentest.Death{Call: at, After: after}); at++ {
				if must && !w.ledgerHas(ledger.OpFailClosed) {
					t.Fatalf("call %d, %d: recovery forgot that the guest may not run", call, at)
				}
			}
			if !must {
				w.free(fmt.Sprintf("hvid died with call %d", call), 0)
				continue
			}
			held++
			if n := w.dom.Pauses(); n != 1 {
				t.Fatalf("hvid died with call %d: %d pauses, want 1", call, n)
			}
			if left := w.dom.Clean(); len(left) != 1 {
				t.Fatalf("hvid died with call %d: left in Xen: %v", call, left)
			}
			if held%2 == 0 {
				w.comeBack(true, never)
				w.free("an admin has let it run", 0)
				continue
			}
			// The next hvid attaches first, and then lets it run.
			if w.live(func(l *living) {
				l.engine.Gate(l.info, true)
				if st := l.status(); st.Held == "" || l.dom.Pauses() != 1 {
					t.Errorf("held %q, %d pauses", st.Held, l.dom.Pauses())
				}
				l.engine.Appeared(l.info, "web")
				if st := l.status(); st.State != engine.StateProtecting || st.Held != "" || l.dom.Pauses() != 0 {
					t.Errorf("%s, held %q, %d pauses", st.State, st.Held, l.dom.Pauses())
				}
			}, never) {
				t.Fatal("it died")
			}
			w.free("hvid stopped in order", 0)
		}
	}
	if held < 20/step {
		t.Errorf("the guest was held %d times", held)
	}
}

func (w *world) ledgerHas(op ledger.Op) bool {
	w.t.Helper()
	all, err := ledger.Load(w.dir, mutate.New(w.host))
	if err != nil {
		w.t.Fatal(err)
	}
	has := false
	for _, l := range all {
		has = has || l.Has(op)
		if err := l.Leave(); err != nil {
			w.t.Error(err)
		}
	}
	return has
}
