package mutate

import (
	"errors"
	"fmt"

	"github.com/xen-hvi/hvi/engine/x86"
	"github.com/xen-hvi/hvi/engine/xen"
	"github.com/xen-hvi/hvi/engine/xen/abi"
)

const (
	// rangeFrames is how many frames one call restricts. Xen's count is 32
	// bits wide, and what it needs to continue an interrupted call shares a
	// word with the operation's number.
	rangeFrames = 1 << 20
	// listFrames is how many frames one call with a list restricts: as many
	// as leave both lists within a hypercall buffer.
	listFrames = 4096
	// defaultAccess stands for the access of frames that are not set.
	defaultAccess = ^uint64(0)
)

// SetMemAccess sets the access of n frames from first in the host's view. It
// needs a connected monitor ring and Intel VT-x with HAP; it fails with EINVAL
// if the last frame lies above xen.Host.MaxGFN. If it fails, part of the range
// may be set. A vCPU that is running sees it when it next touches the pages;
// Xen flushes what the processors remember.
//
// Undone by SetMemAccess with what xen.Host.MemAccess said before: xen.AccessRWX
// where nobody else restricts the domain.
func (m *Mutator) SetMemAccess(dom xen.DomID, access xen.Access, first x86.GFN, n uint64) error {
	const op = "mem_access(set)"
	if uint64(first)+n < uint64(first) {
		return fmt.Errorf("%s on domain %d: %d frames from %v are more than there are", op, dom, n, first)
	}
	v, err := xen.EncodeAccess(m.c.Layout, access)
	if err != nil {
		return fmt.Errorf("%s on domain %d: %w", op, dom, err)
	}
	l := &m.c.Layout.MemAccessOp
	b, err := m.c.Alloc(l.Size)
	if err != nil {
		return m.fail(op, dom, err, "")
	}
	defer b.Free()
	b.PutU8(l.Op, abi.MemAccessOpSet)
	b.PutU8(l.Access, v)
	b.PutU16(l.DomID, uint16(dom))
	for at := uint64(0); at < n; at += rangeFrames {
		count := min(n-at, rangeFrames)
		b.PutU64(l.PFN, uint64(first)+at)
		b.PutU32(l.Nr, uint32(count))
		if err := m.memAccess(b); err != nil {
			return m.fail(op, dom, err, fmt.Sprintf("%v for %d frames from %v", access, count, first+x86.GFN(at)))
		}
	}
	return nil
}

// SetMemAccessMulti sets the access of each frame in gfns to the element of
// access at the same place. Requirements and failure are those of
// SetMemAccess.
//
// Undone by SetMemAccessMulti with the accesses from before.
func (m *Mutator) SetMemAccessMulti(dom xen.DomID, gfns []x86.GFN, access []xen.Access) error {
	const op = "mem_access(set_multi)"
	if len(gfns) != len(access) {
		return fmt.Errorf("%s on domain %d: %d frames and %d accesses", op, dom, len(gfns), len(access))
	}
	if len(gfns) == 0 {
		return nil
	}
	l := &m.c.Layout.MemAccessOp
	size := min(len(gfns), listFrames)
	b, err := m.c.Alloc(l.Size)
	if err != nil {
		return m.fail(op, dom, err, "")
	}
	defer b.Free()
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
	b.PutU8(l.Op, abi.MemAccessOpSetMulti)
	b.PutU16(l.DomID, uint16(dom))
	b.PutU64(l.PFNList, pfns.Addr())
	b.PutU64(l.AccessList, list.Addr())
	for at := 0; at < len(gfns); at += size {
		count := min(len(gfns)-at, size)
		for i := range count {
			v, err := xen.EncodeAccess(m.c.Layout, access[at+i])
			if err != nil {
				return fmt.Errorf("%s on domain %d: %w", op, dom, err)
			}
			pfns.PutU64(8*i, uint64(gfns[at+i]))
			list.PutU8(i, v)
		}
		b.PutU32(l.Nr, uint32(count))
		if err := m.memAccess(b); err != nil {
			return m.fail(op, dom, err, fmt.Sprintf("entries %d to %d of %d, the first for gfn %v", at, at+count-1, len(gfns), gfns[at]))
		}
	}
	return nil
}

// SetDefaultMemAccess sets the access of frames that come to be from now on,
// not of those that are there.
//
// Undone by SetDefaultMemAccess with xen.AccessRWX.
func (m *Mutator) SetDefaultMemAccess(dom xen.DomID, access xen.Access) error {
	const op = "mem_access(set default)"
	if access == xen.AccessDefault {
		return errors.New(op + ": the default cannot be set to itself")
	}
	v, err := xen.EncodeAccess(m.c.Layout, access)
	if err != nil {
		return fmt.Errorf("%s on domain %d: %w", op, dom, err)
	}
	l := &m.c.Layout.MemAccessOp
	b, err := m.c.Alloc(l.Size)
	if err != nil {
		return m.fail(op, dom, err, "")
	}
	defer b.Free()
	b.PutU8(l.Op, abi.MemAccessOpSet)
	b.PutU8(l.Access, v)
	b.PutU16(l.DomID, uint16(dom))
	b.PutU64(l.PFN, defaultAccess)
	if err := m.memAccess(b); err != nil {
		return m.fail(op, dom, err, access.String())
	}
	return nil
}
