package libvirt

import (
	"encoding/binary"
	"fmt"
	"net"
	"os"
	"sync"
	"syscall"
)

// conn is the connection to a daemon. It watches the bytes that come in, because
// the library above believes every length it is told, and it knows when it has
// ended, which the library does not tell reliably.
type conn struct {
	net.Conn
	once sync.Once
	// done is closed when nothing can be read any more; why is set before.
	done chan struct{}
	why  error

	// head collects the length of the next message; left is what remains of
	// this one.
	head []byte
	left int
}

// Bounds of a message, from libvirt's virnetprotocol.x: its length includes the
// header of 28 bytes.
const (
	minMessage = 28
	maxMessage = 32 << 20
)

func newConn(c net.Conn) *conn { return &conn{Conn: c, done: make(chan struct{})} }

// Read implements [net.Conn] and fails for a message of impossible length.
func (c *conn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	if n > 0 {
		if bad := c.check(p[:n]); bad != nil {
			c.end(bad)
			return 0, bad
		}
	}
	if err != nil {
		c.end(err)
	}
	return n, err
}

// check follows the messages in b.
func (c *conn) check(b []byte) error {
	for len(b) > 0 {
		if c.left > 0 {
			n := min(c.left, len(b))
			c.left -= n
			b = b[n:]
			continue
		}
		n := min(4-len(c.head), len(b))
		c.head = append(c.head, b[:n]...)
		b = b[n:]
		if len(c.head) < 4 {
			return nil
		}
		length := binary.BigEndian.Uint32(c.head)
		if length < minMessage || length > maxMessage {
			return fmt.Errorf("a message of %d bytes, which no libvirt sends", length)
		}
		c.head, c.left = c.head[:0], int(length)-4
	}
	return nil
}

// end notes why nothing more will come.
func (c *conn) end(why error) {
	c.once.Do(func() {
		c.why = why
		c.Conn.Close()
		close(c.done)
	})
}

// Close implements [net.Conn].
func (c *conn) Close() error {
	c.end(net.ErrClosed)
	return nil
}

// Dial implements the library's dialer: the connection is made already.
func (c *conn) Dial() (net.Conn, error) { return c, nil }

// checkPeer checks whose process is at the other end.
func checkPeer(c *net.UnixConn) error {
	raw, err := c.SyscallConn()
	if err != nil {
		return err
	}
	var cred *syscall.Ucred
	var credErr error
	if err := raw.Control(func(fd uintptr) {
		cred, credErr = syscall.GetsockoptUcred(int(fd), syscall.SOL_SOCKET, syscall.SO_PEERCRED)
	}); err != nil {
		return err
	}
	if credErr != nil {
		return credErr
	}
	if cred.Uid != 0 && int(cred.Uid) != os.Geteuid() {
		return fmt.Errorf("it is served by user %d, not by root", cred.Uid)
	}
	return nil
}
