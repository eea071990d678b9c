package guard

import (
	"encoding/binary"
	"math"
)

// Prefixes and opcodes of the stores that stored knows; Intel SDM volume 2.
const (
	prefixOperandSize = 0x66
	prefixREPNE       = 0xf2
	prefixREP         = 0xf3

	opXchgByte   = 0x86
	opXchg       = 0x87
	opMovByte    = 0x88
	opMov        = 0x89
	opMovsByte   = 0xa4
	opMovs       = 0xa5
	opStosByte   = 0xaa
	opStos       = 0xab
	opMovImmByte = 0xc6
	opMovImm     = 0xc7
	opTwoBytes   = 0x0f
	opMovnti     = 0xc3 // after opTwoBytes

	rflagsDF = 1 << 10
)

// stored puts what a memory violation was about to store into to, and returns how
// many bytes it is, 0 where that can't be told. It is [Evidence.Attempted] for the
// ring goroutine: it allocates nothing, and knows only the stores that code is
// patched with (mov, movnti, xchg, stos, movs). What it returns Attempted returns
// too.
func (e *Evidence) stored(to *[maxBytes]byte) int {
	in := storeInsn{b: e.insn[:e.insnLen], size: 4}
	if !in.prefixes() {
		return 0
	}
	switch op := in.next(); op {
	case opMovByte, opXchgByte, opMov, opXchg:
		if op == opMovByte || op == opXchgByte {
			in.size = 1
		}
		return in.fromRegister(e, to)
	case opTwoBytes:
		if in.next() != opMovnti || in.operand16 {
			return 0
		}
		return in.fromRegister(e, to)
	case opMovImmByte:
		in.size = 1
		return in.immediate(to)
	case opMovImm:
		return in.immediate(to)
	case opStosByte, opStos:
		if op == opStosByte {
			in.size = 1
		}
		n := in.count(e)
		for i := range n {
			putLE(to[i*in.size:], e.Regs.RAX, in.size)
		}
		return n * in.size
	case opMovsByte, opMovs:
		if op == opMovsByte {
			in.size = 1
		}
		n := in.count(e) * in.size
		if int(e.sourceLen) < n {
			return 0
		}
		return copy(to[:n], e.source[:])
	}
	return 0
}

// opcode returns the instruction without its prefixes, whether it is repeated, should
// it be one of strings, and how large its operands are, in bytes. It reads any prefix;
// the instruction is empty where there is nothing else.
func (e *Evidence) opcode() (insn []byte, repeated bool, size int) {
	size = 4
	for i, c := range e.Insn() {
		switch c {
		case prefixREPNE, prefixREP:
			repeated = true
		case prefixOperandSize:
			size = 2
		case 0x26, 0x2e, 0x36, 0x3e, 0x64, 0x65, 0x67, 0xf0: // segments, addresses, LOCK
		default:
			if c&0xf0 != 0x40 {
				return e.Insn()[i:], repeated, size
			}
			if c&8 != 0 {
				size = 8
			}
		}
	}
	return nil, repeated, size
}

// copies reports whether the instruction is a MOVS, which takes its bytes from RSI.
func (e *Evidence) copies() bool {
	insn, _, _ := e.opcode()
	return len(insn) > 0 && (insn[0] == opMovsByte || insn[0] == opMovs)
}

// reach returns how many bytes the instruction may store from the one that was
// accessed on, with all its repetitions; MaxUint64 where that can't be told. Some that
// are not told store a kilobyte (XSAVE), or in many places (scatters).
func (e *Evidence) reach() uint64 {
	insn, repeated, size := e.opcode()
	if len(insn) == 0 {
		return math.MaxUint64
	}
	switch insn[0] {
	case opMovsByte, opStosByte:
		size = 1
	case opMovs, opStos:
	default:
		if !storesOperand(insn) {
			return math.MaxUint64
		}
		var to [maxBytes]byte
		if n := e.stored(&to); n > 0 {
			return uint64(n)
		}
		if op := insn[0]; op != opTwoBytes && op&1 == 0 || op == opTwoBytes && (insn[1] == 0xb0 || insn[1] == 0xc0) {
			size = 1 // the even opcodes are those of bytes, but for BTS and its kin
		}
		return uint64(size)
	}
	n := e.Regs.RCX
	switch {
	case !repeated:
		n = 1
	case n > 1 && e.Regs.RFLAGS&rflagsDF != 0, n > math.MaxUint64/8:
		return math.MaxUint64
	}
	return n * uint64(size)
}

// storesOperand reports whether an instruction stores no more than its one operand in
// memory (Intel SDM volume 2, appendix A): what a kernel changes a variable with.
func storesOperand(insn []byte) bool {
	switch op := insn[0]; {
	case op < 0x38 && op&7 < 2, // ADD, OR, ADC, SBB, AND, SUB, XOR
		op >= 0x80 && op <= 0x83, op >= opXchgByte && op <= opMov,
		op == 0xc0 || op == 0xc1 || op >= 0xd0 && op <= 0xd3, // shifts
		op == opMovImmByte || op == opMovImm,
		op == 0xf6 || op == 0xf7 || op == 0xfe: // NOT, NEG, INC, DEC
		return true
	case op == 0xff: // INC, DEC; not PUSH and the calls, which store eight bytes
		return len(insn) > 1 && insn[1]>>3&7 < 2
	case op == opTwoBytes && len(insn) > 1:
		switch insn[1] {
		case 0xab, 0xb3, 0xba, 0xbb, // BTS, BTR, BTC
			0xb0, 0xb1, 0xc0, 0xc1, opMovnti: // CMPXCHG, XADD
			return true
		}
	}
	return false
}

// storeInsn is an instruction being decoded.
type storeInsn struct {
	b   []byte
	at  int
	bad bool

	rex            byte
	rep, operand16 bool
	size           int // of the operand, in bytes
}

// next is the next byte; 0, and bad, beyond the end.
func (in *storeInsn) next() byte {
	if in.at >= len(in.b) {
		in.bad = true
		return 0
	}
	in.at++
	return in.b[in.at-1]
}

// prefixes reads them, and reports whether they are some that stored knows. A
// segment moves the address only; LOCK, another size of addresses and more than
// one REX don't occur in such stores.
func (in *storeInsn) prefixes() bool {
	for ; in.at < len(in.b); in.at++ {
		switch c := in.b[in.at]; {
		case c == prefixOperandSize:
			in.operand16, in.size = true, 2
		case c == prefixREP || c == prefixREPNE:
			in.rep = true
		case c&0xf0 == 0x40:
			in.rex = c
			if c&8 != 0 {
				in.size = 8
			}
			in.at++
			return true
		default:
			return true
		}
	}
	return false
}

// modRM reads the operand byte and skips the address, and returns the register
// beside it. It is bad where the destination is a register.
func (in *storeInsn) modRM() (reg int) {
	m := in.next()
	mod, rm := m>>6, m&7
	if mod == 3 {
		in.bad = true
	}
	disp := [4]int{0, 1, 4, 0}[mod]
	switch {
	case rm == 4:
		if sib := in.next(); mod == 0 && sib&7 == 5 {
			disp = 4
		}
	case mod == 0 && rm == 5:
		disp = 4
	}
	in.at += disp
	return int(m >> 3 & 7)
}

func (in *storeInsn) fromRegister(e *Evidence, to *[maxBytes]byte) int {
	reg := in.modRM()
	if in.bad || in.at > len(in.b) {
		return 0
	}
	g := &e.Regs
	all := [...]uint64{g.RAX, g.RCX, g.RDX, g.RBX, g.RSP, g.RBP, g.RSI, g.RDI, g.R8, g.R9, g.R10, g.R11, g.R12, g.R13, g.R14, g.R15}
	var v uint64
	switch {
	case in.size == 1 && in.rex == 0 && reg >= 4:
		v = all[reg-4] >> 8 // AH, CH, DH, BH
	default:
		v = all[reg|int(in.rex&4)<<1]
	}
	putLE(to[:], v, in.size)
	return in.size
}

func (in *storeInsn) immediate(to *[maxBytes]byte) int {
	if in.modRM() != 0 { // the opcode's extension
		return 0
	}
	var v uint64
	n := min(in.size, 4)
	for i := range n {
		v |= uint64(in.next()) << (8 * i)
	}
	if in.bad {
		return 0
	}
	putLE(to[:], uint64(int64(int32(v))), in.size)
	return in.size
}

// count is how many elements of a string instruction are told. One that goes
// downwards is told by its first.
func (in *storeInsn) count(e *Evidence) int {
	switch {
	case !in.rep:
		return 1
	case e.Regs.RFLAGS&rflagsDF != 0:
		return int(min(e.Regs.RCX, 1))
	}
	return int(min(e.Regs.RCX, uint64(maxBytes/in.size)))
}

func putLE(to []byte, v uint64, size int) {
	var b [8]byte
	binary.LittleEndian.PutUint64(b[:], v)
	copy(to, b[:size])
}
