package xenstore

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strconv"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/xen-hvi/hvi/engine/xen/abi"
)

// ErrDead says that the connection has ended; the error that wraps it says
// why. It does not come back.
var ErrDead = errors.New("the connection to xenstored has ended")

// errClosed is the reason after Close.
var errClosed = errors.New("closed by this process")

// ErrConflict says that a transaction was begun anew too often because others
// kept changing what it used.
var ErrConflict = errors.New("xenstore transaction kept conflicting with others")

const (
	// replyPatience is how long xenstored may take to answer. It serves one
	// request at a time, and all domains.
	replyPatience = 30 * time.Second
	// pendingEvents bounds the events kept for a slow receiver.
	pendingEvents = 4096
	// attempts is how often a transaction is tried.
	attempts = 64
)

// places are where xenstored listens, the first that is there is used.
var places = []string{"/run/xenstored/socket", "/var/run/xenstored/socket", "/dev/xen/xenbus"}

// Event is a change that a watch has seen.
type Event struct {
	// Path is the node that changed: the one watched or one below it.
	Path string
	// Token is the watch's.
	Token string
	// Lost says that there were more events than were kept, Path and Token
	// being empty: look at everything that is watched.
	Lost bool
}

// Client is a connection to xenstored. It is safe for concurrent use, also
// while a transaction is under way.
type Client struct {
	conn    io.ReadWriteCloser
	timeout time.Duration

	writeMu sync.Mutex
	out     []byte

	mu      sync.Mutex
	pending map[uint32]*request
	nextReq uint32
	queue   []Event
	queued  map[Event]bool
	err     error

	kick   chan struct{}
	events chan Event
	done   chan struct{}
	wg     sync.WaitGroup
}

// request waits for its answer.
type request struct {
	typ   uint32
	reply chan message
}

// Open connects to the machine's xenstored, by its socket or through the kernel. Where
// there is a socket and nobody listens, xenstored has died: then the kernel would take
// requests, too, and nobody answer them.
func Open() (*Client, error) {
	var errs []error
	for _, place := range places {
		c, err := Dial(place)
		if err == nil {
			return c, nil
		}
		errs = append(errs, err)
		if errors.Is(err, syscall.ECONNREFUSED) {
			break
		}
	}
	return nil, fmt.Errorf("xenstored is not reachable: %w", errors.Join(errs...))
}

// Dial connects to a socket, or opens a device that speaks the protocol.
func Dial(path string) (*Client, error) {
	st, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if st.Mode()&os.ModeSocket != 0 {
		conn, err := net.Dial("unix", path)
		if err != nil {
			return nil, err
		}
		return newClient(conn), nil
	}
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	return newClient(f), nil
}

func newClient(conn io.ReadWriteCloser) *Client {
	c := &Client{
		conn: conn, timeout: replyPatience,
		pending: map[uint32]*request{},
		queued:  map[Event]bool{},
		kick:    make(chan struct{}, 1),
		events:  make(chan Event),
		done:    make(chan struct{}),
	}
	c.wg.Add(2)
	go c.read()
	go c.deliver()
	return c
}

// Close ends the connection, and with it its watches and transactions. Calls
// under way fail. Closing again does nothing.
func (c *Client) Close() error {
	c.die(errClosed)
	c.wg.Wait()
	return nil
}

// Done returns a channel that is closed when the connection has ended.
func (c *Client) Done() <-chan struct{} { return c.done }

// Err returns why the connection has ended, an error that wraps ErrDead, or
// nil while it has not.
func (c *Client) Err() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.err
}

// die ends the connection for the first reason given.
func (c *Client) die(why error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err != nil {
		return
	}
	c.err = fmt.Errorf("%w: %w", ErrDead, why)
	_ = c.conn.Close()
	close(c.done)
}

// read takes messages from the connection until it ends.
func (c *Client) read() {
	defer c.wg.Done()
	for {
		m, err := readMessage(c.conn)
		if err != nil {
			if err == io.EOF {
				err = errors.New("xenstored hung up")
			}
			c.die(err)
			return
		}
		if m.typ == abi.XSWatchEvent {
			f := fields(m.payload)
			if len(f) < 2 {
				c.die(fmt.Errorf("a watch event without a token: %q", m.payload))
				return
			}
			c.enqueue(Event{Path: f[0], Token: f[1]})
			continue
		}
		c.mu.Lock()
		r := c.pending[m.req]
		delete(c.pending, m.req)
		c.mu.Unlock()
		if r == nil {
			c.die(fmt.Errorf("an answer to no request: type %d, number %d", m.typ, m.req))
			return
		}
		if m.typ != r.typ && m.typ != abi.XSError {
			c.die(fmt.Errorf("an answer of type %d to a request of type %d", m.typ, r.typ))
			return
		}
		r.reply <- m
	}
}

// enqueue keeps an event for the receiver. One that is waiting already is not
// kept twice: a watch says that something changed, not how often.
func (c *Client) enqueue(e Event) {
	c.mu.Lock()
	if len(c.queue) >= pendingEvents {
		c.queue = c.queue[:0]
		clear(c.queued)
		e = Event{Lost: true}
	}
	if !c.queued[e] && !c.queued[Event{Lost: true}] {
		c.queue = append(c.queue, e)
		c.queued[e] = true
	}
	c.mu.Unlock()
	select {
	case c.kick <- struct{}{}:
	default:
	}
}

// deliver hands events to the receiver, so that reading never waits for it.
func (c *Client) deliver() {
	defer c.wg.Done()
	defer close(c.events)
	for {
		c.mu.Lock()
		var e Event
		have := len(c.queue) > 0
		if have {
			e = c.queue[0]
			c.queue = c.queue[1:]
			delete(c.queued, e)
		}
		c.mu.Unlock()
		if !have {
			select {
			case <-c.kick:
				continue
			case <-c.done:
				return
			}
		}
		select {
		case c.events <- e:
		case <-c.done:
			return
		}
	}
}

// Events returns the channel on which all watches of the client report. It is
// closed when the connection ends. Events that nobody has received yet do not
// hold up requests; equal ones are merged.
func (c *Client) Events() <-chan Event { return c.events }

// call sends a request and waits for its answer.
func (c *Client) call(op, path string, typ, tx uint32, payload []byte) ([]byte, error) {
	if len(payload) > PayloadMax {
		return nil, fmt.Errorf("xenstore %s %s: request of %d bytes, more than the %d allowed", op, path, len(payload), PayloadMax)
	}
	r := &request{typ: typ, reply: make(chan message, 1)}
	c.mu.Lock()
	if c.err != nil {
		err := c.err
		c.mu.Unlock()
		return nil, fmt.Errorf("xenstore %s %s: %w", op, path, err)
	}
	for {
		c.nextReq++
		if _, taken := c.pending[c.nextReq]; !taken {
			break
		}
	}
	id := c.nextReq
	c.pending[id] = r
	c.mu.Unlock()

	c.writeMu.Lock()
	c.out = appendMessage(c.out[:0], message{typ: typ, req: id, tx: tx, payload: payload})
	_, err := c.conn.Write(c.out)
	c.writeMu.Unlock()
	if err != nil {
		c.die(err)
	}

	timer := time.NewTimer(c.timeout)
	defer timer.Stop()
	select {
	case m := <-r.reply:
		return c.answer(op, path, m)
	case <-timer.C:
		// An answer that comes later could be taken for another's.
		c.die(fmt.Errorf("no answer within %v", c.timeout))
	case <-c.done:
	}
	select {
	case m := <-r.reply: // it came just before the end
		return c.answer(op, path, m)
	default:
		return nil, fmt.Errorf("xenstore %s %s: %w", op, path, c.Err())
	}
}

func (c *Client) answer(op, path string, m message) ([]byte, error) {
	if m.typ == abi.XSError {
		return nil, newError(op, path, m.payload)
	}
	return m.payload, nil
}

// Watch registers a watch on a node and everything below it, or on
// IntroduceDomain or ReleaseDomain. It fires once at the beginning. The token
// comes back in its events and tells watches apart.
func (c *Client) Watch(path, token string) error {
	if err := checkWatch(path, token); err != nil {
		return err
	}
	_, err := c.call("watch", path, abi.XSWatch, 0, join(path, token))
	return err
}

// Unwatch takes a watch back. Events that are on their way still come.
func (c *Client) Unwatch(path, token string) error {
	if err := checkWatch(path, token); err != nil {
		return err
	}
	_, err := c.call("unwatch", path, abi.XSUnwatch, 0, join(path, token))
	return err
}

// DomainPath returns the root of a domain's own part of the store, whether the
// domain exists or not.
func (c *Client) DomainPath(dom uint16) (string, error) {
	id := strconv.Itoa(int(dom))
	b, err := c.call("get domain path", id, abi.XSGetDomainPath, 0, join(id))
	if err != nil {
		return "", err
	}
	f := fields(b)
	if len(f) == 0 {
		return "", fmt.Errorf("xenstore get domain path %s: empty answer", id)
	}
	return f[0], nil
}

// join returns strings that each end in NUL.
func join(parts ...string) []byte {
	var b []byte
	for _, p := range parts {
		b = append(append(b, p...), 0)
	}
	return b
}

// node operations, of a client or within a transaction.
type node struct {
	c  *Client
	tx uint32
}

// Read returns a node's value. It matches fs.ErrNotExist if there is none.
func (c *Client) Read(path string) (string, error) { return node{c, 0}.read(path) }

// Write sets a node's value, and makes the node and those above it if need be.
// Path and value together are limited to PayloadMax.
func (c *Client) Write(path, value string) error { return node{c, 0}.write(path, value) }

// Mkdir makes a node, and those above it if need be. One that is there is
// left as it is.
func (c *Client) Mkdir(path string) error { return node{c, 0}.mkdir(path) }

// Remove removes a node and everything below it. It matches fs.ErrNotExist
// only if the node above does not exist either.
func (c *Client) Remove(path string) error { return node{c, 0}.remove(path) }

// List returns the names of the nodes directly below a node, however many
// there are.
func (c *Client) List(path string) ([]string, error) { return node{c, 0}.list(path) }

// Exists reports whether a node exists.
func (c *Client) Exists(path string) (bool, error) { return node{c, 0}.exists(path) }

// Permissions returns a node's permissions. The first names its owner, and
// what those may do that are not listed.
func (c *Client) Permissions(path string) ([]Permission, error) { return node{c, 0}.perms(path) }

// SetPermissions sets a node's permissions, in the order Permissions returns.
func (c *Client) SetPermissions(path string, perms []Permission) error {
	return node{c, 0}.setPerms(path, perms)
}

// Tx is a transaction: it sees the store as it was at the beginning, and its
// changes happen at one time or not at all. It is valid only within the
// function it was passed to.
type Tx struct{ n node }

// Read is Client.Read within the transaction.
func (t *Tx) Read(path string) (string, error) { return t.n.read(path) }

// Write is Client.Write within the transaction.
func (t *Tx) Write(path, value string) error { return t.n.write(path, value) }

// Mkdir is Client.Mkdir within the transaction.
func (t *Tx) Mkdir(path string) error { return t.n.mkdir(path) }

// Remove is Client.Remove within the transaction.
func (t *Tx) Remove(path string) error { return t.n.remove(path) }

// List is Client.List within the transaction.
func (t *Tx) List(path string) ([]string, error) { return t.n.list(path) }

// Exists is Client.Exists within the transaction.
func (t *Tx) Exists(path string) (bool, error) { return t.n.exists(path) }

// SetPermissions is Client.SetPermissions within the transaction.
func (t *Tx) SetPermissions(path string, perms []Permission) error { return t.n.setPerms(path, perms) }

// Transaction runs f in a transaction. If f fails, nothing is changed and
// Transaction returns what f returned. If others changed meanwhile what f
// used, f runs again, so it must not do anything but use the transaction; it
// fails with ErrConflict if that does not end.
func (c *Client) Transaction(f func(tx *Tx) error) error {
	for i := range attempts {
		b, err := c.call("transaction start", "", abi.XSTransactionStart, 0, join(""))
		if err != nil {
			return err
		}
		id, err := strconv.ParseUint(string(trimNUL(b)), 10, 32)
		if err != nil || id == 0 {
			return fmt.Errorf("xenstore transaction start: answer %q", b)
		}
		ferr := f(&Tx{node{c, uint32(id)}})
		end := "T"
		if ferr != nil {
			end = "F"
		}
		_, err = c.call("transaction end", "", abi.XSTransactionEnd, uint32(id), join(end))
		switch {
		case ferr != nil && !errors.Is(ferr, unix.EAGAIN):
			return ferr
		case ferr == nil && err == nil:
			return nil
		case ferr == nil && !errors.Is(err, unix.EAGAIN):
			return err
		}
		// Those in conflict would meet again if they were equally quick.
		select {
		case <-time.After(time.Duration(min(i, 10)) * time.Millisecond):
		case <-c.done:
			return fmt.Errorf("xenstore transaction: %w", c.Err())
		}
	}
	return ErrConflict
}

func trimNUL(b []byte) []byte {
	for len(b) > 0 && b[len(b)-1] == 0 {
		b = b[:len(b)-1]
	}
	return b
}

func (n node) do(op, path string, typ uint32, payload []byte) ([]byte, error) {
	if err := checkPath(path); err != nil {
		return nil, err
	}
	return n.c.call(op, path, typ, n.tx, payload)
}

func (n node) read(path string) (string, error) {
	b, err := n.do("read", path, abi.XSRead, join(path))
	return string(b), err
}

func (n node) write(path, value string) error {
	_, err := n.do("write", path, abi.XSWrite, append(join(path), value...))
	return err
}

func (n node) mkdir(path string) error {
	_, err := n.do("mkdir", path, abi.XSMkdir, join(path))
	return err
}

func (n node) remove(path string) error {
	_, err := n.do("remove", path, abi.XSRm, join(path))
	return err
}

func (n node) exists(path string) (bool, error) {
	_, err := n.read(path)
	switch {
	case err == nil:
		return true, nil
	case errors.Is(err, unix.ENOENT):
		return false, nil
	}
	return false, err
}

func (n node) list(path string) ([]string, error) {
	b, err := n.do("list", path, abi.XSDirectory, join(path))
	if errors.Is(err, unix.E2BIG) {
		return n.listParts(path)
	}
	if err != nil {
		return nil, err
	}
	return fields(b), nil
}

// listParts lists a node whose list exceeds a message, part by part (Xen 4.9
// and later). A part begins with the node's generation; if that changes, the
// parts do not fit one another and the list is begun anew.
func (n node) listParts(path string) ([]string, error) {
	for range attempts {
		var names []string
		generation, off := "", 0
		for {
			b, err := n.do("list", path, abi.XSDirectoryPart, join(path, strconv.Itoa(off)))
			if err != nil {
				return nil, err
			}
			end := 0
			for end < len(b) && b[end] != 0 {
				end++
			}
			if end == len(b) {
				return nil, fmt.Errorf("xenstore list %s: answer %q", path, b)
			}
			if off > 0 && string(b[:end]) != generation {
				break // begin anew
			}
			generation = string(b[:end])
			part := b[end+1:]
			// An empty name ends the list.
			last := len(part) > 0 && part[len(part)-1] == 0 && (len(part) == 1 || part[len(part)-2] == 0)
			if last {
				part = part[:len(part)-1]
			}
			names = append(names, fields(part)...)
			if last {
				return names, nil
			}
			if len(part) == 0 {
				return nil, fmt.Errorf("xenstore list %s: an empty part at %d", path, off)
			}
			off += len(part)
		}
	}
	return nil, fmt.Errorf("xenstore list %s: %w", path, ErrConflict)
}

func (n node) perms(path string) ([]Permission, error) {
	b, err := n.do("get permissions", path, abi.XSGetPerms, join(path))
	if err != nil {
		return nil, err
	}
	var out []Permission
	for _, f := range fields(b) {
		p, err := parsePermission(f)
		if err != nil {
			return nil, fmt.Errorf("xenstore get permissions %s: %w", path, err)
		}
		out = append(out, p)
	}
	return out, nil
}

func (n node) setPerms(path string, perms []Permission) error {
	if len(perms) == 0 {
		return fmt.Errorf("xenstore set permissions %s: a node needs an owner", path)
	}
	parts := []string{path}
	for _, p := range perms {
		parts = append(parts, p.String())
	}
	_, err := n.do("set permissions", path, abi.XSSetPerms, join(parts...))
	return err
}
