package report

import (
	"fmt"
	"strconv"
	"strings"
)

// Hex is a number that reads best in hexadecimal, and travels so: JSON's
// numbers lose bits above 2^53 in many readers.
type Hex uint64

// String returns 0x-prefixed hexadecimal.
func (h Hex) String() string { return "0x" + strconv.FormatUint(uint64(h), 16) }

// MarshalText writes what String returns.
func (h Hex) MarshalText() ([]byte, error) { return []byte(h.String()), nil }

// UnmarshalText reads what MarshalText writes, and nothing else.
func (h *Hex) UnmarshalText(b []byte) error {
	digits, ok := strings.CutPrefix(string(b), "0x")
	v, err := strconv.ParseUint(digits, 16, 64)
	if !ok || err != nil {
		return fmt.Errorf("report: %q is not 64-bit 0x-prefixed hexadecimal", b)
	}
	*h = Hex(v)
	return nil
}
