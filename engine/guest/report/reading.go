package report

import (
	"fmt"

	"github.com/xen-hvi/hvi/engine/x86"
)

// Reading says how a report came about.
type Reading struct {
	// Retries counts how often the guest changed something in the middle of
	// its being read, so that it was read again.
	Retries int `json:"retries"`
	// Incomplete says what is missing from the report and why, a sentence for
	// each; nothing that was read inconsistently is in the report.
	Incomplete []string `json:"incomplete,omitempty"`
	// Microseconds is how long the reading took.
	Microseconds int64 `json:"microseconds"`
}

// List is a report of several things of a kind.
type List[T any] struct {
	Reading Reading `json:"reading"`
	Items   []T     `json:"items"`
}

// Cut leaves the first n items and says what was left out.
func (l *List[T]) Cut(n int) {
	if len(l.Items) > n {
		l.Reading.Incomplete = append(l.Reading.Incomplete, fmt.Sprintf("all but the first %d of %d", n, len(l.Items)))
		l.Items = l.Items[:n]
	}
}

// Place is where in the kernel an address lies.
type Place struct {
	Addr x86.VirtAddr `json:"addr"`
	// Symbol is the nearest symbol at or below Addr, and Offset the distance
	// from it in bytes.
	Symbol Text   `json:"symbol,omitzero"`
	Offset uint64 `json:"offset,omitzero"`
	// Module is the module that Addr lies in.
	Module Text `json:"module,omitzero"`
	// In says what kind of memory it is.
	In Region `json:"in"`
}

// Region is a kind of kernel memory.
type Region string

// The regions.
const (
	InKernel  Region = "kernel"  // text of the kernel's image
	InData    Region = "data"    // the kernel's image, but not its text
	InModule  Region = "module"  // of a loaded module
	InBPF     Region = "bpf"     // code that the kernel's BPF compiler made, or a BPF trampoline
	InFtrace  Region = "ftrace"  // a trampoline of ftrace, kprobes or optprobes
	InUser    Region = "user"    // an address of user space
	InUnknown Region = "unknown" // none of these: memory that should hold no code
	InNothing Region = "none"    // a null pointer
)

// Code says whether legitimate kernel code lies there.
func (r Region) Code() bool {
	return r == InKernel || r == InModule || r == InBPF || r == InFtrace
}
