package libvirt

import (
	"bytes"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"syscall"
	"time"
)

// daemons are the programs that serve Xen's domains.
var daemons = map[string]bool{"libvirtd": true, "virtxend": true}

// stopTime is what systemd gives a daemon to end before it kills it
// (DefaultTimeoutStopSec).
const stopTime = 90 * time.Second

// Running knows whether a daemon of libvirt's runs that may serve Xen, for a
// client that must not start one. It matters because to connect to a socket that
// systemd holds is to start the daemon behind it, and distributions'
// libvirtd.service conflicts with xendomains.service: starting it shuts down
// guests that are xl's.
//
// A daemon that is being stopped closes its connections and still runs for a
// while. So the one that closed ours is not gone back to before it would have
// ended; another one is, at once.
//
// Its methods may be called from several goroutines.
type Running struct {
	proc string
	uid  uint32
	now  func() time.Time

	mu sync.Mutex
	// known are the daemons that ran when a connection was made, and lost is
	// when it was lost.
	known map[process]bool
	lost  time.Time
}

// process is one run of a program: numbers of processes are used again.
type process struct {
	pid   uint64
	start string // in clock ticks since the boot
}

// NewRunning looks below proc, where procfs is mounted. Only programs of root's
// count, since anybody may call a program libvirtd.
func NewRunning(proc string) *Running {
	return &Running{proc: proc, now: time.Now}
}

// Ready reports whether a daemon runs that can be connected to without starting
// one. It is for [Options.Ready].
func (r *Running) Ready() bool {
	all := r.daemons()
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, p := range all {
		if !r.known[p] {
			return true
		}
	}
	return len(all) > 0 && (r.lost.IsZero() || r.now().Sub(r.lost) >= stopTime)
}

// Connected is told of each connection and of its loss, as by
// [Options.Connected].
func (r *Running) Connected(up bool) {
	if !up {
		r.mu.Lock()
		defer r.mu.Unlock()
		if r.known != nil && r.lost.IsZero() {
			r.lost = r.now()
		}
		return
	}
	known := map[process]bool{}
	for _, p := range r.daemons() {
		known[p] = true
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.known, r.lost = known, time.Time{}
}

func (r *Running) daemons() (all []process) {
	entries, err := os.ReadDir(r.proc)
	if err != nil {
		return nil
	}
	for _, e := range entries {
		pid, err := strconv.ParseUint(e.Name(), 10, 31)
		if err != nil {
			continue
		}
		dir := filepath.Join(r.proc, e.Name())
		exe, err := os.Readlink(filepath.Join(dir, "exe"))
		if err != nil || !daemons[filepath.Base(exe)] {
			continue
		}
		info, err := os.Stat(dir)
		if err != nil {
			continue
		}
		if st, ok := info.Sys().(*syscall.Stat_t); !ok || st.Uid != r.uid {
			continue
		}
		if start, ok := startTime(filepath.Join(dir, "stat")); ok {
			all = append(all, process{pid, start})
		}
	}
	return all
}

// startTime is field 22 of /proc/PID/stat (proc(5)). The second field, the
// program's name in brackets, may have anything in it, brackets too.
func startTime(file string) (string, bool) {
	b, err := os.ReadFile(file)
	if err != nil {
		return "", false
	}
	fields := bytes.Fields(b[bytes.LastIndexByte(b, ')')+1:])
	const field, first = 22, 3
	if len(fields) <= field-first {
		return "", false
	}
	return string(fields[field-first]), true
}
