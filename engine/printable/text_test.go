package printable

import (
	"encoding/json"
	"strconv"
	"strings"
	"testing"
	"unicode/utf8"
)

func TestEscape(t *testing.T) {
	for in, want := range map[string]string{
		"insmod":           "insmod",
		"a b;rm":           "a b;rm",
		"../../x":          "../../x",
		"naïve-服务器":        "naïve-服务器",
		"\x1b[2Jroot\r\n":  `\x1b[2Jroot\r\n`,
		`say "x" \ y`:      `say \"x\" \\ y`,
		"\xff\xfe":         `\xff\xfe`,
		"a\u202eb\u200b":   `a\u202eb\u200b`,
		"\u009b31m":        `\u009b31m`,
		"\x7f":             `\x7f`,
		"\u2028":           `\u2028`,
		"\U000e0001":       `\U000e0001`,
		"\ufffd":           "\ufffd",
		"it's":             "it's",
		"nul\x00byte":      `nul\x00byte`,
		"":                 "",
		"\u00a0no-break":   `\u00a0no-break`,
		"\xe2\x80":         `\xe2\x80`,
		"kworker/0:1-ev\t": `kworker/0:1-ev\t`,
	} {
		got := Escape(in)
		if string(got) != want {
			t.Errorf("Escape(%q) = %q, want %q", in, got, want)
		}
		if got.String() != want {
			t.Errorf("Escape(%q).String() = %q: not stable", in, got.String())
		}
	}
	if got := Escape("it's"); got.Quoted() != `"it's"` {
		t.Errorf("quoted: %s", got.Quoted())
	}
}

func TestTextIsBounded(t *testing.T) {
	for _, in := range []string{strings.Repeat("x", MaxText+1), strings.Repeat("\x00", MaxText), strings.Repeat("服", MaxText)} {
		got := Escape(in)
		if len(got) > MaxText || !strings.HasSuffix(string(got), ellipsis) || !utf8.ValidString(string(got)) {
			t.Errorf("Escape of %d bytes gives %d ending in %q", len(in), len(got), got[len(got)-8:])
		}
		if Text(in).String() == in {
			t.Errorf("a converted text of %d bytes is shown whole", len(in))
		}
	}
	exact := strings.Repeat("x", MaxText)
	if got := Escape(exact); string(got) != exact {
		t.Errorf("a text of just MaxText was cut to %d bytes", len(got))
	}
}

// TestConvertedTextIsHarmless: a Text made without Escape can't reach a
// terminal or the log as it is.
func TestConvertedTextIsHarmless(t *testing.T) {
	raw := Text("a\x1b[31m\u202e\xff")
	const want = `a\x1b[31m\u202e\xff`
	b, err := json.Marshal(raw)
	if err != nil {
		t.Fatal(err)
	}
	var back Text
	if err := json.Unmarshal(b, &back); err != nil {
		t.Fatal(err)
	}
	if raw.String() != want || string(back) != want {
		t.Errorf("shown as %q, travels as %q, want %q", raw.String(), string(back), want)
	}
}

func FuzzEscape(f *testing.F) {
	for _, s := range []string{"", "insmod", "\x1b[2J", "\xff", `\"`, "服\u202e", strings.Repeat("\x01", 300)} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, in string) {
		for _, x := range []Text{Escape(in), Text(in).safe()} {
			if len(x) > MaxText || !utf8.ValidString(string(x)) {
				t.Fatalf("%q: %d bytes", x, len(x))
			}
			if again := x.safe(); again != x {
				t.Fatalf("%q is not stable: %q", x, again)
			}
		}
		if len(in) < MaxText/10 {
			back, err := unquote(string(Escape(in)))
			if err != nil || back != in {
				t.Fatalf("%q escaped to %q, which is %q (%v)", in, Escape(in), back, err)
			}
		}
	})
}
func unquote(s string) (string, error) { return strconv.Unquote(`"` + s + `"`) }
