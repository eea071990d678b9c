package vmeventtest

import (
	"sync/atomic"
	"unsafe"
)

// atomicIndex returns the ring index at byte offset off of the page.
func atomicIndex(page []byte, off int) *atomic.Uint32 {
	return (*atomic.Uint32)(unsafe.Pointer(&page[off]))
}
