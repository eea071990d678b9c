package linux

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/xen-hvi/hvi/engine/guest/linux/linuxtest"
	"github.com/xen-hvi/hvi/engine/guest/report"
	"github.com/xen-hvi/hvi/engine/x86"
)

// programWorld is a guest with programs that are attached in all the ways that
// Programs knows, and what is to be said of each.
type programWorld struct {
	*linuxtest.Programs
	world
	want map[uint32]string

	first, link, group, entry, event, call x86.VirtAddr
}

func newProgramWorld() *programWorld {
	w := &programWorld{Programs: linuxtest.NewPrograms(), want: map[uint32]string{}}
	w.world.g = w.Guest
	g := w.Guest
	typ := func(name string) uint32 { return uint32(slices.Index(programTypes, name)) }
	linkType := func(name string) uint32 { return uint32(slices.Index(linkTypes, name)) }
	dev := w.Alloc(96)
	g.Write(dev, []byte("eth0"))

	// To a socket.
	w.first = w.Program(1, typ("socket_filter"), "filter\x1b", "")
	user := w.Alloc(8)
	g.WriteUint32(user, 1000)
	as := g.AddressSpace()
	aux, err := as.ReadPointer(w.first + linuxtest.ProgAux)
	if err != nil {
		panic(err)
	}
	g.WriteUint64(aux+linuxtest.AuxUser, uint64(user))
	g.WriteUint64(aux+linuxtest.AuxLoaded, 5e9)
	g.Write(w.first+linuxtest.ProgTag, []byte{1, 2, 3, 4, 5, 6, 7, 0xff})
	g.Write(w.first+linuxtest.ProgJited, []byte{2})
	g.WriteUint32(w.first+linuxtest.ProgCode, 99)
	g.WriteUint64(w.first+linuxtest.ProgFunc, 0xffff_ffff_c000_1000)
	sock := w.Sock(afInet, 2, protoUDP, stateClose)
	w.OpenSocket(w.Socket(sock, 300))
	g.WriteUint64(sock+linuxtest.SockFilter, uint64(w.Pointer(w.first)))
	w.want[1] = "filter\\x1b socket_filter {0 socket socket:[300]}"

	// To control groups: by a link and, one more, without.
	w.group = w.Group(w.Group(w.Root, "a.slice"), "b")
	prog := w.Program(2, typ("cgroup_skb"), "egress", "")
	w.link = w.Link(1, linkType("cgroup"), prog, w.group)
	w.entry = w.Alloc(linuxtest.ProgListSize)
	legacy, linked := w.Alloc(linuxtest.ProgListSize), w.entry
	g.WriteUint64(linked+linuxtest.ProgListProg, uint64(prog))
	g.WriteUint64(linked+linuxtest.ProgListLink, uint64(w.link))
	device := w.Program(3, typ("cgroup_device"), "devices", "")
	g.WriteUint64(legacy+linuxtest.ProgListProg, uint64(device))
	g.WriteChain(w.group+linuxtest.CGroupProgs+16, 0, linked, legacy)
	w.want[2] = "egress cgroup_skb {1 cgroup /a.slice/b}"
	w.want[3] = "devices cgroup_device {0 cgroup /a.slice/b}"

	// To perf events: by a link, and by a file that a process has open.
	event := func(name string, flags uint32, named x86.VirtAddr, progs ...x86.VirtAddr) (event, call x86.VirtAddr) {
		event, call = w.Alloc(16), w.Alloc(32)
		if named == 0 {
			named = w.String(name)
		}
		g.WriteUint64(call+linuxtest.CallName, uint64(named))
		g.WriteUint32(call+linuxtest.CallFlags, flags)
		array := w.Alloc(linuxtest.ArrayItems + linuxtest.ArrayStride*(len(progs)+1))
		for i, p := range progs {
			g.WriteUint64(array+linuxtest.ArrayItems+x86.VirtAddr(i*linuxtest.ArrayStride), uint64(p))
		}
		g.WriteUint64(call+linuxtest.CallProgs, uint64(array))
		g.WriteUint64(event+linuxtest.EventCall, uint64(call))
		return event, call
	}
	probe := w.Program(4, typ("kprobe"), "probe", "")
	var one x86.VirtAddr
	one, _ = event("vfs_unlink", 1<<5, 0, probe)
	file := w.Open(g.Addr("perf_fops"), one)
	w.Link(2, linkType("perf_event"), probe, file)
	trace := w.Program(5, typ("tracepoint"), "trace", "")
	w.event, w.call = event("", 1<<4, w.Pointer(w.String("sched_switch")), trace)
	w.Open(g.Addr("perf_fops"), w.event)
	w.want[4] = "probe kprobe {2 kprobe vfs_unlink}"
	w.want[5] = "trace tracepoint {0 tracepoint sched_switch}"

	// By links alone.
	link := func(id uint32, t, name, traces string, kind uint32, to x86.VirtAddr, says string) x86.VirtAddr {
		w.want[id] = fmt.Sprintf("%s %s {%d %s}", name, t, id, says)
		return w.Link(uint64(id), kind, w.Program(uint64(id), typ(t), name, traces), to)
	}
	link(6, "lsm", "hook", "bpf_lsm_file_open", linkType("tracing"), 0, "lsm bpf_lsm_file_open")
	link(7, "xdp", "drop", "", linkType("xdp"), dev, "xdp eth0")
	link(8, "raw_tracepoint", "raw", "", linkType("raw_tracepoint"), w.Pointer(w.Pointer(w.String("sys_enter"))), "raw_tracepoint sys_enter")
	link(9, "sk_lookup", "lookup", "", linkType("netns"), w.Net, fmt.Sprintf("netns net:[%d]", linuxtest.Inum))
	link(10, "tracing", "dump", "bpf_iter_task", linkType("iter"), w.Pointer(w.Pointer(w.String("task"))), "iter task")
	named := w.Alloc(32)
	g.Write(named+linuxtest.MapName, []byte("congestion"))
	link(11, "struct_ops", "ops", "", linkType("struct_ops"), named, "struct_ops congestion")
	many := link(12, "kprobe", "many", "", linkType("kprobe_multi"), w.Pointer(g.Base+linuxtest.Entry), "kprobe_multi entry_SYSCALL_64 and 2 more")
	g.WriteUint32(many+linuxtest.LinkCount, 3)
	link(13, "xdp", "gone", "", linkType("xdp"), 0, "xdp ")
	link(14, "sched_cls", "new", "", 99, 0, "type-99 ")

	// One program extends another, one is loaded for a function and not
	// attached, one is of a type that is not looked for.
	ext := w.Program(15, typ("ext"), "ext", "entry")
	if aux, err = as.ReadPointer(ext + linuxtest.ProgAux); err != nil {
		panic(err)
	}
	g.WriteUint64(aux+linuxtest.AuxDstProg, uint64(w.first))
	w.Link(15, linkType("tracing"), ext, 0)
	w.want[15] = "ext ext {15 ext entry of program 1}"
	w.Program(16, typ("tracing"), "idle", "vfs_read")
	w.want[16] = "idle tracing"
	w.Program(17, 200, "future", "")
	w.want[17] = "future type-200"

	// To a device without a link.
	soft := w.Program(18, typ("xdp"), "soft", "")
	g.WriteUint64(dev+linuxtest.DeviceModes+16, uint64(soft))
	g.WriteList(w.Net+linuxtest.NetDevices, dev+linuxtest.DeviceList)
	w.want[18] = "soft xdp {0 xdp eth0}"

	// Links that are being made and taken away.
	g.WriteUint32(w.Link(70, linkType("xdp"), soft, dev)+linuxtest.LinkID, 0)
	w.Link(71, linkType("xdp"), 0, dev)
	w.Done()
	return w
}

func (w *programWorld) read(t testing.TB) (report.List[report.Program], error) {
	return w.kernel(t).NewReader(w.Regs).Programs()
}

// programLine is what a program is and what it is attached to.
func programLine(p report.Program) string {
	s := fmt.Sprintf("%s %s", p.Name, p.Type)
	for _, a := range p.Attached {
		s += fmt.Sprintf(" %v", a)
	}
	return s
}

func TestPrograms(t *testing.T) {
	w := newProgramWorld()
	got, err := w.read(t)
	if err != nil || got.Reading.Incomplete != nil || got.Reading.Retries != 0 {
		t.Fatalf("%+v, %v", got.Reading, err)
	}
	if len(got.Items) != len(w.want) {
		t.Errorf("%d programs, want %d", len(got.Items), len(w.want))
	}
	for _, p := range got.Items {
		if line := programLine(p); line != w.want[p.ID] {
			t.Errorf("program %d: %q, want %q", p.ID, line, w.want[p.ID])
		}
	}
	want := report.Program{
		ID: 1, Name: `filter\x1b`, Type: "socket_filter", Tag: "01020304050607ff", UID: 1000, Loaded: 5e9, Instructions: 2,
		Code: 0xffff_ffff_c000_1000, CodeSize: 99, Attached: []report.Attachment{{Kind: "socket", Target: "socket:[300]"}}, Addr: w.first,
	}
	if p := got.Items[0]; fmt.Sprintf("%+v", p) != fmt.Sprintf("%+v", want) {
		t.Errorf("%+v, want %+v", p, want)
	}
}

// TestProgramsHostile bends what leads to programs and to what they are attached
// to. A part that can't be told is said to be missing.
func TestProgramsHostile(t *testing.T) {
	const unmapped = 0xffff_c900_0000_0000
	for name, c := range map[string]struct {
		bend func(w *programWorld)
		says string // in what is incomplete, or in the error
	}{
		"another program's number": {func(w *programWorld) {
			w.WriteUint64(w.Base+linuxtest.Data+0x2_0000+linuxtest.XANodeSlots+8*20, uint64(w.first))
		}, "prog_idr"},
		"no auxiliary data":     {func(w *programWorld) { w.WriteUint64(w.first+linuxtest.ProgAux, unmapped) }, "prog_idr"},
		"another link's number": {func(w *programWorld) { w.WriteUint32(w.link+linuxtest.LinkID, 5) }, "eBPF links"},
		"a link to nowhere":     {func(w *programWorld) { w.WriteUint64(w.link+linuxtest.LinkTo, unmapped) }, "eBPF links"},
		"a group below itself": {func(w *programWorld) {
			w.WriteList(w.group+linuxtest.CGroupChildren, w.group+linuxtest.CGroupSibling)
		}, "control group"},
		"a group's path to itself": {func(w *programWorld) {
			as := w.AddressSpace()
			node, err := as.ReadPointer(w.group + linuxtest.CGroupDir)
			if err != nil {
				t.Fatal(err)
			}
			w.WriteUint64(node, uint64(node))
		}, "more than 64 names"},
		"a group's programs in a circle": {func(w *programWorld) { w.WriteUint64(w.entry, uint64(w.entry)) }, "control group"},
		"an event of nothing":            {func(w *programWorld) { w.WriteUint64(w.event+linuxtest.EventCall, unmapped) }, "open files of process 42"},
		"an event without a name":        {func(w *programWorld) { w.WriteUint64(w.call+linuxtest.CallName, unmapped) }, "open files of process 42"},
		"devices in a circle":            {func(w *programWorld) { w.WriteUint64(w.Net+linuxtest.NetDevices, uint64(w.Net)) }, "network devices"},
	} {
		t.Run(name, func(t *testing.T) {
			w := newProgramWorld()
			c.bend(w)
			got, err := w.read(t)
			if said := fmt.Sprint(got.Reading.Incomplete, err); !strings.Contains(said, c.says) {
				t.Errorf("said %q, want %q", said, c.says)
			}
			if err == nil && len(got.Items) != len(w.want) {
				t.Errorf("%d programs, want %d", len(got.Items), len(w.want))
			}
		})
	}
}

// TestProgramsUnattached: what programs of some types are attached to is not
// looked for, and that is said.
func TestProgramsUnattached(t *testing.T) {
	w := &programWorld{Programs: linuxtest.NewPrograms()}
	w.world.g = w.Guest
	w.Program(3, 3, "classifier", "")
	w.Done()
	got, err := w.read(t)
	if err != nil || len(got.Items) != 1 || len(got.Reading.Incomplete) != 1 || !strings.Contains(got.Reading.Incomplete[0], "sched_cls") {
		t.Errorf("%+v, %v", got, err)
	}
}

// FuzzPrograms lets a guest fill programs, links and what they lead to with
// anything.
func FuzzPrograms(f *testing.F) {
	f.Add([]byte{1, 2, 3, 4, 5, 6, 7, 8}, uint16(0))
	f.Add([]byte{0xff, 0xff, 0xff, 0xff}, uint16(0x2800))
	w := newProgramWorld()
	k := w.kernel(f)
	f.Fuzz(func(t *testing.T, data []byte, at uint16) {
		defer w.scribble(at, data)()
		got, err := k.NewReader(w.Regs).Programs()
		if err != nil {
			return
		}
		last := uint32(0)
		for _, p := range got.Items {
			if p.ID <= last || len(p.Attached) > 1<<16 {
				t.Errorf("after %d: %+v", last, p)
			}
			last = p.ID
		}
	})
}
