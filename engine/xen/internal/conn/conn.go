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
	l := &c.Layout.AltP2MOp
	b, err := c.Alloc(l.Size)
	if err != nil {
		return nil, err
	}
	b.PutU32(l.Version, abi.AltP2MInterfaceVersion)
	b.PutU32(l.Cmd, cmd)
	b.PutU16(l.Domain, dom)
	return b, nil
}

// altP2MBatch is how many commands go to Xen in one call. It begins each anew after a
// look whether something else wants the processor, so this bounds memory, not time.
const altP2MBatch = 256

// A multicall_entry, of 64-bit words: the call, its result, and six arguments
// (xen/include/public/xen.h). It has been the same in all releases.
const (
	multicallSize     = 64
	multicallOp       = 0
	multicallResult   = 8
	multicallFirstArg = 16
)

// AltP2MBatch is room for many altp2m commands of one kind, which Xen carries out one
// after the other in a single call. To enter Xen for each costs more than what many of
// them do there.
type AltP2MBatch struct {
	c       *Conn
	calls   *hypercall.Buffer
	ops     *hypercall.Buffer
	used    int
	refused bool // Xen knows no multicall for this kind of control domain
}

// NewAltP2MBatch returns one with no command in it, which the caller frees.
func (c *Conn) NewAltP2MBatch() (*AltP2MBatch, error) {
	calls, err := c.Alloc(altP2MBatch * multicallSize)
	if err != nil {
		return nil, err
	}
	ops, err := c.Alloc(altP2MBatch * c.Layout.AltP2MOp.Size)
	if err != nil {
		calls.Free()
		return nil, err
	}
	return &AltP2MBatch{c: c, calls: calls, ops: ops}, nil
}

// Free gives its memory back.
func (b *AltP2MBatch) Free() {
	b.calls.Free()
	b.ops.Free()
}

// Cap is how many commands it has room for.
func (b *AltP2MBatch) Cap() int { return altP2MBatch }

// Reset makes it n commands cmd on a domain, at most Cap, all their operands zero.
func (b *AltP2MBatch) Reset(n int, cmd uint32, dom uint16) {
	l := &b.c.Layout.AltP2MOp
	b.used = n
	clear(b.ops.Bytes()[:n*l.Size])
	clear(b.calls.Bytes()[:n*multicallSize])
	for i := range n {
		at := i * l.Size
		b.ops.PutU32(at+l.Version, abi.AltP2MInterfaceVersion)
		b.ops.PutU32(at+l.Cmd, cmd)
		b.ops.PutU16(at+l.Domain, dom)
		call := i * multicallSize
		b.calls.PutU64(call+multicallOp, abi.HypercallHVMOp)
		b.calls.PutU64(call+multicallFirstArg, abi.HVMOpAltP2M)
		b.calls.PutU64(call+multicallFirstArg+8, b.ops.Addr()+uint64(at))
	}
}

// Op returns the buffer that command i is in, and where it begins there.
func (b *AltP2MBatch) Op(i int) (ops *hypercall.Buffer, at int) {
	return b.ops, i * b.c.Layout.AltP2MOp.Size
}

// Do issues them. It fails where none could be; what came of each is Err's to tell.
func (b *AltP2MBatch) Do() error {
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
		r, err := b.c.Hypercall(abi.HypercallHVMOp, [5]uint64{abi.HVMOpAltP2M, b.ops.Addr() + uint64(i*b.c.Layout.AltP2MOp.Size)})
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

// Err is what Xen answered to command i: nil or a unix.Errno.
func (b *AltP2MBatch) Err(i int) error {
	if r := int64(b.calls.U64(i*multicallSize + multicallResult)); r < 0 {
		return unix.Errno(-r)
	}
	return nil
}

// AltP2M issues the altp2m command in b.
func (c *Conn) AltP2M(b *hypercall.Buffer) error { return c.HVMOp(abi.HVMOpAltP2M, b) }
