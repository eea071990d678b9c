package outside

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/xen-hvi/hvi/engine/printable"
)

// record is one thing as both sides describe it: fields by name.
type record map[string]string

// view is all things of a kind, by what identifies one.
type view map[string]record

// comparison is the outcome of comparing two views.
type comparison struct {
	// Things and Values count what was compared: things that were there before
	// and after the image was taken, and their fields that had not changed.
	Things int `json:"things"`
	Values int `json:"values"`
	// Changed counts things and fields that the guest itself had changed in
	// between, so that nothing can be said of them.
	Changed int `json:"changed"`
	// Extra counts things that hvi sees and the guest doesn't show, rightly so.
	Extra int `json:"extra,omitzero"`
	// Different are those that differ, the first few in words.
	Different int      `json:"different"`
	Samples   []string `json:"samples,omitempty"`
}

const maxSamples = 8

func (c *comparison) differ(format string, args ...any) {
	c.Different++
	if len(c.Samples) < maxSamples {
		c.Samples = append(c.Samples, fmt.Sprintf(format, args...))
	}
}

// equal compares one value.
func (c *comparison) equal(what, got, want string) {
	c.Values++
	if got != want {
		c.differ("%s: %q, the guest says %q", what, got, want)
	}
}

// compare compares what hvi saw with what the guest said before and after. rest
// says of a thing that the guest shows at neither time whether that is right.
func compare(before, after, got view, rest func(record) bool) *comparison {
	c := &comparison{}
	for _, id := range slices.Sorted(maps.Keys(before)) {
		want, still := before[id], after[id]
		if still == nil {
			c.Changed++
			continue
		}
		have := got[id]
		if have == nil {
			c.Things++
			c.differ("%s %v is missing", id, want)
			continue
		}
		c.Things++
		for _, field := range slices.Sorted(maps.Keys(want)) {
			if want[field] != still[field] {
				c.Changed++
				continue
			}
			c.equal(id+" "+field, have[field], want[field])
		}
	}
	for _, id := range slices.Sorted(maps.Keys(got)) {
		switch {
		case before[id] != nil && after[id] != nil:
		case before[id] != nil || after[id] != nil:
			// It came or went around the time the image was taken: it may be there.
		case rest != nil && rest(got[id]):
			c.Extra++
		default:
			c.differ("%s %v is not the guest's", id, got[id])
		}
	}
	return c
}

// text is a guest's string as hvi shows it.
func text(s string) string { return string(printable.Escape(s)) }

// unescape undoes the escapes that /proc and /dev/kmsg write: a backslash with
// three octal digits, or with x and two hexadecimal ones.
func unescape(s string) string {
	var b strings.Builder
	for len(s) > 0 {
		var c byte
		switch {
		case len(s) >= 4 && s[0] == '\\' && s[1] == 'x' && scan(s[2:4], "%x", &c):
		case len(s) >= 4 && s[0] == '\\' && scan(s[1:4], "%o", &c):
		default:
			b.WriteByte(s[0])
			s = s[1:]
			continue
		}
		b.WriteByte(c)
		s = s[4:]
	}
	return b.String()
}

func scan(s, format string, into *byte) bool {
	n, err := fmt.Sscanf(s, format+"\n", into)
	return n == 1 && err == nil
}

// set is a list whose order says nothing.
func set(items []string) string {
	items = slices.Clone(items)
	slices.Sort(items)
	return strings.Join(items, ",")
}
