package policy

import (
	"cmp"
	"errors"
	"slices"
	"strings"
)

// Builder turns the words a front end found into a [Spec]. Feed it everything,
// then call [Builder.Build] once; no method stops at an error, so that the
// admin sees all of them together. The zero value is ready for use.
//
// Each setting may be given once. A front end whose language lets a later
// assignment replace an earlier one, as xl's does, applies that rule before it
// calls the builder.
type Builder struct {
	// Policies looks up the policies an admin keeps by name. With nil there are
	// only the presets.
	Policies Policies

	spec   Spec
	guards map[GuardName]Origin
	placed []placedWord
	// requireUnread says that require_attach was given and not understood.
	requireUnread bool
	// modeRead says that the mode was given and understood.
	modeRead bool
	// exceptions are those added, and where each of an ID was first.
	exceptions  []Exception
	exceptionAt map[string]Origin
	lists       []ListSetting
	// views are those added; viewsWrong says that something was wrong with one.
	views      []View
	viewsWrong bool
	errs       []error
}

// placedWord is a setting that only makes sense beside a mode.
type placedWord struct {
	what   string
	origin Origin
}

// Fail adds an error that the front end found itself, so that it is reported
// together with the others.
func (b *Builder) Fail(err error) {
	if err != nil {
		b.errs = append(b.errs, err)
	}
}

// Mode sets the mode from its word; see [ParseMode].
func (b *Builder) Mode(word string, at Origin) {
	m, err := ParseMode(word)
	at = written(at)
	if !b.spec.Origins.Mode.IsZero() {
		b.Fail(twice("mode", b.spec.Origins.Mode, at))
		return
	}
	b.spec.Origins.Mode = at
	if err != nil {
		b.Fail(place(err, at))
		return
	}
	b.spec.Mode, b.modeRead = m, true
}

// ModeRejected notes that a mode was written but could not be read, for a
// front end that has reported why with [Builder.Fail]: the missing mode is then
// not reported a second time.
func (b *Builder) ModeRejected(at Origin) {
	if b.spec.Origins.Mode.IsZero() {
		b.spec.Origins.Mode = written(at)
	}
}

// Preset sets the policy to start from: a preset, or a policy of
// [Builder.Policies]. Where the policy is broken itself, that is the error.
func (b *Builder) Preset(name string, at Origin) {
	at = written(at)
	if !b.spec.Origins.Preset.IsZero() {
		b.Fail(twice("policy", b.spec.Origins.Preset, at))
		return
	}
	b.spec.Origins.Preset = at
	b.placed = append(b.placed, placedWord{"a policy", at})
	named, found, err := find(name, b.Policies)
	if err == nil && !found {
		err = unknownPolicy(name, b.Policies)
	}
	if err != nil {
		b.Fail(place(err, at))
		return
	}
	b.spec.Preset, b.spec.Named = name, named
}

// RequireAttach sets whether the domain may run only while it is attached to,
// from its word; see [ParseSwitch].
func (b *Builder) RequireAttach(word string, at Origin) {
	v, err := ParseSwitch("require_attach", word)
	at = written(at)
	if !b.spec.Origins.RequireAttach.IsZero() {
		b.requireUnread = b.requireUnread || err != nil || v != b.spec.RequireAttach
		b.Fail(twice("require_attach", b.spec.Origins.RequireAttach, at))
		return
	}
	b.spec.Origins.RequireAttach = at
	b.placed = append(b.placed, placedWord{"require_attach", at})
	if err != nil {
		b.requireUnread = true
		b.Fail(place(err, at))
		return
	}
	b.spec.RequireAttach = v
}

// RequireAttachRejected notes that require_attach was written but could not be
// read, or not under its right name, for a front end that has reported why with
// [Builder.Fail].
func (b *Builder) RequireAttachRejected() { b.requireUnread = true }

// Guard sets the action of one guard; both are words.
func (b *Builder) Guard(name, action string, at Origin) {
	at = written(at)
	if b.guards == nil {
		b.guards = map[GuardName]Origin{}
		b.placed = append(b.placed, placedWord{"a guard", written(at)})
	}
	g, nameErr := ParseGuardName(name)
	a, actionErr := ParseAction(action)
	if nameErr != nil {
		b.Fail(place(nameErr, at))
	}
	if actionErr != nil {
		var e *Error
		if errors.As(actionErr, &e) && nameErr == nil {
			e.What = "action of guard " + name
		}
		b.Fail(place(actionErr, at))
	}
	if nameErr != nil {
		return
	}
	if first, ok := b.guards[g]; ok {
		b.Fail(setTwice(g, first, at))
		return
	}
	b.guards[g] = at
	if actionErr == nil {
		if err := permitted(g, a); err != nil {
			b.Fail(place(err, at))
			return
		}
		b.spec.Guards = append(b.spec.Guards, GuardSetting{Name: g, Action: a, Origin: at})
	}
}

// GuardAssignment sets the action of one guard from "name=action", the form in
// which xl configs and command lines write it. Blanks around the two words are
// allowed.
func (b *Builder) GuardAssignment(text string, at Origin) {
	name, action, ok := strings.Cut(text, "=")
	name, action = strings.TrimSpace(name), strings.TrimSpace(action)
	if !ok || name == "" || action == "" {
		if b.guards == nil {
			b.guards = map[GuardName]Origin{}
			b.placed = append(b.placed, placedWord{"a guard", written(at)})
		}
		e := &Error{
			Origin: written(at),
			What:   "guard setting",
			Value:  text,
			Reason: "is not of the form name=action",
			Hint:   "actions are " + strings.Join(actionWords, ", "),
		}
		if text == "" {
			e.Reason = "is empty: write name=action"
		}
		if g, err := ParseGuardName(name); err == nil && action == "" {
			e.Hint = "for example " + string(g) + "=alert; " + e.Hint
		}
		b.Fail(e)
		return
	}
	b.Guard(name, action, at)
}

// OnEngineFailure sets what happens when the engine fails; see
// [ParseEngineFailure].
func (b *Builder) OnEngineFailure(word string, at Origin) {
	f, err := ParseEngineFailure(word)
	at = written(at)
	if !b.spec.Origins.OnEngineFailure.IsZero() {
		b.Fail(twice("on_engine_failure", b.spec.Origins.OnEngineFailure, at))
		return
	}
	b.spec.Origins.OnEngineFailure = at
	b.placed = append(b.placed, placedWord{"on_engine_failure", at})
	if err != nil {
		b.Fail(place(err, at))
		return
	}
	b.spec.OnEngineFailure = f
}

// Build returns the spec, or every problem joined (see [Errors]) and the zero
// spec. A builder that was fed nothing gives the zero spec, which declares
// nothing.
func (b *Builder) Build() (Spec, error) {
	errs := b.errs
	if b.spec.Origins.Mode.IsZero() {
		for _, p := range b.placed {
			errs = append(errs, &Error{
				Origin: p.origin,
				What:   p.what,
				Reason: "is set, but the mode is not: nothing would be protected",
				Hint:   "add the mode: " + strings.Join(modeWords, ", "),
			})
		}
	}
	if b.spec.Mode == ModeObserve {
		for _, g := range b.spec.Guards {
			if g.Action.Prevents() {
				errs = append(errs, preventsUnderObserve(g))
			}
		}
	}
	b.spec.inherit()
	errs = append(errs, b.spec.unviewed()...)
	if e := requireUnderOff(b.spec); b.modeRead && e != nil {
		errs = append(errs, e)
	}
	if err := errors.Join(errs...); err != nil {
		return Spec{}, err
	}
	return b.spec, nil
}

// Required reports whether what was set says that the domain may run only while
// it is attached to, as far as it can be understood. It is for a policy that
// [Builder.Build] refuses: there, a word that cannot be read counts as yes.
func (b *Builder) Required() bool {
	s := b.spec
	s.inherit()
	return s.RequireAttach || b.requireUnread
}

// BuildNamed returns what was set as a policy of that name, to be offered by a
// [Policies], or every problem joined. Such a policy has no mode, and no policy
// to start from in turn; the domain that names it has its own mode.
func (b *Builder) BuildNamed(name string, at Origin) (Named, error) {
	errs := b.errs
	if err := CheckName(name); err != nil {
		errs = append(errs, place(err, at))
	}
	for _, p := range []placedWord{{"mode", b.spec.Origins.Mode}, {"policy", b.spec.Origins.Preset}} {
		if !p.origin.IsZero() {
			errs = append(errs, &Error{Origin: p.origin, What: p.what, Reason: "cannot be set in a policy; the domain that names it sets it"})
		}
	}
	if !b.viewsWrong {
		errs = append(errs, wholeViews(b.views, b.spec.Guards)...)
	}
	if err := errors.Join(errs...); err != nil {
		return Named{}, err
	}
	slices.SortFunc(b.lists, func(x, y ListSetting) int { return cmp.Compare(listOrder(x.Name), listOrder(y.Name)) })
	return Named{
		Name: name, Origin: written(at), Guards: b.spec.Guards, Exceptions: b.exceptions, Lists: b.lists, Views: b.views,
		RequireAttach: b.spec.RequireAttach, RequireAttachAt: b.spec.Origins.RequireAttach,
		OnEngineFailure: b.spec.OnEngineFailure, OnEngineFailureAt: b.spec.Origins.OnEngineFailure,
	}, nil
}

// written makes sure that a value somebody wrote does not look like a default,
// even when the front end has no name for the place.
func written(o Origin) Origin {
	if o.IsZero() {
		return Origin{Source: "given"}
	}
	return o
}

func twice(what string, first, second Origin) *Error {
	return &Error{
		Origin: second,
		What:   what,
		Reason: "is set twice",
		Hint:   "it was set first at " + first.String(),
	}
}
