package control

import (
	"fmt"
	"reflect"
	"slices"
	"testing"
	"time"

	"github.com/xen-hvi/hvi/engine/journal"
	"github.com/xen-hvi/hvi/engine/policy"
	"github.com/xen-hvi/hvi/engine/printable"
)

var learnt = time.Date(2026, 5, 9, 7, 0, 0, 0, time.UTC)

// patched is a write of a module's to the kernel's code, so many minutes after learnt.
func patched(minute int, comm string, bytes ...byte) *journal.Record {
	return &journal.Record{
		ID: journal.ID(fmt.Sprintf("69fe2b1d7c3a-%d", minute)), Time: learnt.Add(time.Duration(minute) * time.Minute),
		Guard: "kernel-text", Action: journal.Alerted, Mode: "learn",
		Domain:    journal.Domain{UUID: "6c9f7a1e-0b1d-4f0e-9c5c-0123456789ab", Kernel: "6.1.0"},
		RIP:       journal.Location{Module: "falcon"},
		Process:   journal.Process{Comm: printable.Text(comm)},
		Target:    journal.Target{Kind: journal.TargetMemory, Memory: &journal.MemoryTarget{Location: journal.Location{Symbol: "do_syscall_64"}}},
		Attempted: journal.Bytes(bytes), Detail: journal.Detail{Access: "w"},
	}
}

func TestLearner(t *testing.T) {
	const all = "kernel-text domain=6c9f7a1e-0b1d-4f0e-9c5c-0123456789ab "
	unknown := patched(5, "x", 1)
	unknown.RIP, unknown.Process = journal.Location{Addr: 1}, journal.Process{Unknown: "no"}
	nothing := patched(6, "x", 1)
	nothing.RIP, nothing.Process, nothing.Target.Memory.Symbol, nothing.Detail.Access = unknown.RIP, unknown.Process, "", "x"
	repeated := patched(3, "a", 1)
	repeated.Detail.Repeats = 4
	var bytes, processes []*journal.Record
	for i := range LearnedBytes + 1 {
		bytes = append(bytes, patched(i, "a", byte(i)))
	}
	for i := range LearnedProcesses + 1 {
		processes = append(processes, patched(i, fmt.Sprint("p", i), 7))
	}
	for _, tt := range []struct {
		name    string
		records []*journal.Record
		any     []string
		want    []string // the exceptions, with what they lack and how often they were seen
	}{
		{"nothing", nil, nil, nil},
		{"one kind, seen again and again", []*journal.Record{patched(1, "a", 1), repeated}, nil,
			[]string{all + "process=a module=falcon target=do_syscall_64 bytes=01 kernel=6.1.0 [] [] 6"}},
		{"two kinds, the more frequent first", []*journal.Record{patched(1, "b", 1), repeated}, nil, []string{
			all + "process=a module=falcon target=do_syscall_64 bytes=01 kernel=6.1.0 [] [] 5",
			all + "process=b module=falcon target=do_syscall_64 bytes=01 kernel=6.1.0 [] [] 1",
		}},
		{"two kinds that are one with less", []*journal.Record{patched(1, "b", 1), repeated}, []string{AnyProcess, AnyDomain},
			[]string{"kernel-text module=falcon target=do_syscall_64 bytes=01 kernel=6.1.0 [] [] 6"}},
		{"what is not told", []*journal.Record{unknown}, nil,
			[]string{all + "target=do_syscall_64 bytes=01 kernel=6.1.0 [process code] [] 1"}},
		{"other bytes each time", bytes, nil,
			[]string{all + "process=a module=falcon target=do_syscall_64 kernel=6.1.0 [] [bytes] 4"}},
		{"not so many", bytes[1:], []string{AnyDomain, AnyKernel}, []string{
			"kernel-text process=a module=falcon target=do_syscall_64 bytes=01 [] [] 1",
			"kernel-text process=a module=falcon target=do_syscall_64 bytes=02 [] [] 1",
			"kernel-text process=a module=falcon target=do_syscall_64 bytes=03 [] [] 1",
		}},
		{"many processes", processes, nil,
			[]string{all + "module=falcon target=do_syscall_64 bytes=07 kernel=6.1.0 [] [process] 9"}},
	} {
		l := Learner{Any: map[string]bool{}}
		for _, c := range tt.any {
			l.Any[c] = true
		}
		for _, r := range tt.records {
			l.Add(r)
		}
		var got []string
		for _, p := range l.Result().Proposals {
			if p.ID != p.Exception.ID() || p.Broad() != (len(p.Untold)+len(p.Various) > 0) {
				t.Errorf("%s: %+v", tt.name, p)
			}
			got = append(got, fmt.Sprint(p.Exception.String(), " ", p.Untold, " ", p.Various, " ", p.Violations))
		}
		slices.Sort(tt.want)
		slices.Sort(got)
		if !reflect.DeepEqual(got, tt.want) {
			t.Errorf("%s:\n got %q\nwant %q", tt.name, got, tt.want)
		}
	}
	var l Learner
	storm := patched(9, "a", 1)
	storm.Detail.Suppressed = 40
	noted := patched(9, "a", 1)
	noted.Action = journal.Noted
	for _, r := range []*journal.Record{patched(2, "b", 1), repeated, patched(1, "a", 1), nothing, storm, noted} {
		l.Add(r)
	}
	got := l.Result()
	if got.Violations != 8 || got.Unrecorded != 40 || got.Unproposed != 1 || !got.First.Equal(learnt.Add(time.Minute)) || !got.Last.Equal(learnt.Add(6*time.Minute)) {
		t.Errorf("%+v", got)
	}
	if p := got.Proposals[0]; len(got.Proposals) != 2 || p.Violations != 6 || p.Event != repeated.ID || !p.First.Equal(learnt.Add(time.Minute)) || !p.Last.Equal(repeated.Time) {
		t.Errorf("the more frequent first: %+v", got.Proposals)
	}
}

// TestLearnerIsBounded has a guest do ever new things.
func TestLearnerIsBounded(t *testing.T) {
	var l Learner
	for i := range maxKinds + 10 {
		r := patched(1, "a", 1)
		r.Target.Memory.Symbol = printable.Text(fmt.Sprint("f", i))
		l.Add(r)
	}
	if got := l.Result(); len(got.Proposals) != maxKinds || got.Unproposed != 10 || got.Violations != maxKinds+10 {
		t.Errorf("%d proposals, %d violations without one, of %d", len(got.Proposals), got.Unproposed, got.Violations)
	}
}

// TestLearnedBytesAreEnough keeps the merged exception one that hvid accepts.
func TestLearnedBytesAreEnough(t *testing.T) {
	var l Learner
	l.Any = map[string]bool{AnyDomain: true, AnyProcess: true, AnyCode: true, AnyTarget: true, AnyKernel: true}
	for i := range LearnedBytes + 1 {
		l.Add(patched(i, "a", byte(i)))
	}
	for _, p := range l.Result().Proposals {
		if err := p.Exception.Validate(); err != nil || p.Guard != policy.GuardKernelText || p.Bytes == "" {
			t.Errorf("%s: %v", p.Exception, err)
		}
	}
}
