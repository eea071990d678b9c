package ledger

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"
	"time"
)

// lockPoll is how often a lock that somebody holds is tried again: flock(2) can't
// be waited for with a limit.
const lockPoll = 10 * time.Millisecond

// ErrLocked says that another process acts upon the ledgers.
var ErrLocked = errors.New("another process works with the ledgers")

// Lock is the right to act upon the ledgers of a directory. A hvid has it for its
// life, the keeper and `hvid recover` while they undo what a dead hvid left: what
// one of them does is never done by a second at the same time. It goes with the
// process, however that ends.
type Lock struct{ file *os.File }

// TakeLock takes the lock of a directory of ledgers, and waits for it as long as
// ctx lives; the error then matches ErrLocked. waiting is called once, if it is
// not to be had at once.
func TakeLock(ctx context.Context, dir string, waiting func()) (*Lock, error) {
	if err := os.MkdirAll(filepath.Dir(dir), 0o755); err != nil {
		return nil, fmt.Errorf("ledger: %w", err)
	}
	// Beside the directory, in which each file is a domain's.
	path := filepath.Clean(dir) + ".lock"
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|syscall.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, fmt.Errorf("ledger: %w", err)
	}
	for first := true; ; first = false {
		err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
		switch {
		case err == nil:
			return &Lock{f}, nil
		case !errors.Is(err, syscall.EWOULDBLOCK) && !errors.Is(err, syscall.EINTR):
			return nil, errors.Join(fmt.Errorf("ledger: lock %s: %w", path, err), f.Close())
		}
		if first && waiting != nil {
			waiting()
		}
		select {
		case <-ctx.Done():
			return nil, errors.Join(fmt.Errorf("ledger: lock %s: %w", path, ErrLocked), f.Close())
		case <-time.After(lockPoll):
		}
	}
}

// Release gives the lock back.
func (l *Lock) Release() error { return l.file.Close() }
