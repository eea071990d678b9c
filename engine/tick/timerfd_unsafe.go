package tick

import (
	"syscall"
	"time"
	"unsafe"
)

// Of linux/time.h and linux/timerfd.h.
const (
	clockMonotonic = 1
	tfdNonblock    = syscall.O_NONBLOCK
	tfdCloexec     = syscall.O_CLOEXEC
)

// create makes a timer.
func create() (fd int, err error) {
	r, _, errno := syscall.RawSyscall(syscall.SYS_TIMERFD_CREATE, clockMonotonic, tfdNonblock|tfdCloexec, 0)
	if errno != 0 {
		return 0, errno
	}
	return int(r), nil
}

// itimerspec is struct itimerspec.
type itimerspec struct{ interval, value syscall.Timespec }

// None of these calls blocks, so the runtime is not told of them: it would wake a thread
// to watch.

// arm has a timer fire once, when a while has passed.
func arm(fd uintptr, after time.Duration) error {
	spec := itimerspec{value: syscall.NsecToTimespec(int64(max(after, 1)))}
	if _, _, errno := syscall.RawSyscall6(syscall.SYS_TIMERFD_SETTIME, fd, 0, uintptr(unsafe.Pointer(&spec)), 0, 0, 0); errno != 0 {
		return errno
	}
	return nil
}

// fired reports whether it has since it was armed.
func fired(fd uintptr) (bool, error) {
	var n uint64
	for {
		_, _, errno := syscall.RawSyscall(syscall.SYS_READ, fd, uintptr(unsafe.Pointer(&n)), unsafe.Sizeof(n))
		switch errno {
		case 0:
			return true, nil
		case syscall.EAGAIN:
			return false, nil
		case syscall.EINTR:
		default:
			return false, errno
		}
	}
}
