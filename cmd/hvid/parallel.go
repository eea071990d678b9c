package main

import "runtime"

// raiseParallelism lets two goroutines run at once, also in a dom0 of one processor. There
// Go would run one: what answers a guest's events would wait until another goroutine has
// its turn behind it, ten milliseconds, or while a process is started, which holds
// its place until that has begun. With two it is the kernel that decides, by priority and
// at once.
func raiseParallelism() {
	if runtime.GOMAXPROCS(0) < 2 {
		runtime.GOMAXPROCS(2)
	}
}
