package xenstore

import (
	"errors"
	"sync"
	"time"
)

// redialAfter is how long to wait after an attempt to connect has failed.
const redialAfter = time.Second

// LastingOptions adjusts a [Lasting]. The zero value is usable.
type LastingOptions struct {
	// Dial connects; nil is [Open].
	Dial func() (*Client, error)
	// Lost is told when a connection has ended, and why; Back when there is another one
	// on which everything is watched again. They are called from one goroutine, and must
	// return soon. Either may be nil.
	Lost func(why error)
	Back func()
	// RedialAfter is how long to wait after an attempt to connect has failed; 0 is one
	// second.
	RedialAfter time.Duration
}

// Lasting is a connection to xenstored that is made anew when it ends: xenstored was
// restarted, or did not answer. In between calls fail with ErrDead. Its watches are
// registered again, and one event that says Lost follows, since what happened meanwhile
// was seen by nobody. It is safe for concurrent use.
type Lasting struct {
	opt    LastingOptions
	events chan Event
	quit   chan struct{}
	ended  chan struct{}

	mu      sync.Mutex
	c, next *Client // next is one on which things are being watched, nil without
	watches map[watch]bool
	closed  bool
}

type watch struct{ path, token string }

// OpenLasting connects. The first connection must come about, or it fails.
func OpenLasting(opt LastingOptions) (*Lasting, error) {
	if opt.Dial == nil {
		opt.Dial = Open
	}
	if opt.RedialAfter <= 0 {
		opt.RedialAfter = redialAfter
	}
	c, err := opt.Dial()
	if err != nil {
		return nil, err
	}
	l := &Lasting{
		opt: opt, events: make(chan Event), quit: make(chan struct{}), ended: make(chan struct{}),
		c: c, watches: make(map[watch]bool),
	}
	go l.run(c)
	return l, nil
}

// run passes events on and sees to it that there is a connection.
func (l *Lasting) run(c *Client) {
	defer close(l.ended)
	defer close(l.events)
	for {
		l.forward(c)
		select {
		case <-l.quit:
			return
		default:
		}
		if l.opt.Lost != nil {
			l.opt.Lost(c.Err())
		}
		if c = l.redial(); c == nil {
			return
		}
		if l.opt.Back != nil {
			l.opt.Back()
		}
		select {
		case l.events <- Event{Lost: true}:
		case <-l.quit:
			return
		}
	}
}

// forward passes on a connection's events until it ends.
func (l *Lasting) forward(c *Client) {
	for e := range c.Events() {
		select {
		case l.events <- e:
		case <-l.quit:
			return
		}
	}
}

// redial returns a connection on which everything is watched again, or nil when it is
// closed.
func (l *Lasting) redial() *Client {
	for {
		if c, err := l.opt.Dial(); err == nil {
			if l.adopt(c) == nil {
				return c
			}
			_ = c.Close() // the error is that of a connection nobody uses
		}
		select {
		case <-time.After(l.opt.RedialAfter):
		case <-l.quit:
			return nil
		}
	}
}

// adopt registers all watches on a connection and makes it the current one. It asks
// unlocked: where there is no xenstored the kernel's device takes requests all the same,
// and who wants to read meanwhile is to be told that there is no connection.
func (l *Lasting) adopt(c *Client) error {
	defer func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		l.next = nil
	}()
	registered := map[watch]bool{}
	for {
		next, more, err := l.unregistered(c, registered)
		if err != nil {
			return err
		}
		if !more {
			break
		}
		if err := c.Watch(next.path, next.token); err != nil {
			return err
		}
		registered[next] = true
	}
	// What was to be watched when it was registered, and is not any more.
	for w := range registered {
		if err := c.Unwatch(w.path, w.token); err != nil {
			return nil // the connection has ended, which its events tell
		}
	}
	return nil
}

// unregistered returns a watch that is not among those registered on a connection. If
// there is none, the connection is the current one from then on, and those registered
// are the ones that nobody wants.
func (l *Lasting) unregistered(c *Client, registered map[watch]bool) (next watch, more bool, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return watch{}, false, errClosed
	}
	l.next = c
	for w := range l.watches {
		if !registered[w] {
			return w, true, nil
		}
	}
	l.c = c
	for w := range l.watches {
		delete(registered, w)
	}
	return watch{}, false, nil
}

func (l *Lasting) current() *Client {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.c
}

// Read is [Client.Read] on the connection there is.
func (l *Lasting) Read(path string) (string, error) { return l.current().Read(path) }

// Watch is [Client.Watch]. What it has registered is registered again on each
// connection, until Unwatch.
func (l *Lasting) Watch(path, token string) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if err := l.c.Watch(path, token); err != nil {
		return err
	}
	l.watches[watch{path, token}] = true
	return nil
}

// Unwatch is [Client.Unwatch]. It is no error where there is no connection now: the
// watch went with it, and is not registered again.
func (l *Lasting) Unwatch(path, token string) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.watches, watch{path, token})
	if err := l.c.Unwatch(path, token); err != nil && !errors.Is(err, ErrDead) {
		return err
	}
	return nil
}

// Events returns the channel on which all watches report, whatever the connection. It is
// closed by Close.
func (l *Lasting) Events() <-chan Event { return l.events }

// Close ends it. Closing again does nothing.
func (l *Lasting) Close() error {
	l.mu.Lock()
	if !l.closed {
		l.closed = true
		close(l.quit)
	}
	c, next := l.c, l.next
	l.mu.Unlock()
	err := c.Close()
	if next != nil {
		err = errors.Join(err, next.Close()) // so that nobody waits for its answer
	}
	<-l.ended
	return err
}
