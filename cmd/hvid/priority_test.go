package main

import (
	"log/slog"
	"os"
	"runtime"
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
