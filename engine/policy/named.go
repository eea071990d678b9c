package policy

import (
	"errors"
	"fmt"
	"strings"
)

// Named is a policy that an admin keeps by a name of its own, for domains to
// name as they name a preset. It has no mode: the domain sets it, and under
// observe what would block only alerts, so that the same policy can be tried
// out before it is enforced.
type Named struct {
	Name string `json:"name"`
	// Origin is where it is written: a file.
	Origin Origin `json:"origin"`
	// Guards are the actions it sets; the domain's own come before them.
	Guards []GuardSetting `json:"guards,omitempty"`
	// RequireAttach holds for every domain that names the policy and does not
	// say otherwise, unless its mode is off.
	RequireAttach bool `json:"require_attach,omitempty"`
	// RequireAttachAt is where that was written, or zero if it was not.
	RequireAttachAt Origin `json:"require_attach_at,omitzero"`
	// OnEngineFailure holds for them in the same way, if OnEngineFailureAt is
	// where it was written.
	OnEngineFailure   EngineFailure `json:"on_engine_failure"`
	OnEngineFailureAt Origin        `json:"on_engine_failure_at,omitzero"`
	// Exceptions hold for every domain that names the policy.
	Exceptions []Exception `json:"exceptions,omitempty"`
	// Lists do, too, in the order of [Lists].
	Lists []ListSetting `json:"lists,omitempty"`
	// Views are those that they have; none for the one that shows nothing.
	Views []View `json:"views,omitempty"`
}

// Policies are the policies an admin keeps. Implementations are safe for
// concurrent use.
type Policies interface {
	// Policy reads the policy of a name that satisfies [CheckName]. It returns
	// nil if there is none, and an error if it cannot be used.
	Policy(name string) (*Named, error)
	// Names lists the policies there are, for messages. It leaves out what it
	// cannot read.
	Names() []string
}

// MaxName is the longest name of a policy, in bytes.
const MaxName = 64

// CheckName says what is wrong with the name of an admin's policy, or nil: it
// is a letter or digit, followed by at most 63 letters, digits, dots,
// underscores and dashes, and is no preset's.
func CheckName(name string) error {
	const alnum = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"
	e := &Error{What: "policy name", Value: name}
	switch {
	case name == "":
		e.Reason = "is empty"
	case len(name) > MaxName:
		e.Reason = fmt.Sprintf("is longer than %d bytes", MaxName)
	case strings.Trim(name, alnum+"._-") != "":
		e.Reason, e.Hint = "has a character that names do not have", `letters, digits, ".", "_" and "-" are allowed`
	case !strings.Contains(alnum, name[:1]):
		e.Reason = "does not begin with a letter or a digit"
	default:
		if _, err := ParsePreset(name); err != nil {
			return nil
		}
		e.Reason = "is built in and cannot be defined anew"
	}
	return e
}

// Validate checks a policy that no [Builder] made, and returns everything that
// is wrong with it, joined.
func (n Named) Validate() error {
	var errs []error
	if err := CheckName(n.Name); err != nil {
		errs = append(errs, place(err, n.Origin))
	}
	if n.Origin.IsZero() {
		errs = append(errs, &Error{What: "policy", Value: n.Name, Reason: "is written nowhere"})
	}
	if _, err := n.OnEngineFailure.MarshalText(); err != nil {
		errs = append(errs, err)
	}
	errs = append(errs, checkGuards(n.Guards)...)
	errs = append(errs, checkLists(n.Lists)...)
	errs = append(errs, checkViews(n.Views, n.Guards)...)
	return errors.Join(append(errs, checkExceptions(n.Exceptions)...)...)
}

// find looks a policy up. Of a preset there is nothing to be known but its
// name: named is nil.
func find(name string, from Policies) (named *Named, found bool, err error) {
	if _, err := ParsePreset(name); err == nil {
		return nil, true, nil
	}
	if from == nil || CheckName(name) != nil {
		return nil, false, nil
	}
	named, err = from.Policy(name)
	return named, named != nil, err
}

func unknownPolicy(name string, from Policies) error {
	if from == nil {
		_, err := ParsePreset(name)
		return err
	}
	words := make([]string, 0, len(presets))
	for _, p := range presets {
		words = append(words, p.Name)
	}
	return UnknownWord("policy", name, append(words, from.Names()...), Origin{})
}

// inherit takes over what the named policy says and the domain does not.
func (s *Spec) inherit() {
	if s.Named == nil || s.Mode == ModeOff {
		return
	}
	if s.Origins.RequireAttach.IsZero() {
		s.RequireAttach, s.Origins.RequireAttach = s.Named.RequireAttach, s.Named.RequireAttachAt
	}
	if s.Origins.OnEngineFailure.IsZero() {
		s.OnEngineFailure, s.Origins.OnEngineFailure = s.Named.OnEngineFailure, s.Named.OnEngineFailureAt
	}
}

// Says reports whether the spec itself says what was written at a place, and has
// not taken it over from the policy that it names.
func (s Spec) Says(at Origin) bool {
	return !at.IsZero() && (s.Named == nil || at != s.Named.RequireAttachAt && at != s.Named.OnEngineFailureAt)
}

// Refresh gives the spec with the policy it names as that is now, for a spec
// that was kept. If the policy is not there any more, it stays as it was kept,
// and found is false; so it does beside an error, which is that the policy
// cannot be used.
func (s Spec) Refresh(from Policies) (fresh Spec, found bool, err error) {
	if s.Named == nil {
		return s, true, nil
	}
	now, found, err := find(s.Preset, from)
	if err != nil || !found {
		return s, false, err
	}
	if s.Origins.RequireAttach == s.Named.RequireAttachAt {
		s.RequireAttach, s.Origins.RequireAttach = false, Origin{}
	}
	if s.Origins.OnEngineFailure == s.Named.OnEngineFailureAt {
		s.OnEngineFailure, s.Origins.OnEngineFailure = Release, Origin{}
	}
	s.Named = now
	s.inherit()
	return s, true, nil
}
