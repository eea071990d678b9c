package linux

import (
	"errors"
	"fmt"

	"github.com/xen-hvi/hvi/engine/x86"
)

// maxFDs bounds a process's table of open files: the kernel's own bound,
// fs.nr_open, is 1 Mi unless it is raised.
const maxFDs = 1 << 20

// TaskFilesOffsets lays out of struct task_struct what leads to open files.
type TaskFilesOffsets struct {
	Files int `c:"files"`
}

// FilesOffsets lays out struct files_struct.
type FilesOffsets struct {
	Table int `c:"fdt"`
}

// FDTableOffsets lays out struct fdtable.
type FDTableOffsets struct {
	Size  int
	Max   int `c:"max_fds"`
	Files int `c:"fd"`
}

// OpenFileOffsets lays out struct file.
type OpenFileOffsets struct {
	Size    int
	Ops     int `c:"f_op"`
	Inode   int `c:"f_inode"`
	Private int `c:"private_data"`
}

// errBudget: a bound on what is looked at for one report was reached.
var errBudget = errors.New("there is too much of it")

// budget bounds what is looked at for one report: a guest that fills its memory
// with structures gets no more attention than this.
type budget struct{ left int }

// spend takes n from the budget.
func (b *budget) spend(n int) error {
	if b.left -= n; b.left < 0 {
		return errBudget
	}
	return nil
}

// cheap is how many empty buckets or descriptors cost as much as a full one.
const cheap = 64

// openFile is a file in a process's table of open files.
type openFile struct {
	at                  x86.VirtAddr // its struct file
	fd                  int
	ops, inode, private x86.VirtAddr
}

// fileWalk looks through the open files of all processes.
type fileWalk struct {
	r      *Reader
	budget *budget

	table, slots, file object
}

// processes calls f with each open file of each process. Before a process is
// begun (anew, if it changed) it calls begin, and when all its files were read
// end. What f copies is believed if the file is still open afterwards.
func (w *fileWalk) processes(begin func(), f func(openFile) error, end func(*Task)) error {
	o := &w.r.k.Offsets
	if err := need("task_struct.files", o.TaskFiles.Files, "files_struct.fdt", o.Files.Table, "fdtable.max_fds", o.FDTable.Max,
		"fdtable.fd", o.FDTable.Files, "file.f_op", o.OpenFile.Ops, "file.private_data", o.OpenFile.Private); err != nil {
		return err
	}
	var tasks []Task
	err := w.r.consistently("the list of processes", func() error {
		tasks = tasks[:0]
		return w.r.eachProcess(func(at x86.VirtAddr) error {
			t, err := w.identity(at)
			tasks = append(tasks, t)
			return err
		})
	})
	if err != nil {
		return err
	}
	for i := range tasks {
		t := &tasks[i]
		err := w.r.consistently("open files", func() error {
			begin()
			return w.process(t, f)
		})
		switch {
		case err == nil:
			end(t)
		case errors.Is(err, errGone):
		case errors.Is(err, errBudget):
			return err
		default:
			w.r.missing("open files of process %d: %v", t.PID, err)
		}
	}
	return nil
}

// identity reads what tells a task from another in the same place.
func (w *fileWalk) identity(at x86.VirtAddr) (Task, error) {
	o, t := &w.r.k.Offsets.Task, Task{Addr: at}
	pid, err := w.r.as.ReadUint32(at + x86.VirtAddr(o.PID))
	if err != nil || w.r.as.Read(at+x86.VirtAddr(o.Comm), t.Comm[:]) != nil {
		return t, errTorn
	}
	t.PID = int32(pid)
	return t, nil
}

// errGone: a process has ended.
var errGone = errors.New("has ended")

// process is one attempt at a process.
func (w *fileWalk) process(t *Task, f func(openFile) error) error {
	tables, err := w.tables(t.Addr)
	for i := 0; err == nil && i < len(tables); i++ {
		err = w.files(tables[i], f)
	}
	if now, again := w.identity(t.Addr); again != nil || now.PID != t.PID {
		return errGone // whatever was read, it is not this process's any more
	}
	return err
}

// tables lists the files_structs of a process. Its threads share one, unless one
// has asked for its own; the first thread may have ended, and has none.
func (w *fileWalk) tables(leader x86.VirtAddr) ([]x86.VirtAddr, error) {
	o := &w.r.k.Offsets
	var out []x86.VirtAddr
	seen := map[x86.VirtAddr]bool{0: true}
	note := func(task x86.VirtAddr) error {
		files, err := w.r.as.ReadPointer(task + x86.VirtAddr(o.TaskFiles.Files))
		if err != nil {
			return errTorn
		}
		if !seen[files] {
			seen[files] = true
			out = append(out, files)
		}
		return w.budget.spend(1)
	}
	if o.Task.Signal < 0 || o.Task.ThreadNode < 0 || o.Signal.ThreadHead < 0 {
		err := note(leader)
		return out, err
	}
	err := w.r.threadsOf(leader, note)
	return out, err
}

// files looks through one table of open files.
func (w *fileWalk) files(at x86.VirtAddr, f func(openFile) error) error {
	o := &w.r.k.Offsets
	table, err := w.r.as.ReadPointer(at + x86.VirtAddr(o.Files.Table))
	if err != nil || w.r.read(&w.table, table, o.FDTable.Size) != nil {
		return errTorn
	}
	n, first := int(w.table.u32(o.FDTable.Max)), w.table.pointer(o.FDTable.Files)
	if n > maxFDs {
		return &ReadError{What: "fdtable.max_fds", Got: fmt.Sprint(n), Err: ErrImplausible}
	}
	const atOnce = x86.PageSize / 8
	for i := 0; i < n; i += atOnce {
		if err := w.budget.spend(atOnce / cheap); err != nil {
			return err
		}
		m := min(atOnce, n-i)
		if w.r.read(&w.slots, first+x86.VirtAddr(8*i), 8*m) != nil {
			return errTorn
		}
		for j := range m {
			file := w.slots.pointer(8 * j)
			if file == 0 {
				continue
			}
			if err := w.budget.spend(1); err != nil {
				return err
			}
			if w.r.read(&w.file, file, o.OpenFile.Size) != nil {
				return errTorn
			}
			if err := f(openFile{file, i + j, w.file.pointer(o.OpenFile.Ops), w.file.pointer(o.OpenFile.Inode), w.file.pointer(o.OpenFile.Private)}); err != nil {
				return err
			}
			if now, err := w.r.as.ReadPointer(first + x86.VirtAddr(8*(i+j))); err != nil || now != file {
				return errTorn
			}
		}
	}
	// The table is exchanged when it grows.
	if now, err := w.r.as.ReadPointer(at + x86.VirtAddr(o.Files.Table)); err != nil || now != table {
		return errTorn
	}
	return nil
}
