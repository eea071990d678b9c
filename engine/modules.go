package engine

import (
	"context"
	"errors"

	"github.com/xen-hvi/hvi/engine/guest/linux"
	"github.com/xen-hvi/hvi/engine/guest/report"
	"github.com/xen-hvi/hvi/engine/journal"
	"github.com/xen-hvi/hvi/engine/policy"
	"github.com/xen-hvi/hvi/engine/x86"
	"github.com/xen-hvi/hvi/engine/xen"
)

// What the guest loads and unloads is no violation, but is told of. Each time the
// frames of modules are looked for, the kernel's list is compared with that of the last
// time; what is loaded and unloaded in between is not seen.

// maxModuleRecords bounds the records of one look: a guest can load modules in a loop,
// or forge a list of them. Some seconds pass between two looks.
const maxModuleRecords = 32

// moduleKey tells one loading of a module from another, which may come to be at the very
// place that the first had, in other frames.
type moduleKey struct {
	addr, base x86.VirtAddr
	frame      x86.GFN // of base
	name       report.Text
}

// moduleKeyOf is a module's.
func moduleKeyOf(r *linux.Reader, m *report.Module) moduleKey {
	key := moduleKey{addr: m.Addr, base: m.Base, name: m.Name}
	as := r.Kernel().AddressSpace()
	if t, err := as.Translate(m.Base); err == nil {
		key.frame = t.Phys.GFN()
	}
	return key
}

// followModules records which modules have come and gone since the last look. The
// first only notes which there are.
func (s *Session) followModules() {
	mem := newReading(context.Background(), nil, s.hv.OpenMemoryFor(s.info.ID, xen.HereAndThere))
	tlb, giveBack := borrowTLB()
	defer giveBack()
	r := s.kernel.Over(mem).NewReaderWith(tlb, nil)
	mods, err := r.LiveModules()
	if err == nil {
		s.compareModules(r, mods)
		s.watchModuleCode(r, mods)
	}
	if err = errors.Join(err, mem.Close()); err != nil {
		s.log.Debug("what the guest has loaded could not be compared", "err", err)
	}
}

// compareModules compares the modules that are loaded with those of the last look.
func (s *Session) compareModules(r *linux.Reader, mods []report.Module) {
	before, now := s.loaded, make(map[moduleKey]journal.ModuleTarget, len(mods))
	s.loaded = now
	changes := 0
	tell := func(t journal.ModuleTarget) {
		if changes++; changes <= maxModuleRecords {
			s.write(moduleRecord(t))
		}
	}
	for _, m := range mods {
		key := moduleKeyOf(r, &m)
		t, had := before[key]
		if !had {
			t = journal.ModuleTarget{Name: m.Name, Change: journal.ModuleLoaded, Base: m.Base, Size: m.Size, Taints: m.Taints}
			if before != nil && changes < maxModuleRecords {
				if sum, err := r.ModuleTextSum(m); err == nil {
					t.SHA256 = sum[:]
				}
			}
			if before != nil {
				tell(t)
			}
		}
		now[key] = t
	}
	for key, t := range before {
		if _, has := now[key]; !has {
			t.Change = journal.ModuleUnloaded
			tell(t)
		}
	}
	if n := changes - maxModuleRecords; n > 0 {
		s.unrecorded.Add(uint64(n))
		s.log.Warn("more modules came and went than are recorded", "count", n)
	}
}

// moduleRecord is the record of a module that has come or gone.
func moduleRecord(t journal.ModuleTarget) journal.Record {
	r := foundRecord(policy.GuardModules, journal.Target{Kind: journal.TargetModule, Module: &t})
	r.Action = journal.Noted
	return r
}
