package linux

import (
	"errors"
	"maps"
	"testing"

	"github.com/xen-hvi/hvi/engine/guest/linux/linuxtest"
	"github.com/xen-hvi/hvi/engine/x86"
)

// Where the tests of maps from numbers to pointers put them.
const (
	testIDR   = linuxtest.Data + 0x1_0000
	testNodes = linuxtest.Data + 0x2_0000
)

// readIDR is one walk.
func readIDR(r *Reader, idr x86.VirtAddr, most int) (map[uint64]x86.VirtAddr, error) {
	got := map[uint64]x86.VirtAddr{}
	r.tlb.Flush()
	err := r.idr(idr, most, func(id uint64, entry x86.VirtAddr) error {
		got[id] = entry
		return nil
	})
	return got, err
}

func TestIDR(t *testing.T) {
	g, k := identified(t, linuxtest.Config{Layout: linuxtest.Relative61, Types: linuxtest.IDRTypes()})
	r := k.NewReader(nil)
	idr := g.Base + testIDR
	for name, want := range map[string]map[uint64]x86.VirtAddr{
		"empty":       {},
		"one at 0":    {0: 0xffff_8880_0000_1000},
		"one node":    {1: 0xffff_8880_0000_1000, 63: 0xffff_8880_0000_2000},
		"two levels":  {0: 0xffff_8880_0000_1000, 64: 0xffff_8880_0000_2000, 4095: 0xffff_8880_0000_3000},
		"four levels": {1: 0xffff_8880_0000_1000, 0x40_0000: 0xffff_8880_0000_2000},
		"full shift":  {1: 0xffff_8880_0000_1000, 1<<63 + 5: 0xffff_8880_0000_2000},
	} {
		g.WriteIDR(idr, g.Base+testNodes, want)
		if got, err := readIDR(r, idr, 3); err != nil || !maps.Equal(got, want) {
			t.Errorf("%s: %v, %v; want %v", name, got, err, want)
		}
		// The numbers begin at idr_base, and a taken number has no entry yet.
		if name == "two levels" {
			g.Write(idr+linuxtest.IDRBase, []byte{7})
			if got, err := readIDR(r, idr, 3); err != nil || len(got) != 3 || got[7+64] != want[64] {
				t.Errorf("from 7 on: %v, %v", got, err)
			}
			if got, err := readIDR(r, idr, 2); !errors.Is(err, ErrImplausible) {
				t.Errorf("more than the bound: %v, %v", got, err)
			}
		}
	}
	g.WriteIDR(idr, g.Base+testNodes, map[uint64]x86.VirtAddr{1: 0xffff_8880_0000_1000, 2: 0xffff_8880_0000_2000})
	stop := 0
	if err := r.idr(idr, 10, func(uint64, x86.VirtAddr) error { stop++; return errStop }); err != nil || stop != 1 {
		t.Errorf("stopped after %d: %v", stop, err)
	}
}

// TestIDRTorn damages a tree in the ways that a change under the walk, or a
// guest, can: no walk takes the result for good.
func TestIDRTorn(t *testing.T) {
	g, k := identified(t, linuxtest.Config{Layout: linuxtest.Relative61, Types: linuxtest.IDRTypes()})
	r := k.NewReader(nil)
	idr, entries := g.Base+testIDR, map[uint64]x86.VirtAddr{1: 0xffff_8880_0000_1000, 64: 0xffff_8880_0000_2000}
	slot := func(i int) x86.VirtAddr { return linuxtest.XANodeSlots + x86.VirtAddr(8*i) }
	for name, damage := range map[string]func(nodes []x86.VirtAddr){
		"another parent":    func(n []x86.VirtAddr) { g.WriteUint64(n[1]+linuxtest.XANodeParent, uint64(n[1])) },
		"another offset":    func(n []x86.VirtAddr) { g.Write(n[1]+linuxtest.XANodeOffset, []byte{9}) },
		"another shift":     func(n []x86.VirtAddr) { g.Write(n[1]+linuxtest.XANodeShift, []byte{6}) },
		"root of shift 66":  func(n []x86.VirtAddr) { g.Write(n[0]+linuxtest.XANodeShift, []byte{66}) },
		"root of shift 7":   func(n []x86.VirtAddr) { g.Write(n[0]+linuxtest.XANodeShift, []byte{7}) },
		"a cycle":           func(n []x86.VirtAddr) { g.WriteUint64(n[0]+slot(2), uint64(n[0])|2) },
		"a node twice":      func(n []x86.VirtAddr) { g.WriteUint64(n[0]+slot(2), uint64(n[1])|2) },
		"an unmapped node":  func(n []x86.VirtAddr) { g.WriteUint64(n[0]+slot(2), 0xffff_c900_0000_0002) },
		"a user's node":     func(n []x86.VirtAddr) { g.WriteUint64(n[0]+slot(2), 0x7fff_0000_0002) },
		"an entry above":    func(n []x86.VirtAddr) { g.WriteUint64(n[0]+slot(2), 0xffff_8880_0000_1000) },
		"a retry entry":     func(n []x86.VirtAddr) { g.WriteUint64(n[1]+slot(3), 256<<2|2) },
		"a value":           func(n []x86.VirtAddr) { g.WriteUint64(n[1]+slot(3), 0x11) },
		"a user's pointer":  func(n []x86.VirtAddr) { g.WriteUint64(n[1]+slot(3), 0x7fff_0000_0000) },
		"a node for a leaf": func(n []x86.VirtAddr) { g.WriteUint64(n[1]+slot(3), uint64(n[1])|2) },
	} {
		nodes := g.WriteIDR(idr, g.Base+testNodes, entries)
		damage(nodes)
		if got, err := readIDR(r, idr, 10); !errors.Is(err, errTorn) {
			t.Errorf("%s: %v, %v", name, got, err)
		}
	}
	g.WriteIDR(idr, g.Base+testNodes, entries)
	g.WriteUint64(g.Base+testNodes+slot(5), 257<<2|2)
	g.WriteUint64(g.Base+testNodes+x86.PageSize+slot(5), 257<<2|2)
	if _, err := readIDR(r, idr, 2); !errors.Is(err, errTorn) {
		t.Errorf("a taken number above the leaves: %v", err)
	}
}

// FuzzIDR lets a guest fill the tree with anything: the walk ends, within its
// bound, with rising numbers.
func FuzzIDR(f *testing.F) {
	f.Add([]byte{1, 2, 3, 4, 5, 6, 7, 8}, uint16(0))
	f.Add([]byte{6, 1}, uint16(x86.PageSize))
	g, k := identified(f, linuxtest.Config{Layout: linuxtest.Relative61, Symbols: 300, Types: linuxtest.IDRTypes()})
	idr := g.Base + testIDR
	f.Fuzz(func(t *testing.T, data []byte, at uint16) {
		g.WriteIDR(idr, g.Base+testNodes, map[uint64]x86.VirtAddr{1: 0xffff_8880_0000_1000, 64: 0xffff_8880_0000_2000, 5000: 0xffff_8880_0000_3000})
		g.Write(g.Base+testNodes+x86.VirtAddr(at), data[:min(len(data), 0x4000)])
		const most = 1000
		n, last := 0, uint64(0)
		err := k.NewReader(nil).idr(idr, most, func(id uint64, entry x86.VirtAddr) error {
			if n++; n > 1 && id <= last || !entry.KernelHalf() {
				t.Errorf("%#x after %#x: %v", id, last, entry)
			}
			last = id
			return nil
		})
		if n > most || err != nil && !errors.Is(err, errTorn) && !errors.Is(err, ErrImplausible) {
			t.Errorf("%d entries: %v", n, err)
		}
	})
}
