package main

import (
	"log/slog"
	"os"
	"runtime"
	"runtime/debug"
	"strconv"
	"syscall"
	"testing"
)

// TestRaisePriority raises that of all threads, or of none where that is not
// permitted.
func TestRaisePriority(t *testing.T) {
	raisePriority(slog.New(slog.DiscardHandler))
	tasks, err := os.ReadDir("/proc/self/task")
	if err != nil {
		t.Fatal(err)
	}
	got := map[int]int{}
	for _, task := range tasks {
		tid, err := strconv.Atoi(task.Name())
		if err != nil {
			t.Fatal(err)
		}
		if p, err := syscall.Getpriority(syscall.PRIO_PROCESS, tid); err == nil {
			got[20-p]++ // the system call answers 20 less the niceness
		}
	}
	if len(got) != 1 {
		t.Errorf("the threads differ: %v", got)
	}
	if permitted := syscall.Setpriority(syscall.PRIO_PROCESS, 0, niceness) == nil; permitted && got[niceness] == 0 {
		t.Errorf("niceness of the threads: %v, want %d", got, niceness)
	}
}

// TestRaiseParallelism has two goroutines run at once, however few processors there are.
func TestRaiseParallelism(t *testing.T) {
	before := runtime.GOMAXPROCS(1)
	defer runtime.GOMAXPROCS(before)
	raiseParallelism()
	if got := runtime.GOMAXPROCS(0); got != 2 {
		t.Errorf("GOMAXPROCS is %d, want 2", got)
	}
	runtime.GOMAXPROCS(3)
	raiseParallelism()
	if got := runtime.GOMAXPROCS(0); got != 3 {
		t.Errorf("GOMAXPROCS is %d, want 3 as before", got)
	}
}

// TestCollectEarly sets what garbage there may be, unless the environment does.
func TestCollectEarly(t *testing.T) {
	defer debug.SetGCPercent(debug.SetGCPercent(100))
	t.Setenv("GOGC", "100")
	collectEarly()
	if got := debug.SetGCPercent(100); got != 100 {
		t.Errorf("GOGC=100, but it is %d", got)
	}
	t.Setenv("GOGC", "")
	collectEarly()
	if got := debug.SetGCPercent(100); got != garbagePercent {
		t.Errorf("it is %d, want %d", got, garbagePercent)
	}
}
