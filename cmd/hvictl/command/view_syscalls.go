package command

import (
	"github.com/xen-hvi/hvi/engine/guest/report"
	"github.com/xen-hvi/hvi/engine/inspect"
)

var syscallsView = view{
	kind: inspect.Syscalls,
	long: `IN says what memory a handler lies in: kernel is right for all of them. What lies
outside of the kernel's code, its modules and trampolines is red.`,
	example: `  hvictl syscalls web1
  hvictl syscalls web1 -o json | jq -r '.items[].entries[] | select(.handler.in != "kernel")'`,
	show: listView([]string{"TABLE", "NUMBER", "ADDRESS", "IN", "HANDLER"}, func(t report.SyscallTable) [][]cell {
		var rows [][]cell
		for _, e := range t.Entries {
			rows = append(rows, []cell{text(t.Name), number(e.Number), address(e.Handler.Addr), text(string(e.Handler.In)), place(e.Handler)})
		}
		return rows
	}),
}
