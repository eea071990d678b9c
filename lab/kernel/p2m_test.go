package kernel

import (
	"bytes"
	"encoding/hex"
	"strings"
	"testing"
)

// p2mCode is xen_vmalloc_p2m_tree of Debian's 6.1.0-56-amd64, from the load of
// xen_max_p2m_pfn on.
const p2mCode = `488b05475fbbff ba00000008 48c7056f63290002000000 4839d0 4889058d632900
	480f42c2 488d04c5ffff1f00 482500 00e0ff`

func code(t *testing.T, s string) []byte {
	t.Helper()
	b, err := hex.DecodeString(strings.Join(strings.Fields(s), ""))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestShrinkP2M(t *testing.T) {
	one := code(t, p2mCode)
	other := code(t, "803dc0e30a0000 ba00000008 480f45c2 e9e200d8fe")
	tests := []struct {
		name  string
		image []byte
		found bool
	}{
		{"alone", one, true},
		{"beside another such constant", append(bytes.Clone(other), one...), true},
		{"only another", other, false},
		{"twice", append(bytes.Clone(one), one...), false},
		{"none", make([]byte, 100), false},
		{"cut off", one[:12], false},
		{"empty", nil, false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			image := bytes.Clone(tt.image)
			if got := ShrinkP2M(image); got != tt.found {
				t.Fatalf("found: %v", got)
			}
			changed := 0
			for i := range image {
				if image[i] != tt.image[i] {
					changed++
				}
			}
			if (changed > 0) != tt.found || changed > 4 {
				t.Errorf("%d bytes are changed", changed)
			}
			if tt.found && !bytes.Contains(image, []byte{0xba, 0, 0, 0x20, 0}) {
				t.Errorf("% x", image)
			}
		})
	}
}
