package main

import (
	"log/slog"
	"os"
	"strconv"
	"syscall"
)

// niceness is that of hvid's threads. Guests stand still while they wait for it,
// and a new domain must be held before the toolstack that makes it is done: hvid
// has little to do, and that at once.
const niceness = -15

// raisePriority raises the priority of every thread of this process; those made
// later inherit it. Two rounds, because the first may miss one made meanwhile by
// a thread it had not come to.
func raisePriority(log *slog.Logger) {
	for range 2 {
		tasks, err := os.ReadDir("/proc/self/task")
		if err != nil {
			log.Warn("raise hvid's priority", "err", err)
			return
		}
		for _, t := range tasks {
			tid, err := strconv.Atoi(t.Name())
			if err != nil {
				continue
			}
			if now, err := syscall.Getpriority(syscall.PRIO_PROCESS, tid); err == nil && 20-now <= niceness {
				continue // whoever started hvid has seen to it
			}
			if err := syscall.Setpriority(syscall.PRIO_PROCESS, tid, niceness); err != nil && err != syscall.ESRCH {
				log.Warn("raise hvid's priority", "err", err)
				return
			}
		}
	}
}
