package outside

import (
	"fmt"
	"maps"
	"strings"
	"testing"

	"github.com/xen-hvi/hvi/engine/guest/report"
	"github.com/xen-hvi/hvi/engine/inspect"
	"github.com/xen-hvi/hvi/lab/witness"
)

// atRest is what a guest says of itself: a program and a kernel thread, two
// modules, a log.
func atRest() witness.Report {
	r := witness.Report{
		"state.json":   []byte(`{"roles":{"hidden":7}}`),
		"proc/modules": []byte("vfat 20480 0 - Live 0xffffffffc0626000\nfat 90112 1 vfat, Live 0xffffffffc0601000\nloop 40960 0 - Live 0xffffffffc0500000\n"),
		"dmesg":        []byte("6,10,345,-;first\n6,11,346,-;last\n"),
		"proc/uptime":  []byte("5.0 1.0"), "proc/version": []byte("Linux version 6"), "proc/cmdline": []byte("quiet"),
	}
	task := func(pid, ppid int, name string, flags uint32) {
		for _, dir := range []string{fmt.Sprintf("proc/%d/", pid), fmt.Sprintf("proc/%d/task/%d/", pid, pid)} {
			r[dir+"stat"] = fmt.Appendf(nil, "%d (%s) S %d 1 12 0 -1 %d 0 0 0 0 1 2 0 0 20 0 1 0 345 1 1", pid, name, ppid, flags)
			r[dir+"status"] = fmt.Appendf(nil, "Tgid:\t%d\nUid:\t0\t0\t0\t0\nGid:\t0\t0\t0\t0\nThreads:\t1\nCapInh:\t0\nCapPrm:\t0\nCapEff:\t0\nCapBnd:\t0\nCapAmb:\t0\n", pid)
			r[dir+"comm"] = []byte(name + "\n")
		}
	}
	task(7, 1, "hide-me", 0x400000)
	task(9, 2, "ksoftirqd/0", pfKthread)
	task(10, 2, "kworker/0:1-events", pfKthread)
	return r
}

func testJudge(t *testing.T) *judge {
	j, err := newJudge(atRest(), atRest(), "6")
	if err != nil {
		t.Fatal(err)
	}
	j.loaded, j.shells = true, map[string]bool{"300": true}
	return j
}

// TestJudgeTasks: what can't be in a guest under this load is wrong.
func TestJudgeTasks(t *testing.T) {
	child := record{"kernel thread": "false", "tgid": "4000", "ppid": "300", "comm": "true", "uids": "0 0 0 0", "gids": "0 0 0 0", "exe": "/bin/busybox"}
	thread := record{"kernel thread": "true", "tgid": "50", "ppid": "2", "comm": "kworker/1:2", "uids": "0 0 0 0"}
	j := testJudge(t)
	for _, c := range []struct {
		name   string
		of     record
		change record
		right  bool
	}{
		{"a child of the load", child, nil, true},
		{"one that has no memory any more", child, record{"exe": ""}, true},
		{"a shell of the load", child, record{"tgid": "300", "ppid": "1", "comm": "sh"}, true},
		{"half a name", child, record{"comm": "tru"}, false},
		{"another's child", child, record{"ppid": "1"}, false},
		{"another's rights", child, record{"uids": "0 1 0 0"}, false},
		{"another's program", child, record{"exe": "/init"}, false},
		{"no such number", child, record{"tgid": "40000"}, false},
		{"a worker", thread, nil, true},
		{"one that is being made", thread, record{"comm": "kthreadd"}, true},
		{"no worker", thread, record{"comm": "evil"}, false},
		{"a worker that is nobody's", thread, record{"ppid": "1"}, false},
	} {
		r := maps.Clone(c.of)
		maps.Copy(r, c.change)
		if got := j.task(r); got != c.right {
			t.Errorf("%s: %v", c.name, got)
		}
	}
	j.loaded = false
	if j.task(child) {
		t.Error("a child of the load when there is none")
	}
}

func TestJudgeModules(t *testing.T) {
	live := record{"size": "90112", "refcount": "0", "state": "live", "base": "ffffffffc0700000", "users": "vfat"}
	for _, c := range []struct {
		name   string
		change record
		right  bool
	}{
		{"as it was", nil, true},
		{"with memory that it gives back", record{"size": "98304", "state": "coming", "users": ""}, true},
		{"nothing settled", record{"size": "0", "base": "0", "state": "unformed"}, true},
		{"half of it", record{"size": "4096"}, false},
		{"another's user", record{"users": "loop"}, false},
		{"elsewhere", record{"base": "ffff888000000000"}, false},
		{"no such state", record{"state": "state-7"}, false},
	} {
		r := maps.Clone(live)
		maps.Copy(r, c.change)
		if got := testJudge(t).module(r); got != c.right {
			t.Errorf("%s: %v", c.name, got)
		}
	}
}

func TestJudgeAnswers(t *testing.T) {
	task := func(pid int32, name string, kernel bool) report.Process {
		p := report.Process{PID: pid, TGID: pid, PPID: 1, Comm: report.Text(name), KernelThread: kernel, Threads: 1, Start: 3_450_000_000}
		if kernel {
			p.PPID = 2
		}
		return p
	}
	processes := func(list ...report.Process) any { return &report.List[report.Process]{Items: list} }
	log := func(messages ...string) any {
		out := &report.List[report.LogRecord]{}
		for i, m := range messages {
			out.Items = append(out.Items, report.LogRecord{Seq: uint64(10 + i), Level: 6, Nanoseconds: uint64(345+i) * 1000, Message: report.Text(m)})
		}
		return out
	}
	gap := log("first", "last", "x").(*report.List[report.LogRecord])
	gap.Items = append(gap.Items[:1:1], gap.Items[2])
	verdict := &report.Verdict{Findings: []report.Finding{{Check: "kprobes"}}}
	mine, own := task(7, "hide-me", false), task(9, "ksoftirqd/0", true)
	for _, c := range []struct {
		name   string
		kind   string
		answer any
		wrong  string // "": right
	}{
		{"all there", "ps", processes(mine, own), ""},
		{"one missing", "ps", processes(own), "7"},
		{"one twice", "ps", processes(mine, mine, own), "twice"},
		{"another's name", "ps", processes(mine, task(9, "ksoftirqd/1", true)), "ksoftirqd/1"},
		{"one too many", "ps", processes(mine, own, task(12, "ghost", false)), "ghost"},
		{"the log", "dmesg", log("first", "last", "hvi-load 3 3 3"), ""},
		{"a torn line", "dmesg", log("first", "last", "hvi-load 3 3 4"), "hvi-load 3 3 4"},
		{"a line that is gone", "dmesg", gap, "between"},
		{"a false alarm", "check", verdict, "kprobes"},
		{"another kind of answer", "check", processes(), "is a"},
	} {
		found := false
		for _, q := range testJudge(t).questions(true) {
			if q.name != c.kind {
				continue
			}
			found = true
			_, wrong := q.judge(c.answer)
			if (c.wrong == "") != (len(wrong) == 0) || !strings.Contains(strings.Join(wrong, "; "), c.wrong) {
				t.Errorf("%s: %q", c.name, wrong)
			}
		}
		if !found {
			t.Errorf("no question is called %s", c.kind)
		}
	}
}

func TestJudgeTables(t *testing.T) {
	j := testJudge(t)
	answer := func(in report.Region) any {
		return &report.List[report.Gate]{Items: []report.Gate{{Handler: report.Place{Addr: 5, In: in}}}, Reading: report.Reading{Microseconds: 7}}
	}
	if err := j.remember(inspect.Interrupts, answer(report.InUnknown)); err == nil {
		t.Error("a table with a gate to nowhere is taken for a right one")
	}
	if err := j.remember(inspect.Interrupts, answer(report.InKernel)); err != nil {
		t.Fatal(err)
	}
	judge := j.table(inspect.Interrupts)
	if _, wrong := judge(answer(report.InKernel)); len(wrong) != 0 {
		t.Errorf("the same: %q", wrong)
	}
	if _, wrong := judge(answer(report.InModule)); len(wrong) != 1 {
		t.Errorf("another: %q", wrong)
	}
}

// TestQuestions: every question that can be asked of a guest is asked under load.
func TestQuestions(t *testing.T) {
	asked := map[inspect.Kind]bool{}
	for _, q := range testJudge(t).questions(true) {
		if q.share < 1 || q.judge == nil {
			t.Errorf("%s is not as others", q.name)
		}
		asked[q.kind] = true
	}
	for _, k := range inspect.Kinds() {
		if !asked[inspect.Kind(k)] {
			t.Errorf("%s is not asked", k)
		}
	}
}
