package witness

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// setNamePointer names the calling thread.
func setNamePointer(name *byte) error {
	return unix.Prctl(unix.PR_SET_NAME, uintptr(unsafe.Pointer(name)), 0, 0, 0)
}
