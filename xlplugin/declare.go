package xlplugin

import (
	"fmt"
	"slices"
	"strings"

	"github.com/xen-hvi/hvi/engine/policy"
	"github.com/xen-hvi/hvi/engine/xen"
)

// The keys of a config that are ours. xl ignores keys it does not know.
const (
	// KeyMode is the mode: "off", "learn", "observe" or "enforce"; 0 is off, 1 observe.
	KeyMode = "introspection"
	// KeyPolicy names a preset, or a policy of the admin's.
	KeyPolicy = "introspection_policy"
	// KeyGuards is a list of "guard=action".
	KeyGuards = "introspection_guards"
	// KeyRequireAttach says that the domain may run only while it is attached
	// to: 1 or 0.
	KeyRequireAttach = "introspection_require_attach"
	// KeyOnEngineFailure says what becomes of the domain when hvid fails:
	// "release" or "pause".
	KeyOnEngineFailure = "introspection_on_engine_failure"
)

var ourKeys = []string{KeyMode, KeyPolicy, KeyGuards, KeyRequireAttach, KeyOnEngineFailure}

// bareWords are what our keys are called elsewhere, without the prefix that xl
// configs need. None is a key of xl's.
var bareWords = map[string]string{
	"mode":           KeyMode,
	"policy":         KeyPolicy,
	"guards":         KeyGuards,
	"require_attach": KeyRequireAttach,

	"on_engine_failure": KeyOnEngineFailure,
}

// meant returns the key of ours that was probably meant by one that is not
// ours, or "".
func meant(key string) string {
	if k, ok := bareWords[key]; ok {
		return k
	}
	if near := policy.Nearest(key, ourKeys); near != "" {
		return near
	}
	// The other bare words are too short to guess at: a misspelt one may well
	// be a key of xl's.
	if policy.Nearest(key, []string{"require_attach"}) != "" {
		return KeyRequireAttach
	}
	return ""
}

// Declared is what a config says about a domain, as far as hvi cares.
type Declared struct {
	// Name is the domain's name, as xl creates it.
	Name string
	// UUID is the domain's UUID if HasUUID; without one in the config xl makes
	// one up for every domain it creates.
	UUID    xen.UUID
	HasUUID bool
	// Spec is the declared policy. It declares nothing if the config has none
	// of our keys.
	Spec policy.Spec
	// Required says, where the policy is broken, that as far as it can be
	// understood the domain may run only while it is attached to.
	Required bool
	// Warnings are keys that look like ours but are not, and assignments that
	// silently replace an earlier one.
	Warnings []Warning
}

// FromConfig reads our keys, the name and the UUID out of a config. The error
// joins everything that is wrong ([*policy.Error], see [policy.Errors]); even
// then Name, UUID and Required are set as far as they could be read, and Spec is
// zero.
//
// A key that begins with "introspection" and is none of ours is an error: xl
// would ignore it, and the admin would believe in it. So is, in a config that
// has keys of ours, one that is nearly ours or lacks the prefix; in a config
// that has none it is a warning, since it may be meant for somebody else.
//
// known are the policies that [KeyPolicy] may name beside the presets, or nil.
func FromConfig(cfg *Config, known policy.Policies) (Declared, error) {
	var d Declared
	b := policy.Builder{Policies: known}
	b.Fail(d.identify(cfg))
	ours := slices.ContainsFunc(cfg.Settings, func(s Setting) bool { return slices.Contains(ourKeys, s.Key) })

	reported := map[string]bool{}
	assigned := map[string]Setting{}
	for _, s := range cfg.Settings {
		if slices.Contains(ourKeys, s.Key) {
			if first, ok := assigned[s.Key]; ok && !s.Added && first.Pos.Line > 0 && s.Pos.Line > 0 {
				d.Warnings = append(d.Warnings, Warning{s.Pos, fmt.Sprintf("%s was set already at %s; as in xl, the later value counts", s.Key, first.Pos)})
			}
			assigned[s.Key] = s
			continue
		}
		if reported[s.Key] {
			continue
		}
		if strings.HasPrefix(s.Key, KeyMode) {
			b.Fail(policy.UnknownWord("setting", s.Key, ourKeys, s.Pos))
			if policy.Nearest(s.Key, ourKeys) == KeyRequireAttach && !saysNo(s) {
				b.RequireAttachRejected()
			}
		} else if near := meant(s.Key); near == "" {
			continue
		} else if ours {
			b.Fail(&policy.Error{Origin: s.Pos, What: "setting", Value: s.Key, Reason: "is none of hvi's, and xl ignores it", Nearest: near})
			if near == KeyRequireAttach && !saysNo(s) {
				b.RequireAttachRejected()
			}
		} else {
			d.Warnings = append(d.Warnings, Warning{s.Pos, fmt.Sprintf("%s is not a setting of hvi; was %s meant?", policy.Quote(s.Key), near)})
		}
		reported[s.Key] = true
	}

	if s, ok := cfg.Lookup(KeyMode); ok {
		if problem := notAWord(s); problem != nil {
			b.Fail(problem)
			b.ModeRejected(s.Pos)
		} else {
			b.Mode(s.Value.Text, s.Value.Pos)
		}
	}
	if s, ok := cfg.Lookup(KeyPolicy); ok {
		if problem := notAWord(s); problem != nil {
			b.Fail(problem)
		} else {
			b.Preset(s.Value.Text, s.Value.Pos)
		}
	}
	if s, ok := cfg.Lookup(KeyRequireAttach); ok {
		if problem := notAWord(s); problem != nil {
			b.Fail(problem)
			b.RequireAttachRejected()
		} else {
			b.RequireAttach(s.Value.Text, s.Value.Pos)
		}
	}
	if s, ok := cfg.Lookup(KeyOnEngineFailure); ok {
		if problem := notAWord(s); problem != nil {
			b.Fail(problem)
		} else {
			b.OnEngineFailure(s.Value.Text, s.Value.Pos)
		}
	}
	if s, ok := cfg.Lookup(KeyGuards); ok {
		switch {
		case !s.Value.IsList:
			b.Fail(&policy.Error{
				Origin: s.Value.Pos, What: "setting", Value: KeyGuards,
				Reason: "must be a list",
				Hint:   fmt.Sprintf(`write %s = [ "guard=action", ... ]`, KeyGuards),
			})
		default:
			for _, e := range s.Value.List {
				if e.IsList {
					b.Fail(&policy.Error{
						Origin: e.Pos, What: "setting", Value: KeyGuards,
						Reason: "holds a list inside the list",
						Hint:   `each element is a string "guard=action"`,
					})
					continue
				}
				b.GuardAssignment(e.Text, e.Pos)
			}
		}
	}
	var err error
	if d.Spec, err = b.Build(); err != nil {
		d.Required = b.Required()
	}
	return d, err
}

// saysNo reports whether a setting is a switch that is off.
func saysNo(s Setting) bool {
	on, err := policy.ParseSwitch(s.Key, s.Value.Text)
	return err == nil && !on && !s.Value.IsList
}

// notAWord says why a setting that must be one word is none, or nil.
func notAWord(s Setting) error {
	switch {
	case s.Value.IsList:
		return &policy.Error{
			Origin: s.Value.Pos, What: "setting", Value: s.Key,
			Reason: "is a list, but must be a single value",
		}
	case s.Added:
		return &policy.Error{
			Origin: s.Pos, What: "setting", Value: s.Key,
			Reason: "is set with +=, which would glue words together",
			Hint:   "use =",
		}
	default:
		return nil
	}
}

// identify reads the name and the UUID.
func (d *Declared) identify(cfg *Config) error {
	name, ok := cfg.Lookup("name")
	switch {
	case !ok:
		return &policy.Error{What: "setting", Value: "name", Reason: "is missing; xl does not create a domain without one"}
	case name.Value.IsList:
		return &policy.Error{Origin: name.Value.Pos, What: "setting", Value: "name", Reason: "is a list, but must be a single value"}
	}
	d.Name = name.Value.Text
	u, ok := cfg.Lookup("uuid")
	if !ok || u.Value.IsList {
		// xl warns about a list and goes on with a made-up UUID.
		return nil
	}
	var err error
	// xl and hvi accept the same: the canonical 36 characters in either case.
	if d.UUID, err = xen.ParseUUID(u.Value.Text); err != nil {
		return &policy.Error{Origin: u.Value.Pos, What: "uuid", Value: u.Value.Text, Reason: "is not a UUID; xl does not create a domain with it"}
	}
	d.HasUUID = true
	return nil
}
