package linux

import "github.com/xen-hvi/hvi/engine/x86"

// The kernel's trees: the maple tree (lib/maple_tree.c, from 6.1 on) and the
// red-black tree (lib/rbtree.c). Each walk is bounded in depth and in what it
// visits, and is errTorn where a node does not fit the one above it.

// MapleOffsets lays out struct maple_tree.
type MapleOffsets struct {
	Root int `c:"ma_root"`
}

// MapleNodeOffsets lays out struct maple_node. A node is of one of several
// types, which its address says.
type MapleNodeOffsets struct {
	Size        int
	Parent      int `c:"parent"`
	Dense       int `c:"slot"`
	DenseSlots  int `c:"slot[]"`
	Pivots      int `c:"mr64.pivot"`
	PivotCount  int `c:"mr64.pivot[]"`
	Slots       int `c:"mr64.slot"`
	SlotCount   int `c:"mr64.slot[]"`
	APivots     int `c:"ma64.pivot"`
	APivotCount int `c:"ma64.pivot[]"`
	ASlots      int `c:"ma64.slot"`
	ASlotCount  int `c:"ma64.slot[]"`
}

// MapleTypes are constants of enum maple_type.
type MapleTypes struct {
	Dense  int `c:"maple_dense"`
	Leaf   int `c:"maple_leaf_64"`
	Range  int `c:"maple_range_64"`
	ARange int `c:"maple_arange_64"`
}

// RBRootOffsets lays out struct rb_root.
type RBRootOffsets struct {
	Node int `c:"rb_node"`
}

// RBNodeOffsets lays out struct rb_node.
type RBNodeOffsets struct {
	Size   int
	Parent int `c:"__rb_parent_color"`
	Right  int `c:"rb_right"`
	Left   int `c:"rb_left"`
}

// Bounds of trees.
const (
	// mapleNodeSize is the size and the alignment of a node, whose address has
	// its type in the bits below (MAPLE_NODE_MASK, MAPLE_NODE_TYPE_SHIFT).
	mapleNodeSize  = 256
	mapleTypeShift = 3
	mapleTypeMask  = 0xf
	// mapleInner is how the address of a node in a node ends (MAPLE_ENODE_NULL);
	// the root's has MAPLE_ROOT_NODE besides.
	mapleInner = 4
	mapleRoot  = 2
	// maxMapleDepth is MAPLE_HEIGHT_MAX.
	maxMapleDepth = 31
	// maxRBDepth is above twice the logarithm of any number of nodes.
	maxRBDepth = 128
)

// mapleWalk walks a maple tree.
type mapleWalk struct {
	r     *Reader
	what  string
	nodes [maxMapleDepth + 1]object
	most  int // how many nodes and entries may be visited
	left  int
	f     func(first, last uint64, entry x86.VirtAddr) error
}

// maple calls f with the entries of a maple tree and the range of indices of
// each, in their order.
func (r *Reader) maple(what string, tree x86.VirtAddr, most int, f func(first, last uint64, entry x86.VirtAddr) error) error {
	o, k := &r.k.Offsets.MapleNode, &r.k.Offsets.MapleTypes
	if err := need("maple_tree.ma_root", r.k.Offsets.Maple.Root, "maple_node", o.Pivots, "maple_node", o.APivots, "enum maple_type", k.Leaf); err != nil {
		return err
	}
	root, err := r.as.ReadPointer(tree + x86.VirtAddr(r.k.Offsets.Maple.Root))
	if err != nil {
		return &ReadError{What: what, Err: err}
	}
	switch {
	case root == 0:
		return nil
	case root&3 != mapleRoot: // an entry for index 0 and no node
		return f(0, 0, root)
	}
	w := &mapleWalk{r: r, what: what, most: most, left: most, f: f}
	if err := w.node(root, 0, ^uint64(0), 0); err != nil {
		return err
	}
	if now, err := r.as.ReadPointer(tree + x86.VirtAddr(r.k.Offsets.Maple.Root)); err != nil || now != root {
		return errTorn
	}
	return nil
}

// node walks the subtree of a node, which is for the indices from first to last.
func (w *mapleWalk) node(enc x86.VirtAddr, first, last uint64, depth int) error {
	o, k := &w.r.k.Offsets.MapleNode, &w.r.k.Offsets.MapleTypes
	at, kind := enc&^(mapleNodeSize-1), int(enc>>mapleTypeShift&mapleTypeMask)
	if depth > maxMapleDepth {
		return errTorn
	}
	if w.left--; w.left < 0 {
		return tooMany(w.what, w.most)
	}
	n := &w.nodes[depth]
	if err := w.r.read(n, at, mapleNodeSize); err != nil {
		return errTorn
	}
	// A node that was taken out of the tree is its own parent.
	if n.pointer(o.Parent)&^(mapleNodeSize-1) == at {
		return errTorn
	}
	var pivots, npivots, slots, nslots int
	leaf := false
	switch kind {
	case k.Dense:
		for i := range uint64(min(o.DenseSlots, mapleNodeSize/8)) {
			if first+i < first || first+i > last {
				break
			}
			if e := n.pointer(o.Dense + 8*int(i)); e != 0 {
				if err := w.f(first+i, first+i, e); err != nil {
					return err
				}
			}
		}
		return nil
	case k.Leaf:
		pivots, npivots, slots, nslots, leaf = o.Pivots, o.PivotCount, o.Slots, o.SlotCount, true
	case k.Range:
		pivots, npivots, slots, nslots = o.Pivots, o.PivotCount, o.Slots, o.SlotCount
	case k.ARange:
		pivots, npivots, slots, nslots = o.APivots, o.APivotCount, o.ASlots, o.ASlotCount
	default:
		return errTorn
	}
	for i := range min(nslots, mapleNodeSize/8) {
		// A pivot is the last index of its slot. The last slot in use has
		// none, or 0.
		end := last
		if i < npivots {
			if p := n.u64(pivots + 8*i); p != 0 || i == 0 {
				end = p
			}
		}
		if end < first || end > last {
			return errTorn
		}
		switch e := n.pointer(slots + 8*i); {
		case e == 0:
		case leaf:
			if err := w.f(first, end, e); err != nil {
				return err
			}
		case e&7 != mapleInner:
			return errTorn
		default:
			if err := w.node(e, first, end, depth+1); err != nil {
				return err
			}
		}
		if end == last {
			break
		}
		first = end + 1
	}
	return nil
}

// rbTree calls f with the nodes of a red-black tree, in their order.
func (r *Reader) rbTree(what string, root x86.VirtAddr, most int, f func(node x86.VirtAddr) error) error {
	o := &r.k.Offsets.RBNode
	if err := need("rb_node.__rb_parent_color", o.Parent, "rb_node.rb_left", o.Left, "rb_node.rb_right", o.Right); err != nil {
		return err
	}
	top, err := r.as.ReadPointer(root + x86.VirtAddr(max(r.k.Offsets.RBRoot.Node, 0)))
	if err != nil {
		return &ReadError{What: what, Err: err}
	}
	left := most
	var walk func(node, parent x86.VirtAddr, depth int) error
	walk = func(node, parent x86.VirtAddr, depth int) error {
		if node == 0 {
			return nil
		}
		if depth > maxRBDepth || !node.KernelHalf() || node&3 != 0 {
			return errTorn
		}
		if left--; left < 0 {
			return tooMany(what, most)
		}
		word := func(off int) x86.VirtAddr {
			var v x86.VirtAddr
			if err == nil {
				v, err = r.as.ReadPointer(node + x86.VirtAddr(off))
			}
			return v
		}
		up, before, after := word(o.Parent), word(o.Left), word(o.Right)
		if err != nil || up&^3 != parent {
			return errTorn
		}
		if err := walk(before, node, depth+1); err != nil {
			return err
		}
		if err := f(node); err != nil {
			return err
		}
		return walk(after, node, depth+1)
	}
	return walk(top, 0, 0)
}
