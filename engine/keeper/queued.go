package keeper

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"
)

// queued is how long the threads of a process that live have been ready to run and
// had no processor, together; false if that can't be told.
func queued(pid int) (time.Duration, bool) {
	dir := fmt.Sprintf("/proc/%d/task", pid)
	tasks, err := os.ReadDir(dir)
	if err != nil {
		return 0, false
	}
	var sum time.Duration
	for _, t := range tasks {
		b, err := os.ReadFile(dir + "/" + t.Name() + "/schedstat")
		if err != nil {
			continue // it has ended
		}
		// The time it ran, the time it waited, and how often it ran.
		f := strings.Fields(string(b))
		if len(f) < 2 {
			return 0, false
		}
		ns, err := strconv.ParseInt(f[1], 10, 64)
		if err != nil {
			return 0, false
		}
		sum += time.Duration(ns)
	}
	return sum, true
}

// maxPardons is how many looks in a row may be pardoned. After that hvid is killed all
// the same: its guests may be waiting for it.
const maxPardons = 10

// pardon tells a process that hangs from one that is ready to run and is given no
// processor, as on a machine that is overloaded or was stopped as a whole. Killing
// that would not help its guests.
type pardon struct {
	// queued is how long the process has waited for processors since it began.
	queued func() (time.Duration, bool)
	// enough is how much of it between two looks is an excuse.
	enough time.Duration
	last   time.Duration
	known  bool
	given  int
}

// mark is to be called at a look at which something had begun to stand still.
func (p *pardon) mark() { p.last, p.known = p.queued() }

// reset says that nothing stands still.
func (p *pardon) reset() { p.given = 0 }

// due reports whether what has stood still since the last mark has that excuse.
func (p *pardon) due() bool {
	before, known := p.last, p.known
	p.mark()
	if !known || !p.known || p.last-before < p.enough || p.given == maxPardons {
		return false
	}
	p.given++
	return true
}
