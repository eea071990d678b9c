package hypercall

import "errors"

// PageSize is the page size of x86 and of every array of frames.
const PageSize = 4096

// Caller issues hypercalls. Implementations are safe for concurrent use.
// Errors of Hypercall and DMOp are of type unix.Errno and hold what Xen
// answered.
type Caller interface {
	// Hypercall issues hypercall op and returns its non-negative result.
	// Guest handles in args, and those nested in what they point to, must be
	// addresses of Buffers of this Caller.
	Hypercall(op uint64, args [5]uint64) (int64, error)

	// DMOp issues a device model operation on a domain, with one buffer of
	// at most 64 bytes.
	DMOp(dom uint16, op *Buffer) error

	// Yield lets other domains' vCPUs have the physical processor that the calling thread
	// is on, and returns at once where none wants it. It does not allocate, and fails
	// where nothing can be asked of Xen at all.
	Yield() error

	// Alloc returns a zeroed buffer of size bytes, at most MaxBuffer. The
	// caller frees it.
	Alloc(size int) (*Buffer, error)

	// MapForeign maps frames of a domain, contiguously in the order given.
	// For a frame that cannot be mapped errs holds a negative errno, and
	// touching its page faults. errs is as long as gfns. An error means that
	// nothing is mapped.
	MapForeign(dom uint16, gfns []uint64, errs []int32, writable bool) ([]byte, error)

	// Unmap undoes a MapForeign, of which it takes the whole result.
	Unmap(mem []byte) error

	// Close releases the device. Foreign mappings stay valid until unmapped.
	Close() error
}

// EventBinder binds event channels.
type EventBinder interface {
	// BindInterdomain binds a local port to another domain's port.
	BindInterdomain(dom uint16, remotePort uint32) (EventPort, error)
}

// EventPort is one bound event channel. Reading 4 bytes from its file
// descriptor yields the port number when it has fired and masks it; writing
// them back unmasks it. The descriptor does not block.
type EventPort interface {
	// FD returns the descriptor, valid until Close.
	FD() int
	// Port returns the local port number.
	Port() uint32
	// Notify fires the channel's other end. It does not allocate.
	Notify() error
	// Close unbinds the port. It must not run together with another method.
	Close() error
}

// ErrTooBig says that a buffer larger than MaxBuffer was asked for. A caller
// with more data makes several calls.
var ErrTooBig = errors.New("hypercall buffer of more than 64 KiB")

// ErrExhausted says that all buffers are in use, which in practice means that
// some are not freed.
var ErrExhausted = errors.New("no hypercall buffer is free")

// ErrClosed says that the pool was closed.
var ErrClosed = errors.New("hypercall buffers are closed")
