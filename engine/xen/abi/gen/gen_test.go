package main

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestReproduces proves that the checked-in files are what the generator
// makes of the checked-in facts, byte for byte.
func TestReproduces(t *testing.T) {
	f, err := readFacts("xen-abi.json")
	if err != nil {
		t.Fatal(err)
	}
	files, err := generate(f)
	if err != nil {
		t.Fatal(err)
	}
	have, err := filepath.Glob("../zz_generated_*")
	if err != nil {
		t.Fatal(err)
	}
	if len(have) != len(files) {
		t.Errorf("%d generated files are checked in, the generator makes %d", len(have), len(files))
	}
	for name, want := range files {
		got, err := os.ReadFile(filepath.Join("..", name))
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(got, want) {
			t.Errorf("%s differs from what the generator makes: run go generate ./engine/xen/abi", name)
		}
	}
}

// TestReduceIsStable proves that the checked-in facts hold exactly what the
// specification names, in the form that reduce writes.
func TestReduceIsStable(t *testing.T) {
	f, err := readFacts("xen-abi.json")
	if err != nil {
		t.Fatal(err)
	}
	got, err := f.reduce().encode()
	if err != nil {
		t.Fatal(err)
	}
	want, err := os.ReadFile("xen-abi.json")
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Error("xen-abi.json is not in reduced form")
	}
}

// TestRefuses changes the facts in ways that a new release could and expects
// the generator to say so instead of emitting a wrong layout.
func TestRefuses(t *testing.T) {
	for _, tc := range []struct {
		name   string
		change func(*facts)
		want   string
	}{
		{"a field moves within a series", func(f *facts) {
			l := f.Layouts["struct vm_event_st"]
			last := l[len(l)-1]
			moved := variant{Releases: []string{"4.17.3"}, Size: last.Size, Fields: map[string]extents{}}
			for k, v := range last.Fields {
				moved.Fields[k] = v
			}
			moved.Fields["u.mem_access.gla"] = extents{Off: 48, Size: 8}
			f.Layouts["struct vm_event_st"] = append([]variant{moved}, l...)
		}, "layout changes within the series, at 4.17.3"},
		{"a field changes its width", func(f *facts) {
			l := f.Layouts["struct xen_mem_access_op"]
			l[0].Fields["nr"] = extents{Off: 4, Size: 2}
		}, "nr is 2 bytes wide in"},
		{"a field goes everywhere", func(f *facts) {
			for _, v := range f.Layouts["struct xen_hvm_param"] {
				delete(v.Fields, "value")
			}
		}, "value is in no release"},
		{"a constant goes", func(f *facts) {
			delete(f.Constants, "XEN_DOMCTL_monitor_op")
		}, "XEN_DOMCTL_monitor_op is in no release"},
		{"a constant comes to differ", func(f *facts) {
			f.Varying["XEN_DOMCTL_monitor_op"] = []constantOfSeries{{77, []string{"4.11"}}, {78, []string{"4.12"}}}
		}, "differs between releases"},
		{"a version changes within a series", func(f *facts) {
			f.Varying["XEN_DOMCTL_INTERFACE_VERSION"] = append([]constantOfSeries{{99, []string{"4.18.1"}}}, f.Varying["XEN_DOMCTL_INTERFACE_VERSION"]...)
		}, "XEN_DOMCTL_INTERFACE_VERSION changes within the series, at 4.18.1"},
		{"a feature appears within a series", func(f *facts) {
			f.Constants["VM_EVENT_FLAG_FAST_SINGLESTEP"] = constant{Value: 2048, OnlyIn: []string{"4.14.2"}}
		}, "VM_EVENT_FLAG_FAST_SINGLESTEP appears or goes within the series"},
		{"a series is missing", func(f *facts) {
			for tag := range f.Releases {
				if strings.HasPrefix(tag, "4.15.") {
					delete(f.Releases, tag)
				}
			}
		}, "series between 4.14 and 4.16 are missing"},
		{"no release", func(f *facts) { f.Releases = nil }, "no numbered release"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			f, err := readFacts("xen-abi.json")
			if err != nil {
				t.Fatal(err)
			}
			tc.change(f)
			_, err = generate(f)
			if err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("got %v, want %q", err, tc.want)
			}
		})
	}
}

func TestConstantJSON(t *testing.T) {
	for _, in := range []string{`5`, `{"value":5,"only_in":["4.11","4.12"]}`} {
		var c constant
		if err := json.Unmarshal([]byte(in), &c); err != nil {
			t.Fatal(err)
		}
		out, err := json.Marshal(c)
		if err != nil {
			t.Fatal(err)
		}
		if string(out) != in {
			t.Errorf("got %s, want %s", out, in)
		}
	}
}

func TestRun(t *testing.T) {
	dir := t.TempDir()
	in := filepath.Join(dir, "facts.json")
	if err := run(in, dir, "xen-abi.json"); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"zz_generated_layout.go", "zz_generated_const.go"} {
		got, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		want, err := os.ReadFile(filepath.Join("..", name))
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(got, want) {
			t.Errorf("%s differs", name)
		}
	}
	if err := run(filepath.Join(dir, "absent.json"), dir, ""); err == nil {
		t.Error("no error for a missing input")
	}
}
