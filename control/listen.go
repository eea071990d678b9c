package control

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"sync"
	"syscall"
	"time"
)

// ErrSocketInUse matches a ListenError where another process serves the
// socket.
var ErrSocketInUse = errors.New("the socket is in use")

// maxSocketPath is the room for a path in struct sockaddr_un, without the zero
// byte (linux/un.h).
const maxSocketPath = 107

// ListenError says why hvid can't listen and what to do.
type ListenError struct {
	Path string
	What string
	Fix  string
	Err  error
}

// Error names the socket, what went wrong and what to do.
func (e *ListenError) Error() string {
	s := "control socket " + e.Path + ": " + e.What
	if e.Err != nil && !errors.Is(e.Err, ErrSocketInUse) {
		s += ": " + e.Err.Error()
	}
	if e.Fix != "" {
		s += "; " + e.Fix
	}
	return s
}

// Unwrap returns the cause.
func (e *ListenError) Unwrap() error { return e.Err }

// Listener is hvid's control socket. Close removes it.
type Listener struct {
	*net.UnixListener
	path string
	lock *os.File
	// info is the socket as it was made, so that Close removes no other.
	info os.FileInfo
	once sync.Once
	err  error
}

// Listen makes the control socket at path, with mode 0660 and the group hvi
// where that exists. A missing directory is made with mode 0755. A socket that
// nobody serves is replaced; for one that is served the error matches
// ErrSocketInUse, and a file of another kind is left alone. The new socket
// appears under its name only when it is ready, with its final rights.
func Listen(path string) (*Listener, error) {
	gid := -1
	if g, ok := groupID(); ok {
		gid = g
	}
	return listen(path, gid)
}

// groupID looks up the group that may read.
func groupID() (int, bool) {
	g, err := user.LookupGroup(Group)
	if err != nil {
		return 0, false
	}
	id, err := strconv.Atoi(g.Gid)
	return id, err == nil
}

func listen(path string, gid int) (_ *Listener, err error) {
	fail := func(what, fix string, err error) (*Listener, error) {
		return nil, &ListenError{Path: path, What: what, Fix: fix, Err: err}
	}
	// The name that is bound first is longer by its suffix.
	tmp := path + "." + strconv.Itoa(os.Getpid())
	if !filepath.IsAbs(path) || len(tmp) > maxSocketPath {
		return fail(fmt.Sprintf("not an absolute path of at most %d bytes", maxSocketPath-len(tmp)+len(path)), "choose another", nil)
	}
	dir := filepath.Dir(path)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return fail("its directory can't be made", "", err)
	}
	if fi, err := os.Stat(dir); err != nil {
		return fail("its directory can't be examined", "", err)
	} else if fi.Mode().Perm()&0o002 != 0 {
		return fail("everybody can write to its directory", "chmod o-w "+dir, nil)
	}

	// The lock tells a hvid that lives from a socket that was left behind,
	// and keeps two that start together apart.
	lock, err := os.OpenFile(path+".lock", os.O_RDWR|os.O_CREATE|syscall.O_NOFOLLOW, 0o600)
	if err != nil {
		return fail("its lock can't be made", "", err)
	}
	defer func() {
		if err != nil {
			lock.Close()
		}
	}()
	const stop = "is another hvid running? stop it first: systemctl stop hvid"
	if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		if errors.Is(err, syscall.EWOULDBLOCK) {
			return fail("another process serves it", stop, ErrSocketInUse)
		}
		return fail("its lock can't be taken", "", err)
	}
	fi, err := os.Lstat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		return fail("it can't be examined", "", err)
	case fi.Mode().Type() != fs.ModeSocket:
		return fail("there is a file of that name that is no socket", "remove it or choose another path", nil)
	default:
		// Somebody who does not take the lock may listen there.
		c, err := net.DialTimeout("unix", path, time.Second)
		if err == nil {
			c.Close()
			return fail("another process serves it", stop, ErrSocketInUse)
		}
		if !errors.Is(err, syscall.ECONNREFUSED) {
			return fail("it can't be told whether another process serves it", stop, err)
		}
	}

	if err := os.Remove(tmp); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fail("an old name can't be removed", "", err)
	}
	ul, err := net.ListenUnix("unix", &net.UnixAddr{Name: tmp, Net: "unix"})
	if err != nil {
		return fail("it can't be made", "", err)
	}
	ul.SetUnlinkOnClose(false) // it would remove the first name
	defer func() {
		if err != nil {
			ul.Close()
			os.Remove(tmp)
		}
	}()
	if gid >= 0 {
		if err := os.Chown(tmp, -1, gid); err != nil {
			return fail("it can't be given to the group "+Group, "run hvid as root", err)
		}
	}
	if err := os.Chmod(tmp, 0o660); err != nil {
		return fail("its mode can't be set", "", err)
	}
	info, err := os.Lstat(tmp)
	if err != nil {
		return fail("it can't be examined", "", err)
	}
	if err := os.Rename(tmp, path); err != nil {
		return fail("it can't be put in its place", "", err)
	}
	return &Listener{UnixListener: ul, path: path, lock: lock, info: info}, nil
}

// Close stops listening, removes the socket if it is still this one, and lets
// another Listen succeed. Only the first call does anything; all return its
// result.
func (l *Listener) Close() error {
	l.once.Do(func() {
		l.err = l.UnixListener.Close()
		if fi, err := os.Lstat(l.path); err == nil && os.SameFile(fi, l.info) {
			l.err = errors.Join(l.err, os.Remove(l.path))
		}
		// The lock's file stays: to remove it would let two others hold
		// locks on two files of one name.
		l.err = errors.Join(l.err, l.lock.Close())
	})
	return l.err
}
