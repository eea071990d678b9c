package inspect

import (
	"errors"
	"math"
	"reflect"
	"strconv"
	"strings"
	"testing"

	"github.com/xen-hvi/hvi/engine/guest/report"
)

// TestQuestions: the table is complete and means what it says.
func TestQuestions(t *testing.T) {
	seen := map[Kind]bool{}
	for i, q := range Questions() {
		if seen[q.Kind] || q.Kind == "" || q.Means == "" || strings.HasSuffix(q.Means, ".") {
			t.Errorf("question %d: %+v", i, q)
		}
		seen[q.Kind] = true
		if found, ok := Find(q.Kind); !ok || found.Kind != q.Kind || Kinds()[i] != string(q.Kind) {
			t.Errorf("%s is not found", q.Kind)
		}
		for _, a := range []Args{{}, {PID: 1}, {PID: -1}, {Threads: true}, {PID: 1, Threads: true}} {
			want := a.PID >= 0 && (a.PID == 0 || q.PID != NoPID) && (a.PID != 0 || q.PID != RequiredPID) && (q.Threads || !a.Threads)
			err := q.Accepts(a)
			var wrong *ArgumentError
			if (err == nil) != want || err != nil && (!errors.As(err, &wrong) || wrong.Fix == "" || !strings.HasPrefix(err.Error(), string(q.Kind)+": ")) {
				t.Errorf("%s of %+v: %v", q.Kind, a, err)
			}
			// What may be asked gets to the reader, and nothing else does.
			if _, asked := q.Ask(mute{}, a); errors.Is(asked, errMute) != want || !want && !errors.As(asked, &wrong) {
				t.Errorf("%s of %+v, asked of a reader that knows nothing: %v", q.Kind, a, asked)
			}
		}
	}
	if _, ok := Find("passwords"); ok {
		t.Error("there is a question that there is not")
	}
}

// TestAsk: an answer is of the type of Result, and from the right method.
func TestAsk(t *testing.T) {
	q, _ := Find(Processes)
	v := some{}
	for _, threads := range []bool{false, true} {
		got, err := q.Ask(v, Args{Threads: threads})
		if err != nil || reflect.TypeOf(got) != reflect.TypeOf(q.Result()) {
			t.Fatalf("%T, %v", got, err)
		}
		if n := len(got.(*report.List[report.Process]).Items); (n == 2) != threads {
			t.Errorf("threads %v: %d items", threads, n)
		}
	}
}

// some answers for processes only.
type some struct{ Views }

func (some) Processes() (report.List[report.Process], error) {
	return report.List[report.Process]{Items: make([]report.Process, 1)}, nil
}

func (some) Threads(int32) (report.List[report.Process], error) {
	return report.List[report.Process]{Items: make([]report.Process, 2)}, nil
}

// mute is a reader that knows nothing.
type mute struct{}

var errMute = errors.New("nothing to tell")

func (mute) Info() (v report.Info, err error)                          { return v, errMute }
func (mute) Processes() (v report.List[report.Process], err error)     { return v, errMute }
func (mute) Threads(int32) (v report.List[report.Process], err error)  { return v, errMute }
func (mute) Maps(int32) (v report.List[report.Mapping], err error)     { return v, errMute }
func (mute) Mounts(int32) (v report.List[report.Mount], err error)     { return v, errMute }
func (mute) Modules() (v report.List[report.Module], err error)        { return v, errMute }
func (mute) Sockets() (v report.List[report.Socket], err error)        { return v, errMute }
func (mute) Syscalls() (v report.List[report.SyscallTable], err error) { return v, errMute }
func (mute) Interrupts() (v report.List[report.Gate], err error)       { return v, errMute }
func (mute) Segments() (v report.List[report.Segment], err error)      { return v, errMute }
func (mute) Probes() (v report.List[report.Probe], err error)          { return v, errMute }
func (mute) Programs() (v report.List[report.Program], err error)      { return v, errMute }
func (mute) Log() (v report.List[report.LogRecord], err error)         { return v, errMute }
func (mute) Check() (v report.Verdict, err error)                      { return v, errMute }

func TestParsePID(t *testing.T) {
	for s, want := range map[string]int32{
		"1": 1, "4194304": 4194304, strconv.Itoa(math.MaxInt32): math.MaxInt32, "007": 7,
		"": 0, "0": 0, "-1": 0, "+1": 0, "1.0": 0, "0x1": 0, "1 ": 0, "2147483648": 0, "4294967297": 0, "99999999999999999999": 0, "\x1b": 0,
	} {
		got, err := ParsePID(s)
		if got != want || (err == nil) != (want != 0) || err != nil && strings.ContainsRune(err.Error(), '\x1b') {
			t.Errorf("%q: %d, %v", s, got, err)
		}
	}
}
