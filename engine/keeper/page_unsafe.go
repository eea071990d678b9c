package keeper

import (
	"sync/atomic"
	"unsafe"
)

// word is 8 aligned bytes of shared memory. The offset is a multiple of 8 within
// the page, which begins at a page's boundary.
func word(mem []byte, off int) *atomic.Uint64 {
	return (*atomic.Uint64)(unsafe.Pointer(&mem[off : off+8][0]))
}
