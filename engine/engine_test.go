package engine_test

import (
	"cmp"
	"encoding/binary"
	"errors"
	"log/slog"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/xen-hvi/hvi/engine"
	"github.com/xen-hvi/hvi/engine/guest/linux"
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

// records keeps what the engine records.
type records struct {
	mu  sync.Mutex
	all []journal.Record
	got chan journal.Record
}

func (r *records) Append(rec journal.Record) (journal.Record, error) {
	r.mu.Lock()
	rec.ID = journal.NewID("69fe2b1d7c3a", uint64(len(r.all)+1))
	r.all = append(r.all, rec)
	r.mu.Unlock()
	r.got <- rec
	return rec, nil
}

// world is a fake Xen with one Linux guest that its toolstack has built and
// not started, and an engine beside it.
type world struct {
	firstLook time.Duration // an hour if 0
	takeCode  time.Duration // while the guest is paused if 0
	budget    time.Duration // for a guard's decision
	t         *testing.T
	layout    *abi.Layout
	xen       *xentest.Hypervisor
	host      *xen.Host
	guest     *linuxtest.Guest
	spec      xentest.Spec // of dom
	dom       *xentest.Domain
	info      xen.DomainInfo
	engine    *engine.Engine
	open      map[int]bool // files of dead processes that stay open
	events    *records
	recorder  engine.Recorder // events if nil
	known     linux.Options   // what kernels are identified with
	ended     []engine.Status // not under a lock: read it when nothing is under way
	dir       string
	decl      engine.Declaration
	found     bool
	err       error
	// permitted are the host's exceptions.
	permitted atomic.Pointer[[]policy.Exception]
	// resolving is called while what is declared is looked for, if it is set.
	resolving func()
	// dumps is where memory dumps go, nil for nowhere.
	dumps *engine.Dumps
	// registers changes what Xen says of a vCPU's, if it is set.
	registers func(x86.Registers) x86.Registers
}

func declare(t testing.TB, mode string) engine.Declaration {
	t.Helper()
	var b policy.Builder
	b.Mode(mode, policy.Origin{Source: "test"})
	spec, err := b.Build()
	if err != nil {
		t.Fatal(err)
	}
	return engine.Declaration{Spec: spec, Source: "test"}
}

// declareGuards is declare with enforce, and what is to be done by guards.
func declareGuards(t *testing.T, guards ...string) engine.Declaration {
	t.Helper()
	var b policy.Builder
	b.Mode("enforce", policy.Origin{Source: "test"})
	for _, g := range guards {
		b.GuardAssignment(g, policy.Origin{Source: "test"})
	}
	spec, err := b.Build()
	if err != nil {
		t.Fatal(err)
	}
	return engine.Declaration{Spec: spec, Source: "test"}
}

func newWorld(t *testing.T, cfg xentest.Config, spec xentest.Spec) *world {
	t.Helper()
	return newWorldOf(t, linuxtest.Config{}, cfg, spec)
}

// newWorldOf is newWorld with another guest.
func newWorldOf(t *testing.T, guest linuxtest.Config, cfg xentest.Config, spec xentest.Spec) *world {
	t.Helper()
	w := &world{t: t, xen: xentest.New(cfg), guest: linuxtest.New(guest), dir: t.TempDir(), decl: declare(t, "enforce"), found: true}
	w.guest.SetTask(0, 214, 214, "insmod")
	w.setState(0)
	spec.ID, spec.UUID = 7, xen.UUID{7}
	spec.Pages = uint64(len(w.guest.Mem)) / x86.PageSize
	if spec.Type == xen.PV && !spec.NoHAP {
		spec.Type = xen.PVH
	}
	w.spec = spec
	w.build()
	var err error
	if w.known.Cache, err = linux.OpenCache(t.TempDir(), func(err error) { t.Error(err) }); err != nil {
		t.Fatal(err)
	}
	w.events = &records{got: make(chan journal.Record, 100)}
	w.engine = w.newEngine()
	t.Cleanup(func() {
		var err error
		if w.engine != nil { // else its process is dead
			err = errors.Join(w.engine.Close(), w.host.Close())
		}
		if err := errors.Join(err, w.xen.Close()); err != nil {
			t.Error(err)
		}
		w.known.Cache.Close()
	})
	return w
}

// build has the toolstack build the domain, and Xen be opened.
func (w *world) build() {
	w.t.Helper()
	w.dom = w.xen.AddDomain(w.spec)
	w.copyMemory()
	early := w.guest.Regs[0]
	early.LSTAR, early.RIP = 0, 0x1000200
	w.dom.SetRegisters(0, early)

	var err error
	if w.host, err = w.xen.Host(); err != nil {
		w.t.Fatal(err)
	}
	w.layout = w.host.Layout()
	if w.info, err = w.host.Domain(7); err != nil {
		w.t.Fatal(err)
	}
}

// hypervisor is the fake Xen, of which a test may want a word first.
type hypervisor struct {
	engine.Hypervisor
	w *world
}

func (h hypervisor) Registers(id xen.DomID, vcpu int) (x86.Registers, error) {
	r, err := h.Hypervisor.Registers(id, vcpu)
	if h.w.registers != nil {
		r = h.w.registers(r)
	}
	return r, err
}

// newEngine makes an engine, as the next hvid has one.
func (w *world) newEngine() *engine.Engine {
	var recorder engine.Recorder = w.events
	if w.recorder != nil {
		recorder = w.recorder
	}
	return engine.New(engine.Options{
		FirstLook: cmp.Or(w.firstLook, time.Hour), TakeCode: cmp.Or(w.takeCode, -1), Budget: w.budget,
		Hypervisor: hypervisor{engine.OnXen(w.host), w}, Mutator: mutate.New(w.host), LedgerDir: w.dir, Recorder: recorder,
		Resolve: func(xen.DomainInfo, string) (engine.Declaration, bool, error) {
			if w.resolving != nil {
				w.resolving()
			}
			return w.decl, w.found, w.err
		},
		Log: slog.New(slog.DiscardHandler), Identify: w.known,
		Permitted: func(uuid xen.UUID) []policy.Exception {
			if x := w.permitted.Load(); x != nil && uuid == w.info.UUID {
				return *x
			}
			return nil
		},
		Dumps: w.dumps,
		Ended: func(st engine.Status) { w.ended = append(w.ended, st) },
	})
}

func (w *world) setState(v byte) {
	w.guest.Write(w.guest.Addr("system_state"), []byte{v, 0, 0, 0})
}

func (w *world) copyMemory() {
	for pa := 0; pa < len(w.guest.Mem); pa += x86.PageSize {
		w.dom.Write(x86.PhysAddr(pa), w.guest.Mem[pa:pa+x86.PageSize])
	}
}

// appear has the toolstack introduce the domain.
func (w *world) appear() {
	w.engine.Gate(w.info, false)
	if n := w.dom.Pauses(); n != 2 {
		w.t.Errorf("%d pauses while gated, want 2: the toolstack's and ours", n)
	}
	w.engine.Appeared(w.info, "web")
}

func (w *world) status() engine.Status {
	w.t.Helper()
	for _, st := range w.engine.Status() {
		if st.Info.ID == 7 {
			return st
		}
	}
	w.t.Fatal("the engine does not know the domain")
	return engine.Status{}
}

// send reports an event of vCPU 0 and waits for its answer, whose flags it
// returns.
func (w *world) send(reason uint32, regs x86.Registers, fill func(put func(off int, v uint64))) uint32 {
	w.t.Helper()
	if a := w.sendEvent(reason, regs, fill); a != nil {
		return binary.LittleEndian.Uint32(a[w.layout.VMEvent.OffFlags:])
	}
	return 0
}

// ask is send that returns the whole answer, for an event of the guest's kernel.
func (w *world) ask(reason uint32, fill func(put func(off int, v uint64))) []byte {
	w.t.Helper()
	regs := w.guest.Regs[0]
	regs.RIP = uint64(w.guest.Base + linuxtest.Data)
	a := w.sendEvent(reason, regs, fill)
	if a == nil {
		w.t.Fatal("the event was not answered")
	}
	return a
}

// dispatch has vCPU 0 write LSTAR's own value and wait, without waiting itself.
func (w *world) dispatch() {
	w.t.Helper()
	l := &w.layout.VMEvent
	if err := w.dom.Send(w.event(abi.VMEventReasonMovToMSR, w.guest.Regs[0], func(put func(int, uint64)) {
		put(l.MovToMSR.MSR, x86.MSRLSTAR)
		put(l.MovToMSR.New, w.guest.Regs[0].LSTAR)
	})); err != nil {
		w.t.Fatal(err)
	}
}

// event is one of vCPU 0, as it stands in the ring.
func (w *world) event(reason uint32, regs x86.Registers, fill func(put func(off int, v uint64))) []byte {
	l := &w.layout.VMEvent
	e := make([]byte, l.Size)
	put := func(off int, v uint64) { binary.LittleEndian.PutUint64(e[off:], v) }
	binary.LittleEndian.PutUint32(e[l.OffFlags:], abi.VMEventFlagVCPUPaused)
	binary.LittleEndian.PutUint32(e[l.OffReason:], reason)
	put(l.Regs.RIP, regs.RIP)
	put(l.Regs.CR3, regs.CR3)
	put(l.Regs.CR4, regs.CR4)
	put(l.Regs.MSREFER, regs.EFER)
	put(l.Regs.GSBase, regs.GSBase)
	put(l.Regs.RAX, regs.RAX)
	fill(put)
	return e
}

func (w *world) sendEvent(reason uint32, regs x86.Registers, fill func(put func(off int, v uint64))) []byte {
	w.t.Helper()
	e := w.event(reason, regs, fill)
	w.dom.Responses()
	if err := w.dom.Send(e); err != nil {
		w.t.Fatal(err)
	}
	for range w.dom.Answered() {
		if r := w.dom.Responses(); len(r) > 0 {
			return r[0]
		}
	}
	return nil
}

func (w *world) writeMSR(msr uint32, old, value uint64) uint32 {
	l := &w.layout.VMEvent.MovToMSR
	return w.send(abi.VMEventReasonMovToMSR, w.guest.Regs[0], func(put func(int, uint64)) {
		put(l.MSR, uint64(msr))
		put(l.New, value)
		put(l.Old, old)
	})
}

// boot runs the guest's kernel to the point where it starts init.
func (w *world) boot() {
	w.t.Helper()
	w.writeMSR(x86.MSRLSTAR, 0, w.guest.Regs[0].LSTAR)
	w.dom.SetRegisters(0, w.guest.Regs[0])
	if st := w.status(); st.Kernel == nil || st.State != engine.StateIdentifying {
		w.t.Fatalf("after the kernel's entry: %s, kernel %v, %+v", st.State, st.Kernel, st.Failure)
	}
	if w.status().Tier == engine.TierRegisters {
		w.switchTo(0x5000)
		w.stillBooting()
		w.setState(linuxtest.Running)
		w.copyMemory()
		w.switchTo(0x6000)
		return
	}
	for state := byte(0); state < linuxtest.Running-1; state++ {
		if f := w.storeState(state, 0); f != abi.VMEventFlagVCPUPaused|abi.VMEventFlagEmulate {
			w.t.Errorf("system_state's store after %d answered with flags %#x", state, f)
		}
		w.stillBooting()
	}
	w.storeState(linuxtest.Running-1, 8) // a neighbour
	w.stillBooting()
	// The last store is carried out by the guest itself once its page is free.
	if f := w.storeState(linuxtest.Running-1, 0); f != abi.VMEventFlagVCPUPaused {
		w.t.Errorf("system_state's last store answered with flags %#x", f)
	}
	w.setState(linuxtest.Running)
	w.copyMemory()
}

func (w *world) stillBooting() {
	w.t.Helper()
	if st := w.status(); st.State != engine.StateIdentifying {
		w.t.Errorf("armed before the kernel's boot was over: %s", st.State)
	}
}

// storeState is a store beside system_state, which holds now, by its kernel.
func (w *world) storeState(now byte, beside uint64) uint32 {
	w.t.Helper()
	w.setState(now)
	w.copyMemory()
	as := w.guest.AddressSpace()
	tr, err := as.Translate(w.guest.Addr("system_state"))
	if err != nil {
		w.t.Fatal(err)
	}
	l := &w.layout.VMEvent.MemAccess
	return w.send(abi.VMEventReasonMemAccess, w.guest.Regs[0], func(put func(int, uint64)) {
		put(l.GFN, uint64(tr.Phys.GFN()))
		put(l.Offset, tr.Phys.Offset()+beside)
		put(l.Flags, abi.MemAccessR|abi.MemAccessW)
	})
}

func (w *world) switchTo(cr3 uint64) {
	l := &w.layout.VMEvent.WriteCtrlReg
	w.send(abi.VMEventReasonWriteCtrlReg, w.guest.Regs[0], func(put func(int, uint64)) {
		put(l.Index, abi.VMEventX86CR3)
		put(l.New, cr3)
	})
}

// writeText is a store into kernel text by a module.
func (w *world) writeText() uint32 {
	l := &w.layout.VMEvent.MemAccess
	regs := w.guest.Regs[0]
	regs.RIP = uint64(w.guest.Base + linuxtest.Data)
	return w.send(abi.VMEventReasonMemAccess, regs, func(put func(int, uint64)) {
		put(l.GFN, uint64((w.guest.PhysBase + 0x2000).GFN()))
		put(l.Offset, 0x10)
		put(l.GLA, uint64(w.guest.Base+0x2010))
		put(l.Flags, abi.MemAccessR|abi.MemAccessW|abi.MemAccessGLAValid)
	})
}

// checkClean checks that nothing of ours is left, in Xen or on disk.
func (w *world) checkClean(toolstackPauses int) {
	w.t.Helper()
	for _, left := range w.dom.Clean() {
		if toolstackPauses > 0 && strings.Contains(left, "pause") {
			continue
		}
		w.t.Errorf("left in Xen: %s", left)
	}
	if n := w.dom.Pauses(); n != toolstackPauses {
		w.t.Errorf("%d pauses left, want %d", n, toolstackPauses)
	}
	if n := w.dom.MappedPages(); n != 0 {
		w.t.Errorf("%d pages are still mapped", n)
	}
	if left := w.ledgers(); len(left) != 0 {
		w.t.Errorf("ledgers left: %v", left)
	}
}

// ledgers are the files of those that are left.
func (w *world) ledgers() []os.DirEntry {
	w.t.Helper()
	files, err := os.ReadDir(w.dir)
	if err != nil {
		w.t.Fatal(err)
	}
	return files
}

// TestLife takes a guest from its creation to its end, on every release.
func TestLife(t *testing.T) {
	for _, rel := range abi.Releases() {
		t.Run(rel.String(), func(t *testing.T) {
			w := newWorld(t, xentest.Config{Release: xen.Release{Major: rel.Major, Minor: rel.Minor}}, xentest.Spec{Pauses: 1})
			w.appear()
			st := w.status()
			if st.State != engine.StateAttached || st.AttachPC != 0x1000200 || st.Tier != engine.TierAccess || st.TierReason == "" {
				t.Fatalf("after attach: %s at %s, tier %s (%s), %+v", st.State, st.AttachPC, st.Tier, st.TierReason, st.Failure)
			}
			if n := w.dom.Pauses(); n != 1 {
				t.Errorf("%d pauses once attached, want the toolstack's one", n)
			}
			if w.dom.HasPage(xentest.DefaultRingFrame) {
				t.Error("the guest can see the ring's page")
			}
			w.boot()
			st = w.status()
			if st.State != engine.StateProtecting || st.Kernel.Release != "6.1.0-99-test" {
				t.Fatalf("after boot: %s, %+v, %+v", st.State, st.Kernel, st.Failure)
			}
			text := uint64(w.guest.PhysBase.GFN())
			if r := w.dom.Restricted(); len(r) != guardedFrames || uint64(r[0]) != text {
				t.Errorf("%d restricted frames from %#x, want %d from %#x", len(r), r[0], guardedFrames, text)
			}
			for _, m := range w.dom.Monitored() {
				if m.Event == abi.MonitorEventWriteCtrlReg && m.Register == abi.VMEventX86CR3 || m.Event != abi.MonitorEventMovToMSR && m.Event != abi.MonitorEventWriteCtrlReg {
					t.Errorf("still monitored: %+v", m)
				}
			}
			if n := w.dom.Pauses(); n != 1 {
				t.Errorf("%d pauses once armed, want 1", n)
			}

			const paused, discard, deny = abi.VMEventFlagVCPUPaused, abi.VMEventFlagEmulate | abi.VMEventFlagEmulateNoWrite, abi.VMEventFlagDeny
			if f := w.writeText(); f != paused|discard {
				t.Errorf("write to text answered with flags %#x", f)
			}
			r := <-w.events.got
			if r.Guard != "kernel-text" || r.Action != journal.Blocked || r.Domain.Name != "web" || r.Process.PID != 214 || r.Target.Memory.Symbol == "" {
				t.Errorf("record %+v", r)
			}
			if f := w.writeMSR(x86.MSRLSTAR, w.guest.Regs[0].LSTAR, 0xffffffffc0000000); f != paused|deny {
				t.Errorf("write to LSTAR answered with flags %#x", f)
			}
			if r := <-w.events.got; r.Guard != "syscall-entry" || r.Target.MSR.Name != "LSTAR" || uint64(*r.Attempted.Number) != 0xffffffffc0000000 {
				t.Errorf("record %+v", r)
			}

			if n := w.dom.LostDenials(); n != 0 {
				t.Errorf("the write was denied before Xen had come to wait for the answer, and landed")
			}

			w.dom.Shutdown(abi.ShutdownPoweroff)
			w.engine.ShutDown(w.info)
			w.checkClean(1)
			if st := w.status(); st.State != engine.StateDetached {
				t.Errorf("after shutdown: %s", st.State)
			}
			w.engine.Gone(w.info)
			if all := w.engine.Status(); len(all) != 0 {
				t.Errorf("the engine still knows %d domains", len(all))
			}
		})
	}
}

// TestAdopt attaches to a guest whose kernel has been running for long.
func TestAdopt(t *testing.T) {
	w := newWorld(t, xentest.Config{}, xentest.Spec{})
	w.setState(linuxtest.Running)
	w.copyMemory()
	w.dom.SetRegisters(0, w.guest.Regs[0])
	w.engine.Gate(w.info, true)
	if n := w.dom.Pauses(); n != 0 {
		t.Errorf("a running guest was paused before its policy was known")
	}
	w.engine.Appeared(w.info, "web")
	if st := w.status(); st.State != engine.StateProtecting {
		t.Fatalf("%s, %+v", st.State, st.Failure)
	}
	// The next guest with this kernel is known.
	w.known.Cache.Close()
	if k, err := linux.IdentifyWith(w.guest.Memory(), w.guest.Regs[0], w.known); err != nil || !k.Cached {
		t.Errorf("the kernel was not remembered: %+v, %v", k, err)
	}
	if err := w.engine.Close(); err != nil {
		t.Fatal(err)
	}
	w.checkClean(0)
}

// TestNothingDeclared checks that a guest nobody wants protected is let go
// untouched.
func TestNothingDeclared(t *testing.T) {
	for name, prepare := range map[string]func(*world){
		"no config": func(w *world) { w.found = false },
		"off":       func(w *world) { w.decl = declare(t, "off") },
		"broken":    func(w *world) { w.found, w.err = false, errors.New("web.cfg:3: unknown mode") },
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, xentest.Config{}, xentest.Spec{Pauses: 1})
			prepare(w)
			w.appear()
			w.checkClean(1)
			st := w.status()
			if w.err == nil && st.State != engine.StateUnprotected {
				t.Errorf("state %s", st.State)
			}
			if w.err != nil && (st.State != engine.StateFailed || st.Failure == nil || !errors.Is(st.Failure.Err, w.err)) {
				t.Errorf("state %s, %+v", st.State, st.Failure)
			}
		})
	}
}

// TestFailedAttach makes each step of attaching fail: nothing may be left, and
// the status says which stage it was.
func TestFailedAttach(t *testing.T) {
	for _, op := range []string{
		"hvm_op(get_param)", "domctl(getpageframeinfo3)", "map", "vm_event_op(enable)", "memory_op(decrease_reservation)",
		"evtchn(bind_interdomain)", "domctl(gethvmcontext_partial)", "monitor_op(enable)",
	} {
		t.Run(op, func(t *testing.T) {
			w := newWorld(t, xentest.Config{}, xentest.Spec{Pauses: 1})
			w.engine.Gate(w.info, false)
			w.xen.FailNext(op, 12) // ENOMEM
			w.engine.Appeared(w.info, "web")
			st := w.status()
			if st.State != engine.StateFailed {
				t.Fatalf("%s: attaching does not make this call, or does not mind", st.State)
			}
			if st.Failure == nil || st.Failure.Stage == "" || st.Failure.Err == nil {
				t.Errorf("failure %+v", st.Failure)
			}
			w.checkClean(1)
		})
	}
}

// TestRingTaken finds another listener on the ring.
func TestRingTaken(t *testing.T) {
	w := newWorld(t, xentest.Config{}, xentest.Spec{Pauses: 1})
	w.xen.FailNext("vm_event_op(enable)", 16) // EBUSY
	w.appear()
	st := w.status()
	if st.State != engine.StateFailed || !errors.Is(st.Failure.Err, xen.ErrRingTaken) || !strings.Contains(st.Failure.Fix, "another program") {
		t.Errorf("%s, %+v", st.State, st.Failure)
	}
	w.checkClean(1)
}

// TestStorm attacks in a loop: each attack is blocked, and dom0 gets a handful
// of records that stand for all of them.
func TestStorm(t *testing.T) {
	w := newWorld(t, xentest.Config{}, xentest.Spec{})
	w.appearRunning()
	const storm = 500
	for range storm {
		if f := w.writeText(); f&abi.VMEventFlagEmulateNoWrite == 0 {
			t.Fatalf("answered with flags %#x", f)
		}
	}
	if err := w.engine.Detach(t.Context(), 7); err != nil {
		t.Fatal(err)
	}
	var total uint64
	for _, r := range w.events.all {
		if r.Detail.Suppressed > 0 {
			total += r.Detail.Suppressed // and none of its own
			continue
		}
		total += 1 + r.Detail.Repeats
	}
	if n := len(w.events.all); total != storm || n < 2 || n > storm/2 {
		t.Errorf("%d records stand for %d violations, of %d", n, total, storm)
	}
}

// TestPV refuses a PV guest without touching it.
func TestPV(t *testing.T) {
	w := newWorld(t, xentest.Config{}, xentest.Spec{Type: xen.PV, NoHAP: true, Pauses: 1})
	w.engine.Gate(w.info, false)
	w.engine.Appeared(w.info, "web")
	st := w.status()
	if st.State != engine.StateFailed || !strings.Contains(st.Failure.Err.Error(), "PV") || !strings.Contains(st.Failure.Fix, "pvh") {
		t.Errorf("%s, %+v", st.State, st.Failure)
	}
	w.checkClean(1)
}

// newScannedWorld is a world on AMD, with one branch of a static key, at 0x1100, which leads
// to 0x1180.
func newScannedWorld(t *testing.T) *world {
	t.Helper()
	w := newWorldOf(t, linuxtest.Config{Variables: []string{"__start___jump_table", "__stop___jump_table", "text_mutex"}}, xentest.Config{AMD: true}, xentest.Spec{Pauses: 1})
	table := w.guest.Addr("__start___jump_table")
	for i, to := range []x86.VirtAddr{w.guest.Base + 0x1100, w.guest.Base + 0x1180} {
		at := table + x86.VirtAddr(i)*4
		w.guest.Write(at, binary.LittleEndian.AppendUint32(nil, uint32(to-at)))
	}
	w.guest.Write(w.guest.Base+0x1100, []byte{0x0f, 0x1f, 0x44, 0, 0})
	w.copyMemory()
	w.appear()
	w.boot()
	return w
}

// kernelText is the status of the guard of the kernel's code.
func (w *world) kernelText() engine.GuardStatus {
	for _, g := range w.status().Guards {
		if g.Name == policy.GuardKernelText {
			return g
		}
	}
	return engine.GuardStatus{}
}

// TestScanUnderWay has the kernel be preempted while it patches itself: that is no
// change, until it has been so for too long.
func TestScanUnderWay(t *testing.T) {
	w := newScannedWorld(t)
	const looks, all = 20, int(engine.ScanPeriod/time.Second) + 3
	w.guest.Write(w.guest.Base+0x1100, []byte{0xcc, 0x7b, 0, 0, 0})
	w.copyMemory()
	w.engine.ScanForTest(7, looks-1)
	if g := w.kernelText(); g.Violations != 0 {
		t.Errorf("after %d looks at most: %+v", looks-1, g)
	}
	w.engine.ScanForTest(7, all+looks)
	if g := w.kernelText(); g.Violations != 1 {
		t.Errorf("after as many looks as it takes: %+v", g)
	}
	w.guest.Write(w.guest.Base+0x1100, []byte{0xe9, 0x7b, 0, 0, 0})
	w.copyMemory()
	w.engine.ScanForTest(7, all)
	if g := w.kernelText(); g.Violations != 1 {
		t.Errorf("once it is done: %+v", g)
	}
}

// TestScanUnderWayForLong has the task that patches preempted for minutes, with the kernel's
// lock held: it is told of when the lock is not held any more and the place is still so.
func TestScanUnderWayForLong(t *testing.T) {
	w := newScannedWorld(t)
	const looks, minutes = 3, 300
	lock := w.guest.Addr("text_mutex")
	w.guest.WriteUint64(lock, 0xffff_8880_0123_4000|1) // somebody waits for it
	w.guest.Write(w.guest.Base+0x1100, []byte{0xcc, 0x7b, 0, 0, 0})
	w.copyMemory()
	w.engine.ScanForTest(7, minutes)
	if g := w.kernelText(); g.Violations != 0 {
		t.Errorf("with the lock held: %+v", g)
	}
	w.guest.WriteUint64(lock, 1)
	w.copyMemory()
	w.engine.ScanForTest(7, looks-1)
	if g := w.kernelText(); g.Violations != 0 {
		t.Errorf("just after: %+v", g)
	}
	w.engine.ScanForTest(7, 2)
	if g := w.kernelText(); g.Violations != 1 {
		t.Errorf("without the lock: %+v", g)
	}
}

// TestScan has the register tier and a kernel whose own patches can be told:
// a change of its code is found afterwards, once, and its own is not.
func TestScan(t *testing.T) {
	w := newScannedWorld(t)
	kernelText := w.kernelText
	if g := kernelText(); w.status().State != engine.StateDegraded || g.State != engine.GuardScanning || !strings.Contains(g.Reason, "VT-x") || !strings.Contains(g.Reason, engine.ScanPeriod.String()) {
		t.Fatalf("%s, %+v", w.status().State, g)
	}
	all := int(engine.ScanPeriod/time.Second) + 3
	w.guest.Write(w.guest.Base+0x1100, []byte{0xe9, 0x7b, 0, 0, 0})
	w.copyMemory()
	w.engine.ScanForTest(7, all)
	if g := kernelText(); g.Violations != 0 {
		t.Fatalf("the kernel's own patch: %+v", g)
	}
	// What an exception permits is counted there, and told no more.
	w.permitted.Store(&[]policy.Exception{{Guard: policy.GuardKernelText, Bytes: "cccc"}})
	w.engine.RefreshExceptions()
	w.guest.Write(w.guest.Base+0x3040, []byte{0xcc, 0xcc})
	w.copyMemory()
	w.engine.ScanForTest(7, 2*all)
	if g, x := kernelText(), w.status().Exceptions; g.Violations != 0 || g.Allowed != 1 || len(x) != 1 || x[0].Uses != 1 {
		t.Errorf("permitted: %+v, %+v", g, x)
	}
	w.guest.Write(w.guest.Base+0x2340, []byte{0x90, 0x90})
	w.copyMemory()
	w.engine.ScanForTest(7, 2*all)
	if g := kernelText(); g.Violations != 1 || g.Found != 1 || g.Blocked != 0 {
		t.Errorf("%+v", g)
	}
	r := <-w.events.got
	if r.Guard != "kernel-text" || r.Action != journal.Found || r.Target.Memory.Addr != w.guest.Base+0x2340 || r.Target.Memory.Phys != w.guest.PhysBase+0x2340 ||
		r.Process.Unknown == "" || len(r.Attempted.Bytes) != 64 || r.Attempted.Bytes[0] != 0x90 {
		t.Errorf("record %+v", r)
	}
	if len(w.events.got) != 0 {
		t.Errorf("told again: %+v", <-w.events.got)
	}
	if err := w.engine.Apply(t.Context(), w.info, declareGuards(t, "kernel-text=off")); err != nil {
		t.Fatal(err)
	}
	w.guest.Write(w.guest.Base+0x2380, []byte{0x90, 0x90})
	w.copyMemory()
	w.engine.ScanForTest(7, all)
	if g := kernelText(); g.State != engine.GuardOff || g.Violations != 1 {
		t.Errorf("after it was turned off: %+v", g)
	}
	w.dom.Shutdown(abi.ShutdownPoweroff)
	w.engine.ShutDown(w.info)
	w.checkClean(1)
}

// guardedFrames are the pages that all guards restrict: code, read-only data, and
// the table of interrupts.
const guardedFrames = (linuxtest.TextSize+linuxtest.RODataEnd-linuxtest.ROData)/x86.PageSize + 1

// TestAMD has the register tier: one guard works, the other says why not.
func TestAMD(t *testing.T) {
	w := newWorld(t, xentest.Config{AMD: true}, xentest.Spec{Pauses: 1})
	w.appear()
	w.boot()
	st := w.status()
	if st.State != engine.StateDegraded || st.Tier != engine.TierRegisters {
		t.Errorf("%s, tier %s", st.State, st.Tier)
	}
	for _, g := range st.Guards {
		switch g.Name {
		case policy.GuardKernelText:
			if g.State != engine.GuardUnavailable || !strings.Contains(g.Reason, "VT-x") {
				t.Errorf("%+v", g)
			}
		case policy.GuardSyscallEntry:
			if g.State != engine.GuardArmed {
				t.Errorf("%+v", g)
			}
		}
	}
	if f := w.writeMSR(x86.MSRLSTAR, 1, 0xffffffffc0000000); f&abi.VMEventFlagDeny == 0 {
		t.Errorf("write to LSTAR answered with flags %#x", f)
	}
	if n := w.dom.LostDenials(); n != 0 {
		t.Errorf("the write was denied before Xen had come to wait for the answer, and landed")
	}
}

// TestGoneWhileAttached destroys a domain under the engine: the mappings go,
// so that it does not stay a zombie.
func TestGoneWhileAttached(t *testing.T) {
	w := newWorld(t, xentest.Config{}, xentest.Spec{Pauses: 1})
	w.appear()
	w.boot()
	w.dom.Kill()
	w.engine.Gone(w.info)
	if n := w.dom.MappedPages(); n != 0 {
		t.Errorf("%d pages still mapped", n)
	}
	if !w.dom.Reap() {
		t.Error("the domain stays a zombie")
	}
	if len(w.ended) != 1 || w.ended[0].Events == 0 {
		t.Errorf("told of the end: %+v, want the session with its events", w.ended)
	}
	if files, _ := os.ReadDir(w.dir); len(files) != 0 {
		t.Errorf("ledgers left: %v", files)
	}
}

// TestHandOperations attaches and detaches as hvictl does.
func TestHandOperations(t *testing.T) {
	w := newWorld(t, xentest.Config{}, xentest.Spec{})
	w.found = false
	w.setState(linuxtest.Running)
	w.copyMemory()
	w.dom.SetRegisters(0, w.guest.Regs[0])
	w.engine.Gate(w.info, true)
	w.engine.Appeared(w.info, "web")
	for range 3 {
		if err := w.engine.Detach(t.Context(), 7); !errors.Is(err, engine.ErrNotAttached) {
			t.Errorf("detach: %v", err)
		}
		if err := w.engine.Attach(t.Context(), 7, w.decl); err != nil {
			t.Fatal(err)
		}
		if err := w.engine.Attach(t.Context(), 7, w.decl); !errors.Is(err, engine.ErrAttached) {
			t.Errorf("attach again: %v", err)
		}
		if err := w.engine.Detach(t.Context(), 7); err != nil {
			t.Fatal(err)
		}
		w.checkClean(0)
	}
	if err := w.engine.Attach(t.Context(), 8, w.decl); !errors.Is(err, xen.ErrNoDomain) {
		t.Errorf("attach to a domain that is not there: %v", err)
	}
	if err := w.engine.Close(); err != nil {
		t.Fatal(err)
	}
	if err := w.engine.Attach(t.Context(), 7, w.decl); !errors.Is(err, engine.ErrClosing) {
		t.Errorf("attach while closing: %v", err)
	}
}

// TestDetachWhileRingBusy has a vCPU sleep on the ring when it is to be
// disabled.
func TestDetachWhileRingBusy(t *testing.T) {
	w := newWorld(t, xentest.Config{}, xentest.Spec{})
	w.appearRunning()
	w.xen.FailNext("vm_event_op(disable)", 16)
	w.xen.FailNext("vm_event_op(disable)", 16)
	if err := w.engine.Detach(t.Context(), 7); err != nil {
		t.Fatal(err)
	}
	w.checkClean(0)
}

func (w *world) appearRunning() {
	w.t.Helper()
	w.setState(linuxtest.Running)
	w.copyMemory()
	w.dom.SetRegisters(0, w.guest.Regs[0])
	w.engine.Gate(w.info, true)
	w.engine.Appeared(w.info, "web")
	if st := w.status(); st.State != engine.StateProtecting {
		w.t.Fatalf("%s, %+v", st.State, st.Failure)
	}
}

// TestRecover finds what a hvid left that died between an event and its
// answer, with a page restricted and a pause held: the guest must run again.
func TestRecover(t *testing.T) {
	w := newWorld(t, xentest.Config{}, xentest.Spec{VCPUs: 20})
	w.dieWithEvent(13)
	hv := engine.OnXen(w.host)
	done, err := engine.Recover(hv, mutate.New(w.host), w.dir, false, slog.New(slog.DiscardHandler))
	if err != nil || len(done) != 1 {
		t.Fatalf("recovered %v, %v", done, err)
	}
	if n := w.dom.EventPauses(13); n != 0 {
		t.Errorf("vCPU 13 still waits for %d answers", n)
	}
	w.checkClean(0)
	w.appearRunning() // and a new attach works
}

// TestRecoverInterrupted lets recovery itself die between taking the old ring
// away and answering on a new one: the next one still answers.
func TestRecoverInterrupted(t *testing.T) {
	w := newWorld(t, xentest.Config{}, xentest.Spec{VCPUs: 3})
	w.dieWithEvent(2)
	w.xen.FailNext("evtchn(bind_interdomain)", 12)
	hv, log := engine.OnXen(w.host), slog.New(slog.DiscardHandler)
	if _, err := engine.Recover(hv, mutate.New(w.host), w.dir, false, log); err == nil {
		t.Fatal("recovery did not notice that it could not answer")
	}
	if w.dom.EventPauses(2) != 1 {
		t.Fatal("vCPU 2 was answered by nobody")
	}
	if _, err := engine.Recover(hv, mutate.New(w.host), w.dir, false, log); err != nil {
		t.Fatal(err)
	}
	if n := w.dom.EventPauses(2); n != 0 {
		t.Errorf("vCPU 2 still waits for %d answers", n)
	}
	w.checkClean(0)
}

// TestRecoverNeedsPause checks that recovery does not touch a guest it could not
// pause: the guest could write the ring's page meanwhile.
func TestRecoverNeedsPause(t *testing.T) {
	w := newWorld(t, xentest.Config{}, xentest.Spec{})
	w.dieWithEvent(0)
	w.xen.Log()
	w.xen.FailNext("domctl(pausedomain)", 1)
	hv, log := engine.OnXen(w.host), slog.New(slog.DiscardHandler)
	if _, err := engine.Recover(hv, mutate.New(w.host), w.dir, false, log); err == nil {
		t.Fatal("recovery did not notice that the domain could not be paused")
	}
	if calls := strings.Join(w.xen.Log(), "\n"); strings.Contains(calls, "populate_physmap") || strings.Contains(calls, "vm_event_op") {
		t.Errorf("the ring of a running guest was touched:\n%s", calls)
	}
	if _, err := engine.Recover(hv, mutate.New(w.host), w.dir, false, log); err != nil {
		t.Fatal(err)
	}
	w.checkClean(0)
}

// TestRingPageIsNew checks that the page the ring lies in is never one that was
// in the guest's memory before: the guest may have kept another way to it.
func TestRingPageIsNew(t *testing.T) {
	w := newWorld(t, xentest.Config{}, xentest.Spec{})
	w.appearRunning()
	if err := w.engine.Detach(t.Context(), 7); err != nil {
		t.Fatal(err)
	}
	w.dom.AddPage(xentest.DefaultRingFrame) // the guest's own
	w.xen.Log()
	if err := w.engine.Attach(t.Context(), 7, w.decl); err != nil {
		t.Fatal(err)
	}
	log := strings.Join(w.xen.Log(), "\n")
	taken, put, enabled := strings.Index(log, "decrease_reservation"), strings.Index(log, "populate_physmap"), strings.Index(log, "vm_event_op(enable)")
	if taken < 0 || put < taken || enabled < put {
		t.Errorf("the guest's page was not replaced before the ring was enabled:\n%s", log)
	}
}

// TestResumed takes up a domain that had shut down and runs on, as after a
// snapshot.
func TestResumed(t *testing.T) {
	w := newWorld(t, xentest.Config{}, xentest.Spec{})
	w.appearRunning()
	w.engine.ShutDown(w.info)
	if st := w.status(); st.State != engine.StateDetached || !w.engine.Waiting() {
		t.Fatalf("after shutdown: %s, waiting %v", st.State, w.engine.Waiting())
	}
	w.engine.Resumed(w.info, "web")
	if st := w.status(); st.State != engine.StateProtecting || w.engine.Waiting() {
		t.Errorf("after it went on: %s, waiting %v", st.State, w.engine.Waiting())
	}
}

// TestDetachFails says so when something could not be undone.
func TestDetachFails(t *testing.T) {
	w := newWorld(t, xentest.Config{}, xentest.Spec{})
	w.appearRunning()
	w.xen.FailNext("vm_event_op(disable)", 1) // EPERM
	if err := w.engine.Detach(t.Context(), 7); err == nil {
		t.Fatal("no error")
	}
	if st := w.status(); st.State != engine.StateFailed || st.Failure.Stage != "detach" || st.Failure.Fix == "" {
		t.Errorf("%s, %+v", st.State, st.Failure)
	}
	// As the fix says: the next hvid undoes it.
	if _, err := engine.Recover(engine.OnXen(w.host), mutate.New(w.host), w.dir, false, slog.New(slog.DiscardHandler)); err != nil {
		t.Fatal(err)
	}
	w.checkClean(0)
}

// TestRecoverGone finds the ledger of a domain that no longer is.
func TestRecoverGone(t *testing.T) {
	w := newWorld(t, xentest.Config{}, xentest.Spec{})
	dead, err := ledger.Open(w.dir, 9, xen.UUID{9}, mutate.New(w.host))
	if err != nil {
		t.Fatal(err)
	}
	_ = dead.Pause() // refused: there is no domain 9
	reused, err := ledger.Open(w.dir, 7, xen.UUID{8}, mutate.New(w.host))
	if err != nil {
		t.Fatal(err)
	}
	if err := reused.Pause(); err != nil { // then the domain went and 7 was used again
		t.Fatal(err)
	}
	if err := mutate.New(w.host).Unpause(7); err != nil {
		t.Fatal(err)
	}
	if _, err := engine.Recover(engine.OnXen(w.host), mutate.New(w.host), w.dir, false, slog.New(slog.DiscardHandler)); err != nil {
		t.Fatal(err)
	}
	w.checkClean(0)
}

// dieWithEvent leaves what a hvid leaves that dies between an event of a vCPU
// and its answer, with pages restricted and a pause held.
func (w *world) dieWithEvent(vcpu uint32) {
	w.t.Helper()
	t := w.t
	dead, err := ledger.Open(w.dir, 7, w.info.UUID, mutate.New(w.host))
	if err != nil {
		t.Fatal(err)
	}
	hv := engine.OnXen(w.host)
	page, err := engine.ConnectForTest(hv, dead)
	if err != nil {
		t.Fatal(err)
	}
	for _, err := range []error{
		dead.Monitor(ledger.MonitorOp{Event: abi.MonitorEventMovToMSR, MSR: x86.MSRLSTAR}),
		dead.Restrict(xen.AccessRX, 0x10, 5), dead.Pause(),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	if a, err := hv.AltP2M(7); err == nil && a.Mode == xen.AltP2MExternal {
		if err := errors.Join(dead.GrowPagingPool(1<<20, 2<<20), dead.EnableSteps(w.info.VCPUs), dead.EnableViews()); err != nil {
			t.Fatal(err)
		}
		view, err := dead.CreateView()
		if err := errors.Join(err, dead.RestrictView(view, xen.AccessRX, 0x10, 5), dead.SwitchView(view)); err != nil {
			t.Fatal(err)
		}
	}
	l := &w.layout.VMEvent
	e := make([]byte, l.Size)
	binary.LittleEndian.PutUint32(e[l.OffFlags:], abi.VMEventFlagVCPUPaused)
	binary.LittleEndian.PutUint32(e[l.OffReason:], abi.VMEventReasonMovToMSR)
	binary.LittleEndian.PutUint32(e[l.OffVCPU:], vcpu)
	if err := w.dom.Send(e); err != nil {
		t.Fatal(err)
	}
	if w.dom.EventPauses(int(vcpu)) != 1 {
		t.Fatal("the fake did not stop the vCPU")
	}
	if err := page.Close(); err != nil { // as the process's death does
		t.Fatal(err)
	}
}
