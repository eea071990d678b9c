package wire

import (
	"fmt"
	"io"
	"runtime"
	"syscall"
)

// PortE9 is the I/O port whose writes both emulators copy to the host: Bochs
// calls it port_e9_hack, QEMU isa-debugcon at its default address.
const PortE9 = 0xe9

// Port is an [io.Writer] that writes each byte to one I/O port. It holds
// nothing open.
type Port uint16

var _ io.Writer = Port(0)

// Write writes b with one string instruction, which needs root. The hypervisor
// carries out a control domain's I/O; asked byte by byte, through /dev/port, it
// takes a millisecond for each in QEMU.
func (p Port) Write(b []byte) (int, error) {
	if len(b) == 0 {
		return 0, nil
	}
	// The permission is the thread's.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	if _, _, errno := syscall.RawSyscall(syscall.SYS_IOPERM, uintptr(p), 1, 1); errno != 0 {
		return 0, fmt.Errorf("ioperm of port %#x: %w", uint16(p), errno)
	}
	outs(uint16(p), b)
	return len(b), nil
}

// outs writes b, which is not empty, to an I/O port.
//
//go:noescape
func outs(port uint16, b []byte)
