package archive

import (
	"errors"
	"fmt"
	"io"
	"reflect"
	"strings"
	"testing"
	"testing/iotest"
)

// readAll reads all paragraphs as "name=value" lists.
func readAll(r io.Reader) (out [][]string, err error) {
	sc := newScanner("test", r)
	for {
		fields, err := sc.Next()
		if errors.Is(err, io.EOF) {
			return out, nil
		}
		if err != nil {
			return out, err
		}
		var p []string
		for _, f := range fields {
			p = append(p, fmt.Sprintf("%s=%s", f.Name, f.Value))
		}
		out = append(out, p)
	}
}

func TestScanner(t *testing.T) {
	long := strings.Repeat("x", 1<<20)
	for _, c := range []struct {
		name, in string
		want     [][]string
	}{
		{"nothing", "", nil},
		{"blank lines", "\n \n\t\n\n", nil},
		{"one", "A: b\n", [][]string{{"A=b"}}},
		{"no newline at the end", "A: b", [][]string{{"A=b"}}},
		{"carriage returns", "A: b\r\n c\r\n\r\nD: e\r\n", [][]string{{"A=b\n c"}, {"D=e"}}},
		{"two paragraphs", "A: b\nC: d\n\n\nE: f\n\n", [][]string{{"A=b", "C=d"}, {"E=f"}}},
		{"continuation", "A: b\n c\n\td\nE:f\n", [][]string{{"A=b\n c\n\td", "E=f"}}},
		{"list", "SHA256:\n x 1 y\n", [][]string{{"SHA256=\n x 1 y"}}},
		{"comments", "# no\nA: b\n# in between\n c\n", [][]string{{"A=b\n c"}}},
		{"empty value", "A:\n", [][]string{{"A="}}},
		{"colons", "A: b: c\n", [][]string{{"A=b: c"}}},
		{"a long line", "A: " + long + "\nB: c\n", [][]string{{"A=" + long, "B=c"}}},
	} {
		got, err := readAll(strings.NewReader(c.in))
		if err != nil || !reflect.DeepEqual(got, c.want) {
			t.Errorf("%s: got %.200q, %v; want %.200q", c.name, got, err, c.want)
		}
		if len(c.in) < 1000 {
			slow, err := readAll(iotest.OneByteReader(strings.NewReader(c.in)))
			if err != nil || !reflect.DeepEqual(slow, c.want) {
				t.Errorf("%s, byte by byte: got %q, %v; want %q", c.name, slow, err, c.want)
			}
		}
	}
	for _, c := range []struct {
		in   string
		line int
	}{
		{" a\n", 1},
		{"A: b\n\n c\n", 3},
		{"A: b\nno colon\n", 2},
		{": b\n", 1},
		{"A b: c\n", 1},
		{"A: b\n\nC: " + strings.Repeat("x", maxLine+1<<20), 3},
	} {
		_, err := readAll(strings.NewReader(c.in))
		if se, ok := errors.AsType[*SyntaxError](err); !ok || se.Line != c.line {
			t.Errorf("%.40q: got error %v, want one in line %d", c.in, err, c.line)
		}
	}
	broken := errors.New("broken")
	if _, err := readAll(io.MultiReader(strings.NewReader("A: b\n"), iotest.ErrReader(broken))); !errors.Is(err, broken) {
		t.Errorf("a read error became %v", err)
	}
}

func FuzzScanner(f *testing.F) {
	f.Add([]byte("Package: a\nDepends: b,\n c\n\n# x\nPackage: d\n"))
	f.Add([]byte("A: b\r\n\r\n"))
	f.Add([]byte(" x\n"))
	f.Fuzz(func(t *testing.T, in []byte) {
		got, err := readAll(strings.NewReader(string(in)))
		slow, serr := readAll(iotest.HalfReader(strings.NewReader(string(in))))
		if (err == nil) != (serr == nil) || !reflect.DeepEqual(got, slow) {
			t.Errorf("depends on how it is read: %q, %v against %q, %v", got, err, slow, serr)
		}
		for _, p := range got {
			if len(p) == 0 {
				t.Error("a paragraph without fields")
			}
		}
	})
}

// FuzzBuildIndex also sees that what was built can be opened and read.
func FuzzBuildIndex(f *testing.F) {
	sum := strings.Repeat("0a", 32)
	f.Add([]byte("Package: a\nVersion: 1\nArchitecture: all\nFilename: pool/a.deb\nSize: 3\nSHA256: " + sum + "\nProvides: v (= 2), w\n"))
	f.Add([]byte("Package: b\nVersion: 1\nArchitecture: amd64\nEssential: yes\nPriority: required\nInstalled-Size: 9\nFilename: x\nSize: 0\nSHA256: " + sum + "\n\nPackage: a\n"))
	f.Fuzz(func(t *testing.T, in []byte) {
		data, err := buildIndex("fuzz", strings.NewReader(string(in)), "amd64")
		if err != nil {
			return
		}
		x, err := openIndex("s", data)
		if err != nil {
			t.Fatalf("what was built can't be opened: %v", err)
		}
		for i := range x.len() {
			p := x.get(i)
			if !validName(p.Name) || p.Version == "" || !isSHA256(p.SHA256) || !validPool(p.Filename) {
				t.Errorf("record %d came out as %+v", i, p)
			}
			if p.Essential != x.essential(i) {
				t.Errorf("record %d: essential is %v and %v", i, p.Essential, x.essential(i))
			}
			found := false
			for _, q := range x.lookup(p.Name) {
				found = found || q == p
			}
			if !found {
				t.Errorf("%s is not found by its name", p.Name)
			}
		}
	})
}

// FuzzOpenIndex gives damaged indexes to a reader that must not panic.
func FuzzOpenIndex(f *testing.F) {
	sum := strings.Repeat("0a", 32)
	data, err := buildIndex("seed", strings.NewReader("Package: a\nVersion: 1\nArchitecture: all\nFilename: pool/a.deb\nSize: 3\nSHA256: "+sum+"\nProvides: v\n"), "amd64")
	if err != nil {
		f.Fatal(err)
	}
	f.Add(data)
	f.Fuzz(func(t *testing.T, in []byte) {
		sealIndex(in)
		x, err := openIndex("s", in)
		if err != nil {
			return
		}
		for i := range min(x.len(), 100) {
			if p := x.get(i); p.Suite != "s" {
				t.Errorf("record %d is of suite %q", i, p.Suite)
			}
			x.essential(i)
		}
		x.lookup("a")
		x.providers("v")
	})
}
