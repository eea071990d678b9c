package linux

import (
	"encoding/binary"
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/xen-hvi/hvi/engine/guest/linux/linuxtest"
	"github.com/xen-hvi/hvi/engine/x86"
)

// callerGuest is a guest whose process has called the kernel.
func callerGuest(t testing.TB, tree bool) (*linuxtest.Callers, *Callers, Task) {
	t.Helper()
	g := linuxtest.NewCallers(tree)
	k, err := Identify(g.Memory(), g.Regs[0])
	if err != nil {
		t.Fatal(err)
	}
	c, err := k.NewCallers()
	if err != nil {
		t.Fatal(err)
	}
	task, err := k.CurrentTask(&g.Regs[0])
	if err != nil {
		t.Fatal(err)
	}
	return g, c, task
}

func eachTree(t *testing.T, f func(t *testing.T, tree bool)) {
	for _, tree := range []bool{false, true} {
		t.Run(map[bool]string{false: "maple", true: "red-black"}[tree], func(t *testing.T) { f(t, tree) })
	}
}

func TestFindMapping(t *testing.T) {
	eachTree(t, func(t *testing.T, tree bool) {
		g, c, task := callerGuest(t, tree)
		mm, err := c.MM(&task)
		if err != nil || mm != g.MM {
			t.Fatal(mm, err)
		}
		var m Mapping
		if found, err := c.Find(mm, 0x40_0000, &m); found || err != nil {
			t.Errorf("without mappings: %+v, %v", m, err)
		}
		for i := range uint64(7) {
			g.MapUser(0x40_0000+i*0x3000, 0x40_1000+i*0x3000, linuxtest.MapRead|i%2*linuxtest.MapWrite|i%3*linuxtest.MapExec%8, i%2 == 0)
		}
		for i := range x86.VirtAddr(7) {
			start := 0x40_0000 + i*0x3000
			for _, at := range []x86.VirtAddr{start, start + 0x777, start + 0xfff} {
				found, err := c.Find(mm, at, &m)
				if !found || err != nil || m.Start != start || m.End != start+0x1000 || m.File() != (i%2 == 0) || m.Writable() != (i%2 == 1) || m.Executable() != (i%3 == 1) || m.Stack() || m.Special() {
					t.Errorf("%v: %t %+v, %v", at, found, m, err)
				}
			}
			for _, at := range []x86.VirtAddr{start - 1, start + 0x1000, start + 0x2fff} {
				if found, err := c.Find(mm, at, &m); found || err != nil {
					t.Errorf("%v: %t %+v, %v", at, found, m, err)
				}
			}
		}
		if found, err := c.Find(mm, 0x7fff_ffff_f000, &m); found || err != nil {
			t.Errorf("above all: %+v, %v", m, err)
		}
		if n := testing.AllocsPerRun(100, func() { _, _ = c.Find(mm, 0x40_3000, &m) }); n != 0 {
			t.Errorf("%v allocations", n)
		}
		// A guest that has bent its tree.
		g.WriteUint64(g.MM+map[bool]x86.VirtAddr{false: linuxtest.MMMaple + 8, true: linuxtest.MMTree}[tree], 0x1234)
		if found, err := c.Find(mm, 0x40_0000, &m); found || err == nil {
			t.Errorf("in a tree that leads nowhere: %+v, %v", m, err)
		}
		if _, err := c.Find(0x1000, 0x40_0000, &m); !errors.Is(err, ErrImplausible) {
			t.Errorf("in user memory: %v", err)
		}
	})
}

// TestFindMappingStops walks trees that lead to themselves.
func TestFindMappingStops(t *testing.T) {
	g, c, _ := callerGuest(t, true)
	g.MapUser(0x40_0000, 0x40_1000, 1, false)
	node, err := c.k.as.ReadPointer(g.MM + linuxtest.MMTree)
	if err != nil {
		t.Fatal(err)
	}
	g.WriteUint64(node+8, uint64(node))
	var m Mapping
	if found, err := c.Find(g.MM, 0x50_0000, &m); found || !errors.Is(err, errTorn) {
		t.Errorf("%t, %v", found, err)
	}
	g, c, _ = callerGuest(t, false)
	loop := (g.Alloc(2*linuxtest.MapleSize) + linuxtest.MapleSize - 1) &^ (linuxtest.MapleSize - 1)
	enc := uint64(loop) | 2<<mapleTypeShift | mapleInner
	g.WriteUint64(loop, uint64(g.MM)|1)
	g.WriteUint64(loop+8, ^uint64(0))
	g.WriteUint64(loop+128, enc)
	g.WriteUint64(g.MM+linuxtest.MMMaple+8, enc|mapleRoot)
	if found, err := c.Find(g.MM, 0x50_0000, &m); found || !errors.Is(err, errTorn) {
		t.Errorf("%t, %v", found, err)
	}
}

func TestUserRegs(t *testing.T) {
	g, c, _ := callerGuest(t, false)
	regs := g.Call("mm_access", 311, 0x40_0123, 0x7fff_0000, 1, 2, 3, 4)
	var u UserRegs
	want := UserRegs{RIP: 0x40_0123, RSP: 0x7fff_0000, RDI: 1, RSI: 2, RDX: 3, RCX: 4, Call: 311}
	if err := c.k.ReadUserRegs(&regs, &u); err != nil || u != want {
		t.Errorf("%+v, %v", u, err)
	}
	if n := testing.AllocsPerRun(100, func() { _ = c.k.ReadUserRegs(&regs, &u) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
	if to, err := c.k.ReturnOf(&regs); err != nil || to != g.Base+linuxtest.Entry {
		t.Errorf("returns to %v, %v", to, err)
	}
	at := g.Stack - userRegs
	g.WriteUint64(at+regsCS, userCode32)
	if err := c.k.ReadUserRegs(&regs, &u); err != nil || !u.Compat {
		t.Errorf("32-bit code: %+v, %v", u, err)
	}
	// With FRED there is something above it, and more than CS in its word.
	b := make([]byte, userRegs)
	if err := c.k.as.Read(at, b); err != nil {
		t.Fatal(err)
	}
	binary.LittleEndian.PutUint64(b[regsCS:], 0x1_0002_0000_0033)
	g.Write(at, make([]byte, userRegs))
	g.Write(at-fredPadding, b)
	if err := c.k.ReadUserRegs(&regs, &u); err != nil || u != want {
		t.Errorf("with FRED: %+v, %v", u, err)
	}
	// The kernel's own call.
	g.WriteUint64(at-fredPadding+regsCS, 0x10)
	if err := c.k.ReadUserRegs(&regs, &u); !errors.Is(err, ErrImplausible) {
		t.Errorf("a kernel thread: %v", err)
	}
	regs.RSP = 0x7000
	if err := c.k.ReadUserRegs(&regs, &u); !errors.Is(err, ErrImplausible) {
		t.Errorf("on a process' stack: %v", err)
	}
	g.WriteUint64(g.Stack-0x200, 0x40_0000)
	regs.RSP = uint64(g.Stack - 0x200)
	if to, err := c.k.ReturnOf(&regs); !errors.Is(err, ErrImplausible) {
		t.Errorf("returns to a process: %v, %v", to, err)
	}
}

func TestCallersCredentials(t *testing.T) {
	for want, change := range map[CredFault]func(*linuxtest.Callers){
		CredFine:      func(*linuxtest.Callers) {},
		CredFirst:     func(g *linuxtest.Callers) { g.WriteUint64(g.Task+linuxtest.TaskRealCred, uint64(g.Addr("init_cred"))) },
		CredElsewhere: func(g *linuxtest.Callers) { g.WriteUint64(g.Task+linuxtest.TaskCred, uint64(g.Base+0x100)) },
		CredTwo:       func(g *linuxtest.Callers) { g.WriteUint64(g.Task+linuxtest.TaskCred, uint64(g.Alloc(128))) },
		CredUser:      func(g *linuxtest.Callers) { g.WriteUint32(g.Cred+linuxtest.CredUID, 0) },
	} {
		g, c, task := callerGuest(t, false)
		change(g)
		if got := c.Credentials(&task); got != want {
			t.Errorf("%v, want %v", got, want)
		}
		if n := testing.AllocsPerRun(100, func() { c.Credentials(&task) }); n != 0 {
			t.Errorf("%v allocations", n)
		}
	}
	words := map[string]bool{}
	for f := CredFine; f <= CredUser; f++ {
		words[f.String()] = true
	}
	if len(words) != int(CredUser)+1 {
		t.Errorf("words %v", words)
	}
}

func TestStacks(t *testing.T) {
	g, c, task := callerGuest(t, false)
	for at, want := range map[x86.VirtAddr]bool{0x7f_ffff: false, 0x80_0000: true, 0x81_ffff: true, 0x82_0000: false} {
		if got := c.Heap(g.MM, at); got != want {
			t.Errorf("heap at %v: %t", at, got)
		}
	}
	if c.OnAltStack(&task, 0) {
		t.Error("a task without one is on it")
	}
	g.WriteUint64(g.Task+linuxtest.TaskAltStack, 0x81_0000)
	g.WriteUint64(g.Task+linuxtest.TaskAltStackSize, 0x2000)
	for at, want := range map[x86.VirtAddr]bool{0x80_ffff: false, 0x81_0000: true, 0x81_2000: true, 0x81_2001: false} {
		if got := c.OnAltStack(&task, at); got != want {
			t.Errorf("signals' stack at %v: %t", at, got)
		}
	}
}

func TestNames(t *testing.T) {
	g, c, task := callerGuest(t, false)
	var n ProcessNames
	read := func() (comm, program string) {
		c.Names(&task, &n)
		return strings.TrimRight(string(n.Comm[:]), "\x00"), string(n.Program[:slices.Index(n.Program[:], 0)])
	}
	if comm, program := read(); comm != "front" || program != "nginx" {
		t.Errorf("%q, %q", comm, program)
	}
	if a := testing.AllocsPerRun(100, func() { c.Names(&task, &n) }); a != 0 {
		t.Errorf("%v allocations", a)
	}
	g.SetProgram(strings.Repeat("long", 40))
	if comm, program := read(); comm != "front" || program != strings.Repeat("long", 40)[:63] {
		t.Errorf("%q, %q", comm, program)
	}
	g.WriteUint64(g.MM+linuxtest.MMExe, 0)
	if comm, program := read(); comm != "front" || program != "" {
		t.Errorf("%q, %q", comm, program)
	}
	other := g.Other(300, "sshd")
	if err := c.k.ReadTaskAt(other, &task); err != nil || task.TGID != 300 || task.Name() != "sshd" {
		t.Fatalf("%+v, %v", task, err)
	}
	if comm, program := read(); comm != "sshd" || program != "" {
		t.Errorf("%q, %q", comm, program)
	}
	for _, at := range []x86.VirtAddr{0, 0x1000, other + 1, 0xffff_ffff_ffff_f000} {
		if err := c.k.ReadTaskAt(at, &task); err == nil {
			t.Errorf("a task at %v", at)
		}
	}
}

// TestNewCallersWithoutTypes: a kernel whose types don't tell is refused.
func TestNewCallersWithoutTypes(t *testing.T) {
	g := linuxtest.New(linuxtest.Config{})
	k, err := Identify(g.Memory(), g.Regs[0])
	if err != nil {
		t.Fatal(err)
	}
	if _, err := k.NewCallers(); !errors.Is(err, ErrUnsupported) {
		t.Errorf("%v", err)
	}
}

// FuzzFindMapping has a hostile guest bend the tree of a process' mappings.
func FuzzFindMapping(f *testing.F) {
	for _, seed := range []string{"", "\x00\x01\x02\x03\x04\x05", strings.Repeat("\x10\x00\x80\x10\x00\x01", 9)} {
		f.Add(false, uint64(0x40_3000), []byte(seed))
		f.Add(true, uint64(0x40_3000), []byte(seed))
	}
	type built struct {
		g     *linuxtest.Callers
		c     *Callers
		image []byte
	}
	const room = 0x2_0000
	var guests [2]built
	memory := func(g *linuxtest.Callers) []byte {
		return g.Mem[g.PhysBase+x86.PhysAddr(linuxtest.HeapStart):][:room]
	}
	for i := range guests {
		g, c, _ := callerGuest(f, i == 1)
		for n := range uint64(7) {
			g.MapUser(0x40_0000+n*0x3000, 0x40_1000+n*0x3000, 1, false)
		}
		guests[i] = built{g, c, slices.Clone(memory(g))}
	}
	f.Fuzz(func(t *testing.T, tree bool, at uint64, data []byte) {
		b := guests[0]
		if tree {
			b = guests[1]
		}
		copy(memory(b.g), b.image)
		heap := b.g.Base + linuxtest.HeapStart
		for len(data) >= 6 {
			where := heap + x86.VirtAddr(binary.LittleEndian.Uint16(data))*8%room
			v := uint64(binary.LittleEndian.Uint16(data[2:]))
			switch data[4] & 3 {
			case 0:
				v = uint64(heap) + v*8%room + uint64(data[5]&0x3f)
			case 1:
				v = ^v
			case 2:
				v = 0x40_0000 + v<<4
			}
			b.g.WriteUint64(where, v)
			data = data[6:]
		}
		var m Mapping
		found, err := b.c.Find(b.g.MM, x86.VirtAddr(at), &m)
		if found && (err != nil || x86.VirtAddr(at) < m.Start || x86.VirtAddr(at) >= m.End || m.End.KernelHalf()) {
			t.Errorf("%#x found in %+v, %v", at, m, err)
		}
	})
}

// TestImageFindMapping finds each mapping of each process as [Reader.Maps] tells of them.
func TestImageFindMapping(t *testing.T) {
	for _, img := range testImages(t) {
		t.Run(img.name(), func(t *testing.T) {
			k, err := Identify(img.memory(t), img.Regs[0])
			if err != nil {
				t.Fatal(err)
			}
			c, err := k.NewCallers()
			if err != nil {
				t.Fatal(err)
			}
			r := k.NewReader(img.Regs)
			list, err := r.Processes()
			if err != nil {
				t.Fatal(err)
			}
			n, stacks := 0, 0
			for _, p := range list.Items {
				var task Task
				if err := k.ReadTaskAt(p.Task, &task); err != nil || task.PID != p.PID {
					t.Fatalf("process %d: %+v, %v", p.PID, task, err)
				}
				if fault := c.Credentials(&task); fault != CredFine {
					t.Errorf("process %d %v", p.PID, fault)
				}
				var names ProcessNames
				c.Names(&task, &names)
				program := string(names.Program[:slices.Index(names.Program[:], 0)])
				if exe := strings.TrimSuffix(string(p.Exe), " (deleted)"); program != exe[strings.LastIndex(exe, "/")+1:] {
					t.Errorf("process %d: program %q of %q", p.PID, program, exe)
				}
				if p.KernelThread || p.MM == 0 {
					continue
				}
				maps, err := r.Maps(p.PID)
				if err != nil {
					t.Fatal(err)
				}
				end := x86.VirtAddr(0)
				for _, want := range maps.Items {
					if want.Path == "[vsyscall]" {
						continue
					}
					var m Mapping
					if want.Start > end {
						if found, err := c.Find(p.MM, want.Start-1, &m); found || err != nil {
							t.Errorf("process %d below %v: %+v, %v", p.PID, want.Start, m, err)
						}
					}
					for _, at := range []x86.VirtAddr{want.Start, want.End - 1} {
						found, err := c.Find(p.MM, at, &m)
						special := strings.HasPrefix(string(want.Path), "[v")
						if !found || err != nil || m.Start != want.Start || m.End != want.End || m.File() != (want.Inode != 0) || m.Special() != special ||
							m.Writable() != (want.Perm[1] == 'w') || m.Executable() != (want.Perm[2] == 'x') || m.Stack() != (want.Path == "[stack]") {
							t.Errorf("process %d at %v: %t %+v, %v, want %+v", p.PID, at, found, m, err, want)
						}
					}
					if c.Heap(p.MM, want.Start) != (want.Path == "[heap]") {
						t.Errorf("process %d: heap at %v: %+v", p.PID, want.Start, want)
					}
					if m.Stack() {
						stacks++
					}
					n, end = n+1, want.End
				}
			}
			if n < 20 || stacks < 2 {
				t.Errorf("%d mappings, %d stacks", n, stacks)
			}
			t.Logf("%d mappings of %d processes", n, len(list.Items))
		})
	}
}
