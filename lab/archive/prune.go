package archive

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// touchEvery keeps the mark of last use from costing a write on each use.
const touchEvery = 12 * time.Hour

// touch marks a file of the cache as used. It fails without harm, on a cache
// that is read-only for instance.
func touch(path string) {
	if st, err := os.Stat(path); err == nil && time.Since(st.ModTime()) > touchEvery {
		now := time.Now()
		_ = os.Chtimes(path, now, now)
	}
}

// Prune removes indexes, packages and trees that no one has asked for since
// the given time, and returns the number of bytes of those it removed. A
// package that only a tree was made of is not kept for the tree's sake. Choose a
// time well before any run that may still be reading, and at least a day ago:
// uses are noted twice a day.
func (a *Archive) Prune(ctx context.Context, unusedSince time.Time) (freed int64, err error) {
	var fails []error
	for _, dir := range []string{"index", "debs", "trees"} {
		list, err := os.ReadDir(filepath.Join(a.opt.CacheDir, dir))
		if err != nil {
			return freed, fmt.Errorf("cache: %w", err)
		}
		for _, d := range list {
			if ctx.Err() != nil {
				return freed, errors.Join(append(fails, ctx.Err())...)
			}
			n, err := a.pruneOne(ctx, dir, d.Name(), unusedSince)
			freed += n
			fails = append(fails, err)
		}
	}
	return freed, errors.Join(fails...)
}

func (a *Archive) pruneOne(ctx context.Context, dir, name string, unusedSince time.Time) (int64, error) {
	path := filepath.Join(a.opt.CacheDir, dir, name)
	mark := path
	if dir == "trees" {
		// A tree's own times are its packages'; its lock's are its uses.
		id := "tree-" + strings.TrimPrefix(name, buildingPrefix)
		mark = a.lockPath(id)
		unlock, err := a.lock(ctx, id)
		if err != nil {
			return 0, err
		}
		defer unlock()
	}
	st, err := os.Stat(mark)
	if errors.Is(err, fs.ErrNotExist) {
		return 0, nil // another process was first
	}
	if err != nil {
		return 0, err
	}
	if !st.ModTime().Before(unusedSince) {
		return 0, nil
	}
	size := int64(0)
	err = filepath.WalkDir(path, func(_ string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		st, err := d.Info()
		if err == nil {
			size += st.Size()
		}
		return err
	})
	if err := errors.Join(err, os.RemoveAll(path)); err != nil {
		return 0, err
	}
	return size, nil
}
