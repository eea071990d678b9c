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
// the kernel has another one woken to watch it, for each event anew. While events come
// thick, nobody waits: see linger.
type EventChannel struct {
	host *Host
	dom  DomID
	port hypercall.EventPort
	file *os.File // a duplicate of the port's descriptor, which the runtime watches
	conn interface {
		Read(func(fd uintptr) bool) error
	}

	buf hypercall.Ports // Serve's
	// ports is how many bytes of buf were read and not unmasked yet.
	ports int
	pace  pace // Serve's
	// mayLinger bounds how many goroutines linger at once.
	mayLinger int32

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
	e := &EventChannel{host: h, dom: dom, port: port, gate: hypercall.NewGate(), pace: pace{clock: time.Now}, mayLinger: mayLinger()}
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

// Serve calls work at once, and then each time that the channel has fired, Wake was
// called, or the interval has passed, until work says that it is not to go on. Work tells
// how much there was to do, which is zero when it was called in vain; while there is much,
// it is called without the channel having fired, too (see linger). Serve is for one goroutine
// at a time, and does not allocate once it has begun. A channel that fired is ready to
// fire again before work is called for the last time, so that what arrives while it works is
// not lost: work is called again.
//
// After Close it fails with ErrClosed.
func (e *EventChannel) Serve(interval time.Duration, work func() (did int, goOn bool)) error {
	if !e.gate.Enter() {
		return ErrClosed
	}
	defer e.gate.Leave()
	done := false
	var failed error
	// It returns true to end the wait. Between one call and the next the runtime keeps
	// in mind that the channel has fired, so nothing need be read to be sure of that.
	ready := func(uintptr) bool {
		fired, err := e.take()
		switch {
		case err != nil:
			failed = err
		case fired:
			goOn := !e.pace.thick || e.linger(work)
			// Unmask before the last look at the ring: an event that arrives
			// after the look then fires anew.
			if failed = e.unmask(); failed == nil && goOn {
				var did int
				did, goOn = work()
				e.pace.answered(did)
			}
			done = !goOn
		}
		return done || failed != nil
	}
	for {
		if err := e.file.SetReadDeadline(time.Now().Add(interval)); err != nil {
			return e.waitError(err)
		}
		// After the deadline was set: Wake does it the other way round.
		e.woken.Store(false)
		if _, goOn := work(); !goOn {
			return nil
		}
		if e.woken.Load() {
			continue
		}
		switch err := e.conn.Read(ready); {
		case err == nil:
			return failed // nil when work is done
		case !errors.Is(err, os.ErrDeadlineExceeded):
			return e.waitError(err)
		}
	}
}

func (e *EventChannel) waitError(err error) error {
	if e.gate.IsShut() {
		return ErrClosed
	}
	return e.fail("wait", err)
}

// take reads the port if it fired. It does not fire again until it is unmasked.
func (e *EventChannel) take() (bool, error) {
	n, err := hypercall.ReadPorts(e.port.FD(), &e.buf)
	switch {
	case err == unix.EAGAIN:
		return false, nil
	case err != nil:
		return false, e.fail("read", err)
	case n == 0:
		return false, e.fail("read", unix.EPIPE)
	}
	e.ports = n
	return true, nil
}

// unmask lets the port that take has read fire again.
func (e *EventChannel) unmask() error {
	if err := hypercall.WritePorts(e.port.FD(), &e.buf, e.ports); err != nil {
		return e.fail("unmask", err)
	}
	return nil
}

// Wake has Serve call work, once more if it is working, or when it begins.
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

// Close unbinds the port. A Serve under way returns ErrClosed before Close
// returns; work may not call it. Closing again does nothing.
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
