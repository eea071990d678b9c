package linux

import (
	"encoding/binary"
	"errors"
	"fmt"
	"slices"

	"github.com/xen-hvi/hvi/engine/guest/report"
	"github.com/xen-hvi/hvi/engine/x86"
)

const (
	// maxData bounds each part of the kernel's writable data: Debian's have
	// 3 MiB of .data and up to 20 MiB of .bss.
	maxData = 256 << 20
	// dataChunk is how much of it is read at once.
	dataChunk = 1 << 20
)

// writableData are the borders of the image's writable data. Per-CPU variables
// are elsewhere.
var writableData = [...][2]string{{"_sdata", "_edata"}, {"__bss_start", "__bss_stop"}}

// checkPointers: no word of the kernel's writable data leads to code that
// belongs to nobody. Function pointers are among these words, wherever: in
// tables of operations, in heads of lists, in variables. What each word is need
// not be known for that, since the kernel has no other business there either.
func (r *Reader) checkPointers() (int, []report.Finding, error) {
	var parts []Range
	for _, borders := range writableData {
		p, err := r.k.between(borders[0], borders[1], maxData)
		if errors.Is(err, ErrUnsupported) {
			continue
		}
		if err != nil {
			return 0, nil, err
		}
		parts = append(parts, p)
	}
	if len(parts) == 0 {
		return 0, nil, &ReadError{What: writableData[0][0], Err: ErrUnsupported}
	}
	innocent := r.innocentWords()
	// Nearly all words are none of these addresses, and there are millions of words.
	area, areaSize := uint64(moduleArea), uint64(moduleAreaEnd-moduleArea)
	image, imageSize := uint64(r.k.Base), uint64(r.k.Symbols.end-r.k.Base)
	buf := make([]byte, dataChunk)
	return r.persistent(func() (n int, out findings, err error) {
		for _, p := range parts {
			for at := p.Start &^ 7; at < p.End; at += dataChunk {
				b := buf[:min(dataChunk, int(p.End-at)&^7)]
				if err := r.as.Read(at, b); err != nil {
					return n, nil, &ReadError{What: "the kernel's writable data", Err: err}
				}
				n += len(b) / 8
				for i := 0; i+8 <= len(b); i += 8 {
					w := binary.LittleEndian.Uint64(b[i:])
					if w-area >= areaSize || w-image < imageSize {
						continue
					}
					to := x86.VirtAddr(w)
					if stray, err := r.leadsToStrayCode(to); err != nil {
						return n, nil, err
					} else if !stray {
						continue
					}
					word, place := at+x86.VirtAddr(i), r.place(to)
					if slices.ContainsFunc(innocent, func(b Range) bool { return b.Contains(word) }) {
						continue
					}
					out.add(findingKey{kind: "pointer", at: uint64(word)}, "pointer at "+where(r.place(word)), "it leads to "+where(place), &place)
				}
			}
		}
		return n, out, nil
	})
}

// innocentWords are parts of the writable data that may hold any address: variables
// that say from where to where there are modules, which nobody calls, and what the
// kernel has given back at the end of its boot where memory is not encrypted
// (mem_encrypt_free_decrypted_mem), which is anybody's since.
func (r *Reader) innocentWords() []Range {
	var out []Range
	for _, name := range [...]string{"mod_tree", "module_addr_min", "module_addr_max"} {
		if start, end, ok := r.k.Symbols.Range(name); ok {
			out = append(out, Range{start, end})
		}
	}
	if unused, err := r.k.between("__start_bss_decrypted_unused", "__end_bss_decrypted", maxData); err == nil {
		out = append(out, unused)
	}
	return out
}

// moduleArea is where modules, and all other code that the kernel makes while it
// runs, can lie: behind the image, MODULES_VADDR to MODULES_END, and, for an
// attacker, in memory that vmalloc gave. Pages of the direct map can't be told
// apart by a look at each: pointers into it are most of what data consists of.
const (
	moduleArea    = x86.VirtAddr(0xffff_ffff_8000_0000)
	moduleAreaEnd = x86.VirtAddr(0xffff_ffff_ff00_0000)
)

// maxStrayTargets bounds the pages without an owner of which one look asks whether they
// are the BPF compiler's.
const maxStrayTargets = 64

// leadsToStrayCode says of an address in the module area and not in the image whether
// it is that of executable memory that no part of the kernel owns.
func (r *Reader) leadsToStrayCode(to x86.VirtAddr) (bool, error) {
	if r.codeMap().find(to) != nil {
		return false, nil
	}
	t, err := r.as.Translate(to)
	// What lies behind the image but in its mapping has no owner and isn't code.
	if err != nil || t.NX || r.place(to).In != report.InUnknown {
		return false, nil
	}
	// A classic filter's code is in no book before 5.18. Without randomization one lies
	// where the modules' memory begins, and that address is in several variables.
	page := to.Page()
	stray, known := r.strayTargets[page]
	if !known && len(r.strayTargets) < maxStrayTargets {
		left, err := r.withoutAllocatedForBPF([]strayRegion{{start: page, end: page + x86.PageSize}})
		if err != nil {
			return false, err
		}
		if r.strayTargets == nil {
			r.strayTargets = make(map[x86.VirtAddr]bool)
		}
		stray = len(left) > 0
		r.strayTargets[page] = stray
	} else if !known {
		stray = true
	}
	return stray, nil
}

// helpers are the kernel's variables that name a program which the kernel itself
// starts, as root; each with the size it has in all kernels.
var helpers = [...]struct {
	name string
	size int
}{
	{"modprobe_path", 256}, {"core_pattern", 128}, {"poweroff_cmd", 256}, {"uevent_helper", 256},
}

// checkHelpers: the kernel starts programs only from where programs are
// installed, and writes core files nowhere where they would be executed.
func (r *Reader) checkHelpers() (int, []report.Finding, error) {
	return r.persistent(func() (n int, out findings, err error) {
		var b object
		for _, h := range helpers {
			va, err := r.variable(h.name)
			if err != nil {
				continue // built without
			}
			if err := r.read(&b, va, h.size); err != nil {
				return n, nil, &ReadError{What: h.name, Err: err}
			}
			n++
			raw := cString(b.b)
			if why := helperProblem(h.name, raw); why != "" {
				out.add(findingKey{kind: h.name}, h.name, fmt.Sprintf("%s: it is %q", why, string(b.text(0, h.size))), nil)
			}
		}
		if n == 0 {
			return 0, nil, &ReadError{What: helpers[0].name, Err: ErrUnsupported}
		}
		return n, out, nil
	})
}

// cString is b up to its first NUL.
func cString(b []byte) string {
	for i, c := range b {
		if c == 0 {
			return string(b[:i])
		}
	}
	return string(b)
}
