package command

import (
	"fmt"

	"github.com/xen-hvi/hvi/engine/guest/report"
	"github.com/xen-hvi/hvi/engine/inspect"
)

var probesView = view{
	kind: inspect.Probes,
	long: `Each has itself called from the kernel's code: tracing and monitoring do, and so
do rootkits. A handler outside of the kernel's code and its modules is red.`,
	example: `  hvictl probes web1`,
	show: listView([]string{"KIND", "STATE", "TARGET", "HANDLER", "IN"},
		row(func(p report.Probe) []cell {
			state := text("enabled")
			if p.Disabled {
				state = text("disabled")
			}
			target := place(p.Target)
			if p.Target.In == report.InNothing && p.Targets > 0 {
				target = text(count(p.Targets, "function", "functions"))
			} else if p.Targets > 1 {
				target.text += fmt.Sprintf(" and %d more", p.Targets-1)
			}
			return []cell{text(p.Kind), state, target, place(p.Handler), text(string(p.Handler.In))}
		})),
}
