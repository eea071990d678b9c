package linux

import (
	"archive/tar"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/xen-hvi/hvi/engine/guest"
	"github.com/xen-hvi/hvi/engine/guest/guesttest"
	"github.com/xen-hvi/hvi/engine/guest/report"
	"github.com/xen-hvi/hvi/engine/printable"
	"github.com/xen-hvi/hvi/engine/x86"
)

// guestSaid are the files in which a guest of the lab's wrote down its own view
// of itself, before and after its memory was copied.
type guestSaid struct{ before, after map[string]string }

// guestSaid reads them, those alone that the views of the kernel are compared
// with. Without them the test is skipped.
func (img *testImage) guestSaid(t *testing.T, want func(name string) bool) guestSaid {
	read := func(name string) map[string]string {
		f, err := os.Open(img.file(name))
		if errors.Is(err, os.ErrNotExist) {
			t.Skipf("%s: the guest wrote nothing down", filepath.Dir(img.path))
		}
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = f.Close() }()
		files := map[string]string{}
		for tr := tar.NewReader(f); ; {
			h, err := tr.Next()
			if err == io.EOF {
				return files
			}
			if err != nil {
				t.Fatal(err)
			}
			if !want(h.Name) {
				continue
			}
			b, err := io.ReadAll(tr)
			if err != nil {
				t.Fatal(err)
			}
			files[h.Name] = string(b)
		}
	}
	return guestSaid{read("before.tar"), read("after.tar")}
}

func (img *testImage) reader(t *testing.T) *Reader {
	k, err := Identify(img.memory(t), img.Regs[0])
	if err != nil {
		t.Fatal(err)
	}
	return k.NewReader(img.Regs)
}

// mustBeComplete fails the test where a reading was not complete.
func mustBeComplete(t *testing.T, what string, reading report.Reading, err error) {
	t.Helper()
	if err != nil {
		t.Fatalf("%s: %v", what, err)
	}
	if len(reading.Incomplete) != 0 || reading.Retries != 0 {
		t.Errorf("%s: %+v", what, reading)
	}
	t.Logf("%s: %d µs", what, reading.Microseconds)
}

// TestImagesModules compares with /proc/modules and what sysfs says of each
// module.
func TestImagesModules(t *testing.T) {
	for _, img := range testImages(t) {
		t.Run(img.name(), func(t *testing.T) {
			said := img.guestSaid(t, func(name string) bool {
				return name == "proc/modules" || name == "proc/kallsyms" || strings.HasPrefix(name, "sys/module/")
			}).before
			r := img.reader(t)
			mods, err := r.Modules()
			mustBeComplete(t, "modules", mods.Reading, err)
			var got strings.Builder
			for _, m := range mods.Items {
				users := "-"
				if len(m.UsedBy) > 0 {
					users = ""
					for _, u := range m.UsedBy {
						users += string(u) + ","
					}
				}
				state := strings.ToUpper(m.State[:1]) + m.State[1:]
				if m.State == "coming" || m.State == "going" {
					state = map[string]string{"coming": "Loading", "going": "Unloading"}[m.State]
				}
				if m.Name == "virtio_blk" && m.Refcount == 0 {
					m.Refcount = 1 // the disk was open, for this very file to be written to
				}
				fmt.Fprintf(&got, "%s %d %d %s %s 0x%016x", m.Name, m.Size, m.Refcount, users, state, uint64(m.Base))
				if m.Taints != "" {
					fmt.Fprintf(&got, " (%s)", m.Taints)
				}
				got.WriteByte('\n')
				if want, ok := said["sys/module/"+string(m.Name)+"/sections/.text"]; ok && strings.TrimSpace(want) != fmt.Sprintf("0x%016x", uint64(m.Base)) {
					t.Errorf("%s: text at %v, sysfs says %s", m.Name, m.Base, want)
				}
				end := m.Base
				for _, a := range m.Regions {
					if m.State == "live" && strings.HasPrefix(a.Kind, "init") {
						t.Errorf("%s is live and has %+v", m.Name, a)
					}
					if a.Kind == "text" && a.Base != end {
						t.Errorf("%s: text at %v, not %v", m.Name, a.Base, end)
					}
				}
			}
			if want := said["proc/modules"]; got.String() != want {
				t.Errorf("modules\n%s/proc/modules\n%s", &got, want)
			}
			checkModuleSymbols(t, r, said["proc/kallsyms"])
		})
	}
}

// checkModuleSymbols asks for the place of every function outside the kernel's
// image that /proc/kallsyms knows.
func checkModuleSymbols(t *testing.T, r *Reader, kallsyms string) {
	names := map[string][]string{} // of several symbols at one place any will do
	for line := range strings.Lines(kallsyms) {
		if f := strings.Fields(line); len(f) == 4 {
			names[f[0]] = append(names[f[0]], f[2])
		}
	}
	n := map[report.Region]int{}
	for line := range strings.Lines(kallsyms) {
		f := strings.Fields(line)
		if len(f) != 4 || strings.EqualFold(f[1], "a") { // a per-CPU variable's is no address
			continue
		}
		addr, err := strconv.ParseUint(f[0], 16, 64)
		if err != nil {
			t.Fatal(err)
		}
		owner := strings.Trim(f[3], "[]")
		p := r.place(x86.VirtAddr(addr))
		n[p.In]++
		want := report.InModule
		switch owner {
		case "bpf":
			want = report.InBPF
		case "__builtin__ftrace", "__builtin__kprobes":
			want = report.InFtrace
		}
		if p.In != want || want == report.InModule && string(p.Module) != owner || p.Offset != 0 {
			t.Errorf("%s is placed at %+v", strings.TrimSpace(line), p)
			continue
		}
		if !slices.Contains(names[f[0]], string(p.Symbol)) {
			t.Errorf("%s is called %q", strings.TrimSpace(line), p.Symbol)
		}
	}
	t.Logf("places: %v", n)
}

// TestImagesLog compares with what the guest read from /dev/kmsg.
func TestImagesLog(t *testing.T) {
	for _, img := range testImages(t) {
		t.Run(img.name(), func(t *testing.T) {
			said := img.guestSaid(t, func(name string) bool { return name == "dmesg" })
			before, after := kmsg(t, said.before["dmesg"]), kmsg(t, said.after["dmesg"])
			log, err := img.reader(t).Log()
			mustBeComplete(t, "log", log.Reading, err)
			got := make([]string, len(log.Items))
			for i, rec := range log.Items {
				got[i] = fmt.Sprintf("%d,%d,%d;%s", int(rec.Facility)<<3|int(rec.Level), rec.Seq, rec.Nanoseconds/1000, rec.Message)
			}
			t.Logf("%d records, the guest read %d before and %d after", len(got), len(before), len(after))
			if len(before) == 0 || len(got) < len(before) || !slices.Equal(got[:len(before)], before) {
				t.Errorf("log begins otherwise than before:\n%s\ninstead of\n%s", strings.Join(got[:min(len(before), len(got))], "\n"), strings.Join(before, "\n"))
			}
			if len(got) > len(after) || !slices.Equal(got, after[:len(got)]) {
				t.Errorf("log goes on otherwise than after: %q", got[min(len(before), len(got)):])
			}
		})
	}
}

// kmsg makes of records of /dev/kmsg what the test compares.
func kmsg(t *testing.T, records string) []string {
	var out []string
	for line := range strings.Lines(records) {
		if strings.HasPrefix(line, " ") { // SUBSYSTEM= and the like
			continue
		}
		head, text, ok := strings.Cut(strings.TrimSuffix(line, "\n"), ";")
		f := strings.Split(head, ",")
		if !ok || len(f) < 4 {
			t.Fatalf("record %q", line)
		}
		var raw []byte
		for len(text) > 0 {
			if strings.HasPrefix(text, `\x`) && len(text) >= 4 {
				if b, err := strconv.ParseUint(text[2:4], 16, 8); err == nil {
					raw, text = append(raw, byte(b)), text[4:]
					continue
				}
			}
			raw, text = append(raw, text[0]), text[1:]
		}
		out = append(out, strings.Join(f[:3], ",")+";"+string(printable.Escape(string(raw))))
	}
	return out
}

// TestImagesSyscalls asks that every entry is the beginning of a function that
// is called as handlers are, and knows a few of them.
func TestImagesSyscalls(t *testing.T) {
	known := map[string]map[int]string{
		"sys_call_table":      {0: "__x64_sys_read", 1: "__x64_sys_write", 59: "__x64_sys_execve", 231: "__x64_sys_exit_group", 334: "__x64_sys_rseq", 435: "__x64_sys_clone3", 439: "__x64_sys_faccessat2"},
		"ia32_sys_call_table": {1: "__ia32_sys_exit", 3: "__ia32_sys_read", 11: "__ia32_compat_sys_execve", 439: "__ia32_sys_faccessat2"},
		"x32_sys_call_table":  {0: "__x64_sys_read", 520: "__x32_compat_sys_execve"},
	}
	for _, img := range testImages(t) {
		t.Run(img.name(), func(t *testing.T) {
			img.leftAlone(t)
			r := img.reader(t)
			tables, err := r.Syscalls()
			mustBeComplete(t, "syscalls", tables.Reading, err)
			_, byCode := r.k.Lookup("x64_sys_call")
			for _, table := range tables.Items {
				t.Logf("%s: %d entries, for tracing only: %v", table.Name, len(table.Entries), table.TracingOnly)
				if len(table.Entries) < 440 || table.TracingOnly != byCode {
					t.Errorf("%s: %d entries, for tracing only: %v", table.Name, len(table.Entries), table.TracingOnly)
				}
				for _, e := range table.Entries {
					name := string(e.Handler.Symbol)
					if e.Handler.In != report.InKernel || e.Handler.Offset != 0 || !strings.Contains(name, "sys_") {
						t.Errorf("%s[%d] is %+v", table.Name, e.Number, e.Handler)
					}
					if want, ok := known[table.Name][e.Number]; ok && want != name {
						t.Errorf("%s[%d] is %s, want %s", table.Name, e.Number, name, want)
					}
				}
			}
		})
	}
}

// TestImagesDescriptors compares with the processor's own idea of its segments
// and knows a few of the gates.
func TestImagesDescriptors(t *testing.T) {
	for _, img := range testImages(t) {
		t.Run(img.name(), func(t *testing.T) {
			img.leftAlone(t)
			r := img.reader(t)
			gates, err := r.Interrupts()
			mustBeComplete(t, "interrupts", gates.Reading, err)
			vectors := map[[2]int]report.Gate{}
			for _, g := range gates.Items {
				vectors[[2]int{g.CPU, g.Vector}] = g
				if (g.Handler.In != report.InKernel || g.Handler.Offset != 0) && !leftFromBoot(g) && g.Handler.Symbol != "irq_entries_start" &&
					g.Handler.Symbol != "spurious_entries_start" || g.Type != "interrupt" {
					t.Errorf("gate %+v", g)
				}
				if user := g.Vector == 3 || g.Vector == 4 || g.Vector == 0x80; user != (g.DPL == 3) {
					t.Errorf("gate %+v", g)
				}
			}
			for cpu := range img.Regs {
				if g := vectors[[2]int{cpu, 14}]; g.Handler.Symbol != "asm_exc_page_fault" || g.Handler.Offset != 0 {
					t.Errorf("page fault on CPU %d: %+v", cpu, g)
				}
				if g := vectors[[2]int{cpu, 8}]; g.IST == 0 {
					t.Errorf("double fault on CPU %d: %+v", cpu, g)
				}
			}
			segments, err := r.Segments()
			mustBeComplete(t, "segments", segments.Reading, err)
			checkSegments(t, img, segments.Items)

			// Without registers, the same by another way.
			alone := r.k.NewReader(nil)
			again, err := alone.Interrupts()
			if err != nil || len(again.Reading.Incomplete) != 1 {
				t.Errorf("without registers: %+v, %v", again.Reading, err)
			}
			for _, g := range again.Items {
				if g != vectors[[2]int{0, g.Vector}] {
					t.Errorf("without registers %+v, with them %+v", g, vectors[[2]int{0, g.Vector}])
				}
			}
			other, err := alone.Segments()
			if err != nil || len(other.Reading.Incomplete) != 1 {
				t.Errorf("without registers: %+v, %v", other.Reading, err)
			}
			for i, s := range other.Items {
				if i >= len(segments.Items) || s != segments.Items[i] {
					t.Errorf("segment without registers %+v, with them %+v", s, segments.Items)
				}
			}
		})
	}
}

// checkSegments compares with QEMU's "info registers", which shows what the
// processor loaded: "CS =0010 0000000000000000 ffffffff 00af9b00 DPL=0 CS64".
func checkSegments(t *testing.T, img testImage, segments []report.Segment) {
	b, err := os.ReadFile(img.file("registers.txt"))
	if err != nil {
		t.Fatal(err)
	}
	cpu, seen := -1, 0
	for line := range strings.Lines(string(b)) {
		if strings.HasPrefix(line, "CPU#") {
			cpu++
		}
		name, rest, ok := strings.Cut(line, "=")
		f := strings.Fields(rest)
		if !ok || !slices.Contains([]string{"CS", "SS", "TR"}, strings.TrimSpace(name)) || len(f) < 4 {
			continue
		}
		var v [4]uint64
		for i := range v {
			if v[i], err = strconv.ParseUint(f[i], 16, 64); err != nil {
				t.Fatal(err)
			}
		}
		want := report.Segment{CPU: cpu, Index: int(v[0] >> 3), Base: report.Hex(v[1]), Limit: v[2], DPL: int(v[3] >> 13 & 3), Long: v[3]>>21&1 != 0}
		want.Type = map[string]string{"CS": "code", "SS": "data", "TR": "tss"}[strings.TrimSpace(name)]
		if v[0] == 0 {
			continue
		}
		if !slices.Contains(segments, want) {
			t.Errorf("no %+v in %+v", want, segments)
		}
		seen++
	}
	if seen < 2*len(img.Regs) {
		t.Errorf("%d segments seen", seen)
	}
}

// TestImagesProbes compares with debugfs's list of kprobes and with what ftrace
// says is called.
func TestImagesProbes(t *testing.T) {
	for _, img := range testImages(t) {
		t.Run(img.name(), func(t *testing.T) {
			said := img.guestSaid(t, func(name string) bool {
				return name == "sys/kernel/debug/kprobes/list" || name == "sys/kernel/tracing/enabled_functions"
			}).before
			probes, err := img.reader(t).Probes()
			mustBeComplete(t, "probes", probes.Reading, err)
			var got []string
			handlers := map[string]bool{}
			for _, p := range probes.Items {
				t.Logf("%s at %s of %d by %s, disabled %v", p.Kind, p.Target.Symbol, p.Targets, p.Handler.Symbol, p.Disabled)
				if !p.Handler.In.Code() {
					t.Errorf("handler of %+v", p)
				}
				if p.Kind == "ftrace" {
					handlers[string(p.Handler.Symbol)] = !p.Disabled
					continue
				}
				got = append(got, fmt.Sprintf("%x %s %s+%#x", uint64(p.Target.Addr), map[string]string{"kprobe": "k", "kretprobe": "r"}[p.Kind], p.Target.Symbol, p.Target.Offset))
			}
			var want []string
			for line := range strings.Lines(said["sys/kernel/debug/kprobes/list"]) {
				f := strings.Fields(line)
				want = append(want, strings.Join(f[:3], " "))
			}
			slices.Sort(got)
			slices.Sort(want)
			if !slices.Equal(got, want) {
				t.Errorf("kprobes %q, the guest says %q", got, want)
			}
			if said["sys/kernel/tracing/enabled_functions"] != "" && !handlers["kprobe_ftrace_handler"] {
				t.Errorf("ftrace users %v, the guest says %s", handlers, said["sys/kernel/tracing/enabled_functions"])
			}
		})
	}
}

// attack is what an attack's module said that it did to the guest, "" where
// there was none.
func (img *testImage) attack(t *testing.T) string {
	b, err := os.ReadFile(img.file("modules.log"))
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		t.Fatal(err)
	}
	return string(b)
}

// leftAlone skips the test for a guest that was attacked.
func (img *testImage) leftAlone(t *testing.T) {
	if a := img.attack(t); a != "" {
		t.Skipf("an attacked guest: %s", a)
	}
}

// attacksFound is what each check finds of what an attack's module says.
var attacksFound = []struct{ did, check, object string }{
	{"module at ", "hidden-modules", "module hide"},
	{"syscall ", "syscall-table", "system call "},
	{"vector ", "interrupt-table", "vector "},
	{"security hook ", "lsm-hooks", "security hook at "},
	{"ftrace of ", "ftrace-hooks", "ftrace at "},
}

// TestImagesKernelChecks finds what attacks did, and nothing else.
func TestImagesKernelChecks(t *testing.T) {
	for _, img := range testImages(t) {
		t.Run(img.name(), func(t *testing.T) {
			r, attack := img.reader(t), img.attack(t)
			for _, c := range kernelChecks {
				var reading report.Reading
				var n int
				var found []report.Finding
				err := r.reading(&reading, func() (err error) {
					n, found, err = c.run(r)
					return err
				})
				t.Logf("%s: %d examined, %d µs, %v", c.name, n, reading.Microseconds, err)
				_, ftrace := r.k.Lookup("ftrace_ops_list")
				_, kprobes := r.k.Lookup("kprobe_table")
				i := slices.IndexFunc(attacksFound, func(a struct{ did, check, object string }) bool {
					return a.check == c.name && strings.Contains(attack, "hvi-hide: "+a.did)
				})
				switch {
				case i >= 0:
					if err != nil || len(found) != 1 || !strings.HasPrefix(string(found[0].Object), attacksFound[i].object) {
						t.Errorf("%s: %v, %+v after %s", c.name, err, found, attack)
					}
				case strings.Contains(attack, "hvi-decoy: modules") && c.name == "hidden-modules":
					// A list that is no list: not believed, and said so.
					if !errors.Is(err, ErrImplausible) {
						t.Errorf("%s: %v, %+v after %s", c.name, err, found, attack)
					}
				case errors.Is(err, ErrUnsupported) && (c.name == "ftrace-hooks" && !ftrace || c.name == "kprobes" && !kprobes):
				case err != nil || len(reading.Incomplete) > 0 || len(found) > 0:
					t.Errorf("%s: %v, %v, %+v", c.name, err, reading.Incomplete, found)
				case n == 0 && c.name != "ftrace-hooks" && c.name != "kprobes":
					t.Errorf("%s examined nothing", c.name)
				}
			}
		})
	}
}

// tampered is an image that a test changes as an attack would.
type tampered struct {
	*Reader
	t   *testing.T
	mem []byte
}

func (img *testImage) tampered(t *testing.T) *tampered {
	b, err := os.ReadFile(img.file(img.Image))
	if err != nil {
		t.Fatal(err)
	}
	k, err := Identify(guest.NewRawImage(b), img.Regs[0])
	if err != nil {
		t.Fatal(err)
	}
	return &tampered{k.NewReader(slices.Clone(img.Regs)), t, b}
}

func (g *tampered) read(va x86.VirtAddr) x86.VirtAddr {
	g.t.Helper()
	v, err := g.k.as.ReadPointer(va)
	if err != nil {
		g.t.Fatal(err)
	}
	return v
}

func (g *tampered) write(va x86.VirtAddr, v x86.VirtAddr) {
	g.t.Helper()
	to, err := g.k.as.Translate(va)
	if err != nil {
		g.t.Fatal(err)
	}
	binary.LittleEndian.PutUint64(g.mem[to.Phys:], uint64(v))
}

func (g *tampered) symbol(name string) x86.VirtAddr {
	g.t.Helper()
	va, ok := g.k.Lookup(name)
	if !ok {
		g.t.Fatalf("no symbol %s", name)
	}
	return va
}

// unlink takes a node off a list as list_del does.
func (g *tampered) unlink(node x86.VirtAddr) {
	g.t.Helper()
	next, prev := g.read(node), g.read(node+8)
	g.write(prev, next)
	g.write(next+8, prev)
}

// copied makes a copy of a page, where nobody needs what was there any more.
func (g *tampered) copied(page x86.VirtAddr) x86.VirtAddr {
	g.t.Helper()
	to := (g.k.btfStart + 2*x86.PageSize).Page()
	for off := x86.VirtAddr(0); off < x86.PageSize; off += 8 {
		g.write(to+off, g.read(page+off))
	}
	return to
}

// entry returns where in memory the entry is that maps a page.
func (g *tampered) entry(va x86.VirtAddr) x86.PhysAddr {
	g.t.Helper()
	to, err := g.k.as.Translate(va)
	if err != nil {
		g.t.Fatal(err)
	}
	leaf := map[uint64]int{guest.Page4K: 1, guest.Page2M: 2, guest.Page1G: 3}[to.PageSize]
	table := g.k.as.Root()
	for level := g.k.as.Levels(); ; level-- {
		at := table + x86.PhysAddr(uint64(va)>>(3+9*level)&0x1ff*8)
		if level == leaf {
			return at
		}
		table = x86.PhysAddr(binary.LittleEndian.Uint64(g.mem[at:]) & x86.CR3AddrMask)
	}
}

// rights changes those of a page.
func (g *tampered) rights(va x86.VirtAddr, set, clear uint64) {
	g.t.Helper()
	at := g.entry(va)
	binary.LittleEndian.PutUint64(g.mem[at:], binary.LittleEndian.Uint64(g.mem[at:])&^clear|set)
}

// module returns the address of a module.
func (g *tampered) module(name string) x86.VirtAddr {
	g.t.Helper()
	mods, err := g.Modules()
	if err != nil {
		g.t.Fatal(err)
	}
	for _, m := range mods.Items {
		if string(m.Name) == name {
			return m.Addr
		}
	}
	g.t.Fatalf("no module %s", name)
	return 0
}

// TestImagesTampered finds what attacks leave, each in a real guest's memory.
func TestImagesTampered(t *testing.T) {
	// Memory that holds data of the kernel and no code.
	nowhere := func(g *tampered) x86.VirtAddr { return g.read(g.symbol("module_kset")) }
	attacks := []struct {
		name, check string
		needs       string // a symbol
		attack      func(g *tampered)
		object      string // beginning of the finding's
	}{
		{"module off the list", "hidden-modules", "modules", func(g *tampered) {
			g.unlink(g.module("dummy") + x86.VirtAddr(g.k.Offsets.Module.List))
		}, "module dummy"},
		{"module out of every book", "hidden-modules", "modules", func(g *tampered) {
			mod, o := g.module("dummy"), &g.k.Offsets
			g.unlink(mod + x86.VirtAddr(o.Module.List))
			g.unlink(mod + x86.VirtAddr(o.Module.BugList))
			kobj := mod + 80 // module.mkobj.kobj, in every kernel here
			if g.read(kobj+64) != mod {
				g.t.Fatal("mkobj is elsewhere")
			}
			g.unlink(kobj + x86.VirtAddr(o.Kobject.Entry))
			for i := range x86.VirtAddr(2) {
				g.write(g.symbol("mod_tree")+x86.VirtAddr(o.LatchTree.Trees)+8*i, 0)
			}
		}, "4096 bytes of code at"},
		{"system call to a module", "syscall-table", "sys_call_table", func(g *tampered) {
			g.write(g.symbol("sys_call_table")+8*62, g.module("dummy"))
		}, "system call 62"},
		{"system call to data", "syscall-table", "sys_call_table", func(g *tampered) {
			g.write(g.symbol("sys_call_table")+8*217, nowhere(g))
		}, "system call 217"},
		{"gate", "interrupt-table", "idt_table", func(g *tampered) {
			gate := g.symbol("idt_table") + 14*gateSize
			at := nowhere(g)
			g.write(gate, g.read(gate)&0x0000_ffff_ffff_0000|at&0xffff|at>>16&0xffff<<48)
			g.write(gate+8, at>>32)
		}, "vector 14 of CPU 0"},
		{"IDT moved", "interrupt-table", "idt_table", func(g *tampered) {
			g.cpus[0].IDTBase = uint64(g.copied(g.symbol("idt_table")))
		}, "the IDT of CPU 0"},
		{"GDT moved", "segment-table", "gdt_page", func(g *tampered) { g.cpus[0].GDTBase = uint64(g.copied(x86.VirtAddr(g.cpus[0].GDTBase))) }, "the GDT of CPU 0"},
		{"call gate", "segment-table", "gdt_page", func(g *tampered) {
			g.write(x86.VirtAddr(g.cpus[0].GDTBase)+14*8, 0x0000_ec00_0010_0000)
		}, "entry 14 of the GDT of CPU 0"},
		{"LSTAR to data", "entry-points", "linux_banner", func(g *tampered) { g.cpus[0].LSTAR = uint64(nowhere(g)) }, "LSTAR of CPU 0"},
		{"LSTAR into a function", "entry-points", "linux_banner", func(g *tampered) { g.cpus[0].LSTAR += 9 }, "LSTAR of CPU 0"},
		{"SYSENTER", "entry-points", "linux_banner", func(g *tampered) { g.cpus[0].SysenterEIP = uint64(g.module("dummy")) }, "SYSENTER_EIP of CPU 0"},
		{"kprobe", "kprobes", "kprobe_table", func(g *tampered) {
			probes, err := g.Probes()
			if err != nil {
				g.t.Fatal(err)
			}
			if i := slices.IndexFunc(probes.Items, func(p report.Probe) bool { return p.Kind == "kprobe" }); i < 0 {
				g.t.Skip("a guest without kprobes")
			}
			g.write(probes.Items[0].Addr+x86.VirtAddr(g.k.Offsets.Kprobe.PreHandler), nowhere(g))
		}, "kprobe at"},
		{"ftrace", "ftrace-hooks", "ftrace_ops_list", func(g *tampered) {
			ops := g.read(g.symbol("ftrace_ops_list"))
			if ops == g.symbol("ftrace_list_end") {
				g.t.Skip("a guest without users of ftrace")
			}
			g.write(ops+x86.VirtAddr(g.k.Offsets.FtraceOps.Func), nowhere(g))
		}, "ftrace at"},
		{"hook list", "lsm-hooks", "security_hook_heads", func(g *tampered) {
			l := &g.k.Offsets.HookList
			node := x86.VirtAddr(0)
			for at := g.symbol("security_hook_heads"); node == 0; at += 8 {
				node = g.read(at)
			}
			g.write(node+x86.VirtAddr(l.Hook-l.List), nowhere(g))
		}, "security hook at"},
		{"static hook", "lsm-hooks", "static_calls_table", func(g *tampered) {
			key := g.read(g.symbol("static_calls_table") + x86.VirtAddr(g.k.Offsets.StaticHook.Key))
			g.write(key+x86.VirtAddr(g.k.Offsets.StaticCallKey.Func), nowhere(g))
		}, "security hook at"},
		{"pointer to a module off the list", "function-pointers", "panic_blink", func(g *tampered) {
			mod := g.module("dummy")
			m, _, err := g.copyModule(mod)
			if err != nil {
				g.t.Fatal(err)
			}
			g.unlink(mod + x86.VirtAddr(g.k.Offsets.Module.List))
			g.write(g.symbol("panic_blink"), m.Base+0x10)
		}, "pointer at "},
		{"data made executable", "executable-memory", "module_kset", func(g *tampered) {
			g.rights(nowhere(g), 0, guesttest.NX)
		}, "executable memory in the direct mapping at "},
		{"a stack made executable", "executable-memory", "init_task", func(g *tampered) {
			i := slices.IndexFunc(g.cpus, func(c x86.Registers) bool {
				return g.kernelArea(x86.VirtAddr(c.RSP)) == " in vmalloc's area"
			})
			if i < 0 {
				g.t.Skip("no processor is on a stack of vmalloc's")
			}
			g.rights(x86.VirtAddr(g.cpus[i].RSP), 0, guesttest.NX)
		}, "executable memory in vmalloc's area at "},
		{"data of the image made executable", "executable-memory", "panic_blink", func(g *tampered) {
			g.rights(g.symbol("panic_blink"), 0, guesttest.NX)
		}, "executable memory in the kernel's image at "},
		{"code made writable", "executable-memory", "linux_banner", func(g *tampered) {
			g.rights(g.k.TextStart+0x1000, guesttest.Writable, 0)
		}, "writable code in the kernel's image at "},
		{"a module's code made writable", "executable-memory", "modules", func(g *tampered) {
			m, _, err := g.copyModule(g.module("dummy"))
			if err != nil {
				g.t.Fatal(err)
			}
			g.rights(m.Base, guesttest.Writable, 0)
		}, "writable code among the modules at "},
		// It is known by this variable alone.
		{"another processor's first code", "executable-memory", "real_mode_header", func(g *tampered) {
			g.write(g.symbol("real_mode_header"), 0)
		}, "executable memory in the direct mapping at "},
		{"program to be started", "usermode-helpers", "modprobe_path", func(g *tampered) {
			g.write(g.symbol("modprobe_path"), x86.VirtAddr(binary.LittleEndian.Uint64([]byte("/tmp/a\x00\x00"))))
		}, "modprobe_path"},
	}
	for _, img := range testImages(t) {
		t.Run(img.name(), func(t *testing.T) {
			img.leftAlone(t)
			for _, a := range attacks {
				t.Run(a.name, func(t *testing.T) {
					g := img.tampered(t)
					g.t = t
					if _, ok := g.k.Lookup(a.needs); !ok {
						t.Skipf("a kernel without %s", a.needs)
					}
					a.attack(g)
					for _, c := range kernelChecks {
						_, found, err := c.run(g.Reader)
						switch {
						case c.name == a.check:
							if err != nil || len(found) != 1 || !strings.HasPrefix(string(found[0].Object), a.object) {
								t.Errorf("%s: %v, %+v", c.name, err, found)
							} else {
								t.Logf("%s: %s", found[0].Object, found[0].Detail)
							}
						case a.check == "function-pointers" && c.name == "hidden-modules" && len(found) == 1:
							// The pointer leads to a module that is hidden.
						case err != nil && !errors.Is(err, ErrUnsupported) || len(found) > 0:
							t.Errorf("%s: %v, %+v", c.name, err, found)
						}
					}
				})
			}
		})
	}
}
