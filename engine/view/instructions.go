package view

import (
	"bytes"

	"golang.org/x/arch/x86/x86asm"

	"github.com/xen-hvi/hvi/engine/x86"
)

// Instructions are those of a page of code that Xen's emulator knows, by where they begin:
// in the page, or so many bytes before it that they reach into it.
type Instructions struct {
	// code is what they were read from, with what is around the page as far as an
	// instruction reaches.
	code  [maxInsn + x86.PageSize + maxInsn]byte
	known map[int16]known
}

// maxInsn is how many bytes an instruction has at most.
const maxInsn = 15

// known is an instruction that the emulator may be asked for.
type known struct {
	n      uint8 // bytes
	writes bool
	to     store
}

// at returns the code that was read from a place on, as far as an instruction reaches.
func (i *Instructions) at(off int) []byte { return i.code[maxInsn+off:][:maxInsn] }

// Add takes in a function: its code from where it begins, which is at so many bytes from
// the page's beginning, before it where that is negative. What is behind the page is
// needed as far as an instruction may reach.
func (i *Instructions) Add(at int, code []byte) {
	if i.known == nil {
		i.known = make(map[int16]known)
	}
	if from := max(at, -maxInsn); from < x86.PageSize+maxInsn && from-at < len(code) {
		copy(i.code[maxInsn+from:], code[from-at:])
	}
	for len(code) > 0 && at < x86.PageSize {
		insn, n := instruction(code)
		if n == 0 {
			return // where the next begins is not known
		}
		if insn.n > 0 && at+n > 0 {
			i.known[int16(at)] = insn
		}
		at += n
		code = code[n:]
	}
}

// unnamed are instructions that the decoder doesn't know, and the emulator does: endbr64,
// clac, stac.
var unnamed = [][]byte{{0xf3, 0x0f, 0x1e, 0xfa}, {0x0f, 0x01, 0xca}, {0x0f, 0x01, 0xcb}}

// instruction returns the first of some if the emulator may be asked for it, else one of no
// bytes, and how many it has, 0 where that is not known.
func instruction(code []byte) (known, int) {
	for _, u := range unnamed {
		if bytes.HasPrefix(code, u) {
			return known{n: uint8(len(u))}, len(u)
		}
	}
	insn, err := x86asm.Decode(code, 64)
	if err != nil {
		return known{}, 0
	}
	how, ok := emulated[insn.Op]
	k := known{n: uint8(insn.Len)}
	if ok && how != reads {
		k.to, k.writes, ok = storeOf(&insn, how)
	}
	if !ok || special(&insn) {
		return known{}, insn.Len
	}
	return k, insn.Len
}

// special reports whether an instruction has to do with registers other than the ordinary
// ones, which changes more than them.
func special(insn *x86asm.Inst) bool {
	for _, a := range insn.Args {
		if r, is := a.(x86asm.Reg); is && r > x86asm.RIP {
			return true
		}
	}
	return false
}

// store is where an instruction writes to.
type store struct {
	base, index register
	segment     x86asm.Reg // FS, GS, or 0
	scale       uint8
	size        uint8 // bytes, each turn
	repeats     bool  // it is a string instruction with a prefix that repeats it
	disp        int64 // with the instruction's length where base is RIP
	string      bool
}

// register is one of the sixteen, RIP, or none.
type register uint8

const (
	noRegister register = iota
	instructionPointer
	firstRegister // RAX, and the others in the processor's order
)

// of returns a register's value.
func (r register) of(regs *x86.Registers) uint64 {
	switch r {
	case noRegister:
		return 0
	case instructionPointer:
		return regs.RIP
	}
	return *[...]*uint64{
		&regs.RAX, &regs.RCX, &regs.RDX, &regs.RBX, &regs.RSP, &regs.RBP, &regs.RSI, &regs.RDI,
		&regs.R8, &regs.R9, &regs.R10, &regs.R11, &regs.R12, &regs.R13, &regs.R14, &regs.R15,
	}[r-firstRegister]
}

func registerOf(r x86asm.Reg) (register, bool) {
	switch {
	case r == 0:
		return noRegister, true
	case r == x86asm.RIP:
		return instructionPointer, true
	case r >= x86asm.RAX && r <= x86asm.R15:
		return firstRegister + register(r-x86asm.RAX), true
	}
	return 0, false
}

// storeOf says where an instruction writes to, of which that is known.
func storeOf(insn *x86asm.Inst, how writing) (to store, writes, known bool) {
	switch how {
	case pushes:
		return store{base: firstRegister + register(x86asm.RSP-x86asm.RAX), disp: -8, size: 8}, true, insn.DataSize != 16
	case toRDI:
		to := store{base: firstRegister + register(x86asm.RDI-x86asm.RAX), size: turnSize[insn.Op], string: true}
		for _, p := range insn.Prefix {
			p &^= x86asm.PrefixImplicit | x86asm.PrefixIgnored | x86asm.PrefixInvalid
			to.repeats = to.repeats || p == x86asm.PrefixREP || p == x86asm.PrefixREPN
		}
		return to, true, insn.AddrSize == 64
	}
	for i, a := range insn.Args {
		m, is := a.(x86asm.Mem)
		if !is || i > 0 && how != exchanges {
			continue
		}
		if insn.MemBytes <= 0 || insn.MemBytes > 16 || insn.AddrSize != 64 || insn.Op == x86asm.POP {
			return store{}, false, false // a pop reckons with the stack pointer that it leaves
		}
		to := store{segment: m.Segment, scale: m.Scale, disp: m.Disp, size: uint8(insn.MemBytes)}
		var ok, too bool
		to.base, ok = registerOf(m.Base)
		to.index, too = registerOf(m.Index)
		if to.base == instructionPointer {
			to.disp += int64(insn.Len)
		}
		if how == bits {
			_, immediate := insn.Args[1].(x86asm.Imm)
			ok = ok && immediate // else the bit may be far from there
		}
		return to, true, ok && too
	}
	return store{}, false, true // to a register
}

// turnSize is how many bytes each turn of a string instruction writes.
var turnSize = map[x86asm.Op]uint8{
	x86asm.MOVSB: 1, x86asm.MOVSW: 2, x86asm.MOVSD: 4, x86asm.MOVSQ: 8,
	x86asm.STOSB: 1, x86asm.STOSW: 2, x86asm.STOSD: 4, x86asm.STOSQ: 8,
}

// at returns the first byte that is written, and how many are: of a repeated instruction,
// all turns.
func (s *store) at(regs *x86.Registers) (first, n uint64) {
	first = s.base.of(regs) + s.index.of(regs)*uint64(s.scale) + uint64(s.disp)
	switch s.segment {
	case x86asm.FS:
		first += regs.FSBase
	case x86asm.GS:
		first += regs.GSBase
	}
	n = uint64(s.size)
	if s.repeats {
		n *= min(regs.RCX, 1<<20)
	}
	const directionFlag = 1 << 10
	if s.string && regs.RFLAGS&directionFlag != 0 && n > 0 {
		first -= n - uint64(s.size)
	}
	return first, n
}

// writing is what an instruction does to memory.
type writing uint8

const (
	reads     writing = iota // it writes to none
	writes                   // to its first operand, if that is in memory
	exchanges                // to whichever is
	bits                     // to a bit of the first
	pushes                   // to the stack
	toRDI                    // to what RDI points to
)

// emulated are the instructions that Xen's emulator carries out in every release from
// 4.11 on (x86_emulate.c), of those that compilers make and some others that touch
// nothing but memory and the ordinary registers; those with a lock in one go. UD1 and UD2
// raise their exception there, too.
var emulated = map[x86asm.Op]writing{
	x86asm.ADC: writes, x86asm.ADD: writes, x86asm.AND: writes, x86asm.BSF: reads, x86asm.BSR: reads, x86asm.BSWAP: reads, x86asm.BT: reads,
	x86asm.BTC: bits, x86asm.BTR: bits, x86asm.BTS: bits, x86asm.CALL: pushes, x86asm.CBW: reads, x86asm.CDQ: reads, x86asm.CDQE: reads,
	x86asm.CLC: reads, x86asm.CLD: reads, x86asm.CLI: reads, x86asm.CMC: reads, x86asm.CMOVA: reads, x86asm.CMOVAE: reads, x86asm.CMOVB: reads,
	x86asm.CMOVBE: reads, x86asm.CMOVE: reads, x86asm.CMOVG: reads, x86asm.CMOVGE: reads, x86asm.CMOVL: reads, x86asm.CMOVLE: reads,
	x86asm.CMOVNE: reads, x86asm.CMOVNO: reads, x86asm.CMOVNP: reads, x86asm.CMOVNS: reads, x86asm.CMOVO: reads, x86asm.CMOVP: reads,
	x86asm.CMOVS: reads, x86asm.CMP: reads, x86asm.CMPSB: reads, x86asm.CMPSD: reads, x86asm.CMPSQ: reads, x86asm.CMPSW: reads, x86asm.CMPXCHG: writes,
	x86asm.CMPXCHG16B: writes, x86asm.CMPXCHG8B: writes, x86asm.CQO: reads, x86asm.CWD: reads, x86asm.CWDE: reads, x86asm.DEC: writes,
	x86asm.DIV: reads, x86asm.IDIV: reads, x86asm.IMUL: reads, x86asm.INC: writes, x86asm.JA: reads, x86asm.JAE: reads, x86asm.JB: reads,
	x86asm.JBE: reads, x86asm.JE: reads, x86asm.JECXZ: reads, x86asm.JG: reads, x86asm.JGE: reads, x86asm.JL: reads, x86asm.JLE: reads,
	x86asm.JMP: reads, x86asm.JNE: reads, x86asm.JNO: reads, x86asm.JNP: reads, x86asm.JNS: reads, x86asm.JO: reads, x86asm.JP: reads,
	x86asm.JRCXZ: reads, x86asm.JS: reads, x86asm.LAHF: reads, x86asm.LEA: reads, x86asm.LEAVE: reads, x86asm.LFENCE: reads, x86asm.LODSB: reads,
	x86asm.LODSD: reads, x86asm.LODSQ: reads, x86asm.LODSW: reads, x86asm.LOOP: reads, x86asm.LOOPE: reads, x86asm.LOOPNE: reads, x86asm.MFENCE: reads,
	x86asm.MOV: writes, x86asm.MOVNTI: writes, x86asm.MOVSB: toRDI, x86asm.MOVSD: toRDI, x86asm.MOVSQ: toRDI, x86asm.MOVSW: toRDI,
	x86asm.MOVSX: reads, x86asm.MOVSXD: reads, x86asm.MOVZX: reads, x86asm.MUL: reads, x86asm.NEG: writes, x86asm.NOP: reads, x86asm.NOT: writes,
	x86asm.OR: writes, x86asm.PAUSE: reads, x86asm.POP: writes, x86asm.POPFQ: reads, x86asm.PREFETCHNTA: reads, x86asm.PREFETCHT0: reads,
	x86asm.PREFETCHT1: reads, x86asm.PREFETCHT2: reads, x86asm.PREFETCHW: reads, x86asm.PUSH: pushes, x86asm.PUSHFQ: pushes, x86asm.RCL: writes,
	x86asm.RCR: writes, x86asm.RET: reads, x86asm.ROL: writes, x86asm.ROR: writes, x86asm.SAHF: reads, x86asm.SAR: writes, x86asm.SBB: writes,
	x86asm.SCASB: reads, x86asm.SCASD: reads, x86asm.SCASQ: reads, x86asm.SCASW: reads, x86asm.SETA: writes, x86asm.SETAE: writes, x86asm.SETB: writes,
	x86asm.SETBE: writes, x86asm.SETE: writes, x86asm.SETG: writes, x86asm.SETGE: writes, x86asm.SETL: writes, x86asm.SETLE: writes,
	x86asm.SETNE: writes, x86asm.SETNO: writes, x86asm.SETNP: writes, x86asm.SETNS: writes, x86asm.SETO: writes, x86asm.SETP: writes,
	x86asm.SETS: writes, x86asm.SFENCE: reads, x86asm.SHL: writes, x86asm.SHLD: writes, x86asm.SHR: writes, x86asm.SHRD: writes, x86asm.STC: reads,
	x86asm.STD: reads, x86asm.STI: reads, x86asm.STOSB: toRDI, x86asm.STOSD: toRDI, x86asm.STOSQ: toRDI, x86asm.STOSW: toRDI,
	x86asm.SUB: writes, x86asm.TEST: reads, x86asm.TZCNT: reads, x86asm.UD1: reads, x86asm.UD2: reads, x86asm.XADD: exchanges, x86asm.XCHG: exchanges,
	x86asm.XOR: writes,
}
