package linuxtest

import (
	"github.com/cilium/ebpf/btf"

	"github.com/xen-hvi/hvi/engine/x86"
)

// Offsets of the members of struct idr and of struct xa_node, whose sizes are
// in bytes.
const (
	IDRHead = 8
	IDRBase = 16

	XANodeSize   = 576
	XANodeShift  = 0
	XANodeOffset = 1
	XANodeParent = 8
	XANodeSlots  = 40
	XAChunk      = 64
)

// IDRTypes are struct idr and struct xa_node.
func IDRTypes() []btf.Type {
	return []btf.Type{
		structOf("idr", 24,
			member("idr_rt", 0, structOf("xarray", 16, member("xa_head", IDRHead, pointer))),
			member("idr_base", IDRBase, u32)),
		structOf("xa_node", XANodeSize,
			member("shift", XANodeShift, u8), member("offset", XANodeOffset, u8), member("nr_values", 3, u8),
			member("parent", XANodeParent, pointer), member("slots", XANodeSlots, array(pointer, XAChunk))),
	}
}

// WriteIDR writes a struct idr at a place and its nodes from nodes on, a page
// each, as the kernel would for these entries. It returns the addresses of the
// nodes.
func (g *Guest) WriteIDR(idr, nodes x86.VirtAddr, entries map[uint64]x86.VirtAddr) []x86.VirtAddr {
	highest := uint64(0)
	for id := range entries {
		highest = max(highest, id)
	}
	g.WriteUint64(idr+IDRBase, 0)
	if highest == 0 {
		g.WriteUint64(idr+IDRHead, uint64(entries[0]))
		return nil
	}
	shift := 0
	for highest>>(shift+6) != 0 {
		shift += 6
	}
	var made []x86.VirtAddr
	node := func(shift, offset int, parent x86.VirtAddr) x86.VirtAddr {
		at := nodes + x86.VirtAddr(len(made))*x86.PageSize
		made = append(made, at)
		g.Write(at, make([]byte, XANodeSize))
		g.Write(at, []byte{XANodeShift: byte(shift), XANodeOffset: byte(offset)})
		g.WriteUint64(at+XANodeParent, uint64(parent))
		return at
	}
	root := node(shift, 0, 0)
	g.WriteUint64(idr+IDRHead, uint64(root)|2)
	below := map[x86.VirtAddr]x86.VirtAddr{} // by the address of the slot
	for id, entry := range entries {
		at := root
		for s := shift; ; s -= 6 {
			i := int(id >> s & (XAChunk - 1))
			slot := at + XANodeSlots + x86.VirtAddr(8*i)
			if s == 0 {
				g.WriteUint64(slot, uint64(entry))
				break
			}
			if below[slot] == 0 {
				below[slot] = node(s-6, i, at)
				g.WriteUint64(slot, uint64(below[slot])|2)
			}
			at = below[slot]
		}
	}
	return made
}
