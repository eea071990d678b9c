package guest

import "github.com/xen-hvi/hvi/engine/x86"

// Shape of a [TLB]. A set is one cache line of four entries.
const (
	tlbWays        = 4
	tlbPageSets    = 4096 // 16,384 entries of 4 KiB
	tlbRegionSets  = 1024 // 4,096 entries of 2 MiB
	tlbGigaSets    = 64   // 256 entries of 1 GiB
	tlbRootSets    = 64   // 256 roots
	tlbTagBits     = 19
	tlbTagEnd      = 1 << tlbTagBits
	tlbTagMask     = tlbTagEnd - 1
	tlbMul         = 0x9e37_79b9_7f4a_7c15 // 2^64 by the golden ratio
	tlbRightsMask  = pteW | pteU | pteNX
	tlbAddressMask = 1<<57 - 1 // the widest linear address there is
)

// TLB is a translation cache for the page tables of one [Memory]: a fixed 330
// KiB, of which only what is used costs anything, with room for 4,096 scattered
// 4 KiB translations besides those of larger pages and of upper-level tables. It
// is filled by the reads of an [AddressSpace] made with
// [AddressSpace.WithTLB]; one TLB serves any number of address spaces over the
// same Memory.
//
// A TLB has no lock: it belongs to one goroutine at a time. It allocates nothing
// after [NewTLB].
//
// # When it is valid
//
// Nothing tells hvi that a guest has changed its page tables. So on a running
// guest a TLB is valid within one reading operation (one list walked, one
// structure copied) and is flushed at the operation's start; what such an
// operation read is consistent at best, and is checked as everything read from a
// guest is. On a memory image, and while all vCPUs are held, it stays valid.
//
// Like the processor's, it never remembers that an address is not mapped. Unlike
// the processor's, it knows no global pages: each root has its own entries, and
// one root's flush leaves all others in place.
type TLB struct {
	pages   [tlbPageSets]tlbSet
	regions [tlbRegionSets]tlbSet
	gigas   [tlbGigaSets]tlbSet

	// Every root seen since the last flush has a tag, which is part of the
	// key of its entries: a root that gets a new tag has lost them all.
	roots   [tlbRootSets][tlbWays]tlbRoot
	nextTag uint64
	minTag  uint64 // tags below are of before the last Flush

	// The root last used, to look it up once for many translations.
	curRoot uint64
	curTag  uint64
	curMix  uint64

	victim uint
}

// tlbEntry is a valid page-table entry of level 1, 2 or 3. key is the part of
// the linear address that leads to it, and the root's tag; 0 is none. val is the
// entry's address, its size bit, and the rights over all levels down to it.
type tlbEntry struct{ key, val uint64 }

type tlbSet [tlbWays]tlbEntry

// tlbRoot gives a root its tag. key is the root's address with the paging mode
// in its low bits, since entries made under one mode mean nothing in another.
type tlbRoot struct{ key, tag uint64 }

// NewTLB returns an empty TLB.
func NewTLB() *TLB { return &TLB{nextTag: 1, minTag: 1} }

// WithTLB returns the same address space, whose reads and translations use a
// TLB and fill it. From then on it is safe for one goroutine only, the TLB's
// owner. A nil TLB returns one without.
func (as AddressSpace) WithTLB(t *TLB) AddressSpace {
	as.tlb = t
	return as
}

// Flush forgets everything, in constant time.
func (t *TLB) Flush() {
	t.minTag = t.nextTag
	t.curTag = 0
}

// FlushRoot forgets everything of one root, in constant time, and nothing of
// another. Bits of root that are no part of a table's address are ignored.
func (t *TLB) FlushRoot(root x86.PhysAddr) {
	root &= x86.CR3AddrMask
	set := &t.roots[rootSet(uint64(root))]
	for i := range set {
		if set[i].key&x86.CR3AddrMask == uint64(root) {
			set[i] = tlbRoot{}
		}
	}
	if t.curRoot&x86.CR3AddrMask == uint64(root) {
		t.curTag = 0
	}
}

// FlushPage forgets how va is translated under one root, at every level, as the
// instruction INVLPG does: a large page around va is forgotten whole.
func (t *TLB) FlushPage(root x86.PhysAddr, va x86.VirtAddr) {
	root &= x86.CR3AddrMask
	for _, r := range t.roots[rootSet(uint64(root))] {
		if r.tag < t.minTag || r.key&x86.CR3AddrMask != uint64(root) {
			continue
		}
		mix := tagMix(r.tag)
		for level := 1; level <= 3; level++ {
			key := tlbKey(va, level, r.tag)
			set := t.set(key>>tlbTagBits, level, mix)
			for i := range set {
				if set[i].key == key {
					set[i] = tlbEntry{}
				}
			}
		}
	}
}

// use makes the root of an address space the current one.
func (t *TLB) use(root uint64) {
	set := &t.roots[rootSet(root)]
	into := &set[t.victim%tlbWays]
	for i := range set {
		r := &set[i]
		if r.tag < t.minTag {
			into = r
		} else if r.key == root {
			t.curRoot, t.curTag, t.curMix = root, r.tag, tagMix(r.tag)
			return
		}
	}
	t.victim++
	if t.nextTag == tlbTagEnd {
		// Out of tags, once in half a million flushes: an old entry must
		// not come to life under a tag given out again.
		*t = TLB{nextTag: 1, minTag: 1, victim: t.victim}
	}
	*into = tlbRoot{key: root, tag: t.nextTag}
	t.curRoot, t.curTag, t.curMix = root, t.nextTag, tagMix(t.nextTag)
	t.nextTag++
}

// rootSet spreads roots, which are page addresses, by their address alone, so
// that FlushRoot finds a root of every mode.
func rootSet(root uint64) uint64 {
	return (root & x86.CR3AddrMask) * tlbMul >> 58
}

// tagMix keeps the same addresses of different roots out of each other's sets.
// Its multiplier is another one, or neighbouring roots would meet again at
// neighbouring pages.
func tagMix(tag uint64) uint64 { return tag * 0xd6e8_feb8_6659_fd93 >> 48 }

func tlbKey(va x86.VirtAddr, level int, tag uint64) uint64 {
	return uint64(va)&tlbAddressMask>>(12+9*(level-1))<<tlbTagBits | tag
}

// set returns where the entry of a level for a page number belongs. Neighbours
// are spread over all sets, and so are pages any power of two apart (Fibonacci
// hashing).
func (t *TLB) set(page uint64, level int, mix uint64) *tlbSet {
	h := page*tlbMul>>48 ^ mix
	switch level {
	case 1:
		return &t.pages[h>>4%tlbPageSets]
	case 2:
		return &t.regions[h>>6%tlbRegionSets]
	default:
		return &t.gigas[h>>10%tlbGigaSets]
	}
}

// find returns the entry of a level that va leads to under the current root.
func (t *TLB) find(va x86.VirtAddr, level int) (val uint64, ok bool) {
	key := tlbKey(va, level, t.curTag)
	set := t.set(key>>tlbTagBits, level, t.curMix)
	switch key {
	case set[0].key:
		return set[0].val, true
	case set[1].key:
		return set[1].val, true
	case set[2].key:
		return set[2].val, true
	case set[3].key:
		return set[3].val, true
	}
	return 0, false
}

// put stores what find has not found.
func (t *TLB) put(va x86.VirtAddr, level int, val uint64) {
	key := tlbKey(va, level, t.curTag)
	set := t.set(key>>tlbTagBits, level, t.curMix)
	into := &set[t.victim%tlbWays]
	for i := range set {
		if set[i].key&tlbTagMask < t.minTag {
			into = &set[i]
			break
		}
	}
	t.victim++
	*into = tlbEntry{key: key, val: val}
}

// translateCached is Translate with a TLB; va is canonical.
func (as *AddressSpace) translateCached(va x86.VirtAddr) (Translation, error) {
	t := as.tlb
	if root := as.tlbRoot(); t.curTag == 0 || t.curRoot != root {
		t.use(root)
	}
	if e, ok := t.find(va, 1); ok {
		return leaf(va, 1, e), nil
	}
	if e, ok := t.find(va, 2); ok {
		if e&ptePS != 0 {
			return leaf(va, 2, e), nil
		}
		return as.walk(va, 1, x86.PhysAddr(e&pteAddr), e&tlbRightsMask)
	}
	if e, ok := t.find(va, 3); ok {
		if e&ptePS != 0 {
			return leaf(va, 3, e), nil
		}
		return as.walk(va, 2, x86.PhysAddr(e&pteAddr), e&tlbRightsMask)
	}
	return as.walk(va, int(as.levels), as.root, pteW|pteU)
}

// tlbRoot is the root with the paging mode, as the TLB tells roots apart.
func (as *AddressSpace) tlbRoot() uint64 {
	root := uint64(as.root) | uint64(as.levels)
	if as.noNX {
		root |= 8
	}
	return root
}
