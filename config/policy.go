package config

import (
	"errors"
	"slices"
	"strings"

	"github.com/xen-hvi/hvi/engine/policy"
)

// The words of a policy in TOML.
const (
	wordMode          = "mode"
	wordPolicy        = "policy"
	wordRequireAttach = "require_attach"
	wordGuards        = "guards"
	wordEngineFailure = "on_engine_failure"
	wordException     = "exception"
	wordView          = "view"
)

// feed gives the builder what stands in a document below a table (nil for the
// whole document): the policy's words. known are those that may stand there.
// It returns the settings that are none of them.
func feed(b *policy.Builder, d *document, table []string, known []string) {
	below := func(path []string) ([]string, bool) {
		if len(path) <= len(table) || !slices.Equal(path[:len(table)], table) {
			return nil, false
		}
		return path[len(table):], true
	}
	for _, t := range d.tables {
		if path, ok := below(t.path); ok && !slices.Equal(path, []string{wordGuards}) {
			b.Fail(unknownKey("table", t, path, known))
		}
	}
	for _, s := range d.settings {
		path, ok := below(s.path)
		if !ok {
			continue
		}
		key := path[0]
		switch {
		case key == wordGuards && len(path) == 2:
			if text, ok := s.want(b, kindText); ok {
				b.Guard(path[1], text, s.value.at)
			}
		case key == wordGuards && len(path) == 1:
			b.Fail(&policy.Error{
				Origin: s.value.at, What: "setting", Value: s.name(), Reason: "is a table",
				Hint: "write [" + s.name() + "], and below it: kernel-text = \"alert\"",
			})
		case len(path) > 1 || !slices.Contains(known, key):
			b.Fail(unknownKey("setting", s, path, known))
			if strings.HasSuffix(key, wordRequireAttach) || policy.Nearest(key, known) == wordRequireAttach {
				b.RequireAttachRejected()
			}
		case isList(key):
			feedList(b, s, key)
		case key == wordMode:
			if text, ok := s.want(b, kindText); ok {
				b.Mode(text, s.value.at)
			} else {
				b.ModeRejected(s.value.at)
			}
		case key == wordPolicy:
			if text, ok := s.want(b, kindText); ok {
				b.Preset(text, s.value.at)
			}
		case key == wordEngineFailure:
			if text, ok := s.want(b, kindText); ok {
				b.OnEngineFailure(text, s.value.at)
			}
		case key == wordRequireAttach:
			if text, ok := s.want(b, kindSwitch, kindText); ok {
				b.RequireAttach(text, s.value.at)
			} else {
				b.RequireAttachRejected()
			}
		}
	}
}

// listWords are the keys of lists.
func listWords() []string {
	var words []string
	for _, l := range policy.Lists() {
		words = append(words, string(l.Name))
	}
	return words
}

func isList(key string) bool { return slices.Contains(listWords(), key) }

// feedList gives the builder a list. A string is a list of one.
func feedList(b *policy.Builder, s setting, key string) {
	elements := []value{s.value}
	if s.kind == kindList {
		elements = s.list
	}
	var list []policy.ListElement
	for _, v := range elements {
		if v.kind != kindText {
			b.Fail(&policy.Error{Origin: v.at, What: "element of " + key, Reason: "is " + v.kind.String() + ", but must be " + kindText.String()})
			return
		}
		list = append(list, policy.ListElement{Text: v.text, At: v.at})
	}
	b.List(policy.ListName(key), list, s.at)
}

// want returns the text of a setting that must be one of kinds.
func (s setting) want(b *policy.Builder, kinds ...kind) (string, bool) {
	if !slices.Contains(kinds, s.kind) {
		b.Fail(s.wrongKind(kinds[0]))
		return "", false
	}
	return s.text, true
}

func (s setting) wrongKind(want kind) error {
	return &policy.Error{
		Origin: s.value.at, What: "setting", Value: s.name(),
		Reason: "is " + s.kind.String() + ", but must be " + want.String(),
	}
}

// unknownKey is the error for a key that does not belong where it stands. path
// is the key below its table.
func unknownKey(what string, s setting, path, known []string) error {
	e := policy.UnknownWord(what, dotted(path), known, s.at)
	for word, hint := range map[string]string{
		"introspection":                "here it is called mode",
		"introspection_policy":         "here it is called policy",
		"introspection_guards":         "here it is a table: [guards]",
		"introspection_require_attach": "here it is called require_attach",

		"introspection_on_engine_failure": "here it is called on_engine_failure",
	} {
		if path[0] == word {
			e.Hint = hint
		}
	}
	if isList(path[0]) && len(path) == 1 && what == "setting" {
		e.Reason, e.Nearest, e.Hint = "cannot stand in this file", "", "lists stand in policies, "+DefaultDir+"/"+PoliciesDir+"/NAME.toml, which a domain names"
	}
	if path[0] == wordMode || path[0] == wordPolicy {
		e.Reason, e.Nearest = "cannot be set in a policy; the domain that names it sets it", ""
	}
	return e
}

// ParsePolicy reads the file of a policy that domains may name; source is the
// file's name in errors and origins.
func ParsePolicy(name, source string, data []byte) (policy.Named, error) {
	d, err := parse(source, data)
	if err != nil {
		return policy.Named{}, err
	}
	var b policy.Builder
	feed(&b, d, nil, append([]string{wordRequireAttach, wordEngineFailure, wordGuards}, listWords()...))
	feedExceptions(&b, d, "domain")
	feedViews(&b, d)
	return b.BuildNamed(name, policy.Origin{Source: source})
}

// ParseDomain reads the file of a domain; source is the file's name in errors
// and origins, and known are the policies it may name.
func ParseDomain(source string, data []byte, known policy.Policies) (policy.Spec, error) {
	spec, _, err := parseDomain(source, data, known)
	return spec, err
}

func parseDomain(source string, data []byte, known policy.Policies) (spec policy.Spec, required bool, err error) {
	d, err := parse(source, data)
	if err != nil {
		return policy.Spec{}, false, err
	}
	b := policy.Builder{Policies: known}
	feed(&b, d, nil, []string{wordMode, wordPolicy, wordRequireAttach, wordEngineFailure, wordGuards})
	refuseExceptions(&b, d)
	refuseViews(&b, d)
	spec, err = b.Build()
	if err == nil && !spec.Declared() {
		// An empty file would look like something said.
		err = errors.Join(&policy.Error{
			Origin: policy.Origin{Source: source}, What: "file", Reason: "says nothing about the domain",
			Hint: `write mode = "off", "learn", "observe" or "enforce", or remove the file`,
		})
	}
	if err != nil {
		return policy.Spec{}, b.Required(), err
	}
	return spec, false, nil
}
