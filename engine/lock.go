package engine

import (
	"context"
	"errors"
	"fmt"
)

// ErrBusy says that something else went on for a domain until the caller's time
// was up: its config is read from a file server that does not answer, or the
// ring is waited for.
var ErrBusy = errors.New("something else is under way for the domain")

// lock is a mutex that can be waited for within a context.
type lock chan struct{}

func newLock() lock { return make(lock, 1) }

// Lock waits without an end.
func (l lock) Lock() { l <- struct{}{} }

// Unlock gives the lock back.
func (l lock) Unlock() { <-l }

// lockWithin waits as long as ctx lives. The error matches ErrBusy and ctx's.
func (l lock) lockWithin(ctx context.Context) error {
	select {
	case l <- struct{}{}:
		return nil
	default:
	}
	select {
	case l <- struct{}{}:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("%w: %w", ErrBusy, ctx.Err())
	}
}
