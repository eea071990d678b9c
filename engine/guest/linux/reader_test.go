package linux

import (
	"errors"
	"testing"
	"time"

	"github.com/xen-hvi/hvi/engine/guest/report"
	"github.com/xen-hvi/hvi/engine/x86"
)

// TestAgain: what is between two states for longer than some attempts take, as a
// lock is that a processor holds which the host lets wait, is given time; all of
// a reading's pauses together have a bound.
func TestAgain(t *testing.T) {
	p, r := processGuest(t, 9)
	const torn = 5 * time.Millisecond
	var now time.Duration
	attempts := 0
	read := func(how func() error) (report.Reading, error) {
		now, attempts = 0, 0
		var out report.Reading
		err := r.reading(&out, how)
		return out, err
	}
	once := func() error {
		return r.consistently("a list", func() error {
			if attempts++; now < torn {
				return errTorn
			}
			return nil
		})
	}
	if _, err := read(once); !errors.Is(err, ErrImplausible) || attempts != maxRetries || now != 0 {
		t.Errorf("of an image: %v after %d attempts and %v", err, attempts, now)
	}
	r.Follow(t.Context(), func() ([]x86.Registers, error) { return p.Regs, nil })
	r.wait = func(d time.Duration) { now += d }
	if out, err := read(once); err != nil || out.Retries != attempts-1 || now < torn || now > 4*torn {
		t.Errorf("of a guest that runs: %v after %d attempts and %v, %+v", err, attempts, now, out)
	}
	forever := func() error {
		for range 1000 {
			_ = r.consistently("a list", func() error { attempts++; return errTorn })
		}
		return nil
	}
	if _, err := read(forever); err != nil || attempts != 1000*maxRetries || now < readingPatience || now > readingPatience+longestBreak {
		t.Errorf("of a guest that never rests: %d attempts and %v", attempts, now)
	}
}
