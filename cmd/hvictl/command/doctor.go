package command

import (
	"context"
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/xen-hvi/hvi/cmd/hostcheck"
	"github.com/xen-hvi/hvi/control"
)

func (a *app) doctorCommand() *cobra.Command {
	var warnings bool
	cmd := &cobra.Command{
		Use:   "doctor",
		Short: "Check this host, and say what is missing and how to get it",
		Long: `Check what protection needs on this host and for each domain, and say how to get
what is missing. It works without hvid too, and then checks what it can itself:
devices, xenstored, libvirt's hook, the files in /etc/hvi.

The exit code is 7 if something is missing or failing, so that a monitoring
system can run it; a warning alone leaves it at 0, or with --warnings makes it 9.
A check with status info says how something is, and is neither.`,
		Example: `  hvictl doctor
  hvictl doctor --warnings >/dev/null || echo "exit code $?"
  hvictl doctor -o json | jq '.checks[] | select(.status != "ok")'`,
		Args:              argCount(0, 0, ""),
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c := a.client()
			defer c.Close()
			rep, err := c.Doctor(cmd.Context())
			if err != nil {
				if cmd.Context().Err() != nil {
					return cmd.Context().Err()
				}
				rep = a.withoutHvid(cmd.Context(), a.restarting(err, nil))
			}
			a.lookAgain(cmd.Context(), &rep)
			if a.format == formatJSON {
				if err := a.json(rep); err != nil {
					return err
				}
			} else {
				a.doctorTable(rep)
			}
			if n := rep.Problems(); n > 0 {
				return &control.Problem{Code: codeDoctor, What: count(n, "problem", "problems") + " found"}
			}
			if n := rep.Warnings(); warnings && n > 0 {
				return &control.Problem{Code: codeWarnings, What: count(n, "warning", "warnings")}
			}
			return nil
		},
	}
	cmd.Flags().BoolVar(&warnings, "warnings", false, "end with 9 where there is nothing worse than a warning")
	return cmd
}

// withoutHvid is the report where hvid gives none: why, and what can be seen
// from here.
func (a *app) withoutHvid(ctx context.Context, err error) control.DoctorReport {
	check := control.Check{Name: "hvid", Status: control.CheckFail, Detail: err.Error()}
	var p *control.Problem
	if errors.As(err, &p) {
		check.Fix = p.Fix
	}
	return control.DoctorReport{
		Checks:  append([]control.Check{check}, hostcheck.Checks(ctx, a.host)...),
		Domains: []control.DomainReport{},
	}
}

// lookAgain answers what hvid could not tell: whether libvirt's daemon was told
// to reload since the hook came is systemd's to know, and hvid runs no programs.
func (a *app) lookAgain(ctx context.Context, rep *control.DoctorReport) {
	for i, c := range rep.Checks {
		if c.Name != hostcheck.HookName || c.Status != control.CheckWarn {
			continue
		}
		if again, ok := hostcheck.Hook(ctx, a.host); ok {
			rep.Checks[i] = again
		}
	}
}

func (a *app) doctorTable(rep control.DoctorReport) {
	a.checkTable("", rep.Checks)
	for _, d := range rep.Domains {
		tier := string(d.Tier)
		if d.TierReason != "" {
			tier += ": " + d.TierReason
		}
		fmt.Fprintf(a.out, "\n%s (domain %d), tier %s\n", d.Name, d.ID, safe(tier))
		a.checkTable("  ", d.Checks)
	}
	fmt.Fprintln(a.out)
	verdict := cell{"No problem found", green}
	if n := rep.Problems(); n > 0 {
		verdict = cell{count(n, "problem", "problems") + " found", red}
	}
	if n := rep.Warnings(); n > 0 {
		verdict.text += ", " + count(n, "warning", "warnings")
	}
	verdict.text += "."
	fmt.Fprintln(a.out, a.paint(verdict))
}

// checkTable writes the checks, and below each that is not ok what to do.
func (a *app) checkTable(indent string, checks []control.Check) {
	if len(checks) == 0 {
		return
	}
	var rows [][]cell
	for _, c := range checks {
		rows = append(rows, []cell{text(c.Name), checkCell(c.Status), text(c.Detail)})
		if c.Status != control.CheckOK && c.Status != control.CheckInfo && c.Fix != "" {
			rows = append(rows, []cell{{}, {}, text("fix: " + c.Fix)})
		}
	}
	a.table(a.out, indent, []string{"CHECK", "STATUS", "DETAIL"}, rows)
}
