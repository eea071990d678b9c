package guard

import (
	"bytes"
	"strings"
	"testing"

	"github.com/xen-hvi/hvi/engine/x86"
)

// TestAttempted decodes stores as attackers write them; the bytes are those an
// assembler makes of the comment.
func TestAttempted(t *testing.T) {
	regs := x86.Registers{RAX: 0x1122334455667788, RCX: 3, RDX: 0xdeadbeefcafef00d, RSI: 0x1000, R9: 0x99}
	source := []byte{1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16}
	before := []byte{0xf0, 0x0f, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0}
	for _, c := range []struct {
		name string
		insn []byte
		want []byte
		err  string
	}{
		{"mov %al,(%rdi)", []byte{0x88, 0x07}, []byte{0x88}, ""},
		{"mov %ah,(%rdi)", []byte{0x88, 0x27}, []byte{0x77}, ""},
		{"mov %r9b,(%rdi)", []byte{0x44, 0x88, 0x0f}, []byte{0x99}, ""},
		{"mov %dx,(%rdi)", []byte{0x66, 0x89, 0x17}, []byte{0x0d, 0xf0}, ""},
		{"mov %edx,(%rdi)", []byte{0x89, 0x17}, []byte{0x0d, 0xf0, 0xfe, 0xca}, ""},
		{"mov %rdx,(%rdi)", []byte{0x48, 0x89, 0x17}, []byte{0x0d, 0xf0, 0xfe, 0xca, 0xef, 0xbe, 0xad, 0xde}, ""},
		{"movb $0xcc,(%rdi)", []byte{0xc6, 0x07, 0xcc}, []byte{0xcc}, ""},
		{"movl $0x90909090,(%rdi)", []byte{0xc7, 0x07, 0x90, 0x90, 0x90, 0x90}, []byte{0x90, 0x90, 0x90, 0x90}, ""},
		{"movq $-1,(%rdi)", []byte{0x48, 0xc7, 0x07, 0xff, 0xff, 0xff, 0xff}, bytes.Repeat([]byte{0xff}, 8), ""},
		{"xchg %edx,(%rdi)", []byte{0x87, 0x17}, []byte{0x0d, 0xf0, 0xfe, 0xca}, ""},
		{"stosb", []byte{0xaa}, []byte{0x88}, ""},
		{"rep stosw", []byte{0xf3, 0x66, 0xab}, []byte{0x88, 0x77, 0x88, 0x77, 0x88, 0x77}, ""},
		{"movsb", []byte{0xa4}, []byte{1}, ""},
		{"rep movsb", []byte{0xf3, 0xa4}, []byte{1, 2, 3}, ""},
		{"rep movsq", []byte{0xf3, 0x48, 0xa5}, source, ""}, // 24 bytes, 16 are kept
		{"xorb $0xff,(%rdi)", []byte{0x80, 0x37, 0xff}, []byte{0x0f}, ""},
		{"addw $1,(%rdi)", []byte{0x66, 0x83, 0x07, 0x01}, []byte{0xf1, 0x0f}, ""},
		{"notb (%rdi)", []byte{0xf6, 0x17}, []byte{0x0f}, ""},
		{"movups %xmm0,(%rdi)", []byte{0x0f, 0x11, 0x07}, nil, "not in the event"},
		{"undefined", []byte{0x0f, 0x0b}, nil, "not in the event"},
		{"garbage", []byte{0x06}, nil, "could not be decoded"},
		{"unreadable", nil, nil, "could not be read"},
	} {
		t.Run(c.name, func(t *testing.T) {
			e := Evidence{Regs: regs}
			e.insnLen = uint8(copy(e.insn[:], c.insn))
			e.sourceLen = uint8(copy(e.source[:], source))
			e.beforeLen = uint8(copy(e.before[:], before))
			got, err := e.Attempted()
			if c.err != "" {
				if err == nil || !strings.Contains(err.Error(), c.err) {
					t.Fatalf("got % x, %v; want an error with %q", got, err, c.err)
				}
				return
			}
			if err != nil || !bytes.Equal(got, c.want) {
				t.Errorf("got % x, %v; want % x", got, err, c.want)
			}
		})
	}
}

// TestAttemptedNeedsItsInput checks that bytes that could not be read are not
// made up.
func TestAttemptedNeedsItsInput(t *testing.T) {
	for name, insn := range map[string][]byte{"movsb": {0xa4}, "xorb": {0x80, 0x37, 0xff}} {
		e := Evidence{}
		e.insnLen = uint8(copy(e.insn[:], insn))
		if got, err := e.Attempted(); err == nil {
			t.Errorf("%s without its memory gave % x", name, got)
		}
	}
}

// FuzzAttempted feeds arbitrary instruction bytes and registers: whatever an
// attacker executes, decoding it must stay within the evidence.
func FuzzAttempted(f *testing.F) {
	f.Add([]byte{0xf3, 0xa4}, uint64(1<<40), uint8(16))
	f.Add([]byte{0x48, 0x89, 0x17}, uint64(0), uint8(0))
	f.Fuzz(func(t *testing.T, insn []byte, rcx uint64, have uint8) {
		e := Evidence{Regs: x86.Registers{RCX: rcx, RAX: rcx, RSI: rcx}}
		e.insnLen = uint8(copy(e.insn[:maxInsn], insn))
		e.sourceLen, e.beforeLen = have%(maxBytes+1), have%(maxBytes+1)
		if b, err := e.Attempted(); err == nil && len(b) > maxBytes {
			t.Fatalf("%d bytes, at most %d were kept", len(b), maxBytes)
		}
	})
}
