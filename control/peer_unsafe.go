package control

import (
	"errors"
	"syscall"
	"unsafe"
)

// soPeerGroups is SO_PEERGROUPS of asm-generic/socket.h, Linux 4.13 and later.
const soPeerGroups = 59

// maxGroups is NGROUPS_MAX of linux/limits.h.
const maxGroups = 65536

// peerGroups returns the supplementary groups that the process at the other
// end of the socket had when it connected. It needs unsafe because neither
// syscall nor x/sys has a getsockopt for an array of numbers.
func peerGroups(fd uintptr) ([]uint32, error) {
	for n := 64; n <= maxGroups; {
		buf := make([]uint32, n)
		size := uint32(len(buf) * 4) // socklen_t
		_, _, errno := syscall.Syscall6(syscall.SYS_GETSOCKOPT, fd, syscall.SOL_SOCKET, soPeerGroups,
			uintptr(unsafe.Pointer(&buf[0])), uintptr(unsafe.Pointer(&size)), 0)
		switch errno {
		case 0:
			return buf[:size/4], nil
		case syscall.ERANGE: // size now says how many bytes it takes
			n = max(int(size/4), 2*n)
		default:
			return nil, errno
		}
	}
	return nil, errors.New("the peer has more groups than Linux allows")
}
