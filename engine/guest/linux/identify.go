package linux

import (
	"errors"
	"fmt"
	"strings"

	"github.com/xen-hvi/hvi/engine/guest"
	"github.com/xen-hvi/hvi/engine/guest/report"
	"github.com/xen-hvi/hvi/engine/x86"
)

// The part of the address space where x86-64 Linux maps its own image:
// __START_KERNEL_map and KERNEL_IMAGE_SIZE with KASLR (arch/x86/include/asm/
// page_64_types.h). It has been the same with 4 and 5 levels since 2.6.
const (
	imageLow  = x86.VirtAddr(0xffff_ffff_8000_0000)
	imageHigh = x86.VirtAddr(0xffff_ffff_c000_0000)

	// maxImage bounds how much of it is taken for one kernel. Debian's are
	// 50 to 70 MiB with .bss.
	maxImage = 256 << 20
	// maxHole bounds a stretch inside the image that is not mapped:
	// freed init memory and section padding, with page-table isolation.
	maxHole = 32 << 20
)

// Identify finds the Linux kernel that a vCPU runs, from the vCPU's registers
// and the guest's memory alone.
//
// Of regs it needs CR3, CR4, EFER and LSTAR. At a write to LSTAR give the value
// being written: the kernel is complete enough from the boot processor's first
// one on. IDTBase serves kernels whose LSTAR leads into a trampoline (4.15 to
// 4.19 with page-table isolation). The vCPU should be held; a kernel that runs
// meanwhile is recognised as well, but a change in the middle of it is an error.
// The process whose page tables CR3 names must live until they are first looked
// at, and no longer: one that ends then changes nothing.
//
// The work is bounded whatever the guest does. Errors are *[IdentifyError].
// Without usable type information the kernel is returned nevertheless, see
// [Kernel.Types].
func Identify(mem guest.Memory, regs x86.Registers) (*Kernel, error) {
	return IdentifyWith(mem, regs, Options{})
}

// Options are what Identify may use besides the guest's memory.
type Options struct {
	// Cache knows kernels that were identified before; nil is none.
	Cache *Cache
	// ISF is the layout of this very kernel's structures, in place of what the
	// kernel says itself. One of another kernel is an error.
	ISF *ISF
	// ISFs are looked through for kernels without type information; nil is
	// none.
	ISFs *ISFDir
}

// IdentifyWith is [Identify] with more to go by.
func IdentifyWith(mem guest.Memory, regs x86.Registers, opt Options) (*Kernel, error) {
	if regs.EFER != 0 && regs.EFER&x86.EFERLMA == 0 {
		return nil, &IdentifyError{Stage: StageRegisters, Want: "a vCPU in long mode",
			Got: fmt.Sprintf("EFER %#x", regs.EFER), Hint: "hvi knows 64-bit Linux; an earlier stage of boot has no kernel to find"}
	}
	as := guest.NewAddressSpace(mem, regs.CR3, regs.CR4, regs.EFER)
	if as.Root()&x86.CR3KPTIUser == 0 {
		return identify(as, &regs, &opt)
	}
	// The user half of a page-table-isolation pair maps the entry code only.
	// Which half it is, the bit says only where isolation is on.
	k, err := identify(as.WithRoot(as.Root()&^x86.CR3KPTIUser), &regs, &opt)
	if err == nil {
		return k, nil
	}
	if k, err2 := identify(as, &regs, &opt); err2 == nil {
		return k, nil
	} else if stageOf(err2) > stageOf(err) {
		err = err2
	}
	return nil, err
}

// stageOf orders errors by how far identification came.
func stageOf(err error) int {
	var e *IdentifyError
	if errors.As(err, &e) {
		for i, s := range []Stage{StageRegisters, StageBase, StageKallsyms, StageBanner, StageRoot, StageISF} {
			if s == e.Stage {
				return i
			}
		}
	}
	return -1
}

func identify(as guest.AddressSpace, regs *x86.Registers, opt *Options) (*Kernel, error) {
	entry, err := codeAddress(as, regs)
	if err != nil {
		return nil, err
	}
	// CR3 is some process's, which may end meanwhile. So its top-level table is
	// looked at once; the tables below, of the image, are the kernel's own.
	image, err := as.Part(entry)
	if err != nil {
		return nil, unmappedCode(entry, err)
	}
	base, err := findBase(image, entry)
	if err != nil {
		return nil, err
	}
	r := &imageReader{as: image, extents: imageExtents(image, base)}
	k := &Kernel{Base: base, Offsets: noOffsets(), Types: report.TypesNone, key: opt.Cache.sumKey()}
	known := opt.Cache.find(r, base, entry)
	if known != nil {
		k.Symbols = &Symbols{symbolTable: known.sym}
	} else if k.Symbols, err = r.findKallsyms(base, entry); err == nil {
		k.Symbols.buildIndex(k.key.names)
	} else {
		return nil, &IdentifyError{Stage: StageKallsyms, Want: fmt.Sprintf("a symbol table in the image at %v", base), Err: err,
			Hint: "a Linux kernel built without CONFIG_KALLSYMS, or no Linux"}
	}
	k.Symbols.setBounds(base, r.extents[len(r.extents)-1].end)
	if err := k.setText(); err != nil {
		return nil, err
	}
	if err := k.readBanner(r); err != nil {
		return nil, err
	}
	if err := k.setRoot(as, image); err != nil {
		return nil, err
	}
	if known != nil && known.banner == k.Banner {
		k.useProfile(known)
	} else {
		k.readTypes()
		if opt.Cache != nil {
			if p := k.makeProfile(entry); p != nil {
				k.profile, k.Profile = p, p.build(k.key)
				opt.Cache.keep(p)
			}
		}
		k.Symbols.src = nil
	}
	if err := k.replaceTypes(opt); err != nil {
		return nil, err
	}
	k.setAddresses()
	return k, nil
}

// setBounds sets where the image is.
func (s *Symbols) setBounds(base, end x86.VirtAddr) {
	s.base, s.end = base, end
	if v, ok := s.Lookup("_end"); ok && v > base && v < end {
		s.end = v
	}
}

// codeAddress returns an address that the processor itself takes for kernel
// code.
func codeAddress(as guest.AddressSpace, regs *x86.Registers) (x86.VirtAddr, error) {
	lstar := x86.VirtAddr(regs.LSTAR)
	if lstar >= imageLow && lstar < imageHigh {
		return lstar, nil
	}
	want := fmt.Sprintf("LSTAR or IDT gate 14 between %v and %v", imageLow, imageHigh)
	got := "LSTAR " + lstar.String()
	if regs.IDTBase == 0 {
		return 0, &IdentifyError{Stage: StageRegisters, Want: want, Got: got,
			Hint: "another operating system, or a Linux that has not set up system calls"}
	}
	gate := x86.VirtAddr(regs.IDTBase) + 14*16
	lo, err := as.ReadUint64(gate)
	if err != nil {
		return 0, &IdentifyError{Stage: StageRegisters, Want: want, Got: got + ", no IDT", Err: err}
	}
	hi, err := as.ReadUint64(gate + 8)
	if err != nil {
		return 0, &IdentifyError{Stage: StageRegisters, Want: want, Got: got + ", no IDT", Err: err}
	}
	handler := x86.VirtAddr(lo&0xffff | lo>>32&0xffff0000 | hi<<32)
	if handler < imageLow || handler >= imageHigh {
		return 0, &IdentifyError{Stage: StageRegisters, Want: want, Got: fmt.Sprintf("%s, gate 14 %v", got, handler)}
	}
	return handler, nil
}

// findBase steps down from an address in code to where the image begins. The
// kernel maps itself by 2 MiB pages and unmaps what is below its first
// (arch/x86/kernel/head64.c, cleanup_highmap).
func findBase(as guest.AddressSpace, entry x86.VirtAddr) (x86.VirtAddr, error) {
	base := x86.VirtAddr(0)
	for va := entry &^ (guest.Page2M - 1); va >= imageLow; va -= guest.Page2M {
		if _, err := as.Translate(va); err != nil {
			if base == 0 {
				return 0, unmappedCode(entry, err)
			}
			break
		}
		base = va
		if entry-va > maxImage {
			return 0, &IdentifyError{Stage: StageBase, Want: "the start of the kernel image below " + entry.String(),
				Got: fmt.Sprintf("more than %d MiB mapped", maxImage>>20)}
		}
	}
	return base, nil
}

// unmappedCode is the error for an entry point that isn't mapped.
func unmappedCode(entry x86.VirtAddr, err error) error {
	return &IdentifyError{Stage: StageBase, Want: fmt.Sprintf("code mapped at %v", entry), Err: err,
		Hint: "the registers may be another moment's or another vCPU's than the memory"}
}

// imageExtents lists what is mapped from base on, up to the bounds above.
func imageExtents(as guest.AddressSpace, base x86.VirtAddr) []extent {
	var out []extent
	limit := min(base+maxImage, imageHigh)
	hole := x86.VirtAddr(0)
	for va := base; va < limit && hole < maxHole; {
		t, err := as.Translate(va)
		var next x86.VirtAddr
		if err != nil {
			var te *guest.TranslateError
			if !errors.As(err, &te) {
				break
			}
			next = te.Skip()
			hole += next - va
		} else {
			hole = 0
			next = va + x86.VirtAddr(t.PageEnd(va))
			if n := len(out); n > 0 && out[n-1].end == va {
				out[n-1].end = next
			} else {
				out = append(out, extent{va, next})
			}
		}
		if next <= va {
			break
		}
		va = next
	}
	return out
}

// setText takes the bounds of the code from the symbols and checks them.
func (k *Kernel) setText() error {
	start, ok1 := k.Symbols.Lookup("_text")
	if !ok1 {
		start, ok1 = k.Symbols.Lookup("_stext")
	}
	end, ok2 := k.Symbols.Lookup("_etext")
	if !ok1 || !ok2 || start < k.Base || start >= k.Base+guest.Page2M || end <= start || end > k.Symbols.end {
		return &IdentifyError{Stage: StageKallsyms, Want: fmt.Sprintf("_text and _etext in the image at %v", k.Base),
			Got: fmt.Sprintf("%v (%v) and %v (%v)", start, ok1, end, ok2)}
	}
	k.TextStart, k.TextEnd = start, end
	return nil
}

const (
	bannerStart = "Linux version "
	maxBanner   = 1024
	maxRelease  = 64 // __NEW_UTS_LEN
)

func (k *Kernel) readBanner(r *imageReader) error {
	fail := func(got string, err error) error {
		return &IdentifyError{Stage: StageBanner, Want: fmt.Sprintf("%q", bannerStart+"…"), Got: got, Err: err}
	}
	va, ok := k.Symbols.Lookup("linux_banner")
	if !ok {
		return &IdentifyError{Stage: StageBanner, Want: "the symbol linux_banner",
			Got: "symbols of code only", Hint: "the kernel was built without CONFIG_KALLSYMS_ALL, which hvi needs"}
	}
	b, err := r.after(va, maxBanner)
	if err != nil {
		return fail("", err)
	}
	banner, release, ok := parseBanner(b)
	if !ok {
		return fail(fmt.Sprintf("%q at %v", b[:min(len(b), 32)], va), nil)
	}
	k.Banner, k.Release = banner, release
	return nil
}

// parseBanner takes "Linux version RELEASE …\n\0" apart. Both parts are
// printable ASCII, so that they may be shown as they are.
func parseBanner(b []byte) (banner, release string, ok bool) {
	text, _, ok := strings.Cut(string(b), "\x00")
	if !ok {
		return "", "", false
	}
	text = strings.TrimSuffix(text, "\n")
	for i := range len(text) {
		if text[i] < ' ' || text[i] > '~' {
			return "", "", false
		}
	}
	rest, ok := strings.CutPrefix(text, bannerStart)
	if !ok {
		return "", "", false
	}
	release, _, ok = strings.Cut(rest, " ")
	if !ok || release == "" || len(release) > maxRelease || release[0] < '0' || release[0] > '9' {
		return "", "", false
	}
	return text, release, true
}

// setRoot finds the kernel's own page tables: CR3, that of as, is some process's,
// or, at the very beginning, a table that boot will leave behind. image is the
// part of as that has the kernel's image.
func (k *Kernel) setRoot(as, image guest.AddressSpace) error {
	fail := func(got string, err error) error {
		return &IdentifyError{Stage: StageRoot, Want: "init_top_pgt that maps the image as CR3 does", Got: got, Err: err}
	}
	va, ok := k.Symbols.Lookup("init_top_pgt")
	if !ok { // before 4.13
		va, ok = k.Symbols.Lookup("init_level4_pgt")
	}
	if !ok || va.Offset() != 0 {
		return fail(fmt.Sprintf("symbol %v (%v)", va, ok), nil)
	}
	t, err := image.Translate(va)
	if err != nil {
		return fail("", err)
	}
	k.as = as.WithRoot(t.Phys)
	for _, va := range []x86.VirtAddr{k.Base, k.TextEnd - 1, va} {
		now, err := image.Translate(va)
		if err != nil {
			return fail("", err)
		}
		own, err := k.as.Translate(va)
		if err != nil {
			return fail(fmt.Sprintf("root %v", t.Phys), err)
		}
		if now.Phys != own.Phys {
			return fail(fmt.Sprintf("%v at %v by CR3, at %v by root %v", va, now.Phys, own.Phys, t.Phys), nil)
		}
		if va == k.Base {
			k.PhysBase = own.Phys
		}
	}
	return nil
}

// setAddresses looks up, once, what the methods read.
func (k *Kernel) setAddresses() {
	variable := func(names ...string) x86.VirtAddr {
		for _, name := range names {
			if va, ok := k.Symbols.Lookup(name); ok && va >= k.Base && va < k.Symbols.end {
				return va
			}
		}
		return 0
	}
	k.addr.systemState = variable("system_state")
	k.addr.modules = variable("modules")
	k.addr.perCPUOffset = variable("__per_cpu_offset")
	// Renamed in 6.16.
	k.addr.pokingMM = variable("text_poke_mm", "poking_mm")
	k.addr.pokingAddr = variable("text_poke_mm_addr", "poking_addr")

	hot, haveHot := k.Symbols.Lookup("pcpu_hot")
	perCPU := func(name string, member int) (x86.VirtAddr, bool) {
		if haveHot && member >= 0 {
			return hot + x86.VirtAddr(member), true
		}
		return k.Symbols.Lookup(name)
	}
	k.addr.currentTask, k.addr.haveCurrentTask = perCPU("current_task", k.Offsets.PCPUHot.CurrentTask)
	k.addr.cpuNumber, k.addr.haveCPUNumb = perCPU("cpu_number", k.Offsets.PCPUHot.CPUNumber)
	k.addr.preemptCount, k.addr.havePreemptCount = perCPU("__preempt_count", k.Offsets.PCPUHot.PreemptCount)
}
