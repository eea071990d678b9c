package scenario

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/xen-hvi/hvi/engine/guest/report"
	"github.com/xen-hvi/hvi/engine/inspect"
)

func init() {
	Register(Scenario{
		Name:     "linux-rest-xen",
		Brief:    "A guest of 2 vCPUs at rest, on Xen: what is read of it is what it says, and what hides in it is found",
		Emulator: QEMU,
		Timeout:  liveTimeout,
		Run:      func(t *T) error { return linuxLive(t, liveVCPUs, 0) },
	})
	Register(Scenario{
		Name:        "linux-rest-xen-next",
		Brief:       "The same with the next Debian's kernel, on one vCPU: with two it ends in the emulator while it boots",
		Emulator:    QEMU,
		GuestKernel: "7.2-cloud",
		Timeout:     liveTimeout,
		Run:         func(t *T) error { return linuxLive(t, 1, 0) },
	})
	Register(Scenario{
		Name:     "linux-live-xen",
		Brief:    "A guest of 2 vCPUs under load, on Xen, is read 200 times: no wrong answer, and what hides in it is found",
		Emulator: QEMU,
		Timeout:  liveTimeout,
		Run:      func(t *T) error { return linuxLive(t, liveVCPUs, liveReadings) },
	})
	Register(Scenario{
		Name:        "linux-live-xen-next",
		Brief:       "The same with the next Debian's kernel",
		Emulator:    QEMU,
		GuestKernel: "7.2-cloud",
		Timeout:     liveTimeout,
		Run:         func(t *T) error { return linuxLive(t, liveVCPUs, liveReadings) },
	})
}

// How much is asked of a machine within a machine: the guest runs some hundred
// times slower than a real one. That the reader is right about a guest of four
// vCPUs in a storm is shown by linux-live, without Xen.
const (
	liveVCPUs    = 2
	liveReadings = 200
	liveTimeout  = 40 * time.Minute
	// liveBootLimit is how long the guest may take to boot: Linux has all of its
	// processors spin until the last one has come to the same place
	// (stop_machine), and the emulator lets them wait for one another.
	liveBootLimit = 12 * time.Minute
	// liveAlone is how long the guest bears its load before the first reading, in
	// the guest's own seconds: where the load alone ends it, that says nothing of
	// reading.
	liveAlone = 30
)

// liveArgs keep the guest from finding out that an emulated processor's clock is
// not to be trusted, which has it stop all of them.
var liveArgs = []string{"clocksource=xen", "tsc=nowatchdog", "nowatchdog"}

// liveProcesses is the number of processes that live from before the first
// reading to after the last.
const liveProcesses = 5

// liveSetup starts them, each a script that is named as its process, loads a
// module that stays, and prints their numbers.
const liveSetup = `mkdir -p /k && for i in 1 2 3 4 5; do ` +
	`printf '#!/bin/sh\necho $$ >/k/pid-'$i'\nwhile :; do sleep 100000; done\n' >/k/known-$i; chmod 755 /k/known-$i; /k/known-$i </dev/null >/dev/null 2>&1 & done; ` +
	`insmod /lib/loop.ko; while [ "$(cat /k/pid-* 2>/dev/null | wc -l)" -lt 5 ]; do sleep 1; done; cat /k/pid-*`

// liveLoad are processes that end at once, and a module that comes and goes. It
// ends when the guest's `load` does.
const liveLoad = `(while [ -e /tmp/load ]; do /bin/true & /bin/true & wait; done) </dev/null >/dev/null 2>&1 & ` +
	`(while [ -e /tmp/load ]; do insmod /lib/fat.ko; rmmod fat; done) </dev/null >/dev/null 2>&1 &`

// live is a guest that is read while it works.
type live struct {
	t *T
	g *Guest
	// known are the processes that must be there in each reading, by number.
	known map[int32]string

	reads      map[inspect.Kind]int
	refused    map[string]int // readings that hvid gave no answer to, by reason
	incomplete map[string]int // what was said to be missing, by reason
	retries    int
	retried    int // readings that had any
	wrong      []string
}

func linuxLive(t *T, vcpus, reads int) error {
	if _, err := t.StartHVID(); err != nil {
		return err
	}
	g, err := t.StartGuest(GuestConfig{Name: "live", VCPUs: vcpus, Memory: 256, KernelArgs: liveArgs})
	if err != nil {
		return err
	}
	release, err := g.waitUp(liveBootLimit)
	if err != nil {
		return err
	}
	t.Fact("release", release)
	l := &live{t: t, g: g, known: map[int32]string{1: "init"}, reads: map[inspect.Kind]int{}, refused: map[string]int{}, incomplete: map[string]int{}}
	out, err := g.Run(liveSetup)
	if err != nil {
		return err
	}
	for i, word := range strings.Fields(out) {
		pid, err := strconv.ParseInt(word, 10, 32)
		if err != nil {
			return fmt.Errorf("the guest's known processes are %q", out)
		}
		l.known[int32(pid)] = fmt.Sprintf("known-%d", i+1)
	}
	if !t.Check(len(l.known) == 1+liveProcesses, "the guest has its %d processes: %v", liveProcesses, l.known) {
		return nil
	}
	if err := t.Step("quiet", l.quiet); err != nil {
		return err
	}
	if reads > 0 {
		if err := t.Step("alone", l.alone); err != nil {
			return err
		}
		if err := t.Step("load", func() error { return l.underLoad(reads) }); err != nil {
			return err
		}
	}
	return t.Step("hidden", l.hidden)
}

// quiet reads the guest at rest: all kernel threads that are there now stay,
// but for workers.
func (l *live) quiet() error {
	var ps report.List[report.Process]
	if err := client.Guest(l.t.ctx, l.g.Name, inspect.Processes, inspect.Args{}, &ps); err != nil {
		return err
	}
	for _, p := range ps.Items {
		if p.KernelThread && !strings.HasPrefix(string(p.Comm), "kworker/") {
			l.known[p.PID] = string(p.Comm)
		}
	}
	l.t.Fact("known", len(l.known))
	l.processes(ps)
	l.t.Check(len(l.wrong) == 0, "no process is what it can't be: %q", l.wrong)
	if err := l.ownWords(); err != nil {
		return err
	}
	return l.verdict(false)
}

// ownWords compares views with what the guest says itself, before and after:
// what it says both times was so in between.
func (l *live) ownWords() error {
	for _, v := range ownViews() {
		before, err := l.g.Run(v.asks)
		if err != nil {
			return err
		}
		if err := l.ask(v.kind, v.into); err != nil {
			return err
		}
		after, err := l.g.Run(v.asks)
		if err != nil {
			return err
		}
		v.judge(l.t, before, after)
	}
	return nil
}

// ownView is a view and how the guest itself tells the same.
type ownView struct {
	kind  inspect.Kind
	asks  string // of the guest: a line for each thing
	into  any
	lines func() []string        // of what was read into into
	more  func(line string) bool // what the guest doesn't show
}

func ownViews() []ownView {
	var ps report.List[report.Process]
	var mods report.List[report.Module]
	var mounts report.List[report.Mount]
	var log report.List[report.LogRecord]
	return []ownView{
		{inspect.Processes, `cat /proc/[0-9]*/stat | sed 's/^\([0-9]*\) (\(.*\)) . \([0-9]*\) .*/\1 \3 \2/'`, &ps, func() (out []string) {
			for _, p := range ps.Items {
				out = append(out, fmt.Sprintf("%d %d %s", p.PID, p.PPID, p.Comm))
			}
			return out
		}, func(line string) bool { return strings.Contains(line, " 2 kworker/") }},
		{inspect.Modules, `cut -d" " -f1-3 /proc/modules`, &mods, func() (out []string) {
			for _, m := range mods.Items {
				out = append(out, fmt.Sprintf("%s %d %d", m.Name, m.Size, m.Refcount))
			}
			return out
		}, nil},
		{inspect.Mounts, `sed 's/^\([0-9]*\) \([0-9]*\) \([^ ]*\) [^ ]* \([^ ]*\) .* - \([^ ]*\) .*/\1 \2 \3 \4 \5/' /proc/1/mountinfo`, &mounts, func() (out []string) {
			for _, m := range mounts.Items {
				out = append(out, fmt.Sprintf("%d %d %s %s %s", m.ID, m.Parent, m.Device, m.Point, m.Type))
			}
			return out
		}, nil},
		{inspect.Log, `dmesg | sed 's/^\[ *\([0-9.]*\)\] .*/\1/'`, &log, func() (out []string) {
			for _, r := range log.Items {
				us := r.Nanoseconds / 1000
				out = append(out, fmt.Sprintf("%d.%06d", us/1e6, us%1e6))
			}
			return out
		}, func(string) bool { return true }}, // lines of one record
	}
}

// judge compares what was read with what the guest said before and after.
func (v ownView) judge(t *T, before, after string) {
	split := func(s string) (out []string) {
		for line := range strings.SplitSeq(strings.TrimSpace(s), "\n") {
			if v.kind == inspect.Processes {
				line = taskName(line)
			}
			out = append(out, line)
		}
		return out
	}
	was, is, got := split(before), split(after), v.lines()
	var wrong []string
	same := 0
	for _, line := range was {
		if !slices.Contains(is, line) || v.kind == inspect.Processes && own(line) {
			continue
		}
		if same++; !slices.Contains(got, line) {
			wrong = append(wrong, "missing: "+line)
		}
	}
	for _, line := range got {
		if !slices.Contains(was, line) && !slices.Contains(is, line) && (v.more == nil || !v.more(line)) {
			wrong = append(wrong, "not the guest's: "+line)
		}
	}
	t.Check(same > 0 && len(wrong) == 0, "%s is what the guest says: %d the same, %q", v.kind, same, wrong)
}

// taskName cuts a name at the end of a line as long as a task's can be. /proc
// shows a kernel thread's in full, and what a worker works on behind its own.
func taskName(line string) string {
	f := strings.SplitN(line, " ", 3)
	if len(f) < 3 {
		return line
	}
	if pool, work, ok := strings.Cut(f[2], ":"); ok && strings.HasPrefix(pool, "kworker/") {
		if i := strings.IndexAny(work, "-+"); i > 0 {
			f[2] = pool + ":" + work[:i]
		}
	}
	const most = 15 // TASK_COMM_LEN, less the zero
	f[2] = f[2][:min(len(f[2]), most)]
	return strings.Join(f, " ")
}

// own says of a line about a process that it is the very one that wrote it.
func own(line string) bool { return strings.HasSuffix(line, " cat") || strings.HasSuffix(line, " sed") }

// alone has the guest bear its load without being read.
func (l *live) alone() error {
	if err := l.startLoad(); err != nil {
		return err
	}
	out, err := l.g.Run(fmt.Sprintf("sleep %d; sed -n 's/^processes //p' /proc/stat", liveAlone))
	l.t.Fact("tasks_before_reading", strings.TrimSpace(out))
	return err
}

func (l *live) startLoad() error {
	if err := l.g.Load(true); err != nil {
		return err
	}
	_, err := l.g.Run(liveLoad)
	return err
}

// liveKinds is in what turn it is read. To check costs more than the others.
var liveKinds = []inspect.Kind{
	inspect.Processes, inspect.Modules, inspect.Processes, inspect.Modules, inspect.Processes,
	inspect.Modules, inspect.Processes, inspect.Modules, inspect.Processes, inspect.Check,
}

// underLoad reads it again and again while it is busy.
func (l *live) underLoad(reads int) error {
	start := time.Now()
	done := 0
	for done < reads && len(l.wrong) <= 20 {
		if err := l.read(liveKinds[done%len(liveKinds)]); err != nil {
			return err
		}
		if done++; done%50 == 0 {
			l.t.Logf("%d readings, %d of them retried, %v refused", done, l.retried, l.refused)
		}
	}
	took := time.Since(start)
	refused := 0
	for _, n := range l.refused {
		refused += n
	}
	l.t.Fact("readings", l.reads)
	l.t.Fact("readings_per_second", float64(int(10*float64(done)/took.Seconds()))/10)
	l.t.Fact("retried", l.retried)
	l.t.Fact("retries", l.retries)
	l.t.Fact("refused", l.refused)
	l.t.Fact("incomplete", l.incomplete)
	l.t.Check(done == reads, "the guest was read %d times, of %d", done, reads)
	l.t.Check(len(l.wrong) == 0, "no reading was wrong: %d were, the first: %q", len(l.wrong), l.wrong[:min(len(l.wrong), 3)])
	// To refuse is no wrong answer, but neither is it one.
	l.t.Check(refused*10 <= done, "%d of %d readings were refused: %v", refused, done, l.refused)
	if err := l.g.Load(false); err != nil {
		return err
	}
	out, err := l.g.Run("sed -n 's/^processes //p' /proc/stat")
	l.t.Fact("tasks_after_reading", strings.TrimSpace(out))
	return err
}

// read reads once. Only what ends the scenario is an error.
func (l *live) read(kind inspect.Kind) error {
	var err error
	var r report.Reading
	switch kind {
	case inspect.Processes:
		var got report.List[report.Process]
		if err = l.ask(kind, &got); err == nil {
			r = got.Reading
			l.processes(got)
		}
	case inspect.Modules:
		var got report.List[report.Module]
		if err = l.ask(kind, &got); err == nil {
			r = got.Reading
			l.modules(got)
		}
	default:
		var got report.Verdict
		if err = l.ask(kind, &got); err == nil {
			r = got.Reading
			for _, f := range got.Findings {
				l.wrongf("check of a kernel that nobody attacked: %s: %s: %s", f.Check, f.Object, f.Detail)
			}
		}
	}
	l.reads[kind]++
	if err != nil {
		l.refused[string(kind)+": "+err.Error()]++
		return l.t.ctx.Err()
	}
	if l.retries += r.Retries; r.Retries > 0 {
		l.retried++
	}
	for _, why := range r.Incomplete {
		l.incomplete[string(kind)+": "+why]++
	}
	return nil
}

func (l *live) ask(kind inspect.Kind, into any) error {
	return client.Guest(l.t.ctx, l.g.Name, kind, inspect.Args{}, into)
}

func (l *live) wrongf(format string, args ...any) {
	l.wrong = append(l.wrong, fmt.Sprintf(format, args...))
}

// maxPID is the greatest number that Linux gives (PID_MAX_LIMIT).
const maxPID = 4 << 20

// processes looks for what can't be so.
func (l *live) processes(got report.List[report.Process]) {
	seen := map[int32]report.Process{}
	for _, p := range got.Items {
		if _, twice := seen[p.PID]; twice {
			l.wrongf("process %d is there twice", p.PID)
		}
		seen[p.PID] = p
		switch {
		case p.PID <= 0 || p.PID > maxPID || p.PPID < 0 || p.PPID > maxPID || p.TGID != p.PID:
			l.wrongf("process %d of thread group %d has the parent %d", p.PID, p.TGID, p.PPID)
		case p.Comm == "" || strings.Contains(string(p.Comm), `\`): // nothing here has such a name
			l.wrongf("process %d is called %q", p.PID, p.Comm)
		case len(p.State) != 1 || !strings.Contains("RSDTtZXIPKW", p.State):
			l.wrongf("process %d is in state %q", p.PID, p.State)
		}
	}
	if len(got.Reading.Incomplete) > 0 {
		return // it said itself that something may be missing
	}
	for _, pid := range slices.Sorted(maps.Keys(l.known)) {
		if p, ok := seen[pid]; !ok || string(p.Comm) != l.known[pid] {
			l.wrongf("process %d, %s, is %q of %d processes", pid, l.known[pid], p.Comm, len(seen))
		}
	}
}

// modules looks for what can't be so: one module stays, one comes and goes, and
// there is no third.
func (l *live) modules(got report.List[report.Module]) {
	seen := map[string]report.Module{}
	for _, m := range got.Items {
		name := string(m.Name)
		if _, twice := seen[name]; twice {
			l.wrongf("module %s is there twice", name)
		}
		seen[name] = m
		switch {
		case name != "loop" && name != "fat":
			l.wrongf("module %q", name)
		case m.State == "live" && (m.Base == 0 || m.Size == 0 || m.Refcount < 0 || m.Refcount > 1000):
			l.wrongf("module %s at %v, %d bytes, %d users", name, m.Base, m.Size, m.Refcount)
		}
	}
	if len(got.Reading.Incomplete) > 0 {
		return
	}
	if m, ok := seen["loop"]; !ok || m.State != "live" {
		l.wrongf("module loop is %+v of %d modules", m, len(seen))
	}
}

// hidden has a process and a module hide in the guest and wants them found.
func (l *live) hidden() error {
	if err := l.verdict(false); err != nil {
		return err
	}
	if _, err := l.g.Run("insmod /lib/hide.ko task=known-3 module=1 && ! grep -q '^hide ' /proc/modules"); err != nil {
		return err
	}
	return l.verdict(true)
}

// Exit codes of hvictl, those of check first.
const (
	exitClean    = 0
	exitFindings = 10
	exitImage    = 12 // of hvictl inspect: nothing to look into
)

// verdict asks hvictl for one.
func (l *live) verdict(attacked bool) error {
	out, err := l.t.Exec("hvictl", "-o", "json", "check", l.g.Name)
	code := exitClean
	var failed *ExecError
	switch {
	case errors.As(err, &failed) && failed.Code >= 0:
		code = failed.Code
	case err != nil:
		return err
	}
	var v report.Verdict
	if err := json.Unmarshal([]byte(out.Stdout), &v); err != nil {
		return fmt.Errorf("hvictl check: exit code %d, %w: %s", code, err, lastLines(out.String(), 3))
	}
	words, checks := verdictWords(v)
	if !attacked {
		l.t.Fact("check", checks)
		l.t.Check(code == exitClean && v.Clean && len(v.Findings) == 0, "hvictl check finds the guest clean: exit code %d, %q, %v", code, words, checks)
		return nil
	}
	l.t.Fact("check_attacked", checks)
	l.t.Fact("findings", words)
	l.t.Check(code == exitFindings && !v.Clean, "hvictl check says by its exit code, %d, that it found something", code)
	namesHidden(l.t, words, map[string]string{"process": "known-3", "module": "module hide"})
	return nil
}

// verdictWords are a verdict's findings, a line each, and the outcomes of its
// checks by name.
func verdictWords(v report.Verdict) (findings []string, checks map[string]string) {
	for _, f := range v.Findings {
		findings = append(findings, fmt.Sprintf("%s: %s: %s", f.Check, f.Object, f.Detail))
	}
	checks = map[string]string{}
	for _, c := range v.Checks {
		checks[c.Name] = strings.TrimSuffix(string(c.Status)+": "+c.Why, ": ")
	}
	return findings, checks
}

// namesHidden wants each word in some finding.
func namesHidden(t *T, findings []string, words map[string]string) {
	for what, word := range words {
		t.Check(slices.ContainsFunc(findings, func(f string) bool { return strings.Contains(f, word) }), "it names the hidden %s: %q", what, findings)
	}
}
