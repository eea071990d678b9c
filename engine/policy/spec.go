package policy

import (
	"errors"
	"slices"
	"strconv"
)

// Origin is the place a value was written at. The zero value means that nobody
// wrote it: it is a built-in default.
type Origin struct {
	// Source is a file name, or words such as "xl command line" or
	// "hvictl attach".
	Source string `json:"source,omitempty"`
	// Line and Column count from 1, in lines and bytes; 0 is unknown.
	Line   int `json:"line,omitempty"`
	Column int `json:"column,omitempty"`
}

// IsZero reports whether the value is a built-in default.
func (o Origin) IsZero() bool { return o == Origin{} }

// String is "source:line:column" with the parts that are known, or "built-in"
// for the zero value. A source with unprintable characters is quoted.
func (o Origin) String() string {
	if o.IsZero() {
		return "built-in"
	}
	s := o.Source
	if q := strconv.Quote(s); q != `"`+s+`"` {
		s = Quote(s)
	}
	if o.Line > 0 {
		s += ":" + strconv.Itoa(o.Line)
		if o.Column > 0 {
			s += ":" + strconv.Itoa(o.Column)
		}
	}
	return s
}

// GuardSetting is an action that was set for one guard.
type GuardSetting struct {
	Name   GuardName `json:"name"`
	Action Action    `json:"action"`
	Origin Origin    `json:"origin,omitzero"`
}

// Spec is what was declared for one domain. The zero value declares nothing
// and is valid.
type Spec struct {
	// Mode is how far introspection may go.
	Mode Mode `json:"mode"`
	// Preset names the set of actions to start from; empty is [PresetDefault].
	Preset string `json:"policy,omitempty"`
	// Named is what the policy that Preset names says, if it is one of the
	// admin's, so that the Spec means the same on a host that does not have it.
	// It is nil for a preset.
	Named *Named `json:"named,omitempty"`
	// Guards are the actions set one by one, in the order they were written,
	// each guard at most once.
	Guards []GuardSetting `json:"guards,omitempty"`
	// RequireAttach says that the domain may run only while it is attached to:
	// where attaching fails, it does not start. It may come from Named, as its
	// origin then tells.
	RequireAttach bool `json:"require_attach,omitempty"`
	// OnEngineFailure is what happens to the guest when the engine fails.
	OnEngineFailure EngineFailure `json:"on_engine_failure"`
	// Origins says where the values above were written; those of Guards are in
	// the settings themselves.
	Origins Origins `json:"origins,omitzero"`
}

// Origins are the places the values of a [Spec] were written at. A zero one
// means that the value is the built-in default.
type Origins struct {
	Mode            Origin `json:"mode,omitzero"`
	Preset          Origin `json:"policy,omitzero"`
	RequireAttach   Origin `json:"require_attach,omitzero"`
	OnEngineFailure Origin `json:"on_engine_failure,omitzero"`
}

// Declared reports whether anybody said anything about the domain. "off" is
// something said; a config without our keys is not.
func (s Spec) Declared() bool { return !s.Origins.Mode.IsZero() }

// SameIntent reports whether two specs ask for the same, wherever each was
// written.
func (s Spec) SameIntent(t Spec) bool {
	if s.Declared() != t.Declared() || s.OnEngineFailure != t.OnEngineFailure || s.preset() != t.preset() {
		return false
	}
	a, b := s.Effective(), t.Effective()
	return a.Mode == b.Mode && a.RequireAttach == b.RequireAttach && sameLists(a.Lists, b.Lists) && slices.EqualFunc(a.Views, b.Views, sameView) && slices.EqualFunc(a.Exceptions, b.Exceptions, func(x, y Exception) bool {
		return x.ID() == y.ID() && x.Expires.Equal(y.Expires)
	}) && slices.EqualFunc(a.Guards, b.Guards, func(x, y EffectiveGuard) bool {
		return x.Name == y.Name && x.Action == y.Action
	})
}

func (s Spec) preset() string {
	if s.Preset == "" {
		return PresetDefault
	}
	return s.Preset
}

// Validate checks a Spec that no [Builder] made, and returns everything that is
// wrong with it, joined.
func (s Spec) Validate() error {
	var errs []error
	add := func(e *Error) { errs = append(errs, e) }
	if _, err := s.Mode.MarshalText(); err != nil {
		errs = append(errs, err)
	}
	if _, err := s.OnEngineFailure.MarshalText(); err != nil {
		errs = append(errs, err)
	}
	switch {
	case s.Named == nil:
		if _, err := ParsePreset(s.preset()); err != nil {
			errs = append(errs, place(err, s.Origins.Preset))
		}
	case s.Named.Name != s.Preset:
		add(&Error{Origin: s.Named.Origin, What: "policy", Value: s.Named.Name, Reason: "is not the one that is named", Hint: "that is " + Quote(s.Preset)})
	default:
		if err := s.Named.Validate(); err != nil {
			errs = append(errs, err)
		}
	}
	if e := requireUnderOff(s); e != nil {
		add(e)
	}
	errs = append(errs, checkGuards(s.Guards)...)
	errs = append(errs, s.unviewed()...)
	for _, g := range s.Guards {
		if s.Mode == ModeObserve && g.Action.Prevents() {
			add(preventsUnderObserve(g))
		}
	}
	return errors.Join(errs...)
}

func checkGuards(settings []GuardSetting) []error {
	var errs []error
	add := func(e *Error) { errs = append(errs, e) }
	seen := map[GuardName]Origin{}
	for _, g := range settings {
		if _, ok := LookupGuard(g.Name); !ok {
			add(UnknownWord("guard", string(g.Name), guardWords(), g.Origin))
			continue
		}
		if first, twice := seen[g.Name]; twice {
			add(setTwice(g.Name, first, g.Origin))
			continue
		}
		seen[g.Name] = g.Origin
		if _, err := g.Action.MarshalText(); err != nil {
			errs = append(errs, place(err, g.Origin))
		}
		if err := permitted(g.Name, g.Action); err != nil {
			errs = append(errs, place(err, g.Origin))
		}
	}
	return errs
}

// permitted returns an error for an action that a known guard can't take.
func permitted(name GuardName, a Action) error {
	g, _ := LookupGuard(name)
	return g.Permits(a)
}

// requireUnderOff is the error of a domain that may run only while attached to,
// and is not to be attached to.
func requireUnderOff(s Spec) *Error {
	if !s.RequireAttach || s.Mode != ModeOff {
		return nil
	}
	return &Error{
		Origin: s.Origins.RequireAttach,
		What:   "require_attach",
		Reason: "is set, but mode off attaches nothing: the domain could never run",
		Hint:   "use mode learn, observe or enforce, or leave require_attach out",
	}
}

func setTwice(name GuardName, first, second Origin) *Error {
	e := &Error{Origin: second, What: "guard", Value: string(name), Reason: "is set twice"}
	if !first.IsZero() {
		e.Hint = "it was set first at " + first.String()
	}
	return e
}

func preventsUnderObserve(g GuardSetting) *Error {
	return &Error{
		Origin: g.Origin,
		What:   "guard",
		Value:  string(g.Name),
		Reason: "is set to " + g.Action.String() + ", but " + g.Action.never(ModeObserve),
		Hint:   `use mode "enforce", or "learn" to begin with, or set the guard to alert`,
	}
}

// EffectiveGuard is what one guard will do, and why.
type EffectiveGuard struct {
	Name   GuardName `json:"name"`
	Action Action    `json:"action"`
	// Origin is where the action was set, or zero when it follows from the mode.
	Origin Origin `json:"origin,omitzero"`
	// From says where the action comes from, in words: a place, or the default
	// of the mode.
	From string `json:"from"`
}

// Effective is a [Spec] with every default filled in.
type Effective struct {
	Mode            Mode             `json:"mode"`
	Preset          string           `json:"policy"`
	RequireAttach   bool             `json:"require_attach,omitempty"`
	OnEngineFailure EngineFailure    `json:"on_engine_failure"`
	Guards          []EffectiveGuard `json:"guards"`
	// Exceptions are those of the named policy.
	Exceptions []Exception `json:"exceptions,omitempty"`
	// Lists are those that the named policy has set; see [Effective.List].
	Lists []ListSetting `json:"lists,omitempty"`
	// Views are those of the named policy, of which one is initial; none for the one
	// that every policy has and that shows nothing.
	Views   []View  `json:"views,omitempty"`
	Origins Origins `json:"origins,omitzero"`
}

// Effective resolves the spec: one entry for every known guard, in the order of
// [Guards]. Under mode off every guard is off; under learn and observe each reports at
// most, even in a Spec that [Spec.Validate] would refuse.
func (s Spec) Effective() Effective {
	e := Effective{
		Mode:            s.Mode,
		Preset:          s.preset(),
		RequireAttach:   s.RequireAttach,
		OnEngineFailure: s.OnEngineFailure,
		Guards:          make([]EffectiveGuard, 0, len(guards)),
		Origins:         s.Origins,
	}
	if s.Named != nil {
		e.Exceptions, e.Lists, e.Views = s.Named.Exceptions, s.Named.Lists, s.Named.Views
	}
	for _, g := range guards {
		eg := EffectiveGuard{
			Name:   g.Name,
			Action: g.Default(s.Mode),
			From:   "default of mode " + s.Mode.String(),
		}
		if s.Mode.Attaches() {
			if p, ok := lookupPreset(e.Preset); ok && p.line != nil {
				l := p.of(g)
				eg.set(s.Mode, l.Action, Origin{}, "policy "+p.Name)
			}
			if s.Named != nil {
				eg.apply(s.Mode, s.Named.Guards, "policy "+s.Named.Name+" at ")
			}
			eg.apply(s.Mode, s.Guards, "")
		}
		e.Guards = append(e.Guards, eg)
	}
	return e
}

// apply takes the guard's action from settings, if they have one.
func (eg *EffectiveGuard) apply(m Mode, settings []GuardSetting, from string) {
	for _, set := range settings {
		if set.Name != eg.Name {
			continue
		}
		eg.set(m, set.Action, set.Origin, from+set.Origin.String())
	}
}

// set gives the guard an action, as far as the mode lets it.
func (eg *EffectiveGuard) set(m Mode, a Action, at Origin, from string) {
	eg.Action, eg.Origin, eg.From = a, at, from
	if m.Watches() && a.Prevents() {
		eg.Action = ActionAlert
		eg.From += ", where it is " + a.String() + "; " + a.never(m)
	}
}

// Action is what the named guard will do; [ActionOff] for an unknown one.
func (e Effective) Action(name GuardName) Action {
	for _, g := range e.Guards {
		if g.Name == name {
			return g.Action
		}
	}
	return ActionOff
}

func place(err error, o Origin) error {
	var e *Error
	if errors.As(err, &e) {
		return e.at(o)
	}
	return err
}
