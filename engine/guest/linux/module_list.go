package linux

import (
	"fmt"
	"slices"

	"github.com/xen-hvi/hvi/engine/guest/report"
	"github.com/xen-hvi/hvi/engine/x86"
)

const (
	// maxModuleUses bounds a module's list of users.
	maxModuleUses = maxModules
	// moduleRefBase is MODULE_REF_BASE: what a module's loader holds.
	moduleRefBase = 1
)

// moduleStates are the names of enum module_state, by value (since 3.8).
var moduleStates = [...]string{"live", "coming", "going", "unformed"}

// Modules reports the modules on the kernel's list, newest first as
// /proc/modules has them, those included that are being loaded or unloaded. A
// module that took itself off the list is not here; see [Reader.Check].
func (r *Reader) Modules() (report.List[report.Module], error) {
	out := report.List[report.Module]{Items: []report.Module{}}
	err := r.reading(&out.Reading, func() error {
		return r.consistently("the list of modules", func() error {
			out.Items = out.Items[:0]
			return r.eachModule(func(mod x86.VirtAddr) error {
				m, err := r.readModule(mod)
				if err != nil {
					return err
				}
				out.Items = append(out.Items, m)
				return nil
			})
		})
	})
	return out, err
}

// eachModule walks the kernel's list of modules and calls f with the address of
// each struct module. It is one attempt, for [Reader.consistently].
func (r *Reader) eachModule(f func(mod x86.VirtAddr) error) error {
	o := &r.k.Offsets.Module
	if err := need("module.list", o.List, "module.name", o.Name, "module_layout.base", r.k.Offsets.ModuleRegion.Base,
		"module_layout.size", r.k.Offsets.ModuleRegion.Bytes); err != nil {
		return err
	}
	head, err := r.variable("modules")
	if err != nil {
		return err
	}
	off := x86.VirtAddr(o.List)
	return r.walk("the list of modules", head, maxModules, func(node x86.VirtAddr) error { return f(node - off) })
}

// readModule reads a module and the names of its users. A module that changes
// meanwhile in more than its count of references is errTorn.
func (r *Reader) readModule(mod x86.VirtAddr) (report.Module, error) {
	m, o, err := r.copyModule(mod)
	if err != nil {
		return m, err
	}
	users, err := r.moduleUsers(mod)
	if err != nil {
		return m, err
	}
	again, _, err := r.copyModule(mod)
	if err != nil {
		return m, err
	}
	if m.Name != again.Name || m.State != again.State || m.Base != again.Base || m.Size != again.Size || !slices.Equal(m.Regions, again.Regions) {
		return m, errTorn
	}
	m.UsedBy = users
	if off := &r.k.Offsets.Module; o.pointer(off.Init) != 0 && off.Exit >= 0 && o.pointer(off.Exit) == 0 {
		m.UsedBy = append(m.UsedBy, "[permanent]") // as /proc/modules says it
	}
	return m, nil
}

// copyModule reads a struct module. An unreadable one was freed meanwhile.
func (r *Reader) copyModule(mod x86.VirtAddr) (report.Module, *object, error) {
	off := &r.k.Offsets.Module
	var o object
	if err := r.read(&o, mod, off.Size); err != nil {
		return report.Module{}, nil, errTorn
	}
	m := report.Module{Name: o.text(off.Name, moduleNameLen), Addr: mod, Taints: taintString(o.u64(off.Taints))}
	if state := o.u32(off.State); state < uint32(len(moduleStates)) {
		m.State = moduleStates[state]
	} else {
		m.State = fmt.Sprintf("state-%d", state)
	}
	if off.Refcount >= 0 {
		m.Refcount = int(int32(o.u32(off.Refcount))) - moduleRefBase
	}
	code := off.CoreLayout
	if off.Mem >= 0 {
		code = off.Mem + max(r.k.Offsets.ModuleMem.Text, 0)*r.k.Offsets.ModuleRegion.Size
	}
	m.Base = o.pointer(code + r.k.Offsets.ModuleRegion.Base)
	m.Regions = r.moduleRegions(&o)
	for _, a := range m.Regions {
		m.Size += a.Size
	}
	return m, &o, nil
}

// The kinds of a module's memory, as report.ModuleArea has them.
const (
	regionText        = "text"
	regionROData      = "rodata"
	regionROAfterInit = "ro_after_init"
	regionData        = "data"
	regionInitText    = "init_text"
	regionInitROData  = "init_rodata"
	regionInitData    = "init_data"
)

// moduleRegions tells a module's memory apart. Sizes that no module has are
// left out.
func (r *Reader) moduleRegions(o *object) []report.ModuleArea {
	off, area := &r.k.Offsets.Module, &r.k.Offsets.ModuleRegion
	out := []report.ModuleArea{}
	add := func(kind string, base x86.VirtAddr, size uint64) {
		if base.KernelHalf() && size > 0 && size <= maxModuleSize {
			out = append(out, report.ModuleArea{Kind: kind, Base: base, Size: size})
		}
	}
	if off.Mem >= 0 {
		types := &r.k.Offsets.ModuleMem
		kinds := map[int]string{
			types.Text: regionText, types.Data: regionData, types.ROData: regionROData, types.ROAfterInit: regionROAfterInit,
			types.InitText: regionInitText, types.InitData: regionInitData, types.InitROData: regionInitROData,
		}
		for i := range min(off.MemTypes, maxModuleMem) {
			kind, ok := kinds[i]
			if !ok {
				kind = fmt.Sprintf("type-%d", i)
			}
			at := off.Mem + i*area.Size
			add(kind, o.pointer(at+area.Base), uint64(o.u32(at+area.Bytes)))
		}
		return out
	}
	for _, l := range [...]struct {
		at    int
		kinds [4]string
	}{
		{off.CoreLayout, [4]string{regionText, regionROData, regionROAfterInit, regionData}},
		{off.InitLayout, [4]string{regionInitText, regionInitROData, regionInitROData, regionInitData}},
	} {
		if l.at < 0 {
			continue
		}
		base, end := o.pointer(l.at+area.Base), uint64(o.u32(l.at+area.Bytes))
		borders := [4]uint64{0, 0, 0, end}
		for i, member := range [...]int{area.TextSize, area.ROSize, area.ROAfterInitSize} {
			if member >= 0 {
				borders[i] = uint64(o.u32(l.at + member))
			}
		}
		from := uint64(0)
		for i, to := range borders {
			if to = min(to, end); to > from {
				add(l.kinds[i], base+x86.VirtAddr(from), to-from)
				from = to
			}
		}
	}
	return out
}

// moduleUsers returns the names of the modules that use one, in the order of
// /proc/modules.
func (r *Reader) moduleUsers(mod x86.VirtAddr) ([]report.Text, error) {
	o, use := &r.k.Offsets.Module, &r.k.Offsets.ModuleUse
	if o.SourceList < 0 || use.SourceList < 0 || use.Source < 0 {
		return nil, nil // built without CONFIG_MODULE_UNLOAD
	}
	var out []report.Text
	var name object
	err := r.walk("a module's users", mod+x86.VirtAddr(o.SourceList), maxModuleUses, func(node x86.VirtAddr) error {
		user, err := r.as.ReadPointer(node + x86.VirtAddr(use.Source-use.SourceList))
		if err != nil || !user.KernelHalf() {
			return errTorn
		}
		if err := r.read(&name, user+x86.VirtAddr(o.Name), moduleNameLen); err != nil {
			return errTorn
		}
		out = append(out, name.text(0, moduleNameLen))
		return nil
	})
	return out, err
}
