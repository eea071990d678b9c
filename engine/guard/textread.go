package guard

import (
	"fmt"

	"github.com/xen-hvi/hvi/engine/policy"
	"github.com/xen-hvi/hvi/engine/vmevent"
	"github.com/xen-hvi/hvi/engine/xen"
)

// KernelTextRead keeps the kernel's code, from _text to _etext, from being read by
// anything but the kernel's own checkers, through any mapping of its frames. Who looks
// for gadgets, for where things are in spite of KASLR, or for whether it is watched,
// reads code; a kernel executes it.
//
// The frames can be executed and nothing else, which takes views. What of the kernel
// reads its code for its own sake ([linux.TextReaders]) does so for one instruction in
// the view for steps, where the frames can be read and nothing that is guarded can be
// written. A violation that is only reported takes place there, too.
//
// One page stays readable: that of a word which the kernel reads among its code
// ([linux.Kernel.CodeFrames]). The guard can't see who calls a checker: code that is not
// the kernel's can have one of them compare, or decode, some bytes. Nor does it see what
// is read of a page while the kernel reads or patches page after page and those are open.
// An instruction that writes as well is kernel-text's where that holds, and is blocked by
// it as a write: what it has read it keeps.
//
// And a blocked reader's instruction is what it was when the evidence was taken: another
// vCPU that exchanges it for one that copies has Xen's emulator write ones, whatever
// guards what it writes to.
func KernelTextRead() Guard {
	return Guard{
		Name:  policy.GuardKernelTextRead,
		Needs: NeedMemAccess | NeedViews,
		Watch: func(t *Target) (Watch, error) {
			frames, err := t.Kernel.CodeFrames()
			if err != nil {
				return Watch{}, fmt.Errorf("find the frames of kernel text: %w", err)
			}
			return Watch{Frames: frames, Access: xen.AccessX}, nil
		},
		Bind: foreignRead,
	}
}

// foreignRead judges that an access is a violation unless one of the kernel's checkers,
// or what patches its code, makes it.
func foreignRead(t *Target) (func(*vmevent.Event) bool, error) {
	readers, err := t.Kernel.NewTextReaders()
	if err != nil {
		return nil, fmt.Errorf("find what of the kernel reads its code: %w", err)
	}
	return func(ev *vmevent.Event) bool {
		return ev.Reason == vmevent.ReasonMemAccess && ev.Mem.Flags&(vmevent.AccessRead|vmevent.AccessWrite) != 0 && !readers.Own(&ev.Regs)
	}, nil
}

// reads reports whether an event is an access that only reads.
func reads(ev *vmevent.Event) bool {
	return ev.Reason == vmevent.ReasonMemAccess && ev.Mem.Flags&vmevent.AccessRead != 0 && ev.Mem.Flags&vmevent.AccessWrite == 0
}

// Opcodes of instructions that read from one place of memory and write to another;
// Intel SDM volume 2.
const (
	opEnter     = 0xc8
	opPop       = 0x8f // with 0 in ModRM.reg
	opGroup5    = 0xff // CALL is 2 and 3, PUSH 6
	opThree38   = 0x38 // after opTwoBytes
	opMovdir64B = 0xf8 // after opThree38; ENQCMD with other prefixes
)

// carries reports whether the instruction writes what it reads, or something else, to
// another place of memory: Xen's emulator, which gives a reader other bytes, would let
// it write to what is guarded.
func (e *Evidence) carries() bool {
	insn, _, _ := e.opcode()
	if len(insn) == 0 {
		return true
	}
	reg := byte(0)
	if len(insn) > 1 {
		reg = insn[1] >> 3 & 7
	}
	switch insn[0] {
	case opMovsByte, opMovs, opEnter:
		return true
	case opPop:
		return reg == 0
	case opGroup5:
		return reg == 2 || reg == 3 || reg == 6
	case opTwoBytes:
		return len(insn) > 2 && insn[1] == opThree38 && insn[2] == opMovdir64B
	}
	return false
}
