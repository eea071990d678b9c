package command

import (
	"strings"

	"github.com/xen-hvi/hvi/engine/guest/report"
	"github.com/xen-hvi/hvi/engine/inspect"
)

var programsView = view{
	kind: inspect.Programs,
	long: `Types and tags are as bpftool shows them. LOADED is seconds since the guest's
boot.`,
	example: `  hvictl programs web1`,
	show: listView([]string{"ID", "TYPE", "NAME", "TAG", "UID", "LOADED", "INSNS", "ATTACHED"},
		row(func(p report.Program) []cell {
			return []cell{
				number(int(p.ID)), text(p.Type), dash(p.Name.String()), text(p.Tag), number(int(p.UID)), text(seconds(p.Loaded)),
				number(p.Instructions), text(attachments(p.Attached)),
			}
		})),
}

func attachments(as []report.Attachment) string {
	var out []string
	for _, t := range as {
		s := t.Kind
		if t.Target != "" {
			s += " " + t.Target.String()
		}
		out = append(out, s)
	}
	return strings.Join(out, ", ")
}
