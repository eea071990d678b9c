package linux

import (
	"testing"

	"github.com/xen-hvi/hvi/engine/guest/report"
)

// TestOopses tells of an error that the kernel has lived through, each once, with its log.
func TestOopses(t *testing.T) {
	b := newKernelGuest(t, true)
	look := func() report.Verdict {
		t.Helper()
		v, err := b.reader().Oopses()
		if err != nil || len(v.Checks) != 1 {
			t.Fatalf("%+v, %v", v, err)
		}
		return v
	}
	b.WriteUint64(b.Addr("tainted_mask"), 1<<12|1<<9) // a module from elsewhere, a warning
	if v := look(); !v.Clean || len(v.Findings) != 0 {
		t.Errorf("a kernel without one: %+v", v)
	}
	b.WriteUint64(b.Addr("tainted_mask"), 1<<12|1<<7)
	b.u32(b.Addr("die_counter"), 2)
	b.writeLog(1, []testRecord{{state: 2, text: "BUG: first"}, {state: 2, text: "Oops: 0002"}, {state: 2, text: "BUG: second"}, {state: 2, text: "RIP"}})
	v := look()
	if len(v.Findings) != 1 || v.Clean || v.Checks[0].Status != report.CheckFound {
		t.Fatalf("%+v", v)
	}
	if f := v.Findings[0]; f.Object != "oops 2 of the guest's kernel" || f.Detail != "BUG: second" || len(f.Log) != 4 || f.Check != v.Checks[0].Name {
		t.Errorf("%+v", f)
	}
	// One that does not number them, and whose log is gone.
	b.k.Symbols = withoutSymbol(withoutSymbol(b.k.Symbols, "die_counter"), "prb")
	v = look()
	if f := v.Findings[0]; len(v.Findings) != 1 || f.Object != "the guest's kernel" || len(f.Log) != 0 || f.Detail == "" {
		t.Errorf("%+v", v)
	}
	b.k.Symbols = withoutSymbol(b.k.Symbols, "tainted_mask")
	if v := look(); v.Clean || v.Checks[0].Status != report.CheckUnavailable || len(v.Findings) != 0 {
		t.Errorf("a kernel without taints: %+v", v)
	}
}
