package linux

import (
	"bytes"
	"errors"
	"fmt"
	"hash/maphash"

	"github.com/cilium/ebpf/btf"

	"github.com/xen-hvi/hvi/engine/guest"
	"github.com/xen-hvi/hvi/engine/x86"
)

// BTF as in include/uapi/linux/btf.h. Identify needs a dozen offsets from 4 to
// 5 MB of it, while a vCPU is held, so it makes one checking pass over the blob
// and picks them out. Everything else is for Kernel.BTF, which hands the same,
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
	kindStruct = 4
	kindUnion  = 5
	kindEnum   = 6
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

var errBTF = errors.New("malformed BTF")

// btfTypes is a checked BTF blob.
type btfTypes struct {
	types   []byte
	strings []byte
	pos     []uint32 // of type i+1 in types
	// The types looked for, by name; 0 where there is none.
	found map[string]int
}

// parseBTF checks the whole structure of a blob and notes where the wanted
// types are: the first of each name and kind.
func parseBTF(blob []byte, wanted map[string]int) (*btfTypes, error) {
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
	b := &btfTypes{types: types, strings: str, found: make(map[string]int, len(wanted))}
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
			if s := b.name(name); len(s) <= 16 && wanted[string(s)] == kind && b.found[string(s)] == 0 {
				b.found[string(s)] = len(b.pos)
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

// member calls f for the members of a structure, those of its anonymous members
// included, with their offset in bytes, until the bound on visits is reached.
func (b *btfTypes) members(id int, f func(name []byte, offset int)) {
	visits := 0
	b.walkMembers(id, 0, 0, &visits, f)
}

func (b *btfTypes) walkMembers(id, at, depth int, visits *int, f func([]byte, int)) {
	if id < 1 || id > len(b.pos) || depth > maxNesting {
		return
	}
	t := b.types[b.pos[id-1]:]
	info := le32(t[4:])
	if kind := info >> 24 & 0x1f; kind != kindStruct && kind != kindUnion {
		return
	}
	for i := range int(info & 0xffff) {
		if *visits++; *visits > maxMembers {
			return
		}
		m := t[12+12*i:]
		name, typ, bits := le32(m), le32(m[4:]), le32(m[8:])
		if info>>31 != 0 { // the upper byte is a bit field's width
			bits &= 0xffffff
		}
		if name >= uint32(len(b.strings)) {
			continue
		}
		off := at + int(bits/8)
		if s := b.name(name); len(s) > 0 {
			f(s, off)
		} else {
			b.walkMembers(int(typ), off, depth+1, visits, f)
		}
	}
}

// size is sizeof a structure.
func (b *btfTypes) size(id int) int { return int(le32(b.types[b.pos[id-1]+8:])) }

// enumValue returns a constant of an enumeration.
func (b *btfTypes) enumValue(id int, name string) (uint32, bool) {
	if id == 0 {
		return 0, false
	}
	t := b.types[b.pos[id-1]:]
	for i := range int(le32(t[4:]) & 0xffff) {
		e := t[12+8*i:]
		if off := le32(e); off < uint32(len(b.strings)) && string(b.name(off)) == name {
			return le32(e[4:]), true
		}
	}
	return 0, false
}

// wantedTypes are the types Offsets is made from, and their kinds.
var wantedTypes = map[string]int{
	"task_struct":   kindStruct,
	"mm_struct":     kindStruct,
	"pcpu_hot":      kindStruct,
	"system_states": kindEnum,
	"module":        kindStruct,
	"module_layout": kindStruct,
	"module_memory": kindStruct,
	"mod_mem_type":  kindEnum,
}

// fill sets the offsets of members by name, those not found to NoOffset. The
// first of several names for one field that the structure has wins.
func (b *btfTypes) fill(typ string, size *int, fields map[string]*int) error {
	for _, p := range fields {
		*p = NoOffset
	}
	*size = NoOffset
	id := b.found[typ]
	if id == 0 {
		return nil
	}
	*size = b.size(id)
	// No kernel structure that is one of these is larger than a few pages;
	// a member beyond its structure's end would send reads astray.
	if *size <= 0 || *size > 1<<20 {
		return fmt.Errorf("%w: struct %s of %d bytes", errBTF, typ, *size)
	}
	var bad error
	b.members(id, func(name []byte, off int) {
		p, ok := fields[string(name)]
		if !ok || *p != NoOffset {
			return
		}
		if off < 0 || off >= *size {
			bad = fmt.Errorf("%w: %s.%s at %d of %d", errBTF, typ, name, off, *size)
			return
		}
		*p = off
	})
	return bad
}

// offsets makes Offsets from checked BTF.
func (b *btfTypes) offsets() (Offsets, error) {
	o := noOffsets()
	t := &o.Task
	err := b.fill("task_struct", &t.Size, map[string]*int{
		"__state":     &t.State,
		"state":       &t.State,
		"flags":       &t.Flags,
		"tasks":       &t.Tasks,
		"mm":          &t.MM,
		"active_mm":   &t.ActiveMM,
		"pid":         &t.PID,
		"tgid":        &t.TGID,
		"real_parent": &t.RealParent,
		"parent":      &t.Parent,
		"cred":        &t.Cred,
		"real_cred":   &t.RealCred,
		"comm":        &t.Comm,
	})
	if err != nil {
		return noOffsets(), err
	}
	if t.PID < 0 || t.TGID < 0 || t.Comm < 0 || t.MM < 0 || t.Comm > t.Size-16 {
		return noOffsets(), fmt.Errorf("%w: no struct task_struct with pid, tgid, mm and comm", errBTF)
	}
	if err := b.fill("mm_struct", &o.MM.Size, map[string]*int{"pgd": &o.MM.PGD}); err != nil {
		return noOffsets(), err
	}
	if o.MM.PGD < 0 {
		return noOffsets(), fmt.Errorf("%w: no struct mm_struct with pgd", errBTF)
	}
	var size int
	if err := b.fill("pcpu_hot", &size, map[string]*int{
		"current_task": &o.PCPUHot.CurrentTask,
		"cpu_number":   &o.PCPUHot.CPUNumber,
	}); err != nil {
		return noOffsets(), err
	}
	if o.Module, err = b.moduleOffsets(); err != nil {
		return noOffsets(), err
	}
	o.SystemRunning, _ = b.enumValue(b.found["system_states"], "SYSTEM_RUNNING")
	return o, nil
}

// btfSeed makes sums of blobs worthless to a guest.
var btfSeed = maphash.MakeSeed()

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
	if maphash.Bytes(btfSeed, blob) != k.btfSum {
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
