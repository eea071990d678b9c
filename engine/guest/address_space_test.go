package guest_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"testing"

	"github.com/xen-hvi/hvi/engine/guest"
	"github.com/xen-hvi/hvi/engine/guest/guesttest"
	"github.com/xen-hvi/hvi/engine/x86"
)

const (
	kernelVA = x86.VirtAddr(0xffff_ffff_8100_0000)
	directVA = x86.VirtAddr(0xffff_8880_0000_0000)
	userVA   = x86.VirtAddr(0x7fff_1234_5000)
)

// plain hides the WordReader of an image.
type plain struct{ mem guest.Memory }

func (p plain) ReadPhys(pa x86.PhysAddr, buf []byte) error { return p.mem.ReadPhys(pa, buf) }

func build(levels int) *guesttest.Builder {
	b := guesttest.New(levels, 8<<20)
	b.Map(kernelVA, 0x200000, 0x200000, guest.Page2M, 0)
	b.Map(directVA, 0, 0x4000_0000, guest.Page1G, guesttest.Writable|guesttest.NX)
	b.Map(userVA, 0x403000, 0x1000, guest.Page4K, guesttest.Writable|guesttest.User|guesttest.NX)
	b.Map(userVA+0x1000, 0x401000, 0x1000, guest.Page4K, guesttest.User)
	for i := range 0x600000 / 8 {
		binary.LittleEndian.PutUint64(b.Mem[i*8:], uint64(i*8)^0x5a5a)
	}
	return b
}

func TestTranslate(t *testing.T) {
	for _, levels := range []int{4, 5} {
		b := build(levels)
		as := b.AddressSpace()
		if as.Levels() != levels || as.Root() != b.Root {
			t.Fatalf("levels %d root %v, want %d %v", as.Levels(), as.Root(), levels, b.Root)
		}
		for _, c := range []struct {
			va   x86.VirtAddr
			want guest.Translation
		}{
			{kernelVA + 0x12345, guest.Translation{Phys: 0x212345, PageSize: guest.Page2M}},
			{directVA + 0x3fff_ffff, guest.Translation{Phys: 0x3fff_ffff, PageSize: guest.Page1G, Writable: true, NX: true}},
			{userVA + 0xfff, guest.Translation{Phys: 0x403fff, PageSize: guest.Page4K, Writable: true, User: true, NX: true}},
			{userVA + 0x1000, guest.Translation{Phys: 0x401000, PageSize: guest.Page4K, User: true}},
		} {
			if got, err := as.Translate(c.va); err != nil || got != c.want {
				t.Errorf("%d levels: Translate(%v) = %+v, %v, want %+v", levels, c.va, got, err, c.want)
			}
		}
	}
}

// Rights count over all levels: one missing above is missing for good.
func TestTranslateRights(t *testing.T) {
	for level := 2; level <= 4; level++ {
		b := build(4)
		at := b.Entry(userVA, level)
		b.Put(at, b.Get(at)&^(guesttest.Writable|guesttest.User)|guesttest.NX)
		as := b.AddressSpace()
		got, err := as.Translate(userVA + 0x1000)
		if err != nil || got.Writable || got.User || !got.NX {
			t.Errorf("level %d without rights: %+v, %v", level, got, err)
		}
	}
}

func TestTranslateErrors(t *testing.T) {
	b := build(4)
	hole := userVA - 0x80_0000_0000 // another entry of the top table
	for _, c := range []struct {
		name  string
		va    x86.VirtAddr
		spoil func()
		level int
		is    error
		skip  x86.VirtAddr
	}{
		{"not canonical", 0x8000_0000_0000, nil, 0, guest.ErrNotCanonical, 0x8000_0000_1000},
		{"canonical for 5 levels only", 0xff00_0000_0000_0000, nil, 0, guest.ErrNotCanonical, 0xff00_0000_0000_1000},
		{"no level 4 entry", 0x1000, nil, 4, guest.ErrNotPresent, 0x80_0000_0000},
		{"no level 3 entry", hole &^ 0x7f_ffff_ffff, func() { b.Entry(hole, 3) }, 3, guest.ErrNotPresent, hole&^0x7f_ffff_ffff + 0x4000_0000},
		{"no level 2 entry", kernelVA + 0x20_0000, nil, 2, guest.ErrNotPresent, kernelVA + 0x40_0000},
		{"no level 1 entry", userVA + 0x2000, nil, 1, guest.ErrNotPresent, userVA + 0x3000},
		{"size bit in level 4", directVA, func() { b.Put(b.Entry(directVA, 4), 0x1000|guesttest.Present|guesttest.Large) }, 4, guest.ErrReserved, directVA + 0x80_0000_0000},
		{"2M page not aligned", kernelVA, func() { b.Put(b.Entry(kernelVA, 2), 0x20_2000|guesttest.Present|guesttest.Large) }, 2, guest.ErrReserved, kernelVA + 0x20_0000},
		{"table outside memory", userVA, func() { b.Put(b.Entry(userVA, 2), 0xf_0000_0000|guesttest.Present) }, 1, guest.ErrOutside, userVA + 0x1000},
	} {
		if c.spoil != nil {
			c.spoil()
		}
		as := b.AddressSpace()
		_, err := as.Translate(c.va)
		var te *guest.TranslateError
		if !errors.As(err, &te) || !errors.Is(err, c.is) || te.Level != c.level || te.VA != c.va {
			t.Errorf("%s: %#v, want level %d, %v", c.name, err, c.level, c.is)
			continue
		}
		if te.Skip() != c.skip {
			t.Errorf("%s: skip to %v, want %v", c.name, te.Skip(), c.skip)
		}
		if te.Error() == "" || errors.Is(err, guest.ErrUnterminated) {
			t.Errorf("%s: %v", c.name, err)
		}
	}
}

func TestControlRegisters(t *testing.T) {
	b := build(4)
	// Bit 63 keeps TLB entries, the low 12 are a PCID; PAT is bit 12 of a
	// large page.
	b.Put(b.Entry(kernelVA, 2), b.Get(b.Entry(kernelVA, 2))|1<<12)
	as := guest.NewAddressSpace(b.Memory(), b.CR3()|1<<63|0x801, b.CR4()|x86.CR4PCIDE, b.EFER())
	if got, err := as.Translate(kernelVA); err != nil || got.Phys != 0x200000 {
		t.Errorf("with PCID: %+v, %v", got, err)
	}
	noNX := guest.NewAddressSpace(b.Memory(), b.CR3(), b.CR4(), b.EFER()&^x86.EFERNXE)
	if _, err := noNX.Translate(userVA); !errors.Is(err, guest.ErrReserved) {
		t.Errorf("NX bit without EFER.NXE: %v, want %v", err, guest.ErrReserved)
	}
	unknown := guest.NewAddressSpace(b.Memory(), b.CR3(), b.CR4(), 0)
	if got, err := unknown.Translate(userVA); err != nil || !got.NX {
		t.Errorf("unknown EFER: %+v, %v", got, err)
	}
}

func TestRead(t *testing.T) {
	b := build(4)
	for _, mem := range []guest.Memory{b.Memory(), &counted{image: b.Memory()}, plain{b.Memory()}} {
		as := guest.NewAddressSpace(mem, b.CR3(), b.CR4(), b.EFER())
		// Two pages that are neighbours in virtual memory only.
		buf := make([]byte, 0x1800)
		if err := as.Read(userVA+0x400, buf); err != nil {
			t.Fatal(err)
		}
		want := append(bytes.Clone(b.Mem[0x403400:0x404000]), b.Mem[0x401000:0x401c00]...)
		if !bytes.Equal(buf, want) {
			t.Error("Read across pages gave other bytes")
		}
		word := append(bytes.Clone(b.Mem[0x403ffd:0x404000]), b.Mem[0x401000:0x401005]...)
		if got, err := as.ReadUint64(userVA + 0xffd); err != nil || got != binary.LittleEndian.Uint64(word) {
			t.Errorf("ReadUint64 across pages: %#x, %v", got, err)
		}
		if got, err := as.ReadUint64(userVA + 8); err != nil || got != b.Get(0x403008) {
			t.Errorf("ReadUint64: %#x, %v", got, err)
		}
		if got, err := as.ReadPointer(userVA + 8); err != nil || uint64(got) != b.Get(0x403008) {
			t.Errorf("ReadPointer: %v, %v", got, err)
		}
		if got, err := as.ReadUint32(userVA + 9); err != nil || got != uint32(b.Get(0x403008)>>8) {
			t.Errorf("ReadUint32: %#x, %v", got, err)
		}
		if got, err := as.ReadUint16(userVA + 9); err != nil || got != uint16(b.Get(0x403008)>>8) {
			t.Errorf("ReadUint16: %#x, %v", got, err)
		}
		if got, err := as.ReadUint8(userVA + 9); err != nil || got != uint8(b.Get(0x403008)>>8) {
			t.Errorf("ReadUint8: %#x, %v", got, err)
		}
		var te *guest.TranslateError
		if err := as.Read(userVA+0x1fff, buf[:2]); !errors.As(err, &te) || te.VA != userVA+0x2000 {
			t.Errorf("Read into a hole: %v", err)
		}
		// Mapped by page tables, but to where there is no memory.
		if _, err := as.ReadUint64(directVA + 0x3000_0000); !errors.Is(err, guest.ErrOutside) {
			t.Errorf("read beyond memory: %v", err)
		}
	}
	b.Map(^x86.VirtAddr(0xfff), 0x401000, 0x1000, guest.Page4K, 0)
	as := b.AddressSpace()
	if err := as.Read(^x86.VirtAddr(3), make([]byte, 8)); !errors.Is(err, guest.ErrNotCanonical) {
		t.Errorf("read over the top: %v, want %v", err, guest.ErrNotCanonical)
	}
	if err := as.Read(^x86.VirtAddr(7), make([]byte, 8)); err != nil {
		t.Errorf("read up to the top: %v", err)
	}
}

func TestReadCString(t *testing.T) {
	b := build(4)
	as := b.AddressSpace()
	for i := range 0x1000 {
		b.Mem[0x403000+i], b.Mem[0x401000+i] = 'a', 'b'
	}
	b.Mem[0x401002] = 0
	start := userVA + 0xffd // "aaabb"
	for _, c := range []struct {
		max  int
		want string
		is   error
	}{
		{5, "aaabb", nil},
		{1000, "aaabb", nil},
		{4, "", guest.ErrUnterminated},
		{0, "", guest.ErrUnterminated},
	} {
		got, err := as.ReadCString(start, c.max)
		if got != c.want || !errors.Is(err, c.is) {
			t.Errorf("ReadCString(max %d) = %q, %v, want %q, %v", c.max, got, err, c.want, c.is)
		}
	}
	if got, err := as.ReadCString(userVA+0x1002, 0); got != "" || err != nil {
		t.Errorf("empty string: %q, %v", got, err)
	}
	// The terminator is in the last page that is mapped: no more is read.
	b.Mem[0x401fff] = 0
	if got, err := as.ReadCString(userVA+0x1ffe, 100); got != "b" || err != nil {
		t.Errorf("string at the end of what is mapped: %q, %v", got, err)
	}
	if _, err := as.ReadCString(userVA+0x2000, 100); !errors.Is(err, guest.ErrNotPresent) {
		t.Errorf("string in a hole: %v", err)
	}
}

func TestNoAllocations(t *testing.T) {
	b := build(5)
	buf := make([]byte, 0x1800)
	for name, mem := range map[string]guest.Memory{"direct": b.Memory(), "words": &counted{image: b.Memory()}, "bytes": plain{b.Memory()}} {
		as := guest.NewAddressSpace(mem, b.CR3(), b.CR4(), b.EFER())
		tlb := guest.NewTLB()
		cached := as.WithTLB(tlb)
		for what, f := range map[string]func() error{
			"TLB":        func() error { return cached.Read(userVA+0x400, buf) },
			"flushed":    func() error { tlb.Flush(); return cached.Read(userVA+0x400, buf) },
			"Translate":  func() error { _, err := as.Translate(userVA); return err },
			"Read":       func() error { return as.Read(userVA+0x400, buf) },
			"ReadUint64": func() error { _, err := as.ReadUint64(userVA + 8); return err },
			"ReadUint32": func() error { _, err := as.ReadUint32(userVA + 8); return err },
			"NewAddressSpace": func() error {
				as := guest.NewAddressSpace(mem, b.CR3(), b.CR4(), b.EFER())
				_, err := as.Translate(userVA)
				return err
			},
		} {
			var err error
			if n := testing.AllocsPerRun(200, func() { err = errors.Join(err, f()) }); n != 0 || err != nil {
				t.Errorf("%s over %s: %v allocations, %v", what, name, n, err)
			}
		}
	}
}

func TestRawImage(t *testing.T) {
	data := []byte("0123456789abcdef")
	m := guest.NewRawImage(data)
	if m.Size() != 16 {
		t.Errorf("size %d", m.Size())
	}
	buf := make([]byte, 4)
	if err := m.ReadPhys(12, buf); err != nil || string(buf) != "cdef" {
		t.Errorf("ReadPhys(12) = %q, %v", buf, err)
	}
	if v, err := m.ReadPhysUint64(8); err != nil || v != binary.LittleEndian.Uint64(data[8:]) {
		t.Errorf("ReadPhysUint64(8) = %#x, %v", v, err)
	}
	for _, pa := range []x86.PhysAddr{13, 17, ^x86.PhysAddr(0)} {
		err := m.ReadPhys(pa, buf)
		var re *guest.RangeError
		if !errors.Is(err, guest.ErrOutside) || !errors.As(err, &re) || re.Phys != pa || re.Size != 16 {
			t.Errorf("ReadPhys(%v): %v", pa, err)
		}
		if _, err := m.ReadPhysUint64(pa); !errors.Is(err, guest.ErrOutside) {
			t.Errorf("ReadPhysUint64(%v): %v", pa, err)
		}
	}
}

// FuzzTranslate lets the fuzzer write the page tables: 8 pages of them, the
// root first. Whatever they say, a walk ends, agrees with a second one, and a
// present page comes out of an entry with its present bit set.
func FuzzTranslate(f *testing.F) {
	f.Add([]byte{1, 2, 3}, uint64(kernelVA), false)
	seed := make([]byte, 4096)
	for i := range 512 {
		binary.LittleEndian.PutUint64(seed[8*i:], 0x7) // every entry leads to the root
	}
	f.Add(seed, uint64(kernelVA), true)
	large := bytes.Clone(seed)
	for i := range 512 {
		binary.LittleEndian.PutUint64(large[8*i:], 0x87)
	}
	f.Add(large, uint64(userVA), false)
	f.Fuzz(func(t *testing.T, tables []byte, va uint64, la57 bool) {
		mem := make([]byte, 8*4096)
		copy(mem, tables)
		cr4 := uint64(x86.CR4PAE)
		if la57 {
			cr4 |= x86.CR4LA57
		}
		fast := guest.NewAddressSpace(guest.NewRawImage(mem), 0, cr4, 0)
		slow := guest.NewAddressSpace(plain{guest.NewRawImage(mem)}, 0, cr4, 0)
		a, errA := fast.Translate(x86.VirtAddr(va))
		b, errB := slow.Translate(x86.VirtAddr(va))
		if a != b || (errA == nil) != (errB == nil) {
			t.Fatalf("%+v, %v by words; %+v, %v by bytes", a, errA, b, errB)
		}
		part, errP := fast.Part(x86.VirtAddr(va))
		if errP == nil {
			var p guest.Translation
			if p, errP = part.Translate(x86.VirtAddr(va)); p != a {
				t.Fatalf("%+v of the whole, %+v of a part", a, p)
			}
		}
		if !sameError(errA, errP) {
			t.Fatalf("%v of the whole, %v of a part", errA, errP)
		}
		if errA != nil {
			var te *guest.TranslateError
			if !errors.As(errA, &te) || te.Skip() == te.VA {
				t.Fatalf("error %#v", errA)
			}
			return
		}
		if uint64(a.Phys)&(a.PageSize-1) != va&(a.PageSize-1) {
			t.Fatalf("%#x became %v in a page of %#x", va, a.Phys, a.PageSize)
		}
		buf := make([]byte, 64)
		if err := fast.Read(x86.VirtAddr(va), buf); err == nil && a.PageEnd(x86.VirtAddr(va)) >= 64 && !bytes.Equal(buf, mem[a.Phys:a.Phys+64]) {
			t.Fatal("Read and Translate disagree")
		}
		if s, err := fast.ReadCString(x86.VirtAddr(va), 100); err == nil && len(s) > 100 {
			t.Fatalf("string of %d bytes", len(s))
		}
	})
}

// TestWithMemory: all is read of the new memory, words too.
func TestWithMemory(t *testing.T) {
	b := build(4)
	as := b.AddressSpace()
	other := bytes.Clone(b.Mem)
	binary.LittleEndian.PutUint64(other[0x200000:], 2)
	for name, mem := range map[string]guest.Memory{"an image": guest.NewRawImage(other), "no image": plain{guest.NewRawImage(other)}} {
		as := as.WithMemory(mem)
		word, err := as.ReadUint64(kernelVA)
		buf := make([]byte, 8)
		if err2 := as.Read(kernelVA, buf); err != nil || err2 != nil || word != 2 || binary.LittleEndian.Uint64(buf) != 2 {
			t.Errorf("%s: %#x and %x, %v, %v", name, word, buf, err, err2)
		}
	}
}
