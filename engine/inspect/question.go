package inspect

import (
	"fmt"
	"math"
	"strconv"

	"github.com/xen-hvi/hvi/engine/guest/report"
	"github.com/xen-hvi/hvi/engine/printable"
)

// Kind names a question. It is a word of the control interface and of hvictl.
type Kind string

// The kinds.
const (
	Info       Kind = "info"
	Processes  Kind = "ps"
	Maps       Kind = "maps"
	Mounts     Kind = "mounts"
	Modules    Kind = "modules"
	Sockets    Kind = "sockets"
	Syscalls   Kind = "syscalls"
	Interrupts Kind = "interrupts"
	Segments   Kind = "segments"
	Probes     Kind = "probes"
	Programs   Kind = "programs"
	Log        Kind = "dmesg"
	Check      Kind = "check"
)

// Args are the arguments of a question. The zero value is none.
type Args struct {
	// PID is a process of the guest, 0 for none.
	PID int32
	// Threads asks for every thread, not for processes only.
	Threads bool
}

// PIDUse says what a question makes of a process.
type PIDUse int

// The uses.
const (
	NoPID PIDUse = iota
	OptionalPID
	RequiredPID
)

// Question is something that can be asked about a guest.
type Question struct {
	Kind Kind
	// Means is what the answer is, for help: "List its processes".
	Means string
	// PID says whether it is about a process, and Threads whether it can be
	// asked for threads.
	PID     PIDUse
	Threads bool

	answer func(Views, Args) (any, error)
	empty  func() any
}

// Questions are all there are, in the order in which people are told of them.
func Questions() []Question { return questions }

var questions = []Question{
	question(Question{Kind: Info, Means: "Tell what the guest runs: kernel, uptime, processors"},
		func(v Views, _ Args) (report.Info, error) { return v.Info() }),
	question(Question{Kind: Processes, Means: "List its processes", Threads: true},
		func(v Views, a Args) (report.List[report.Process], error) {
			if a.Threads {
				return v.Threads(0)
			}
			return v.Processes()
		}),
	question(Question{Kind: Maps, Means: "List the memory of one process", PID: RequiredPID},
		func(v Views, a Args) (report.List[report.Mapping], error) { return v.Maps(a.PID) }),
	question(Question{Kind: Mounts, Means: "List what is mounted, as its first process or another sees it", PID: OptionalPID},
		func(v Views, a Args) (report.List[report.Mount], error) { return v.Mounts(a.PID) }),
	question(Question{Kind: Modules, Means: "List its kernel's modules"},
		func(v Views, _ Args) (report.List[report.Module], error) { return v.Modules() }),
	question(Question{Kind: Sockets, Means: "List its open sockets and who holds them"},
		func(v Views, _ Args) (report.List[report.Socket], error) { return v.Sockets() }),
	question(Question{Kind: Log, Means: "Show its kernel's log"},
		func(v Views, _ Args) (report.List[report.LogRecord], error) { return v.Log() }),
	question(Question{Kind: Syscalls, Means: "Show its tables of system calls and where each entry leads"},
		func(v Views, _ Args) (report.List[report.SyscallTable], error) { return v.Syscalls() }),
	question(Question{Kind: Interrupts, Means: "Show its interrupt descriptor tables"},
		func(v Views, _ Args) (report.List[report.Gate], error) { return v.Interrupts() }),
	question(Question{Kind: Segments, Means: "Show its global descriptor tables"},
		func(v Views, _ Args) (report.List[report.Segment], error) { return v.Segments() }),
	question(Question{Kind: Probes, Means: "List kprobes and ftrace users in its kernel"},
		func(v Views, _ Args) (report.List[report.Probe], error) { return v.Probes() }),
	question(Question{Kind: Programs, Means: "List its eBPF programs and what they are attached to"},
		func(v Views, _ Args) (report.List[report.Program], error) { return v.Programs() }),
	question(Question{Kind: Check, Means: "Look for hidden processes and modules and for hooks in its kernel"},
		func(v Views, _ Args) (report.Verdict, error) { return v.Check() }),
}

// question completes a question with how it is answered.
func question[T any](q Question, ask func(Views, Args) (T, error)) Question {
	q.answer = func(v Views, a Args) (any, error) {
		out, err := ask(v, a)
		if err != nil {
			return nil, err
		}
		return &out, nil
	}
	q.empty = func() any { return new(T) }
	return q
}

// Find returns the question of a kind.
func Find(k Kind) (Question, bool) {
	for _, q := range questions {
		if q.Kind == k {
			return q, true
		}
	}
	return Question{}, false
}

// Kinds are the names of all questions.
func Kinds() []string {
	out := make([]string, len(questions))
	for i, q := range questions {
		out[i] = string(q.Kind)
	}
	return out
}

// Result returns a pointer to an empty result, to decode an answer into. Ask
// returns one of the same type.
func (q Question) Result() any { return q.empty() }

// Ask answers the question. Arguments that it has no use for are an
// [*ArgumentError]; other errors are the reader's.
func (q Question) Ask(v Views, a Args) (any, error) {
	if err := q.Accepts(a); err != nil {
		return nil, err
	}
	return q.answer(v, a)
}

// Accepts returns nil, or the [*ArgumentError] that the arguments are.
func (q Question) Accepts(a Args) error {
	switch {
	case a.PID < 0:
		return &ArgumentError{q.Kind, fmt.Sprintf("the PID is %d", a.PID), "give a PID of the guest: " + string(Processes) + " lists them"}
	case a.PID != 0 && q.PID == NoPID:
		return &ArgumentError{q.Kind, "it is about no one process", "leave the PID out"}
	case a.PID == 0 && q.PID == RequiredPID:
		return &ArgumentError{q.Kind, "it is about a process, and none is named", "give a PID of the guest: " + string(Processes) + " lists them"}
	case a.Threads && !q.Threads:
		return &ArgumentError{q.Kind, "it has no threads to show", "leave threads out"}
	}
	return nil
}

// ArgumentError is an argument that a question does not take, or lacks.
type ArgumentError struct {
	Kind Kind
	// What is wrong, one clause, and what to do about it.
	What, Fix string
}

func (e *ArgumentError) Error() string { return string(e.Kind) + ": " + e.What }

// ParsePID reads a PID as people write it.
func ParsePID(s string) (int32, error) {
	n, err := strconv.ParseUint(s, 10, 32)
	if err != nil || n == 0 || n > math.MaxInt32 {
		return 0, fmt.Errorf("%s is no PID", printable.Escape(s).Quoted())
	}
	return int32(n), nil
}
