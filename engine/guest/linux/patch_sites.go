package linux

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"slices"
	"strings"

	"github.com/xen-hvi/hvi/engine/x86"
)

// FtracePageOffsets lays out struct ftrace_page, a batch of the functions that
// can be traced.
type FtracePageOffsets struct {
	Size    int
	Next    int `c:"next"`
	Records int `c:"records"`
	Index   int `c:"index"` // how many of them are used
}

// FtraceRecordOffsets lays out struct dyn_ftrace, one function that can be traced.
type FtraceRecordOffsets struct {
	Size  int
	IP    int `c:"ip"`
	Flags int `c:"flags"`
}

// A Linux kernel patches its own code while it runs, at places that are known
// beforehand and with instructions that are known too:
//
//   - a static key's branch is a NOP or a jump to its one target (jump_label.c);
//   - a static call is a call or jump to a function, a NOP, or a return
//     (static_call.c), and so is the trampoline of one, which modules call;
//   - a function that can be traced begins with a NOP or a call (ftrace.c);
//   - an instruction that only several processors need locked has the prefix LOCK or,
//     on one, DS (alternative.c).
//
// (All in arch/x86/kernel.) The rest changes by kprobes alone, which keep what
// they displaced.
type siteKind uint8

const (
	siteKey   siteKind = iota // a static key's branch
	siteCall                  // a static call, or its trampoline
	siteTrace                 // where a function can be traced
	siteLock                  // a LOCK prefix
)

// patchSite is such a place.
type patchSite struct {
	off    uint32 // from the start of the kernel's code
	target uint32 // of siteKey: where it may jump to, as off
	kind   siteKind
	n      uint8 // bytes that are patched
}

// Bounds of the tables: a Debian kernel has 60,000 functions that can be traced,
// 8,000 branches and 20,000 static calls.
const (
	maxTraceSites  = 1 << 18
	maxTableBytes  = 4 << 20
	maxFtracePages = 1 << 12
	jumpEntrySize  = 16 // struct jump_entry: s32 code, s32 target, s64 key
	callSiteSize   = 8  // struct static_call_site: s32 addr, s32 key
	lockSize       = 4  // s32
)

// ftraceRecordEnabled is FTRACE_FL_ENABLED (include/linux/ftrace.h): the function
// is being traced, and its code says so.
const ftraceRecordEnabled = 1 << 31

// isNOP5 says that there is a NOP as the kernel patches it in where a call was:
// that of all processors from 5.13 on, or the one that kernels before use on the
// first AMD64 ones.
func isNOP5(b []byte) bool {
	return bytes.HasPrefix(b, []byte{0x0f, 0x1f, 0x44, 0x00, 0x00}) || bytes.HasPrefix(b, []byte{0x66, 0x66, 0x66, 0x66, 0x90})
}

// patchSites returns the places in the kernel's code that it patches itself, by
// their offset. text is that code now. A place whose present instruction is none
// of those that belong there is left out, and so nothing but what it holds now is
// right for it; but for one that the kernel is patching now, which is in half.
func (r *Reader) patchSites(text []byte) (sites []patchSite, half []Range, err error) {
	add := func(at x86.VirtAddr, kind siteKind, target x86.VirtAddr) {
		start := r.k.TextStart
		if at < start || at >= r.k.TextEnd || (kind == siteKey && (target < start || target >= r.k.TextEnd)) {
			return // in code that was thrown away after boot
		}
		s := patchSite{off: uint32(at - start), kind: kind}
		if kind == siteKey {
			s.target = uint32(target - start)
		}
		if s.n = s.length(text[s.off:]); s.n > 0 {
			sites = append(sites, s)
		} else if text[s.off] == 0xcc && kind != siteLock {
			// First of all the kernel puts a breakpoint there.
			half = append(half, Range{Start: at, End: at + maxPatch})
		}
	}
	if err := r.jumpTable(add); err != nil {
		return nil, nil, err
	}
	if err := r.staticCalls(add); err != nil {
		return nil, nil, err
	}
	if err := r.eachTraced(func(ip x86.VirtAddr, _ bool) { add(ip, siteTrace, 0) }); err != nil {
		return nil, nil, err
	}
	r.lockPrefixes(func(at x86.VirtAddr) { add(at, siteLock, 0) })
	for sym := range r.k.Symbols.All() {
		if patchedSymbol(sym.Name) {
			add(sym.Addr, siteCall, 0)
		}
	}
	slices.SortStableFunc(sites, func(a, b patchSite) int { return int(a.off) - int(b.off) })
	// Where two overlap, the first says more: branches come before calls.
	end := uint32(0)
	return slices.DeleteFunc(sites, func(s patchSite) bool {
		if s.off < end {
			return true
		}
		end = s.off + uint32(s.n)
		return false
	}), half, nil
}

// patchedSymbol says that the instruction at a symbol is patched like a static
// call, without being in the table: the trampolines of static calls, ftrace's
// own calls of what traces, and the dispatchers of BPF's before 6.2.
func patchedSymbol(name string) bool {
	switch name {
	case "ftrace_call", "ftrace_regs_call", "ftrace_graph_call":
		return true
	}
	return strings.HasPrefix(name, "__SCT__") || strings.HasPrefix(name, "bpf_dispatcher_") && strings.HasSuffix(name, "_func")
}

// length is how many bytes of a place are patched, by the instruction that is
// there; 0 if it is none that the kernel puts there.
func (s patchSite) length(b []byte) uint8 {
	if len(b) < 6 {
		return 0
	}
	switch {
	case s.kind == siteLock:
		if isLock(b[0]) {
			return 1
		}
		return 0
	case isNOP5(b), b[0] == 0xe9 && s.kind != siteTrace, b[0] == 0xe8 && s.kind != siteKey:
		return 5
	case s.kind == siteKey && (b[0] == 0xeb || b[0] == 0x66 && b[1] == 0x90):
		return 2
	case s.kind != siteCall:
		return 0
	case b[0] == 0xc3, // what follows is never executed
		bytes.HasPrefix(b, []byte{0x66, 0x66, 0x48, 0x31, 0xc0}), bytes.HasPrefix(b, []byte{0x2e, 0x2e, 0x2e, 0x31, 0xc0}): // clears RAX
		return 5
	case b[0] == 0x0f && b[1]&0xf0 == 0x80: // a conditional jump
		return 6
	}
	return 0
}

// isLock says that a byte is the prefix LOCK, or the one that the kernel puts in its
// place.
func isLock(b byte) bool { return b == 0xf0 || b == 0x3e }

// goesTo returns where the instruction at a place leads; ok is false if it leads
// nowhere else.
func goesTo(b []byte, at x86.VirtAddr) (to x86.VirtAddr, ok bool) {
	rel32 := func(n int) x86.VirtAddr {
		return at + x86.VirtAddr(n) + x86.VirtAddr(int32(binary.LittleEndian.Uint32(b[n-4:])))
	}
	switch {
	case b[0] == 0xe8, b[0] == 0xe9:
		return rel32(5), true
	case b[0] == 0xeb:
		return at + 2 + x86.VirtAddr(int8(b[1])), true
	case b[0] == 0x0f && b[1]&0xf0 == 0x80:
		return rel32(6), true
	}
	return 0, false
}

// jumpTable calls f with each branch of a static key.
func (r *Reader) jumpTable(f func(at x86.VirtAddr, kind siteKind, target x86.VirtAddr)) error {
	const start = "__start___jump_table"
	if _, err := r.variable(start); err != nil {
		return err // a kernel without it, or one that doesn't tell of its data
	}
	table, at, err := r.table(start, "__stop___jump_table", jumpEntrySize)
	for ; len(table) > 0; table, at = table[jumpEntrySize:], at+jumpEntrySize {
		f(relative(table, at), siteKey, relative(table[4:], at+4))
	}
	return err
}

// staticCalls calls f with each static call.
func (r *Reader) staticCalls(f func(at x86.VirtAddr, kind siteKind, target x86.VirtAddr)) error {
	table, at, err := r.table("__start_static_call_sites", "__stop_static_call_sites", callSiteSize)
	for ; len(table) > 0; table, at = table[callSiteSize:], at+callSiteSize {
		f(relative(table, at), siteCall, 0)
	}
	return err
}

// lockPrefixes calls f with each LOCK prefix that the kernel takes away while it has one
// processor. It frees the table if it has several from the start, and never takes one
// away then: what is there instead, or that nothing is, is no matter, since the places
// that it names have no such prefix.
func (r *Reader) lockPrefixes(f func(at x86.VirtAddr)) {
	table, at, err := r.table("__smp_locks", "__smp_locks_end", lockSize)
	if err != nil {
		return
	}
	for ; len(table) > 0; table, at = table[lockSize:], at+lockSize {
		f(relative(table, at))
	}
}

// relative is the address that a 32-bit number at an address is the distance to.
func relative(b []byte, at x86.VirtAddr) x86.VirtAddr {
	return at + x86.VirtAddr(int32(binary.LittleEndian.Uint32(b)))
}

// table returns a table of the kernel's image, in whole entries, and where it
// begins; nothing for a kernel that is built without.
func (r *Reader) table(start, stop string, entry int) ([]byte, x86.VirtAddr, error) {
	from, err := r.variable(start)
	if err != nil {
		return nil, 0, nil
	}
	to, err := r.variable(stop)
	if err != nil {
		return nil, 0, err
	}
	if to < from || to-from > maxTableBytes {
		return nil, 0, &ReadError{What: start, Got: fmt.Sprintf("a table from %v to %v", from, to), Err: ErrImplausible}
	}
	b := make([]byte, int(to-from)/entry*entry)
	if err := r.as.Read(from, b); err != nil {
		return nil, 0, &ReadError{What: start, Err: err}
	}
	return b, from, nil
}

// eachTraced calls f with each function that can be traced, modules' included,
// and whether it is. It does nothing for a kernel that is built without.
func (r *Reader) eachTraced(f func(ip x86.VirtAddr, enabled bool)) error {
	const start = "ftrace_pages_start"
	o, rec := &r.k.Offsets.FtracePage, &r.k.Offsets.FtraceRecord
	head, err := r.variable(start)
	if err != nil {
		return nil
	}
	if err := need("ftrace_page.next", o.Next, "ftrace_page.records", o.Records, "ftrace_page.index", o.Index,
		"dyn_ftrace.ip", rec.IP, "dyn_ftrace.flags", rec.Flags); err != nil {
		return err
	}
	page, err := r.as.ReadPointer(head)
	if err != nil {
		return &ReadError{What: start, Err: err}
	}
	var p, batch object
	sites := 0
	for n := 0; page != 0; n++ {
		if n >= maxFtracePages {
			return tooMany(start, maxFtracePages)
		}
		if err := r.read(&p, page, o.Size); err != nil {
			return &ReadError{What: start, Err: err}
		}
		used := int(p.u32(o.Index))
		if sites += used; used < 0 || used*rec.Size > maxStructure || sites > maxTraceSites {
			return &ReadError{What: "ftrace_page.index", Got: fmt.Sprint(used), Err: ErrImplausible}
		}
		if used > 0 {
			if err := r.read(&batch, p.pointer(o.Records), used*rec.Size); err != nil {
				return &ReadError{What: "ftrace_page.records", Err: err}
			}
		}
		for i := range used {
			f(batch.pointer(i*rec.Size+rec.IP), batch.u64(i*rec.Size+rec.Flags)&ftraceRecordEnabled != 0)
		}
		page = p.pointer(o.Next)
	}
	return nil
}
