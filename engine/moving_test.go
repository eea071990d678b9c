package engine_test

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"runtime"
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

const (
	moduleBase = x86.VirtAddr(0xffffffffc0200000)
	moduleAt   = x86.VirtAddr(linuxtest.Variables + 0x4000) // struct module
	moduleCode = x86.PhysAddr(linuxtest.Variables + 0x8000) // two pages of code, one of data
)

// loadModule puts a module on the guest's list, or takes it off.
func (w *world) loadModule(on bool) {
	g, head, at := w.guest, w.guest.Addr("modules"), w.guest.Base+moduleAt
	if !on {
		for i := range x86.VirtAddr(2) {
			g.WriteUint64(head+8*i, uint64(head))
		}
		w.copyMemory()
		return
	}
	for _, link := range [][2]x86.VirtAddr{{head, at + linuxtest.ModuleList}, {at + linuxtest.ModuleList, head}} {
		g.WriteUint64(link[0], uint64(link[1]))
		g.WriteUint64(link[1]+8, uint64(link[0]))
	}
	g.Write(at+linuxtest.ModuleName, []byte("victim\x00"))
	g.WriteUint64(at+linuxtest.ModuleMem+linuxtest.RegionBase, uint64(moduleBase))
	g.Write(at+linuxtest.ModuleMem+linuxtest.RegionBytes, binary.LittleEndian.AppendUint32(nil, 3*x86.PageSize))
	g.Write(at+linuxtest.ModuleMem+linuxtest.RegionText, binary.LittleEndian.AppendUint32(nil, 2*x86.PageSize))
	w.copyMemory()
}

// settled waits until the session's goroutine has brought something about.
func (w *world) settled(what func() bool) {
	w.t.Helper()
	for deadline := time.Now().Add(10 * time.Second); !what(); runtime.Gosched() {
		if time.Now().After(deadline) {
			w.t.Error("it does not come about")
			return
		}
	}
}

// TestModules guards what the guest loads, in both kinds of tiers, and lets go of
// what it has unloaded.
func TestModules(t *testing.T) {
	for name, cfg := range map[string]xentest.Config{"access": {}, "views": {AltP2M: true}} {
		t.Run(name, func(t *testing.T) {
			spec := xentest.Spec{Pauses: 1}
			if cfg.AltP2M {
				spec = withViews
			}
			w := newWorld(t, cfg, spec)
			w.guest.Map(moduleBase, w.guest.PhysBase+moduleCode, 3*x86.PageSize, x86.PageSize, 0)
			w.copyMemory()
			w.appear()
			w.boot()
			first := (w.guest.PhysBase + moduleCode).GFN()
			view := uint16(0)
			if cfg.AltP2M {
				view = 1
			}
			access := func(gfn x86.GFN) uint8 {
				if cfg.AltP2M {
					return w.dom.ViewAccess(view, gfn)
				}
				return w.dom.Access(gfn)
			}
			look := func() { w.engine.FollowMovingForTest(7) }
			if a := access(first); a != abi.AccessRWX {
				t.Fatalf("access %d before there is a module", a)
			}
			w.loadModule(true)
			look()
			noted := func(change journal.ModuleChange) {
				t.Helper()
				r := <-w.events.got
				m := r.Target.Module
				if r.Guard != "modules" || r.Action != journal.Noted || r.Severity != journal.Informational || r.Attack != nil || m == nil || m.Change != change ||
					m.Name != "victim" || m.Base != moduleBase || m.Size != 3*x86.PageSize {
					t.Fatalf("record %+v, %+v", r, m)
				}
				code := sha256.Sum256(w.dom.Read(w.guest.PhysBase+moduleCode, 2*x86.PageSize))
				if !bytes.Equal(m.SHA256, code[:]) {
					t.Errorf("sum %x, want %x", []byte(m.SHA256), code)
				}
			}
			noted(journal.ModuleLoaded)
			look()
			if n := len(w.events.got); n != 0 {
				t.Errorf("%d records of what was told", n)
			}
			if a, b, c := access(first), access(first+1), access(first+2); a != abi.AccessRX || b != abi.AccessRX || c != abi.AccessRWX {
				t.Errorf("access %d, %d to code and %d to data", a, b, c)
			}
			rows := 0
			for _, v := range w.status().Views {
				for _, r := range v.Restricted {
					if r.Guard == policy.GuardModules && v.Current && r.First == first && r.Count == 2 {
						rows++
					}
				}
			}
			if rows != 1 {
				t.Errorf("views %+v", w.status().Views)
			}
			const write = abi.MemAccessR | abi.MemAccessW
			if a := w.access(first+1, view, write); a.flags&abi.VMEventFlagEmulateNoWrite == 0 {
				t.Errorf("a write to code is answered by %+v", a)
			}
			r := <-w.events.got
			if m := r.Target.Memory; r.Guard != "modules" || m.Module != "victim" || m.Offset < x86.PageSize {
				t.Errorf("record %+v, %+v", r, m)
			}
			// Unloaded, and its memory another's, whose write goes on once the
			// frame has been let go of.
			w.loadModule(false)
			a := w.access(first, view, write)
			if cfg.AltP2M && a.flags&(abi.VMEventFlagEmulate|abi.VMEventFlagAlternateP2M) != abi.VMEventFlagAlternateP2M {
				t.Errorf("in a view it is answered by %+v", a)
			}
			if !cfg.AltP2M && a.flags != 0 {
				t.Errorf("it is answered by %+v", a)
			}
			w.settled(func() bool { return access(first) == abi.AccessRWX })
			if a := access(first + 1); a != abi.AccessRX {
				t.Errorf("a frame that nobody wrote to has access %d", a)
			}
			look()
			noted(journal.ModuleUnloaded)
			if a := access(first + 1); a != abi.AccessRWX {
				t.Errorf("after the next look it has access %d", a)
			}
			if g := w.guardStatus(policy.GuardModules); g.State != engine.GuardArmed || g.Violations != 1 || g.Blocked != 1 || g.Passed != 1 {
				t.Errorf("%+v", g)
			}
			// Guarded again after a change of policy, and nothing is left at the end.
			w.loadModule(true)
			if err := w.engine.Apply(t.Context(), w.info, declareGuards(t, "kernel-text=off")); err != nil {
				t.Fatal(err)
			}
			if a := access(first); a != abi.AccessRX {
				t.Errorf("after a change of policy: access %d", a)
			}
			noted(journal.ModuleLoaded)
			if g := w.guardStatus(policy.GuardModules); strings.Contains(g.Reason, "could not") {
				t.Errorf("%+v", g)
			}
			// Loaded again between two looks, at the same place and in other frames:
			// the first ones are another's.
			w.guest.Map(moduleBase, w.guest.PhysBase+moduleCode+0x4000, 3*x86.PageSize, x86.PageSize, 0)
			w.copyMemory()
			if a := w.access(first, view, write); a.flags&abi.VMEventFlagEmulateNoWrite != 0 {
				t.Errorf("a write to a page that was a module's is answered by %+v", a)
			}
			w.settled(func() bool { return access(first) == abi.AccessRWX })
			look()
			for _, change := range []journal.ModuleChange{journal.ModuleLoaded, journal.ModuleUnloaded} {
				if r := <-w.events.got; r.Action != journal.Noted || r.Target.Module == nil || r.Target.Module.Change != change {
					t.Errorf("record %+v", r)
				}
			}
			if a, b := access(first+1), access(first+4); a != abi.AccessRWX || b != abi.AccessRX {
				t.Errorf("access %d to where it was, %d to where it is", a, b)
			}
			w.dom.Shutdown(abi.ShutdownPoweroff)
			w.engine.ShutDown(w.info)
			w.checkClean(1)
		})
	}
}
