package command

import (
	"fmt"

	"github.com/spf13/cobra"

	"github.com/xen-hvi/hvi/control"
)

func (a *app) breakpointCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "breakpoint",
		Short: "Count how often a guest's kernel comes to a place, without its noticing",
		Long: `Set, list and clear hidden breakpoints in the kernel of a protected domain. hvi
counts how often the guest comes to each.

The guest cannot see them: it reads its own code where they are, and its kernel
may go on patching that. A change of the domain's policy leaves them set; they go
when hvi detaches, and so when the domain is rebooted, saved or migrated.

On the tier "views" each hit takes the guest out of its work for some microseconds:
a place that is passed a million times a second is not one for a breakpoint.

On the tier "access" each instruction in the place's page of 4 KiB does. Where that
takes half of the guest's time, or an instruction is one that Xen's emulator may not
know, the page rests: for up to half a second it is executed unseen. RESTS counts how
often, and hits are exact where it is 0.`,
		Args: cobra.NoArgs,
	}
	change := func(use, short, long, example string, do func(*control.Client, *cobra.Command, []string) (control.DomainStatus, error)) *cobra.Command {
		return &cobra.Command{
			Use: use, Short: short, Long: long, Example: example,
			Args: argCount(2, 2, "a domain and a symbol"), ValidArgsFunction: a.completeDomain,
			RunE: func(cmd *cobra.Command, args []string) error {
				c := a.client()
				defer c.Close()
				d, err := do(c, cmd, args)
				if err != nil {
					return suggest(err, args[0])
				}
				return a.breakpoints(d)
			},
		}
	}
	cmd.AddCommand(
		change("set DOM SYMBOL", "Set a hidden breakpoint",
			`Set a hidden breakpoint at a place in the kernel's code, SYMBOL or SYMBOL+OFFSET,
and show those there are. To set one that is there changes nothing.

The offset must be that of an instruction: a breakpoint within one changes what
the guest does.

The exit code is 0 if it is set, 1 if it cannot be, 4 if there is no such domain,
and 3 if hvid is not reachable. Only root may set breakpoints.`,
			`  hvictl breakpoint set web1 do_filp_open
  hvictl breakpoint set web1 commit_creds+0x5`,
			func(c *control.Client, cmd *cobra.Command, args []string) (control.DomainStatus, error) {
				return c.SetBreakpoint(cmd.Context(), args[0], args[1])
			}),
		change("clear DOM SYMBOL", "Take a hidden breakpoint away",
			`Take a hidden breakpoint away, and show those that are left.

The exit code is 0 if it is gone, 1 if there was none, 4 if there is no such
domain, and 3 if hvid is not reachable. Only root may clear breakpoints.`,
			`  hvictl breakpoint clear web1 do_filp_open`,
			func(c *control.Client, cmd *cobra.Command, args []string) (control.DomainStatus, error) {
				return c.ClearBreakpoint(cmd.Context(), args[0], args[1])
			}),
		a.breakpointListCommand(),
	)
	return cmd
}

func (a *app) breakpointListCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "list DOM",
		Short: "Show a domain's hidden breakpoints and how often each was hit",
		Long: `Show a domain's hidden breakpoints, and how often a vCPU has come to each since it
was set.

The exit code is 0 also where there are none, 4 if there is no such domain, and 3
if hvid is not reachable.`,
		Example: `  hvictl breakpoint list web1
  hvictl breakpoint list web1 -o json | jq '.[].hits'`,
		Args:              argCount(1, 1, aDomain),
		ValidArgsFunction: a.completeDomain,
		RunE: func(cmd *cobra.Command, args []string) error {
			c := a.client()
			defer c.Close()
			d, err := c.Domain(cmd.Context(), args[0])
			if err != nil {
				return suggest(err, args[0])
			}
			return a.breakpoints(d)
		},
	}
}

func (a *app) breakpoints(d control.DomainStatus) error {
	if a.format == formatJSON {
		return a.json(append([]control.Breakpoint{}, d.Breakpoints...))
	}
	if len(d.Breakpoints) == 0 {
		fmt.Fprintf(a.out, "%s (domain %d) has no breakpoints.\n", d.Name, d.ID)
		return nil
	}
	var rows [][]cell
	head := []string{"SYMBOL", "ADDRESS", "HITS", "FOR"}
	if d.Tier == control.TierAccess {
		head = append(head, "RESTS")
	}
	for _, b := range d.Breakpoints {
		row := []cell{text(b.Symbol), text(b.Address.String()), number(b.Hits), text(duration(a.now().Sub(b.Since)))}
		if d.Tier == control.TierAccess {
			row = append(row, number(b.Rests))
		}
		rows = append(rows, row)
	}
	a.table(a.out, "", head, rows)
	return nil
}
