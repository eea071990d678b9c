package linux

import (
	"errors"
	"fmt"

	"github.com/xen-hvi/hvi/engine/guest/report"
	"github.com/xen-hvi/hvi/engine/printable"
	"github.com/xen-hvi/hvi/engine/x86"
)

// CGroupBPFOffsets lays out of struct cgroup where it stands among others and
// what programs it has.
type CGroupBPFOffsets struct {
	Sibling  int `c:"self.sibling"`
	Children int `c:"self.children"`
	Node     int `c:"kn"`
	// Programs are list heads, one for each kind of attachment: of struct
	// list_head before 6.0, hlist_head since. What lies behind them tells which.
	Programs int `c:"bpf.progs"`
	Kinds    int `c:"bpf.progs[]"`
	Flags    int `c:"bpf.flags"`
}

// CGroupTopOffsets lays out struct cgroup_root.
type CGroupTopOffsets struct {
	Group int `c:"cgrp"`
}

// BPFProgListOffsets lays out struct bpf_prog_list.
type BPFProgListOffsets struct {
	Node int `c:"node"`
	Prog int `c:"prog"`
	Link int `c:"link"`
}

// PerfEventOffsets lays out struct perf_event.
type PerfEventOffsets struct {
	Prog int `c:"prog"`
	Call int `c:"tp_event"`
}

// TraceCallOffsets lays out struct trace_event_call. Its name is the
// tracepoint's if it is one.
type TraceCallOffsets struct {
	Name  int `c:"name"`
	Flags int `c:"flags"`
	Progs int `c:"prog_array"`
	// Filter went in 6.12 together with the flag that was the first.
	Filter int `c:"filter"`
}

// BPFProgArrayOffsets lays out struct bpf_prog_array.
type BPFProgArrayOffsets struct {
	Items int `c:"items"`
}

// BPFProgItemOffsets lays out struct bpf_prog_array_item.
type BPFProgItemOffsets struct {
	Size int
	Prog int `c:"prog"`
}

// SkFilterOffsets lays out struct sk_filter.
type SkFilterOffsets struct {
	Prog int `c:"prog"`
}

// XDPOffsets lays out of struct net_device what has to do with XDP: a program in
// software, and one for each other mode.
type XDPOffsets struct {
	List    int `c:"dev_list"`
	Generic int `c:"xdp_prog"`
	Modes   int `c:"xdp_state"`
	NumMode int `c:"xdp_state[]"`
}

// XDPModeOffsets lays out struct bpf_xdp_entity.
type XDPModeOffsets struct {
	Size int
	Prog int `c:"prog"`
}

const (
	// maxCGroupDepth and maxKernFSName bound a control group's path.
	maxCGroupDepth = 64
	maxKernFSName  = 255
	// maxTracePrograms is BPF_TRACE_MAX_PROGS.
	maxTracePrograms = 64
	// maxDevices bounds the devices of a network namespace.
	maxDevices = 1 << 14
)

// tracepointFlag is TRACE_EVENT_FL_TRACEPOINT.
func (o *TraceCallOffsets) tracepointFlag() uint32 {
	if o.Filter >= 0 {
		return 1 << 4
	}
	return 1 << 3
}

// cgroupPath is the path of a control group in its hierarchy.
func (w *programWalk) cgroupPath(group x86.VirtAddr) (report.Text, error) {
	o := &w.r.k.Offsets
	node, err := w.follow(group, "cgroup.kn", o.CGroupBPF.Node)
	if err != nil {
		return "", err
	}
	path := ""
	for range maxCGroupDepth {
		parent, err := w.follow(node, "kernfs_node.parent", o.KernFSNode.Parent)
		if err != nil {
			return "", err
		}
		if parent == 0 {
			if path == "" {
				path = "/"
			}
			return printable.Escape(path), nil
		}
		at, err := w.follow(node, "kernfs_node.name", o.KernFSNode.Name)
		if err != nil {
			return "", err
		}
		if !at.KernelHalf() {
			return "", errTorn
		}
		name, err := w.r.as.ReadCString(at, maxKernFSName)
		if err != nil {
			return "", errTorn
		}
		path, node = "/"+name+path, parent
	}
	return "", &ReadError{What: "a control group's path", Got: fmt.Sprintf("more than %d names", maxCGroupDepth), Err: ErrImplausible}
}

// cgroups looks for programs attached to the control groups of the unified
// hierarchy without a link.
func (w *programWalk) cgroups() error {
	o := &w.r.k.Offsets
	if err := need("cgroup.self", o.CGroupBPF.Children, "cgroup.self", o.CGroupBPF.Sibling, "cgroup.bpf", o.CGroupBPF.Programs,
		"bpf_prog_list.node", o.BPFProgList.Node, "bpf_prog_list.prog", o.BPFProgList.Prog, "cgroup_root.cgrp", o.CGroupTop.Group); err != nil {
		return err
	}
	root, err := w.r.variable("cgrp_dfl_root")
	if err != nil {
		return err
	}
	for groups := []x86.VirtAddr{root + x86.VirtAddr(o.CGroupTop.Group)}; len(groups) > 0; {
		group := groups[len(groups)-1]
		groups = groups[:len(groups)-1]
		var children []x86.VirtAddr
		err := w.r.consistently("the children of a control group", func() error {
			children = children[:0]
			return w.r.list("cgroup.self.children", group+x86.VirtAddr(o.CGroupBPF.Children), maxProgramSteps, func(node x86.VirtAddr) error {
				children = append(children, node-x86.VirtAddr(o.CGroupBPF.Sibling))
				return w.budget.spend(1)
			})
		})
		if err == nil {
			err = w.cgroup(group)
		}
		if errors.Is(err, errBudget) {
			return err
		}
		if err != nil { // it has been removed, or is bent: the others still count
			w.r.missing("eBPF programs of a control group: %v", err)
			continue
		}
		groups = append(groups, children...)
	}
	return nil
}

// cgroup notes the programs of one control group.
func (w *programWalk) cgroup(group x86.VirtAddr) error {
	o := &w.r.k.Offsets
	var heads object
	size := 0
	if n := o.CGroupBPF.Kinds; n > 0 {
		size = (o.CGroupBPF.Flags - o.CGroupBPF.Programs) / n
	}
	if size != 8 && size != 16 {
		return &ReadError{What: "cgroup_bpf.progs", Got: fmt.Sprintf("heads of %d bytes", size), Err: ErrUnsupported}
	}
	first := group + x86.VirtAddr(o.CGroupBPF.Programs)
	if err := w.r.read(&heads, first, size*o.CGroupBPF.Kinds); err != nil {
		return err
	}
	var progs []x86.VirtAddr
	note := func(node x86.VirtAddr) error {
		at := node - x86.VirtAddr(o.BPFProgList.Node)
		if o.BPFProgList.Link >= 0 {
			if link, err := w.r.as.ReadPointer(at + x86.VirtAddr(o.BPFProgList.Link)); err != nil {
				return errTorn
			} else if link != 0 {
				return w.budget.spend(1) // seen already
			}
		}
		prog, err := w.r.as.ReadPointer(at + x86.VirtAddr(o.BPFProgList.Prog))
		if err != nil {
			return errTorn
		}
		progs = append(progs, prog)
		return w.budget.spend(1)
	}
	for i := range o.CGroupBPF.Kinds {
		head := first + x86.VirtAddr(i*size)
		if v := heads.pointer(i * size); v == 0 || v == head {
			continue
		}
		had := len(progs)
		err := w.r.consistently("cgroup_bpf.progs", func() error {
			progs = progs[:had]
			if size == 16 {
				return w.r.list("cgroup_bpf.progs", head, maxPrograms, note)
			}
			return w.r.chain(head, 0, maxPrograms, note)
		})
		if err != nil {
			return err
		}
	}
	if len(progs) == 0 {
		return nil
	}
	path, err := w.cgroupPath(group)
	if err != nil {
		return err
	}
	for _, prog := range progs {
		w.attach(prog, report.Attachment{Kind: "cgroup", Target: path})
	}
	return nil
}

// perfEvent names what a perf event is about: the kernel's function or the
// tracepoint; "" for one that counts something else.
func (w *programWalk) perfEvent(event x86.VirtAddr) (report.Text, error) {
	o := &w.r.k.Offsets
	if o.PerfEvent.Call < 0 || o.TraceCall.Name < 0 {
		return "", nil
	}
	call, err := w.follow(event, "perf_event.tp_event", o.PerfEvent.Call)
	if err != nil || call == 0 {
		return "", err
	}
	name, err := w.follow(call, "trace_event_call.name", o.TraceCall.Name)
	if err != nil {
		return "", err
	}
	if o.TraceCall.Flags >= 0 && o.Tracepoint.Name >= 0 {
		flags, err := w.r.as.ReadUint32(call + x86.VirtAddr(o.TraceCall.Flags))
		if err != nil {
			return "", errTorn
		}
		if flags&o.TraceCall.tracepointFlag() != 0 {
			return w.pointed(name, "tracepoint.name", o.Tracepoint.Name)
		}
	}
	return w.name(name)
}

// perfEvents looks for programs attached to the perf events that processes have
// open.
func (w *programWalk) perfEvents() error {
	o := &w.r.k.Offsets
	if err := need("perf_event.prog", o.PerfEvent.Prog); err != nil {
		return err
	}
	own, err := w.r.variable("perf_fops")
	if err != nil {
		return err
	}
	type attached struct {
		prog   x86.VirtAddr
		target report.Text
	}
	var found []attached
	files := fileWalk{r: w.r, budget: &w.budget}
	return files.processes(func() { found = found[:0] },
		func(f openFile) error {
			if f.ops != own {
				return nil
			}
			target, err := w.perfEvent(f.private)
			if err != nil {
				return err
			}
			progs, err := w.perfPrograms(f.private)
			for _, p := range progs {
				found = append(found, attached{p, target})
			}
			return err
		},
		func(*Task) {
			for _, a := range found {
				if i, ok := w.index[a.prog]; ok {
					w.attach(a.prog, report.Attachment{Kind: w.found[i].Type, Target: a.target})
				}
			}
		})
}

// perfPrograms lists the programs that a perf event has run: its own, or those
// of what it is about.
func (w *programWalk) perfPrograms(event x86.VirtAddr) ([]x86.VirtAddr, error) {
	o := &w.r.k.Offsets
	var out []x86.VirtAddr
	prog, err := w.follow(event, "perf_event.prog", o.PerfEvent.Prog)
	if err != nil {
		return nil, err
	}
	if prog != 0 {
		out = append(out, prog)
	}
	if o.PerfEvent.Call < 0 || o.TraceCall.Progs < 0 || o.BPFProgArray.Items < 0 || o.BPFProgItem.Size < 8 || o.BPFProgItem.Prog < 0 {
		return out, nil
	}
	call, err := w.follow(event, "perf_event.tp_event", o.PerfEvent.Call)
	if err != nil || call == 0 {
		return out, err
	}
	array, err := w.follow(call, "trace_event_call.prog_array", o.TraceCall.Progs)
	if err != nil || array == 0 {
		return out, err
	}
	for i := range maxTracePrograms {
		prog, err := w.follow(array, "bpf_prog_array.items", o.BPFProgArray.Items+i*o.BPFProgItem.Size+o.BPFProgItem.Prog)
		if err != nil {
			return nil, err
		}
		if prog == 0 {
			break
		}
		out = append(out, prog)
	}
	return out, w.budget.spend(1 + len(out))
}

// socketFilters looks for programs that filter what a socket gets.
func (w *programWalk) socketFilters() error {
	o := &w.r.k.Offsets
	if err := need("sock.sk_filter", o.Sock.Filter, "sk_filter.prog", o.SkFilter.Prog); err != nil {
		return err
	}
	s := w.r.newSocketWalk()
	s.tables()
	s.part("open sockets", s.processes)
	for _, f := range s.sockets {
		if f.filter == 0 {
			continue
		}
		// A socket may have been closed since; then it is no known program.
		prog, err := w.r.as.ReadPointer(f.filter + x86.VirtAddr(o.SkFilter.Prog))
		if err == nil {
			w.attach(prog, report.Attachment{Kind: "socket", Target: report.Text(fmt.Sprintf("socket:[%d]", f.Inode))})
		}
	}
	return nil
}

// devices looks for XDP programs attached to network devices without a link.
func (w *programWalk) devices() error {
	o := &w.r.k.Offsets
	if err := need("net.dev_base_head", o.Net.Devices, "net_device.dev_list", o.XDP.List, "net_device.xdp_state", o.XDP.Modes,
		"bpf_xdp_entity.prog", o.XDPMode.Prog); err != nil {
		return err
	}
	nets, err := w.r.nets()
	if err != nil {
		return err
	}
	type attached struct {
		prog x86.VirtAddr
		name report.Text
	}
	for _, net := range nets {
		var found []attached
		err := w.r.consistently("network devices", func() error {
			found = found[:0]
			return w.r.list("network devices", net+x86.VirtAddr(o.Net.Devices), maxDevices, func(node x86.VirtAddr) error {
				dev := node - x86.VirtAddr(o.XDP.List)
				name, err := w.device(dev)
				if err != nil {
					return err
				}
				var at []int
				if o.XDP.Generic >= 0 {
					at = append(at, o.XDP.Generic)
				}
				for i := range min(o.XDP.NumMode, maxXDPModes) {
					at = append(at, o.XDP.Modes+i*o.XDPMode.Size+o.XDPMode.Prog)
				}
				for _, off := range at {
					prog, err := w.r.as.ReadPointer(dev + x86.VirtAddr(off))
					if err != nil {
						return errTorn
					}
					if prog != 0 {
						found = append(found, attached{prog, name})
					}
				}
				return w.budget.spend(1)
			})
		})
		if err != nil {
			return err
		}
		for _, a := range found {
			w.attach(a.prog, report.Attachment{Kind: "xdp", Target: a.name})
		}
	}
	return nil
}

// maxXDPModes bounds __MAX_XDP_MODE, which is 3.
const maxXDPModes = 8
