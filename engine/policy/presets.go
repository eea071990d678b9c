package policy

import "slices"

// The presets: sets of actions to start from.
const (
	// PresetDefault is used when none is named: every guard at the default of its
	// mode.
	PresetDefault = "default"
	// PresetLinuxObserve reports and never blocks, whatever the mode.
	PresetLinuxObserve = "linux-observe"
	// PresetLinuxServer blocks what nothing on a healthy server does.
	PresetLinuxServer = "linux-server"
	// PresetLinuxStrict blocks all that a guard can.
	PresetLinuxStrict = "linux-strict"
)

// Preset is a named set of actions.
type Preset struct {
	// Name is the word that names it.
	Name string
	// Meaning is one sentence for people, without a full stop.
	Meaning string

	// line says what it makes of a guard; nil for what the mode does.
	line func(About) (Action, string)
}

// PresetLine is what a preset makes of one guard under mode enforce. Under observe
// none blocks, and what would block alerts.
type PresetLine struct {
	Guard  GuardName
	Action Action
	// Why is the reason, one sentence without a full stop.
	Why string
}

var presets = []Preset{
	{Name: PresetDefault, Meaning: "every guard: alert under observe, block under enforce"},
	{
		Name: PresetLinuxObserve, Meaning: "every guard alerts and none blocks, under enforce too: to see what a guest does before anything is prevented",
		line: func(a About) (Action, string) {
			if a.Strict == ActionOff && a.Guard != "" {
				return ActionOff, a.StrictWhy
			}
			return ActionAlert, "it is reported and takes place"
		},
	},
	{
		Name: PresetLinuxServer, Meaning: "for Linux servers: what no healthy server does is blocked, what some do is reported",
		line: func(a About) (Action, string) { return a.Server, a.ServerWhy },
	},
	{
		Name: PresetLinuxStrict, Meaning: "for guests that are known to need none of it: all that a guard can block is blocked",
		line: func(a About) (Action, string) { return a.Strict, a.StrictWhy },
	},
}

// Presets returns every known preset.
func Presets() []Preset { return slices.Clone(presets) }

// Lines returns what the preset makes of each guard, in the order of [Guards]; none
// for one that leaves all to the mode.
func (p Preset) Lines() []PresetLine {
	if p.line == nil {
		return nil
	}
	var out []PresetLine
	for _, g := range guards {
		out = append(out, p.of(g))
	}
	return out
}

// of is the preset's line of a guard. One of which nothing is told does what mode
// enforce does, but for linux-observe.
func (p Preset) of(g Guard) PresetLine {
	l := PresetLine{Guard: g.Name, Action: g.Enforce, Why: "what mode enforce does"}
	if a, ok := LookupAbout(g.Name); ok || p.Name == PresetLinuxObserve {
		l.Action, l.Why = p.line(a)
	}
	return l
}

// lookupPreset finds a preset by its name.
func lookupPreset(name string) (Preset, bool) {
	i := slices.IndexFunc(presets, func(p Preset) bool { return p.Name == name })
	if i < 0 {
		return Preset{}, false
	}
	return presets[i], true
}

// ParsePreset reads the name of a known preset. Anything else is an [*Error].
func ParsePreset(s string) (string, error) {
	if _, ok := lookupPreset(s); ok {
		return s, nil
	}
	words := make([]string, len(presets))
	for i, p := range presets {
		words[i] = p.Name
	}
	return "", UnknownWord("policy preset", s, words, Origin{})
}
