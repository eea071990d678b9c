package linux

import (
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/xen-hvi/hvi/engine/guest"
	"github.com/xen-hvi/hvi/engine/guest/linux/linuxtest"
	"github.com/xen-hvi/hvi/engine/guest/report"
	"github.com/xen-hvi/hvi/engine/x86"
)

// processGuest is a guest with processes and a reader of it.
func processGuest(t testing.TB, n int) (*linuxtest.Processes, *Reader) {
	t.Helper()
	p := linuxtest.NewProcesses(n)
	k, err := Identify(p.Memory(), p.Regs[0])
	if err != nil {
		t.Fatal(err)
	}
	if k.BTFError != nil {
		t.Fatal(k.BTFError)
	}
	giveOffsets(k)
	return p, k.NewReader(p.Regs)
}

// giveOffsets adds what the types of every guest lack of struct mm_struct.
func giveOffsets(k *Kernel) {
	k.Offsets.MM.Maple, k.Offsets.MM.ExeFile = linuxtest.MMMaple, linuxtest.MMExe
}

// giveMemory gives a process mappings in a maple tree of two levels: pages
// first, first+2, ... of which each third is of the guest's file.
func giveMemory(p *linuxtest.Processes, task x86.VirtAddr, n int) (tree x86.VirtAddr, leaves []x86.VirtAddr) {
	aligned := func() x86.VirtAddr {
		return (p.Alloc(2*linuxtest.MapleSize) + linuxtest.MapleSize - 1) &^ (linuxtest.MapleSize - 1)
	}
	mm := p.Load(task + linuxtest.TaskMM)
	top := aligned()
	page := func(i int) uint64 { return uint64(0x400000 + 0x2000*i) }
	var leaf x86.VirtAddr
	for i := range n {
		vma := p.Alloc(linuxtest.VMASize)
		p.WriteUint64(vma+linuxtest.VMAStart, page(i))
		p.WriteUint64(vma+linuxtest.VMAEnd, page(i)+0x1000)
		p.WriteUint64(vma+linuxtest.VMAMM, uint64(mm))
		p.WriteUint64(vma+linuxtest.VMAFlags, vmRead|vmExec)
		if i%3 == 0 {
			p.WriteUint64(vma+linuxtest.VMAFile, uint64(p.File))
		}
		slot := i % 7 // a leaf holds 7 mappings and the 8 gaps around them
		if slot == 0 {
			leaf = aligned()
			leaves = append(leaves, leaf)
			index := x86.VirtAddr(len(leaves) - 1)
			p.WriteUint64(leaf, uint64(top)|1)
			p.WriteUint64(top+80+8*index, uint64(leaf)|1<<mapleTypeShift|mapleInner)
			if index > 0 {
				p.WriteUint64(top+8+8*(index-1), page(i)-0x1001)
			}
		}
		p.WriteUint64(leaf+8+8*x86.VirtAddr(2*slot), page(i)-1)
		p.WriteUint64(leaf+8+8*x86.VirtAddr(2*slot+1), page(i)+0xfff)
		p.WriteUint64(leaf+128+8*x86.VirtAddr(2*slot+1), uint64(vma))
	}
	if len(leaves) > 0 {
		p.WriteUint64(top+8+8*x86.VirtAddr(len(leaves)-1), ^uint64(0))
	}
	p.WriteUint64(top, uint64(mm)|1)
	p.WriteUint64(mm+linuxtest.MMMaple+8, uint64(top)|3<<mapleTypeShift|mapleInner|mapleRoot)
	return top, leaves
}

func TestProcesses(t *testing.T) {
	p, r := processGuest(t, 5)
	p.WriteUint32(p.Tasks[3]+linuxtest.TaskState, taskIdle|0x2000)
	p.WriteUint32(p.Tasks[3]+linuxtest.TaskFlags, pfKThread)
	list, err := r.Processes()
	if err != nil || len(list.Items) != 5 || list.Reading.Retries != 0 || len(list.Reading.Incomplete) != 0 {
		t.Fatalf("%+v, %v", list, err)
	}
	for i, got := range list.Items {
		want := fmt.Sprintf("%d %d worker %s %v %d %d /system.slice %d", i+1, i+1, []string{"R", "I"}[i/3%2*(1-i/4)], i == 3, 1, uint64(i+1)*1e9, 1001+i)
		if g := fmt.Sprint(got.PID, got.TGID, " ", got.Comm, " ", got.State, " ", got.KernelThread, got.Threads, got.Start, " ", got.Cgroup, " ", got.Cred.UID); g != want {
			t.Errorf("%q, want %q", g, want)
		}
	}
	one, err := r.Threads(4)
	if err != nil || len(one.Items) != 1 || one.Items[0].PID != 4 {
		t.Errorf("threads of 4: %+v, %v", one.Items, err)
	}
	if _, err := r.Threads(77); !errors.Is(err, ErrNoProcess) {
		t.Errorf("threads of 77: %v", err)
	}
	mounts, err := r.Mounts(0)
	if err != nil || len(mounts.Items) != 1 || mounts.Items[0].ID != 21 || mounts.Items[0].Point != "/" || mounts.Items[0].Root != "/" {
		t.Errorf("mounts %+v, %v", mounts, err)
	}
}

// TestProcessOf describes one task, and not another that is in its place by now.
func TestProcessOf(t *testing.T) {
	p, r := processGuest(t, 5)
	task := Task{Addr: p.Tasks[3], PID: 4, TGID: 4}
	got, err := r.ProcessOf(&task)
	if err != nil || got.PID != 4 || got.Comm != "worker" || got.Cgroup != "/system.slice" || got.Cred.UID != 1004 {
		t.Errorf("%+v, %v", got, err)
	}
	p.WriteUint32(p.Tasks[3]+linuxtest.TaskPID, 9)
	if got, err := r.ProcessOf(&task); err == nil {
		t.Errorf("with another number: %+v", got)
	}
	p.WriteUint64(p.Tasks[2]+linuxtest.TaskThreadNode, 0)
	if got, err := r.ProcessOf(&Task{Addr: p.Tasks[2], PID: 3, TGID: 3}); err == nil {
		t.Errorf("ended: %+v", got)
	}
}

func TestEachTaskDoesNotAllocate(t *testing.T) {
	_, r := processGuest(t, 40)
	n := 0
	count := func(*Task) { n++ }
	if err := r.EachTask(count); err != nil || n != 40 {
		t.Fatalf("%d tasks, %v", n, err)
	}
	if got := testing.AllocsPerRun(50, func() { _ = r.EachTask(count) }); got != 0 {
		t.Errorf("%v allocations, want 0", got)
	}
}

func TestStateLetter(t *testing.T) {
	for _, c := range []struct {
		state, exit uint32
		want        string
	}{
		{0, 0, "R"}, {1, 0, "S"}, {2, 0, "D"}, {4, 0, "T"}, {8, 0, "t"}, {0x80, 0x20, "Z"}, {0x80, 0x10, "X"}, {0x40, 0, "P"},
		{0x402, 0, "I"}, {0x2402, 0, "I"}, {0x1001, 0, "D"}, {0x8000, 0, "D"}, {0x102, 0, "D"}, {0x2001, 0, "S"}, {0x800, 0, "R"},
	} {
		if got := stateLetter(c.state, c.exit); got != c.want {
			t.Errorf("%#x, %#x: %s, want %s", c.state, c.exit, got, c.want)
		}
	}
}

func TestMaps(t *testing.T) {
	p, r := processGuest(t, 3)
	mm := p.Load(p.Tasks[1] + linuxtest.TaskMM)
	for _, n := range []int{0, 1, 7, 8, 60} {
		giveMemory(p, p.Tasks[1], n)
		if n == 0 {
			p.WriteUint64(mm+linuxtest.MMMaple+8, 0)
		}
		list, err := r.Maps(2)
		if err != nil || len(list.Items) != n {
			t.Fatalf("%d mappings, %v; want %d", len(list.Items), err, n)
		}
		for i, m := range list.Items {
			path := report.Text("")
			if i%3 == 0 {
				path = "/bin/tool"
			}
			if m.Start != x86.VirtAddr(0x400000+0x2000*i) || m.End != m.Start+0x1000 || m.Perm != "r-xp" || m.Path != path {
				t.Errorf("mapping %d: %+v", i, m)
			}
		}
	}
	p.WriteUint32(p.Tasks[1]+linuxtest.TaskFlags, pfKThread)
	if list, err := r.Maps(2); err != nil || len(list.Items) != 0 {
		t.Errorf("a kernel thread: %+v, %v", list.Items, err)
	}
}

// TestMapsTorn: what does not fit is never reported.
func TestMapsTorn(t *testing.T) {
	for name, bend := range map[string]func(p *linuxtest.Processes, tree x86.VirtAddr, leaves []x86.VirtAddr){
		"another's mapping": func(p *linuxtest.Processes, _ x86.VirtAddr, leaves []x86.VirtAddr) {
			p.WriteUint64(p.Load(leaves[1]+128+8)+linuxtest.VMAMM, uint64(p.Tasks[0]))
		},
		"moved": func(p *linuxtest.Processes, _ x86.VirtAddr, leaves []x86.VirtAddr) {
			p.WriteUint64(p.Load(leaves[1]+128+8)+linuxtest.VMAEnd, 0x7fff_0000_0000)
		},
		"dead node": func(p *linuxtest.Processes, _ x86.VirtAddr, leaves []x86.VirtAddr) {
			p.WriteUint64(leaves[1], uint64(leaves[1]))
		},
		"node above itself": func(p *linuxtest.Processes, tree x86.VirtAddr, _ []x86.VirtAddr) {
			p.WriteUint64(tree+80, uint64(tree)|3<<mapleTypeShift|mapleInner)
		},
		"unmapped": func(p *linuxtest.Processes, tree x86.VirtAddr, _ []x86.VirtAddr) {
			p.WriteUint64(tree+80, 0xffff_f000_0000_0000|1<<mapleTypeShift|mapleInner)
		},
		"pivots fall": func(p *linuxtest.Processes, _ x86.VirtAddr, leaves []x86.VirtAddr) {
			p.WriteUint64(leaves[0]+8+16, 1)
		},
		"no such type": func(p *linuxtest.Processes, tree x86.VirtAddr, leaves []x86.VirtAddr) {
			p.WriteUint64(tree+80, uint64(leaves[0])|9<<mapleTypeShift|mapleInner)
		},
	} {
		p, r := processGuest(t, 2)
		tree, leaves := giveMemory(p, p.Tasks[0], 20)
		bend(p, tree, leaves)
		list, err := r.Maps(1)
		if !errors.Is(err, ErrImplausible) || list.Reading.Retries != maxRetries {
			t.Errorf("%s: %v after %d retries, want %v", name, err, list.Reading.Retries, ErrImplausible)
		}
	}
}

// TestMapsCount: fewer mappings than the kernel has counted are said so.
func TestMapsCount(t *testing.T) {
	p, r := processGuest(t, 2)
	r.k.Offsets.MM.Count = linuxtest.MMCount
	giveMemory(p, p.Tasks[0], 20)
	p.WriteUint32(p.Load(p.Tasks[0]+linuxtest.TaskMM)+linuxtest.MMCount, 21)
	list, err := r.Maps(1)
	if err != nil || len(list.Items) != 20 || len(list.Reading.Incomplete) != 1 || !strings.Contains(list.Reading.Incomplete[0], "counted 21 mappings, and 20") {
		t.Errorf("%d mappings, %+v, %v", len(list.Items), list.Reading, err)
	}
}

// TestRBTree walks a tree, and trees that are none.
func TestRBTree(t *testing.T) {
	p, r := processGuest(t, 1)
	root := p.Alloc(8)
	var nodes []x86.VirtAddr
	for range 7 {
		nodes = append(nodes, p.Alloc(24))
	}
	link := func() {
		for i, n := range nodes { // a heap: 0 above 1 and 2, those above 3 to 6
			parent := x86.VirtAddr(0)
			if i > 0 {
				parent = nodes[(i-1)/2]
			}
			p.WriteUint64(n, uint64(parent)|1)
			for side, off := range []x86.VirtAddr{16, 8} {
				child := uint64(0)
				if c := 2*i + 1 + side; c < len(nodes) {
					child = uint64(nodes[c])
				}
				p.WriteUint64(n+off, child)
			}
		}
		p.WriteUint64(root, uint64(nodes[0]))
	}
	link()
	var got []int
	walk := func(most int) error {
		got = nil
		return r.rbTree("a tree", root, most, func(n x86.VirtAddr) error {
			got = append(got, slices.Index(nodes, n))
			return nil
		})
	}
	if err := walk(7); err != nil || !slices.Equal(got, []int{3, 1, 4, 0, 5, 2, 6}) {
		t.Errorf("%v, %v", got, err)
	}
	if err := walk(6); !errors.Is(err, ErrImplausible) {
		t.Errorf("more than 6: %v", err)
	}
	for name, bend := range map[string]func(){
		"a child above itself":   func() { p.WriteUint64(nodes[3]+16, uint64(nodes[0])) },
		"a stranger's child":     func() { p.WriteUint64(nodes[4], uint64(nodes[2])) },
		"a child that is no one": func() { p.WriteUint64(nodes[5]+8, 0x1234) },
	} {
		link()
		bend()
		if err := walk(100); !errors.Is(err, errTorn) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestPaths reads a path through two mounts, of what has been removed, and in
// loops.
func TestPaths(t *testing.T) {
	p, r := processGuest(t, 1)
	usr := p.Dentry("mnt", p.RootDentry)
	top := p.Dentry("/", 0)
	mount := p.Alloc(linuxtest.MountSize)
	p.WriteUint64(mount+linuxtest.MountParent, uint64(p.RootMount))
	p.WriteUint64(mount+linuxtest.MountPoint, uint64(usr))
	p.WriteUint64(mount+linuxtest.MountVFS, uint64(top))
	dir := p.Dentry("di r\n", top)
	file := p.Dentry("file", dir)
	in, root := mount+linuxtest.MountVFS, path{p.RootMount + linuxtest.MountVFS, p.RootDentry}
	read := func(at, root path) string {
		b, err := r.pathReader().read(at, root)
		if err != nil {
			return err.Error()
		}
		return string(b)
	}
	for _, c := range []struct {
		at, root path
		want     string
	}{
		{path{in, file}, root, "/mnt/di r\n/file"},
		{path{in, top}, root, "/mnt"},
		{path{in, file}, path{in, dir}, "/file"},
		{path{in, dir}, path{in, dir}, "/"},
		{path{in, file}, path{}, "/mnt/di r\n/file"},
		{root, path{}, "/"},
	} {
		if got := read(c.at, c.root); got != c.want {
			t.Errorf("%+v from %+v: %q, want %q", c.at, c.root, got, c.want)
		}
	}
	p.WriteUint64(file+linuxtest.DentryHash, 0)
	if got := read(path{in, file}, root); got != "/mnt/di r\n/file (deleted)" {
		t.Errorf("removed: %q", got)
	}
	p.WriteUint32(p.Addr("rename_lock"), 1)
	if _, err := r.pathReader().read(path{in, file}, root); !errors.Is(err, errTorn) {
		t.Errorf("in the middle of a rename: %v", err)
	}
	p.WriteUint32(p.Addr("rename_lock"), 2)
	p.WriteUint64(dir+linuxtest.DentryParent, uint64(file)) // round and round
	if _, err := r.pathReader().read(path{in, file}, root); !errors.Is(err, ErrImplausible) {
		t.Errorf("a loop of directories: %v", err)
	}
	p.WriteUint64(dir+linuxtest.DentryParent, uint64(top))
	other := p.Alloc(linuxtest.MountSize) // each is mounted in the other
	p.WriteUint64(other+linuxtest.MountVFS, uint64(p.RootDentry))
	for m, up := range map[x86.VirtAddr]x86.VirtAddr{mount: other, other: mount} {
		p.WriteUint64(m+linuxtest.MountParent, uint64(up))
	}
	p.WriteUint64(other+linuxtest.MountPoint, uint64(top))
	p.WriteUint64(mount+linuxtest.MountPoint, uint64(p.RootDentry))
	if _, err := r.pathReader().read(path{in, file}, path{}); !errors.Is(err, ErrImplausible) {
		t.Errorf("a loop of mounts: %v", err)
	}
}

func TestCheckClean(t *testing.T) {
	p, r := processGuest(t, 20)
	p.WriteUint64(p.Load(p.Tasks[0]+linuxtest.TaskMM)+linuxtest.MMExe, uint64(p.File))
	if list, err := r.Processes(); err != nil || list.Items[0].Exe != "/bin/tool" || list.Items[1].Exe != "" {
		t.Errorf("%+v, %v", list.Items[0], err)
	}
	v, err := r.make(processChecks)
	if err != nil || !v.Clean || len(v.Findings) > 0 {
		t.Fatalf("%+v, %v", v, err)
	}
	for i, c := range v.Checks {
		if i < len(processChecks) && c.Status == report.CheckClean && c.Examined < 20 {
			t.Errorf("%+v", c)
		}
	}
}

// TestCheckHidden hides a process from the list, each time with one place left
// that knows of it.
func TestCheckHidden(t *testing.T) {
	hide := map[string]func(p *linuxtest.Processes, task x86.VirtAddr){
		"the table of process numbers": func(p *linuxtest.Processes, task x86.VirtAddr) {
			p.WriteUint64(p.Load(task+linuxtest.TaskThreadPID)+linuxtest.PIDTasks, 0)
		},
		"its parent's children": func(p *linuxtest.Processes, task x86.VirtAddr) { p.Unlink(task + linuxtest.TaskSibling) },
		"its control group":     func(p *linuxtest.Processes, task x86.VirtAddr) { p.Unlink(task + linuxtest.TaskCGList) },
		"a run queue":           func(p *linuxtest.Processes, task x86.VirtAddr) { p.Unlink(task + linuxtest.TaskFairNode) },
	}
	for left := range hide {
		p, r := processGuest(t, 9)
		task := p.Tasks[5]
		p.Unlink(task + linuxtest.TaskTasks)
		for where, f := range hide {
			if where != left {
				f(p, task)
			}
		}
		v, err := r.make(processChecks)
		if err != nil || v.Clean || len(v.Findings) != 1 {
			t.Errorf("%s: %+v, %v", left, v, err)
			continue
		}
		if f := v.Findings[0]; f.Check != "hidden-processes" || f.Object != "process 6 (worker)" || !strings.Contains(string(f.Detail), left) {
			t.Errorf("%s: %+v", left, f)
		}
		hide[left](p, task)
		if v, err := r.make(processChecks); err != nil || !v.Clean {
			t.Errorf("without %s: %+v, %v", left, v, err)
		}
	}
}

// TestCheckPassing: what is on its way in or out is no finding, unless it stays
// so.
func TestCheckPassing(t *testing.T) {
	p, r := processGuest(t, 9)
	task := p.Tasks[5]
	p.Unlink(task + linuxtest.TaskTasks)
	p.WriteUint32(task+linuxtest.TaskExit, exitDead)
	if v, err := r.make(processChecks); err != nil || !v.Clean {
		t.Errorf("of an image: %+v, %v", v, err)
	}

	// In a guest that runs, time passes by the test's clock.
	var waited time.Duration
	rounds := 0
	r.Follow(t.Context(), func() ([]x86.Registers, error) { return p.Regs, nil })
	after := func(time.Duration) {}
	r.wait = func(d time.Duration) {
		waited, rounds = waited+d, rounds+1
		after(waited)
	}
	check := func() report.Verdict {
		t.Helper()
		waited, rounds = 0, 0
		v, err := r.make(processChecks)
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
	if v := check(); len(v.Findings) != 1 || waited < passingPatience || waited > 2*passingPatience {
		t.Errorf("one that stays dead: %+v after %v", v, waited)
	}
	p.WriteUint32(task+linuxtest.TaskExit, 0)
	if v := check(); len(v.Findings) != 1 || rounds != suspicionRounds-1 || waited > passingPatience {
		t.Errorf("one that hides: %+v after %d rounds and %v", v, rounds, waited)
	}
	after = func(time.Duration) {
		if rounds == 3 {
			p.Link()
		}
	}
	if v := check(); !v.Clean || rounds != 3 {
		t.Errorf("one that was being linked: %+v after %d rounds", v, rounds)
	}
	// Another at the same address is not the one before.
	p.Unlink(task + linuxtest.TaskTasks)
	after = func(time.Duration) { p.WriteUint64(task+linuxtest.TaskStart, uint64(rounds)) }
	if v := check(); !v.Clean || rounds != 1 {
		t.Errorf("ones that come and go: %+v after %d rounds", v, rounds)
	}
}

// TestCheckFailed: lists that contradict themselves don't make a guest clean.
func TestCheckFailed(t *testing.T) {
	p, r := processGuest(t, 9)
	p.WriteUint64(p.Tasks[5]+linuxtest.TaskTasks, uint64(p.Tasks[2]+linuxtest.TaskTasks))
	v, err := r.make(processChecks)
	if err != nil || v.Clean || len(v.Findings) != 0 || v.Checks[0].Status != report.CheckFailed || v.Checks[0].Why == "" {
		t.Errorf("%+v, %v", v, err)
	}
}

// TestUnsupported: without types there is no guess.
func TestUnsupported(t *testing.T) {
	_, k := identified(t, linuxtest.Config{NoBTF: true})
	r := k.NewReader(nil)
	if _, err := r.Processes(); !errors.Is(err, ErrUnsupported) {
		t.Errorf("processes: %v", err)
	}
	if _, err := r.Maps(1); !errors.Is(err, ErrUnsupported) {
		t.Errorf("maps: %v", err)
	}
	if _, err := r.Mounts(1); !errors.Is(err, ErrUnsupported) {
		t.Errorf("mounts: %v", err)
	}
	if info, err := r.Info(); err != nil || info.Types != report.TypesNone || info.TypesNote == "" || len(info.Reading.Incomplete) == 0 {
		t.Errorf("info: %+v, %v", info, err)
	}
	v, err := r.make(processChecks)
	if err != nil || v.Clean || len(v.Checks) == 0 {
		t.Errorf("no check could be made: %+v, %v", v, err)
	}
	for _, c := range v.Checks {
		if c.Status != report.CheckUnavailable || c.Why == "" {
			t.Errorf("%+v", c)
		}
	}
}

// TestInfoRegisters: each processor's MSRs and bases are told, and that a memory image
// has no MSRs.
func TestInfoRegisters(t *testing.T) {
	p, r := processGuest(t, 3)
	regs := p.Regs[0]
	regs.EFER, regs.FSBase, regs.KernelGSBase = 0xd01, 1, 3
	regs.STAR, regs.SFMask, regs.SysenterCS, regs.SysenterESP, regs.SysenterEIP = 4, 5, 6, 7, 8
	const no = "MSRs: a memory image has none"
	for _, tc := range []struct {
		name    string
		cpus    []x86.Registers
		missing bool
	}{
		{"all", []x86.Registers{regs}, false},
		{"one that is off", []x86.Registers{{}, regs}, false},
		{"an image", []x86.Registers{{CR3: regs.CR3, CR4: regs.CR4, GSBase: regs.GSBase}}, true},
	} {
		info, err := r.k.NewReader(tc.cpus).Info()
		if err != nil || len(info.CPUs) != len(tc.cpus) || slices.Contains(info.Reading.Incomplete, no) != tc.missing {
			t.Errorf("%s: %+v, %v", tc.name, info, err)
			continue
		}
		for i, c := range info.CPUs {
			got := [...]uint64{
				uint64(c.EFER), uint64(c.FSBase), uint64(c.GSBase), uint64(c.KernelGSBase), uint64(c.STAR), uint64(c.SFMask),
				uint64(c.SysenterCS), uint64(c.SysenterESP), uint64(c.SysenterEIP.Addr), uint64(c.LSTAR.Addr),
			}
			w := tc.cpus[i]
			if want := [...]uint64{w.EFER, w.FSBase, w.GSBase, w.KernelGSBase, w.STAR, w.SFMask, w.SysenterCS, w.SysenterESP, w.SysenterEIP, w.LSTAR}; got != want {
				t.Errorf("%s: CPU %d is told as %#x, want %#x", tc.name, i, got, want)
			}
		}
	}
}

// FuzzProcesses lets the fuzzer write into everything that the views of
// processes read: each 6 bytes of its data are a place and a value, which is a
// pointer to another place of the same memory or a small number.
func FuzzProcesses(f *testing.F) {
	for _, seed := range []string{"", "\x00\x01\x02\x03\x04\x05", strings.Repeat("\x10\x00\x80\x10\x00\x01", 9), strings.Repeat("abcdef", 40)} {
		f.Add([]byte(seed))
	}
	base := linuxtest.NewProcesses(6)
	giveMemory(base, base.Tasks[0], 20)
	const room = 0x2_0000 // all that was allocated lies in it
	memory := base.Mem[base.PhysBase+x86.PhysAddr(linuxtest.HeapStart):][:room]
	image := slices.Clone(memory)
	k, err := Identify(base.Memory(), base.Regs[0])
	if err != nil {
		f.Fatal(err)
	}
	giveOffsets(k)
	heap := base.Base + linuxtest.HeapStart
	if used := base.Alloc(0) - heap; used > room {
		f.Fatalf("%#x bytes are in use", used)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		copy(memory, image)
		for len(data) >= 6 {
			at := heap + x86.VirtAddr(binary.LittleEndian.Uint16(data))*8%room
			v := uint64(binary.LittleEndian.Uint16(data[2:]))
			switch data[4] & 3 {
			case 0:
				v = uint64(heap) + v*8%room + uint64(data[5]&0x3f)
			case 1:
				v = uint64(base.Addr("init_task")) + v&0xfff
			case 2:
				v = ^v
			}
			base.WriteUint64(at, v)
			data = data[6:]
		}
		r := k.NewReader(base.Regs)
		list, err := r.Processes()
		if err == nil && len(list.Items) > 0xffff {
			t.Errorf("%d processes", len(list.Items))
		}
		_, _ = r.Threads(0)
		for pid := range int32(3) {
			_, _ = r.Maps(pid)
			_, _ = r.Mounts(pid)
		}
		if _, err := r.Info(); err != nil {
			t.Error(err)
		}
		if v, err := r.make(processChecks); err != nil || v.Clean && len(v.Findings) > 0 {
			t.Errorf("%+v, %v", v, err)
		}
	})
}

// moving is memory in which something happens once, when it is read at an
// address.
type moving struct {
	guest.Memory
	at   x86.PhysAddr
	then func()
}

func (m *moving) ReadPhys(pa x86.PhysAddr, buf []byte) error {
	if then := m.then; then != nil && m.at >= pa && m.at < pa+x86.PhysAddr(len(buf)) {
		m.then = nil
		then()
	}
	return m.Memory.ReadPhys(pa, buf)
}

// movingGuest is processGuest, of which then happens when the reader is at va.
func movingGuest(t *testing.T, n int, va func(*linuxtest.Processes) x86.VirtAddr, then func(*linuxtest.Processes)) (*linuxtest.Processes, *Reader) {
	t.Helper()
	p, r := processGuest(t, n)
	at, err := r.as.Translate(va(p))
	if err != nil {
		t.Fatal(err)
	}
	return p, r.k.Over(&moving{p.Memory(), at.Phys, func() { then(p) }}).NewReader(p.Regs)
}

// end takes a process off the list as the kernel does (list_del_rcu): it still
// leads on.
func end(p *linuxtest.Processes, task x86.VirtAddr) {
	const poison = 0xdead_0000_0000_0122 // LIST_POISON2
	node := task + linuxtest.TaskTasks
	next := p.Load(node)
	p.Unlink(node)
	p.WriteUint64(node, uint64(next))
	p.WriteUint64(node+8, poison)
}

// TestProcessesThatEnd: who ends while all are read is not there, and nothing is
// missing then, unless another has its number now.
func TestProcessesThatEnd(t *testing.T) {
	const which, other = 5, 2
	cred := func(p *linuxtest.Processes) x86.VirtAddr { return p.Tasks[which] + linuxtest.TaskCred }
	numbers := func(l report.List[report.Process]) (out []int32) {
		for _, p := range l.Items {
			out = append(out, p.PID)
		}
		slices.Sort(out)
		return out
	}
	_, ending := movingGuest(t, 9, cred, func(p *linuxtest.Processes) { end(p, p.Tasks[which]) })
	got, err := ending.Processes()
	if err != nil || len(got.Items) != 8 || slices.Contains(numbers(got), which+1) || got.Reading.Retries != 0 || got.Reading.Incomplete != nil {
		t.Errorf("one that ends: %v, %+v, %v", numbers(got), got.Reading, err)
	}
	_, handing := movingGuest(t, 9, cred, func(p *linuxtest.Processes) {
		end(p, p.Tasks[which])
		p.WriteUint32(p.Tasks[other]+linuxtest.TaskPID, which+1)
		p.WriteUint32(p.Tasks[other]+linuxtest.TaskTGID, which+1)
	})
	got, err = handing.Processes()
	if err != nil || len(got.Items) != 8 || !slices.Contains(numbers(got), which+1) || slices.Contains(numbers(got), other+1) || got.Reading.Retries != 1 {
		t.Errorf("one that hands on its number: %v, %+v, %v", numbers(got), got.Reading, err)
	}
	// A number that two have at any time is said to be odd.
	p, r := processGuest(t, 9)
	p.WriteUint32(p.Tasks[other]+linuxtest.TaskPID, which+1)
	got, err = r.Processes()
	if err != nil || len(got.Items) != 8 || got.Reading.Retries != maxRounds-1 || len(got.Reading.Incomplete) != 1 {
		t.Errorf("one number of two: %v, %+v, %v", numbers(got), got.Reading, err)
	}
}

// TestProcessesThatNeverSettle: a task that is another in each attempt is missing
// and named, and all others are there. If hardly any stands still there is no list.
func TestProcessesThatNeverSettle(t *testing.T) {
	for name, c := range map[string]struct {
		tasks, restless, said int
		fails                 bool
	}{
		"one":        {9, 1, 1, false},
		"a dozen":    {20, 12, maxNamed + 1, false},
		"nearly all": {maxUnsettled + 9, maxUnsettled + 1, 0, true},
	} {
		p, r := processGuest(t, c.tasks)
		as := p.AddressSpace()
		var starts []x86.PhysAddr // when each restless one was started
		for _, task := range p.Tasks[2:][:c.restless] {
			at, err := as.Translate(task + linuxtest.TaskStart)
			if err != nil {
				t.Fatal(err)
			}
			starts = append(starts, at.Phys)
		}
		m := &restless{Memory: p.Memory(), f: func(read int) {
			for _, at := range starts {
				p.Put(at, uint64(read))
			}
		}}
		r = r.k.Over(m).NewReader(p.Regs)
		for what, list := range map[string]func() (report.List[report.Process], error){
			"processes": r.Processes,
			"threads":   func() (report.List[report.Process], error) { return r.Threads(0) },
		} {
			got, err := list()
			if c.fails {
				if !errors.Is(err, ErrImplausible) {
					t.Errorf("%s, %s: %d, %v", name, what, len(got.Items), err)
				}
				continue
			}
			if err != nil || len(got.Items) != c.tasks-c.restless || len(got.Reading.Incomplete) != c.said {
				t.Errorf("%s, %s: %d, %+v, %v", name, what, len(got.Items), got.Reading, err)
				continue
			}
			if first := got.Reading.Incomplete[0]; !strings.HasPrefix(first, "task 3 (") || !strings.Contains(first, p.Tasks[2].String()) {
				t.Errorf("%s, %s: %q", name, what, first)
			}
			for _, task := range got.Items {
				if i := slices.Index(p.Tasks, task.Task); i >= 2 && i < 2+c.restless {
					t.Errorf("%s, %s: %+v", name, what, task)
				}
			}
		}
	}
}

// TestThreadsOfACopy: a task that a fork has just made, at the address of one that
// has ended, leads to its parent's threads for a moment.
func TestThreadsOfACopy(t *testing.T) {
	const ends, parent = 6, 4
	_, r := movingGuest(t, 9, func(p *linuxtest.Processes) x86.VirtAddr { return p.Tasks[ends] + linuxtest.TaskSignal }, func(p *linuxtest.Processes) {
		end(p, p.Tasks[ends])
		for _, at := range []x86.VirtAddr{linuxtest.TaskSignal, linuxtest.TaskThreadNode, linuxtest.TaskTasks} {
			p.WriteUint64(p.Tasks[ends]+at, uint64(p.Load(p.Tasks[parent]+at)))
		}
	})
	got, err := r.Threads(0)
	if err != nil || got.Reading.Incomplete != nil || got.Reading.Retries != 0 {
		t.Fatalf("%+v, %v", got.Reading, err)
	}
	seen := map[int32]bool{}
	for _, p := range got.Items {
		if seen[p.PID] {
			t.Errorf("thread %d is there twice", p.PID)
		}
		seen[p.PID] = true
	}
	if len(seen) != 8 || seen[ends+1] {
		t.Errorf("%v", seen)
	}
}
