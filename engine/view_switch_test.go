package engine_test

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/xen-hvi/hvi/engine"
	"github.com/xen-hvi/hvi/engine/guest/linux/linuxtest"
	"github.com/xen-hvi/hvi/engine/journal"
	"github.com/xen-hvi/hvi/engine/policy"
	"github.com/xen-hvi/hvi/engine/x86"
	"github.com/xen-hvi/hvi/engine/xen"
	"github.com/xen-hvi/hvi/engine/xen/abi"
	"github.com/xen-hvi/hvi/engine/xen/xentest"
)

// twoViews are one in which all holds, and one for maintenance in which the kernel's
// code may be changed.
var twoViews = []policy.View{
	{Name: "strict", Guards: policy.MemoryGuards(), Initial: true},
	{Name: "maintenance", Guards: []policy.GuardName{policy.GuardKernelROData, policy.GuardExceptionTable}},
}

// declareViews is declare with enforce and a policy that has views.
func declareViews(t testing.TB, views ...policy.View) engine.Declaration {
	t.Helper()
	views = slices.Clone(views)
	for i := range views {
		views[i].Origin = policy.Origin{Source: "web.toml", Line: 4*i + 1, Column: 3}
	}
	at := policy.Origin{Source: "test"}
	spec := policy.Spec{
		Mode: policy.ModeEnforce, Preset: "web", Named: &policy.Named{Name: "web", Origin: policy.Origin{Source: "web.toml"}, Views: views},
		Origins: policy.Origins{Mode: at, Preset: at},
	}
	if err := spec.Validate(); err != nil {
		t.Fatal(err)
	}
	return engine.Declaration{Spec: spec, Source: "test"}
}

// withTwoViews is a guest protected in the first of two views, 1 and 2 to Xen.
func withTwoViews(t *testing.T, minor int) *world {
	t.Helper()
	w := newWorld(t, xentest.Config{Release: xen.Release{Major: 4, Minor: minor}, AltP2M: true}, withViews)
	w.decl = declareViews(t, twoViews...)
	w.appear()
	w.boot()
	if st := w.status(); st.State != engine.StateProtecting || st.Tier != engine.TierViews || w.dom.View() != strictView {
		t.Fatalf("%s, tier %s (%s), in view %d", st.State, st.Tier, st.TierReason, w.dom.View())
	}
	return w
}

const strictView, maintenanceView, steppingOfTwo = 1, 2, 3

var admin = journal.Peer{UID: 0, PID: 4711}

func (w *world) switchView(view string) {
	w.t.Helper()
	if err := w.engine.SwitchView(w.t.Context(), 7, view, admin); err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) guardState(name policy.GuardName) engine.GuardStatus {
	for _, g := range w.status().Guards {
		if g.Name == name {
			return g
		}
	}
	return engine.GuardStatus{}
}

// textWrite is a store into kernel text by a module, in a view.
func (w *world) textWrite(view uint16) answer { w.t.Helper(); return w.parse(w.writeTextIn(view)) }

var blocked = answer{flags: abi.VMEventFlagEmulate | abi.VMEventFlagEmulateNoWrite}

// TestSwitchView goes from one declared view into the other and back, on every
// release.
func TestSwitchView(t *testing.T) {
	for _, rel := range abi.Releases() {
		t.Run(rel.String(), func(t *testing.T) {
			w := withTwoViews(t, rel.Minor)
			const rodataFrames = (linuxtest.RODataEnd - linuxtest.ROData) / x86.PageSize
			if s, m := w.dom.ViewRestricted(strictView), w.dom.ViewRestricted(maintenanceView); len(s) != guardedFrames || len(m) != rodataFrames {
				t.Errorf("%d frames restricted in the one view, %d in the other; want %d and %d", len(s), len(m), guardedFrames, rodataFrames)
			}
			if got := w.textWrite(strictView); got != blocked {
				t.Errorf("an attack was answered with %+v", got)
			}
			<-w.events.got

			w.switchView("maintenance")
			r := <-w.events.got
			if v := r.Target.View; r.Action != journal.Noted || r.Guard != "" || v == nil || *v != (journal.ViewTarget{From: "strict", To: "maintenance", By: admin}) {
				t.Errorf("recorded %+v", r)
			}
			st := w.status()
			if w.dom.View() != maintenanceView || st.State != engine.StateProtecting || w.dom.Pauses() != 1 {
				t.Errorf("in view %d, %s, %d pauses", w.dom.View(), st.State, w.dom.Pauses())
			}
			for name, want := range map[policy.GuardName]engine.GuardState{
				policy.GuardKernelText: engine.GuardInactive, policy.GuardModules: engine.GuardInactive, policy.GuardVDSO: engine.GuardInactive,
				policy.GuardKernelROData: engine.GuardArmed, policy.GuardExceptionTable: engine.GuardArmed, policy.GuardSyscallEntry: engine.GuardArmed,
			} {
				g := w.guardState(name)
				if g.State != want || (want == engine.GuardInactive) != strings.Contains(g.Reason, "does not hold in view maintenance, in which the domain runs; it holds in strict") {
					t.Errorf("%s is %s: %q", name, g.State, g.Reason)
				}
			}
			// An access that a vCPU made before it was switched counts in the view it
			// is in now: it is tried again there.
			if got := w.textWrite(strictView); got != (answer{flags: abi.VMEventFlagAlternateP2M, in: maintenanceView}) {
				t.Errorf("an access in the view that was left was answered with %+v", got)
			}
			// What is restricted in this view is judged as ever.
			rodata := (w.guest.PhysBase + linuxtest.ROData).GFN()
			if got := w.access(rodata, maintenanceView, abi.MemAccessW); got != blocked {
				t.Errorf("an attack on read-only data was answered with %+v", got)
			}
			if r := <-w.events.got; r.Guard != "kernel-rodata" {
				t.Errorf("recorded %+v", r)
			}
			// And what a guard has said there is for that does not hold is nobody's: the
			// table of system calls is read-only data here.
			if got := w.access((w.guest.PhysBase + linuxtest.SyscallTable).GFN(), maintenanceView, abi.MemAccessW); got != blocked {
				t.Errorf("an attack on the table of system calls was answered with %+v", got)
			}
			<-w.events.got
			w.switchView("maintenance") // which it is in: nothing happens
			select {
			case r := <-w.events.got:
				t.Errorf("recorded %+v", r)
			default:
			}

			w.switchView("strict")
			<-w.events.got
			if w.dom.View() != strictView || w.guardState(policy.GuardKernelText).State != engine.GuardArmed {
				t.Errorf("back in view %d, kernel-text is %+v", w.dom.View(), w.guardState(policy.GuardKernelText))
			}
			if got := w.textWrite(strictView); got != blocked {
				t.Errorf("an attack was answered with %+v", got)
			}
			<-w.events.got
			w.dom.Shutdown(abi.ShutdownPoweroff)
			w.engine.ShutDown(w.info)
			w.checkClean(1)
		})
	}
}

// TestSwitchEndsSteps: a step ends in the view that it was begun from, so none is left
// over a switch; and Xen takes the next one for the same kind.
func TestSwitchEndsSteps(t *testing.T) {
	for _, minor := range []int{11, 17} {
		t.Run(fmt.Sprint("4.", minor), func(t *testing.T) {
			w := newWorld(t, xentest.Config{Release: xen.Release{Major: 4, Minor: minor}, AltP2M: true}, withViews)
			w.decl = declareViews(t, twoViews...)
			w.decl.Spec.Mode = policy.ModeObserve
			w.appear()
			w.boot()
			w.textWrite(strictView)
			<-w.events.got
			if !w.dom.SingleStepping(0) {
				t.Fatal("vCPU 0 makes no step")
			}
			w.switchView("maintenance")
			<-w.events.got
			if w.dom.SingleStepping(0) || w.dom.View() != maintenanceView {
				t.Errorf("a step goes on: %v, in view %d", w.dom.SingleStepping(0), w.dom.View())
			}
			rodata := (w.guest.PhysBase + linuxtest.ROData).GFN()
			got := w.access(rodata, maintenanceView, abi.MemAccessW)
			<-w.events.got
			want := answer{flags: toggle}
			if w.layout.Has.FastSingleStep {
				want = answer{flags: abi.VMEventFlagAlternateP2M | abi.VMEventFlagFastSingleStep, to: maintenanceView}
			}
			if got != want {
				t.Errorf("answered with %+v, want %+v", got, want)
			}
			w.dom.Shutdown(abi.ShutdownPoweroff)
			w.engine.ShutDown(w.info)
			w.checkClean(1)
		})
	}
}

// TestSwitchWithBreakpoint takes a breakpoint along.
func TestSwitchWithBreakpoint(t *testing.T) {
	w := withTwoViews(t, 17)
	w.set(where)
	at := w.place(where)
	for _, c := range []struct {
		to        string
		in, left  uint16
		stepping  uint8
		guardedBy int
	}{
		{"maintenance", maintenanceView, strictView, abi.AccessRWX, (linuxtest.RODataEnd - linuxtest.ROData) / x86.PageSize},
		{"strict", strictView, maintenanceView, abi.AccessRX, guardedFrames},
	} {
		w.switchView(c.to)
		<-w.events.got
		shadow := w.dom.LeadsTo(c.in, at.GFN())
		if shadow < 1<<20 || w.dom.ViewAccess(c.in, at.GFN()) != abi.AccessX || w.dom.LeadsTo(c.left, at.GFN()) != at.GFN() {
			t.Errorf("in %s the view leads to %v with access %d, the one that was left to %v", c.to, shadow, w.dom.ViewAccess(c.in, at.GFN()), w.dom.LeadsTo(c.left, at.GFN()))
		}
		if a := w.dom.ViewAccess(steppingOfTwo, at.GFN()); a != c.stepping {
			t.Errorf("in %s the stepping view has access %d", c.to, a)
		}
		if a := w.dom.ViewAccess(c.in, shadow); a != abi.AccessN {
			t.Errorf("in %s the shadow page has access %d", c.to, a)
		}
		if got, want := w.stop(at, c.in, 0), (answer{flags: abi.VMEventFlagAlternateP2M | abi.VMEventFlagFastSingleStep, in: steppingOfTwo, to: c.in}); got != want {
			t.Errorf("in %s a hit was answered with %+v, want %+v", c.to, got, want)
		}
		n := 0
		for _, v := range w.status().Views {
			if v.Current {
				for _, r := range v.Restricted {
					n += int(r.Count)
				}
				if v.Name != c.to || len(v.Shadows) != 1 {
					t.Errorf("in %s: %+v", c.to, v)
				}
			} else if len(v.Shadows) != 0 {
				t.Errorf("in %s view %q has shadows", c.to, v.Name)
			}
		}
		if n != c.guardedBy {
			t.Errorf("in %s %d frames are said to be restricted, want %d", c.to, n, c.guardedBy)
		}
		w.engine.CheckView(7)
		if n := w.status().Restored; n != 0 {
			t.Errorf("in %s %d frames were lost", c.to, n)
		}
	}
	if b := w.status().Breakpoints; len(b) != 1 || b[0].Hits != 2 {
		t.Errorf("breakpoints %+v", b)
	}
	w.dom.Shutdown(abi.ShutdownPoweroff)
	w.engine.ShutDown(w.info)
	w.checkClean(1)
}

// TestSwitchRefused says why.
func TestSwitchRefused(t *testing.T) {
	locked := slices.Clone(twoViews)
	locked[1].Switch = policy.SwitchNobody
	for _, c := range []struct {
		name  string
		xen   xentest.Config
		views []policy.View
		to    string
		why   string
	}{
		{"none of that name", xentest.Config{AltP2M: true}, twoViews, "maintenanc", `did you mean "maintenance"?`},
		{"nobody may", xentest.Config{AltP2M: true}, locked, "maintenance", "the policy lets nobody do that"},
		{"no views declared", xentest.Config{AltP2M: true}, nil, "maintenance", "policy has no views of its own"},
		{"tier access", xentest.Config{}, twoViews, "maintenance", "it needs the tier views, and the domain's is access"},
		{"tier registers", xentest.Config{AMD: true}, twoViews, "maintenance", "it needs the tier views, and the domain's is registers"},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := newWorld(t, c.xen, withViews)
			if c.xen.AMD {
				w.setState(linuxtest.Running)
				w.copyMemory()
			}
			w.decl = declareViews(t, c.views...)
			w.appear()
			if !c.xen.AMD {
				w.boot()
			}
			before := w.dom.View()
			err := w.engine.SwitchView(t.Context(), 7, c.to, admin)
			var refused *engine.ViewError
			if !errors.As(err, &refused) || !strings.Contains(err.Error(), c.why) && !(c.xen.AMD && strings.Contains(err.Error(), "not armed yet")) || refused.Fix == "" {
				t.Errorf("%v, %+v", err, refused)
			}
			if w.dom.View() != before {
				t.Errorf("in view %d", w.dom.View())
			}
		})
	}
}

// TestViewsElsewhere: where there are no views what the initial one declares holds, and
// what it does not is said to be missing.
func TestViewsElsewhere(t *testing.T) {
	w := newWorld(t, xentest.Config{}, withViews)
	w.decl = declareViews(t, twoViews[1], twoViews[0])
	w.decl.Spec.Named.Views[0].Initial, w.decl.Spec.Named.Views[1].Initial = true, false
	w.appear()
	w.boot()
	text, rodata := w.guardState(policy.GuardKernelText), w.guardState(policy.GuardKernelROData)
	if st := w.status(); st.State != engine.StateDegraded || rodata.State != engine.GuardArmed || text.State != engine.GuardUnavailable || !strings.Contains(text.Reason, "no other can be had on this tier") {
		t.Errorf("%s, %+v, %+v", st.State, text, rodata)
	}
	if r := w.dom.Restricted(); len(r) != (linuxtest.RODataEnd-linuxtest.ROData)/x86.PageSize {
		t.Errorf("%d frames restricted", len(r))
	}
	w.dom.Shutdown(abi.ShutdownPoweroff)
	w.engine.ShutDown(w.info)
	w.checkClean(1)
}

// TestSwitchFails leaves the domain in the view that it was in.
func TestSwitchFails(t *testing.T) {
	for _, c := range []struct {
		op    string
		state engine.State
	}{
		{"altp2m(switch_p2m)", engine.StateProtecting},
		{"debug_op(single_step)", engine.StateDegraded},
	} {
		t.Run(c.op, func(t *testing.T) {
			w := withTwoViews(t, 17)
			w.set(where)
			w.xen.FailNext(c.op, 22) // EINVAL
			err := w.engine.SwitchView(t.Context(), 7, "maintenance", admin)
			if err == nil || !strings.Contains(err.Error(), c.op) {
				t.Errorf("%v", err)
			}
			if st := w.status(); w.dom.View() != strictView || st.State != c.state || w.dom.Pauses() != 1 {
				t.Errorf("in view %d, %s, %d pauses", w.dom.View(), st.State, w.dom.Pauses())
			}
			if c.state == engine.StateProtecting && w.dom.LeadsTo(strictView, w.place(where).GFN()) < 1<<20 {
				t.Error("the breakpoint is gone")
			}
			if got := w.textWrite(strictView); got != blocked {
				t.Errorf("an attack was answered with %+v", got)
			}
			<-w.events.got
			w.dom.Shutdown(abi.ShutdownPoweroff)
			w.engine.ShutDown(w.info)
			w.checkClean(1)
		})
	}
}

// TestViewsOutlivePolicy: another policy leaves the domain in the view of the same
// name, and in the initial one where there is none.
func TestViewsOutlivePolicy(t *testing.T) {
	w := withTwoViews(t, 17)
	w.switchView("maintenance")
	<-w.events.got
	more := append(slices.Clone(twoViews), policy.View{Name: "text", Guards: []policy.GuardName{policy.GuardKernelText}})
	if err := w.engine.Apply(t.Context(), w.info, declareViews(t, more...)); err != nil {
		t.Fatal(err)
	}
	if v := w.dom.View(); v != maintenanceView {
		t.Errorf("with one more view it runs in %d", v)
	}
	w.switchView("text")
	<-w.events.got
	if v := w.dom.View(); v != 3 {
		t.Errorf("switched to the third it runs in %d", v)
	}
	if err := w.engine.Apply(t.Context(), w.info, declareViews(t, twoViews...)); err != nil {
		t.Fatal(err)
	}
	if v, g := w.dom.View(), w.guardState(policy.GuardModules); v != strictView || g.State != engine.GuardArmed {
		t.Errorf("without the third it runs in %d, modules are %+v", v, g)
	}
	if err := w.engine.Apply(t.Context(), w.info, declare(t, "enforce")); err != nil {
		t.Fatal(err)
	}
	if st := w.status(); w.dom.View() != 1 || len(st.Views) != 2 || st.Views[1].Name != "" {
		t.Errorf("with none declared it runs in %d of %+v", w.dom.View(), st.Views)
	}
	w.dom.Shutdown(abi.ShutdownPoweroff)
	w.engine.ShutDown(w.info)
	w.checkClean(1)
}

// TestGuardInNoView: a guard that a domain asked for when its policy had it in a view,
// and has no more, is said to be missing.
func TestGuardInNoView(t *testing.T) {
	w := withTwoViews(t, 17)
	without := slices.Clone(twoViews)
	without[0].Guards = slices.DeleteFunc(policy.MemoryGuards(), func(n policy.GuardName) bool { return n == policy.GuardKernelText })
	decl := declareViews(t, twoViews...)
	decl.Spec.Named.Views = without
	if err := w.engine.Apply(t.Context(), w.info, decl); err != nil {
		t.Fatal(err)
	}
	if st, g := w.status(), w.guardState(policy.GuardKernelText); st.State != engine.StateDegraded || g.State != engine.GuardUnavailable || !strings.Contains(g.Reason, "nor in another of its policy") {
		t.Errorf("%s, %+v", st.State, g)
	}
	w.dom.Shutdown(abi.ShutdownPoweroff)
	w.engine.ShutDown(w.info)
	w.checkClean(1)
}

// TestNoSecondView falls back to tier access where not all views can be had, as with
// one.
func TestNoSecondView(t *testing.T) {
	w := newWorld(t, xentest.Config{AltP2M: true}, withViews)
	many := []policy.View{twoViews[0]}
	for i := range policy.MaxViews - 1 {
		many = append(many, policy.View{Name: fmt.Sprintf("v%d", i), Guards: []policy.GuardName{policy.GuardInterruptTable}})
	}
	w.decl = declareViews(t, many...)
	w.appear()
	w.boot()
	// As many as there can be, and one for breakpoints.
	w.set(where)
	if st := w.status(); st.Tier != engine.TierViews || len(st.Views) != policy.MaxViews+2 {
		t.Fatalf("tier %s (%s), %d views", st.Tier, st.TierReason, len(st.Views))
	}
	w.xen.FailNext("altp2m(create_p2m)", 12)
	if err := w.engine.Apply(t.Context(), w.info, declareViews(t, twoViews...)); err != nil {
		t.Fatal(err)
	}
	if st := w.status(); st.Tier != engine.TierAccess || !strings.Contains(st.TierReason, "create_p2m") || w.dom.AltP2MActive() || len(w.dom.Restricted()) < guardedFrames {
		t.Errorf("tier %s (%s), views %v, %d frames restricted", st.Tier, st.TierReason, w.dom.AltP2MActive(), len(w.dom.Restricted()))
	}
	w.dom.Shutdown(abi.ShutdownPoweroff)
	w.engine.ShutDown(w.info)
	w.checkClean(1)
}
