package linux

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"reflect"
)

// profileVersion is that of the file, and of what parsers make of a kernel: it
// is raised when either changes. Members of Offsets are covered by
// offsetsSchema.
const profileVersion = 2

var profileMagic = []byte("hviprof\x00")

// offsetsSchema says what the numbers of Offsets mean.
var offsetsSchema = func() [32]byte {
	var b bytes.Buffer
	describe(&b, reflect.TypeFor[Offsets](), "")
	return sha256.Sum256(b.Bytes())
}()

// describe writes a line for each number that eachNumber finds in a value of a
// type: the names and tags that lead to it.
func describe(b *bytes.Buffer, t reflect.Type, path string) {
	if t.Kind() != reflect.Struct {
		b.WriteString(path + "\n")
		return
	}
	for i := range t.NumField() {
		f := t.Field(i)
		describe(b, f.Type, path+"."+f.Name+" "+string(f.Tag))
	}
}

// eachNumber calls f for each number in v, in the order of its members.
func eachNumber(v reflect.Value, f func(n reflect.Value)) {
	if v.Kind() != reflect.Struct {
		f(v)
		return
	}
	for i := range v.NumField() {
		eachNumber(v.Field(i), f)
	}
}

// Bounds of a profile's file, and of a stretch of memory that it names. Real files
// have 0.4 to 0.8 MiB, 4 bytes for each symbol.
const (
	maxProfile = 4*maxSymbols + 64<<10
	maxPiece   = 32 << 20
)

var errProfile = errors.New("no profile of this version")

// encode writes a profile, without what protects it.
func (p *profile) encode() []byte {
	le := binary.LittleEndian
	b := make([]byte, 0, 4*len(p.index.entries)+4*len(p.index.buckets)+16<<10)
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
	eachNumber(reflect.ValueOf(&p.offsets).Elem(), func(n reflect.Value) {
		b = le.AppendUint64(b, uint64(n.Int()))
	})
	b = le.AppendUint32(b, uint32(len(p.index.entries)))
	b = append(b, make([]byte, -len(b)&3)...) // what follows is used where it is
	for _, words := range [][]uint32{p.index.buckets, p.index.entries} {
		for _, v := range words {
			b = le.AppendUint32(b, v)
		}
	}
	return b
}

// decodeProfile reads what encode has written, for symbols indexed with a
// multiplier. Their table is missing until the profile fits. It keeps b, which must
// not change any more. It believes nothing: whatever b is, the profile is whole and
// safe to use, or there is an error, errProfile.
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
	eachNumber(reflect.ValueOf(&p.offsets).Elem(), func(n reflect.Value) {
		v := int64(d.u64())
		if v < NoOffset || v > 1<<31 {
			d.bad = true
		}
		n.SetInt(v)
	})
	n := d.length(maxSymbols)
	d.align()
	p.index = nameIndex{mul: mul, buckets: uint32s(d.next(4 * (numBuckets + 1))), entries: uint32s(d.next(4 * n))}
	if d.bad || len(d.b) != 0 || p.tables.baseAt >= maxOffset || !p.index.sound(n) {
		return nil, errProfile
	}
	return p, nil
}

// decoder takes numbers and stretches off the front of b. Once something was
// missing, bad is set and everything is zero.
type decoder struct {
	b     []byte
	whole int // bytes there were
	bad   bool
}

// align skips to a multiple of 4 bytes.
func (d *decoder) align() { d.next((len(d.b) - d.whole) & 3) }

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
