package xen

import (
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/xen-hvi/hvi/engine/xen/internal/hypercall"
)

// EventChannel is the local end of a channel to another domain, or to Xen in
// its name: the monitor ring's bell.
type EventChannel struct {
	host *Host
	dom  DomID
	port hypercall.EventPort
	wake int // eventfd

	fds  [2]unix.PollFd // these three are Wait's
	buf  [4]byte
	word [8]byte

	gate *hypercall.Gate
}

// BindInterdomain binds a local port to a domain's unbound port, such as the
// one mutate.VMEventEnable returns.
func (h *Host) BindInterdomain(dom DomID, remotePort uint32) (*EventChannel, error) {
	const op = "evtchn(bind_interdomain)"
	if h.closed.Load() {
		return nil, ErrClosed
	}
	port, err := h.c.Events.BindInterdomain(uint16(dom), remotePort)
	if err != nil {
		return nil, opError(h.release, op, dom, err, fmt.Sprintf("port %d", remotePort))
	}
	wake, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		_ = port.Close()
		return nil, os.NewSyscallError("eventfd", err)
	}
	e := &EventChannel{host: h, dom: dom, port: port, wake: wake, gate: hypercall.NewGate()}
	e.fds[0] = unix.PollFd{Fd: int32(port.FD()), Events: unix.POLLIN}
	e.fds[1] = unix.PollFd{Fd: int32(wake), Events: unix.POLLIN}
	return e, nil
}

// Port returns the local port number.
func (e *EventChannel) Port() uint32 { return e.port.Port() }

// Wait waits until the channel fires, Wake is called or the timeout passes,
// and reports whether the channel has fired since the last Wait. A negative
// timeout is none. It is for one goroutine at a time and does not allocate. A channel that fired is ready to fire again when Wait
// returns, so what arrives while the caller works is not lost.
//
// After Close it fails with ErrClosed.
func (e *EventChannel) Wait(timeout time.Duration) (fired bool, err error) {
	if !e.gate.Enter() {
		return false, ErrClosed
	}
	defer e.gate.Leave()
	var deadline time.Time
	if timeout > 0 {
		deadline = time.Now().Add(timeout)
	}
	for {
		ms := -1
		if timeout >= 0 {
			ms = 0
			if timeout > 0 {
				// Rounded up: waking early would only wait again.
				ms = int(max(0, time.Until(deadline)+time.Millisecond-1) / time.Millisecond)
			}
		}
		e.fds[0].Revents, e.fds[1].Revents = 0, 0
		n, err := unix.Poll(e.fds[:], ms)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return false, e.fail("poll", err)
		}
		if e.gate.IsShut() {
			return false, ErrClosed
		}
		if n == 0 {
			return false, nil
		}
		if e.fds[0].Revents != 0 {
			// The other descriptor is left for the next call.
			return e.consume()
		}
		if _, err := unix.Read(e.wake, e.word[:]); err != nil && err != unix.EAGAIN && err != unix.EINTR {
			return false, e.fail("wake", err)
		}
		return false, nil
	}
}

// consume reads the port that fired and unmasks it.
func (e *EventChannel) consume() (bool, error) {
	n, err := unix.Read(e.port.FD(), e.buf[:])
	switch {
	case err == unix.EAGAIN || err == unix.EINTR:
		return false, nil
	case err != nil:
		return false, e.fail("read", err)
	case n == 0:
		return false, e.fail("read", unix.EPIPE)
	}
	// Unmask before the caller looks at the ring: an event that arrives
	// after the look then fires anew.
	if _, err := unix.Write(e.port.FD(), e.buf[:n]); err != nil {
		return false, e.fail("unmask", err)
	}
	return true, nil
}

// Wake makes the Wait under way, or the next, return.
func (e *EventChannel) Wake() {
	if !e.gate.Enter() {
		return
	}
	defer e.gate.Leave()
	e.ring()
}

func (e *EventChannel) ring() {
	// The counter is full only if it was rung already.
	_, _ = unix.Write(e.wake, one[:])
}

// one is what rings an eventfd.
var one = [8]byte{1}

// Notify fires the channel's other end. It does not allocate.
func (e *EventChannel) Notify() error {
	if !e.gate.Enter() {
		return ErrClosed
	}
	defer e.gate.Leave()
	if err := e.port.Notify(); err != nil {
		return e.fail("notify", err)
	}
	return nil
}

// Close unbinds the port. A Wait under way returns ErrClosed before Close
// returns. Closing again does nothing.
func (e *EventChannel) Close() error {
	if !e.gate.Shut() {
		return nil
	}
	e.ring()
	e.gate.Wait()
	err := e.port.Close()
	_ = unix.Close(e.wake)
	if err != nil {
		return e.fail("unbind", err)
	}
	return nil
}

func (e *EventChannel) fail(what string, err error) error {
	return e.host.fail("evtchn("+what+")", e.dom, err)
}
