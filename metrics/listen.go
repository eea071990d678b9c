package metrics

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"github.com/xen-hvi/hvi/unixsocket"
)

// Group is the group whose members may read the metrics over a unix socket.
const Group = "hvi"

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
		case len(path) > unixsocket.MaxPath:
			return bad(fmt.Sprintf("the socket's path is longer than %d bytes", unixsocket.MaxPath), "choose another")
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

// groupID looks up the group that may read, -1 where there is none.
func groupID() int {
	if id, ok := unixsocket.GroupID(Group); ok {
		return id
	}
	return -1
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

// openUnix makes a socket of mode 0660, for gid where that is not -1.
func openUnix(listen, path string, gid int) (net.Listener, error) {
	l, err := unixsocket.Listen(path, unixsocket.Options{Group: gid})
	if err == nil {
		return l, nil
	}
	e := &ListenError{Listen: listen, What: err.Error()}
	var why *unixsocket.Error
	if !errors.As(err, &why) {
		return nil, e
	}
	e.What, e.Err = why.What, why.Err
	switch why.Reason {
	case unixsocket.OpenDirectory:
		e.Fix = "choose one like /run/hvi"
	case unixsocket.InUse:
		e.Fix, e.Err = "choose another path", ErrInUse
	case unixsocket.Occupied:
		e.Fix = "remove it or choose another path"
	case unixsocket.NoRight:
		e.Fix = "run hvid as root"
	}
	return nil, e
}
