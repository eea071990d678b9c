package linux

import (
	"errors"
	"strings"

	"github.com/xen-hvi/hvi/engine/guest/report"
	"github.com/xen-hvi/hvi/engine/printable"
	"github.com/xen-hvi/hvi/engine/x86"
)

const (
	// startKernel is where an image lies that no one has moved
	// (CONFIG_PHYSICAL_START above __START_KERNEL_map).
	startKernel = x86.VirtAddr(0xffff_ffff_8100_0000)
	// maxCommandLine bounds the kernel's command line: COMMAND_LINE_SIZE is
	// 2,048, and a bootconfig may add to it.
	maxCommandLine = 32 << 10
	// utsLen is __NEW_UTS_LEN + 1.
	utsLen = 65
	// featurePTI is X86_FEATURE_PTI (arch/x86/include/asm/cpufeatures.h, since
	// 4.15): word 7 of the processor's capabilities, bit 11.
	featurePTI = 7*32 + 11
	// taintLetters are those of the bits of tainted_mask, in order
	// (taint_flags of kernel/panic.c, 6.15).
	taintLetters = "PFSRMBUDAWCIOELKXTNJ"
)

// UTSOffsets lays out struct uts_namespace.
type UTSOffsets struct {
	NodeName int `c:"name.nodename"`
}

// CPUInfoOffsets lays out struct cpuinfo_x86.
type CPUInfoOffsets struct {
	Capability int `c:"x86_capability"`
}

// TimekeeperOffsets lays out struct timekeeper.
type TimekeeperOffsets struct {
	Size  int
	Base  int `c:"tkr_mono.base"`
	NSec  int `c:"tkr_mono.xtime_nsec"`
	Shift int `c:"tkr_mono.shift"`
	Boot  int `c:"offs_boot"`
}

// TimekeeperDataOffsets lays out struct tk_data, which holds a timekeeper. Before
// 6.13 it had no name: a sequence counter, and the timekeeper.
type TimekeeperDataOffsets struct {
	Timekeeper int `c:"timekeeper"`
}

// SeqcountOffsets lays out the sequence counter there.
type SeqcountOffsets struct {
	Size int
}

// Info reports what the guest is, and what its processors do.
func (r *Reader) Info() (report.Info, error) {
	k := r.k
	out := report.Info{
		System: "linux", Release: printable.Escape(k.Release), Banner: printable.Escape(k.Banner),
		Base: k.Base, PhysBase: k.PhysBase, Slide: uint64(k.Base - startKernel),
		PagingLevels: k.as.Levels(), Symbols: k.Symbols.Len(), CPUs: []report.CPU{},
		Types: k.Types, TypesNote: k.TypesNote, Profile: k.Profile, Cached: k.Cached,
	}
	err := r.reading(&out.Reading, func() error {
		r.tlb.Flush()
		for _, part := range []struct {
			what string
			read func(*report.Info) error
		}{
			{"command line", r.commandLine}, {"host name", r.hostname}, {"uptime", r.uptime},
			{"taints", r.taints}, {"page-table isolation", r.isolation},
		} {
			if err := part.read(&out); err != nil {
				r.missing("%s: %v", part.what, err)
			}
		}
		if len(r.cpus) == 0 {
			r.missing("processors: no registers")
		}
		msrs := false
		for i := range r.cpus {
			out.CPUs = append(out.CPUs, r.processor(i))
			// A Linux that runs has set up both; of a processor that is off they are 0.
			msrs = msrs || r.cpus[i].EFER != 0 || r.cpus[i].LSTAR != 0
		}
		if len(r.cpus) != 0 && !msrs {
			r.missing("MSRs: a memory image has none")
		}
		return nil
	})
	return out, err
}

func (r *Reader) commandLine(out *report.Info) error {
	at, err := r.variable("saved_command_line")
	if err != nil {
		return err
	}
	p, err := r.as.ReadPointer(at)
	if err != nil {
		return err
	}
	s, err := r.as.ReadCString(p, maxCommandLine)
	// The kernel itself leaves a blank at the end of some.
	out.CommandLine = printable.Escape(strings.TrimRight(s, " \n"))
	return err
}

func (r *Reader) hostname(out *report.Info) error {
	at, err := r.variable("init_uts_ns")
	if err != nil {
		return err
	}
	if err := need("uts_namespace.name.nodename", r.k.Offsets.UTS.NodeName); err != nil {
		return err
	}
	var o object
	if err := r.read(&o, at+x86.VirtAddr(r.k.Offsets.UTS.NodeName), utsLen); err != nil {
		return err
	}
	out.Hostname = o.text(0, utsLen)
	return nil
}

// uptime reads the clock of boot time as of the last tick: monotonic time, and
// the time that was slept through.
func (r *Reader) uptime(out *report.Info) error {
	o := &r.k.Offsets
	at, err := r.variable("timekeeper_data", "tk_core") // renamed in 6.17
	if err != nil {
		return err
	}
	if err := need("timekeeper.tkr_mono.base", o.Timekeeper.Base, "timekeeper.offs_boot", o.Timekeeper.Boot, "timekeeper.tkr_mono.xtime_nsec", o.Timekeeper.NSec); err != nil {
		return err
	}
	off := o.TimekeeperData.Timekeeper
	if off < 0 {
		off = (max(o.Seqcount.Size, 1) + 7) &^ 7
	}
	var tk object
	for n := range maxRetries {
		before, err := r.as.ReadUint32(at)
		if err != nil {
			return err
		}
		if err := r.read(&tk, at+x86.VirtAddr(off), o.Timekeeper.Size); err != nil {
			return err
		}
		after, err := r.as.ReadUint32(at)
		if err != nil {
			return err
		}
		if before == after && before&1 == 0 {
			ns := tk.u64(o.Timekeeper.Base) + tk.u64(o.Timekeeper.Boot) + tk.u64(o.Timekeeper.NSec)>>(tk.u32(o.Timekeeper.Shift)&63)
			out.Uptime = float64(ns) / 1e9
			return nil
		}
		r.again(n + 1)
	}
	return tooOften("the clock", maxRetries)
}

func (r *Reader) taints(out *report.Info) error {
	at, err := r.variable("tainted_mask")
	if err != nil {
		return err
	}
	mask, err := r.as.ReadUint64(at)
	out.Taints = taintString(mask)
	return err
}

// taintString is the letters of a mask of taints, in the order of their bits.
func taintString(mask uint64) string {
	var b strings.Builder
	for i := range len(taintLetters) {
		if mask>>i&1 != 0 {
			b.WriteByte(taintLetters[i])
		}
	}
	if mask>>len(taintLetters) != 0 {
		b.WriteByte('?') // one that is newer than this table
	}
	return b.String()
}

func (r *Reader) isolation(out *report.Info) error {
	at, err := r.variable("boot_cpu_data")
	if err != nil {
		return err
	}
	if err := need("cpuinfo_x86.x86_capability", r.k.Offsets.CPUInfo.Capability); err != nil {
		return err
	}
	word, err := r.as.ReadUint32(at + x86.VirtAddr(r.k.Offsets.CPUInfo.Capability+featurePTI/32*4))
	out.Isolation = word>>(featurePTI%32)&1 != 0
	return err
}

// processor reports one virtual processor.
func (r *Reader) processor(id int) report.CPU {
	regs := &r.cpus[id]
	c := report.CPU{
		ID: id, User: regs.CPL == 3, RIP: r.place(x86.VirtAddr(regs.RIP)),
		CR0: report.Hex(regs.CR0), CR3: report.Hex(regs.CR3), CR4: report.Hex(regs.CR4),
		FSBase: report.Hex(regs.FSBase), GSBase: report.Hex(regs.GSBase), KernelGSBase: report.Hex(regs.KernelGSBase),
		EFER: report.Hex(regs.EFER), STAR: report.Hex(regs.STAR), LSTAR: r.place(x86.VirtAddr(regs.LSTAR)), CSTAR: r.place(x86.VirtAddr(regs.CSTAR)), SFMask: report.Hex(regs.SFMask),
		SysenterCS: report.Hex(regs.SysenterCS), SysenterESP: report.Hex(regs.SysenterESP), SysenterEIP: r.place(x86.VirtAddr(regs.SysenterEIP)),
		IDTBase: x86.VirtAddr(regs.IDTBase), IDTLimit: regs.IDTLimit, GDTBase: x86.VirtAddr(regs.GDTBase), GDTLimit: regs.GDTLimit,
	}
	t, err := r.currentTask(id)
	if err != nil {
		r.missing("current task of vCPU %d: %v", id, err)
		return c
	}
	c.PID, c.Task, c.Comm = t.PID, t.Addr, printable.Escape(t.Name())
	return c
}

// currentTask reads the task that a virtual processor runs. A memory image may
// come without the register that leads to it in user mode (KernelGSBase): then
// it is the one of the kernel's processor of that number, if that has the very
// page tables that are in use.
func (r *Reader) currentTask(id int) (Task, error) {
	regs := &r.cpus[id]
	var t Task
	err := r.k.ReadTask(regs, &t)
	if err == nil || !errors.Is(err, ErrImplausible) {
		return t, err
	}
	areas, err2 := r.perCPUAreas()
	if err2 != nil {
		return t, err
	}
	for _, a := range areas {
		if a.cpu != id {
			continue
		}
		guess := *regs
		guess.GSBase, guess.CPL = uint64(a.base), 0
		if r.k.ReadTask(&guess, &t) != nil {
			break
		}
		mm, err2 := r.as.ReadPointer(t.Addr + x86.VirtAddr(r.k.Offsets.Task.MM))
		if err2 != nil || mm == 0 {
			break
		}
		root, err2 := r.pageTables(mm)
		if in := x86.PhysAddr(regs.CR3 & x86.CR3AddrMask); err2 == nil && (in == root || in == root|x86.CR3KPTIUser) {
			return t, nil
		}
	}
	return Task{}, err
}
