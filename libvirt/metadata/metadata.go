package metadata

import (
	"errors"
	"fmt"
	"strings"

	"github.com/xen-hvi/hvi/engine/policy"
)

const (
	// Namespace is the name by which libvirt keeps the element, and of which it
	// keeps one in each domain.
	Namespace = "urn:xen-hvi:domain:1.0"
	// Prefix is the one we write.
	Prefix = "hvi"
	// Root is the element's name.
	Root = "introspection"

	// MaxXML is the longest document that is read, in bytes. What libvirt sends
	// over its own protocol is at most 4 MiB.
	MaxXML = 8 << 20
	// MaxGuards is the number of guards an element may have.
	MaxGuards = 64

	maxDepth = 256 // libxml2's own limit
	maxWord  = 256
)

const (
	attrMode          = "mode"
	attrPolicy        = "policy"
	attrRequireAttach = "require_attach"
	attrEngineFailure = "on_engine_failure"
	childGuard        = "guard"
	attrName          = "name"
	attrAction        = "action"
)

var (
	rootAttrs  = []string{attrMode, attrPolicy, attrRequireAttach, attrEngineFailure}
	guardAttrs = []string{attrName, attrAction}
)

// Word is one attribute's value and the place of the attribute. A zero place
// means that it was not written.
type Word struct {
	Text string
	At   policy.Origin
}

// Guard is what was written for one guard.
type Guard struct {
	Name, Action Word
}

// Element is what was written, in its own words. [Element.Spec] says what they
// mean.
type Element struct {
	Mode, Policy, RequireAttach, OnEngineFailure Word

	Guards []Guard
	// At is where the element begins.
	At policy.Origin
}

// Spec gives the words to a builder and returns the policy they declare, or
// everything that is wrong with them. policies are those an admin keeps by name;
// nil if there are none.
func (e *Element) Spec(policies policy.Policies) (policy.Spec, error) {
	b := policy.Builder{Policies: policies}
	if e.Mode.At.IsZero() {
		b.ModeRejected(e.At)
		b.Fail(missing(attrMode, Root, e.At, policy.Modes()))
	} else {
		b.Mode(e.Mode.Text, e.Mode.At)
	}
	if !e.Policy.At.IsZero() {
		b.Preset(e.Policy.Text, e.Policy.At)
	}
	if !e.RequireAttach.At.IsZero() {
		b.RequireAttach(e.RequireAttach.Text, e.RequireAttach.At)
	}
	if !e.OnEngineFailure.At.IsZero() {
		b.OnEngineFailure(e.OnEngineFailure.Text, e.OnEngineFailure.At)
	}
	for _, g := range e.Guards {
		b.Guard(g.Name.Text, g.Action.Text, g.Name.At)
	}
	return b.Build()
}

// Of returns the element that declares s, or nil if s declares nothing. What s
// took over from a policy kept by name is not written out: the name is.
func Of(s policy.Spec) *Element {
	if !s.Declared() {
		return nil
	}
	at := policy.Origin{Source: "hvi"}
	e := &Element{Mode: Word{s.Mode.String(), at}, At: at}
	if s.Preset != "" && s.Preset != policy.PresetDefault {
		e.Policy = Word{s.Preset, at}
	}
	if s.Says(s.Origins.RequireAttach) {
		e.RequireAttach = Word{map[bool]string{false: "no", true: "yes"}[s.RequireAttach], at}
	}
	if s.Says(s.Origins.OnEngineFailure) {
		e.OnEngineFailure = Word{s.OnEngineFailure.String(), at}
	}
	for _, g := range s.Guards {
		e.Guards = append(e.Guards, Guard{Word{string(g.Name), at}, Word{g.Action.String(), at}})
	}
	return e
}

// XML is the element as it stands in a domain's XML, with its namespace.
func (e *Element) XML() string { return e.write(Prefix+":", true) }

// Bare is the element without a namespace: what libvirt's SetMetadata takes, as
// it adds the namespace itself, and what its GetMetadata gives.
func (e *Element) Bare() string { return e.write("", false) }

func (e *Element) write(prefix string, declare bool) string {
	var b strings.Builder
	attr := func(name string, w Word) {
		if !w.At.IsZero() {
			b.WriteString(" " + name + `="` + escape.Replace(w.Text) + `"`)
		}
	}
	b.WriteString("<" + prefix + Root)
	if declare {
		b.WriteString(" xmlns:" + Prefix + `="` + Namespace + `"`)
	}
	attr(attrMode, e.Mode)
	attr(attrPolicy, e.Policy)
	attr(attrRequireAttach, e.RequireAttach)
	attr(attrEngineFailure, e.OnEngineFailure)
	if len(e.Guards) == 0 {
		b.WriteString("/>")
		return b.String()
	}
	b.WriteString(">")
	for _, g := range e.Guards {
		b.WriteString("<" + prefix + childGuard)
		attr(attrName, g.Name)
		attr(attrAction, g.Action)
		b.WriteString("/>")
	}
	b.WriteString("</" + prefix + Root + ">")
	return b.String()
}

// escape makes any text fit for an attribute. Line ends and tabs become
// references, for a parser would read them as blanks.
var escape = strings.NewReplacer("&", "&amp;", "<", "&lt;", ">", "&gt;", `"`, "&quot;", "\n", "&#10;", "\r", "&#13;", "\t", "&#9;")

// Domain is what the XML of a domain says, as far as hvi cares.
type Domain struct {
	// Type is the kind of hypervisor: "xen".
	Type string
	Name string
	// UUID is in the canonical form of 36 lower-case characters, or empty if
	// the XML has none that is one.
	UUID string
	// Element is hvi's, or nil if there is none.
	Element *Element
}

// ParseDomain reads the XML of a domain. source names it in errors. An error
// joins everything that is wrong ([policy.Errors]); even then the domain's type,
// name and UUID are set as far as they were read, and Element is nil.
func ParseDomain(source string, doc []byte) (Domain, error) {
	r := reader{source: source, doc: doc}
	d := r.domain()
	if err := errors.Join(r.errs...); err != nil {
		d.Element = nil
		return d, err
	}
	return d, nil
}

// ParseElement reads the element alone, with its namespace or without any, as
// libvirt's GetMetadata gives it.
func ParseElement(source string, doc []byte) (*Element, error) {
	r := reader{source: source, doc: doc}
	e := r.single()
	if err := errors.Join(r.errs...); err != nil {
		return nil, err
	}
	return e, nil
}

func missing(attr, of string, at policy.Origin, known []string) *policy.Error {
	return &policy.Error{
		Origin: at, What: "attribute", Value: attr, Reason: "is missing from <" + of + ">",
		Hint: fmt.Sprintf("write %s=\"…\" with one of %s", attr, strings.Join(known, ", ")),
	}
}

// Check returns what the words declare, or what is wrong with them, as far as
// that can be told without the policies an admin keeps by name: any name that
// could be one's is let pass, and nothing is taken over from it.
func (e *Element) Check() (policy.Spec, error) { return e.Spec(anyPolicy{}) }

// anyPolicy has every policy there could be. None of them says anything.
type anyPolicy struct{}

func (anyPolicy) Policy(name string) (*policy.Named, error) {
	return &policy.Named{Name: name, Origin: policy.Origin{Source: "policy " + name}}, nil
}

func (anyPolicy) Names() []string { return nil }
