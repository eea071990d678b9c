package linux

import (
	"errors"
	"fmt"

	"github.com/xen-hvi/hvi/engine/guest"
	"github.com/xen-hvi/hvi/engine/guest/report"
	"github.com/xen-hvi/hvi/engine/x86"
)

const (
	// maxKernelTables bounds the page tables of the kernel's half that are read: those
	// that map 256 GiB by pages of 4 KiB. A guest with 256 MiB has some hundreds.
	maxKernelTables = 1 << 17
	// maxRealMode bounds the code that processors are started with
	// (real_mode_blob): it is 20 to 30 KiB.
	maxRealMode = 1 << 17
)

// KimageOffsets lays out struct kimage, a kernel that kexec has loaded.
type KimageOffsets struct {
	ControlCode int `c:"control_code_page"`
}

// PageOffsets lays out struct page.
type PageOffsets struct{ Size int }

// executableStretch is memory that the kernel can execute and should not: pages side
// by side, in its addresses and in the guest's memory, with the same rights.
type executableStretch struct {
	start, end x86.VirtAddr
	phys       x86.PhysAddr
	writable   bool
	// owned says that code belongs there, so that only the right to write is wrong.
	owned bool
}

// checkExecutable goes through the kernel's half of its own page tables: what can be
// executed there is the kernel's text, modules and what else is made among them, and
// some known pages; and nothing of it can be written. Linux keeps to that from the end
// of its boot on, and looks for it by itself then (CONFIG_DEBUG_WX).
//
// Code among the modules that belongs to nobody is told by checkModules, which knows
// of modules that are not on their list. There, the pages of the BPF compiler's
// trampolines stay writable before 5.19.
func (r *Reader) checkExecutable() (int, []report.Finding, error) {
	if running, err := r.k.Running(); err != nil || !running {
		return 0, nil, err // while it boots, much is writable and executable
	}
	return r.persistent(func() (n int, out findings, err error) {
		stretches, n, err := r.executable()
		if err != nil {
			return n, nil, err
		}
		for _, s := range stretches {
			kind, object, detail := "executable", "executable memory", "none of the kernel's code belongs there, and it can execute it"
			if s.writable {
				detail += " and write it"
			}
			place := report.Place{Addr: s.start, In: report.InUnknown}
			if s.owned {
				kind, object, detail = "writable", "writable code", "the kernel can execute it and write it"
				place = r.place(s.start)
			}
			out.add(findingKey{kind, uint64(s.start), s.phys}, fmt.Sprintf("%s%s at %v", object, r.kernelArea(s.start), s.start),
				fmt.Sprintf("%s: %d bytes, from %v in the guest's memory on", detail, uint64(s.end-s.start), s.phys), &place)
		}
		return n, out, nil
	})
}

// executable returns what can be executed and should not, and how many entries of page
// tables were looked at.
func (r *Reader) executable() (out []executableStretch, examined int, err error) {
	text := Range{r.k.TextStart.Page(), (r.k.TextEnd + x86.PageMask).Page()}
	modules := Range{r.modulesStart(), modulesEnd}
	known := r.knownExecutable()
	add := func(s executableStretch) {
		if n := len(out); n > 0 {
			last := &out[n-1]
			if last.end == s.start && last.phys+x86.PhysAddr(last.end-last.start) == s.phys && last.writable == s.writable && last.owned == s.owned {
				last.end = s.end
				return
			}
		}
		if len(out) < maxFindings {
			out = append(out, s)
		}
	}
	examined, err = r.as.Executable(maxKernelTables, func(va x86.VirtAddr, t guest.Translation) error {
		end := va + x86.VirtAddr(t.PageSize)
		s := executableStretch{start: va, end: end, phys: t.Phys, writable: t.Writable}
		switch {
		case va < text.End && end-1 >= text.Start: // of a large page some may be text
			if va < text.Start {
				add(executableStretch{start: va, end: text.Start, phys: t.Phys, writable: t.Writable})
			}
			if t.Writable {
				from, to := max(va, text.Start), min(end-1, text.End-1)+1
				add(executableStretch{start: from, end: to, phys: t.Phys + x86.PhysAddr(from-va), writable: true, owned: true})
			}
			if end-1 >= text.End {
				add(executableStretch{start: text.End, end: end, phys: t.Phys + x86.PhysAddr(text.End-va), writable: t.Writable})
			}
			return nil
		case va >= modules.Start && va < modules.End:
			if !t.Writable || t.PageSize == guest.Page4K && r.ofBPF(va, end) {
				return nil
			}
			s.owned = true
		case !t.Writable && r.isKnown(known, va, end, t.Phys):
			return nil
		}
		add(s)
		return nil
	})
	if errors.Is(err, guest.ErrManyTables) {
		err = &ReadError{What: "the kernel's page tables", Got: fmt.Sprintf("more than %d of them", maxKernelTables), Err: ErrImplausible}
	} else if err != nil {
		err = &ReadError{What: "the kernel's page tables", Err: err}
	}
	return out, examined, err
}

// ofBPF reports whether a page among the modules has code of the BPF compiler's.
func (r *Reader) ofBPF(start, end x86.VirtAddr) bool {
	for _, g := range r.codeMap().regions {
		if g.in == report.InBPF && g.start < end && g.end > start {
			return true
		}
	}
	return false
}

// isKnown reports whether a page is one of those that the kernel makes executable
// elsewhere.
func (r *Reader) isKnown(known []Range, start, end x86.VirtAddr, at x86.PhysAddr) bool {
	for _, k := range known {
		if start >= k.Start && end <= k.End {
			return true
		}
	}
	// With page-table isolation of 4.15 to 4.19 the entry code is mapped once more.
	_, text := r.k.ImageAddr(at)
	return text && start >= cpuEntryArea && start < cpuEntryAreaEnd
}

// knownExecutable returns where, outside of its text and the modules' memory, the
// kernel has code, which it can't write.
func (r *Reader) knownExecutable() []Range {
	var out []Range
	pages := func(start, end x86.VirtAddr) {
		if start.KernelHalf() && end > start {
			out = append(out, Range{start.Page(), (end + x86.PageMask).Page()})
		}
	}
	pointer := func(name string) (x86.VirtAddr, bool) {
		va, err := r.variable(name)
		if err != nil {
			return 0, false
		}
		p, err := r.as.ReadPointer(va)
		return p, err == nil && p != 0
	}
	// What other processors, and this one after it has slept, are started with.
	if at, ok := pointer("real_mode_header"); ok {
		if blob, err := r.k.between("real_mode_blob", "real_mode_blob_end", maxRealMode); err == nil {
			pages(at, at+blob.End-blob.Start)
		}
	}
	// What calls a hypervisor that speaks Hyper-V's language.
	if at, ok := pointer("hv_hypercall_pg"); ok {
		pages(at, at+x86.PageSize)
	}
	// What leads into a kernel that kexec has loaded (6.14). struct page's array,
	// vmemmap, says which page it is, and the direct mapping has it.
	control, page := r.k.Offsets.Kimage.ControlCode, r.k.Offsets.Page.Size
	vmemmap, ok1 := pointer("vmemmap_base")
	direct, ok2 := pointer("page_offset_base")
	for _, name := range [...]string{"kexec_image", "kexec_crash_image"} {
		image, ok := pointer(name)
		if !ok || !ok1 || !ok2 || control < 0 || page <= 0 {
			continue
		}
		if p, err := r.as.ReadPointer(image + x86.VirtAddr(control)); err == nil && p >= vmemmap {
			at := direct + (p-vmemmap)/x86.VirtAddr(page)*x86.PageSize
			pages(at, at+x86.PageSize)
		}
	}
	return out
}

// kernelArea says in words in what part of the kernel's addresses one lies.
func (r *Reader) kernelArea(va x86.VirtAddr) string {
	switch {
	case va >= r.k.Base && va < r.k.Symbols.end:
		return " in the kernel's image"
	case va >= r.modulesStart() && va < modulesEnd:
		return " among the modules"
	}
	area := ""
	highest := x86.VirtAddr(0)
	for _, a := range [...]struct{ variable, words string }{
		{"page_offset_base", " in the direct mapping"},
		{"vmalloc_base", " in vmalloc's area"},
		{"vmemmap_base", ""},
	} {
		at, err := r.variable(a.variable)
		if err != nil {
			return ""
		}
		if base, err := r.as.ReadPointer(at); err == nil && base <= va && base >= highest {
			area, highest = a.words, base
		}
	}
	return area
}
