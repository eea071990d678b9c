package x86

import (
	"fmt"
	"strconv"
)

// MarshalText writes the address as 0x-prefixed hexadecimal, so that JSON
// carries it as a string: a JSON number loses bits above 2^53 in many readers.
func (a VirtAddr) MarshalText() ([]byte, error) { return appendHex(uint64(a)), nil }

// UnmarshalText reads what MarshalText writes, and nothing else.
func (a *VirtAddr) UnmarshalText(text []byte) error {
	v, err := parseHex(text)
	*a = VirtAddr(v)
	return err
}

// MarshalText writes the address as 0x-prefixed hexadecimal.
func (a PhysAddr) MarshalText() ([]byte, error) { return appendHex(uint64(a)), nil }

// UnmarshalText reads what MarshalText writes, and nothing else.
func (a *PhysAddr) UnmarshalText(text []byte) error {
	v, err := parseHex(text)
	*a = PhysAddr(v)
	return err
}

// MarshalText writes the frame number as 0x-prefixed hexadecimal.
func (g GFN) MarshalText() ([]byte, error) { return appendHex(uint64(g)), nil }

// UnmarshalText reads what MarshalText writes, and nothing else.
func (g *GFN) UnmarshalText(text []byte) error {
	v, err := parseHex(text)
	*g = GFN(v)
	return err
}

func appendHex(v uint64) []byte {
	return strconv.AppendUint([]byte("0x"), v, 16)
}

func parseHex(text []byte) (uint64, error) {
	if len(text) < 3 || text[0] != '0' || text[1] != 'x' {
		return 0, fmt.Errorf("x86: address %q is not 0x-prefixed hexadecimal", text)
	}
	v, err := strconv.ParseUint(string(text[2:]), 16, 64)
	if err != nil {
		return 0, fmt.Errorf("x86: address %q is not 64-bit 0x-prefixed hexadecimal", text)
	}
	return v, nil
}
