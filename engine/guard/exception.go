package guard

import (
	"bytes"
	"sync/atomic"
	"time"

	"github.com/xen-hvi/hvi/engine/guest/linux"
	"github.com/xen-hvi/hvi/engine/policy"
	"github.com/xen-hvi/hvi/engine/vmevent"
	"github.com/xen-hvi/hvi/engine/x86"
)

// Exceptions are the violations that a policy permits in one guest: its words,
// with the guest's addresses for them. They are asked on the ring goroutine, for
// violations only, and neither allocate nor lock; their number does not matter to
// an access that is none.
//
// What the guest says of itself is believed here: the names of processes and
// modules. What the kernel itself wrote or was written to is judged by physical
// addresses, which page tables that were changed do not move. The bytes of a write
// are those of the moment of the event; another vCPU may still change their
// source before the instruction is carried out.
type Exceptions struct {
	kernel *linux.Kernel
	list   []*permit
	// scratch is the ring goroutine's.
	scratch linux.Module
}

// permit is one exception.
type permit struct {
	policy policy.Exception
	id     string
	// why says why it can permit nothing in this guest, "" if it can.
	why string

	expires         int64 // Unix time in nanoseconds, 0 for never
	process         name
	module          name
	targetModule    name
	object, what    name
	from            span[x86.VirtAddr] // of the instruction
	target          span[x86.VirtAddr] // as the image is mapped
	targetPhys      x86.PhysAddr       // where target begins
	register        register
	bytes           [policy.MaxExceptionBytes]byte
	nbytes          uint8
	value           uint64
	hasValue        bool
	used, last      atomic.Int64
	anyone, nowhere bool // there is no condition of who, or of what was written to
	finding         bool // it is of what a guard that looks has found
}

// register is a target that is no memory.
type register struct {
	reason vmevent.Reason // 0 where the target is memory
	msr    uint32
	cr     vmevent.CtrlReg
}

// span is [start, end), or everything where end is 0.
type span[T ~uint64] struct{ start, end T }

func (s span[T]) holds(a T) bool { return s.end == 0 || a >= s.start && a < s.end }

// name is a name to compare a fixed-size one of the guest's with.
type name struct {
	text   []byte
	prefix bool
}

func newName(condition string) name {
	text, prefix := policy.Pattern(condition)
	return name{[]byte(text), prefix}
}

// of reports whether it is the name in b, which ends at a NUL or with b. An empty
// name is everything's.
func (n *name) of(b []byte) bool {
	if len(n.text) == 0 {
		return true
	}
	if !bytes.HasPrefix(b, n.text) {
		return false
	}
	return n.prefix || len(b) == len(n.text) || b[len(n.text)] == 0
}

// NewExceptions prepares a policy's exceptions for a guest with that kernel. Those
// that cannot hold there are kept, with the reason. The counts of those that were
// in before go on; before may be nil.
func NewExceptions(list []policy.Exception, k *linux.Kernel, before *Exceptions) *Exceptions {
	x := &Exceptions{kernel: k}
	seen := make(map[string]bool)
	for _, e := range list {
		id := e.ID()
		if seen[id] {
			continue // it stands in two places
		}
		seen[id] = true
		p := newPermit(e, id, k)
		if before != nil {
			for _, b := range before.list {
				if b.id == id {
					p.used.Store(b.used.Load())
					p.last.Store(b.last.Load())
				}
			}
		}
		x.list = append(x.list, p)
	}
	return x
}

func newPermit(e policy.Exception, id string, k *linux.Kernel) *permit {
	p := &permit{
		policy: e, id: id, process: newName(e.Process), module: newName(e.Module), targetModule: newName(e.TargetModule),
		anyone:  e.Process == "" && e.Module == "" && e.Symbol == "",
		nowhere: e.Target == "" && e.TargetModule == "",
		object:  newName(e.Object), what: newName(e.What),
		finding: e.Object != "" || e.What != "",
	}
	// Names of modules have no star.
	p.module.prefix, p.targetModule.prefix = false, false
	if !e.Expires.IsZero() {
		p.expires = e.Expires.UnixNano()
	}
	p.nbytes = uint8(copy(p.bytes[:], e.ByteValues()))
	p.value, p.hasValue = e.RegisterValue()
	if !policy.Matches(e.Kernel, k.Release) && !policy.Matches(e.Kernel, k.Banner) {
		p.why = "the guest runs another kernel"
		return p
	}
	if e.Symbol != "" {
		start, end, why := place(e.Symbol, k)
		if p.why = why; why != "" {
			return p
		}
		p.from = span[x86.VirtAddr]{start, end}
	}
	if e.Target != "" {
		var ok bool
		if p.register, ok = registerOf(e.Target); !ok {
			p.why = p.aimAt(e.Target, k)
		}
	}
	return p
}

// aimAt makes a symbol of the kernel the target, or says why it can't be.
func (p *permit) aimAt(symbol string, k *linux.Kernel) (why string) {
	start, end, why := place(symbol, k)
	if why != "" {
		return why
	}
	as := k.AddressSpace()
	first, err := as.Translate(start)
	if err != nil {
		return "the guest has nothing at " + symbol
	}
	last, err := as.Translate(end - 1)
	if err != nil || uint64(last.Phys-first.Phys) != uint64(end-1-start) {
		return symbol + " is not in one piece in the guest's memory"
	}
	p.target, p.targetPhys = span[x86.VirtAddr]{start, end}, first.Phys
	return ""
}

// place finds a symbol of the kernel, or says why it can't be told which place it is.
func place(symbol string, k *linux.Kernel) (start, end x86.VirtAddr, why string) {
	start, end, ok := k.Symbols.Range(symbol)
	switch {
	case !ok || start >= end:
		return 0, 0, "the guest's kernel has no symbol " + symbol
	case len(k.Symbols.LookupAll(symbol)) > 1:
		return 0, 0, "the guest's kernel has several symbols " + symbol
	}
	return start, end, ""
}

// registerOf finds a register by the name that records give it.
func registerOf(word string) (register, bool) {
	for cr := range vmevent.NumCtrlRegs {
		if r := vmevent.CtrlReg(cr); r.String() == word {
			return register{reason: vmevent.ReasonWriteCtrlReg, cr: r}, true
		}
	}
	for _, msr := range x86.NamedMSRs() {
		if x86.MSRName(msr) == word {
			return register{reason: vmevent.ReasonMovToMSR, msr: msr}, true
		}
	}
	return register{}, false
}

// permits reports whether an exception permits the violation, and counts it
// there. It is the ring goroutine's; x may be nil.
func (x *Exceptions) permits(e *Evidence) bool {
	if x == nil {
		return false
	}
	for _, p := range x.list {
		if p.policy.Guard == e.Guard && x.meets(p, e) {
			p.use(e.Time)
			return true
		}
	}
	return false
}

func (p *permit) use(at int64) {
	p.used.Add(1)
	p.last.Store(at)
}

// live reports whether it can permit anything at that time.
func (p *permit) live(at int64) bool { return p.why == "" && (p.expires == 0 || at < p.expires) }

func (x *Exceptions) meets(p *permit, e *Evidence) bool {
	switch {
	case !p.live(e.Time), p.finding:
		return false
	case len(p.process.text) > 0 && !(e.HasTask && p.process.of(e.Task.Comm[:])):
		return false
	case len(p.module.text) > 0 && !(e.InModule && p.module.of(e.Module.RawName[:])):
		return false
	case !p.from.holds(x86.VirtAddr(e.Regs.RIP)):
		return false
	}
	switch e.Reason {
	case vmevent.ReasonMemAccess:
		return x.meetsMemory(p, e)
	case vmevent.ReasonMovToMSR:
		return p.meetsRegister(p.register.msr == e.MSR.MSR, e, e.MSR.New)
	case vmevent.ReasonWriteCtrlReg:
		return p.meetsRegister(p.register.cr == e.CR.Reg, e, e.CR.New)
	}
	// Nothing is known here of what was done.
	return p.nowhere && p.nbytes == 0 && !p.hasValue
}

func (p *permit) meetsRegister(same bool, e *Evidence, value uint64) bool {
	return (p.nowhere || p.register.reason == e.Reason && same) && p.nbytes == 0 && (!p.hasValue || p.value == value)
}

func (x *Exceptions) meetsMemory(p *permit, e *Evidence) bool {
	switch {
	case p.hasValue || p.register.reason != 0:
		return false
	case p.target.end != 0 && !p.inTarget(e):
		return false
	case len(p.targetModule.text) > 0 && !x.inModule(e, &p.targetModule):
		return false
	case p.nbytes == 0:
		return true
	case e.Mem.Flags&vmevent.AccessWrite == 0:
		return false
	}
	var stored [maxBytes]byte
	n := e.stored(&stored)
	return n >= int(p.nbytes) && bytes.Equal(stored[:p.nbytes], p.bytes[:p.nbytes])
}

// inTarget reports whether all that may be written lies in the target.
func (p *permit) inTarget(e *Evidence) bool {
	at, end := e.Mem.Phys(), p.targetPhys+x86.PhysAddr(p.target.end-p.target.start)
	if at < p.targetPhys || at >= end {
		return false
	}
	return e.Mem.Flags&vmevent.AccessWrite == 0 || e.reach() <= uint64(end-at)
}

// inModule reports whether what was accessed is a module's of that name: where the
// frame was known to be a module's whatever it was reached through, else by the
// linear address.
func (x *Exceptions) inModule(e *Evidence, n *name) bool {
	if e.MappedAt != 0 {
		return n.of(e.Target.RawName[:])
	}
	return e.Mem.Flags&vmevent.AccessGLAValid != 0 && x.kernel.ModuleAt(e.Mem.GLA, &x.scratch) && n.of(x.scratch.RawName[:])
}

// PermitsChange reports whether an exception permits what a [Scanner] found, and
// counts it there. Nobody saw who did that, so that only an exception that does
// not ask can permit it; and it must permit the whole of the place that was found.
// x may be nil.
func (x *Exceptions) PermitsChange(guard policy.GuardName, c Change, at time.Time) bool {
	if x == nil {
		return false
	}
	for _, p := range x.list {
		end := c.Addr + x86.VirtAddr(max(len(c.Now), 1)) - 1
		if p.policy.Guard != guard || !p.live(at.UnixNano()) || p.finding || !p.anyone || p.hasValue || p.register.reason != 0 || len(p.targetModule.text) > 0 ||
			!p.target.holds(c.Addr) || !p.target.holds(end) || !bytes.HasPrefix(c.Now, p.bytes[:p.nbytes]) {
			continue
		}
		p.use(at.UnixNano())
		return true
	}
	return false
}

// PermitsFinding reports whether an exception permits what a guard that looks has
// found: what is wrong with an object, both in the words of the event. It is counted
// there unless the guard had found it the last time too, and it was permitted: again
// says so. x may be nil.
func (x *Exceptions) PermitsFinding(guard policy.GuardName, object, what string, again bool, at time.Time) bool {
	if x == nil {
		return false
	}
	for _, p := range x.list {
		if p.policy.Guard != guard || !p.live(at.UnixNano()) || !p.finding || !p.object.of([]byte(object)) || !p.what.of([]byte(what)) {
			continue
		}
		if !again {
			p.use(at.UnixNano())
		}
		return true
	}
	return false
}

// ExceptionUse is an exception and what it has permitted.
type ExceptionUse struct {
	Exception policy.Exception
	ID        string
	// Why says why it can permit nothing in this guest, "" if it can.
	Why string
	// Uses counts what it has permitted, Last is when the last was; zero if none.
	Uses uint64
	Last time.Time
}

// Uses returns what has become of each exception. It may be called from any
// goroutine; x may be nil.
func (x *Exceptions) Uses() []ExceptionUse {
	if x == nil {
		return nil
	}
	out := make([]ExceptionUse, 0, len(x.list))
	for _, p := range x.list {
		u := ExceptionUse{Exception: p.policy, ID: p.id, Why: p.why, Uses: uint64(p.used.Load())}
		if at := p.last.Load(); at != 0 {
			u.Last = time.Unix(0, at)
		}
		out = append(out, u)
	}
	return out
}
