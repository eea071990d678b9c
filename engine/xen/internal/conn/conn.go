// Package conn is what package xen, which reads, and package mutate, which
// changes, share: an open hypervisor and the envelopes of its operations. It
// is internal so that nothing outside engine/xen can issue a hypercall.
//
// A Conn is owned by the xen.Host that made it and is released by it.
package conn

import (
	"errors"

	"golang.org/x/sys/unix"

	"github.com/xen-hvi/hvi/engine/xen/abi"
	"github.com/xen-hvi/hvi/engine/xen/internal/hypercall"
)

// Conn is an open hypervisor of known release. It is safe for concurrent use.
type Conn struct {
	hypercall.Caller
	Events hypercall.EventBinder
	Layout *abi.Layout
	// Fail makes the error that callers see of what a call returned. Detail
	// names operands other than the domain, and may be empty.
	Fail func(op string, dom uint16, err error, detail string) error
}

// Of returns the Conn of a *xen.Host. Package xen sets it; an exported method
// would let every package issue hypercalls.
var Of func(host any) *Conn

// NewDomctl returns a buffer that holds the envelope of domain control cmd,
// its operation zeroed. The caller fills in the operation, which starts at
// Layout.Domctl.U, and frees the buffer.
func (c *Conn) NewDomctl(cmd uint32, dom uint16) (*hypercall.Buffer, error) {
	l := &c.Layout.Domctl
	b, err := c.Alloc(l.Size)
	if err != nil {
		return nil, err
	}
	b.PutU32(l.Cmd, cmd)
	b.PutU32(l.InterfaceVersion, c.Layout.DomctlVersion)
	b.PutU16(l.Domain, dom)
	return b, nil
}

// Domctl issues the domain control in b.
func (c *Conn) Domctl(b *hypercall.Buffer) error {
	_, err := c.Hypercall(abi.HypercallDomctl, [5]uint64{b.Addr()})
	return err
}

// SimpleDomctl issues a domain control that has no operands.
func (c *Conn) SimpleDomctl(cmd uint32, dom uint16) error {
	b, err := c.NewDomctl(cmd, dom)
	if err != nil {
		return err
	}
	defer b.Free()
	return c.Domctl(b)
}

// NewSysctl returns a buffer that holds the envelope of system control cmd.
func (c *Conn) NewSysctl(cmd uint32) (*hypercall.Buffer, error) {
	l := &c.Layout.Sysctl
	b, err := c.Alloc(l.Size)
	if err != nil {
		return nil, err
	}
	b.PutU32(l.Cmd, cmd)
	b.PutU32(l.InterfaceVersion, c.Layout.SysctlVersion)
	return b, nil
}

// Sysctl issues the system control in b.
func (c *Conn) Sysctl(b *hypercall.Buffer) error {
	_, err := c.Hypercall(abi.HypercallSysctl, [5]uint64{b.Addr()})
	return err
}

// MemoryOp issues memory operation cmd on the structure in b.
func (c *Conn) MemoryOp(cmd uint64, b *hypercall.Buffer) (int64, error) {
	return c.Hypercall(abi.HypercallMemoryOp, [5]uint64{cmd, b.Addr()})
}

// HVMOp issues HVM operation op on the structure in b.
func (c *Conn) HVMOp(op uint64, b *hypercall.Buffer) error {
	_, err := c.Hypercall(abi.HypercallHVMOp, [5]uint64{op, b.Addr()})
	return err
}

// NewAltP2M returns a buffer that holds the envelope of altp2m command cmd.
func (c *Conn) NewAltP2M(cmd uint32, dom uint16) (*hypercall.Buffer, error) {
	b, err := c.Alloc(c.Layout.AltP2MOp.Size)
	if err != nil {
		return nil, err
	}
	c.PutAltP2M(b, 0, cmd, dom)
	return b, nil
}

// PutAltP2M puts the envelope of altp2m command cmd into a buffer.
func (c *Conn) PutAltP2M(b *hypercall.Buffer, at int, cmd uint32, dom uint16) {
	l := &c.Layout.AltP2MOp
	b.PutU32(at+l.Version, abi.AltP2MInterfaceVersion)
	b.PutU32(at+l.Cmd, cmd)
	b.PutU16(at+l.Domain, dom)
}

// PutMemAccess puts the question for the access of a domain's frame into a buffer.
func (c *Conn) PutMemAccess(b *hypercall.Buffer, at int, dom uint16, pfn uint64) {
	l := &c.Layout.MemAccessOp
	b.PutU8(at+l.Op, abi.MemAccessOpGet)
	b.PutU16(at+l.DomID, dom)
	b.PutU64(at+l.PFN, pfn)
}

// batchCalls is how many calls go to Xen in one. It begins each anew after a look whether
// something else wants the processor, so this bounds memory, not time.
const batchCalls = 256

// A multicall_entry, of 64-bit words: the call, its result, and six arguments
// (xen/include/public/xen.h). It has been the same in all releases.
const (
	multicallSize     = 64
	multicallOp       = 0
	multicallResult   = 8
	multicallFirstArg = 16
)

// Batch is room for many calls of one kind, which Xen carries out one after the other in
// a single one. To enter Xen for each costs more than what many of them do there.
type Batch struct {
	c       *Conn
	call    uint64 // the hypercall, whose first argument is cmd and the second its operand
	cmd     uint64
	size    int // of an operand
	calls   *hypercall.Buffer
	ops     *hypercall.Buffer
	used    int
	refused bool // Xen knows no multicall for this kind of control domain
}

// NewAltP2MBatch returns room for altp2m commands, with none in it. The caller frees it.
func (c *Conn) NewAltP2MBatch() (*Batch, error) {
	return c.newBatch(abi.HypercallHVMOp, abi.HVMOpAltP2M, c.Layout.AltP2MOp.Size)
}

// NewMemAccessBatch returns room for operations on the access of frames, with none in it.
// The caller frees it.
func (c *Conn) NewMemAccessBatch() (*Batch, error) {
	return c.newBatch(abi.HypercallMemoryOp, abi.MemAccessOpCmd, c.Layout.MemAccessOp.Size)
}

func (c *Conn) newBatch(call, cmd uint64, size int) (*Batch, error) {
	calls, err := c.Alloc(batchCalls * multicallSize)
	if err != nil {
		return nil, err
	}
	ops, err := c.Alloc(batchCalls * size)
	if err != nil {
		calls.Free()
		return nil, err
	}
	return &Batch{c: c, call: call, cmd: cmd, size: size, calls: calls, ops: ops}, nil
}

// Free gives its memory back.
func (b *Batch) Free() {
	b.calls.Free()
	b.ops.Free()
}

// Cap is how many calls it has room for.
func (b *Batch) Cap() int { return batchCalls }

// Reset makes it n calls, at most Cap, their operands all zero.
func (b *Batch) Reset(n int) {
	b.used = n
	clear(b.ops.Bytes()[:n*b.size])
	clear(b.calls.Bytes()[:n*multicallSize])
	for i := range n {
		at := i * multicallSize
		b.calls.PutU64(at+multicallOp, b.call)
		b.calls.PutU64(at+multicallFirstArg, b.cmd)
		b.calls.PutU64(at+multicallFirstArg+8, b.operand(i))
	}
}

func (b *Batch) operand(i int) uint64 { return b.ops.Addr() + uint64(i*b.size) }

// Op returns the buffer that the operand of call i is in, and where it begins there.
func (b *Batch) Op(i int) (ops *hypercall.Buffer, at int) { return b.ops, i * b.size }

// Do issues them. It fails where none could be; what came of each is Err's to tell.
func (b *Batch) Do() error {
	if b.used == 0 {
		return nil
	}
	if !b.refused {
		_, err := b.c.Hypercall(abi.HypercallMulticall, [5]uint64{b.calls.Addr(), uint64(b.used)})
		if err != unix.ENOSYS {
			return err
		}
		b.refused = true
	}
	for i := range b.used {
		r, err := b.c.Hypercall(b.call, [5]uint64{b.cmd, b.operand(i)})
		var errno unix.Errno
		switch {
		case errors.As(err, &errno):
			r = -int64(errno)
		case err != nil:
			return err
		}
		b.calls.PutU64(i*multicallSize+multicallResult, uint64(r))
	}
	return nil
}

// Err is what Xen answered to call i: nil or a unix.Errno.
func (b *Batch) Err(i int) error {
	if r := int64(b.calls.U64(i*multicallSize + multicallResult)); r < 0 {
		return unix.Errno(-r)
	}
	return nil
}

// AltP2M issues the altp2m command in b.
func (c *Conn) AltP2M(b *hypercall.Buffer) error { return c.HVMOp(abi.HVMOpAltP2M, b) }
