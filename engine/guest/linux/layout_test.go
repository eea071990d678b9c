package linux

import (
	"encoding/binary"
	"errors"
	"reflect"
	"strings"
	"testing"

	"github.com/cilium/ebpf/btf"
)

// The types of these tests. at counts in bytes.
func at(bytes uint32) btf.Bits { return btf.Bits(8 * bytes) }

var (
	tInt  = &btf.Int{Name: "int", Size: 4, Encoding: btf.Signed}
	tLong = &btf.Int{Name: "long unsigned int", Size: 8}
	tChar = &btf.Int{Name: "char", Size: 1, Encoding: btf.Char}
)

func array(t btf.Type, n uint32) *btf.Array { return &btf.Array{Type: t, Index: tInt, Nelems: n} }

// sample is a structure with everything that a path can meet.
func sample() *btf.Struct {
	inner := &btf.Struct{Name: "inner", Size: 16, Members: []btf.Member{
		{Name: "x", Type: tInt}, {Name: "y", Type: tInt, Offset: at(4)},
		{Name: "list", Type: array(tInt, 2), Offset: at(8)},
	}}
	alias := &btf.Typedef{Name: "inner_t", Type: &btf.Const{Type: &btf.Volatile{Type: inner}}}
	s := &btf.Struct{Name: "sample", Size: 256}
	s.Members = []btf.Member{
		{Name: "first", Type: tInt},
		{Name: "held", Type: alias, Offset: at(8)},
		{Name: "pointed", Type: &btf.Pointer{Target: inner}, Offset: at(24)},
		{Type: &btf.Union{Size: 16, Members: []btf.Member{
			{Name: "either", Type: tLong},
			{Type: &btf.Struct{Size: 16, Members: []btf.Member{
				{Name: "or", Type: tInt, Offset: at(4)},
				{Name: "deep", Type: inner, Offset: at(0)},
			}}},
		}}, Offset: at(32)},
		{Name: "many", Type: array(inner, 5), Offset: at(48)},
		{Name: "grid", Type: array(array(tInt, 4), 3), Offset: at(128)},
		{Name: "name", Type: &btf.Typedef{Name: "name_t", Type: array(tChar, 16)}, Offset: at(176)},
		{Name: "flags", Type: tInt, BitfieldSize: 3, Offset: at(192) + 5},
		{Name: "byte", Type: tChar, Offset: at(200)},
		{Name: "tail", Type: array(tInt, 0), Offset: at(256)}, // as a flexible array is
	}
	return s
}

// source makes types into BTF and reads it, for a layout of "sample".
func source(tb testing.TB, types ...btf.Type) typeSource {
	tb.Helper()
	b, err := btf.NewBuilder(types, nil)
	if err != nil {
		tb.Fatal(err)
	}
	blob, err := b.Marshal(nil, &btf.MarshalOptions{Order: binary.LittleEndian})
	if err != nil {
		tb.Fatal(err)
	}
	src, err := parseBTF(blob, map[wantedType]bool{{"sample", false}: true, {"states", true}: true})
	if err != nil {
		tb.Fatal(err)
	}
	return src
}

// sampleLayout has a field for each form of a tag.
type sampleLayout struct {
	Size    int
	First   int  `c:"first"`
	Renamed int  `c:"newer|or|first"`
	Lacks   int  `c:"newer|newest"`
	Path    int  `c:"held.y"`
	Deeper  int  `c:"deep.list"`
	Behind  int  `c:"pointed.x"`
	Through int  `c:"first.x"`
	Partly  int  `c:"held.z"`
	Element int  `c:"many.y"`
	Many    int  `c:"many[]"`
	Grid    int  `c:"grid[]"`
	Name    int  `c:"name[]"`
	Tail    int  `c:"tail[]"`
	TailAt  int  `c:"tail"`
	None    int  `c:"nothing[]"`
	One     int  `c:"first[]"`
	Flags   Bits `c:"flags"`
	Whole   Bits `c:"byte"`
	NoBits  Bits `c:"nothing"`
	Misread int  `c:"flags"`
	Either  int  `c:"either"`
}

func TestLayout(t *testing.T) {
	for name, c := range map[string]struct {
		types []btf.Type
		want  sampleLayout
	}{
		"all there": {
			types: []btf.Type{sample()},
			want: sampleLayout{Size: 256, First: 0, Renamed: 36, Lacks: NoOffset, Path: 12, Deeper: 40, Behind: NoOffset, Through: NoOffset, Partly: NoOffset,
				Element: 52, Many: 5, Grid: 12, Name: 16, Tail: 0, TailAt: 256, None: 0, One: 1,
				Flags: Bits{192, 5, 3}, Whole: Bits{200, 0, 8}, NoBits: Bits{Offset: NoOffset}, Misread: NoOffset, Either: 32},
		},
		"no such structure": {
			types: []btf.Type{&btf.Struct{Name: "other", Size: 8, Members: []btf.Member{{Name: "first", Type: tInt}}}},
			want: sampleLayout{Size: NoOffset, First: NoOffset, Renamed: NoOffset, Lacks: NoOffset, Path: NoOffset, Deeper: NoOffset, Behind: NoOffset,
				Through: NoOffset, Partly: NoOffset, Element: NoOffset, TailAt: NoOffset, Flags: Bits{Offset: NoOffset}, Whole: Bits{Offset: NoOffset},
				NoBits: Bits{Offset: NoOffset}, Misread: NoOffset, Either: NoOffset},
		},
	} {
		src := source(t, c.types...)
		var got sampleLayout
		err := fillLayout(src, "sample", src.structure("sample"), reflect.ValueOf(&got).Elem())
		if err != nil || got != c.want {
			t.Errorf("%s: %+v, %v, want %+v", name, got, err, c.want)
		}
	}
}

// What can't be is an error and not an offset.
func TestLayoutImplausible(t *testing.T) {
	member := func(size uint32, m btf.Member) []btf.Type {
		return []btf.Type{&btf.Struct{Name: "sample", Size: size, Members: []btf.Member{m}}}
	}
	for name, c := range map[string]struct {
		types []btf.Type
		says  string
	}{
		"a member behind the end":    {member(8, btf.Member{Name: "first", Type: tInt, Offset: at(8)}), "sample.first at bit 64 of 8 bytes"},
		"a bit field over the end":   {member(8, btf.Member{Name: "flags", Type: tInt, Offset: 62, BitfieldSize: 3}), "sample.flags at bit 62"},
		"a huge structure":           {member(maxStructure+1, btf.Member{Name: "first", Type: tInt}), "struct sample of 1048577 bytes"},
		"an empty structure":         {member(0, btf.Member{Name: "first", Type: tInt}), "struct sample of 0 bytes"},
		"a member of a member there": {member(64, btf.Member{Name: "held", Type: &btf.Struct{Name: "i", Size: 64, Members: []btf.Member{{Name: "y", Type: tInt, Offset: at(60)}}}, Offset: at(8)}), "sample.held.y at bit 544"},
	} {
		src := source(t, c.types...)
		var got sampleLayout
		err := fillLayout(src, "sample", src.structure("sample"), reflect.ValueOf(&got).Elem())
		if !errors.Is(err, errTypes) || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: %+v, %v, want %q", name, got, err, c.says)
		}
	}
}

// An array of more than any structure holds is none, and anonymous members are
// looked into only so deep.
func TestLayoutBounds(t *testing.T) {
	deep := btf.Type(&btf.Struct{Size: 8, Members: []btf.Member{{Name: "or", Type: tInt}}})
	for range maxNesting + 1 {
		deep = &btf.Struct{Size: 8, Members: []btf.Member{{Type: deep}}}
	}
	many := array(array(array(tLong, 1<<16), 1<<16), 1<<16)
	src := source(t, &btf.Struct{Name: "sample", Size: 16, Members: []btf.Member{
		{Type: deep}, {Name: "many", Type: many}, {Name: "first", Type: tInt, Offset: at(12)},
	}})
	var got sampleLayout
	if err := fillLayout(src, "sample", src.structure("sample"), reflect.ValueOf(&got).Elem()); err != nil {
		t.Fatal(err)
	}
	if got.Many != 0 || got.Renamed != 12 || got.First != 12 {
		t.Errorf("%+v", got)
	}
}

func TestConstants(t *testing.T) {
	src := source(t, &btf.Enum{Name: "states", Size: 4, Signed: true, Values: []btf.EnumValue{{Name: "OLD", Value: 7}, {Name: "LOW", Value: ^uint64(1)}}})
	var got struct {
		Renamed int `c:"NEW|OLD"`
		Low     int `c:"LOW"`
		Lacks   int `c:"NEWER"`
	}
	fillConstants(src, src.enumeration("states"), reflect.ValueOf(&got).Elem())
	if got.Renamed != 7 || got.Low != -2 || got.Lacks != NoOffset {
		t.Errorf("%+v", got)
	}
	fillConstants(src, src.enumeration("nothing"), reflect.ValueOf(&got).Elem())
	if got.Renamed != NoOffset || got.Low != NoOffset || got.Lacks != NoOffset {
		t.Errorf("without the enumeration: %+v", got)
	}
}

// Every layout of Offsets is written in the language of tags: a slip of the pen
// would else look like a kernel that lacks a member.
func TestOffsetsTags(t *testing.T) {
	o := reflect.TypeFor[Offsets]()
	for i := range o.NumField() {
		f := o.Field(i)
		if (f.Tag.Get("c") == "") == (f.Tag.Get("enum") == "") || f.Type.Kind() != reflect.Struct {
			t.Errorf("%s: tag %q", f.Name, f.Tag)
			continue
		}
		for j := range f.Type.NumField() {
			m := f.Type.Field(j)
			path := f.Name + "." + m.Name
			tag := m.Tag.Get("c")
			switch {
			case m.Name == "Size" && tag == "" && m.Type.Kind() == reflect.Int:
				continue
			case tag == "":
				t.Errorf("%s has no tag", path)
			case m.Type.Kind() != reflect.Int && m.Type != reflect.TypeFor[Bits]():
				t.Errorf("%s is a %v", path, m.Type)
			}
			arrays := 0
			for name := range strings.SplitSeq(tag, "|") {
				if strings.HasSuffix(name, "[]") {
					arrays++
				}
				if name == "" || strings.Trim(strings.ToLower(strings.TrimSuffix(name, "[]")), "abcdefghijklmnopqrstuvwxyz0123456789_.") != "" {
					t.Errorf("%s: tag %q", path, tag)
				}
			}
			if arrays != 0 && arrays != strings.Count(tag, "|")+1 {
				t.Errorf("%s: tag %q is an array or not", path, tag)
			}
		}
	}
}

// FuzzLayout lets the fuzzer write the types of a structure that has everything.
// What a layout is filled with lies in the structure.
func FuzzLayout(f *testing.F) {
	for _, types := range [][]btf.Type{{sample()}, {sample(), &btf.Enum{Name: "states", Size: 4, Values: []btf.EnumValue{{Name: "OLD", Value: 7}}}}} {
		b, err := btf.NewBuilder(types, nil)
		if err != nil {
			f.Fatal(err)
		}
		blob, err := b.Marshal(nil, &btf.MarshalOptions{Order: binary.LittleEndian})
		if err != nil {
			f.Fatal(err)
		}
		f.Add(blob)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		src, err := parseBTF(b, map[wantedType]bool{{"sample", false}: true, {"states", true}: true})
		if err != nil {
			return
		}
		checkLayout(t, src)
	})
}

// checkLayout fills a layout from whatever source and checks what comes of it.
func checkLayout(t *testing.T, src typeSource) {
	ref := src.structure("sample")
	var got sampleLayout
	if err := fillLayout(src, "sample", ref, reflect.ValueOf(&got).Elem()); err != nil {
		if !errors.Is(err, errTypes) {
			t.Fatal(err)
		}
		return
	}
	v := reflect.ValueOf(got)
	for i := range v.NumField() {
		name, tag := v.Type().Field(i).Name, v.Type().Field(i).Tag.Get("c")
		switch {
		case v.Field(i).Kind() == reflect.Struct:
			b := v.Field(i).Interface().(Bits)
			if b.Offset != NoOffset && (b.Offset < 0 || b.Shift < 0 || b.Shift > 7 || b.Width < 1 || b.Offset >= got.Size) {
				t.Fatalf("%s: %+v of %d bytes", name, b, got.Size)
			}
		case strings.HasSuffix(tag, "[]"):
			if n := v.Field(i).Int(); n < 0 || n > maxStructure {
				t.Fatalf("%s: %d elements", name, n)
			}
		case name != "Size":
			if off := v.Field(i).Int(); off != NoOffset && (off < 0 || off > int64(got.Size)) {
				t.Fatalf("%s at %d of %d bytes", name, off, got.Size)
			}
		}
	}
	var states struct {
		Old int `c:"OLD"`
	}
	fillConstants(src, src.enumeration("states"), reflect.ValueOf(&states).Elem())
}
