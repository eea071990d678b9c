package linux

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"time"

	"github.com/xen-hvi/hvi/engine/guest/report"
	"github.com/xen-hvi/hvi/engine/x86"
)

// kernelChecks are the checks of the kernel itself.
var kernelChecks = []check{
	{"hidden-modules", "A module is loaded, or its code still is, that the kernel's list of modules doesn't have.", (*Reader).checkModules},
	{"syscall-table", "A system call leads to code that is not the kernel's own.", (*Reader).checkSyscalls},
	{"interrupt-table", "An interrupt or exception leads to code that is not the kernel's own, or a processor uses a table that is not.", (*Reader).checkInterrupts},
	{"segment-table", "A processor uses a table of segments that is not the kernel's own, or one with a gate into it.", (*Reader).checkSegments},
	{"entry-points", "A processor enters the kernel elsewhere than at the kernel's own entries for system calls.", (*Reader).checkEntryPoints},
	{"ftrace-hooks", "A function of the kernel is diverted through ftrace to code of no module and no eBPF program.", (*Reader).checkFtrace},
	{"kprobes", "A kprobe calls code of no module and no eBPF program.", (*Reader).checkKprobes},
	{"lsm-hooks", "A security module's hook is code of neither the kernel nor a module.", (*Reader).checkLSM},
	{"function-pointers", "A pointer in the kernel's writable data leads to code that belongs to nobody.", (*Reader).checkPointers},
	{"executable-memory", "The kernel can execute memory that should hold no code, or write memory that does.", (*Reader).checkExecutable},
	{"usermode-helpers", "The kernel would start a program, as root, that nobody has installed.", (*Reader).checkHelpers},
}

// A module that is being loaded or removed is for moments in some of the
// kernel's books and not in others, and what one frees may stay mapped for an
// RCU grace period. So in a guest that runs a suspicion counts only if it is
// still there after each of some more looks. They are many and come at uneven
// times, since a guest that loads and removes the same module all the time has
// the same memory in the same state every time; they take two seconds.
const (
	persistLooks = 40
	shortestWait = 25 * time.Millisecond
	longestWait  = 75 * time.Millisecond
)

// persistent looks, and again while it finds something, and returns what was
// found every time. Of an image there is one look.
func (r *Reader) persistent(look func() (int, findings, error)) (examined int, found []report.Finding, err error) {
	var left findings
	for i := 0; ; i++ {
		r.tlb.Flush()
		r.beginLook()
		if i > 0 && r.registers != nil {
			if r.cpus, err = r.registers(); err != nil {
				return 0, nil, &ReadError{What: "the registers of the virtual processors", Err: err}
			}
		}
		n, now, err := look()
		if err != nil {
			return n, nil, err
		}
		if i > 0 {
			before := map[findingKey]bool{}
			for _, f := range left {
				before[f.key] = true
			}
			now = slices.DeleteFunc(now, func(f finding) bool { return !before[f.key] })
		}
		examined, left = n, now
		if len(left) == 0 || i == persistLooks || r.wait == nil {
			for _, f := range left {
				found = append(found, f.Finding)
			}
			return examined, found, nil
		}
		r.wait(shortestWait + rand.N(longestWait-shortestWait))
	}
}

// maxFindings bounds what one check tells.
const maxFindings = 256

// findingKey tells what one check has found from all else that it may find, in
// each look: what kind of thing it is about, and its address, or its number. Where
// that leads and what it is called are no part of it: both are what an attacker can
// change between two looks.
type findingKey struct {
	kind string
	at   uint64
	// more is where memory lies that is used again and again: its frame.
	more x86.PhysAddr
}

type finding struct {
	report.Finding
	key findingKey
}

// findings collects what a check finds.
type findings []finding

func (f *findings) add(key findingKey, object, detail string, at *report.Place) {
	if len(*f) < maxFindings {
		*f = append(*f, finding{report.Finding{Object: report.Text(object), Detail: report.Text(detail), Place: at}, key})
	}
}

// onCPU is the number, for a key, of what each processor has many of.
func onCPU(cpu, number int) uint64 { return uint64(cpu)<<32 | uint64(number) }

// where says in words where a place is.
func where(p report.Place) string {
	switch {
	case p.Module != "":
		return fmt.Sprintf("%v in module %s", p.Addr, p.Module)
	case p.In == report.InUnknown:
		return fmt.Sprintf("%v, in memory that should hold no code", p.Addr)
	case p.Symbol != "":
		return fmt.Sprintf("%v, %s+%#x (%s)", p.Addr, p.Symbol, p.Offset, p.In)
	}
	return fmt.Sprintf("%v (%s)", p.Addr, p.In)
}

// checkSyscalls: every entry leads into the kernel's text.
func (r *Reader) checkSyscalls() (int, []report.Finding, error) {
	return r.persistent(func() (int, findings, error) {
		var out findings
		n := 0
		for _, name := range syscallTables {
			t, ok, err := r.syscallTable(name)
			if err != nil {
				return n, nil, err
			}
			if !ok {
				continue
			}
			for _, e := range t.Entries {
				n++
				if h := e.Handler; h.In != report.InKernel {
					out.add(findingKey{kind: t.Name, at: uint64(e.Number)}, fmt.Sprintf("system call %d", e.Number), fmt.Sprintf("%s[%d] is %s", t.Name, e.Number, where(h)), &h)
				}
			}
		}
		if n == 0 {
			return 0, nil, &ReadError{What: syscallTables[0], Err: ErrUnsupported}
		}
		return n, out, nil
	})
}

// checkInterrupts: every processor uses the kernel's table, and every gate leads
// into the kernel's text.
func (r *Reader) checkInterrupts() (int, []report.Finding, error) {
	return r.persistent(func() (int, findings, error) {
		tables, err := r.interruptTables()
		if err != nil {
			return 0, nil, err
		}
		own := map[x86.PhysAddr]bool{}
		// Before 5.8 NMI and debug exceptions have tables of their own.
		for _, name := range [...]string{"idt_table", "debug_idt_table", "bringup_idt_table"} {
			if va, err := r.variable(name); err == nil {
				if t, err := r.as.Translate(va); err == nil {
					own[t.Phys] = true
				}
			}
		}
		if len(own) == 0 {
			return 0, nil, &ReadError{What: "idt_table", Err: ErrUnsupported}
		}
		var out findings
		n := 0
		done := map[x86.PhysAddr]bool{} // all processors use one
		for _, table := range tables {
			what := fmt.Sprintf("the IDT of CPU %d", table.cpu)
			// The kernel shows it to the processor at an address of its own.
			t, err := r.as.Translate(table.base)
			if err != nil || !own[t.Phys] {
				out.add(findingKey{kind: "table", at: onCPU(table.cpu, 0)}, what, fmt.Sprintf("it is at %v and not the kernel's idt_table", table.base), nil)
			}
			if err == nil && done[t.Phys] {
				continue
			}
			done[t.Phys] = true
			var idt object
			if err := r.read(&idt, table.base, table.size); err != nil {
				return n, nil, &ReadError{What: what, Err: err}
			}
			for v := range table.size / gateSize {
				g, ok := gate(&idt, v)
				if !ok {
					continue
				}
				n++
				if r.k.inText(g.Handler.Addr) {
					continue
				}
				if g.Handler = r.place(g.Handler.Addr); g.Handler.In != report.InKernel && !leftFromBoot(g) {
					out.add(findingKey{kind: "gate", at: onCPU(table.cpu, v)}, fmt.Sprintf("vector %d of CPU %d", v, table.cpu), "its gate leads to "+where(g.Handler), &g.Handler)
				}
			}
		}
		return n, out, nil
	})
}

// checkSegments: every processor uses its own table, which has no gates.
func (r *Reader) checkSegments() (int, []report.Finding, error) {
	return r.persistent(func() (int, findings, error) {
		tables, err := r.segmentTables()
		if err != nil {
			return 0, nil, err
		}
		own, err := r.ownSegmentTables(len(tables))
		if err != nil {
			return 0, nil, err
		}
		var out findings
		n := 0
		for _, table := range tables {
			what := fmt.Sprintf("the GDT of CPU %d", table.cpu)
			if t, err := r.as.Translate(table.base); err != nil || !own[t.Phys] {
				out.add(findingKey{kind: "table", at: onCPU(table.cpu, 0)}, what, fmt.Sprintf("it is at %v and no processor's gdt_page", table.base), nil)
			}
			var gdt object
			if err := r.read(&gdt, table.base, table.size); err != nil {
				return n, nil, &ReadError{What: what, Err: err}
			}
			for i := 0; i < table.size/descriptorSize; {
				s, entries := segment(&gdt, i)
				if entries > 0 {
					n++
				}
				if strings.HasPrefix(s.Type, "type-") {
					out.add(findingKey{kind: "entry", at: onCPU(table.cpu, i)}, fmt.Sprintf("entry %d of %s", i, what), fmt.Sprintf("it is a %s descriptor, which Linux has none of", s.Type), nil)
				}
				i += max(entries, 1)
			}
		}
		return n, out, nil
	})
}

// ownSegmentTables returns where each processor's gdt_page lies.
func (r *Reader) ownSegmentTables(cpus int) (map[x86.PhysAddr]bool, error) {
	page, ok := r.k.Symbols.Lookup("gdt_page")
	if !ok || r.k.addr.perCPUOffset == 0 {
		return nil, &ReadError{What: "gdt_page", Err: ErrUnsupported}
	}
	// A processor may have another number for the kernel than for its host, and
	// some may be off.
	if n, err := r.variable("nr_cpu_ids"); err == nil {
		if v, err := r.as.ReadUint32(n); err == nil {
			cpus = max(cpus, int(min(v, maxCPUs)))
		}
	}
	own := map[x86.PhysAddr]bool{}
	for i := range min(cpus, maxCPUs) {
		area, err := r.as.ReadPointer(r.k.addr.perCPUOffset + x86.VirtAddr(i)*8)
		if err != nil {
			break
		}
		if t, err := r.as.Translate(area + page); err == nil {
			own[t.Phys] = true
		}
	}
	return own, nil
}

// checkEntryPoints: each register that says where a system call enters the
// kernel leads to the beginning of a function of its text.
func (r *Reader) checkEntryPoints() (int, []report.Finding, error) {
	if len(r.cpus) == 0 {
		return 0, nil, &ReadError{What: "MSR LSTAR", Got: "no registers", Err: ErrUnsupported}
	}
	return r.persistent(func() (n int, out findings, err error) {
		for i := range r.cpus {
			c := &r.cpus[i]
			for _, e := range [...]struct {
				name string
				addr uint64
			}{{"LSTAR", c.LSTAR}, {"CSTAR", c.CSTAR}, {"SYSENTER_EIP", c.SysenterEIP}} {
				if e.addr == 0 { // not set up: a processor that is off, or has no such call
					continue
				}
				n++
				if p := r.place(x86.VirtAddr(e.addr)); p.In != report.InKernel || p.Offset != 0 {
					out.add(findingKey{kind: e.name, at: onCPU(i, 0)}, fmt.Sprintf("%s of CPU %d", e.name, i), "it leads to "+where(p), &p)
				}
			}
		}
		if n == 0 { // a memory image without MSRs
			return 0, nil, &ReadError{What: "MSR LSTAR", Got: "0 on each processor", Err: ErrUnsupported}
		}
		return n, out, nil
	})
}

// checkKprobes: every handler is code that is known.
func (r *Reader) checkKprobes() (int, []report.Finding, error) {
	return r.checkProbes("kprobe_table", r.kprobes)
}

func (r *Reader) checkProbes(symbol string, each func(func(report.Probe)) error) (int, []report.Finding, error) {
	if _, err := r.variable(symbol); err != nil {
		return 0, nil, err
	}
	return r.persistent(func() (n int, out findings, err error) {
		err = r.consistently(symbol, func() error {
			n, out = 0, nil
			return each(func(p report.Probe) {
				n++
				if p.Handler.Addr != 0 && !p.Handler.In.Code() {
					at := "many functions"
					if p.Target.Addr != 0 {
						at = where(p.Target)
					}
					out.add(findingKey{kind: p.Kind, at: uint64(p.Addr)}, fmt.Sprintf("%s at %v", p.Kind, p.Addr), fmt.Sprintf("on %s: it calls %s", at, where(p.Handler)), &p.Handler)
				}
			})
		})
		return n, out, err
	})
}

// checkFtrace: what its users have called is code that is known, be it through
// ftrace's own code or directly.
func (r *Reader) checkFtrace() (int, []report.Finding, error) {
	n, out, err := r.checkProbes("ftrace_ops_list", r.ftraceUsers)
	if err != nil {
		return n, out, err
	}
	direct, found, err := r.persistent(r.checkDirectCalls)
	return n + direct, append(out, found...), err
}

// checkDirectCalls looks at the functions that ftrace makes call something
// directly (5.5): BPF trampolines, and what modules ask for.
func (r *Reader) checkDirectCalls() (n int, out findings, err error) {
	head, err := r.variable("direct_functions")
	if err != nil {
		return 0, nil, nil // built without
	}
	h := &r.k.Offsets.FtraceHash
	if err := need("ftrace_hash.size_bits", h.SizeBits, "ftrace_func_entry.direct", r.k.Offsets.FtraceEntry.Direct); err != nil {
		return 0, nil, err
	}
	err = r.consistently("direct_functions", func() error {
		n, out = 0, nil
		at, err := r.as.ReadPointer(head)
		if err != nil {
			return &ReadError{What: "direct_functions", Err: err}
		}
		if at == 0 {
			return nil
		}
		var hash object
		if err := r.read(&hash, at, h.Size); err != nil {
			return errTorn
		}
		return r.eachFtraceEntry(&hash, func(ip, direct x86.VirtAddr) error {
			n++
			if p := r.place(direct); direct != 0 && !p.In.Code() {
				out.add(findingKey{kind: "direct", at: uint64(ip)}, "ftrace on "+where(r.place(ip)), "it calls "+where(p)+" directly", &p)
			}
			return nil
		})
	})
	return n, out, err
}

// HookListOffsets lays out struct security_hook_list.
type HookListOffsets struct {
	Size int
	List int `c:"list"` // until 6.11
	Hook int `c:"hook"`
}

// HookHeadsOffsets lays out struct security_hook_heads (until 6.11), a list
// head for each hook.
type HookHeadsOffsets struct{ Size int }

// StaticHooksOffsets lays out struct lsm_static_calls_table (6.12), a number of
// calls for each hook.
type StaticHooksOffsets struct{ Size int }

// StaticHookOffsets lays out struct lsm_static_call.
type StaticHookOffsets struct {
	Size int
	Key  int `c:"key"`
	Hook int `c:"hl"`
}

// StaticCallKeyOffsets lays out struct static_call_key.
type StaticCallKeyOffsets struct {
	Func int `c:"func"`
}

// maxHooks bounds the security modules' hooks: there are some 250, and a dozen
// modules.
const maxHooks = 1 << 14

// checkLSM: every hook of the security modules is code that is known.
func (r *Reader) checkLSM() (int, []report.Finding, error) {
	each := r.hookLists
	if _, err := r.variable("security_hook_heads"); err != nil {
		if _, err := r.variable("static_calls_table"); err != nil {
			return 0, nil, &ReadError{What: "security_hook_heads", Err: ErrUnsupported}
		}
		each = r.staticHooks
	}
	return r.persistent(func() (n int, out findings, err error) {
		err = r.consistently("security hooks", func() error {
			n, out = 0, nil
			return each(func(at, hook x86.VirtAddr) {
				n++
				if hook == 0 || r.k.inText(hook) {
					return
				}
				if p := r.place(hook); !p.In.Code() {
					out.add(findingKey{kind: "hook", at: uint64(at)}, fmt.Sprintf("security hook at %v", at), "it calls "+where(p), &p)
				}
			})
		})
		return n, out, err
	})
}

// hookLists calls f with each hook of the lists that there are until 6.11.
func (r *Reader) hookLists(f func(at, hook x86.VirtAddr)) error {
	l, heads := &r.k.Offsets.HookList, &r.k.Offsets.HookHeads
	if err := need("security_hook_list.list", l.List, "security_hook_list.hook", l.Hook, "struct security_hook_heads", heads.Size); err != nil {
		return err
	}
	first, err := r.variable("security_hook_heads")
	if err != nil {
		return err
	}
	left := maxHooks
	for at := range x86.VirtAddr(min(heads.Size, maxHooks*8) / 8) {
		err := r.hashChain(first+at*8, left, func(node x86.VirtAddr) error {
			left--
			hook, err := r.as.ReadPointer(node + x86.VirtAddr(l.Hook-l.List))
			if err != nil {
				return errTorn
			}
			f(node-x86.VirtAddr(l.List), hook)
			return nil
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// staticHooks calls f with each hook of the table of calls that there is from
// 6.12 on: what the security module asked for, and what is really called.
func (r *Reader) staticHooks(f func(at, hook x86.VirtAddr)) error {
	c, table, l := &r.k.Offsets.StaticHook, &r.k.Offsets.StaticHooks, &r.k.Offsets.HookList
	if err := need("lsm_static_call.hl", c.Hook, "lsm_static_call.key", c.Key, "security_hook_list.hook", l.Hook,
		"struct lsm_static_calls_table", table.Size, "static_call_key.func", r.k.Offsets.StaticCallKey.Func); err != nil {
		return err
	}
	first, err := r.variable("static_calls_table")
	if err != nil {
		return err
	}
	var calls object
	if err := r.read(&calls, first, table.Size); err != nil {
		return &ReadError{What: "static_calls_table", Err: err}
	}
	for i := range min(table.Size/c.Size, maxHooks) {
		for _, pointer := range [...]struct{ member, offset int }{{c.Hook, l.Hook}, {c.Key, r.k.Offsets.StaticCallKey.Func}} {
			at := calls.pointer(i*c.Size + pointer.member)
			if at == 0 {
				continue
			}
			hook, err := r.as.ReadPointer(at + x86.VirtAddr(pointer.offset))
			if err != nil {
				return errTorn
			}
			if hook != 0 {
				f(at, hook)
			}
		}
	}
	return nil
}

// seen is a struct module and the kernel's books that have it.
type seen struct {
	addr  x86.VirtAddr
	books []string
}

// checkModules looks for modules that are not on the list, in each of the other
// books that the kernel keeps of them, and for code in the modules' memory that
// belongs to nobody.
func (r *Reader) checkModules() (int, []report.Finding, error) {
	return r.persistent(func() (int, findings, error) {
		listed := map[x86.VirtAddr]bool{}
		err := r.consistently("the list of modules", func() error {
			clear(listed)
			return r.eachModule(func(mod x86.VirtAddr) error {
				listed[mod] = true
				return nil
			})
		})
		if err != nil {
			return 0, nil, err
		}
		var hidden []seen
		n := len(listed)
		for _, book := range moduleBooks {
			var mods []x86.VirtAddr
			err := r.consistently(book.name, func() error {
				mods = mods[:0]
				return book.each(r, func(mod x86.VirtAddr) {
					if !slices.Contains(mods, mod) {
						mods = append(mods, mod)
					}
				})
			})
			if errors.Is(err, ErrUnsupported) {
				continue // not kept by this kernel
			}
			if err != nil {
				return n, nil, err
			}
			n += len(mods)
			for _, mod := range mods {
				if listed[mod] {
					continue
				}
				i := slices.IndexFunc(hidden, func(s seen) bool { return s.addr == mod })
				if i < 0 {
					i, hidden = len(hidden), append(hidden, seen{addr: mod})
				}
				hidden[i].books = append(hidden[i].books, book.name)
			}
		}
		var out findings
		var theirs codeMap
		for _, s := range hidden {
			name, at, passing := report.Text(fmt.Sprintf("at %v", s.addr)), (*report.Place)(nil), false
			if m, _, err := r.copyModule(s.addr); err == nil {
				name, passing = m.Name, m.State != moduleStates[0]
				at = &report.Place{Addr: m.Base, Module: m.Name, In: report.InUnknown}
				for _, a := range m.Regions {
					theirs.add(a.Base, a.Base+x86.VirtAddr(a.Size), report.InUnknown, "")
				}
			}
			if passing && r.wait == nil {
				r.missing("module %s: not on the list of modules, but an image can't tell whether it was only being removed", name)
				continue
			}
			out.add(findingKey{kind: "module", at: uint64(s.addr)}, "module "+string(name), "it is in "+strings.Join(s.books, ", ")+" but not on the list of modules", at)
		}
		theirs.sort()
		pages, stray, err := r.strayCode(&theirs)
		if err != nil {
			return n, nil, err
		}
		for _, s := range stray {
			out.add(findingKey{"code", uint64(s.start), s.phys}, fmt.Sprintf("%d bytes of code at %v", s.end-s.start, s.start),
				fmt.Sprintf("they are in the modules' memory, from %v in the guest's memory on, and belong to no module, eBPF program or probe", s.phys),
				&report.Place{Addr: s.start, In: report.InUnknown})
		}
		return n + pages, out, nil
	})
}

// moduleBooks are where else the kernel has its modules. A module is put on the
// list before it is put into any of them, and taken off it after or just before.
var moduleBooks = []struct {
	name string
	each func(*Reader, func(mod x86.VirtAddr)) error
}{
	{"sysfs (module_kset)", (*Reader).sysfsModules},
	{"the tree by address (mod_tree)", (*Reader).treeModules},
	{"the list of modules with BUG tables (module_bug_list)", (*Reader).bugModules},
}

// KsetOffsets lays out struct kset, a folder of sysfs.
type KsetOffsets struct {
	List int `c:"list"`
}

// KobjectOffsets lays out struct kobject.
type KobjectOffsets struct {
	Entry int `c:"entry"`
}

// ModuleKobjectOffsets lays out struct module_kobject.
type ModuleKobjectOffsets struct {
	Kobj   int `c:"kobj"`
	Module int `c:"mod"`
}

// ModuleTreeOffsets lays out struct mod_tree_node.
type ModuleTreeOffsets struct {
	Module int `c:"mod"`
	Node   int `c:"node"`
}

// LatchTreeOffsets lays out struct latch_tree_root: two trees, one of which is
// whole at any time.
type LatchTreeOffsets struct {
	Sequence int `c:"seq"`
	Trees    int `c:"tree"`
}

// sysfsModules goes through /sys/module.
func (r *Reader) sysfsModules(f func(mod x86.VirtAddr)) error {
	kset, kobj, mk := &r.k.Offsets.Kset, &r.k.Offsets.Kobject, &r.k.Offsets.ModuleKobject
	if err := need("kset.list", kset.List, "kobject.entry", kobj.Entry, "module_kobject.kobj", mk.Kobj, "module_kobject.mod", mk.Module); err != nil {
		return err
	}
	at, err := r.variable("module_kset")
	if err != nil {
		return err
	}
	set, err := r.as.ReadPointer(at)
	if err != nil {
		return &ReadError{What: "module_kset", Err: err}
	}
	if set == 0 {
		return nil // sysfs is not there yet
	}
	return r.walk("module_kset", set+x86.VirtAddr(kset.List), maxModules, func(node x86.VirtAddr) error {
		mod, err := r.as.ReadPointer(node - x86.VirtAddr(kobj.Entry) - x86.VirtAddr(mk.Kobj) + x86.VirtAddr(mk.Module))
		if err != nil {
			return errTorn
		}
		if mod != 0 { // what is built in has parameters, but no module
			f(mod)
		}
		return nil
	})
}

// bugModules goes through the list that says where a module's WARN and BUG are.
func (r *Reader) bugModules(f func(mod x86.VirtAddr)) error {
	off := r.k.Offsets.Module.BugList
	if err := need("module.bug_list", off); err != nil {
		return err
	}
	head, err := r.variable("module_bug_list")
	if err != nil {
		return err
	}
	return r.walk("module_bug_list", head, maxModules, func(node x86.VirtAddr) error {
		f(node - x86.VirtAddr(off))
		return nil
	})
}

// treeModules goes through the tree in which the kernel finds a module by an
// address of its code.
func (r *Reader) treeModules(f func(mod x86.VirtAddr)) error {
	tree, latch, rb := &r.k.Offsets.ModuleTree, &r.k.Offsets.LatchTree, &r.k.Offsets.RBNode
	if err := need("mod_tree_node.mod", tree.Module, "mod_tree_node.node", tree.Node, "latch_tree_root.seq", latch.Sequence, "latch_tree_root.tree", latch.Trees,
		"struct rb_node", rb.Size); err != nil {
		return err
	}
	root, err := r.variable("mod_tree")
	if err != nil {
		return err
	}
	seq, err := r.as.ReadUint32(root + x86.VirtAddr(latch.Sequence))
	if err != nil {
		return &ReadError{What: "mod_tree", Err: err}
	}
	which := x86.VirtAddr(seq & 1)
	const pointer = 8 // sizeof(struct rb_root)
	err = r.rbTree("mod_tree", root+x86.VirtAddr(latch.Trees)+which*pointer, maxModules*maxModuleMem, func(node x86.VirtAddr) error {
		if err := r.step(); err != nil {
			return err
		}
		node -= x86.VirtAddr(tree.Node) + which*x86.VirtAddr(rb.Size)
		mod, err := r.as.ReadPointer(node + x86.VirtAddr(tree.Module))
		if err != nil {
			return errTorn
		}
		if mod != 0 {
			f(mod)
		}
		return nil
	})
	if err != nil {
		return err
	}
	if again, err := r.as.ReadUint32(root + x86.VirtAddr(latch.Sequence)); err != nil || again != seq {
		return errTorn
	}
	return nil
}
