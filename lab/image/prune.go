package image

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/xen-hvi/hvi/lab/archive"
)

// Prune removes artifacts of the given name that no one has asked for since a
// time, and returns the number of bytes of those it removed. It is for what is
// large and changes with our own sources, as memory images do: each change
// leaves the former ones behind. Choose a time well before any run that may
// still be reading.
func (b *Builder) Prune(ctx context.Context, pattern string, unusedSince time.Time) (freed int64, err error) {
	found, err := filepath.Glob(filepath.Join(b.CacheDir, "artifacts", pattern))
	if err != nil {
		return 0, err
	}
	var fails []error
	for _, dir := range found {
		if ctx.Err() != nil {
			return freed, errors.Join(append(fails, ctx.Err())...)
		}
		n, err := b.pruneOne(ctx, dir, unusedSince)
		freed += n
		fails = append(fails, err)
	}
	return freed, errors.Join(fails...)
}

func (b *Builder) pruneOne(ctx context.Context, dir string, unusedSince time.Time) (freed int64, err error) {
	unlock, err := archive.Lock(ctx, b.lockPath(dir))
	if err != nil {
		return 0, err
	}
	defer unlock()
	st, err := os.Stat(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return 0, nil // another process was first
	}
	if err != nil || !st.ModTime().Before(unusedSince) {
		return 0, err
	}
	files, err := os.ReadDir(dir)
	if err != nil {
		return 0, err
	}
	for _, f := range files {
		if info, err := f.Info(); err == nil && f.Type().IsRegular() {
			freed += info.Size()
		}
	}
	if err := os.RemoveAll(dir); err != nil {
		return 0, fmt.Errorf("cache: %w", err)
	}
	return freed, nil
}

// used marks an artifact as asked for. It fails without harm, on a cache that is
// read-only for instance.
func used(dir string) {
	now := time.Now()
	_ = os.Chtimes(dir, now, now)
}
