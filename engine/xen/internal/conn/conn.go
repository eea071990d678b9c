// Package conn is what package xen, which reads, and package mutate, which
// changes, share: an open hypervisor and the envelopes of its operations. It
// is internal so that nothing outside engine/xen can issue a hypercall.
//
// A Conn is owned by the xen.Host that made it and is released by it.
package conn

import (
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

// AltP2M issues the altp2m command in b.
func (c *Conn) AltP2M(b *hypercall.Buffer) error { return c.HVMOp(abi.HVMOpAltP2M, b) }
