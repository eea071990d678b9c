package guard

import (
	"errors"
	"fmt"
	"slices"
	"sync/atomic"
	"time"

	"github.com/xen-hvi/hvi/engine/guest"
	"github.com/xen-hvi/hvi/engine/guest/linux"
	"github.com/xen-hvi/hvi/engine/policy"
	"github.com/xen-hvi/hvi/engine/view"
	"github.com/xen-hvi/hvi/engine/vmevent"
	"github.com/xen-hvi/hvi/engine/x86"
	"github.com/xen-hvi/hvi/engine/xen"
)

// queueLen bounds the violations that wait to be recorded. What does not fit
// is judged and answered all the same, and counted as unrecorded.
const queueLen = 256

// Armed is a guard in force, with its counters.
type Armed struct {
	Guard  Guard
	Action policy.Action
	Watch  Watch
	// watched are the frames that the guard has restricted to Watch.Access.
	watched []linux.FrameRange

	judge func(*vmevent.Event) bool
	// judgeAt judges an access to a frame of a guard whose frames move.
	judgeAt func(*vmevent.Event, x86.VirtAddr) MovingVerdict

	// Passed counts accesses the guard saw and found to be the guest's own
	// right, Violations those it did not, Blocked those of them it stopped.
	// Allowed counts those that an exception permits, which are no violations.
	// Unrecorded counts violations for which the queue had no room.
	// Unnoted counts what was to be noted and found no room likewise.
	Passed, Violations, Blocked, Allowed, Unrecorded, Unnoted atomic.Uint64

	cost cost

	// patched notes what the guard lets pass, of one that lets the kernel patch itself,
	// and checked what it lets be read.
	patched, checked *Patched

	// stop says that there was a violation for which the domain is to be stopped.
	stop atomic.Bool
}

// TakeStop reports whether there was a violation since the last time for which the
// domain is to be stopped, as the action says.
func (a *Armed) TakeStop() bool { return a.stop.Swap(false) }

// Set is the guards armed for one domain. It is built before the first event
// can arrive and immutable but for its counters.
type Set struct {
	target *Target
	mem    guest.Memory
	armed  []*Armed
	// frames, msrs and ctrlRegs say which guard watches what: its place in
	// armed, plus one. Reading a map neither allocates nor locks, and takes the
	// same time for one page as for a million. A frame with hasParts has guards
	// for some of its bytes, which are in parts.
	frames   map[x86.GFN]uint16
	parts    map[x86.GFN][]part
	msrs     map[uint32]uint8
	ctrlRegs [vmevent.NumCtrlRegs]uint8

	// unreadable are the frames that can't be read, of the guard that watches reads;
	// readsIndex is its place in armed, plus one, 0 for none.
	unreadable map[x86.GFN]struct{}
	readsIndex uint8
	// readView is the view in which reads that are let through are made, 0 for the
	// host's.
	readView atomic.Uint32

	// moving are the frames of the guard whose frames move, with where the kernel
	// maps each; movingIndex is its place in armed, plus one, 0 for none.
	moving      atomic.Pointer[map[x86.GFN]x86.VirtAddr]
	movingIndex uint8
	gone        chan GoneFrame
	// patchedMoving notes what that guard lets the kernel patch.
	patchedMoving *PatchedMoving

	// places are where guards judge calls; call is the ring goroutine's.
	places []*Place
	call   CallEvidence
	notes  chan Evidence // nil unless a guard notes calls

	// view is the one whose pages are restricted, 0 where the host's are.
	view atomic.Uint32
	// holds are, for each view in which not all guards hold, those that do, as bits by
	// their place in armed; nil where all hold.
	holds atomic.Pointer[map[uint16]uint64]
	// breakpoints are the hidden ones in that view, nil where there are none.
	breakpoints atomic.Pointer[view.Breakpoints]
	// traps are the breakpoints where there is no view, nil where there are none.
	traps atomic.Pointer[view.Traps]

	// exceptions are what the policy permits, nil for nothing.
	exceptions atomic.Pointer[Exceptions]

	// stepped and emulated count the accesses let through, by how.
	stepped, emulated atomic.Uint64

	// budget is how long a decision may take, 0 for any time; now is the clock.
	budget time.Duration
	now    func() time.Time
	paces  chan struct{} // capacity one

	// scratch is the ring goroutine's, so that evidence needs no heap.
	scratch    Evidence
	queue      chan Evidence
	kills      chan Evidence // nil unless a guard's action is to kill
	fates      atomic.Pointer[[]*Fate]
	stops      chan struct{} // capacity one
	unrecorded atomic.Uint64
	stray      atomic.Uint64
}

// NewSet prepares the guards that actions asks for (off is left out) and
// returns the set; nothing is changed in Xen. mem and the target's kernel must
// stay readable while the set is used.
//
// A guard that cannot be prepared is in neither the set nor the error's way:
// the returned error joins one *PrepareError for each.
func NewSet(t *Target, mem guest.Memory, actions map[policy.GuardName]policy.Action) (*Set, error) {
	s := &Set{
		target: t, mem: mem,
		frames: make(map[x86.GFN]uint16),
		parts:  make(map[x86.GFN][]part),
		msrs:   make(map[uint32]uint8),
		queue:  make(chan Evidence, queueLen),
		stops:  make(chan struct{}, 1),
		paces:  make(chan struct{}, 1),
		now:    elapsed,
		gone:   make(chan GoneFrame, queueLen),
	}
	var errs []error
	for _, g := range All() {
		action, ok := actions[g.Name]
		if !ok || action == policy.ActionOff {
			continue
		}
		if err := s.add(g, action); err != nil {
			errs = append(errs, &PrepareError{Guard: g.Name, Err: err})
		}
	}
	return s, errors.Join(errs...)
}

// PrepareError says which guard could not be prepared, and why.
type PrepareError struct {
	Guard policy.GuardName
	Err   error
}

func (e *PrepareError) Error() string { return fmt.Sprintf("guard %s: %v", e.Guard, e.Err) }

func (e *PrepareError) Unwrap() error { return e.Err }

func (s *Set) add(g Guard, action policy.Action) error {
	if action == policy.ActionKill && s.kills == nil {
		// A vCPU that is held makes no other violation.
		s.kills = make(chan Evidence, max(len(s.target.Now), 1))
	}
	if g.Moving != nil {
		judge, err := g.Moving.Bind(s.target)
		if err != nil {
			return err
		}
		s.armed = append(s.armed, &Armed{Guard: g, Action: action, judgeAt: judge})
		s.movingIndex = uint8(len(s.armed))
		s.patchedMoving = newPatchedMoving()
		return nil
	}
	if g.Calls != nil {
		calls, err := g.Calls(s.target)
		a := &Armed{Guard: g, Action: action}
		if slices.ContainsFunc(calls, func(c Call) bool { return c.Note != nil }) {
			s.notes = make(chan Evidence, queueLen)
		}
		if err == nil {
			err = s.addCalls(a, calls)
		}
		if err != nil {
			return err
		}
		s.armed = append(s.armed, a)
		return nil
	}
	if g.Watch == nil {
		s.armed = append(s.armed, &Armed{Guard: g, Action: action})
		return nil
	}
	w, err := g.Watch(s.target)
	if err != nil {
		return err
	}
	judge, err := g.Bind(s.target)
	if err != nil {
		return err
	}
	index := uint8(len(s.armed) + 1)
	a := &Armed{Guard: g, Action: action, Watch: w, judge: judge}
	unreadable := w.Access == xen.AccessX
	if unreadable {
		s.unreadable, s.readsIndex = make(map[x86.GFN]struct{}), index
	}
	if len(s.frames) == 0 {
		n := uint64(0)
		for _, f := range w.Frames {
			n += f.N
		}
		s.frames = make(map[x86.GFN]uint16, n) // to have it grow takes as long as all else
	}
	for _, f := range w.Frames {
		for i := range x86.GFN(f.N) {
			a.watch(f.First + i)
			if unreadable {
				s.unreadable[f.First+i] = struct{}{}
			} else {
				s.frames[f.First+i] |= uint16(index)
			}
		}
	}
	for _, r := range w.Ranges {
		s.addRange(a, index, r)
	}
	if g.Patches {
		a.patched = newPatched(w.Frames)
	}
	if unreadable {
		a.checked = newPatched(w.Frames)
	}
	for _, msr := range w.MSRs {
		s.msrs[msr] = index
	}
	for _, r := range w.CtrlRegs {
		s.ctrlRegs[r.Reg] = index
	}
	s.armed = append(s.armed, a)
	return nil
}

// hasParts marks a frame of which some bytes have a guard of their own.
const hasParts = 1 << 15

// part is some bytes of a frame, [from, to).
type part struct {
	from, to uint16
	index    uint8
}

// addRange notes what a guard watches of each frame of a range.
func (s *Set) addRange(a *Armed, index uint8, r linux.PhysRange) {
	end := r.Start + x86.PhysAddr(r.N)
	for at := r.Start; at < end; {
		gfn := at.GFN()
		next := min(end, (gfn + 1).Addr())
		a.watch(gfn)
		s.frames[gfn] |= hasParts
		s.parts[gfn] = append(s.parts[gfn], part{uint16(at.Offset()), uint16(at.Offset()) + uint16(next-at), index})
		at = next
	}
}

// watch notes a frame that the guard has restricted.
func (a *Armed) watch(gfn x86.GFN) { a.watched = appendFrame(a.watched, gfn) }

func appendFrame(list []linux.FrameRange, gfn x86.GFN) []linux.FrameRange {
	if n := len(list) - 1; n >= 0 && gfn >= list[n].First && gfn-list[n].First <= x86.GFN(list[n].N) {
		list[n].N = max(list[n].N, uint64(gfn-list[n].First)+1)
		return list
	}
	return append(list, linux.FrameRange{First: gfn, N: 1})
}

// Restriction is what is to be restricted for a guard.
type Restriction struct {
	Guard  policy.GuardName
	Frames []linux.FrameRange
	Access xen.Access
}

// Restrictions returns what is to be restricted where those guards hold that are said
// to: each frame once, for the one that permits no reads, or else the first that watches
// it.
func (s *Set) Restrictions(holds func(policy.GuardName) bool) []Restriction {
	var out []Restriction
	seen := make(map[x86.GFN]struct{}, len(s.frames))
	for _, a := range s.strictFirst() {
		if !holds(a.Guard.Name) {
			continue
		}
		r := Restriction{Guard: a.Guard.Name, Access: a.Watch.Access}
		for _, f := range a.watched {
			for gfn := f.First; gfn < f.First+x86.GFN(f.N); gfn++ {
				if _, restricted := seen[gfn]; !restricted {
					seen[gfn] = struct{}{}
					r.Frames = appendFrame(r.Frames, gfn)
				}
			}
		}
		if len(r.Frames) > 0 {
			out = append(out, r)
		}
	}
	return out
}

// strictFirst returns the guards with the one first that permits no reads.
func (s *Set) strictFirst() []*Armed {
	r := s.Reads()
	if r == nil {
		return s.armed
	}
	out := []*Armed{r}
	for _, a := range s.armed {
		if a != r {
			out = append(out, a)
		}
	}
	return out
}

// Reads returns the armed guard that watches who reads, or nil.
func (s *Set) Reads() *Armed {
	if s.readsIndex == 0 {
		return nil
	}
	return s.armed[s.readsIndex-1]
}

// Checked says which pages were read by who may, as Patched says of those that were
// patched; nil if no guard watches that.
func (s *Set) Checked() *Patched {
	if r := s.Reads(); r != nil {
		return r.checked
	}
	return nil
}

// UseReads says in which view reads that are let through are made, each by a step: what
// that restricts must be what the running one does, but for reads.
func (s *Set) UseReads(view uint16) { s.readView.Store(uint32(view)) }

// judgesReads reports whether the guard that watches reads holds, and watches the frame
// of an access.
func (s *Set) judgesReads(ev *vmevent.Event, holding uint64) bool {
	if s.readsIndex == 0 || holding&bit(s.readsIndex) == 0 {
		return false
	}
	_, unreadable := s.unreadable[ev.Mem.GFN]
	return unreadable
}

// watcher returns the guard, of those that hold, that an access to a frame is for, 0
// for none.
func (s *Set) watcher(gfn x86.GFN, offset, holding uint64) uint8 {
	w := s.frames[gfn]
	if w&hasParts != 0 {
		for _, p := range s.parts[gfn] {
			if offset >= uint64(p.from) && offset < uint64(p.to) && holding&bit(p.index) != 0 {
				return p.index
			}
		}
	}
	if index := uint8(w); index != 0 && holding&bit(index) != 0 {
		return index
	}
	return 0
}

// bit is that of the guard at a place in armed, plus one.
func bit(index uint8) uint64 { return 1 << (index - 1) }

// UseView says that the frames are restricted in a view of their own, so that
// what is let through is stepped over in the host's. It is called with the
// domain paused.
func (s *Set) UseView(view uint16) { s.view.Store(uint32(view)) }

// UseViews says which guards hold in each view that was declared, or in view 0 where
// there is none of ours. What holds in another view, in which steps are made, is what
// holds in the one that they return to. Until then all guards hold everywhere.
func (s *Set) UseViews(holds map[uint16]func(policy.GuardName) bool) {
	masks := make(map[uint16]uint64, len(holds))
	for view, holds := range holds {
		masks[view] = 0
		for i, a := range s.armed {
			if holds(a.Guard.Name) {
				masks[view] |= bit(uint8(i + 1))
			}
		}
	}
	s.holds.Store(&masks)
}

// holding returns the guards that hold for an event in a view, as bits, and whether
// the vCPU should not be in that view any more.
func (s *Set) holding(view uint16) (guards uint64, left bool) {
	h, current := s.holds.Load(), uint16(s.view.Load())
	if h == nil {
		return ^uint64(0), false
	}
	if guards, declared := (*h)[view]; declared {
		return guards, view != current && current != 0
	}
	if guards, declared := (*h)[current]; declared {
		return guards, false
	}
	return ^uint64(0), false // while the views are taken down
}

// UseBreakpoints says which hidden breakpoints there are in the view of the
// restricted pages; nil says that there are none.
func (s *Set) UseBreakpoints(b *view.Breakpoints) { s.breakpoints.Store(b) }

// UseTraps says which breakpoints there are where the domain has no view; nil says that
// there are none.
func (s *Set) UseTraps(t *view.Traps) { s.traps.Store(t) }

// Moving returns the armed guard whose frames move, or nil.
func (s *Set) Moving() *Armed {
	if s.movingIndex == 0 {
		return nil
	}
	return s.armed[s.movingIndex-1]
}

// Gone delivers the frames that are to be let go of. Where there is no view, the
// vCPU is held until then.
func (s *Set) Gone() <-chan GoneFrame { return s.gone }

// Patched returns the armed guard that lets the kernel patch itself, and what that has
// patched; nil for none.
func (s *Set) Patched() (*Armed, *Patched) {
	for _, a := range s.armed {
		if a.patched != nil {
			return a, a.patched
		}
	}
	return nil, nil
}

// PatchedMoving says what the guard whose frames move lets the kernel patch; nil if there
// is none.
func (s *Set) PatchedMoving() *PatchedMoving { return s.patchedMoving }

// Alone reports whether a guard is the only one that watches a frame.
func (s *Set) Alone(a *Armed, gfn x86.GFN) bool {
	w := s.frames[gfn]
	return w != 0 && w&hasParts == 0 && s.armed[w-1] == a
}

// Fixed reports whether a frame is watched by a guard whose frames don't move.
func (s *Set) Fixed(gfn x86.GFN) bool {
	_, fixed := s.frames[gfn]
	return fixed
}

// UseMoving says what the frames are, from now on, of the guard whose frames move.
// The guest may run. The map must not be changed afterwards.
func (s *Set) UseMoving(frames map[x86.GFN]x86.VirtAddr) { s.moving.Store(&frames) }

// UseExceptions says which violations are permitted from now on.
func (s *Set) UseExceptions(x *Exceptions) { s.exceptions.Store(x) }

// Armed returns the guards of the set.
func (s *Set) Armed() []*Armed { return s.armed }

// Violations delivers the evidence of each violation, in order.
func (s *Set) Violations() <-chan Evidence { return s.queue }

// Stops delivers when there is an armed guard of which TakeStop reports true.
func (s *Set) Stops() <-chan struct{} { return s.stops }

// Unrecorded returns how many violations were acted upon but found no room in
// the queue of evidence.
func (s *Set) Unrecorded() uint64 { return s.unrecorded.Load() }

// Stray returns how many events no guard of the set had asked for.
func (s *Set) Stray() uint64 { return s.stray.Load() }

// Stepped returns how many accesses were let through by a step in the host's
// view.
func (s *Set) Stepped() uint64 { return s.stepped.Load() }

// Emulated returns how many accesses were let through by Xen's emulator.
func (s *Set) Emulated() uint64 { return s.emulated.Load() }

// HandleEvent judges an event on the ring goroutine.
func (s *Set) HandleEvent(ev *vmevent.Event) vmevent.Verdict {
	if ev.Reason == vmevent.ReasonMemAccess {
		if _, left := s.holding(ev.View); left {
			// What holds in the view that the domain was switched to is what counts.
			ev.ReturnTo = uint16(s.view.Load())
			return vmevent.Return
		}
	}
	if b := s.breakpoints.Load(); b != nil {
		if v, ok := b.HandleEvent(ev); ok && !s.mayNotRead(ev) {
			return v
		}
	}
	v, trapped := s.traps.Load().HandleEvent(ev)
	if !trapped {
		v = s.decide(ev)
	}
	switch {
	case v&vmevent.Step != 0:
		s.stepped.Add(1)
	case v&vmevent.Emulate != 0:
		s.emulated.Add(1)
	}
	return v
}

// mayNotRead reports whether an event is a read that a guard is to judge first, also of
// a page that has a shadow, which otherwise is read as if it had none.
func (s *Set) mayNotRead(ev *vmevent.Event) bool {
	if s.readsIndex == 0 || !reads(ev) {
		return false
	}
	holding, _ := s.holding(ev.View)
	return s.judgesReads(ev, holding)
}

func (s *Set) decide(ev *vmevent.Event) vmevent.Verdict {
	var index uint8
	holding, _ := s.holding(ev.View)
	switch ev.Reason {
	case vmevent.ReasonMemAccess:
		index = s.watcher(ev.Mem.GFN, ev.Mem.Offset, holding)
		if (index == 0 || reads(ev)) && s.judgesReads(ev, holding) {
			index = s.readsIndex
		}
	case vmevent.ReasonMovToMSR:
		index = s.msrs[ev.MSR.MSR]
	case vmevent.ReasonWriteCtrlReg:
		if ev.CR.Reg < vmevent.NumCtrlRegs {
			index = s.ctrlRegs[ev.CR.Reg]
		}
	case vmevent.ReasonSingleStep:
		ev.ReturnTo = uint16(s.view.Load())
		return vmevent.EndStep
	}
	if index == 0 && ev.Reason == vmevent.ReasonMemAccess {
		if v, ok := s.decideMoving(ev, holding); ok {
			return v
		}
	}
	if index == 0 {
		s.stray.Add(1)
		return s.passing(ev)
	}
	a := s.armed[index-1]
	d := s.begin(a)
	v := s.judged(a, ev)
	s.end(a, d)
	return v
}

// judged answers an event that a guard is to judge.
func (s *Set) judged(a *Armed, ev *vmevent.Event) vmevent.Verdict {
	if !a.judge(ev) {
		if p := a.patched; p != nil {
			next, crosses := p.next(ev.Mem.GFN, ev.Mem.Offset, maxStore)
			if !p.keep(s.mem, ev.Mem.GFN) || crosses && !p.keep(s.mem, next) {
				return vmevent.Continue // and it is tried again
			}
			if p.note(ev.Mem.GFN); crosses {
				p.note(next)
			}
		}
		a.Passed.Add(1)
		if a.checked != nil && reads(ev) {
			a.checked.note(ev.Mem.GFN)
		}
		return s.passing(ev)
	}
	return s.violation(a, ev, 0)
}

// maxStore is how many bytes one access of the kernel's own to its code has at most.
const maxStore = 8

// decideMoving answers an access to a frame of the guard whose frames move; false
// for one that is none of them, and where the guard does not hold.
func (s *Set) decideMoving(ev *vmevent.Event, holding uint64) (vmevent.Verdict, bool) {
	frames := s.moving.Load()
	if frames == nil || holding&bit(s.movingIndex) == 0 {
		return 0, false
	}
	va, ok := (*frames)[ev.Mem.GFN]
	if !ok {
		return 0, false
	}
	a := s.armed[s.movingIndex-1]
	d := s.begin(a)
	v := s.judgedMoving(a, ev, va)
	s.end(a, d)
	return v, true
}

// judgedMoving answers an access to a frame of the guard whose frames move, which the
// kernel maps at va.
func (s *Set) judgedMoving(a *Armed, ev *vmevent.Event, va x86.VirtAddr) vmevent.Verdict {
	verdict := a.judgeAt(ev, va)
	if verdict == Violation {
		return s.violation(a, ev, va)
	}
	a.Passed.Add(1)
	if verdict == Rightful {
		s.patchedMoving.note(ev.Mem.GFN)
	}
	if verdict == Gone {
		select {
		case s.gone <- GoneFrame{ev.Mem.GFN, ev.VCPU}:
			if s.view.Load() == 0 {
				// Anybody may be writing, with any instruction, which Xen's
				// emulator need not know: it is started again once the frame
				// has been let go of.
				return vmevent.Hold
			}
		default:
		}
	}
	return s.passing(ev)
}

// passing lets an access happen. A restricted page needs help for that: where
// it is restricted in a view, the processor itself carries the instruction out
// in the host's, whatever it is; else Xen's emulator does, which knows what
// kernels use. One that reads may write elsewhere, so it is carried out in a view where
// it can't. A register write needs nothing.
func (s *Set) passing(ev *vmevent.Event) vmevent.Verdict {
	view, b, readView := s.view.Load(), s.breakpoints.Load(), s.readView.Load()
	switch {
	case ev.Reason != vmevent.ReasonMemAccess:
		return vmevent.Continue
	case view == 0:
	case readView != 0 && uint32(ev.View) == view && reads(ev):
		ev.StepIn, ev.ReturnTo = uint16(readView), ev.View
		return vmevent.Step
	case b != nil && (uint32(ev.View) == view || b.Steps(ev.View)):
		return b.Pass(ev)
	case uint32(ev.View) == view:
		ev.ReturnTo = ev.View
		return vmevent.Step
	}
	return vmevent.Emulate
}

func (s *Set) violation(a *Armed, ev *vmevent.Event, page x86.VirtAddr) vmevent.Verdict {
	verdict, action := s.passing(ev), policy.ActionAlert
	s.scratch = Evidence{Guard: a.Guard.Name}
	if ev.Reason == vmevent.ReasonSoftwareBreakpoint {
		s.scratch.Call = s.call
	}
	s.scratch.take(s.target, s.mem, ev, page)
	if s.exceptions.Load().permits(&s.scratch) {
		a.Allowed.Add(1)
		return verdict
	}
	a.Violations.Add(1)
	prevents := a.Action.Prevents() && s.refusable(ev)
	if prevents {
		action = a.Action
		a.Blocked.Add(1)
		verdict = s.scratch.Refusal()
	}
	if a.Action == policy.ActionKill && prevents {
		// The process is ended while it stands at this instruction, which is the
		// session's to do: it records the violation, too.
		s.scratch.Action = action
		if s.scratch.Fate = s.fate(&s.scratch); s.scratch.Fate == nil && ev.Paused {
			select {
			case s.kills <- s.scratch:
				return vmevent.Hold
			default:
			}
		}
	}
	if a.Action.Stops() {
		// Before the evidence: who gets that finds the demand. It has a place of its
		// own, which a flood of other violations does not fill.
		a.stop.Store(true)
		select {
		case s.stops <- struct{}{}:
		default:
		}
	}
	s.scratch.Action = action
	select {
	case s.queue <- s.scratch:
	default:
		s.unrecorded.Add(1)
		a.Unrecorded.Add(1)
	}
	return verdict
}
