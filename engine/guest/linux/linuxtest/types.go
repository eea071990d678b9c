package linuxtest

import (
	"encoding/binary"

	"github.com/cilium/ebpf/btf"

	"github.com/xen-hvi/hvi/engine/x86"
)

// Types of members.
var (
	u8      = &btf.Int{Name: "unsigned char", Size: 1}
	u16     = &btf.Int{Name: "short unsigned int", Size: 2}
	u32     = &btf.Int{Name: "unsigned int", Size: 4}
	u64     = &btf.Int{Name: "long long unsigned int", Size: 8}
	pointer = &btf.Pointer{Target: &btf.Void{}}
)

// member is a member of a structure, off bytes from its start.
func member(name string, off uint32, t btf.Type) btf.Member {
	return btf.Member{Name: name, Type: t, Offset: btf.Bits(off * 8)}
}

func array(t btf.Type, n uint32) *btf.Array { return &btf.Array{Type: t, Index: u32, Nelems: n} }

func structOf(name string, size uint32, members ...btf.Member) *btf.Struct {
	return &btf.Struct{Name: name, Size: size, Members: members}
}

// Heap gives out memory of a guest's that nothing else uses, zeroed.
type Heap struct {
	g    *Guest
	next x86.VirtAddr
}

// HeapStart is where a heap begins, from Config.Base on.
const HeapStart = Data + 0x8_0000

// NewHeap returns the memory from HeapStart on.
func (g *Guest) NewHeap() *Heap { return &Heap{g, g.Base + HeapStart} }

// Alloc takes n bytes.
func (h *Heap) Alloc(n int) x86.VirtAddr {
	at := h.next
	h.next += x86.VirtAddr(n+15) &^ 15
	h.g.Write(at, make([]byte, n))
	return at
}

// String places a string and its NUL.
func (h *Heap) String(s string) x86.VirtAddr {
	at := h.Alloc(len(s) + 1)
	h.g.Write(at, []byte(s))
	return at
}

// WriteUint32 stores a number.
func (g *Guest) WriteUint32(at x86.VirtAddr, v uint32) {
	g.Write(at, binary.LittleEndian.AppendUint32(nil, v))
}

// WriteUint16 stores a number.
func (g *Guest) WriteUint16(at x86.VirtAddr, v uint16) {
	g.Write(at, binary.LittleEndian.AppendUint16(nil, v))
}

// WriteChain links nodes behind the head of a hash chain, which ends with end.
func (g *Guest) WriteChain(head x86.VirtAddr, end uint64, nodes ...x86.VirtAddr) {
	link := head
	for _, n := range nodes {
		g.WriteUint64(link, uint64(n))
		g.WriteUint64(n+8, uint64(link))
		link = n
	}
	g.WriteUint64(link, end)
}

// WriteList links nodes behind the head of a circular list.
func (g *Guest) WriteList(head x86.VirtAddr, nodes ...x86.VirtAddr) {
	prev := head
	for _, n := range append(nodes, head) {
		g.WriteUint64(prev, uint64(n))
		g.WriteUint64(n+8, uint64(prev))
		prev = n
	}
}
