package archive

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"
	"time"
)

// lockPoll is how often a held lock is tried again. flock can't be waited for
// together with a context.
const lockPoll = 50 * time.Millisecond

func (a *Archive) lockPath(name string) string {
	return filepath.Join(a.opt.CacheDir, "locks", name)
}

// lock takes one of the cache's locks.
func (a *Archive) lock(ctx context.Context, name string) (unlock func(), err error) {
	return Lock(ctx, a.lockPath(name))
}

// Lock takes an exclusive lock that other processes and goroutines which take it
// on the same file see, and returns what releases it. The file is made where it
// is missing. The kernel releases the lock of a process that dies. Lock files
// stay: removing one would let two holders in.
func Lock(ctx context.Context, path string) (unlock func(), err error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return nil, fmt.Errorf("cache lock: %w", err)
	}
	for {
		err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
		switch {
		case err == nil:
			return func() { _ = f.Close() }, nil
		case errors.Is(err, syscall.EINTR):
			continue
		case !errors.Is(err, syscall.EWOULDBLOCK):
			_ = f.Close()
			return nil, fmt.Errorf("cache lock %s: %w", path, err)
		}
		select {
		case <-ctx.Done():
			_ = f.Close()
			return nil, fmt.Errorf("cache lock %s is held by another process: %w", path, ctx.Err())
		case <-time.After(lockPoll):
		}
	}
}

// writeAtomic gives a file its name only when all its bytes are on disk.
func writeAtomic(path string, data []byte) error {
	f, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+".*")
	if err != nil {
		return err
	}
	tmp := f.Name()
	_, err = f.Write(data)
	err = errors.Join(err, f.Chmod(0o644), f.Sync(), f.Close())
	if err == nil {
		err = os.Rename(tmp, path)
	}
	if err != nil {
		_ = os.Remove(tmp)
	}
	return err
}
