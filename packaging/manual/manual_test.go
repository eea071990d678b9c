package manual_test

import (
	"strings"
	"testing"
	"time"

	"github.com/spf13/cobra"

	"github.com/xen-hvi/hvi/packaging/manual"
)

var build = manual.Build{Version: "1.2.3", Date: time.Unix(1700000000, 0)}

// body is what a page has after its name.
func body(t *testing.T, p *manual.Page) string {
	t.Helper()
	_, after, ok := strings.Cut(string(p.Bytes()), "x \\- y\n")
	if !ok {
		t.Fatalf("the page has no name:\n%s", p.Bytes())
	}
	return after
}

func TestTitle(t *testing.T) {
	p := manual.New("hvi-x", 5, "y of 'z'", "1.0~rc1", time.Date(2026, 1, 2, 23, 0, 0, 0, time.FixedZone("west", -7*3600)))
	want := ".TH \"HVI\\-X\" 5 2026-01-03 \"hvi 1.0\\(tirc1\" \"hvi manual\"\n.nh\n.ad l\n.SH \"NAME\"\nhvi-x \\- y of \\(aqz\\(aq\n"
	if got := string(p.Bytes()); got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
	if p.FileName() != "hvi-x.5" {
		t.Errorf("the file is called %q", p.FileName())
	}
}

// TestText: what is said can't be taken for a request or an escape.
func TestText(t *testing.T) {
	for _, c := range []struct{ name, in, want string }{
		{"plain", "One. Two.", "One.\nTwo.\n"},
		{"a request", ".so /etc/passwd", "\\&.so /etc/passwd\n"},
		{"an apostrophe first", "'twas", "\\(aqtwas\n"},
		{"an escape", `a\fBb`, "a\\efBb\n"},
		{"options", "give --all or -n, not well-known", "give \\-\\-all or \\-n, not well-known\n"},
		{"code", "type `a-b 'c'` now", "type \\fBa\\-b \\(aqc\\(aq\\fR now\n"},
		{"a placeholder", "of <DOM-1>.", "of \\fIDOM\\-1\\fR.\n"},
		{"XML is none", "the <a b='c'> tag", "the <a b=\\(aqc\\(aq> tag\n"},
		{"a lone mark", "a ` b < c", "a \\(ga b < c\n"},
		{"a page", "see hvi-x(5), or not(e)", "see \\fBhvi\\-x\\fR(5), or not(e)\n"},
		{"not ASCII", "a … b", "a \\[u2026] b\n"},
		{"control characters", "a\x1b[1mb", "a [1mb\n"},
		{"paragraphs", "One.\n\nTwo.", "One.\n.PP\nTwo.\n"},
	} {
		p := manual.New("x", 1, "y", "1", build.Date)
		p.Heading("z")
		p.Para(c.in)
		if got := strings.TrimPrefix(body(t, p), ".SH \"Z\"\n"); got != c.want {
			t.Errorf("%s: %q became\n%s\nwant\n%s", c.name, c.in, got, c.want)
		}
	}
}

func TestLinesAreShort(t *testing.T) {
	p := manual.New("x", 1, "y", "1", build.Date)
	p.Para(strings.Repeat("word ", 100))
	for line := range strings.Lines(string(p.Bytes())) {
		if len(line) > 81 {
			t.Errorf("a line of %d bytes: %s", len(line), line)
		}
	}
}

// TestHelpText: paragraphs of a help text are filled, what is indented stands.
func TestHelpText(t *testing.T) {
	p := manual.New("x", 1, "y", "1", build.Date)
	p.Heading("z")
	p.Text("First\nline `quoted'.\n\nA list:\n  .1  one\n\n    -2  two\nAfter.")
	want := `.SH "Z"
First line \(aqquoted\(aq.
.PP
A list:
.PP
.RS 4
.nf
\&.1  one

  \-2  two
.fi
.RE
.PP
After.
`
	if got := body(t, p); got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
}

func tree() *cobra.Command {
	root := &cobra.Command{Use: "x", Short: "Y", Long: "Does it.", Run: func(*cobra.Command, []string) {}}
	root.PersistentFlags().String("socket", "/run/x", "hvid's socket")
	sub := &cobra.Command{Use: "see DOM", Short: "See one", Example: "  x see 1", Run: func(*cobra.Command, []string) {}}
	sub.Flags().BoolP("follow", "f", false, "go on with `new` ones")
	sub.Flags().Int("limit", 5, "at most so many")
	hidden := &cobra.Command{Use: "secret", Hidden: true, Run: func(*cobra.Command, []string) {}}
	root.AddCommand(sub, hidden, &cobra.Command{Use: "codes", Short: "Codes", Long: "1 is one."})
	return root
}

func TestCommands(t *testing.T) {
	pages := manual.Commands(tree(), 1, build, []string{"z(8)"}, map[string]manual.Extra{
		"x-see": func(p *manual.Page) { p.Heading("more"); p.Para("Text.") },
	})
	got := map[string]string{}
	for _, p := range pages {
		got[p.FileName()] = string(p.Bytes())
	}
	if len(got) != 3 {
		t.Fatalf("%d pages: %v", len(got), got)
	}
	for file, wants := range map[string][]string{
		"x.1": {
			"x \\- Y\n", "\\fBx\\fR \\fIcommand\\fR", ".TP\n\\fBsee\\fR\nSee one.\n", "\\fB\\-\\-socket\\fR", "hvid\\(aqs socket.\nDefault: /run/x.\n",
			".BR x\\-codes (1),\n.BR x\\-see (1),\n.BR z (8)\n",
		},
		"x-see.1": {
			"\\fBx see\\fR DOM [flags]", ".SH \"OPTIONS\"", "\\fB\\-f\\fR, \\fB\\-\\-follow\\fR", "Default: 5.",
			".SH \"OPTIONS OF EVERY COMMAND\"", ".nf\nx see 1\n.fi", ".SH \"MORE\"\nText.\n.SH \"SEE ALSO\"\n.BR x (1),\n",
		},
		"x-codes.1": {"1 is one.\n"},
	} {
		for _, want := range wants {
			if !strings.Contains(got[file], want) {
				t.Errorf("%s has no %q:\n%s", file, want, got[file])
			}
		}
	}
	if strings.Contains(got["x-codes.1"], "SYNOPSIS") {
		t.Error("a topic has a synopsis")
	}
	for file, page := range got {
		if strings.Contains(page, "secret") {
			t.Errorf("%s tells of a hidden command", file)
		}
	}
}

func FuzzPara(f *testing.F) {
	for _, s := range []string{"", ".", "'", "`", "<", "<a>`", "\\", "a(1)", "\n\n\n", "\xff", "..\n.\n'"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		p := manual.New("x", 1, "y", "1", build.Date)
		before := len(p.Bytes())
		p.Para(s)
		p.Item(s, s)
		p.Code(s)
		for line := range strings.Lines(string(p.Bytes()[before:])) {
			if (line[0] == '.' || line[0] == '\'') && !strings.HasPrefix(line, ".PP") && !strings.HasPrefix(line, ".TP") &&
				!strings.HasPrefix(line, ".IP") && !strings.HasPrefix(line, ".RS 4") && !strings.HasPrefix(line, ".RE") &&
				!strings.HasPrefix(line, ".nf") && !strings.HasPrefix(line, ".fi") {
				t.Fatalf("%q made the request %q", s, line)
			}
		}
	})
}
