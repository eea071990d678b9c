package policy

import (
	"slices"
)

// Mode is how far introspection of a domain may go.
//
// The zero value is [ModeOff]: what was never declared is never introspected.
type Mode uint8

const (
	// ModeOff attaches nothing to the domain.
	ModeOff Mode = iota
	// ModeLearn is ModeObserve for a while: what the guards see is taken for what a
	// healthy guest does, and exceptions are proposed from it. A guard that is set to
	// prevent does not, until the mode is enforce.
	ModeLearn
	// ModeObserve attaches, records what the guards see, and blocks nothing.
	ModeObserve
	// ModeEnforce attaches and lets the guards block.
	ModeEnforce
)

var modeWords = []string{ModeOff: "off", ModeLearn: "learn", ModeObserve: "observe", ModeEnforce: "enforce"}

// modeAliases are the spellings of a switch. Xen's own config language writes
// booleans as 0 and 1, other tools as words; on means the mildest mode that
// does anything.
var modeAliases = map[string]Mode{
	"0": ModeOff, "no": ModeOff, "false": ModeOff,
	"1": ModeObserve, "on": ModeObserve, "yes": ModeObserve, "true": ModeObserve,
}

// Modes returns every mode's word, in the order of their strength.
func Modes() []string { return slices.Clone(modeWords) }

// String returns the mode's word, or "mode(N)" for a value outside the type.
func (m Mode) String() string { return word(modeWords, m, "mode") }

// MarshalText implements [encoding.TextMarshaler]. It fails for a value that is
// none of the modes.
func (m Mode) MarshalText() ([]byte, error) { return marshalWord(modeWords, m, "mode") }

// UnmarshalText implements [encoding.TextUnmarshaler]; it accepts what
// [ParseMode] accepts and leaves m alone on error.
func (m *Mode) UnmarshalText(text []byte) error {
	v, err := ParseMode(string(text))
	if err != nil {
		return err
	}
	*m = v
	return nil
}

// ParseMode reads a mode: one of its words, or a switch: 1, on, yes and true
// are observe; 0, no and false are off. Anything else is an [*Error].
func ParseMode(s string) (Mode, error) {
	if m, ok := modeAliases[s]; ok {
		return m, nil
	}
	return parseWord[Mode](modeWords, s, "mode", "0 is off and 1 is observe")
}

// Watches reports whether the guards are armed and only report.
func (m Mode) Watches() bool { return m == ModeLearn || m == ModeObserve }

// Attaches reports whether a domain of this mode is attached to.
func (m Mode) Attaches() bool { return m.Watches() || m == ModeEnforce }

// Action is what a guard does when it sees a violation.
//
// The zero value is [ActionOff].
type Action uint8

const (
	// ActionOff does not arm the guard.
	ActionOff Action = iota
	// ActionAlert records the violation and lets it happen.
	ActionAlert
	// ActionBlock records the violation and prevents it; the guest runs on.
	ActionBlock
	// ActionKill does what ActionBlock does, and ends the process that did it.
	ActionKill
	// ActionPause does what ActionBlock does, as far as the guard can, and pauses the
	// domain until an admin has it run on.
	ActionPause
	// ActionShutdown does what ActionPause does, and then stops the domain for good:
	// its toolstack takes it for crashed.
	ActionShutdown
)

var actionWords = []string{ActionOff: "off", ActionAlert: "alert", ActionBlock: "block", ActionKill: "kill", ActionPause: "pause", ActionShutdown: "shutdown"}

// Prevents reports whether a violation is prevented, where the guard can.
func (a Action) Prevents() bool { return a >= ActionBlock }

// Stops reports whether the domain is stopped: paused, or shut down.
func (a Action) Stops() bool { return a >= ActionPause }

// never says what a mode that only watches does not do, of an action that prevents.
func (a Action) never(m Mode) string {
	what := "blocks"
	switch a {
	case ActionKill:
		what = "kills a process"
	case ActionPause:
		what = "pauses a guest"
	case ActionShutdown:
		what = "shuts a guest down"
	}
	return "mode " + m.String() + " never " + what
}

// Actions returns every action's word, in the order of their strength.
func Actions() []string { return slices.Clone(actionWords) }

// String returns the action's word, or "action(N)" for a value outside the type.
func (a Action) String() string { return word(actionWords, a, "action") }

// MarshalText implements [encoding.TextMarshaler]. It fails for a value that is
// none of the actions.
func (a Action) MarshalText() ([]byte, error) { return marshalWord(actionWords, a, "action") }

// UnmarshalText implements [encoding.TextUnmarshaler]; it accepts what
// [ParseAction] accepts and leaves a alone on error.
func (a *Action) UnmarshalText(text []byte) error {
	v, err := ParseAction(string(text))
	if err != nil {
		return err
	}
	*a = v
	return nil
}

// ParseAction reads an action's word. Anything else is an [*Error].
func ParseAction(s string) (Action, error) {
	return parseWord[Action](actionWords, s, "action", "")
}

// EngineFailure is what happens to the guest when the engine itself fails.
//
// The zero value is [Release].
type EngineFailure uint8

const (
	// Release lets the guest run on without introspection (fail-open).
	Release EngineFailure = iota
	// Pause stops the guest until it is protected again (fail-closed).
	Pause
)

var engineFailureWords = []string{Release: "release", Pause: "pause"}

// String returns the word, or "on_engine_failure(N)" for a value outside the type.
func (f EngineFailure) String() string { return word(engineFailureWords, f, "on_engine_failure") }

// MarshalText implements [encoding.TextMarshaler]. It fails for a value outside
// the type.
func (f EngineFailure) MarshalText() ([]byte, error) {
	return marshalWord(engineFailureWords, f, "on_engine_failure")
}

// UnmarshalText implements [encoding.TextUnmarshaler]; it accepts what
// [ParseEngineFailure] accepts and leaves f alone on error.
func (f *EngineFailure) UnmarshalText(text []byte) error {
	v, err := ParseEngineFailure(string(text))
	if err != nil {
		return err
	}
	*f = v
	return nil
}

// EngineFailures returns the words for what to do when the engine fails.
func EngineFailures() []string { return slices.Clone(engineFailureWords) }

// ParseEngineFailure reads the word for what to do when the engine fails: release
// or pause. Anything else is an [*Error].
func ParseEngineFailure(s string) (EngineFailure, error) {
	return parseWord[EngineFailure](engineFailureWords, s, "on_engine_failure", "")
}

var switchWords = []string{"yes", "no", "on", "off", "true", "false", "1", "0"}

// ParseSwitch reads a yes or a no, in any of the ways front ends write them:
// yes, on, true and 1, or no, off, false and 0. Anything else is an [*Error]
// about what.
func ParseSwitch(what, s string) (bool, error) {
	switch s {
	case "yes", "on", "true", "1":
		return true, nil
	case "no", "off", "false", "0":
		return false, nil
	}
	return false, &Error{What: what, Value: s, Reason: "is neither yes nor no", Nearest: Nearest(s, switchWords), Hint: "write yes or no"}
}
