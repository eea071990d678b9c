package linux

import (
	"bufio"
	"bytes"
	"cmp"
	"compress/gzip"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"
)

// DefaultISFDir is where an admin puts profiles of kernels without BTF.
const DefaultISFDir = "/etc/hvi/profiles"

// Bounds of a profile in Volatility 3's intermediate symbol format. One of a
// Debian kernel has 30 to 50 MB, as text.
const (
	maxISF      = 256 << 20
	maxISFNames = 1 << 21 // of types or of symbols
	maxISFFiles = 256     // in a directory
)

// ISF is the layout of one kernel's structures from a file in the intermediate
// symbol format of Volatility 3, versions 4 to 6 (volatility3/schemas/
// schema-6.2.0.json), as dwarf2json and [ExportISF] write it. It is immutable.
type ISF struct {
	// Name is the file's name.
	Name string
	// Banner is the kernel it is of, as in [Kernel.Banner].
	Banner string

	offsets Offsets
}

// ISFError says why a profile is not usable.
type ISFError struct {
	Name string
	Got  string // or empty
	Hint string // or empty
	Err  error  // or nil
}

func (e *ISFError) Error() string {
	s := "profile " + e.Name
	for _, part := range []string{e.Got, errorText(e.Err)} {
		if part != "" {
			s += ": " + part
		}
	}
	if e.Hint != "" {
		s += " (" + e.Hint + ")"
	}
	return s
}

func errorText(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}

// Unwrap returns the cause.
func (e *ISFError) Unwrap() error { return e.Err }

// OpenISF reads a profile's file: plain JSON or gzip. Errors are *[ISFError].
func OpenISF(path string) (*ISF, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, &ISFError{Name: path, Err: err}
	}
	defer f.Close()
	if st, err := f.Stat(); err != nil || !st.Mode().IsRegular() {
		return nil, &ISFError{Name: path, Got: "not a regular file", Err: err}
	}
	return ReadISF(path, f)
}

// ReadISF reads a profile, plain or gzip. name is for errors. It takes about a
// second for the profile of a whole kernel, and several times the file's size
// in memory while it runs. Errors are *[ISFError].
func ReadISF(name string, r io.Reader) (*ISF, error) {
	src, banner, err := parseISF(r, maxISF)
	if err != nil {
		var e *ISFError
		if errors.As(err, &e) {
			e.Name = name
			return nil, e
		}
		return nil, &ISFError{Name: name, Err: err}
	}
	o, err := offsetsFrom(src)
	if src.err != nil { // which may be why something is missing
		err = src.err
	}
	if err != nil {
		return nil, &ISFError{Name: name, Err: err}
	}
	return &ISF{Name: name, Banner: banner, offsets: o}, nil
}

// bounded is a reader that ends in an error, not in silence.
type bounded struct {
	r          io.Reader
	read, most int
}

func (b *bounded) Read(p []byte) (int, error) {
	if b.read >= b.most {
		return 0, &ISFError{Got: fmt.Sprintf("more than %d bytes", b.most), Hint: "a profile of one kernel is smaller"}
	}
	n, err := b.r.Read(p[:min(len(p), b.most-b.read)])
	b.read += n
	return n, err
}

// parseISF reads at most so many bytes, packed or not.
func parseISF(r io.Reader, most int) (*isfTypes, string, error) {
	b := bufio.NewReaderSize(&bounded{r: r, most: most}, 1<<16)
	var text io.Reader = b
	switch head, _ := b.Peek(6); {
	case bytes.HasPrefix(head, []byte{0x1f, 0x8b}):
		z, err := gzip.NewReader(b)
		if err != nil {
			return nil, "", err
		}
		text = &bounded{r: z, most: most}
	case bytes.HasPrefix(head, []byte("\xfd7zXZ\x00")):
		return nil, "", &ISFError{Got: "packed with xz", Hint: "unpack it with unxz, or pack it with gzip"}
	}
	p := isfParser{dec: json.NewDecoder(text), t: &isfTypes{refs: map[wantedType]int{}}}
	err := p.object(func(key string) (err error) {
		switch key {
		case "metadata":
			var m struct{ Format string }
			if err := p.dec.Decode(&m); err != nil {
				return err
			}
			if v, _, _ := strings.Cut(m.Format, "."); v != "4" && v != "5" && v != "6" {
				return &ISFError{Got: fmt.Sprintf("format %.20q", m.Format), Hint: "hvi reads versions 4 to 6 of Volatility 3's symbol format"}
			}
			p.format = true
		case "user_types":
			p.t.structs, err = p.named()
		case "enums":
			p.t.enums, err = p.named()
		case "symbols":
			err = p.symbols()
		default:
			var skip json.RawMessage
			err = p.dec.Decode(&skip)
		}
		return err
	})
	if err == nil {
		_, err = p.dec.Token()
		if err == nil {
			return nil, "", &ISFError{Got: "something after its end"}
		}
		if errors.Is(err, io.EOF) {
			err = nil
		}
	}
	switch {
	case err != nil:
		return nil, "", err
	case !p.format || p.t.structs == nil:
		return nil, "", &ISFError{Got: "no metadata or no user_types", Hint: "it must be a symbol file of Volatility 3"}
	case p.banner == "":
		return nil, "", &ISFError{Got: "no constant_data at the symbol linux_banner", Hint: "without it nothing says which kernel it is of"}
	}
	return p.t, p.banner, nil
}

type isfParser struct {
	dec    *json.Decoder
	t      *isfTypes
	format bool
	banner string
}

// object goes through an object's members. f must decode each one's value.
func (p *isfParser) object(f func(key string) error) error {
	if t, err := p.dec.Token(); err != nil || t != json.Delim('{') {
		return cmp.Or(err, error(&ISFError{Got: fmt.Sprintf("no JSON object at byte %d", p.dec.InputOffset())}))
	}
	for n := 0; p.dec.More(); n++ {
		t, err := p.dec.Token()
		if err != nil {
			return err
		}
		key, _ := t.(string)
		if n >= maxISFNames {
			return &ISFError{Got: "too many names"}
		}
		if err := f(key); err != nil {
			return err
		}
	}
	_, err := p.dec.Token()
	return err
}

// named keeps an object's members, to be looked into when they are asked for.
func (p *isfParser) named() (map[string]json.RawMessage, error) {
	out := map[string]json.RawMessage{}
	err := p.object(func(key string) error {
		var raw json.RawMessage
		err := p.dec.Decode(&raw)
		out[key] = raw
		return err
	})
	return out, err
}

// symbols takes the banner. The kernel's own symbols are better than those of
// a file: they are where the kernel is.
func (p *isfParser) symbols() error {
	return p.object(func(key string) error {
		var raw json.RawMessage
		if err := p.dec.Decode(&raw); err != nil || key != "linux_banner" {
			return err
		}
		var s struct {
			Data string `json:"constant_data"`
		}
		if err := json.Unmarshal(raw, &s); err != nil {
			return err
		}
		b, err := base64.StdEncoding.DecodeString(s.Data)
		if err != nil {
			return &ISFError{Got: "linux_banner", Err: err}
		}
		banner, _, ok := parseBanner(append(bytes.TrimRight(b, "\x00"), 0))
		if !ok && len(b) > 0 {
			return &ISFError{Got: fmt.Sprintf("linux_banner %.40q", b), Hint: "it must begin with " + bannerStart}
		}
		p.banner = banner
		return nil
	})
}

// isfTypes is a profile's types, a typeSource.
type isfTypes struct {
	structs, enums map[string]json.RawMessage
	// refs are the types looked into so far: index+1 into known.
	refs  map[wantedType]int
	known []isfKnown
	kinds []isfType // of members, index+1
	err   error     // the first type that could not be understood
}

type isfKnown struct {
	size    int
	members []isfMember
	values  map[string]json.Number
}

type isfMember struct {
	name      string
	typ       int
	bits      int
	width     int
	anonymous bool
}

// isfType is a type descriptor.
type isfType struct {
	Kind     string   `json:"kind"`
	Name     string   `json:"name"`
	Subtype  *isfType `json:"subtype"`
	Count    int64    `json:"count"`
	BitPos   int64    `json:"bit_position"`
	BitCount int64    `json:"bit_length"`
}

func (t *isfTypes) structure(name string) int {
	return t.look(wantedType{name, false}, t.structs, func(raw []byte, k *isfKnown) error {
		var s struct {
			Size   int64 `json:"size"`
			Fields map[string]struct {
				Type      isfType `json:"type"`
				Offset    int64   `json:"offset"`
				Anonymous bool    `json:"anonymous"`
			} `json:"fields"`
		}
		if err := json.Unmarshal(raw, &s); err != nil {
			return err
		}
		if s.Size < 0 || s.Size > maxStructure || len(s.Fields) > maxMembers {
			return fmt.Errorf("%w: %d bytes, %d members", errTypes, s.Size, len(s.Fields))
		}
		k.size = int(s.Size)
		for name, f := range s.Fields {
			if f.Offset < 0 || f.Offset > maxStructure || f.Type.BitPos < 0 || f.Type.BitPos > 1<<10 || f.Type.BitCount < 0 || f.Type.BitCount > 64 {
				return fmt.Errorf("%w: %.64q at %d", errTypes, name, f.Offset)
			}
			t.kinds = append(t.kinds, f.Type)
			m := isfMember{name: name, typ: len(t.kinds), bits: int(f.Offset) * 8, anonymous: f.Anonymous}
			if f.Type.Kind == "bitfield" {
				m.bits, m.width = m.bits+int(f.Type.BitPos), int(f.Type.BitCount)
			}
			k.members = append(k.members, m)
		}
		slices.SortFunc(k.members, func(a, b isfMember) int {
			return cmp.Or(a.bits-b.bits, strings.Compare(a.name, b.name))
		})
		return nil
	})
}

func (t *isfTypes) enumeration(name string) int {
	return t.look(wantedType{name, true}, t.enums, func(raw []byte, k *isfKnown) error {
		var e struct {
			Constants map[string]json.Number `json:"constants"`
		}
		err := json.Unmarshal(raw, &e)
		k.values = e.Constants
		return err
	})
}

// look finds a type, and decodes it the first time.
func (t *isfTypes) look(w wantedType, from map[string]json.RawMessage, decode func([]byte, *isfKnown) error) int {
	if ref, ok := t.refs[w]; ok {
		return ref
	}
	t.refs[w] = 0
	raw, ok := from[w.name]
	if !ok {
		return 0
	}
	var k isfKnown
	if err := decode(raw, &k); err != nil {
		if t.err == nil {
			t.err = fmt.Errorf("type %.64q: %w", w.name, err)
		}
		return 0
	}
	t.known = append(t.known, k)
	t.refs[w] = len(t.known)
	return len(t.known)
}

func (t *isfTypes) size(ref int) int { return t.known[ref-1].size }

func (t *isfTypes) members(ref int, f func(typeMember)) {
	visits := 0
	t.walk(ref, 0, 0, &visits, f)
}

func (t *isfTypes) walk(ref, at, depth int, visits *int, f func(typeMember)) {
	if ref == 0 || depth > maxNesting {
		return
	}
	for _, m := range t.known[ref-1].members {
		if *visits++; *visits > maxMembers {
			return
		}
		if !m.anonymous {
			f(typeMember{name: []byte(m.name), bits: m.bits + at, width: m.width, typ: m.typ})
		} else if inner, n := t.element(m.typ); n == 1 {
			t.walk(inner, m.bits+at, depth+1, visits, f)
		}
	}
}

func (t *isfTypes) element(typ int) (ref, n int) {
	if typ < 1 || typ > len(t.kinds) {
		return 0, 0
	}
	k := &t.kinds[typ-1]
	n = 1
	for range maxNesting {
		switch k.Kind {
		case "struct", "union", "class":
			return t.structure(k.Name), n
		case "array":
			if k.Subtype == nil || k.Count < 0 || k.Count > maxStructure {
				return 0, 0
			}
			if n *= int(k.Count); n > maxStructure {
				return 0, 0
			}
			k = k.Subtype
		default:
			return 0, n
		}
	}
	return 0, 0
}

func (t *isfTypes) value(ref int, name string) (int64, bool) {
	v, ok := t.known[ref-1].values[name]
	if !ok {
		return 0, false
	}
	n, err := v.Int64()
	return n, err == nil
}

// ISFDir is a directory of profiles, of which each kernel takes the one with its
// banner. A file is read once, and again when it has changed. It is safe for
// concurrent use; a nil one is empty.
type ISFDir struct {
	dir string

	mu    sync.Mutex
	files map[string]isfFile
}

type isfFile struct {
	size    int64
	changed time.Time
	isf     *ISF
	err     error
}

// NewISFDir is the directory of that name, which there need not be.
func NewISFDir(dir string) *ISFDir { return &ISFDir{dir: dir, files: map[string]isfFile{}} }

// Load reads what is new in the directory, so that no guest has to wait for it,
// and returns what is wrong with all that is there: *[ISFError]s.
func (d *ISFDir) Load() []error {
	if d == nil {
		return nil
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	entries, err := os.ReadDir(d.dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return []error{&ISFError{Name: d.dir, Err: err}}
	}
	var bad []error
	now := map[string]isfFile{}
	for _, e := range entries {
		if !isfName(e.Name()) {
			continue
		}
		path := filepath.Join(d.dir, e.Name())
		if len(now) >= maxISFFiles {
			bad = append(bad, &ISFError{Name: path, Got: fmt.Sprintf("the %dth profile", maxISFFiles+1), Hint: "remove those of kernels that no guest runs"})
			break
		}
		st, err := os.Stat(path)
		if err != nil {
			bad = append(bad, &ISFError{Name: path, Err: err})
			continue
		}
		f := d.files[e.Name()]
		if err := onlyRootWrites(d.dir, path); err != nil {
			f = isfFile{err: err}
		} else if f.size != st.Size() || !f.changed.Equal(st.ModTime()) {
			f = isfFile{size: st.Size(), changed: st.ModTime()}
			f.isf, f.err = OpenISF(path)
		}
		if now[e.Name()] = f; f.err != nil {
			bad = append(bad, f.err)
		}
	}
	d.files = now
	return bad
}

// onlyRootWrites returns an error unless files are root's, or the user's own, and
// writable for nobody else: what is in a profile decides what hvi takes for a
// guest's processes.
func onlyRootWrites(paths ...string) error {
	for _, path := range paths {
		st, err := os.Stat(path)
		if err != nil {
			return &ISFError{Name: path, Err: err}
		}
		if !private(st, 0o022) {
			return &ISFError{Name: path, Got: fmt.Sprintf("others may write it (%v)", st.Mode()), Hint: "give it to root, and take that from the others"}
		}
	}
	return nil
}

// isfName reports whether a file is meant to be a profile. One that is packed
// with xz is, and refused with what to do about it.
func isfName(name string) bool {
	for _, tail := range []string{".json", ".json.gz", ".json.xz"} {
		if strings.HasSuffix(name, tail) && !strings.HasPrefix(name, ".") {
			return true
		}
	}
	return false
}

// find returns the profile of a banner, or why there is none.
func (d *ISFDir) find(banner string) (*ISF, error) {
	bad := d.Load()
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, f := range d.files {
		if f.isf != nil && f.isf.Banner == banner {
			return f.isf, nil
		}
	}
	s := fmt.Sprintf("none of %d profiles in %s is of this kernel", len(d.files), d.dir)
	if len(bad) > 0 {
		s += ", and " + bad[0].Error()
	}
	return nil, errors.New(s)
}
