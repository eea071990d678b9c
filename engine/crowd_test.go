package engine_test

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"syscall"
	"testing"
	"time"

	"github.com/xen-hvi/hvi/engine"
	"github.com/xen-hvi/hvi/engine/guest/linux"
	"github.com/xen-hvi/hvi/engine/guest/linux/linuxtest"
	"github.com/xen-hvi/hvi/engine/journal"
	"github.com/xen-hvi/hvi/engine/vmevent"
	"github.com/xen-hvi/hvi/engine/vmevent/vmeventtest"
	"github.com/xen-hvi/hvi/engine/x86"
	"github.com/xen-hvi/hvi/engine/xen"
	"github.com/xen-hvi/hvi/engine/xen/abi"
	"github.com/xen-hvi/hvi/engine/xen/mutate"
	"github.com/xen-hvi/hvi/engine/xen/xentest"
)

// A host has many guests, and one hvid for all of them. These are bounds that
// docs/performance.md promises.
const (
	// goroutinesPerDomain are those of a protected domain: its session's, its
	// ring's, and the one that looks into the guest now and then. None of them
	// keeps a thread of the system's while it waits.
	goroutinesPerDomain = 3
	// maxThreads is what Go takes for itself: one for each processor, the
	// monitor, and some that were in a system call when another was needed.
	maxThreads = 24
	// bytesPerDomain is how much memory of Go's one may take that is idle and
	// whose kernel another one has, too.
	bytesPerDomain = 1 << 20
)

// crowd is a fake Xen with many Linux guests that run, and an engine that protects
// them all.
type crowd struct {
	xen    *xentest.Hypervisor
	host   *xen.Host
	engine *engine.Engine
	guest  *linuxtest.Guest
	infos  []xen.DomainInfo
	storms map[xen.DomID]*vmeventtest.Storm // nil where the rings are the fake Xen's
}

// stormy is a Hypervisor whose rings are storms.
type stormy struct {
	engine.Hypervisor
	storms map[xen.DomID]*vmeventtest.Storm
}

func (h stormy) MapPage(id xen.DomID, _ x86.GFN) (engine.MappedPage, error) { return h.storms[id], nil }

func (h stormy) BindInterdomain(id xen.DomID, _ uint32) (engine.Channel, error) {
	return h.storms[id], nil
}

// nobody records nothing.
type nobody struct{}

func (nobody) Append(r journal.Record) (journal.Record, error) { return r, nil }

// gather makes n guests, which nobody protects yet.
func gather(tb testing.TB, n int, storms bool) *crowd {
	tb.Helper()
	c := &crowd{xen: xentest.New(xentest.Config{}), guest: linuxtest.New(linuxtest.Config{})}
	c.guest.SetTask(0, 214, 214, "insmod")
	c.guest.Write(c.guest.Addr("system_state"), []byte{linuxtest.Running, 0, 0, 0})
	zero := make([]byte, x86.PageSize)
	for i := range n {
		spec := xentest.Spec{ID: xen.DomID(i + 1), UUID: xen.UUID{byte(i), 1}, Type: xen.PVH, Pages: uint64(len(c.guest.Mem)) / x86.PageSize}
		d := c.xen.AddDomain(spec)
		for pa := 0; pa < len(c.guest.Mem); pa += x86.PageSize {
			if page := c.guest.Mem[pa : pa+x86.PageSize]; !bytes.Equal(page, zero) {
				d.Write(x86.PhysAddr(pa), page)
			}
		}
		d.SetRegisters(0, c.guest.Regs[0])
	}
	var err error
	if c.host, err = c.xen.Host(); err != nil {
		tb.Fatal(err)
	}
	hv := engine.OnXen(c.host)
	if storms {
		c.storms = map[xen.DomID]*vmeventtest.Storm{}
		for i := range n {
			c.storms[xen.DomID(i+1)] = vmeventtest.NewStorm(c.host.Layout(), c.patching())
		}
		hv = stormy{hv, c.storms}
	}
	var known linux.Options
	if known.Cache, err = linux.OpenCache(tb.TempDir(), func(err error) { tb.Error(err) }); err != nil {
		tb.Fatal(err)
	}
	decl := declare(tb, "enforce")
	c.engine = engine.New(engine.Options{
		// As it is once each guest has booted, and its code is known.
		TakeCode:  -1,
		FirstLook: time.Hour, Hypervisor: hv, Mutator: mutate.New(c.host), LedgerDir: tb.TempDir(), Recorder: nobody{}, Identify: known,
		Resolve: func(xen.DomainInfo, string) (engine.Declaration, bool, error) { return decl, true, nil },
		Log:     slog.New(slog.DiscardHandler),
	})
	tb.Cleanup(func() {
		for _, s := range c.storms {
			s.End()
		}
		if err := errors.Join(c.engine.Close(), c.host.Close(), c.xen.Close()); err != nil {
			tb.Error(err)
		}
		known.Cache.Close()
	})
	for i := range n {
		info, err := c.host.Domain(xen.DomID(i + 1))
		if err != nil {
			tb.Fatal(err)
		}
		c.infos = append(c.infos, info)
	}
	return c
}

// patching is a store of the kernel's own into its code, which a guard looks at and
// lets pass: what a healthy guest makes.
func (c *crowd) patching() vmeventtest.Request {
	at := c.guest.PhysBase + 0x1000
	return vmeventtest.Request{
		Paused: true, Reason: abi.VMEventReasonMemAccess, GFN: uint64(at.GFN()), GLA: uint64(linuxtest.Window),
		AccessFlags: abi.MemAccessR | abi.MemAccessW | abi.MemAccessGLAValid,
		RIP:         uint64(c.guest.Base), CR3: uint64(linuxtest.PokingPGD), GSBase: c.guest.Regs[0].GSBase,
	}
}

// protect attaches to every guest.
func (c *crowd) protect(tb testing.TB) {
	tb.Helper()
	for _, info := range c.infos {
		c.engine.Gate(info, true)
		c.engine.Appeared(info, fmt.Sprintf("guest-%d", info.ID))
	}
	for _, st := range c.engine.Status() {
		if st.State != engine.StateProtecting {
			tb.Fatalf("domain %d: %s, %+v", st.Info.ID, st.State, st.Failure)
		}
	}
	c.xen.Log()
}

// answered is how many events each guest has had answered.
func (c *crowd) answered() (each []uint64, total uint64) {
	for _, info := range c.infos {
		n := c.storms[info.ID].Answered()
		each, total = append(each, n), total+n
	}
	return each, total
}

// goFor lets other goroutines run until so many more events have been answered in all.
func (c *crowd) goFor(events uint64) {
	_, begin := c.answered()
	for {
		if _, now := c.answered(); now-begin >= events {
			return
		}
		runtime.Gosched()
	}
}

// TestCrowdFair has a hundred guests make events as fast as they are answered. In a
// window of events that is long enough for each to have its turn many times, no guest
// is served more than a fifth more often than another. It is one processor that they
// share: how much of each of several a process gets, the system says.
func TestCrowdFair(t *testing.T) {
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(1))
	domains, turns := 100, uint64(40)
	if testing.Short() {
		domains = 10
	}
	if raceDetector {
		// With it the runtime deals out turns at random, so that only many are even.
		domains, turns = 10, 200
	}
	c := gather(t, domains, true)
	c.protect(t)
	for _, s := range c.storms {
		s.Begin()
	}
	c.goFor(uint64(domains) * vmevent.EventsPerTurn * 2)
	before, _ := c.answered()
	c.goFor(uint64(domains) * vmevent.EventsPerTurn * turns)
	after, _ := c.answered()
	var served []uint64
	for i := range after {
		served = append(served, after[i]-before[i])
	}
	least, most := slices.Min(served), slices.Max(served)
	t.Logf("between %d and %d events of each guest, %.3f", least, most, float64(most)/float64(least))
	if float64(most) > 1.2*float64(least) {
		t.Errorf("while one guest had %d events answered, another had %d", least, most)
	}
}

// TestCrowdStorm has one guest make events as fast as they are answered, and another
// one after the other, on a single processor. Each of the latter is answered while the
// storm goes on, after a few of the storm's turns at most.
func TestCrowdStorm(t *testing.T) {
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(1))
	c := gather(t, 2, true)
	c.protect(t)
	storm, quiet := c.storms[1], c.storms[2]
	storm.Begin()
	const events, turns = 200, 8
	before := storm.Answered()
	for range events {
		c.goFor(1)
		quiet.Once()
	}
	during := storm.Answered() - before
	t.Logf("%d events of the storm for %d of the other guest's", during, events)
	if quiet.Answered() != events {
		t.Errorf("%d events answered, want %d", quiet.Answered(), events)
	}
	if during > events*turns*vmevent.EventsPerTurn {
		t.Errorf("an event waits for %d of another guest's, want %d at most", during/events, turns*vmevent.EventsPerTurn)
	}
	// It goes on: the ring is still full, and answered.
	c.goFor(vmevent.EventsPerTurn)
}

// TestCrowdIdle counts what a hundred guests take that do nothing.
func TestCrowdIdle(t *testing.T) {
	const domains, alone = 100, "HVI_TEST_ALONE"
	if os.Getenv(alone) == "" {
		// In a process of its own: Go keeps threads that other tests needed.
		cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestCrowdIdle$", "-test.v")
		cmd.Env = append(os.Environ(), alone+"=yes")
		out, err := cmd.CombinedOutput()
		t.Logf("%s", out)
		if err != nil {
			t.Error(err)
		}
		return
	}
	c := gather(t, domains, false)
	c.xen.Log()
	settled := func() (m runtime.MemStats) {
		for range 3 {
			runtime.GC()
		}
		runtime.ReadMemStats(&m)
		return m
	}
	threads := func() int {
		tasks, err := os.ReadDir("/proc/self/task")
		if err != nil {
			t.Fatal(err)
		}
		return len(tasks)
	}
	// The first one's kernel is the others', too.
	all := c.infos
	c.infos = all[:1]
	c.protect(t)
	c.infos = all[1:]
	memory, goroutines := settled(), runtime.NumGoroutine()
	c.protect(t)
	now := settled()
	const more = domains - 1
	bytes := (int64(now.HeapAlloc+now.StackInuse) - int64(memory.HeapAlloc+memory.StackInuse)) / more
	t.Logf("for each guest: %d bytes, %.2f goroutines; %d threads in all", bytes, float64(runtime.NumGoroutine()-goroutines)/more, threads())
	if bytes > bytesPerDomain {
		t.Errorf("an idle guest takes %d bytes of memory, want %d at most", bytes, bytesPerDomain)
	}
	if n := runtime.NumGoroutine() - goroutines; n > goroutinesPerDomain*more {
		t.Errorf("%d goroutines for %d guests, want %d for each at most", n, more, goroutinesPerDomain)
	}
	if n := threads(); n > maxThreads {
		t.Errorf("%d threads for %d guests, want %d at most", n, domains, maxThreads)
	}
	runtime.KeepAlive(c)
}

// BenchmarkCrowd is what an event costs, from the ring by way of the session's guards
// and back, when so many guests at once make them as fast as they are answered. Beside
// the time that passes it prints the processor's.
func BenchmarkCrowd(b *testing.B) {
	for _, domains := range []int{1, 10, 100} {
		b.Run(fmt.Sprintf("domains=%d", domains), func(b *testing.B) {
			c := gather(b, domains, true)
			c.protect(b)
			b.ReportAllocs()
			b.ResetTimer()
			used := processorTime(b)
			for _, s := range c.storms {
				s.Begin()
			}
			_, begin := c.answered()
			for range time.Tick(time.Millisecond) {
				if _, now := c.answered(); now-begin >= uint64(b.N) {
					break
				}
			}
			_, now := c.answered()
			b.ReportMetric(float64(processorTime(b)-used)/float64(now-begin), "cpu-ns/event")
			b.StopTimer()
			for _, s := range c.storms {
				s.End()
			}
		})
	}
}

// processorTime is how long this process's threads have worked.
func processorTime(tb testing.TB) time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		tb.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
