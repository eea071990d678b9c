package policy

import (
	"encoding/json"
	"errors"
	"reflect"
	"slices"
	"strings"
	"testing"
)

func TestParseMode(t *testing.T) {
	for s, want := range map[string]Mode{
		"off": ModeOff, "observe": ModeObserve, "enforce": ModeEnforce,
		"0": ModeOff, "no": ModeOff, "false": ModeOff,
		"1": ModeObserve, "on": ModeObserve, "yes": ModeObserve, "true": ModeObserve,
	} {
		if got, err := ParseMode(s); err != nil || got != want {
			t.Errorf("ParseMode(%q) = %v, %v; want %v", s, got, err, want)
		}
	}
	for s, near := range map[string]string{
		"enfroce": "enforce", "Enforce": "enforce", "observ": "observe", "of": "off",
		"2": "", "": "", "-1": "", "x": "", "completely different": "",
		strings.Repeat("enforce", 1000): "",
	} {
		_, err := ParseMode(s)
		var e *Error
		if !errors.As(err, &e) {
			t.Errorf("ParseMode(%q) = %v, want *Error", s, err)
			continue
		}
		if e.Nearest != near || !slices.Equal(e.Known, Modes()) {
			t.Errorf("ParseMode(%q): nearest %q, known %q; want %q and all modes", s, e.Nearest, e.Known, near)
		}
	}
}

func TestWordsRoundTrip(t *testing.T) {
	type texter interface {
		MarshalText() ([]byte, error)
	}
	check := func(name string, v texter, back func([]byte) (any, error)) {
		t.Helper()
		text, err := v.MarshalText()
		if err != nil {
			t.Errorf("%s: %v", name, err)
			return
		}
		got, err := back(text)
		if err != nil || !reflect.DeepEqual(got, v) {
			t.Errorf("%s: %q read back as %v, %v", name, text, got, err)
		}
	}
	for m := range ModeEnforce + 1 {
		check(m.String(), m, func(b []byte) (any, error) { var v Mode; err := v.UnmarshalText(b); return v, err })
	}
	for a := range ActionShutdown + 1 {
		check(a.String(), a, func(b []byte) (any, error) { var v Action; err := v.UnmarshalText(b); return v, err })
	}
	check("release", Release, func(b []byte) (any, error) { var v EngineFailure; err := v.UnmarshalText(b); return v, err })

	for _, v := range []texter{Mode(4), Action(9), EngineFailure(2)} {
		if text, err := v.MarshalText(); err == nil {
			t.Errorf("%v marshalled as %q, want an error", v, text)
		}
	}
	if s := Mode(7).String(); s != "mode(7)" {
		t.Errorf("String of an invalid mode = %q", s)
	}
	m := ModeEnforce
	if err := m.UnmarshalText([]byte("bogus")); err == nil || m != ModeEnforce {
		t.Errorf("a failed UnmarshalText left %v, err %v", m, err)
	}
}

func TestEngineFailure(t *testing.T) {
	if f, err := ParseEngineFailure("pause"); err != nil || f != Pause {
		t.Errorf("pause: %v, %v", f, err)
	}
	var e *Error
	if _, err := ParseEngineFailure("paus"); !errors.As(err, &e) || e.Nearest != "pause" {
		t.Errorf("an unknown word: %v", err)
	}
	if err := (Spec{OnEngineFailure: Pause}).Validate(); err != nil {
		t.Errorf("Validate: %v", err)
	}
}

func TestGuardTable(t *testing.T) {
	for _, g := range Guards() {
		if g.Meaning == "" || strings.ContainsAny(g.Meaning, "\n") || strings.HasSuffix(g.Meaning, ".") {
			t.Errorf("%s: meaning %q is not one sentence", g.Name, g.Meaning)
		}
		if g.Observe > ActionAlert {
			t.Errorf("%s would block under observe by default", g.Name)
		}
		if g.Default(ModeOff) != ActionOff {
			t.Errorf("%s is armed under mode off", g.Name)
		}
		if g.Default(ModeObserve) != g.Observe || g.Default(ModeEnforce) != g.Enforce {
			t.Errorf("%s: Default disagrees with the table", g.Name)
		}
		if n, err := ParseGuardName(string(g.Name)); err != nil || n != g.Name {
			t.Errorf("ParseGuardName(%q) = %q, %v", g.Name, n, err)
		}
	}
	if _, err := ParsePreset(PresetDefault); err != nil {
		t.Error(err)
	}
	Guards()[0].Name = "changed"
	Presets()[0].Name = "changed"
	if Guards()[0].Name == "changed" || Presets()[0].Name == "changed" {
		t.Error("a caller can change the tables")
	}
}

func at(line int) Origin { return Origin{Source: "g.cfg", Line: line} }

func TestBuild(t *testing.T) {
	var b Builder
	b.Mode("enforce", at(3))
	b.Preset("default", at(4))
	b.GuardAssignment(" kernel-text = alert ", at(5))
	b.Guard("syscall-entry", "off", at(6))
	b.OnEngineFailure("release", at(7))
	b.RequireAttach("yes", at(8))
	got, err := b.Build()
	if err != nil {
		t.Fatal(err)
	}
	want := Spec{
		Mode:   ModeEnforce,
		Preset: "default",
		Guards: []GuardSetting{
			{GuardKernelText, ActionAlert, at(5)},
			{GuardSyscallEntry, ActionOff, at(6)},
		},
		RequireAttach: true,
		Origins:       Origins{Mode: at(3), Preset: at(4), OnEngineFailure: at(7), RequireAttach: at(8)},
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got  %+v\nwant %+v", got, want)
	}
	if err := got.Validate(); err != nil {
		t.Errorf("what a builder made is not valid: %v", err)
	}

	text, err := json.Marshal(got)
	if err != nil {
		t.Fatal(err)
	}
	var back Spec
	if err := json.Unmarshal(text, &back); err != nil || !reflect.DeepEqual(back, got) {
		t.Errorf("through JSON %s:\ngot %+v, %v", text, back, err)
	}
}

func TestBuildNothing(t *testing.T) {
	var b Builder
	s, err := b.Build()
	if err != nil || s.Declared() {
		t.Errorf("got %+v, %v; want a spec that declares nothing", s, err)
	}
	b.Mode("off", Origin{})
	s, err = b.Build()
	if err != nil || !s.Declared() || s.Mode != ModeOff {
		t.Errorf("got %+v, %v; off is something declared", s, err)
	}
}

func TestBuildErrors(t *testing.T) {
	tests := []struct {
		name string
		feed func(*Builder)
		want []string // one per error, each a substring
	}{
		{"unknown mode", func(b *Builder) { b.Mode("enfroce", at(1)) },
			[]string{`g.cfg:1: unknown mode "enfroce"; did you mean "enforce"? (known: off, learn, observe, enforce)`}},
		{"unknown guard", func(b *Builder) { b.Mode("enforce", at(1)); b.GuardAssignment("kernel_txt=block", at(2)) },
			[]string{`g.cfg:2: unknown guard "kernel_txt"; did you mean "kernel-text"? (known: kernel-text, `}},
		{"a guard that can't block", func(b *Builder) { b.Mode("enforce", at(1)); b.Guard("hidden-objects", "block", at(2)) },
			[]string{`g.cfg:2: guard "hidden-objects" is set to block, but it finds afterwards what has taken place; set it to alert`}},
		{"unknown action", func(b *Builder) { b.Mode("enforce", at(1)); b.GuardAssignment("kernel-text=blok", at(2)) },
			[]string{`g.cfg:2: unknown action of guard kernel-text "blok"; did you mean "block"?`}},
		{"unknown preset", func(b *Builder) { b.Mode("1", at(1)); b.Preset("linux-servr", at(2)) },
			[]string{`g.cfg:2: unknown policy preset "linux-servr"; did you mean "linux-server"? (known: default, linux-observe, linux-server, linux-strict)`}},
		{"block under observe", func(b *Builder) { b.Mode("observe", at(1)); b.GuardAssignment("kernel-text=block", at(2)) },
			[]string{`g.cfg:2: guard "kernel-text" is set to block, but mode observe never blocks; use mode "enforce"`}},
		{"pause under observe", func(b *Builder) { b.Mode("observe", at(1)); b.GuardAssignment("creds=pause", at(2)) },
			[]string{`g.cfg:2: guard "creds" is set to pause, but mode observe never pauses a guest; use mode "enforce"`}},
		{"shutdown under observe", func(b *Builder) { b.Mode("observe", at(1)); b.GuardAssignment("cr=shutdown", at(2)) },
			[]string{`g.cfg:2: guard "cr" is set to shutdown, but mode observe never shuts a guest down; use mode "enforce"`}},
		{"a guest that has stopped", func(b *Builder) { b.Mode("enforce", at(1)); b.Guard("panic", "pause", at(2)) },
			[]string{`g.cfg:2: guard "panic" is set to pause, but the guest has stopped when it tells of that; set it to alert`}},
		{"no action", func(b *Builder) { b.Mode("observe", at(1)); b.GuardAssignment("kernel-text", at(2)) },
			[]string{`g.cfg:2: guard setting "kernel-text" is not of the form name=action; for example kernel-text=alert`}},
		{"empty setting", func(b *Builder) { b.Mode("observe", at(1)); b.GuardAssignment("", at(2)) },
			[]string{`g.cfg:2: guard setting is empty: write name=action`}},
		{"guard twice", func(b *Builder) {
			b.Mode("enforce", at(1))
			b.GuardAssignment("kernel-text=block", at(2))
			b.GuardAssignment("kernel-text=block", at(3))
		}, []string{`g.cfg:3: guard "kernel-text" is set twice; it was set first at g.cfg:2`}},
		{"mode twice", func(b *Builder) { b.Mode("enforce", at(1)); b.Mode("off", at(2)) },
			[]string{`g.cfg:2: mode is set twice; it was set first at g.cfg:1`}},
		{"preset and failure twice", func(b *Builder) {
			b.Mode("enforce", at(1))
			b.Preset("default", at(2))
			b.Preset("default", at(3))
			b.OnEngineFailure("release", at(4))
			b.OnEngineFailure("release", at(5))
		}, []string{"g.cfg:3: policy is set twice", "g.cfg:5: on_engine_failure is set twice"}},
		{"guards without a mode", func(b *Builder) {
			b.GuardAssignment("kernel-text=block", at(2))
			b.GuardAssignment("syscall-entry=block", at(3))
			b.Preset("default", at(4))
		}, []string{`g.cfg:2: a guard is set, but the mode is not`, `g.cfg:4: a policy is set, but the mode is not`}},
		{"a mode that was rejected is not missing", func(b *Builder) {
			b.Fail(errors.New("the list is no mode"))
			b.ModeRejected(at(1))
			b.GuardAssignment("kernel-text=block", at(2))
		}, []string{"the list is no mode"}},
		{"require_attach twice", func(b *Builder) {
			b.Mode("enforce", at(1))
			b.RequireAttach("1", at(2))
			b.RequireAttach("0", at(3))
		}, []string{`g.cfg:3: require_attach is set twice; it was set first at g.cfg:2`}},
		{"require_attach is no switch", func(b *Builder) { b.Mode("enforce", at(1)); b.RequireAttach("ye", at(2)) },
			[]string{`g.cfg:2: require_attach "ye" is neither yes nor no; did you mean "yes"?; write yes or no`}},
		{"require_attach without a mode", func(b *Builder) { b.RequireAttach("1", at(2)) },
			[]string{`g.cfg:2: require_attach is set, but the mode is not`}},
		{"require_attach under off", func(b *Builder) { b.RequireAttach("1", at(1)); b.Mode("off", at(2)) },
			[]string{`g.cfg:1: require_attach is set, but mode off attaches nothing`}},
		{"require_attach beside a mode that is not understood", func(b *Builder) { b.RequireAttach("1", at(1)); b.Mode("of", at(2)) },
			[]string{`g.cfg:2: unknown mode "of"`}},
		{"all at once", func(b *Builder) {
			b.Mode("bogus", at(1))
			b.Preset("bogus", at(2))
			b.GuardAssignment("bogus=bogus", at(3))
			b.OnEngineFailure("bogus", at(4))
		}, []string{"g.cfg:1: unknown mode", "g.cfg:2: unknown policy preset", "g.cfg:3: unknown guard", "g.cfg:3: unknown action", "g.cfg:4: unknown on_engine_failure"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var b Builder
			tt.feed(&b)
			s, err := b.Build()
			if err == nil {
				t.Fatalf("no error, spec %+v", s)
			}
			if !reflect.DeepEqual(s, Spec{}) {
				t.Errorf("an error came with a spec: %+v", s)
			}
			got := strings.Split(err.Error(), "\n")
			if len(got) != len(tt.want) {
				t.Fatalf("%d errors, want %d:\n%v", len(got), len(tt.want), err)
			}
			for i := range got {
				if !strings.Contains(got[i], tt.want[i]) {
					t.Errorf("error %d\n got %s\nwant %s", i, got[i], tt.want[i])
				}
			}
		})
	}
}

func TestErrorsFlattens(t *testing.T) {
	a, b := UnknownWord("guard", "a", nil, at(1)), UnknownWord("guard", "b", nil, at(2))
	joined := errors.Join(errors.New("other"), a, errors.Join(b))
	if got := Errors(joined); !slices.Equal(got, []*Error{a, b}) {
		t.Errorf("got %v", got)
	}
	if got := Errors(nil); got != nil {
		t.Errorf("Errors(nil) = %v", got)
	}
}

func TestValidate(t *testing.T) {
	tests := []struct {
		name string
		spec Spec
		want string // "" is valid
	}{
		{"zero", Spec{}, ""},
		{"full", Spec{Mode: ModeEnforce, Preset: "default", Guards: []GuardSetting{{Name: GuardKernelText, Action: ActionBlock}}}, ""},
		{"mode", Spec{Mode: 9}, "mode"},
		{"failure", Spec{OnEngineFailure: 9}, "on_engine_failure"},
		{"preset", Spec{Preset: "x"}, "unknown policy preset"},
		{"guard", Spec{Guards: []GuardSetting{{Name: "nope"}}}, "unknown guard"},
		{"action", Spec{Guards: []GuardSetting{{Name: GuardKernelText, Action: 7}}}, "action"},
		{"a guard that can't block, and pauses", Spec{Mode: ModeEnforce, Guards: []GuardSetting{{Name: GuardCredentials, Action: ActionPause}}}, ""},
		{"a guard that can't block, and kills", Spec{Mode: ModeEnforce, Guards: []GuardSetting{{Name: GuardCredentials, Action: ActionKill}}}, "is set to kill, but it finds afterwards"},
		{"observe and kill", Spec{Mode: ModeObserve, Guards: []GuardSetting{{Name: GuardKernelText, Action: ActionKill}}}, "never kills"},
		{"observe and shutdown", Spec{Mode: ModeObserve, Guards: []GuardSetting{{Name: GuardKernelText, Action: ActionShutdown}}}, "never shuts"},
		{"a guard that can't block", Spec{Mode: ModeEnforce, Guards: []GuardSetting{{Name: GuardCredentials, Action: ActionBlock}}}, "afterwards"},
		{"twice", Spec{Guards: []GuardSetting{{Name: GuardKernelText}, {Name: GuardKernelText}}}, "is set twice"},
		{"require_attach", Spec{Mode: ModeObserve, RequireAttach: true}, ""},
		{"require_attach under off", Spec{RequireAttach: true}, "mode off attaches nothing"},
		{"a policy of the admin's", Spec{Mode: ModeObserve, Preset: "web", Named: &Named{Name: "web", Origin: at(1), Guards: []GuardSetting{{Name: GuardKernelText, Action: ActionBlock}}}}, ""},
		{"another policy", Spec{Preset: "web", Named: &Named{Name: "db", Origin: at(1)}}, `"db" is not the one that is named; that is "web"`},
		{"a policy from nowhere", Spec{Preset: "web", Named: &Named{Name: "web"}}, "is written nowhere"},
		{"a policy with a guard twice", Spec{Preset: "web", Named: &Named{Name: "web", Origin: at(1), Guards: []GuardSetting{{Name: GuardKernelText}, {Name: GuardKernelText}}}}, "is set twice"},
		{"a policy that is a path", Spec{Preset: "../web", Named: &Named{Name: "../web", Origin: at(1)}}, "has a character that names do not have"},
		{"observe and block", Spec{Mode: ModeObserve, Guards: []GuardSetting{{Name: GuardKernelText, Action: ActionBlock}}}, "never blocks"},
	}
	for _, tt := range tests {
		err := tt.spec.Validate()
		switch {
		case tt.want == "" && err != nil:
			t.Errorf("%s: %v", tt.name, err)
		case tt.want != "" && (err == nil || !strings.Contains(err.Error(), tt.want)):
			t.Errorf("%s: got %v, want something about %q", tt.name, err, tt.want)
		}
	}
}

func TestEffective(t *testing.T) {
	set := func(n GuardName, a Action) []GuardSetting { return []GuardSetting{{n, a, at(5)}} }
	tests := []struct {
		name                string
		spec                Spec
		text, entry         Action
		textFrom, entryFrom string
	}{
		{"zero", Spec{}, ActionOff, ActionOff, "default of mode off", "default of mode off"},
		{"observe", Spec{Mode: ModeObserve}, ActionAlert, ActionAlert, "default of mode observe", "default of mode observe"},
		{"enforce", Spec{Mode: ModeEnforce}, ActionBlock, ActionBlock, "default of mode enforce", "default of mode enforce"},
		{"enforce, one eased", Spec{Mode: ModeEnforce, Guards: set(GuardKernelText, ActionAlert)}, ActionAlert, ActionBlock, "g.cfg:5", "default of mode enforce"},
		{"observe, one off", Spec{Mode: ModeObserve, Guards: set(GuardSyscallEntry, ActionOff)}, ActionAlert, ActionOff, "default of mode observe", "g.cfg:5"},
		{"off wins over guards", Spec{Guards: set(GuardKernelText, ActionBlock)}, ActionOff, ActionOff, "default of mode off", "default of mode off"},
		{"never blocks under observe", Spec{Mode: ModeObserve, Guards: set(GuardKernelText, ActionBlock)}, ActionAlert, ActionAlert, "g.cfg:5, where it is block; mode observe never blocks", "default of mode observe"},
		{"pauses", Spec{Mode: ModeEnforce, Guards: set(GuardKernelText, ActionPause)}, ActionPause, ActionBlock, "g.cfg:5", "default of mode enforce"},
		{"never shuts down under observe", Spec{Mode: ModeObserve, Guards: set(GuardKernelText, ActionShutdown)}, ActionAlert, ActionAlert, "g.cfg:5, where it is shutdown; mode observe never shuts a guest down", "default of mode observe"},
		{"a mode outside the type does nothing", Spec{Mode: 9, Guards: set(GuardKernelText, ActionBlock)}, ActionOff, ActionOff, "default of mode mode(9)", "default of mode mode(9)"},
	}
	for _, tt := range tests {
		e := tt.spec.Effective()
		if len(e.Guards) != len(Guards()) || e.Preset != PresetDefault || e.Mode != tt.spec.Mode {
			t.Errorf("%s: %+v", tt.name, e)
			continue
		}
		if e.Action(GuardKernelText) != tt.text || e.Action(GuardSyscallEntry) != tt.entry {
			t.Errorf("%s: actions %v, %v; want %v, %v", tt.name, e.Action(GuardKernelText), e.Action(GuardSyscallEntry), tt.text, tt.entry)
		}
		for _, g := range e.Guards {
			if g.Name == GuardKernelText && g.From != tt.textFrom || g.Name == GuardSyscallEntry && g.From != tt.entryFrom {
				t.Errorf("%s: %s from %q; want %q, %q", tt.name, g.Name, g.From, tt.textFrom, tt.entryFrom)
			}
		}
	}
	if a := (Effective{}).Action("nope"); a != ActionOff {
		t.Errorf("an unknown guard does %v", a)
	}
}

func TestSameIntent(t *testing.T) {
	declared := func(m Mode, line int, g ...GuardSetting) Spec {
		return Spec{Mode: m, Guards: g, Origins: Origins{Mode: at(line)}}
	}
	a := declared(ModeEnforce, 1)
	for _, tt := range []struct {
		name string
		b    Spec
		want bool
	}{
		{"itself elsewhere", declared(ModeEnforce, 9), true},
		{"the default written out", declared(ModeEnforce, 1, GuardSetting{GuardKernelText, ActionBlock, at(2)}), true},
		{"another action", declared(ModeEnforce, 1, GuardSetting{GuardKernelText, ActionAlert, at(2)}), false},
		{"another mode", declared(ModeObserve, 1), false},
		{"nothing declared", Spec{Mode: ModeEnforce}, false},
		{"required", Spec{Mode: ModeEnforce, RequireAttach: true, Origins: Origins{Mode: at(1)}}, false},
	} {
		if got := a.SameIntent(tt.b); got != tt.want {
			t.Errorf("%s: %v, want %v", tt.name, got, tt.want)
		}
	}
}

func TestOriginString(t *testing.T) {
	for _, tt := range []struct {
		o    Origin
		want string
	}{
		{Origin{}, "built-in"},
		{Origin{Source: "a.cfg"}, "a.cfg"},
		{Origin{Source: "a.cfg", Line: 3}, "a.cfg:3"},
		{Origin{Source: "a.cfg", Line: 3, Column: 7}, "a.cfg:3:7"},
		{Origin{Source: "a.cfg", Column: 7}, "a.cfg"},
		{Origin{Source: "a\x1b[31m.cfg", Line: 1}, `"a\x1b[31m.cfg":1`},
	} {
		if got := tt.o.String(); got != tt.want {
			t.Errorf("%#v: %q, want %q", tt.o, got, tt.want)
		}
	}
}

func TestNearest(t *testing.T) {
	known := []string{"introspection", "introspection_policy", "introspection_guards"}
	for s, want := range map[string]string{
		"introspection_guard":   "introspection_guards",
		"introspection-policy":  "introspection_policy",
		"introspecton":          "introspection",
		"introspection_polciy":  "introspection_policy",
		"INTROSPECTION_GUARDS":  "introspection_guards",
		"memory":                "",
		"":                      "",
		"i":                     "",
		strings.Repeat("i", 65): "",
	} {
		if got := Nearest(s, known); got != want {
			t.Errorf("Nearest(%q) = %q, want %q", s, got, want)
		}
	}
}

func TestQuote(t *testing.T) {
	for s, want := range map[string]string{
		"plain":                        `"plain"`,
		"a\nb\x1b[2J":                  `"a\nb\x1b[2J"`,
		"\xff":                         `"\xff"`,
		"é":                            `"\u00e9"`,
		strings.Repeat("a", 80):        `"` + strings.Repeat("a", 80) + `"`,
		strings.Repeat("a", 79) + "éé": `"` + strings.Repeat("a", 79) + `"…`,
	} {
		if got := Quote(s); got != want {
			t.Errorf("Quote(%q) = %s, want %s", s, got, want)
		}
	}
}

func FuzzBuilder(f *testing.F) {
	f.Add("enforce", "default", "kernel-text=block", "release", "1")
	f.Add("observe", "web", "syscall-entry=off", "release", "no")
	f.Add("1", "", "kernel-text", "pause", "x")
	f.Add("observe", "x", "=", "\xff\x00", "\x1b")
	f.Fuzz(func(t *testing.T, mode, preset, guard, failure, require string) {
		b := Builder{Policies: shelf{"web": {Name: "web", Origin: at(1), Guards: []GuardSetting{{GuardKernelText, ActionBlock, at(2)}}}}}
		b.Mode(mode, Origin{})
		b.Preset(preset, Origin{})
		b.GuardAssignment(guard, Origin{})
		b.OnEngineFailure(failure, Origin{})
		b.RequireAttach(require, Origin{})
		s, err := b.Build()
		if err != nil {
			if strings.ContainsFunc(err.Error(), func(r rune) bool { return r < ' ' && r != '\n' }) {
				t.Errorf("the error would control a terminal: %q", err)
			}
			return
		}
		if err := s.Validate(); err != nil {
			t.Errorf("built but not valid: %v", err)
		}
		if !s.Declared() {
			t.Error("a mode was given and nothing is declared")
		}
		for _, g := range s.Effective().Guards {
			if s.Mode != ModeEnforce && g.Action.Prevents() {
				t.Errorf("mode %v blocks %s", s.Mode, g.Name)
			}
		}
	})
}

// TestLearn has a guard that is to block later report under mode learn.
func TestLearn(t *testing.T) {
	var b Builder
	b.Mode("learn", Origin{Source: "g.cfg", Line: 1})
	b.Preset(PresetLinuxStrict, Origin{Source: "g.cfg", Line: 2})
	b.GuardAssignment("kernel-text=block", Origin{Source: "g.cfg", Line: 3})
	b.GuardAssignment("cr=off", Origin{Source: "g.cfg", Line: 4})
	b.RequireAttach("1", Origin{Source: "g.cfg", Line: 5})
	s, err := b.Build()
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Validate(); err != nil {
		t.Error(err)
	}
	e := s.Effective()
	strict, _ := lookupPreset(PresetLinuxStrict)
	for _, g := range guards {
		want := min(strict.of(g).Action, ActionAlert)
		if g.Name == GuardControlRegisters {
			want = ActionOff
		}
		if got := e.Action(g.Name); got != want {
			t.Errorf("%s is %s, want %s", g.Name, got, want)
		}
	}
	for _, g := range e.Guards {
		if g.Name == GuardKernelText && g.From != "g.cfg:3, where it is block; mode learn never blocks" {
			t.Errorf("from %q", g.From)
		}
	}
}
