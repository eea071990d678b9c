package guard_test

import (
	"encoding/binary"
	"testing"
	"time"

	"github.com/xen-hvi/hvi/engine/guard"
	"github.com/xen-hvi/hvi/engine/guest/linux/linuxtest"
	"github.com/xen-hvi/hvi/engine/policy"
	"github.com/xen-hvi/hvi/engine/vmevent"
	"github.com/xen-hvi/hvi/engine/x86"
)

// falcon is where the guest has a module, from the image's base on: in memory that
// is mapped, so that its code can be read.
const falcon = linuxtest.HeapStart + 0x20000

// loadFalcon puts a module into the guest's list, 64 KiB at falcon.
func loadFalcon(g *linuxtest.Guest) {
	head, at := g.Addr("modules"), g.Base+linuxtest.Data+0x10000
	g.WriteUint64(head, uint64(at+linuxtest.ModuleList))
	g.WriteUint64(at+linuxtest.ModuleList, uint64(head))
	g.Write(at+linuxtest.ModuleName, []byte("falcon\x00"))
	g.WriteUint64(at+linuxtest.ModuleMem+linuxtest.RegionBase, uint64(g.Base+falcon))
	g.Write(at+linuxtest.ModuleMem+linuxtest.RegionBytes, binary.LittleEndian.AppendUint32(nil, 0x10000))
}

// excepted arms every guard to block, with a module loaded.
func excepted(t testing.TB) fixture {
	f := arm(t, map[policy.GuardName]policy.Action{
		policy.GuardKernelText: policy.ActionBlock, policy.GuardSyscallEntry: policy.ActionBlock, policy.GuardControlRegisters: policy.ActionBlock,
	})
	loadFalcon(f.guest)
	// movb $0xe9,(%rdi), for whoever runs there.
	for _, at := range []x86.VirtAddr{f.guest.Base + 0x2010, f.guest.Base + 0x5000, f.guest.Base + falcon + 0x100} {
		f.guest.Write(at, []byte{0xc6, 0x07, 0xe9})
	}
	f.guest.Write(f.guest.Base+0x5010, []byte{0x48, 0x89, 0x17})             // mov %rdx,(%rdi)
	f.guest.Write(f.guest.Base+0x5020, []byte{0x66, 0xc7, 0x07, 0x90, 0x90}) // movw $0x9090,(%rdi)
	return f
}

// symbol is the made-up function of the guest at an offset in its text.
const (
	function   = "func_8_init" // at 0x2010, two bytes long
	functionAt = 0x2010
)

// TestExceptions takes violations past exceptions: what each condition lets by,
// and what it does not.
func TestExceptions(t *testing.T) {
	text := func(f fixture) *vmevent.Event { return f.write(functionAt, f.guest.Base+0x5000) }
	byModule := func(f fixture) *vmevent.Event { return f.write(functionAt, f.guest.Base+falcon+0x100) }
	lstar := func(f fixture) *vmevent.Event { return msr(f, x86.MSRLSTAR, 0xffffffffc0000000) }
	cr4 := func(f fixture) *vmevent.Event {
		return cr(f, vmevent.CR4, x86.CR4PAE|x86.CR4SMEP|x86.CR4SMAP, x86.CR4PAE|x86.CR4SMEP, module)
	}
	kt := policy.Exception{Guard: policy.GuardKernelText}
	with := func(e policy.Exception, change func(*policy.Exception)) policy.Exception { change(&e); return e }
	f := excepted(t)
	for _, c := range []struct {
		name      string
		exception policy.Exception
		event     func(fixture) *vmevent.Event
		permitted bool
	}{
		{"process", with(kt, func(e *policy.Exception) { e.Process = "insmod" }), text, true},
		{"another process", with(kt, func(e *policy.Exception) { e.Process = "insmo" }), text, false},
		{"processes", with(kt, func(e *policy.Exception) { e.Process = "ins*" }), text, true},
		{"other processes", with(kt, func(e *policy.Exception) { e.Process = "insmodx*" }), text, false},
		{"another guard", policy.Exception{Guard: policy.GuardSyscallEntry, Process: "insmod"}, text, false},
		{"module", with(kt, func(e *policy.Exception) { e.Module = "falcon" }), byModule, true},
		{"module, and code elsewhere", with(kt, func(e *policy.Exception) { e.Module = "falcon" }), text, false},
		{"another module", with(kt, func(e *policy.Exception) { e.Module = "falco" }), byModule, false},
		{"symbol", with(kt, func(e *policy.Exception) { e.Symbol = "func_8_init" }), func(f fixture) *vmevent.Event { return f.write(functionAt, f.guest.Base+functionAt) }, true},
		{"another symbol", with(kt, func(e *policy.Exception) { e.Symbol = "func_9_init" }), func(f fixture) *vmevent.Event { return f.write(functionAt, f.guest.Base+functionAt) }, false},
		{"no such symbol", with(kt, func(e *policy.Exception) { e.Symbol, e.Process = "nowhere", "insmod" }), text, false},
		{"target", with(kt, func(e *policy.Exception) { e.Target = function }), text, true},
		{"target, before it", with(kt, func(e *policy.Exception) { e.Target = function }), func(f fixture) *vmevent.Event { return f.write(functionAt-1, f.guest.Base+0x5000) }, false},
		{"target, behind it", with(kt, func(e *policy.Exception) { e.Target = function }), func(f fixture) *vmevent.Event { return f.write(functionAt+2, f.guest.Base+0x5000) }, false},
		{"target, and more than it", with(kt, func(e *policy.Exception) { e.Target = function }), func(f fixture) *vmevent.Event { return f.write(functionAt, f.guest.Base+0x5010) }, false},
		{"target, over its end", with(kt, func(e *policy.Exception) { e.Target = function }), func(f fixture) *vmevent.Event { return f.write(functionAt+1, f.guest.Base+0x5020) }, false},
		{"target, up to its end", with(kt, func(e *policy.Exception) { e.Target = function }), func(f fixture) *vmevent.Event { return f.write(functionAt, f.guest.Base+0x5020) }, true},
		{"target through an alias", with(kt, func(e *policy.Exception) { e.Target = function }), func(f fixture) *vmevent.Event {
			ev := text(f)
			ev.Mem.GLA = 0xffff_8880_0000_0000 + x86.VirtAddr(functionAt)
			return ev
		}, true},
		{"another place at the target's address", with(kt, func(e *policy.Exception) { e.Target = function }), func(f fixture) *vmevent.Event {
			ev := f.write(functionAt+0x1000, f.guest.Base+0x5000) // the page tables were changed
			ev.Mem.GLA = f.guest.Base + functionAt
			return ev
		}, false},
		{"no such target", with(kt, func(e *policy.Exception) { e.Target = "nothing" }), text, false},
		{"a register as target", with(kt, func(e *policy.Exception) { e.Target = "LSTAR" }), text, false},
		{"target_module", with(kt, func(e *policy.Exception) { e.TargetModule = "falcon" }), func(f fixture) *vmevent.Event {
			ev := text(f)
			ev.Mem.GLA = f.guest.Base + falcon + 8
			return ev
		}, true},
		{"another target_module", with(kt, func(e *policy.Exception) { e.TargetModule = "falcon" }), text, false},
		{"bytes", with(kt, func(e *policy.Exception) { e.Bytes = "e9" }), text, true},
		{"other bytes", with(kt, func(e *policy.Exception) { e.Bytes = "e8" }), text, false},
		{"more bytes", with(kt, func(e *policy.Exception) { e.Bytes = "e900" }), text, false},
		{"bytes of what can't be read", with(kt, func(e *policy.Exception) { e.Bytes = "e9" }), func(f fixture) *vmevent.Event { return f.write(functionAt, module) }, false},
		{"a value of memory", with(kt, func(e *policy.Exception) { e.Value = "0xe9" }), text, false},
		{"kernel", with(kt, func(e *policy.Exception) { e.Process, e.Kernel = "insmod", "6*" }), text, true},
		{"another kernel", with(kt, func(e *policy.Exception) { e.Process, e.Kernel = "insmod", "5.10*" }), text, false},
		{"expired", with(kt, func(e *policy.Exception) { e.Process, e.Expires = "insmod", time.Now().Add(-time.Hour) }), text, false},
		{"not yet expired", with(kt, func(e *policy.Exception) { e.Process, e.Expires = "insmod", time.Now().Add(time.Hour) }), text, true},
		{"all conditions", with(kt, func(e *policy.Exception) { e.Process, e.Target, e.Bytes = "insmod", function, "e9" }), text, true},
		{"all but one", with(kt, func(e *policy.Exception) { e.Process, e.Target, e.Bytes = "modprobe", function, "e9" }), text, false},
		{"MSR", policy.Exception{Guard: policy.GuardSyscallEntry, Target: "LSTAR", Value: "0xffffffffc0000000"}, lstar, true},
		{"another MSR", policy.Exception{Guard: policy.GuardSyscallEntry, Target: "STAR"}, lstar, false},
		{"another value", policy.Exception{Guard: policy.GuardSyscallEntry, Target: "LSTAR", Value: "0x1"}, lstar, false},
		{"bytes of a register", policy.Exception{Guard: policy.GuardSyscallEntry, Target: "LSTAR", Bytes: "00"}, lstar, false},
		{"memory as a register", policy.Exception{Guard: policy.GuardSyscallEntry, Target: function}, lstar, false},
		{"CR", policy.Exception{Guard: policy.GuardControlRegisters, Target: "CR4"}, cr4, true},
		{"another CR", policy.Exception{Guard: policy.GuardControlRegisters, Target: "CR0"}, cr4, false},
		{"an MSR for a CR", policy.Exception{Guard: policy.GuardControlRegisters, Target: "EFER"}, cr4, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			x := guard.NewExceptions([]policy.Exception{c.exception}, f.kernel, nil)
			f.set.UseExceptions(x)
			var violations, allowed uint64
			for _, a := range f.set.Armed() {
				violations -= a.Violations.Load()
				allowed -= a.Allowed.Load()
			}
			ev := c.event(f)
			blocked := vmevent.Deny
			passed := vmevent.Continue
			if ev.Reason == vmevent.ReasonMemAccess {
				blocked, passed = vmevent.Discard, vmevent.Emulate
			}
			want, uses := blocked, uint64(0)
			if c.permitted {
				want, uses = passed, 1
			}
			if got := f.set.HandleEvent(ev); got != want {
				t.Errorf("verdict %#x, want %#x (%+v)", got, want, x.Uses())
			}
			if got := x.Uses()[0]; got.Uses != uses || got.Last.IsZero() == c.permitted {
				t.Errorf("used %d times, last %v; want %d", got.Uses, got.Last, uses)
			}
			if n := uint64(len(f.set.Violations())); n != 1-uses {
				t.Errorf("%d violations are reported", n)
			} else if n > 0 {
				<-f.set.Violations()
			}
			for _, a := range f.set.Armed() {
				violations += a.Violations.Load()
				allowed += a.Allowed.Load()
			}
			if violations != 1-uses || allowed != uses {
				t.Errorf("%d violations and %d allowed, want %d and %d", violations, allowed, 1-uses, uses)
			}
		})
	}
}

// TestExceptionsExchange: those in force can be exchanged at any time, and their
// counts go on.
func TestExceptionsExchange(t *testing.T) {
	f := excepted(t)
	one := policy.Exception{Guard: policy.GuardKernelText, Process: "insmod"}
	two := policy.Exception{Guard: policy.GuardKernelText, Module: "other"}
	ev := f.write(functionAt, module)
	x := guard.NewExceptions([]policy.Exception{one}, f.kernel, nil)
	f.set.UseExceptions(x)
	f.set.HandleEvent(ev)
	x = guard.NewExceptions([]policy.Exception{two, one, one}, f.kernel, x)
	f.set.UseExceptions(x)
	f.set.HandleEvent(ev)
	uses := x.Uses()
	if len(uses) != 2 || uses[0].Uses != 0 || uses[1].Uses != 2 || uses[1].ID != one.ID() || uses[1].Last.IsZero() {
		t.Errorf("%+v", uses)
	}
	f.set.UseExceptions(nil)
	if got := f.set.HandleEvent(ev); got != vmevent.Discard {
		t.Errorf("without exceptions: %#x", got)
	}
	var none *guard.Exceptions
	if none.Uses() != nil || none.PermitsChange(policy.GuardKernelText, guard.Change{}, time.Now()) {
		t.Error("no exceptions permit something")
	}
	why := guard.NewExceptions([]policy.Exception{
		{Guard: policy.GuardKernelText, Process: "x", Kernel: "nothing"},
		{Guard: policy.GuardKernelText, Symbol: "no_such"},
		{Guard: policy.GuardKernelText, Target: "no_such"},
		{Guard: policy.GuardKernelText, Target: "local_lock"},
	}, f.kernel, nil).Uses()
	for i, want := range []string{"the guest runs another kernel", "the guest's kernel has no symbol no_such", "the guest's kernel has no symbol no_such", "the guest's kernel has several symbols local_lock"} {
		if why[i].Why != want {
			t.Errorf("%d: %q, want %q", i, why[i].Why, want)
		}
	}
}

// TestExceptionsForChanges: of what is found afterwards, nobody knows who did it.
func TestExceptionsForChanges(t *testing.T) {
	f := excepted(t)
	change := guard.Change{Addr: f.guest.Base + functionAt, Now: []byte{0xe9, 1}}
	for _, c := range []struct {
		name      string
		exception policy.Exception
		change    guard.Change
		permitted bool
	}{
		{"target", policy.Exception{Target: function}, change, true},
		{"target and bytes", policy.Exception{Target: function, Bytes: "e9"}, change, true},
		{"other bytes", policy.Exception{Target: function, Bytes: "e8"}, change, false},
		{"who", policy.Exception{Target: function, Process: "insmod"}, change, false},
		{"more than the target", policy.Exception{Target: function}, guard.Change{Addr: change.Addr, Now: make([]byte, 64)}, false},
		{"expired", policy.Exception{Target: function, Expires: time.Unix(1, 0)}, change, false},
		{"a module", policy.Exception{TargetModule: "falcon"}, change, false},
	} {
		c.exception.Guard = policy.GuardKernelText
		x := guard.NewExceptions([]policy.Exception{c.exception}, f.kernel, nil)
		if got := x.PermitsChange(policy.GuardKernelText, c.change, time.Now()); got != c.permitted {
			t.Errorf("%s: %v", c.name, got)
		}
		if x.PermitsChange(policy.GuardControlRegisters, c.change, time.Now()) {
			t.Errorf("%s: of another guard", c.name)
		}
	}
}

// TestExceptionsForFindings: what a guard that looks has found is permitted by the
// event's words for it, and by an exception that is of nothing else.
func TestExceptionsForFindings(t *testing.T) {
	f := excepted(t)
	const object, what = "modprobe_path", `not installed: it is "/opt/agent/modprobe"`
	for _, c := range []struct {
		name      string
		exception policy.Exception
		permitted bool
	}{
		{"both", policy.Exception{Object: object, What: what}, true},
		{"the object", policy.Exception{Object: object}, true},
		{"how it begins", policy.Exception{Object: "modprobe*", What: "not installed*"}, true},
		{"what is wrong", policy.Exception{What: what}, true},
		{"another object", policy.Exception{Object: "core_pattern", What: what}, false},
		{"a part of the name", policy.Exception{Object: "modprobe"}, false},
		{"more than the name", policy.Exception{Object: object + "x"}, false},
		{"another finding", policy.Exception{Object: object, What: "x*"}, false},
		{"another kernel", policy.Exception{Object: object, Kernel: "nothing"}, false},
		{"expired", policy.Exception{Object: object, Expires: time.Unix(1, 0)}, false},
		{"of accesses", policy.Exception{Target: function}, false},
	} {
		c.exception.Guard = policy.GuardUsermodeHelper
		x := guard.NewExceptions([]policy.Exception{c.exception}, f.kernel, nil)
		permits := func(again bool) bool {
			return x.PermitsFinding(policy.GuardUsermodeHelper, object, what, again, time.Now())
		}
		if first, second := permits(false), permits(true); first != c.permitted || second != c.permitted {
			t.Errorf("%s: %v, again %v", c.name, first, second)
		}
		uses := uint64(0)
		if c.permitted {
			uses = 1
		}
		if got := x.Uses()[0].Uses; got != uses {
			t.Errorf("%s: counted %d times, want %d", c.name, got, uses)
		}
		if x.PermitsFinding(policy.GuardCredentials, object, what, false, time.Now()) {
			t.Errorf("%s: of another guard", c.name)
		}
	}

	// One of findings permits no access and no change.
	x := guard.NewExceptions([]policy.Exception{{Guard: policy.GuardKernelText, Object: object}}, f.kernel, nil)
	f.set.UseExceptions(x)
	if got := f.set.HandleEvent(f.write(functionAt, f.guest.Base+0x5000)); got != vmevent.Discard {
		t.Errorf("a write: %#x", got)
	}
	if x.PermitsChange(policy.GuardKernelText, guard.Change{Addr: f.guest.Base + functionAt, Now: []byte{1}}, time.Now()) {
		t.Error("it permits a change")
	}
	var none *guard.Exceptions
	if none.PermitsFinding(policy.GuardCredentials, object, what, false, time.Now()) {
		t.Error("no exceptions permit something")
	}
}

// TestExceptionsDoNotAllocate is the promise of the event path, for what is
// permitted too.
func TestExceptionsDoNotAllocate(t *testing.T) {
	f := excepted(t)
	list := []policy.Exception{
		{Guard: policy.GuardKernelText, Process: "other", Module: "falcon", Target: function},
		{Guard: policy.GuardKernelText, TargetModule: "falcon"},
		{Guard: policy.GuardKernelText, Process: "ins*", Target: function, Bytes: "e9", Kernel: "6*"},
		{Guard: policy.GuardKernelText, Module: "falcon", Process: "insmod"},
		{Guard: policy.GuardSyscallEntry, Target: "LSTAR", Value: "0x5"},
	}
	x := guard.NewExceptions(list, f.kernel, nil)
	f.set.UseExceptions(x)
	events := []*vmevent.Event{f.write(functionAt, f.guest.Base+0x5000), f.write(functionAt, f.guest.Base+falcon+0x100), msr(f, x86.MSRLSTAR, 5)}
	if n := testing.AllocsPerRun(100, func() {
		for _, ev := range events {
			f.set.HandleEvent(ev)
		}
	}); n != 0 {
		t.Errorf("%v allocations, want 0", n)
	}
	if n := len(f.set.Violations()); n != 0 {
		t.Errorf("%d of them were not permitted: %+v", n, x.Uses())
	}
}

// BenchmarkExceptions is a violation that none of many exceptions permits.
func BenchmarkExceptions(b *testing.B) {
	f := excepted(b)
	var list []policy.Exception
	for i := range 256 {
		list = append(list, policy.Exception{Guard: policy.GuardKernelText, Process: "insmod", Target: function, Bytes: string("0123456789abcdef"[i>>4]) + string("0123456789abcdef"[i&15])})
	}
	list = append(list[:0xe9], list[0xea:]...)
	f.set.UseExceptions(guard.NewExceptions(list, f.kernel, nil))
	ev := f.write(functionAt, f.guest.Base+0x5000)
	b.ReportAllocs()
	for b.Loop() {
		f.set.HandleEvent(ev)
	}
}
