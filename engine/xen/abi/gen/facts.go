package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"slices"
	"sort"
	"strconv"
	"strings"
)

// facts is the measured input. A list of releases names whole series ("4.17")
// or single tags ("4.17.2").
type facts struct {
	Note      string                        `json:"_note"`
	Releases  map[string]map[string]int64   `json:"releases"`
	Layouts   map[string][]variant          `json:"layouts"`
	Constants map[string]constant           `json:"constants"`
	Varying   map[string][]constantOfSeries `json:"constants_varying"`
}

type variant struct {
	Releases []string           `json:"releases"`
	Size     int                `json:"size"`
	Fields   map[string]extents `json:"fields"`
}

type extents struct {
	Off  int `json:"off"`
	Size int `json:"size"`
}

type constantOfSeries struct {
	Value    int64    `json:"value"`
	Releases []string `json:"releases"`
}

// constant is a plain number, or {value, only_in} where some releases lack it.
type constant struct {
	Value  int64
	OnlyIn []string
}

func (c *constant) UnmarshalJSON(b []byte) error {
	if len(b) > 0 && b[0] == '{' {
		var o struct {
			Value  int64    `json:"value"`
			OnlyIn []string `json:"only_in"`
		}
		if err := json.Unmarshal(b, &o); err != nil {
			return err
		}
		c.Value, c.OnlyIn = o.Value, o.OnlyIn
		return nil
	}
	return json.Unmarshal(b, &c.Value)
}

func (c constant) MarshalJSON() ([]byte, error) {
	if c.OnlyIn == nil {
		return json.Marshal(c.Value)
	}
	return json.Marshal(struct {
		Value  int64    `json:"value"`
		OnlyIn []string `json:"only_in"`
	}{c.Value, c.OnlyIn})
}

func readFacts(file string) (*facts, error) {
	b, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	var f facts
	if err := json.Unmarshal(b, &f); err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	return &f, nil
}

// series is one line of stable releases, which share one layout.
type series struct {
	major, minor int
	tags         []string
}

func (s series) String() string { return fmt.Sprintf("%d.%d", s.major, s.minor) }

// series returns the release series measured, oldest first. What is not
// numbered (a development branch) is left out: its layout can still change.
func (f *facts) series() ([]series, error) {
	by := map[string]*series{}
	for tag := range f.Releases {
		part := strings.Split(tag, ".")
		if len(part) != 3 {
			continue
		}
		major, err1 := strconv.Atoi(part[0])
		minor, err2 := strconv.Atoi(part[1])
		if err1 != nil || err2 != nil {
			return nil, fmt.Errorf("release %q is not of the form major.minor.point", tag)
		}
		key := part[0] + "." + part[1]
		if by[key] == nil {
			by[key] = &series{major: major, minor: minor}
		}
		by[key].tags = append(by[key].tags, tag)
	}
	var out []series
	for _, s := range by {
		sort.Strings(s.tags)
		out = append(out, *s)
	}
	sort.Slice(out, func(i, j int) bool {
		a, b := out[i], out[j]
		return a.major < b.major || a.major == b.major && a.minor < b.minor
	})
	for i := 1; i < len(out); i++ {
		if out[i].major == out[i-1].major && out[i].minor != out[i-1].minor+1 {
			return nil, fmt.Errorf("series between %v and %v are missing", out[i-1], out[i])
		}
	}
	return out, nil
}

func covers(list []string, tag string) bool {
	return slices.Contains(list, tag) || slices.Contains(list, tag[:strings.LastIndexByte(tag, '.')])
}

// variant returns the structure as the tag has it, or nil.
func (f *facts) variant(xen, tag string) *variant {
	for i := range f.Layouts[xen] {
		if covers(f.Layouts[xen][i].Releases, tag) {
			return &f.Layouts[xen][i]
		}
	}
	return nil
}

// value returns a constant as the tag has it.
func (f *facts) value(xen, tag string) (int64, bool) {
	for _, v := range f.Varying[xen] {
		if covers(v.Releases, tag) {
			return v.Value, true
		}
	}
	c, ok := f.Constants[xen]
	if !ok || c.OnlyIn != nil && !covers(c.OnlyIn, tag) {
		return 0, false
	}
	return c.Value, true
}

// reduce keeps of the facts what the specification names.
func (f *facts) reduce() *facts {
	out := &facts{
		Note:      f.Note,
		Releases:  map[string]map[string]int64{},
		Layouts:   map[string][]variant{},
		Constants: map[string]constant{},
		Varying:   map[string][]constantOfSeries{},
	}
	for tag, v := range f.Releases {
		if len(strings.Split(tag, ".")) == 3 {
			out.Releases[tag] = v
		}
	}
	for _, s := range structs {
		keep := map[string]bool{}
		eachField(s, func(fs fieldSpec) {
			for _, p := range strings.Split(fs.path, "|") {
				keep[p] = true
			}
		})
		for _, v := range f.Layouts[s.xen] {
			n := variant{Releases: numbered(v.Releases), Size: v.Size, Fields: map[string]extents{}}
			for k, e := range v.Fields {
				if keep[k] {
					n.Fields[k] = e
				}
			}
			if len(n.Releases) > 0 {
				out.Layouts[s.xen] = append(out.Layouts[s.xen], n)
			}
		}
	}
	keepConst := func(name string) {
		if c, ok := f.Constants[name]; ok {
			if c.OnlyIn != nil {
				c.OnlyIn = numbered(c.OnlyIn)
			}
			out.Constants[name] = c
		}
		for _, v := range f.Varying[name] {
			v.Releases = numbered(v.Releases)
			out.Varying[name] = append(out.Varying[name], v)
		}
	}
	for _, g := range constants {
		for _, c := range g.consts {
			keepConst(c.xen)
		}
	}
	for _, c := range features {
		keepConst(c.xen)
	}
	for _, v := range allValues() {
		keepConst(v.xen)
	}
	return out
}

func numbered(list []string) []string {
	return slices.DeleteFunc(slices.Clone(list), func(s string) bool { return !strings.Contains(s, ".") })
}

// encode writes the facts one structure variant or constant a line, so that a
// new release shows as a readable change.
func (f *facts) encode() ([]byte, error) {
	var b bytes.Buffer
	line := func(v any) string {
		s, err := json.Marshal(v)
		if err != nil {
			panic(err) // maps of numbers and strings always marshal
		}
		return string(s)
	}
	fmt.Fprintf(&b, "{\n \"_note\": %s,\n \"releases\": {", line(f.Note))
	sep := "\n"
	for _, k := range sortedKeys(f.Releases) {
		fmt.Fprintf(&b, "%s  %q: %s", sep, k, line(f.Releases[k]))
		sep = ",\n"
	}
	b.WriteString("\n },\n \"layouts\": {")
	sep = "\n"
	for _, k := range sortedKeys(f.Layouts) {
		fmt.Fprintf(&b, "%s  %q: [", sep, k)
		for i, v := range f.Layouts[k] {
			if i > 0 {
				b.WriteByte(',')
			}
			fmt.Fprintf(&b, "\n   {\"releases\": %s, \"size\": %d, \"fields\": {", line(v.Releases), v.Size)
			for j, name := range sortedKeys(v.Fields) {
				if j > 0 {
					b.WriteByte(',')
				}
				fmt.Fprintf(&b, "\n    %q: %s", name, line(v.Fields[name]))
			}
			b.WriteString("}}")
		}
		b.WriteString("]")
		sep = ",\n"
	}
	b.WriteString("\n },\n \"constants\": {")
	sep = "\n"
	for _, k := range sortedKeys(f.Constants) {
		fmt.Fprintf(&b, "%s  %q: %s", sep, k, line(f.Constants[k]))
		sep = ",\n"
	}
	b.WriteString("\n },\n \"constants_varying\": {")
	sep = "\n"
	for _, k := range sortedKeys(f.Varying) {
		fmt.Fprintf(&b, "%s  %q: %s", sep, k, line(f.Varying[k]))
		sep = ",\n"
	}
	b.WriteString("\n }\n}\n")
	if !json.Valid(b.Bytes()) {
		return nil, fmt.Errorf("reduced facts are not valid JSON")
	}
	return b.Bytes(), nil
}

func sortedKeys[V any](m map[string]V) []string {
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	sort.Strings(keys)
	return keys
}

func eachField(s structSpec, do func(fieldSpec)) {
	for _, f := range s.fields {
		do(f)
	}
	for _, g := range s.groups {
		eachField(g, do)
	}
}

func allValues() []valueSpec {
	out := slices.Clone(values)
	for _, s := range structs {
		out = append(out, s.values...)
	}
	return out
}
