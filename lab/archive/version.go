package archive

import "strings"

// CompareVersions orders two Debian versions as dpkg does: negative where a is
// older than b, 0 where they are equal, positive where a is newer. It accepts
// any string, so that one odd version in an index can't stop a run.
//
// The rules are deb-version(7): epoch, then upstream version, then revision;
// "~" sorts before everything, even the end; letters before other characters;
// runs of digits by value.
func CompareVersions(a, b string) int {
	ae, au, ar := splitVersion(a)
	be, bu, br := splitVersion(b)
	if c := compareDigits(ae, be); c != 0 {
		return c
	}
	if c := comparePart(au, bu); c != 0 {
		return c
	}
	return comparePart(ar, br)
}

// splitVersion cuts [epoch:]upstream[-revision]. A missing revision compares
// like "0", which comparePart gives for the empty string.
func splitVersion(v string) (epoch, upstream, revision string) {
	if i := strings.IndexByte(v, ':'); i > 0 && allDigits(v[:i]) {
		epoch, v = v[:i], v[i+1:]
	}
	if i := strings.LastIndexByte(v, '-'); i >= 0 {
		return epoch, v[:i], v[i+1:]
	}
	return epoch, v, ""
}

func allDigits(s string) bool {
	for i := 0; i < len(s); i++ {
		if !isDigit(s[i]) {
			return false
		}
	}
	return true
}

func isDigit(c byte) bool { return '0' <= c && c <= '9' }

// compareDigits compares decimal numbers of any length; the empty string is 0.
func compareDigits(a, b string) int {
	a, b = strings.TrimLeft(a, "0"), strings.TrimLeft(b, "0")
	if len(a) != len(b) {
		return len(a) - len(b)
	}
	return strings.Compare(a, b)
}

// weight orders the characters of a non-digit run.
func weight(c byte) int {
	switch {
	case c == '~':
		return -1
	case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z':
		return int(c)
	default:
		return int(c) + 256
	}
}

// comparePart alternates between runs of non-digits, compared by weight with
// the end of the run weighing 0, and runs of digits, compared by value.
func comparePart(a, b string) int {
	for a != "" || b != "" {
		for (a != "" && !isDigit(a[0])) || (b != "" && !isDigit(b[0])) {
			wa, wb := 0, 0
			if a != "" && !isDigit(a[0]) {
				wa = weight(a[0])
			}
			if b != "" && !isDigit(b[0]) {
				wb = weight(b[0])
			}
			if wa != wb {
				return wa - wb
			}
			a, b = a[1:], b[1:]
		}
		na, nb := digitRun(a), digitRun(b)
		if c := compareDigits(a[:na], b[:nb]); c != 0 {
			return c
		}
		a, b = a[na:], b[nb:]
	}
	return 0
}

func digitRun(s string) int {
	n := 0
	for n < len(s) && isDigit(s[n]) {
		n++
	}
	return n
}
