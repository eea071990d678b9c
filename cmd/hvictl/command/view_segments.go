package command

import (
	"fmt"

	"github.com/xen-hvi/hvi/engine/guest/report"
	"github.com/xen-hvi/hvi/engine/inspect"
)

var segmentsView = view{
	kind:    inspect.Segments,
	long:    `A line for each descriptor of each processor's table that is present.`,
	example: `  hvictl segments web1`,
	show: listView([]string{"CPU", "INDEX", "TYPE", "DPL", "BASE", "LIMIT", "MODE"},
		row(func(s report.Segment) []cell {
			mode := "-"
			if s.Long {
				mode = "64-bit"
			}
			return []cell{number(s.CPU), number(s.Index), text(s.Type), number(s.DPL), address(s.Base), {text: fmt.Sprintf("%#x", s.Limit)}, text(mode)}
		})),
}
