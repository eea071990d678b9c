package linux

import (
	"bytes"
	"encoding/hex"
	"errors"
	"fmt"

	"github.com/xen-hvi/hvi/engine/guest"
	"github.com/xen-hvi/hvi/engine/x86"
)

// A profile is what reading one build of a kernel has given: its symbols, the
// layout of its structures, and what both were made from. Everything in it
// counts from the image's base, so it fits the build wherever KASLR puts it.
//
// A profile's file holds of the symbols what takes time to find, their places and
// the index of their names. Names and values are not in it: they are in the
// memory of every guest that it fits, and are read there anyway.
//
// The sums are of every byte that the profile was made from, in the copies that
// were parsed. Whose memory has the same sums at the same places would be
// parsed to the same profile. A guest that forges its tables therefore makes a
// profile for itself and others with the same forgery, and none for a guest with
// the genuine kernel, although both have one banner.
type profile struct {
	// entry is where the processor enters the kernel: by which a profile is
	// looked for, before anything else of a kernel is known.
	entry  uint32
	banner string
	tables tablePlaces
	// sum is that of the places.
	sum digest
	// btf is where the type information is and its sum; size 0 if the kernel has
	// none.
	btf     place
	btfSum  digest
	offsets Offsets
	// index is that of sym, which is nil in a profile just read from its file,
	// until it has been found to fit a guest.
	index nameIndex
	sym   *symbolTable
}

// place is a stretch of the image, relative to its base.
type place struct{ at, size uint32 }

// tablePlaces is a tableSource without its bytes.
type tablePlaces struct {
	pieces [5]place
	baseAt uint32 // or 0
	// imageBase is the base, where values depend on it; or 0.
	imageBase uint64
}

// places describes what a table was made from.
func (s *tableSource) places(base x86.VirtAddr) tablePlaces {
	var t tablePlaces
	for i, p := range s.pieces() {
		t.pieces[i] = place{uint32(p.at - base), uint32(len(p.copy))}
	}
	if s.baseAt != 0 {
		t.baseAt = uint32(s.baseAt - base)
	}
	if s.absolute {
		t.imageBase = uint64(base)
	}
	return t
}

// tableDigest begins the digest of a symbol table at its places.
func (k *digestKey) tableDigest(t *tablePlaces) *digester {
	d := k.digester("symbol table")
	for _, p := range t.pieces {
		d.number(uint64(p.at))
	}
	d.number(uint64(t.baseAt))
	d.number(t.imageBase)
	return d
}

// sumTables is the digest of what a table was made from.
func (k *digestKey) sumTables(t *tablePlaces, src *tableSource) digest {
	d := k.tableDigest(t)
	for _, p := range src.pieces() {
		d.bytes(p.copy)
	}
	return d.digest()
}

// sumBTF is the digest of type information.
func (k *digestKey) sumBTF(blob []byte) digest {
	d := k.digester("BTF")
	d.bytes(blob)
	return d.digest()
}

// fits reports whether a guest's memory is what the profile was made from, but
// for the banner, which is read later. It completes a profile that comes from a
// file, which nobody else may use meanwhile.
func (p *profile) fits(k *digestKey, r *imageReader, base x86.VirtAddr) bool {
	if p.tables.imageBase != 0 && p.tables.imageBase != uint64(base) {
		return false
	}
	if at := p.tables.baseAt; at != 0 && r.checkBase(base, base+x86.VirtAddr(at)) != nil {
		return false
	}
	for _, q := range append(p.tables.pieces[:], p.btf) {
		if q.size != 0 && !r.holds(base+x86.VirtAddr(q.at), int(q.size)) {
			return false
		}
	}
	var room chan [5][]byte
	if p.sym == nil {
		room = make(chan [5][]byte, 1)
		go func() { room <- p.tables.room() }()
	}
	window := make([]byte, digestWindow)
	if p.btf.size != 0 {
		d := k.digester("BTF")
		if d.guest(r.fill, base+x86.VirtAddr(p.btf.at), int(p.btf.size), window) != nil || d.digest() != p.btfSum {
			return false
		}
	}
	var copies [5][]byte
	if room != nil {
		copies = <-room
	}
	d := k.tableDigest(&p.tables)
	for i, piece := range p.tables.pieces {
		buf := window
		if room != nil {
			buf = copies[i]
		}
		if d.guest(r.fill, base+x86.VirtAddr(piece.at), int(piece.size), buf) != nil {
			return false
		}
	}
	if d.digest() != p.sum {
		return false
	}
	if p.sym == nil {
		p.sym = p.symbols(&copies)
	}
	return p.sym != nil
}

// room is memory for a copy of each piece, 4 MB in all. A process that has just
// started gets it from its system page by page, as it is written to first, which can
// take as long as all the rest of fits. So it is made, and each of its pages written
// to, on a goroutine, while the type information is summed.
func (t *tablePlaces) room() (copies [5][]byte) {
	for i, piece := range t.pieces {
		b := make([]byte, piece.size)
		for at := 0; at < len(b); at += guest.Page4K {
			b[at] = 0
		}
		copies[i] = b
	}
	return copies
}

// symbols makes the table again from copies of its pieces, which become part of it.
// They have the sum of those that it was made from, so they are what the parser
// found to be right then, and neither the names, which take longest, nor the order
// of the values are looked at again. The table is safe to use whatever they are,
// and nil if they are none at all.
func (p *profile) symbols(pieces *[5][]byte) *symbolTable {
	tokens, names, markers, values := pieces[0], pieces[2], pieces[3], pieces[4]
	t := &symbolTable{tokens: tokenTable{text: tokens}, index: p.index}
	var err error
	switch {
	case p.tables.imageBase != 0:
		err = t.setAbsolute(values, x86.VirtAddr(p.tables.imageBase))
	case p.tables.baseAt != 0:
		err = t.setRelative(uint32s(values))
	default:
		err = t.setPlaced(uint32s(values), uint64(p.tables.pieces[4].at))
	}
	n := len(t.off)
	if err != nil || n == 0 || n != len(p.index.entries) || !t.tokens.place() || len(names) < 8 {
		return nil
	}
	// num_syms has 4 bytes before the names, or 8: a name is never empty.
	if t.names = names[4:]; le32(t.names) == 0 {
		t.names = names[8:]
	}
	t.markers = make([]uint32, (n+255)/256)
	width := len(markers) / len(t.markers) // 4 or 8
	if width < 4 {
		return nil
	}
	for i := range t.markers {
		t.markers[i] = le32(markers[i*width:])
	}
	return t
}

// place finds the tokens in their text, and reports whether they are 256.
func (t *tokenTable) place() bool {
	pos := 0
	for i := range 256 {
		t.start[i] = uint16(pos)
		end := bytes.IndexByte(t.text[pos:], 0)
		if end < 0 {
			return false
		}
		pos += end + 1
	}
	t.start[256] = uint16(pos)
	return pos == len(t.text)
}

// build is the name of the build that a profile is of: the same for every guest
// of this host that runs it. It gives no sum away.
func (p *profile) build(k *digestKey) string {
	d := k.digester("kernel build")
	d.text(p.banner)
	d.text(string(p.sum[:]))
	d.text(string(p.btfSum[:]))
	id := d.digest()
	return hex.EncodeToString(id[:16])
}

// makeProfile makes the profile of a kernel just read from memory, or nil if its
// type information could not be read: that may be better the next time.
func (k *Kernel) makeProfile(entry x86.VirtAddr) *profile {
	src := k.Symbols.src
	if src == nil || k.BTFError != nil && !errors.Is(k.BTFError, errNoBTF) {
		return nil
	}
	p := &profile{entry: uint32(entry - k.Base), banner: k.Banner, tables: src.places(k.Base), offsets: k.Offsets,
		index: k.Symbols.index, sym: k.Symbols.symbolTable}
	p.sum = k.key.sumTables(&p.tables, src)
	if k.BTFError == nil {
		p.btf = place{uint32(k.btfStart - k.Base), uint32(k.btfEnd - k.btfStart)}
		p.btfSum = k.btfSum
	}
	return p
}

// holds reports whether n bytes at va are in one stretch of the image.
func (r *imageReader) holds(va x86.VirtAddr, n int) bool {
	for _, e := range r.extents {
		if e.contains(va) && uint64(n) <= uint64(e.end-va) {
			return true
		}
	}
	return false
}

// fill copies from the image into buf.
func (r *imageReader) fill(va x86.VirtAddr, buf []byte) error {
	if !r.holds(va, len(buf)) {
		return fmt.Errorf("%d bytes at %v: %w", len(buf), va, errOutsideImage)
	}
	if !r.spend(len(buf)) {
		return errTooMuch
	}
	return r.as.Read(va, buf)
}
