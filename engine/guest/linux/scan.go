package linux

import (
	"fmt"
	"slices"

	"github.com/xen-hvi/hvi/engine/guest"
	"github.com/xen-hvi/hvi/engine/x86"
)

const (
	// maxKernels bounds how many different sets of kernel page tables are
	// told apart, and maxCandidates how many of them are offered. A guest
	// that has not been attacked has one or two: its own, and that of a
	// kernel from which it was kexec'd.
	maxKernels    = 1024
	maxCandidates = 16
)

// Find identifies the Linux kernel in memory that stands still, as in a memory
// image. regs are those of the vCPUs, as far as the image has them, and ranges
// where its memory is. What the registers lead to is tried first. Without any
// that do, the memory is searched as [Scan] describes, and the first candidate
// that [Identify] accepts is the kernel.
//
// Registers say which page tables the processor used; a search can't. Who owns
// the guest can plant a whole second kernel for a search to find.
func Find(mem guest.Memory, regs []x86.Registers, ranges []guest.PhysRange) (*Kernel, error) {
	return FindWith(mem, regs, ranges, Options{})
}

// FindWith is [Find] with more to go by.
func FindWith(mem guest.Memory, regs []x86.Registers, ranges []guest.PhysRange, opt Options) (*Kernel, error) {
	var furthest error
	try := func(r x86.Registers) *Kernel {
		k, err := IdentifyWith(mem, r, opt)
		if err != nil && (furthest == nil || stageOf(err) > stageOf(furthest)) {
			furthest = err
		}
		return k
	}
	for _, r := range regs {
		if r.CR3 == 0 {
			continue // a vCPU that was never started
		}
		if k := try(withEntry(mem, r)); k != nil {
			return k, nil
		}
	}
	candidates, err := Scan(mem, ranges)
	if err != nil {
		return nil, err
	}
	for _, r := range candidates {
		if k := try(r); k != nil {
			return k, nil
		}
	}
	return nil, furthest
}

// Scan searches physical memory for the page tables of a Linux kernel and
// returns, for each kernel they might be of, registers of a vCPU as far as
// [Identify] needs them: the likeliest first, at least one, and at most 16.
// Nothing about them is proven before Identify accepts them.
//
// Every address space maps the kernel's image through the same table, the one
// behind the last entry of its root (level3_kernel_pgt in
// arch/x86/kernel/head_64.S). So one word of each page is read, and the table
// that most roots share is the running kernel's; a copy of the kernel's image
// that was never relocated or run has no root, or leads nowhere. That makes it
// a search at the speed of memory: 131,072 words in 512 MiB.
//
// The error is an *[IdentifyError] of [StageBase].
func Scan(mem guest.Memory, ranges []guest.PhysRange) ([]x86.Registers, error) {
	s := scanner{mem: mem, ranges: slices.Clone(ranges), kernels: map[x86.PhysAddr]*kernelTables{}}
	s.words, _ = mem.(guest.WordReader)
	slices.SortFunc(s.ranges, func(a, b guest.PhysRange) int {
		if a.Start < b.Start {
			return -1
		}
		return 1
	})
	size := uint64(0)
	for _, r := range s.ranges {
		if r.End <= r.Start {
			continue
		}
		size += uint64(r.End - r.Start)
		first := (r.Start + x86.PageMask) &^ x86.PageMask
		for page := first; page >= r.Start && page < r.End && r.End-page >= x86.PageSize; page += x86.PageSize {
			s.root(page)
		}
	}
	var found []foundRoot
	for _, k := range s.kernels {
		found = append(found, k.four, k.five)
	}
	slices.SortFunc(found, func(a, b foundRoot) int {
		if a.n != b.n {
			return b.n - a.n
		}
		if a.root < b.root { // for an order at all
			return -1
		}
		return 1
	})
	var out []x86.Registers
	for _, f := range found {
		if f.n == 0 || len(out) == maxCandidates {
			break
		}
		r := withEntry(mem, x86.Registers{CR3: uint64(f.root), CR4: f.cr4})
		if r.LSTAR != 0 {
			out = append(out, r)
		}
	}
	if len(out) == 0 {
		return nil, &IdentifyError{Stage: StageBase, Want: "page tables of a Linux kernel",
			Got:  fmt.Sprintf("none in %d MiB of memory", size>>20),
			Hint: "another operating system, one that has not booted yet, or an image of something else"}
	}
	return out, nil
}

// withEntry gives registers without an entry point one that Identify accepts:
// where the kernel's image begins, as the page tables behind CR3 say.
func withEntry(mem guest.Memory, r x86.Registers) x86.Registers {
	if r.LSTAR != 0 || r.IDTBase != 0 {
		return r
	}
	as := guest.NewAddressSpace(mem, r.CR3, r.CR4, r.EFER)
	// The user half of a page-table-isolation pair doesn't have the image.
	for _, root := range []x86.PhysAddr{as.Root() &^ x86.CR3KPTIUser, as.Root()} {
		half := as.WithRoot(root)
		for va := imageLow; va < imageHigh; va += guest.Page2M {
			if _, err := half.Translate(va); err == nil {
				r.LSTAR = uint64(va)
				return r
			}
		}
	}
	return r
}

// scanner searches for roots of kernel page tables.
type scanner struct {
	mem     guest.Memory
	words   guest.WordReader // mem, where it offers that
	ranges  []guest.PhysRange
	kernels map[x86.PhysAddr]*kernelTables // by the table that maps the image
	buf     [8]byte
}

// kernelTables are the roots of 4 and of 5 levels that lead to one table.
type kernelTables struct{ four, five foundRoot }

// foundRoot is one root, and how many others lead to the same table.
type foundRoot struct {
	root x86.PhysAddr
	cr4  uint64
	n    int
}

func (f *foundRoot) add(root x86.PhysAddr, cr4 uint64) {
	if f.n == 0 {
		f.root, f.cr4 = root, cr4
	}
	f.n++
}

// Entries that lead to the kernel's image: of the root, and with five levels of
// the table below it, the last; of the table below that the last but one, since
// the image is in the next to last GiB. The last GiB has the fixmap.
const (
	lastEntry  = 511 * 8
	imageEntry = 510 * 8
)

// root notes a page if it may be a root.
func (s *scanner) root(page x86.PhysAddr) {
	below, ok := s.table(page + lastEntry)
	if !ok {
		return
	}
	if k := s.kernel(below); k != nil {
		k.four.add(page, x86.CR4PAE)
	} else if below, ok = s.table(below + lastEntry); ok {
		if k := s.kernel(below); k != nil {
			k.five.add(page, x86.CR4PAE|x86.CR4LA57)
		}
	}
}

// kernel returns the note about a level 3 table, or nil if that can't be a
// kernel's.
func (s *scanner) kernel(table x86.PhysAddr) *kernelTables {
	if k := s.kernels[table]; k != nil {
		return k
	}
	if _, ok := s.table(table + lastEntry); !ok {
		return nil
	}
	image, ok := s.table(table + imageEntry)
	if !ok || len(s.kernels) == maxKernels {
		return nil
	}
	for i := range x86.PhysAddr(512) {
		if e, ok := s.word(image + i*8); ok && e&1 != 0 {
			k := &kernelTables{}
			s.kernels[table] = k
			return k
		}
	}
	return nil
}

// table returns where an entry leads if it is present, not a large page,
// executable, and leads into memory.
func (s *scanner) table(entry x86.PhysAddr) (x86.PhysAddr, bool) {
	const present, large, nx = 1 << 0, 1 << 7, 1 << 63
	e, ok := s.word(entry)
	if !ok || e&(present|large|nx) != present {
		return 0, false
	}
	pa := x86.PhysAddr(e & x86.CR3AddrMask)
	return pa, s.holds(pa)
}

// holds reports whether a page is in the ranges.
func (s *scanner) holds(pa x86.PhysAddr) bool {
	lo, hi := 0, len(s.ranges)
	for lo < hi {
		mid := int(uint(lo+hi) / 2)
		if s.ranges[mid].Start <= pa {
			lo = mid + 1
		} else {
			hi = mid
		}
	}
	return lo > 0 && pa < s.ranges[lo-1].End && s.ranges[lo-1].End-pa >= x86.PageSize
}

func (s *scanner) word(pa x86.PhysAddr) (uint64, bool) {
	if s.words != nil {
		v, err := s.words.ReadPhysUint64(pa)
		return v, err == nil
	}
	err := s.mem.ReadPhys(pa, s.buf[:])
	return le64(s.buf[:]), err == nil
}
