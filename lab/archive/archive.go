package archive

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	openpgp "github.com/ProtonMail/go-crypto/openpgp/v2"
)

// DefaultMaxAge is how long a fetched InRelease is used before the mirror is
// asked again. Debian's suites change a few times a day at most.
const DefaultMaxAge = 12 * time.Hour

// defaultParallel downloads at a time: enough to hide a mirror's latency,
// few enough to be polite.
const defaultParallel = 4

// Options say where to cache and what to trust. The zero value is usable.
type Options struct {
	// CacheDir is created where it is missing. Empty: DefaultCacheDir.
	CacheDir string
	// Mirror and SecurityMirror are base URLs, the folder that holds dists/ and
	// pool/: http, https or file. Empty: HVI_LAB_MIRROR and
	// HVI_LAB_SECURITY_MIRROR, then what apt is configured with. Where only
	// Mirror is given, the security archive is looked for beside it.
	Mirror, SecurityMirror string
	// Keyring is a file of OpenPGP keys. Empty: HVI_LAB_KEYRING, then Debian's.
	Keyring string
	// Arch is a Debian architecture. Empty: amd64.
	Arch string
	// MaxAge is how long an InRelease is used without asking the mirror. Zero:
	// DefaultMaxAge; negative: ask each time.
	MaxAge time.Duration
	// Offline forbids the network; what is not in the cache is an OfflineError,
	// and the age and expiry of an index are not looked at. Also set by
	// HVI_LAB_OFFLINE=1.
	Offline bool
	// AllowExpired accepts an InRelease past its Valid-Until, as archived suites
	// have. Also set by HVI_LAB_ALLOW_EXPIRED=1, and by apt's own
	// Acquire::Check-Valid-Until "false".
	AllowExpired bool
	// Parallel is the number of downloads at a time. Zero: 4.
	Parallel int
	// Progress, where set, receives events. See Event.
	Progress func(Event)
}

// Archive is Debian's package archive as one mirror and one local cache show
// it. See the package comment for what it trusts and keeps.
type Archive struct {
	opt       Options
	report    reporter
	fetch     *fetcher
	now       func() time.Time
	keys      func() (openpgp.EntityList, error)
	aptConfig func() aptConfig
	mirrors   func() (*mirrors, error)

	verifying sync.Mutex // one signature at a time; the keyring is not for concurrent use

	mu       sync.Mutex
	releases map[string]*release // by suite
	indexes  map[string]*index   // by suite
}

// DefaultCacheDir is $XDG_CACHE_HOME/hvi-lab, or .cache/hvi-lab in the home
// folder.
func DefaultCacheDir() (string, error) {
	dir, err := os.UserCacheDir()
	if err != nil {
		return "", fmt.Errorf("no place for a cache: %w; set XDG_CACHE_HOME", err)
	}
	return filepath.Join(dir, "hvi-lab"), nil
}

// Open prepares the cache. It reads neither the network nor apt's
// configuration yet: both happen when something is needed that the cache
// doesn't have. ctx bounds only this call.
func Open(ctx context.Context, opt Options) (*Archive, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if opt.CacheDir == "" {
		dir, err := DefaultCacheDir()
		if err != nil {
			return nil, err
		}
		opt.CacheDir = dir
	}
	var err error
	if opt.CacheDir, err = filepath.Abs(opt.CacheDir); err != nil {
		return nil, fmt.Errorf("cache: %w", err)
	}
	opt.Mirror = cmp.Or(opt.Mirror, os.Getenv("HVI_LAB_MIRROR"))
	opt.SecurityMirror = cmp.Or(opt.SecurityMirror, os.Getenv("HVI_LAB_SECURITY_MIRROR"))
	for _, m := range []*string{&opt.Mirror, &opt.SecurityMirror} {
		if *m != "" {
			if *m, err = checkBase(*m); err != nil {
				return nil, err
			}
		}
	}
	if opt.Keyring = cmp.Or(opt.Keyring, os.Getenv("HVI_LAB_KEYRING")); opt.Keyring == "" {
		opt.Keyring = keyringFiles[len(keyringFiles)-1]
		for _, f := range keyringFiles {
			if _, err := os.Stat(f); err == nil {
				opt.Keyring = f
				break
			}
		}
	}
	if opt.Arch = cmp.Or(opt.Arch, "amd64"); !validSuite(opt.Arch) {
		return nil, fmt.Errorf("%s is not an architecture", quote(opt.Arch))
	}
	opt.MaxAge = cmp.Or(opt.MaxAge, DefaultMaxAge)
	for name, set := range map[string]*bool{"HVI_LAB_OFFLINE": &opt.Offline, "HVI_LAB_ALLOW_EXPIRED": &opt.AllowExpired} {
		if v := os.Getenv(name); v != "" {
			on, err := strconv.ParseBool(v)
			if err != nil {
				return nil, fmt.Errorf("%s=%s: want 0 or 1", name, v)
			}
			*set = *set || on
		}
	}
	if opt.Parallel <= 0 {
		opt.Parallel = defaultParallel
	}
	for _, dir := range []string{"release", "index", "debs", "trees", "locks"} {
		if err := os.MkdirAll(filepath.Join(opt.CacheDir, dir), 0o755); err != nil {
			return nil, fmt.Errorf("cache: %w", err)
		}
	}
	a := &Archive{
		opt:      opt,
		now:      time.Now,
		releases: make(map[string]*release),
		indexes:  make(map[string]*index),
	}
	a.report.fn = opt.Progress
	a.keys = sync.OnceValues(func() (openpgp.EntityList, error) { return readKeyring(opt.Keyring) })
	a.aptConfig = sync.OnceValue(func() aptConfig { return readAptConfig() })
	a.mirrors = sync.OnceValues(func() (*mirrors, error) { return readMirrors("/etc/apt") })
	a.fetch = newFetcher(func() aptConfig { return a.aptConfig() })
	return a, nil
}

// mirrorsOf returns the base URLs that may serve a suite, best first.
func (a *Archive) mirrorsOf(suite string) ([]string, error) {
	if isSecuritySuite(suite) {
		if a.opt.SecurityMirror != "" {
			return []string{a.opt.SecurityMirror}, nil
		}
		if a.opt.Mirror != "" {
			if s := securitySiblings([]string{a.opt.Mirror}); len(s) > 0 {
				return s, nil
			}
			return []string{a.opt.Mirror}, nil
		}
	} else if a.opt.Mirror != "" {
		return []string{a.opt.Mirror}, nil
	}
	m, err := a.mirrors()
	if err != nil {
		return nil, err
	}
	if bases := m.of(suite); len(bases) > 0 {
		return bases, nil
	}
	return nil, &MirrorError{Skipped: []string{"none of its entries serves " + suite}}
}

// load opens the indexes of several suites, side by side.
func (a *Archive) load(ctx context.Context, suites []string) ([]*index, error) {
	if len(suites) == 0 {
		return nil, errors.New("no suite given")
	}
	out := make([]*index, len(suites))
	fails := make([]error, len(suites))
	var wg sync.WaitGroup
	for i, suite := range suites {
		wg.Go(func() { out[i], fails[i] = a.index(ctx, suite) })
	}
	wg.Wait()
	return out, errors.Join(fails...)
}

// Find returns the newest package of each matching name over all suites,
// ordered by name. The pattern is an exact name or a glob as path.Match has it.
// Where nothing matches it is a NotFoundError.
func (a *Archive) Find(ctx context.Context, suites []string, pattern string) ([]Package, error) {
	if _, err := path.Match(pattern, ""); err != nil {
		return nil, fmt.Errorf("package pattern %s: %w", quote(pattern), err)
	}
	indexes, err := a.load(ctx, suites)
	if err != nil {
		return nil, err
	}
	newest := make(map[string]Package)
	add := func(p Package) {
		if old, ok := newest[p.Name]; !ok || CompareVersions(p.Version, old.Version) > 0 {
			newest[p.Name] = p
		}
	}
	for _, x := range indexes {
		if !strings.ContainsAny(pattern, `*?[\`) {
			for _, p := range x.lookup(pattern) {
				add(p)
			}
			continue
		}
		for i := range x.len() {
			if ok, _ := path.Match(pattern, string(x.name(i))); ok {
				add(x.get(i))
			}
		}
	}
	if len(newest) == 0 {
		return nil, &NotFoundError{Name: pattern, Suites: suites}
	}
	out := make([]Package, 0, len(newest))
	for _, p := range newest {
		out = append(out, p)
	}
	slices.SortFunc(out, func(a, b Package) int { return strings.Compare(a.Name, b.Name) })
	return out, nil
}

// Lookup returns the newest version of one package, by exact name.
func (a *Archive) Lookup(ctx context.Context, suites []string, name string) (Package, error) {
	if !validName(name) {
		return Package{}, &NotFoundError{Name: quote(name), Suites: suites, Hint: "not a package name"}
	}
	found, err := a.Find(ctx, suites, name)
	if err != nil {
		return Package{}, err
	}
	return found[0], nil
}

// debPath is where a package's file is kept.
func (a *Archive) debPath(p Package) string {
	return filepath.Join(a.opt.CacheDir, "debs", p.SHA256+".deb")
}

// exists reports whether a regular file of that size is there.
func exists(path string, size int64) (bool, error) {
	st, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("cache: %w", err)
	}
	return st.Mode().IsRegular() && st.Size() == size, nil
}
