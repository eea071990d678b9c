package linux

import (
	"bufio"
	"cmp"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/cilium/ebpf/btf"

	"github.com/xen-hvi/hvi/engine/x86"
)

const (
	// linkBase is where a kernel is linked to: __START_KERNEL with the default
	// CONFIG_PHYSICAL_START, which is where it runs without KASLR. Symbols are
	// given so.
	linkBase = imageLow + 0x100_0000
	// maxExport bounds a profile that is written: the guest decides how much its
	// type information says.
	maxExport = 1 << 30
	// maxTypeDepth bounds pointers to pointers, arrays of arrays and typedefs of
	// typedefs; what is beyond is void.
	maxTypeDepth = 24
)

// ExportISF writes a profile of the kernel in Volatility 3's intermediate symbol
// format, version 6.2: its structures and enumerations from BTF, its symbols from
// kallsyms, at the addresses they have without KASLR. Volatility finds it by
// linux_banner, which is in it.
//
// BTF has the types of few variables (those per CPU). Of those that Volatility's
// plugins read the types are known here; all others are void. It takes about a
// second and writes some 30 MB. Errors are those of [Kernel.BTF] and of w.
func ExportISF(w io.Writer, k *Kernel) error {
	spec, err := k.BTF()
	if err != nil {
		return err
	}
	e, err := newExporter(spec)
	if err != nil {
		return err
	}
	return e.write(w, k)
}

func (e *exporter) write(w io.Writer, k *Kernel) error {
	out := &exportWriter{w: bufio.NewWriterSize(w, 1<<16)}
	out.raw(`{"metadata":{"format":"6.2.0","producer":{"name":"hvi"},"linux":{"symbols":[{"kind":"symtab","name":"kallsyms"}],"types":[]}},`)
	out.raw(`"base_types":`)
	out.object(e.base)
	out.raw(`,"user_types":`)
	out.object(e.structs)
	out.raw(`,"enums":`)
	out.object(e.enums)
	out.raw(`,"symbols":`)
	out.object(e.symbols(k))
	out.raw("}\n")
	if out.err == nil {
		out.err = out.w.Flush()
	}
	return out.err
}

// exportWriter writes JSON piece by piece, and keeps its first error.
type exportWriter struct {
	w   *bufio.Writer
	n   int
	err error
}

func (o *exportWriter) raw(s string) {
	if o.n += len(s); o.n > maxExport && o.err == nil {
		o.err = &ReadError{What: "BTF", Got: fmt.Sprintf("more than %d MiB of types", maxExport>>20), Err: ErrImplausible}
	}
	if o.err == nil {
		_, o.err = o.w.WriteString(s)
	}
}

// object writes an object whose values are made one at a time, in the order of
// their names.
func (o *exportWriter) object(members map[string]func() any) {
	names := make([]string, 0, len(members))
	for name := range members {
		names = append(names, name)
	}
	slices.Sort(names)
	o.raw("{")
	for i, name := range names {
		if i > 0 {
			o.raw(",")
		}
		key, _ := json.Marshal(name) // strings always can
		value, err := json.Marshal(members[name]())
		if err != nil && o.err == nil {
			o.err = err
		}
		o.raw(string(key) + ":" + string(value))
	}
	o.raw("}")
}

// exporter turns types into Volatility's.
type exporter struct {
	base, structs, enums map[string]func() any

	// names are those of structures, unions and enumerations, each of its own.
	names map[btf.Type]string
	// variables are the types of those per CPU, by name.
	variables map[string]btf.Type
	pointers  map[string]btf.Type // structures by name, for the table below
}

// isfBase, isfStruct and so on are what is written, see schema-6.2.0.json.
type isfBase struct {
	Size   int    `json:"size"`
	Signed bool   `json:"signed"`
	Kind   string `json:"kind"`
	Endian string `json:"endian"`
}

type isfStruct struct {
	Size   int                 `json:"size"`
	Kind   string              `json:"kind"`
	Fields map[string]isfField `json:"fields"`
}

type isfField struct {
	Type      any  `json:"type"`
	Offset    int  `json:"offset"`
	Anonymous bool `json:"anonymous,omitempty"`
}

type isfEnum struct {
	Size      int              `json:"size"`
	Base      string           `json:"base"`
	Constants map[string]int64 `json:"constants"`
}

type isfSymbol struct {
	Address  uint64 `json:"address"`
	Type     any    `json:"type"`
	Constant string `json:"constant_data,omitempty"`
}

type isfNamed struct {
	Kind string `json:"kind"`
	Name string `json:"name"`
}

type isfPointer struct {
	Kind    string `json:"kind"`
	Subtype any    `json:"subtype"`
}

type isfArray struct {
	Kind    string `json:"kind"`
	Count   uint32 `json:"count"`
	Subtype any    `json:"subtype"`
}

type isfBitfield struct {
	Kind     string `json:"kind"`
	Position int    `json:"bit_position"`
	Length   int    `json:"bit_length"`
	Type     any    `json:"type"`
}

type isfFunction struct {
	Kind string `json:"kind"`
}

func newExporter(spec *btf.Spec) (e *exporter, err error) {
	defer func() { // see loadSpec
		if p := recover(); p != nil {
			e, err = nil, &ReadError{What: "BTF", Got: fmt.Sprint(p), Err: ErrImplausible}
		}
	}()
	e = &exporter{
		base: map[string]func() any{}, structs: map[string]func() any{}, enums: map[string]func() any{},
		names: map[btf.Type]string{}, variables: map[string]btf.Type{}, pointers: map[string]btf.Type{},
	}
	// What Volatility takes for granted.
	e.addBase("void", isfBase{Size: 0, Kind: "void"})
	e.addBase("pointer", isfBase{Size: 8, Kind: "int"})
	for t, err := range spec.All() {
		if err != nil {
			return nil, &ReadError{What: "BTF", Err: err}
		}
		switch t := t.(type) {
		case *btf.Int:
			e.addBase(intBase(t))
		case *btf.Float:
			e.addBase(t.Name, isfBase{Size: int(t.Size), Signed: true, Kind: "float"})
		case *btf.Struct:
			e.addStruct(t, t.Name, "struct", t.Size, t.Members)
		case *btf.Union:
			e.addStruct(t, t.Name, "union", t.Size, t.Members)
		case *btf.Enum:
			e.addEnum(t)
		case *btf.Var:
			if _, ok := e.variables[t.Name]; !ok {
				e.variables[t.Name] = t.Type
			}
		}
	}
	return e, nil
}

func (e *exporter) addBase(name string, b isfBase) {
	b.Endian = "little"
	if _, ok := e.base[name]; !ok && name != "" {
		e.base[name] = func() any { return b }
	}
}

func intBase(t *btf.Int) (string, isfBase) {
	b := isfBase{Size: int(t.Size), Signed: t.Encoding == btf.Signed, Kind: "int"}
	switch {
	case t.Encoding == btf.Bool || t.Name == "_Bool":
		b.Kind = "bool"
	case t.Size == 1 && strings.Contains(t.Name, "char"):
		b.Kind, b.Signed = "char", !strings.HasPrefix(t.Name, "unsigned")
	}
	return t.Name, b
}

// own gives a type a name that no other of its kind has.
func (e *exporter) own(t btf.Type, name string, taken map[string]func() any) string {
	if name == "" {
		name = fmt.Sprintf("unnamed_%d", len(e.names))
	}
	for taken[name] != nil { // two files of the kernel have each their own
		name = fmt.Sprintf("%s__%d", name, len(e.names))
	}
	e.names[t] = name
	return name
}

func (e *exporter) addStruct(t btf.Type, name, kind string, size uint32, members []btf.Member) {
	own := e.own(t, name, e.structs)
	if own == name {
		e.pointers[name] = t
	}
	e.structs[own] = func() any {
		s := isfStruct{Size: int(size), Kind: kind, Fields: make(map[string]isfField, len(members))}
		for i, m := range members {
			f := isfField{Type: e.descriptor(m.Type, 0), Offset: int(m.Offset / 8)}
			if m.BitfieldSize > 0 {
				f.Offset, f.Type = e.bitfield(m)
			}
			name := m.Name
			if name == "" {
				name, f.Anonymous = fmt.Sprintf("unnamed_field_%d", i), true
			}
			s.Fields[name] = f
		}
		return s
	}
}

// bitfield places a bit field in a word of its type, or, where it crosses the
// word's end (packed structures), in one that begins at its own first byte.
func (e *exporter) bitfield(m btf.Member) (offset int, typ any) {
	word, size := e.word(m.Type)
	at := int(m.Offset)
	offset = at / (8 * size) * size
	if at%(8*size)+int(m.BitfieldSize) > 8*size {
		offset = at / 8
	}
	return offset, isfBitfield{Kind: "bitfield", Position: at - 8*offset, Length: int(m.BitfieldSize), Type: word}
}

// word is the type of a bit field and its size.
func (e *exporter) word(t btf.Type) (any, int) {
	switch t := underlying(t).(type) {
	case *btf.Int:
		if t.Size > 0 && t.Name != "" {
			return isfNamed{"base", t.Name}, int(t.Size)
		}
	case *btf.Enum:
		if t.Size > 0 && e.names[t] != "" {
			return isfNamed{"enum", e.names[t]}, int(t.Size)
		}
	}
	return isfNamed{"base", "pointer"}, 8
}

func (e *exporter) addEnum(t *btf.Enum) {
	own := e.own(t, t.Name, e.enums)
	base := map[uint32]string{1: "char", 2: "short", 4: "int", 8: "long"}[t.Size]
	if base == "" {
		base, t = "int", &btf.Enum{Size: 4, Signed: true}
	}
	if !t.Signed {
		base = "unsigned " + base
	}
	b := isfBase{Size: int(t.Size), Signed: t.Signed, Kind: "int"}
	e.addBase(base, b)
	e.enums[own] = func() any {
		out := isfEnum{Size: int(t.Size), Base: base, Constants: make(map[string]int64, len(t.Values))}
		for _, v := range t.Values {
			n := int64(v.Value)
			if t.Signed && t.Size == 4 {
				n = int64(int32(v.Value))
			}
			out.Constants[v.Name] = n
		}
		return out
	}
}

// underlying looks through typedefs and qualifiers.
func underlying(t btf.Type) btf.Type {
	for range maxTypeDepth {
		switch u := t.(type) {
		case *btf.Typedef:
			t = u.Type
		case *btf.Const:
			t = u.Type
		case *btf.Volatile:
			t = u.Type
		case *btf.Restrict:
			t = u.Type
		case *btf.TypeTag:
			t = u.Type
		default:
			return t
		}
	}
	return nil
}

// descriptor is a type as members and symbols have it.
func (e *exporter) descriptor(t btf.Type, depth int) any {
	void := isfNamed{"base", "void"}
	if depth > maxTypeDepth {
		return void
	}
	switch t := underlying(t).(type) {
	case *btf.Int:
		if t.Name != "" {
			return isfNamed{"base", t.Name}
		}
	case *btf.Float:
		if t.Name != "" {
			return isfNamed{"base", t.Name}
		}
	case *btf.Pointer:
		return isfPointer{"pointer", e.descriptor(t.Target, depth+1)}
	case *btf.Array:
		return isfArray{"array", t.Nelems, e.descriptor(t.Type, depth+1)}
	case *btf.Struct:
		return isfNamed{"struct", e.names[t]}
	case *btf.Union:
		return isfNamed{"union", e.names[t]}
	case *btf.Fwd:
		if def := e.pointers[t.Name]; def != nil {
			return e.descriptor(def, depth+1)
		}
	case *btf.Enum:
		return isfNamed{"enum", e.names[t]}
	case *btf.FuncProto:
		return isfFunction{"function"}
	}
	return void
}

// globals are the types of variables that plugins of Volatility read, in C's
// words as far as they go: a structure's name or a base type's, * for a pointer
// to it, [n] for n of them.
var globals = map[string]string{
	"_etext":                   "char",
	"_text":                    "char",
	"cap_last_cap":             "int",
	"idt_table":                "[256]gate_struct",
	"init_cred":                "cred",
	"init_files":               "files_struct",
	"init_fs":                  "fs_struct",
	"init_mm":                  "mm_struct",
	"init_nsproxy":             "nsproxy",
	"init_pid_ns":              "pid_namespace",
	"init_task":                "task_struct",
	"init_user_ns":             "user_namespace",
	"init_uts_ns":              "uts_namespace",
	"iomem_resource":           "resource",
	"jiffies":                  "long unsigned int",
	"jiffies_64":               "long long unsigned int",
	"keyboard_notifier_list":   "atomic_notifier_head",
	"log_buf":                  "*char",
	"log_buf_len":              "unsigned int",
	"mem_section":              "*mem_section",
	"module_kset":              "*kset",
	"modules":                  "list_head",
	"net_namespace_list":       "list_head",
	"page_offset_base":         "long unsigned int",
	"prb":                      "*printk_ringbuffer",
	"prog_idr":                 "idr",
	"map_idr":                  "idr",
	"link_idr":                 "idr",
	"root_task_group":          "task_group",
	"sockfs_dentry_operations": "dentry_operations",
	"socket_file_ops":          "file_operations",
	"super_blocks":             "list_head",
	"tty_drivers":              "list_head",
	"vmalloc_base":             "long unsigned int",
	"vmemmap_base":             "long unsigned int",
}

// global is the descriptor of a known variable, or nil.
func (e *exporter) global(name string) any {
	c, ok := globals[name]
	if !ok {
		return nil
	}
	wrap := func(t any) any { return t }
	if rest, ok := strings.CutPrefix(c, "*"); ok {
		c, wrap = rest, func(t any) any { return isfPointer{"pointer", t} }
	} else if rest, ok := strings.CutPrefix(c, "[256]"); ok {
		c, wrap = rest, func(t any) any { return isfArray{"array", 256, t} }
	}
	switch {
	case e.pointers[c] != nil:
		return wrap(e.descriptor(e.pointers[c], 0))
	case e.base[c] != nil:
		return wrap(isfNamed{"base", c})
	}
	return nil
}

// symbols are all of the kernel's, the first of each name.
func (e *exporter) symbols(k *Kernel) map[string]func() any {
	void := isfNamed{"base", "void"}
	out := make(map[string]func() any, k.Symbols.Len())
	for s := range k.Symbols.All() {
		if _, ok := out[s.Name]; ok || s.Name == "" {
			continue
		}
		out[s.Name] = func() any {
			o := isfSymbol{Address: uint64(unslid(s, k.Base))}
			if s.Name == "linux_banner" {
				b := k.Banner + "\n\x00"
				o.Constant = base64.StdEncoding.EncodeToString([]byte(b))
				o.Type = isfArray{"array", uint32(len(b)), cmp.Or(e.global("_text"), any(void))}
				return o
			}
			if o.Type = e.global(s.Name); o.Type == nil {
				o.Type = any(void)
				if t := e.variables[s.Name]; t != nil {
					o.Type = e.descriptor(t, 0)
				}
			}
			return o
		}
	}
	return out
}

// unslid is a symbol's address without KASLR. Per-CPU variables have none.
func unslid(s Symbol, base x86.VirtAddr) x86.VirtAddr {
	if s.Absolute {
		return s.Addr
	}
	return s.Addr - base + linkBase
}
