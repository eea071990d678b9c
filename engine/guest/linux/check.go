package linux

import (
	"errors"

	"github.com/xen-hvi/hvi/engine/guest/report"
)

// check is one way of finding out that something in a guest's kernel is not as
// the kernel itself would have it. run reports how many things it looked at. An
// ErrUnsupported says that this kernel, or what is known of it, doesn't allow
// for the check.
type check struct {
	name, means string
	run         func(r *Reader) (examined int, findings []report.Finding, err error)
}

// checks are all checks, in the order in which they are made.
var checks = kernelChecks

// Check makes all checks.
func (r *Reader) Check() (report.Verdict, error) {
	v := report.Verdict{Clean: true, Checks: []report.Check{}, Findings: []report.Finding{}}
	err := r.reading(&v.Reading, func() error {
		for _, c := range checks {
			n, found, err := c.run(r)
			out := report.Check{Name: c.name, Means: c.means, Status: report.CheckClean, Examined: n}
			switch {
			case errors.Is(err, ErrUnsupported):
				out.Status, out.Why = report.CheckUnavailable, err.Error()
			case err != nil:
				return err
			case len(found) > 0:
				out.Status = report.CheckFound
			}
			for i := range found {
				found[i].Check = c.name
			}
			v.Clean = v.Clean && out.Status == report.CheckClean
			v.Checks, v.Findings = append(v.Checks, out), append(v.Findings, found...)
		}
		return nil
	})
	return v, err
}
