package linux

import (
	"encoding/binary"
	"errors"
	"runtime"
	"slices"
	"testing"

	"github.com/xen-hvi/hvi/engine/guest/linux/linuxtest"
	"github.com/xen-hvi/hvi/engine/guest/report"
	"github.com/xen-hvi/hvi/engine/x86"
)

// Where the guest of these tests keeps what it needs, from its base on.
const (
	jumpTable   = linuxtest.ROData + 0x1c_0000
	callTable   = jumpTable + 0x1000
	ftracePages = jumpTable + 0x2000
	ftraceBatch = jumpTable + 0x3000
	aKprobe     = jumpTable + 0x4000
	lockTable   = jumpTable + 0x5000

	keyAt   = 0x1100 // a branch of a static key, and where it leads to
	keyTo   = 0x1180
	shortAt = 0x1200 // a short one
	callAt  = 0x1ffd // a static call, across two pages
	traceAt = 0x2200 // a function that can be traced
	lockAt  = 0x2300 // a LOCK prefix
	codeAt  = 0x2340 // code that nothing patches

	acrossAt = 0x2ffe // such code that goes on in the next page
)

func newTextGuest(t testing.TB) *kernelGuest {
	g, k := identified(t, linuxtest.Config{Variables: variables, Data: map[string]x86.VirtAddr{
		"__start___jump_table": jumpTable, "__stop___jump_table": jumpTable + 3*jumpEntrySize,
		"__start_static_call_sites": callTable, "__stop_static_call_sites": callTable + callSiteSize,
		"ftrace_pages_start": ftracePages,
		"__smp_locks":        lockTable, "__smp_locks_end": lockTable + lockSize,
	}})
	testOffsets(&k.Offsets, false)
	k.Offsets.Kprobe.Opcode = 64
	k.Offsets.OptKprobe.Copied = 96
	k.Offsets.FtracePage = FtracePageOffsets{Size: 32, Next: 0, Records: 8, Index: 16}
	k.Offsets.FtraceRecord = FtraceRecordOffsets{Size: 16, IP: 0, Flags: 8}
	b := &kernelGuest{g, k, g.Base + structures}
	for _, name := range []string{"ftrace_ops_trampoline_list", "bpf_kallsyms", "pack_list", "module_bug_list", "modules"} {
		b.emptyList(g.Addr(name))
	}
	b.emptyList(g.Addr("kprobe_insn_slots") + 8)
	g.WriteUint64(g.Addr("ftrace_ops_list"), uint64(g.Addr("ftrace_list_end")))

	for i := range x86.VirtAddr(linuxtest.TextSize) {
		b.code(i, byte(i*7))
	}
	b.code(keyAt, 0x0f, 0x1f, 0x44, 0, 0)
	b.code(shortAt, 0x66, 0x90)
	b.code(callAt, call(callAt, keyTo)...)
	b.code(traceAt, 0x0f, 0x1f, 0x44, 0, 0)
	b.code(lockAt, 0x3e)
	toLock := lockAt - lockTable
	b.u32(g.Base+lockTable, uint32(toLock))
	for i, e := range [][2]x86.VirtAddr{{keyAt, keyTo}, {shortAt, shortAt + 0x20}, {linuxtest.Data, linuxtest.Data}} {
		at := x86.VirtAddr(jumpTable + i*jumpEntrySize)
		b.u32(g.Base+at, uint32(e[0]-at))
		b.u32(g.Base+at+4, uint32(e[1]-at-4))
	}
	toCall := callAt - callTable
	b.u32(g.Base+callTable, uint32(toCall))
	b.pointer(g.Base+ftracePages, g.Base+ftracePages+16)
	b.pointer(g.Base+ftracePages+16+8, g.Base+ftraceBatch)
	b.u32(g.Base+ftracePages+16+16, 1)
	b.pointer(g.Base+ftraceBatch, g.Base+traceAt)
	return b
}

// code writes instructions.
func (b *kernelGuest) code(at x86.VirtAddr, insn ...byte) { b.Write(b.Base+at, insn) }

// call is the instruction that calls one place from another.
func call(from, to int32) []byte {
	return binary.LittleEndian.AppendUint32([]byte{0xe8}, uint32(to-from-5))
}

func jump(from, to int32) []byte { return append([]byte{0xe9}, call(from, to)[1:]...) }

// TestImageWatch tells the kernel's own patches from others.
func TestImageWatch(t *testing.T) {
	const line = codeAt &^ (textLine - 1)
	kprobe := func(b *kernelGuest, at x86.VirtAddr, opcode byte) {
		b.pointer(b.Addr("kprobe_table")+8, b.Base+aKprobe)
		b.pointer(b.Base+aKprobe+8, b.Addr("kprobe_table")+8)
		b.pointer(b.Base+aKprobe+32, b.Base+at)
		b.Write(b.Base+aKprobe+64, []byte{opcode})
	}
	optimized := func(at int) func(b *kernelGuest) {
		var was [5]byte
		for i := range was {
			was[i] = byte((at + i) * 7)
		}
		return func(b *kernelGuest) {
			kprobe(b, x86.VirtAddr(at), was[0])
			b.Write(b.Base+aKprobe+96, was[1:])
			b.code(x86.VirtAddr(at), jump(int32(at), 0x1000)...)
		}
	}
	for _, c := range []struct {
		name string
		do   func(b *kernelGuest)
		want x86.VirtAddr // where a change is told, 0 for none
		to   report.Region
	}{
		{"nothing", func(*kernelGuest) {}, 0, ""},
		{"code", func(b *kernelGuest) { b.code(codeAt+5, 0x90) }, line, ""},
		{"a key is switched on", func(b *kernelGuest) { b.code(keyAt, jump(keyAt, keyTo)...) }, 0, ""},
		{"and leads elsewhere", func(b *kernelGuest) { b.code(keyAt, jump(keyAt, keyTo+1)...) }, keyAt, report.InKernel},
		{"a short key is switched on", func(b *kernelGuest) { b.code(shortAt, 0xeb, 0x1e) }, 0, ""},
		{"and leads elsewhere", func(b *kernelGuest) { b.code(shortAt, 0xeb, 0x1d) }, shortAt, report.InKernel},
		{"a long jump in place of a short", func(b *kernelGuest) { b.code(shortAt, jump(shortAt, shortAt+0x20)...) }, shortAt, report.InNothing},
		{"a call of another function", func(b *kernelGuest) { b.code(callAt, call(callAt, 0x3000)...) }, 0, ""},
		{"no call any more", func(b *kernelGuest) { b.code(callAt, 0x0f, 0x1f, 0x44, 0, 0) }, 0, ""},
		{"a call of data", func(b *kernelGuest) { b.code(callAt, call(callAt, linuxtest.Data+0x2000)...) }, callAt, report.InData},
		{"something else in place of a call", func(b *kernelGuest) { b.code(callAt, 0x90, 0x90) }, callAt, report.InNothing},
		{"a function is traced", func(b *kernelGuest) {
			b.code(traceAt, call(traceAt, 0x1080)...)
			b.WriteUint64(b.Base+ftraceBatch+8, 1|ftraceRecordEnabled)
		}, 0, ""},
		{"and nobody traces", func(b *kernelGuest) { b.code(traceAt, call(traceAt, 0x1080)...) }, traceAt, report.InKernel},
		{"a kprobe", func(b *kernelGuest) { kprobe(b, codeAt, byte(codeAt*7&0xff)); b.code(codeAt, 0xcc) }, 0, ""},
		{"a breakpoint without a kprobe", func(b *kernelGuest) { b.code(codeAt, 0xcc) }, line, ""},
		{"a kprobe that displaced something else", func(b *kernelGuest) { kprobe(b, codeAt, 0x90); b.code(codeAt, 0xcc) }, line, ""},
		{"an optimized kprobe", optimized(codeAt), 0, ""},
		{"an optimized kprobe across two pages", optimized(acrossAt), 0, ""},
		{"a kprobe on a key", func(b *kernelGuest) { kprobe(b, keyAt, 0x0f); b.code(keyAt, 0xcc) }, 0, ""},
		{"a second processor", func(b *kernelGuest) { b.code(lockAt, 0xf0) }, 0, ""},
		{"something else in place of a prefix", func(b *kernelGuest) { b.code(lockAt, 0x90) }, lockAt, report.InNothing},
		{"half a patch", func(b *kernelGuest) { b.code(keyAt, 0xcc) }, keyAt, report.InNothing},
	} {
		t.Run(c.name, func(t *testing.T) {
			b := newTextGuest(t)
			r := b.reader()
			w, err := r.WatchText(Taking{})
			if err != nil {
				t.Fatal(err)
			}
			if w.Pages() != linuxtest.TextSize/x86.PageSize || len(w.sites) != 5 {
				t.Fatalf("%d pages, places %+v", w.Pages(), w.sites)
			}
			c.do(b)
			got := compareAll(t, w, r)
			if c.want == 0 {
				if len(got) != 0 {
					t.Errorf("%+v", got)
				}
				return
			}
			if len(got) == 2 && got[0].Addr == (b.Base+shortAt)&^(textLine-1) {
				w.Accept(got[0]) // more than what is patched
				got = got[1:]
			}
			if len(got) != 1 || got[0].Addr != b.Base+c.want || got[0].To.In != c.to || got[0].Patch != (c.to != "") {
				t.Fatalf("%+v, want one at %v that leads to %q", got, b.Base+c.want, c.to)
			}
			w.Accept(got[0])
			if again := compareAll(t, w, r); len(again) != 0 {
				t.Errorf("told again: %+v", again)
			}
		})
	}
}

// TestImageWatchPieces reads the code page by page, with a place across two of them.
func TestImageWatchPieces(t *testing.T) {
	b := newTextGuest(t)
	r := b.reader()
	whole, err := r.WatchText(Taking{})
	if err != nil {
		t.Fatal(err)
	}
	w, err := r.watchCode(r.kernelCode(), x86.PageSize, Taking{})
	if err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(w.sites, whole.sites) || w.Pages() != whole.Pages() {
		t.Errorf("places %+v, want %+v; %d pages, want %d", w.sites, whole.sites, w.Pages(), whole.Pages())
	}
	b.code(callAt, call(callAt, 0x3000)...)
	if got := compareAll(t, w, r); len(got) != 0 {
		t.Errorf("a patch: %+v", got)
	}
	b.code(acrossAt, 0x90, 0x90, 0x90, 0x90)
	got := compareAll(t, w, r)
	if len(got) != 2 || got[0].Addr != b.Base+acrossAt&^(textLine-1) || got[1].Addr != b.Base+(acrossAt+4)&^(textLine-1) {
		t.Errorf("code across two pages: %+v", got)
	}
}

// TestImageWatchTracedProbe has a kprobe on a function that can be traced, for which the
// kernel uses the tracer and keeps no byte that was displaced, while that site is patched,
// and another kprobe in the same page.
func TestImageWatchTracedProbe(t *testing.T) {
	b := newTextGuest(t)
	r := b.reader()
	w, err := r.WatchText(Taking{})
	if err != nil {
		t.Fatal(err)
	}
	for i, at := range []x86.VirtAddr{traceAt, codeAt} {
		bucket, probe := b.Addr("kprobe_table")+8*x86.VirtAddr(i+1), b.Base+aKprobe+0x100*x86.VirtAddr(i)
		b.pointer(bucket, probe)
		b.pointer(probe+8, bucket)
		b.pointer(probe+32, b.Base+at)
		b.code(at, 0xcc)
	}
	b.u32(b.Base+aKprobe+x86.VirtAddr(b.k.Offsets.Kprobe.Flags), kprobeFtrace)
	b.Write(b.Base+aKprobe+0x100+64, []byte{byte(codeAt * 7 & 0xff)})
	got := compareAll(t, w, r)
	if len(got) != 1 || !got[0].UnderWay || got[0].Now[0] != 0xcc {
		t.Errorf("in the middle of a patch: %+v", got)
	}
	b.code(traceAt, 0x0f)
	if got := compareAll(t, w, r); len(got) != 0 {
		t.Errorf("when it is over: %+v", got)
	}
}

// TestImageWatchBegins takes a kernel's code for right while there is a kprobe in it: that
// it ends is no change.
func TestImageWatchBegins(t *testing.T) {
	b := newTextGuest(t)
	b.pointer(b.Addr("kprobe_table")+8, b.Base+aKprobe)
	b.pointer(b.Base+aKprobe+8, b.Addr("kprobe_table")+8)
	b.pointer(b.Base+aKprobe+32, b.Base+codeAt)
	was := byte(codeAt * 7 & 0xff)
	b.Write(b.Base+aKprobe+64, []byte{was})
	b.code(codeAt, 0xcc)
	r := b.reader()
	w, err := r.WatchText(Taking{})
	if err != nil {
		t.Fatal(err)
	}
	if got := compareAll(t, w, r); len(got) != 0 {
		t.Errorf("at once: %+v", got)
	}
	b.pointer(b.Addr("kprobe_table")+8, 0)
	b.code(codeAt, was)
	if got := compareAll(t, w, r); len(got) != 0 {
		t.Errorf("when it is over: %+v", got)
	}
	b.code(codeAt, 0xcc)
	if got := compareAll(t, w, r); len(got) != 1 {
		t.Errorf("a breakpoint of nobody's: %+v", got)
	}
}

// TestSharedSites has guests with the same places share them, and others not.
func TestSharedSites(t *testing.T) {
	a, b := []patchSite{{off: 1, n: 5}, {off: 9, n: 2, target: 7}}, []patchSite{{off: 1, n: 5}, {off: 9, n: 2, target: 8}}
	other := shareSites(b)
	func() { // what is known in here is not known when it ends
		first, again := shareSites(a), shareSites(slices.Clone(a))
		if first != again || first == other || (*other)[1].target != 8 {
			t.Errorf("%p, %p and, with another target, %p: %+v", first, again, other, *other)
		}
		runtime.KeepAlive(first)
	}()
	runtime.GC()
	runtime.GC()
	shareSites([]patchSite{{off: 3}})
	sharedSites.Lock()
	defer sharedSites.Unlock()
	for sum, of := range sharedSites.by {
		if s := of.Value(); s != nil && slices.Equal(*s, a) {
			t.Errorf("%#x: kept when no guest has them any more", sum)
		}
	}
	runtime.KeepAlive(other)
}

// TestSharedLines has guests with the same code share what it was; what one of them is
// told of is its own.
func TestSharedLines(t *testing.T) {
	var guests [2]*kernelGuest
	var watches [2]*ImageWatch
	for i := range guests {
		guests[i] = newTextGuest(t)
		var err error
		if watches[i], err = guests[i].reader().WatchText(Taking{}); err != nil {
			t.Fatal(err)
		}
	}
	if watches[0].sharedLines != watches[1].sharedLines || watches[0].sharedSites != watches[1].sharedSites {
		t.Error("two guests with the same code share nothing")
	}
	change := func(i int, insn byte) []ImageChange {
		t.Helper()
		guests[i].code(codeAt, insn)
		return compareAll(t, watches[i], guests[i].reader())
	}
	const other = 0x90
	was := guests[0].Mem[guests[0].PhysBase+codeAt]
	if got := change(0, other); len(got) != 1 {
		t.Fatalf("%+v", got)
	} else {
		watches[0].Accept(got[0])
	}
	if got := change(0, other); len(got) != 0 {
		t.Errorf("told again: %+v", got)
	}
	if got := change(1, other); len(got) != 1 {
		t.Errorf("in the other guest: %+v", got)
	}
	if got := change(0, was); len(got) != 0 {
		t.Errorf("as it was: %+v", got)
	}
	if got := change(0, other); len(got) != 1 {
		t.Errorf("made again: %+v", got)
	}
}

// TestTraced finds the functions of any stretch of code that can be traced, in a table of
// several batches.
func TestTraced(t *testing.T) {
	const first, second, each = ftraceBatch, ftraceBatch + 0x800, 16
	b := newTextGuest(t)
	// One batch of 70 functions, 64 bytes apart, and behind it one of three.
	record := func(at x86.VirtAddr, i int, ip x86.VirtAddr, flags uint64) {
		b.pointer(b.Base+at+x86.VirtAddr(i*each), ip)
		b.WriteUint64(b.Base+at+x86.VirtAddr(i*each)+8, flags)
	}
	var want []x86.VirtAddr
	for i := range 70 {
		ip := b.Base + x86.VirtAddr(64*i)
		record(first, i, ip, uint64(i%2)*ftraceRecordEnabled)
		want = append(want, ip)
	}
	for i := range 3 {
		ip := b.Base + 0x4000 + x86.VirtAddr(64*i)
		record(second, i, ip, ftraceRecordEnabled)
		want = append(want, ip)
	}
	next := b.Base + ftracePages + 0x100
	b.u32(b.Base+ftracePages+16+16, 70)
	b.pointer(b.Base+ftracePages+16, next)
	b.pointer(next, 0)
	b.pointer(next+8, b.Base+second)
	b.u32(next+16, 3)
	r := b.reader()
	batches, err := r.traceBatches()
	if err != nil || len(batches) != 2 {
		t.Fatalf("%+v, %v", batches, err)
	}
	for from := b.Base; from < b.Base+0x5000; from += 0x3a0 {
		for _, size := range []x86.VirtAddr{1, 0x40, 0x1000, 0x5000} {
			var expected, got []x86.VirtAddr
			for _, ip := range want {
				if ip >= from && ip < from+size {
					expected = append(expected, ip)
				}
			}
			on := 0
			if err := r.eachRecord(batches, from, from+size, func(ip x86.VirtAddr, traced bool) {
				got = append(got, ip)
				if traced {
					on++
				}
			}); err != nil {
				t.Fatal(err)
			}
			if !slices.Equal(got, expected) || len(got) > 4 && (on == 0 || on > len(got)/2+4) {
				t.Fatalf("from %v, %#x bytes: %v, %d traced, want %v", from, uint64(size), got, on, expected)
			}
		}
	}
}

// TestImageWatchUndo writes what it is told to, and the change is none any more; what the
// kernel has patched meanwhile stays.
func TestImageWatchUndo(t *testing.T) {
	for _, c := range []struct {
		name string
		page int // of the change
		do   func(b *kernelGuest)
		want int // pieces to be written
	}{
		{"code", codeAt >> x86.PageShift, func(b *kernelGuest) { b.code(codeAt+5, 0x90, 0x90); b.code(codeAt+9, 0x90) }, 2},
		{"a branch", keyAt >> x86.PageShift, func(b *kernelGuest) { b.code(keyAt, jump(keyAt, keyTo+1)...) }, 1},
		{"code beside a branch that is switched on", keyAt >> x86.PageShift, func(b *kernelGuest) {
			b.code(keyAt, jump(keyAt, keyTo)...)
			b.code(keyAt+5, 0x90)
		}, 1},
		{"a call across two pages", callAt >> x86.PageShift, func(b *kernelGuest) { b.code(callAt, 0x90, 0x90) }, 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			b := newTextGuest(t)
			r := b.reader()
			w, err := r.WatchText(Taking{})
			if err != nil {
				t.Fatal(err)
			}
			var was [x86.PageSize]byte
			if err := r.as.Read(w.start+x86.VirtAddr(c.page)<<x86.PageShift, was[:]); err != nil {
				t.Fatal(err)
			}
			c.do(b)
			changes, err := w.Compare(r, c.page)
			if err != nil || len(changes) != 1 {
				t.Fatalf("%+v, %v", changes, err)
			}
			todo := w.Undo(changes[0], &was)
			if len(todo) != c.want {
				t.Fatalf("to be written: %+v, want %d pieces", todo, c.want)
			}
			for _, x := range todo {
				b.Write(x.Addr, x.Bytes)
			}
			if left, err := w.Compare(r, c.page); err != nil || len(todo) > 0 && len(left) > 0 {
				t.Errorf("left: %+v, %v", left, err)
			}
		})
	}
	b := newTextGuest(t)
	r := b.reader()
	w, err := r.WatchText(Taking{})
	if err != nil {
		t.Fatal(err)
	}
	var half [x86.PageSize]byte
	half[keyAt&x86.PageMask] = 0xcc
	b.code(keyAt, 0x90)
	if todo := w.Undo(ImageChange{Addr: b.Base + keyAt, Now: []byte{0x90}, Patch: true}, &half); len(todo) != 0 {
		t.Errorf("what was half a patch is written again: %+v", todo)
	}
}

// TestImageWatchBegunMidway takes the code for right while the kernel is at work on each
// place that it patches. What it comes to be then is no change; an INT3 that stays is
// one, and so is what doesn't belong there.
func TestImageWatchBegunMidway(t *testing.T) {
	for _, c := range []struct {
		name   string
		at     int32
		begun  []byte // what is there when the watch begins
		during []byte // while the kernel goes on
		then   [][]byte
	}{
		{"a key's NOP", keyAt, []byte{0xcc, 0x1f, 0x44, 0, 0}, append([]byte{0xcc}, jump(keyAt, keyTo)[1:]...), [][]byte{jump(keyAt, keyTo), {0x0f, 0x1f, 0x44, 0, 0}}},
		{"a key's jump", keyAt, append([]byte{0xcc}, jump(keyAt, keyTo)[1:]...), []byte{0xcc, 0x1f, 0x44, 0, 0}, [][]byte{jump(keyAt, keyTo), {0x0f, 0x1f, 0x44, 0, 0}}},
		{"a short key's NOP", shortAt, []byte{0xcc, 0x90}, []byte{0xcc, 0x1e}, [][]byte{{0xeb, 0x1e}, {0x66, 0x90}}},
		{"a short key's jump", shortAt, []byte{0xcc, 0x1e}, []byte{0xcc, 0x90}, [][]byte{{0xeb, 0x1e}, {0x66, 0x90}}},
		{"a call", callAt, append([]byte{0xcc}, call(callAt, keyTo)[1:]...), append([]byte{0xcc}, call(callAt, 0x3000)[1:]...), [][]byte{call(callAt, 0x3000), {0x0f, 0x1f, 0x44, 0, 0}}},
		{"a call's NOP", callAt, []byte{0xcc, 0x1f, 0x44, 0, 0}, append([]byte{0xcc}, call(callAt, keyTo)[1:]...), [][]byte{call(callAt, keyTo), {0xc3, 0xcc, 0xcc, 0xcc, 0xcc}}},
		{"a function's NOP", traceAt, []byte{0xcc, 0x1f, 0x44, 0, 0}, nil, [][]byte{{0x0f, 0x1f, 0x44, 0, 0}}},
	} {
		t.Run(c.name, func(t *testing.T) {
			b := newTextGuest(t)
			b.code(x86.VirtAddr(c.at), c.begun...)
			r := b.reader()
			w, err := r.WatchText(Taking{})
			if err != nil {
				t.Fatal(err)
			}
			changes := func() (all []ImageChange) {
				for p := range w.Pages() {
					found, err := w.Compare(r, p)
					if err != nil {
						t.Fatal(err)
					}
					all = append(all, found...)
				}
				return all
			}
			for _, now := range [][]byte{c.begun, c.during} {
				if now == nil {
					continue
				}
				b.code(x86.VirtAddr(c.at), now...)
				if got := changes(); len(got) != 1 || !got[0].Patch || got[0].Addr != b.Base+x86.VirtAddr(c.at) {
					t.Errorf("with % x: %+v, want the place alone", now, got)
				}
			}
			for _, now := range c.then {
				b.code(x86.VirtAddr(c.at), now...)
				if got := changes(); len(got) != 0 {
					t.Errorf("with % x: %+v", now, got)
				}
			}
			b.code(x86.VirtAddr(c.at), 0x48, 0x31, 0xc0, 0x90, 0x90)
			if got := changes(); len(got) == 0 {
				t.Error("something else is not seen")
			}
		})
	}
}

// TestImageWatchUnsupported refuses kernels whose own patches can't be told.
func TestImageWatchUnsupported(t *testing.T) {
	_, k := identified(t, linuxtest.Config{})
	if _, err := k.NewReader(nil).WatchText(Taking{}); !errors.Is(err, ErrUnsupported) {
		t.Errorf("a kernel without a jump table: %v", err)
	}
	b := newTextGuest(t)
	b.k.Offsets.FtracePage.Records = NoOffset
	if _, err := b.reader().WatchText(Taking{}); !errors.Is(err, ErrUnsupported) {
		t.Errorf("a kernel whose functions to trace can't be told: %v", err)
	}
	for name, spoil := range map[string]func(b *kernelGuest){
		"a batch without an end": func(b *kernelGuest) { b.u32(b.Base+ftracePages+16+16, 1<<30) },
		"a circle of batches":    func(b *kernelGuest) { b.pointer(b.Base+ftracePages+16, b.Base+ftracePages+16) },
		"a pointer to nowhere":   func(b *kernelGuest) { b.pointer(b.Base+ftracePages, 8) },
	} {
		b := newTextGuest(t)
		spoil(b)
		if _, err := b.reader().WatchText(Taking{}); !errors.Is(err, ErrImplausible) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// FuzzImageWatch reads tables that a guest has made up.
func FuzzImageWatch(f *testing.F) {
	f.Add([]byte{0xe8, 1, 2, 3, 4}, uint16(keyAt), []byte{1, 0, 0, 0}, uint16(0))
	f.Add([]byte{0xcc}, uint16(codeAt), []byte{0xff, 0xff, 0xff, 0x7f}, uint16(0x2010))
	b := newTextGuest(f)
	f.Fuzz(func(t *testing.T, code []byte, at uint16, table []byte, tableAt uint16) {
		r := b.reader()
		if len(table) > 0x1000 || len(code) > 0x1000 {
			return
		}
		defer overwrite(b.Guest, b.Base+jumpTable+x86.VirtAddr(tableAt%0x4000), table)()
		w, err := r.WatchText(Taking{})
		if err != nil {
			return
		}
		defer overwrite(b.Guest, b.Base+x86.VirtAddr(at%0x4000), code)()
		for page := range w.Pages() {
			changes, err := w.Compare(r, page)
			if err != nil {
				continue
			}
			for _, c := range changes {
				w.Accept(c)
			}
			if again, err := w.Compare(r, page); err == nil && len(again) > 0 {
				t.Errorf("told again: %+v", again)
			}
		}
	})
}
