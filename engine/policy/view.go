package policy

import (
	"fmt"
	"slices"
	"strings"
)

// View is a view that a policy declares: which guards of memory hold while the
// guest's vCPUs run in it, and who may have them run in it. Guards of anything else
// hold in every view. A policy that declares none has one, in which all hold and of
// which nothing is shown.
type View struct {
	Name string `json:"name"`
	// Guards are those that hold in it, in the order of [Guards]; none is possible.
	Guards []GuardName `json:"guards"`
	// Switch is who may have a domain switched to it.
	Switch ViewSwitch `json:"switch"`
	// Initial says that a domain runs in it first. It is so for one of a policy's
	// views.
	Initial bool   `json:"initial,omitempty"`
	Origin  Origin `json:"origin,omitzero"`
}

// Limits of views.
const (
	// MaxViews is how many a policy can declare. Xen has ten of a domain
	// (MAX_ALTP2M, xen/arch/x86/include/asm/domain.h in 4.17); the host's is one of
	// them, and the one for steps over breakpoints another.
	MaxViews = 8
	// MaxViewName is the longest name, in bytes.
	MaxViewName = 32
)

// Holds reports whether a guard holds in the view.
func (v View) Holds(name GuardName) bool {
	g, _ := LookupGuard(name)
	return !g.Memory || slices.Contains(v.Guards, name)
}

// MemoryGuards returns the guards of memory, which hold in the views that name them.
func MemoryGuards() []GuardName {
	var names []GuardName
	for _, g := range guards {
		if g.Memory {
			names = append(names, g.Name)
		}
	}
	return names
}

// ViewSwitch is who may have a domain switched to a view.
//
// The zero value is [SwitchAdmin].
type ViewSwitch uint8

const (
	// SwitchAdmin lets whoever may change a domain's protection do so.
	SwitchAdmin ViewSwitch = iota
	// SwitchNobody lets nobody: the domain is in it from the start, or never.
	SwitchNobody
)

var viewSwitchWords = []string{SwitchAdmin: "admin", SwitchNobody: "nobody"}

// String returns the word, or "switch(N)" for a value outside the type.
func (s ViewSwitch) String() string { return word(viewSwitchWords, s, "switch") }

// MarshalText implements [encoding.TextMarshaler]. It fails for a value outside
// the type.
func (s ViewSwitch) MarshalText() ([]byte, error) { return marshalWord(viewSwitchWords, s, "switch") }

// UnmarshalText implements [encoding.TextUnmarshaler]; it leaves s alone on error.
func (s *ViewSwitch) UnmarshalText(text []byte) error {
	v, err := parseWord[ViewSwitch](viewSwitchWords, string(text), "switch", "")
	if err != nil {
		return err
	}
	*s = v
	return nil
}

// ViewSwitches returns the words for who may have a domain switched to a view.
func ViewSwitches() []string { return slices.Clone(viewSwitchWords) }

// hostView is what the view is called that Xen has of every domain.
const hostView = "host"

// CheckViewName says what is wrong with the name of a view, or nil: it is a small
// letter, followed by at most 31 small letters, digits, underscores and dashes.
func CheckViewName(name string) error {
	const letters = "abcdefghijklmnopqrstuvwxyz"
	e := &Error{What: "view name", Value: name}
	switch {
	case name == "":
		e.Reason = "is empty"
	case len(name) > MaxViewName:
		e.Reason = fmt.Sprintf("is longer than %d bytes", MaxViewName)
	case strings.Trim(name, letters+"0123456789_-") != "":
		e.Reason, e.Hint = "has a character that such names do not have", `small letters, digits, "_" and "-" are allowed`
	case !strings.Contains(letters, name[:1]):
		e.Reason = "does not begin with a small letter"
	case name == hostView:
		e.Reason = "is that of the view that every domain has"
	default:
		return nil
	}
	return e
}

// ViewWords are the words of a view, as a front end found them.
type ViewWords struct {
	Name, Switch Word // their Key is empty where they were not given
	// Guards are those that were given, if AllGuards is not set: none were mentioned.
	Guards    []Word
	AllGuards bool
	Initial   bool
}

// View adds a view of a policy. at is where it begins.
func (b *Builder) View(w ViewWords, at Origin) {
	v := View{Name: w.Name.Text, Initial: w.Initial, Origin: written(at)}
	fail := func(err error, at Origin) {
		b.viewsWrong = true
		b.Fail(place(err, written(at)))
	}
	if w.Name.Key == "" {
		fail(&Error{What: "view", Reason: "has no name", Hint: `add name = "maintenance"`}, v.Origin)
	} else if err := CheckViewName(v.Name); err != nil {
		fail(err, w.Name.At)
	}
	if w.Switch.Key != "" {
		if err := v.Switch.UnmarshalText([]byte(w.Switch.Text)); err != nil {
			fail(err, w.Switch.At)
		}
	}
	if w.AllGuards {
		v.Guards = MemoryGuards()
	}
	seen := map[GuardName]bool{}
	for _, g := range w.Guards {
		if err := viewGuard(GuardName(g.Text), seen); err != nil {
			fail(err, g.At)
			continue
		}
		v.Guards = append(v.Guards, GuardName(g.Text))
	}
	v.sort()
	b.views = append(b.views, v)
}

// ViewRejected notes that a view was written but could not be read, for a front end
// that has reported why with [Builder.Fail]: what its policy then lacks is not
// reported besides.
func (b *Builder) ViewRejected() { b.viewsWrong = true }

// sort brings the guards into the order of [Guards], and makes a list of none one.
func (v *View) sort() {
	var sorted []GuardName
	for _, name := range MemoryGuards() {
		if slices.Contains(v.Guards, name) {
			sorted = append(sorted, name)
		}
	}
	v.Guards = append([]GuardName{}, sorted...)
}

// viewGuard says what is wrong with a guard in a view, beside those seen.
func viewGuard(name GuardName, seen map[GuardName]bool) error {
	g, ok := LookupGuard(name)
	switch {
	case !ok:
		words := make([]string, 0, len(guards))
		for _, m := range MemoryGuards() {
			words = append(words, string(m))
		}
		return UnknownWord("guard of a view", string(name), words, Origin{})
	case !g.Memory:
		return &Error{What: "guard", Value: string(name), Reason: "is none of memory: it holds in every view", Hint: "leave it out here"}
	case seen[name]:
		return &Error{What: "guard", Value: string(name), Reason: "is in the view twice"}
	}
	seen[name] = true
	return nil
}

// wholeViews returns what is wrong with a policy's views together, and marks the
// initial one where none is. settings are the policy's own of guards.
func wholeViews(views []View, settings []GuardSetting) []error {
	var errs []error
	add := func(e *Error) { errs = append(errs, e) }
	if len(views) == 0 {
		return nil
	}
	if len(views) > MaxViews {
		add(&Error{Origin: views[MaxViews].Origin, What: "view", Value: views[MaxViews].Name, Reason: fmt.Sprintf("is one too many: a policy has at most %d", MaxViews), Hint: "Xen has ten views of a domain, of which hvi needs two"})
	}
	first := map[string]Origin{}
	initial := -1
	for i, v := range views {
		if at, twice := first[v.Name]; twice && v.Name != "" {
			add(&Error{Origin: v.Origin, What: "view", Value: v.Name, Reason: "is declared twice", Hint: "the first is at " + at.String()})
		} else {
			first[v.Name] = v.Origin
		}
		switch {
		case !v.Initial:
		case initial >= 0:
			add(&Error{Origin: v.Origin, What: "view", Value: v.Name, Reason: "is a second initial one", Hint: "the first is at " + views[initial].Origin.String()})
		default:
			initial = i
		}
	}
	if initial < 0 {
		views[0].Initial = true
	}
	for _, name := range MemoryGuards() {
		held := slices.ContainsFunc(views, func(v View) bool { return slices.Contains(v.Guards, name) })
		off := slices.ContainsFunc(settings, func(g GuardSetting) bool { return g.Name == name && g.Action == ActionOff })
		g, _ := LookupGuard(name)
		asked := slices.ContainsFunc(settings, func(g GuardSetting) bool { return g.Name == name })
		if !held && !off && (asked || g.Observe != ActionOff || g.Enforce != ActionOff) {
			add(&Error{Origin: views[0].Origin, What: "guard", Value: string(name), Reason: "is in no view: it would protect nothing", Hint: "name it in one, or set it to off in [guards]"})
		}
	}
	return errs
}

// checkViews checks views that no [Builder] made.
func checkViews(views []View, settings []GuardSetting) []error {
	var errs []error
	for _, v := range views {
		if err := CheckViewName(v.Name); err != nil {
			errs = append(errs, place(err, v.Origin))
		}
		if _, err := v.Switch.MarshalText(); err != nil {
			errs = append(errs, place(err, v.Origin))
		}
		seen := map[GuardName]bool{}
		for _, g := range v.Guards {
			if err := viewGuard(g, seen); err != nil {
				errs = append(errs, place(err, v.Origin))
			}
		}
	}
	return append(errs, wholeViews(slices.Clone(views), settings)...)
}

// unviewed returns an error for each guard that a domain switches on and that its
// policy has in none of its views.
func (s Spec) unviewed() []error {
	var errs []error
	if s.Named == nil || len(s.Named.Views) == 0 {
		return nil
	}
	for _, g := range s.Guards {
		held := slices.ContainsFunc(s.Named.Views, func(v View) bool { return v.Holds(g.Name) })
		if !held && g.Action != ActionOff {
			errs = append(errs, &Error{
				Origin: g.Origin, What: "guard", Value: string(g.Name), Reason: "is set to " + g.Action.String() + ", but is in none of the views of policy " + Quote(s.Named.Name),
				Hint: "name it in one of them, at " + s.Named.Views[0].Origin.String() + ", or set it to off",
			})
		}
	}
	return errs
}

// InitialView returns the view that a domain runs in first; nil where none is
// declared.
func (e Effective) InitialView() *View {
	for i := range e.Views {
		if e.Views[i].Initial {
			return &e.Views[i]
		}
	}
	if len(e.Views) > 0 {
		return &e.Views[0]
	}
	return nil
}

// LookupView returns the view of a name, or an error with the nearest.
func (e Effective) LookupView(name string) (*View, error) {
	var words []string
	for i := range e.Views {
		if e.Views[i].Name == name {
			return &e.Views[i], nil
		}
		words = append(words, e.Views[i].Name)
	}
	if len(words) == 0 {
		return nil, &Error{What: "view", Value: name, Reason: "is not declared: the domain's policy has no views of its own"}
	}
	return nil, UnknownWord("view", name, words, Origin{})
}

func sameView(x, y View) bool {
	return x.Name == y.Name && x.Switch == y.Switch && x.Initial == y.Initial && slices.Equal(x.Guards, y.Guards)
}
