package linuxtest

import (
	"github.com/cilium/ebpf/btf"

	"github.com/xen-hvi/hvi/engine/x86"
)

// Offsets of the members of eBPF's structures, in bytes.
const (
	ProgType  = 0
	ProgJited = 4 // bit 1
	ProgLen   = 8
	ProgCode  = 12
	ProgTag   = 16
	ProgFunc  = 24
	ProgAux   = 32
	ProgSize  = 40

	AuxID      = 0
	AuxProg    = 8
	AuxUser    = 16
	AuxLoaded  = 24
	AuxName    = 32
	AuxTarget  = 48
	AuxDstProg = 56
	AuxSize    = 64

	LinkID    = 0
	LinkType  = 4
	LinkProg  = 8
	LinkTo    = 32 // what it leads to
	LinkCount = 40
	LinkSize  = 48

	CGroupSibling  = 0
	CGroupChildren = 16
	CGroupDir      = 32
	CGroupProgs    = 40
	CGroupKinds    = 3
	CGroupSize     = CGroupProgs + 8*CGroupKinds + 8
	CGroupTop      = 64 // in struct cgroup_root

	ProgListProg = 16
	ProgListLink = 24
	ProgListSize = 32

	EventProg   = 0
	EventCall   = 8
	CallName    = 0
	CallFlags   = 8
	CallProgs   = 16
	ArrayItems  = 16
	ArrayStride = 24
	MapName     = 8
)

// ProgramTypes are the structures of eBPF programs of a 6.1, besides those of
// SocketTypes.
func ProgramTypes() []btf.Type {
	list := array(u64, 2)
	jited := btf.Member{Name: "jited", Type: u16, Offset: ProgJited*8 + 1, BitfieldSize: 1}
	link := structOf("bpf_link", 32, member("id", LinkID, u32), member("type", LinkType, u32), member("prog", LinkProg, pointer))
	to := func(name, member2 string) *btf.Struct {
		return structOf(name, LinkSize, member("link", 0, link), member(member2, LinkTo, pointer))
	}
	css := structOf("cgroup_subsys_state", 32, member("sibling", CGroupSibling, list), member("children", CGroupChildren, list))
	group := structOf("cgroup", CGroupSize, member("self", 0, css), member("kn", CGroupDir, pointer),
		member("bpf", CGroupProgs, structOf("cgroup_bpf", 8*CGroupKinds+8, member("progs", 0, array(u64, CGroupKinds)), member("flags", 8*CGroupKinds, array(u8, 8)))))
	return append(IDRTypes(),
		structOf("bpf_prog", ProgSize, member("type", ProgType, u32), jited, member("len", ProgLen, u32), member("jited_len", ProgCode, u32),
			member("tag", ProgTag, array(u8, 8)), member("bpf_func", ProgFunc, pointer), member("aux", ProgAux, pointer)),
		structOf("bpf_prog_aux", AuxSize, member("id", AuxID, u32), member("prog", AuxProg, pointer), member("user", AuxUser, pointer),
			member("load_time", AuxLoaded, u64), member("name", AuxName, array(u8, 16)), member("attach_func_name", AuxTarget, pointer),
			member("dst_prog", AuxDstProg, pointer)),
		structOf("user_struct", 8, member("uid", 0, u32)),
		link,
		to("bpf_raw_tp_link", "btp"), to("bpf_cgroup_link", "cgroup"), to("bpf_netns_link", "net"), to("bpf_xdp_link", "dev"),
		to("bpf_iter_link", "tinfo"), to("bpf_perf_link", "perf_file"), to("bpf_struct_ops_link", "map"),
		structOf("bpf_kprobe_multi_link", LinkSize, member("link", 0, link), member("addrs", LinkTo, pointer), member("cnt", LinkCount, u32)),
		structOf("bpf_raw_event_map", 8, member("tp", 0, pointer)),
		structOf("tracepoint", 8, member("name", 0, pointer)),
		structOf("bpf_iter_target_info", 8, member("reg_info", 0, pointer)),
		structOf("bpf_iter_reg", 8, member("target", 0, pointer)),
		structOf("bpf_map", MapName+16, member("name", MapName, array(u8, 16))),
		structOf("bpf_prog_array", ArrayItems, member("items", ArrayItems, array(u8, 0))),
		structOf("bpf_prog_array_item", ArrayStride, member("prog", 0, pointer)),
		structOf("bpf_prog_list", ProgListSize, member("node", 0, list), member("prog", ProgListProg, pointer), member("link", ProgListLink, pointer)),
		group,
		structOf("cgroup_root", CGroupTop+CGroupSize, member("cgrp", CGroupTop, group)),
		structOf("kernfs_node", 16, member("parent", 0, pointer), member("name", 8, pointer)),
		structOf("perf_event", 16, member("prog", EventProg, pointer), member("tp_event", EventCall, pointer)),
		structOf("trace_event_call", 32, member("name", CallName, pointer), member("flags", CallFlags, u32),
			member("prog_array", CallProgs, pointer), member("filter", 24, pointer)),
		structOf("sk_filter", 8, member("prog", 0, pointer)),
	)
}

// Programs is a guest with eBPF programs and control groups besides its sockets.
type Programs struct {
	*Sockets
	// Root is the first control group.
	Root x86.VirtAddr

	programs, links map[uint64]x86.VirtAddr
}

// NewPrograms builds one without a program.
func NewPrograms() *Programs {
	s := NewSockets(ProgramTypes(), "prog_idr", "link_idr", "cgrp_dfl_root", "perf_fops")
	p := &Programs{Sockets: s, programs: map[uint64]x86.VirtAddr{}, links: map[uint64]x86.VirtAddr{}}
	p.Root = s.Addr("cgrp_dfl_root") + CGroupTop
	p.initGroup(p.Root, s.Alloc(16))
	return p
}

func (p *Programs) initGroup(group, node x86.VirtAddr) {
	p.WriteList(group + CGroupChildren)
	p.WriteUint64(group+CGroupDir, uint64(node))
}

// Group makes the only child of a control group.
func (p *Programs) Group(parent x86.VirtAddr, name string) x86.VirtAddr {
	group, node := p.Alloc(CGroupSize), p.Alloc(16)
	p.initGroup(group, node)
	as := p.AddressSpace()
	above, err := as.ReadPointer(parent + CGroupDir)
	if err != nil {
		panic(err)
	}
	p.WriteUint64(node, uint64(above))
	p.WriteUint64(node+8, uint64(p.String(name)))
	p.WriteList(parent+CGroupChildren, group+CGroupSibling)
	return group
}

// Program loads a program; traces is the function that it was loaded for, or
// "".
func (p *Programs) Program(id uint64, typ uint32, name, traces string) x86.VirtAddr {
	prog, aux := p.Alloc(ProgSize), p.Alloc(AuxSize)
	p.WriteUint32(prog+ProgType, typ)
	p.WriteUint32(prog+ProgLen, 2)
	p.WriteUint64(prog+ProgAux, uint64(aux))
	p.WriteUint32(aux+AuxID, uint32(id))
	p.WriteUint64(aux+AuxProg, uint64(prog))
	p.Write(aux+AuxName, []byte(name))
	if traces != "" {
		p.WriteUint64(aux+AuxTarget, uint64(p.String(traces)))
	}
	p.programs[id] = prog
	return prog
}

// Link attaches a program to something by a link of a type.
func (p *Programs) Link(id uint64, typ uint32, prog, to x86.VirtAddr) x86.VirtAddr {
	link := p.Alloc(LinkSize)
	p.WriteUint32(link+LinkID, uint32(id))
	p.WriteUint32(link+LinkType, typ)
	p.WriteUint64(link+LinkProg, uint64(prog))
	p.WriteUint64(link+LinkTo, uint64(to))
	p.links[id] = link
	return link
}

// Done writes the numbers of programs and links.
func (p *Programs) Done() {
	p.WriteIDR(p.Addr("prog_idr"), p.Base+Data+0x2_0000, p.programs)
	p.WriteIDR(p.Addr("link_idr"), p.Base+Data+0x3_0000, p.links)
}

// Pointer makes a pointer to something.
func (p *Programs) Pointer(to x86.VirtAddr) x86.VirtAddr {
	at := p.Alloc(8)
	p.WriteUint64(at, uint64(to))
	return at
}
