package control

import (
	"errors"

	"github.com/xen-hvi/hvi/unixsocket"
)

// ErrSocketInUse matches a ListenError where another process serves the
// socket.
var ErrSocketInUse = errors.New("the socket is in use")

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
type Listener = unixsocket.Listener

// Listen makes the control socket at path, with mode 0660 and the group hvi
// where that exists. A missing directory is made with mode 0755. A socket that
// nobody serves is replaced; for one that is served the error matches
// ErrSocketInUse, and a file of another kind is left alone. The new socket
// appears under its name only when it is ready, with its final rights.
func Listen(path string) (*Listener, error) {
	gid := -1
	if g, ok := unixsocket.GroupID(Group); ok {
		gid = g
	}
	return listen(path, gid)
}

func listen(path string, gid int) (*Listener, error) {
	// The lock tells a hvid that lives from a socket that was left behind.
	l, err := unixsocket.Listen(path, unixsocket.Options{Group: gid, Lock: true})
	if err == nil {
		return l, nil
	}
	e := &ListenError{Path: path, What: err.Error()}
	var why *unixsocket.Error
	if !errors.As(err, &why) {
		return nil, e
	}
	e.What, e.Err = why.What, why.Err
	switch why.Reason {
	case unixsocket.BadPath:
		e.Fix = "choose another"
	case unixsocket.OpenDirectory:
		e.Fix = "chmod o-w its directory"
	case unixsocket.InUse:
		e.Fix, e.Err = stopOther, ErrSocketInUse
	case unixsocket.Unknown:
		e.Fix = stopOther
	case unixsocket.Occupied:
		e.Fix = "remove it or choose another path"
	case unixsocket.NoRight:
		e.Fix = "run hvid as root"
	}
	return nil, e
}

const stopOther = "is another hvid running? stop it first: systemctl stop hvid"
