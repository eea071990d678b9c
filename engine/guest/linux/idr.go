package linux

import (
	"errors"
	"fmt"
	"math/bits"

	"github.com/xen-hvi/hvi/engine/x86"
)

// IDROffsets lays out struct idr, a map from small numbers to pointers
// (include/linux/idr.h; over a radix tree since 4.11, over an xarray since
// 4.20).
type IDROffsets struct {
	// Head is the pointer to the topmost node, or to the only entry if its
	// number is 0.
	Head int `c:"idr_rt.xa_head|idr_rt.rnode"`
	// Base is the number of the entry at index 0.
	Base int `c:"idr_base"`
}

// XANodeOffsets lays out struct xa_node, radix_tree_node before 4.20.
type XANodeOffsets struct {
	Size   int
	Shift  int `c:"shift"`
	Offset int `c:"offset"`
	Parent int `c:"parent"`
	Slots  int `c:"slots"`
	Chunk  int `c:"slots[]"`
	// Values is a member that came with the xarray and its marks of pointers.
	Values int `c:"nr_values"`
}

const (
	// maxShift bounds the shift of a topmost node: with 64 slots to a node, the
	// one that spans all 64-bit indices has 60.
	maxShift = 60
	// maxChunk bounds the slots of a node: XA_CHUNK_SIZE is 64, or 16 on small
	// systems.
	maxChunk = 64
	// xaZero is XA_ZERO_ENTRY: a number that is taken with nothing under it.
	xaZero = 257<<2 | 2
)

// idr walks a struct idr (pids, eBPF programs and links) in the order of its
// numbers and calls f with each number and the pointer that is kept under it.
// f may return errStop. It is one attempt, for [Reader.consistently]: errTorn
// where a node does not point back at its parent or was taken out meanwhile.
// More than most entries are ErrImplausible, and more nodes than so many can
// need.
//
// The memory of an entry may be in use for something else by now: f must check
// that what it copies says the same number.
func (r *Reader) idr(addr x86.VirtAddr, most int, f func(id uint64, entry x86.VirtAddr) error) error {
	o, n := &r.k.Offsets.IDR, &r.k.Offsets.XANode
	if err := need("idr.idr_rt", o.Head, "xa_node.shift", n.Shift, "xa_node.offset", n.Offset,
		"xa_node.parent", n.Parent, "xa_node.slots", n.Slots); err != nil {
		return err
	}
	if n.Chunk < 2 || n.Chunk > maxChunk || n.Chunk&(n.Chunk-1) != 0 {
		return &ReadError{What: "xa_node.slots", Got: fmt.Sprintf("%d of them", n.Chunk), Err: ErrUnsupported}
	}
	w := idrWalk{r: r, n: n, f: f, most: most, bits: bits.TrailingZeros(uint(n.Chunk)), node: 2}
	if n.Values < 0 {
		w.node = 1 // RADIX_TREE_INTERNAL_NODE
	}
	if o.Base >= 0 {
		base, err := r.as.ReadUint32(addr + x86.VirtAddr(o.Base))
		if err != nil {
			return &ReadError{What: "idr.idr_base", Err: err}
		}
		w.base = uint64(base)
	}
	at := addr + x86.VirtAddr(o.Head)
	head, err := r.as.ReadUint64(at)
	switch {
	case err != nil:
		return &ReadError{What: "idr.idr_rt", Err: err}
	case w.isNode(head):
		err = w.visit(idrSlot{at: at, v: head, shift: -1}, 0)
	default:
		err = w.entry(head, 0)
	}
	if errors.Is(err, errStop) {
		return nil
	}
	return err
}

// idrWalk is a walk of one idr.
type idrWalk struct {
	r    *Reader
	n    *XANodeOffsets
	f    func(id uint64, entry x86.VirtAddr) error
	base uint64
	bits int    // log2 of a node's slots
	node uint64 // the two low bits of a pointer to a node
	most int
	// entries and nodes were met so far.
	entries, nodes int
	copies         [maxShift + 1]object // of the nodes above, by depth
}

// idrSlot is a slot with a node in it: the parent's slot number offset, at the
// address at, held v. shift is what the node's must be, -1 for any, and index
// that of the first entry under it.
type idrSlot struct {
	at, parent x86.VirtAddr
	v          uint64
	offset     int
	shift      int
	index      uint64
}

// isNode tells a node from an entry and from the special ones, which lie in the
// first page.
func (w *idrWalk) isNode(v uint64) bool { return v&3 == w.node && v > x86.PageSize }

// visit walks what is under a node.
func (w *idrWalk) visit(s idrSlot, depth int) error {
	if w.nodes++; w.nodes/(maxShift/w.bits+1) > w.most { // each entry has at most one node on each level
		return &ReadError{What: "an IDR", Got: fmt.Sprintf("%d nodes for %d entries", w.nodes, w.entries), Err: ErrImplausible}
	}
	at, o, n := x86.VirtAddr(s.v&^3), &w.copies[depth], w.n
	if w.r.read(o, at, n.Slots+8*n.Chunk) != nil {
		return errTorn
	}
	if now, err := w.r.as.ReadUint64(s.at); err != nil || now != s.v {
		return errTorn
	}
	shift := int(o.u8(n.Shift))
	if s.shift < 0 && (shift > maxShift || shift%w.bits != 0) || s.shift >= 0 && shift != s.shift ||
		int(o.u8(n.Offset)) != s.offset || o.pointer(n.Parent) != s.parent {
		return errTorn
	}
	for i := range n.Chunk {
		v, index := o.u64(n.Slots+8*i), s.index+uint64(i)<<shift
		var err error
		switch {
		case v == 0:
		case shift == 0:
			err = w.entry(v, index)
		case w.isNode(v):
			err = w.visit(idrSlot{at: at + x86.VirtAddr(n.Slots+8*i), parent: at, v: v, offset: i, shift: shift - w.bits, index: index}, depth+1)
		default:
			err = errTorn
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// entry hands an entry on.
func (w *idrWalk) entry(v, index uint64) error {
	switch {
	case v == 0, v == xaZero:
		return nil
	case v&3 != 0, !x86.VirtAddr(v).KernelHalf():
		return errTorn // a slot that is being changed
	}
	if w.entries++; w.entries > w.most {
		return &ReadError{What: "an IDR", Got: fmt.Sprintf("more than %d entries", w.most), Err: ErrImplausible}
	}
	return w.f(w.base+index, x86.VirtAddr(v))
}
