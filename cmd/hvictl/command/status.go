package command

import (
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/xen-hvi/hvi/control"
)

func (a *app) statusCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "status [DOM]",
		Short: "Show what is protected, or one domain in full",
		Long: `Without a domain, show hvid and every domain that is protected or should be.
With one, show all that is known of its protection: state and time since
attach, tier, guest kernel, and each guard with its counts.

States: declared, gated, attached, identifying, protecting, detaching, detached;
degraded (some guard is not armed), failed (not protected), unprotected;
restarting (protected until hvid stopped, and again when it has started). While
hvid restarts, the domains that wait for it are shown and the exit code is 3.`,
		Example: `  hvictl status
  hvictl status web1
  hvictl status web1 -o json | jq -r .state`,
		Args:              argCount(0, 1, aDomain),
		ValidArgsFunction: a.completeDomain,
		RunE: func(cmd *cobra.Command, args []string) error {
			c := a.client()
			defer c.Close()
			if len(args) == 1 {
				show := func(d control.DomainStatus) error {
					if a.format == formatJSON {
						return a.json(d)
					}
					a.domainBlock(d)
					return nil
				}
				d, err := c.Domain(cmd.Context(), args[0])
				if err != nil {
					return a.restarting(suggest(err, args[0]), func(ds []control.DomainStatus) error {
						// One that was not protected is not waiting for hvid.
						if d, err := control.Resolve(ds, args[0]); err == nil {
							return show(d)
						}
						return nil
					})
				}
				return show(d)
			}
			show := func(v *control.Version, ds []control.DomainStatus) error {
				if a.format == formatJSON {
					return a.json(struct {
						// Hvid is nil while it restarts.
						Hvid    *control.Version       `json:"hvid"`
						Domains []control.DomainStatus `json:"domains"`
					}{v, ds})
				}
				a.statusTable(v, ds)
				return nil
			}
			v, err := c.Version(cmd.Context())
			var ds []control.DomainStatus
			if err == nil {
				ds, err = c.Domains(cmd.Context())
			}
			if err != nil {
				return a.restarting(err, func(ds []control.DomainStatus) error { return show(nil, ds) })
			}
			return show(&v, ds)
		},
	}
}

// statusTable shows the domains that hvi has to do with, and counts the others.
// v is nil while hvid can't be reached.
func (a *app) statusTable(v *control.Version, ds []control.DomainStatus) {
	if v != nil {
		fmt.Fprintf(a.out, "hvid %s on Xen %s, up %s\n", safe(v.Build.Version), dash(v.Xen).text, duration(a.now().Sub(v.StartedAt)))
	} else if len(ds) > 0 && !slices.ContainsFunc(ds, func(d control.DomainStatus) bool { return d.State == control.StateRestarting }) {
		fmt.Fprintln(a.out, a.paint(cell{"hvid does not answer", red}))
	} else {
		fmt.Fprintln(a.out, a.paint(cell{"hvid is restarting", yellow}))
	}
	var rows [][]cell
	others := 0
	for _, d := range ds {
		if d.State == control.StateUnprotected {
			others++
			continue
		}
		kernel, since := "", ""
		if d.GuestKernel != nil {
			kernel = d.GuestKernel.Release.String()
		}
		if !d.AttachedAt.IsZero() {
			since = duration(a.now().Sub(d.AttachedAt))
		}
		rows = append(rows, []cell{
			number(d.ID), text(d.Name.String()), heldCell(d), dash(d.Mode), dash(string(d.Tier)), dash(kernel),
			guardCount(d.Guards), number(d.Counters.Blocked), number(d.Counters.Alerted), dash(since),
		})
	}
	fmt.Fprintln(a.out)
	if len(rows) > 0 {
		a.table(a.out, "", []string{"ID", "NAME", "STATE", "MODE", "TIER", "KERNEL", "GUARDS", "BLOCKED", "ALERTED", "SINCE"}, rows)
	} else {
		fmt.Fprintln(a.out, "No domain is protected, and none is meant to be.")
	}
	if others > 0 {
		fmt.Fprintf(a.out, "\n%s without protection; hvictl list shows all.\n", count(others, "other domain", "other domains"))
	}
}

// count writes a number with its noun.
func count(n int, one, many string) string {
	if n == 1 {
		return "1 " + one
	}
	return fmt.Sprintf("%d %s", n, many)
}

// guardCount is "armed/wanted".
func guardCount(gs []control.GuardStatus) cell {
	armed, wanted := 0, 0
	for _, g := range gs {
		if g.State != control.GuardOff {
			wanted++
		}
		if g.State == control.GuardArmed {
			armed++
		}
	}
	c := cell{text: fmt.Sprintf("%d/%d", armed, wanted)}
	if armed < wanted {
		c.colour = yellow
	}
	return c
}

// domainBlock shows one domain.
func (a *app) domainBlock(d control.DomainStatus) {
	line := func(label, value string) {
		if value != "" {
			fmt.Fprintf(a.out, "  %-10s %s\n", label, value)
		}
	}
	fmt.Fprintf(a.out, "%s (domain %d", d.Name, d.ID)
	if d.Type != "" {
		fmt.Fprintf(a.out, ", %s", safe(d.Type))
	}
	fmt.Fprintln(a.out, ")")
	line("UUID", safe(d.UUID))
	line("State", a.paint(stateCell(d.State)))
	if f := d.Failure; f != nil {
		why := "at " + f.Stage
		if f.Expected != "" {
			why += ": expected " + f.Expected + ", got " + f.Got
		} else {
			why += ": " + f.Got
		}
		line("Failed", safe(why))
		line("Fix", safe(f.Fix))
	}
	if !d.AttachedAt.IsZero() {
		at := duration(a.now().Sub(d.AttachedAt)) + " ago, " + a.moment(d.AttachedAt)
		if d.AttachPC != nil {
			at += fmt.Sprintf(", vCPU 0 at %s", *d.AttachPC)
		}
		line("Attached", at)
	}
	line("Mode", safe(d.Mode))
	line("Policy", safe(d.PolicySource))
	if d.RequireAttach {
		line("Required", "yes: it may only run with hvi attached")
	}
	line("Held", safe(d.Held))
	line("Dump", safe(dumpLine(d.Dump)))
	tier := string(d.Tier)
	if d.TierReason != "" {
		tier += ": " + d.TierReason
	}
	line("Tier", safe(tier))
	if k := d.GuestKernel; k != nil {
		line("Kernel", fmt.Sprintf("%s at %s, %d symbols", k.Release, k.Base, k.SymbolCount))
	}
	if n := d.Counters; n != (control.Counters{}) {
		events := fmt.Sprintf("%d from Xen, %d blocked, %d alerted", n.RingEvents, n.Blocked, n.Alerted)
		if n.Found > 0 {
			events += fmt.Sprintf(", %d found afterwards", n.Found)
		}
		if n.RecordsLost > 0 {
			events += fmt.Sprintf(", %d records lost", n.RecordsLost)
		}
		line("Events", events)
	}
	if len(d.Guards) == 0 {
		return
	}
	fmt.Fprintln(a.out)
	var rows [][]cell
	for _, g := range d.Guards {
		rows = append(rows, []cell{
			text(g.Name), dash(g.Action), guardCell(g.State), number(g.Events), number(g.Blocked), number(g.Passed), text(strings.TrimSpace(g.Reason)),
		})
	}
	a.table(a.out, "  ", []string{"GUARD", "ACTION", "STATE", "EVENTS", "BLOCKED", "PASSED", "REASON"}, rows)
}

// dumpLine says how a memory dump is, nothing where there is none.
func dumpLine(d *control.MemoryDump) string {
	switch {
	case d == nil:
		return ""
	case d.Reason != "":
		return d.State + ": " + d.Reason
	case d.File != "":
		return fmt.Sprintf("%s, %d MiB of memory, %d MiB on disk", d.File, d.Memory>>20, d.Stored>>20)
	case d.Total == 0:
		return d.State
	}
	return fmt.Sprintf("%s, %d of %d MiB", d.State, d.Memory>>20, d.Total>>20)
}
