package linux

import (
	"iter"
	"sort"
	"sync"

	"github.com/xen-hvi/hvi/engine/x86"
)

// Symbol is one entry of the kernel's symbol table.
type Symbol struct {
	// Addr is the symbol's address, or, of a per-CPU variable before 6.15,
	// its offset in a per-CPU area (then Absolute is set).
	Addr     x86.VirtAddr
	Absolute bool
	// Type is nm's letter: 'T' for global code, 'd' for local data.
	Type byte
	Name string
}

// Symbols is a kernel's symbol table in nearly the compressed form the kernel
// keeps it in: some 20 bytes a symbol. It is immutable and safe for concurrent
// use. A nil *Symbols is an empty table.
type Symbols struct {
	base x86.VirtAddr
	end  x86.VirtAddr // Symbolize knows nothing from here on
	*symbolTable
}

// symbolTable is what does not depend on where the kernel is: guests with the
// same build share it.
type symbolTable struct {
	// off[i] is the value of symbol i: itself for the first nabs, which
	// are absolute, relative to base after that. Both parts ascend.
	off  []uint32
	nabs int

	tokens  tokenTable
	names   []byte   // length-prefixed token strings
	markers []uint32 // offset in names of every 256th symbol

	// index finds symbols by name.
	index nameIndex

	// patched are the numbers of those that patchedSymbol names, once they were asked
	// for: to go through all names takes ten milliseconds.
	patched     []int
	findPatched sync.Once

	// src is what the table was made from, until a digest of it was made.
	src *tableSource
}

// tokenTable is kallsyms' dictionary: each byte of a compressed name stands for
// a string.
type tokenTable struct {
	text  []byte
	start [257]uint16 // start[i+1] - 1 is the end of token i
}

func (t *tokenTable) token(b byte) []byte {
	return t.text[t.start[b] : t.start[int(b)+1]-1]
}

// Len is the number of symbols.
func (s *Symbols) Len() int {
	if s == nil {
		return 0
	}
	return len(s.off)
}

// Lookup returns the value of the symbol of that name; of several, the one with
// the lowest address. Per-CPU variables before 6.15 have values, not addresses.
func (s *Symbols) Lookup(name string) (x86.VirtAddr, bool) {
	var va x86.VirtAddr
	found := false
	s.lookup(name, func(i int) bool {
		va, found = s.value(i), true
		return false
	})
	return va, found
}

// LookupAll returns the values of all symbols of that name, ascending.
func (s *Symbols) LookupAll(name string) []x86.VirtAddr {
	var out []x86.VirtAddr
	s.lookup(name, func(i int) bool {
		out = append(out, s.value(i))
		return true
	})
	return out
}

func (s *Symbols) lookup(name string, yield func(int) bool) {
	if s.Len() == 0 {
		return
	}
	for _, e := range s.index.find(name) {
		if i := int(e & indexNumber); s.nameIs(i, name) && !yield(i) {
			return
		}
	}
}

// Symbolize returns the symbol that va belongs to, the nearest one at or below
// it, and va's distance from it. Of several at one address it is the one that
// the kernel itself would print. It knows the kernel image only: an address in
// a module, or outside, is not ok.
func (s *Symbols) Symbolize(va x86.VirtAddr) (name string, offset uint64, ok bool) {
	var buf [maxNameLen]byte
	b, offset, ok := s.AppendSymbol(buf[:0], va)
	return string(b), offset, ok
}

// AppendSymbol is Symbolize that appends the name to dst, for callers that must
// not allocate.
func (s *Symbols) AppendSymbol(dst []byte, va x86.VirtAddr) (name []byte, offset uint64, ok bool) {
	i, ok := s.at(va)
	if !ok {
		return dst, 0, false
	}
	return s.appendName(dst, i), uint64(va - s.value(i)), true
}

// at finds the symbol that va belongs to.
func (s *Symbols) at(va x86.VirtAddr) (int, bool) {
	if s.Len() == s.absolutes() || va < s.base || va >= s.end {
		return 0, false
	}
	rel := uint64(va - s.base)
	// The first symbol above va, by hand: sort.Search's closure would cost
	// as much as the search.
	lo, hi := s.nabs, len(s.off)
	for lo < hi {
		mid := int(uint(lo+hi) / 2)
		if uint64(s.off[mid]) <= rel {
			lo = mid + 1
		} else {
			hi = mid
		}
	}
	if lo == s.nabs {
		return 0, false
	}
	i := lo - 1
	for i > s.nabs && s.off[i-1] == s.off[i] {
		i--
	}
	return i, true
}

// Range returns the address of a symbol and that of the next one after it:
// where a function's code ends, give or take its padding, since the table knows
// no sizes. It does not know absolute symbols.
func (s *Symbols) Range(name string) (start, end x86.VirtAddr, ok bool) {
	s.lookup(name, func(i int) bool {
		if i < s.nabs {
			return true
		}
		start, end, ok = s.value(i), s.end, true
		above := sort.Search(len(s.off)-i, func(j int) bool { return s.off[i+j] > s.off[i] })
		if i+above < len(s.off) {
			end = s.value(i + above)
		}
		return false
	})
	return start, end, ok
}

// All goes through the table in its own order: absolute symbols, then the rest
// by address.
func (s *Symbols) All() iter.Seq[Symbol] {
	return func(yield func(Symbol) bool) {
		var buf []byte
		pos := 0
		for i := range s.Len() {
			var enc []byte
			enc, pos = entry(s.names, pos)
			buf = s.expand(buf[:0], enc)
			sym := Symbol{Addr: s.value(i), Absolute: i < s.nabs}
			if len(buf) > 0 {
				sym.Type, sym.Name = buf[0], string(buf[1:])
			}
			if !yield(sym) {
				return
			}
		}
	}
}

// eachPatched calls f with the addresses of those that patchedSymbol names.
func (s *Symbols) eachPatched(f func(x86.VirtAddr)) {
	if s.Len() == 0 {
		return
	}
	s.findPatched.Do(func() {
		var buf []byte
		pos := 0
		for i := range s.Len() {
			var enc []byte
			enc, pos = entry(s.names, pos)
			if buf = s.expand(buf[:0], enc); len(buf) > 0 && patchedSymbol(buf[1:]) {
				s.patched = append(s.patched, i)
			}
		}
	})
	for _, i := range s.patched {
		f(s.value(i))
	}
}

func (s *Symbols) absolutes() int {
	if s == nil {
		return 0
	}
	return s.nabs
}

func (s *Symbols) value(i int) x86.VirtAddr {
	if i < s.nabs {
		return x86.VirtAddr(s.off[i])
	}
	return s.base + x86.VirtAddr(s.off[i])
}

// entry returns the compressed name at pos and the position after it. Where no
// name can be it is empty, and the position the same.
func entry(names []byte, pos int) (enc []byte, next int) {
	n, width := nameLength(names, pos)
	if width == 0 {
		return nil, pos
	}
	pos += width
	next = min(pos+n, len(names))
	return names[pos:next], next
}

func (s *Symbols) encoded(i int) []byte {
	pos := int(s.markers[i>>8])
	for range i & 0xff {
		_, pos = entry(s.names, pos)
	}
	enc, _ := entry(s.names, pos)
	return enc
}

// maxNameLen bounds an expanded name, type letter included. The kernel's own
// limit is 512 (KSYM_NAME_LEN since 6.1, 128 before).
const maxNameLen = 512

func (s *Symbols) expand(dst, enc []byte) []byte {
	start := len(dst)
	for _, b := range enc {
		dst = append(dst, s.tokens.token(b)...)
		if len(dst)-start > maxNameLen {
			return dst[:start+maxNameLen]
		}
	}
	return dst
}

// appendName appends the name without its type letter.
func (s *Symbols) appendName(dst []byte, i int) []byte {
	skip, room := 1, maxNameLen
	for _, b := range s.encoded(i) {
		t := s.tokens.token(b)
		if skip > 0 && len(t) > 0 {
			t, skip = t[1:], 0
		}
		if len(t) > room {
			t = t[:room]
		}
		dst = append(dst, t...)
		room -= len(t)
	}
	return dst
}

func (s *Symbols) nameIs(i int, name string) bool {
	skip := 1
	for _, b := range s.encoded(i) {
		t := s.tokens.token(b)
		if skip > 0 && len(t) > 0 {
			t, skip = t[1:], 0
		}
		if len(t) > len(name) || string(t) != name[:len(t)] {
			return false
		}
		name = name[len(t):]
	}
	return name == "" && skip == 0
}
