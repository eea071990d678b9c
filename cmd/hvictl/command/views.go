package command

import (
	"fmt"

	"github.com/spf13/cobra"

	"github.com/xen-hvi/hvi/control"
)

// viewsCommand shows the translations of a domain's memory. (What views returns
// is another thing: the questions that can be asked about a guest.)
func (a *app) viewsCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "views DOM",
		Short: "Show where a domain's pages are restricted, and how accesses are let through",
		Long: `Show the translations of a domain's physical memory that hvi has a hand in, which
page frames are restricted in each, for which guard, and how the accesses were
carried out that a guard let through.

View 0 is the host's, which every domain has. On the tier "views" hvi makes one
more with altp2m: the guest's vCPUs run in it, pages are restricted in it alone,
and what is let through is executed by the processor in a single step in view 0.
With hidden breakpoints (hvictl breakpoint) there is a third, in which the steps
over them are made, and pages of the running view lead to copies of hvi's.
On the tier "access" there is only view 0; pages are restricted in it, and what
is let through is carried out by Xen's emulator.

FRAMES are pages of 4 KiB, from the guest physical frame number FIRST on. ACCESS
is what they still permit. A domain that is not protected, or whose guards wait
for its kernel, has no views of hvi's.

The exit code is 0 also where there is nothing to show, 4 if there is no such
domain, and 3 if hvid is not reachable.`,
		Example: `  hvictl views web1
  hvictl views web1 -o json | jq '.views[] | select(.current).restricted'`,
		Args:              argCount(1, 1, aDomain),
		ValidArgsFunction: a.completeDomain,
		RunE: func(cmd *cobra.Command, args []string) error {
			c := a.client()
			defer c.Close()
			d, err := c.Domain(cmd.Context(), args[0])
			if err != nil {
				return suggest(err, args[0])
			}
			if a.format == formatJSON {
				return a.json(viewsReport{
					ID: d.ID, UUID: d.UUID, Name: d.Name.String(), Tier: d.Tier, TierReason: d.TierReason,
					Views: append([]control.View{}, d.Views...), Stepped: d.Counters.Stepped, Emulated: d.Counters.Emulated,
					Restored: d.Counters.Restored, Breakpoints: append([]control.Breakpoint{}, d.Breakpoints...),
					ShadowReads: d.Counters.ShadowReads, ShadowWrites: d.Counters.ShadowWrites, Concealed: d.Counters.Concealed,
				})
			}
			a.viewsTable(d)
			return nil
		},
	}
}

// viewsReport is what the command says to programs.
type viewsReport struct {
	ID         uint16         `json:"id"`
	UUID       string         `json:"uuid"`
	Name       string         `json:"name"`
	Tier       control.Tier   `json:"tier"`
	TierReason string         `json:"tier_reason,omitempty"`
	Views      []control.View `json:"views"`
	Stepped    uint64         `json:"stepped"`
	Emulated   uint64         `json:"emulated"`
	Restored   uint64         `json:"restored"`
	// Breakpoints are the hidden ones; the counters are of accesses to the pages
	// they are in, and to hvi's copies of those.
	Breakpoints  []control.Breakpoint `json:"breakpoints"`
	ShadowReads  uint64               `json:"shadow_reads"`
	ShadowWrites uint64               `json:"shadow_writes"`
	Concealed    uint64               `json:"concealed"`
}

func (a *app) viewsTable(d control.DomainStatus) {
	tier := safe(string(d.Tier))
	if d.TierReason != "" {
		tier += ": " + safe(d.TierReason)
	}
	fmt.Fprintf(a.out, "%s (domain %d), tier %s\n", d.Name, d.ID, tier)
	if len(d.Views) == 0 {
		fmt.Fprintf(a.out, "None of its pages is restricted: its state is %s.\n", a.paint(stateCell(d.State)))
		return
	}
	var rows [][]cell
	for _, v := range d.Views {
		vcpus := "-"
		switch {
		case v.Current:
			vcpus = "all"
		case v.Steps:
			vcpus = "steps"
		}
		if len(v.Restricted) == 0 {
			rows = append(rows, []cell{number(v.ID), text(vcpus), dash(""), number(0), text("rwx"), dash("")})
		}
		for _, r := range v.Restricted {
			rows = append(rows, []cell{number(v.ID), text(vcpus), text(r.First.String()), number(r.Count), text(r.Access), text(r.Guard)})
		}
	}
	fmt.Fprintln(a.out)
	a.table(a.out, "", []string{"VIEW", "VCPUS", "FIRST", "FRAMES", "ACCESS", "GUARD"}, rows)
	fmt.Fprintf(a.out, "\nLet through: %d in a step of the processor, %d by Xen's emulator.\n", d.Counters.Stepped, d.Counters.Emulated)
	a.shadows(d)
	if n := d.Counters.Restored; n > 0 {
		fmt.Fprintf(a.out, "Restricted again after Xen had dropped it: %d.\n", n)
	}
}

// shadows tells of the pages with breakpoints.
func (a *app) shadows(d control.DomainStatus) {
	var rows [][]cell
	for _, v := range d.Views {
		for _, p := range v.Shadows {
			rows = append(rows, []cell{number(v.ID), text(p.Frame.String()), text(p.Shadow.String()), number(p.Breakpoints)})
		}
	}
	if len(rows) == 0 {
		return
	}
	fmt.Fprintln(a.out)
	a.table(a.out, "", []string{"VIEW", "FRAME", "LEADS TO", "BREAKPOINTS"}, rows)
	fmt.Fprintf(a.out, "\nThe guest has read these pages %d times and written to them %d times. It looked for hvi's copies %d times, in vain.\n",
		d.Counters.ShadowReads, d.Counters.ShadowWrites, d.Counters.Concealed)
}
