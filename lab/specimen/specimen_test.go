package specimen

import (
	"bytes"
	"encoding/binary"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/xen-hvi/hvi/lab/image"
)

func TestVariantString(t *testing.T) {
	k := image.Kernel{Name: "6.1-cloud"}
	for _, c := range []struct {
		v    Variant
		want string
	}{
		{Variant{Kernel: k}, "6.1-cloud"},
		{Variant{Kernel: k, VCPUs: 4, Memory: 512, PTI: true, LA57: true}, "6.1-cloud-4cpu-512m-pti-la57"},
		{Variant{Kernel: k, Load: []string{"hide task=hide-me pids=1"}}, "6.1-cloud-hide-task-hide-me-pids-1"},
	} {
		if got := c.v.String(); got != c.want {
			t.Errorf("%s, want %s", got, c.want)
		}
	}
}

// twoProcessors is what QEMU 7.2 says of two, shortened.
const twoProcessors = `
CPU#0
RAX=000000000000000b RBX=00000000005e22c0 RCX=0000000034d060a0 RDX=0000000034d0609f
RSI=00000000005e22c0 RDI=00000000005c0d6d RBP=00000000005c0d6d RSP=00007fff7b9ee938
R8 =00007fff7b9ee7a0 R9 =0000000000000000 R10=0000000000001000 R11=0000000000000202
R12=00007fff7b9eea28 R13=0000000000000001 R14=0000000000000000 R15=0000000000000001
RIP=0000000000401118 RFL=00000202 [-------] CPL=3 II=0 A20=1 SMM=0 HLT=0
ES =0000 0000000000000000 ffffffff 00c00000
CS =0033 0000000000000000 ffffffff 00affb00 DPL=3 CS64 [-RA]
SS =002b 0000000000000000 ffffffff 00cff300 DPL=3 DS   [-WA]
FS =0000 0000000034d06380 ffffffff 00c00000
GS =0000 0000000000000000 ffffffff 00c00000
LDT=0000 0000000000000000 ffffffff 00c00000
TR =0040 fffffe0000003000 00004087 00008b00 DPL=0 TSS64-busy
GDT=     fffffe0000001000 0000007f
IDT=     fffffe0000000000 00000fff
CR0=80050033 CR2=00007fd4e0b5b000 CR3=0000000002f42000 CR4=000006b0
DR0=0000000000000000 DR1=0000000000000000 DR2=0000000000000000 DR3=0000000000000000
CCS=0000000000000001 CCD=00000000005e22c0 CCO=INCL
EFER=0000000000000d01
FCW=037f FSW=0000 [ST=0] FTW=00 MXCSR=00001f80
XMM00=0000000000000000 0000000000000000 XMM01=0000000000000000 0000000000000000

`

func TestParseRegisters(t *testing.T) {
	second := strings.ReplaceAll(twoProcessors, "CPU#0", "CPU#1")
	second = strings.Replace(second, "GS =0000 0000000000000000", "GS =0000 ffff892587c00000", 1)
	got, err := parseRegisters(twoProcessors + second)
	if err != nil || len(got) != 2 {
		t.Fatalf("%d processors, %v", len(got), err)
	}
	want := Registers{
		RAX: 0xb, RBX: 0x5e22c0, RCX: 0x34d060a0, RDX: 0x34d0609f, RSI: 0x5e22c0, RDI: 0x5c0d6d, RBP: 0x5c0d6d, RSP: 0x7fff7b9ee938,
		R8: 0x7fff7b9ee7a0, R10: 0x1000, R11: 0x202, R12: 0x7fff7b9eea28, R13: 1, R15: 1,
		RIP: 0x401118, RFLAGS: 0x202, CR0: 0x80050033, CR2: 0x7fd4e0b5b000, CR3: 0x2f42000, CR4: 0x6b0, EFER: 0xd01,
		FSBase: 0x34d06380, IDTBase: 0xfffffe0000000000, IDTLimit: 0xfff, GDTBase: 0xfffffe0000001000, GDTLimit: 0x7f,
		CS: 0x33, SS: 0x2b, CPL: 3,
	}
	if got[0] != want {
		t.Errorf("got  %+v\nwant %+v", got[0], want)
	}
	if got[1].GSBase != 0xffff892587c00000 {
		t.Errorf("GS base of the second %#x", got[1].GSBase)
	}
	if _, err := parseRegisters(strings.Replace(twoProcessors, "CR3=", "CRX=", 1)); err == nil || !strings.Contains(err.Error(), "CR3") {
		t.Errorf("without CR3: %v", err)
	}
}

// note is an ELF note, padded.
func note(owner string, desc []byte) []byte {
	b := binary.LittleEndian.AppendUint32(nil, uint32(len(owner)+1))
	b = binary.LittleEndian.AppendUint32(b, uint32(len(desc)))
	b = append(binary.LittleEndian.AppendUint32(b, 0), owner...)
	b = append(b, make([]byte, 4-len(owner)%4)...)
	return append(b, append(desc, make([]byte, -len(desc)&3)...)...)
}

func TestKernelGSBases(t *testing.T) {
	state := make([]byte, noteSize)
	binary.LittleEndian.PutUint64(state[noteKernelGS:], 0xffff888000000000)
	old := make([]byte, noteKernelGS) // before the member was added
	notes := bytes.Join([][]byte{note("CORE", make([]byte, 336)), note("QEMU", state), note("QEMU", old), {1, 2, 3}}, nil)

	// An ELF header and one program header, Elf64_Ehdr and Elf64_Phdr.
	core := make([]byte, 64+56)
	copy(core, "\x7fELF\x02\x01\x01")
	binary.LittleEndian.PutUint16(core[16:], 4)  // ET_CORE
	binary.LittleEndian.PutUint16(core[18:], 62) // EM_X86_64
	binary.LittleEndian.PutUint32(core[20:], 1)
	binary.LittleEndian.PutUint64(core[32:], 64) // e_phoff
	binary.LittleEndian.PutUint16(core[52:], 64)
	binary.LittleEndian.PutUint16(core[54:], 56)
	binary.LittleEndian.PutUint16(core[56:], 1)
	binary.LittleEndian.PutUint32(core[64:], 4) // PT_NOTE
	binary.LittleEndian.PutUint64(core[64+8:], uint64(len(core)))
	binary.LittleEndian.PutUint64(core[64+32:], uint64(len(notes)))
	name := filepath.Join(t.TempDir(), "core")
	if err := os.WriteFile(name, append(core, notes...), 0o644); err != nil {
		t.Fatal(err)
	}
	got, err := kernelGSBases(name)
	if err != nil || len(got) != 1 || got[0] != 0xffff888000000000 {
		t.Errorf("%#x, %v", got, err)
	}
}

func TestDigHoles(t *testing.T) {
	name := filepath.Join(t.TempDir(), "f")
	data := make([]byte, 300<<10)
	data[100<<10], data[len(data)-1] = 1, 2
	for _, want := range [][]byte{data, make([]byte, 200<<10), {}, {7}} {
		if err := os.WriteFile(name, want, 0o644); err != nil {
			t.Fatal(err)
		}
		if err := digHoles(name); err != nil {
			t.Fatal(err)
		}
		if got, err := os.ReadFile(name); err != nil || !bytes.Equal(got, want) {
			t.Errorf("%d bytes became %d, %v", len(want), len(got), err)
		}
	}
}

func TestLines(t *testing.T) {
	var got []string
	l := &lines{show: func(s string) { got = append(got, s) }}
	for _, p := range []string{"on", "e\r\ntwo\nth", "ree"} {
		if n, err := l.Write([]byte(p)); n != len(p) || err != nil {
			t.Errorf("%d, %v", n, err)
		}
	}
	if strings.Join(got, "|") != "one|two" {
		t.Errorf("%q", got)
	}
}

// TestAddOther: in user mode SWAPGS brings the kernel's GS base; in the kernel
// what it would bring is not known.
func TestAddOther(t *testing.T) {
	const perCPU = 0xffff888012340000
	for _, c := range []struct{ gs, want uint64 }{{0, perCPU}, {0x7f0000001000, perCPU}, {perCPU, 0}} {
		r := Registers{GSBase: c.gs}
		if r.addOther(perCPU); r.KernelGSBase != c.want || r.GSBase != c.gs {
			t.Errorf("with GS base %#x: %#x and %#x", c.gs, r.GSBase, r.KernelGSBase)
		}
	}
}
