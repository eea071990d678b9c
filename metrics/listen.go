package metrics

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// Group is the group whose members may read the metrics over a unix socket.
const Group = "hvi"

// maxSocketPath is the room for a path in struct sockaddr_un, without the zero
// byte (linux/un.h).
const maxSocketPath = 107

// ErrInUse matches a ListenError where another process serves the address.
var ErrInUse = errors.New("the address is in use")

// ListenError says why the metrics can't be served at an address and what to do.
type ListenError struct {
	Listen string // as it was written
	What   string
	Fix    string
	Err    error
}

// Error names the address, what went wrong and what to do.
func (e *ListenError) Error() string {
	s := "metrics: listen on " + strconv.Quote(e.Listen) + ": " + e.What
	if e.Err != nil && !errors.Is(e.Err, ErrInUse) {
		s += ": " + e.Err.Error()
	}
	if e.Fix != "" {
		s += "; " + e.Fix
	}
	return s
}

// Unwrap returns the cause.
func (e *ListenError) Unwrap() error { return e.Err }

// address is a place to listen at.
type address struct {
	unix string         // the socket's path, or
	tcp  netip.AddrPort // a loopback address
}

// CheckListen reports whether listen is an address that Serve takes: "unix:"
// and an absolute path, or the number of a loopback address and a port, such as
// "127.0.0.1:9617" or "[::1]:9617". The error is a *ListenError.
func CheckListen(listen string) error {
	_, err := parseListen(listen)
	return err
}

func parseListen(listen string) (address, error) {
	bad := func(what, fix string) (address, error) {
		return address{}, &ListenError{Listen: listen, What: what, Fix: fix}
	}
	const example = `write "unix:/run/hvi/metrics.sock" or "127.0.0.1:9617"`
	if path, ok := strings.CutPrefix(listen, "unix:"); ok {
		switch {
		case !filepath.IsAbs(path) || filepath.Clean(path) != path || strings.ContainsRune(path, 0):
			return bad("the socket's path is not an absolute, plain one", example)
		case len(tempName(path)) > maxSocketPath:
			return bad(fmt.Sprintf("the socket's path is longer than %d bytes", maxSocketPath-len(tempName(path))+len(path)), "choose another")
		}
		return address{unix: path}, nil
	}
	ap, err := netip.ParseAddrPort(listen)
	switch {
	case err != nil:
		// A name could mean any address, and another one tomorrow.
		return bad("neither unix:PATH nor a loopback address and a port, in numbers", example)
	case !ap.Addr().Unmap().IsLoopback():
		return bad("hvid serves metrics on loopback only: who can reach them learns the name of every guest", example+", and put a proxy with authentication before it")
	}
	return address{tcp: ap}, nil
}

// tempName is what a socket is called before it is ready. It is of the same
// length for each process.
func tempName(path string) string { return fmt.Sprintf("%s.%010d", path, os.Getpid()) }

// groupID looks up the group that may read, -1 where there is none.
func groupID() int {
	g, err := user.LookupGroup(Group)
	if err != nil {
		return -1
	}
	id, err := strconv.Atoi(g.Gid)
	if err != nil {
		return -1
	}
	return id
}

// open listens at a. The listener's Close removes a unix socket.
func (a address) open(listen string, gid int) (net.Listener, error) {
	if a.unix != "" {
		return openUnix(listen, a.unix, gid)
	}
	l, err := net.ListenTCP("tcp", net.TCPAddrFromAddrPort(a.tcp))
	if errors.Is(err, syscall.EADDRINUSE) {
		return nil, &ListenError{Listen: listen, What: "another program listens there", Fix: "choose another port", Err: ErrInUse}
	}
	if err != nil {
		return nil, &ListenError{Listen: listen, What: "it can't be listened on", Err: err}
	}
	return l, nil
}

// openUnix makes a socket of mode 0660, for gid where that is not -1. It
// appears under its name only when it has its final rights. A socket that
// nobody serves is replaced; a file of another kind is left alone.
func openUnix(listen, path string, gid int) (_ net.Listener, err error) {
	fail := func(what, fix string, err error) (net.Listener, error) {
		return nil, &ListenError{Listen: listen, What: what, Fix: fix, Err: err}
	}
	dir := filepath.Dir(path)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return fail("its directory can't be made", "", err)
	}
	if fi, err := os.Stat(dir); err != nil {
		return fail("its directory can't be examined", "", err)
	} else if fi.Mode().Perm()&0o002 != 0 {
		return fail("everybody can write to its directory", "choose one like /run/hvi", nil)
	}
	switch fi, err := os.Lstat(path); {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		return fail("it can't be examined", "", err)
	case fi.Mode().Type() != fs.ModeSocket:
		return fail("there is a file of that name that is no socket", "remove it or choose another path", nil)
	default:
		c, err := net.DialTimeout("unix", path, time.Second)
		if err == nil {
			c.Close()
			return fail("another process serves it", "choose another path", ErrInUse)
		}
		if !errors.Is(err, syscall.ECONNREFUSED) && !errors.Is(err, fs.ErrNotExist) {
			return fail("it can't be told whether another process serves it", "", err)
		}
	}
	tmp := tempName(path)
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
	return &unixListener{UnixListener: ul, path: path, info: info}, nil
}

// unixListener removes its socket when it is closed.
type unixListener struct {
	*net.UnixListener
	path string
	// info is the socket as it was made, so that Close removes no other.
	info os.FileInfo
}

// Close stops listening and removes the socket if it is still this one.
func (l *unixListener) Close() error {
	err := l.UnixListener.Close()
	if fi, e := os.Lstat(l.path); e == nil && os.SameFile(fi, l.info) {
		err = errors.Join(err, os.Remove(l.path))
	}
	return err
}
