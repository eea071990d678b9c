package engine_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/xen-hvi/hvi/engine"
	"github.com/xen-hvi/hvi/engine/guest/dump"
	"github.com/xen-hvi/hvi/engine/guest/linux"
	"github.com/xen-hvi/hvi/engine/journal"
	"github.com/xen-hvi/hvi/engine/ledger"
	"github.com/xen-hvi/hvi/engine/xen/xentest"
)

// dumping is a world whose guest is paused for an attack, and dumped.
func dumping(t *testing.T, d engine.Dumps, spec xentest.Spec) *world {
	t.Helper()
	spec.RingFrame = 0x2400 // not far above the memory, so that not much is looked for
	w := newWorld(t, xentest.Config{}, spec)
	d.Dir = filepath.Join(t.TempDir(), "dumps")
	w.dumps = &d
	if err := w.engine.Close(); err != nil {
		t.Fatal(err)
	}
	w.engine = w.newEngine()
	w.decl = declareGuards(t, "kernel-text=pause")
	w.appearRunning()
	return w
}

// attacked attacks, and waits until it is known what became of the dump.
func (w *world) attacked() (journal.Record, engine.DumpStatus) {
	w.t.Helper()
	w.writeText()
	r := <-w.events.got
	w.settled(func() bool {
		d := w.status().Dump
		return d != nil && (d.State == engine.DumpWritten || d.State == engine.DumpFailed)
	})
	return r, *w.status().Dump
}

func (w *world) files() []string {
	w.t.Helper()
	entries, err := os.ReadDir(w.dumps.Dir)
	if err != nil {
		w.t.Fatal(err)
	}
	var out []string
	for _, e := range entries {
		out = append(out, e.Name())
	}
	return out
}

const lots = 1 << 40

// TestDump dumps the memory of a guest that is paused, in which its kernel and the
// attacker are found as in the guest itself.
func TestDump(t *testing.T) {
	w := dumping(t, engine.Dumps{MaxCount: 1, MaxBytes: lots}, xentest.Spec{})
	r, d := w.attacked()
	if d.State != engine.DumpWritten || string(r.Detail.Dump) != d.File || r.Action != journal.Paused {
		t.Fatalf("record %s with %q, dump %+v", r.Action, r.Detail.Dump, d)
	}
	if !strings.HasPrefix(filepath.Base(d.File), w.info.UUID.String()+"-") || d.Memory < uint64(len(w.guest.Mem)) || d.Stored >= d.Memory {
		t.Errorf("dump %+v of a guest with %d bytes", d, len(w.guest.Mem))
	}
	if st, err := os.Stat(d.File); err != nil || st.Mode() != 0o600 {
		t.Errorf("mode %v, %v", st.Mode(), err)
	}
	im, err := dump.Open(d.File)
	if err != nil {
		t.Fatal(err)
	}
	defer im.Close()
	k, err := linux.Identify(im, w.guest.Regs[0])
	if err != nil {
		t.Fatal(err)
	}
	if task, err := k.CurrentTask(&w.guest.Regs[0]); err != nil || task.Name() != "insmod" || task.PID != 214 {
		t.Errorf("%+v, %v", task, err)
	}

	// The next one finds no room, and the first stays.
	w.runsOn()
	r, d = w.attacked()
	if d.State != engine.DumpFailed || !strings.Contains(d.Reason, "there are 1 dumps, and 1 are allowed") || r.Action != journal.Paused {
		t.Errorf("record %s, dump %+v", r.Action, d)
	}
	if n := w.files(); len(n) != 1 || !strings.HasSuffix(n[0], ".lime") {
		t.Errorf("files: %v", n)
	}
	w.runsOn()
	if err := w.engine.Detach(t.Context(), 7); err != nil {
		t.Fatal(err)
	}
	w.checkClean(0)
}

// TestNoDump: where there can't be one, the guest is paused all the same, nothing of
// an attempt stays, and the status says why.
func TestNoDump(t *testing.T) {
	for name, c := range map[string]struct {
		dumps engine.Dumps
		spec  xentest.Spec
		want  string
	}{
		"too large":        {engine.Dumps{MaxCount: 8, MaxBytes: 1 << 20}, xentest.Spec{}, "1048576 are allowed"},
		"the disk is full": {engine.Dumps{MaxCount: 8, MaxBytes: lots, MinFree: 1 << 60}, xentest.Spec{}, "must be left"},
		"on demand":        {engine.Dumps{MaxCount: 8, MaxBytes: lots}, xentest.Spec{OnDemand: 3}, "on demand"},
	} {
		t.Run(name, func(t *testing.T) {
			w := dumping(t, c.dumps, c.spec)
			if err := os.MkdirAll(w.dumps.Dir, 0o700); err != nil {
				t.Fatal(err)
			}
			r, d := w.attacked()
			if r.Action != journal.Paused || d.State != engine.DumpFailed || !strings.Contains(d.Reason, c.want) || d.File != "" {
				t.Errorf("record %s, dump %+v", r.Action, d)
			}
			if n := w.files(); len(n) != 0 {
				t.Errorf("files: %v", n)
			}
			w.settled(func() bool { return strings.Contains(w.status().Held, "event") })
			w.checkPaused(engine.StateProtecting)
			w.runsOn()
			if err := w.engine.Detach(t.Context(), 7); err != nil {
				t.Fatal(err)
			}
			w.checkClean(0)
		})
	}
}

// TestDumpAbandoned: a guest that is let go of while it is dumped is held up for
// nothing, and half a dump does not stay; nor does that of a hvid that died.
func TestDumpAbandoned(t *testing.T) {
	w := dumping(t, engine.Dumps{MaxCount: 8, MaxBytes: lots}, xentest.Spec{})
	if err := os.MkdirAll(w.dumps.Dir, 0o700); err != nil {
		t.Fatal(err)
	}
	stale := filepath.Join(w.dumps.Dir, "old.lime.partial")
	if err := os.WriteFile(stale, []byte{1}, 0o600); err != nil {
		t.Fatal(err)
	}
	let := w.engine.HoldDumpsForTest()
	w.writeText()
	<-w.events.got
	w.settled(func() bool { d := w.status().Dump; return d != nil && d.State == engine.DumpWaiting })
	w.runsOn()
	if d := w.status().Dump; d.State != engine.DumpFailed || !strings.Contains(d.Reason, "let run") {
		t.Errorf("%+v", d)
	}
	let()
	if _, d := w.attacked(); d.State != engine.DumpWritten {
		t.Errorf("%+v", d)
	}
	if n := w.files(); len(n) != 1 {
		t.Errorf("files: %v", n)
	}
	w.dom.Kill()
	w.engine.Gone(w.info)
	if !w.dom.Reap() {
		t.Error("a zombie is left")
	}
	if all, err := ledger.Load(w.dir, nil); err != nil || len(all) != 0 {
		t.Errorf("ledgers left: %v, %v", all, err)
	}
}
