package mutate

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/xen-hvi/hvi/engine/x86"
	"github.com/xen-hvi/hvi/engine/xen"
	"github.com/xen-hvi/hvi/engine/xen/abi"
	"github.com/xen-hvi/hvi/engine/xen/internal/hypercall"
)

// altP2M issues one operation on a domain's views. in fills its arguments, out,
// if there is one, takes its results.
func (m *Mutator) altP2M(op string, dom xen.DomID, cmd uint32, detail string, in, out func(*hypercall.Buffer, *abi.AltP2MOp)) error {
	b, err := m.c.NewAltP2M(cmd, uint16(dom))
	if err != nil {
		return m.fail(op, dom, err, "")
	}
	defer b.Free()
	in(b, &m.c.Layout.AltP2MOp)
	if err := m.c.AltP2M(b); err != nil {
		return m.fail(op, dom, err, detail)
	}
	if out != nil {
		out(b, &m.c.Layout.AltP2MOp)
	}
	return nil
}

// AltP2MSetState switches alternative views of a domain's memory on or off.
// Off returns all vCPUs to the host's view and deletes every view, so it is
// the cleanup of all operations of this file at once. It fails with an error
// that matches xen.ErrNotSupported where the domain cannot have views.
//
// Undone by AltP2MSetState with the opposite value; views that it deleted do
// not come back.
func (m *Mutator) AltP2MSetState(dom xen.DomID, on bool) error {
	return m.altP2M("altp2m(set_domain_state)", dom, abi.AltP2MSetDomainState, "", func(b *hypercall.Buffer, l *abi.AltP2MOp) {
		b.PutBool(l.DomainState, on)
	}, nil)
}

// CreateView makes a view of a domain's memory that permits everything, and
// returns its number. It is empty: Xen copies an entry of the host's view when
// a vCPU in this one touches the page. EINVAL says that there are as many views
// as Xen can have (p2m_init_next_altp2m, xen/arch/x86/mm/p2m.c in 4.17).
//
// Undone by AltP2MSetState with false.
func (m *Mutator) CreateView(dom xen.DomID) (view uint16, err error) {
	access, err := xen.EncodeAccess(m.c.Layout, xen.AccessRWX)
	if err != nil {
		return 0, err
	}
	err = m.altP2M("altp2m(create_p2m)", dom, abi.AltP2MCreateP2M, "", func(b *hypercall.Buffer, l *abi.AltP2MOp) {
		b.PutU16(l.ViewDefaultAccess, uint16(access))
	}, func(b *hypercall.Buffer, l *abi.AltP2MOp) { view = b.U16(l.ViewView) })
	return view, err
}

// SwitchView puts all vCPUs of a domain into a view; 0 is the host's.
//
// Undone by SwitchView with the view from before.
func (m *Mutator) SwitchView(dom xen.DomID, view uint16) error {
	return m.altP2M("altp2m(switch_p2m)", dom, abi.AltP2MSwitchP2M, fmt.Sprintf("view %d", view), func(b *hypercall.Buffer, l *abi.AltP2MOp) {
		b.PutU16(l.ViewView, view)
	}, nil)
}

// SetViewAccess sets the access of n frames from first on in one view. ENOMEM
// says that the domain's paging pool is exhausted; the domain must not go on in
// that view then, or Xen crashes it. If it fails, part of the range may be set.
//
// Undone by AltP2MSetState with false.
func (m *Mutator) SetViewAccess(dom xen.DomID, view uint16, access xen.Access, first x86.GFN, n uint64) error {
	const op = "altp2m(set_mem_access_multi)"
	if uint64(first)+n < uint64(first) {
		return fmt.Errorf("%s on domain %d: %d frames from %v are more than there are", op, dom, n, first)
	}
	v, err := xen.EncodeAccess(m.c.Layout, access)
	if err != nil {
		return fmt.Errorf("%s on domain %d: %w", op, dom, err)
	}
	size := int(min(n, listFrames))
	if size == 0 {
		return nil
	}
	pfns, err := m.c.Alloc(8 * size)
	if err != nil {
		return m.fail(op, dom, err, "")
	}
	defer pfns.Free()
	list, err := m.c.Alloc(size)
	if err != nil {
		return m.fail(op, dom, err, "")
	}
	defer list.Free()
	for i := range size {
		list.PutU8(i, v)
	}
	for at := uint64(0); at < n; at += uint64(size) {
		count := int(min(n-at, uint64(size)))
		for i := range count {
			pfns.PutU64(8*i, uint64(first)+at+uint64(i))
		}
		detail := fmt.Sprintf("%v for %d frames from %v in view %d", access, count, first+x86.GFN(at), view)
		if err := m.altP2M(op, dom, abi.AltP2MSetMemAccessMulti, detail, func(b *hypercall.Buffer, l *abi.AltP2MOp) {
			b.PutU16(l.MemAccessMultiView, view)
			b.PutU32(l.MemAccessMultiNr, uint32(count))
			b.PutU64(l.MemAccessMultiPFNList, pfns.Addr())
			b.PutU64(l.MemAccessMultiAccessList, list.Addr())
		}, nil); err != nil {
			return err
		}
	}
	return nil
}

// Remap has a frame lead, in one view, to the page that is behind another frame
// in the host's. The access of that other frame comes with it. Every reader
// outside the view, Xen's own emulator among them, still finds the frame's own
// page.
//
// A page that leaves the host's view anywhere between the lowest and the highest
// such other frame flushes the view, with all its restrictions
// (p2m_altp2m_propagate_change, xen/arch/x86/mm/p2m.c in 4.17): keep these frames
// together.
//
// Undone by Unmap.
func (m *Mutator) Remap(dom xen.DomID, view uint16, gfn, to x86.GFN) error {
	return m.altP2M("altp2m(change_gfn)", dom, abi.AltP2MChangeGFN, fmt.Sprintf("%v to %v in view %d", gfn, to, view), func(b *hypercall.Buffer, l *abi.AltP2MOp) {
		b.PutU16(l.ChangeGFNView, view)
		b.PutU64(l.ChangeGFNOld, uint64(gfn))
		b.PutU64(l.ChangeGFNNew, uint64(to))
	}, nil)
}

// Unmap has a frame lead to its own page again in one view, with the access it
// has in the host's.
//
// Undone by Remap and SetViewAccess.
func (m *Mutator) Unmap(dom xen.DomID, view uint16, gfn x86.GFN) error {
	return m.altP2M("altp2m(change_gfn)", dom, abi.AltP2MChangeGFN, fmt.Sprintf("%v in view %d", gfn, view), func(b *hypercall.Buffer, l *abi.AltP2MOp) {
		b.PutU16(l.ChangeGFNView, view)
		b.PutU64(l.ChangeGFNOld, uint64(gfn))
		b.PutU64(l.ChangeGFNNew, ^uint64(0))
	}, nil)
}

// SetPagingPool sets the size, in bytes, of the memory that Xen takes a
// domain's page tables from, those of its views included. Before Xen 4.17 it is
// rounded up to the MiB. It takes memory that the host must have free.
//
// Undone by SetPagingPool with the size from before (xen.Host.PagingPool), once
// the views are gone.
func (m *Mutator) SetPagingPool(dom xen.DomID, bytes uint64) error {
	l := m.c.Layout
	op, cmd := "domctl(set_paging_mempool_size)", uint32(abi.DomctlSetPagingMempoolSize)
	if !l.Has.PagingMempool {
		op, cmd = "domctl(shadow_op set_allocation)", abi.DomctlShadowOp
	}
	b, err := m.c.NewDomctl(cmd, uint16(dom))
	if err != nil {
		return m.fail(op, dom, err, "")
	}
	defer b.Free()
	if l.Has.PagingMempool {
		b.PutU64(l.Domctl.U+l.PagingMempool.PoolSize, bytes)
	} else {
		b.PutU32(l.Domctl.U+l.ShadowOp.Op, abi.ShadowOpSetAllocation)
		b.PutU32(l.Domctl.U+l.ShadowOp.MB, uint32((bytes+1<<20-1)>>20))
	}
	// Xen asks to be called again where it would take long.
	for range poolTries {
		if err = m.c.Domctl(b); !errors.Is(err, unix.EAGAIN) && !errors.Is(err, unix.EINTR) {
			break
		}
	}
	if err != nil {
		return m.fail(op, dom, err, fmt.Sprintf("%d bytes", bytes))
	}
	return nil
}

// poolTries bounds how often Xen may ask to be called again.
const poolTries = 1024
