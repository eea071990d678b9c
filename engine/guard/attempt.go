package guard

import (
	"encoding/binary"
	"errors"
	"fmt"

	"golang.org/x/arch/x86/x86asm"

	"github.com/xen-hvi/hvi/engine/vmevent"
)

// Attempted works out the bytes a memory violation tried to store, from the
// instruction, the registers and the memory at RSI taken with the evidence.
// For a repeated string instruction it is the first maxBytes of them. The
// error says why they cannot be told: some instructions store what a ring
// event does not carry (vector registers), others what depends on flags.
func (e *Evidence) Attempted() ([]byte, error) {
	if e.Reason == vmevent.ReasonMemAccess && e.Mem.Flags&vmevent.AccessWrite == 0 {
		return nil, errRead
	}
	if e.insnLen == 0 {
		return nil, errors.New("the instruction could not be read")
	}
	inst, err := x86asm.Decode(e.Insn(), 64)
	if err != nil {
		return nil, fmt.Errorf("the instruction % x could not be decoded", e.Insn())
	}
	size := inst.MemBytes
	switch inst.Op {
	case x86asm.MOV, x86asm.XCHG, x86asm.MOVNTI:
		return e.operand(inst.Args[1], size)
	case x86asm.STOSB, x86asm.STOSW, x86asm.STOSD, x86asm.STOSQ:
		n := stringWidth(inst.Op)
		v := le(e.Regs.RAX, n)
		return repeat(v, e.repetitions(inst)), nil
	case x86asm.MOVSB, x86asm.MOVSW, x86asm.MOVSD, x86asm.MOVSQ:
		n := min(stringWidth(inst.Op)*e.repetitions(inst), maxBytes)
		if int(e.sourceLen) < n {
			return nil, errors.New("the source of the copy could not be read")
		}
		return e.source[:n], nil
	case x86asm.ADD, x86asm.SUB, x86asm.AND, x86asm.OR, x86asm.XOR:
		return e.arithmetic(inst, size)
	case x86asm.INC, x86asm.DEC, x86asm.NOT, x86asm.NEG:
		return e.unary(inst.Op, size)
	}
	return nil, fmt.Errorf("what %s stores is not in the event", inst.Op)
}

// errRead: there are no bytes to be stored.
var errRead = errors.New("it is a read, which stores nothing there")

// operand returns the value of a register or immediate source.
func (e *Evidence) operand(arg x86asm.Arg, size int) ([]byte, error) {
	switch a := arg.(type) {
	case x86asm.Imm:
		return le(uint64(int64(a)), size), nil
	case x86asm.Reg:
		v, ok := e.register(a)
		if !ok {
			return nil, fmt.Errorf("the value of %s is not in the event", a)
		}
		return le(v, size), nil
	}
	return nil, fmt.Errorf("unexpected source operand %v", arg)
}

func (e *Evidence) arithmetic(inst x86asm.Inst, size int) ([]byte, error) {
	src, err := e.operand(inst.Args[1], size)
	if err != nil {
		return nil, err
	}
	old, err := e.old(size)
	if err != nil {
		return nil, err
	}
	s := fromLE(src)
	switch inst.Op {
	case x86asm.ADD:
		old += s
	case x86asm.SUB:
		old -= s
	case x86asm.AND:
		old &= s
	case x86asm.OR:
		old |= s
	case x86asm.XOR:
		old ^= s
	}
	return le(old, size), nil
}

func (e *Evidence) unary(op x86asm.Op, size int) ([]byte, error) {
	old, err := e.old(size)
	if err != nil {
		return nil, err
	}
	switch op {
	case x86asm.INC:
		old++
	case x86asm.DEC:
		old--
	case x86asm.NOT:
		old = ^old
	case x86asm.NEG:
		old = -old
	}
	return le(old, size), nil
}

func (e *Evidence) old(size int) (uint64, error) {
	if size > 8 || int(e.beforeLen) < size {
		return 0, errors.New("the target's bytes could not be read")
	}
	return fromLE(e.before[:size]), nil
}

// repetitions is how often a string instruction stores in this page.
func (e *Evidence) repetitions(inst x86asm.Inst) int {
	n := uint64(1)
	for _, p := range inst.Prefix {
		if p&0xff == x86asm.PrefixREP || p&0xff == x86asm.PrefixREPN {
			n = e.Regs.RCX
		}
	}
	return int(min(n, maxBytes))
}

func stringWidth(op x86asm.Op) int {
	switch op {
	case x86asm.STOSB, x86asm.MOVSB:
		return 1
	case x86asm.STOSW, x86asm.MOVSW:
		return 2
	case x86asm.STOSD, x86asm.MOVSD:
		return 4
	}
	return 8
}

// register returns the 64-bit value that holds r, shifted so that r's lowest
// byte is the value's.
func (e *Evidence) register(r x86asm.Reg) (uint64, bool) {
	g := &e.Regs
	all := [...]uint64{g.RAX, g.RCX, g.RDX, g.RBX, g.RSP, g.RBP, g.RSI, g.RDI,
		g.R8, g.R9, g.R10, g.R11, g.R12, g.R13, g.R14, g.R15}
	switch {
	case r >= x86asm.AL && r <= x86asm.BL:
		return all[r-x86asm.AL], true
	case r >= x86asm.AH && r <= x86asm.BH:
		return all[r-x86asm.AH] >> 8, true
	case r >= x86asm.SPB && r <= x86asm.R15B:
		return all[r-x86asm.SPB+4], true
	case r >= x86asm.AX && r <= x86asm.R15W:
		return all[r-x86asm.AX], true
	case r >= x86asm.EAX && r <= x86asm.R15L:
		return all[r-x86asm.EAX], true
	case r >= x86asm.RAX && r <= x86asm.R15:
		return all[r-x86asm.RAX], true
	}
	return 0, false
}

func le(v uint64, size int) []byte {
	var b [8]byte
	binary.LittleEndian.PutUint64(b[:], v)
	return b[:min(max(size, 0), 8)]
}

func fromLE(b []byte) uint64 {
	var w [8]byte
	copy(w[:], b)
	return binary.LittleEndian.Uint64(w[:])
}

// repeat returns v n times, at most maxBytes of it.
func repeat(v []byte, n int) []byte {
	var out []byte
	for range n {
		if len(out)+len(v) > maxBytes {
			break
		}
		out = append(out, v...)
	}
	return out
}

// Width returns how many bytes of the target the violation concerned: those
// attempted, or one where that cannot be told.
func (e *Evidence) Width() int {
	if b, err := e.Attempted(); err == nil {
		return max(1, len(b))
	}
	return 1
}
