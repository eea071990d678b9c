package linux

import (
	"github.com/xen-hvi/hvi/engine/guest/report"
	"github.com/xen-hvi/hvi/engine/x86"
)

// syscallTables are the kernel's tables. Since 5.4 the calls of the x32 ABI are
// in one of their own; before, and for most of them still, in the first.
var syscallTables = [...]string{"sys_call_table", "ia32_sys_call_table", "x32_sys_call_table"}

// maxSyscalls bounds a table: the highest number in use is 547, of the x32 ABI.
const maxSyscalls = 1024

// Syscalls reports the tables of system calls. Kernels since 6.9, and stable
// ones since April 2024, call the handlers from code (x64_sys_call) instead and
// have the first table for tracing alone; the report says so.
func (r *Reader) Syscalls() (report.List[report.SyscallTable], error) {
	out := report.List[report.SyscallTable]{Items: []report.SyscallTable{}}
	err := r.reading(&out.Reading, func() error {
		for _, name := range syscallTables {
			t, ok, err := r.syscallTable(name)
			if err != nil {
				return err
			}
			if ok {
				out.Items = append(out.Items, t)
			}
		}
		if len(out.Items) == 0 {
			return &ReadError{What: syscallTables[0], Err: ErrUnsupported}
		}
		return nil
	})
	return out, err
}

// syscallsInCode says that the tables are not what system calls go through.
func (r *Reader) syscallsInCode() bool {
	_, ok := r.k.Symbols.Lookup("x64_sys_call")
	return ok
}

// syscallTable reads one table; ok is false where the kernel has none. The
// entries are read at once, and a table is written to by nothing but an attack,
// so one reading is as good as two.
func (r *Reader) syscallTable(name string) (t report.SyscallTable, ok bool, err error) {
	start, end, ok := r.k.Symbols.Range(name)
	if !ok || start < r.k.Base || end <= start {
		return t, false, nil
	}
	// The next symbol is behind the table, give or take what aligns it: zeros
	// at the end are no entries, since each number has a handler.
	var table object
	if err := r.read(&table, start, int(min(end-start, maxSyscalls*8))&^7); err != nil {
		return t, false, &ReadError{What: name, Err: err}
	}
	n := len(table.b) / 8
	for n > 0 && table.u64((n-1)*8) == 0 {
		n--
	}
	t = report.SyscallTable{Name: name, Addr: start, TracingOnly: r.syscallsInCode(), Entries: make([]report.Syscall, n)}
	for i := range n {
		t.Entries[i] = report.Syscall{Number: i, Handler: r.place(x86.VirtAddr(table.u64(i * 8)))}
	}
	return t, true, nil
}
