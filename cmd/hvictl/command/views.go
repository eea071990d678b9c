package command

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/xen-hvi/hvi/control"
	"github.com/xen-hvi/hvi/engine/policy"
)

// viewsCommand shows the translations of a domain's memory. (What views returns
// is another thing: the questions that can be asked about a guest.)
func (a *app) viewsCommand() *cobra.Command {
	var view string
	cmd := &cobra.Command{
		Use:   "views DOM",
		Short: "Show where a domain's pages are restricted, or switch to another view of its policy",
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

A policy may declare several views, in each of which other guards of memory hold.
They are listed by their names, and --switch has all vCPUs run in another of them:
at once, with the domain paused for some tens of milliseconds. hvid records who asked for it
(hvictl events --action noted). The domain is in the initial view again after it was
detached, rebooted, saved or migrated, and when hvid is restarted.

FRAMES are pages of 4 KiB, from the guest physical frame number FIRST on. ACCESS
is what they still permit. A domain that is not protected, or whose guards wait
for its kernel, has no views of hvi's.

The exit code is 0 also where there is nothing to show, 1 if the domain can't be
switched, 4 if there is no such domain, and 3 if hvid is not reachable. Only root may
switch.`,
		Example: `  hvictl views web1
  hvictl views web1 --switch maintenance
  hvictl views web1 -o json | jq '.views[] | select(.current).restricted'`,
		Args:              argCount(1, 1, aDomain),
		ValidArgsFunction: a.completeDomain,
		RunE: func(cmd *cobra.Command, args []string) error {
			c := a.client()
			defer c.Close()
			show := func() (control.DomainStatus, error) { return c.Domain(cmd.Context(), args[0]) }
			if cmd.Flags().Changed("switch") {
				show = func() (control.DomainStatus, error) { return c.SwitchView(cmd.Context(), args[0], view) }
			}
			d, err := show()
			if err != nil {
				return suggest(err, args[0])
			}
			if a.format == formatJSON {
				return a.json(viewsReport{
					ID: d.ID, UUID: d.UUID, Name: d.Name.String(), Tier: d.Tier, TierReason: d.TierReason,
					Views: append([]control.View{}, d.Views...), Stepped: d.Counters.Stepped, Emulated: d.Counters.Emulated,
					Restored: d.Counters.Restored, Compared: d.Counters.Compared, Opened: d.Counters.Opened, Undone: d.Counters.Undone,
					Breakpoints: append([]control.Breakpoint{}, d.Breakpoints...),
					ShadowReads: d.Counters.ShadowReads, ShadowWrites: d.Counters.ShadowWrites, Concealed: d.Counters.Concealed,
				})
			}
			a.viewsTable(d)
			return nil
		},
	}
	cmd.Flags().StringVar(&view, "switch", "", "have the domain run in the `view` of that name")
	// The flag exists: it can't fail.
	_ = cmd.RegisterFlagCompletionFunc("switch", a.completeView)
	return cmd
}

// completeView offers the names of the views that may be switched to: of the domain
// that is given, or of all.
func (a *app) completeView(cmd *cobra.Command, args []string, _ string) ([]cobra.Completion, cobra.ShellCompDirective) {
	ctx, cancel := context.WithTimeout(cmd.Context(), completionTime)
	defer cancel()
	c := a.client()
	defer c.Close()
	ds, err := c.Domains(ctx)
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	if len(args) > 0 {
		d, err := control.Resolve(ds, args[0])
		if err != nil {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		ds = []control.DomainStatus{d}
	}
	var names []cobra.Completion
	for _, d := range ds {
		for _, v := range d.Views {
			if v.Name != "" && strings.Trim(v.Name, plainName) == "" && v.Switch != policy.SwitchNobody.String() && !slices.Contains(names, v.Name) {
				names = append(names, v.Name)
			}
		}
	}
	return names, cobra.ShellCompDirectiveNoFileComp
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
	// What became of the kernel's patching of its own code: pages compared afterwards,
	// those that it could write without an event, and changes of others' undone.
	Compared uint64 `json:"compared"`
	Opened   uint64 `json:"opened"`
	Undone   uint64 `json:"undone"`
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
	var rows, declared [][]cell
	for _, v := range d.Views {
		vcpus := "-"
		switch {
		case v.Current:
			vcpus = "all"
		case v.Steps:
			vcpus = "steps"
		}
		if v.Name != "" {
			declared = append(declared, []cell{text(v.Name), number(v.ID), text(vcpus), text(v.Switch), dash(strings.Join(v.Guards, ", "))})
		}
		if len(v.Restricted) == 0 {
			rows = append(rows, []cell{number(v.ID), text(vcpus), dash(""), number(0), text("rwx"), dash("")})
		}
		for _, r := range v.Restricted {
			rows = append(rows, []cell{number(v.ID), text(vcpus), text(r.First.String()), number(r.Count), text(r.Access), text(r.Guard)})
		}
	}
	if len(declared) > 0 {
		fmt.Fprintln(a.out)
		a.table(a.out, "", []string{"NAME", "VIEW", "VCPUS", "SWITCH", "GUARDS OF MEMORY"}, declared)
	}
	fmt.Fprintln(a.out)
	a.table(a.out, "", []string{"VIEW", "VCPUS", "FIRST", "FRAMES", "ACCESS", "GUARD"}, rows)
	fmt.Fprintf(a.out, "\nLet through: %d in a step of the processor, %d by Xen's emulator.\n", d.Counters.Stepped, d.Counters.Emulated)
	if c := d.Counters; c.Compared > 0 {
		fmt.Fprintf(a.out, "Compared after the kernel had patched them: %d pages, of which it could write %d without an event; %d changes undone.\n", c.Compared, c.Opened, c.Undone)
	}
	a.shadows(d)
	a.traps(d)
	if n := d.Counters.Restored; n > 0 {
		fmt.Fprintf(a.out, "Restricted again after Xen had dropped it: %d.\n", n)
	}
}

// traps tells of the pages with breakpoints where there is no view.
func (a *app) traps(d control.DomainStatus) {
	var rows [][]cell
	for _, v := range d.Views {
		for _, p := range v.Traps {
			rows = append(rows, []cell{text(p.Frame.String()), number(p.Breakpoints), number(p.Instructions), number(p.Rests)})
		}
	}
	if len(rows) == 0 {
		return
	}
	fmt.Fprintln(a.out, "\nThese pages can't be executed: Xen's emulator carries out what the guest executes there.")
	a.table(a.out, "", []string{"FRAME", "BREAKPOINTS", "INSTRUCTIONS", "RESTS"}, rows)
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
