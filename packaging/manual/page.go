package manual

import (
	"bytes"
	"fmt"
	"regexp"
	"strings"
	"time"
)

// Page is a manual page that is being written.
type Page struct {
	// Name and Section are what the page is called: "hvid" and 8.
	Name    string
	Section int
	b       bytes.Buffer
}

// FileName is what the page's file is called in its section's directory.
func (p *Page) FileName() string { return fmt.Sprintf("%s.%d", p.Name, p.Section) }

// New begins a page. purpose is said in a few words, without a full stop; it
// is what whatis(1) shows. version is the program's, date that of its source.
func New(name string, section int, purpose, version string, date time.Time) *Page {
	p := &Page{Name: name, Section: section}
	fmt.Fprintf(&p.b, ".TH %s %d %s \"hvi %s\" \"hvi manual\"\n",
		quoteArgument(strings.ToUpper(name)), section, date.UTC().Format(time.DateOnly), escape(version, false))
	// Left-aligned, and words are kept whole: many are to be typed.
	p.b.WriteString(".nh\n.ad l\n")
	p.Heading("name")
	p.fill(name + " " + string(rune(dash)) + " " + purpose)
	return p
}

// Bytes returns the page's source.
func (p *Page) Bytes() []byte { return p.b.Bytes() }

// Heading begins a section.
func (p *Page) Heading(title string) {
	fmt.Fprintf(&p.b, ".SH %s\n", quoteArgument(strings.ToUpper(title)))
}

// Subheading begins a part of a section.
func (p *Page) Subheading(title string) { fmt.Fprintf(&p.b, ".SS %s\n", quoteArgument(title)) }

// Para writes paragraphs, which an empty line parts.
func (p *Page) Para(text string) {
	for i, para := range strings.Split(strings.TrimSpace(text), "\n\n") {
		if i > 0 || !p.fresh() {
			p.b.WriteString(".PP\n")
		}
		p.fill(para)
	}
}

// fresh reports whether a heading was written last: a paragraph begins there
// by itself.
func (p *Page) fresh() bool {
	lines := bytes.Split(bytes.TrimRight(p.b.Bytes(), "\n"), []byte("\n"))
	last := lines[len(lines)-1]
	return bytes.HasPrefix(last, []byte(".SH ")) || bytes.HasPrefix(last, []byte(".SS "))
}

// Item writes an entry of a list: what it is about, and below it what there is
// to say, in paragraphs.
func (p *Page) Item(term, text string) {
	p.b.WriteString(".TP\n")
	p.b.WriteString(protect(inline(term)) + "\n")
	for i, para := range strings.Split(strings.TrimSpace(text), "\n\n") {
		if i > 0 {
			p.b.WriteString(".IP\n")
		}
		p.fill(para)
	}
}

// Code writes lines as they stand.
func (p *Page) Code(text string) {
	if !p.fresh() {
		p.b.WriteString(".PP\n")
	}
	p.b.WriteString(".RS 4\n.nf\n")
	for _, line := range strings.Split(strings.Trim(text, "\n"), "\n") {
		p.b.WriteString(protect(escape(strings.TrimRight(line, " \t"), true)) + "\n")
	}
	p.b.WriteString(".fi\n.RE\n")
}

// Text writes what is laid out as help texts are: paragraphs, and lines that
// are indented and stand as they are.
func (p *Page) Text(text string) {
	var para, code []string
	flush := func() {
		if len(para) > 0 {
			p.Para(strings.Join(para, " "))
		}
		if len(code) > 0 {
			for code[len(code)-1] == "" {
				code = code[:len(code)-1]
			}
			p.Code(unindent(code))
		}
		para, code = nil, nil
	}
	for _, line := range strings.Split(strings.TrimSpace(text), "\n") {
		switch {
		case line == "" && len(code) > 0:
			code = append(code, "")
		case line == "":
			flush()
		case line[0] == ' ' || line[0] == '\t':
			if len(code) == 0 {
				flush()
			}
			code = append(code, line)
		default:
			if len(code) > 0 {
				flush()
			}
			para = append(para, plainMarks.Replace(line))
		}
	}
	flush()
}

// plainMarks makes help's placeholders and quotation no marks of ours.
var plainMarks = strings.NewReplacer("`", "'")

// SeeAlso writes the section of references, each as "hvid(8)", and ends the
// page.
func (p *Page) SeeAlso(refs ...string) {
	p.Heading("see also")
	for i, r := range refs {
		name, section, _ := strings.Cut(r, "(")
		comma := ","
		if i == len(refs)-1 {
			comma = ""
		}
		fmt.Fprintf(&p.b, ".BR %s (%s%s\n", escape(name, true), section, comma)
	}
}

// fill writes one paragraph, its sentences and its lines apart.
func (p *Page) fill(para string) {
	words := strings.Fields(para)
	line := ""
	emit := func() {
		if line != "" {
			p.b.WriteString(protect(inline(line)) + "\n")
		}
		line = ""
	}
	for _, w := range words {
		// A mark is two bytes longer when it is a change of font.
		if long := len(line) + 1 + len(w) + 2*strings.Count(line+w, "`"); line != "" && (long > lineLength && !openMark(line) || long > 2*lineLength) {
			emit()
		}
		if line != "" {
			line += " "
		}
		line += w
		if endsSentence(w) && !openMark(line) {
			emit()
		}
	}
	emit()
}

// lineLength is how long a line of text gets, in bytes before other characters than marks
// are escaped.
const lineLength = 68

// openMark reports whether a mark in line waits for its end.
func openMark(line string) bool {
	return strings.Count(line, "`")%2 == 1 || strings.LastIndexByte(line, '<') > strings.LastIndexByte(line, '>')
}

// endsSentence reports whether a sentence ends with word.
func endsSentence(word string) bool {
	word = strings.TrimRight(word, `)"'`)
	return strings.HasSuffix(word, ".") && word != "e.g." && word != "i.e." ||
		strings.HasSuffix(word, "?") || strings.HasSuffix(word, "!")
}

func unindent(lines []string) string {
	least := -1
	for _, l := range lines {
		if l == "" {
			continue
		}
		n := len(l) - len(strings.TrimLeft(l, " "))
		if least < 0 || n < least {
			least = n
		}
	}
	for i, l := range lines {
		if l != "" {
			lines[i] = l[least:]
		}
	}
	return strings.Join(lines, "\n")
}

// marks are what is written in another font: `typed`, <placeholder>, and the
// name of a page(1).
var marks = regexp.MustCompile("`([^`]+)`|<([A-Za-z0-9][A-Za-z0-9 _.=|-]*)>|" + `\b([a-z][a-z0-9_.-]*)(\([1-8]\))`)

// inline turns the marks of one line into fonts.
func inline(line string) string {
	var b strings.Builder
	done := 0
	for _, m := range marks.FindAllStringSubmatchIndex(line, -1) {
		b.WriteString(escape(line[done:m[0]], false))
		done = m[1]
		switch {
		case m[2] >= 0:
			b.WriteString(`\fB` + escape(line[m[2]:m[3]], true) + `\fR`)
		case m[4] >= 0:
			b.WriteString(`\fI` + escape(line[m[4]:m[5]], true) + `\fR`)
		default:
			b.WriteString(`\fB` + escape(line[m[6]:m[7]], true) + `\fR` + line[m[8]:m[9]])
		}
	}
	return b.String() + escape(line[done:], false)
}

// escape makes text mean itself. In code, quotes and hyphens are those of
// ASCII, so that what is copied from a page works.
func escape(s string, code bool) string {
	var b strings.Builder
	for i, r := range s {
		switch {
		case r == '\\':
			b.WriteString(`\e`)
		case r == '-' && (code || beginsOption(s, i)):
			b.WriteString(`\-`)
		case r == '\'':
			b.WriteString(`\(aq`)
		case r == '`':
			b.WriteString(`\(ga`)
		case r == '^':
			b.WriteString(`\(ha`)
		case r == '~':
			b.WriteString(`\(ti`)
		case r == '\t':
			b.WriteString("        ")
		case r == dash:
			b.WriteString(`\-`)
		case r < ' ' || r == 0x7f:
			b.WriteByte(' ')
		case r < 0x80:
			b.WriteRune(r)
		default:
			fmt.Fprintf(&b, `\[u%04X]`, r)
		}
	}
	return b.String()
}

// dash stands, between a page's name and its purpose, for the one that whatis(1)
// looks for.
const dash = 0

// beginsOption reports whether the hyphen at s[i] is one that is typed.
func beginsOption(s string, i int) bool {
	if i > 0 && s[i-1] == '-' {
		i--
	}
	return i == 0 || strings.IndexByte(" ([\"'|", s[i-1]) >= 0
}

// protect keeps a line's first character from making it a request.
func protect(line string) string {
	if strings.HasPrefix(line, ".") {
		return `\&` + line
	}
	return line
}

// quoteArgument makes text one argument of a macro.
func quoteArgument(s string) string {
	return `"` + strings.ReplaceAll(escape(s, true), `"`, `\(dq`) + `"`
}
