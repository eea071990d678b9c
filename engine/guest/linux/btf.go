package linux

import (
	"bytes"
	"errors"
	"fmt"

	"github.com/cilium/ebpf/btf"

	"github.com/xen-hvi/hvi/engine/guest"
	"github.com/xen-hvi/hvi/engine/x86"
)

// BTF as in include/uapi/linux/btf.h. Identify needs some hundred offsets from 4
// to 5 MB of it, while a vCPU is held, so it makes one checking pass over the
// blob and picks them out. Everything else is for Kernel.BTF, which hands the same,
// checked, bytes to a full parser.
const (
	btfMagic   = 0xeb9f
	maxBTF     = 32 << 20
	maxTypes   = 1 << 20
	maxMembers = 1 << 14 // visited for one structure, nested ones included
	maxNesting = 8
)

// Kinds of BTF types that matter here.
const (
	kindArray    = 3
	kindStruct   = 4
	kindUnion    = 5
	kindEnum     = 6
	kindTypedef  = 8
	kindVolatile = 9
	kindConst    = 10
	kindTypeTag  = 18
)

// btfExtra is, per kind, what follows the 12 bytes of a type: a fixed number of
// bytes and a number per element (vlen). -1 marks a kind that does not exist.
var btfExtra = [...]struct{ fixed, each int }{
	0:  {-1, 0},
	1:  {4, 0},  // INT
	2:  {0, 0},  // PTR
	3:  {12, 0}, // ARRAY
	4:  {0, 12}, // STRUCT
	5:  {0, 12}, // UNION
	6:  {0, 8},  // ENUM
	7:  {0, 0},  // FWD
	8:  {0, 0},  // TYPEDEF
	9:  {0, 0},  // VOLATILE
	10: {0, 0},  // CONST
	11: {0, 0},  // RESTRICT
	12: {0, 0},  // FUNC
	13: {0, 8},  // FUNC_PROTO
	14: {4, 0},  // VAR
	15: {0, 12}, // DATASEC
	16: {0, 0},  // FLOAT
	17: {4, 0},  // DECL_TAG
	18: {0, 0},  // TYPE_TAG
	19: {0, 12}, // ENUM64
}

var (
	errBTF = errors.New("malformed BTF")
	// errTypes: type information that is sound in form, but not a kernel's.
	errTypes = errors.New("implausible type information")
)

// btfTypes is a checked BTF blob, a typeSource.
type btfTypes struct {
	types   []byte
	strings []byte
	pos     []uint32 // of type i+1 in types
	// found are the types looked for, by name, each the first of its name.
	found map[wantedType]int
}

// parseBTF checks the whole structure of a blob and notes where the wanted
// types are.
func parseBTF(blob []byte, wanted map[wantedType]bool) (*btfTypes, error) {
	if len(blob) < 24 {
		return nil, fmt.Errorf("%w: %d bytes", errBTF, len(blob))
	}
	hdr := int64(le32(blob[4:]))
	if magic := le32(blob) & 0xffff; magic != btfMagic || blob[2] != 1 || hdr < 24 || hdr > int64(len(blob)) || hdr&3 != 0 {
		return nil, fmt.Errorf("%w: header % x", errBTF, blob[:8])
	}
	body := blob[hdr:]
	section := func(at int) ([]byte, error) {
		off, n := int64(le32(blob[at:])), int64(le32(blob[at+4:]))
		if off+n > int64(len(body)) {
			return nil, fmt.Errorf("%w: section of %d bytes at %d in %d", errBTF, n, off, len(body))
		}
		return body[off : off+n], nil
	}
	types, err := section(8)
	if err != nil {
		return nil, err
	}
	str, err := section(16)
	if err != nil {
		return nil, err
	}
	if len(str) == 0 || str[0] != 0 || str[len(str)-1] != 0 {
		return nil, fmt.Errorf("%w: string section of %d bytes", errBTF, len(str))
	}
	b := &btfTypes{types: types, strings: str, found: make(map[wantedType]int, len(wanted))}
	longest := 0
	for w := range wanted {
		longest = max(longest, len(w.name))
	}
	b.pos = make([]uint32, 0, len(types)/24)
	for p := 0; p < len(types); {
		if len(types)-p < 12 || len(b.pos) >= maxTypes {
			return nil, fmt.Errorf("%w: type %d is cut off", errBTF, len(b.pos)+1)
		}
		name, info := le32(types[p:]), le32(types[p+4:])
		kind, vlen := int(info>>24&0x1f), int(info&0xffff)
		if kind >= len(btfExtra) || btfExtra[kind].fixed < 0 || name >= uint32(len(str)) {
			return nil, fmt.Errorf("%w: type %d: kind %d, name %d", errBTF, len(b.pos)+1, kind, name)
		}
		size := 12 + btfExtra[kind].fixed + btfExtra[kind].each*vlen
		if size > len(types)-p {
			return nil, fmt.Errorf("%w: type %d is cut off", errBTF, len(b.pos)+1)
		}
		b.pos = append(b.pos, uint32(p))
		if kind >= kindStruct && kind <= kindEnum && vlen > 0 && name != 0 {
			if s := b.name(name); len(s) <= longest && wanted[wantedType{string(s), kind == kindEnum}] {
				if w := (wantedType{string(s), kind == kindEnum}); b.found[w] == 0 {
					b.found[w] = len(b.pos)
				}
			}
		}
		p += size
	}
	return b, nil
}

// name returns the string at an offset, which is below the section's length.
func (b *btfTypes) name(off uint32) []byte {
	s := b.strings[off:]
	return s[:bytes.IndexByte(s, 0)] // the section ends in a zero
}

func (b *btfTypes) structure(name string) int   { return b.found[wantedType{name, false}] }
func (b *btfTypes) enumeration(name string) int { return b.found[wantedType{name, true}] }

// members stops when the bound on visits is reached.
func (b *btfTypes) members(ref int, f func(typeMember)) {
	visits := 0
	b.walkMembers(ref, 0, 0, &visits, f)
}

func (b *btfTypes) walkMembers(id, at, depth int, visits *int, f func(typeMember)) {
	if depth > maxNesting {
		return
	}
	t, kind := b.at(id)
	if kind != kindStruct && kind != kindUnion {
		return
	}
	info := le32(t[4:])
	for i := range int(info & 0xffff) {
		if *visits++; *visits > maxMembers {
			return
		}
		e := t[12+12*i:]
		name, m := le32(e), typeMember{typ: int(le32(e[4:])), bits: int(le32(e[8:]))}
		if info>>31 != 0 { // the upper byte is a bit field's width
			m.bits, m.width = m.bits&0xffffff, m.bits>>24
		}
		m.bits += at
		if name >= uint32(len(b.strings)) {
			continue
		}
		if m.name = b.name(name); len(m.name) > 0 {
			f(m)
		} else {
			b.walkMembers(m.typ, m.bits, depth+1, visits, f)
		}
	}
}

// at returns a type's record and its kind, 0 for a type that there is not.
func (b *btfTypes) at(id int) (t []byte, kind int) {
	if id < 1 || id > len(b.pos) {
		return nil, 0
	}
	t = b.types[b.pos[id-1]:]
	return t, int(le32(t[4:]) >> 24 & 0x1f)
}

func (b *btfTypes) element(typ int) (ref, n int) {
	n = 1
	for range maxNesting {
		t, kind := b.at(typ)
		switch kind {
		case kindStruct, kindUnion:
			return typ, n
		case kindTypedef, kindVolatile, kindConst, kindTypeTag:
			typ = int(le32(t[8:]))
		case kindArray:
			typ = int(le32(t[12:]))
			if n *= int(le32(t[20:])); n > maxStructure {
				return 0, 0
			}
		default:
			return 0, n
		}
	}
	return 0, 0
}

func (b *btfTypes) size(ref int) int {
	t, _ := b.at(ref)
	return int(le32(t[8:]))
}

func (b *btfTypes) value(ref int, name string) (int64, bool) {
	t, kind := b.at(ref)
	if kind != kindEnum {
		return 0, false
	}
	for i := range int(le32(t[4:]) & 0xffff) {
		e := t[12+8*i:]
		if off := le32(e); off < uint32(len(b.strings)) && string(b.name(off)) == name {
			return int64(int32(le32(e[4:]))), true
		}
	}
	return 0, false
}

// readBTF copies the kernel's BTF. The bounds come from its symbols.
func readBTF(as guest.AddressSpace, start, end x86.VirtAddr) ([]byte, error) {
	if end <= start || end-start > maxBTF {
		return nil, fmt.Errorf("%w: from %v to %v", errBTF, start, end)
	}
	blob := make([]byte, end-start)
	return blob, as.Read(start, blob)
}

// BTF reads the kernel's type information again and parses all of it. It costs
// some 50 ms and the spec some 10 MiB, so callers that ask often keep it. An
// error is [Kernel.BTFError] or a [*ReadError]; if the guest has changed its
// BTF since it was identified, that is [ErrImplausible].
func (k *Kernel) BTF() (spec *btf.Spec, err error) {
	if k.BTFError != nil {
		return nil, k.BTFError
	}
	blob, err := readBTF(k.as, k.btfStart, k.btfEnd)
	if err != nil {
		return nil, &ReadError{What: "BTF", Err: err}
	}
	if k.key.sumBTF(blob) != k.btfSum {
		return nil, &ReadError{What: "BTF", Got: "other bytes than when the kernel was identified", Err: ErrImplausible}
	}
	return loadSpec(blob)
}

// loadSpec parses BTF with a library that was written for kernels that can be
// trusted; what it makes of others must not end the process.
func loadSpec(blob []byte) (spec *btf.Spec, err error) {
	defer func() {
		if p := recover(); p != nil {
			spec, err = nil, &ReadError{What: "BTF", Got: fmt.Sprint(p), Err: ErrImplausible}
		}
	}()
	spec, err = btf.LoadSpecFromReader(bytes.NewReader(blob))
	if err != nil {
		return nil, &ReadError{What: "BTF", Err: err}
	}
	return spec, nil
}
