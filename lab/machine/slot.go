package machine

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"syscall"
	"time"
)

// MaxMachines bounds the emulators that run on one host at a time, over all
// processes that share a cache.
const MaxMachines = 2

// AcquireSlot waits for one of the host's places for a machine. It calls wait
// once if there is none yet.
func AcquireSlot(ctx context.Context, cache string, wait func()) (release func(), err error) {
	dir := filepath.Join(cache, "locks")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	tick := time.NewTicker(500 * time.Millisecond)
	defer tick.Stop()
	for {
		for i := range MaxMachines {
			f, err := os.OpenFile(filepath.Join(dir, fmt.Sprintf("machine-%d", i)), os.O_CREATE|os.O_RDWR, 0o644)
			if err != nil {
				return nil, err
			}
			if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err == nil {
				return func() { _ = f.Close() }, nil // which gives the place back
			}
			_ = f.Close()
		}
		if wait != nil {
			wait()
			wait = nil
		}
		select {
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		case <-tick.C:
		}
	}
}

// Place is one of the host's places for a machine, kept for several that run one
// after the other: where others wait for places, each of them would have to wait
// for its turn. The zero Place is not taken yet. It is not safe for concurrent use.
type Place struct {
	release func()
}

// Take takes the place as [AcquireSlot] does, unless it is taken already.
func (p *Place) Take(ctx context.Context, cache string, wait func()) (err error) {
	if p.release == nil {
		p.release, err = AcquireSlot(ctx, cache, wait)
	}
	return err
}

// Close gives the place back, if it was taken.
func (p *Place) Close() {
	if p.release != nil {
		p.release()
		p.release = nil
	}
}
