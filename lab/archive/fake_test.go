package archive

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/ProtonMail/go-crypto/openpgp/clearsign"
	"github.com/ProtonMail/go-crypto/openpgp/packet"
	openpgp "github.com/ProtonMail/go-crypto/openpgp/v2"
	"github.com/ulikunitz/xz"
)

// TestMain keeps the machine's own settings out of the tests.
func TestMain(m *testing.M) {
	if os.Getenv("HVI_LAB_ONLINE") == "" {
		for _, kv := range os.Environ() {
			name, _, _ := strings.Cut(kv, "=")
			if strings.HasPrefix(name, "HVI_LAB_") || strings.HasSuffix(strings.ToLower(name), "_proxy") {
				_ = os.Unsetenv(name)
			}
		}
	}
	os.Exit(m.Run())
}

// The fake archive's clock. Its key is older, so that signatures of the past
// can be made too.
var testNow = time.Date(2024, 5, 1, 12, 0, 0, 0, time.UTC)

// testKeys is made once, as it takes a moment.
var testKeys = sync.OnceValue(func() (k struct{ good, other *openpgp.Entity }) {
	made := testNow.AddDate(-1, 0, 0)
	conf := &packet.Config{Algorithm: packet.PubKeyAlgoEdDSA, Time: func() time.Time { return made }}
	var err error
	if k.good, err = openpgp.NewEntity("Test Archive", "", "archive@test", conf); err != nil {
		panic(err)
	}
	if k.other, err = openpgp.NewEntity("Somebody Else", "", "other@test", conf); err != nil {
		panic(err)
	}
	return k
})

func sign1(t testing.TB, text string, at time.Time, keys ...*openpgp.Entity) []byte {
	t.Helper()
	var privs []*packet.PrivateKey
	for _, k := range keys {
		privs = append(privs, k.PrivateKey)
	}
	var out bytes.Buffer
	w, err := clearsign.EncodeMulti(&out, privs, &packet.Config{Time: func() time.Time { return at }})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write([]byte(text)); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return append(out.Bytes(), '\n')
}

// fakeDeb is a package of the fake archive.
type fakeDeb struct {
	name, version string
	control       string // further fields, each with its newline
	files         []tar.Header
	body          map[string]string // contents by tar name
}

// file adds a regular file.
func (d fakeDeb) file(name, text string) fakeDeb {
	body := map[string]string{name: text}
	for k, v := range d.body {
		body[k] = v
	}
	d.body = body
	d.files = append(d.files[:len(d.files):len(d.files)], tar.Header{Name: name, Typeflag: tar.TypeReg, Mode: 0o644, Size: int64(len(text))})
	return d
}

// entry adds anything else.
func (d fakeDeb) entry(h tar.Header) fakeDeb {
	d.files = append(d.files[:len(d.files):len(d.files)], h)
	return d
}

func tarball(t testing.TB, files []tar.Header, body map[string]string) []byte {
	t.Helper()
	var out bytes.Buffer
	z := gzip.NewWriter(&out)
	w := tar.NewWriter(z)
	for _, h := range files {
		h.ModTime = testNow.AddDate(0, -1, 0)
		if err := w.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
		if h.Typeflag == tar.TypeReg {
			if _, err := w.Write([]byte(body[h.Name])); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

// build makes the .deb, deb(5).
func (d fakeDeb) build(t testing.TB) []byte {
	t.Helper()
	control := fmt.Sprintf("Package: %s\nVersion: %s\nArchitecture: amd64\nMaintainer: T <t@test>\nDescription: test\n%s", d.name, d.version, d.control)
	var out bytes.Buffer
	out.WriteString("!<arch>\n")
	member := func(name string, data []byte) {
		fmt.Fprintf(&out, "%-16s%-12d%-6d%-6d%-8s%-10d`\n", name, 0, 0, 0, "100644", len(data))
		out.Write(data)
		if len(data)%2 == 1 {
			out.WriteByte('\n')
		}
	}
	member("debian-binary", []byte("2.0\n"))
	member("control.tar.gz", tarball(t, []tar.Header{{Name: "./control", Typeflag: tar.TypeReg, Mode: 0o644, Size: int64(len(control))}}, map[string]string{"./control": control}))
	member("data.tar.gz", tarball(t, d.files, d.body))
	return out.Bytes()
}

// fakeMirror serves suites over HTTP. Its files may be changed by a test at any
// time; what it was asked for is counted.
type fakeMirror struct {
	t   testing.TB
	url string

	mu    sync.Mutex
	files map[string][]byte
	hits  map[string]int
	// answer, where set, may answer a request in the mirror's place.
	answer func(w http.ResponseWriter, r *http.Request, data []byte) bool
}

func newFakeMirror(t testing.TB) *fakeMirror {
	m := &fakeMirror{t: t, files: make(map[string][]byte), hits: make(map[string]int)}
	s := httptest.NewServer(m)
	t.Cleanup(s.Close)
	m.url = s.URL + "/debian"
	return m
}

func (m *fakeMirror) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	m.mu.Lock()
	m.hits[r.URL.Path]++
	data, ok := m.files[r.URL.Path]
	answer := m.answer
	m.mu.Unlock()
	if answer != nil && answer(w, r, data) {
		return
	}
	if !ok {
		http.NotFound(w, r)
		return
	}
	http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(data))
}

func (m *fakeMirror) set(name string, data []byte) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.files["/debian/"+name] = data
}

func (m *fakeMirror) remove(name string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.files, "/debian/"+name)
}

func (m *fakeMirror) intercept(f func(w http.ResponseWriter, r *http.Request, data []byte) bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.answer = f
}

func (m *fakeMirror) requests() (n int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, c := range m.hits {
		n += c
	}
	return n
}

// asked counts the requests whose path holds a text.
func (m *fakeMirror) asked(part string) (n int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for p, c := range m.hits {
		if strings.Contains(p, part) {
			n += c
		}
	}
	return n
}

func hexSum(data []byte) string {
	s := sha256.Sum256(data)
	return hex.EncodeToString(s[:])
}

func poolName(d fakeDeb) string { return "pool/main/" + d.name + "_" + d.version + "_amd64.deb" }

// suite describes one published state of a suite.
type suite struct {
	name       string
	codename   string // name where empty
	date       time.Time
	validUntil time.Time
	noByHash   bool
	debs       []fakeDeb
	signers    []*openpgp.Entity
	packages   string // in place of what debs give
}

// publish puts a suite on the mirror.
func (m *fakeMirror) publish(s suite) {
	m.t.Helper()
	text := s.packages
	if text == "" {
		var b strings.Builder
		for _, d := range s.debs {
			deb := d.build(m.t)
			m.set(poolName(d), deb)
			fmt.Fprintf(&b, "Package: %s\nVersion: %s\nInstalled-Size: 1\nArchitecture: amd64\n%sFilename: %s\nSize: %d\nSHA256: %s\n\n",
				d.name, d.version, d.control, poolName(d), len(deb), hexSum(deb))
		}
		text = b.String()
	}
	var packed bytes.Buffer
	z, err := xz.WriterConfig{DictCap: 1 << 16}.NewWriter(&packed) // the default takes megabytes
	if err != nil {
		m.t.Fatal(err)
	}
	if _, err := z.Write([]byte(text)); err != nil {
		m.t.Fatal(err)
	}
	if err := z.Close(); err != nil {
		m.t.Fatal(err)
	}
	dir := "dists/" + s.name + "/"
	const index = "main/binary-amd64/Packages"
	m.set(dir+index+".xz", packed.Bytes())
	byHash := "yes"
	if s.noByHash {
		byHash = "no"
	} else {
		m.set(dir+path.Dir(index)+"/by-hash/SHA256/"+hexSum(packed.Bytes()), packed.Bytes())
	}
	if s.codename == "" {
		s.codename = s.name
	}
	if s.date.IsZero() {
		s.date = testNow.Add(-time.Hour)
	}
	if s.signers == nil {
		s.signers = []*openpgp.Entity{testKeys().good}
	}
	const layout = "Mon, 02 Jan 2006 15:04:05 UTC"
	rel := fmt.Sprintf("Origin: Test\nSuite: some-alias\nCodename: %s\nDate: %s\n", s.codename, s.date.Format(layout))
	if !s.validUntil.IsZero() {
		rel += "Valid-Until: " + s.validUntil.Format(layout) + "\n"
	}
	rel += fmt.Sprintf("Acquire-By-Hash: %s\nComponents: main\nMD5Sum:\n 0 0 x\nSHA256:\n %s %d %s\n %s %8d %s.xz\n",
		byHash, hexSum([]byte(text)), len(text), index, hexSum(packed.Bytes()), packed.Len(), index)
	m.set(dir+"InRelease", sign1(m.t, rel, s.date, s.signers...))
}

// client is an Archive on a fake mirror, with what it reported.
type client struct {
	*Archive
	mu     sync.Mutex
	events []Event
	waits  []time.Duration
}

func (c *client) notices() (out []string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, e := range c.events {
		if e.Kind == Notice {
			out = append(out, e.Text)
		}
	}
	return out
}

// open opens a cache on a mirror with the test's keyring and clock, and without
// waiting between attempts.
func (m *fakeMirror) open(cache string, change ...func(*Options)) *client {
	m.t.Helper()
	keyring := filepath.Join(m.t.TempDir(), "keyring.gpg")
	var keys bytes.Buffer
	if err := testKeys().good.Serialize(&keys); err != nil {
		m.t.Fatal(err)
	}
	write(m.t, keyring, keys.String())
	c := new(client)
	opt := Options{CacheDir: cache, Mirror: m.url, Keyring: keyring, Progress: func(e Event) {
		c.mu.Lock()
		defer c.mu.Unlock()
		c.events = append(c.events, e)
	}}
	for _, f := range change {
		f(&opt)
	}
	a, err := Open(m.t.Context(), opt)
	if err != nil {
		m.t.Fatal(err)
	}
	a.now = func() time.Time { return testNow }
	a.aptConfig = func() aptConfig { return nil }
	a.fetch.sleep = func(ctx context.Context, d time.Duration) error {
		c.mu.Lock()
		defer c.mu.Unlock()
		c.waits = append(c.waits, d)
		return ctx.Err()
	}
	c.Archive = a
	return c
}
