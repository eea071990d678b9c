package linux

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/xen-hvi/hvi/engine/guest/linux/linuxtest"
	"github.com/xen-hvi/hvi/engine/guest/report"
	"github.com/xen-hvi/hvi/engine/x86"
)

func openCache(t testing.TB, dir string) *Cache {
	t.Helper()
	c, err := OpenCache(dir, func(err error) { t.Errorf("cache: %v", err) })
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c
}

// with identifies a guest and waits until what was learned is kept.
func with(t testing.TB, c *Cache, g *linuxtest.Guest) *Kernel {
	t.Helper()
	k, err := IdentifyWith(g.Memory(), g.Regs[0], Options{Cache: c})
	if err != nil {
		t.Fatal(err)
	}
	c.Close()
	return k
}

// same compares all that a profile gives.
func same(t *testing.T, what string, got, want *Kernel) {
	t.Helper()
	if got.Banner != want.Banner || got.Release != want.Release || got.Base != want.Base || got.PhysBase != want.PhysBase ||
		got.TextStart != want.TextStart || got.TextEnd != want.TextEnd || got.Offsets != want.Offsets || got.Types != want.Types ||
		got.addr != want.addr || got.Symbols.Len() != want.Symbols.Len() || got.Symbols.end != want.Symbols.end {
		t.Errorf("%s: %+v, want %+v", what, got, want)
		return
	}
	var symbols []Symbol
	for s := range want.Symbols.All() {
		symbols = append(symbols, s)
	}
	i := 0
	for s := range got.Symbols.All() {
		if s != symbols[i] {
			t.Errorf("%s: symbol %d: %+v, want %+v", what, i, s, symbols[i])
			return
		}
		i++
	}
	checkTable(t, got.Symbols)
	if (got.BTFError == nil) != (want.BTFError == nil) {
		t.Errorf("%s: BTF error %v, want %v", what, got.BTFError, want.BTFError)
	}
	if got.BTFError == nil {
		if _, err := got.BTF(); err != nil {
			t.Errorf("%s: BTF: %v", what, err)
		}
	}
}

// The second guest with a build is known, wherever its kernel is, to this
// process and to the next; what is known is what was parsed.
func TestCache(t *testing.T) {
	for l := range linuxtest.NumLayouts {
		dir := t.TempDir()
		first := openCache(t, dir)
		made := with(t, first, linuxtest.New(linuxtest.Config{Layout: l}))
		if made.Cached || len(made.Profile) != 32 || made.Symbols.src != nil {
			t.Errorf("%v: the first: cached %v, profile %q", l, made.Cached, made.Profile)
		}
		second := openCache(t, dir)
		for name, c := range map[string]*Cache{"same process": first, "another process": second} {
			// Values of the oldest layout are addresses: the base is part of it.
			for _, base := range []x86.VirtAddr{0xffff_ffff_8100_0000, 0xffff_ffff_9a20_0000} {
				g := linuxtest.New(linuxtest.Config{Layout: l, Base: base})
				k := with(t, c, g)
				known := l != linuxtest.Addresses || base == made.Base
				if known && (!k.Cached || k.Profile != made.Profile) {
					t.Errorf("%v, %s, base %v: cached %v, profile %q, want %q", l, name, base, k.Cached, k.Profile, made.Profile)
				}
				want, err := Identify(g.Memory(), g.Regs[0])
				if err != nil {
					t.Fatal(err)
				}
				if want.Cached || want.Profile != "" {
					t.Errorf("%v: without a cache: %v, %q", l, want.Cached, want.Profile)
				}
				same(t, fmt.Sprintf("%v, %s, base %v", l, name, base), k, want)
			}
		}
		if made.profile == nil || second.load(first.list()[0].Name()) == nil {
			t.Errorf("%v: the profile is not shared", l)
		}
	}
}

// Kernels in one process share a profile as long as one of them lives.
func TestCacheShares(t *testing.T) {
	c := openCache(t, t.TempDir())
	a := with(t, c, linuxtest.New(linuxtest.Config{Layout: linuxtest.After64}))
	b := with(t, c, linuxtest.New(linuxtest.Config{Layout: linuxtest.After64, Base: 0xffff_ffff_9a20_0000}))
	if a.Symbols.symbolTable != b.Symbols.symbolTable {
		t.Error("two tables of one build")
	}
	if va, _ := a.Lookup("entry_SYSCALL_64"); va != a.Base+linuxtest.Entry {
		t.Errorf("the first kernel's symbols have moved: %v", va)
	}
}

// A guest with the same banner but one other byte in anything that a profile is
// made from gets a profile of its own, and spoils none.
func TestCachePoisoning(t *testing.T) {
	for l := range linuxtest.NumLayouts {
		dir := t.TempDir()
		genuine := func() *linuxtest.Guest { return linuxtest.New(linuxtest.Config{Layout: l, Symbols: 400}) }
		g := genuine()
		want, err := Identify(g.Memory(), g.Regs[0])
		if err != nil {
			t.Fatal(err)
		}
		wantPoke, _ := want.Lookup("func_77_init")

		// The hostile guest is there first. Its symbol table names another
		// function, or its types put a member elsewhere.
		hostile := map[string]func(g *linuxtest.Guest){
			"a symbol's value": func(g *linuxtest.Guest) {
				for i := range g.Syms {
					if g.Syms[i].Name == "func_77_init" || g.Syms[i].Name == "func_78_init" {
						g.Syms[i].Addr = g.Base + 0x2000 + 77*2 + 1
					}
				}
				g.Write(g.Kallsyms, linuxtest.Kallsyms(l, g.Base, g.Kallsyms, g.Syms))
			},
			"a symbol's name": func(g *linuxtest.Guest) {
				for i := range g.Syms {
					switch g.Syms[i].Name {
					case "func_77_init":
						g.Syms[i].Name = "func_78_init"
					case "func_78_init":
						g.Syms[i].Name = "func_77_init"
					}
				}
				g.Write(g.Kallsyms, linuxtest.Kallsyms(l, g.Base, g.Kallsyms, g.Syms))
			},
			"a member's offset": func(g *linuxtest.Guest) {
				b := bytes.Clone(g.BTF)
				at := bytes.LastIndex(b, le32Bytes(linuxtest.TaskPID*8-40*8))
				if at < 0 {
					t.Fatal("no offset of pid in the BTF")
				}
				copy(b[at:], le32Bytes(linuxtest.TaskPID*8-40*8+64))
				g.Write(g.BTFStart, b)
			},
		}
		c := openCache(t, dir)
		profiles := map[string]bool{}
		for name, spoil := range hostile {
			g := genuine()
			spoil(g)
			k := with(t, c, g)
			if k.Cached || profiles[k.Profile] {
				t.Errorf("%v, %s: cached %v, profile %q", l, name, k.Cached, k.Profile)
			}
			profiles[k.Profile] = true
			if got, _ := k.Lookup("func_77_init"); got == wantPoke && k.Offsets == want.Offsets {
				t.Errorf("%v, %s: the test's forgery has no effect", l, name)
			}
		}
		for _, cache := range []*Cache{c, openCache(t, dir)} {
			g := genuine()
			k := with(t, cache, g)
			same(t, fmt.Sprintf("%v, the genuine kernel", l), k, want)
			if profiles[k.Profile] {
				t.Errorf("%v: the genuine kernel has a forgery's profile", l)
			}
		}
		if k := with(t, c, genuine()); !k.Cached {
			t.Errorf("%v: the genuine kernel is not known", l)
		}
	}
}

func le32Bytes(v uint32) []byte { return []byte{byte(v), byte(v >> 8), byte(v >> 16), byte(v >> 24)} }

// A guest that changes its tables between their parsing and their summing would
// have a forgery kept under the genuine kernel's sum. So what is summed is the
// copy that was parsed.
func TestCacheSumsWhatWasParsed(t *testing.T) {
	g := linuxtest.New(linuxtest.Config{})
	r := &imageReader{as: g.AddressSpace(), extents: []extent{{g.Base, g.Base + linuxtest.ImageSize}}}
	s, err := r.findKallsyms(g.Base, g.Base)
	if err != nil {
		t.Fatal(err)
	}
	places := s.src.places(g.Base)
	key := ownKey()
	before := key.sumTables(&places, s.src)
	s.buildIndex(key.names)
	for name, p := range map[string]*profile{
		"in use":      {tables: places, sum: before, index: s.index, sym: s.symbolTable},
		"from a file": {tables: places, sum: before, index: s.index},
	} {
		fits := func(key *digestKey) bool {
			p := *p
			return p.fits(key, r, g.Base)
		}
		if !fits(key) {
			t.Fatalf("%s: the guest's memory does not fit its own profile", name)
		}
		for i, piece := range places.pieces {
			for _, at := range []uint32{0, piece.size / 2, piece.size - 1} {
				b := &g.Mem[uint32(g.PhysBase)+piece.at+at]
				*b ^= 1
				if fits(key) {
					t.Errorf("%s: piece %d: a change at %d is not noticed", name, i, at)
				}
				if key.sumTables(&places, s.src) != before {
					t.Errorf("%s: piece %d: the sum is of the guest's memory, not of the copy", name, i)
				}
				*b ^= 1
			}
		}
		if fits(newDigestKey([]byte("another"))) {
			t.Errorf("%s: a sum made with another key fits", name)
		}
	}
}

// A profile with a place that the guest's image doesn't have doesn't fit, and no memory
// is taken for copies of its pieces.
func TestProfileOutside(t *testing.T) {
	g := linuxtest.New(linuxtest.Config{})
	r := &imageReader{as: g.AddressSpace(), extents: []extent{{g.Base, g.Base + linuxtest.ImageSize}}}
	s, err := r.findKallsyms(g.Base, g.Base)
	if err != nil {
		t.Fatal(err)
	}
	key := ownKey()
	s.buildIndex(key.names)
	good := profile{tables: s.src.places(g.Base), index: s.index}
	good.sum = key.sumTables(&good.tables, s.src)
	if p := good; !p.fits(key, r, g.Base) {
		t.Fatal("the guest's memory does not fit its own profile")
	}
	for i := range len(good.tables.pieces) + 1 {
		for _, to := range []place{{1 << 29, 16}, {0, maxPiece}, {linuxtest.ImageSize - 8, 16}, {1<<32 - 8, 16}} {
			p := good
			if i < len(p.tables.pieces) {
				p.tables.pieces[i] = to
			} else {
				p.btf = to
			}
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			fits := p.fits(key, r, g.Base)
			runtime.ReadMemStats(&after)
			if fits || p.sym != nil {
				t.Errorf("piece %d at %#x, %d bytes: it fits", i, to.at, to.size)
			}
			if n := after.TotalAlloc - before.TotalAlloc; n > 1<<20 {
				t.Errorf("piece %d at %#x, %d bytes: %d bytes were allocated", i, to.at, to.size, n)
			}
		}
	}
}

// Whatever is wrong with a file, it is not believed, and made anew.
func TestCacheDamage(t *testing.T) {
	for name, damage := range map[string]func(b []byte) []byte{
		"empty":          func([]byte) []byte { return nil },
		"cut off":        func(b []byte) []byte { return b[:len(b)-1] },
		"longer":         func(b []byte) []byte { return append(b, 0) },
		"a byte changed": func(b []byte) []byte { b[len(b)/2] ^= 1; return b },
		"its sum":        func(b []byte) []byte { b[len(b)-1] ^= 1; return b },
		"its version":    func(b []byte) []byte { b[8]++; return b },
	} {
		dir := t.TempDir()
		with(t, openCache(t, dir), linuxtest.New(linuxtest.Config{}))
		path := onlyProfile(t, dir)
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, damage(bytes.Clone(b)), 0o600); err != nil {
			t.Fatal(err)
		}
		c := openCache(t, dir)
		if k := with(t, c, linuxtest.New(linuxtest.Config{})); k.Cached {
			t.Errorf("%s: believed", name)
		}
		if got, err := os.ReadFile(path); err != nil || len(got) != len(b) {
			t.Errorf("%s: not made anew: %d bytes, %v", name, len(got), err)
		}
		if k := with(t, openCache(t, dir), linuxtest.New(linuxtest.Config{})); !k.Cached {
			t.Errorf("%s: the new one is not used", name)
		}
	}
}

func onlyProfile(t *testing.T, dir string) string {
	t.Helper()
	names, _ := filepath.Glob(filepath.Join(dir, "*"+fileTail))
	if len(names) != 1 {
		t.Fatalf("profiles %q, want one", names)
	}
	return names[0]
}

// A file of another version, or of a build of hvi with other members, is not
// read, though its sum is right.
func TestCacheVersion(t *testing.T) {
	dir := t.TempDir()
	c := openCache(t, dir)
	with(t, c, linuxtest.New(linuxtest.Config{}))
	path := onlyProfile(t, dir)
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for at := range 8 + 4 + 32 {
		old := bytes.Clone(b[:len(b)-32])
		old[at] ^= 1
		mac := c.seal(old)
		if err := os.WriteFile(path, append(old, mac[:]...), 0o600); err != nil {
			t.Fatal(err)
		}
		if p := c.load(filepath.Base(path)); p != nil {
			t.Fatalf("byte %d of the header does not count", at)
		}
	}
}

// Files are private, names that are not ours are left alone, links are not
// followed, and a directory that others can write to is refused.
func TestCacheDirectory(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "a", "b")
	c := openCache(t, dir)
	foreign := filepath.Join(dir, "00001080-readme.profile")
	if err := os.WriteFile(foreign, []byte("mine"), 0o600); err != nil {
		t.Fatal(err)
	}
	with(t, c, linuxtest.New(linuxtest.Config{}))
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	if len(entries) != 3 { // the key, the profile, the foreign file
		t.Errorf("%v in the cache", entries)
	}
	for _, e := range entries {
		if st, err := e.Info(); err != nil || st.Mode() != 0o600 {
			t.Errorf("%s: %v, %v", e.Name(), st, err)
		}
	}
	if b, err := os.ReadFile(foreign); err != nil || string(b) != "mine" {
		t.Errorf("the foreign file: %q, %v", b, err)
	}

	// A link with a profile's name, even to a genuine one, is none.
	path := onlyProfileOf(t, c)
	moved := filepath.Join(t.TempDir(), "moved")
	if err := errors.Join(os.Rename(path, moved), os.Symlink(moved, path)); err != nil {
		t.Fatal(err)
	}
	if k := with(t, openCache(t, dir), linuxtest.New(linuxtest.Config{})); k.Cached {
		t.Error("a link is followed")
	}
	// Nor is one that others could write.
	path = onlyProfileOf(t, c)
	if err := os.Chmod(path, 0o666); err != nil {
		t.Fatal(err)
	}
	if k := with(t, openCache(t, dir), linuxtest.New(linuxtest.Config{})); k.Cached {
		t.Error("a file that others can write is believed")
	}

	// A key that others could read is worth nothing, and what it protected.
	if err := os.Chmod(filepath.Join(dir, keyName), 0o644); err != nil {
		t.Fatal(err)
	}
	if k := with(t, openCache(t, dir), linuxtest.New(linuxtest.Config{})); k.Cached {
		t.Error("a key that others can read is used")
	}
	if st, err := os.Stat(filepath.Join(dir, keyName)); err != nil || st.Mode() != 0o600 || st.Size() != keySize {
		t.Errorf("the new key: %v, %v", st, err)
	}

	for mode, ok := range map[os.FileMode]bool{0o750: true, 0o700: true, 0o755: true, 0o770: false, 0o707: false} {
		if err := os.Chmod(dir, mode); err != nil {
			t.Fatal(err)
		}
		_, err := OpenCache(dir, nil)
		var ce *CacheError
		if ok != (err == nil) || err != nil && (!errors.As(err, &ce) || !strings.Contains(err.Error(), dir)) {
			t.Errorf("mode %v: %v", mode, err)
		}
	}
	if _, err := OpenCache(foreign, nil); err == nil {
		t.Error("a file is a cache")
	}
}

func onlyProfileOf(t *testing.T, c *Cache) string {
	t.Helper()
	files := c.list()
	if len(files) != 1 {
		t.Fatalf("%d profiles, want one", len(files))
	}
	return filepath.Join(c.dir, files[0].Name())
}

// What was not used for longest goes first, and the number is bounded.
func TestCacheEviction(t *testing.T) {
	dir := t.TempDir()
	c := openCache(t, dir)
	old := time.Unix(1_000_000_000, 0)
	name := func(i int) string { return fmt.Sprintf("%08x-%032x%s", i, i, fileTail) }
	for i := range maxProfiles + 5 {
		path := filepath.Join(dir, name(i))
		if err := os.WriteFile(path, []byte{0}, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Chtimes(path, old, old.Add(time.Duration(i)*time.Hour)); err != nil {
			t.Fatal(err)
		}
	}
	left := filepath.Join(dir, newName+"123")
	if err := errors.Join(os.WriteFile(left, nil, 0o600), os.Chtimes(left, old, old)); err != nil {
		t.Fatal(err)
	}
	with(t, c, linuxtest.New(linuxtest.Config{}))
	files := c.list()
	if len(files) != maxProfiles || strings.HasPrefix(files[0].Name(), "00000000-") {
		t.Errorf("%d profiles, the newest %v", len(files), files[0].Name())
	}
	for i := range maxProfiles + 5 {
		_, err := os.Stat(filepath.Join(dir, name(i)))
		if kept := err == nil; kept != (i >= 6) {
			t.Errorf("profile %d kept: %v", i, kept)
		}
	}
	if _, err := os.Stat(left); err == nil {
		t.Error("what a dead process left is still there")
	}

	// Being used counts as being new.
	path := filepath.Join(dir, files[0].Name())
	if err := os.Chtimes(path, old, old); err != nil {
		t.Fatal(err)
	}
	if k := with(t, c, linuxtest.New(linuxtest.Config{})); !k.Cached {
		t.Error("not known")
	}
	if got := c.list()[0].Name(); got != files[0].Name() {
		t.Errorf("%s is the last used, want %s", got, files[0].Name())
	}
}

// A guest can make many profiles with the entry point of another's kernel. That
// costs the other its place in the cache, and no more time than a few files.
func TestCacheCrowded(t *testing.T) {
	dir := t.TempDir()
	c := openCache(t, dir)
	with(t, c, linuxtest.New(linuxtest.Config{}))
	for i := range maxCompared {
		g := linuxtest.New(linuxtest.Config{Banner: fmt.Sprintf("%s %d", linuxtest.Banner, i), Symbols: 400 + i})
		with(t, c, g)
	}
	newest := c.list()
	for i, f := range newest {
		at := time.Now().Add(time.Duration(-i) * time.Hour)
		if err := os.Chtimes(filepath.Join(dir, f.Name()), at, at); err != nil {
			t.Fatal(err)
		}
	}
	k := with(t, c, linuxtest.New(linuxtest.Config{}))
	if k.Types != report.TypesBTF {
		t.Errorf("types %v", k.Types)
	}
}

// Without types there is a profile of the symbols; with broken ones, which may be
// whole the next time, there is none.
func TestCacheWithoutTypes(t *testing.T) {
	dir := t.TempDir()
	c := openCache(t, dir)
	with(t, c, linuxtest.New(linuxtest.Config{NoBTF: true}))
	k := with(t, openCache(t, dir), linuxtest.New(linuxtest.Config{NoBTF: true}))
	if !k.Cached || k.Types == report.TypesBTF || !errors.Is(k.BTFError, errNoBTF) || k.TypesNote == "" {
		t.Errorf("cached %v, types %v, %q, %v", k.Cached, k.Types, k.TypesNote, k.BTFError)
	}
	broken := openCache(t, t.TempDir())
	with(t, broken, linuxtest.New(linuxtest.Config{BTF: make([]byte, 4096)}))
	if files := broken.list(); len(files) != 0 {
		t.Errorf("a profile of broken types was kept: %v", files[0].Name())
	}
}

// A cache that can't write says so and stands in nobody's way.
func TestCacheFails(t *testing.T) {
	dir := t.TempDir()
	var got error
	c, err := OpenCache(dir, func(err error) { got = err })
	if err != nil {
		t.Fatal(err)
	}
	if err := os.RemoveAll(dir); err != nil {
		t.Fatal(err)
	}
	k := with(t, c, linuxtest.New(linuxtest.Config{}))
	var ce *CacheError
	if k == nil || k.Cached || !errors.As(got, &ce) {
		t.Errorf("kernel %v, error %v", k, got)
	}
}

// testProfile is the profile of a guest, and copies of what it was made from.
func testProfile(tb testing.TB, layout linuxtest.Layout) (p *profile, pieces [5][]byte) {
	g := linuxtest.New(linuxtest.Config{Layout: layout, Symbols: 300})
	k, err := IdentifyWith(g.Memory(), g.Regs[0], Options{Cache: openCache(tb, tb.TempDir())})
	if err != nil {
		tb.Fatal(err)
	}
	as := k.AddressSpace()
	for i, piece := range k.profile.tables.pieces {
		pieces[i] = make([]byte, piece.size)
		if err := as.Read(k.Base+x86.VirtAddr(piece.at), pieces[i]); err != nil {
			tb.Fatal(err)
		}
	}
	return k.profile, pieces
}

// A file has all but the symbols, and those come again from the guest's memory,
// in every layout.
func TestProfileFile(t *testing.T) {
	for l := range linuxtest.NumLayouts {
		p, pieces := testProfile(t, l)
		b := p.encode()
		got, err := decodeProfile(bytes.Clone(b), p.index.mul)
		if err != nil {
			t.Fatal(err)
		}
		if got.sym != nil {
			t.Errorf("%v: symbols from the file alone", l)
		}
		got.sym = got.symbols(&pieces)
		if !reflect.DeepEqual(got, p) {
			t.Errorf("%v: %+v, want %+v", l, got, p)
		}
		for n := 0; n < len(b); n += 1 + n/64 {
			if _, err := decodeProfile(b[:n:n], 5); !errors.Is(err, errProfile) {
				t.Fatalf("%v: the first %d bytes: %v", l, n, err)
			}
		}
		if _, err := decodeProfile(append(b, 0), 5); !errors.Is(err, errProfile) {
			t.Errorf("%v: a byte more: %v", l, err)
		}
	}
}

// An index that leads outside of its table is refused.
func TestProfileIndex(t *testing.T) {
	p, _ := testProfile(t, linuxtest.After64)
	n := len(p.index.entries)
	for name, bend := range map[string]func(x *nameIndex){
		"a number too high":       func(x *nameIndex) { x.entries[7] = uint32(n) },
		"a bucket that goes back": func(x *nameIndex) { x.buckets[7] = uint32(n) },
		"a first bucket later":    func(x *nameIndex) { x.buckets[0] = 1 },
		"a last bucket too far":   func(x *nameIndex) { x.buckets[numBuckets]++ },
		"a last bucket too near":  func(x *nameIndex) { x.buckets[numBuckets]-- },
	} {
		bent := *p
		bent.index.entries, bent.index.buckets = slices.Clone(p.index.entries), slices.Clone(p.index.buckets)
		bend(&bent.index)
		if _, err := decodeProfile(bent.encode(), 5); !errors.Is(err, errProfile) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// FuzzProfile lets the fuzzer write the content of a file whose sum is right, and
// memory that has the profile's sum. What is accepted is safe to use.
func FuzzProfile(f *testing.F) {
	for _, l := range []linuxtest.Layout{linuxtest.Addresses, linuxtest.Relative61, linuxtest.Place72} {
		p, pieces := testProfile(f, l)
		f.Add(p.encode()[8+4+32:], pieces[0], pieces[2], pieces[3], pieces[4])
	}
	head := append(bytes.Clone(profileMagic), profileVersion, 0, 0, 0)
	head = append(head, offsetsSchema[:]...)
	f.Fuzz(func(t *testing.T, b, tokens, names, markers, values []byte) {
		p, err := decodeProfile(append(bytes.Clone(head), b...), 5)
		if err != nil {
			if p != nil || !errors.Is(err, errProfile) {
				t.Fatal(p, err)
			}
			return
		}
		if again, err := decodeProfile(p.encode(), 5); err != nil || !reflect.DeepEqual(again, p) {
			t.Fatalf("%v after writing and reading again", err)
		}
		table := p.symbols(&[5][]byte{tokens, nil, names, markers, values})
		if table == nil {
			return
		}
		s := &Symbols{symbolTable: table}
		s.setBounds(imageLow, imageHigh)
		n := 0
		for sym := range s.All() {
			s.Symbolize(sym.Addr)
			if n++; n%64 == 1 {
				s.LookupAll(sym.Name)
				s.Range(sym.Name)
			}
		}
		if n != s.Len() {
			t.Fatalf("%d symbols listed of %d", n, s.Len())
		}
	})
}
