package linux

import (
	"fmt"
	"reflect"
	"strings"
	"sync"
)

// NoOffset is the offset of a member that this kernel does not have.
const NoOffset = -1

// A layout is a Go struct that says which members of a C structure hvi reads,
// and is filled with where a kernel has them. [Offsets] has one for each
// structure. The tag of a field says what it stands for:
//
//	type taskOffsets struct {
//		Size  int                        // sizeof the structure
//		PID   int `c:"pid"`              // offset of a member, in bytes
//		State int `c:"__state|state"`    // of the first that there is
//		Flags int `c:"thread_info.flags"` // of a member of a member
//		Areas int `c:"mem[]"`            // how many elements an array has
//		Jited Bits `c:"jited"`           // a bit field
//	}
//
// Members of anonymous members count as the structure's own; a path leads
// through members held by value, the first element where that is an array, and
// never through pointers. What a kernel lacks is [NoOffset] (an array that it
// lacks has 0 elements). So is a bit field where a layout has no Bits for it,
// since its byte alone would be misread.

// Bits is where a bit field is: Width bits from bit Shift on of the word at
// Offset, which is as many bytes wide as it takes. Offset is NoOffset where the
// kernel lacks it. A member that is no bit field there is taken as its first 8
// bits: flags have gone both ways.
type Bits struct{ Offset, Shift, Width int }

// typeSource answers how a kernel lays out its structures. A reference to a
// type is a positive number; 0 is none.
type typeSource interface {
	// structure returns the structure or union of that name, enumeration the
	// enumeration.
	structure(name string) int
	enumeration(name string) int
	// size is sizeof a structure, in bytes.
	size(ref int) int
	// members calls f for the members of a structure, those of its anonymous
	// members included.
	members(ref int, f func(m typeMember))
	// element looks through typedefs, qualifiers and arrays for a structure
	// held by value (0: none), and says how many of them there are.
	element(typ int) (ref, n int)
	// value returns a constant of an enumeration.
	value(ref int, name string) (int64, bool)
}

// typeMember is a member of a structure.
type typeMember struct {
	// name is valid during the call only.
	name []byte
	// bits is the offset from the structure's start, width that of a bit field
	// or 0; both in bits.
	bits, width int
	// typ refers to the member's type, for element.
	typ int
}

// maxStructure bounds sizeof a structure: no kernel structure hvi reads is
// larger than a few pages; a member beyond its structure's end would send reads
// astray.
const maxStructure = 1 << 20

// wantedType is a type that some layout or constants need.
type wantedType struct {
	name string
	enum bool
}

// wanted lists them, once: a source needs to find these only.
var wanted = sync.OnceValue(func() map[wantedType]bool {
	w := map[wantedType]bool{}
	t := reflect.TypeFor[Offsets]()
	for i := range t.NumField() {
		f := t.Field(i)
		for name := range strings.SplitSeq(f.Tag.Get("c"), "|") {
			if name != "" {
				w[wantedType{name, false}] = true
			}
		}
		if name := f.Tag.Get("enum"); name != "" {
			w[wantedType{name, true}] = true
		}
	}
	return w
})

// fillOffsets fills every layout of o from a source. What the source lacks
// becomes NoOffset. The error says what is implausible.
func fillOffsets(src typeSource, o *Offsets) error {
	v := reflect.ValueOf(o).Elem()
	for i := range v.NumField() {
		f := v.Type().Field(i)
		switch c, enum := f.Tag.Get("c"), f.Tag.Get("enum"); {
		case c != "":
			name, ref := "", 0
			for n := range strings.SplitSeq(c, "|") {
				if name, ref = n, src.structure(n); ref != 0 {
					break
				}
			}
			if err := fillLayout(src, name, ref, v.Field(i)); err != nil {
				return err
			}
		case enum != "":
			fillConstants(src, src.enumeration(enum), v.Field(i))
		}
	}
	return nil
}

// fillConstants sets the fields of a struct from an enumeration: each to its
// value, or NoOffset.
func fillConstants(src typeSource, ref int, v reflect.Value) {
	for i := range v.NumField() {
		n := int64(NoOffset)
		if ref != 0 {
			for name := range strings.SplitSeq(v.Type().Field(i).Tag.Get("c"), "|") {
				if x, ok := src.value(ref, name); ok {
					n = x
					break
				}
			}
		}
		v.Field(i).SetInt(n)
	}
}

// layoutField is a field of a layout and the members it may stand for.
type layoutField struct {
	field reflect.Value
	names []string
}

// fillLayout fills one layout from the structure ref, or with NoOffset if there
// is none.
func fillLayout(src typeSource, name string, ref int, v reflect.Value) error {
	var fields []layoutField
	for i := range v.NumField() {
		f, tag := v.Field(i), v.Type().Field(i).Tag.Get("c")
		switch {
		case v.Type().Field(i).Name == "Size" && tag == "":
			f.SetInt(NoOffset)
			if ref == 0 {
				continue
			}
			n := src.size(ref)
			if n <= 0 || n > maxStructure {
				return fmt.Errorf("%w: struct %s of %d bytes", errTypes, name, n)
			}
			f.SetInt(int64(n))
			continue
		case f.Kind() == reflect.Struct:
			f.Set(reflect.ValueOf(Bits{Offset: NoOffset}))
		case strings.HasSuffix(tag, "[]"):
			f.SetInt(0)
		default:
			f.SetInt(NoOffset)
		}
		fields = append(fields, layoutField{f, strings.Split(tag, "|")})
	}
	if ref == 0 {
		return nil
	}
	size := src.size(ref)
	for _, f := range fields {
		for _, path := range f.names {
			m, n, ok := findMember(src, ref, strings.TrimSuffix(path, "[]"))
			if !ok || m.width != 0 && f.field.Kind() != reflect.Struct {
				continue
			}
			least := 1
			switch {
			case m.width != 0:
				least = m.width
			case f.field.Kind() == reflect.Struct: // see Bits
				least = 8
			case n == 0: // an array of no fixed length, which may begin at the end
				least = 0
			}
			if m.bits < 0 || m.bits+least > 8*size {
				return fmt.Errorf("%w: %s.%s at bit %d of %d bytes", errTypes, name, path, m.bits, size)
			}
			switch {
			case f.field.Kind() == reflect.Struct:
				f.field.Set(reflect.ValueOf(bitsOf(m)))
			case strings.HasSuffix(path, "[]"):
				f.field.SetInt(int64(n))
			default:
				f.field.SetInt(int64(m.bits / 8))
			}
			break
		}
	}
	return nil
}

// bitsOf places a bit field in its word.
func bitsOf(m typeMember) Bits {
	b := Bits{Offset: m.bits / 8, Shift: m.bits % 8, Width: m.width}
	if b.Width == 0 {
		b.Width = 8
	}
	return b
}

// findMember follows a path of member names from a structure. n is the number
// of elements where the last one is an array.
func findMember(src typeSource, ref int, path string) (found typeMember, n int, ok bool) {
	at := 0
	for {
		name, rest, more := strings.Cut(path, ".")
		ok = false
		src.members(ref, func(m typeMember) {
			if !ok && string(m.name) == name {
				found, ok = m, true
				found.name = nil
			}
		})
		if !ok {
			return found, 0, false
		}
		found.bits += at
		inner, n := src.element(found.typ)
		if !more {
			return found, n, true
		}
		if inner == 0 {
			return found, 0, false
		}
		ref, path, at = inner, rest, found.bits
	}
}

// span returns how much of a structure has to be read for the members of a
// layout, none of which is read for more than 16 bytes.
func span(layout any) int {
	v, size, last := reflect.ValueOf(layout), NoOffset, 0
	for i := range v.NumField() {
		f, tag := v.Field(i), v.Type().Field(i).Tag.Get("c")
		switch {
		case f.Kind() == reflect.Struct:
			last = max(last, int(f.FieldByName("Offset").Int()))
		case tag == "":
			size = int(f.Int())
		case !strings.HasSuffix(tag, "[]"):
			last = max(last, int(f.Int()))
		}
	}
	if last += 16; size >= 0 {
		last = min(last, size)
	}
	return last
}
