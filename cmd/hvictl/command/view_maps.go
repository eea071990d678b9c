package command

import (
	"fmt"

	"github.com/xen-hvi/hvi/engine/guest/report"
	"github.com/xen-hvi/hvi/engine/inspect"
)

var mapsView = view{
	kind: inspect.Maps,
	long: `A line for each mapping, as in /proc/PID/maps. What can be written and run is
red: programs that compile while they run need it, others hardly.`,
	example: `  hvictl maps web1 812
  hvictl maps web1 812 -o json | jq -r '.items[] | select(.perm | startswith("rwx")) | .start'`,
	show: listView([]string{"START", "END", "PERM", "OFFSET", "DEVICE", "INODE", "PATH"},
		row(func(m report.Mapping) []cell {
			perm := text(m.Perm)
			if len(m.Perm) >= 3 && m.Perm[1] == 'w' && m.Perm[2] == 'x' {
				perm.colour = red
			}
			return []cell{
				address(m.Start), address(m.End), perm, {text: fmt.Sprintf("%08x", m.Offset)}, dash(m.Device), number(m.Inode), text(m.Path.String()),
			}
		})),
}
