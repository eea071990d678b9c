package guest_test

import (
	"errors"
	"testing"

	"github.com/xen-hvi/hvi/engine/guest"
	"github.com/xen-hvi/hvi/engine/guest/guesttest"
	"github.com/xen-hvi/hvi/engine/x86"
)

// TestPart: a part says what the whole says, and goes on when the tables above
// it have gone.
func TestPart(t *testing.T) {
	for _, levels := range []int{4, 5} {
		b := build(levels)
		b.Map(kernelVA+0x4000_0000, 0x404000, 0x1000, guest.Page4K, guesttest.NX) // in the next GiB, of another table
		whole := b.AddressSpace()
		part, err := whole.Part(kernelVA + 0x1234)
		if err != nil || part.Levels() != 3 {
			t.Fatalf("%d levels: %v, %d levels of the part", levels, err, part.Levels())
		}
		var want []guest.Translation
		in := []x86.VirtAddr{kernelVA, kernelVA + 0x1f_ffff, kernelVA + 0x4000_0123}
		for _, va := range in {
			w, err := whole.Translate(va)
			if err != nil {
				t.Fatal(err)
			}
			want = append(want, w)
		}
		for level := levels; level > 3; level-- {
			b.Put(b.Entry(kernelVA, level), 0)
		}
		if _, err := whole.Translate(kernelVA); !errors.Is(err, guest.ErrNotPresent) {
			t.Errorf("%d levels: the whole: %v", levels, err)
		}
		for name, part := range map[string]guest.AddressSpace{"walked": part, "cached": part.WithTLB(guest.NewTLB())} {
			for range 2 {
				for i, va := range in {
					if got, err := part.Translate(va); err != nil || got != want[i] {
						t.Errorf("%d levels, %s: %v leads to %+v, %v, want %+v", levels, name, va, got, err, want[i])
					}
				}
			}
			for _, va := range []x86.VirtAddr{directVA, userVA, kernelVA - 1<<39, 0x0000_007f_8100_0000, 0x8000_0000_0000, kernelVA & (1<<39 - 1)} {
				if got, err := part.Translate(va); !errors.Is(err, guest.ErrOtherPart) {
					t.Errorf("%d levels, %s: %v in another part: %+v, %v", levels, name, va, got, err)
				}
			}
			if _, err := part.Part(userVA); !errors.Is(err, guest.ErrOtherPart) {
				t.Errorf("%d levels, %s: another part of a part: %v", levels, name, err)
			}
			if same, err := part.Part(kernelVA); err != nil || same != part {
				t.Errorf("%d levels, %s: the same part of a part: %+v, %v", levels, name, same, err)
			}
		}
	}
}

// Rights that the levels above don't give are missing in a part, as are bits
// that the processor reserves.
func TestPartRights(t *testing.T) {
	for name, above := range map[string]int{"level 4": 4, "level 5": 5} {
		b := build(5)
		at := b.Entry(userVA, above)
		b.Put(at, b.Get(at)&^(guesttest.Writable|guesttest.User)|guesttest.NX)
		whole := b.AddressSpace()
		part, err := whole.Part(userVA)
		if err != nil {
			t.Fatal(err)
		}
		for what, part := range map[string]guest.AddressSpace{"walked": part, "cached": part.WithTLB(guest.NewTLB())} {
			got, err := part.Translate(userVA + 0x1000)
			if want, _ := whole.Translate(userVA + 0x1000); err != nil || got != want || got.Writable || got.User || !got.NX {
				t.Errorf("%s, %s: %+v, %v, want %+v", name, what, got, err, want)
			}
		}
	}
}

func TestPartErrors(t *testing.T) {
	b := build(5)
	entry := b.Entry(kernelVA, 4)
	e := b.Get(entry)
	for name, c := range map[string]struct {
		va   x86.VirtAddr
		e    uint64
		efer uint64
		want error
	}{
		"not canonical":       {0x0180_0000_0000_0000, e, 0, guest.ErrNotCanonical},
		"nothing there":       {kernelVA, e &^ guesttest.Present, 0, guest.ErrNotPresent},
		"no root entry":       {kernelVA &^ (1 << 55), e, 0, guest.ErrNotPresent},
		"a large page":        {kernelVA, e | guesttest.Large, 0, guest.ErrReserved},
		"no execution, no NX": {kernelVA, e | guesttest.NX, x86.EFERLMA, guest.ErrReserved},
	} {
		b.Put(entry, c.e)
		as := guest.NewAddressSpace(b.Memory(), b.CR3(), b.CR4(), c.efer)
		_, err := as.Part(c.va)
		if !errors.Is(err, c.want) {
			t.Errorf("%s: %v, want %v", name, err, c.want)
		}
		if _, whole := as.Translate(c.va); err == nil || whole == nil || err.Error() != whole.Error() {
			t.Errorf("%s: %v, and %v of a translation", name, err, whole)
		}
	}
	b.Put(entry, e)
	as := guest.NewAddressSpace(b.Memory(), 1<<40, b.CR4(), 0)
	if _, err := as.Part(kernelVA); !errors.Is(err, guest.ErrOutside) {
		t.Errorf("no memory at the root: %v", err)
	}
}
