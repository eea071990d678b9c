package engine

import "testing"

// TestInstruction shows what an instruction is, and its bytes alone where it is none.
func TestInstruction(t *testing.T) {
	for _, c := range []struct{ code, bytes, text string }{
		{"\x88\x07\x90\x90\x90", "88 07", "mov %al,(%rdi)"},
		{"\xf3\xa4\xc3", "f3 a4", "rep movsb %ds:(%rsi),%es:(%rdi)"},
		{"\x0f\x30", "0f 30", "wrmsr"},
		{"\x06\x06", "06 06", ""},
		{"", "", ""},
	} {
		got := instruction([]byte(c.code), 0xffffffff81000000)
		if c.code == "" {
			if got != nil {
				t.Errorf("without code: %+v", got)
			}
			continue
		}
		if got == nil || got.Bytes.String() != c.bytes || string(got.Text) != c.text {
			t.Errorf("% x: %+v, want %s, %q", c.code, got, c.bytes, c.text)
		}
	}
}

// FuzzInstruction: whatever bytes a guest executes, they are shown or left out.
func FuzzInstruction(f *testing.F) {
	f.Add([]byte("\x88\x07"), uint64(0xffffffff81000000))
	f.Add([]byte("\x66\x2e\x0f\x1f\x84\x00\x00\x00\x00\x00"), uint64(0))
	f.Add([]byte("\xc4\xe2\x79\x18\x05\x01\x02\x03\x04"), uint64(1))
	f.Fuzz(func(t *testing.T, code []byte, rip uint64) {
		if got := instruction(code, rip); (got == nil) != (len(code) == 0) || got != nil && (len(got.Bytes) == 0 || len(got.Bytes) > len(code)) {
			t.Errorf("of %d bytes: %+v", len(code), got)
		}
	})
}
