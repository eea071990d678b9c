package control

import (
	"time"

	"github.com/xen-hvi/hvi/engine/policy"
	"github.com/xen-hvi/hvi/engine/printable"
)

// Bounds of the texts in what is declared.
const (
	maxSource = 4096
	maxPolicy = 128
	// MaxGate is the longest that a gate may be asked to hold a start.
	// libxl gives a hotplug script 40 s in all.
	MaxGate = 35 * time.Second
)

// NoDomID stands in a DomainRef for a domain that does not run.
const NoDomID uint16 = 0xffff

// PolicyFrom is the kind of place a domain's policy comes from.
type PolicyFrom string

// Kinds of places, in the order in which they are asked.
const (
	// FromHanded: a hook of the toolstack handed it over.
	FromHanded PolicyFrom = "handed"
	// FromXL: the config of the xl process that creates the domain.
	FromXL PolicyFrom = "xl"
	// FromFile: a file below /etc/hvi/domains.
	FromFile PolicyFrom = "file"
	// FromCaptured: kept by hvid since an earlier life of the domain.
	FromCaptured PolicyFrom = "captured"
	// FromDefault: the host default in hvid.toml.
	FromDefault PolicyFrom = "default"
	// FromHvictl: an administrator asked for it with hvictl.
	FromHvictl PolicyFrom = "hvictl"
	// FromNone: nobody declares anything.
	FromNone PolicyFrom = "none"
)

// DeclareRequest hands over what a toolstack's configuration declares for one
// domain. Without a Mode it says that nothing is declared, which ends what was
// declared before. The values are words as people write them; hvid judges them.
type DeclareRequest struct {
	Name printable.Text `json:"name,omitempty"`
	// Toolstack is "libvirt" or "xl".
	Toolstack string `json:"toolstack,omitempty"`
	// Source says where it was written, in words for people.
	Source        string         `json:"source,omitempty"`
	Mode          string         `json:"mode,omitempty"`
	Policy        string         `json:"policy,omitempty"`
	RequireAttach string         `json:"require_attach,omitempty"`
	Guards        []GuardRequest `json:"guards,omitempty"`

	OnEngineFailure string `json:"on_engine_failure,omitempty"`
}

// Declared is what hvid made of a DeclareRequest.
type Declared struct {
	UUID string `json:"uuid"`
	// Mode is the one that will be in force, "off" where nothing is declared.
	Mode string `json:"mode"`
	// Known reports whether hvid knew the domain already, by an earlier
	// declaration or because it runs.
	Known    bool     `json:"known"`
	Warnings []string `json:"warnings"`
}

// GateRequest asks hvid to say when a domain's start may go on.
type GateRequest struct {
	// TimeoutMS bounds the wait in milliseconds, at most MaxGate; 0 leaves it
	// to hvid's configuration.
	TimeoutMS int `json:"timeout_ms,omitempty"`
}

// GateResult says whether a start may go on.
type GateResult struct {
	// Open: hvi is attached, or nobody requires it to be.
	Open bool `json:"open"`
	// Required reports whether the domain's policy requires an attached hvi.
	Required bool  `json:"required"`
	State    State `json:"state"`
	// Reason says why the gate is not open, or why it is though hvi is not
	// attached; Fix what to do.
	Reason string `json:"reason,omitempty"`
	Fix    string `json:"fix,omitempty"`
}

// PolicyReport is the policy of one domain and where each part of it comes
// from.
type PolicyReport struct {
	// ID is NoDomID for a domain that does not run.
	ID   uint16         `json:"id"`
	Name printable.Text `json:"name"`
	UUID string         `json:"uuid"`
	// Toolstack that manages the domain: "xl", "libvirt", or empty where it
	// isn't known.
	Toolstack string     `json:"toolstack,omitempty"`
	From      PolicyFrom `json:"from"`
	// Source is the place, or where hvid looked in vain, in words for people.
	Source string `json:"source,omitempty"`
	// CapturedAt is when hvid kept it, zero where it keeps nothing.
	CapturedAt time.Time `json:"captured_at,omitzero"`

	// Declared are the words that were written; its Mode is empty where nothing
	// was.
	Declared PolicyWords `json:"declared"`

	// What holds with every default filled in.
	Mode          PolicyValue `json:"mode"`
	Policy        PolicyValue `json:"policy"`
	RequireAttach PolicyValue `json:"require_attach"`
	// OnEngineFailure is "release" or "pause".
	OnEngineFailure PolicyValue   `json:"on_engine_failure"`
	Guards          []PolicyGuard `json:"guards"`
	// Exceptions are those of the policy that the domain names.
	Exceptions []policy.Exception `json:"exceptions,omitempty"`
	// Lists are those that it has set.
	Lists []policy.ListSetting `json:"lists,omitempty"`
	// Views are the views that it declares.
	Views []policy.View `json:"views,omitempty"`

	Warnings []string `json:"warnings"`
}

// PolicyWords are the words of a policy as somebody wrote them; what was not
// written is empty.
type PolicyWords struct {
	Mode          string         `json:"mode,omitempty"`
	Policy        string         `json:"policy,omitempty"`
	RequireAttach string         `json:"require_attach,omitempty"`
	Guards        []GuardRequest `json:"guards,omitempty"`

	OnEngineFailure string `json:"on_engine_failure,omitempty"`
}

// PolicyValue is a value and where it comes from, in words for people.
type PolicyValue struct {
	Value string `json:"value"`
	From  string `json:"from"`
}

// PolicyGuard is what one guard will do, and why.
type PolicyGuard struct {
	Name   string `json:"name"`
	Action string `json:"action"`
	From   string `json:"from"`
}

// Where a change of a policy is made.
const (
	// WhereLive changes the domain that runs.
	WhereLive = "live"
	// WhereConfig changes what its next start will find.
	WhereConfig = "config"
	// WhereBoth changes both. It is the default.
	WhereBoth = "both"
)

// PolicyRequest replaces the policy of one domain.
type PolicyRequest struct {
	Mode          string         `json:"mode"`
	Policy        string         `json:"policy,omitempty"`
	RequireAttach string         `json:"require_attach,omitempty"`
	Guards        []GuardRequest `json:"guards,omitempty"`

	OnEngineFailure string `json:"on_engine_failure,omitempty"`
	// Where is WhereLive, WhereConfig or WhereBoth; empty means both.
	Where string `json:"where,omitempty"`
}

// Declaration is what hvid keeps of one domain's policy between its lives, and
// what travels to another host.
type Declaration struct {
	UUID      string         `json:"uuid"`
	Name      printable.Text `json:"name,omitempty"`
	Toolstack string         `json:"toolstack,omitempty"`
	// Source says where the policy was found, in words for people.
	Source string `json:"source,omitempty"`
	// Spec holds the admin's own policy, too, where it names one: it means the
	// same on a host that does not have that.
	Spec       policy.Spec `json:"spec"`
	CapturedAt time.Time   `json:"captured_at,omitzero"`
	// Suspended: the domain was saved or migrated away once, so an image of it
	// may be restored any time.
	Suspended bool `json:"suspended,omitempty"`
	// GoneAt is when the domain ended, zero while it lives.
	GoneAt time.Time `json:"gone_at,omitzero"`
}

// WordsOf returns the words that were written for the domain itself; what
// follows from a mode or a named policy is not among them.
func WordsOf(s policy.Spec) PolicyWords {
	var w PolicyWords
	if !s.Declared() {
		return w
	}
	w.Mode = s.Mode.String()
	if !s.Origins.Preset.IsZero() {
		w.Policy = s.Preset
	}
	if s.Says(s.Origins.RequireAttach) {
		w.RequireAttach = yesNo(s.RequireAttach)
	}
	if s.Says(s.Origins.OnEngineFailure) {
		w.OnEngineFailure = s.OnEngineFailure.String()
	}
	for _, g := range s.Guards {
		w.Guards = append(w.Guards, GuardRequest{Name: string(g.Name), Action: g.Action.String()})
	}
	return w
}

func yesNo(b bool) string {
	if b {
		return "yes"
	}
	return "no"
}

// Feed gives the words to a builder, which judges them; at is where they were
// written.
func (w PolicyWords) Feed(b *policy.Builder, at policy.Origin) {
	if w.Mode != "" {
		b.Mode(w.Mode, at)
	}
	if w.Policy != "" {
		b.Preset(w.Policy, at)
	}
	if w.RequireAttach != "" {
		b.RequireAttach(w.RequireAttach, at)
	}
	if w.OnEngineFailure != "" {
		b.OnEngineFailure(w.OnEngineFailure, at)
	}
	for _, g := range w.Guards {
		b.Guard(g.Name, g.Action, at)
	}
}

// Words are the words of the request.
func (q DeclareRequest) Words() PolicyWords {
	return PolicyWords{q.Mode, q.Policy, q.RequireAttach, q.Guards, q.OnEngineFailure}
}

// Words are the words of the request.
func (q PolicyRequest) Words() PolicyWords {
	return PolicyWords{q.Mode, q.Policy, q.RequireAttach, q.Guards, q.OnEngineFailure}
}

// SetSpec fills in what the report says of the policy itself: the declared
// words and every value with where it comes from.
func (r *PolicyReport) SetSpec(s policy.Spec) {
	e := s.Effective()
	value := func(v string, at policy.Origin) PolicyValue {
		return PolicyValue{Value: v, From: printable.Text(at.String()).String()}
	}
	r.Declared = WordsOf(s)
	r.Mode = value(e.Mode.String(), e.Origins.Mode)
	r.Policy = value(e.Preset, e.Origins.Preset)
	r.RequireAttach = value(yesNo(e.RequireAttach), e.Origins.RequireAttach)
	r.OnEngineFailure = value(e.OnEngineFailure.String(), e.Origins.OnEngineFailure)
	r.Exceptions, r.Lists, r.Views = e.Exceptions, e.Lists, e.Views
	r.Guards = make([]PolicyGuard, len(e.Guards))
	for i, g := range e.Guards {
		r.Guards[i] = PolicyGuard{Name: string(g.Name), Action: g.Action.String(), From: printable.Text(g.From).String()}
	}
}
