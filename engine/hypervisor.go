package engine

import (
	"io"

	"github.com/xen-hvi/hvi/engine/guest"
	"github.com/xen-hvi/hvi/engine/vmevent"
	"github.com/xen-hvi/hvi/engine/x86"
	"github.com/xen-hvi/hvi/engine/xen"
	"github.com/xen-hvi/hvi/engine/xen/abi"
)

// Hypervisor is what the engine reads of Xen. It changes nothing. OnXen makes
// one of a *xen.Host, whose documentation is that of these methods.
type Hypervisor interface {
	Layout() *abi.Layout
	Domain(xen.DomID) (xen.DomainInfo, error)
	Domains() ([]xen.DomainInfo, error)
	Registers(dom xen.DomID, vcpu int) (x86.Registers, error)
	CPU(xen.DomID) xen.CPU
	RingFrame(xen.DomID) (x86.GFN, error)
	PageFrameType(xen.DomID, x86.GFN) (xen.PageType, error)
	AnyPage(dom xen.DomID, first x86.GFN, n int) (bool, error)
	ProbeMemAccess(xen.DomID) error
	MemAccesses(dom xen.DomID, first x86.GFN, access []xen.Access) error
	MonitorCapabilities(xen.DomID) (xen.MonitorCaps, error)
	AltP2M(xen.DomID) (xen.AltP2M, error)
	ViewAccess(dom xen.DomID, view uint16, gfn x86.GFN) (xen.Access, error)
	ViewAccesses(dom xen.DomID, view uint16, first x86.GFN, access []xen.Access) error
	PagingPool(xen.DomID) (uint64, error)
	MaxGFN(xen.DomID) (x86.GFN, error)
	OnDemand(xen.DomID) (uint64, error)
	MapPage(xen.DomID, x86.GFN) (MappedPage, error)
	OpenMemory(xen.DomID) GuestMemory
	OpenMemoryFor(xen.DomID, xen.Reading) GuestMemory
	BindInterdomain(dom xen.DomID, remotePort uint32) (Channel, error)
}

// MappedPage is one page of a guest's, mapped writable; who mapped it closes it.
type MappedPage interface {
	Bytes() []byte
	io.Closer
}

// GuestMemory is a domain's mapped physical memory. Until Close a dead domain
// stays a zombie.
type GuestMemory interface {
	guest.Memory
	io.Closer
	// Invalidate has n frames from first on mapped anew when they are read: the guest may
	// have put other pages there.
	Invalidate(first x86.GFN, n uint64)
}

// Channel is a bound event channel.
type Channel interface {
	vmevent.Source
	io.Closer
}

// OnXen returns the hypervisor hvi runs on. The host stays the caller's.
func OnXen(h *xen.Host) Hypervisor { return onXen{h} }

type onXen struct{ *xen.Host }

// A nil *xen.PageMapping in a MappedPage is not nil, so errors are told apart
// here.

func (x onXen) MapPage(dom xen.DomID, gfn x86.GFN) (MappedPage, error) {
	m, err := x.Host.MapPage(dom, gfn)
	if err != nil {
		return nil, err
	}
	return m, nil
}

func (x onXen) OpenMemory(dom xen.DomID) GuestMemory { return x.Host.OpenMemory(dom) }

func (x onXen) OpenMemoryFor(dom xen.DomID, how xen.Reading) GuestMemory {
	return x.Host.OpenMemoryFor(dom, how)
}

func (x onXen) BindInterdomain(dom xen.DomID, port uint32) (Channel, error) {
	c, err := x.Host.BindInterdomain(dom, port)
	if err != nil {
		return nil, err
	}
	return c, nil
}
