// Package tick does something again and again, at little cost.
//
// A timer of Go's own wakes three or four threads each time: the one that waits for it,
// which goes back to sleep for the last millisecond; one that is to help; and the one that
// watches over all. Ten guests that do nothing cost less than that. A timer of the
// kernel's is a file which Go's poller waits for, and wakes one thread.
package tick

import (
	"os"
	"sync"
	"syscall"
	"time"
)

// Ticker ticks: a period passes between the end of what one tick does and the next.
type Ticker struct {
	period time.Duration
	// file is the kernel's timer; nil where there is none, because this process has all
	// the files that it may have. Go's own is used then.
	file   *os.File
	closed chan struct{}
	once   sync.Once
}

// New returns a ticker, whose owner closes it.
func New(period time.Duration) *Ticker {
	t := &Ticker{period: period, closed: make(chan struct{})}
	if fd, err := create(); err == nil {
		t.file = os.NewFile(uintptr(fd), "timer")
	}
	return t
}

// Each calls f at each tick, the first after a period, until it returns false or the
// ticker is closed. It is to be called once, and allocates nothing once it has begun.
func (t *Ticker) Each(f func() bool) {
	if t.file != nil {
		if conn, err := t.file.SyscallConn(); err == nil && t.each(conn, f) {
			return
		}
	}
	timer := time.NewTimer(t.period)
	defer timer.Stop()
	for {
		select {
		case <-t.closed:
			return
		case <-timer.C:
		}
		if !f() {
			return
		}
		timer.Reset(t.period)
	}
}

// each is Each with the kernel's timer. It reports whether that has come to its end.
func (t *Ticker) each(conn syscall.RawConn, f func() bool) bool {
	begun, broken := false, false
	err := conn.Read(func(fd uintptr) bool {
		if begun {
			switch fired, err := fired(fd); {
			case err != nil:
				broken = true
				return true
			case !fired:
				return false
			case !f():
				return true
			}
		}
		begun = true
		broken = arm(fd, t.period) != nil
		return broken
	})
	select {
	case <-t.closed:
		return true
	default:
		return err == nil && !broken
	}
}

// Close ends the ticks. It may wait for what is done at one that is under way, which must
// not wait for it.
func (t *Ticker) Close() {
	t.once.Do(func() {
		close(t.closed)
		if t.file != nil {
			_ = t.file.Close() // it ends the wait
		}
	})
}
