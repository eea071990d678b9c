package runner

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"time"

	"github.com/xen-hvi/hvi/lab/scenario"
	"github.com/xen-hvi/hvi/lab/wire"
)

const (
	// bootLimit bounds the time from power-on to Hello. Seen: 14 s in Bochs, 13
	// in QEMU, on an idle machine; several times that on a busy one.
	bootLimit = 4 * time.Minute
	// debianLimit is the same where the control domain runs Debian.
	debianLimit = 10 * time.Minute
	// betweenLimit bounds the time between one scenario's end and what follows.
	betweenLimit = time.Minute
	// tailLimit is how long the console may go on after the results are complete.
	tailLimit = 5 * time.Second
	// endOfConsole is what the control domain's init says last.
	endOfConsole = " end"
)

// input is one thing that came out of a machine.
type input struct {
	message *wire.Message // or
	line    string        // of the console
}

// machine is what follow needs of one.
type emulated interface {
	Exited() <-chan struct{}
	Err() error
	Log() string
}

// follower makes results of what comes out of a machine.
type follower struct {
	list    []scenario.Scenario
	results []*Result
	console strings.Builder // all text so far
	preface int             // its length when the first scenario began
	logs    []string        // per scenario
	from    int             // where the current one's text begins
	current int             // index of the scenario that has begun last, -1 before
	hello   *wire.Machine
	done    *wire.Message
	ended   bool // the console has
	boot    time.Duration

	show func(source, line string) // live output
}

func newFollower(list []scenario.Scenario, show func(source, line string)) *follower {
	f := &follower{list: list, current: -1, show: show, logs: make([]string, len(list))}
	for _, s := range list {
		f.results = append(f.results, newResult(s))
	}
	return f
}

// limit returns how long the machine may take from now until the next step.
func (f *follower) limit() (time.Duration, string) {
	switch {
	case f.done != nil:
		return tailLimit, ""
	case f.hello == nil:
		l := bootLimit
		if f.list[0].System == scenario.Debian {
			l = debianLimit
		}
		return l, fmt.Sprintf("the control domain was not ready %v after power-on", l)
	case f.current >= 0 && !f.results[f.current].ended:
		l := f.list[f.current].Limit()
		return l, fmt.Sprintf("cut off: it took longer than %v", l)
	}
	return betweenLimit, fmt.Sprintf("the runner said nothing for %v", betweenLimit)
}

// take handles one input and tells whether a new limit begins.
func (f *follower) take(in input, now, powerOn time.Time) bool {
	if in.message == nil {
		f.console.WriteString(in.line + "\n")
		f.show("", in.line)
		if strings.HasPrefix(in.line, "lab: ") && strings.HasSuffix(in.line, endOfConsole) {
			f.ended = true
		}
		return false
	}
	m := *in.message
	switch m.Kind {
	case wire.Hello:
		f.boot = now.Sub(powerOn)
		f.hello = &wire.Machine{}
		if err := json.Unmarshal(m.Value, f.hello); err != nil {
			f.show("lab", fmt.Sprintf("the runner's greeting cannot be read: %v", err))
		}
		f.preface = f.console.Len()
		f.from = f.preface
		f.show("lab", fmt.Sprintf("control domain ready %.1f s after power-on: Xen %s, Linux %s", f.boot.Seconds(), f.hello.Xen, f.hello.Dom0Kernel))
		return true
	case wire.Done:
		f.done = &m
		f.close()
		return true
	}
	i := f.find(m.Scenario)
	if i < 0 {
		return false
	}
	f.results[i].add(m, now)
	f.log(m)
	switch m.Kind {
	case wire.Start:
		f.close()
		f.current = i
	case wire.End:
		f.close()
	default:
		return false
	}
	return true
}

func (f *follower) find(name string) int {
	for i, s := range f.list {
		if s.Name == name {
			return i
		}
	}
	return -1
}

// log puts a message among the console's text.
func (f *follower) log(m wire.Message) {
	var text string
	switch m.Kind {
	case wire.Start:
		text = "begins"
	case wire.Log:
		text = m.Text
	case wire.Check:
		text = "check: " + m.Text
		if !m.OK {
			text = "CHECK FAILED: " + m.Text
		}
	case wire.Fact:
		text = fmt.Sprintf("fact: %s = %s", m.Key, m.Value)
	case wire.End:
		text = "passed"
		if !m.OK {
			text = "FAILED: " + m.Text
		}
	default:
		return
	}
	for line := range strings.Lines(text) {
		line = fmt.Sprintf("[%s %8.2f] %s", m.Scenario, m.Time, strings.TrimRight(line, "\n"))
		f.console.WriteString(line + "\n")
		f.show(m.Scenario, line)
	}
}

// close ends the text of the scenario that began last.
func (f *follower) close() {
	if f.current >= 0 {
		f.logs[f.current] += f.console.String()[f.from:]
	}
	f.from = f.console.Len()
}

// fail marks every scenario that has not ended as failed.
func (f *follower) fail(reason string, now time.Time) {
	for i, r := range f.results {
		switch {
		case r.ended:
		case i == f.current:
			r.fail(reason, now)
		case r.begun:
			r.fail("its end is missing: "+reason, now)
		default:
			r.fail("it never began: "+reason, now)
		}
	}
	f.close()
}

// finish completes the results once nothing more can come. lost is the number
// of messages that did not arrive whole.
func (f *follower) finish(lost int, now time.Time) {
	if f.done != nil {
		reason := "the runner ended before it"
		if f.done.Text != "" {
			reason = f.done.Text
		}
		f.fail(reason, now)
	}
	for _, r := range f.results {
		if lost > 0 {
			r.fail(fmt.Sprintf("%d messages did not arrive whole, so this result may miss some", lost), now)
		}
		if f.hello != nil {
			r.Xen, r.Dom0Kernel, r.GuestKernel = f.hello.Xen, f.hello.Dom0Kernel, f.hello.GuestKernel
		}
		r.Seconds.Boot = seconds(f.boot)
	}
}

// log of one scenario: the boot, and what it saw itself.
func (f *follower) logOf(i int) string {
	text := f.console.String()
	if f.preface == 0 { // it never got past the boot
		return text
	}
	return text[:f.preface] + f.logs[i]
}

// lastLines returns the console's last lines, for a reason.
func (f *follower) lastLines(n int) string {
	lines := strings.Split(strings.TrimSpace(f.console.String()), "\n")
	return "  " + strings.Join(lines[max(0, len(lines)-n):], "\n  ")
}

// follow takes what comes out of a machine until the results are complete and
// the console has ended, the machine has, or a limit or ctx is over. It returns
// then; the machine may still run.
func (f *follower) follow(ctx context.Context, m emulated, in <-chan input, powerOn time.Time) {
	limit, reason := f.limit()
	timer := time.NewTimer(limit)
	defer timer.Stop()
	for {
		select {
		case i := <-in:
			if f.take(i, time.Now(), powerOn) {
				limit, reason = f.limit()
				timer.Reset(limit)
			}
			if f.done != nil && f.ended {
				return
			}
		case <-timer.C:
			if f.done == nil {
				f.fail(reason+"; the console's last lines:\n"+f.lastLines(12), time.Now())
			}
			return
		case <-ctx.Done():
			f.fail("interrupted: "+context.Cause(ctx).Error(), time.Now())
			return
		case <-m.Exited():
			// All it said is in the channel by now.
			for {
				select {
				case i := <-in:
					f.take(i, time.Now(), powerOn)
					continue
				default:
				}
				break
			}
			if f.done == nil {
				f.fail(fmt.Sprintf("the machine stopped (%v); %s; the console's last lines:\n%s", m.Err(), lastLine(m.Log()), f.lastLines(12)), time.Now())
			}
			return
		}
	}
}

func lastLine(s string) string {
	s = strings.TrimSpace(s)
	return s[strings.LastIndexByte(s, '\n')+1:]
}
