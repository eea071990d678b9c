package archive

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"path/filepath"
	"slices"
	"sort"
	"strconv"
	"strings"
	"time"

	"github.com/ulikunitz/xz"
)

// Package is one binary package of one suite, as its signed index describes it.
type Package struct {
	Name         string
	Version      string
	Architecture string // "amd64" or "all"
	Source       string // the source package's name, with " (version)" where that differs
	Suite        string // where it was found
	Priority     string // required, important, standard, optional or extra
	Essential    bool
	PreDepends   string // fields as written; see Dependencies
	Depends      string
	Recommends   string
	Provides     string
	Filename     string // below the mirror's base, pool/…
	Size         int64  // bytes of the .deb
	Installed    int64  // bytes when unpacked, as the index estimates it
	SHA256       string // of the .deb, lower-case hex
}

func (p Package) String() string { return p.Name + " " + p.Version + " (" + p.Suite + ")" }

// Dependencies returns what the package needs to be unpacked and to run:
// Pre-Depends and Depends together.
func (p Package) Dependencies() ([]Dependency, error) {
	field := p.PreDepends
	if p.Depends != "" {
		field += "," + p.Depends
	}
	deps, err := ParseDependencies(field)
	if err != nil {
		return nil, fmt.Errorf("package %s: %w", p, err)
	}
	return deps, nil
}

// The index cache is a Packages file without what the resolver never reads,
// laid out so that opening it costs one read and no parsing:
//
//	magic [8]byte, crc32c of the rest u32, records n u32, provides m u32
//	n × offset u32                    records, ordered by name, as in the file
//	m × (name offset u32, record u32) provides, ordered by name
//	records and names, strings with a uvarint length
//
// Numbers are little-endian, offsets count from the start of the file. The
// magic changes with the layout. The checksum is against damage, not attack:
// who can write the cache can also write the trees.
const (
	indexMagic  = "hviidx01"
	indexHeader = 8 + 4 + 4 + 4
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

var priorities = []string{"", "required", "important", "standard", "optional", "extra"}

type index struct {
	suite    string
	data     []byte
	records  []byte // n × u32
	provides []byte // m × (u32, u32)
}

var errIndexDamaged = errors.New("damaged")

func openIndex(suite string, data []byte) (*index, error) {
	if len(data) < indexHeader || string(data[:8]) != indexMagic ||
		binary.LittleEndian.Uint32(data[8:]) != crc32.Checksum(data[12:], castagnoli) {
		return nil, errIndexDamaged
	}
	n := uint64(binary.LittleEndian.Uint32(data[12:]))
	m := uint64(binary.LittleEndian.Uint32(data[16:]))
	if indexHeader+4*n+8*m > uint64(len(data)) {
		return nil, errIndexDamaged
	}
	records := data[indexHeader : indexHeader+4*n]
	return &index{suite, data, records, data[indexHeader+4*n : indexHeader+4*n+8*m]}, nil
}

// reader walks over a record. Reading past the end gives zero values.
type reader struct{ b []byte }

func (r *reader) uvarint() uint64 {
	v, n := binary.Uvarint(r.b)
	if n <= 0 {
		r.b = nil
		return 0
	}
	r.b = r.b[n:]
	return v
}

func (r *reader) bytes(n uint64) []byte {
	if n > uint64(len(r.b)) {
		r.b = nil
		return nil
	}
	out := r.b[:n]
	r.b = r.b[n:]
	return out
}

func (r *reader) string() string { return string(r.bytes(r.uvarint())) }

func (x *index) at(offset uint32) reader {
	if uint64(offset) > uint64(len(x.data)) {
		return reader{}
	}
	return reader{x.data[offset:]}
}

func (x *index) len() int { return len(x.records) / 4 }

func (x *index) record(i int) reader {
	return x.at(binary.LittleEndian.Uint32(x.records[4*i:]))
}

// name returns a record's name without copying it.
func (x *index) name(i int) []byte {
	r := x.record(i)
	return r.bytes(r.uvarint())
}

func (x *index) get(i int) Package {
	r := x.record(i)
	p := Package{Suite: x.suite}
	p.Name = r.string()
	p.Version = r.string()
	p.Architecture = r.string()
	p.Source = r.string()
	flags := r.uvarint()
	p.Essential = flags&1 != 0
	if n := flags >> 1; n < uint64(len(priorities)) {
		p.Priority = priorities[n]
	}
	p.PreDepends = r.string()
	p.Depends = r.string()
	p.Recommends = r.string()
	p.Provides = r.string()
	p.Filename = r.string()
	p.Size = int64(r.uvarint())
	p.Installed = int64(r.uvarint())
	p.SHA256 = hex.EncodeToString(r.bytes(sha256.Size))
	return p
}

// essential reports a record's flag without decoding the rest.
func (x *index) essential(i int) bool {
	r := x.record(i)
	for range 4 { // name, version, architecture, source
		r.bytes(r.uvarint())
	}
	return r.uvarint()&1 != 0
}

// lookup returns the records of a name.
func (x *index) lookup(name string) []Package {
	n := x.len()
	i := sort.Search(n, func(i int) bool { return bytes.Compare(x.name(i), []byte(name)) >= 0 })
	var out []Package
	for ; i < n && string(x.name(i)) == name; i++ {
		out = append(out, x.get(i))
	}
	return out
}

// providers returns the records that provide a virtual package.
func (x *index) providers(name string) []Package {
	m := len(x.provides) / 8
	at := func(i int) []byte {
		r := x.at(binary.LittleEndian.Uint32(x.provides[8*i:]))
		return r.bytes(r.uvarint())
	}
	i := sort.Search(m, func(i int) bool { return bytes.Compare(at(i), []byte(name)) >= 0 })
	var out []Package
	for ; i < m && string(at(i)) == name; i++ {
		if rec := binary.LittleEndian.Uint32(x.provides[8*i+4:]); int(rec) < x.len() {
			out = append(out, x.get(int(rec)))
		}
	}
	return out
}

// buildIndex reads a Packages file and lays out its index. arch filters out
// foreign entries, which a Packages file should not have.
func buildIndex(what string, r io.Reader, arch string) ([]byte, error) {
	type rec struct {
		name       string
		start, end int // in blob
	}
	type prov struct {
		name string
		rec  int // before sorting
	}
	var (
		recs  []rec
		provs []prov
		blob  []byte
		order = binary.LittleEndian
	)
	putString := func(b []byte) { blob = append(binary.AppendUvarint(blob, uint64(len(b))), b...) }
	sc := newScanner(what, r)
	for {
		fields, err := sc.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, err
		}
		var name, version, architecture, source, pre, depends, recommends, provides, filename, size, installed, sum []byte
		flags := uint64(0)
		for _, f := range fields {
			switch {
			case equalFold(f.Name, "package"):
				name = f.Value
			case equalFold(f.Name, "version"):
				version = f.Value
			case equalFold(f.Name, "architecture"):
				architecture = f.Value
			case equalFold(f.Name, "source"):
				source = f.Value
			case equalFold(f.Name, "pre-depends"):
				pre = f.Value
			case equalFold(f.Name, "depends"):
				depends = f.Value
			case equalFold(f.Name, "recommends"):
				recommends = f.Value
			case equalFold(f.Name, "provides"):
				provides = f.Value
			case equalFold(f.Name, "filename"):
				filename = f.Value
			case equalFold(f.Name, "size"):
				size = f.Value
			case equalFold(f.Name, "installed-size"):
				installed = f.Value
			case equalFold(f.Name, "sha256"):
				sum = f.Value
			case equalFold(f.Name, "essential"):
				if string(f.Value) == "yes" {
					flags |= 1
				}
			case equalFold(f.Name, "priority"):
				if i := slices.Index(priorities, string(f.Value)); i > 0 {
					flags |= uint64(i) << 1
				}
			}
		}
		bad := func(msg string) error {
			return &SyntaxError{What: what, Line: sc.line, Msg: "the package before this line, " + quote(string(name)) + ": " + msg}
		}
		if !validName(string(name)) {
			return nil, bad("not a package name")
		}
		if a := string(architecture); a != arch && a != "all" {
			continue
		}
		if len(version) == 0 {
			return nil, bad("no Version")
		}
		bytesOf, err := strconv.ParseUint(string(size), 10, 62)
		if err != nil {
			return nil, bad("Size is not a number")
		}
		var kib uint64
		if len(installed) > 0 {
			if kib, err = strconv.ParseUint(string(installed), 10, 50); err != nil {
				return nil, bad("Installed-Size is not a number")
			}
		}
		if !isSHA256(string(sum)) {
			return nil, bad("no SHA256")
		}
		if !validPool(string(filename)) {
			return nil, bad("Filename " + quote(string(filename)) + " is not a path below the mirror's base")
		}
		start := len(blob)
		for _, b := range [][]byte{name, version, architecture, source} {
			putString(b)
		}
		blob = binary.AppendUvarint(blob, flags)
		for _, b := range [][]byte{pre, depends, recommends, provides, filename} {
			putString(b)
		}
		blob = binary.AppendUvarint(blob, bytesOf)
		blob = binary.AppendUvarint(blob, kib*1024)
		blob, err = hex.AppendDecode(blob, sum)
		if err != nil {
			return nil, bad("SHA256: " + err.Error())
		}
		if len(provides) > 0 {
			deps, err := ParseDependencies(string(provides))
			if err != nil {
				return nil, bad("Provides: " + err.Error())
			}
			for _, d := range deps {
				provs = append(provs, prov{d[0].Name, len(recs)})
			}
		}
		recs = append(recs, rec{string(name), start, len(blob)})
	}

	perm := make([]int, len(recs))
	for i := range perm {
		perm[i] = i
	}
	slices.SortStableFunc(perm, func(a, b int) int { return strings.Compare(recs[a].name, recs[b].name) })
	place := make([]int, len(recs))
	for i, p := range perm {
		place[p] = i
	}
	slices.SortStableFunc(provs, func(a, b prov) int { return strings.Compare(a.name, b.name) })

	base := indexHeader + 4*len(recs) + 8*len(provs)
	if uint64(base)+2*uint64(len(blob)) > 1<<31 {
		return nil, fmt.Errorf("%s: too large to index", what)
	}
	names := make(map[string]int)
	for _, p := range provs {
		if _, ok := names[p.name]; !ok {
			names[p.name] = len(blob)
			putString([]byte(p.name))
		}
	}
	out := make([]byte, 0, base+len(blob))
	out = append(out, indexMagic...)
	out = order.AppendUint32(out, 0)
	out = order.AppendUint32(out, uint32(len(recs)))
	out = order.AppendUint32(out, uint32(len(provs)))
	for _, p := range perm {
		out = order.AppendUint32(out, uint32(base+recs[p].start))
	}
	for _, p := range provs {
		out = order.AppendUint32(out, uint32(base+names[p.name]))
		out = order.AppendUint32(out, uint32(place[p.rec]))
	}
	out = append(out, blob...)
	sealIndex(out)
	return out, nil
}

// sealIndex writes an index's checksum.
func sealIndex(data []byte) {
	if len(data) >= 12 {
		binary.LittleEndian.PutUint32(data[8:], crc32.Checksum(data[12:], castagnoli))
	}
}

// validPool accepts a clean relative path, which is then safe to append to a
// mirror's base.
func validPool(p string) bool {
	return p != "" && filepath.IsLocal(p) && filepath.Clean(p) == p && !strings.ContainsAny(p, "?#\\ \n")
}

// index returns a suite's package index, from memory, the cache or the mirror
// its InRelease came from.
func (a *Archive) index(ctx context.Context, suite string) (*index, error) {
	a.mu.Lock()
	x := a.indexes[suite]
	a.mu.Unlock()
	if x != nil {
		return x, nil
	}
	rel, err := a.release(ctx, suite)
	if err != nil {
		return nil, err
	}
	x, err = a.loadIndex(ctx, rel)
	if errors.Is(err, ErrNotFound) && !rel.fresh {
		// The mirror has dropped an index that the cached InRelease names.
		a.forget(suite)
		if rel, err = a.release(ctx, suite); err != nil {
			return nil, err
		}
		x, err = a.loadIndex(ctx, rel)
	}
	if err != nil {
		return nil, err
	}
	a.mu.Lock()
	a.indexes[suite] = x
	a.mu.Unlock()
	return x, nil
}

func (a *Archive) loadIndex(ctx context.Context, rel *release) (*index, error) {
	plain := "main/binary-" + a.opt.Arch + "/Packages"
	packed, ok := rel.files[plain+".xz"]
	if !ok {
		return nil, fmt.Errorf("suite %s: the mirror has no %s.xz: no such architecture, or a partial mirror", rel.suite, plain)
	}
	path := filepath.Join(a.opt.CacheDir, "index", packed.sha256+"-"+a.opt.Arch+".idx")
	open := func() *index {
		data, err := os.ReadFile(path)
		if err != nil {
			return nil
		}
		x, err := openIndex(rel.suite, data)
		if err != nil {
			return nil // built anew
		}
		touch(path)
		return x
	}
	if x := open(); x != nil {
		return x, nil
	}
	if a.opt.Offline {
		return nil, &OfflineError{What: "the package index of suite " + rel.suite}
	}
	unlock, err := a.lock(ctx, "index-"+packed.sha256)
	if err != nil {
		return nil, err
	}
	defer unlock()
	if x := open(); x != nil {
		return x, nil
	}

	began := time.Now()
	down := filepath.Join(a.opt.CacheDir, "index", packed.sha256+".xz")
	event := Event{Kind: Index, Name: rel.suite, Total: packed.size}
	seen := func(n int64) {
		e := event
		e.Done, e.Elapsed = n, time.Since(began)
		a.report.send(e)
	}
	if err := a.fetchIndex(ctx, rel, plain+".xz", packed, down, seen); err != nil {
		return nil, err
	}
	data, err := readPackages(rel, down, rel.files[plain], a.opt.Arch)
	if rerr := os.Remove(down); err == nil && rerr != nil {
		err = fmt.Errorf("cache: %w", rerr)
	}
	if err != nil {
		return nil, err
	}
	if err := writeAtomic(path, data); err != nil {
		return nil, fmt.Errorf("cache: %w", err)
	}
	event.Done, event.Elapsed, event.Final = packed.size, time.Since(began), true
	a.report.send(event)
	return openIndex(rel.suite, data)
}

// fetchIndex takes the file by its hash where the mirror offers that, because
// the plain name may already hold the next version while a mirror is updated.
func (a *Archive) fetchIndex(ctx context.Context, rel *release, name string, f indexFile, down string, seen func(int64)) error {
	dir := rel.base + "/dists/" + rel.suite + "/"
	urls := []string{dir + name}
	if rel.byHash {
		urls = []string{dir + name[:strings.LastIndexByte(name, '/')+1] + "by-hash/SHA256/" + f.sha256, dir + name}
	}
	var fails []error
	for _, url := range urls {
		w := want{what: "package index of suite " + rel.suite, url: url, size: f.size, sha256: f.sha256}
		err := a.fetch.toFile(ctx, w, down, seen, func(err error) {
			a.report.send(Event{Kind: Index, Name: rel.suite, Total: f.size, Text: "trying again: " + err.Error()})
		})
		if err == nil {
			return nil
		}
		fails = append(fails, err)
		if !errors.Is(err, ErrNotFound) {
			break
		}
	}
	return errors.Join(fails...)
}

// readPackages unpacks and indexes a verified Packages.xz. What comes out is
// checked too where InRelease names it.
func readPackages(rel *release, path string, plain indexFile, arch string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("cache: %w", err)
	}
	defer f.Close()
	unpacked, err := xz.NewReader(bufio.NewReaderSize(f, 256<<10))
	if err != nil {
		return nil, fmt.Errorf("suite %s: Packages.xz: %w", rel.suite, err)
	}
	// Decompression and parsing each fill a core.
	pr, pw := io.Pipe()
	defer pr.Close()
	go func() {
		_, err := io.CopyBuffer(pw, struct{ io.Reader }{unpacked}, make([]byte, 1<<20))
		pw.CloseWithError(err)
	}()
	sum, n := sha256.New(), new(counter)
	data, err := buildIndex("suite "+rel.suite+": Packages", io.TeeReader(pr, io.MultiWriter(sum, n)), arch)
	if err != nil {
		return nil, err
	}
	if plain.sha256 != "" {
		if got := hex.EncodeToString(sum.Sum(nil)); got != plain.sha256 || int64(*n) != plain.size {
			return nil, &IntegrityError{What: "package index of suite " + rel.suite, URL: path, WantSize: plain.size, GotSize: int64(*n), WantSHA256: plain.sha256, GotSHA: got}
		}
	}
	return data, nil
}

type counter int64

func (c *counter) Write(p []byte) (int, error) {
	*c += counter(len(p))
	return len(p), nil
}
