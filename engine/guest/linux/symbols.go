package linux

import "github.com/xen-hvi/hvi/engine/x86"

// Symbols is a kernel's symbol table.
type Symbols struct{}

// Len is the number of symbols.
func (s *Symbols) Len() int { return 0 }

// Lookup returns the address of the first symbol of that name.
func (s *Symbols) Lookup(name string) (x86.VirtAddr, bool) { return 0, false }

// LookupAll returns the addresses of all symbols of that name.
func (s *Symbols) LookupAll(name string) []x86.VirtAddr { return nil }

// Symbolize returns the symbol at or before va.
func (s *Symbols) Symbolize(va x86.VirtAddr) (name string, offset uint64, ok bool) {
	return "", 0, false
}
