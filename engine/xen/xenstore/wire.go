package xenstore

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/xen-hvi/hvi/engine/xen/abi"
)

// headerSize is the size of struct xsd_sockmsg.
const headerSize = 16

// PayloadMax is the size of the largest message without its header, bytes.
const PayloadMax = abi.XenstorePayloadMax

// message is one message of the wire protocol, in either direction.
type message struct {
	typ     uint32
	req, tx uint32
	payload []byte
}

// readMessage reads one message. It never reads more than its header
// announces and refuses one that is larger than the protocol allows.
func readMessage(r io.Reader) (message, error) {
	var h [headerSize]byte
	if _, err := io.ReadFull(r, h[:]); err != nil {
		return message{}, err
	}
	m := message{
		typ: binary.LittleEndian.Uint32(h[0:]),
		req: binary.LittleEndian.Uint32(h[4:]),
		tx:  binary.LittleEndian.Uint32(h[8:]),
	}
	n := binary.LittleEndian.Uint32(h[12:])
	if n > PayloadMax {
		return message{}, fmt.Errorf("message of %d bytes, more than the %d allowed", n, PayloadMax)
	}
	m.payload = make([]byte, n)
	if _, err := io.ReadFull(r, m.payload); err != nil {
		if err == io.EOF {
			err = io.ErrUnexpectedEOF
		}
		return message{}, err
	}
	return m, nil
}

// appendMessage appends the message's bytes to b.
func appendMessage(b []byte, m message) []byte {
	b = binary.LittleEndian.AppendUint32(b, m.typ)
	b = binary.LittleEndian.AppendUint32(b, m.req)
	b = binary.LittleEndian.AppendUint32(b, m.tx)
	b = binary.LittleEndian.AppendUint32(b, uint32(len(m.payload)))
	return append(b, m.payload...)
}

// fields splits a payload of strings that each end in NUL. One that lacks the
// last NUL is taken as if it had it.
func fields(payload []byte) []string {
	if len(payload) == 0 {
		return nil
	}
	return strings.Split(string(bytes.TrimSuffix(payload, []byte{0})), "\x00")
}

// errnoNames are the errors of public/io/xs_wire.h and their like.
var errnoNames = map[string]syscall.Errno{
	"EINVAL": unix.EINVAL, "EACCES": unix.EACCES, "EEXIST": unix.EEXIST, "EISDIR": unix.EISDIR,
	"ENOENT": unix.ENOENT, "ENOMEM": unix.ENOMEM, "ENOSPC": unix.ENOSPC, "EIO": unix.EIO,
	"ENOTEMPTY": unix.ENOTEMPTY, "ENOSYS": unix.ENOSYS, "EROFS": unix.EROFS, "EBUSY": unix.EBUSY,
	"EAGAIN": unix.EAGAIN, "EISCONN": unix.EISCONN, "E2BIG": unix.E2BIG, "EPERM": unix.EPERM,
}

// Error is a request that xenstored refused. It unwraps to the errno, so
// errors.Is(err, fs.ErrNotExist) finds a missing node.
type Error struct {
	// Op is the request, as in "read".
	Op string
	// Path is the node it was about, or what else it named.
	Path string
	// Code is the daemon's own name of the error, as in "ENOENT".
	Code string
	// Errno is the same as a number, EIO for a name that is not known.
	Errno syscall.Errno
}

// Error names the request, the node and the error.
func (e *Error) Error() string {
	if e.Path == "" {
		return fmt.Sprintf("xenstore %s: %s", e.Op, e.Code)
	}
	return fmt.Sprintf("xenstore %s %s: %s", e.Op, e.Path, e.Code)
}

// Unwrap returns the errno.
func (e *Error) Unwrap() error { return e.Errno }

func newError(op, path string, payload []byte) *Error {
	code := strings.TrimRight(string(payload), "\x00")
	errno, ok := errnoNames[code]
	if !ok {
		errno = unix.EIO
	}
	return &Error{Op: op, Path: path, Code: code, Errno: errno}
}

// Names of watches that no node has.
const (
	// IntroduceDomain fires when a toolstack has built a domain and made it
	// known to the store. From 4.22 on the event's path may have the
	// domain's number appended; until then it does not say which.
	IntroduceDomain = "@introduceDomain"
	// ReleaseDomain fires when a domain shuts down, and again when it is
	// gone.
	ReleaseDomain = "@releaseDomain"
)

// checkPath refuses what xenstored would: it hangs up on some of it.
func checkPath(path string) error {
	switch {
	case path == "":
		return fmt.Errorf("xenstore path is empty")
	case path[0] != '/':
		return fmt.Errorf("xenstore path %q is not absolute", path)
	case len(path) > abi.XenstoreAbsPathMax:
		return fmt.Errorf("xenstore path of %d bytes, more than the %d allowed", len(path), abi.XenstoreAbsPathMax)
	case path != "/" && path[len(path)-1] == '/':
		return fmt.Errorf("xenstore path %q ends in a slash", path)
	case strings.Contains(path, "//"):
		return fmt.Errorf("xenstore path %q has an empty part", path)
	}
	for i := range len(path) {
		c := path[i]
		if c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || strings.IndexByte("-/_@", c) >= 0 {
			continue
		}
		return fmt.Errorf("xenstore path %q has the character %s, which is not allowed", path, strconv.QuoteRune(rune(c)))
	}
	return nil
}

// checkWatch refuses what cannot be watched.
func checkWatch(path, token string) error {
	if strings.HasPrefix(path, "@") {
		if err := checkPath("/" + path); err != nil {
			return err
		}
	} else if err := checkPath(path); err != nil {
		return err
	}
	if strings.IndexByte(token, 0) >= 0 {
		return fmt.Errorf("xenstore token %q has a NUL", token)
	}
	return nil
}

// Permission says what a domain may do with a node.
type Permission struct {
	Domain uint16
	Read   bool
	Write  bool
}

// String returns the permission as the protocol writes it, as in "r5".
func (p Permission) String() string {
	c := "n"
	switch {
	case p.Read && p.Write:
		c = "b"
	case p.Read:
		c = "r"
	case p.Write:
		c = "w"
	}
	return c + strconv.Itoa(int(p.Domain))
}

// parsePermission is String's inverse.
func parsePermission(s string) (Permission, error) {
	if s != "" {
		n, err := strconv.ParseUint(s[1:], 10, 16)
		if i := strings.IndexByte("nrwb", s[0]); err == nil && i >= 0 {
			return Permission{Domain: uint16(n), Read: i&1 != 0, Write: i&2 != 0}, nil
		}
	}
	return Permission{}, fmt.Errorf("%q is not a xenstore permission", s)
}
