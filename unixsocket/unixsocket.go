package unixsocket

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

// MaxPath is the longest path of a socket, in bytes: the room in struct
// sockaddr_un without the zero byte (linux/un.h), less what the name has more
// until the socket is ready.
const MaxPath = 107 - len(".0123456789")

// Reason is the kind of an [Error], for who can say what to do about it.
type Reason uint8

const (
	// Other is any reason but those below.
	Other Reason = iota
	// BadPath is a path that no socket can have.
	BadPath
	// OpenDirectory is a directory that everybody can write to.
	OpenDirectory
	// InUse is a socket that another process serves.
	InUse
	// Occupied is a file of another kind in its place.
	Occupied
	// Unknown is that it can't be told whether another process serves it.
	Unknown
	// NoRight is that it can't be given to the group.
	NoRight
)

// Error says why there is no socket at a path.
type Error struct {
	Reason Reason
	What   string
	Err    error // the cause, or nil
}

// Error is what went wrong and the cause, without the path, which the caller
// knows.
func (e *Error) Error() string {
	if e.Err == nil {
		return e.What
	}
	return e.What + ": " + e.Err.Error()
}

// Unwrap returns the cause.
func (e *Error) Unwrap() error { return e.Err }

// GroupID looks up a group's number.
func GroupID(name string) (id int, ok bool) {
	g, err := user.LookupGroup(name)
	if err != nil {
		return 0, false
	}
	id, err = strconv.Atoi(g.Gid)
	return id, err == nil
}

// Options adjusts Listen.
type Options struct {
	// Group is the group that may use the socket, -1 to leave it as it is.
	Group int
	// Lock keeps two processes that start together apart, by a lock on the file
	// of that name with ".lock" behind it, which stays.
	Lock bool
}

// Listener is a socket that is listened on. Close removes it.
type Listener struct {
	*net.UnixListener
	path string
	lock *os.File // nil without Options.Lock
	// info is the socket as it was made, so that Close removes no other.
	info os.FileInfo
	once sync.Once
	err  error
}

// Listen makes a socket at path, with mode 0660. A missing directory is made with
// mode 0755. The error is an [*Error].
func Listen(path string, opt Options) (_ *Listener, err error) {
	fail := func(reason Reason, what string, err error) (*Listener, error) {
		return nil, &Error{Reason: reason, What: what, Err: err}
	}
	if !filepath.IsAbs(path) || len(path) > MaxPath {
		return fail(BadPath, fmt.Sprintf("not an absolute path of at most %d bytes", MaxPath), nil)
	}
	dir := filepath.Dir(path)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return fail(Other, "its directory can't be made", err)
	}
	if fi, err := os.Stat(dir); err != nil {
		return fail(Other, "its directory can't be examined", err)
	} else if fi.Mode().Perm()&0o002 != 0 {
		return fail(OpenDirectory, "everybody can write to its directory", nil)
	}
	l := &Listener{path: path}
	if opt.Lock {
		if l.lock, err = takeLock(path + ".lock"); err != nil {
			return nil, err
		}
		defer func() {
			if err != nil {
				l.lock.Close()
			}
		}()
	}
	if err := vacant(path); err != nil {
		return nil, err
	}

	// Bound under another name, of the same length for each process.
	tmp := fmt.Sprintf("%s.%010d", path, os.Getpid())
	if err := os.Remove(tmp); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fail(Other, "an old name can't be removed", err)
	}
	l.UnixListener, err = net.ListenUnix("unix", &net.UnixAddr{Name: tmp, Net: "unix"})
	if err != nil {
		return fail(Other, "it can't be made", err)
	}
	l.SetUnlinkOnClose(false) // it would remove the first name
	defer func() {
		if err != nil {
			l.UnixListener.Close()
			os.Remove(tmp)
		}
	}()
	if opt.Group >= 0 {
		if err := os.Chown(tmp, -1, opt.Group); err != nil {
			return fail(NoRight, "it can't be given to its group", err)
		}
	}
	if err := os.Chmod(tmp, 0o660); err != nil {
		return fail(Other, "its mode can't be set", err)
	}
	if l.info, err = os.Lstat(tmp); err != nil {
		return fail(Other, "it can't be examined", err)
	}
	if err := os.Rename(tmp, path); err != nil {
		return fail(Other, "it can't be put in its place", err)
	}
	return l, nil
}

// takeLock takes the lock that tells a process that lives from a socket that was
// left behind.
func takeLock(path string) (*os.File, error) {
	lock, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|syscall.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, &Error{What: "its lock can't be made", Err: err}
	}
	if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		lock.Close()
		if errors.Is(err, syscall.EWOULDBLOCK) {
			return nil, &Error{Reason: InUse, What: "another process serves it"}
		}
		return nil, &Error{What: "its lock can't be taken", Err: err}
	}
	return lock, nil
}

// vacant looks whether there is nothing at path but, maybe, a socket that nobody
// serves.
func vacant(path string) error {
	fi, err := os.Lstat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return &Error{What: "it can't be examined", Err: err}
	case fi.Mode().Type() != fs.ModeSocket:
		return &Error{Reason: Occupied, What: "there is a file of that name that is no socket"}
	}
	// Somebody who takes no lock may listen there.
	c, err := net.DialTimeout("unix", path, time.Second)
	switch {
	case err == nil:
		c.Close()
		return &Error{Reason: InUse, What: "another process serves it"}
	case errors.Is(err, syscall.ECONNREFUSED), errors.Is(err, fs.ErrNotExist):
		return nil
	default:
		return &Error{Reason: Unknown, What: "it can't be told whether another process serves it", Err: err}
	}
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
		if l.lock != nil {
			// The lock's file stays: to remove it would let two others hold
			// locks on two files of one name.
			l.err = errors.Join(l.err, l.lock.Close())
		}
	})
	return l.err
}
