package hypercall

import (
	"io/fs"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/xen-hvi/hvi/engine/xen/abi"
)

// evtchnBindInterdomain is struct ioctl_evtchn_bind_interdomain.
type evtchnBindInterdomain struct {
	remoteDomain uint32
	remotePort   uint32
}

// Evtchn is the real EventBinder, over /dev/xen/evtchn. Every port gets a
// descriptor of its own, so that domains wait apart from each other and
// closing the descriptor is all it takes to unbind.
type Evtchn struct{ path string }

var _ EventBinder = (*Evtchn)(nil)

// NewEvtchn returns an EventBinder below root, which is "/" except in tests.
func NewEvtchn(root string) *Evtchn { return &Evtchn{path: root + evtchnPath} }

// BindInterdomain implements EventBinder.
func (e *Evtchn) BindInterdomain(dom uint16, remotePort uint32) (EventPort, error) {
	fd, err := unix.Open(e.path, unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, &fs.PathError{Op: "open", Path: e.path, Err: err}
	}
	bind := evtchnBindInterdomain{uint32(dom), remotePort}
	port, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), abi.IoctlEvtchnBindInterdomain, uintptr(unsafe.Pointer(&bind)))
	if errno != 0 {
		_ = unix.Close(fd)
		return nil, errno
	}
	return &evtchnPort{fd: fd, port: uint32(port)}, nil
}

type evtchnPort struct {
	fd   int
	port uint32
}

func (p *evtchnPort) FD() int      { return p.fd }
func (p *evtchnPort) Port() uint32 { return p.port }

// ReadPorts and WritePorts read and write a port's descriptor, which does not block:
// so the runtime is not told. If it were, it would begin to watch for a call that
// takes long, in a thread of its own, which costs more than an event does.

// Ports has room for what is read at once. One port has one number of four bytes to tell,
// and is silent until it is unmasked; what is left unread would not be told again.
type Ports [64]byte

// ReadPorts reads the numbers of the ports that fired, as bytes.
func ReadPorts(fd int, b *Ports) (int, error) { return portCall(unix.SYS_READ, fd, b, len(b)) }

// WritePorts unmasks the ports that were read into the first n bytes.
func WritePorts(fd int, b *Ports, n int) error {
	_, err := portCall(unix.SYS_WRITE, fd, b, n)
	return err
}

func portCall(call uintptr, fd int, b *Ports, n int) (int, error) {
	for {
		got, _, errno := unix.RawSyscall(call, uintptr(fd), uintptr(unsafe.Pointer(b)), uintptr(n))
		switch errno {
		case 0:
			return int(got), nil
		case unix.EINTR:
		default:
			return 0, errno
		}
	}
}

func (p *evtchnPort) Notify() error {
	port := p.port // struct ioctl_evtchn_notify
	for {
		// As in ReadPorts: the runtime is not told.
		_, _, errno := unix.RawSyscall(unix.SYS_IOCTL, uintptr(p.fd), abi.IoctlEvtchnNotify, uintptr(unsafe.Pointer(&port)))
		switch errno {
		case 0:
			return nil
		case unix.EINTR:
		default:
			return errno
		}
	}
}

func (p *evtchnPort) Close() error {
	port := p.port // struct ioctl_evtchn_unbind
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(p.fd), abi.IoctlEvtchnUnbind, uintptr(unsafe.Pointer(&port)))
	if err := unix.Close(p.fd); err != nil {
		return err
	}
	if errno != 0 {
		return errno
	}
	return nil
}
