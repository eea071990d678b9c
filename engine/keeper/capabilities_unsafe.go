package keeper

import (
	"fmt"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// kept are the capabilities that a keeper needs when it has opened what it works
// with: none, but that its memory stays locked. What it opens later is its own
// user's, and that user's is hvid.
const kept = 1 << unix.CAP_IPC_LOCK

// DropCapabilities gives away, for the whole process and for good, what a keeper has
// no use for.
func DropCapabilities() error {
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var sets [2]unix.CapUserData // of 32 capabilities each
	if err := unix.Capget(&header, &sets[0]); err != nil {
		return fmt.Errorf("keeper: %w", err)
	}
	for i := range sets {
		keep := uint32(0)
		if i == 0 {
			keep = kept
		}
		sets[i] = unix.CapUserData{Effective: sets[i].Permitted & keep, Permitted: sets[i].Permitted & keep}
	}
	_, _, errno := syscall.AllThreadsSyscall(unix.SYS_CAPSET, uintptr(unsafe.Pointer(&header)), uintptr(unsafe.Pointer(&sets[0])), 0)
	if errno == syscall.ENOTSUP {
		return fmt.Errorf("keeper: a program that is linked with C can't give away its capabilities: %w", errno)
	}
	if errno != 0 {
		return fmt.Errorf("keeper: %w", errno)
	}
	return nil
}
