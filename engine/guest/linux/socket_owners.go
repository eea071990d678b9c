package linux

import (
	"github.com/xen-hvi/hvi/engine/guest/report"
	"github.com/xen-hvi/hvi/engine/printable"
	"github.com/xen-hvi/hvi/engine/x86"
)

// openSocket is a socket in a process's table of open files.
type openSocket struct {
	socket x86.VirtAddr // its struct socket
	fd     int
	// found is the socket if it is in no table; otherwise it has no address.
	found foundSocket
}

// processes finds out who has the sockets open, and sockets that are in no
// table.
func (w *socketWalk) processes() error {
	o := &w.r.k.Offsets
	if err := need("socket.sk", o.Socket.Sock, "socket.file", o.Socket.File); err != nil {
		return err
	}
	isSocket, err := w.socketTest()
	if err != nil {
		return err
	}
	var open []openSocket
	files := fileWalk{r: w.r, budget: &w.budget}
	return files.processes(func() { open = open[:0] },
		func(f openFile) error {
			if !isSocket(f) {
				return nil
			}
			s, ok, err := w.socketOf(f)
			if err == nil && ok {
				open = append(open, s)
			}
			return err
		},
		func(t *Task) { w.own(t, open) })
}

// own notes that a process has sockets open.
func (w *socketWalk) own(t *Task, open []openSocket) {
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
}

// What of an inode's mode tells a socket.
const (
	modeType   = 0o170000
	modeSocket = 0o140000
)

// socketTest returns how to tell a socket among open files: by its operations,
// or by its inode where the kernel names no data. A file that stands for the
// path of a socket has such an inode, too, but nothing behind it.
func (w *socketWalk) socketTest() (func(openFile) bool, error) {
	if own, err := w.r.variable("socket_file_ops"); err == nil {
		return func(f openFile) bool { return f.ops == own }, nil
	}
	off := w.r.k.Offsets.SocketInode.Mode
	if err := need("inode.i_mode", off); err != nil {
		return nil, err
	}
	return func(f openFile) bool {
		mode, err := w.r.as.ReadUint16(f.inode + x86.VirtAddr(off))
		return err == nil && mode&modeType == modeSocket && f.private != 0
	}, nil
}

// socketOf returns the socket behind an open file, if there is one already.
func (w *socketWalk) socketOf(f openFile) (s openSocket, ok bool, err error) {
	o := &w.r.k.Offsets
	back, err := w.r.as.ReadPointer(f.private + x86.VirtAddr(o.Socket.File))
	if err != nil || back != f.at {
		return s, false, errTorn
	}
	s = openSocket{socket: f.private, fd: f.fd}
	at := s.socket + x86.VirtAddr(o.Socket.Sock)
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
