package view

import (
	"sync/atomic"
	"unsafe"

	"github.com/xen-hvi/hvi/engine/x86"
)

// words returns a mapped page as words that are stored as a whole: vCPUs execute
// it meanwhile. A page is aligned, and mapped outside of Go's heap.
func words(page []byte) *[x86.PageSize / 8]atomic.Uint64 {
	_ = page[x86.PageSize-1]
	return (*[x86.PageSize / 8]atomic.Uint64)(unsafe.Pointer(&page[0]))
}
