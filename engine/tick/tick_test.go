package tick

import (
	"errors"
	"os"
	"syscall"
	"testing"
	"time"
)

// kinds are tickers on the kernel's timer, and on Go's where there is none.
func kinds(t *testing.T, period time.Duration, test func(*testing.T, *Ticker)) {
	t.Run("kernel", func(t *testing.T) {
		k := New(period)
		if k.file == nil {
			t.Fatal("it has no timer of the kernel's")
		}
		test(t, k)
	})
	t.Run("go", func(t *testing.T) {
		k := New(period)
		_ = k.file.Close()
		k.file = nil
		test(t, k)
	})
	t.Run("broken", func(t *testing.T) {
		k := New(period)
		r, w, err := os.Pipe() // no timer: it can't be armed
		if err != nil {
			t.Fatal(err)
		}
		defer w.Close()
		_ = k.file.Close()
		k.file = r
		test(t, k)
	})
}

// TestEach: a period passes before each tick, however long the one before took.
func TestEach(t *testing.T) {
	const period = 3 * time.Millisecond
	kinds(t, period, func(t *testing.T, k *Ticker) {
		defer k.Close()
		n, last := 0, time.Now()
		k.Each(func() bool {
			if d := time.Since(last); d < period {
				t.Errorf("tick %d comes %v after the last", n, d)
			}
			for n == 3 && time.Since(last) < 5*period { // a tick that takes long
			}
			n, last = n+1, time.Now()
			return n < 8
		})
		if n != 8 {
			t.Errorf("%d ticks, want 8", n)
		}
	})
}

// TestClose: it ends the wait for a tick that is far away, and any later one.
func TestClose(t *testing.T) {
	kinds(t, time.Hour, func(t *testing.T, k *Ticker) {
		ended := make(chan struct{})
		go func() {
			k.Each(func() bool { t.Error("it ticks"); return true })
			close(ended)
		}()
		k.Close()
		<-ended
		k.Close()
		k.Each(func() bool { t.Error("it ticks"); return false })
	})
}

// TestNoFiles: without a file to be had there is a ticker all the same.
func TestNoFiles(t *testing.T) {
	var was syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &was); err != nil {
		t.Fatal(err)
	}
	none := was
	none.Cur = 0
	if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &none); err != nil {
		t.Fatal(err)
	}
	k := New(time.Millisecond)
	if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &was); err != nil {
		t.Fatal(err)
	}
	if k.file != nil {
		t.Fatal("it has a file")
	}
	defer k.Close()
	n := 0
	k.Each(func() bool { n++; return n < 2 })
	if n != 2 {
		t.Errorf("%d ticks, want 2", n)
	}
	if _, err := fired(^uintptr(0)); !errors.Is(err, syscall.EBADF) {
		t.Errorf("a timer that is none: %v", err)
	}
}

// TestNothingAllocated: it ticks as long as hvid lives.
func TestNothingAllocated(t *testing.T) {
	k := New(time.Nanosecond)
	defer k.Close()
	ticks := func(most int) float64 {
		return testing.AllocsPerRun(1, func() {
			n := 0
			k.Each(func() bool { n++; return n < most })
		})
	}
	// What it takes to begin is the same.
	if few, many := ticks(10), ticks(1000); many > few+2 {
		t.Errorf("%v allocations for a thousand ticks, %v for ten", many, few)
	}
}
