package guard

import "github.com/xen-hvi/hvi/engine/x86"

// frameTable maps a guest frame to a small number in two loads, whatever the
// number of frames. Zero means that the frame is not in the table. Its size is
// set by the guest's highest frame, as Xen knows it, and not by the frame
// numbers in the guest's page tables.
type frameTable struct {
	leaves []*[frameLeaf]uint8
}

const (
	frameLeafShift = 9
	frameLeaf      = 1 << frameLeafShift
)

func newFrameTable(maxGFN x86.GFN) frameTable {
	return frameTable{leaves: make([]*[frameLeaf]uint8, maxGFN>>frameLeafShift+1)}
}

// set reports false for a frame beyond the table.
func (t *frameTable) set(gfn x86.GFN, v uint8) bool {
	i := gfn >> frameLeafShift
	if i >= x86.GFN(len(t.leaves)) {
		return false
	}
	if t.leaves[i] == nil {
		t.leaves[i] = new([frameLeaf]uint8)
	}
	t.leaves[i][gfn&(frameLeaf-1)] = v
	return true
}

func (t *frameTable) get(gfn x86.GFN) uint8 {
	i := gfn >> frameLeafShift
	if i >= x86.GFN(len(t.leaves)) || t.leaves[i] == nil {
		return 0
	}
	return t.leaves[i][gfn&(frameLeaf-1)]
}
