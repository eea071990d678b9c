package archive

import (
	"archive/tar"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"time"
)

// buildingPrefix marks a tree that isn't finished.
const buildingPrefix = ".building-"

// treeFormat changes when a tree of the same packages would come out different.
const treeFormat = "1"

// Tree returns a folder into which the payloads of pkgs are unpacked, building
// it if the cache doesn't have it. Packages that are missing are downloaded.
// The folder's name is name and a hash over the packages, so that equal input
// gives the same folder; it belongs to the cache and must not be changed.
//
// A tree has the merged-/usr layout whatever the suite: bin, sbin, lib and
// lib64 are links into usr. Nothing is configured: maintainer scripts do not
// run, so there are no alternatives' links, no ld.so.cache, no users. Owners are
// kept if this runs as root; device nodes are left out. Of a file that several
// packages ship, the one of the package last in name order stays.
func (a *Archive) Tree(ctx context.Context, name string, pkgs []Package) (string, error) {
	if !validSuite(name) {
		return "", fmt.Errorf("tree name %s: want lower-case letters, digits, dots and hyphens", quote(name))
	}
	pkgs = slices.Clone(pkgs)
	slices.SortFunc(pkgs, func(a, b Package) int {
		if c := strings.Compare(a.Name, b.Name); c != 0 {
			return c
		}
		return strings.Compare(a.SHA256, b.SHA256)
	})
	pkgs = slices.CompactFunc(pkgs, func(a, b Package) bool { return a.SHA256 == b.SHA256 })
	id := name + "-" + treeHash(pkgs)
	final := filepath.Join(a.opt.CacheDir, "trees", id)
	if isDir(final) {
		touch(a.lockPath("tree-" + id)) // the folder's own times are part of the tree
		return final, nil
	}
	unlock, err := a.lock(ctx, "tree-"+id)
	if err != nil {
		return "", err
	}
	defer unlock()
	if isDir(final) {
		return final, nil
	}
	debs, err := a.Download(ctx, pkgs)
	if err != nil {
		return "", err
	}
	// The lock says that no one else is building this tree: what an
	// interrupted build left can go.
	tmp := filepath.Join(a.opt.CacheDir, "trees", buildingPrefix+id)
	if err := os.RemoveAll(tmp); err != nil {
		return "", fmt.Errorf("cache: %w", err)
	}
	if err := a.unpackAll(ctx, name, tmp, pkgs, debs); err != nil {
		return "", errors.Join(err, os.RemoveAll(tmp))
	}
	if err := os.Rename(tmp, final); err != nil {
		return "", fmt.Errorf("cache: %w", err)
	}
	touch(a.lockPath("tree-" + id))
	return final, nil
}

// treeHash is over the packages' contents only, so that two suites that share
// them share the tree.
func treeHash(pkgs []Package) string {
	sums := make([]string, len(pkgs))
	for i, p := range pkgs {
		sums[i] = p.SHA256
	}
	slices.Sort(sums)
	h := sha256.Sum256([]byte("tree " + treeFormat + "\n" + strings.Join(sums, "\n")))
	return hex.EncodeToString(h[:])[:16]
}

func isDir(path string) bool {
	st, err := os.Stat(path)
	return err == nil && st.IsDir()
}

func (a *Archive) unpackAll(ctx context.Context, name, root string, pkgs []Package, debs []string) error {
	t, err := newTree(root)
	if err != nil {
		return err
	}
	began := time.Now()
	event := Event{Kind: Unpack, Name: name, ItemsTotal: len(pkgs)}
	for _, p := range pkgs {
		event.Total += p.Size
	}
	var mu sync.Mutex // guards event
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	work := make(chan int)
	var wg sync.WaitGroup
	for range min(runtime.NumCPU(), len(pkgs)) {
		wg.Go(func() {
			for i := range work {
				if err := t.unpack(ctx, i, pkgs[i], debs[i]); err != nil {
					cancel(fmt.Errorf("package %s: unpacking: %w", pkgs[i], err))
					continue
				}
				mu.Lock()
				event.Done += pkgs[i].Size
				event.Items++
				e := event
				mu.Unlock()
				e.Elapsed = time.Since(began)
				a.report.send(e)
			}
		})
	}
	// The largest first, so that none is left alone at the end.
	order := make([]int, len(pkgs))
	for i := range order {
		order[i] = i
	}
	slices.SortStableFunc(order, func(x, y int) int { return int(min(max(pkgs[y].Size-pkgs[x].Size, -1), 1)) })
feed:
	for _, i := range order {
		select {
		case work <- i:
		case <-ctx.Done():
			break feed
		}
	}
	close(work)
	wg.Wait()
	if err := context.Cause(ctx); err != nil {
		return err
	}
	if err := t.finish(); err != nil {
		return err
	}
	event.Elapsed, event.Final = time.Since(began), true
	a.report.send(event)
	return nil
}

// tree is a folder being filled by several packages at a time. It knows every
// entry it made, so that paths are resolved in memory: no link a package ships
// can lead a write out of the folder.
type tree struct {
	root string
	own  bool // set owners

	mu      sync.Mutex
	entries map[string]*entry // by path below root, "" being root itself
}

type entry struct {
	kind  byte // 'd', 'f' or 'l'
	link  string
	owner int // index of the package whose it is; -1: made here
	mode  fs.FileMode
	uid   int
	gid   int
	mtime time.Time
}

func newTree(root string) (*tree, error) {
	if err := os.Mkdir(root, 0o755); err != nil {
		return nil, fmt.Errorf("cache: %w", err)
	}
	t := &tree{root: root, own: os.Geteuid() == 0, entries: map[string]*entry{"": {kind: 'd', owner: 1 << 30, mode: 0o755, mtime: time.Unix(0, 0)}}}
	for _, dir := range []string{"bin", "sbin", "lib", "lib64"} {
		if err := t.mkdir("usr/" + dir); err != nil {
			return nil, err
		}
		if err := os.Symlink("usr/"+dir, filepath.Join(root, dir)); err != nil {
			return nil, fmt.Errorf("cache: %w", err)
		}
		t.entries[dir] = &entry{kind: 'l', link: "usr/" + dir, owner: -1}
	}
	return t, nil
}

// mkdir makes a folder and those above it that are missing. The path holds no
// links. A package that ships the folder later gives it its mode.
func (t *tree) mkdir(p string) error {
	if e := t.entries[p]; e != nil {
		if e.kind != 'd' {
			return fmt.Errorf("%s is not a folder", p)
		}
		return nil
	}
	if err := t.mkdir(parent(p)); err != nil {
		return err
	}
	if err := os.Mkdir(filepath.Join(t.root, p), 0o755); err != nil {
		return err
	}
	t.entries[p] = &entry{kind: 'd', owner: 1 << 30, mode: 0o755, mtime: time.Unix(0, 0)}
	return nil
}

func parent(p string) string {
	d := path.Dir(p)
	if d == "." {
		return ""
	}
	return d
}

// resolve follows the links in a path's folders, and in the path itself if
// last is set, inside the tree.
func (t *tree) resolve(p string, last bool) (string, error) {
	const maxLinks = 40 // as the kernel has it
	todo := strings.Split(p, "/")
	at := ""
	for links := 0; len(todo) > 0; {
		part := todo[0]
		todo = todo[1:]
		switch part {
		case "", ".":
			continue
		case "..":
			at = parent(at) // at the root, it stays there
			continue
		}
		next := path.Join(at, part)
		e := t.entries[next]
		if e == nil || e.kind != 'l' || len(todo) == 0 && !last {
			at = next
			continue
		}
		if links++; links > maxLinks {
			return "", fmt.Errorf("%s: too many links", p)
		}
		if strings.HasPrefix(e.link, "/") {
			at = ""
		}
		todo = append(strings.Split(e.link, "/"), todo...)
	}
	return at, nil
}

// unpack writes one package's payload. The .deb is hashed while dpkg-deb reads
// it, against damage since it was downloaded.
func (t *tree) unpack(ctx context.Context, owner int, p Package, deb string) error {
	f, err := os.Open(deb)
	if err != nil {
		return err
	}
	defer f.Close()
	sum := sha256.New()
	if _, err := io.Copy(sum, f); err != nil {
		return err
	}
	if got := hex.EncodeToString(sum.Sum(nil)); got != p.SHA256 {
		ie := &IntegrityError{What: "cached package", URL: deb, WantSize: p.Size, GotSize: p.Size, WantSHA256: p.SHA256, GotSHA: got}
		return errors.Join(ie, os.Remove(deb)) // fetched again next time
	}

	cmd := exec.CommandContext(ctx, "dpkg-deb", "--fsys-tarfile", deb)
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		if errors.Is(err, exec.ErrNotFound) {
			err = fmt.Errorf("%w: install the package dpkg", err)
		}
		return err
	}
	xerr := t.extract(owner, tar.NewReader(out))
	if xerr == nil {
		_, xerr = io.Copy(io.Discard, out) // padding after the last entry
	}
	_ = out.Close() // a dpkg-deb that still writes ends by SIGPIPE
	if err := cmd.Wait(); err != nil && xerr == nil {
		xerr = fmt.Errorf("dpkg-deb: %w: %s", err, strings.TrimSpace(stderr.String()))
	}
	return xerr
}

func (t *tree) extract(owner int, tr *tar.Reader) error {
	buf := make([]byte, 256<<10)
	for {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("payload: %w", err)
		}
		if err := t.add(owner, h, tr, buf); err != nil {
			return fmt.Errorf("%s: %w", h.Name, err)
		}
	}
}

// add makes one entry. Only a file's contents are written without the lock.
func (t *tree) add(owner int, h *tar.Header, body io.Reader, buf []byte) error {
	name := path.Clean(h.Name)
	if name == "." {
		return nil
	}
	if !filepath.IsLocal(name) {
		return errors.New("leads out of the tree")
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	p, err := t.resolve(name, h.Typeflag == tar.TypeDir)
	if err != nil {
		return err
	}
	if p == "" {
		return nil
	}
	old := t.entries[p]
	e := &entry{owner: owner, mode: h.FileInfo().Mode(), uid: h.Uid, gid: h.Gid, mtime: h.ModTime}
	if h.Typeflag == tar.TypeDir {
		e.kind = 'd'
		if old != nil && old.kind != 'd' {
			return errors.New("a folder, where another package has a file")
		}
		if err := t.mkdir(p); err != nil {
			return err
		}
		// As dpkg has it, the first package's mode stays.
		if owner < t.entries[p].owner {
			t.entries[p] = e
		}
		return nil
	}
	if old != nil {
		if old.kind == 'd' {
			if h.Typeflag == tar.TypeSymlink {
				return nil // as dpkg, which keeps the folder
			}
			return errors.New("a file, where another package has a folder")
		}
		if old.owner > owner || old.kind == 'l' && h.Typeflag == tar.TypeSymlink && old.link == h.Linkname {
			return nil
		}
		if err := os.Remove(filepath.Join(t.root, p)); err != nil {
			return err
		}
		delete(t.entries, p)
	}
	if err := t.mkdir(parent(p)); err != nil {
		return err
	}
	full := filepath.Join(t.root, p)
	switch h.Typeflag {
	case tar.TypeReg:
		e.kind = 'f'
		t.entries[p] = e
		f, err := os.OpenFile(full, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
		if err != nil {
			return err
		}
		t.mu.Unlock()
		_, err = io.CopyBuffer(struct{ io.Writer }{f}, body, buf)
		if err == nil && t.own {
			err = f.Chown(h.Uid, h.Gid)
		}
		if err == nil {
			err = f.Chmod(e.mode) // after chown, which clears setuid
		}
		err = errors.Join(err, f.Close())
		t.mu.Lock()
		if err == nil && t.entries[p] == e { // else a later package has replaced it
			err = os.Chtimes(full, h.ModTime, h.ModTime)
		}
		return err
	case tar.TypeSymlink:
		e.kind, e.link = 'l', h.Linkname
		if err := os.Symlink(h.Linkname, full); err != nil {
			return err
		}
		t.entries[p] = e
		if t.own {
			return os.Lchown(full, h.Uid, h.Gid)
		}
		return nil
	case tar.TypeLink:
		target := path.Clean(h.Linkname)
		if !filepath.IsLocal(target) {
			return errors.New("a hard link that leads out of the tree")
		}
		if target, err = t.resolve(target, false); err != nil {
			return err
		}
		e.kind = 'f'
		t.entries[p] = e
		return os.Link(filepath.Join(t.root, target), full)
	case tar.TypeBlock, tar.TypeChar, tar.TypeFifo:
		return nil
	}
	return fmt.Errorf("an entry of unknown type %q", h.Typeflag)
}

// finish gives folders their modes and times, which would have got in the way
// before.
func (t *tree) finish() error {
	for p, e := range t.entries {
		if e.kind != 'd' {
			continue
		}
		full := filepath.Join(t.root, p)
		var err error
		if t.own {
			err = os.Lchown(full, e.uid, e.gid)
		}
		err = errors.Join(err, os.Chmod(full, e.mode.Perm()|e.mode&(fs.ModeSetuid|fs.ModeSetgid|fs.ModeSticky)), os.Chtimes(full, e.mtime, e.mtime))
		if err != nil {
			return err
		}
	}
	return nil
}
