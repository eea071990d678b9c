package scenario

import (
	"runtime"
	"sync/atomic"
	"syscall"
	"time"
)

// standstill watches for how long nothing runs in dom0. On QEMU, whose clock is the
// host's, that is how long the host gave the emulator no time, and then no guest ran
// either.
type standstill struct {
	longest atomic.Int64 // ns
	over    atomic.Bool
}

// watchDom0 begins to watch, until the scenario ends.
func (t *T) watchDom0() *standstill {
	const look = 5 * time.Millisecond
	s := new(standstill)
	t.Cleanup(func() { s.over.Store(true) })
	go func() {
		// The thread ends with the goroutine, and its priority with it: more than hvid
		// has, so that a busy hvid is no standstill.
		runtime.LockOSThread()
		if err := syscall.Setpriority(syscall.PRIO_PROCESS, syscall.Gettid(), -20); err != nil {
			t.Logf("watch dom0: %v", err)
			return
		}
		nap := syscall.NsecToTimespec(look.Nanoseconds())
		for last := time.Now(); !s.over.Load(); {
			_ = syscall.Nanosleep(&nap, nil) // a signal ends it, which is soon enough
			now := time.Now()
			if d := int64(now.Sub(last) - look); d > s.longest.Load() {
				s.longest.Store(d)
			}
			last = now
		}
	}()
	return s
}

// since returns the longest since it was asked last.
func (s *standstill) since() time.Duration { return time.Duration(s.longest.Swap(0)) }
