package xen

import (
	"errors"
	"fmt"
	"os"
	"runtime"
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
// thick, that is left out, too; see burst.
type EventChannel struct {
	host *Host
	dom  DomID
	port hypercall.EventPort
	// file has the runtime wait. It is an epoll that watches the port, so that the port
	// can be taken from it.
	file  *os.File
	epoll int
	conn  interface {
		Read(func(fd uintptr) bool) error
	}

	buf hypercall.Ports // Serve's
	// fires counts since the clock was last read, at since. They are Serve's.
	fires int
	since time.Duration // after epoch
	// bursts counts what is begun of them, for tests. While inKernel is set, wake, an
	// eventfd, ends the wait.
	bursts   atomic.Uint64
	inKernel atomic.Bool
	wake     int

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
	if err := e.watch(); err != nil {
		_ = port.Close()
		return nil, fmt.Errorf("%s of domain %d: have the runtime wait for the port: %w", op, dom, err)
	}
	return e, nil
}

// watch has the runtime watch the port.
func (e *EventChannel) watch() error {
	fd, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return os.NewSyscallError("epoll_create1", err)
	}
	if err := unix.SetNonblock(fd, true); err != nil { // or the runtime doesn't watch it
		_ = unix.Close(fd)
		return os.NewSyscallError("fcntl", err)
	}
	wake, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		_ = unix.Close(fd)
		return os.NewSyscallError("eventfd", err)
	}
	e.epoll, e.wake, e.file = fd, wake, os.NewFile(uintptr(fd), "event channel")
	if err = e.watchPort(true); err == nil {
		e.conn, err = e.file.SyscallConn()
	}
	if err == nil {
		// It fails if the runtime can't.
		err = e.file.SetReadDeadline(time.Time{})
	}
	if err != nil {
		_ = errors.Join(e.file.Close(), unix.Close(wake))
	}
	return err
}

// watchPort has the port watched, or not any more. What is pending when it begins is
// told of.
func (e *EventChannel) watchPort(watched bool) error {
	op := unix.EPOLL_CTL_DEL
	if watched {
		op = unix.EPOLL_CTL_ADD
	}
	if err := unix.EpollCtl(e.epoll, op, e.port.FD(), &unix.EpollEvent{Events: unix.EPOLLIN}); err != nil {
		return os.NewSyscallError("epoll_ctl", err)
	}
	return nil
}

// Port returns the local port number.
func (e *EventChannel) Port() uint32 { return e.port.Port() }

// Serve calls work at once, and then each time that the channel has fired, Wake was
// called, or the interval has passed, until work returns false. It is for one goroutine
// at a time, and does not allocate once it has begun. A channel that fired is ready to
// fire again before work is called, so that what arrives while it works is not lost:
// work is called again.
//
// After Close it fails with ErrClosed.
func (e *EventChannel) Serve(interval time.Duration, work func() bool) error {
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
			if done = !work(); !done && e.often() {
				done, failed = e.burst(work)
			}
		}
		return done || failed != nil
	}
	for {
		if err := e.file.SetReadDeadline(time.Now().Add(interval)); err != nil {
			return e.waitError(err)
		}
		// After the deadline was set: Wake does it the other way round.
		e.woken.Store(false)
		if !work() {
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

const (
	// burstFires in burstTime is often: a thousand events a second.
	burstFires = 8
	burstTime  = burstFires * time.Millisecond
	// burstRest, in milliseconds, is how long nothing may come at most before a burst is
	// over. Where the runtime looks at its threads it is so after some ten. With ten
	// here, and more readings of the clock, an event took some 500 instructions more.
	burstRest = 1000
	// burstTurn is how many events are answered before others have the thread.
	burstTurn = 16
	// burstSpare is how many threads are left to run Go.
	burstSpare = 2
)

// often reports whether the channel fires often. It reads the clock now and then, which
// may be a system call.
func (e *EventChannel) often() bool {
	if e.fires++; e.fires < burstFires {
		return false
	}
	now := time.Since(epoch)
	often := now-e.since < burstTime
	e.fires, e.since = 0, now
	return often
}

// epoch is what times are counted from: to read all of the clock takes twice as long.
var epoch = time.Now()

// bursting is how many threads are in a burst.
var bursting atomic.Int32

// burst calls work for each time that the channel fires as long as it does so often, and
// reports whether work returned false. The thread waits in the kernel meanwhile, and the
// runtime doesn't know: to look for other work before each wait, and to be waited for by
// another thread, costs a guest a twentieth of an event. So it leaves burstSpare threads
// beside it. Where the runtime wants it to give way, its signal ends the wait.
func (e *EventChannel) burst(work func() bool) (done bool, err error) {
	if int(bursting.Add(1)) > runtime.GOMAXPROCS(0)-burstSpare {
		bursting.Add(-1)
		return false, nil
	}
	defer bursting.Add(-1)
	e.bursts.Add(1)
	if err := e.watchPort(false); err != nil {
		return false, e.fail("begin a burst", err)
	}
	e.inKernel.Store(true)
	done, err = e.inBurst(work)
	e.inKernel.Store(false)
	if err := e.watchPort(true); err != nil {
		return done, e.fail("end a burst", err)
	}
	return done, err
}

func (e *EventChannel) inBurst(work func() bool) (done bool, err error) {
	n, last := 0, -1
	for !e.woken.Load() && !e.gate.IsShut() {
		fired, woken, err := hypercall.AwaitPort(e.port.FD(), e.wake, burstRest)
		switch {
		case err == unix.EINTR:
			if n == last {
				return false, nil // nothing has come since the last time
			}
			last = n
			runtime.Gosched()
			continue
		case err != nil:
			return false, e.fail("poll", err)
		case woken:
			// Read, so that it is not there for the next one.
			if _, err := hypercall.ReadPorts(e.wake, &e.buf); err != nil && err != unix.EAGAIN {
				return false, e.fail("be woken", err)
			}
		}
		if !fired {
			if !woken {
				return false, nil
			}
			continue
		}
		switch fired, err := e.take(); {
		case err != nil:
			return false, err
		case fired && !work():
			return true, nil
		}
		if n++; n%burstTurn == 0 {
			runtime.Gosched()
		}
	}
	return false, nil
}

// kick ends the wait of a burst.
func (e *EventChannel) kick() {
	if e.inKernel.Load() {
		one := [8]byte{1}
		_, _ = unix.Write(e.wake, one[:]) // fails only when it is full of them
	}
}

func (e *EventChannel) waitError(err error) error {
	if e.gate.IsShut() {
		return ErrClosed
	}
	return e.fail("wait", err)
}

// take reads the port if it fired, and unmasks it.
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
	// Unmask before the caller looks at the ring: an event that arrives
	// after the look then fires anew.
	if err := hypercall.WritePorts(e.port.FD(), &e.buf, n); err != nil {
		return false, e.fail("unmask", err)
	}
	return true, nil
}

// Wake has Serve call work, once more if it is working, or when it begins.
func (e *EventChannel) Wake() {
	if !e.gate.Enter() {
		return
	}
	defer e.gate.Leave()
	e.woken.Store(true)
	_ = e.file.SetReadDeadline(past) // fails only when it is closed
	e.kick()
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
	e.kick()
	err := e.file.Close() // ends the wait
	e.gate.Wait()
	err = errors.Join(err, os.NewSyscallError("close", unix.Close(e.wake)))
	if err := errors.Join(err, e.port.Close()); err != nil {
		return e.fail("unbind", err)
	}
	return nil
}

func (e *EventChannel) fail(what string, err error) error {
	return e.host.fail("evtchn("+what+")", e.dom, err)
}
