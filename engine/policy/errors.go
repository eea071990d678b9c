package policy

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"
)

// Error is one thing wrong with a declared policy. Errors of a [Builder] are
// joined; reach each of them with [errors.As], or all with [Errors].
type Error struct {
	// Origin is where the value was written. It is zero for an error of a
	// Parse function, which does not know.
	Origin Origin
	// What names the kind of thing that is wrong: "mode", "guard", "key".
	What string
	// Value is what was written, as it was written. It may be anything; Error
	// quotes and shortens it.
	Value string
	// Reason says what is wrong when it is not that the word is unknown.
	Reason string
	// Nearest is the known word closest to Value, or empty when none is close.
	Nearest string
	// Known is every word that would have been right here, or nil.
	Known []string
	// Hint is advice added at the end, or empty.
	Hint string
}

// Error gives the place, what is wrong, the nearest known word and all of them,
// on one line.
func (e *Error) Error() string {
	var b strings.Builder
	if !e.Origin.IsZero() {
		b.WriteString(e.Origin.String())
		b.WriteString(": ")
	}
	switch {
	case e.Value == "" && e.Reason != "":
		fmt.Fprintf(&b, "%s %s", e.What, e.Reason)
	case e.Reason != "":
		fmt.Fprintf(&b, "%s %s %s", e.What, Quote(e.Value), e.Reason)
	default:
		fmt.Fprintf(&b, "unknown %s %s", e.What, Quote(e.Value))
	}
	if e.Nearest != "" {
		fmt.Fprintf(&b, "; did you mean %s?", Quote(e.Nearest))
	}
	if len(e.Known) > 0 && e.Reason == "" {
		fmt.Fprintf(&b, " (known: %s)", strings.Join(e.Known, ", "))
	}
	if e.Hint != "" {
		b.WriteString("; ")
		b.WriteString(e.Hint)
	}
	return b.String()
}

// at returns the error with its place, keeping the one it has.
func (e *Error) at(o Origin) *Error {
	if !e.Origin.IsZero() {
		return e
	}
	c := *e
	c.Origin = o
	return &c
}

// Errors returns every [*Error] joined into err, in the order they were found.
func Errors(err error) []*Error {
	switch e := err.(type) {
	case nil:
		return nil
	case *Error:
		return []*Error{e}
	case interface{ Unwrap() []error }:
		var all []*Error
		for _, sub := range e.Unwrap() {
			all = append(all, Errors(sub)...)
		}
		return all
	default:
		return Errors(errors.Unwrap(err))
	}
}

// UnknownWord makes the error for a word that is none of known: with the
// nearest of them, and the list. what names the kind of word ("guard",
// "setting"). It is exported for front ends that have keys of their own.
func UnknownWord(what, value string, known []string, origin Origin) *Error {
	return &Error{
		Origin:  origin,
		What:    what,
		Value:   value,
		Nearest: Nearest(value, known),
		Known:   slices.Clone(known),
	}
}

// maxQuoted bounds how much of a foreign value an error repeats, in bytes.
const maxQuoted = 80

// Quote makes a foreign string fit for a terminal and a log line: printable
// ASCII in double quotes, everything else escaped, long ones cut with "…" after
// the closing quote.
func Quote(s string) string {
	if len(s) <= maxQuoted {
		return strconv.QuoteToASCII(s)
	}
	cut := maxQuoted
	for cut > maxQuoted-utf8.UTFMax && !utf8.RuneStart(s[cut]) {
		cut--
	}
	return strconv.QuoteToASCII(s[:cut]) + "…"
}

// maxCompared is the longest word, in bytes, that is compared with the known
// ones; no known word comes near it and the comparison is quadratic.
const maxCompared = 64

// Nearest returns the word of known that takes the fewest single-letter edits
// (insertions, deletions, substitutions, swaps of neighbours) to get from
// value, or "" when none is close enough to be what was meant. Letter case and
// the choice between "-" and "_" count for nothing. The first of equals wins.
func Nearest(value string, known []string) string {
	if value == "" || len(value) > maxCompared {
		return ""
	}
	folded := fold(value)
	best, bestDistance := "", -1
	for _, k := range known {
		d := distance(folded, fold(k))
		// A third of the letters, and always two, may be wrong, but never as
		// many as there are: "x" is not a misspelled "off".
		allowed := max(2, max(len(value), len(k))/3)
		if d > allowed || d >= min(len(value), len(k)) {
			continue
		}
		if bestDistance < 0 || d < bestDistance {
			best, bestDistance = k, d
		}
	}
	return best
}

func fold(s string) string {
	return strings.ReplaceAll(strings.ToLower(s), "_", "-")
}

// distance is the optimal string alignment distance of a and b in bytes.
func distance(a, b string) int {
	before := make([]int, len(b)+1)
	prev := make([]int, len(b)+1)
	cur := make([]int, len(b)+1)
	for j := range prev {
		prev[j] = j
	}
	for i := 1; i <= len(a); i++ {
		cur[0] = i
		for j := 1; j <= len(b); j++ {
			cost := 1
			if a[i-1] == b[j-1] {
				cost = 0
			}
			cur[j] = min(prev[j]+1, cur[j-1]+1, prev[j-1]+cost)
			if i > 1 && j > 1 && a[i-1] == b[j-2] && a[i-2] == b[j-1] {
				cur[j] = min(cur[j], before[j-2]+1)
			}
		}
		before, prev, cur = prev, cur, before
	}
	return prev[len(b)]
}

func word[T ~uint8](words []string, v T, what string) string {
	if int(v) < len(words) {
		return words[v]
	}
	return what + "(" + strconv.Itoa(int(v)) + ")"
}

func marshalWord[T ~uint8](words []string, v T, what string) ([]byte, error) {
	if int(v) < len(words) {
		return []byte(words[v]), nil
	}
	return nil, &Error{What: what, Value: strconv.Itoa(int(v)), Reason: "is not a value of its type"}
}

func parseWord[T ~uint8](words []string, s, what, hint string) (T, error) {
	if i := slices.Index(words, s); i >= 0 {
		return T(i), nil
	}
	e := UnknownWord(what, s, words, Origin{})
	e.Hint = hint
	return 0, e
}
