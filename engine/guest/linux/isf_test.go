package linux

import (
	"bytes"
	"compress/gzip"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/cilium/ebpf/btf"

	"github.com/xen-hvi/hvi/engine/guest/linux/linuxtest"
	"github.com/xen-hvi/hvi/engine/guest/report"
	"github.com/xen-hvi/hvi/engine/x86"
)

// exported is the profile of a built guest.
func exported(tb testing.TB, l linuxtest.Layout) (*linuxtest.Guest, *Kernel, []byte) {
	tb.Helper()
	g, k := identified(tb, linuxtest.Config{Layout: l, Base: 0xffff_ffff_9a20_0000})
	var b bytes.Buffer
	if err := ExportISF(&b, k); err != nil {
		tb.Fatal(err)
	}
	return g, k, b.Bytes()
}

// What is written and read again is what BTF has said.
func TestISFRoundTrip(t *testing.T) {
	for l := range linuxtest.NumLayouts {
		_, k, b := exported(t, l)
		for name, file := range map[string][]byte{"plain": b, "gzip": zipped(b)} {
			isf, err := ReadISF("test.json", bytes.NewReader(file))
			if err != nil {
				t.Errorf("%v, %s: %v", l, name, err)
				continue
			}
			if isf.Banner != k.Banner || isf.offsets != k.Offsets {
				t.Errorf("%v, %s: %q, %+v, want %+v", l, name, isf.Banner, isf.offsets, k.Offsets)
			}
		}
		checkISF(t, b)
	}
}

func zipped(b []byte) []byte {
	var z bytes.Buffer
	w := gzip.NewWriter(&z)
	_, _ = w.Write(b)
	_ = w.Close()
	return z.Bytes()
}

// isfFile is the format as Volatility's schema 6.2.0 describes it: what is not
// in it is refused.
type isfTestFile struct {
	Metadata struct {
		Format   string `json:"format"`
		Producer struct {
			Name string `json:"name"`
		} `json:"producer"`
		Linux struct {
			Symbols []struct {
				Kind string `json:"kind"`
				Name string `json:"name"`
			} `json:"symbols"`
			Types []any `json:"types"`
		} `json:"linux"`
	} `json:"metadata"`
	Base map[string]struct {
		Size   *int   `json:"size"`
		Signed *bool  `json:"signed"`
		Kind   string `json:"kind"`
		Endian string `json:"endian"`
	} `json:"base_types"`
	User map[string]struct {
		Size   *int   `json:"size"`
		Kind   string `json:"kind"`
		Fields map[string]struct {
			Type      json.RawMessage `json:"type"`
			Offset    *int            `json:"offset"`
			Anonymous bool            `json:"anonymous"`
		} `json:"fields"`
	} `json:"user_types"`
	Enums map[string]struct {
		Size      *int             `json:"size"`
		Base      string           `json:"base"`
		Constants map[string]int64 `json:"constants"`
	} `json:"enums"`
	Symbols map[string]struct {
		Address *uint64         `json:"address"`
		Type    json.RawMessage `json:"type"`
		Data    []byte          `json:"constant_data"`
	} `json:"symbols"`
}

// checkISF validates a profile: each name that is referred to is there, each
// member lies in its structure, each descriptor has what its kind needs and
// nothing else.
func checkISF(t *testing.T, b []byte) (f isfTestFile) {
	t.Helper()
	dec := json.NewDecoder(bytes.NewReader(b))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&f); err != nil {
		t.Fatal(err)
	}
	if f.Metadata.Format != "6.2.0" || f.Metadata.Linux.Symbols == nil || f.Metadata.Linux.Types == nil {
		t.Errorf("metadata %+v", f.Metadata)
	}
	bad := 0
	complain := func(format string, args ...any) {
		if bad++; bad < 10 {
			t.Errorf(format, args...)
		}
	}
	for name, s := range f.Base {
		if s.Size == nil || s.Signed == nil || s.Endian != "little" || !strings.Contains(" void int float char bool ", " "+s.Kind+" ") {
			complain("base type %q: %+v", name, s)
		}
	}
	for _, name := range []string{"void", "pointer"} {
		if _, ok := f.Base[name]; !ok {
			complain("no base type %s", name)
		}
	}
	var descriptor func(raw json.RawMessage, depth int) error
	descriptor = func(raw json.RawMessage, depth int) error {
		var d map[string]json.RawMessage
		if err := json.Unmarshal(raw, &d); err != nil {
			return err
		}
		var kind, name string
		_ = json.Unmarshal(d["kind"], &kind)
		_ = json.Unmarshal(d["name"], &name)
		keys := map[string]int{"base": 2, "struct": 2, "union": 2, "enum": 2, "pointer": 2, "array": 3, "bitfield": 4, "function": 1}[kind]
		if keys == 0 || len(d) != keys || depth > 3*maxTypeDepth {
			return fmt.Errorf("%s", raw)
		}
		known := true
		switch kind {
		case "base":
			_, known = f.Base[name]
		case "struct", "union":
			known = f.User[name].Kind == kind
		case "enum":
			_, known = f.Enums[name]
		case "pointer", "array":
			return descriptor(d["subtype"], depth+1)
		case "bitfield":
			return descriptor(d["type"], depth+1)
		}
		if !known {
			return fmt.Errorf("no %s %q", kind, name)
		}
		return nil
	}
	for name, s := range f.User {
		if s.Size == nil || s.Fields == nil || s.Kind != "struct" && s.Kind != "union" {
			complain("%q: %+v", name, s)
			continue
		}
		for member, m := range s.Fields {
			if m.Offset == nil || *m.Offset < 0 || *m.Offset > *s.Size {
				complain("%s.%s: %+v", name, member, m)
				continue
			}
			if err := descriptor(m.Type, 0); err != nil {
				complain("%s.%s: %v", name, member, err)
			}
		}
	}
	for name, e := range f.Enums {
		if base, ok := f.Base[e.Base]; e.Size == nil || !ok || *base.Size != *e.Size || e.Constants == nil {
			complain("enum %q: %+v", name, e)
		}
	}
	for name, s := range f.Symbols {
		if s.Address == nil {
			complain("symbol %q has no address", name)
		} else if err := descriptor(s.Type, 0); err != nil {
			complain("symbol %q: %v", name, err)
		}
	}
	return f
}

// Symbols are where they would be without KASLR, with the types that
// Volatility needs.
func TestExportSymbols(t *testing.T) {
	for _, l := range []linuxtest.Layout{linuxtest.Addresses, linuxtest.Relative61, linuxtest.Place72} {
		g, k, b := exported(t, l)
		f := checkISF(t, b)
		for _, s := range g.Syms {
			got := f.Symbols[s.Name]
			want := uint64(s.Addr - g.Base + 0xffff_ffff_8100_0000)
			if s.Absolute {
				want = uint64(s.Addr)
			}
			if first := g.Addr(s.Name); first != s.Addr {
				continue // another of that name
			}
			if got.Address == nil || *got.Address != want {
				t.Fatalf("%v: %s at %+v, want %#x", l, s.Name, got, want)
			}
		}
		if got := f.Symbols["linux_banner"]; string(got.Data) != k.Banner+"\n\x00" {
			t.Errorf("%v: linux_banner %q", l, got.Data)
		}
		if got := string(f.Symbols["modules"].Type); got != `{"kind":"struct","name":"list_head"}` {
			t.Errorf("%v: modules is %s", l, got)
		}
		if got := string(f.Symbols["func_9_init"].Type); got != `{"kind":"base","name":"void"}` {
			t.Errorf("%v: a function is %s", l, got)
		}
	}
}

// Every kind of type, and how it is written.
func TestExportTypes(t *testing.T) {
	inner := &btf.Struct{Name: "same", Size: 4, Members: []btf.Member{{Name: "a", Type: tInt}}}
	other := &btf.Struct{Name: "same", Size: 8, Members: []btf.Member{{Name: "b", Type: tLong}}}
	fwd := &btf.Fwd{Name: "sample", Kind: btf.FwdStruct}
	opaque := &btf.Fwd{Name: "nowhere", Kind: btf.FwdStruct}
	enum := &btf.Enum{Name: "colour", Size: 4, Signed: true, Values: []btf.EnumValue{{Name: "RED", Value: ^uint64(0)}, {Name: "BLUE", Value: 1}}}
	wide := &btf.Enum{Name: "wide", Size: 8, Values: []btf.EnumValue{{Name: "BIG", Value: 1 << 40}}}
	boolean := &btf.Int{Name: "_Bool", Size: 1, Encoding: btf.Bool}
	uchar := &btf.Int{Name: "unsigned char", Size: 1}
	double := &btf.Float{Name: "double", Size: 8}
	s := &btf.Struct{Name: "all", Size: 128}
	s.Members = []btf.Member{
		{Name: "i", Type: &btf.Typedef{Name: "pid_t", Type: &btf.Const{Type: tInt}}},
		{Name: "c", Type: uchar, Offset: at(4)},
		{Name: "t", Type: boolean, Offset: at(5)},
		{Name: "p", Type: &btf.Pointer{Target: &btf.Pointer{Target: &btf.Void{}}}, Offset: at(8)},
		{Name: "f", Type: &btf.Pointer{Target: &btf.FuncProto{Return: tInt}}, Offset: at(16)},
		{Name: "fwd", Type: &btf.Pointer{Target: fwd}, Offset: at(24)},
		{Name: "opaque", Type: &btf.Pointer{Target: opaque}, Offset: at(32)},
		{Name: "one", Type: inner, Offset: at(40)},
		{Name: "two", Type: other, Offset: at(48)},
		{Name: "e", Type: enum, Offset: at(56)},
		{Name: "d", Type: double, Offset: at(64)},
		{Name: "a", Type: array(array(tChar, 4), 2), Offset: at(72)},
		{Name: "bits", Type: tInt, BitfieldSize: 3, Offset: at(84) + 30 - 1},
		{Name: "crossing", Type: tInt, BitfieldSize: 7, Offset: at(88) + 30},
		{Name: "state", Type: enum, BitfieldSize: 2, Offset: at(96) + 2},
		{Type: &btf.Union{Size: 8, Members: []btf.Member{{Name: "u", Type: tLong}}}, Offset: at(104)},
		{Name: "w", Type: wide, Offset: at(112)},
	}
	fields := map[string]string{
		"i":                `{"type":{"kind":"base","name":"int"},"offset":0}`,
		"c":                `{"type":{"kind":"base","name":"unsigned char"},"offset":4}`,
		"t":                `{"type":{"kind":"base","name":"_Bool"},"offset":5}`,
		"p":                `{"type":{"kind":"pointer","subtype":{"kind":"pointer","subtype":{"kind":"base","name":"void"}}},"offset":8}`,
		"f":                `{"type":{"kind":"pointer","subtype":{"kind":"function"}},"offset":16}`,
		"fwd":              `{"type":{"kind":"pointer","subtype":{"kind":"struct","name":"sample"}},"offset":24}`,
		"opaque":           `{"type":{"kind":"pointer","subtype":{"kind":"base","name":"void"}},"offset":32}`,
		"e":                `{"type":{"kind":"enum","name":"colour"},"offset":56}`,
		"d":                `{"type":{"kind":"base","name":"double"},"offset":64}`,
		"a":                `{"type":{"kind":"array","count":2,"subtype":{"kind":"array","count":4,"subtype":{"kind":"base","name":"char"}}},"offset":72}`,
		"bits":             `{"type":{"kind":"bitfield","bit_position":29,"bit_length":3,"type":{"kind":"base","name":"int"}},"offset":84}`,
		"crossing":         `{"type":{"kind":"bitfield","bit_position":6,"bit_length":7,"type":{"kind":"base","name":"int"}},"offset":91}`,
		"state":            `{"type":{"kind":"bitfield","bit_position":2,"bit_length":2,"type":{"kind":"enum","name":"colour"}},"offset":96}`,
		"unnamed_field_15": "",
		"w":                `{"type":{"kind":"enum","name":"wide"},"offset":112}`,
		"one":              "", "two": "",
	}
	g, k := identified(t, linuxtest.Config{Layout: linuxtest.Relative61})
	b, err := btf.NewBuilder([]btf.Type{s, sample()}, nil)
	if err != nil {
		t.Fatal(err)
	}
	blob, err := b.Marshal(nil, &btf.MarshalOptions{Order: binary.LittleEndian})
	if err != nil {
		t.Fatal(err)
	}
	g.Write(g.BTFStart, blob)
	k.btfEnd, k.btfSum = k.btfStart+x86.VirtAddr(len(blob)), k.key.sumBTF(blob)
	var out bytes.Buffer
	if err := ExportISF(&out, k); err != nil {
		t.Fatal(err)
	}
	f := checkISF(t, out.Bytes())
	var raw struct {
		Types map[string]struct {
			Fields map[string]json.RawMessage `json:"fields"`
		} `json:"user_types"`
		Enums map[string]json.RawMessage `json:"enums"`
		Base  map[string]json.RawMessage `json:"base_types"`
	}
	if err := json.Unmarshal(out.Bytes(), &raw); err != nil {
		t.Fatal(err)
	}
	got := raw.Types["all"].Fields
	if len(got) != len(fields) {
		t.Errorf("%d fields, want %d", len(got), len(fields))
	}
	for name, want := range fields {
		if g := string(got[name]); g != want && want != "" || g == "" {
			t.Errorf("%s: %s, want %s", name, g, want)
		}
	}
	if !f.User["all"].Fields["unnamed_field_15"].Anonymous {
		t.Error("the anonymous union is not said to be one")
	}
	// Two structures of one name have both their members.
	one, two := string(got["one"]), string(got["two"])
	if one == two || !strings.Contains(one+two, `"name":"same"}`) || !strings.Contains(one+two, `"name":"same__`) {
		t.Errorf("two structures of one name: %s, %s", one, two)
	}
	for name, want := range map[string]string{
		"colour": `{"size":4,"base":"int","constants":{"BLUE":1,"RED":-1}}`,
		"wide":   `{"size":8,"base":"unsigned long","constants":{"BIG":1099511627776}}`,
	} {
		if g := string(raw.Enums[name]); g != want {
			t.Errorf("enum %s: %s, want %s", name, g, want)
		}
	}
	for name, want := range map[string]string{
		"char":          `{"size":1,"signed":true,"kind":"char","endian":"little"}`,
		"unsigned char": `{"size":1,"signed":false,"kind":"char","endian":"little"}`,
		"_Bool":         `{"size":1,"signed":false,"kind":"bool","endian":"little"}`,
		"double":        `{"size":8,"signed":true,"kind":"float","endian":"little"}`,
		"int":           `{"size":4,"signed":true,"kind":"int","endian":"little"}`,
		"pointer":       `{"size":8,"signed":false,"kind":"int","endian":"little"}`,
	} {
		if g := string(raw.Base[name]); g != want {
			t.Errorf("base type %s: %s, want %s", name, g, want)
		}
	}
}

// A kernel without types has none to write.
func TestExportWithoutTypes(t *testing.T) {
	_, k := identified(t, linuxtest.Config{NoBTF: true})
	var b bytes.Buffer
	if err := ExportISF(&b, k); !errors.Is(err, k.BTFError) || b.Len() != 0 {
		t.Errorf("%v and %d bytes", err, b.Len())
	}
}

// small is a profile made by hand, as dwarf2json writes them, of which a test
// can spoil a piece.
func small(spoil func(m map[string]any)) []byte {
	field := func(off int, typ map[string]any) map[string]any { return map[string]any{"offset": off, "type": typ} }
	base := func(name string) map[string]any { return map[string]any{"kind": "base", "name": name} }
	anonymous := field(16, map[string]any{"kind": "union", "name": "unnamed_1"})
	anonymous["anonymous"] = true
	m := map[string]any{
		"metadata":   map[string]any{"format": "6.2.0", "producer": map[string]any{"name": "dwarf2json", "version": "0.9.0"}},
		"base_types": map[string]any{},
		"user_types": map[string]any{
			"task_struct": map[string]any{"kind": "struct", "size": 512, "fields": map[string]any{
				"pid": field(100, base("int")), "tgid": field(104, base("int")), "mm": field(8, map[string]any{"kind": "pointer", "subtype": base("void")}),
				"comm":          field(200, map[string]any{"kind": "array", "count": 16, "subtype": base("char")}),
				"unnamed_field": anonymous,
			}},
			"unnamed_1": map[string]any{"kind": "union", "size": 16, "fields": map[string]any{"state": field(4, base("int"))}},
			"mm_struct": map[string]any{"kind": "struct", "size": 64, "fields": map[string]any{"pgd": field(24, base("pointer"))}},
		},
		"enums": map[string]any{"system_states": map[string]any{"size": 4, "base": "int", "constants": map[string]any{"SYSTEM_RUNNING": 3, "BIG": uint64(1) << 63}}},
		"symbols": map[string]any{
			"linux_banner": map[string]any{"address": 0, "constant_data": base64.StdEncoding.EncodeToString([]byte(linuxtest.Banner + "\n\x00"))},
			"x":            map[string]any{"address": 1},
		},
	}
	if spoil != nil {
		spoil(m)
	}
	b, err := json.Marshal(m)
	if err != nil {
		panic(err)
	}
	return b
}

func child(m map[string]any, path ...string) map[string]any {
	for _, p := range path {
		m = m[p].(map[string]any)
	}
	return m
}

func TestReadISF(t *testing.T) {
	isf, err := ReadISF("small.json", bytes.NewReader(small(nil)))
	if err != nil {
		t.Fatal(err)
	}
	want := noOffsets()
	want.Task.Size, want.Task.PID, want.Task.TGID, want.Task.MM, want.Task.Comm, want.Task.State = 512, 100, 104, 8, 200, 20
	want.MM.Size, want.MM.PGD, want.SystemStates.Running = 64, 24, 3
	if isf.Banner != linuxtest.Banner || isf.offsets != want {
		t.Errorf("%+v, want %+v", isf, want)
	}
}

func TestReadISFErrors(t *testing.T) {
	for name, c := range map[string]struct {
		file []byte
		says string
	}{
		"empty":          {nil, "EOF"},
		"no JSON":        {[]byte("\x7fELF"), "invalid character"},
		"no object":      {[]byte("[]"), "no JSON object"},
		"cut off":        {small(nil)[:200], "EOF"},
		"two":            {append(small(nil), "{}"...), "something after its end"},
		"xz":             {[]byte("\xfd7zXZ\x00\x00\x04"), "unxz"},
		"broken gzip":    {zipped(small(nil))[:60], "EOF"},
		"nested deeply":  {[]byte(`{"symbols":{"x":` + strings.Repeat("[", 20000)), "exceeded max depth"},
		"another format": {small(func(m map[string]any) { child(m, "metadata")["format"] = "7.0.0" }), `format "7.0.0"`},
		"no metadata":    {small(func(m map[string]any) { delete(m, "metadata") }), "no metadata"},
		"no types":       {small(func(m map[string]any) { delete(m, "user_types") }), "user_types"},
		"types are text": {small(func(m map[string]any) { m["user_types"] = "x" }), "no JSON object"},
		"no banner":      {small(func(m map[string]any) { delete(child(m, "symbols"), "linux_banner") }), "linux_banner"},
		"a banner of something else": {small(func(m map[string]any) {
			child(m, "symbols", "linux_banner")["constant_data"] = base64.StdEncoding.EncodeToString([]byte("Darwin Kernel"))
		}), "Darwin"},
		"a banner that is no base64": {small(func(m map[string]any) { child(m, "symbols", "linux_banner")["constant_data"] = "!" }), "base64"},
		"no task_struct":             {small(func(m map[string]any) { delete(child(m, "user_types"), "task_struct") }), "task_struct"},
		"no pgd":                     {small(func(m map[string]any) { clear(child(m, "user_types", "mm_struct", "fields")) }), "pgd"},
		"a negative offset":          {small(func(m map[string]any) { child(m, "user_types", "task_struct", "fields", "pid")["offset"] = -8 }), `"pid" at -8`},
		"a huge offset":              {small(func(m map[string]any) { child(m, "user_types", "task_struct", "fields", "pid")["offset"] = 1 << 40 }), `"pid" at`},
		"a member behind the end":    {small(func(m map[string]any) { child(m, "user_types", "task_struct")["size"] = 100 }), "task_struct"},
		"a fraction":                 {small(func(m map[string]any) { child(m, "user_types", "task_struct")["size"] = 1.5 }), "task_struct"},
	} {
		isf, err := ReadISF("some.json", bytes.NewReader(c.file))
		var ie *ISFError
		if isf != nil || !errors.As(err, &ie) || ie.Name != "some.json" || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: %+v, %v, want %q", name, isf, err, c.says)
		}
	}
}

// A file that does not end, or that unpacks to more than any profile has, is
// read so far and no further.
func TestISFSize(t *testing.T) {
	b := append([]byte("{"), bytes.Repeat([]byte{' '}, 1<<20)...)
	for name, file := range map[string][]byte{"plain": b, "gzip": zipped(b)} {
		const most = 100_000
		r := bytes.NewReader(file)
		if _, _, err := parseISF(r, most); err == nil || !strings.Contains(err.Error(), "more than 100000 bytes") {
			t.Errorf("%s: %v", name, err)
		}
		if n := len(file) - r.Len(); n > most {
			t.Errorf("%s: %d bytes read", name, n)
		}
	}
}

// A kernel takes a profile of its own build only.
func TestIdentifyWithISF(t *testing.T) {
	isf, err := ReadISF("small.json", bytes.NewReader(small(nil)))
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]linuxtest.Config{
		"without BTF": {Layout: linuxtest.Relative61, NoBTF: true},
		"with BTF":    {Layout: linuxtest.Relative61}, // it was asked for
	} {
		g := linuxtest.New(c)
		k, err := IdentifyWith(g.Memory(), g.Regs[0], Options{ISF: isf})
		if err != nil || k.Types != report.TypesISF || k.Offsets != isf.offsets || k.TypesNote != "" {
			t.Errorf("%s: %+v, %v", name, k, err)
		}
		if running, err := k.Running(); err != nil || !running {
			t.Errorf("%s: running %v, %v", name, running, err)
		}
	}
	g := linuxtest.New(linuxtest.Config{NoBTF: true, Banner: "Linux version 6.1.0-98-test (x) #1"})
	k, err := IdentifyWith(g.Memory(), g.Regs[0], Options{ISF: isf})
	var ie *IdentifyError
	if k != nil || !errors.As(err, &ie) || ie.Stage != StageISF || !strings.Contains(err.Error(), "small.json") || !strings.Contains(err.Error(), "6.1.0-98-test") {
		t.Errorf("another kernel's profile: %+v, %v", k, err)
	}
}

func TestISFDir(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "profiles")
	d := NewISFDir(dir)
	if bad := d.Load(); bad != nil {
		t.Errorf("no directory: %v", bad)
	}
	guest := func() *Kernel {
		g := linuxtest.New(linuxtest.Config{Layout: linuxtest.Relative61, NoBTF: true})
		k, err := IdentifyWith(g.Memory(), g.Regs[0], Options{ISFs: d})
		if err != nil {
			t.Fatal(err)
		}
		return k
	}
	if k := guest(); k.Types == report.TypesISF || !strings.Contains(k.TypesNote, "none of 0 profiles in "+dir) {
		t.Errorf("types %v, %q", k.Types, k.TypesNote)
	}
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	write := func(name string, b []byte) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(dir, name), b, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	write("broken.json", []byte("{"))
	write("packed.json.xz", []byte("\xfd7zXZ\x00"))
	write("README", []byte("no profile"))
	write("other.json", small(func(m map[string]any) {
		child(m, "symbols", "linux_banner")["constant_data"] = base64.StdEncoding.EncodeToString([]byte("Linux version 4.9 (x) #1\n\x00"))
	}))
	if bad := d.Load(); len(bad) != 2 || !strings.Contains(bad[0].Error(), "broken.json") || !strings.Contains(bad[1].Error(), "packed.json.xz") {
		t.Errorf("wrong: %v", bad)
	}
	if k := guest(); k.Types == report.TypesISF || !strings.Contains(k.TypesNote, "none of 3 profiles") || !strings.Contains(k.TypesNote, "broken.json") {
		t.Errorf("types %v, %q", k.Types, k.TypesNote)
	}
	write("ours.json.gz", zipped(small(nil)))
	if k := guest(); k.Types != report.TypesISF || k.Offsets.Task.PID != 100 || k.TypesNote != "" {
		t.Errorf("types %v, %q", k.Types, k.TypesNote)
	}
	// One that others could write is refused.
	if err := os.Chmod(filepath.Join(dir, "ours.json.gz"), 0o646); err != nil {
		t.Fatal(err)
	}
	if k := guest(); k.Types == report.TypesISF || len(d.Load()) != 3 || !strings.Contains(d.Load()[1].Error(), "others may write it") {
		t.Errorf("types %v, %v", k.Types, d.Load())
	}
	if err := os.Chmod(filepath.Join(dir, "ours.json.gz"), 0o644); err != nil {
		t.Fatal(err)
	}
	// A file that has changed is read again, one that has gone is forgotten.
	path := filepath.Join(dir, "ours.json.gz")
	write("ours.json.gz", zipped(small(func(m map[string]any) { child(m, "user_types", "task_struct", "fields", "pid")["offset"] = 108 })))
	if err := os.Chtimes(path, time.Now(), time.Now().Add(time.Hour)); err != nil {
		t.Fatal(err)
	}
	if k := guest(); k.Offsets.Task.PID != 108 {
		t.Errorf("pid at %d", k.Offsets.Task.PID)
	}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	if k := guest(); k.Types == report.TypesISF {
		t.Error("a profile that has gone is used")
	}
	// A kernel with types of its own is not looked up.
	g := linuxtest.New(linuxtest.Config{Layout: linuxtest.Relative61})
	if k, err := IdentifyWith(g.Memory(), g.Regs[0], Options{ISFs: d}); err != nil || k.Types != report.TypesBTF {
		t.Errorf("%v, %v", k.Types, err)
	}
}

// FuzzISF lets the fuzzer write a profile. What is accepted has offsets that lie
// in their structures, whatever layout they are for.
func FuzzISF(f *testing.F) {
	f.Add(small(nil))
	f.Add(zipped(small(nil)))
	f.Add([]byte(`{"metadata":{"format":"6.2.0"},"user_types":{"sample":{"size":64,"fields":{"held":{"offset":8,"type":{"kind":"struct","name":"sample"}},` +
		`"many":{"offset":16,"type":{"kind":"array","count":3,"subtype":{"kind":"struct","name":"inner"}}},"flags":{"offset":4,"type":{"kind":"bitfield","bit_position":3,"bit_length":2,"type":{"kind":"base","name":"int"}}},` +
		`"u":{"offset":0,"anonymous":true,"type":{"kind":"union","name":"sample"}}}},"inner":{"size":8,"fields":{"y":{"offset":4,"type":{"kind":"base","name":"int"}}}}},` +
		`"enums":{"states":{"constants":{"OLD":-1}}},"symbols":{"linux_banner":{"constant_data":"TGludXggdmVyc2lvbiA0LjkgKHgpICMxCgA="}}}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		src, banner, err := parseISF(bytes.NewReader(b), 1<<20)
		if err != nil {
			return
		}
		if !strings.HasPrefix(banner, bannerStart) {
			t.Fatalf("banner %q", banner)
		}
		checkLayout(t, src)
		isf, err := ReadISF("fuzz", bytes.NewReader(b))
		if err != nil {
			var ie *ISFError
			if !errors.As(err, &ie) {
				t.Fatal(err)
			}
			return
		}
		if o := isf.offsets; o.Task.PID < 0 || o.Task.PID >= o.Task.Size || o.Task.Comm+16 > o.Task.Size || o.MM.PGD < 0 || o.MM.PGD >= o.MM.Size {
			t.Fatalf("%+v", o)
		}
	})
}

// FuzzExport lets the fuzzer write the types that a profile is made of.
func FuzzExport(f *testing.F) {
	for l := range linuxtest.NumLayouts {
		f.Add(linuxtest.Types(l))
	}
	_, k := identified(f, linuxtest.Config{Layout: linuxtest.Relative61, Symbols: 300})
	f.Fuzz(func(t *testing.T, b []byte) {
		if _, err := parseBTF(b, wanted()); err != nil {
			return
		}
		spec, err := loadSpec(b)
		if err != nil {
			return
		}
		e, err := newExporter(spec)
		if err != nil {
			return
		}
		var out bytes.Buffer
		if err := e.write(&out, k); err != nil {
			t.Fatal(err)
		}
		var all map[string]map[string]any
		if err := json.Unmarshal(out.Bytes(), &all); err != nil || reflect.ValueOf(all["symbols"]).Len() == 0 {
			t.Fatal(err)
		}
	})
}
