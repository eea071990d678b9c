package guard

import (
	"fmt"

	"github.com/xen-hvi/hvi/engine/guest"
	"github.com/xen-hvi/hvi/engine/guest/linux"
	"github.com/xen-hvi/hvi/engine/policy"
	"github.com/xen-hvi/hvi/engine/vmevent"
	"github.com/xen-hvi/hvi/engine/x86"
)

// Some guards judge what a process asks of the kernel. They stand at the first
// instruction of functions that it must come through, by a hidden breakpoint, and so
// need views. What a process may not do is refused there: the function returns at once,
// with EPERM, as for a process that has no right to it.

// Call is functions of the kernel's that processes are judged at.
type Call struct {
	// Functions are by their symbols. Those that a kernel does not have are left out,
	// and one of them it must have.
	Functions []string
	// Judge says whether the call is a violation, and which. It runs on the ring
	// goroutine and must not allocate.
	Judge func(*vmevent.Event, *CallEvidence) bool
	// Note is in the place of Judge for calls that are no violations, and says which are
	// to be recorded.
	Note func(*vmevent.Event, *CallEvidence) bool
}

// CallFault is what is wrong with a call.
type CallFault uint8

// What can be wrong.
const (
	// FaultCode: the process calls from memory that no file is mapped in.
	FaultCode CallFault = iota + 1
	// FaultStack: its stack pointer leads to what is no stack.
	FaultStack
	// FaultCredentials: it has credentials that were not made for it.
	FaultCredentials
	// FaultChild: it may start no other program.
	FaultChild
	// FaultTrace: it begins to trace another process that is protected.
	FaultTrace
	// FaultWrite: it writes into the memory of one.
	FaultWrite
	// FaultMemory: it opens the memory of one, so as to write.
	FaultMemory

	// No violations: NoteExec is a process that executes a program, NoteFork one that has
	// made another, which is the victim of the evidence, NoteExit one that ends.
	NoteExec
	NoteFork
	NoteExit
)

// CallEvidence is what was true of a call that is a violation.
type CallEvidence struct {
	Fault CallFault
	// User is what the process had in its registers when it called.
	User linux.UserRegs
	// Mapping is what the code (FaultCode), or the stack (FaultStack), lies in, if Mapped.
	// Heap says that this is the memory of brk.
	Mapping      linux.Mapping
	Mapped, Heap bool
	// Credentials are what is wrong with them.
	Credentials linux.CredFault
	// Code is what a process ends with, as wait tells it to its parent.
	Code uint32
	// Victim is whom it is done to, if HasVictim.
	Victim    linux.Task
	HasVictim bool

	program    [maxProgram]byte
	programLen uint8
}

// maxProgram is how much of the path of a program is kept, in bytes.
const maxProgram = 96

// Program is the path of the program that was to be executed, or its beginning; nothing
// where it could not be read. Its bytes are the guest's.
func (c *CallEvidence) Program() []byte { return c.program[:c.programLen] }

// takeProgram reads the path that a process has given to execve or execveat.
func (c *CallEvidence) takeProgram(as *guest.AddressSpace) {
	// The path is the first argument of the one and the second of the other, by the
	// numbers of 64-bit code.
	at := c.User.RDI
	if c.User.Call == callExecveat || c.User.Call == callExecveatX32 {
		at = c.User.RSI
	}
	if c.User.Compat || x86.VirtAddr(at).KernelHalf() {
		return
	}
	n := readUpTo(as, x86.VirtAddr(at), c.program[:])
	for i, b := range c.program[:n] {
		if b == 0 {
			n = i
			break
		}
	}
	c.programLen = uint8(n)
}

// The numbers of execveat (arch/x86/entry/syscalls/syscall_64.tbl); x32's has a bit
// besides.
const (
	callExecveat    = 322
	callExecveatX32 = 0x4000_0000 | 545
)

// executes says that the process wants to execute a program.
func (f CallFault) executes() bool { return f <= FaultChild || f == NoteExec }

// callJudge is a guard's judge at a place.
type callJudge struct {
	armed       *Armed
	judge, note func(*vmevent.Event, *CallEvidence) bool
}

// Place is an instruction of the kernel's at which guards judge.
type Place struct {
	Symbol string
	Guards []policy.GuardName

	set    *Set
	judges []callJudge
}

// Places returns where guards of the set judge, each place once.
func (s *Set) Places() []*Place { return s.places }

// addCalls notes where a guard judges.
func (s *Set) addCalls(a *Armed, calls []Call) error {
	for _, c := range calls {
		found := false
		for _, f := range c.Functions {
			if at, ok := s.target.Kernel.Lookup(f); !ok || at < s.target.Kernel.TextStart || at >= s.target.Kernel.TextEnd {
				continue
			}
			found = true
			p := s.placeOf(f)
			p.Guards = append(p.Guards, a.Guard.Name)
			p.judges = append(p.judges, callJudge{a, c.Judge, c.Note})
		}
		if !found {
			return fmt.Errorf("the guest's kernel has no function %s: %w", c.Functions[0], linux.ErrUnsupported)
		}
	}
	return nil
}

func (s *Set) placeOf(symbol string) *Place {
	for _, p := range s.places {
		if p.Symbol == symbol {
			return p
		}
	}
	p := &Place{Symbol: symbol, set: s}
	s.places = append(s.places, p)
	return p
}

// Judge answers a vCPU that has come to the place, on the ring goroutine:
// [vmevent.Continue] lets it go on there.
func (p *Place) Judge(ev *vmevent.Event) vmevent.Verdict {
	for i := range p.judges {
		j, s := &p.judges[i], p.set
		d := s.begin(j.armed)
		v := s.judgedCall(j, ev)
		s.end(j.armed, d)
		if v != vmevent.Continue {
			return v
		}
	}
	return vmevent.Continue
}

func (s *Set) judgedCall(j *callJudge, ev *vmevent.Event) vmevent.Verdict {
	s.call = CallEvidence{}
	if j.note != nil {
		if j.note(ev, &s.call) {
			s.note(j.armed, ev)
		}
		return vmevent.Continue
	}
	if !j.judge(ev, &s.call) {
		j.armed.Passed.Add(1)
		return vmevent.Continue
	}
	return s.violation(j.armed, ev, 0)
}

// note has a call recorded that is no violation. It has a queue of its own, so that what
// a guest does all day leaves room for violations.
func (s *Set) note(a *Armed, ev *vmevent.Event) {
	s.scratch = Evidence{Guard: a.Guard.Name, Call: s.call}
	s.scratch.take(s.target, s.mem, ev, 0)
	select {
	case s.notes <- s.scratch:
	default:
		a.Unnoted.Add(1)
	}
}

// Notes delivers calls that are to be recorded and are no violations.
func (s *Set) Notes() <-chan Evidence { return s.notes }

// refusable prepares that a call is refused, and reports whether it can be.
func (s *Set) refusable(ev *vmevent.Event) bool {
	if ev.Reason != vmevent.ReasonSoftwareBreakpoint {
		return true
	}
	to, err := s.target.Kernel.ReturnOf(&ev.Regs)
	if err != nil || !ev.Paused {
		return false
	}
	const eperm = 1
	ev.Leave = vmevent.Leave{RAX: ^uint64(eperm - 1), RSP: ev.Regs.RSP + 8, RIP: uint64(to)}
	return true
}
