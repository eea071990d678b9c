package xen

import (
	"errors"
	"fmt"
	"os"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/xen-hvi/hvi/engine/xen/internal/hypercall"
)

// EventChannel is the local end of a channel to another domain, or to Xen in
// its name: the monitor ring's bell.
//
// Who waits is parked by the runtime, and no thread with it: a thread that blocks in
// the kernel has another one woken to watch it, for each event anew.
type EventChannel struct {
	host *Host
	dom  DomID
	port hypercall.EventPort
	file *os.File // a duplicate of the port's descriptor, which the runtime watches
	conn interface {
		Read(func(fd uintptr) bool) error
	}

	// These are Wait's: take as conn wants it, what that found, and whether the file has a
	// deadline that Wait has set.
	ready func(fd uintptr) bool
	fired bool
	err   error
	armed bool
	buf   [4]byte

	woken atomic.Bool
	gate  *hypercall.Gate
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
	e := &EventChannel{host: h, dom: dom, port: port, gate: hypercall.NewGate()}
	e.ready = func(uintptr) bool {
		e.fired, e.err = e.take()
		return e.fired || e.err != nil
	}
	if err := e.watch(); err != nil {
		_ = port.Close()
		return nil, fmt.Errorf("%s of domain %d: have the runtime wait for the port: %w", op, dom, err)
	}
	return e, nil
}

// watch has the runtime watch the port.
func (e *EventChannel) watch() error {
	fd, err := unix.FcntlInt(uintptr(e.port.FD()), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return os.NewSyscallError("dup", err)
	}
	e.file = os.NewFile(uintptr(fd), "event channel")
	e.conn, err = e.file.SyscallConn()
	if err == nil {
		// It fails if the runtime can't.
		err = e.file.SetReadDeadline(time.Time{})
	}
	if err != nil {
		_ = e.file.Close()
	}
	return err
}

// Port returns the local port number.
func (e *EventChannel) Port() uint32 { return e.port.Port() }

// Wait waits until the channel fires, Wake is called or the timeout passes,
// and reports whether the channel has fired since the last Wait. A negative
// timeout is none; with another one Wait may return for nothing before it has
// passed. It is for one goroutine at a time, and does not allocate. A channel that
// fired is ready to fire again when Wait returns, so what arrives while the caller
// works is not lost.
//
// After Close it fails with ErrClosed.
func (e *EventChannel) Wait(timeout time.Duration) (fired bool, err error) {
	if !e.gate.Enter() {
		return false, ErrClosed
	}
	defer e.gate.Leave()
	if timeout == 0 {
		return e.look()
	}
	for {
		if err := e.arm(timeout); err != nil {
			return false, e.waitError(err)
		}
		// After the deadline was set: Wake does it the other way round.
		if e.woken.Load() {
			return e.look()
		}
		err := e.conn.Read(e.ready)
		if err == nil {
			return e.fired, e.err
		}
		if !errors.Is(err, os.ErrDeadlineExceeded) {
			return false, e.waitError(err)
		}
		e.armed = false
		if timeout > 0 || e.woken.Load() {
			return e.look()
		}
	}
}

// look is Wait without waiting: an event comes before a wake.
func (e *EventChannel) look() (bool, error) {
	fired, err := e.take()
	if !fired && err == nil {
		e.woken.Store(false)
	}
	return fired, err
}

// arm bounds the wait that follows. A bound that has not passed stays, since to move
// it each time would cost more than to wait twice.
func (e *EventChannel) arm(timeout time.Duration) error {
	if timeout < 0 {
		e.armed = false
		return e.file.SetReadDeadline(time.Time{})
	}
	if e.armed {
		return nil
	}
	e.armed = true
	return e.file.SetReadDeadline(time.Now().Add(timeout))
}

func (e *EventChannel) waitError(err error) error {
	if e.gate.IsShut() {
		return ErrClosed
	}
	return e.fail("wait", err)
}

// take reads the port if it fired, and unmasks it.
func (e *EventChannel) take() (bool, error) {
	n, err := hypercall.ReadPort(e.port.FD(), &e.buf)
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
	if err := hypercall.WritePort(e.port.FD(), &e.buf); err != nil {
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
	e.woken.Store(true)
	_ = e.file.SetReadDeadline(past) // fails only when it is closed
}

// past ends a wait.
var past = time.Unix(1, 0)

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
	err := e.file.Close() // ends the wait
	e.gate.Wait()
	if err := errors.Join(err, e.port.Close()); err != nil {
		return e.fail("unbind", err)
	}
	return nil
}

func (e *EventChannel) fail(what string, err error) error {
	return e.host.fail("evtchn("+what+")", e.dom, err)
}
