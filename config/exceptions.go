package config

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"strings"
	"unicode/utf8"

	"github.com/xen-hvi/hvi/engine/policy"
)

// ExceptionsFile is the host's file of exceptions, below the directory.
const ExceptionsFile = "exceptions.toml"

// Exceptions reads the host's exceptions. A file that is not there means none.
func (f *Files) Exceptions() ([]policy.Exception, error) {
	path := f.path(ExceptionsFile)
	data, _, err := f.read(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	return ParseExceptions(path, data)
}

// ParseExceptions reads a file of exceptions; source is its name in errors and
// origins.
func ParseExceptions(source string, data []byte) ([]policy.Exception, error) {
	d, err := parse(source, data)
	if err != nil {
		return nil, err
	}
	var b policy.Builder
	feedExceptions(&b, d)
	refuseViews(&b, d)
	for _, t := range d.tables {
		b.Fail(unknownException("table", t))
	}
	for _, s := range d.settings {
		b.Fail(unknownException("setting", s))
	}
	return b.BuildExceptions()
}

func unknownException(what string, s setting) error {
	return &policy.Error{
		Origin: s.at, What: what, Value: s.name(), Reason: "does not belong here",
		Hint: "a file of exceptions has nothing but tables [[" + wordException + "]]",
	}
}

// feedExceptions gives the builder the exceptions in a document; not are keys
// that they cannot have there.
func feedExceptions(b *policy.Builder, d *document, not ...string) {
	for _, t := range d.exceptions {
		words := make([]policy.Word, 0, len(t.settings))
		for _, s := range t.settings {
			w := policy.Word{Key: s.name(), Text: s.text, KeyAt: s.at, At: s.value.at}
			if s.kind != kindText && s.kind != kindDate {
				b.Fail(s.wrongKind(kindText))
				continue
			}
			words = append(words, w)
		}
		b.Exception(words, t.at, not...)
	}
}

// refuseExceptions makes exceptions an error, where no one would look for them.
func refuseExceptions(b *policy.Builder, d *document) {
	for _, t := range d.exceptions {
		b.Fail(&policy.Error{
			Origin: t.at, What: "table", Value: wordException, Reason: "cannot stand in this file",
			Hint: "exceptions stand in " + DefaultDir + "/" + ExceptionsFile + " and in policies",
		})
	}
}

// FormatExceptions writes exceptions as [ParseExceptions] reads them, below
// head, which is a comment.
func FormatExceptions(head string, list []policy.Exception) []byte {
	var b bytes.Buffer
	if head != "" {
		comment(&b, head)
	}
	for i, e := range list {
		if i > 0 || head != "" {
			b.WriteByte('\n')
		}
		fmt.Fprintf(&b, "[[%s]]\n", wordException)
		for _, f := range policy.ExceptionFields() {
			if v := f.Get(e); v != "" {
				fmt.Fprintf(&b, "%s = %s\n", f.Name, quoteTOML(v))
			}
		}
	}
	return b.Bytes()
}

// quoteTOML writes a basic string.
func quoteTOML(s string) string {
	var b strings.Builder
	b.WriteByte('"')
	for _, r := range s {
		switch {
		case r == '"' || r == '\\':
			b.WriteByte('\\')
			b.WriteRune(r)
		case r < ' ' || r == 0x7f || r == utf8.RuneError:
			fmt.Fprintf(&b, `\u%04X`, r)
		default:
			b.WriteRune(r)
		}
	}
	b.WriteByte('"')
	return b.String()
}
