package keeper

import (
	"errors"
	"io/fs"
	"math"
	"os"
	"testing"
	"time"
)

func TestQueued(t *testing.T) {
	if _, err := os.Stat("/proc/self/schedstat"); errors.Is(err, fs.ErrNotExist) {
		t.Skip("a kernel without CONFIG_SCHED_INFO does not count it")
	}
	before, ok := queued(os.Getpid())
	if !ok {
		t.Fatal("it can't be told of this process")
	}
	if after, ok := queued(os.Getpid()); !ok || after < before {
		t.Errorf("it went from %v to %v, %v", before, after, ok)
	}
	if _, ok := queued(math.MaxInt32); ok {
		t.Error("it is told of a process that there isn't")
	}
}

// TestPardon has hvid, and then a ring, stand still at each look, and says how long
// it waited for a processor meanwhile.
func TestPardon(t *testing.T) {
	const enough = 50 * time.Millisecond
	for _, tt := range []struct {
		name string
		wait time.Duration // between two looks
		told bool
		// looks is at which it is told of, the first being that at which it moved.
		looks int
	}{
		{"hangs", 0, true, looks + 1},
		{"waited a little", enough - 1, true, looks + 1},
		{"kept from running", enough, true, looks + maxPardons + 1},
		{"nothing known of it", enough, false, looks + 1},
	} {
		for _, ring := range []bool{false, true} {
			p, file, err := newPage(t.TempDir())
			if err != nil {
				t.Fatal(err)
			}
			defer file.Close()
			defer p.close()
			var waited time.Duration
			w := &watch{page: p, pardon: pardon{enough: enough, queued: func() (time.Duration, bool) { waited += tt.wait; return waited, tt.told }}}
			p.hvid().Store(1)
			if ring {
				p.rings().Store(1)
				p.pulse(0).Store(1)
			}
			n := 0
			for why := ""; why == "" && n < 100; n++ {
				if ring {
					p.hvid().Add(1)
				}
				why = w.look()
			}
			if n != tt.looks {
				t.Errorf("%s, a ring %v: told of at look %d, want %d", tt.name, ring, n, tt.looks)
			}
		}
	}
}

// TestPardonAnew has hvid go on between: what was pardoned before does not count.
func TestPardonAnew(t *testing.T) {
	p, file, err := newPage(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	defer p.close()
	var waited time.Duration
	w := &watch{page: p, pardon: pardon{enough: 1, queued: func() (time.Duration, bool) { waited++; return waited, true }}}
	for range 3 {
		p.hvid().Add(1)
		for i := range looks + maxPardons {
			if why := w.look(); why != "" {
				t.Fatalf("told of at look %d: %s", i, why)
			}
		}
	}
	if why := w.look(); why == "" {
		t.Error("it is pardoned for ever")
	}
}
