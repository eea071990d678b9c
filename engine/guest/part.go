package guest

import "github.com/xen-hvi/hvi/engine/x86"

// partSize is what one table of level 3 maps.
const partSize = 1 << 39

// Part returns the 512 GiB around va that one table of level 3 maps, as an
// address space of their own. The entries of the tables above it are read now and
// never again, so that the part outlives them: an operating system frees the
// top-level table of a process with the process, and keeps the tables below of
// what all processes share, such as its own image.
//
// An address outside the part is [ErrOtherPart]. Root is the table of level 3, and
// Levels is 3. The error is that of a translation of va which ends above.
func (as AddressSpace) Part(va x86.VirtAddr) (AddressSpace, error) {
	if uint64(va)-as.low >= as.size {
		return AddressSpace{}, as.outside(va)
	}
	level := as.root & modeLevels
	table, rights := as.Root(), as.above
	for ; level > 3; level-- {
		shift := (3 + 9*level) & 63
		e, err := as.word(table + x86.PhysAddr(uint64(va)>>shift&0x1ff*8))
		if err == nil {
			err = as.checkEntry(e)
		}
		if err == nil && e&ptePS != 0 {
			err = ErrReserved
		}
		if err != nil {
			return AddressSpace{}, &TranslateError{VA: va, Level: int(level), Entry: e, Err: err}
		}
		rights = rights.under(e)
		table = x86.PhysAddr(e & pteAddr)
	}
	as.root = uint64(table) | as.root&^(pteAddr|modeLevels) | 3
	as.low, as.size = uint64(va)&^(partSize-1), partSize
	as.above = rights
	return as, nil
}
