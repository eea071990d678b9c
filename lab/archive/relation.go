package archive

import (
	"strings"
)

// Relation is one alternative of a dependency: a package name and, where Op is
// not empty, a condition on its version.
type Relation struct {
	Name    string
	Op      string // "", "<<", "<=", "=", ">=", ">>"
	Version string
}

func (r Relation) String() string {
	if r.Op == "" {
		return r.Name
	}
	return r.Name + " (" + r.Op + " " + r.Version + ")"
}

// Holds reports whether a package of that version meets the condition. The name
// is not looked at.
func (r Relation) Holds(version string) bool {
	if r.Op == "" {
		return true
	}
	c := CompareVersions(version, r.Version)
	switch r.Op {
	case "<<":
		return c < 0
	case "<=":
		return c <= 0
	case "=":
		return c == 0
	case ">=":
		return c >= 0
	case ">>":
		return c > 0
	}
	return false
}

// Dependency is a list of alternatives of which one suffices, the first being
// the preferred one.
type Dependency []Relation

func (d Dependency) String() string {
	s := make([]string, len(d))
	for i, r := range d {
		s[i] = r.String()
	}
	return strings.Join(s, " | ")
}

// ParseDependencies reads a Depends, Pre-Depends, Recommends or Provides field.
// Architecture qualifiers (name:any) are dropped, because everything here is of
// one architecture.
func ParseDependencies(field string) ([]Dependency, error) {
	var out []Dependency
	for group := range strings.SplitSeq(field, ",") {
		if strings.TrimSpace(group) == "" {
			continue // a trailing comma is legal
		}
		var dep Dependency
		for alt := range strings.SplitSeq(group, "|") {
			r, err := parseRelation(alt)
			if err != nil {
				return nil, err
			}
			dep = append(dep, r)
		}
		out = append(out, dep)
	}
	return out, nil
}

func parseRelation(s string) (Relation, error) {
	text := strings.TrimSpace(s)
	bad := func(msg string) (Relation, error) {
		return Relation{}, &SyntaxError{What: "dependency " + quote(text), Msg: msg}
	}
	name, cond, hasCond := strings.Cut(text, "(")
	name, _, _ = strings.Cut(strings.TrimSpace(name), ":")
	if !validName(name) {
		return bad("not a package name")
	}
	r := Relation{Name: name}
	if !hasCond {
		return r, nil
	}
	cond, rest, closed := strings.Cut(cond, ")")
	if !closed {
		return bad("the version condition has no closing parenthesis")
	}
	if strings.TrimSpace(rest) != "" {
		return bad("text after the version condition")
	}
	cond = strings.TrimSpace(cond)
	n := 0
	for n < len(cond) && strings.IndexByte("<>=", cond[n]) >= 0 {
		n++
	}
	r.Op, r.Version = cond[:n], strings.TrimSpace(cond[n:])
	switch r.Op {
	case "<<", "<=", "=", ">=", ">>":
	case "<", ">": // obsolete spellings, deb-control(5): they mean "or equal"
		r.Op += "="
	default:
		return bad("unknown version operator " + quote(r.Op))
	}
	if r.Version == "" || strings.ContainsAny(r.Version, " \t\n(") {
		return bad("not a version")
	}
	return r, nil
}

// validName accepts Debian package names: letters, digits, "+", "-", "." and,
// as a few virtual packages have them, "_" and upper case.
func validName(s string) bool {
	if s == "" {
		return false
	}
	for i := 0; i < len(s); i++ {
		c := s[i]
		switch {
		case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', isDigit(c):
		case i > 0 && (c == '+' || c == '-' || c == '.' || c == '_'):
		default:
			return false
		}
	}
	return true
}
