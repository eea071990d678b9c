package linux

import (
	"testing"

	"github.com/xen-hvi/hvi/engine/guest/linux/linuxtest"
	"github.com/xen-hvi/hvi/engine/x86"
)

// loadModule writes a struct module at a place in the guest's data and puts
// it behind the list head or the module before.
func loadModule(g *linuxtest.Guest, at, behind, next x86.VirtAddr, name string, region int, base x86.VirtAddr, size uint32) {
	g.WriteUint64(behind, uint64(at+linuxtest.ModuleList))
	g.WriteUint64(at+linuxtest.ModuleList, uint64(next))
	g.Write(at+linuxtest.ModuleName, append([]byte(name), 0))
	r := at + linuxtest.ModuleMem + x86.VirtAddr(region*linuxtest.RegionSize)
	g.WriteUint64(r+linuxtest.RegionBase, uint64(base))
	g.Write(r+linuxtest.RegionBytes, []byte{byte(size), byte(size >> 8), byte(size >> 16), byte(size >> 24)})
}

const (
	coreBase = x86.VirtAddr(0xffffffffc0200000)
	initBase = x86.VirtAddr(0xffffffffc0300000)
)

// TestModuleAt finds modules in both shapes struct module has had.
func TestModuleAt(t *testing.T) {
	for layout, lastRegion := range map[linuxtest.Layout]int{linuxtest.Relative61: 1, linuxtest.After64: linuxtest.Regions - 1} {
		g, k := identified(t, linuxtest.Config{Layout: layout})
		head, first, second := g.Addr("modules"), g.Base+linuxtest.Data+0x10000, g.Base+linuxtest.Data+0x11000
		loadModule(g, first, head, second+linuxtest.ModuleList, "virtio", 0, coreBase, 0x3000)
		loadModule(g, second, first+linuxtest.ModuleList, head, "pwn\x1b[2J", lastRegion, initBase, 0x1000)
		for va, want := range map[x86.VirtAddr]string{
			coreBase: "virtio", coreBase + 0x2fff: "virtio", coreBase + 0x3000: "", coreBase - 1: "",
			initBase + 0x2a: "pwn\x1b[2J", 0: "", g.Base: "",
		} {
			var m Module
			ok := k.ModuleAt(va, &m)
			if ok != (want != "") || ok && m.Name() != want {
				t.Errorf("layout %d, %v: %q, %v; want %q", layout, va, m.Name(), ok, want)
			}
			if ok && want == "virtio" && m.Base != coreBase {
				t.Errorf("layout %d: base %v", layout, m.Base)
			}
		}
	}
}

func TestModuleAtDoesNotAllocate(t *testing.T) {
	g, k := identified(t, linuxtest.Config{Layout: linuxtest.After64})
	head, mod := g.Addr("modules"), g.Base+linuxtest.Data+0x10000
	loadModule(g, mod, head, head, "virtio", linuxtest.Regions-1, coreBase, 0x3000)
	var m Module
	found := false
	if n := testing.AllocsPerRun(100, func() { found = k.ModuleAt(coreBase, &m) }); n != 0 || !found {
		t.Errorf("%v allocations, want 0; found: %v", n, found)
	}
}

// TestModuleAtHostile gives the walk lists a hostile guest can make: it ends,
// and finds nothing.
func TestModuleAtHostile(t *testing.T) {
	g, k := identified(t, linuxtest.Config{Layout: linuxtest.Relative61})
	head, mod := g.Addr("modules"), g.Base+linuxtest.Data+0x10000
	for name, next := range map[string]x86.VirtAddr{
		"to itself": mod + linuxtest.ModuleList, "unmapped": 0xffff_c900_0000_0000, "user half": 0x1000, "nothing": 0,
	} {
		loadModule(g, mod, head, next, "loop", 0, coreBase, 0x1000)
		var m Module
		if k.ModuleAt(initBase, &m) {
			t.Errorf("%s: found %q", name, m.Name())
		}
	}
	// A region larger than the module area is not believed.
	loadModule(g, mod, head, head, "huge", 0, 0xffff_8000_0000_0000, 0xffff_ffff)
	var m Module
	if k.ModuleAt(0xffff_8000_0000_1000, &m) {
		t.Errorf("found %q", m.Name())
	}
}

// TestImageAddr names the place in the image behind a physical address.
func TestImageAddr(t *testing.T) {
	g, k := identified(t, linuxtest.Config{Layout: linuxtest.Relative61})
	if va, ok := k.ImageAddr(g.PhysBase + 0x1234); !ok || va != g.Base+0x1234 {
		t.Errorf("%v, %v", va, ok)
	}
	for _, pa := range []x86.PhysAddr{g.PhysBase - 1, g.PhysBase + linuxtest.TextSize, ^x86.PhysAddr(0)} {
		if va, ok := k.ImageAddr(pa); ok {
			t.Errorf("%v lies at %v?", pa, va)
		}
	}
}

// FuzzModuleAt lets a guest fill its list of modules with anything.
func FuzzModuleAt(f *testing.F) {
	g, k := identified(f, linuxtest.Config{Layout: linuxtest.After64})
	const size = 0x4000
	first := g.Base + linuxtest.Data + 0x10000
	second := first + 0x800
	loadModule(g, first, g.Addr("modules"), second+linuxtest.ModuleList, "virtio", 0, coreBase, 0x3000)
	loadModule(g, second, first+linuxtest.ModuleList, g.Addr("modules"), "other", 1, initBase, 0x1000)
	as := g.AddressSpace()
	list := make([]byte, 0x1000)
	if err := as.Read(first, list); err != nil {
		f.Fatal(err)
	}
	f.Add(list, uint16(0), uint64(initBase))
	f.Add([]byte{1, 2, 3, 4, 5, 6, 7, 8}, uint16(linuxtest.ModuleList), uint64(coreBase))
	f.Fuzz(func(t *testing.T, data []byte, at uint16, va uint64) {
		at %= size
		defer overwrite(g, first+x86.VirtAddr(at), data[:min(len(data), size-int(at))])()
		var m Module
		if k.ModuleAt(x86.VirtAddr(va), &m) && (m.Base > x86.VirtAddr(va) || x86.VirtAddr(va)-m.Base >= maxModuleSize) {
			t.Errorf("%#x in a module at %v", va, m.Base)
		}
	})
}
