package vmevent

import (
	"sync/atomic"
	"unsafe"
)

// index returns the ring index at byte offset off of the shared page. Xen
// reads and writes indices concurrently, so they are only touched atomically.
// The page is mapped memory outside the Go heap and page aligned.
func index(page []byte, off int) *atomic.Uint32 {
	return (*atomic.Uint32)(unsafe.Pointer(&page[off]))
}
