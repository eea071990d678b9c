package linux

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"reflect"

	"github.com/xen-hvi/hvi/engine/x86"
)

// A profile is what reading one build of a kernel has given: its symbols, the
// layout of its structures, and what both were made from. Everything in it
// counts from the image's base, so it fits the build wherever KASLR puts it.
//
// The sums are of every byte that the profile was made from, in the copies that
// were parsed. Whose memory has the same sums at the same places would be
// parsed to the same profile. A guest that forges its tables therefore makes a
// profile for itself and others with the same forgery, and none for a guest with
// the genuine kernel, although both have one banner.
type profile struct {
	// entry is where the processor enters the kernel: by which a profile is
	// looked for, before anything else of a kernel is known.
	entry  uint32
	banner string
	tables tablePlaces
	// sum is that of the places.
	sum digest
	// btf is where the type information is and its sum; size 0 if the kernel has
	// none.
	btf     place
	btfSum  digest
	offsets Offsets
	sym     *symbolTable
}

// place is a stretch of the image, relative to its base.
type place struct{ at, size uint32 }

// tablePlaces is a tableSource without its bytes.
type tablePlaces struct {
	pieces [5]place
	baseAt uint32 // or 0
	// imageBase is the base, where values depend on it; or 0.
	imageBase uint64
}

// places describes what a table was made from.
func (s *tableSource) places(base x86.VirtAddr) tablePlaces {
	var t tablePlaces
	for i, p := range s.pieces() {
		t.pieces[i] = place{uint32(p.at - base), uint32(len(p.copy))}
	}
	if s.baseAt != 0 {
		t.baseAt = uint32(s.baseAt - base)
	}
	if s.absolute {
		t.imageBase = uint64(base)
	}
	return t
}

// tableDigest begins the digest of a symbol table at its places.
func (k *digestKey) tableDigest(t *tablePlaces) *digester {
	d := k.digester("symbol table")
	for _, p := range t.pieces {
		d.number(uint64(p.at))
	}
	d.number(uint64(t.baseAt))
	d.number(t.imageBase)
	return d
}

// sumTables is the digest of what a table was made from.
func (k *digestKey) sumTables(t *tablePlaces, src *tableSource) digest {
	d := k.tableDigest(t)
	for _, p := range src.pieces() {
		d.bytes(p.copy)
	}
	return d.digest()
}

// sumBTF is the digest of type information.
func (k *digestKey) sumBTF(blob []byte) digest {
	d := k.digester("BTF")
	d.bytes(blob)
	return d.digest()
}

// fits reports whether a guest's memory is what the profile was made from, but
// for the banner, which is read later.
func (p *profile) fits(k *digestKey, r *imageReader, base x86.VirtAddr) bool {
	if p.tables.imageBase != 0 && p.tables.imageBase != uint64(base) {
		return false
	}
	if at := p.tables.baseAt; at != 0 && r.checkBase(base, base+x86.VirtAddr(at)) != nil {
		return false
	}
	buf := make([]byte, digestWindow)
	d := k.tableDigest(&p.tables)
	for _, piece := range p.tables.pieces {
		if d.guest(r.fill, base+x86.VirtAddr(piece.at), int(piece.size), buf) != nil {
			return false
		}
	}
	if d.digest() != p.sum {
		return false
	}
	if p.btf.size != 0 {
		d = k.digester("BTF")
		if d.guest(r.fill, base+x86.VirtAddr(p.btf.at), int(p.btf.size), buf) != nil || d.digest() != p.btfSum {
			return false
		}
	}
	return true
}

// build is the name of the build that a profile is of: the same for every guest
// of this host that runs it. It gives no sum away.
func (p *profile) build(k *digestKey) string {
	d := k.digester("kernel build")
	d.text(p.banner)
	d.text(string(p.sum[:]))
	d.text(string(p.btfSum[:]))
	id := d.digest()
	return hex.EncodeToString(id[:16])
}

// profileVersion is that of the file, and of what parsers make of a kernel: it
// is raised when either changes. Members of Offsets are covered by
// offsetsSchema.
const profileVersion = 1

var profileMagic = []byte("hviprof\x00")

// offsetsSchema says what the numbers of Offsets mean.
var offsetsSchema = func() [32]byte {
	var b bytes.Buffer
	eachOffset(reflect.ValueOf(new(Offsets)).Elem(), "", func(path string, _ reflect.Value) {
		b.WriteString(path + "\n")
	})
	return sha256.Sum256(b.Bytes())
}()

// eachOffset calls f for each number in v, in the order of its members. path
// has their names and tags.
func eachOffset(v reflect.Value, path string, f func(path string, n reflect.Value)) {
	if v.Kind() != reflect.Struct {
		f(path, v)
		return
	}
	for i := range v.NumField() {
		t := v.Type().Field(i)
		eachOffset(v.Field(i), path+"."+t.Name+" "+string(t.Tag), f)
	}
}

// Bounds of a profile, and so of its file. Real ones have 4 MiB.
const (
	maxProfile = 64 << 20
	maxPiece   = 32 << 20
)

var errProfile = errors.New("no profile of this version")

// encode writes a profile, without what protects it.
func (p *profile) encode() []byte {
	le := binary.LittleEndian
	s := p.sym
	b := make([]byte, 0, len(s.names)+len(s.tokens.text)+4*len(s.off)+8*len(s.byName)+4*len(s.markers)+16<<10)
	b = append(b, profileMagic...)
	b = le.AppendUint32(b, profileVersion)
	b = append(b, offsetsSchema[:]...)
	b = le.AppendUint32(b, p.entry)
	b = le.AppendUint32(b, uint32(len(p.banner)))
	b = append(b, p.banner...)
	for _, q := range append(p.tables.pieces[:], p.btf) {
		b = le.AppendUint32(le.AppendUint32(b, q.at), q.size)
	}
	b = le.AppendUint32(b, p.tables.baseAt)
	b = le.AppendUint64(b, p.tables.imageBase)
	b = append(b, p.sum[:]...)
	b = append(b, p.btfSum[:]...)
	eachOffset(reflect.ValueOf(&p.offsets).Elem(), "", func(_ string, n reflect.Value) {
		b = le.AppendUint64(b, uint64(n.Int()))
	})
	b = le.AppendUint32(b, uint32(len(s.off)))
	b = le.AppendUint32(b, uint32(s.nabs))
	b = append(b, make([]byte, -len(b)&7)...) // what follows is used where it is
	for _, v := range s.byName {
		b = le.AppendUint64(b, v)
	}
	for _, v := range s.off {
		b = le.AppendUint32(b, v)
	}
	b = le.AppendUint32(b, uint32(len(s.tokens.text)))
	b = append(b, s.tokens.text...)
	b = le.AppendUint32(b, uint32(len(s.names)))
	return append(b, s.names...)
}

// decodeProfile reads what encode has written, for symbols indexed with a
// multiplier. It keeps b, which must not change any more. It believes nothing:
// whatever b is, the profile is whole and safe to use, or there is an error,
// errProfile.
func decodeProfile(b []byte, mul uint64) (*profile, error) {
	d := decoder{b: b, whole: len(b)}
	if !bytes.Equal(d.next(len(profileMagic)), profileMagic) || d.u32() != profileVersion || !bytes.Equal(d.next(32), offsetsSchema[:]) {
		return nil, errProfile
	}
	p := &profile{entry: d.u32()}
	p.banner = string(d.next(d.length(maxBanner)))
	for i := range p.tables.pieces {
		p.tables.pieces[i] = d.place()
	}
	p.btf = d.place()
	p.tables.baseAt, p.tables.imageBase = d.u32(), d.u64()
	copy(p.sum[:], d.next(32))
	copy(p.btfSum[:], d.next(32))
	eachOffset(reflect.ValueOf(&p.offsets).Elem(), "", func(_ string, n reflect.Value) {
		v := int64(d.u64())
		if v < NoOffset || v > 1<<31 {
			d.bad = true
		}
		n.SetInt(v)
	})
	p.sym = d.symbols()
	if d.bad || len(d.b) != 0 || p.tables.baseAt >= maxOffset {
		return nil, errProfile
	}
	p.sym.mul = mul
	return p, nil
}

// symbols decodes and checks a table. Markers follow from the names, tokens'
// places from their text. The table keeps the memory it was decoded from.
func (d *decoder) symbols() *symbolTable {
	n, nabs := d.length(maxSymbols), int(d.u32())
	d.align()
	s := &Symbols{symbolTable: &symbolTable{nabs: nabs, byName: uint64s(d.next(8 * n)), off: uint32s(d.next(4 * n))}}
	s.tokens.text = d.next(d.length(1<<16 - 1))
	s.names = d.next(d.length(maxPiece))
	if d.bad || nabs < 0 || nabs > n || s.checkValues() != nil || !s.tokens.place() || !s.mark() {
		d.bad = true
		return nil
	}
	prev := uint64(0)
	for _, v := range s.byName {
		if v>>32 < prev>>32 || uint32(v) >= uint32(n) {
			d.bad = true
			return nil
		}
		prev = v
	}
	return s.symbolTable
}

// place finds the tokens in their text, and reports whether they are 256.
func (t *tokenTable) place() bool {
	pos := 0
	for i := range 256 {
		t.start[i] = uint16(pos)
		end := bytes.IndexByte(t.text[pos:], 0)
		if end < 0 {
			return false
		}
		pos += end + 1
	}
	t.start[256] = uint16(pos)
	return pos == len(t.text)
}

// mark makes the markers, and reports whether the names are as many as the
// values.
func (s *Symbols) mark() bool {
	s.markers = make([]uint32, 0, (len(s.off)+255)/256)
	pos, b := 0, s.names
	for i := range s.off {
		if i&0xff == 0 {
			s.markers = append(s.markers, uint32(pos))
		}
		n, size := nameLength(b, pos)
		if size == 0 {
			return false
		}
		pos += size + n
	}
	return pos == len(b)
}

// decoder takes numbers and stretches off the front of b. Once something was
// missing, bad is set and everything is zero.
type decoder struct {
	b     []byte
	whole int // bytes there were
	bad   bool
}

// align skips to a multiple of 8 bytes.
func (d *decoder) align() { d.next((len(d.b) - d.whole) & 7) }

func (d *decoder) next(n int) []byte {
	if d.bad || n < 0 || n > len(d.b) {
		d.bad = true
		return nil
	}
	out := d.b[:n:n]
	d.b = d.b[n:]
	return out
}

func (d *decoder) u32() uint32 {
	b := d.next(4)
	if b == nil {
		return 0
	}
	return le32(b)
}

func (d *decoder) u64() uint64 {
	b := d.next(8)
	if b == nil {
		return 0
	}
	return le64(b)
}

// length is a number of at most a bound.
func (d *decoder) length(most int) int {
	n := d.u32()
	if n > uint32(most) {
		d.bad = true
		return 0
	}
	return int(n)
}

func (d *decoder) place() place {
	p := place{d.u32(), d.u32()}
	if p.at >= maxOffset || p.size > maxPiece {
		d.bad = true
	}
	return p
}

// takeProfile makes the profile of a kernel just read from memory, or nil if its
// type information could not be read: that may be better the next time. The
// sources of the symbol table are let go.
func (k *Kernel) takeProfile(entry x86.VirtAddr) *profile {
	src := k.Symbols.src
	k.Symbols.src = nil
	if src == nil || k.BTFError != nil && !errors.Is(k.BTFError, errNoBTF) {
		return nil
	}
	p := &profile{entry: uint32(entry - k.Base), banner: k.Banner, tables: src.places(k.Base), offsets: k.Offsets, sym: k.Symbols.symbolTable}
	p.sum = k.key.sumTables(&p.tables, src)
	if k.BTFError == nil {
		p.btf = place{uint32(k.btfStart - k.Base), uint32(k.btfEnd - k.btfStart)}
		p.btfSum = k.btfSum
	}
	return p
}

// fill copies from the image into buf.
func (r *imageReader) fill(va x86.VirtAddr, buf []byte) error {
	for _, e := range r.extents {
		if e.contains(va) && uint64(len(buf)) <= uint64(e.end-va) {
			if !r.spend(len(buf)) {
				return errTooMuch
			}
			return r.as.Read(va, buf)
		}
	}
	return fmt.Errorf("%d bytes at %v: %w", len(buf), va, errOutsideImage)
}
