package engine_test

import (
	"strings"
	"testing"
	"time"

	"github.com/xen-hvi/hvi/engine"
	"github.com/xen-hvi/hvi/engine/guest/linux/linuxtest"
	"github.com/xen-hvi/hvi/engine/journal"
	"github.com/xen-hvi/hvi/engine/policy"
	"github.com/xen-hvi/hvi/engine/x86"
	"github.com/xen-hvi/hvi/engine/xen/abi"
	"github.com/xen-hvi/hvi/engine/xen/xentest"
)

// guardStatus is what the status says of a guard.
func (w *world) guardStatus(name policy.GuardName) engine.GuardStatus {
	for _, g := range w.status().Guards {
		if g.Name == name {
			return g
		}
	}
	w.t.Fatalf("no guard %s", name)
	return engine.GuardStatus{}
}

// TestLooks tells once of what a look finds, and again when it has gone and come
// back.
func TestLooks(t *testing.T) {
	w := newWorldOf(t, linuxtest.Config{Variables: []string{"modprobe_path"}}, xentest.Config{}, xentest.Spec{Pauses: 1})
	w.appear()
	set := func(path string) {
		w.guest.Write(w.guest.Addr("modprobe_path"), append([]byte(path), 0))
		w.copyMemory()
	}
	set("/sbin/modprobe")
	w.boot()
	look := func() { w.engine.LookForTest(7, policy.GuardUsermodeHelper) }
	look()
	if g := w.guardStatus(policy.GuardUsermodeHelper); g.State != engine.GuardArmed || g.Violations != 0 || len(w.events.got) != 0 {
		t.Fatalf("%+v, %d records", g, len(w.events.got))
	}
	set("/tmp/x")
	look()
	look()
	if g := w.guardStatus(policy.GuardUsermodeHelper); g.Violations != 1 || g.Found != 1 || g.Blocked != 0 {
		t.Errorf("%+v", g)
	}
	if len(w.events.got) != 1 {
		t.Fatalf("%d records", len(w.events.got))
	}
	r := <-w.events.got
	if o := r.Target.Object; r.Guard != "usermode-helper" || r.Action != journal.Found || r.Target.Kind != journal.TargetObject || o == nil ||
		o.Name != "modprobe_path" || !strings.Contains(string(o.What), `"/tmp/x"`) || r.Process.Unknown == "" {
		t.Errorf("record %+v, %+v", r, r.Target.Object)
	}
	if s := r.Summary(); !strings.Contains(s, "usermode-helper found: modprobe_path: ") {
		t.Errorf("summary %q", s)
	}
	// A change of policy starts the looks anew, and forgets nothing.
	if err := w.engine.Apply(t.Context(), w.info, declareGuards(t, "kernel-text=off")); err != nil {
		t.Fatal(err)
	}
	look()
	if len(w.events.got) != 0 {
		t.Errorf("told again: %+v", <-w.events.got)
	}
	set("/sbin/modprobe")
	look()
	set("/tmp/x")
	look()
	if len(w.events.got) != 1 {
		t.Errorf("%d records when it was back", len(w.events.got))
	}
	w.dom.Shutdown(abi.ShutdownPoweroff)
	w.engine.ShutDown(w.info)
	w.checkClean(1)
}

// TestPermittedFindings: what an exception permits is counted once and not told, and
// is told when the exception is removed while it is still there.
func TestPermittedFindings(t *testing.T) {
	w := newWorldOf(t, linuxtest.Config{Variables: []string{"modprobe_path"}}, xentest.Config{}, xentest.Spec{Pauses: 1})
	w.appear()
	w.guest.Write(w.guest.Addr("modprobe_path"), []byte("/tmp/x\x00"))
	w.copyMemory()
	w.boot()
	look := func() { w.engine.LookForTest(7, policy.GuardUsermodeHelper) }
	permit := func(list ...policy.Exception) {
		w.permitted.Store(&list)
		w.engine.RefreshExceptions()
	}
	check := func(when string, allowed, found uint64, records int) {
		t.Helper()
		if g := w.guardStatus(policy.GuardUsermodeHelper); g.Allowed != allowed || g.Found != found || g.Violations != found {
			t.Errorf("%s: %+v, want %d allowed and %d found", when, g, allowed, found)
		}
		if n := len(w.events.got); n != records {
			t.Errorf("%s: %d records, want %d", when, n, records)
		}
	}
	x := policy.Exception{Guard: policy.GuardUsermodeHelper, Object: "modprobe_path", Domain: w.info.UUID.String()}
	other := x
	other.Object = "core_pattern"
	permit(other, x)
	look()
	look()
	check("permitted", 1, 0, 0)
	if st := w.status().Exceptions; len(st) != 2 || st[0].Uses != 0 || st[1].Uses != 1 {
		t.Errorf("exceptions %+v", st)
	}
	permit(other)
	look()
	look()
	check("not any more", 1, 1, 1)
	// Once it was told, to permit it ends that, and removing that begins it anew.
	permit(x)
	look()
	check("permitted again", 2, 1, 1)
	permit()
	look()
	check("removed again", 2, 2, 2)
}

// TestBlindLooks says of a guard whose looks fail that it sees nothing, and takes
// it back.
func TestBlindLooks(t *testing.T) {
	w := newWorldOf(t, linuxtest.Config{Variables: []string{"modprobe_path"}}, xentest.Config{}, xentest.Spec{Pauses: 1})
	w.appear()
	w.boot()
	look := func() { w.engine.LookForTest(7, policy.GuardUsermodeHelper) }
	state := func() (engine.State, engine.GuardState) {
		return w.status().State, w.guardStatus(policy.GuardUsermodeHelper).State
	}
	banner := w.guest.Addr("linux_banner")
	w.guest.Write(banner, []byte{'X'}) // as another kernel has it
	w.copyMemory()
	for range 2 {
		look()
	}
	if s, g := state(); s != engine.StateProtecting || g != engine.GuardArmed {
		t.Errorf("after two failures: %s, %s", s, g)
	}
	look()
	if s, g := state(); s != engine.StateDegraded || g != engine.GuardDegraded {
		t.Errorf("after three: %s, %s", s, g)
	}
	w.guest.Write(banner, []byte{linuxtest.Banner[0]})
	w.copyMemory()
	look()
	if s, g := state(); s != engine.StateProtecting || g != engine.GuardArmed {
		t.Errorf("after a success: %s, %s", s, g)
	}
}

// TestBlindLooksOfAScan has a guard see again that could only compare before: it
// does not become an armed one.
func TestBlindLooksOfAScan(t *testing.T) {
	w := newWorld(t, xentest.Config{AMD: true}, xentest.Spec{Pauses: 1})
	w.appear()
	w.boot()
	before := w.guardStatus(policy.GuardInterruptTable)
	if before.State != engine.GuardScanning {
		t.Fatalf("%+v", before)
	}
	banner := w.guest.Addr("linux_banner")
	w.guest.Write(banner, []byte{'X'})
	w.copyMemory()
	for range 3 {
		w.engine.LookForTest(7, policy.GuardInterruptTable)
	}
	if g := w.guardStatus(policy.GuardInterruptTable); g.State != engine.GuardDegraded {
		t.Errorf("after three failures: %+v", g)
	}
	w.guest.Write(banner, []byte{linuxtest.Banner[0]})
	w.copyMemory()
	w.engine.LookForTest(7, policy.GuardInterruptTable)
	if g := w.guardStatus(policy.GuardInterruptTable); g != before {
		t.Errorf("after a success: %+v, before %+v", g, before)
	}
}

// TestLooksByThemselves has the session look without being asked, and end that
// with the domain.
func TestLooksByThemselves(t *testing.T) {
	w := newWorldOf(t, linuxtest.Config{Variables: []string{"modprobe_path"}}, xentest.Config{}, xentest.Spec{Pauses: 1})
	w.firstLook = time.Millisecond
	w.engine = w.newEngine()
	w.appear()
	w.guest.Write(w.guest.Addr("modprobe_path"), []byte("/tmp/x\x00"))
	w.copyMemory()
	w.boot()
	// Which guard looks first is chance, and this guest's code is writable, too.
	for r := range w.events.got {
		if r.Action != journal.Found {
			t.Errorf("record %+v", r)
		}
		if r.Guard == "usermode-helper" {
			break
		}
	}
	w.dom.Shutdown(abi.ShutdownPoweroff)
	w.engine.ShutDown(w.info)
	w.checkClean(1)
}

// TestUnlistedModule: a module that the policy does not list is a violation of the guard
// of modules, beside the note that it was loaded, and is not when the list has it.
func TestUnlistedModule(t *testing.T) {
	w := newWorldOf(t, linuxtest.Config{}, xentest.Config{}, xentest.Spec{Pauses: 1})
	w.guest.Map(moduleBase, w.guest.PhysBase+moduleCode, 3*x86.PageSize, x86.PageSize, 0)
	listing := func(name string) engine.Declaration {
		d := declareGuards(t, "modules=alert")
		at := policy.Origin{Source: "web.toml"}
		d.Spec.Preset = "web"
		d.Spec.Named = &policy.Named{Name: "web", Origin: at, Lists: []policy.ListSetting{{Name: policy.ListAllowedModules, Elements: []string{name}, Origin: at}}}
		return d
	}
	w.decl = listing("other")
	w.copyMemory()
	w.appear()
	w.boot()
	w.loadModule(true)
	look := func() { w.engine.LookForTest(7, policy.GuardModules) }
	look()
	look()
	if g := w.guardStatus(policy.GuardModules); g.State != engine.GuardArmed || g.Found != 1 || g.Violations != 1 {
		t.Errorf("%+v", g)
	}
	if len(w.events.got) != 1 {
		t.Fatalf("%d records", len(w.events.got))
	}
	r := <-w.events.got
	if o := r.Target.Object; r.Guard != "modules" || r.Action != journal.Found || o == nil || o.Name != "module victim" || o.Leads.Module != "victim" {
		t.Errorf("record %+v, %+v", r, r.Target.Object)
	}
	if err := w.engine.Apply(t.Context(), w.info, listing("vic*")); err != nil {
		t.Fatal(err)
	}
	look()
	if g := w.guardStatus(policy.GuardModules); g.Found != 1 {
		t.Errorf("a listed module: %+v", g)
	}
	if len(w.events.got) != 1 || (<-w.events.got).Action != journal.Noted { // that it was loaded
		t.Error("a listed module is told of")
	}
	w.dom.Shutdown(abi.ShutdownPoweroff)
	w.engine.ShutDown(w.info)
	w.checkClean(1)
}
