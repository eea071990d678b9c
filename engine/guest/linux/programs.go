package linux

import (
	"encoding/hex"
	"fmt"
	"slices"

	"github.com/xen-hvi/hvi/engine/guest/report"
	"github.com/xen-hvi/hvi/engine/printable"
	"github.com/xen-hvi/hvi/engine/x86"
)

// Bounds of reading eBPF programs.
const (
	// maxPrograms bounds programs, and links: tools load some dozens.
	maxPrograms = 1 << 15
	// maxProgramSteps bounds what is looked at in one place that programs may
	// be attached to.
	maxProgramSteps = 1 << 19
	// maxBPFName bounds the name of what a program is attached to.
	maxBPFName = 512
	// bpfTagLen is BPF_TAG_SIZE.
	bpfTagLen = 8
)

// BPFProgOffsets lays out struct bpf_prog.
type BPFProgOffsets struct {
	Size      int
	Type      int  `c:"type"`
	Jited     Bits `c:"jited"`
	Len       int  `c:"len"`
	JitedSize int  `c:"jited_len"`
	Tag       int  `c:"tag"`
	Func      int  `c:"bpf_func"`
	Aux       int  `c:"aux"`
}

// BPFAuxOffsets lays out struct bpf_prog_aux.
type BPFAuxOffsets struct {
	Size       int
	ID         int `c:"id"`
	Prog       int `c:"prog"`
	User       int `c:"user"`
	LoadTime   int `c:"load_time"`
	Name       int `c:"name"`
	NameLength int `c:"name[]"`
	// Target is the name of the kernel's function, for a program that traces
	// one, or of the function of the program TargetProg.
	Target     int `c:"attach_func_name"`
	TargetProg int `c:"dst_prog|linked_prog"` // renamed in 5.10
}

// UserOffsets lays out struct user_struct.
type UserOffsets struct {
	UID int `c:"uid"`
}

// programTypes are the kernel's types of programs, enum bpf_prog_type, as
// bpftool calls them.
var programTypes = []string{
	"unspec", "socket_filter", "kprobe", "sched_cls", "sched_act", "tracepoint", "xdp", "perf_event", "cgroup_skb",
	"cgroup_sock", "lwt_in", "lwt_out", "lwt_xmit", "sock_ops", "sk_skb", "cgroup_device", "sk_msg", "raw_tracepoint",
	"cgroup_sock_addr", "lwt_seg6local", "lirc_mode2", "sk_reuseport", "flow_dissector", "cgroup_sysctl",
	"raw_tracepoint_writable", "cgroup_sockopt", "tracing", "struct_ops", "ext", "lsm", "sk_lookup", "syscall", "netfilter",
}

// ProgramTypes returns the types of programs that are known by name.
func ProgramTypes() []string { return slices.Clone(programTypes[1:]) }

// numbered names a number by a list.
func numbered(names []string, n uint32) string {
	if int64(n) < int64(len(names)) {
		return names[n]
	}
	return fmt.Sprintf("type-%d", n)
}

// Programs lists the eBPF programs that the kernel knows by number, and what
// they are attached to. A program that has no number any more, because it is
// being freed, is left out.
func (r *Reader) Programs() (report.List[report.Program], error) {
	out := report.List[report.Program]{Items: []report.Program{}}
	err := r.reading(&out.Reading, func() error {
		w := programWalk{r: r}
		if err := w.programs(); err != nil {
			return err
		}
		w.attachments()
		out.Items = append(out.Items, w.found...)
		return nil
	})
	return out, err
}

// programWalk is one reading of all eBPF programs.
type programWalk struct {
	r      *Reader
	budget budget
	found  []report.Program
	index  map[x86.VirtAddr]int // of a struct bpf_prog's address in found
	// traces are the functions that programs were loaded to trace, by the same
	// address; whether they do, their links say.
	traces map[x86.VirtAddr]report.Text

	prog, aux, extra object
}

// programs reads the programs themselves.
func (w *programWalk) programs() error {
	o := &w.r.k.Offsets
	if err := need("bpf_prog.aux", o.BPFProg.Aux, "bpf_prog.type", o.BPFProg.Type, "bpf_prog.tag", o.BPFProg.Tag,
		"bpf_prog_aux.id", o.BPFAux.ID, "bpf_prog_aux.prog", o.BPFAux.Prog); err != nil {
		return err
	}
	idr, err := w.r.variable("prog_idr")
	if err != nil {
		return err
	}
	return w.r.consistently("prog_idr", func() error {
		w.found, w.index, w.traces = w.found[:0], map[x86.VirtAddr]int{}, map[x86.VirtAddr]report.Text{}
		return w.r.idr(idr, maxPrograms, func(id uint64, at x86.VirtAddr) error {
			p, err := w.program(id, at)
			if err != nil {
				return err
			}
			w.index[at] = len(w.found)
			w.found = append(w.found, p)
			return nil
		})
	})
}

// program copies what a struct bpf_prog and its bpf_prog_aux say, which point
// at each other. The number is taken from a program first when it is freed.
func (w *programWalk) program(id uint64, at x86.VirtAddr) (p report.Program, err error) {
	o := &w.r.k.Offsets
	if w.r.read(&w.prog, at, o.BPFProg.Size) != nil {
		return p, errTorn
	}
	aux := w.prog.pointer(o.BPFProg.Aux)
	if w.r.read(&w.aux, aux, o.BPFAux.Size) != nil || w.aux.pointer(o.BPFAux.Prog) != at || uint64(w.aux.u32(o.BPFAux.ID)) != id {
		return p, errTorn
	}
	p = report.Program{
		ID: uint32(id), Addr: at,
		Name:         w.aux.text(o.BPFAux.Name, o.BPFAux.NameLength),
		Type:         numbered(programTypes, w.prog.u32(o.BPFProg.Type)),
		Loaded:       w.aux.u64(o.BPFAux.LoadTime),
		Instructions: int(w.prog.u32(o.BPFProg.Len)),
	}
	if w.prog.has(o.BPFProg.Tag, bpfTagLen) {
		p.Tag = hex.EncodeToString(w.prog.b[o.BPFProg.Tag : o.BPFProg.Tag+bpfTagLen])
	}
	if w.prog.bits(o.BPFProg.Jited)&1 != 0 {
		p.Code, p.CodeSize = w.prog.pointer(o.BPFProg.Func), int(w.prog.u32(o.BPFProg.JitedSize))
	}
	if user := w.aux.pointer(o.BPFAux.User); user != 0 && o.User.UID >= 0 {
		uid, err := w.r.as.ReadUint32(user + x86.VirtAddr(o.User.UID))
		if err != nil {
			return p, errTorn
		}
		p.UID = uid
	}
	if w.traces[at], err = w.traced(); err != nil {
		return p, err
	}
	if now, err := w.r.as.ReadUint32(aux + x86.VirtAddr(o.BPFAux.ID)); err != nil || uint64(now) != id {
		return p, errTorn
	}
	return p, nil
}

// traced says what a program was loaded for that traces or extends a function:
// it can be attached to nothing else.
func (w *programWalk) traced() (report.Text, error) {
	o := &w.r.k.Offsets.BPFAux
	name := w.aux.pointer(o.Target)
	if name == 0 {
		return "", nil
	}
	s, err := w.name(name)
	if err != nil {
		return "", err
	}
	prog := w.aux.pointer(o.TargetProg)
	if prog == 0 {
		return s, nil
	}
	// The other program's number.
	aux, err := w.follow(prog, "bpf_prog.aux", w.r.k.Offsets.BPFProg.Aux)
	if err != nil {
		return "", err
	}
	id, err := w.r.as.ReadUint32(aux + x86.VirtAddr(o.ID))
	if err != nil {
		return "", errTorn
	}
	return report.Text(fmt.Sprintf("%s of program %d", s, id)), nil
}

// name reads a string of the kernel's.
func (w *programWalk) name(at x86.VirtAddr) (report.Text, error) {
	if !at.KernelHalf() {
		return "", errTorn
	}
	s, err := w.r.as.ReadCString(at, maxBPFName)
	if err != nil {
		return "", errTorn
	}
	return printable.Escape(s), nil
}

// follow reads a member of a structure that is a pointer.
func (w *programWalk) follow(at x86.VirtAddr, member string, off int) (x86.VirtAddr, error) {
	if err := need(member, off); err != nil {
		return 0, err
	}
	p, err := w.r.as.ReadPointer(at + x86.VirtAddr(off))
	if err != nil {
		return 0, errTorn
	}
	return p, nil
}

// pointed reads the string that a member of a structure points at.
func (w *programWalk) pointed(at x86.VirtAddr, member string, off int) (report.Text, error) {
	p, err := w.follow(at, member, off)
	if err != nil {
		return "", err
	}
	return w.name(p)
}

// attach notes what a program is attached to. What is found without a link may
// be what a link has said already.
func (w *programWalk) attach(prog x86.VirtAddr, a report.Attachment) {
	i, ok := w.index[prog]
	if !ok {
		return // loaded since
	}
	p := &w.found[i]
	for _, known := range p.Attached {
		if known.Kind == a.Kind && known.Target == a.Target && a.LinkID == 0 {
			return
		}
	}
	if w.budget.spend(1+len(p.Attached)) == nil {
		p.Attached = append(p.Attached, a)
	}
}

// attachments finds what the programs are attached to: by their links, and
// where something has been attached without one, as before 5.7, by looking at
// what it can be attached to.
func (w *programWalk) attachments() {
	part := func(what string, f func() error) {
		w.budget.left = maxProgramSteps
		if err := f(); err != nil {
			w.r.missing("%s: %v", what, err)
		}
	}
	part("eBPF links", w.links)
	have := map[string]bool{} // the types without an attachment so far
	for _, p := range w.found {
		if len(p.Attached) == 0 {
			have[p.Type] = true
		}
	}
	for _, look := range []struct {
		what  string
		types []string
		f     func() error
	}{
		{"eBPF programs of control groups", []string{
			"cgroup_skb", "cgroup_sock", "sock_ops", "cgroup_device", "cgroup_sock_addr", "cgroup_sysctl", "cgroup_sockopt",
		}, w.cgroups},
		{"eBPF programs of perf events", []string{"kprobe", "tracepoint", "perf_event"}, w.perfEvents},
		{"eBPF programs of sockets", []string{"socket_filter"}, w.socketFilters},
		{"eBPF programs of network devices", []string{"xdp"}, w.devices},
	} {
		wanted := false
		for _, t := range look.types {
			wanted = wanted || have[t]
			delete(have, t)
		}
		if wanted {
			part(look.what, look.f)
		}
	}
	for _, t := range []string{"sched_cls", "sched_act", "sk_skb", "sk_msg", "flow_dissector", "lirc_mode2", "lwt_in", "lwt_out", "lwt_xmit", "lwt_seg6local"} {
		if have[t] {
			w.r.missing("what eBPF programs of type %s are attached to: %v", t, ErrUnsupported)
		}
	}
}
