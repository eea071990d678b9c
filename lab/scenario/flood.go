package scenario

import (
	"fmt"
	"io/fs"
	"path/filepath"
	"regexp"
	"strconv"
	"time"

	"github.com/xen-hvi/hvi/control"
	"github.com/xen-hvi/hvi/engine/journal"
)

func init() {
	Register(Scenario{
		Name:     "flood",
		Brief:    "100,000 violations in a row: each blocked and counted, the guest never kept long, the disk not filled",
		Emulator: Bochs,
		Timeout:  60 * time.Minute,
		Run:      flood,
	})
}

const (
	floodViolations = 100_000
	floodLimit      = 10 * time.Minute
	// maxFloodStall bounds how long the guest may wait for one verdict: the time after
	// which the keeper takes an engine for stuck that does not answer.
	maxFloodStall = 400 * time.Millisecond
	// maxFloodBytes bounds what is written down of all of it.
	maxFloodBytes = 1 << 20
)

var floodTimes = regexp.MustCompile(`hvi-pwn-times: \d+ longest=(\d+) next=(\d+) ns`)

// flood has one vCPU do nothing but violate, and counts what is told of it.
func flood(t *T) error {
	if _, err := t.StartHVID(); err != nil {
		return err
	}
	c := enforce
	c.KernelArgs = liveArgs
	g, _, err := t.protectedGuest(c, control.StateProtecting)
	if err != nil {
		return err
	}
	before, err := stored()
	if err != nil {
		return err
	}
	start := time.Now()
	out, err := g.runWithin(floodLimit, fmt.Sprintf("attack lstar times=%d", floodViolations))
	if err != nil {
		return err
	}
	took := time.Since(start)
	v, err := parseVerdict(out)
	if err != nil {
		return err
	}
	t.Check(!v.Written, "none lands: %+v", v)
	t.Fact("instructions_per_violation", int64(took.Seconds()*instructionsPerSecond/floodViolations))

	m := floodTimes.FindStringSubmatch(out)
	if m == nil {
		return fmt.Errorf("the attack says nothing of its times: %s", lastLines(out, 3))
	}
	var longest [2]time.Duration
	for i := range longest {
		ns, err := strconv.ParseInt(m[i+1], 10, 64)
		if err != nil {
			return err
		}
		longest[i] = time.Duration(ns)
	}
	t.Fact("longest_ms", map[string]float64{"the longest": longest[0].Seconds() * 1e3, "the next": longest[1].Seconds() * 1e3})
	t.Check(longest[0] > 0 && longest[0] <= maxFloodStall, "the guest waits %v at most for a verdict", longest[0])

	// What is told of at the end is a summary that comes after a pause.
	var records []journal.Record
	var told uint64
	err = t.Eventually(lookLimit, "each violation is counted by a record", func() (bool, error) {
		if records, err = g.Events(); err != nil {
			return false, err
		}
		told = 0
		for _, r := range records {
			if r.Detail.Suppressed > 0 {
				told += r.Detail.Suppressed
			} else {
				told += 1 + r.Detail.Repeats
			}
		}
		return told >= floodViolations, nil
	})
	t.Fact("records", len(records))
	t.Check(err == nil && told == floodViolations, "the records count %d of %d violations", told, floodViolations)
	st, err := g.Status()
	if err != nil {
		return err
	}
	gs := guardStatus(st, "syscall-entry")
	t.Check(gs.Blocked == floodViolations && gs.Events == floodViolations, "and so does the status: %d blocked, %d in all", gs.Blocked, gs.Events)
	after, err := stored()
	if err != nil {
		return err
	}
	t.Fact("bytes", after-before)
	t.Check(after > before && after-before <= maxFloodBytes, "the journal grows by %d bytes", after-before)
	if err := g.attackIsBlocked("text"); err != nil {
		return err
	}
	return g.Shutdown()
}

// stored is how many bytes of files hvid keeps.
func stored() (n int64, err error) {
	err = filepath.WalkDir("/var/lib/hvi", func(_ string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		info, err := d.Info()
		if err == nil {
			n += info.Size()
		}
		return err
	})
	return n, err
}
