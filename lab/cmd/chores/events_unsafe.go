package main

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// sample does what `perf record` does: it has the kernel note where it is, a
// thousand times a second, and each change of process.
func sample() error {
	clock := unix.PerfEventAttr{
		Type: unix.PERF_TYPE_SOFTWARE, Config: unix.PERF_COUNT_SW_CPU_CLOCK, Sample: 1000, Bits: unix.PerfBitFreq,
		Sample_type: unix.PERF_SAMPLE_IP | unix.PERF_SAMPLE_TID | unix.PERF_SAMPLE_CALLCHAIN,
	}
	id, err := os.ReadFile("/sys/kernel/tracing/events/sched/sched_switch/id")
	if err != nil {
		return err
	}
	number, err := strconv.ParseUint(strings.TrimSpace(string(id)), 10, 64)
	if err != nil {
		return err
	}
	switches := unix.PerfEventAttr{Type: unix.PERF_TYPE_TRACEPOINT, Config: number, Sample: 1, Sample_type: unix.PERF_SAMPLE_RAW | unix.PERF_SAMPLE_TIME}
	return errors.Join(record(&clock, busy), record(&switches, func() { time.Sleep(10 * time.Millisecond) }))
}

// watched is where it does not move.
var watched uint64

// watchpoint has the processor watch a variable of this program's.
func watchpoint() error {
	a := unix.PerfEventAttr{
		Type: unix.PERF_TYPE_BREAKPOINT, Sample: 1, Sample_type: unix.PERF_SAMPLE_IP,
		Bp_type: 3 /* HW_BREAKPOINT_RW */, Ext1: uint64(uintptr(unsafe.Pointer(&watched))), Ext2: 8, // bp_addr, bp_len
	}
	return record(&a, func() {
		for range 20 {
			watched++
		}
	})
}

// record has events written to memory while something is done.
func record(a *unix.PerfEventAttr, do func()) error {
	a.Size = uint32(unsafe.Sizeof(*a))
	fd, err := unix.PerfEventOpen(a, 0, -1, -1, unix.PERF_FLAG_FD_CLOEXEC)
	if err != nil {
		return fmt.Errorf("perf_event_open, type %d: %w", a.Type, err)
	}
	defer unix.Close(fd)
	ring, err := unix.Mmap(fd, 0, 9*os.Getpagesize(), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return err
	}
	do()
	head := (*unix.PerfEventMmapPage)(unsafe.Pointer(&ring[0])).Data_head
	if head == 0 {
		err = fmt.Errorf("type %d: no event was recorded", a.Type)
	}
	return errors.Join(err, unix.Munmap(ring))
}

// busy keeps the processor for some milliseconds of its time.
func busy() {
	var spent unix.Rusage
	_ = unix.Getrusage(unix.RUSAGE_THREAD, &spent)
	for start := spent.Utime.Nano() + spent.Stime.Nano(); spent.Utime.Nano()+spent.Stime.Nano() < start+int64(10*time.Millisecond); {
		_ = unix.Getrusage(unix.RUSAGE_THREAD, &spent)
	}
}
