package guest_test

import (
	"errors"
	"slices"
	"testing"

	"github.com/xen-hvi/hvi/engine/guest"
	"github.com/xen-hvi/hvi/engine/guest/guesttest"
	"github.com/xen-hvi/hvi/engine/x86"
)

// executable is a page as [guest.AddressSpace.Executable] tells it.
type executable struct {
	va x86.VirtAddr
	t  guest.Translation
}

func executablePages(t *testing.T, b *guesttest.Builder, most int) []executable {
	t.Helper()
	var out []executable
	n, err := b.AddressSpace().Executable(most, func(va x86.VirtAddr, t guest.Translation) error {
		out = append(out, executable{va, t})
		return nil
	})
	if err != nil || n == 0 {
		t.Fatalf("%d entries, %v", n, err)
	}
	return out
}

// TestExecutable lists the pages of the upper half that have no NX on any level.
func TestExecutable(t *testing.T) {
	for _, levels := range []int{4, 5} {
		b := build(levels)
		const page = x86.VirtAddr(0xffff_c900_0000_5000)
		b.Map(page, 0x7000, 0x1000, guest.Page4K, guesttest.Writable)
		b.Map(page+0x1000, 0x8000, 0x1000, guest.Page4K, guesttest.NX)
		b.Map(page+0x2000, 0x9000, 0x1000, guest.Page4K, guesttest.User)
		want := []executable{
			{page, guest.Translation{Phys: 0x7000, PageSize: guest.Page4K, Writable: true}},
			{page + 0x2000, guest.Translation{Phys: 0x9000, PageSize: guest.Page4K, User: true}},
			{kernelVA, guest.Translation{Phys: 0x200000, PageSize: guest.Page2M}},
		}
		got := executablePages(t, b, 100)
		if !slices.Equal(got, want) {
			t.Errorf("%d levels: %+v, want %+v", levels, got, want)
		}
		for _, e := range got {
			as := b.AddressSpace()
			if to, err := as.Translate(e.va); err != nil || to != e.t {
				t.Errorf("%v: %+v, %v, want as translated: %+v", e.va, e.t, err, to)
			}
		}
		// What is denied above is denied for all below.
		at := b.Entry(page, 2)
		b.Put(at, b.Get(at)|guesttest.NX)
		if got := executablePages(t, b, 100); !slices.Equal(got, want[2:]) {
			t.Errorf("%d levels, with NX above: %+v", levels, got)
		}
	}
}

// TestExecutableHostile has tables that lead to themselves, to nowhere, and to what the
// processor refuses.
func TestExecutableHostile(t *testing.T) {
	stop := errors.New("stop")
	for name, c := range map[string]struct {
		spoil func(b *guesttest.Builder)
		most  int
		want  error
	}{
		"many tables":         {func(*guesttest.Builder) {}, 2, guest.ErrManyTables},
		"f says so":           {func(*guesttest.Builder) {}, 100, stop},
		"the root in itself":  {func(b *guesttest.Builder) { b.Put(b.Root+8*300, uint64(b.Root)|3) }, 10, guest.ErrManyTables},
		"a table nowhere":     {func(b *guesttest.Builder) { clear(b.Mem[b.Root:][:4096]); b.Put(b.Root+8*300, 1<<40|3) }, 100, nil},
		"a page of 512 GiB":   {func(b *guesttest.Builder) { clear(b.Mem[b.Root:][:4096]); b.Put(b.Root+8*300, guesttest.Large|3) }, 100, nil},
		"a page out of place": {func(b *guesttest.Builder) { at := b.Entry(kernelVA, 2); b.Put(at, b.Get(at)|0x2000) }, 100, nil},
	} {
		b := build(4)
		c.spoil(b)
		_, err := b.AddressSpace().Executable(c.most, func(va x86.VirtAddr, _ guest.Translation) error {
			if c.want == nil {
				t.Errorf("%s: %v", name, va)
			}
			if c.want == stop {
				return stop
			}
			return nil
		})
		if !errors.Is(err, c.want) {
			t.Errorf("%s: %v, want %v", name, err, c.want)
		}
	}
	// A table twice that has nothing is read once.
	b := build(4)
	clear(b.Mem[b.Root:][:4096])
	b.Entry(kernelVA, 1)
	for i := range 200 {
		b.Put(b.Root+x86.PhysAddr(8*(300+i)), b.Get(b.Root+8*511))
	}
	if got := executablePages(t, b, 4); len(got) != 0 {
		t.Errorf("%+v", got)
	}
	as := b.AddressSpace().WithRoot(1 << 40)
	if _, err := as.Executable(100, nil); err == nil {
		t.Error("no error of a root that can't be read")
	}
}

// FuzzExecutable makes a page table of anything, and finds what a translation finds.
func FuzzExecutable(f *testing.F) {
	f.Add([]byte{3, 0, 0x40, 0, 0, 0, 0, 0}, uint8(1))
	f.Add([]byte{0x83, 0, 0x40, 0, 0, 0, 0, 0, 0x83, 0x10, 0, 0, 0, 0, 0, 0x80}, uint8(2))
	f.Add([]byte{0x83, 0, 0, 0x40, 0, 0, 0, 0}, uint8(3))
	f.Add([]byte{0xe3, 0xf0, 0x7f, 0, 0, 0, 0, 0}, uint8(4))
	f.Fuzz(func(t *testing.T, entries []byte, level uint8) {
		b := build(4)
		at := b.Entry(kernelVA, int(level)%4+1) &^ x86.PageMask
		copy(b.Mem[at:][:x86.PageSize], entries)
		as := b.AddressSpace()
		_, err := as.Executable(100, func(va x86.VirtAddr, want guest.Translation) error {
			if got, err := as.Translate(va); err != nil || got != want || got.NX || !va.KernelHalf() {
				t.Errorf("%v: %+v, translated %+v, %v", va, want, got, err)
			}
			return nil
		})
		if err != nil && !errors.Is(err, guest.ErrManyTables) {
			t.Error(err)
		}
	})
}
