package linux

import (
	"bytes"
	"encoding/binary"
	"errors"
	"testing"

	"github.com/xen-hvi/hvi/engine/guest"
	"github.com/xen-hvi/hvi/engine/guest/guesttest"
	"github.com/xen-hvi/hvi/engine/guest/linux/linuxtest"
	"github.com/xen-hvi/hvi/engine/x86"
)

// fixmap is where a kernel maps single pages; every one does.
const fixmap = x86.VirtAddr(0xffff_ffff_ff5f_d000)

// forScan builds a guest with what a scan looks at: a fixmap, and processes.
func forScan(c linuxtest.Config, processes int) *linuxtest.Guest {
	g := linuxtest.New(c)
	g.Map(fixmap, 0x1000, 0x1000, guest.Page4K, 0)
	for range processes {
		pgd := g.AllocPage()
		copy(g.Mem[pgd:pgd+4096], g.Mem[g.Root:g.Root+4096])
	}
	return g
}

func wholeMemory(g *linuxtest.Guest) []guest.PhysRange {
	return []guest.PhysRange{{Start: 0, End: x86.PhysAddr(len(g.Mem))}}
}

// bytesOnly hides the WordReader of an image.
type bytesOnly struct{ guest.Memory }

func TestFind(t *testing.T) {
	for name, c := range map[string]linuxtest.Config{
		"plain":       {Layout: linuxtest.Relative61},
		"early":       {Layout: linuxtest.After64, Early: true},
		"five levels": {Layout: linuxtest.After64, FiveLevels: true},
		"KASLR":       {Layout: linuxtest.Relative5, Base: 0xffff_ffff_b8e0_0000},
		"isolation":   {Layout: linuxtest.Relative61, UserRoot: true},
	} {
		g := forScan(c, 20)
		only := g.Regs[0] // as a Xen core has them
		only.LSTAR = 0
		stopped := x86.Registers{}
		wrong := x86.Registers{CR3: 0x5000, LSTAR: uint64(g.Base)}
		for how, regs := range map[string][]x86.Registers{
			"by registers":       g.Regs,
			"by CR3":             {stopped, only},
			"by no register":     nil,
			"by wrong registers": {wrong},
		} {
			for _, mem := range []guest.Memory{g.Memory(), bytesOnly{g.Memory()}} {
				k, err := Find(mem, regs, wholeMemory(g))
				if err != nil || k.Base != g.Base || k.PhysBase != g.PhysBase || k.Banner != linuxtest.Banner {
					t.Errorf("%s, %s: %+v, %v", name, how, k, err)
					continue
				}
				if as := k.AddressSpace(); as.Root() != g.Root && name != "isolation" {
					t.Errorf("%s, %s: root %v, want %v", name, how, as.Root(), g.Root)
				}
			}
		}
	}
}

// The kernel that runs is found beside one that doesn't: whose page tables lead
// to other memory, or to an image that was never relocated, whatever number of
// roots it has.
func TestFindAmongOthers(t *testing.T) {
	g := forScan(linuxtest.Config{Layout: linuxtest.Relative61, Base: 0xffff_ffff_9a20_0000}, 3)
	copyOf := func(page x86.PhysAddr) x86.PhysAddr {
		p := g.AllocPage()
		copy(g.Mem[p:p+4096], g.Mem[page:page+4096])
		return p
	}
	entry := func(table x86.PhysAddr, i int) x86.PhysAddr { return table + x86.PhysAddr(i*8) }
	target := func(at x86.PhysAddr) x86.PhysAddr { return x86.PhysAddr(g.Get(at) & x86.CR3AddrMask) }
	level3 := target(entry(g.Root, 511))
	level2 := target(entry(level3, 510))
	for i, spoil := range []func(pmd x86.PhysAddr){
		func(pmd x86.PhysAddr) { // the same image where it was linked
			slots := g.Mem[pmd : pmd+4096]
			moved := append(bytes.Clone(slots[0xd1*8:]), make([]byte, 0xd1*8)...)
			copy(slots[8*8:], moved)
			clear(slots[:8*8])
		},
		func(pmd x86.PhysAddr) { // no kernel behind it
			for slot := range 512 {
				if at := entry(pmd, slot); g.Get(at) != 0 {
					g.Put(at, g.Get(at)&^x86.CR3AddrMask)
				}
			}
		},
		func(pmd x86.PhysAddr) { // all of memory
			for slot := range 512 {
				g.Put(entry(pmd, slot), uint64(slot%16)<<21|guesttest.Present|guesttest.Large)
			}
		},
	} {
		pud, pmd := copyOf(level3), copyOf(level2)
		spoil(pmd)
		g.Put(entry(pud, 510), uint64(pmd)|7)
		for range 10 + i {
			g.Put(entry(copyOf(g.Root), 511), uint64(pud)|7)
		}
	}
	candidates, err := Scan(g.Memory(), wholeMemory(g))
	if err != nil || len(candidates) != 4 || candidates[3].CR3 != uint64(g.Root) {
		t.Fatalf("candidates %+v, %v", candidates, err)
	}
	k, err := Find(g.Memory(), nil, wholeMemory(g))
	if err != nil || k.Base != g.Base || k.PhysBase != g.PhysBase {
		t.Errorf("%+v, %v", k, err)
	}
	// With the kernel gone, the error is that of the one that came furthest.
	g.Write(g.Base+linuxtest.ROData+0x100, []byte("Windows"))
	var ie *IdentifyError
	if k, err := Find(g.Memory(), nil, wholeMemory(g)); k != nil || !errors.As(err, &ie) || ie.Stage != StageBanner {
		t.Errorf("%+v, %v, want an error of stage %q", k, err, StageBanner)
	}
}

func TestScanNothing(t *testing.T) {
	zero := make([]byte, 1<<20)
	random := make([]byte, 1<<20)
	x := uint64(1)
	for i := 0; i < len(random); i += 8 {
		x = x*6364136223846793005 + 1442695040888963407
		binary.LittleEndian.PutUint64(random[i:], x>>12&0xff_f000|x>>40|1) // addresses all over
	}
	for name, c := range map[string]struct {
		mem    []byte
		ranges []guest.PhysRange
	}{
		"zeros":            {zero, []guest.PhysRange{{End: 1 << 20}}},
		"addresses":        {random, []guest.PhysRange{{End: 1 << 20}}},
		"no memory":        {zero, nil},
		"less than a page": {zero, []guest.PhysRange{{Start: 0x1001, End: 0x2fff}}},
		"backwards":        {zero, []guest.PhysRange{{Start: 0x9000, End: 0x1000}}},
		"not there":        {zero, []guest.PhysRange{{Start: 1 << 30, End: 1<<30 + 1<<20}}},
		"top":              {zero, []guest.PhysRange{{Start: ^x86.PhysAddr(0xffff), End: ^x86.PhysAddr(0)}}},
	} {
		got, err := Scan(guest.NewRawImage(c.mem), c.ranges)
		var ie *IdentifyError
		if !errors.As(err, &ie) || ie.Stage != StageBase {
			t.Errorf("%s: %v, %v", name, got, err)
		}
	}
}

// A guest full of roots costs a bounded number of candidates.
func TestScanFlood(t *testing.T) {
	mem := make([]byte, 16<<20)
	pages := len(mem) >> 12
	for p := range pages {
		binary.LittleEndian.PutUint64(mem[p<<12+8*8:], 1<<21|0x87)
		for _, i := range []int{510, 511} {
			binary.LittleEndian.PutUint64(mem[p<<12+i*8:], uint64((p*7+i)%pages)<<12|7)
		}
	}
	got, err := Scan(guest.NewRawImage(mem), []guest.PhysRange{{End: x86.PhysAddr(len(mem))}})
	if err != nil || len(got) != maxCandidates {
		t.Errorf("%d candidates, %v", len(got), err)
	}
	if k, err := Find(guest.NewRawImage(mem), nil, []guest.PhysRange{{End: x86.PhysAddr(len(mem))}}); k != nil || err == nil {
		t.Errorf("%+v, %v", k, err)
	}
}

// Images of real guests are found with nothing but their memory.
func TestFindImages(t *testing.T) {
	for _, img := range testImages(t) {
		mem := img.memory(t)
		ranges := []guest.PhysRange{{End: x86.PhysAddr(mem.Size())}}
		want, err := Identify(mem, img.Regs[0])
		if err != nil {
			t.Fatal(err)
		}
		k, err := Find(mem, nil, ranges)
		if err != nil || k.Banner != img.Version || k.Base != want.Base || k.AddressSpace() != want.AddressSpace() {
			t.Errorf("%s: %+v, %v", img.name(), k, err)
		}
	}
}

// FuzzFind lets the fuzzer write into a guest's page tables and move the
// ranges: what is found is the guest's kernel, or nothing.
func FuzzFind(f *testing.F) {
	g := forScan(linuxtest.Config{Layout: linuxtest.Relative61, Symbols: 300}, 2)
	clean := bytes.Clone(g.Mem)
	tables := x86.PhysAddr(len(g.Mem)) - 16*x86.PageSize
	f.Add(uint32(0), []byte{}, uint64(0), uint64(len(g.Mem)))
	f.Add(uint32(510*8), []byte{7, 0, 0xff, 1}, uint64(0x1000), uint64(0x1ff_0000))
	f.Add(uint32(4096+511*8), binary.LittleEndian.AppendUint64(nil, uint64(tables)|7), uint64(tables), uint64(len(g.Mem)))
	f.Fuzz(func(t *testing.T, at uint32, put []byte, start, end uint64) {
		copy(g.Mem[tables:], clean[tables:])
		area := g.Mem[tables:]
		copy(area[int(at)%len(area):], put)
		ranges := []guest.PhysRange{{Start: x86.PhysAddr(start), End: x86.PhysAddr(min(end, uint64(len(g.Mem))))}}
		k, err := Find(g.Memory(), nil, ranges)
		var ie *IdentifyError
		switch {
		case err == nil && (k.Symbols.Len() != len(g.Syms) || k.Banner != linuxtest.Banner):
			t.Fatalf("another kernel: %+v", k)
		case err != nil && !errors.As(err, &ie):
			t.Fatalf("error %#v", err)
		}
	})
}
