package xlplugin

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"sort"
	"strings"

	"github.com/xen-hvi/hvi/engine/policy"
)

// Limits of a config. xl has none; a real config is a few kilobytes.
const (
	// MaxConfigSize is the largest config that is read, in bytes, the
	// assignments of the command line included.
	MaxConfigSize = 1 << 20
	// maxDepth is how deep lists may nest. xl itself uses two levels.
	maxDepth = 32
	// maxErrors is how many syntax errors are collected before giving up.
	maxErrors = 10
)

// CommandLine is the [policy.Origin] source of a value that was given to xl as
// an assignment on its command line.
const CommandLine = "xl command line"

// Value is a value in a config: an atom or a list.
//
// xl makes no difference between 1 and "1"; neither does Value.
type Value struct {
	// Text is the atom, with quotes and escapes undone. It may hold any bytes
	// but NUL.
	Text string
	// List holds the elements of a list. It is nil for an atom.
	List []Value
	// IsList tells an empty list from an atom.
	IsList bool
	// Pos is where the value starts.
	Pos policy.Origin
}

// Setting is one assignment.
type Setting struct {
	Key string
	// Value is the value the key has after the assignment: with +=, what came
	// before and what was added.
	Value Value
	// Added reports an assignment made with +=.
	Added bool
	// Pos is where the key starts.
	Pos policy.Origin
}

// Warning is something xl accepts but that does not do what it looks like.
type Warning struct {
	Pos  policy.Origin
	Text string
}

// String is the place and the text.
func (w Warning) String() string { return w.Pos.String() + ": " + w.Text }

// Config is a parsed config.
type Config struct {
	// Settings are all assignments in the order they were made. A key may
	// occur more than once; the last one counts.
	Settings []Setting
	// Warnings are the oddities, in the order they were met.
	Warnings []Warning
}

// Lookup returns the assignment that counts for a key: the last.
func (c *Config) Lookup(key string) (Setting, bool) {
	for i := len(c.Settings) - 1; i >= 0; i-- {
		if c.Settings[i].Key == key {
			return c.Settings[i], true
		}
	}
	return Setting{}, false
}

// SyntaxError is a place where a config is not of xl's language. Errors of
// [Parse] are joined; reach each with [errors.As].
type SyntaxError struct {
	// Pos is the place, with line and column.
	Pos policy.Origin
	// Near is the text at the place, or empty.
	Near string
	// Msg says what is wrong.
	Msg string
}

// Error is the place, the text and what is wrong, on one line.
func (e *SyntaxError) Error() string {
	if e.Near == "" {
		return fmt.Sprintf("%s: %s", e.Pos, e.Msg)
	}
	return fmt.Sprintf("%s: near %s: %s", e.Pos, e.Near, e.Msg)
}

// ErrTooLarge is returned for a config above [MaxConfigSize].
var ErrTooLarge = fmt.Errorf("the config is larger than %d bytes", MaxConfigSize)

// Parse reads a config as xl does: the contents of the file, then each extra
// assignment of the command line as if it stood on a line of its own. source
// names the file in errors and origins.
//
// It accepts exactly what xl accepts (libxlutil of 4.17 was the judge), within
// the limits above. On error it returns nil and every [*SyntaxError] found,
// joined; xl, too, refuses a config with any error in it.
func Parse(source string, data []byte, extra ...string) (*Config, error) {
	size := len(data)
	for _, e := range extra {
		size += len(e) + 1
	}
	if size > MaxConfigSize {
		return nil, fmt.Errorf("%s: %w", policy.Quote(source), ErrTooLarge)
	}
	p := &parser{cfg: &Config{}, last: map[string]int{}}
	p.addPart(source, data, false)
	if len(extra) > 0 {
		// xl appends a newline, the assignments with a newline after each, and
		// one more newline; and it parses the whole as one text.
		p.glue()
		for i, e := range extra {
			name := CommandLine
			if len(extra) > 1 {
				name = fmt.Sprintf("%s, assignment %d", CommandLine, i+1)
			}
			p.addPart(name, []byte(e), true)
			p.glue()
		}
		p.glue()
	}
	p.lex.warn = func(offset int, text string) {
		p.cfg.Warnings = append(p.cfg.Warnings, Warning{p.at(offset), text})
	}
	p.file()
	if err := errors.Join(p.errs...); err != nil {
		return nil, err
	}
	for i := range p.cfg.Settings {
		v := &p.cfg.Settings[i].Value
		v.List = slices.Clip(v.List)
	}
	return p.cfg, nil
}

// part is a piece of the text that has its own name and line numbers.
type part struct {
	name  string
	start int
	lines []int // offsets of line starts, or nil for a part of a single line
}

type parser struct {
	lex   lexer
	parts []part
	cfg   *Config
	last  map[string]int // index into cfg.Settings of a key's last assignment
	tok   token
	depth int
	kept  int // bytes repeated by += so far
	errs  []error
}

func (p *parser) addPart(name string, data []byte, short bool) {
	pt := part{name: name, start: len(p.lex.data)}
	if !short || bytes.IndexByte(data, '\n') >= 0 {
		pt.lines = []int{pt.start}
		for i, c := range data {
			if c == '\n' {
				pt.lines = append(pt.lines, pt.start+i+1)
			}
		}
	}
	p.parts = append(p.parts, pt)
	p.lex.data = append(p.lex.data, data...)
}

func (p *parser) glue() { p.lex.data = append(p.lex.data, '\n') }

// at turns an offset into a place.
func (p *parser) at(offset int) policy.Origin {
	i := sort.Search(len(p.parts), func(i int) bool { return p.parts[i].start > offset }) - 1
	pt := p.parts[i]
	o := policy.Origin{Source: pt.name}
	if pt.lines != nil {
		n := sort.Search(len(pt.lines), func(i int) bool { return pt.lines[i] > offset })
		o.Line, o.Column = n, offset-pt.lines[n-1]+1
	}
	return o
}

func (p *parser) advance() { p.tok = p.lex.next() }

// fail notes a syntax error at the current token.
func (p *parser) fail(msg string) {
	if p.tok.kind == tokBad {
		msg = p.tok.why
	}
	p.failAt(p.tok.start, p.tok.describe(), msg)
}

func (p *parser) failAt(offset int, near, msg string) {
	if len(p.errs) < maxErrors {
		p.errs = append(p.errs, &SyntaxError{Pos: p.at(offset), Near: near, Msg: msg})
	}
}

// file reads statements until the end. The grammar is that of
// tools/libs/util/libxlu_cfg_y.y: assignments, each ended by a newline, a
// semicolon or the end of the text; empty statements are fine.
func (p *parser) file() {
	p.advance()
	for p.tok.kind != tokEOF {
		switch p.tok.kind {
		case tokNewline, tokSemicolon:
			p.advance()
		case tokIdent:
			p.depth = 0
			if !p.assignment() {
				p.recover()
			}
		default:
			p.fail("expected a key")
			p.recover()
		}
		if len(p.errs) >= maxErrors {
			return
		}
	}
}

func (p *parser) assignment() bool {
	key := p.tok
	p.advance()
	added := p.tok.kind == tokAdd
	if !added && p.tok.kind != tokAssign {
		p.fail(`expected "=" or "+=" after the key ` + policy.Quote(key.text))
		return false
	}
	p.advance()
	v, ok := p.value()
	if !ok {
		return false
	}
	switch p.tok.kind {
	case tokNewline, tokSemicolon:
		p.advance()
	case tokEOF:
	default:
		p.fail("expected the end of the line after the value")
		return false
	}
	p.store(Setting{Key: key.text, Value: v, Added: added, Pos: p.at(key.start)}, key.start)
	return true
}

func (p *parser) store(s Setting, offset int) {
	if i, ok := p.last[s.Key]; ok && s.Added {
		prev := p.cfg.Settings[i].Value
		if prev.IsList != s.Value.IsList {
			p.failAt(offset, policy.Quote(s.Key), "a list cannot be added to a string, nor a string to a list")
			return
		}
		if s.Value.IsList {
			// Sharing the array keeps a chain of n additions from taking n²
			// memory; Parse takes the spare capacity away at the end.
			s.Value.List = append(prev.List, s.Value.List...)
		} else {
			// Strings cannot share, so the sum of all steps is bounded.
			p.kept += len(prev.Text)
			if p.kept > 8*MaxConfigSize {
				p.failAt(offset, policy.Quote(s.Key), "too many additions to one string")
				return
			}
			s.Value.Text = prev.Text + s.Value.Text
		}
	}
	p.last[s.Key] = len(p.cfg.Settings)
	p.cfg.Settings = append(p.cfg.Settings, s)
}

func (p *parser) value() (Value, bool) {
	switch p.tok.kind {
	case tokString, tokNumber:
		v := Value{Text: p.tok.text, Pos: p.at(p.tok.start)}
		p.advance()
		return v, true
	case tokOpen:
		return p.list()
	case tokIdent:
		p.fail(`a value must be a number, a string or a list; a word needs quotes: "` + p.tok.text + `"`)
	default:
		p.fail("expected a value: a number, a string or a list")
	}
	return Value{}, false
}

func (p *parser) list() (Value, bool) {
	v := Value{IsList: true, Pos: p.at(p.tok.start)}
	p.depth++
	if p.depth > maxDepth {
		p.fail(fmt.Sprintf("lists nest deeper than %d levels", maxDepth))
		return v, false
	}
	p.advance()
	p.newlines()
	for p.tok.kind != tokClose {
		e, ok := p.value()
		if !ok {
			return v, false
		}
		v.List = append(v.List, e)
		p.newlines()
		if p.tok.kind == tokComma {
			p.advance()
			p.newlines()
		} else if p.tok.kind != tokClose {
			p.fail(`expected "," or "]" in a list that starts at ` + v.Pos.String())
			return v, false
		}
	}
	p.advance()
	p.depth--
	return v, true
}

func (p *parser) newlines() {
	for p.tok.kind == tokNewline {
		p.advance()
	}
}

// recover skips what belongs to the broken statement: the rest of the line, and
// the rest of the list if it broke inside one. A line that starts like an
// assignment ends a broken list, so that a forgotten bracket does not hide the
// rest of the file.
func (p *parser) recover() {
	for {
		switch p.tok.kind {
		case tokEOF:
			return
		case tokOpen:
			p.depth++
		case tokClose:
			p.depth--
		case tokNewline:
			if p.depth <= 0 {
				p.advance()
				return
			}
			p.advance()
			if p.tok.kind == tokIdent && p.assignmentFollows() {
				return
			}
			continue
		}
		p.advance()
	}
}

// assignmentFollows looks past the current word without consuming anything.
func (p *parser) assignmentFollows() bool {
	rest := strings.TrimLeft(string(p.lex.data[p.lex.pos:min(len(p.lex.data), p.lex.pos+64)]), " \t")
	return strings.HasPrefix(rest, "=") || strings.HasPrefix(rest, "+=")
}
