package command

import (
	"fmt"
	"strings"

	"github.com/xen-hvi/hvi/engine/guest/report"
	"github.com/xen-hvi/hvi/engine/inspect"
)

var socketsView = view{
	kind: inspect.Sockets,
	long: `Those that listen are green. Owners are processes with the number of the open
file; a socket without one is the kernel's own.`,
	example: `  hvictl sockets web1
  hvictl sockets web1 -o json | jq -r '.items[] | select(.state == "listen") | .local'`,
	show: listView([]string{"FAMILY", "KIND", "STATE", "LOCAL", "REMOTE", "UID", "NETNS", "OWNERS"},
		row(func(s report.Socket) []cell {
			kind := s.Protocol
			if kind == "" {
				kind = s.Type
			}
			state := dash(s.State)
			if s.State == "listen" {
				state.colour = green
			}
			return []cell{
				text(s.Family), text(kind), state, dash(s.Local.String()), dash(s.Remote.String()),
				number(int(s.UID)), number(int(s.NetNS)), text(owners(s.Owners)),
			}
		})),
}

// owners is "sshd(812,3) ..."; a socket may be open in very many processes.
func owners(os []report.Owner) string {
	const most = 4
	var b strings.Builder
	for i, o := range os {
		if i == most {
			fmt.Fprintf(&b, " and %d more", len(os)-i)
			break
		}
		if i > 0 {
			b.WriteByte(' ')
		}
		fmt.Fprintf(&b, "%s(%d,%d)", o.Comm, o.PID, o.FD)
	}
	return b.String()
}
