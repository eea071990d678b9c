package keeper

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"strconv"
	"sync"
	"syscall"
	"time"

	"github.com/xen-hvi/hvi/engine/tick"
)

// The files a keeper is started with.
const (
	fdSocket = 3
	fdPage   = 4
)

// What is said on the socket, a byte each: the keeper says that it is there, and
// hvid that it ends with nothing left to undo.
const (
	sayReady = 'r'
	sayDone  = 'd'
)

// Duty is what a keeper does.
type Duty struct {
	// HVID is the process that has started it.
	HVID int
	// Budget is how long that may stand still, DefaultBudget if 0.
	Budget time.Duration
	// Recover undoes what the dead hvid left, why it is dead being said in a few
	// words. It is called once, when that hvid is dead.
	Recover func(why string) error
	Log     *slog.Logger
}

// Serve is the keeper: it returns when the hvid that has started this process has
// ended, and what it left is undone.
func Serve(d Duty) error {
	// What ends hvid must not end the keeper before it has done its work. systemd
	// sends its signals to both, and waits for both.
	signal.Ignore(syscall.SIGTERM, syscall.SIGINT, syscall.SIGHUP, syscall.SIGQUIT, syscall.SIGABRT, syscall.SIGPIPE)
	if err := syscall.SetNonblock(fdSocket, true); err != nil {
		return fmt.Errorf("keeper: this is started by hvid, and by nobody else: %w", err)
	}
	socket := os.NewFile(fdSocket, "socket to hvid")
	defer socket.Close()
	f := os.NewFile(fdPage, "memory shared with hvid")
	p, err := mapPage(f)
	if err != nil {
		return errors.Join(err, f.Close())
	}
	defer func() { _ = p.close() }() // it goes with the process, too
	if err := f.Close(); err != nil {
		return fmt.Errorf("keeper: %w", err)
	}
	// The handle stays that process's, also when its number is another's.
	hvid, err := os.FindProcess(d.HVID)
	if err != nil {
		return fmt.Errorf("keeper: %w", err)
	}
	if os.Getppid() != d.HVID {
		hvid = nil // it has died already, and the number may be another's
	}
	why, err := wait(d, socket, p, hvid)
	if err != nil || why == "" {
		return err
	}
	d.Log.Error("the keeper takes over", "why", why)
	return d.Recover(why)
}

// Harden is to be called first. It has this process survive a shortage of memory:
// no page of it is taken away, and the kernel looks elsewhere for whom to end. Both
// need rights that it may not have; it works without, too.
func Harden(log *slog.Logger) {
	if err := lockMemory(); err != nil {
		log.Warn("the keeper's memory is not locked", "err", err)
	}
	const least = -1000
	if err := os.WriteFile("/proc/self/oom_score_adj", []byte(strconv.Itoa(least)), 0); err != nil {
		log.Debug("the keeper is not exempt when memory is short", "err", err)
	}
}

// wait returns when hvid is dead, and says why; "" if it had nothing to undo.
func wait(d Duty, socket *os.File, p *page, hvid *os.Process) (why string, err error) {
	budget := d.Budget
	if budget <= 0 {
		budget = DefaultBudget
	}
	awaken := neverStopped(budget/looks, d.Log) // before anybody reckons with the keeper
	if _, err := socket.Write([]byte{sayReady}); err != nil && !errors.Is(err, syscall.EPIPE) {
		return "", fmt.Errorf("keeper: %w", err)
	}
	w := &watch{page: p, pardon: pardon{enough: budget / looks / 4, queued: func() (time.Duration, bool) {
		if hvid == nil {
			return 0, false
		}
		return queued(hvid.Pid)
	}}}
	var seen struct {
		sync.Mutex
		why string // hvid was killed
		err error  // it could not be
	}
	t := tick.New(budget / looks)
	ended := make(chan struct{})
	defer func() {
		t.Close()
		<-ended
	}()
	go func() {
		defer close(ended)
		t.Each(func() bool {
			awaken()
			p.keeper().Add(1)
			still := w.look()
			if still == "" || hvid == nil {
				return true
			}
			// Never both at once: it is dead before anything is done. Nothing is left to
			// look for then: what comes next is its end.
			seen.Lock()
			defer seen.Unlock()
			seen.why = still + ", and was killed"
			if err := hvid.Kill(); err != nil && !errors.Is(err, os.ErrProcessDone) {
				seen.err = fmt.Errorf("keeper: %s, and cannot be killed: %w", still, err)
				_ = socket.SetReadDeadline(time.Unix(1, 0)) // ends the wait for a word
			}
			return false
		})
	}()
	said := make([]byte, 1)
	for {
		_, err := socket.Read(said)
		seen.Lock()
		why, failed := seen.why, seen.err
		seen.Unlock()
		switch {
		case failed != nil:
			return "", failed
		case err == nil && said[0] == sayDone:
			return "", nil
		case err == nil:
		case errors.Is(err, io.EOF) || errors.Is(err, syscall.ECONNRESET):
			// The kernel has closed its files. It does so when the last of its
			// threads has ended, and after it has taken its memory away
			// (do_exit in Linux): nothing more can come of it.
			return cmp.Or(why, "hvid died"), nil
		default:
			return "", fmt.Errorf("keeper: %w", err)
		}
	}
}

// neverStopped returns what is to be called at each look, of which one follows the other
// after a while: if the next doesn't come, since this process was stopped, the kernel
// has it go on. So it does when there are no more looks, while hvid's work is undone.
func neverStopped(look time.Duration, log *slog.Logger) (again func()) {
	a, err := newAlarm()
	if err == nil {
		err = a.set(2 * look)
	}
	if err != nil {
		log.Warn("nobody notices if the keeper is stopped together with hvid", "err", err)
		return func() {}
	}
	// A quarter more: on a busy machine a look may be late, and need not be for this.
	return func() { _ = a.set(look + look/4) }
}
