package linux

import (
	"errors"
	"sort"
	"strings"

	"github.com/xen-hvi/hvi/engine/guest"
	"github.com/xen-hvi/hvi/engine/x86"
)

// Where the kernel puts modules and other code that comes after it (Linux's
// Documentation/arch/x86/x86_64/mm.rst): behind its image, which has 512 MiB, or
// 1 GiB where its place is chosen at random.
const (
	modulesEnd   = x86.VirtAddr(0xffff_ffff_ff00_0000)
	modulesFirst = x86.VirtAddr(0xffff_ffff_a000_0000)
	modulesKASLR = x86.VirtAddr(0xffff_ffff_c000_0000)
	// maxStrayPages bounds the pages of that gibibyte that are looked at.
	maxStrayPages = 1 << 18
	maxStray      = 64
	maxVMAreas    = 1 << 18
)

// VMAreaOffsets lays out struct vmap_area, a stretch of the kernel's virtual
// memory.
type VMAreaOffsets struct {
	Start int `c:"va_start"`
	End   int `c:"va_end"`
	List  int `c:"list"`
	VM    int `c:"vm"`
}

// VMStructOffsets lays out struct vm_struct, what it was allocated for.
type VMStructOffsets struct {
	Caller int `c:"caller"`
}

// modulesStart is where the modules' memory begins.
func (r *Reader) modulesStart() x86.VirtAddr {
	if r.k.Symbols.end > modulesFirst || r.k.Base >= modulesFirst-0x100_0000 {
		return modulesKASLR
	}
	return modulesFirst
}

// strayRegion is executable memory that belongs to nobody, and where its first
// byte is in the guest's physical memory.
type strayRegion struct {
	start, end x86.VirtAddr
	phys       x86.PhysAddr
}

// strayCode returns the stretches of executable memory among the modules that
// belong to nobody the kernel knows of, and how many pages were looked at.
// Those in theirs are left out: they are spoken of already.
func (r *Reader) strayCode(theirs *codeMap) (pages int, out []strayRegion, err error) {
	if running, err := r.k.Running(); err != nil || !running {
		return 0, nil, err // while it boots, much is writable and executable
	}
	known := r.codeMap()
	var page object
	for va := r.modulesStart(); va < modulesEnd; {
		t, err := r.as.Translate(va)
		if err != nil {
			var hole *guest.TranslateError
			if !errors.As(err, &hole) {
				return pages, nil, &ReadError{What: "the modules' memory", Err: err}
			}
			next := hole.Skip()
			if next <= va {
				break // the hole reaches to the end of all addresses
			}
			va = next
			continue
		}
		if t.NX {
			va += x86.VirtAddr(t.PageEnd(va))
			continue
		}
		if pages++; pages > maxStrayPages {
			return pages, nil, &ReadError{What: "the modules' memory", Got: "too many pages", Err: ErrImplausible}
		}
		next := va.Page() + x86.PageSize
		// An owner of one byte of a page may own its whole: the kernel fills up
		// pages.
		if !known.touches(va, next) && !theirs.touches(va, next) {
			if err := r.read(&page, va, x86.PageSize); err != nil {
				return pages, nil, &ReadError{What: "the modules' memory", Err: err}
			}
			if !noCode(page.b) {
				if n := len(out); n > 0 && out[n-1].end == va {
					out[n-1].end = next
				} else if n < maxStray {
					out = append(out, strayRegion{va, next, t.Phys})
				}
			}
		}
		va = next
	}
	if len(out) > 0 {
		out, err = r.withoutAllocatedForBPF(out)
	}
	return pages, out, err
}

// touches reports whether some region has a byte of [start, end).
func (m *codeMap) touches(start, end x86.VirtAddr) bool {
	n := sort.Search(len(m.regions), func(i int) bool { return m.regions[i].start >= end })
	return n > 0 && m.reach[n-1] > start
}

// noCode reports whether a page has no instruction but those with which the
// kernel fills free memory, breakpoints (since 6.13, where it keeps large pages
// of executable memory), and thunks, jumps to the address in a register. Pages
// of the latter, made while the kernel patches itself against ITS (2025), are in
// no book afterwards.
func noCode(b []byte) bool {
	for i := 0; i < len(b); {
		switch {
		case b[i] == 0xcc || b[i] == 0:
			i++
		case len(b)-i >= 2 && b[i] == 0xff && b[i+1]&0xf8 == 0xe0: // jmp *%rax to *%rdi
			i += 2
		case len(b)-i >= 3 && b[i] == 0x41 && b[i+1] == 0xff && b[i+2]&0xf8 == 0xe0: // jmp *%r8 to *%r15
			i += 3
		case len(b)-i >= 3 && b[i] == 0xea && b[i+1] == 0x75 && b[i+2] == 0xfd: // jne to the invalid 0xea, of FineIBT
			i += 3
		default:
			return false
		}
	}
	return true
}

// withoutAllocatedForBPF leaves out what the BPF compiler asked for. Before 5.18
// each program has pages of its own, and those of classic filters, as seccomp's
// are, and of programs that are just being freed have no name in any book; but
// the kernel notes who asked for memory.
func (r *Reader) withoutAllocatedForBPF(stray []strayRegion) ([]strayRegion, error) {
	o, vm := &r.k.Offsets.VMArea, &r.k.Offsets.VMStruct
	head, err := r.variable("vmap_area_list") // until 6.8
	if err != nil || need("start", o.Start, "end", o.End, "list", o.List, "vm", o.VM, "caller", vm.Caller) != nil {
		return stray, nil
	}
	var out []strayRegion
	err = r.consistently("vmap_area_list", func() error {
		out = append(out[:0], stray...)
		return r.walk("vmap_area_list", head, maxVMAreas, func(node x86.VirtAddr) error {
			at := node - x86.VirtAddr(o.List)
			start, err := r.as.ReadPointer(at + x86.VirtAddr(o.Start))
			if err != nil {
				return errTorn
			}
			if start < modulesFirst {
				return nil
			}
			end, err1 := r.as.ReadPointer(at + x86.VirtAddr(o.End))
			area, err2 := r.as.ReadPointer(at + x86.VirtAddr(o.VM))
			if err1 != nil || err2 != nil {
				return errTorn
			}
			if !area.KernelHalf() {
				return nil
			}
			caller, err := r.as.ReadPointer(area + x86.VirtAddr(vm.Caller))
			if err != nil {
				return errTorn
			}
			name, _, ok := r.k.Symbols.Symbolize(caller)
			if !ok || !strings.HasPrefix(strings.TrimLeft(name, "_"), "bpf_") {
				return nil
			}
			kept := out[:0]
			for _, s := range out {
				if s.start < start || s.end > end {
					kept = append(kept, s)
				}
			}
			out = kept
			return nil
		})
	})
	return out, err
}
