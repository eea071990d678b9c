package specimen

import (
	"debug/elf"
	"encoding/binary"
	"fmt"
	"io"
	"regexp"
	"strconv"
	"strings"

	"github.com/xen-hvi/hvi/lab/witness"
)

// Registers are a vCPU's, with the members of x86.Registers, to which they can be
// converted.
type Registers struct {
	RAX, RBX, RCX, RDX uint64
	RSI, RDI, RBP, RSP uint64
	R8, R9, R10, R11   uint64
	R12, R13, R14, R15 uint64
	RIP, RFLAGS        uint64

	CR0, CR2, CR3, CR4 uint64
	EFER               uint64

	FSBase, GSBase, KernelGSBase uint64

	STAR, LSTAR, CSTAR, SFMask           uint64
	SysenterCS, SysenterESP, SysenterEIP uint64
	IDTBase, GDTBase                     uint64
	IDTLimit, GDTLimit                   uint32
	CS, SS                               uint16
	CPL                                  uint8
}

// add fills in what QEMU's monitor doesn't show. It is the same from boot on.
func (r *Registers) add(p witness.Processor) {
	r.STAR, r.LSTAR, r.CSTAR, r.SFMask = p.STAR, p.LSTAR, p.CSTAR, p.SFMask
	r.SysenterCS, r.SysenterESP, r.SysenterEIP = p.SysenterCS, p.SysenterESP, p.SysenterEIP
}

// A core file of QEMU's has a note "QEMU" for each vCPU (QEMUCPUState in
// target/i386/arch_dump.c): version and size, 18 registers, 10 segments of 24
// bytes, 5 control registers, and the other GS base.
const (
	noteOwner      = "QEMU\x00"
	noteKernelGS   = 8 + 18*8 + 10*24 + 5*8
	noteSize       = noteKernelGS + 8
	maxNotes       = 1 << 20
	noteHeaderSize = 12
)

// kernelGSBases returns what SWAPGS would bring each vCPU.
func kernelGSBases(core string) ([]uint64, error) {
	f, err := elf.Open(core)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	var out []uint64
	for _, p := range f.Progs {
		if p.Type != elf.PT_NOTE {
			continue
		}
		notes, err := io.ReadAll(io.LimitReader(p.Open(), maxNotes))
		if err != nil {
			return nil, fmt.Errorf("%s: %w", core, err)
		}
		for len(notes) >= noteHeaderSize {
			owner, size := uint64(binary.LittleEndian.Uint32(notes)), uint64(binary.LittleEndian.Uint32(notes[4:]))
			from := noteHeaderSize + (owner+3)&^3
			to := from + (size+3)&^3
			if to > uint64(len(notes)) {
				break
			}
			if string(notes[noteHeaderSize:noteHeaderSize+owner]) == noteOwner && size >= noteSize {
				out = append(out, binary.LittleEndian.Uint64(notes[from+noteKernelGS:]))
			}
			notes = notes[to:]
		}
	}
	return out, nil
}

// What `info registers` says, in QEMU 7.2 (target/i386/cpu-dump.c):
//
//	CPU#0
//	RAX=0000000000000000 RBX=... R8 =0000000000000000 ...
//	RIP=ffffffff81000000 RFL=00000246 [---Z-P-] CPL=0 II=0 A20=1 SMM=0 HLT=1
//	CS =0010 0000000000000000 ffffffff 00af9b00 DPL=0 CS64 [-RA]
//	FS =0000 0000000000000000 00000000 00000000
//	GDT=     fffffe0000001000 0000007f
//	CR0=80050033 CR2=00007f... CR3=0000000001000000 CR4=000006f0
//	EFER=0000000000000d01
var (
	perProcessor = regexp.MustCompile(`(?m)^CPU#\d+\s*$`)
	plainValue   = regexp.MustCompile(`\b([A-Z0-9]{2,4}) ?=([0-9a-f]+)`)
	segment      = regexp.MustCompile(`(?m)^([CDEFGS]S) =([0-9a-f]{4}) ([0-9a-f]{16})`)
	table        = regexp.MustCompile(`(?m)^([GI]DT)= +([0-9a-f]{16}) ([0-9a-f]{8})`)
)

// parseRegisters reads the text of `info registers -a`.
func parseRegisters(text string) ([]Registers, error) {
	var out []Registers
	for _, part := range perProcessor.Split(text, -1) {
		if strings.TrimSpace(part) == "" {
			continue
		}
		var r Registers
		plain := map[string]*uint64{
			"RAX": &r.RAX, "RBX": &r.RBX, "RCX": &r.RCX, "RDX": &r.RDX, "RSI": &r.RSI, "RDI": &r.RDI, "RBP": &r.RBP, "RSP": &r.RSP,
			"R8": &r.R8, "R9": &r.R9, "R10": &r.R10, "R11": &r.R11, "R12": &r.R12, "R13": &r.R13, "R14": &r.R14, "R15": &r.R15,
			"RIP": &r.RIP, "RFL": &r.RFLAGS, "CR0": &r.CR0, "CR2": &r.CR2, "CR3": &r.CR3, "CR4": &r.CR4, "EFER": &r.EFER,
		}
		for _, m := range plainValue.FindAllStringSubmatch(part, -1) {
			n, err := strconv.ParseUint(m[2], 16, 64)
			if err != nil {
				return nil, fmt.Errorf("register %s: %w", m[0], err)
			}
			switch to := plain[m[1]]; {
			case m[1] == "CPL":
				r.CPL = uint8(n)
			case to != nil:
				*to = n
				delete(plain, m[1])
			}
		}
		for name := range plain {
			return nil, fmt.Errorf("vCPU %d: QEMU's monitor doesn't show register %s", len(out), name)
		}
		for _, m := range segment.FindAllStringSubmatch(part, -1) {
			selector, _ := strconv.ParseUint(m[2], 16, 16) // the pattern lets nothing else pass
			base, _ := strconv.ParseUint(m[3], 16, 64)
			switch m[1] {
			case "CS":
				r.CS = uint16(selector)
			case "SS":
				r.SS = uint16(selector)
			case "FS":
				r.FSBase = base
			case "GS":
				r.GSBase = base
			}
		}
		for _, m := range table.FindAllStringSubmatch(part, -1) {
			base, _ := strconv.ParseUint(m[2], 16, 64)
			limit, _ := strconv.ParseUint(m[3], 16, 32)
			if m[1] == "GDT" {
				r.GDTBase, r.GDTLimit = base, uint32(limit)
			} else {
				r.IDTBase, r.IDTLimit = base, uint32(limit)
			}
		}
		out = append(out, r)
	}
	return out, nil
}
