package archive

import (
	"errors"
	"reflect"
	"testing"
)

func TestParseDependencies(t *testing.T) {
	for _, c := range []struct {
		in   string
		want []Dependency
	}{
		{"", nil},
		{" , ", nil},
		{"a", []Dependency{{{Name: "a"}}}},
		{"a, b", []Dependency{{{Name: "a"}}, {{Name: "b"}}}},
		{"a,\n b,\n", []Dependency{{{Name: "a"}}, {{Name: "b"}}}},
		{"a | b (>= 1.0)", []Dependency{{{Name: "a"}, {"b", ">=", "1.0"}}}},
		{"libc6 (>= 2.36)", []Dependency{{{"libc6", ">=", "2.36"}}}},
		{"libc6(>=2.36)", []Dependency{{{"libc6", ">=", "2.36"}}}},
		{"libc6 ( >>  2.36 )", []Dependency{{{"libc6", ">>", "2.36"}}}},
		{"python3:any (<< 3.12~)", []Dependency{{{"python3", "<<", "3.12~"}}}},
		{"old (< 1), older (> 2)", []Dependency{{{"old", "<=", "1"}}, {{"older", ">=", "2"}}}},
		{"libstdc++6 (= 1:2-3)", []Dependency{{{"libstdc++6", "=", "1:2-3"}}}},
	} {
		got, err := ParseDependencies(c.in)
		if err != nil || !reflect.DeepEqual(got, c.want) {
			t.Errorf("ParseDependencies(%q) = %v, %v; want %v", c.in, got, err, c.want)
		}
	}
	for _, in := range []string{"a |", "| a", "a (", "a (1)", "a (~ 1)", "a (=)", "a (= 1) b", "a b", "ä", "-a", "a (= 1 2)"} {
		got, err := ParseDependencies(in)
		if se, ok := errors.AsType[*SyntaxError](err); !ok || se.Msg == "" {
			t.Errorf("ParseDependencies(%q) = %v, %v; want a SyntaxError", in, got, err)
		}
	}
}

func TestRelationHolds(t *testing.T) {
	for _, c := range []struct {
		op, version string
		want        bool
	}{
		{"", "1", true},
		{"<<", "1", true}, {"<<", "2", false}, {"<<", "3", false},
		{"<=", "1", true}, {"<=", "2", true}, {"<=", "3", false},
		{"=", "1", false}, {"=", "2", true}, {"=", "3", false},
		{">=", "1", false}, {">=", "2", true}, {">=", "3", true},
		{">>", "1", false}, {">>", "2", false}, {">>", "3", true},
		{"?", "2", false},
	} {
		if got := (Relation{"a", c.op, "2"}).Holds(c.version); got != c.want {
			t.Errorf("%s %s 2 is %v, want %v", c.version, c.op, got, c.want)
		}
	}
}

func FuzzParseDependencies(f *testing.F) {
	f.Add("libc6 (>= 2.36), debconf (>= 0.5) | debconf-2.0, python3:any")
	f.Add("a (<< 1) | b (= 2:3-4), c")
	f.Add("a (")
	f.Fuzz(func(t *testing.T, in string) {
		deps, err := ParseDependencies(in)
		if err != nil {
			return
		}
		for _, d := range deps {
			if len(d) == 0 {
				t.Fatalf("%q: a dependency without an alternative", in)
			}
			again, err := ParseDependencies(d.String())
			if err != nil || len(again) != 1 || !reflect.DeepEqual(again[0], d) {
				t.Errorf("%q: %v is read back as %v, %v", in, d, again, err)
			}
		}
	})
}
