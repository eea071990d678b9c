package engine_test

import (
	"strings"
	"testing"

	"github.com/xen-hvi/hvi/engine"
	"github.com/xen-hvi/hvi/engine/guest/report"
	"github.com/xen-hvi/hvi/engine/journal"
	"github.com/xen-hvi/hvi/engine/policy"
	"github.com/xen-hvi/hvi/engine/xen/abi"
	"github.com/xen-hvi/hvi/engine/xen/xentest"
)

// TestCrash tells of a guest that crashes, and of no other that ends.
func TestCrash(t *testing.T) {
	for reason, want := range map[uint8]int{abi.ShutdownCrash: 1, abi.ShutdownPoweroff: 0, abi.ShutdownReboot: 0} {
		w := newWorld(t, xentest.Config{}, xentest.Spec{Pauses: 1})
		w.appear()
		w.boot()
		w.dom.Shutdown(reason)
		var err error
		if w.info, err = w.host.Domain(7); err != nil {
			t.Fatal(err)
		}
		w.engine.ShutDown(w.info)
		if n := len(w.events.got); n != want {
			t.Fatalf("shutdown %d makes %d records, want %d", reason, n, want)
		}
		if want == 1 {
			r := <-w.events.got
			if o := r.Target.Object; r.Guard != "panic" || r.Action != journal.Found || o == nil || !strings.Contains(string(o.What), "crashed") {
				t.Errorf("record %+v", r)
			}
			if g := w.guardStatus(policy.GuardPanic); g.Found != 1 {
				t.Errorf("%+v", g)
			}
		}
		w.checkClean(1)
	}
}

func TestCrashReason(t *testing.T) {
	log := func(lines ...string) (out []report.LogRecord) {
		for i, l := range lines {
			out = append(out, report.LogRecord{Message: report.Text(l), Nanoseconds: uint64(i) * 1_000_500_000})
		}
		return out
	}
	for _, tt := range []struct {
		log  []report.LogRecord
		want string
	}{
		{log("a", "BUG: unable to handle page fault", "Oops: 0002", "Kernel panic - not syncing: Fatal exception", "end"), "Kernel panic - not syncing: Fatal exception"},
		{log("BUG: one", "BUG: two"), "BUG: two"},
		{log("nothing"), "it shut down as crashed, and its log says nothing of a panic"},
		{nil, "it shut down as crashed, and its log says nothing of a panic"},
		{log("Kernel panic " + strings.Repeat("é", 300)), "Kernel panic " + strings.Repeat("é", 93) + "…"},
	} {
		if got := engine.CrashReason(tt.log); got != tt.want {
			t.Errorf("%q, want %q", got, tt.want)
		}
	}
	lines := engine.CrashLog(log(strings.Split(strings.Repeat("line ", 200), " ")...))
	if len(lines) != 60 || lines[0] != "[  141.070500] line" {
		t.Errorf("%d lines, the first %q", len(lines), lines[0])
	}
}
