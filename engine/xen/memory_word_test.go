package xen_test

import (
	"testing"

	"github.com/xen-hvi/hvi/engine/guest"
	"github.com/xen-hvi/hvi/engine/xen"
	"github.com/xen-hvi/hvi/engine/xen/xentest"
)

var _ guest.WordReader = (*xen.Memory)(nil)

func TestReadPhysUint64(t *testing.T) {
	hv := xentest.New(xentest.Config{})
	d := hv.AddDomain(xentest.Spec{ID: 3, Type: xen.PVH})
	d.Write(0x2008, []byte{1, 2, 3, 4, 5, 6, 7, 0x88})
	h, err := hv.Host()
	if err != nil {
		t.Fatal(err)
	}
	m := h.OpenMemory(3)
	if v, err := m.ReadPhysUint64(0x2008); err != nil || v != 0x8807060504030201 {
		t.Errorf("%#x, %v", v, err)
	}
	if n := testing.AllocsPerRun(100, func() { _, _ = m.ReadPhysUint64(0x2008) }); n != 0 {
		t.Errorf("%v allocations, want 0", n)
	}
	if _, err := m.ReadPhysUint64(0x4000_0000); err == nil {
		t.Error("read where there is no memory")
	}
	for _, c := range []interface{ Close() error }{m, h, hv} {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	}
}
