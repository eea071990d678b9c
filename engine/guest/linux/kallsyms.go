package linux

import (
	"bytes"
	"errors"
	"fmt"
	"slices"

	"github.com/xen-hvi/hvi/engine/guest"
	"github.com/xen-hvi/hvi/engine/x86"
)

// The kernel's symbol table, as scripts/kallsyms.c writes it into .rodata.
// Every label is 8-byte aligned (in 7.2: 4-byte) and the gaps are zero. The
// parts, in order:
//
//	to 4.5, or without KALLSYMS_BASE_RELATIVE:
//	  addresses u64[N], num_syms, names, markers, token_table, token_index
//	4.6 to 6.1:
//	  offsets s32[N], relative_base u64, num_syms, names, markers,
//	  token_table, token_index
//	6.2, 6.3: the same with seqs_of_names between markers and token_table
//	from 6.4:
//	  num_syms, names, markers, token_table, token_index, offsets,
//	  relative_base, seqs_of_names
//	7.2: the same without relative_base: each offset counts from itself
//
// num_syms and markers are 8 bytes wide to 4.19, 4 bytes from 4.20. A name's
// length is one byte to 6.0, one or two (ULEB128) from 6.1. Nothing in memory
// says which it is, so the parts are found by what only they can be, starting
// from token_table, and the layout follows.
const (
	maxSymbols   = 1 << 20 // a kernel with everything built in has 250,000
	maxMarkers   = maxSymbols / 256
	maxTokenText = 1 << 15 // token_index is 16 bits; real tables have 1 KiB
	maxTables    = 64      // look-alikes of a token table that are examined
	maxOffset    = 1 << 30 // the kernel image is confined to 1 GiB

	// maxWork bounds all parsing of one kernel, in units of about a byte
	// copied. A real one takes 10 to 30 million; a guest that arranges its
	// memory for look-alikes would make it hours.
	maxWork = 1 << 29
)

// digits are tokens '0' to '9': every digit occurs in some symbol, so each is a
// token of its own, at its own code.
var digits = []byte("0\x001\x002\x003\x004\x005\x006\x007\x008\x009\x00")

// extent is a mapped stretch of the kernel's image.
type extent struct{ start, end x86.VirtAddr }

func (e extent) contains(va x86.VirtAddr) bool { return va >= e.start && va < e.end }

// imageReader copies from the kernel's image. It refuses what reaches outside of the
// extents found, so that no parser can be led away from them.
type imageReader struct {
	as      guest.AddressSpace
	extents []extent
	work    int // done so far, see maxWork
}

// piece is a stretch of the image that a symbol table was made from: all of it,
// and a private copy, so that a digest of pieces is one of what was parsed,
// whatever the guest has put there since.
type piece struct {
	at   x86.VirtAddr
	copy []byte
}

// tableSource is everything that a symbol table was made from. num_syms is part
// of names.
type tableSource struct {
	tokens, index, names, markers, values piece
	// baseAt is where relative_base is, or 0. It is the one word of a table that
	// depends on where the image is mapped, and known to be that.
	baseAt x86.VirtAddr
	// absolute: values are addresses, which depend on it, too.
	absolute bool
}

func (s *tableSource) pieces() [5]piece {
	return [...]piece{s.tokens, s.index, s.names, s.markers, s.values}
}

var (
	errOutsideImage = errors.New("outside the kernel image")
	errTooMuch      = errors.New("too many look-alikes, given up")
)

// spend accounts for work and reports whether there may be more.
func (r *imageReader) spend(n int) bool {
	r.work += n
	return r.work <= maxWork
}

// read returns a private copy of n bytes.
func (r *imageReader) read(va x86.VirtAddr, n int) ([]byte, error) {
	for _, e := range r.extents {
		if e.contains(va) && n >= 0 && uint64(n) <= uint64(e.end-va) {
			if !r.spend(n) {
				return nil, errTooMuch
			}
			buf := make([]byte, n)
			return buf, r.as.Read(va, buf)
		}
	}
	return nil, fmt.Errorf("%d bytes at %v: %w", n, va, errOutsideImage)
}

// before returns a private copy of up to n bytes that end at va, fewer where
// the extent begins.
func (r *imageReader) before(va x86.VirtAddr, n int) ([]byte, error) {
	for _, e := range r.extents {
		if va > e.start && va <= e.end {
			if d := uint64(va - e.start); uint64(n) > d {
				n = int(d)
			}
			return r.read(va-x86.VirtAddr(n), n)
		}
	}
	return nil, fmt.Errorf("%d bytes before %v: %w", n, va, errOutsideImage)
}

// after returns a private copy of up to n bytes from va on, fewer where the
// extent ends.
func (r *imageReader) after(va x86.VirtAddr, n int) ([]byte, error) {
	for _, e := range r.extents {
		if e.contains(va) {
			return r.read(va, int(min(uint64(n), uint64(e.end-va))))
		}
	}
	return nil, fmt.Errorf("%d bytes after %v: %w", n, va, errOutsideImage)
}

// find calls f for every place of needle in [from, to) within the extents, in
// ascending order, until f returns true. It holds one window in memory.
func (r *imageReader) find(from, to x86.VirtAddr, needle []byte, f func(x86.VirtAddr) bool) error {
	const window = 256 << 10
	buf := make([]byte, window)
	for _, e := range r.extents {
		start, end := max(e.start, from), min(e.end, to)
		for start < end {
			n := min(window, uint64(end-start))
			if err := r.as.Read(start, buf[:n]); err != nil {
				return err
			}
			for at := 0; ; {
				i := bytes.Index(buf[at:n], needle)
				if i < 0 {
					break
				}
				if f(start + x86.VirtAddr(at+i)) {
					return nil
				}
				at += i + 1
			}
			if n <= uint64(len(needle)) || start+x86.VirtAddr(n) == end {
				break
			}
			// Overlap, for a needle across the boundary.
			start += x86.VirtAddr(n - uint64(len(needle)) + 1)
		}
	}
	return nil
}

// errNoTable: a place that looked like a part of kallsyms is none.
var errNoTable = errors.New("no such table")

// findKallsyms finds and parses the table. base is where the image is mapped.
// hint is an address in code, near the end of which the search begins: tables
// lie in .rodata, after all code.
func (r *imageReader) findKallsyms(base, hint x86.VirtAddr) (*Symbols, error) {
	var sym *Symbols
	tried := 0
	var furthest error // of those that at least had a token table
	last := errNoTable
	seqs := false
	try := func(va x86.VirtAddr) bool {
		s, hadTokens, err := r.parseKallsyms(base, va, seqs)
		if err == nil {
			sym = s
			return true
		}
		if tried++; hadTokens {
			furthest = err
		}
		last = err
		return tried >= maxTables || errors.Is(err, errTooMuch)
	}
	const top = ^x86.VirtAddr(0)
	err := r.find(hint, top, digits, try)
	if sym == nil && err == nil && tried < maxTables && !errors.Is(last, errTooMuch) {
		err = r.find(0, hint+x86.VirtAddr(len(digits)), digits, try)
	}
	// The layout of 6.2 and 6.3 costs a search of its own, for every
	// look-alike as well, so it comes when all others have failed.
	if sym == nil && err == nil && furthest != nil && !errors.Is(last, errTooMuch) {
		seqs, tried = true, 0
		err = r.find(0, top, digits, try)
	}
	switch {
	case sym != nil:
		return sym, nil
	case err != nil:
		return nil, err
	case tried == 0:
		return nil, fmt.Errorf("token table: %w", errNoTable)
	case furthest != nil:
		return nil, furthest
	}
	return nil, fmt.Errorf("%d token tables examined, the last: %w", tried, last)
}

func align8(n int) int { return (n + 7) &^ 7 }

// parseKallsyms parses the table around a token table whose digits are at va.
// hadTokens says that there was a token table at least.
// seqs says to expect seqs_of_names before it.
func (r *imageReader) parseKallsyms(base, va x86.VirtAddr, seqs bool) (s *Symbols, hadTokens bool, err error) {
	tokens, index, err := r.parseTokens(va)
	if err != nil {
		return nil, false, fmt.Errorf("token table near %v: %w", va, err)
	}
	table, afterTokens := index.table, index.end
	find := r.findNames
	if seqs {
		find = r.findNamesBeforeSeqs
	}
	nm, err := find(table)
	if err != nil {
		return nil, true, fmt.Errorf("names before the token table at %v: %w", table, err)
	}
	s = &Symbols{symbolTable: &symbolTable{tokens: tokens, names: nm.names, markers: nm.markers}}
	s.src = &tableSource{tokens: piece{table, tokens.text}, index: piece{index.end - 512, index.raw}, names: piece{nm.start, nm.raw}, markers: nm.rawMarkers}
	if err := r.readValues(s, base, nm, afterTokens); err != nil {
		return nil, true, err
	}
	return s, true, nil
}

// tokenIndex is where a token table is and the index that follows it.
type tokenIndex struct {
	table, end x86.VirtAddr // where the table begins and the index ends
	raw        []byte
}

// parseTokens reads the token table that has the digits at va, and its index.
func (r *imageReader) parseTokens(va x86.VirtAddr) (t tokenTable, idx tokenIndex, err error) {
	fail := func(format string, args ...any) (tokenTable, tokenIndex, error) {
		return tokenTable{}, tokenIndex{}, fmt.Errorf("%w: "+format, append([]any{errNoTable}, args...)...)
	}
	const zero = '0'
	head, err := r.before(va, maxTokenText)
	if err != nil {
		return t, idx, err
	}
	// Back over the terminators of tokens '0'-1 to 0: what follows that of
	// token 0 is token 1. Where token 0 begins only the index can say, as
	// what lies before the table need not end in a zero.
	one := len(head)
	for range zero {
		if one = bytes.LastIndexByte(head[:one], 0); one < 0 {
			return fail("fewer than %d tokens", zero)
		}
	}
	one++
	tokenOne := va - x86.VirtAddr(len(head)-one)
	body, err := r.after(tokenOne, maxTokenText)
	if err != nil {
		return t, idx, err
	}
	var start [257]int // relative to token 1
	pos := 0
	for i := 1; i < 256; i++ {
		start[i] = pos
		n := bytes.IndexByte(body[pos:], 0)
		if n < 0 {
			return fail("token %d has no end", i)
		}
		pos += n + 1
	}
	start[256] = pos
	// token_index follows, aligned: 256 u16, the first 0, the second the
	// length of token 0 and its terminator.
	first := 0
	for _, align := range []x86.VirtAddr{8, 4} {
		indexVA := (tokenOne + x86.VirtAddr(pos) + align - 1) &^ (align - 1)
		raw, err := r.read(indexVA, 512)
		if err != nil {
			return t, idx, err
		}
		if first = tokenZero(raw, &start); first > 0 {
			idx.end, idx.raw = indexVA+512, raw
			break
		}
	}
	if first == 0 || first > one || first+pos >= 1<<16 {
		return fail("the index disagrees")
	}
	idx.table = tokenOne - x86.VirtAddr(first)
	if idx.table&3 != 0 {
		return fail("%v is not aligned", idx.table)
	}
	for i := 1; i <= 256; i++ {
		t.start[i] = uint16(first + start[i])
	}
	t.text = append(append(make([]byte, 0, first+pos), head[one-first:one]...), body[:pos]...)
	// Token 0 came from another read than its neighbours.
	if bytes.IndexByte(t.text, 0) != first-1 {
		return fail("token 0 changed while it was read")
	}
	return t, idx, nil
}

// tokenZero returns the length of token 0 with its terminator if index is the
// token index of tokens that start, after token 0, at start; or 0.
func tokenZero(index []byte, start *[257]int) int {
	at := func(i int) int { return int(index[2*i]) | int(index[2*i+1])<<8 }
	first := at(1)
	if at(0) != 0 {
		return 0
	}
	for i := 1; i < 256; i++ {
		if at(i) != first+start[i] {
			return 0
		}
	}
	return first
}

// nameTable is the names, with the count before them and the markers after.
type nameTable struct {
	start   x86.VirtAddr // of num_syms, which precedes the names
	n       int
	raw     []byte // num_syms and names
	names   []byte
	markers []uint32
	// rawMarkers are the markers as they were found.
	rawMarkers piece
}

// markersAt says where markers may end and how wide each is.
type markersAt struct {
	end   int // in the buffer searched
	width int
}

// findNames finds num_syms, names and markers, which end at the token table.
func (r *imageReader) findNames(table x86.VirtAddr) (nameTable, error) {
	last := errNoTable
	buf, err := r.before(table, maxMarkers*8+8)
	if err != nil {
		return nameTable{}, err
	}
	// The markers may be followed by 4 bytes of padding.
	for _, at := range []markersAt{{len(buf), 4}, {len(buf) - 4, 4}, {len(buf), 8}} {
		m := markersBefore(buf, at)
		if m == nil {
			continue
		}
		start := at.end - len(m)*at.width
		nm, err := r.namesBefore(table-x86.VirtAddr(len(buf)-start), m)
		if err == nil {
			nm.rawMarkers.copy = buf[start:at.end]
			return nm, nil
		}
		last = err
	}
	return nameTable{}, last
}

// markersBefore reads the table that ends at a place: back to a 0, over values
// that only descend. nil where that is no table.
func markersBefore(buf []byte, at markersAt) []uint32 {
	n, prev := 0, uint64(1<<32)
	for pos := at.end - at.width; pos >= 0 && n < maxMarkers; pos -= at.width {
		var v uint64
		if at.width == 8 {
			v = le64(buf[pos:])
		} else {
			v = uint64(le32(buf[pos:]))
		}
		if v >= prev {
			return nil
		}
		prev = v
		n++
		if v == 0 {
			m := make([]uint32, n)
			for i := range m {
				m[i] = le32(buf[pos+i*at.width:])
			}
			return m
		}
	}
	return nil
}

// findNamesBeforeSeqs serves 6.2 and 6.3, where between markers and token table
// stands a table of which only the width of an entry is known: every number of
// symbols is tried that puts a 0, the first marker, where it has to be.
func (r *imageReader) findNamesBeforeSeqs(table x86.VirtAddr) (nameTable, error) {
	buf, err := r.before(table, maxSymbols*4+maxMarkers*4+16)
	if err != nil {
		return nameTable{}, err
	}
	tried := 0
	for _, width := range []int{3, 4} {
		// With fewer there are too few markers to know them by.
		for n := 257; n <= maxSymbols; n++ {
			count := (n + 255) / 256
			end := len(buf) - align8(n*width)
			start := end - align8(count*4)
			if start < 0 {
				break
			}
			if !r.spend(4) {
				return nameTable{}, errTooMuch
			}
			if le32(buf[start:]) != 0 || le32(buf[start+4:]) < 2*256 {
				continue
			}
			m := markersBefore(buf, markersAt{start + count*4, 4})
			if !r.spend(8 * len(m)) {
				return nameTable{}, errTooMuch
			}
			if len(m) != count {
				continue
			}
			nm, err := r.namesBefore(table-x86.VirtAddr(len(buf)-start), m)
			if err == nil && nm.n == n {
				nm.rawMarkers.copy = buf[start : start+count*4]
				return nm, nil
			}
			if tried++; tried >= maxTables {
				return nameTable{}, fmt.Errorf("%w: too many look-alikes of markers", errNoTable)
			}
		}
	}
	return nameTable{}, fmt.Errorf("%w: no markers", errNoTable)
}

// namesBefore finds and checks the names that end, but for padding, where their
// markers begin.
func (r *imageReader) namesBefore(end x86.VirtAddr, markers []uint32) (nameTable, error) {
	// The last marker is the offset of the last stretch of up to 256 names.
	const maxTail = 256 * (2 + maxNameLen)
	lastMark := int(markers[len(markers)-1])
	if lastMark > maxSymbols*16 { // 16 bytes each; real ones take 12
		return nameTable{}, fmt.Errorf("%w: %d bytes of names", errNoTable, lastMark)
	}
	buf, err := r.before(end, (8+lastMark+maxTail)&^3)
	if err != nil {
		return nameTable{}, err
	}
	for start := len(buf) - (lastMark+3)&^3; start >= 8; start -= 4 {
		// num_syms is next to the names, or 4 or 8 bytes wide before them.
		n, numAt := int(le32(buf[start-4:])), start-4
		if n == 0 {
			n, numAt = int(le32(buf[start-8:])), start-8
		}
		if n < 1 || n > maxSymbols || (n+255)/256 != len(markers) {
			continue
		}
		size, steps, ok := walkNames(buf[start:], n, markers)
		if !r.spend(8 * steps) {
			return nameTable{}, errTooMuch
		}
		if pad := len(buf) - start - size; !ok || pad > 7 {
			continue
		}
		return nameTable{
			start:   end - x86.VirtAddr(len(buf)-numAt),
			n:       n,
			raw:     buf[numAt : start+size],
			names:   buf[start : start+size : start+size],
			markers: markers,

			rawMarkers: piece{at: end},
		}, nil
	}
	return nameTable{}, fmt.Errorf("%w: no names for %d markers", errNoTable, len(markers))
}

// walkNames steps over n names and compares every 256th with its marker. It
// returns their size in bytes, and how many steps it took until it knew.
func walkNames(b []byte, n int, markers []uint32) (size, steps int, ok bool) {
	pos := 0
	for i := range n {
		if i&0xff == 0 && pos != int(markers[i>>8]) {
			return 0, i, false
		}
		l, width := nameLength(b, pos)
		if width == 0 {
			return 0, i, false
		}
		pos += width + l
	}
	return pos, n, pos <= len(b)
}

// nameLength reads the length of a compressed name. It is width bytes wide: 1 or
// 2, or 0 where there is no such name.
func nameLength(b []byte, pos int) (n, width int) {
	if pos >= len(b) {
		return 0, 0
	}
	n, width = int(b[pos]), 1
	if n >= 0x80 {
		if pos+1 >= len(b) {
			return 0, 0
		}
		n, width = n&0x7f|int(b[pos+1])<<7, 2
	}
	if n == 0 || n > maxNameLen {
		return 0, 0
	}
	return n, width
}

// readValues finds the symbols' values, after the token index or before
// num_syms, and checks that they are what the kernel's own search needs.
func (r *imageReader) readValues(s *Symbols, base x86.VirtAddr, nm nameTable, afterTokens x86.VirtAddr) error {
	s.base = base
	size := x86.VirtAddr(align8(nm.n * 4))
	// From 6.4: offsets, relative_base.
	errAfter := r.checkBase(base, afterTokens+size)
	if errAfter == nil {
		s.src.baseAt = afterTokens + size
		return r.relativeValues(s, nm.n, afterTokens)
	}
	// 4.6 to 6.3: offsets, relative_base, num_syms.
	errBefore := r.checkBase(base, nm.start-8)
	if errBefore == nil {
		s.src.baseAt = nm.start - 8
		return r.relativeValues(s, nm.n, nm.start-8-size)
	}
	// To 4.5: addresses, num_syms.
	errAbsolute := r.absoluteValues(s, base, nm.n, nm.start-x86.VirtAddr(8*nm.n))
	if errAbsolute == nil {
		s.src.absolute = true
		return nil
	}
	// 7.2: offsets, each from its own place.
	errPlace := r.placeValues(s, base, nm.n, afterTokens)
	if errPlace == nil {
		return nil
	}
	return fmt.Errorf("values of %d symbols: after the tokens: %w, %w; before the names: %w; absolute: %w", nm.n, errAfter, errPlace, errBefore, errAbsolute)
}

// checkBase checks relative_base. It was relocated with the rest of the image:
// another value is that of a stale copy, or none at all.
func (r *imageReader) checkBase(base, at x86.VirtAddr) error {
	b, err := r.read(at, 8)
	if err != nil {
		return err
	}
	if rb := x86.VirtAddr(le64(b)); rb != base {
		return fmt.Errorf("%w: relative base %v, image at %v", errNoTable, rb, base)
	}
	return nil
}

func (r *imageReader) relativeValues(s *Symbols, n int, at x86.VirtAddr) error {
	raw, err := r.read(at, n*4)
	if err != nil {
		return err
	}
	s.src.values = piece{at, raw}
	if err := s.setRelative(slices.Clone(uint32s(raw))); err != nil {
		return err
	}
	return s.checkValues()
}

func (r *imageReader) absoluteValues(s *Symbols, base x86.VirtAddr, n int, at x86.VirtAddr) error {
	raw, err := r.read(at, n*8)
	if err != nil {
		return err
	}
	s.src.values = piece{at, raw}
	if err := s.setAbsolute(raw, base); err != nil {
		return err
	}
	return s.checkValues()
}

func (r *imageReader) placeValues(s *Symbols, base x86.VirtAddr, n int, at x86.VirtAddr) error {
	raw, err := r.read(at, n*4)
	if err != nil {
		return err
	}
	s.src.values = piece{at, raw}
	if err := s.setPlaced(slices.Clone(uint32s(raw)), uint64(at-base)); err != nil {
		return err
	}
	return s.checkValues()
}

// setRelative takes values that count from the image's base, and takes them over.
// With KALLSYMS_ABSOLUTE_PERCPU (x86-64 to 6.14) addresses are stored as -1-offset
// and values of per-CPU symbols as they are.
func (s *symbolTable) setRelative(words []uint32) error {
	negative := 0
	for _, v := range words {
		negative += int(v >> 31)
	}
	s.off, s.nabs = words, 0
	if negative <= len(words)/2 {
		return nil
	}
	for i, v := range words {
		if int32(v) < 0 {
			words[i] = ^v
		} else if s.nabs++; s.nabs != i+1 {
			return fmt.Errorf("%w: absolute symbol %d after others", errNoTable, i)
		}
	}
	return nil
}

// setAbsolute takes values of 8 bytes that are addresses.
func (s *symbolTable) setAbsolute(raw []byte, base x86.VirtAddr) error {
	s.off, s.nabs = make([]uint32, len(raw)/8), 0
	for i := range s.off {
		v := x86.VirtAddr(le64(raw[8*i:]))
		switch {
		case v < maxOffset && s.nabs == i:
			s.nabs++
		case v >= base && v-base < maxOffset:
			v -= base
		default:
			return fmt.Errorf("%w: symbol %d at %v", errNoTable, i, v)
		}
		s.off[i] = uint32(v)
	}
	return nil
}

// setPlaced takes values that each count from its own place, and takes them over.
// at is where the first is, from the image's base.
func (s *symbolTable) setPlaced(words []uint32, at uint64) error {
	s.off, s.nabs = words, 0
	for i, w := range words {
		v := at + uint64(4*i) + uint64(int64(int32(w)))
		if v >= maxOffset {
			return fmt.Errorf("%w: symbol %d at the image + %#x", errNoTable, i, v)
		}
		words[i] = uint32(v)
	}
	return nil
}

// checkValues checks that absolute values come first, that both parts ascend,
// which the binary search needs, the kernel's as ours, and that the lowest
// address is the image's, which zeros taken for values would not give.
func (s *symbolTable) checkValues() error {
	if s.nabs == len(s.off) {
		return fmt.Errorf("%w: no symbol is an address", errNoTable)
	}
	if first := s.off[s.nabs]; first != 0 {
		return fmt.Errorf("%w: the lowest symbol is at the image + %#x", errNoTable, first)
	}
	for i, v := range s.off {
		if v >= maxOffset || i != 0 && i != s.nabs && v < s.off[i-1] {
			return fmt.Errorf("%w: symbol %d of %d out of order", errNoTable, i, len(s.off))
		}
	}
	return nil
}
