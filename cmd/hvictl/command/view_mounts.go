package command

import (
	"github.com/xen-hvi/hvi/engine/guest/report"
	"github.com/xen-hvi/hvi/engine/inspect"
)

var mountsView = view{
	kind: inspect.Mounts,
	long: `Without a PID, what the guest's first process sees.`,
	example: `  hvictl mounts web1
  hvictl mounts web1 812`,
	show: listView([]string{"ID", "PARENT", "DEVICE", "TYPE", "SOURCE", "MOUNTED ON", "OPTIONS"},
		row(func(m report.Mount) []cell {
			return []cell{
				number(m.ID), number(m.Parent), dash(m.Device), dash(m.Type.String()), dash(m.Source.String()), dash(m.Point.String()), text(m.Options),
			}
		})),
}
