package xlplugin

import (
	"bytes"
	"strings"

	"github.com/xen-hvi/hvi/engine/policy"
)

// tokenKind is the kind of a lexical token of xl's config language.
type tokenKind uint8

const (
	tokEOF tokenKind = iota
	tokNewline
	tokIdent
	tokNumber
	tokString
	tokComma
	tokOpen
	tokClose
	tokAssign
	tokAdd
	tokSemicolon
	tokBad
)

var tokenNames = [...]string{
	tokEOF:       "the end of the config",
	tokNewline:   "the end of the line",
	tokIdent:     "a word",
	tokNumber:    "a number",
	tokString:    "a string",
	tokComma:     `","`,
	tokOpen:      `"["`,
	tokClose:     `"]"`,
	tokAssign:    `"="`,
	tokAdd:       `"+="`,
	tokSemicolon: `";"`,
	tokBad:       "something that is not part of the language",
}

// token is one token. text is the token's value: the word, the digits, or the
// string without its quotes and escapes; for tokBad it is the offending text.
type token struct {
	kind  tokenKind
	text  string
	start int    // offset of the first byte
	why   string // for tokBad: what is wrong
}

// lexer cuts a config into tokens. It never fails: what is not a token is
// returned as tokBad, with the reason.
//
// The language is the one of tools/libs/util/libxlu_cfg_l.l, unchanged but for
// the addition of += from 4.11 to 4.22.
type lexer struct {
	data []byte
	pos  int
	warn func(offset int, text string)
}

func isIdentStart(c byte) bool { return 'a' <= c && c <= 'z' }

func isIdent(c byte) bool {
	return c == '.' || c == '_' || '0' <= c && c <= '9' || 'a' <= c && c <= 'z'
}

func isDigit(c byte) bool { return '0' <= c && c <= '9' }

// isNumber accepts what xl's lexer takes into a number: hexadecimal digits in
// lower case and the x of 0x, in any order. Whether it is one is asked later.
func isNumber(c byte) bool { return isDigit(c) || 'a' <= c && c <= 'f' || c == 'x' }

func (l *lexer) run(ok func(byte) bool) string {
	start := l.pos
	for l.pos < len(l.data) && ok(l.data[l.pos]) {
		l.pos++
	}
	return string(l.data[start:l.pos])
}

func (l *lexer) next() token {
	for l.pos < len(l.data) && (l.data[l.pos] == ' ' || l.data[l.pos] == '\t') {
		l.pos++
	}
	start := l.pos
	if start >= len(l.data) {
		return token{kind: tokEOF, start: start}
	}
	one := func(k tokenKind) token {
		l.pos++
		return token{kind: k, start: start}
	}
	switch c := l.data[start]; {
	case isIdentStart(c):
		return token{kind: tokIdent, text: l.run(isIdent), start: start}
	case isDigit(c):
		return token{kind: tokNumber, text: l.run(isNumber), start: start}
	case c == '\n':
		return one(tokNewline)
	case c == ',':
		return one(tokComma)
	case c == '[':
		return one(tokOpen)
	case c == ']':
		return one(tokClose)
	case c == '=':
		return one(tokAssign)
	case c == ';':
		return one(tokSemicolon)
	case c == '+' && start+1 < len(l.data) && l.data[start+1] == '=':
		l.pos += 2
		return token{kind: tokAdd, start: start}
	case c == '#':
		if n := bytes.IndexByte(l.data[start:], '\n'); n >= 0 {
			l.pos = start + n + 1
			return token{kind: tokNewline, start: start}
		}
		return l.bad(start, "a comment on the last line needs a newline after it")
	case c == '\'' || c == '"':
		return l.quoted(start, c)
	case c == '\r':
		return l.bad(start, "a carriage return: xl does not accept DOS line ends")
	case 'A' <= c && c <= 'Z' || c == '_':
		return l.bad(start, "a key is made of lower-case letters, digits, '.' and '_', and starts with a letter; a word used as a value needs quotes")
	case strings.IndexByte("+-.():", c) >= 0:
		return l.bad(start, "not part of the config language: a value is a number without a sign, a quoted string or a list; there are no expressions")
	default:
		return l.bad(start, "not part of the config language")
	}
}

// bad returns the offending text up to the next blank, as xl does, so that one
// mistake is reported once.
//
// A single such character right at the end of the config is not an error to xl
// (its lexer waits for the rest of the bad text and never gets it), and a guest
// started from such a config exists; so it is none here.
func (l *lexer) bad(start int, why string) token {
	if start == len(l.data)-1 {
		l.warn(start, "the last character of the config is not part of the language; xl ignores it")
		l.pos = len(l.data)
		return token{kind: tokEOF, start: start}
	}
	l.pos++
	for l.pos < len(l.data) && l.data[l.pos] != ' ' && l.data[l.pos] != '\t' && l.data[l.pos] != '\n' {
		l.pos++
	}
	return token{kind: tokBad, text: string(l.data[start:l.pos]), start: start, why: why}
}

// quoted reads a string and undoes its escapes.
func (l *lexer) quoted(start int, quote byte) token {
	end := start + 1
	for {
		if end >= len(l.data) || l.data[end] == '\n' {
			return l.bad(start, "a string is not closed before the end of its line")
		}
		c := l.data[end]
		if c == quote {
			break
		}
		if c == '\\' {
			end++
			if end >= len(l.data) || l.data[end] == '\n' {
				return l.bad(start, "a string is not closed before the end of its line")
			}
		}
		end++
	}
	l.pos = end + 1
	raw := l.data[start+1 : end]
	text, problem, at := l.dequote(raw, start+1)
	if problem != "" {
		return token{kind: tokBad, text: string(l.data[start:l.pos]), start: at, why: problem}
	}
	return token{kind: tokString, text: text, start: start}
}

var simpleEscapes = map[byte]byte{
	'"': '"', '\'': '\'', '\\': '\\',
	'a': 7, 'b': 8, 'f': 12, 'n': '\n', 'r': '\r', 't': '\t', 'v': 11,
}

// dequote undoes the escapes of a string the way xl does (libxlu_cfg.c,
// xlu__cfgl_dequote, the same from 4.11 to 4.22), its faults included: a name
// must come out here as it came out there. offset is where raw starts.
func (l *lexer) dequote(raw []byte, offset int) (text, problem string, at int) {
	var b strings.Builder
	for i := 0; i < len(raw); {
		c := raw[i]
		if c == 0 {
			return "", "a NUL byte in a string", offset + i
		}
		if c != '\\' {
			b.WriteByte(c)
			i++
			continue
		}
		esc := raw[i+1] // quoted made sure that something follows
		switch plain, ok := simpleEscapes[esc]; {
		case ok:
			b.WriteByte(plain)
			i += 2
		case esc == 'x':
			return "", `no xl accepts a hexadecimal escape (\x); write the character itself`, offset + i
		case '0' <= esc && esc <= '7':
			n := numericEscape(raw[i+2:])
			if n == 0 {
				return "", "a numeric escape needs two more digits after its first", offset + i
			}
			l.warn(offset+i, "xl drops numeric escapes: the string does not contain this character")
			i += 2 + n
		default:
			return "", "an unknown escape after the backslash", offset + i
		}
	}
	return b.String(), "", 0
}

// numericEscape returns how many bytes after the first digit xl takes into a
// numeric escape: what strtoul in base 10 takes of the next three, if that is
// at least two, and otherwise 0, which is an error.
func numericEscape(s []byte) int {
	s = s[:min(3, len(s))]
	i := 0
	for i < len(s) && (s[i] == ' ' || '\t' <= s[i] && s[i] <= '\r') {
		i++
	}
	if i < len(s) && (s[i] == '+' || s[i] == '-') {
		i++
	}
	digits := i
	for i < len(s) && isDigit(s[i]) {
		i++
	}
	if i == digits || i < 2 {
		return 0
	}
	return i
}

// describe names a token for an error message.
func (t token) describe() string {
	switch t.kind {
	case tokIdent, tokNumber, tokString, tokBad:
		return policy.Quote(t.text)
	default:
		return tokenNames[t.kind]
	}
}
