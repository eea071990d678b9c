// Package printable makes strings that a guest or a domain's owner chose safe to
// show: on a terminal, in a log, as JSON. It holds no state.
package printable

import (
	"fmt"
	"strconv"
	"strings"
	"unicode/utf8"
)

// MaxText is the greatest length of a Text in bytes; what is longer is cut and
// ends in an ellipsis. It holds any name that Xen's toolstacks accept.
const MaxText = 1024

const ellipsis = "…"

// Text is a string chosen by a guest or by the owner of a domain, in the form
// that is safe to show: printable characters only, no control or direction
// characters, backslash and double quote written \\ and \". Make one with
// Escape.
//
// A Text that was made by conversion instead is still harmless: String and the
// JSON encoding replace what isn't printable.
type Text string

// Escape returns s as Text. Bytes that are not UTF-8 become \xNN, characters
// that are not printable become \n, \u202e and the like as in a Go string
// literal, so two different strings never look the same.
func Escape(s string) Text { return escape(s, `\"`) }

// escape replaces what isn't printable and puts a backslash before each of
// meta. The result is cut between two characters of s.
func escape(s, meta string) Text {
	if plain(s, meta) {
		return Text(s)
	}
	b := make([]byte, 0, min(len(s), MaxText))
	cut := 0 // where the ellipsis would go
	for len(s) > 0 {
		r, n := utf8.DecodeRuneInString(s)
		if strings.ContainsRune(meta, r) {
			b = append(b, '\\')
		}
		b = append(b, printable(r, s[:n])...)
		s = s[n:]
		if len(b) <= MaxText-len(ellipsis) {
			cut = len(b)
		}
		if len(b) > MaxText {
			return Text(b[:cut]) + ellipsis
		}
	}
	return Text(b)
}

// plain reports that escape has nothing to do, which is so for nearly all texts.
func plain(s, meta string) bool {
	if len(s) > MaxText {
		return false
	}
	for i := range len(s) {
		if c := s[i]; c < ' ' || c > '~' || strings.IndexByte(meta, c) >= 0 {
			return false
		}
	}
	return true
}

// printable returns the character r, encoded as raw, or its escape.
func printable(r rune, raw string) string {
	switch {
	case r == utf8.RuneError && len(raw) == 1:
		return fmt.Sprintf(`\x%02x`, raw[0])
	case strconv.IsPrint(r):
		return raw
	}
	q := strconv.QuoteRune(r)
	return q[1 : len(q)-1]
}

// String returns the text, printable even where t was not made by Escape.
func (t Text) String() string { return string(t.safe()) }

// Quoted returns the text between double quotes. A quote inside is already
// escaped, so the end of the text can be told.
func (t Text) Quoted() string { return `"` + t.String() + `"` }

// safe returns t with what isn't printable escaped; backslash and quote are
// left, so it changes nothing that Escape made.
func (t Text) safe() Text {
	clean := len(t) <= MaxText
	for _, r := range string(t) {
		if !clean {
			break
		}
		// RuneError is itself printable: look for the invalid byte below.
		clean = strconv.IsPrint(r) && r != utf8.RuneError
	}
	if clean {
		return t
	}
	return escape(string(t), "")
}

// MarshalText writes the safe form.
func (t Text) MarshalText() ([]byte, error) { return []byte(t.safe()), nil }

// UnmarshalText takes any bytes and keeps them in the safe form.
func (t *Text) UnmarshalText(b []byte) error {
	*t = Text(b).safe()
	return nil
}
