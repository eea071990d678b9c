package guard

import (
	"fmt"

	"github.com/xen-hvi/hvi/engine/policy"
	"github.com/xen-hvi/hvi/engine/vmevent"
	"github.com/xen-hvi/hvi/engine/x86"
	"github.com/xen-hvi/hvi/engine/xen"
)

// KernelText protects the kernel's code, from _text to _etext, against every
// write through any mapping of its frames.
//
// The kernel patches itself (static keys, static calls, ftrace, kprobes), and
// only through text_poke: it maps the page, writable, at an address in the
// user half of a page table nobody else uses (poking_mm), and copies from
// kernel code. A write is the kernel's own when all three hold: that page
// table is loaded, the address is in that window, and the instruction is in
// kernel text, which this guard keeps honest. Everything else is a violation.
//
// Code that is not the kernel's and calls text_poke looks the same from here. So what
// has been patched is looked at soon afterwards: whether it is a place that the kernel
// patches, and with what belongs there. Without page access, all of the code is
// compared now and then with what it was.
func KernelText() Guard {
	return Guard{
		Name:  policy.GuardKernelText,
		Needs: NeedMemAccess,
		Scan:  scanText, Patches: true,
		Watch: func(t *Target) (Watch, error) {
			frames, err := t.Kernel.TextFrames()
			if err != nil {
				return Watch{}, fmt.Errorf("find the frames of kernel text: %w", err)
			}
			return Watch{Frames: frames, Access: xen.AccessRX}, nil
		},
		Bind: foreignWrite,
	}
}

// foreignWrite judges that every write is a violation but for those of the
// kernel's own text_poke.
func foreignWrite(t *Target) (func(*vmevent.Event) bool, error) {
	poke, err := t.Kernel.TextPoke()
	if err != nil {
		return nil, fmt.Errorf("find the kernel's own way of patching text: %w", err)
	}
	start, end := t.Kernel.TextStart, t.Kernel.TextEnd
	return func(ev *vmevent.Event) bool {
		if ev.Reason != vmevent.ReasonMemAccess || ev.Mem.Flags&vmevent.AccessWrite == 0 {
			return false
		}
		rip := x86.VirtAddr(ev.Regs.RIP)
		ownCode := rip >= start && rip < end
		ownTable := x86.PhysAddr(ev.Regs.CR3&x86.CR3AddrMask) == poke.CR3
		ownWindow := ev.Mem.Flags&vmevent.AccessGLAValid != 0 && poke.Contains(ev.Mem.GLA)
		return !(ownCode && ownTable && ownWindow)
	}, nil
}
