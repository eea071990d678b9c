package guest

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/xen-hvi/hvi/engine/x86"
)

// ErrManyTables: there are more page tables than the caller wants read.
var ErrManyTables = errors.New("too many page tables")

// tableEntries is how many entries a page table has, of any level.
const tableEntries = 512

// Executable calls f for each page of the upper half of the addresses, where a
// kernel is, that can be executed: no entry that leads there has NX set. Pages come
// in the order of their addresses, large ones as one page. f may end the walk with
// an error, which is returned.
//
// What is under an entry with NX is not read, nor a table twice that had nothing.
// Entries on which the processor would fault, and tables that can't be read, lead
// nowhere. Of more than maxTables tables it is [ErrManyTables]: a guest may have
// tables lead to themselves.
//
// The tables are read as they are, past a [TLB]. examined counts the entries that
// were present.
func (as AddressSpace) Executable(maxTables int, f func(va x86.VirtAddr, t Translation) error) (examined int, err error) {
	level := as.Levels()
	w := executableWalk{as: as, left: maxTables, f: f, nothing: map[tableAt]struct{}{}}
	if _, err := w.table(as.Root(), level, 0, as.above); err != nil {
		return w.examined, err
	}
	return w.examined, nil
}

// tableAt is a page table in its role: the same page may serve on several levels.
type tableAt struct {
	at    x86.PhysAddr
	level int
}

type executableWalk struct {
	as             AddressSpace
	f              func(x86.VirtAddr, Translation) error
	left, examined int
	// nothing has the tables under which nothing can be executed, whatever leads there.
	nothing map[tableAt]struct{}
	tables  [5][tableEntries * 8]byte
}

// table walks the table of a level, whose first entry is for the address va, and
// reports whether something under it can be executed. Of the root's there is the
// upper half alone.
func (w *executableWalk) table(at x86.PhysAddr, level int, va x86.VirtAddr, rights mapping) (some bool, err error) {
	if _, known := w.nothing[tableAt{at, level}]; known {
		return false, nil
	}
	if w.left--; w.left < 0 {
		return false, ErrManyTables
	}
	root := level == w.as.Levels()
	table := &w.tables[level-1]
	if err := w.as.mem.ReadPhys(at, table[:]); err != nil {
		if root {
			return false, fmt.Errorf("read the page table at %v: %w", at, err)
		}
		return false, nil
	}
	first, shift := 0, 3+9*level
	if root {
		first = tableEntries / 2
		va = -(x86.VirtAddr(tableEntries) << shift) // so that its upper half is the highest
	}
	for i := first; i < tableEntries; i++ {
		e := binary.LittleEndian.Uint64(table[8*i:])
		if w.as.checkEntry(e) != nil {
			continue
		}
		w.examined++
		under := rights.under(e)
		if under&pteNX != 0 {
			continue
		}
		to, next := va+x86.VirtAddr(i)<<shift, x86.PhysAddr(e&pteAddr)
		if level > 1 && e&ptePS == 0 {
			found, err := w.table(next, level-1, to, under)
			if err != nil {
				return some, err
			}
			some = some || found
			continue
		}
		size := uint64(1) << shift
		if level > 1 && (level > 3 || uint64(next)&(size-1)&^(1<<12) != 0) {
			continue // reserved bits
		}
		some = true
		if err := w.f(to, Translation{Phys: next &^ x86.PhysAddr(size-1), PageSize: size, Writable: under&pteW != 0, User: under&pteU != 0}); err != nil {
			return some, err
		}
	}
	if !some {
		w.nothing[tableAt{at, level}] = struct{}{}
	}
	return some, nil
}
