package view

import "encoding/binary"

// emulable reports whether Xen's emulator carries an instruction out as the
// processor does, in every release and whatever the guest's state: those that a
// kernel's functions begin with. Measured, that is cheaper than a step, which takes
// another exit from the guest and two changes of its view (docs/performance.md).
//
// insn is what is left of the page; an instruction that goes beyond it is none of
// these.
func emulable(insn []byte) bool {
	const (
		nop     = 0x90
		push    = 0x50 // to 0x57, one for each register
		rexB    = 0x41
		endbr64 = 0xfa1e0ff3
		longNop = 0x1f0f
	)
	switch {
	case len(insn) >= 1 && (insn[0] == nop || insn[0]&^7 == push),
		len(insn) >= 2 && insn[0] == rexB && insn[1]&^7 == push,
		len(insn) >= 4 && binary.LittleEndian.Uint32(insn) == endbr64:
		return true
	}
	// nopl disp8(%rax,%rax,1): where ftrace may put a call.
	return len(insn) >= 5 && binary.LittleEndian.Uint16(insn) == longNop && insn[2] == 0x44 && insn[3] == 0
}
