package command

import (
	"strings"

	"github.com/xen-hvi/hvi/engine/guest/report"
	"github.com/xen-hvi/hvi/engine/inspect"
)

var processesView = view{
	kind: inspect.Processes,
	long: `Kernel threads stand in brackets; a process that gave itself such a name stands in
quotes besides, in red. START is seconds since the guest's boot. PIDs
and UIDs are those of the guest's first namespaces. A process that was taken off
the kernel's list is not shown: hvictl check looks for such.`,
	example: `  hvictl ps web1
  hvictl ps web1 --threads
  hvictl ps web1 -o json | jq -r '.items[] | select(.cred.euid == 0) | .exe // .comm'`,
	show: func(a *app, args inspect.Args, answer any) error {
		if args.Threads {
			return showThreads(a, args, answer)
		}
		return showProcesses(a, args, answer)
	},
}

var showProcesses = listView([]string{"PID", "PPID", "UID", "S", "CPU", "THREADS", "START", "NAME", "PROGRAM"},
	row(func(p report.Process) []cell {
		return []cell{
			number(int(p.TGID)), number(int(p.PPID)), number(int(p.Cred.EUID)), taskState(p.State), number(p.CPU), number(p.Threads),
			text(seconds(p.Start)), comm(p), text(p.Exe.String()),
		}
	}))

var showThreads = listView([]string{"PID", "TID", "UID", "S", "CPU", "START", "NAME"},
	row(func(p report.Process) []cell {
		return []cell{
			number(int(p.TGID)), number(int(p.PID)), number(int(p.Cred.EUID)), taskState(p.State), number(p.CPU), text(seconds(p.Start)), comm(p),
		}
	}))

// taskState is the letter, coloured where it runs or hangs.
func taskState(s string) cell {
	c := text(s)
	switch s {
	case "R":
		c.colour = green
	case "D", "Z", "X":
		c.colour = yellow
	}
	return c
}

// comm is the task's name. Brackets are the mark of a kernel thread, which a
// process may imitate.
func comm(p report.Process) cell {
	switch name := p.Comm.String(); {
	case p.KernelThread:
		return text("[" + name + "]")
	case strings.HasPrefix(name, "["):
		return cell{text: p.Comm.Quoted(), colour: red}
	default:
		return text(name)
	}
}
