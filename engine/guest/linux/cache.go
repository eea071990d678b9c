package linux

import (
	"cmp"
	"crypto/hmac"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"
	"weak"

	"github.com/xen-hvi/hvi/engine/x86"
)

// DefaultCacheDir is where hvid keeps what it knows of kernels.
const DefaultCacheDir = "/var/cache/hvi"

// Bounds of a cache. A guest can make a profile with every boot, so what all of
// them keep is bounded, and so is how many of them a guest is compared with:
// others with the same entry point are left aside, which costs no more than
// reading the kernel anew.
const (
	maxProfiles   = 64
	maxCacheBytes = 256 << 20
	maxCompared   = 4
	// maxWriting bounds the profiles that wait for being written.
	maxWriting = 4
)

// Cache keeps the profiles of kernels in a directory, so that the next guest
// with the same build need not be parsed: it is compared, byte for byte, by a
// keyed sum (see profile). The key is of this host, random, and kept in the
// directory, which must belong to root (or the user) and be writable for nobody
// else.
//
// The directory may be lost at any time. A file that is damaged, of another
// version or not made with this key is ignored, and removed if it has the name of
// one of ours; files with other names are left alone. Several processes may use
// one directory.
//
// A Cache is safe for concurrent use; a nil one keeps nothing. Close it when
// done.
type Cache struct {
	dir    string
	key    *digestKey
	failed func(error)

	// live are the profiles that kernels in this process use, by file name.
	mu   sync.Mutex
	live map[string]weak.Pointer[profile]

	writing sync.WaitGroup
	slots   chan struct{}
}

// CacheError says why a directory cannot serve as a cache, or a profile was not
// written.
type CacheError struct {
	Path string
	// Got is what is wrong with it, or empty.
	Got string
	// Hint says what to do, or is empty.
	Hint string
	Err  error
}

func (e *CacheError) Error() string {
	s := "profile cache " + e.Path
	if e.Got != "" {
		s += ": " + e.Got
	}
	if e.Err != nil {
		s += ": " + e.Err.Error()
	}
	if e.Hint != "" {
		s += " (" + e.Hint + ")"
	}
	return s
}

// Unwrap returns the cause.
func (e *CacheError) Unwrap() error { return e.Err }

// OpenCache opens a cache, and makes its directory and key if there are none.
// failed, which may be nil, is told what went wrong later, in writing a profile,
// on any goroutine. Errors are *[CacheError].
func OpenCache(dir string, failed func(error)) (*Cache, error) {
	if err := os.MkdirAll(dir, 0o750); err != nil {
		return nil, &CacheError{Path: dir, Err: err}
	}
	st, err := os.Lstat(dir)
	if err != nil {
		return nil, &CacheError{Path: dir, Err: err}
	}
	if !st.IsDir() {
		return nil, &CacheError{Path: dir, Got: "not a directory"}
	}
	if !private(st, 0o022) {
		return nil, &CacheError{Path: dir, Got: fmt.Sprintf("others may write there (%v)", st.Mode()),
			Hint: "give it to root, with mode 0750"}
	}
	secret, err := cacheKey(dir)
	if err != nil {
		return nil, &CacheError{Path: filepath.Join(dir, keyName), Err: err}
	}
	if failed == nil {
		failed = func(error) {}
	}
	return &Cache{dir: dir, key: newDigestKey(secret), failed: failed, live: map[string]weak.Pointer[profile]{}, slots: make(chan struct{}, maxWriting)}, nil
}

// Close waits until what was kept is written.
func (c *Cache) Close() {
	if c != nil {
		c.writing.Wait()
	}
}

// private reports whether a file is ours or root's, and none of the permissions
// is given.
func private(st fs.FileInfo, not fs.FileMode) bool {
	sys, ok := st.Sys().(*syscall.Stat_t)
	return ok && (sys.Uid == 0 || int(sys.Uid) == os.Geteuid()) && st.Mode().Perm()&not == 0
}

const (
	keyName  = "key"
	keySize  = 32
	newName  = ".new-"
	fileTail = ".profile"
)

// cacheKey reads the key, or makes it. One that is damaged, or that somebody
// could have read, is replaced, and so all profiles lose their worth.
func cacheKey(dir string) ([]byte, error) {
	path := filepath.Join(dir, keyName)
	if key, err := readPrivate(path, keySize, 0o077); err == nil && len(key) == keySize {
		return key, nil
	}
	key := make([]byte, keySize)
	_, _ = rand.Read(key) // never fails
	name, err := writeNew(dir, key)
	if err != nil {
		return nil, err
	}
	defer os.Remove(name)
	// The first of several processes wins. Whatever has the name and is no key
	// goes.
	if err = os.Link(name, path); errors.Is(err, fs.ErrExist) {
		if other, err := readPrivate(path, keySize, 0o077); err == nil && len(other) == keySize {
			return other, nil
		}
		err = os.Rename(name, path)
	}
	return key, err
}

// readPrivate reads a regular file of at most a size, if it is ours or root's
// and none of the permissions is given.
func readPrivate(path string, most int64, not fs.FileMode) ([]byte, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NOFOLLOW|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if !st.Mode().IsRegular() || !private(st, not) || st.Size() > most {
		return nil, errProfile
	}
	b := make([]byte, st.Size())
	_, err = io.ReadFull(f, b)
	return b, err
}

// writeNew writes a file under a name of its own, to be given its real one.
func writeNew(dir string, b []byte) (string, error) {
	f, err := os.CreateTemp(dir, newName+"*") // with mode 0600
	if err != nil {
		return "", err
	}
	_, err = f.Write(b)
	if err = errors.Join(err, f.Close()); err != nil {
		os.Remove(f.Name())
		return "", err
	}
	return f.Name(), nil
}

// sumKey is the key of digests that the cache compares.
func (c *Cache) sumKey() *digestKey {
	if c == nil {
		return ownKey()
	}
	return c.key
}

// find returns the profile that fits a kernel, or nil.
func (c *Cache) find(r *imageReader, base, entry x86.VirtAddr) *profile {
	if c == nil {
		return nil
	}
	// Comparing has bounds of its own, and takes nothing from those of parsing.
	r = &imageReader{as: r.as, extents: r.extents}
	prefix := fmt.Sprintf("%08x-", uint32(entry-base))
	compared := 0
	for _, f := range c.list() {
		if !strings.HasPrefix(f.Name(), prefix) {
			continue
		}
		if compared++; compared > maxCompared {
			break
		}
		p := c.known(f.Name())
		inUse := p != nil
		if !inUse {
			p = c.load(f.Name())
		}
		if p == nil {
			os.Remove(filepath.Join(c.dir, f.Name()))
			continue
		}
		if p.entry == uint32(entry-base) && p.fits(c.key, r, base) {
			if !inUse {
				c.remember(f.Name(), p)
			}
			now := time.Now()
			_ = os.Chtimes(filepath.Join(c.dir, f.Name()), now, now) // kept longest
			return p
		}
	}
	return nil
}

// known returns a profile that is in use in this process, or nil.
func (c *Cache) known(name string) *profile {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.live[name].Value()
}

// remember lets others find a profile for as long as somebody uses it.
func (c *Cache) remember(name string, p *profile) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for n, w := range c.live { // a few
		if w.Value() == nil {
			delete(c.live, n)
		}
	}
	c.live[name] = weak.Make(p)
}

// load reads a profile from its file, yet without its symbols, or nil if the file
// is not one that this cache has written.
func (c *Cache) load(name string) *profile {
	b, err := readPrivate(filepath.Join(c.dir, name), maxProfile, 0o022)
	if err != nil || len(b) < len(digest{}) {
		return nil
	}
	b, mac := b[:len(b)-len(digest{})], b[len(b)-len(digest{}):]
	want := c.seal(b)
	if !hmac.Equal(mac, want[:]) {
		return nil
	}
	p, err := decodeProfile(b, c.key.names)
	if err != nil {
		return nil
	}
	return p
}

// seal is what proves that a file's content was written by this cache.
func (c *Cache) seal(b []byte) digest {
	d := c.key.digester("profile file")
	d.bytes(b)
	return d.digest()
}

// keep writes a profile, later. The vCPU that waits for its kernel's
// identification needn't wait for a disk.
func (c *Cache) keep(p *profile) {
	select {
	case c.slots <- struct{}{}:
	default:
		return // the next guest with this kernel has another chance
	}
	c.writing.Go(func() {
		defer func() { <-c.slots }()
		if err := c.write(p); err != nil {
			c.failed(&CacheError{Path: c.dir, Got: "profile not kept", Err: err})
		}
	})
}

func (c *Cache) write(p *profile) error {
	b := p.encode()
	if len(b) > maxProfile-len(digest{}) {
		return fmt.Errorf("%d bytes", len(b))
	}
	mac := c.seal(b)
	name, err := writeNew(c.dir, append(b, mac[:]...))
	if err != nil {
		return err
	}
	final := fmt.Sprintf("%08x-%s%s", p.entry, p.build(c.key), fileTail)
	if err := os.Rename(name, filepath.Join(c.dir, final)); err != nil {
		os.Remove(name)
		return err
	}
	c.remember(final, p)
	c.evict()
	return nil
}

// list returns the profiles' files, last used first.
func (c *Cache) list() []fs.FileInfo {
	entries, err := os.ReadDir(c.dir)
	if err != nil {
		return nil
	}
	var out []fs.FileInfo
	for _, e := range entries {
		if !profileName(e.Name()) || !e.Type().IsRegular() {
			continue
		}
		if st, err := e.Info(); err == nil {
			out = append(out, st)
		}
	}
	slices.SortFunc(out, func(a, b fs.FileInfo) int {
		return cmp.Or(b.ModTime().Compare(a.ModTime()), strings.Compare(a.Name(), b.Name()))
	})
	return out
}

// profileName reports whether a name is that of a profile of ours.
func profileName(name string) bool {
	hex, ok := strings.CutSuffix(name, fileTail)
	return ok && len(hex) == 8+1+32 && hex[8] == '-' && strings.Trim(hex, "0123456789abcdef-") == ""
}

// evict removes what was not used for longest where there is too much, and what
// a process that died has left.
func (c *Cache) evict() {
	bytes := int64(0)
	for i, f := range c.list() {
		if bytes += f.Size(); i >= maxProfiles || bytes > maxCacheBytes {
			os.Remove(filepath.Join(c.dir, f.Name()))
		}
	}
	entries, _ := os.ReadDir(c.dir)
	for _, e := range entries {
		if st, err := e.Info(); err == nil && strings.HasPrefix(e.Name(), newName) && time.Since(st.ModTime()) > time.Hour {
			os.Remove(filepath.Join(c.dir, e.Name()))
		}
	}
}
