package archive

import (
	"bufio"
	"bytes"
	"errors"
	"io"
	"strconv"
)

// maxLine bounds one line of a control file. The longest seen in Debian's
// indexes is a Provides of some 200 kB.
const maxLine = 16 << 20

func quote(s string) string { return strconv.Quote(s) }

// field is one field of a paragraph. Both slices are only good until the next
// call of scanner.Next.
type field struct {
	Name  []byte
	Value []byte // continuation lines joined with '\n', leading blank of each line kept
}

// scanner reads deb822 control data, deb-control(5), one paragraph at a time
// and without keeping what it has passed.
type scanner struct {
	what   string
	r      *bufio.Reader
	line   int
	long   []byte  // a line longer than r's buffer
	text   []byte  // the paragraph's text
	spans  []span  // its fields, as offsets into text, which moves as it grows
	fields []field // handed out
}

type span struct{ name, colon, end int }

func newScanner(what string, r io.Reader) *scanner {
	return &scanner{what: what, r: bufio.NewReaderSize(r, 256<<10)}
}

// Next returns the next paragraph's fields in order. At the end it returns
// io.EOF. The fields are overwritten by the next call.
func (s *scanner) Next() ([]field, error) {
	s.text, s.spans = s.text[:0], s.spans[:0]
	for {
		line, err := s.readLine()
		if err != nil && !errors.Is(err, io.EOF) {
			return nil, err
		}
		atEnd := err != nil
		switch {
		case len(bytes.TrimSpace(line)) == 0:
			if len(s.spans) > 0 {
				return s.finish(), nil
			}
			if atEnd {
				return nil, io.EOF
			}
			continue
		case line[0] == '#':
			// a comment, legal between the lines of a field
		case line[0] == ' ' || line[0] == '\t':
			if len(s.spans) == 0 {
				return nil, s.fail("a continuation line before any field")
			}
			s.text = append(append(s.text, '\n'), bytes.TrimRight(line, " \t\r")...)
			s.spans[len(s.spans)-1].end = len(s.text)
		default:
			colon := bytes.IndexByte(line, ':')
			if colon <= 0 || bytes.ContainsAny(line[:colon], " \t") {
				return nil, s.fail("not a \"Name: value\" line")
			}
			start := len(s.text)
			s.text = append(s.text, line[:colon]...)
			value := bytes.TrimSpace(line[colon+1:])
			s.text = append(s.text, value...)
			s.spans = append(s.spans, span{start, start + colon, len(s.text)})
		}
		if atEnd {
			if len(s.spans) == 0 {
				return nil, io.EOF
			}
			return s.finish(), nil
		}
	}
}

func (s *scanner) finish() []field {
	s.fields = s.fields[:0]
	for _, p := range s.spans {
		s.fields = append(s.fields, field{s.text[p.name:p.colon], s.text[p.colon:p.end]})
	}
	return s.fields
}

func (s *scanner) fail(msg string) error {
	return &SyntaxError{What: s.what, Line: s.line, Msg: msg}
}

// readLine returns a line without its newline; with io.EOF the last one, which
// may be empty.
func (s *scanner) readLine() ([]byte, error) {
	s.line++
	line, err := s.r.ReadSlice('\n')
	if errors.Is(err, bufio.ErrBufferFull) {
		s.long = s.long[:0]
		for errors.Is(err, bufio.ErrBufferFull) {
			if len(s.long) > maxLine {
				return nil, s.fail("a line longer than " + strconv.Itoa(maxLine) + " bytes")
			}
			s.long = append(s.long, line...)
			line, err = s.r.ReadSlice('\n')
		}
		s.long = append(s.long, line...)
		line = s.long
	}
	return bytes.TrimSuffix(line, []byte("\n")), err
}

// equalFold compares a field's name with a lower-case name. Field names are
// not case-sensitive.
func equalFold(name []byte, lower string) bool {
	if len(name) != len(lower) {
		return false
	}
	for i := range name {
		c := name[i]
		if 'A' <= c && c <= 'Z' {
			c += 'a' - 'A'
		}
		if c != lower[i] {
			return false
		}
	}
	return true
}

// get returns a field's value as a string.
func get(fields []field, lower string) string {
	for _, f := range fields {
		if equalFold(f.Name, lower) {
			return string(f.Value)
		}
	}
	return ""
}
