package command

import (
	"fmt"
	"strings"
	"time"

	"github.com/xen-hvi/hvi/engine/guest/report"
	"github.com/xen-hvi/hvi/engine/inspect"
)

var infoView = view{
	kind: inspect.Info,
	long: `The kernel is found by the registers of the virtual processors; its symbols and
types are its own. For each processor: what it runs, its control registers, where
system calls enter, the bases of FS and GS and the MSRs of system calls. An entry that
leads to no code of the kernel is red. Memory images have no MSRs.`,
	example: `  hvictl info web1
  hvictl info web1 -o json | jq -r .release`,
	show: func(a *app, _ inspect.Args, answer any) error {
		a.guestInfo(answer.(*report.Info))
		return nil
	},
}

func (a *app) guestInfo(r *report.Info) {
	line := func(label, value string) {
		if value != "" {
			fmt.Fprintf(a.out, "%-13s %s\n", label, safe(value))
		}
	}
	line("System", r.System)
	line("Kernel", r.Release.String())
	line("Version", r.Banner.String())
	line("Host name", r.Hostname.String())
	line("Command line", r.CommandLine.String())
	if r.Uptime > 0 {
		line("Uptime", duration(time.Duration(r.Uptime)*time.Second))
	}
	line("Tainted", r.Taints)
	base := fmt.Sprintf("%v, physical %v", r.Base, r.PhysBase)
	if r.Slide != 0 {
		base += fmt.Sprintf(", moved by %#x", r.Slide)
	}
	line("Image", base)
	paging := fmt.Sprintf("%d levels", r.PagingLevels)
	if r.Isolation {
		paging += ", page tables isolated"
	}
	line("Paging", paging)
	types := map[report.TypeSource]string{
		report.TypesBTF: "the kernel's own (BTF)", report.TypesISF: "a profile (ISF)", report.TypesGuess: "guessed", report.TypesNone: "none",
	}[r.Types]
	if types == "" {
		types = string(r.Types)
	}
	if r.TypesNote != "" {
		types += "; " + r.TypesNote
	}
	line("Symbols", fmt.Sprint(r.Symbols))
	line("Types", types)
	if len(r.CPUs) > 0 {
		fmt.Fprintln(a.out)
		a.cpuTable(r.CPUs)
	}
	a.incomplete(r.Reading)
}

func (a *app) cpuTable(cpus []report.CPU) {
	var rows [][]cell
	for _, c := range cpus {
		mode := "kernel"
		if c.User {
			mode = "user"
		}
		task := "-"
		if c.Task != 0 {
			task = fmt.Sprintf("%d %s", c.PID, c.Comm)
		}
		at := place(c.RIP)
		if c.User {
			at = text(c.RIP.Addr.String())
		}
		rows = append(rows, []cell{
			number(c.ID), text(mode), text(strings.TrimSpace(task)), at, entryPlace(c.LSTAR),
			text(c.CR0.String()), text(c.CR3.String()), text(c.CR4.String()), setMSR(c.EFER),
		})
	}
	a.table(a.out, "", []string{"CPU", "MODE", "TASK", "AT", "SYSCALL ENTRY", "CR0", "CR3", "CR4", "EFER"}, rows)
	fmt.Fprintln(a.out)
	rows = nil
	for _, c := range cpus {
		rows = append(rows, []cell{
			number(c.ID), text(c.FSBase.String()), text(c.GSBase.String()), text(c.KernelGSBase.String()),
			setMSR(c.STAR), setMSR(c.SFMask), entryPlace(c.CSTAR), entryPlace(c.SysenterEIP),
		})
	}
	a.table(a.out, "", []string{"CPU", "FS BASE", "GS BASE", "KERNEL GS BASE", "STAR", "SFMASK", "CSTAR", "SYSENTER ENTRY"}, rows)
}

// setMSR is an MSR that is 0 only where it is unknown, or not set up.
func setMSR(v report.Hex) cell {
	if v == 0 {
		return text("-")
	}
	return text(v.String())
}

// entryPlace is where an entry leads, which not every processor has.
func entryPlace(p report.Place) cell {
	if p.Addr == 0 {
		return text("-")
	}
	return place(p)
}
