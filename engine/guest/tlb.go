package guest

import "github.com/xen-hvi/hvi/engine/x86"

// Shape of a [TLB]. A set is one cache line of four entries.
const (
	tlbWays       = 4
	tlbPageSets   = 4096 // 16,384 entries of 4 KiB
	tlbRegionSets = 1024 // 4,096 entries of 2 MiB
	tlbGigaSets   = 64   // 256 entries of 1 GiB
	tlbRootSets   = 64   // 256 roots
	tlbTagBits    = 19   // beside the 45 bits of a page's number
	tlbTagEnd     = 1 << tlbTagBits
	tlbTagMask    = tlbTagEnd - 1
	tlbMul        = 0x9e37_79b9_7f4a_7c15 // 2^64 by the golden ratio
	tlbRightsMask = pteW | pteU | pteNX
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

	// The root last used, to look it up once for many translations; 0 is
	// none.
	curRoot uint64
	curTag  uint64
	curMix  uint64

	victim uint
}

// tlbEntry is a valid page-table entry of level 1, 2 or 3. key is the part of
// the linear address that leads to it, and the root's tag; 0 is none.
type tlbEntry struct {
	key uint64
	val mapping
}

type tlbSet [tlbWays]tlbEntry

// tlbRoot gives a root its tag. key is the root with the paging mode, as an
// AddressSpace has it: entries made under one mode mean nothing in another.
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
	t.curRoot = 0
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
		t.curRoot = 0
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
		key := tlbKey(uint64(va)>>12, r.tag)
		t.pages[pageSet(uint64(va)>>12, tagMix(r.tag))].drop(key)
		key = tlbKey(uint64(va)>>21, r.tag)
		t.regions[regionSet(uint64(va)>>21, tagMix(r.tag))].drop(key)
		key = tlbKey(uint64(va)>>30, r.tag)
		t.gigas[gigaSet(uint64(va)>>30, tagMix(r.tag))].drop(key)
	}
}

// use makes a root the current one.
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

// tlbKey is the key of a page's number at any level. The bits shifted out are
// the sign of a canonical address.
func tlbKey(page, tag uint64) uint64 { return page<<tlbTagBits | tag }

// pageSet, regionSet and gigaSet say in which set the entry for a page's number
// belongs. Neighbours are spread over all sets, and so are pages any power of
// two apart (Fibonacci hashing).
func pageSet(page, mix uint64) uint64   { return (page*tlbMul>>52 ^ mix) % tlbPageSets }
func regionSet(page, mix uint64) uint64 { return (page*tlbMul>>54 ^ mix) % tlbRegionSets }
func gigaSet(page, mix uint64) uint64   { return (page*tlbMul>>58 ^ mix) % tlbGigaSets }

// find returns the entry of a key. It branches once: which way has the entry is
// not to be predicted.
func (s *tlbSet) find(key uint64) (val mapping, ok bool) {
	i := 0
	if s[1].key == key {
		i = 1
	}
	if s[2].key == key {
		i = 2
	}
	if s[3].key == key {
		i = 3
	}
	return s[i].val, s[i].key == key
}

// drop removes the entry of a key.
func (s *tlbSet) drop(key uint64) {
	for i := range s {
		if s[i].key == key {
			s[i] = tlbEntry{}
		}
	}
}

// put stores what find has not found.
func (t *TLB) put(va x86.VirtAddr, level uint64, val mapping) {
	page := uint64(va) >> ((3 + 9*level) & 63)
	var set *tlbSet
	switch level {
	case 1:
		set = &t.pages[pageSet(page, t.curMix)]
	case 2:
		set = &t.regions[regionSet(page, t.curMix)]
	default:
		set = &t.gigas[gigaSet(page, t.curMix)]
	}
	into := &set[t.victim%tlbWays]
	for i := range set {
		if set[i].key&tlbTagMask < t.minTag {
			into = &set[i]
			break
		}
	}
	t.victim++
	*into = tlbEntry{key: tlbKey(page, t.curTag), val: val}
}

// cached is lookup with a TLB; va is canonical.
func (as *AddressSpace) cached(t *TLB, va x86.VirtAddr) (mapping, error) {
	if t.curRoot != as.root {
		t.use(as.root)
	}
	page := uint64(va) >> 12
	if m, ok := t.pages[pageSet(page, t.curMix)].find(tlbKey(page, t.curTag)); ok {
		return m, nil
	}
	return as.cachedAbove(t, va)
}

// cachedAbove is cached when the page itself isn't known: it may be a larger
// one, or a table that leads to it is.
func (as *AddressSpace) cachedAbove(t *TLB, va x86.VirtAddr) (mapping, error) {
	page := uint64(va) >> 21
	if m, ok := t.regions[regionSet(page, t.curMix)].find(tlbKey(page, t.curTag)); ok {
		if m.level() != 0 {
			return m, nil
		}
		return as.walk(va, 1, m.base(), m&mappingRights)
	}
	page = uint64(va) >> 30
	if m, ok := t.gigas[gigaSet(page, t.curMix)].find(tlbKey(page, t.curTag)); ok {
		if m.level() != 0 {
			return m, nil
		}
		return as.walk(va, 2, m.base(), m&mappingRights)
	}
	return as.walk(va, as.root&modeLevels, as.Root(), as.above)
}
