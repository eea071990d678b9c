package archive

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"sync"
	"time"
)

// Download brings packages into the cache and returns their files in the order
// of pkgs. A file that is there already is not fetched again; one that was cut
// off is resumed. The files belong to the cache: read them only.
func (a *Archive) Download(ctx context.Context, pkgs []Package) ([]string, error) {
	paths := make([]string, len(pkgs))
	var missing []Package
	queued := make(map[string]bool)
	job := &download{archive: a, began: time.Now(), have: make(map[string]int64)}
	for i, p := range pkgs {
		if !isSHA256(p.SHA256) || !validPool(p.Filename) || p.Size < 0 {
			return nil, fmt.Errorf("package %s: not one that an index gave", p)
		}
		paths[i] = a.debPath(p)
		ok, err := exists(paths[i], p.Size)
		if err != nil {
			return nil, err
		}
		if ok {
			touch(paths[i])
		}
		if !ok && !queued[p.SHA256] {
			queued[p.SHA256] = true
			missing = append(missing, p)
			job.total += p.Size
		}
	}
	if len(missing) == 0 {
		return paths, nil
	}
	if a.opt.Offline {
		return nil, &OfflineError{What: fmt.Sprintf("package %s (and %d more)", missing[0], len(missing)-1)}
	}
	job.items = len(missing)

	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	work := make(chan Package)
	var wg sync.WaitGroup
	for range min(a.opt.Parallel, len(missing)) {
		wg.Go(func() {
			for p := range work {
				if err := job.one(ctx, p); err != nil {
					cancel(err) // the first failure ends the others
				}
			}
		})
	}
feed:
	for _, p := range missing {
		select {
		case work <- p:
		case <-ctx.Done():
			break feed
		}
	}
	close(work)
	wg.Wait()
	if err := context.Cause(ctx); err != nil {
		return nil, err
	}
	job.report("", "", true)
	return paths, nil
}

// download is one call's progress over all its packages.
type download struct {
	archive *Archive
	began   time.Time
	total   int64
	items   int

	mu   sync.Mutex
	have map[string]int64 // bytes by SHA256
	done int
}

func (j *download) report(name, text string, final bool) {
	j.mu.Lock()
	e := Event{Kind: Download, Name: name, Text: text, Total: j.total, Items: j.done, ItemsTotal: j.items, Elapsed: time.Since(j.began), Final: final}
	for _, n := range j.have {
		e.Done += n
	}
	j.mu.Unlock()
	j.archive.report.send(e)
}

func (j *download) one(ctx context.Context, p Package) error {
	a := j.archive
	seen := func(n int64) {
		j.mu.Lock()
		j.have[p.SHA256] = n
		j.mu.Unlock()
		j.report(p.Name, "", false)
	}
	err := a.fetchDeb(ctx, p, seen, func(err error) { j.report(p.Name, "trying again: "+err.Error(), false) })
	if err != nil {
		return fmt.Errorf("package %s: %w", p, err)
	}
	j.mu.Lock()
	j.have[p.SHA256] = p.Size
	j.done++
	j.mu.Unlock()
	j.report(p.Name, "", false)
	return nil
}

func (a *Archive) fetchDeb(ctx context.Context, p Package, seen func(int64), onRetry func(error)) error {
	unlock, err := a.lock(ctx, "deb-"+p.SHA256[:2])
	if err != nil {
		return err
	}
	defer unlock()
	path := a.debPath(p)
	if ok, err := exists(path, p.Size); ok || err != nil {
		return err // another process was first
	}
	rel, err := a.release(ctx, p.Suite)
	if err != nil {
		return err
	}
	w := want{what: "package " + filepath.Base(p.Filename), url: rel.base + "/" + p.Filename, size: p.Size, sha256: p.SHA256}
	err = a.fetch.toFile(ctx, w, path, seen, onRetry)
	if he, ok := errors.AsType[*HTTPError](err); ok && errors.Is(err, ErrNotFound) {
		a.forget(p.Suite)
		he.Hint = "the mirror has moved on since its index was fetched; run again to take the new index"
	}
	return err
}
