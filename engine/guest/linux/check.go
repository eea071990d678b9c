package linux

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/xen-hvi/hvi/engine/guest/report"
	"github.com/xen-hvi/hvi/engine/x86"
)

// check is one way of looking for what should not be.
type check struct {
	// name is the check's, means one sentence on what a finding would mean.
	name, means string
	// run counts what it compared and returns what it found. An ErrUnsupported
	// says that it can't be made of this kernel, or of this image.
	run func(r *Reader) (examined int, findings []report.Finding, err error)
}

// checks are all there are, in the order of their reports.
var checks = slices.Concat(processChecks, kernelChecks)

// Check makes every check of the guest's kernel. A guest that runs must be
// followed ([Reader.Follow]). The error is of the reading as a whole; what is
// wrong with a single check is in the verdict.
func (r *Reader) Check() (report.Verdict, error) { return r.make(checks) }

// CheckNamed makes the checks of these names. One that there is not is an error.
func (r *Reader) CheckNamed(names ...string) (report.Verdict, error) {
	var some []check
	for _, name := range names {
		i := slices.IndexFunc(checks, func(c check) bool { return c.name == name })
		if i < 0 {
			return report.Verdict{}, fmt.Errorf("there is no check %q of a kernel", name)
		}
		some = append(some, checks[i])
	}
	return r.make(some)
}

// make makes some of the checks.
func (r *Reader) make(checks []check) (report.Verdict, error) {
	out := report.Verdict{Clean: true, Checks: []report.Check{}, Findings: []report.Finding{}}
	err := r.reading(&out.Reading, func() error {
		made := false
		for _, c := range checks {
			one := report.Check{Name: c.name, Means: c.means, Status: report.CheckClean}
			examined, findings, err := c.run(r)
			one.Examined = examined
			switch {
			case errors.Is(err, ErrUnsupported):
				one.Status, one.Why = report.CheckUnavailable, err.Error()
			case err != nil:
				one.Status, one.Why, out.Clean = report.CheckFailed, err.Error(), false
			}
			if len(findings) > 0 {
				one.Status, out.Clean = report.CheckFound, false
			}
			for i := range findings {
				findings[i].Check = c.name
			}
			made = made || one.Status != report.CheckUnavailable
			out.Checks, out.Findings = append(out.Checks, one), append(out.Findings, findings...)
		}
		out.Clean = out.Clean && made
		return nil
	})
	return out, err
}

// Looking again. What is suspicious in a guest that runs is reported only if it
// is still there after so many rounds with growing pauses between them, 60 ms in
// all. What may be passing, a process that is just being made or has just ended,
// is given as long as its processor may have to wait for a turn on a busy host.
const (
	suspicionRounds = 7
	firstPause      = time.Millisecond
	longestPause    = 100 * time.Millisecond
	passingPatience = 2 * time.Second
)

// suspect tells what is suspicious from everything else, also from what comes to
// the same address later.
type suspect struct {
	task  x86.VirtAddr
	pid   int32
	start uint64
	what  string
}

// suspicion is a finding that has yet to last.
type suspicion struct {
	report.Finding
	// passing says that an innocent guest shows the same for a moment.
	passing bool
}

// lasting looks until nothing is suspicious, or what is has lasted. Of an image
// there is one look; what may be passing is not reported then.
func (r *Reader) lasting(look func() (int, map[suspect]suspicion, error)) (int, []report.Finding, error) {
	var left map[suspect]suspicion
	pause, waited := firstPause, time.Duration(0)
	for round := 1; ; round++ {
		examined, found, err := look()
		if err != nil {
			return examined, nil, err
		}
		if round > 1 {
			maps.DeleteFunc(found, func(s suspect, _ suspicion) bool { _, before := left[s]; return !before })
		}
		left = found
		passing := 0
		for _, s := range left {
			if s.passing {
				passing++
			}
		}
		switch {
		case r.wait == nil:
			maps.DeleteFunc(left, func(_ suspect, s suspicion) bool { return s.passing })
			return examined, inOrder(left), nil
		case len(left) == 0 || round >= suspicionRounds && (passing == 0 || waited >= passingPatience):
			return examined, inOrder(left), nil
		}
		r.wait(pause)
		waited += pause
		pause = min(2*pause, longestPause)
	}
}

func inOrder(found map[suspect]suspicion) []report.Finding {
	keys := slices.SortedFunc(maps.Keys(found), func(a, b suspect) int {
		return cmp.Or(cmp.Compare(a.pid, b.pid), cmp.Compare(a.what, b.what), cmp.Compare(a.task, b.task))
	})
	var out []report.Finding
	for _, k := range keys {
		out = append(out, found[k].Finding)
	}
	return out
}
