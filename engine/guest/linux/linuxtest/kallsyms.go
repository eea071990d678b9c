package linuxtest

import (
	"encoding/binary"
	"sort"
	"strings"

	"github.com/xen-hvi/hvi/engine/x86"
)

// Layout is one of the forms that a kernel's symbol table has had.
type Layout int

// The layouts, oldest first.
const (
	// Addresses is Linux to 4.5: absolute addresses, 8-byte counts.
	Addresses Layout = iota
	// Relative4 is 4.6 to 4.19: offsets, 8-byte counts.
	Relative4
	// Relative5 is 4.20 to 6.0: 4-byte counts.
	Relative5
	// Relative61 is 6.1: name lengths of two bytes.
	Relative61
	// Seqs62 is 6.2, with seqs_of_names of 4 bytes before the tokens.
	Seqs62
	// Seqs63 is 6.3, where they have 3 bytes.
	Seqs63
	// After64 is 6.4 on: values after the tokens.
	After64
	// Unsigned615 is 6.15 on: no absolute per-CPU symbols.
	Unsigned615
	// Place72 is 7.2: offsets count from their own places, 4-byte alignment.
	Place72
	// NumLayouts is the number of layouts.
	NumLayouts
)

func (l Layout) String() string {
	return [...]string{"to-4.5", "4.6-4.19", "4.20-6.0", "6.1", "6.2", "6.3", "6.4-6.14", "6.15", "7.2"}[l]
}

// Absolute reports whether per-CPU symbols are offsets into a per-CPU area.
func (l Layout) Absolute() bool { return l < Unsigned615 }

// Sym is a symbol to put into a table. An Absolute one is a per-CPU offset.
type Sym struct {
	Addr     x86.VirtAddr
	Absolute bool
	Type     byte
	Name     string
}

// merged are the strings that get a code of their own, besides the single
// characters. Token 0 is one of them, as in a real table.
var merged = []string{"func_", "__", "sys_", "_init", "task", "ing", "_lock", "re"}

// Tokens makes a token table for symbols: every character that occurs stands
// for itself, unused codes for the merged strings, the rest for nothing.
func Tokens(syms []Sym) (tokens [256]string) {
	used := [256]bool{}
	for _, s := range syms {
		used[s.Type] = true
		for i := range len(s.Name) {
			used[s.Name[i]] = true
		}
	}
	for c := '0'; c <= '9'; c++ {
		used[c] = true
	}
	m := 0
	for c := range tokens {
		if used[c] {
			tokens[c] = string([]byte{byte(c)})
		} else if m < len(merged) {
			tokens[c], m = merged[m], m+1
		}
	}
	return tokens
}

func compress(s string, tokens *[256]string) []byte {
	var out []byte
next:
	for s != "" {
		for c, t := range tokens {
			if len(t) > 1 && strings.HasPrefix(s, t) {
				out = append(out, byte(c))
				s = s[len(t):]
				continue next
			}
		}
		out = append(out, s[0])
		s = s[1:]
	}
	return out
}

// Kallsyms writes the table as scripts/kallsyms.c of that time does, for an
// image at base, to be placed at address at. syms must be sorted by value with
// absolute ones first.
func Kallsyms(l Layout, base, at x86.VirtAddr, syms []Sym) []byte {
	le := binary.LittleEndian
	n := len(syms)
	var out []byte
	unit := 8
	if l == Place72 {
		unit = 4
	}
	label := func() { // every part begins aligned
		for (uint64(at)+uint64(len(out)))%uint64(unit) != 0 {
			out = append(out, 0)
		}
	}
	count := func(v int) {
		if l <= Relative4 {
			out = le.AppendUint64(out, uint64(v))
		} else {
			out = le.AppendUint32(out, uint32(v))
		}
	}
	values := func() {
		label()
		for _, s := range syms {
			switch {
			case l == Addresses:
				out = le.AppendUint64(out, uint64(s.Addr))
			case l == Place72:
				out = le.AppendUint32(out, uint32(s.Addr-(at+x86.VirtAddr(len(out)))))
			case l == Unsigned615:
				out = le.AppendUint32(out, uint32(s.Addr-base))
			case s.Absolute:
				out = le.AppendUint32(out, uint32(s.Addr))
			default:
				out = le.AppendUint32(out, uint32(base-s.Addr-1))
			}
		}
		if l != Addresses && l != Place72 {
			label()
			out = le.AppendUint64(out, uint64(base))
		}
	}
	seqs := func() {
		order := make([]int, n)
		for i := range order {
			order[i] = i
		}
		sort.SliceStable(order, func(a, b int) bool { return syms[order[a]].Name < syms[order[b]].Name })
		label()
		for _, s := range order {
			if l == Seqs62 {
				out = le.AppendUint32(out, uint32(s))
			} else {
				out = append(out, byte(s>>16), byte(s>>8), byte(s))
			}
		}
	}

	tokens := Tokens(syms)
	if l < After64 {
		values()
	}
	label()
	count(n)
	var markers []int
	label()
	names := len(out)
	for i, s := range syms {
		if i&0xff == 0 {
			markers = append(markers, len(out)-names)
		}
		enc := compress(string([]byte{s.Type})+s.Name, &tokens)
		if len(enc) > 0x7f {
			if l < Relative61 {
				panic("linuxtest: name too long for its time: " + s.Name)
			}
			out = append(out, byte(len(enc)&0x7f|0x80), byte(len(enc)>>7))
		} else {
			out = append(out, byte(len(enc)))
		}
		out = append(out, enc...)
	}
	label()
	for _, m := range markers {
		count(m)
	}
	if l == Seqs62 || l == Seqs63 {
		seqs()
	}
	label()
	var index []int
	table := len(out)
	for _, t := range tokens {
		index = append(index, len(out)-table)
		out = append(append(out, t...), 0)
	}
	label()
	for _, i := range index {
		out = le.AppendUint16(out, uint16(i))
	}
	if l >= After64 {
		values()
		seqs()
	}
	label()
	return out
}
