package outside

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/xen-hvi/hvi/engine/guest/dump"
	"github.com/xen-hvi/hvi/engine/guest/linux"
	"github.com/xen-hvi/hvi/engine/guest/report"
	"github.com/xen-hvi/hvi/engine/inspect"
	"github.com/xen-hvi/hvi/engine/x86"
	"github.com/xen-hvi/hvi/lab/image"
	"github.com/xen-hvi/hvi/lab/scenario"
	"github.com/xen-hvi/hvi/lab/specimen"
)

func linuxLive(env Env) scenario.Scenario {
	return scenario.Scenario{
		Name:    "linux-live",
		Brief:   "A guest of 4 vCPUs under load is read 10,000 times while it runs, and two more kernels 2,500 times: no wrong answer, and what hides is found",
		Timeout: 3 * time.Hour,
		Run: func(t *scenario.T) error {
			return readLive(t, env, []liveRun{
				{variant: liveVariant("6.12-cloud", false), readings: 10_000, checks: 20},
				{variant: liveVariant("6.1-amd64", true), readings: 2_500, checks: 10},
				{variant: liveVariant("7.2-cloud", false), readings: 2_500, checks: 10},
			})
		},
	}
}

func linuxLiveQuick(env Env) scenario.Scenario {
	return scenario.Scenario{
		Name:    "linux-live-quick",
		Brief:   "The same of one kernel, read 500 times",
		Timeout: 20 * time.Minute,
		Run: func(t *scenario.T) error {
			return readLive(t, env, []liveRun{{variant: liveVariant("6.12-cloud", false), readings: 500, checks: 2}})
		},
	}
}

// liveRun says what is asked of a guest.
type liveRun struct {
	variant  specimen.Variant
	readings int // under load, of all views together
	checks   int // with a process and a module hidden
}

// liveVariant is a guest with a kernel, whose page tables are isolated if pti
// says so. The kernel is complete when the scenario runs.
func liveVariant(kernel string, pti bool) specimen.Variant {
	return specimen.Variant{Kernel: image.Kernel{Name: kernel}, VCPUs: liveVCPUs, Memory: liveMemory, PTI: pti}
}

const (
	liveVCPUs  = 4
	liveMemory = 512 // MiB
	// readingLimit bounds one reading on a busy host. The longest that is right is
	// a check that gives a process that ends all its patience, some seconds.
	readingLimit = time.Minute
	// maxWrong is how many wrong answers are enough.
	maxWrong = 20
)

// readLive reads one guest after the other.
func readLive(t *scenario.T, env Env, runs []liveRun) error {
	for _, run := range runs {
		k, ok := image.FindKernel(run.variant.Kernel.Name)
		if !ok {
			return fmt.Errorf("no kernel is called %s", run.variant.Kernel.Name)
		}
		run.variant.Kernel = k
		if err := readOne(t, env, run); err != nil {
			return fmt.Errorf("%v: %w", run.variant, err)
		}
	}
	return nil
}

// live is a guest that runs while it is read.
type live struct {
	t      *scenario.T
	name   string
	guest  *specimen.Live
	mem    *slowMemory
	kernel *linux.Kernel
	judge  *judge

	rows  map[string]*liveRow
	wrong []string
	// moved counts how often the registers of a vCPU led to page tables that were
	// gone already.
	moved int
}

// slowMemory slows a reader down towards the pace of the guest, which an emulator
// makes some fifty times slower than a processor: else the guest seems to stand
// still while it is read, and nothing is shown.
type slowMemory struct {
	image *dump.Image
	left  int // reads until the next pause
}

// Reads between two pauses, a random number up to this, and how long those are:
// with the host's own delay, on average about a quarter of a microsecond for each read.
const (
	readsToPause = 1024
	readerPause  = 50 * time.Microsecond
)

func (m *slowMemory) pause() {
	if m.left--; m.left < 0 {
		m.left = rand.N(readsToPause)
		time.Sleep(readerPause)
	}
}

// ReadPhys implements guest.Memory.
func (m *slowMemory) ReadPhys(pa x86.PhysAddr, buf []byte) error {
	m.pause()
	return m.image.ReadPhys(pa, buf)
}

// ReadPhysUint64 implements guest.WordReader.
func (m *slowMemory) ReadPhysUint64(pa x86.PhysAddr) (uint64, error) {
	m.pause()
	return m.image.ReadPhysUint64(pa)
}

// liveRow is what is known of one view.
type liveRow struct {
	Readings   int            `json:"readings"`
	Retried    int            `json:"retried"` // readings in which something was read again
	Retries    int            `json:"retries"` // how often in all
	Incomplete map[string]int `json:"incomplete,omitempty"`
	Refused    map[string]int `json:"refused,omitempty"` // no answer, by reason
	Longest    float64        `json:"longest_ms"`
	Median     float64        `json:"median_ms"`

	took []float64
}

func readOne(t *scenario.T, env Env, run liveRun) (err error) {
	v := run.variant
	m := specimen.Maker{Builder: env.Builder, Show: func(line string) { t.Logf("%v| %s", v, line) }}
	guest, err := m.Start(t.Context(), v)
	if err != nil {
		return err
	}
	defer guest.Close()
	l := &live{t: t, name: v.String(), guest: guest, rows: map[string]*liveRow{}}
	path, err := guest.Memory()
	if err != nil {
		return err
	}
	image, err := dump.OpenAs(path, dump.Raw)
	if err != nil {
		return err
	}
	defer image.Close()
	l.mem = &slowMemory{image: image}
	out := &liveOutcome{Release: guest.Release, VCPUs: liveVCPUs, Views: l.rows, Boot: guest.Boot.Seconds()}
	defer func() { t.Fact(l.name, out) }()

	if err := l.quiet(); err != nil {
		return err
	}
	if err := l.startLoad(); err != nil {
		return err
	}
	begun := time.Now()
	done, err := l.read(run.readings)
	out.Readings, out.Seconds, out.Moved = done, seconds(begun), l.moved
	if err != nil {
		return err
	}
	if err := l.stopLoad(out); err != nil {
		return err
	}
	t.Check(done == run.readings, "%s: it was read %d times under load, of %d", l.name, done, run.readings)
	l.verdict(out)
	if err := l.quietAgain(); err != nil {
		return err
	}
	if err := l.startLoad(); err != nil {
		return err
	}
	return l.hidden(run.checks, out)
}

// liveOutcome is what is known of one guest.
type liveOutcome struct {
	Release  string              `json:"release"`
	VCPUs    int                 `json:"vcpus"`
	Boot     float64             `json:"boot_seconds"`
	Readings int                 `json:"readings"`
	Seconds  float64             `json:"seconds"`
	Moved    int                 `json:"registers_outdated"`
	Forks    int                 `json:"guest_forks"`
	Modules  int                 `json:"guest_module_loads"`
	Mounts   int                 `json:"guest_mounts"`
	Views    map[string]*liveRow `json:"views"`
	Wrong    []string            `json:"wrong"`
	Found    int                 `json:"hidden_found"`
}

func seconds(since time.Time) float64 { return float64(time.Since(since).Milliseconds()) / 1000 }

// registers are the vCPUs' of this moment.
func (l *live) registers() ([]x86.Registers, error) {
	regs, err := l.guest.Registers(l.t.Context())
	out := make([]x86.Registers, len(regs))
	for i, r := range regs {
		out[i] = x86.Registers(r)
	}
	return out, err
}

// ask asks as hvid does: the kernel is known, the registers are of this moment
// and read anew where a check looks again.
func (l *live) ask(kind inspect.Kind, args inspect.Args) (any, error) {
	q, ok := inspect.Find(kind)
	if !ok { // what hvid does the first time
		return l.identify()
	}
	for try := 1; ; try++ {
		regs, err := l.registers()
		if err != nil {
			return nil, err
		}
		if !l.kernel.RunsOn(&regs[0]) {
			if l.moved++; try < 10 {
				continue
			}
			return nil, errors.New("the registers lead to another kernel")
		}
		r := l.kernel.NewReader(regs)
		r.Follow(l.t.Context(), l.registers)
		return q.Ask(r, args)
	}
}

// identify finds the kernel from nothing. The page tables that it starts from may
// be a process's that ends: hvid tries three times, too.
func (l *live) identify() (*linux.Kernel, error) {
	for try := 1; ; try++ {
		regs, err := l.registers()
		if err != nil {
			return nil, err
		}
		k, err := linux.Identify(l.mem, regs[0])
		if err == nil || try == 3 {
			return k, err
		}
		l.t.Logf("%s: attempt %d to identify: %v", l.name, try, err)
		l.moved++
	}
}

// quiet has the guest say what it is made of, twice, and finds its kernel.
func (l *live) quiet() error {
	first, err := l.guest.Report(l.t.Context())
	if err != nil {
		return err
	}
	second, err := l.guest.Report(l.t.Context())
	if err != nil {
		return err
	}
	regs, err := l.registers()
	if err != nil {
		return err
	}
	k, err := linux.FindWith(l.mem.image, regs, l.mem.image.Ranges(), linux.Options{})
	if err != nil {
		return err
	}
	l.kernel = k.Over(l.mem)
	if l.judge, err = newJudge(first, second, l.guest.Release); err != nil {
		return err
	}
	l.judge.kernel = l.kernel
	// The tables that nothing in the guest changes are compared with what they
	// were at rest.
	for _, kind := range []inspect.Kind{inspect.Syscalls, inspect.Interrupts, inspect.Segments, inspect.Probes} {
		answer, err := l.ask(kind, inspect.Args{})
		if err != nil {
			return fmt.Errorf("%s at rest: %w", kind, err)
		}
		if err := l.judge.remember(kind, answer); err != nil {
			return fmt.Errorf("%s at rest: %w", kind, err)
		}
	}
	return l.eachOnce("at rest", l.judge.questions(false))
}

// eachOnce asks each question of the list.
func (l *live) eachOnce(when string, list []liveQuestion) error {
	for _, q := range list {
		answer, err := l.ask(q.kind, q.args)
		if err != nil {
			l.t.Check(false, "%s: %s: %s is answered: %v", l.name, when, q.name, err)
			continue
		}
		reading, wrong := q.judge(answer)
		l.t.Check(len(wrong) == 0 && len(reading.Incomplete) == 0, "%s: %s: %s is what the guest says: %q, incomplete %q", l.name, when, q.name, wrong, reading.Incomplete)
	}
	return l.t.Context().Err()
}

// quietAgain compares once more when the load has ended.
func (l *live) quietAgain() error {
	after, err := l.guest.Report(l.t.Context())
	if err != nil {
		return err
	}
	if err := l.judge.now(after); err != nil {
		return err
	}
	return l.eachOnce("after the load", l.judge.questions(false))
}

// What keeps the guest busy: processes that end at once, two modules that come
// and go, one the other's user, a mount that comes and goes, and lines in the
// kernel's log. It ends when /run/load is gone. It prints the numbers of its
// shells.
const loadScript = `echo on >/proc/sys/kernel/printk_devkmsg; mkdir -p /run/there; >/run/load; ` + forkCount + ` >/run/forks; ` +
	`for i in 1 2 3; do (while [ -e /run/load ]; do /bin/true & /bin/true & wait; done) </dev/null >/dev/null 2>&1 & echo $!; done; ` +
	`(while [ -e /run/load ]; do rmmod vfat; rmmod fat; insmod /lib/modules/fat.ko; insmod /lib/modules/vfat.ko; echo >>/run/modules; done) </dev/null >/dev/null 2>&1 & echo $!; ` +
	`(n=0; while [ -e /run/load ]; do mount -t tmpfs ` + loadSource + ` /run/there; umount /run/there; n=$((n+1)); echo "<6>` + loadWord + ` $n $n $n" >/dev/kmsg; echo >>/run/mounts; done) </dev/null >/dev/null 2>&1 & echo $!`

// forkCount prints how many tasks were made since boot.
const forkCount = `sed -n 's/^processes //p' /proc/stat`

// What the load puts into the views.
const (
	loadSource = "comes-and-goes"
	loadPoint  = "/run/there"
	loadWord   = "hvi-load"
)

func (l *live) startLoad() error {
	text, err := l.guest.Run(l.t.Context(), loadScript)
	if err != nil {
		return err
	}
	l.judge.shells = map[string]bool{}
	for word := range strings.SplitSeq(text, "; ") {
		if _, err := strconv.Atoi(word); err != nil {
			return fmt.Errorf("the shells of the load are %q", text)
		}
		l.judge.shells[word] = true
	}
	l.judge.loaded = true
	return nil
}

// stopLoad waits until the load has ended and asks how much of it there was.
func (l *live) stopLoad(out *liveOutcome) error {
	script := "rm /run/load; "
	for shell := range l.judge.shells {
		script += "while [ -e /proc/" + shell + "/exe ]; do sleep 0.1; done; "
	}
	script += `wc -l </run/modules; wc -l </run/mounts; cat /run/forks; ` + forkCount
	text, err := l.guest.Run(l.t.Context(), script)
	if err != nil {
		return err
	}
	var before int
	if _, err := fmt.Sscanf(text, "%d; %d; %d; %d", &out.Modules, &out.Mounts, &before, &out.Forks); err != nil {
		return fmt.Errorf("the load's counts are %q", text)
	}
	out.Forks -= before
	l.judge.loaded = false
	l.t.Check(out.Modules > 0 && out.Mounts > 0 && out.Forks > 100, "%s: the guest was busy: %d processes, %d times the modules, %d mounts",
		l.name, out.Forks, out.Modules, out.Mounts)
	return nil
}

// read reads the guest under load, each view in its turn.
func (l *live) read(readings int) (done int, err error) {
	var turns []liveQuestion
	for _, q := range l.judge.questions(true) {
		for i := range q.share {
			// Spread over the round: a quarter of the modules' readings one behind the
			// other would meet the same moment of the load.
			turns = slices.Insert(turns, min(len(turns), i*len(turns)/q.share), q)
		}
	}
	for done < readings && len(l.wrong) < maxWrong {
		if err := l.readOnce(turns[done%len(turns)]); err != nil {
			return done, err
		}
		if done++; done%1000 == 0 {
			l.t.Logf("%s: %d readings", l.name, done)
		}
	}
	return done, nil
}

// readOnce reads once. Only what ends the scenario is an error.
func (l *live) readOnce(q liveQuestion) error {
	row := l.rows[q.name]
	if row == nil {
		row = &liveRow{Refused: map[string]int{}, Incomplete: map[string]int{}}
		l.rows[q.name] = row
	}
	var answer any
	var err error
	start := time.Now()
	if err := l.inTime(q.name, func() { answer, err = l.ask(q.kind, q.argsNow()) }); err != nil {
		return err
	}
	row.Readings++
	row.took = append(row.took, float64(time.Since(start).Microseconds())/1000)
	if err != nil {
		if q.gone && errors.Is(err, linux.ErrNoProcess) {
			err = linux.ErrNoProcess
		}
		row.Refused[err.Error()]++
		return l.t.Context().Err()
	}
	reading, wrong := q.judge(answer)
	if row.Retries += reading.Retries; reading.Retries > 0 {
		row.Retried++
	}
	for _, why := range reading.Incomplete {
		row.Incomplete[why]++
	}
	for _, w := range wrong {
		w = fmt.Sprintf("%s, reading %d: %s", q.name, row.Readings, w)
		l.t.Logf("%s: %s", l.name, w)
		l.wrong = append(l.wrong, w)
	}
	return nil
}

// inTime ends the scenario if f doesn't end.
func (l *live) inTime(what string, f func()) error {
	ctx, cancel := context.WithTimeoutCause(l.t.Context(), readingLimit, fmt.Errorf("%s was still being read after %v", what, readingLimit))
	defer cancel()
	done := make(chan struct{})
	go func() { defer close(done); f() }()
	select {
	case <-done:
		return nil
	case <-l.guest.Exited():
		<-done
		return errors.New("the guest has ended")
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// verdict judges the readings as a whole.
func (l *live) verdict(out *liveOutcome) {
	out.Wrong = l.wrong
	retried, refused, incomplete := 0, 0, 0
	reasons := map[string]int{}
	for name, row := range l.rows {
		slices.Sort(row.took)
		row.Median, row.Longest = row.took[len(row.took)/2], row.took[len(row.took)-1]
		retried += row.Retried
		for why, n := range row.Refused {
			if why == linux.ErrNoProcess.Error() {
				continue // which is the right answer
			}
			refused += n
			reasons[name+": "+why] += n
		}
		for why, n := range row.Incomplete {
			incomplete += n
			reasons[name+", incomplete: "+why] += n
		}
	}
	l.t.Check(len(l.wrong) == 0, "%s: no answer was wrong: %d were, the first: %q", l.name, len(l.wrong), l.wrong[:min(len(l.wrong), 3)])
	l.t.Check(retried > 0, "%s: readings met a change and were retried: %d", l.name, retried)
	// To give no answer is no wrong one, but is of no use either.
	l.t.Check((refused+incomplete)*50 <= out.Readings, "%s: of %d readings, %d had no answer and %d were incomplete: %v",
		l.name, out.Readings, refused, incomplete, reasons)
}

// hidden has a process and a module hide and wants both to be found, each time,
// while the load goes on.
func (l *live) hidden(checks int, out *liveOutcome) error {
	if err := l.guest.Load(l.t.Context(), "hide task=hide-me module=1"); err != nil {
		return err
	}
	var wrong []string
	for range checks {
		var answer any
		var err error
		if err := l.inTime("check", func() { answer, err = l.ask(inspect.Check, inspect.Args{}) }); err != nil {
			return err
		}
		v, ok := answer.(*report.Verdict)
		if err != nil || !ok {
			wrong = append(wrong, fmt.Sprint(err))
			continue
		}
		var task, module bool
		var words []string
		for _, f := range v.Findings {
			w := fmt.Sprintf("%s: %s: %s", f.Check, f.Object, f.Detail)
			is := names("", "process", "hide-me").is(f) || names("", fmt.Sprintf("thread of process %d:", l.judge.state.Roles["hidden"])).is(f)
			mod := names("", "module hide").is(f)
			task, module = task || is, module || mod
			if !is && !mod {
				wrong = append(wrong, w)
			}
			words = append(words, w)
		}
		if !task || !module || v.Clean {
			wrong = append(wrong, fmt.Sprintf("of the hidden process and the hidden module it finds %q", words))
			continue
		}
		out.Found++
	}
	l.t.Check(out.Found == checks && len(wrong) == 0, "%s: check finds the hidden process and the hidden module under load, and nothing else: %d times of %d, %q",
		l.name, out.Found, checks, wrong[:min(len(wrong), 3)])
	return nil
}

// argsNow are the arguments, of which some change from reading to reading.
func (q *liveQuestion) argsNow() inspect.Args {
	if q.pid != nil {
		return inspect.Args{PID: q.pid()}
	}
	return q.args
}

// liveQuestion is one that is asked again and again.
type liveQuestion struct {
	name  string
	kind  inspect.Kind
	args  inspect.Args
	pid   func() int32 // where it is another process each time
	gone  bool         // that process may have ended
	share int          // how often in a round
	judge func(answer any) (report.Reading, []string)
}
