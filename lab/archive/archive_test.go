package archive

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	openpgp "github.com/ProtonMail/go-crypto/openpgp/v2"
)

var (
	debA = fakeDeb{name: "a", version: "1.0", control: "Depends: b (>= 1)\n"}.file("./usr/bin/a", "program a")
	debB = fakeDeb{name: "b", version: "1.5"}.file("./usr/lib/libb.so", "library b")
)

func names(pkgs []Package) (out []string) {
	for _, p := range pkgs {
		out = append(out, p.Name+"="+p.Version)
	}
	return out
}

func TestGoodPath(t *testing.T) {
	m := newFakeMirror(t)
	m.publish(suite{name: "bookworm", debs: []fakeDeb{debA, debB}, validUntil: testNow.Add(time.Hour)})
	cache := t.TempDir()
	c := m.open(cache)
	pkgs, err := c.Closure(t.Context(), []string{"bookworm"}, []string{"a"}, ClosureOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if got, want := names(pkgs), []string{"a=1.0", "b=1.5"}; !slices.Equal(got, want) {
		t.Fatalf("closure %v, want %v", got, want)
	}
	deb := debA.build(t)
	want := Package{Name: "a", Version: "1.0", Architecture: "amd64", Suite: "bookworm", Depends: "b (>= 1)", Filename: poolName(debA),
		Size: int64(len(deb)), Installed: 1024, SHA256: hexSum(deb)}
	if pkgs[0] != want {
		t.Errorf("got %+v, want %+v", pkgs[0], want)
	}
	files, err := c.Download(t.Context(), append(pkgs, pkgs[0]))
	if err != nil {
		t.Fatal(err)
	}
	if got, err := os.ReadFile(files[0]); err != nil || !bytes.Equal(got, deb) || files[2] != files[0] {
		t.Errorf("%v holds other bytes than the package (%v)", files, err)
	}
	if m.asked("/pool/") != 2 {
		t.Errorf("the mirror was asked %d times for 2 packages", m.asked("/pool/"))
	}
	if m.asked("by-hash") != 1 || m.asked("Packages.xz") != 0 {
		t.Error("the index was not taken by its hash")
	}
	var last Event
	for _, e := range c.events {
		if e.Kind == Download {
			last = e
		}
	}
	if total := pkgs[0].Size + pkgs[1].Size; !last.Final || last.Done != total || last.Total != total || last.Items != 2 || last.ItemsTotal != 2 {
		t.Errorf("the last event of the download is %+v, want %d bytes and 2 packages", last, total)
	}

	// Everything again, by another process, from the cache alone.
	before := m.requests()
	c = m.open(cache)
	again, err := c.Closure(t.Context(), []string{"bookworm"}, []string{"a"}, ClosureOptions{})
	if err != nil || !reflect.DeepEqual(again, pkgs) {
		t.Errorf("from the cache: %v, %v", again, err)
	}
	if _, err := c.Download(t.Context(), again); err != nil {
		t.Error(err)
	}
	if n := m.requests() - before; n != 0 {
		t.Errorf("the second run made %d requests", n)
	}
	if len(c.events) != 0 {
		t.Errorf("the second run reported %+v", c.events)
	}
}

func TestWithoutByHash(t *testing.T) {
	m := newFakeMirror(t)
	m.publish(suite{name: "bookworm", debs: []fakeDeb{debB}, noByHash: true})
	if p, err := m.open(t.TempDir()).Lookup(t.Context(), []string{"bookworm"}, "b"); err != nil || p.Version != "1.5" {
		t.Errorf("got %v, %v", p, err)
	}
}

func TestFileMirror(t *testing.T) {
	m := newFakeMirror(t)
	m.publish(suite{name: "bookworm", debs: []fakeDeb{debB}})
	dir := t.TempDir()
	for name, data := range m.files {
		write(t, filepath.Join(dir, name), string(data))
	}
	c := m.open(t.TempDir(), func(o *Options) { o.Mirror = "file://" + dir + "/debian/" })
	p, err := c.Lookup(t.Context(), []string{"bookworm"}, "b")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.Download(t.Context(), []Package{p}); err != nil {
		t.Error(err)
	}
	if m.requests() != 0 {
		t.Error("HTTP was used")
	}
}

// TestPassword has a mirror that wants one: it is sent, and kept nowhere.
func TestPassword(t *testing.T) {
	m := newFakeMirror(t)
	m.publish(suite{name: "bookworm", debs: []fakeDeb{debB}})
	m.intercept(func(w http.ResponseWriter, r *http.Request, _ []byte) bool {
		if user, pass, _ := r.BasicAuth(); user == "u" && pass == "geheim" {
			return false
		}
		w.WriteHeader(http.StatusUnauthorized)
		return true
	})
	cache := t.TempDir()
	with := func(pass string) func(*Options) {
		return func(o *Options) { o.Mirror = strings.Replace(m.url, "http://", "http://u:"+pass+"@", 1) }
	}
	if _, err := m.open(cache, with("falsch")).Lookup(t.Context(), []string{"bookworm"}, "b"); err == nil || strings.Contains(err.Error(), "falsch") {
		t.Errorf("with a wrong password: %v", err)
	}
	for range 2 {
		c := m.open(cache, with("geheim"))
		p, err := c.Lookup(t.Context(), []string{"bookworm"}, "b")
		if err != nil {
			t.Fatal(err)
		}
		if _, err := c.Download(t.Context(), []Package{p}); err != nil {
			t.Error(err)
		}
		if err := os.Remove(c.debPath(p)); err != nil { // the second round downloads by a cached InRelease
			t.Error(err)
		}
	}
	if n := m.asked("InRelease"); n != 2 {
		t.Errorf("InRelease was asked for %d times, want 2", n)
	}
	data, err := os.ReadFile(filepath.Join(cache, "release", "bookworm"))
	if err != nil || bytes.Contains(data, []byte("geheim")) {
		t.Errorf("the password is in the cache (%v)", err)
	}
}

func TestUntrusted(t *testing.T) {
	good, other := testKeys().good, testKeys().other
	replace := func(old, new string) func([]byte) []byte {
		return func(b []byte) []byte { return bytes.Replace(b, []byte(old), []byte(new), 1) }
	}
	for _, c := range []struct {
		name  string
		suite suite
		spoil func([]byte) []byte
		want  string // in the error; empty: accepted
	}{
		{"one good key", suite{}, nil, ""},
		{"a good key among unknown ones", suite{signers: []*openpgp.Entity{other, good}}, nil, ""},
		{"a good key before unknown ones", suite{signers: []*openpgp.Entity{good, other}}, nil, ""},
		{"unknown key", suite{signers: []*openpgp.Entity{other}}, nil, "debian-archive-keyring"},
		{"altered text", suite{}, replace("Components: main", "Components: evil"), "no good signature"},
		{"text before", suite{}, func(b []byte) []byte { return append([]byte("Codename: x\n"), b...) }, "outside of what is signed"},
		{"text after", suite{}, func(b []byte) []byte { return append(b, "Codename: x\n"...) }, "outside of what is signed"},
		{"no signature", suite{}, func([]byte) []byte { return []byte("Codename: bookworm\n") }, "not a clear-signed file"},
		{"a login page", suite{}, func([]byte) []byte { return []byte("<html>please log in</html>") }, "ask for a login"},
		{"nothing", suite{}, func([]byte) []byte { return nil }, "not a clear-signed file"},
		{"cut off", suite{}, func(b []byte) []byte { return b[:len(b)/2] }, "not a clear-signed file"},
		{"another suite's", suite{codename: "trixie"}, nil, "of suite trixie"},
		{"signed in the future", suite{date: testNow.Add(48 * time.Hour)}, nil, "clock"},
		{"the mirror's alias for the suite", suite{codename: "some-name"}, nil, "of suite some-name"},
	} {
		t.Run(c.name, func(t *testing.T) {
			m := newFakeMirror(t)
			c.suite.name, c.suite.debs = "bookworm", []fakeDeb{debB}
			m.publish(c.suite)
			if c.spoil != nil {
				m.set("dists/bookworm/InRelease", c.spoil(m.files["/debian/dists/bookworm/InRelease"]))
			}
			cache := t.TempDir()
			_, err := m.open(cache).Lookup(t.Context(), []string{"bookworm"}, "b")
			if c.want == "" {
				if err != nil {
					t.Error(err)
				}
				return
			}
			te, ok := errors.AsType[*TrustError](err)
			if !ok || !errors.Is(err, ErrUntrusted) || !strings.Contains(err.Error(), c.want) || te.Suite != "bookworm" {
				t.Errorf("got %v, want a TrustError with %q", err, c.want)
			}
			if m.asked("Packages") != 0 || m.asked("by-hash") != 0 {
				t.Error("went on after an untrusted InRelease")
			}
			if _, err := os.Stat(filepath.Join(cache, "release", "bookworm")); !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("an untrusted InRelease is in the cache (%v)", err)
			}
		})
	}
}

func TestMalformedRelease(t *testing.T) {
	const date = "Date: Wed, 01 May 2024 11:00:00 UTC\n"
	sum := strings.Repeat("ab", 32)
	for name, text := range map[string]string{
		"no date":         "Codename: bookworm\nSHA256:\n " + sum + " 1 x\n",
		"bad date":        "Codename: bookworm\nDate: yesterday\nSHA256:\n " + sum + " 1 x\n",
		"bad valid-until": "Codename: bookworm\n" + date + "Valid-Until: soon\nSHA256:\n " + sum + " 1 x\n",
		"no hashes":       "Codename: bookworm\n" + date,
		"short hash":      "Codename: bookworm\n" + date + "SHA256:\n abcd 1 x\n",
		"hash as path":    "Codename: bookworm\n" + date + "SHA256:\n ../" + sum[3:] + " 1 x\n",
		"negative size":   "Codename: bookworm\n" + date + "SHA256:\n " + sum + " -1 x\n",
		"fields missing":  "Codename: bookworm\n" + date + "SHA256:\n " + sum + " 1\n",
		"empty":           "",
	} {
		m := newFakeMirror(t)
		m.set("dists/bookworm/InRelease", sign1(t, text, testNow, testKeys().good))
		if _, err := m.open(t.TempDir()).Lookup(t.Context(), []string{"bookworm"}, "b"); !errors.Is(err, ErrUntrusted) {
			t.Errorf("%s: got %v, want ErrUntrusted", name, err)
		}
	}
}

func FuzzRelease(f *testing.F) {
	f.Add([]byte("Codename: a\nSuite: b\nDate: Wed, 01 May 2024 11:00:00 UTC\nSHA256:\n " + strings.Repeat("ab", 32) + " 1 main/x\n"))
	f.Add(sign1(f, "Codename: a\n", testNow, testKeys().good))
	keys := openpgp.EntityList{testKeys().good}
	f.Fuzz(func(t *testing.T, in []byte) {
		if text, _, err := verify(in, keys, testNow); err == nil && !bytes.Contains(in, bytes.TrimSpace(bytes.ReplaceAll(text, []byte("\r\n"), []byte("\n")))) {
			t.Errorf("verified %q, which is not in the file", text)
		}
		rel, _, err := parseRelease(in)
		if err != nil {
			return
		}
		for name, file := range rel.files {
			if !isSHA256(file.sha256) || file.size < 0 || name == "" {
				t.Errorf("%q: %+v", name, file)
			}
		}
	})
}

func TestKeyring(t *testing.T) {
	m := newFakeMirror(t)
	m.publish(suite{name: "bookworm", debs: []fakeDeb{debB}})
	missing := filepath.Join(t.TempDir(), "none.gpg")
	c := m.open(t.TempDir(), func(o *Options) { o.Keyring = missing })
	if _, err := c.Lookup(t.Context(), []string{"bookworm"}, "b"); err == nil || !strings.Contains(err.Error(), missing) || !strings.Contains(err.Error(), "debian-archive-keyring") {
		t.Errorf("without a keyring: %v", err)
	}
	for name, text := range map[string]string{"empty": "", "garbage": "what is this", "bad armor": "-----BEGIN PGP PUBLIC KEY BLOCK-----\n"} {
		path := filepath.Join(t.TempDir(), "k.gpg")
		write(t, path, text)
		if keys, err := readKeyring(path); err == nil || !strings.Contains(err.Error(), path) {
			t.Errorf("%s: %d keys, error %v", name, len(keys), err)
		}
	}
}

func TestExpired(t *testing.T) {
	m := newFakeMirror(t)
	until := testNow.Add(-time.Minute)
	m.publish(suite{name: "bookworm", debs: []fakeDeb{debB}, validUntil: until})
	suites := []string{"bookworm"}
	cache := t.TempDir()

	_, err := m.open(cache).Lookup(t.Context(), suites, "b")
	ee, ok := errors.AsType[*ExpiredError](err)
	if !ok || !errors.Is(err, ErrExpired) || !ee.ValidUntil.Equal(until) || !strings.Contains(err.Error(), "HVI_LAB_ALLOW_EXPIRED") {
		t.Fatalf("got %v, want an ExpiredError that says what to do", err)
	}

	c := m.open(cache, func(o *Options) { o.AllowExpired = true })
	if _, err := c.Lookup(t.Context(), suites, "b"); err != nil {
		t.Error(err)
	}
	if n := c.notices(); len(n) != 1 || !strings.Contains(n[0], "HVI_LAB_ALLOW_EXPIRED") {
		t.Errorf("accepted with the notices %q", n)
	}

	c = m.open(t.TempDir())
	c.aptConfig = func() aptConfig { return parseAptConfig(`Acquire::Check-Valid-Until "false";`) }
	if _, err := c.Lookup(t.Context(), suites, "b"); err != nil {
		t.Error(err)
	}
	if n := c.notices(); len(n) != 1 || !strings.Contains(n[0], "apt") {
		t.Errorf("accepted with the notices %q", n)
	}

	// What was accepted once is refused again where nobody accepts it.
	if _, err := m.open(cache).Lookup(t.Context(), suites, "b"); !errors.Is(err, ErrExpired) {
		t.Errorf("from the cache: got %v, want ErrExpired", err)
	}
	// Offline, the age doesn't count.
	c = m.open(cache, func(o *Options) { o.Offline = true })
	if _, err := c.Lookup(t.Context(), suites, "b"); err != nil || len(c.notices()) != 1 {
		t.Errorf("offline: got %v with the notices %q", err, c.notices())
	}
}

func TestTamperedIndex(t *testing.T) {
	m := newFakeMirror(t)
	m.publish(suite{name: "bookworm", debs: []fakeDeb{debB}, noByHash: true})
	const path = "dists/bookworm/main/binary-amd64/Packages.xz"
	data := slices.Clone(m.files["/debian/"+path])
	data[len(data)/2] ^= 1
	m.set(path, data)
	cache := t.TempDir()
	c := m.open(cache)
	_, err := c.Lookup(t.Context(), []string{"bookworm"}, "b")
	if ie, ok := errors.AsType[*IntegrityError](err); !ok || !errors.Is(err, ErrCorrupt) || ie.GotSHA != hexSum(data) {
		t.Errorf("got %v, want an IntegrityError", err)
	}
	if left, _ := filepath.Glob(filepath.Join(cache, "index", "*")); len(left) != 0 {
		t.Errorf("left in the cache: %v", left)
	}
	if len(c.waits) != attempts-1 {
		t.Errorf("tried %d times, want %d", len(c.waits)+1, attempts)
	}
}

// TestLyingIndex has an index that is what InRelease says and still makes no
// sense.
func TestLyingIndex(t *testing.T) {
	sum := strings.Repeat("ab", 32)
	good := "Package: a\nVersion: 1\nArchitecture: all\nFilename: pool/a.deb\nSize: 1\nSHA256: " + sum + "\n"
	for name, text := range map[string]string{
		"path out of the mirror": strings.Replace(good, "pool/", "../", 1),
		"absolute path":          strings.Replace(good, "pool/", "/pool/", 1),
		"query in path":          strings.Replace(good, "pool/", "pool/?", 1),
		"no path":                strings.Replace(good, "Filename", "File", 1),
		"hash is a path":         strings.Replace(good, sum, "../../"+sum[6:], 1),
		"no hash":                strings.Replace(good, "SHA256", "MD5sum", 1),
		"no version":             strings.Replace(good, "Version", "Ver", 1),
		"bad size":               strings.Replace(good, "Size: 1", "Size: x", 1),
		"bad installed size":     good + "Installed-Size: -1\n",
		"bad name":               strings.Replace(good, "Package: a", "Package: ../a", 1),
		"bad provides":           good + "Provides: (\n",
		"not control data":       "hello\n",
	} {
		m := newFakeMirror(t)
		m.publish(suite{name: "bookworm", packages: text})
		_, err := m.open(t.TempDir()).Lookup(t.Context(), []string{"bookworm"}, "a")
		if _, ok := errors.AsType[*SyntaxError](err); !ok {
			t.Errorf("%s: got %v, want a SyntaxError", name, err)
		}
	}
	m := newFakeMirror(t)
	m.publish(suite{name: "bookworm", packages: strings.Replace(good, "all", "riscv64", 1) + "\n" + strings.Replace(good, "Package: a", "Package: b", 1)})
	c := m.open(t.TempDir())
	if _, err := c.Lookup(t.Context(), []string{"bookworm"}, "a"); !errors.Is(err, ErrNotFound) {
		t.Errorf("a foreign package was found: %v", err)
	}
	if _, err := c.Lookup(t.Context(), []string{"bookworm"}, "b"); err != nil {
		t.Error(err)
	}
}

func TestTamperedDeb(t *testing.T) {
	altered := debB.build(t)
	altered[len(altered)-1] ^= 1
	for name, data := range map[string][]byte{
		"altered":  altered,
		"short":    altered[:len(altered)-1],
		"too long": append(slices.Clone(debB.build(t)), 0),
		"empty":    {},
	} {
		t.Run(name, func(t *testing.T) {
			m := newFakeMirror(t)
			m.publish(suite{name: "bookworm", debs: []fakeDeb{debB}})
			m.set(poolName(debB), data)
			cache := t.TempDir()
			c := m.open(cache)
			p, err := c.Lookup(t.Context(), []string{"bookworm"}, "b")
			if err != nil {
				t.Fatal(err)
			}
			for _, get := range []func() error{
				func() error { _, err := c.Download(t.Context(), []Package{p}); return err },
				func() error { _, err := c.Tree(t.Context(), "x", []Package{p}); return err },
			} {
				err := get()
				if !errors.Is(err, ErrCorrupt) || !strings.Contains(err.Error(), "b 1.5 (bookworm)") {
					t.Errorf("got %v, want ErrCorrupt that names the package", err)
				}
			}
			if _, err := os.Stat(c.debPath(p)); !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("a bad package got its name (%v)", err)
			}
			if trees, _ := os.ReadDir(filepath.Join(cache, "trees")); len(trees) != 0 {
				t.Errorf("a tree was made: %v", trees)
			}
			// The mirror is mended: no trace of the bad bytes is in the way.
			m.set(poolName(debB), debB.build(t))
			if _, err := c.Download(t.Context(), []Package{p}); err != nil {
				t.Error(err)
			}
		})
	}
}

// TestResume cuts each connection after a while; the file comes together over
// several.
func TestResume(t *testing.T) {
	big := fakeDeb{name: "big", version: "1"}
	noise := make([]byte, 300<<10)
	x := uint32(1)
	for i := range noise { // not compressible
		x = x*1664525 + 1013904223
		noise[i] = byte(x >> 24)
	}
	big = big.file("./usr/share/noise", string(noise))
	for _, ranges := range []bool{true, false} {
		t.Run(fmt.Sprintf("ranges %v", ranges), func(t *testing.T) {
			m := newFakeMirror(t)
			m.publish(suite{name: "bookworm", debs: []fakeDeb{big}})
			c := m.open(t.TempDir())
			p, err := c.Lookup(t.Context(), []string{"bookworm"}, "big")
			if err != nil {
				t.Fatal(err)
			}
			var mu sync.Mutex
			var asked []string
			cuts := 0
			m.intercept(func(w http.ResponseWriter, r *http.Request, data []byte) bool {
				mu.Lock()
				defer mu.Unlock()
				asked = append(asked, r.Header.Get("Range"))
				if !ranges {
					r.Header.Del("Range")
				}
				if cuts == 2 {
					return false
				}
				cuts++
				from := 0
				if v, ok := strings.CutPrefix(r.Header.Get("Range"), "bytes="); ok {
					from, _ = strconv.Atoi(strings.TrimSuffix(v, "-"))
					w.Header().Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", from, len(data)-1, len(data)))
				}
				w.Header().Set("Content-Length", strconv.Itoa(len(data)-from))
				if from > 0 {
					w.WriteHeader(http.StatusPartialContent)
				}
				_, _ = w.Write(data[from : from+100<<10])
				panic(http.ErrAbortHandler)
			})
			files, err := c.Download(t.Context(), []Package{p})
			if err != nil {
				t.Fatal(err)
			}
			if got, err := os.ReadFile(files[0]); err != nil || hexSum(got) != p.SHA256 {
				t.Errorf("put together wrong (%v)", err)
			}
			if len(asked) != 3 || asked[0] != "" || !strings.HasPrefix(asked[1], "bytes=") || len(c.waits) != 2 {
				t.Errorf("ranges asked for: %q, waits %v", asked, c.waits)
			}
			if ranges && asked[2] == asked[1] {
				t.Errorf("nothing was kept: %q", asked)
			}
		})
	}
}

// TestStalePart has an unfinished file that is of no use.
func TestStalePart(t *testing.T) {
	for name, part := range map[string]string{"other bytes": strings.Repeat("x", 100), "too long": strings.Repeat("x", 1<<20)} {
		m := newFakeMirror(t)
		m.publish(suite{name: "bookworm", debs: []fakeDeb{debB}})
		c := m.open(t.TempDir())
		p, err := c.Lookup(t.Context(), []string{"bookworm"}, "b")
		if err != nil {
			t.Fatal(err)
		}
		write(t, c.debPath(p)+".part", part)
		if _, err := c.Download(t.Context(), []Package{p}); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestHTTPErrors(t *testing.T) {
	for _, c := range []struct {
		status, failures int
		waits            int
		ok, notFound     bool
	}{
		{404, 99, 0, false, true},
		{410, 99, 0, false, true},
		{403, 99, 0, false, false},
		{503, 2, 2, true, false},
		{500, 99, attempts - 1, false, false},
		{429, 1, 1, true, false},
		{416, 99, 0, false, false},
	} {
		m := newFakeMirror(t)
		m.publish(suite{name: "bookworm", debs: []fakeDeb{debB}})
		client := m.open(t.TempDir())
		p, err := client.Lookup(t.Context(), []string{"bookworm"}, "b")
		if err != nil {
			t.Fatal(err)
		}
		var mu sync.Mutex
		n := 0
		m.intercept(func(w http.ResponseWriter, _ *http.Request, _ []byte) bool {
			mu.Lock()
			defer mu.Unlock()
			if n++; n > c.failures {
				return false
			}
			w.WriteHeader(c.status)
			return true
		})
		_, err = client.Download(t.Context(), []Package{p})
		if (err == nil) != c.ok || errors.Is(err, ErrNotFound) != c.notFound || len(client.waits) != c.waits {
			t.Errorf("status %d, %d times: %v after waiting %v", c.status, c.failures, err, client.waits)
		}
		if he, ok := errors.AsType[*HTTPError](err); !c.ok && (!ok || he.Status != c.status) {
			t.Errorf("status %d: got %v", c.status, err)
		}
		for i := 1; i < len(client.waits); i++ {
			if client.waits[i] < client.waits[i-1] {
				t.Errorf("status %d: waits %v do not grow", c.status, client.waits)
			}
		}
	}
}

func TestUnknownSuite(t *testing.T) {
	m := newFakeMirror(t)
	c := m.open(t.TempDir())
	_, err := c.Lookup(t.Context(), []string{"slink"}, "b")
	if !errors.Is(err, ErrNotFound) || !strings.Contains(err.Error(), "slink") || !strings.Contains(err.Error(), "HVI_LAB_MIRROR") {
		t.Errorf("got %v", err)
	}
	for _, bad := range []string{"", "../x", "a/b", "A", "-a", "a b", "a?b"} {
		if _, err := c.Lookup(t.Context(), []string{bad}, "b"); !errors.Is(err, ErrNotFound) {
			t.Errorf("suite %q: got %v", bad, err)
		}
	}
	if _, err := c.Lookup(t.Context(), nil, "b"); err == nil {
		t.Error("no suite was accepted")
	}
	if n := m.asked(""); n != m.asked("slink") {
		t.Errorf("the mirror was asked for a bad suite: %d requests", n)
	}
}

// TestMovedOn removes a package after its index was fetched.
func TestMovedOn(t *testing.T) {
	m := newFakeMirror(t)
	m.publish(suite{name: "bookworm", debs: []fakeDeb{debB}})
	cache := t.TempDir()
	c := m.open(cache)
	old, err := c.Lookup(t.Context(), []string{"bookworm"}, "b")
	if err != nil {
		t.Fatal(err)
	}
	m.remove(poolName(debB))
	newer := fakeDeb{name: "b", version: "1.6"}
	m.publish(suite{name: "bookworm", debs: []fakeDeb{newer}, date: testNow.Add(-time.Minute)})
	if _, err := c.Download(t.Context(), []Package{old}); !errors.Is(err, ErrNotFound) || !strings.Contains(err.Error(), "run again") {
		t.Fatalf("got %v, want a hint to run again", err)
	}
	for _, c := range []*client{c, m.open(cache)} {
		if p, err := c.Lookup(t.Context(), []string{"bookworm"}, "b"); err != nil || p.Version != "1.6" {
			t.Errorf("after that: %v, %v", p, err)
		}
	}
}

// TestIndexGone has a cached InRelease whose index is neither cached nor on the
// mirror any more.
func TestIndexGone(t *testing.T) {
	m := newFakeMirror(t)
	m.publish(suite{name: "bookworm", debs: []fakeDeb{debB}})
	cache := t.TempDir()
	if _, err := m.open(cache).Lookup(t.Context(), []string{"bookworm"}, "b"); err != nil {
		t.Fatal(err)
	}
	if err := os.RemoveAll(filepath.Join(cache, "index")); err != nil {
		t.Fatal(err)
	}
	for name := range m.files {
		m.remove(strings.TrimPrefix(name, "/debian/"))
	}
	m.publish(suite{name: "bookworm", debs: []fakeDeb{debA, debB}, date: testNow.Add(-time.Minute)})
	if _, err := m.open(cache).Lookup(t.Context(), []string{"bookworm"}, "a"); err != nil {
		t.Error(err)
	}
}

func TestRefresh(t *testing.T) {
	m := newFakeMirror(t)
	cache := t.TempDir()
	m.publish(suite{name: "bookworm", debs: []fakeDeb{debB}})
	look := func(after time.Duration, want string, notices int) {
		t.Helper()
		c := m.open(cache)
		c.now = func() time.Time { return testNow.Add(after) }
		p, err := c.Lookup(t.Context(), []string{"bookworm"}, "b")
		if err != nil || p.Version != want || len(c.notices()) != notices {
			t.Errorf("after %s: %v, %v with notices %q; want %s", after, p, err, c.notices(), want)
		}
	}
	look(0, "1.5", 0)
	m.publish(suite{name: "bookworm", debs: []fakeDeb{{name: "b", version: "2"}}, date: testNow.Add(-45 * time.Minute)})
	look(DefaultMaxAge-time.Minute, "1.5", 0)
	look(DefaultMaxAge+time.Minute, "2", 0)
	// A mirror that falls behind does not take anything back.
	m.publish(suite{name: "bookworm", debs: []fakeDeb{debB}, date: testNow.Add(-time.Hour)})
	look(3*DefaultMaxAge, "2", 1)
	// Nor does one that is broken.
	m.intercept(func(w http.ResponseWriter, _ *http.Request, _ []byte) bool { w.WriteHeader(500); return true })
	look(3*DefaultMaxAge, "2", 1)
	// A clock set back makes the cache's stamp a thing of the future.
	before := m.asked("InRelease")
	look(-30*time.Minute, "2", 1)
	if m.asked("InRelease") == before {
		t.Error("a stamp of the future was believed")
	}
	// One that serves what can't be trusted is not passed over in silence.
	m.intercept(nil)
	m.publish(suite{name: "bookworm", debs: []fakeDeb{debB}, signers: []*openpgp.Entity{testKeys().other}})
	c := m.open(cache, func(o *Options) { o.MaxAge = -1 })
	if _, err := c.Lookup(t.Context(), []string{"bookworm"}, "b"); !errors.Is(err, ErrUntrusted) {
		t.Errorf("got %v, want ErrUntrusted", err)
	}
}

func TestOffline(t *testing.T) {
	m := newFakeMirror(t)
	m.publish(suite{name: "bookworm", debs: []fakeDeb{debA, debB}})
	cache := t.TempDir()
	offline := func(o *Options) { o.Offline, o.Mirror = true, "" }
	suites := []string{"bookworm"}
	if _, err := m.open(cache, offline).Lookup(t.Context(), suites, "b"); !errors.Is(err, ErrOffline) || !strings.Contains(err.Error(), "bookworm") {
		t.Errorf("with an empty cache: %v", err)
	}
	if m.requests() != 0 {
		t.Error("the network was used")
	}
	c := m.open(cache)
	pkgs, err := c.Closure(t.Context(), suites, []string{"a"}, ClosureOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.Download(t.Context(), pkgs[1:]); err != nil {
		t.Fatal(err)
	}
	c = m.open(cache, offline)
	c.now = func() time.Time { return testNow.AddDate(1, 0, 0) }
	if got, err := c.Closure(t.Context(), suites, []string{"a"}, ClosureOptions{}); err != nil || !reflect.DeepEqual(got, pkgs) {
		t.Errorf("got %v, %v", got, err)
	}
	if _, err := c.Download(t.Context(), pkgs[1:]); err != nil {
		t.Error(err)
	}
	if _, err := c.Tree(t.Context(), "t", pkgs); !errors.Is(err, ErrOffline) || !strings.Contains(err.Error(), "a 1.0") {
		t.Errorf("with a package missing: %v", err)
	}
}

// TestDamagedCache has a cache that somebody wrote rubbish into.
func TestDamagedCache(t *testing.T) {
	m := newFakeMirror(t)
	m.publish(suite{name: "bookworm", debs: []fakeDeb{debB}})
	cache := t.TempDir()
	suites := []string{"bookworm"}
	c := m.open(cache)
	p, err := c.Lookup(t.Context(), suites, "b")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.Download(t.Context(), []Package{p}); err != nil {
		t.Fatal(err)
	}
	files, err := filepath.Glob(filepath.Join(cache, "*", "*"))
	if err != nil || len(files) < 3 {
		t.Fatalf("cache holds %v (%v)", files, err)
	}
	for _, f := range files {
		data, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		if len(data) > 0 {
			data[len(data)/2] ^= 0x10
		}
		write(t, f, string(data))
	}
	c = m.open(cache)
	again, err := c.Lookup(t.Context(), suites, "b")
	if err != nil || again != p {
		t.Errorf("got %v, %v", again, err)
	}
	// A package is hashed when it is used, and fetched again the next time.
	if _, err := c.Tree(t.Context(), "t", []Package{p}); !errors.Is(err, ErrCorrupt) {
		t.Errorf("got %v, want ErrCorrupt", err)
	}
	if _, err := c.Tree(t.Context(), "t", []Package{p}); err != nil {
		t.Error(err)
	}
}

func TestSeveralMirrors(t *testing.T) {
	debian, vendor := newFakeMirror(t), newFakeMirror(t)
	debian.publish(suite{name: "bookworm", debs: []fakeDeb{debB}})
	vendor.publish(suite{name: "bookworm", debs: []fakeDeb{{name: "b", version: "9"}}, signers: []*openpgp.Entity{testKeys().other}})
	down := "http://127.0.0.1:1/debian"
	for name, order := range map[string][]string{
		"vendor first":  {vendor.url, debian.url},
		"one not there": {down, debian.url},
		"in order":      {debian.url, vendor.url},
	} {
		c := debian.open(t.TempDir(), func(o *Options) { o.Mirror = "" })
		c.mirrors = func() (*mirrors, error) { return &mirrors{main: order}, nil }
		if p, err := c.Lookup(t.Context(), []string{"bookworm"}, "b"); err != nil || p.Version != "1.5" {
			t.Errorf("%s: got %v, %v", name, p, err)
		}
		if _, err := c.Lookup(t.Context(), []string{"bookworm-security"}, "b"); !errors.Is(err, ErrNoMirror) {
			t.Errorf("%s: a suite that no mirror serves gave %v", name, err)
		}
	}
}

func TestMirrorsOf(t *testing.T) {
	for _, c := range []struct{ mirror, security, suite, want string }{
		{"http://m.test/debian", "", "bookworm", "http://m.test/debian"},
		{"http://m.test/debian/", "", "bookworm-security", "http://m.test/debian-security"},
		{"http://m.test/all", "", "bookworm-security", "http://m.test/all"},
		{"http://m.test/debian", "http://s.test/sec", "bookworm-security", "http://s.test/sec"},
		{"http://m.test/debian", "http://s.test/sec", "bookworm", "http://m.test/debian"},
	} {
		t.Setenv("HVI_LAB_MIRROR", c.mirror)
		t.Setenv("HVI_LAB_SECURITY_MIRROR", c.security)
		a, err := Open(t.Context(), Options{CacheDir: t.TempDir()})
		if err != nil {
			t.Fatal(err)
		}
		if got, err := a.mirrorsOf(c.suite); err != nil || !slices.Equal(got, []string{c.want}) {
			t.Errorf("%+v: got %v, %v", c, got, err)
		}
	}
}

func TestOpenErrors(t *testing.T) {
	t.Run("mirror", func(t *testing.T) {
		if _, err := Open(t.Context(), Options{CacheDir: t.TempDir(), Mirror: "ftp://x/y"}); err == nil || !strings.Contains(err.Error(), "ftp://x/y") {
			t.Errorf("got %v", err)
		}
	})
	t.Run("environment", func(t *testing.T) {
		t.Setenv("HVI_LAB_OFFLINE", "maybe")
		if _, err := Open(t.Context(), Options{CacheDir: t.TempDir()}); err == nil || !strings.Contains(err.Error(), "HVI_LAB_OFFLINE=maybe") {
			t.Errorf("got %v", err)
		}
	})
	t.Run("cache is a file", func(t *testing.T) {
		file := filepath.Join(t.TempDir(), "f")
		write(t, file, "")
		if _, err := Open(t.Context(), Options{CacheDir: file}); err == nil {
			t.Error("accepted")
		}
	})
	t.Run("cancelled", func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if _, err := Open(ctx, Options{CacheDir: t.TempDir()}); !errors.Is(err, context.Canceled) {
			t.Errorf("got %v", err)
		}
	})
	t.Run("default cache", func(t *testing.T) {
		dir := t.TempDir()
		t.Setenv("XDG_CACHE_HOME", dir)
		a, err := Open(t.Context(), Options{})
		if err != nil || a.opt.CacheDir != filepath.Join(dir, "hvi-lab") {
			t.Errorf("got %+v, %v", a, err)
		}
	})
}

func TestCancel(t *testing.T) {
	m := newFakeMirror(t)
	m.publish(suite{name: "bookworm", debs: []fakeDeb{debB}})
	c := m.open(t.TempDir())
	p, err := c.Lookup(t.Context(), []string{"bookworm"}, "b")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	m.intercept(func(_ http.ResponseWriter, r *http.Request, _ []byte) bool {
		cancel()
		<-r.Context().Done()
		return true
	})
	if _, err := c.Download(ctx, []Package{p}); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v, want context.Canceled", err)
	}
}

// TestLock has two processes, as good as, on one lock.
func TestLock(t *testing.T) {
	m := newFakeMirror(t)
	cache := t.TempDir()
	a, b := m.open(cache), m.open(cache)
	unlock, err := a.lock(t.Context(), "x")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := b.lock(ctx, "x"); !errors.Is(err, context.Canceled) || !strings.Contains(err.Error(), "another process") {
		t.Errorf("got %v", err)
	}
	unlock()
	unlock, err = b.lock(t.Context(), "x")
	if err != nil {
		t.Fatal(err)
	}
	unlock()
}

// TestConcurrent runs several clients on one cache; each package and index is
// fetched once.
func TestConcurrent(t *testing.T) {
	m := newFakeMirror(t)
	var debs []fakeDeb
	for i := range 12 {
		n := strconv.Itoa(i)
		debs = append(debs, fakeDeb{name: "p" + n, version: "1"}.file("./usr/share/"+n, n))
	}
	m.publish(suite{name: "bookworm", debs: debs})
	cache := t.TempDir()
	var wg sync.WaitGroup
	dirs := make([]string, 4)
	for i := range dirs {
		c := m.open(cache)
		wg.Go(func() {
			pkgs, err := c.Find(t.Context(), []string{"bookworm"}, "p*")
			if err != nil {
				t.Error(err)
				return
			}
			if dirs[i], err = c.Tree(t.Context(), "all", pkgs); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if dirs[0] == "" || !slices.Equal(dirs, []string{dirs[0], dirs[0], dirs[0], dirs[0]}) {
		t.Errorf("trees %v", dirs)
	}
	for path, n := range m.hits {
		if n != 1 {
			t.Errorf("%s was fetched %d times", path, n)
		}
	}
	if len(m.hits) != 2+len(debs) {
		t.Errorf("%d files were fetched", len(m.hits))
	}
}

func TestFind(t *testing.T) {
	m := newFakeMirror(t)
	m.publish(suite{name: "bookworm", debs: []fakeDeb{
		{name: "linux-image-6.1.0-9-amd64", version: "1"}, {name: "linux-image-6.1.0-10-amd64", version: "1"}, {name: "linux-doc", version: "1"}, {name: "x", version: "1:1"},
	}})
	m.publish(suite{name: "trixie", debs: []fakeDeb{{name: "linux-doc", version: "0.9"}, {name: "x", version: "1:1.1"}}})
	both := []string{"bookworm", "trixie"}
	c := m.open(t.TempDir())
	for _, q := range []struct {
		pattern string
		want    []string
	}{
		{"linux-image-*", []string{"linux-image-6.1.0-10-amd64=1", "linux-image-6.1.0-9-amd64=1"}},
		{"linux-[a-h]*", []string{"linux-doc=1"}},
		{"x", []string{"x=1:1.1"}},
		{"linux-do?", []string{"linux-doc=1"}},
	} {
		got, err := c.Find(t.Context(), both, q.pattern)
		if err != nil || !slices.Equal(names(got), q.want) {
			t.Errorf("%s: got %v, %v; want %v", q.pattern, names(got), err, q.want)
		}
	}
	if p, err := c.Lookup(t.Context(), both, "x"); err != nil || p.Suite != "trixie" {
		t.Errorf("got %v, %v", p, err)
	}
	for _, pattern := range []string{"y*", "y", ""} {
		if _, err := c.Find(t.Context(), both, pattern); !errors.Is(err, ErrNotFound) {
			t.Errorf("%q: got %v", pattern, err)
		}
	}
	if _, err := c.Lookup(t.Context(), both, "x*"); !errors.Is(err, ErrNotFound) {
		t.Errorf("a glob in Lookup: got %v", err)
	}
	if _, err := c.Find(t.Context(), both, "["); err == nil {
		t.Error("a broken glob was accepted")
	}
}

func TestPrune(t *testing.T) {
	m := newFakeMirror(t)
	m.publish(suite{name: "bookworm", debs: []fakeDeb{debA, debB}})
	cache := t.TempDir()
	c := m.open(cache)
	pkgs, err := c.Closure(t.Context(), []string{"bookworm"}, []string{"a"}, ClosureOptions{})
	if err != nil {
		t.Fatal(err)
	}
	keep, err := c.Tree(t.Context(), "keep", pkgs[:1])
	if err != nil {
		t.Fatal(err)
	}
	gone, err := c.Tree(t.Context(), "gone", pkgs[1:])
	if err != nil {
		t.Fatal(err)
	}
	old := time.Now().AddDate(0, 0, -40)
	for _, f := range []string{c.lockPath("tree-" + filepath.Base(gone)), c.debPath(pkgs[1])} {
		if err := os.Chtimes(f, old, old); err != nil {
			t.Fatal(err)
		}
	}
	freed, err := c.Prune(t.Context(), time.Now().AddDate(0, 0, -30))
	if want := pkgs[1].Size + int64(len("library b")); err != nil || freed != want {
		t.Errorf("freed %d, %v; want %d", freed, err, want)
	}
	if !isDir(keep) || isDir(gone) {
		t.Error("the wrong tree is gone")
	}
	if ok, _ := exists(c.debPath(pkgs[0]), pkgs[0].Size); !ok {
		t.Error("a package in use is gone")
	}
	// Use renews.
	if err := os.Chtimes(c.debPath(pkgs[0]), old, old); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Download(t.Context(), pkgs[:1]); err != nil {
		t.Fatal(err)
	}
	if freed, err := c.Prune(t.Context(), time.Now().AddDate(0, 0, -30)); freed != 0 || err != nil {
		t.Errorf("freed %d, %v", freed, err)
	}
	if _, err := c.Tree(t.Context(), "gone", pkgs[1:]); err != nil {
		t.Error(err)
	}
}
