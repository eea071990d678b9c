package main

import (
	"sync"
	"time"
)

// lanes runs functions: those of one key in their order, one at a time, those of
// different keys at the same time. A lane that is empty costs nothing.
type lanes[K comparable] struct {
	mu      sync.Mutex
	waiting map[K][]func() // a key is there while its goroutine runs
	wg      sync.WaitGroup
}

func newLanes[K comparable]() *lanes[K] { return &lanes[K]{waiting: map[K][]func(){}} }

// do has f run in the lane of key. It returns at once.
func (l *lanes[K]) do(key K, f func()) {
	l.mu.Lock()
	defer l.mu.Unlock()
	queue, running := l.waiting[key]
	l.waiting[key] = append(queue, f)
	if !running {
		l.wg.Go(func() { l.run(key) })
	}
}

func (l *lanes[K]) run(key K) {
	for {
		l.mu.Lock()
		queue := l.waiting[key]
		if len(queue) == 0 {
			delete(l.waiting, key)
			l.mu.Unlock()
			return
		}
		f := queue[0]
		l.waiting[key] = queue[1:]
		l.mu.Unlock()
		f()
	}
}

// wait returns when every lane is empty, or after a limit, and reports which.
func (l *lanes[K]) wait(limit time.Duration) bool {
	done := make(chan struct{})
	go func() {
		l.wg.Wait()
		close(done)
	}()
	late := time.NewTimer(limit)
	defer late.Stop()
	select {
	case <-done:
		return true
	case <-late.C:
		return false
	}
}
