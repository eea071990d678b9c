package ledger_test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/xen-hvi/hvi/engine/ledger"
	"github.com/xen-hvi/hvi/engine/x86"
	"github.com/xen-hvi/hvi/engine/xen"
	"github.com/xen-hvi/hvi/engine/xen/abi"
	"github.com/xen-hvi/hvi/engine/xen/mutate"
)

// calls notes every mutation asked for, and can refuse one.
type calls struct {
	made   []string
	refuse map[string]error
	// before is called ahead of each mutation.
	before func(call string)
}

func (c *calls) do(format string, args ...any) error {
	call := fmt.Sprintf(format, args...)
	if c.before != nil {
		c.before(call)
	}
	c.made = append(c.made, call)
	return c.refuse[call]
}

func (c *calls) Pause(d xen.DomID) error                   { return c.do("pause %d", d) }
func (c *calls) Unpause(d xen.DomID) error                 { return c.do("unpause %d", d) }
func (c *calls) PopulatePage(d xen.DomID, g x86.GFN) error { return c.do("populate %s", g) }
func (c *calls) ReleasePage(d xen.DomID, g x86.GFN) error  { return c.do("release %s", g) }
func (c *calls) Paused(xen.DomID) (bool, error)            { return false, nil }
func (c *calls) VMEventEnable(d xen.DomID) (uint32, error) { return 7, c.do("enable") }
func (c *calls) VMEventDisable(d xen.DomID) error          { return c.do("disable") }
func (c *calls) DeferRegisterWrites(d xen.DomID) error     { return c.do("defer") }
func (c *calls) Monitor(d xen.DomID, o mutate.MonitorOp) error {
	return c.do("monitor %#x %v", o.MSR, o.On)
}
func (c *calls) SetMemAccess(d xen.DomID, a xen.Access, first x86.GFN, n uint64) error {
	return c.do("access %s %s %d", a, first, n)
}

func (c *calls) SingleStep(d xen.DomID, vcpu int, on bool) error {
	return c.do("single-step %d %v", vcpu, on)
}
func (c *calls) SetPagingPool(d xen.DomID, bytes uint64) error { return c.do("pool %d", bytes) }
func (c *calls) SetHVMParam(d xen.DomID, param uint32, v uint64) error {
	return c.do("param %d %d", param, v)
}
func (c *calls) AltP2MSetState(d xen.DomID, on bool) error { return c.do("views %v", on) }
func (c *calls) CreateView(d xen.DomID) (uint16, error)    { return 1, c.do("create view") }
func (c *calls) SetViewAccess(d xen.DomID, v uint16, a xen.Access, first x86.GFN, n uint64) error {
	return c.do("access in view %d %s %s %d", v, a, first, n)
}
func (c *calls) SwitchView(d xen.DomID, v uint16) error { return c.do("switch to view %d", v) }
func (c *calls) Remap(d xen.DomID, v uint16, gfn, to x86.GFN) error {
	return c.do("view %d: %s to %s", v, gfn, to)
}
func (c *calls) Unmap(d xen.DomID, v uint16, gfn x86.GFN) error {
	return c.do("view %d: %s to itself", v, gfn)
}
func (c *calls) SetMaxPages(d xen.DomID, n uint64) error { return c.do("max %d", n) }
func (c *calls) ReturnMaxPages(d xen.DomID, set, was uint64) error {
	return c.do("max %d back to %d", set, was)
}
func (c *calls) ShutDown(d xen.DomID, reason uint32) error { return c.do("shut down for %d", reason) }
func (c *calls) InjectEvent(d xen.DomID, e mutate.Event) error {
	return c.do("inject %d of %d bytes into %d", e.Vector, e.InsnLen, e.VCPU)
}

var (
	uuid  = xen.UUID{1, 2, 3, 4}
	lstar = ledger.MonitorOp{Event: abi.MonitorEventMovToMSR, MSR: x86.MSRLSTAR}
)

func open(t *testing.T, dir string, c *calls) *ledger.Ledger {
	t.Helper()
	l, err := ledger.Open(dir, 5, uuid, c)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// attach makes every kind of mutation, in the order a session does.
func attach(t *testing.T, l *ledger.Ledger) {
	t.Helper()
	port, enableErr := uint32(0), error(nil)
	for i, err := range []error{
		l.Pause(),
		l.PopulateRingPage(0xfeff0),
		func() error { port, enableErr = l.EnableRing(); return enableErr }(),
		l.ReleaseRingPage(),
		l.Unpause(),
		l.Monitor(lstar),
		l.Restrict(xen.AccessRX, 0x1000, 3586),
		l.DeferRegisterWrites(),
		l.Pause(),
	} {
		if err != nil {
			t.Fatalf("step %d: %v", i, err)
		}
	}
	if port != 7 {
		t.Fatalf("port %d, want 7", port)
	}
}

var undone = []string{"access rwx 0x1000 3586", "monitor 0xc0000082 false", "disable", "unpause 5"}

func undoAll(l *ledger.Ledger) error {
	return errors.Join(l.Undo(ledger.OpAccess), l.Undo(ledger.OpMonitor, ledger.OpDeferWrites), l.Undo(ledger.OpRing), l.Undo(ledger.OpPause))
}

// TestUndo attaches and withdraws: each mutation is undone once, and the file
// is gone at the end.
func TestUndo(t *testing.T) {
	dir, c := t.TempDir(), &calls{}
	l := open(t, dir, c)
	attach(t, l)
	c.made = nil
	if err := undoAll(l); err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(c.made, undone) {
		t.Errorf("undone by %q, want %q", c.made, undone)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if left, _ := os.ReadDir(dir); len(left) != 0 {
		t.Errorf("left behind: %v", left)
	}
}

// TestUnrestrict undoes one restriction among others, and refuses what is none.
func TestUnrestrict(t *testing.T) {
	c := &calls{}
	l := open(t, t.TempDir(), c)
	for _, gfn := range []x86.GFN{5, 6, 7} {
		if err := l.Restrict(xen.AccessRX, gfn, 1); err != nil {
			t.Fatal(err)
		}
	}
	c.made = nil
	if err := l.Unrestrict(6, 1); err != nil {
		t.Fatal(err)
	}
	for _, none := range [][2]uint64{{6, 1}, {5, 2}, {9, 1}} {
		if err := l.Unrestrict(x86.GFN(none[0]), none[1]); err == nil {
			t.Errorf("%d frames from %#x on were unrestricted", none[1], none[0])
		}
	}
	if len(c.made) != 1 || !strings.Contains(c.made[0], "rwx") || len(l.Outstanding()) != 2 {
		t.Errorf("asked for %q, outstanding %v", c.made, l.Outstanding())
	}
	if err := l.Undo(ledger.OpAccess); err != nil || len(l.Outstanding()) != 0 {
		t.Errorf("%v, outstanding %v", err, l.Outstanding())
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
}

// TestRecover lets the process die after attaching: a fresh one reads the same
// list from the file and undoes the same.
func TestRecover(t *testing.T) {
	dir := t.TempDir()
	attach(t, open(t, dir, &calls{}))

	c := &calls{}
	all, err := ledger.Load(dir, c)
	if err != nil || len(all) != 1 {
		t.Fatalf("%d ledgers, %v; want one", len(all), err)
	}
	l := all[0]
	if l.Domain() != 5 || l.UUID() != uuid {
		t.Errorf("ledger of domain %d, %s", l.Domain(), l.UUID())
	}
	if err := undoAll(l); err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(c.made, undone) {
		t.Errorf("undone by %q, want %q", c.made, undone)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
}

// TestViews undoes views as a whole, and steps on every vCPU, in the order in
// which a step that is under way comes to its end.
func TestViews(t *testing.T) {
	c := &calls{}
	l := open(t, t.TempDir(), c)
	if _, err := l.CreateView(); err == nil {
		t.Error("a view is made before views are on, so nothing would undo it")
	}
	if err := errors.Join(l.RestrictView(1, xen.AccessRX, 1, 1), l.SwitchView(1)); err == nil || len(c.made) != 0 {
		t.Errorf("views are changed before they are on: %v, %q", err, c.made)
	}
	for _, n := range []int{0, 4097, 1 << 32} {
		if err := l.EnableSteps(n); err == nil || len(c.made) != 0 {
			t.Errorf("steps of %d vCPUs are permitted: %v, %q", n, err, c.made)
		}
	}
	view := uint16(0)
	for i, err := range []error{
		l.GrowPagingPool(4096, 8192), l.EnableSteps(2), l.AllowViews(), l.EnableViews(),
		func() (err error) { view, err = l.CreateView(); return err }(),
		l.RestrictView(1, xen.AccessRX, 0x1000, 3586), l.SwitchView(1),
	} {
		if err != nil {
			t.Fatalf("step %d: %v", i, err)
		}
	}
	if view != 1 {
		t.Errorf("view %d", view)
	}
	c.made = nil
	if err := l.Undo(ledger.OpViews, ledger.OpAllowViews, ledger.OpSteps, ledger.OpPagingPool); err != nil {
		t.Fatal(err)
	}
	if want := []string{"views false", "single-step 0 false", "single-step 1 false", "monitor 0x0 false", "pool 4096"}; !slices.Equal(c.made, want) {
		t.Errorf("undone by %q, want %q", c.made, want)
	}
	if err := l.Close(); err != nil {
		t.Error(err)
	}
	// A page of ours in the guest's memory goes after the views that lead to it, and
	// the limit that made room for it last.
	c = &calls{}
	l = open(t, t.TempDir(), c)
	if err := errors.Join(l.Remap(1, 3, 0x100000), l.Unmap(1, 3)); err == nil || len(c.made) != 0 {
		t.Errorf("frames are led elsewhere before views are on: %v, %q", err, c.made)
	}
	if err := errors.Join(l.EnableViews(), l.RaiseMaxPages(100, 164), l.PopulateShadow(0x100000), l.Remap(1, 3, 0x100000), l.Unmap(1, 3), l.ReturnBreakpoint(2, 1)); err != nil {
		t.Fatal(err)
	}
	if want := []string{"views true", "max 164", "populate 0x100000", "view 1: 0x3 to 0x100000", "view 1: 0x3 to itself", "inject 3 of 1 bytes into 2"}; !slices.Equal(c.made, want) {
		t.Errorf("made %q, want %q", c.made, want)
	}
	c.made = nil
	if err := errors.Join(l.Undo(ledger.OpViews), l.Undo(ledger.OpShadow, ledger.OpMaxPages), l.Close()); err != nil {
		t.Fatal(err)
	}
	if want := []string{"views false", "release 0x100000", "max 164 back to 100"}; !slices.Equal(c.made, want) {
		t.Errorf("undone by %q, want %q", c.made, want)
	}
	// A death between the intent and the mutation: there is nothing to undo.
	c = &calls{refuse: map[string]error{"views false": &xen.NotSupportedError{Feature: "altp2m"}}}
	l = open(t, t.TempDir(), c)
	if err := errors.Join(l.EnableViews(), l.Undo(ledger.OpViews), l.Close()); err != nil {
		t.Error(err)
	}
}

// TestWriteAhead checks, at every single mutation, that the file already knows
// of it when Xen is asked: a process that died right there would be recovered.
func TestWriteAhead(t *testing.T) {
	dir := t.TempDir()
	c := &calls{}
	intents := 0
	c.before = func(call string) {
		data, err := os.ReadFile(filepath.Join(dir, fmt.Sprintf("5-%s.jsonl", uuid)))
		if err != nil {
			t.Fatal(err)
		}
		n := strings.Count(string(data), `"phase":"intent"`)
		undo := strings.HasPrefix(call, "un") || strings.HasPrefix(call, "release")
		if !undo && n <= intents {
			t.Errorf("%q was asked of Xen before it was written down", call)
		}
		intents = n
	}
	attach(t, open(t, dir, c))
	if intents != 7 {
		t.Errorf("%d mutations were written down, want 7", intents)
	}
}

// TestLedgerIsRoots wants nobody else to read or write what hvi has changed.
func TestLedgerIsRoots(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "ledger")
	l, err := ledger.Open(dir, 5, xen.UUID{5}, &calls{})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	}()
	for path, want := range map[string]os.FileMode{dir: 0o700, filepath.Join(dir, ledger.FileName(5, xen.UUID{5})): 0o600} {
		if st, err := os.Stat(path); err != nil || st.Mode().Perm() != want {
			t.Errorf("%s: %v, %v, want %v", path, st.Mode(), err, want)
		}
	}
}

// TestRefused checks that what Xen refuses is not undone later, but for a
// range of pages, of which a part may be restricted.
func TestRefused(t *testing.T) {
	c := &calls{refuse: map[string]error{"access r-x 0x10 4": syscall.ENOMEM, "enable": xen.ErrRingTaken}}
	l := open(t, t.TempDir(), c)
	if _, err := l.EnableRing(); !errors.Is(err, xen.ErrRingTaken) {
		t.Errorf("EnableRing: %v", err)
	}
	if err := l.Restrict(xen.AccessRX, 0x10, 4); !errors.Is(err, syscall.ENOMEM) {
		t.Errorf("Restrict: %v", err)
	}
	if want := []string{"enable", "access r-x 0x10 4", "access rwx 0x10 4"}; !slices.Equal(c.made, want) {
		t.Errorf("asked of Xen: %q, want %q", c.made, want)
	}
	if open := l.Outstanding(); len(open) != 0 {
		t.Errorf("outstanding: %v", open)
	}
	if err := l.Close(); err != nil {
		t.Error(err)
	}
}

// TestUndoFailure checks that one undo that fails neither stops the others nor
// is forgotten.
func TestUndoFailure(t *testing.T) {
	dir := t.TempDir()
	c := &calls{refuse: map[string]error{"disable": syscall.EBUSY}}
	l := open(t, dir, c)
	attach(t, l)
	if err := undoAll(l); !errors.Is(err, syscall.EBUSY) {
		t.Fatalf("undo: %v, want EBUSY", err)
	}
	if !l.Has(ledger.OpRing) || len(l.Outstanding()) != 1 {
		t.Errorf("outstanding: %v, want the ring alone", l.Outstanding())
	}
	if err := l.Close(); err == nil {
		t.Error("a ledger with the ring outstanding was closed without a word")
	}
	delete(c.refuse, "disable")
	again, err := ledger.Load(dir, c)
	if err != nil || len(again) != 1 {
		t.Fatalf("%d ledgers, %v; want the one that was kept", len(again), err)
	}
	if err := errors.Join(again[0].Undo(ledger.OpRing), again[0].Close()); err != nil {
		t.Error(err)
	}
}

// TestNeverWas recovers mutations that were written down and never made: Xen's
// answer that there is nothing to undo is the end of them.
func TestNeverWas(t *testing.T) {
	dir := t.TempDir()
	l := open(t, dir, &calls{})
	attach(t, l)
	if err := l.AdoptRingPage(0xfeff0); err != nil {
		t.Fatal(err)
	}
	all, err := ledger.Load(dir, &calls{refuse: map[string]error{
		"monitor 0xc0000082 false": syscall.EEXIST, "disable": xen.ErrNoRing, "release 0xfeff0": xen.ErrNoPage,
	}})
	if err != nil || len(all) != 1 {
		t.Fatalf("%d ledgers, %v", len(all), err)
	}
	if err := errors.Join(undoAll(all[0]), all[0].Undo(ledger.OpRingPage), all[0].Close()); err != nil {
		t.Error(err)
	}
}

// TestOpenRefusesLeftover checks that a domain whose earlier changes are not
// undone is not touched.
func TestOpenRefusesLeftover(t *testing.T) {
	dir := t.TempDir()
	attach(t, open(t, dir, &calls{}))
	if _, err := ledger.Open(dir, 5, uuid, &calls{}); !errors.Is(err, os.ErrExist) {
		t.Errorf("opened over a leftover: %v", err)
	}
}

// TestTornFile checks what is read from a file whose writer died in mid-line,
// and that other damage is refused rather than guessed at.
func TestTornFile(t *testing.T) {
	const head = `{"v":2,"domid":5,"uuid":"01020304-0000-0000-0000-000000000000"}` + "\n"
	const pause = `{"phase":"intent","entry":{"seq":1,"op":"pause"}}` + "\n"
	for _, c := range []struct {
		name, text string
		open       int
		bad        bool
	}{
		{"whole", head + pause, 1, false},
		{"torn", head + pause + `{"phase":"intent","en`, 1, false},
		{"undone", head + pause + `{"phase":"undone","entry":{"seq":1,"op":"pause"}}` + "\n", 0, false},
		{"damaged middle", head + "garbage\n" + pause, 0, true},
		{"earlier version", `{"v":1,"domid":5,"uuid":"01020304-0000-0000-0000-000000000000"}` + "\n" + pause, 1, false},
		{"later version", `{"v":4,"domid":5,"uuid":"01020304-0000-0000-0000-000000000000"}` + "\n", 0, true},
		{"explained", head + `{"phase":"intent","entry":{"seq":1,"op":"guard-pause","why":"a"}}` + "\n" + `{"phase":"explained","entry":{"seq":1,"op":"guard-pause","why":"b"}}` + "\n", 1, false},
		{"no entry", head + `{"phase":"intent"}` + "\n", 0, true},
		{"too many steps", head + `{"phase":"intent","entry":{"seq":1,"op":"steps","count":4294967296}}` + "\n", 0, true},
		{"unknown phase", head + `{"phase":"maybe","entry":{"seq":1,"op":"pause"}}` + "\n", 0, true},
		{"bad uuid", `{"v":1,"domid":5,"uuid":"x"}` + "\n", 0, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := t.TempDir()
			if err := os.WriteFile(filepath.Join(dir, "5-x.jsonl"), []byte(c.text), 0o600); err != nil {
				t.Fatal(err)
			}
			all, err := ledger.Load(dir, &calls{})
			if c.bad {
				if err == nil || len(all) != 0 {
					t.Errorf("%d ledgers and error %v, want an error alone", len(all), err)
				}
				return
			}
			if err != nil || len(all) != 1 || len(all[0].Outstanding()) != c.open {
				t.Errorf("%d ledgers, %v; want one with %d outstanding", len(all), err, c.open)
			}
		})
	}
}

// TestGuardPause: the reference is taken once, with a reason that is kept, is undone
// by its own name alone, and needs no undo for a domain that is shut down.
func TestGuardPause(t *testing.T) {
	dir, c := t.TempDir(), &calls{}
	l := open(t, dir, c)
	for i, err := range []error{
		l.Pause(), l.Explain("too early"), l.GuardPause("guard idt paused it"), l.GuardPause("again"),
		l.Explain("guard idt paused it, event 1"), l.ShutDown(), l.Undo(ledger.OpPause, ledger.OpHold), l.Leave(),
	} {
		if err != nil {
			t.Fatalf("step %d: %v", i, err)
		}
	}
	if want := []string{"pause 5", "pause 5", "shut down for 3", "unpause 5"}; !slices.Equal(c.made, want) {
		t.Errorf("calls %q, want %q", c.made, want)
	}
	l, err := ledger.Reopen(dir, 5, uuid, c)
	if err != nil {
		t.Fatal(err)
	}
	if why, paused := l.GuardPaused(); !paused || why != "guard idt paused it, event 1" || len(l.Outstanding()) != 1 {
		t.Errorf("paused %v: %q, of %v", paused, why, l.Outstanding())
	}
	if err := errors.Join(l.Settle(), l.Undo(ledger.OpGuardPause), l.Close()); err != nil {
		t.Error(err)
	}
	if n := len(c.made); n != 5 || c.made[4] != "unpause 5" {
		t.Errorf("calls %q", c.made)
	}
	if _, paused := l.GuardPaused(); paused {
		t.Error("it is paused still")
	}
}

// TestUnbornFile finds files whose writer died before the first line was whole,
// and so before it had changed anything: they are removed.
func TestUnbornFile(t *testing.T) {
	for _, text := range []string{"", `{"v":1,"dom`} {
		dir := t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, ledger.FileName(5, uuid)), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		all, err := ledger.Load(dir, &calls{})
		if err != nil || len(all) != 0 {
			t.Errorf("%q: %d ledgers, %v", text, len(all), err)
		}
		if err := open(t, dir, &calls{}).Close(); err != nil {
			t.Errorf("%q: the domain cannot be attached to: %v", text, err)
		}
	}
}

// TestTornLineIsCut goes on writing after a torn line: what follows must be
// readable to the next process.
func TestTornLineIsCut(t *testing.T) {
	dir := t.TempDir()
	if err := open(t, dir, &calls{}).Pause(); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, ledger.FileName(5, uuid))
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, append(data, `{"phase":"int`...), 0o600); err != nil {
		t.Fatal(err)
	}
	first, err := ledger.Load(dir, &calls{})
	if err != nil || len(first) != 1 {
		t.Fatalf("%d ledgers, %v", len(first), err)
	}
	if err := first[0].OweResume(); err != nil {
		t.Fatal(err)
	}
	again, err := ledger.Load(dir, &calls{})
	if err != nil || len(again) != 1 || len(again[0].Outstanding()) != 2 {
		t.Fatalf("%d ledgers, %v; want the pause and what is owed", len(again), err)
	}
}

// TestUndoOfNothing recovers a pause that an admin has dropped meanwhile, and
// pages restricted on a ring that is gone: that there is nothing to undo is the
// end of it.
func TestUndoOfNothing(t *testing.T) {
	dir := t.TempDir()
	attach(t, open(t, dir, &calls{}))
	all, err := ledger.Load(dir, &calls{refuse: map[string]error{
		"unpause 5": syscall.EINVAL, "access rwx 0x1000 3586": xen.ErrNoRing, "monitor 0xc0000082 false": xen.ErrNoRing, "disable": xen.ErrNoRing,
	}})
	if err != nil || len(all) != 1 {
		t.Fatalf("%d ledgers, %v", len(all), err)
	}
	if err := errors.Join(undoAll(all[0]), all[0].Close()); err != nil {
		t.Error(err)
	}
}

// FuzzLoad feeds arbitrary files: reading one back must neither panic nor
// invent entries without a kind.
func FuzzLoad(f *testing.F) {
	f.Add([]byte(`{"v":1,"domid":5,"uuid":"01020304-0000-0000-0000-000000000000"}` + "\n" + `{"phase":"intent","entry":{"seq":1,"op":"monitor"}}` + "\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		dir := t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, "5-x.jsonl"), data, 0o600); err != nil {
			t.Fatal(err)
		}
		all, _ := ledger.Load(dir, &calls{})
		for _, l := range all {
			_ = l.Undo(ledger.OpPause, ledger.OpRingPage, ledger.OpRing, ledger.OpMonitor, ledger.OpDeferWrites, ledger.OpAccess)
		}
	})
}
