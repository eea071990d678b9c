package engine

import (
	"context"
	"errors"
	"time"

	"github.com/xen-hvi/hvi/engine/guard"
	"github.com/xen-hvi/hvi/engine/guest/linux"
	"github.com/xen-hvi/hvi/engine/guest/report"
	"github.com/xen-hvi/hvi/engine/policy"
	"github.com/xen-hvi/hvi/engine/x86"
	"github.com/xen-hvi/hvi/engine/xen"
)

// The kernel patches the code of its modules as it does its own. What that comes to is
// compared likewise, with what the module's code was when it was seen first. The pages
// of modules are not opened.

// moduleCode is a module's.
type moduleCode struct {
	scan    *scan
	scanner *guard.ModuleScanner
}

// modulePage is a page of a module's code: a part of its scan.
type modulePage struct {
	module *moduleCode
	part   int
}

// watchModuleCode takes the code of modules that have come for right, which has just been
// restricted, and forgets those that have gone. A page of one that was there before which
// has come to it since was anybody's in between, and is compared.
func (s *Session) watchModuleCode(r *linux.Reader, mods []report.Module) {
	p := &s.patching
	if p.moved == nil {
		return
	}
	modules, pages := make(map[moduleKey]*moduleCode, len(mods)), make(map[x86.GFN]modulePage)
	var back []x86.GFN
	var traced linux.TraceSites
	for _, m := range mods {
		key := moduleKeyOf(r, &m)
		code := p.modules[key]
		known := code != nil
		if !known {
			var err error
			if traced == nil {
				if traced, err = r.ModuleTraceSites(); err != nil {
					s.log.Debug("what can be traced in modules", "err", err)
					return // and tried again at the next look
				}
			}
			code = new(moduleCode)
			if code.scanner, err = guard.NewModuleScanner(r, m, traced); err != nil {
				s.log.Debug("the code of a module", "module", m.Name.String(), "err", err)
				continue
			}
			code.scan = &scan{guard: policy.GuardModules, scanner: code.scanner, suspects: make(map[int]suspicion)}
		}
		modules[key] = code
		if code.scanner == nil {
			continue // it has none
		}
		as := r.Kernel().AddressSpace()
		for part := range code.scanner.Parts() {
			if t, err := as.Translate(code.scanner.Start() + x86.VirtAddr(part)<<x86.PageShift); err == nil {
				gfn, at := t.Phys.GFN(), modulePage{code, part}
				if pages[gfn] = at; known && p.code[gfn] != at {
					back = append(back, gfn)
				}
			}
		}
	}
	p.modules, p.code = modules, pages
	for gfn, o := range p.pages {
		if at := p.code[gfn]; o.module != nil && at.module != o.module {
			delete(p.pages, gfn) // it is unloaded
		}
	}
	for _, gfn := range back {
		s.doubtModule(gfn)
	}
	if back != nil {
		s.wakePatching()
	}
}

// doubtModule has a page of a module's code compared that may have been written, or be
// another one, while nothing restricted it.
func (s *Session) doubtModule(gfn x86.GFN) {
	if at, known := s.patching.code[gfn]; known {
		s.patchedPage(gfn, at.module.scan, at.part, s.now()).module = at.module
	}
}

// forgetModulePage says that a page that was of a module's code is watched no more.
func (s *Session) forgetModulePage(gfn x86.GFN) { delete(s.patching.code, gfn) }

// movedMore delivers when the kernel begins to patch the code of modules.
func (s *Session) movedMore() <-chan struct{} {
	p := &s.patching
	if p.moved == nil || p.timer != nil {
		return nil // the next tick is soon enough
	}
	return p.moved.More()
}

// takeMoved takes in which pages of modules were patched.
func (s *Session) takeMoved(now time.Time) {
	p := &s.patching
	if p.moved == nil {
		return
	}
	patched := func(gfn x86.GFN) {
		if at, known := p.code[gfn]; known {
			o := s.patchedPage(gfn, at.module.scan, at.part, now)
			o.module = at.module
			o.rest(now)
		}
	}
	if p.moved.Take(patched) {
		for gfn := range p.code {
			patched(gfn)
		}
	}
}

// compareModulePages compares those that are due, until a time. Their memory comes and goes, so it is
// mapped for this once; and one whose module has gone is forgotten.
func (s *Session) compareModulePages(now, until time.Time) {
	p := &s.patching
	mem := newReading(context.Background(), nil, s.hv.OpenMemoryFor(s.info.ID, xen.HereAndThere))
	tlb, giveBack := borrowTLB()
	defer giveBack()
	r := s.kernel.Over(mem).NewReaderWith(tlb, nil)
	mods, err := r.LiveModules()
	live := make(map[*moduleCode]bool, len(mods))
	for _, m := range mods {
		if code := p.modules[moduleKeyOf(r, &m)]; code != nil && code.scanner != nil {
			live[code] = true
			code.scanner.Refresh(r)
		}
	}
	compared := false // at least one, however long it took to get here
	for gfn, o := range p.pages {
		switch {
		case o.module == nil || now.Before(o.due) || compared && !time.Now().Before(until):
		case err == nil && !live[o.module]:
			delete(p.pages, gfn)
		case err == nil:
			s.comparePatched(r, gfn, now)
			compared = true
		default:
			o.due = now.Add(patchRest)
		}
	}
	if err = errors.Join(err, mem.Close()); err != nil {
		s.log.Debug("compare the code of modules", "err", err)
	}
}
