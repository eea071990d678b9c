package command

import (
	"fmt"

	"github.com/xen-hvi/hvi/control"
	"github.com/xen-hvi/hvi/engine/guest/report"
	"github.com/xen-hvi/hvi/engine/inspect"
)

var checkView = view{
	kind: inspect.Check,
	long: `Every check is made once. Each compares what the kernel keeps in one place with
what it keeps in another, and where its hooks lead. The exit code is 0 if nothing
was found, 10 if a check found something, and 11 if nothing was found but a check
failed, or none could be made. One that this kernel or this kind of memory image
does not allow is unavailable, which the table says why, and changes no exit code.`,
	example: `  hvictl check web1
  hvictl check web1 -o json | jq -r '.findings[] | .object + ": " + .detail'`,
	show: func(a *app, _ inspect.Args, answer any) error {
		v := answer.(*report.Verdict)
		a.verdict(v)
		return verdictError(v)
	},
}

func (a *app) verdict(v *report.Verdict) {
	var rows [][]cell
	for _, c := range v.Checks {
		about := c.Means
		if c.Why != "" && c.Status != report.CheckFound {
			about = c.Why
		}
		rows = append(rows, []cell{text(c.Name), outcome(c.Status), number(c.Examined), text(about)})
	}
	a.table(a.out, "", []string{"CHECK", "RESULT", "EXAMINED", "A FINDING MEANS, OR WHY IT COULD NOT BE MADE"}, rows)
	fmt.Fprintln(a.out)
	for _, f := range v.Findings {
		fmt.Fprintf(a.out, "%s %s: %s\n", a.paint(cell{text: safe(f.Check) + ":", colour: red}), f.Object, f.Detail)
		if f.Place != nil {
			fmt.Fprintf(a.out, "  at %v, %s\n", f.Place.Addr, a.paint(place(*f.Place)))
		}
	}
	of := map[report.CheckStatus]int{}
	for _, c := range v.Checks {
		of[c.Status]++
	}
	unavailable := count(of[report.CheckUnavailable], "check is", "checks are") + " unavailable"
	switch {
	case len(v.Findings) > 0:
		fmt.Fprintln(a.out, a.paint(cell{text: count(len(v.Findings), "finding", "findings") + ".", colour: red}))
	case of[report.CheckFailed] > 0:
		fmt.Fprintln(a.out, a.paint(cell{text: "Nothing found, but " + count(of[report.CheckFailed], "check", "checks") + " failed.", colour: yellow}))
	case !v.Clean:
		fmt.Fprintln(a.out, a.paint(cell{text: "Nothing was checked: " + unavailable + ".", colour: yellow}))
	case of[report.CheckUnavailable] > 0:
		fmt.Fprintln(a.out, a.paint(cell{text: "Nothing found; " + unavailable + ".", colour: green}))
	default:
		fmt.Fprintln(a.out, a.paint(cell{text: "Clean.", colour: green}))
	}
	a.incomplete(v.Reading)
}

func outcome(s report.CheckStatus) cell {
	c := text(string(s))
	switch s {
	case report.CheckClean:
		c.colour = green
	case report.CheckFound:
		c.colour = red
	default:
		c.colour = yellow
	}
	return c
}

// verdictError is what makes the exit code; all has been said.
func verdictError(v *report.Verdict) error {
	switch {
	case len(v.Findings) > 0:
		return &control.Problem{Code: codeFindings, What: "the guest is not clean"}
	case !v.Clean:
		return &control.Problem{Code: codeUnchecked, What: "a check failed, or none could be made"}
	}
	return nil
}
