package linux

import (
	"encoding/binary"
	"unsafe"
)

// uint32s are the little-endian words in b: b itself, where this machine would
// write them so, and a copy elsewhere.
func uint32s(b []byte) []uint32 {
	if len(b) < 4 {
		return nil
	}
	if native && uintptr(unsafe.Pointer(&b[0]))%4 == 0 {
		return unsafe.Slice((*uint32)(unsafe.Pointer(&b[0])), len(b)/4)
	}
	out := make([]uint32, len(b)/4)
	for i := range out {
		out[i] = le32(b[4*i:])
	}
	return out
}

var native = binary.NativeEndian.Uint16([]byte{1, 0}) == 1
