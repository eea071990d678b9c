package guard

import (
	"bytes"
	"math"
	"testing"

	"github.com/xen-hvi/hvi/engine/x86"
)

// storedInsns are stores as code is patched with; the bytes are those an assembler
// makes of the comment. Those without a length are not to be told.
var storedInsns = []struct {
	name string
	insn []byte
	n    int
}{
	{"mov %al,(%rdi)", []byte{0x88, 0x07}, 1},
	{"mov %ah,(%rdi)", []byte{0x88, 0x27}, 1},
	{"mov %spl,(%rdi)", []byte{0x40, 0x88, 0x27}, 1},
	{"mov %r9b,(%rdi)", []byte{0x44, 0x88, 0x0f}, 1},
	{"mov %dx,(%rdi)", []byte{0x66, 0x89, 0x17}, 2},
	{"mov %edx,8(%rdi)", []byte{0x89, 0x57, 0x08}, 4},
	{"mov %rdx,0x100(%rdi)", []byte{0x48, 0x89, 0x97, 0, 1, 0, 0}, 8},
	{"mov %r9,(%rsp,%rax)", []byte{0x4c, 0x89, 0x0c, 0x04}, 8},
	{"mov %rdx,0x10(%rip)", []byte{0x48, 0x89, 0x15, 0x10, 0, 0, 0}, 8},
	{"mov %edx,%gs:(%rdi)", []byte{0x65, 0x89, 0x17}, 0},
	{"movb $0xcc,(%rdi)", []byte{0xc6, 0x07, 0xcc}, 1},
	{"movb $0xcc,0x10(%rip)", []byte{0xc6, 0x05, 0x10, 0, 0, 0, 0xcc}, 1},
	{"movw $0x9090,(%rdi)", []byte{0x66, 0xc7, 0x07, 0x90, 0x90}, 2},
	{"movl $0x90909090,(%rdi)", []byte{0xc7, 0x07, 0x90, 0x90, 0x90, 0x90}, 4},
	{"movq $-1,(%rdi)", []byte{0x48, 0xc7, 0x07, 0xff, 0xff, 0xff, 0xff}, 8},
	{"movl $1,(,%rax,4)", []byte{0xc7, 0x04, 0x85, 0, 0, 0, 0, 1, 0, 0, 0}, 4},
	{"xchg %edx,(%rdi)", []byte{0x87, 0x17}, 4},
	{"xchg %dl,(%rdi)", []byte{0x86, 0x17}, 1},
	{"movnti %rdx,(%rdi)", []byte{0x48, 0x0f, 0xc3, 0x17}, 8},
	{"stosb", []byte{0xaa}, 1},
	{"stosq", []byte{0x48, 0xab}, 8},
	{"rep stosw", []byte{0xf3, 0x66, 0xab}, 6},
	{"movsb", []byte{0xa4}, 1},
	{"rep movsb", []byte{0xf3, 0xa4}, 3},
	{"rep movsq", []byte{0xf3, 0x48, 0xa5}, 16},
	{"mov %edx,%edi", []byte{0x89, 0xd7}, 0},
	{"xorb $0xff,(%rdi)", []byte{0x80, 0x37, 0xff}, 0},
	{"movups %xmm0,(%rdi)", []byte{0x0f, 0x11, 0x07}, 0},
	{"lock xchg %edx,(%rdi)", []byte{0xf0, 0x87, 0x17}, 0},
	{"addr32 mov %edx,(%edi)", []byte{0x67, 0x89, 0x17}, 0},
	{"xbegin", []byte{0xc7, 0xf8, 0, 0, 0, 0}, 0},
	{"cut short", []byte{0xc7, 0x07, 0x90}, 0},
	{"cut in the address", []byte{0x89, 0x97, 0}, 0},
	{"nothing", nil, 0},
}

func storing(insn []byte) *Evidence {
	e := &Evidence{Regs: x86.Registers{
		RAX: 0x1122334455667788, RCX: 3, RDX: 0xdeadbeefcafef00d, RSP: 0x5d5c5b5a, RSI: 0x1000, R9: 0x99,
	}}
	e.insnLen = uint8(copy(e.insn[:maxInsn], insn))
	for i := range e.source {
		e.source[i] = byte(i + 1)
	}
	e.sourceLen = maxBytes
	return e
}

func TestStored(t *testing.T) {
	for _, c := range storedInsns {
		e := storing(c.insn)
		var to [maxBytes]byte
		n := e.stored(&to)
		want, err := e.Attempted()
		if n != c.n {
			t.Errorf("%s: %d bytes, want %d (%v)", c.name, n, c.n, err)
		}
		if n > 0 && (err != nil || !bytes.Equal(to[:n], want)) {
			t.Errorf("%s: % x, want % x, %v", c.name, to[:n], want, err)
		}
	}
	down := storing([]byte{0xf3, 0xa4})
	down.Regs.RFLAGS = rflagsDF
	var to [maxBytes]byte
	if n := down.stored(&to); n != 1 || to[0] != 1 {
		t.Errorf("downwards: % x", to[:n])
	}
	none := storing([]byte{0xf3, 0xa4})
	none.Regs.RCX = 0
	if n := none.stored(&to); n != 0 {
		t.Errorf("repeated never: % x", to[:n])
	}
	blind := storing([]byte{0xa4})
	blind.sourceLen = 0
	if n := blind.stored(&to); n != 0 {
		t.Errorf("from nowhere: % x", to[:n])
	}
}

// TestReach: no store goes further than it is said to.
func TestReach(t *testing.T) {
	const unknown = math.MaxUint64
	for _, c := range []struct {
		name  string
		insn  []byte
		reach uint64 // with RCX 3
	}{
		{"movb $0xcc,(%rdi)", []byte{0xc6, 0x07, 0xcc}, 1},
		{"mov %rdx,(%rdi)", []byte{0x48, 0x89, 0x17}, 8},
		{"mov %edx,%gs:(%rdi)", []byte{0x65, 0x89, 0x17}, 4},
		{"lock xchg %edx,(%rdi)", []byte{0xf0, 0x87, 0x17}, 4},
		{"lock cmpxchg %rdx,(%rdi)", []byte{0xf0, 0x48, 0x0f, 0xb1, 0x17}, 8},
		{"lock orb $1,(%rdi)", []byte{0xf0, 0x80, 0x0f, 1}, 1},
		{"lock xadd %al,(%rdi)", []byte{0xf0, 0x0f, 0xc0, 0x07}, 1},
		{"andq $-2,(%rdi)", []byte{0x48, 0x83, 0x27, 0xfe}, 8},
		{"xor %dx,(%rdi)", []byte{0x66, 0x31, 0x17}, 2},
		{"btsq $3,(%rdi)", []byte{0x48, 0x0f, 0xba, 0x2f, 3}, 8},
		{"incl (%rdi)", []byte{0xff, 0x07}, 4},
		{"call *(%rdi)", []byte{0xff, 0x17}, unknown},
		{"push %rax", []byte{0x50}, unknown},
		{"vmovdqu64 %zmm0,(%rdi)", []byte{0x62, 0xf1, 0xfe, 0x48, 0x7f, 0x07}, unknown},
		{"movdqu %xmm0,(%rdi)", []byte{0xf3, 0x0f, 0x7f, 0x07}, unknown},
		{"xsave (%rdi)", []byte{0x0f, 0xae, 0x27}, unknown},
		{"cmpxchg16b (%rdi)", []byte{0x48, 0x0f, 0xc7, 0x0f}, unknown},
		{"two bytes, cut", []byte{0x0f}, unknown},
		{"rep insb", []byte{0xf3, 0x6c}, unknown},
		{"movsb", []byte{0xa4}, 1},
		{"rep movsb", []byte{0xf3, 0xa4}, 3},
		{"rep movsw", []byte{0xf3, 0x66, 0xa5}, 6},
		{"rep movsl", []byte{0xf3, 0xa5}, 12},
		{"rep movsq", []byte{0xf3, 0x48, 0xa5}, 24},
		{"rep movsq %gs:(%rsi),(%rdi)", []byte{0xf3, 0x65, 0x48, 0xa5}, 24},
		{"repne stosb", []byte{0xf2, 0xaa}, 3},
		{"rep stosq", []byte{0xf3, 0x48, 0xab}, 24},
		{"nothing", nil, unknown},
		{"prefixes only", []byte{0xf3, 0x66}, unknown},
	} {
		if got := storing(c.insn).reach(); got != c.reach {
			t.Errorf("%s: %d, want %d", c.name, got, c.reach)
		}
	}
	repeated := storing([]byte{0xf3, 0x48, 0xab})
	repeated.Regs.RCX = 1 << 62
	if got := repeated.reach(); got != unknown {
		t.Errorf("very often: %d", got)
	}
	repeated.Regs.RCX, repeated.Regs.RFLAGS = 2, rflagsDF
	if got := repeated.reach(); got != unknown {
		t.Errorf("downwards: %d", got)
	}
}

// FuzzStored holds it against the decoder that takes all the time it needs.
func FuzzStored(f *testing.F) {
	for _, c := range storedInsns {
		f.Add(c.insn, uint64(3))
	}
	f.Fuzz(func(t *testing.T, insn []byte, rcx uint64) {
		e := storing(insn)
		e.Regs.RCX = rcx
		var to [maxBytes]byte
		n := e.stored(&to)
		if reach := e.reach(); reach < uint64(n) {
			t.Errorf("% x: %d bytes, and it reaches %d", e.Insn(), n, reach)
		}
		if n == 0 {
			return
		}
		want, err := e.Attempted()
		if err != nil || !bytes.Equal(to[:n], want) {
			t.Errorf("% x: % x, want % x, %v", e.Insn(), to[:n], want, err)
		}
	})
}
