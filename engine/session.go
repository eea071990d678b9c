package engine

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/xen-hvi/hvi/engine/guard"
	"github.com/xen-hvi/hvi/engine/guest/linux"
	"github.com/xen-hvi/hvi/engine/journal"
	"github.com/xen-hvi/hvi/engine/ledger"
	"github.com/xen-hvi/hvi/engine/policy"
	"github.com/xen-hvi/hvi/engine/vmevent"
	"github.com/xen-hvi/hvi/engine/x86"
	"github.com/xen-hvi/hvi/engine/xen"
	"github.com/xen-hvi/hvi/engine/xen/abi"
)

// Recorder takes the record of a violation. *journal.Journal is the real one.
type Recorder interface {
	Append(journal.Record) (journal.Record, error)
}

// Session is one domain under hvi's care, from the pause reference taken when
// it appeared to the last thing undone when it goes.
type Session struct {
	hv     Hypervisor
	ledger *ledger.Ledger
	record Recorder
	log    *slog.Logger

	info   xen.DomainInfo
	name   string
	policy policy.Effective
	source string

	commands chan func()
	quit     chan struct{} // closed when the goroutine has ended

	// Owned by the session's goroutine.
	stages   stages
	ring     *vmevent.Ring
	page     RingPage
	channel  Channel
	server   *vmevent.Server
	memory   GuestMemory
	kernel   *linux.Kernel
	set      *guard.Set
	entry    *kernelEntry
	boot     *bootEnd
	lastTry  error // why the last kernel entry could not be identified
	tries    int
	finished bool

	status    atomic.Pointer[Status]
	statusMu  sync.Mutex // serialises updates
	serverRef atomic.Pointer[vmevent.Server]
	setRef    atomic.Pointer[guard.Set]
}

// maxTries bounds how often a kernel entry is examined: a guest that is not
// Linux may set LSTAR again and again.
const maxTries = 4

func newSession(hv Hypervisor, l *ledger.Ledger, rec Recorder, log *slog.Logger, info xen.DomainInfo, name string, p policy.Effective, source string) *Session {
	s := &Session{
		hv: hv, ledger: l, record: rec, info: info, name: name, policy: p, source: source,
		log:      log.With("domid", info.ID, "domain", name, "uuid", info.UUID),
		commands: make(chan func()), quit: make(chan struct{}),
	}
	st := Status{Info: info, Name: name, State: StateDeclared, Policy: p, PolicySource: source}
	for _, g := range p.Guards {
		state := GuardPending
		if g.Action == policy.ActionOff {
			state = GuardOff
		}
		st.Guards = append(st.Guards, GuardStatus{Name: g.Name, Action: g.Action, State: state})
	}
	s.status.Store(&st)
	return s
}

// start begins the session's goroutine, which attaches, and returns when the
// ring is served or the attempt has failed. The domain runs on when it
// returns, unless somebody else paused it.
func (s *Session) start() error {
	attached := make(chan error, 1)
	go s.run(attached)
	return <-attached
}

// Status returns a snapshot with the counters of this moment.
func (s *Session) Status() Status {
	st := *s.status.Load()
	st.Guards = append([]GuardStatus(nil), st.Guards...)
	if srv := s.serverRef.Load(); srv != nil {
		st.Events = srv.Total()
	}
	if set := s.setRef.Load(); set != nil {
		st.Stray, st.Unrecorded = set.Stray(), set.Unrecorded()
		for _, a := range set.Armed() {
			for i := range st.Guards {
				if g := &st.Guards[i]; g.Name == a.Guard.Name {
					g.Passed, g.Violations, g.Blocked = a.Passed.Load(), a.Violations.Load(), a.Blocked.Load()
				}
			}
		}
	}
	return st
}

func (s *Session) update(f func(*Status)) {
	s.statusMu.Lock()
	defer s.statusMu.Unlock()
	st := *s.status.Load()
	st.Guards = append([]GuardStatus(nil), st.Guards...)
	f(&st)
	s.status.Store(&st)
}

func (s *Session) setState(state State) {
	s.update(func(st *Status) { st.State = state })
	s.log.Info("session", "state", string(state))
}

func (s *Session) fail(stage, fix string, err error) {
	s.update(func(st *Status) {
		st.State = StateFailed
		st.Failure = &Failure{Stage: stage, Err: err, Fix: fix}
	})
	s.log.Error("session failed", "stage", stage, "err", err)
}

func (s *Session) setGuard(name policy.GuardName, state GuardState, reason string) {
	s.update(func(st *Status) {
		for i := range st.Guards {
			if st.Guards[i].Name == name {
				st.Guards[i].State, st.Guards[i].Reason = state, reason
			}
		}
	})
}

// do runs f on the session's goroutine and waits for it. It reports false when
// the session has ended.
func (s *Session) do(f func()) bool {
	done := make(chan struct{})
	select {
	case s.commands <- func() { f(); close(done) }:
		<-done
		return true
	case <-s.quit:
		return false
	}
}

// Detach withdraws from a domain that goes on living. It is safe to call more
// than once.
func (s *Session) Detach() error {
	var err error
	if s.do(func() { err = s.detach() }) {
		<-s.quit
	}
	return err
}

// Release lets go of a domain that is gone: its state in Xen went with it, and
// what keeps it a zombie is only our mappings.
func (s *Session) Release() error {
	var err error
	if s.do(func() { err = s.release() }) {
		<-s.quit
	}
	return err
}

func (s *Session) run(attached chan<- error) {
	defer close(s.quit)
	err := s.attach()
	attached <- err
	if err != nil {
		return
	}
	for !s.finished {
		var entry, boot <-chan moment
		var violations <-chan guard.Evidence
		if s.entry != nil {
			entry = s.entry.moment
		}
		if s.boot != nil {
			boot = s.boot.moment
		}
		if s.set != nil {
			violations = s.set.Violations()
		}
		select {
		case f := <-s.commands:
			f()
		case m := <-entry:
			s.kernelEntered(m)
		case m := <-boot:
			s.bootEnded(m)
		case e := <-violations:
			s.report(&e)
		case <-s.server.Done():
			s.ringLost()
		}
	}
}

// attach connects to the domain. It is called with the domain paused by a
// reference in the ledger, and drops that reference at the end.
func (s *Session) attach() error {
	err := s.connect()
	if err == nil {
		err = s.choose()
	}
	if err == nil {
		err = s.ledger.Undo(ledger.OpPause)
	}
	if err != nil {
		return errors.Join(err, s.withdraw(StateFailed))
	}
	return nil
}

// connect sets the monitor ring up, in the order Xen wants it: the frame is in
// the guest's memory while the ring is enabled and out of it afterwards, where
// the guest can't write it.
func (s *Session) connect() error {
	const stage = "attach to the monitor ring"
	fail := func(fix string, err error) error {
		s.fail(stage, fix, err)
		return fmt.Errorf("%s: %w", stage, err)
	}
	if s.info.Type == xen.PV {
		return fail("run the guest as HVM or PVH (type=\"pvh\" in its xl config): Xen offers no introspection of PV guests",
			errors.New("the domain is a PV guest"))
	}
	gfn, err := placeRing(s.hv, s.ledger)
	if err != nil {
		return fail("", err)
	}
	if s.page, err = s.hv.MapRing(s.info.ID, gfn); err != nil {
		return fail("", err)
	}
	if s.ring, err = vmevent.NewRing(s.page.Bytes(), s.hv.Layout()); err != nil {
		return fail("", err)
	}
	port, err := s.ledger.EnableRing()
	if err != nil {
		return fail(enableFix(err), err)
	}
	if err := s.ledger.ReleaseRingPage(); err != nil {
		return fail("", err)
	}
	if s.channel, err = s.hv.BindInterdomain(s.info.ID, port); err != nil {
		return fail("", err)
	}
	s.stages.set(letPass{})
	s.serve()

	s.memory = s.hv.OpenMemory(s.info.ID)
	regs, err := s.hv.Registers(s.info.ID, 0)
	if err != nil {
		return fail("", err)
	}
	s.update(func(st *Status) {
		st.AttachedAt, st.AttachPC = time.Now(), x86.VirtAddr(regs.RIP)
	})
	s.probe()
	s.setState(StateAttached)
	return nil
}

func (s *Session) serve() {
	s.server = vmevent.NewServer(s.ring, s.channel, &s.stages)
	s.serverRef.Store(s.server)
	go s.server.Run() // its error is the server's Stop's, or ringLost's
}

func enableFix(err error) string {
	if errors.Is(err, xen.ErrRingTaken) {
		return "another program listens to this domain's monitor ring: stop it (LibVMI, DRAKVUF, xen-access, a second hvid), then run: hvictl attach"
	}
	return ""
}

// placeRing sees to it that the frame set aside for the monitor ring is in the
// guest's memory, where it must be while the ring is enabled.
func placeRing(hv Hypervisor, l *ledger.Ledger) (x86.GFN, error) {
	gfn, err := hv.RingFrame(l.Domain())
	if err != nil {
		return 0, err
	}
	t, err := hv.PageFrameType(l.Domain(), gfn)
	if err != nil {
		return 0, err
	}
	if t.Present() {
		return gfn, l.AdoptRingPage(gfn)
	}
	return gfn, l.PopulateRingPage(gfn)
}

// Probe finds the best tier a domain can have, and why it is not a better one.
func Probe(hv Hypervisor, info xen.DomainInfo) (tier Tier, reason string) {
	if info.Type == xen.PV {
		return TierNone, "Xen offers no introspection of PV guests"
	}
	if err := hv.ProbeMemAccess(info.ID); err != nil {
		return TierRegisters, err.Error()
	}
	a, err := hv.AltP2M(info.ID)
	switch {
	case err != nil:
		return TierAccess, err.Error()
	case a.Mode != xen.AltP2MExternal:
		return TierAccess, fmt.Sprintf("altp2m of the domain is %s: set altp2m=\"external\" in its xl config", a.Mode)
	}
	return TierViews, ""
}

// probe finds the domain's tier and marks the guards it cannot carry.
func (s *Session) probe() {
	tier, reason := Probe(s.hv, s.info)
	s.update(func(st *Status) { st.Tier, st.TierReason = tier, reason })
	if tier != TierRegisters {
		return
	}
	for _, g := range guard.All() {
		if g.Needs&guard.NeedMemAccess != 0 && s.policy.Action(g.Name) != policy.ActionOff {
			s.setGuard(g.Name, GuardUnavailable, "needs per-page access control (Intel VT-x with HAP): "+reason)
		}
	}
}

// msrLSTAR is the event that tells of the kernel's entry.
var msrLSTAR = ledger.MonitorOp{Event: abi.MonitorEventMovToMSR, MSR: x86.MSRLSTAR}

// cr3Write is the event that tells of a change of address space.
var cr3Write = ledger.MonitorOp{Event: abi.MonitorEventWriteCtrlReg, Register: abi.VMEventX86CR3, Sync: true, OnChangeOnly: true}

// choose looks whether the guest's kernel is up already and goes on from
// there.
func (s *Session) choose() error {
	regs, err := s.hv.Registers(s.info.ID, 0)
	if err != nil {
		s.fail("read the guest's registers", "", err)
		return err
	}
	if x86.VirtAddr(regs.LSTAR).KernelHalf() {
		return s.adopt(regs)
	}
	return s.awaitKernel()
}

func (s *Session) awaitKernel() error {
	s.entry = &kernelEntry{moment: make(chan moment, 1)}
	s.stages.set(s.entry)
	if err := s.ledger.Monitor(msrLSTAR); err != nil {
		s.fail("watch for the guest's kernel", "", err)
		return err
	}
	return nil
}

// adopt takes over a guest whose kernel runs already.
func (s *Session) adopt(regs x86.Registers) error {
	s.setState(StateIdentifying)
	if err := s.identify(regs); err != nil {
		s.fail("identify the guest's kernel", identifyFix, err)
		return err
	}
	running, err := s.kernel.Running()
	if err != nil {
		s.fail("identify the guest's kernel", identifyFix, err)
		return err
	}
	if !running {
		return s.awaitBootEnd()
	}
	return s.arm()
}

const identifyFix = "hvi reads Linux kernels with kallsyms and BTF (CONFIG_KALLSYMS_ALL, CONFIG_DEBUG_INFO_BTF); other guests cannot be protected by this version"

// kernelEntered runs with the vCPU held at its first write of LSTAR.
func (s *Session) kernelEntered(m moment) {
	entry := s.entry
	s.entry = nil
	s.setState(StateIdentifying)
	err := s.identify(m.regs)
	if err == nil {
		err = s.ledger.Unmonitor(msrLSTAR)
	}
	if err == nil {
		err = s.awaitBootEnd()
	} else if s.tries++; s.tries < maxTries {
		// A boot loader, or a kernel hvi does not know: the next kernel to
		// come up gets its chance.
		s.lastTry = err
		s.log.Warn("no known kernel at this entry, waiting for the next", "lstar", x86.VirtAddr(m.regs.LSTAR), "err", err)
		entry.seen.Store(false)
		s.entry = entry
		s.setState(StateAttached)
		s.server.Release(m.vcpu, vmevent.Continue)
		return
	}
	if err != nil {
		s.fail("identify the guest's kernel", identifyFix, err)
		if err := s.withdraw(StateFailed); err != nil {
			s.log.Error("withdraw", "err", err)
		}
		return
	}
	s.server.Release(m.vcpu, vmevent.Continue)
}

func (s *Session) identify(regs x86.Registers) error {
	begin := time.Now()
	k, err := linux.Identify(s.memory, regs)
	if err != nil {
		return err
	}
	if k.BTFError != nil {
		return k.BTFError
	}
	s.kernel = k
	took := time.Since(begin)
	s.update(func(st *Status) {
		st.Kernel = &KernelStatus{Release: k.Release, Banner: k.Banner, Base: k.Base, Symbols: k.Symbols.Len(), Took: took}
	})
	s.log.Info("kernel identified", "release", policy.Quote(k.Release), "base", k.Base, "symbols", k.Symbols.Len(), "took", took)
	return nil
}

func (s *Session) awaitBootEnd() error {
	const stage = "watch for the end of the guest's boot"
	state, err := s.kernel.SystemStateAddr()
	if err != nil {
		s.fail(stage, identifyFix, err)
		return err
	}
	s.boot = &bootEnd{kernel: s.kernel, state: state, moment: make(chan moment, 1)}
	s.stages.set(s.boot)
	if s.Status().Tier == TierRegisters {
		err = s.ledger.Monitor(cr3Write)
	} else {
		err = s.ledger.Restrict(xen.AccessRX, state.GFN(), 1)
	}
	if err != nil {
		s.fail(stage, "", err)
	}
	return err
}

// bootEnded runs with the vCPU held at the end of its kernel's boot.
func (s *Session) bootEnded(m moment) {
	s.boot = nil
	err := s.ledger.Unmonitor(cr3Write)
	if err == nil {
		err = s.ledger.Undo(ledger.OpAccess)
	}
	if err == nil {
		err = s.arm()
	}
	if err != nil {
		s.log.Error("arm", "err", err)
		if err := s.withdraw(StateFailed); err != nil {
			s.log.Error("withdraw", "err", err)
		}
		return
	}
	s.server.Release(m.vcpu, vmevent.Continue)
}

// arm puts the guards in force. The domain is paused meanwhile so that no vCPU
// runs between the first page restricted and the last.
func (s *Session) arm() error {
	const stage = "arm the guards"
	fail := func(err error) error {
		s.fail(stage, "", err)
		return fmt.Errorf("%s: %w", stage, err)
	}
	if err := s.ledger.Pause(); err != nil {
		return fail(err)
	}
	regs, err := s.hv.Registers(s.info.ID, 0)
	if err != nil {
		return fail(err)
	}
	actions := make(map[policy.GuardName]policy.Action)
	for _, g := range s.Status().Guards {
		if g.State == GuardPending {
			actions[g.Name] = g.Action
		}
	}
	set, err := guard.NewSet(&guard.Target{Kernel: s.kernel, Boot: regs}, s.memory, actions)
	for _, e := range prepareErrors(err) {
		s.setGuard(e.Guard, GuardDegraded, e.Err.Error())
	}
	s.set = set
	s.setRef.Store(set)
	s.stages.set(set)
	denies := false
	for _, a := range set.Armed() {
		if err := s.enforce(a); err != nil {
			s.setGuard(a.Guard.Name, GuardDegraded, err.Error())
			continue
		}
		s.setGuard(a.Guard.Name, GuardArmed, "")
		denies = denies || a.Action == policy.ActionBlock && len(a.Watch.MSRs) > 0
	}
	if denies {
		if err := s.ledger.DeferRegisterWrites(); err != nil {
			return fail(err)
		}
	}
	if err := s.ledger.Unpause(); err != nil {
		return fail(err)
	}
	state := StateProtecting
	for _, g := range s.Status().Guards {
		if g.State == GuardDegraded || g.State == GuardUnavailable {
			state = StateDegraded
		}
	}
	s.setState(state)
	return nil
}

// enforce asks Xen for what a guard watches.
func (s *Session) enforce(a *guard.Armed) error {
	for _, f := range a.Watch.Frames {
		if err := s.ledger.Restrict(a.Watch.Access, f.First, f.N); err != nil {
			return err
		}
	}
	for _, msr := range a.Watch.MSRs {
		op := ledger.MonitorOp{Event: abi.MonitorEventMovToMSR, MSR: msr, OnChangeOnly: true}
		if err := s.ledger.Monitor(op); err != nil {
			return err
		}
	}
	return nil
}

// prepareErrors lists the guards guard.NewSet could not prepare.
func prepareErrors(err error) []*guard.PrepareError {
	var out []*guard.PrepareError
	joined, ok := err.(interface{ Unwrap() []error })
	if !ok {
		return nil
	}
	for _, e := range joined.Unwrap() {
		var p *guard.PrepareError
		if errors.As(e, &p) {
			out = append(out, p)
		}
	}
	return out
}

// ringLost handles a ring server that ended by itself: the event channel is
// broken, so nothing more will be answered.
func (s *Session) ringLost() {
	err := s.server.Stop()
	info, infoErr := s.hv.Domain(s.info.ID)
	if errors.Is(infoErr, xen.ErrNoDomain) || infoErr == nil && info.Dying {
		if err := s.release(); err != nil {
			s.log.Error("release", "err", err)
		}
		return
	}
	s.fail("serve the monitor ring", "restart hvid; the guest goes on unprotected until then", err)
	if err := s.withdraw(StateFailed); err != nil {
		s.log.Error("withdraw", "err", err)
	}
}

// waitQuiet returns when no event has arrived for a while with the domain
// running, so that every answer given has been acted upon, or when ctx ends.
func (s *Session) waitQuiet(ctx context.Context) {
	const calm = 20 * time.Millisecond
	last := s.server.Total()
	for {
		select {
		case <-ctx.Done():
			return
		case <-time.After(calm):
		}
		if now := s.server.Total(); now == last {
			return
		} else {
			last = now
		}
	}
}
