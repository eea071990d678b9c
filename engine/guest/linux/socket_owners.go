package linux

import (
	"errors"
	"fmt"

	"github.com/xen-hvi/hvi/engine/guest/report"
	"github.com/xen-hvi/hvi/engine/printable"
	"github.com/xen-hvi/hvi/engine/x86"
)

// maxFDs bounds a process's table of open files: the kernel's own bound,
// fs.nr_open, is 1 Mi unless it is raised.
const maxFDs = 1 << 20

// TaskFilesOffsets lays out of struct task_struct what leads to open files.
type TaskFilesOffsets struct {
	Files int `c:"files"`
	Group int `c:"signal"`
	// ThreadNode links it into signal_struct.thread_head.
	ThreadNode int `c:"thread_node"`
}

// GroupOffsets lays out struct signal_struct, what the threads of a process
// share.
type GroupOffsets struct {
	Threads int `c:"thread_head"`
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

// openSocket is a socket in a process's table of open files.
type openSocket struct {
	socket x86.VirtAddr // its struct socket
	fd     int
	// found is the socket if it is in no table; otherwise it has no address.
	found foundSocket
}

// processes finds out who has the sockets open, and sockets that are in no
// table.
func (w *socketWalk) processes() {
	o := &w.r.k.Offsets
	if err := need("task_struct.files", o.TaskFiles.Files, "files_struct.fdt", o.Files.Table, "fdtable.max_fds", o.FDTable.Max,
		"fdtable.fd", o.FDTable.Files, "file.f_op", o.OpenFile.Ops, "file.private_data", o.OpenFile.Private,
		"socket.sk", o.Socket.Sock, "socket.file", o.Socket.File); err != nil {
		w.r.missing("the sockets' owners: %v", err)
		return
	}
	var tasks []Task
	w.part("the sockets' owners", func() error {
		return w.r.consistently("the list of processes", func() error {
			tasks = tasks[:0]
			return w.r.eachProcess(func(at x86.VirtAddr) error {
				t, err := w.identity(at)
				tasks = append(tasks, t)
				return err
			})
		})
	})
	for i := range tasks {
		if err := w.process(&tasks[i]); err != nil {
			w.r.missing("the sockets of process %d: %v", tasks[i].PID, err)
			if errors.Is(err, errBudget) {
				return
			}
		}
	}
}

// identity reads what tells a task from another in the same place.
func (w *socketWalk) identity(at x86.VirtAddr) (Task, error) {
	o, t := &w.r.k.Offsets.Task, Task{Addr: at}
	pid, err := w.r.as.ReadUint32(at + x86.VirtAddr(o.PID))
	if err != nil {
		return t, errTorn
	}
	if w.r.as.Read(at+x86.VirtAddr(o.Comm), t.Comm[:]) != nil {
		return t, errTorn
	}
	t.PID = int32(pid)
	return t, nil
}

// errGone: a process has ended.
var errGone = errors.New("has ended")

// process notes the sockets that a process has open.
func (w *socketWalk) process(t *Task) error {
	var open []openSocket
	err := w.r.consistently("open files", func() error {
		open = open[:0]
		tables, err := w.fileTables(t.Addr)
		if err == nil {
			for _, files := range tables {
				if err = w.files(files, &open); err != nil {
					break
				}
			}
		}
		// Whatever was read, it is not this process's any more.
		if now, again := w.identity(t.Addr); again != nil || now.PID != t.PID {
			return errGone
		}
		return err
	})
	if errors.Is(err, errGone) {
		return nil
	}
	if err != nil {
		return err
	}
	type place struct {
		socket x86.VirtAddr
		fd     int
	}
	noted := map[place]bool{} // in several of the process's tables
	for _, s := range open {
		if s.found.Addr != 0 {
			w.add(s.found)
		}
		if at := (place{s.socket, s.fd}); !noted[at] {
			noted[at] = true
			w.owners[s.socket] = append(w.owners[s.socket], report.Owner{PID: t.PID, Comm: printable.Escape(t.Name()), FD: s.fd})
		}
	}
	return nil
}

// fileTables lists the files_structs of a process. Its threads share one, unless
// one has asked for its own; the first thread may have ended, and has none.
func (w *socketWalk) fileTables(leader x86.VirtAddr) ([]x86.VirtAddr, error) {
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
		return w.step()
	}
	if o.TaskFiles.Group < 0 || o.TaskFiles.ThreadNode < 0 || o.Group.Threads < 0 {
		err := note(leader)
		return out, err
	}
	group, err := w.r.as.ReadPointer(leader + x86.VirtAddr(o.TaskFiles.Group))
	if err != nil {
		return nil, errTorn
	}
	if group == 0 {
		return nil, nil // a process that is being taken away
	}
	err = w.r.list("threads", group+x86.VirtAddr(o.Group.Threads), maxTasks, func(node x86.VirtAddr) error {
		return note(node - x86.VirtAddr(o.TaskFiles.ThreadNode))
	})
	return out, err
}

// files looks through one table of open files.
func (w *socketWalk) files(at x86.VirtAddr, open *[]openSocket) error {
	o := &w.r.k.Offsets
	table, err := w.r.as.ReadPointer(at + x86.VirtAddr(o.Files.Table))
	if err != nil || w.r.read(&w.extra, table, o.FDTable.Size) != nil {
		return errTorn
	}
	n, first := int(w.extra.u32(o.FDTable.Max)), w.extra.pointer(o.FDTable.Files)
	if n > maxFDs {
		return &ReadError{What: "fdtable.max_fds", Got: fmt.Sprint(n), Err: ErrImplausible}
	}
	const atOnce = x86.PageSize / 8
	var slots object
	for i := 0; i < n; i += atOnce {
		if w.steps += atOnce / 64; w.steps > maxSocketSteps { // empty ones are cheap
			return errBudget
		}
		m := min(atOnce, n-i)
		if w.r.read(&slots, first+x86.VirtAddr(8*i), 8*m) != nil {
			return errTorn
		}
		for j := range m {
			file := slots.pointer(8 * j)
			if file == 0 {
				continue
			}
			if err := w.step(); err != nil || len(*open) >= maxSockets {
				return errBudget
			}
			s, ok, err := w.socketOf(file)
			if err != nil {
				return err
			}
			if !ok {
				continue
			}
			s.fd = i + j
			if now, err := w.r.as.ReadPointer(first + x86.VirtAddr(8*s.fd)); err != nil || now != file {
				return errTorn
			}
			*open = append(*open, s)
		}
	}
	// The table is exchanged when it grows.
	if now, err := w.r.as.ReadPointer(at + x86.VirtAddr(o.Files.Table)); err != nil || now != table {
		return errTorn
	}
	return nil
}

// sIFMT and sIFSOCK tell a socket's inode.
const (
	sIFMT   = 0o170000
	sIFSOCK = 0o140000
)

// socketOf returns the socket behind an open file, if there is one.
func (w *socketWalk) socketOf(file x86.VirtAddr) (s openSocket, ok bool, err error) {
	o := &w.r.k.Offsets
	if w.r.read(&w.extra, file, o.OpenFile.Size) != nil {
		return s, false, errTorn
	}
	ops, inode, socket := w.extra.pointer(o.OpenFile.Ops), w.extra.pointer(o.OpenFile.Inode), w.extra.pointer(o.OpenFile.Private)
	if own, err := w.r.variable("socket_file_ops"); err == nil {
		if ops != own {
			return s, false, nil
		}
	} else {
		// A kernel that names no data. A file that stands for a socket's path
		// has such an inode, too, but nothing behind it.
		mode, err := w.r.as.ReadUint16(inode + x86.VirtAddr(max(o.SocketInode.Mode, 0)))
		if err != nil || mode&sIFMT != sIFSOCK || socket == 0 {
			return s, false, nil //nolint:nilerr // no socket
		}
	}
	back, err := w.r.as.ReadPointer(socket + x86.VirtAddr(o.Socket.File))
	if err != nil || back != file {
		return s, false, errTorn
	}
	s.socket = socket
	at := socket + x86.VirtAddr(o.Socket.Sock)
	sock, err := w.r.as.ReadPointer(at)
	if err != nil {
		return s, false, errTorn
	}
	if sock == 0 {
		return s, false, nil // it is being made, or being closed
	}
	if w.seen[sock] {
		return s, true, nil
	}
	if s.found, err = w.socket(sock); err != nil {
		return s, false, err
	}
	if now, err := w.r.as.ReadPointer(at); err != nil || now != sock {
		return s, false, errTorn
	}
	return s, true, nil
}
