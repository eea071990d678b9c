package command

import (
	"github.com/xen-hvi/hvi/engine/guest/report"
	"github.com/xen-hvi/hvi/engine/inspect"
)

var interruptsView = view{
	kind: inspect.Interrupts,
	long: `A line for each gate of each processor's table. DPL is the least privilege from
which it may be called, IST the stack that it switches to.`,
	example: `  hvictl interrupts web1
  hvictl interrupts web1 -o json | jq -r '.items[] | select(.handler.in != "kernel")'`,
	show: listView([]string{"CPU", "VECTOR", "TYPE", "DPL", "IST", "ADDRESS", "IN", "HANDLER"},
		row(func(g report.Gate) []cell {
			return []cell{
				number(g.CPU), number(g.Vector), text(g.Type), number(g.DPL), number(g.IST), address(g.Handler.Addr), text(string(g.Handler.In)), place(g.Handler),
			}
		})),
}
