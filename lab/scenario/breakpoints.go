package scenario

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/arch/x86/x86asm"

	"github.com/xen-hvi/hvi/control"
	"github.com/xen-hvi/hvi/engine/x86"
	"github.com/xen-hvi/hvi/engine/xen"
)

func init() {
	Register(Scenario{
		Name:     "breakpoints",
		Brief:    "Hidden breakpoints on a hot function: no hit is missed, the guest sees none of it, nothing is left",
		Emulator: Bochs,
		Timeout:  40 * time.Minute,
		Run:      func(t *T) error { return hiddenBreakpoints(t, 10_000, true) },
	})
	Register(Scenario{
		Name:     "breakpoints-quick",
		Brief:    "The same with a tenth of the hits, and without running out of anything",
		Emulator: Bochs,
		Timeout:  20 * time.Minute,
		Run:      func(t *T) error { return hiddenBreakpoints(t, 1_000, false) },
	})
	Register(Scenario{
		Name:     "breakpoints-debugged",
		Brief:    "A guest debugs its kernel with the processor's means where hvi has breakpoints",
		Emulator: Bochs,
		Timeout:  15 * time.Minute,
		Run:      breakpointsDebugged,
	})
}

// hot is a function that every opening of a file and every exec comes to.
const hot = "do_filp_open"

// observer is the module that looks at its own kernel, testdata/attack/observe.c.
const observer = "/sys/module/observe/parameters/"

// observe loads the observer.
func (g *Guest) observe(args string) error {
	_, err := g.Run("insmod /lib/observe.ko " + args + " && echo loaded")
	return err
}

// counted reads a number that the observer knows.
func (g *Guest) counted(name string) (uint64, error) {
	out, err := g.Run("cat " + observer + name)
	if err != nil {
		return 0, err
	}
	return strconv.ParseUint(out, 10, 64)
}

// sums returns the observer's checksums of a page of code.
func (g *Guest) sums() (string, error) { return g.Run("cat " + observer + "sum") }

// opens has the guest open files: by fork and exec, and within one process.
func (g *Guest) opens(forks, others int) error {
	out, err := g.Run(fmt.Sprintf("i=0; while [ $i -lt %d ]; do /bin/busybox true; i=$((i+1)); done; j=0; while [ $j -lt %d ]; do : </proc/uptime; j=$((j+1)); done; echo $i $j", forks, others))
	if want := fmt.Sprintf("%d %d", forks, others); err == nil && out != want {
		err = fmt.Errorf("the guest says %q of its work, want %q", out, want)
	}
	return err
}

// breakpoint is what hvid says of one.
func (g *Guest) breakpoint(symbol string) (b control.Breakpoint, st control.DomainStatus, err error) {
	if st, err = g.Status(); err != nil {
		return b, st, err
	}
	for _, b := range st.Breakpoints {
		if b.Symbol == symbol {
			return b, st, nil
		}
	}
	return b, st, fmt.Errorf("hvid knows no breakpoint at %s: %+v", symbol, st.Breakpoints)
}

// bothCount has the guest work and returns how often hvid and the guest's own
// probe have seen it come to a place meanwhile.
func (g *Guest) bothCount(symbol string, work func() error) (ours, theirs uint64, err error) {
	read := func() (uint64, uint64, error) {
		// Its own reading opens files, as often each time.
		n, err := g.counted("hits")
		if err != nil {
			return 0, 0, err
		}
		b, _, err := g.breakpoint(symbol)
		return b.Hits, n, err
	}
	ours0, theirs0, err := read()
	if err != nil {
		return 0, 0, err
	}
	if err := work(); err != nil {
		return 0, 0, err
	}
	ours, theirs, err = read()
	return ours - ours0, theirs - theirs0, err
}

func (t *T) breakpoint(verb string, g *Guest, symbol string) error {
	_, err := t.Exec("hvictl", "breakpoint", verb, g.Name, symbol)
	return err
}

// hiddenBreakpoints has the guest come to a breakpoint so often; with exhaust it
// also takes all that breakpoints need and of which there is not more.
func hiddenBreakpoints(t *T, hits int, exhaust bool) error {
	hvid, err := t.StartHVID()
	if err != nil {
		return err
	}
	g, st, err := t.protectedGuest(enforce, control.StateProtecting)
	if err != nil {
		return err
	}
	h, err := xen.Open()
	if err != nil {
		return err
	}
	defer h.Close()
	if err := g.checkViews(st); err != nil {
		return err
	}
	info, err := h.Domain(xen.DomID(g.ID))
	if err != nil {
		return err
	}
	if err := g.observe("symbol=" + hot); err != nil {
		return err
	}
	clean, err := g.sums()
	if err != nil {
		return err
	}

	// Set.
	if err := t.breakpoint("set", g, hot); err != nil {
		return err
	}
	shadow, err := g.checkHidden(h)
	if err != nil {
		return err
	}
	before, err := g.Status()
	if err != nil {
		return err
	}
	sums, err := g.sums()
	if err != nil {
		return err
	}
	after, err := g.Status()
	if err != nil {
		return err
	}
	f := strings.Fields(sums)
	t.Check(sums == clean && len(f) == 2 && f[0] == f[1], "a module of the guest's that sums the code up finds nothing in it: %q, before %q", sums, clean)
	reads := after.Counters.ShadowReads - before.Counters.ShadowReads
	t.Check(reads >= 2*x86.PageSize, "though each of its reads was seen: %d", reads)

	// Hit.
	ours, theirs, err := g.bothCount(hot, func() error { return g.opens(hits/20, hits) })
	if err != nil {
		return err
	}
	t.Fact("hits", ours)
	t.Fact("misses", int64(theirs)-int64(ours))
	t.Check(theirs > uint64(hits) && ours == theirs, "no hit is missed: the guest's own probe counted %d, hvid %d", theirs, ours)

	for _, part := range []func(*Guest) error{
		(*Guest).ownBreakpoint, func(g *Guest) error { return g.repeated(h) },
		func(g *Guest) error { return g.acrossPages(h) }, func(g *Guest) error { return g.shadowed(h) },
		func(g *Guest) error { return g.debugged(h) },
		(*Guest).attackedBeside,
		func(g *Guest) error { return g.looksForShadow(shadow) },
		(*Guest).breakpointCost,
	} {
		if err := part(g); err != nil {
			return err
		}
	}

	// Cleared.
	if err := t.breakpoint("clear", g, hot); err != nil {
		return err
	}
	if st, err = g.Status(); err != nil {
		return err
	}
	n, err := g.restrictedIn(st)
	if err != nil {
		return err
	}
	t.Check(len(st.Breakpoints) == 0 && n.inHost == 0 && n.inView == n.frames && n.frames > 0,
		"cleared, Xen restricts each page as before: %d of %d, %d in the host's view", n.inView, n.frames, n.inHost)
	sums, err = g.sums()
	if err != nil {
		return err
	}
	t.Check(sums == clean, "and the guest's code is the same: %q", sums)

	// Detached, and killed: with breakpoints set.
	if err := t.breakpoint("set", g, hot); err != nil {
		return err
	}
	if exhaust {
		if err := g.shadowsRunOut(); err != nil {
			return err
		}
	}
	if err := g.dropsShadow(shadow); err != nil {
		return err
	}
	if _, err := t.Exec("hvictl", "detach", g.Name); err != nil {
		return err
	}
	if err := g.noShadowLeft(h, info, shadow); err != nil {
		return err
	}
	if exhaust {
		if err := g.viewsRunOut(); err != nil {
			return err
		}
		if _, err := t.Exec("hvictl", "detach", g.Name); err != nil {
			return err
		}
	}
	if _, err := t.Exec("hvictl", "attach", g.Name); err != nil {
		return err
	}
	if _, err := g.WaitState(protectLimit, control.StateProtecting); err != nil {
		return err
	}
	if err := g.Load(true); err != nil {
		return err
	}
	if err := g.killedWith(hvid, hot); err != nil {
		return err
	}
	if err := g.Load(false); err != nil {
		return err
	}
	if _, err := t.Exec("hvictl", "detach", g.Name); err != nil {
		return err
	}
	if err := g.noShadowLeft(h, info, shadow); err != nil {
		return err
	}
	return g.Shutdown()
}

// killedWith kills hvid while it has a breakpoint, and starts another.
func (g *Guest) killedWith(hvid *Process, symbol string) error {
	t := g.t
	if err := t.breakpoint("set", g, symbol); err != nil {
		return err
	}
	if err := hvid.Signal(syscall.SIGKILL); err != nil {
		return err
	}
	<-hvid.Exited()
	hvid, err := t.StartHVID()
	if err != nil {
		return err
	}
	st, err := g.WaitState(protectLimit, control.StateProtecting)
	if err != nil {
		return err
	}
	if err := g.opens(2, 20); err != nil {
		return err
	}
	// The keeper has done it, unless the next hvid was quicker.
	recovered := strings.Contains(hvid.Log(), `recovered_by="the keeper"`) || strings.Contains(hvid.Log(), "msg=recovered")
	t.Check(recovered && len(st.Breakpoints) == 0, "a guest whose hvid was killed with a breakpoint set goes on, protected and without it: %+v", st.Breakpoints)
	return nil
}

// checkHidden checks, through Xen, where the frame of the breakpoint leads.
func (g *Guest) checkHidden(h *xen.Host) (control.ShadowPage, error) {
	t, dom := g.t, xen.DomID(g.ID)
	b, st, err := g.breakpoint(hot)
	if err != nil {
		return control.ShadowPage{}, err
	}
	if len(st.Views) != 3 || len(st.Views[1].Shadows) != 1 {
		return control.ShadowPage{}, fmt.Errorf("views %+v", st.Views)
	}
	s := st.Views[1].Shadows[0]
	want := []xen.Access{xen.AccessRWX, xen.AccessX, xen.AccessRX}
	for i, v := range st.Views {
		a, err := h.MemAccess(dom, s.Frame)
		if i > 0 {
			a, err = h.ViewAccess(dom, v.ID, s.Frame)
		}
		if err != nil {
			return s, err
		}
		t.Check(a == want[i], "view %d permits %s of the page with the breakpoint: %s", v.ID, want[i], a)
	}
	a, err := h.MemAccess(dom, s.Shadow)
	if err != nil {
		return s, err
	}
	t.Check(a == xen.AccessN, "and nothing of the copy where it lies: %s", a)
	for _, v := range st.Views[1:] {
		if a, err = h.ViewAccess(dom, v.ID, s.Shadow); err != nil {
			return s, err
		}
		t.Check(a == xen.AccessN, "nor in view %d: %s", v.ID, a)
	}
	pages, err := h.MapForeign(dom, []x86.GFN{s.Frame, s.Shadow}, false)
	if err != nil {
		return s, err
	}
	defer pages.Close()
	own, err := pages.Page(0)
	if err != nil {
		return s, err
	}
	ours, err := pages.Page(1)
	if err != nil {
		return s, err
	}
	differ := 0
	for i := range own {
		if own[i] != ours[i] {
			differ++
		}
	}
	off := b.Address.Offset()
	t.Check(differ == 1 && ours[off] == 0xcc && own[off] != 0xcc, "the copy differs in the breakpoint alone: %d bytes, %#x in it", differ, ours[off])
	return s, nil
}

// ownBreakpoint has the guest set a breakpoint of its own, and hvid one at the
// very same place.
func (g *Guest) ownBreakpoint() error {
	t := g.t
	if _, err := g.Run("rmmod observe; echo 0 >/proc/sys/debug/kprobes-optimization; echo off"); err != nil {
		return err
	}
	if err := g.observe("own=1 symbol=" + hot); err != nil {
		return err
	}
	at, err := g.counted("offset")
	if err != nil {
		return err
	}
	place := fmt.Sprintf("%s+%d", hot, at)
	const opens = 50
	before, err := g.Status()
	if err != nil {
		return err
	}
	ours, theirs, err := g.bothCount(hot, func() error { return g.opens(1, opens) })
	if err != nil {
		return err
	}
	after, err := g.Status()
	if err != nil {
		return err
	}
	given := after.Counters.GuestBreakpoints - before.Counters.GuestBreakpoints
	t.Check(at > 0 && theirs > opens && ours == theirs && given >= theirs, "the guest's own breakpoint at %s, beside hvid's, is the guest's: it counted %d, hvid %d, %d given back", place, theirs, ours, given)
	if err := t.breakpoint("set", g, place); err != nil {
		return err
	}
	if ours, theirs, err = g.bothCount(place, func() error { return g.opens(1, opens) }); err != nil {
		return err
	}
	t.Check(theirs > opens && ours == theirs, "and at the same place both count: the guest %d, hvid %d", theirs, ours)
	if _, err := g.Run("rmmod observe; echo gone"); err != nil {
		return err
	}
	// The guest's is gone, hvid's is not.
	b0, _, err := g.breakpoint(place)
	if err != nil {
		return err
	}
	if err := g.opens(1, opens); err != nil {
		return err
	}
	b1, _, err := g.breakpoint(place)
	if err != nil {
		return err
	}
	t.Check(b1.Hits-b0.Hits > opens, "without the guest's, hvid's still counts: %d", b1.Hits-b0.Hits)
	if err := t.breakpoint("clear", g, place); err != nil {
		return err
	}
	return g.observe("symbol=" + hot)
}

// repeated sets a breakpoint at a repeated string instruction, one that the guest
// comes to only when it is told to.
func (g *Guest) repeated(h *xen.Host) error {
	const function, copies = "copy_page", 3
	t := g.t
	place, err := g.findIn(h, []byte{0xf3, 0x48, 0xa5}, function) // rep movsq
	if err != nil {
		return err
	}
	if err := t.breakpoint("set", g, place); err != nil {
		return err
	}
	before, err := g.Status()
	if err != nil {
		return err
	}
	out, err := g.Run(fmt.Sprintf("dmesg -c >/dev/null; echo %d >%scopies; dmesg | grep hvi-observe", copies, observer))
	if err != nil {
		return err
	}
	rep, after, err := g.breakpoint(place)
	if err != nil {
		return err
	}
	turns := after.Counters.RingEvents - before.Counters.RingEvents
	t.Check(strings.Contains(out, "copied") && !strings.Contains(out, "differs"), "pages are copied right through a breakpoint at %s: %q", place, out)
	t.Check(rep.Hits == copies && turns >= copies*512, "and the 512 turns of each are one hit: %d hits, %d events", rep.Hits, turns)
	return t.breakpoint("clear", g, place)
}

// function is one of the guest's kernel, with its code.
type function struct {
	name string
	va   x86.VirtAddr
	code []byte
}

// functions reads the beginning, n bytes, of those of the named functions that the
// guest's kernel has.
func (g *Guest) functions(h *xen.Host, n int, names ...string) (fs []function, err error) {
	out, err := g.Run(withKernelSymbols("grep -w -E '(" + strings.Join(names, "|") + ")$' " + kernelSymbols))
	if err != nil {
		return nil, err
	}
	st, err := g.Status()
	if err != nil {
		return nil, err
	}
	for line := range strings.Lines(out) {
		words := strings.Fields(line)
		if len(words) != 3 || !slices.Contains(names, words[2]) {
			continue
		}
		va, err := strconv.ParseUint(words[0], 16, 64)
		if err != nil {
			return nil, err
		}
		// The kernel's code lies in a row from its base on, and is guarded so.
		off := va - uint64(st.GuestKernel.Base)
		text := st.Views[1].Restricted[0]
		var gfns []x86.GFN
		for p := off >> x86.PageShift; p <= (off+uint64(n))>>x86.PageShift && p < text.Count; p++ {
			gfns = append(gfns, text.First+x86.GFN(p))
		}
		code, err := codeOf(h, xen.DomID(g.ID), gfns)
		if err != nil {
			return nil, err
		}
		code = code[off&x86.PageMask:]
		fs = append(fs, function{words[2], x86.VirtAddr(va), code[:min(n, len(code))]})
	}
	return fs, nil
}

func codeOf(h *xen.Host, dom xen.DomID, gfns []x86.GFN) (b []byte, err error) {
	pages, err := h.MapForeign(dom, gfns, false)
	if err != nil {
		return nil, err
	}
	defer pages.Close()
	for i := range gfns {
		page, err := pages.Page(i)
		if err != nil {
			return nil, err
		}
		b = append(b, page...)
	}
	return b, nil
}

// findIn returns a place, SYMBOL+OFFSET, where one of the functions has these bytes
// among its first.
func (g *Guest) findIn(h *xen.Host, insn []byte, names ...string) (place string, err error) {
	fs, err := g.functions(h, 64, names...)
	if err != nil {
		return "", err
	}
	for _, f := range fs {
		if i := bytes.Index(f.code, insn); i >= 0 {
			return fmt.Sprintf("%s+%d", f.name, i), nil
		}
	}
	return "", fmt.Errorf("none of %q has % x", names, insn)
}

// busy are functions that a guest comes to when it forks, executes, opens files and
// ends processes.
var busy = []string{
	"path_openat", "walk_component", "link_path_walk", "do_dentry_open", "__d_lookup_rcu", "lookup_fast", "step_into", "open_last_lookups",
	"inode_permission", "generic_permission", "may_open", "terminate_walk", "dput", "__fput", "task_work_run", "kmem_cache_alloc", "kmem_cache_free",
	"seq_read_iter", "uptime_proc_show", "proc_reg_open", "copy_process", "dup_mm", "kernel_clone", "wp_page_copy", "do_wp_page", "handle_mm_fault",
	"__handle_mm_fault", "do_user_addr_fault", "filemap_map_pages", "next_uptodate_page", "unmap_page_range", "zap_pte_range", "copy_page_range",
	"free_pgtables", "unmap_vmas", "exit_mmap", "load_elf_binary", "begin_new_exec", "bprm_execve", "do_exit", "release_task", "wait_consider_task",
	"__schedule", "update_load_avg", "enqueue_task_fair", "dequeue_task_fair", "enqueue_entity", "dequeue_entity", "update_curr", "try_to_wake_up",
	"mas_walk", "mas_store_prealloc", "mas_wr_modify", "mas_next_entry", "mmap_region", "do_mmap", "vma_merge", "__vma_adjust", "get_page_from_freelist",
	"rmqueue", "__alloc_pages", "free_unref_page_list", "release_pages", "folio_batch_move_lru", "page_remove_rmap", "charge_memcg", "try_charge_memcg",
}

// acrossPages sets breakpoints at instructions that begin in one page and end in
// the next, of which the view leads to another.
func (g *Guest) acrossPages(h *xen.Host) error {
	const most, reach = 12, 3 << x86.PageShift
	t := g.t
	fs, err := g.functions(h, reach, busy...)
	if err != nil {
		return err
	}
	var places []string
	for _, f := range fs {
		end := int(x86.PageSize - f.va.Offset())
		for at := 0; at < end && len(places) < most; {
			inst, err := x86asm.Decode(f.code[at:], 64)
			if err != nil || inst.Op == x86asm.INT {
				break // behind the function's end
			}
			if at+inst.Len > end {
				places = append(places, fmt.Sprintf("%s+%d", f.name, at))
				break
			}
			at += inst.Len
		}
	}
	for _, p := range places {
		if err := t.breakpoint("set", g, p); err != nil {
			return err
		}
	}
	if err := g.opens(5, 50); err != nil {
		return err
	}
	st, err := g.Status()
	if err != nil {
		return err
	}
	hits := map[string]uint64{}
	for _, b := range st.Breakpoints {
		if slices.Contains(places, b.Symbol) && b.Hits > 0 {
			hits[b.Symbol] = b.Hits
		}
	}
	for _, p := range places {
		if err := t.breakpoint("clear", g, p); err != nil {
			return err
		}
	}
	t.Fact("hits_across_pages", hits)
	t.Check(len(hits) > 0, "instructions that lie in two pages are executed right: of %d with a breakpoint these were hit: %v", len(places), hits)
	return nil
}

// shadowed sets a breakpoint at the HLT behind an STI, where the guest waits for an
// interrupt that may not come before the HLT.
func (g *Guest) shadowed(h *xen.Host) error {
	t := g.t
	sti, err := g.findIn(h, []byte{0xfb, 0xf4}, "default_idle", "native_safe_halt", "pv_native_safe_halt")
	if err != nil {
		return err
	}
	name, off, _ := strings.Cut(sti, "+")
	n, err := strconv.Atoi(off)
	if err != nil {
		return err
	}
	place := fmt.Sprintf("%s+%d", name, n+1)
	if err := t.breakpoint("set", g, place); err != nil {
		return err
	}
	out, err := g.Run("sleep 1; sleep 1; echo awake")
	if err != nil {
		return err
	}
	b, _, err := g.breakpoint(place)
	if err != nil {
		return err
	}
	t.Check(out == "awake" && b.Hits > 1, "the guest sleeps and wakes with a breakpoint at its HLT, in the shadow of an STI: %d times", b.Hits)
	return t.breakpoint("clear", g, place)
}

// breakpointsDebugged is debugged alone.
func breakpointsDebugged(t *T) error {
	if _, err := t.StartHVID(); err != nil {
		return err
	}
	h, err := xen.Open()
	if err != nil {
		return err
	}
	defer h.Close()
	g, _, err := t.protectedGuest(enforce, control.StateProtecting)
	if err != nil {
		return err
	}
	if err := g.observe("symbol=" + hot); err != nil {
		return err
	}
	if err := g.debugged(h); err != nil {
		return err
	}
	return g.Shutdown()
}

// debugged sets breakpoints where the guest debugs its own kernel with the processor's
// means: a debug exception is due with the instruction, before it or behind it.
func (g *Guest) debugged(h *xen.Host) error {
	const function, most, times = "int_sqrt", 5, 7
	t := g.t
	say := func(parameter string, n int) (string, error) {
		out, err := g.Run(fmt.Sprintf("dmesg -c >/dev/null; echo %d >%s%s; dmesg | grep hvi-observe", n, observer, parameter))
		_, out, _ = strings.Cut(out, "hvi-observe: ")
		return out, err
	}
	steps, err := say("steps", 1_000_000)
	if err != nil {
		return err
	}
	watch, err := say("watch", times)
	if err != nil {
		return err
	}
	t.Check(strings.HasPrefix(steps, "root 1000 in ") && strings.HasSuffix(watch, fmt.Sprintf("executed %d, undisturbed %[1]d, written %[1]d", times)), "the guest debugs its kernel: %q, %q", steps, watch)

	repeated, err := g.findIn(h, []byte{0xf3, 0x48, 0xa5}, "copy_page")
	if err != nil {
		return err
	}
	places := []string{function, repeated}
	fs, err := g.functions(h, 64, function)
	if err != nil {
		return err
	}
	for at := 0; len(fs) > 0 && len(places) < most; {
		inst, err := x86asm.Decode(fs[0].code[at:], 64)
		if err != nil || inst.Op == x86asm.JMP || inst.Op == x86asm.RET {
			break
		}
		at += inst.Len
		places = append(places, fmt.Sprintf("%s+%d", function, at))
	}
	for _, p := range places {
		if err := t.breakpoint("set", g, p); err != nil {
			return err
		}
	}
	steps2, err := say("steps", 1_000_000)
	if err != nil {
		return err
	}
	hits := map[string]uint64{}
	clear := func(p string) error {
		b, _, err := g.breakpoint(p)
		hits[p] = b.Hits
		return errors.Join(err, t.breakpoint("clear", g, p))
	}
	// Where the guest has one of the processor's it may have none of hvi's, see
	// docs/tiers.md.
	if err := clear(function); err != nil {
		return err
	}
	watch2, err := say("watch", times)
	if err != nil {
		return err
	}
	for _, p := range places[1:] {
		if err := clear(p); err != nil {
			return err
		}
	}
	t.Fact("hits_debugged", hits)
	t.Check(steps2 == steps, "stepped through by the guest, a function with breakpoints takes the same steps: %q, without %q", steps2, steps)
	// Of a watch on what an instruction with a breakpoint writes some are lost to
	// interrupts, see docs/tiers.md.
	executed, written, _ := strings.Cut(watch, ", written ")
	executed2, written2, _ := strings.Cut(watch2, ", written ")
	t.Fact("watch_met", map[string]string{"with": written2, "without": written})
	t.Check(executed2 == executed, "and the processor's own breakpoints are met as often, with interrupts disabled the watch, too: %q, without %q", watch2, watch)
	t.Check(hits[function] == 1 && hits[repeated] == 2*times, "and hvi's: %v", hits)
	return nil
}

// attackedBeside checks that a page with a breakpoint is guarded as any other.
func (g *Guest) attackedBeside() error {
	before, _, err := g.breakpoint(hot)
	if err != nil {
		return err
	}
	v, err := g.Attack(Attack{Mode: "text", Symbol: hot})
	if err != nil {
		return err
	}
	g.t.Check(!v.Written && v.After == v.Before, "an attack on the very page of the breakpoint is blocked: tried %#x, after %#x", v.Tried, v.After)
	if err := g.opens(1, 10); err != nil {
		return err
	}
	after, _, err := g.breakpoint(hot)
	if err != nil {
		return err
	}
	g.t.Check(after.Hits > before.Hits+10, "and the breakpoint still stands: %d hits more", after.Hits-before.Hits)
	return nil
}

// looksForShadow has the guest read and write the place of hvi's copy.
func (g *Guest) looksForShadow(s control.ShadowPage) error {
	before, _, err := g.breakpoint(hot)
	if err != nil {
		return err
	}
	out, err := g.Run(fmt.Sprintf("dmesg -c >/dev/null; echo %#x >%speek; dmesg | grep hvi-observe", uint64(s.Shadow.Addr()), observer))
	if err != nil {
		return err
	}
	g.t.Check(strings.Contains(out, ": ffffffffffffffff, then ffffffffffffffff"), "where hvi's copy lies the guest finds no memory: %q", out)
	if err := g.opens(1, 10); err != nil {
		return err
	}
	after, st, err := g.breakpoint(hot)
	if err != nil {
		return err
	}
	g.t.Check(st.Counters.Concealed == 3 && after.Hits > before.Hits+10, "its write changed nothing: %d accesses concealed, %d hits more", st.Counters.Concealed, after.Hits-before.Hits)
	return nil
}

// dropsShadow has the guest take the page of hvi's out of its memory, whereupon Xen
// flushes the view, and waits until hvid has given the breakpoints up.
func (g *Guest) dropsShadow(s control.ShadowPage) error {
	t := g.t
	out, err := g.Run(fmt.Sprintf("dmesg -c >/dev/null; echo %#x >%sdrop; dmesg | grep hvi-observe", uint64(s.Shadow), observer))
	if err != nil {
		return err
	}
	var st control.DomainStatus
	if err := t.Eventually(restoreLimit, "hvid has given the page's breakpoints up", func() (bool, error) {
		st, err = g.Status()
		return !slices.ContainsFunc(st.Breakpoints, func(b control.Breakpoint) bool { return b.Symbol == hot }), err
	}); err != nil {
		return err
	}
	n, err := g.restrictedIn(st)
	if err != nil {
		return err
	}
	t.Check(strings.Contains(out, "dropped 1 of") && st.State == control.StateProtecting, "the guest drops hvi's page, and its protection goes on: %q, %s", out, st.State)
	t.Fact("restricted_after_drop", n)
	v, err := g.Attack(Attack{Mode: "text", Symbol: hot})
	if err != nil {
		return err
	}
	t.Check(!v.Written, "and an attack on the page that had a breakpoint is blocked: tried %#x, after %#x", v.Tried, v.After)
	return nil
}

// breakpointCost measures what a hit costs by the emulated clock, which counts
// instructions: of Xen, the control domain and hvid together.
func (g *Guest) breakpointCost() error {
	const opens = 500
	t := g.t
	timed := func() (time.Duration, error) {
		start := time.Now()
		err := g.opens(0, opens)
		return time.Since(start), err
	}
	if _, err := timed(); err != nil {
		return err
	}
	with, err := timed()
	if err != nil {
		return err
	}
	if err := t.breakpoint("clear", g, hot); err != nil {
		return err
	}
	without, err := timed()
	if err != nil {
		return err
	}
	per := (with - without).Seconds() * instructionsPerSecond / opens
	t.Fact("instructions_per_hit", int(per))
	t.Check(per > 0, "a hit costs %.0f instructions", per)
	return t.breakpoint("set", g, hot)
}

// noShadowLeft checks that nothing of breakpoints is left of a domain.
func (g *Guest) noShadowLeft(h *xen.Host, was xen.DomainInfo, s control.ShadowPage) error {
	t := g.t
	left, err := t.leftovers(g.ID)
	if err != nil {
		return err
	}
	t.Check(left.restricted == 0 && left.frames > 0 && !left.views && left.steps == 0 && !left.paused,
		"detached with a breakpoint set, none of its pages is restricted, no view is left, no step, no pause: %d of %d, %v, %d, %v", left.restricted, left.frames, left.views, left.steps, left.paused)
	now, err := h.Domain(xen.DomID(g.ID))
	if err != nil {
		return err
	}
	kind, err := h.PageFrameType(xen.DomID(g.ID), s.Shadow)
	if err != nil {
		return err
	}
	t.Check(now.MaxPages == was.MaxPages && !kind.Present(), "and no page of hvi's: limit %d pages, was %d; a page at %s: %v", now.MaxPages, was.MaxPages, s.Shadow, kind.Present())
	return nil
}

// shadowsRunOut sets breakpoints in more pages than can have a shadow.
func (g *Guest) shadowsRunOut() error {
	const most = 64
	t := g.t
	// A function of each page, by the guest's own word.
	out, err := g.Run(withKernelSymbols(fmt.Sprintf(`awk '$2 ~ /^[tT]$/ && !s[substr($1, 1, 13)]++ { print $3 }' %s | head -n %d`, kernelSymbols, 3*most)))
	if err != nil {
		return err
	}
	for _, symbol := range strings.Fields(out) {
		r, err := t.Exec("hvictl", "breakpoint", "set", g.Name, symbol)
		switch {
		case err == nil:
			continue
		case strings.Contains(r.Stderr, "have a shadow already"):
			st, err := g.Status()
			if err != nil {
				return err
			}
			t.Check(len(st.Views[1].Shadows) == most && st.State == control.StateProtecting,
				"%d pages have a shadow, the next is refused, and protection goes on: %s", len(st.Views[1].Shadows), strings.TrimSpace(r.Stderr))
			return g.opens(2, 20)
		case !strings.Contains(r.Stderr, "no symbol") && !strings.Contains(r.Stderr, "not in the kernel"):
			return fmt.Errorf("breakpoint at %s: %w: %s", symbol, err, r.Stderr)
		}
	}
	return fmt.Errorf("no breakpoint was refused, of %d", len(strings.Fields(out)))
}

// viewsRunOut has somebody else take all views that Xen can make.
func (g *Guest) viewsRunOut() error {
	t := g.t
	if _, err := t.Exec("hvictl", "attach", g.Name); err != nil {
		return err
	}
	if _, err := g.WaitState(protectLimit, control.StateProtecting); err != nil {
		return err
	}
	n, err := t.takeViews(g.ID)
	if err != nil {
		return err
	}
	r, err := t.Exec("hvictl", "breakpoint", "set", g.Name, hot)
	st, statusErr := g.Status()
	if statusErr != nil {
		return statusErr
	}
	t.Check(err != nil && n > 0 && st.State == control.StateProtecting && len(st.Breakpoints) == 0,
		"with %d views taken by others there is none for breakpoints, which is said, and protection goes on: %s, %s", n, strings.TrimSpace(r.Stderr), st.State)
	if err := g.attackIsBlocked("text"); err != nil {
		return err
	}
	return g.opens(2, 20)
}
