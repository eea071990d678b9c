package keeper

import (
	"fmt"
	"os"
	"os/signal"
	"syscall"
	"time"
	"unsafe"
)

// alarm has the kernel continue this process, as SIGCONT does, if it is not set again in
// time, and again and again until it is: somebody may have stopped it, and hvid with it,
// and then nobody is there who could notice. To a process that is not stopped SIGCONT does
// nothing. What stops it as a debugger does, or a frozen control group, is not ended by it.
type alarm struct{ timer int32 }

// Of linux/time.h.
const clockMonotonic = 1

// sigevent is struct sigevent (asm-generic/siginfo.h), of 64 bytes.
type sigevent struct {
	value  uint64
	signo  int32
	notify int32 // 0: SIGEV_SIGNAL, to the process
	_      [48]byte
}

// itimerspec is struct itimerspec.
type itimerspec struct{ interval, value syscall.Timespec }

// newAlarm returns one that is not set. It goes with the process.
func newAlarm() (*alarm, error) {
	// From Linux 6.13 on a timer whose signal is ignored goes off once and no more.
	signal.Notify(make(chan os.Signal, 1), syscall.SIGCONT)
	a := new(alarm)
	event := sigevent{signo: int32(syscall.SIGCONT)}
	_, _, errno := syscall.RawSyscall(syscall.SYS_TIMER_CREATE, clockMonotonic, uintptr(unsafe.Pointer(&event)), uintptr(unsafe.Pointer(&a.timer)))
	if errno != 0 {
		return nil, fmt.Errorf("keeper: %w", os.NewSyscallError("timer_create", errno))
	}
	return a, nil
}

// set has it go off whenever a while has passed, and not when it would have before.
func (a *alarm) set(every time.Duration) error {
	while := syscall.NsecToTimespec(int64(max(every, 1)))
	spec := itimerspec{interval: while, value: while}
	_, _, errno := syscall.RawSyscall6(syscall.SYS_TIMER_SETTIME, uintptr(a.timer), 0, uintptr(unsafe.Pointer(&spec)), 0, 0, 0)
	if errno != 0 {
		return fmt.Errorf("keeper: %w", os.NewSyscallError("timer_settime", errno))
	}
	return nil
}
