package linux

import (
	"errors"
	"fmt"

	"github.com/xen-hvi/hvi/engine/guest/report"
	"github.com/xen-hvi/hvi/engine/x86"
)

// BPFLinkOffsets lays out struct bpf_link, which every kind of link has in it.
type BPFLinkOffsets struct {
	Size int
	ID   int `c:"id"`
	Type int `c:"type"`
	Prog int `c:"prog"`
}

// BPFLinkToOffsets lays out the structures of kinds of links: where the link is
// in them, and a pointer to what it leads to.
type BPFLinkToOffsets struct {
	Link int `c:"link"`
	To   int `c:"cgroup|dev|net|btp|perf_file|tinfo|map"`
	// Addrs and Count are the functions of a link to many.
	Addrs int `c:"addrs"`
	Count int `c:"cnt"`
}

// BPFRawEventOffsets lays out struct bpf_raw_event_map.
type BPFRawEventOffsets struct {
	Tracepoint int `c:"tp"`
}

// TracepointOffsets lays out struct tracepoint.
type TracepointOffsets struct {
	Name int `c:"name"`
}

// BPFIterTargetOffsets lays out struct bpf_iter_target_info.
type BPFIterTargetOffsets struct {
	Reg int `c:"reg_info"`
}

// BPFIterRegOffsets lays out struct bpf_iter_reg.
type BPFIterRegOffsets struct {
	Target int `c:"target"`
}

// BPFMapOffsets lays out struct bpf_map.
type BPFMapOffsets struct {
	Name       int `c:"name"`
	NameLength int `c:"name[]"`
}

// linkTypes are the kernel's types of links, enum bpf_link_type.
var linkTypes = []string{
	"unspec", "raw_tracepoint", "tracing", "cgroup", "iter", "netns", "xdp", "perf_event", "kprobe_multi", "struct_ops",
	"netfilter", "tcx", "uprobe_multi", "netkit", "sockmap", "tracing_multi",
}

// links reads the links that have a number.
func (w *programWalk) links() error {
	o := &w.r.k.Offsets
	idr, err := w.r.variable("link_idr")
	if err != nil {
		if o.BPFLink.Size < 0 {
			return nil // a kernel before 5.7: there are none
		}
		return err
	}
	if err := need("bpf_link.id", o.BPFLink.ID, "bpf_link.type", o.BPFLink.Type, "bpf_link.prog", o.BPFLink.Prog); err != nil {
		return err
	}
	type link struct {
		prog x86.VirtAddr
		to   report.Attachment
	}
	var found []link
	err = w.r.consistently("link_idr", func() error {
		found = found[:0]
		return w.r.idr(idr, maxPrograms, func(id uint64, at x86.VirtAddr) error {
			if w.r.read(&w.extra, at, o.BPFLink.Size) != nil {
				return errTorn
			}
			own, prog := uint64(w.extra.u32(o.BPFLink.ID)), w.extra.pointer(o.BPFLink.Prog)
			if own == 0 || prog == 0 {
				return nil // it is being made, or has been detached
			}
			if own != id {
				return errTorn
			}
			to, err := w.link(at, w.extra.u32(o.BPFLink.Type), prog)
			if err != nil {
				return err
			}
			if now, err := w.r.as.ReadUint32(at + x86.VirtAddr(o.BPFLink.ID)); err != nil || uint64(now) != id {
				return errTorn
			}
			to.LinkID = uint32(id)
			found = append(found, link{prog, to})
			return nil
		})
	})
	if err != nil {
		return err
	}
	for _, l := range found {
		w.attach(l.prog, l.to)
	}
	return nil
}

// link says what a link of a type leads to.
func (w *programWalk) link(at x86.VirtAddr, typ uint32, prog x86.VirtAddr) (report.Attachment, error) {
	o := &w.r.k.Offsets
	a := report.Attachment{Kind: numbered(linkTypes, typ)}
	to := func(l *BPFLinkToOffsets, f func(x86.VirtAddr) (report.Text, error)) error {
		if l.Link < 0 || l.To < 0 {
			return nil
		}
		p, err := w.follow(at-x86.VirtAddr(l.Link), "bpf_link", l.To)
		if err == nil && p != 0 { // it is taken away when what it leads to goes
			a.Target, err = f(p)
		}
		return err
	}
	var err error
	switch a.Kind {
	case "raw_tracepoint":
		err = to(&o.BPFRawTPLink, func(p x86.VirtAddr) (report.Text, error) {
			tp, err := w.follow(p, "bpf_raw_event_map.tp", o.BPFRawEvent.Tracepoint)
			if err != nil {
				return "", err
			}
			return w.pointed(tp, "tracepoint.name", o.Tracepoint.Name)
		})
	case "tracing":
		a.Target = w.traces[prog]
		if i, ok := w.index[prog]; ok { // to a hook of the security modules, or a program
			a.Kind = w.found[i].Type
		}
	case "cgroup":
		err = to(&o.BPFCGroupLink, w.cgroupPath)
	case "netns":
		err = to(&o.BPFNetNSLink, func(p x86.VirtAddr) (report.Text, error) {
			if err := need("net.ns.inum", o.Net.Number); err != nil {
				return "", err
			}
			inum, err := w.r.as.ReadUint32(p + x86.VirtAddr(o.Net.Number))
			if err != nil {
				return "", errTorn
			}
			return report.Text(fmt.Sprintf("net:[%d]", inum)), nil
		})
	case "xdp":
		err = to(&o.BPFXDPLink, w.device)
	case "tcx":
		err = to(&o.BPFTCXLink, w.device)
	case "netkit":
		err = to(&o.BPFNetkitLink, w.device)
	case "iter":
		err = to(&o.BPFIterLink, func(p x86.VirtAddr) (report.Text, error) {
			reg, err := w.follow(p, "bpf_iter_target_info.reg_info", o.BPFIterTarget.Reg)
			if err != nil {
				return "", err
			}
			return w.pointed(reg, "bpf_iter_reg.target", o.BPFIterReg.Target)
		})
	case "struct_ops":
		err = to(&o.BPFStructOpsLink, w.mapName)
	case "sockmap":
		err = to(&o.BPFSockMapLink, w.mapName)
	case "perf_event":
		err = to(&o.BPFPerfLink, func(file x86.VirtAddr) (report.Text, error) {
			event, err := w.follow(file, "file.private_data", o.OpenFile.Private)
			if err != nil {
				return "", err
			}
			return w.perfEvent(event)
		})
		if i, ok := w.index[prog]; ok { // a kprobe or a tracepoint
			a.Kind = w.found[i].Type
		}
	case "kprobe_multi":
		a.Target, err = w.functions(at)
	}
	if errors.Is(err, ErrUnsupported) { // it is there all the same
		w.r.missing("what an eBPF link leads to: %v", err)
		err = nil
	}
	return a, err
}

// functions names the first function of a link to many, and says how many there
// are.
func (w *programWalk) functions(at x86.VirtAddr) (report.Text, error) {
	o := &w.r.k.Offsets.BPFKprobeMultiLink
	if o.Link < 0 || o.Addrs < 0 || o.Count < 0 {
		return "", nil
	}
	at -= x86.VirtAddr(o.Link)
	n, err := w.r.as.ReadUint32(at + x86.VirtAddr(o.Count))
	if err != nil {
		return "", errTorn
	}
	addrs, err := w.follow(at, "bpf_kprobe_multi_link.addrs", o.Addrs)
	if err != nil {
		return "", err
	}
	first, err := w.follow(addrs, "addrs", 0)
	if err != nil {
		return "", err
	}
	p := w.r.place(first)
	name := p.Symbol
	if name == "" {
		name = report.Text(first.String())
	}
	if n > 1 {
		name = report.Text(fmt.Sprintf("%s and %d more", name, n-1))
	}
	return name, nil
}

// device is the name of a network device.
func (w *programWalk) device(dev x86.VirtAddr) (report.Text, error) {
	name, ok := w.r.deviceName(dev)
	if !ok {
		return "", errTorn
	}
	return name, nil
}

// mapName is the name of a map.
func (w *programWalk) mapName(at x86.VirtAddr) (report.Text, error) {
	o := &w.r.k.Offsets.BPFMap
	if o.Name < 0 || o.NameLength <= 0 || o.NameLength > maxBPFName {
		return "", nil
	}
	var name object
	if w.r.read(&name, at+x86.VirtAddr(o.Name), o.NameLength) != nil {
		return "", errTorn
	}
	return name.text(0, o.NameLength), nil
}
