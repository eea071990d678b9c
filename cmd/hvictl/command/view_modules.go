package command

import (
	"strings"

	"github.com/xen-hvi/hvi/engine/guest/report"
	"github.com/xen-hvi/hvi/engine/inspect"
)

var modulesView = view{
	kind: inspect.Modules,
	long: `Taints are letters: O built outside of the kernel's tree, E unsigned, P not under
a free licence, F loaded by force; they are yellow. A module that was taken off
the kernel's list is not shown: hvictl check looks for such.`,
	example: `  hvictl modules web1
  hvictl modules web1 -o json | jq -r '.items[] | select(.taints) | .name'`,
	show: listView([]string{"NAME", "SIZE", "USED", "STATE", "BASE", "TAINTS", "BY"},
		row(func(m report.Module) []cell {
			by := make([]string, len(m.UsedBy))
			for i, u := range m.UsedBy {
				by[i] = u.String()
			}
			taints := dash(m.Taints)
			if m.Taints != "" {
				taints.colour = yellow
			}
			return []cell{
				text(m.Name.String()), number(m.Size), number(m.Refcount), dash(m.State), address(m.Base), taints, text(strings.Join(by, ",")),
			}
		})),
}
