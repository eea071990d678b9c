package linux

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"fmt"
	"slices"
	"sort"

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
	// recordsAtOnce is how many records of functions are read at a time: as many as a
	// page of code has, and some.
	recordsAtOnce = 32
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

// patchedCode is some code that the kernel patches itself.
type patchedCode struct {
	where Range
	// keys calls f with each branch of a static key in it, and maybe others, and calls
	// and traced so with static calls and functions that can be traced. others does with
	// the rest.
	keys   func(f func(at x86.VirtAddr, kind siteKind, target x86.VirtAddr)) error
	calls  func(f func(at x86.VirtAddr, kind siteKind, target x86.VirtAddr)) error
	traced func(f func(at x86.VirtAddr)) error
	others func(f func(at x86.VirtAddr, kind siteKind, target x86.VirtAddr))
}

// kernelCode is the kernel's own.
func (r *Reader) kernelCode() patchedCode {
	return patchedCode{
		where: Range{r.k.TextStart, r.k.TextEnd}, keys: r.jumpTable, calls: r.staticCalls,
		traced: func(f func(at x86.VirtAddr)) error {
			return r.eachTraced(func(ip x86.VirtAddr, _ bool) { f(ip) })
		},
		others: func(f func(at x86.VirtAddr, kind siteKind, target x86.VirtAddr)) {
			r.lockPrefixes(func(at x86.VirtAddr) { f(at, siteLock, 0) })
			r.k.Symbols.eachPatched(func(at x86.VirtAddr) { f(at, siteCall, 0) })
		},
	}
}

// TraceSites are where functions of modules can be traced, in order.
type TraceSites []x86.VirtAddr

// ModuleTraceSites returns those of all modules.
func (r *Reader) ModuleTraceSites() (TraceSites, error) {
	r.tlb.Flush()
	batches, err := r.traceBatches()
	if err != nil {
		return nil, err
	}
	// A batch is of the kernel or of one module, and the kernel's are most.
	batches = slices.DeleteFunc(batches, func(b traceBatch) bool { return b.first >= r.k.TextStart && b.last < r.k.TextEnd })
	var out TraceSites
	err = r.eachRecord(batches, 0, ^x86.VirtAddr(0), func(ip x86.VirtAddr, _ bool) {
		if ip < r.k.TextStart || ip >= r.k.TextEnd {
			out = append(out, ip)
		}
	})
	slices.Sort(out)
	return out, err
}

// moduleCode is a module's. A module whose tables can't be read has none.
func (r *Reader) moduleCode(mod x86.VirtAddr, where Range, traced TraceSites) patchedCode {
	o := &r.k.Offsets.Module
	table := func(at, n, entry int) ([]byte, x86.VirtAddr, error) {
		if at < 0 || n < 0 {
			return nil, 0, nil // built without
		}
		first, err := r.as.ReadPointer(mod + x86.VirtAddr(at))
		if err != nil {
			return nil, 0, &ReadError{What: "struct module", Err: err}
		}
		count, err := r.as.ReadUint32(mod + x86.VirtAddr(n))
		if err != nil {
			return nil, 0, &ReadError{What: "struct module", Err: err}
		}
		if first == 0 || count == 0 {
			return nil, 0, nil
		}
		if uint64(count)*uint64(entry) > maxTableBytes {
			return nil, 0, &ReadError{What: "what a module has patched", Got: fmt.Sprint(count), Err: ErrImplausible}
		}
		b := make([]byte, int(count)*entry)
		if err := r.as.Read(first, b); err != nil {
			return nil, 0, &ReadError{What: "what a module has patched", Err: err}
		}
		return b, first, nil
	}
	return patchedCode{
		where: where,
		keys: func(f func(at x86.VirtAddr, kind siteKind, target x86.VirtAddr)) error {
			b, at, err := table(o.JumpEntries, o.NumJumpEntries, jumpEntrySize)
			eachKey(b, at, f)
			return err
		},
		calls: func(f func(at x86.VirtAddr, kind siteKind, target x86.VirtAddr)) error {
			b, at, err := table(o.StaticCalls, o.NumStaticCalls, callSiteSize)
			eachCall(b, at, f)
			return err
		},
		traced: func(f func(at x86.VirtAddr)) error {
			first, _ := slices.BinarySearch(traced, where.Start)
			for _, ip := range traced[first:] {
				if ip >= where.End {
					break
				}
				f(ip)
			}
			return nil
		},
		others: func(func(x86.VirtAddr, siteKind, x86.VirtAddr)) {},
	}
}

// patchSites returns the places in the code that the kernel may patch, in the order of
// their offsets from an address; of those at the same, which are sometimes told of twice,
// the one that says more comes first. How long the instruction there is, is not known yet.
func (c patchedCode) patchSites(from x86.VirtAddr) ([]patchSite, error) {
	var sites []patchSite
	// Until it is known, the length stands for who tells of the place: first those who say
	// more, which are branches, then calls.
	rank := uint8(0)
	start, end := c.where.Start, c.where.End
	add := func(at x86.VirtAddr, kind siteKind, target x86.VirtAddr) {
		if at < start || at >= end || (kind == siteKey && (target < start || target >= end)) {
			return // elsewhere, or in code that was thrown away after boot
		}
		s := patchSite{off: uint32(at - from), kind: kind, n: rank}
		if kind == siteKey {
			s.target = uint32(target - from)
		}
		sites = append(sites, s)
	}
	byPlace := func(a, b patchSite) int {
		return cmp.Compare(uint64(a.off)<<8|uint64(a.n), uint64(b.off)<<8|uint64(b.n))
	}
	if err := c.keys(add); err != nil {
		return nil, err
	}
	rank++
	if err := c.calls(add); err != nil {
		return nil, err
	}
	rank += 2
	c.others(add)
	slices.SortFunc(sites, byPlace)
	// Functions that can be traced are most of all, and the kernel has them in order.
	rest := sites
	sites, rank = make([]patchSite, 0, 4*len(rest)), 2
	if err := c.traced(func(at x86.VirtAddr) {
		if at < start || at >= end {
			return
		}
		for len(rest) > 0 && rest[0].off < uint32(at-from) {
			sites, rest = append(sites, rest[0]), rest[1:]
		}
		add(at, siteTrace, 0)
	}); err != nil {
		return nil, err
	}
	sites = append(sites, rest...)
	if !slices.IsSortedFunc(sites, byPlace) {
		slices.SortFunc(sites, byPlace)
	}
	return sites, nil
}

// patchedSymbol says that the instruction at a symbol is patched like a static
// call, without being in the table: the trampolines of static calls, ftrace's
// own calls of what traces, and the dispatchers of BPF's before 6.2.
func patchedSymbol(name []byte) bool {
	switch string(name) {
	case "ftrace_call", "ftrace_regs_call", "ftrace_graph_call":
		return true
	}
	return bytes.HasPrefix(name, []byte("__SCT__")) || bytes.HasPrefix(name, []byte("bpf_dispatcher_")) && bytes.HasSuffix(name, []byte("_func"))
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

// lengthUnderWay is length for a place at which the kernel is at work: it puts INT3 there
// first, then all of the new instruction but its first byte, and that last
// (text_poke_bp_batch in arch/x86/kernel/alternative.c). The task that does it may be
// preempted, so that each state can last. What comes behind the INT3 is the end of the
// instruction before or after, of which one is enough to know how long both are. The
// kernel's code has size bytes from where off counts.
func (s patchSite) lengthUnderWay(b []byte, size uint32) uint8 {
	const int3 = 0xcc
	if len(b) < maxPatch || b[0] != int3 {
		return 0
	}
	var whole [maxPatch]byte
	copy(whole[:], b)
	unknown := uint8(0)
	// A call or jump first: any four bytes are the end of one.
	for _, first := range []byte{0xe8, 0xe9, 0xeb, 0x0f, 0x66, 0x2e, 0xc3} {
		whole[0] = first
		n := s.length(whole[:])
		if n == 0 {
			continue
		}
		to, leads := goesTo(whole[:], x86.VirtAddr(s.off))
		switch {
		case !leads && first != 0xc3, leads && s.kind == siteKey && to == x86.VirtAddr(s.target),
			leads && s.kind != siteKey && to < x86.VirtAddr(size):
			return n
		case s.kind != siteKey && unknown == 0:
			unknown = n // a call of a module's function, or a return
		}
	}
	return unknown
}

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
	eachKey(table, at, f)
	return err
}

// eachKey calls f with each entry of a table of branches.
func eachKey(table []byte, at x86.VirtAddr, f func(at x86.VirtAddr, kind siteKind, target x86.VirtAddr)) {
	for ; len(table) > 0; table, at = table[jumpEntrySize:], at+jumpEntrySize {
		f(relative(table, at), siteKey, relative(table[4:], at+4))
	}
}

// staticCalls calls f with each static call.
func (r *Reader) staticCalls(f func(at x86.VirtAddr, kind siteKind, target x86.VirtAddr)) error {
	table, at, err := r.table("__start_static_call_sites", "__stop_static_call_sites", callSiteSize)
	eachCall(table, at, f)
	return err
}

// eachCall calls f with each entry of a table of static calls.
func eachCall(table []byte, at x86.VirtAddr, f func(at x86.VirtAddr, kind siteKind, target x86.VirtAddr)) {
	for ; len(table) > 0; table, at = table[callSiteSize:], at+callSiteSize {
		f(relative(table, at), siteCall, 0)
	}
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

// traceBatch are functions that can be traced, in the order of their addresses: the
// kernel itself looks for one by that.
type traceBatch struct {
	records     x86.VirtAddr
	n           int
	first, last x86.VirtAddr
}

// traceBatches returns all batches, those of modules included; none of a kernel that is
// built without.
func (r *Reader) traceBatches() ([]traceBatch, error) {
	const start = "ftrace_pages_start"
	o, rec := &r.k.Offsets.FtracePage, &r.k.Offsets.FtraceRecord
	head, err := r.variable(start)
	if err != nil {
		return nil, nil
	}
	if err := need("ftrace_page.next", o.Next, "ftrace_page.records", o.Records, "ftrace_page.index", o.Index,
		"dyn_ftrace.ip", rec.IP, "dyn_ftrace.flags", rec.Flags); err != nil {
		return nil, err
	}
	page, err := r.as.ReadPointer(head)
	if err != nil {
		return nil, &ReadError{What: start, Err: err}
	}
	var out []traceBatch
	var p object
	sites := 0
	for n := 0; page != 0; n++ {
		if n >= maxFtracePages {
			return nil, tooMany(start, maxFtracePages)
		}
		if err := r.read(&p, page, o.Size); err != nil {
			return nil, &ReadError{What: start, Err: err}
		}
		used := int(p.u32(o.Index))
		if sites += used; used < 0 || used*rec.Size > maxStructure || sites > maxTraceSites {
			return nil, &ReadError{What: "ftrace_page.index", Got: fmt.Sprint(used), Err: ErrImplausible}
		}
		if used > 0 {
			b := traceBatch{records: p.pointer(o.Records), n: used}
			if b.first, err = r.recordIP(b, 0); err == nil {
				b.last, err = r.recordIP(b, used-1)
			}
			if err != nil {
				return nil, err
			}
			out = append(out, b)
		}
		page = p.pointer(o.Next)
	}
	return out, nil
}

// recordIP is where the function of a record is.
func (r *Reader) recordIP(b traceBatch, i int) (x86.VirtAddr, error) {
	rec := &r.k.Offsets.FtraceRecord
	ip, err := r.as.ReadPointer(b.records + x86.VirtAddr(i*rec.Size+rec.IP))
	if err != nil {
		return 0, &ReadError{What: "ftrace_page.records", Err: err}
	}
	return ip, nil
}

// eachRecord calls f with the functions of batches in [from, to) that can be traced, and
// whether each is.
func (r *Reader) eachRecord(batches []traceBatch, from, to x86.VirtAddr, f func(ip x86.VirtAddr, on bool)) error {
	rec := &r.k.Offsets.FtraceRecord
	for _, b := range batches {
		if b.last < from || b.first >= to {
			continue
		}
		var failed error
		begin := sort.Search(b.n, func(i int) bool {
			ip, err := r.recordIP(b, i)
			failed = cmp.Or(failed, err)
			return ip >= from
		})
		if failed != nil {
			return failed
		}
		var some object
		for i := begin; i < b.n; {
			n := min(b.n-i, recordsAtOnce)
			if err := r.read(&some, b.records+x86.VirtAddr(i*rec.Size), n*rec.Size); err != nil {
				return &ReadError{What: "ftrace_page.records", Err: err}
			}
			for j := range n {
				ip := some.pointer(j*rec.Size + rec.IP)
				if ip >= to {
					i = b.n
					break
				}
				f(ip, some.u64(j*rec.Size+rec.Flags)&ftraceRecordEnabled != 0)
			}
			i += n
		}
	}
	return nil
}

// eachTraced calls f with each function that can be traced, modules' included, and
// whether it is. It does nothing for a kernel that is built without.
func (r *Reader) eachTraced(f func(ip x86.VirtAddr, enabled bool)) error {
	batches, err := r.traceBatches()
	if err != nil {
		return err
	}
	return r.eachRecord(batches, 0, ^x86.VirtAddr(0), f)
}
