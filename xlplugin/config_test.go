package xlplugin

import (
	"errors"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/xen-hvi/hvi/engine/policy"
)

// configCases are configs of one line of thought each. The value is that of
// key a, as render writes it; what xl itself says to each of them is asked by
// TestAgainstXl.
var configCases = []struct {
	name, config, value, err string
}{
	{"number", "a=1\n", "'31'", ""},
	{"number without newline", "a=1", "'31'", ""},
	{"number with hex digits", "a = 0x1f\n", "'30783166'", ""},
	{"number of nonsense", "a=12ax\n", "'31326178'", ""},
	{"number followed by a word", "a=12g\n", "", "expected the end of the line"},
	{"upper-case hex", "a=0x1F\n", "", "lower-case"},
	{"double quotes", `a="it's"` + "\n", "'69742773'", ""},
	{"single quotes", `a='say "x"'` + "\n", "'73617920227822'", ""},
	{"empty string", "a=''\n", "''", ""},
	{"escapes", `a="\a\b\f\n\r\t\v\\\'\""` + "\n", "'07080c0a0d090b5c2722'", ""},
	{"raw bytes", "a='\xff\t'\n", "'ff09'", ""},
	{"hexadecimal escape", `a="\x41"` + "\n", "", "hexadecimal escape"},
	{"numeric escape vanishes", `a="x\0123y"` + "\n", "'7879'", ""},
	{"numeric escape too short", `a="x\01"` + "\n", "", "two more digits"},
	{"numeric escape takes a sign", `a="x\0-12"` + "\n", "'78'", ""},
	{"numeric escape takes blanks", "a='x\\0\t\v12'\n", "'7832'", ""},
	{"unknown escape", `a="\q"` + "\n", "", "unknown escape"},
	{"escaped newline", "a='x\\\ny'\n", "", "not closed"},
	{"open string", "a='x\nb=1\n", "", "not closed"},
	{"other quote does not close", `a="x'` + "\n", "", "not closed"},
	{"two strings", "a='x' 'y'\n", "", "expected the end of the line"},
	{"list", "a=[1,'x']\n", "['31','78']", ""},
	{"empty list", "a=[]\n", "[]", ""},
	{"list with comma at end", "a=[1,]\n", "['31']", ""},
	{"list of lists", "a=[1,[2,['3']],[]]\n", "['31',['32',['33']],[]]", ""},
	{"list over lines", "a=[ # one\n\n1 # two\n,\n# three\n2,\n]\n", "['31','32']", ""},
	{"only a comma", "a=[,]\n", "", "expected a value"},
	{"two commas", "a=[1,,2]\n", "", "expected a value"},
	{"no comma", "a=[1 2]\n", "", `expected "," or "]"`},
	{"semicolon in a list", "a=[1;2]\n", "", `expected "," or "]"`},
	{"list not closed", "a=[1,\n", "", "expected a value"},
	{"value on the next line", "a=\n1\n", "", "expected a value"},
	{"semicolons", ";;a=1;b=2;", "'31'", ""},
	{"two on a line", "a=1 b=2\n", "", "expected the end of the line"},
	{"later wins", "a=1\na=2\n", "'32'", ""},
	{"add to a string", "a='x'\na+='y'\n", "'7879'", ""},
	{"add a number", "a=1;a+=2", "'3132'", ""},
	{"add to nothing", "a+=[1]\n", "['31']", ""},
	{"add to a list", "a=[1]\na+=[[2],3]\n", "['31',['32'],'33']", ""},
	{"replace after adding", "a=[1]\na+=[2]\na=[3]\n", "['33']", ""},
	{"add a list to a string", "a='x'\na+=[1]\n", "", "cannot be added"},
	{"add a string to a list", "a=[1]\na+='x'\n", "", "cannot be added"},
	{"plus and equals apart", "a+ =1\n", "", "not part of"},
	{"word as value", "a=enforce\n", "", `a word needs quotes: "enforce"`},
	{"upper-case key", "Name='x'\n", "", "lower-case"},
	{"key with a hyphen", "a-b=1\n", "", "not part of"},
	{"key with dots", "a.b_c=1\na=2\n", "'32'", ""},
	{"no value", "a=", "", "expected a value"},
	{"no equals", "a\n", "", `expected "=" or "+="`},
	{"value as key", "1=2\n", "", "expected a key"},
	{"DOS line ends", "a=1\r\nb=2\r\n", "", "carriage return"},
	{"comment", "#a=2\na=1 # a=3\n", "'31'", ""},
	{"comment without newline", "a=1\n# end", "", "comment on the last line"},
	{"bare hash at the end", "a=1\n#", "'31'", ""},
	{"one bad character at the end", "a=1@", "'31'", ""},
	{"two bad characters at the end", "a=1@@", "", "not part of"},
	{"bad character and newline", "a=1@\n", "", "not part of"},
	{"open quote at the end", "a=1'", "'31'", ""},
	{"NUL in a string", "a='\x00'\n", "", "NUL"},
	{"NUL in a comment", "#\x00\na=1\n", "'31'", ""},
	{"NUL at the end", "a=1\x00", "'31'", ""},
	{"NUL elsewhere", "\x00a=1\n", "", "not part of"},
	{"empty", "", "none", ""},
	{"blank", " \t\n", "none", ""},
	{"python", "import os\na = os.getpid()\n", "", `expected "="`},
}

func TestParse(t *testing.T) {
	for _, tt := range configCases {
		t.Run(tt.name, func(t *testing.T) {
			if _, err := Parse("c", []byte(tt.config)); tt.err != "" {
				if err == nil || !strings.Contains(err.Error(), tt.err) {
					t.Fatalf("error %v, want one with %q", err, tt.err)
				}
				return
			} else if err != nil {
				t.Fatal(err)
			}
			if got := ours(xluRequest{tt.config, "a"}); got != tt.value {
				t.Errorf("a = %s, want %s", got, tt.value)
			}
		})
	}
}

func TestErrorPlaces(t *testing.T) {
	tests := []struct {
		name, config string
		extra        []string
		want         []string
	}{
		{"line and column", "a = 1\n  b = enforce\n", nil, []string{`g.cfg:2:7: near "enforce": a value must be`}},
		{"tab counts one", "\ta=@ \n", nil, []string{`g.cfg:1:4: near "@"`}},
		{"escape inside the string", "a = \"xy\\q\"\n", nil, []string{`g.cfg:1:8:`}},
		{"one per line", "a=\nb=1\nc\nd=[1;2]\ne=2 3\n", nil, []string{"g.cfg:1:3:", "g.cfg:3:2:", "g.cfg:4:5:", "g.cfg:5:5:"}},
		{"a broken list is one error", "a=[ 1,\n2 3,\n4, [5],\n]\nb=c\n", nil, []string{"g.cfg:2:3:", "g.cfg:5:3:"}},
		{"a forgotten bracket does not eat the rest", "a=[ 1,\nb = 2\nc = x\n", nil, []string{"g.cfg:2:1:", "g.cfg:3:5:"}},
		{"at most ten", strings.Repeat("=\n", 100), nil, strings.Fields(strings.Repeat("g.cfg: ", 10))},
		{"in the assignment", "a=1\n", []string{"introspection=enforce"}, []string{`xl command line: near "enforce": a value`}},
		{"in the second assignment", "a=1\n", []string{"b=1", "c=d"}, []string{`xl command line, assignment 2: near "d"`}},
		{"in the second line of an assignment", "a=1\n", []string{"b=1\nc=d"}, []string{`xl command line:2:3: near "d"`}},
		{"a list left open by the file", "a=[\n", []string{"b=1"}, []string{`xl command line: near "b"`}},
		{"hostile text", "a=\x1b[2J\n", nil, []string{`near "\x1b[2J"`}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			_, err := Parse("g.cfg", []byte(tt.config), tt.extra...)
			if err == nil {
				t.Fatal("no error")
			}
			var se *SyntaxError
			if !errors.As(err, &se) || se.Msg == "" {
				t.Errorf("%v is not a SyntaxError", err)
			}
			got := strings.Split(err.Error(), "\n")
			if len(got) != len(tt.want) {
				t.Fatalf("%d errors, want %d:\n%v", len(got), len(tt.want), err)
			}
			for i := range got {
				if !strings.Contains(got[i], strings.TrimSpace(tt.want[i])) {
					t.Errorf("error %d\n got %s\nwant %s", i, got[i], tt.want[i])
				}
			}
		})
	}
}

func TestExtraAssignments(t *testing.T) {
	cfg, err := Parse("g.cfg", []byte("a=1\nb=['x']\n# no newline here"), `a="2"`, "b+=['y']", "c=3;d=4")
	if err != nil {
		t.Fatal(err)
	}
	for key, want := range map[string]string{"a": "'32'", "b": "['78','79']", "c": "'33'", "d": "'34'"} {
		if s, ok := cfg.Lookup(key); !ok || render(s.Value) != want {
			t.Errorf("%s = %s, want %s", key, render(s.Value), want)
		}
	}
	a, _ := cfg.Lookup("a")
	if a.Pos != (policy.Origin{Source: "xl command line, assignment 1"}) {
		t.Errorf("a is at %v", a.Pos)
	}
	b, _ := cfg.Lookup("b")
	if e := b.Value.List; e[0].Pos != (policy.Origin{Source: "g.cfg", Line: 2, Column: 4}) ||
		e[1].Pos != (policy.Origin{Source: "xl command line, assignment 2"}) {
		t.Errorf("the elements are at %v and %v", e[0].Pos, e[1].Pos)
	}
	if first := cfg.Settings[1].Value; render(first) != "['78']" {
		t.Errorf("adding to b changed its first value to %s", render(first))
	}

	// xl glues the file and the assignments together before it parses.
	cfg, err = Parse("g.cfg", []byte("a=[1,"), "2]#=")
	if err != nil {
		t.Fatal(err)
	}
	if s, _ := cfg.Lookup("a"); render(s.Value) != "['31','32']" {
		t.Errorf("a = %s", render(s.Value))
	}
}

func TestWarnings(t *testing.T) {
	cfg, err := Parse("g.cfg", []byte("a='x\\0123'\nb=1\n#"))
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, w := range cfg.Warnings {
		got = append(got, w.String())
	}
	if len(got) != 2 || !strings.HasPrefix(got[0], "g.cfg:1:5: xl drops numeric escapes") ||
		!strings.HasPrefix(got[1], "g.cfg:3:1: the last character") {
		t.Errorf("warnings %q", got)
	}
}

func TestLimits(t *testing.T) {
	if _, err := Parse("big", make([]byte, MaxConfigSize), "a=1"); !errors.Is(err, ErrTooLarge) {
		t.Errorf("too large: %v", err)
	}
	deep := func(n int) string { return "a=" + strings.Repeat("[", n) + strings.Repeat("]", n) }
	if _, err := Parse("c", []byte(deep(maxDepth))); err != nil {
		t.Errorf("%d levels: %v", maxDepth, err)
	}
	if _, err := Parse("c", []byte(deep(maxDepth+1))); err == nil || !strings.Contains(err.Error(), "nest deeper") {
		t.Errorf("%d levels: %v", maxDepth+1, err)
	}

	// None of these may take more than a moment or more than a bounded amount
	// of memory, whatever they say.
	for name, c := range map[string]string{
		"list additions":   strings.Repeat("a+=[1]\n", MaxConfigSize/7),
		"string additions": strings.Repeat("a+='xxxxxxxxxxxxxxxxxxxxxxxx'\n", MaxConfigSize/30),
		"comments":         strings.Repeat("#\n", MaxConfigSize/2),
		"brackets":         "a=" + strings.Repeat("[", MaxConfigSize-2),
		"bad lines":        strings.Repeat("a=[b\n", MaxConfigSize/5),
		"quotes":           strings.Repeat("'", MaxConfigSize),
		"newlines":         strings.Repeat("\n", MaxConfigSize),
	} {
		start := time.Now()
		cfg, err := Parse("c", []byte(c))
		if d := time.Since(start); d > 5*time.Second {
			t.Errorf("%s took %v", name, d)
		}
		if (cfg == nil) == (err == nil) {
			t.Errorf("%s: config %v, error %v", name, cfg != nil, err)
		}
	}
}

func FuzzParse(f *testing.F) {
	for _, c := range configCases {
		f.Add([]byte(c.config), "")
	}
	f.Add([]byte("a=[1,\n"), "2]#=")
	f.Add([]byte("introspection='enforce'\nintrospection_guards=['kernel-text=block']\nname='g'\nuuid='x'\n"), "introspection=0")
	if data, err := os.ReadFile("../testdata/xl/full.cfg"); err == nil {
		f.Add(data, "")
	}
	f.Fuzz(func(t *testing.T, data []byte, extra string) {
		var extras []string
		if extra != "" {
			extras = []string{extra}
		}
		cfg, err := Parse("c", data, extras...)
		if err != nil {
			var se *SyntaxError
			if errors.As(err, &se) && strings.ContainsFunc(se.Error(), func(r rune) bool { return r < ' ' }) {
				t.Errorf("the error would control a terminal: %q", se.Error())
			}
			return
		}
		for _, s := range cfg.Settings {
			if s.Key == "" || strings.ContainsRune(s.Value.Text, 0) || s.Pos.IsZero() {
				t.Errorf("setting %+v", s)
			}
			if last, ok := cfg.Lookup(s.Key); !ok || last.Key != s.Key {
				t.Errorf("%q cannot be looked up", s.Key)
			}
		}
	})
}
