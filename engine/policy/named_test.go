package policy

import (
	"encoding/json"
	"errors"
	"reflect"
	"slices"
	"strings"
	"testing"
)

// shelf is a set of policies in memory; one without an origin is broken.
type shelf map[string]Named

var errShelf = errors.New("the shelf fell down")

func (s shelf) Policy(name string) (*Named, error) {
	n, ok := s[name]
	switch {
	case !ok:
		return nil, nil
	case n.Origin.IsZero():
		return nil, errShelf
	}
	return &n, nil
}

func (s shelf) Names() []string {
	var names []string
	for n := range s {
		names = append(names, n)
	}
	slices.Sort(names)
	return names
}

func of(line int) Origin { return Origin{Source: "/etc/hvi/policies/web.toml", Line: line} }

var web = Named{
	Name: "web", Origin: of(0),
	Guards:        []GuardSetting{{GuardKernelText, ActionBlock, of(2)}, {GuardSyscallEntry, ActionAlert, of(3)}},
	RequireAttach: true, RequireAttachAt: of(1),
}

func TestNamedPolicy(t *testing.T) {
	build := func(feed func(*Builder)) Spec {
		t.Helper()
		b := Builder{Policies: shelf{"web": web}}
		feed(&b)
		s, err := b.Build()
		if err != nil {
			t.Fatal(err)
		}
		if err := s.Validate(); err != nil {
			t.Fatalf("built but not valid: %v", err)
		}
		text, err := json.Marshal(s)
		if err != nil {
			t.Fatal(err)
		}
		var back Spec
		if err := json.Unmarshal(text, &back); err != nil || !reflect.DeepEqual(back, s) {
			t.Errorf("through JSON %s:\ngot %+v, %v", text, back, err)
		}
		return s
	}
	t.Run("under enforce", func(t *testing.T) {
		s := build(func(b *Builder) { b.Preset("web", at(1)); b.Mode("enforce", at(2)) })
		e := s.Effective()
		if e.Preset != "web" || !e.RequireAttach || e.Origins.RequireAttach != of(1) {
			t.Errorf("%+v", e)
		}
		var want []EffectiveGuard
		for _, g := range Guards() {
			is := EffectiveGuard{g.Name, g.Enforce, Origin{}, "default of mode enforce"}
			switch g.Name {
			case GuardKernelText:
				is = EffectiveGuard{g.Name, ActionBlock, of(2), "policy web at /etc/hvi/policies/web.toml:2"}
			case GuardSyscallEntry:
				is = EffectiveGuard{g.Name, ActionAlert, of(3), "policy web at /etc/hvi/policies/web.toml:3"}
			}
			want = append(want, is)
		}
		if !slices.Equal(e.Guards, want) {
			t.Errorf("got  %+v\nwant %+v", e.Guards, want)
		}
	})
	t.Run("under observe nothing of it blocks", func(t *testing.T) {
		e := build(func(b *Builder) { b.Mode("observe", at(2)); b.Preset("web", at(1)) }).Effective()
		if g := e.Guards[0]; g.Action != ActionAlert || !strings.Contains(g.From, "where it is block; mode observe never blocks") {
			t.Errorf("%+v", g)
		}
	})
	t.Run("the domain's own settings come first", func(t *testing.T) {
		s := build(func(b *Builder) {
			b.Mode("enforce", at(1))
			b.Preset("web", at(2))
			b.RequireAttach("no", at(3))
			b.Guard("kernel-text", "off", at(4))
		})
		e := s.Effective()
		if e.RequireAttach || e.Origins.RequireAttach != at(3) || e.Action(GuardKernelText) != ActionOff || e.Guards[0].From != "g.cfg:4" {
			t.Errorf("%+v", e)
		}
	})
	t.Run("under off it requires nothing", func(t *testing.T) {
		if s := build(func(b *Builder) { b.Mode("off", at(1)); b.Preset("web", at(2)) }); s.RequireAttach {
			t.Errorf("%+v", s)
		}
	})
}

func TestNamedPolicyErrors(t *testing.T) {
	for name, want := range map[string]string{
		"wbe":    `g.cfg:2: unknown policy "wbe"; did you mean "web"? (known: default, linux-observe, linux-server, linux-strict, bad, web)`,
		"../web": `g.cfg:2: unknown policy "../web" (known: default, linux-observe, linux-server, linux-strict, bad, web)`,
		"bad":    errShelf.Error(),
	} {
		b := Builder{Policies: shelf{"web": web, "bad": {}}}
		b.Mode("enforce", at(1))
		b.Preset(name, at(2))
		if _, err := b.Build(); err == nil || err.Error() != want {
			t.Errorf("%s: got %v, want %s", name, err, want)
		}
	}
}

func TestBuildNamed(t *testing.T) {
	var b Builder
	b.Guard("kernel-text", "block", of(2))
	b.Guard("syscall-entry", "alert", of(3))
	b.RequireAttach("true", of(1))
	got, err := b.BuildNamed("web", of(0))
	if err != nil || !reflect.DeepEqual(got, web) {
		t.Errorf("got %+v, %v; want %+v", got, err, web)
	}

	b = Builder{}
	b.Mode("enforce", of(1))
	b.Preset("default", of(2))
	b.Guard("kernel-txt", "block", of(3))
	_, err = b.BuildNamed("default", of(0))
	for _, want := range []string{"web.toml: policy name \"default\" is built in", "web.toml:1: mode cannot be set", "web.toml:2: policy cannot be set", "web.toml:3: unknown guard"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v does not say %s", err, want)
		}
	}
}

func TestCheckName(t *testing.T) {
	for name, ok := range map[string]bool{
		"web": true, "Web-1.2_x": true, "0": true, strings.Repeat("a", 64): true,
		"": false, "default": false, ".web": false, "-web": false, "a/b": false, "a b": false,
		"..": false, "é": false, "a\x00": false, strings.Repeat("a", 65): false,
	} {
		if err := CheckName(name); (err == nil) != ok {
			t.Errorf("CheckName(%q) = %v", name, err)
		}
	}
}

func TestRefresh(t *testing.T) {
	b := Builder{Policies: shelf{"web": web}}
	b.Mode("enforce", at(1))
	b.Preset("web", at(2))
	kept, err := b.Build()
	if err != nil {
		t.Fatal(err)
	}
	changed := Named{Name: "web", Origin: of(0), Guards: []GuardSetting{{GuardKernelText, ActionAlert, of(9)}}}

	fresh, found, err := kept.Refresh(shelf{"web": changed})
	if err != nil || !found || fresh.RequireAttach || fresh.Effective().Action(GuardKernelText) != ActionAlert {
		t.Errorf("changed: %+v, %v, %v", fresh, found, err)
	}
	if !kept.RequireAttach || kept.Effective().Action(GuardKernelText) != ActionBlock {
		t.Errorf("Refresh changed what it was called on: %+v", kept)
	}
	if back, _, err := fresh.Refresh(shelf{"web": web}); err != nil || !reflect.DeepEqual(back, kept) {
		t.Errorf("and back: %+v, %v", back, err)
	}
	if same, found, err := kept.Refresh(shelf{}); err != nil || found || !reflect.DeepEqual(same, kept) {
		t.Errorf("gone: %+v, %v, %v", same, found, err)
	}
	if _, _, err := kept.Refresh(shelf{"web": {}}); !errors.Is(err, errShelf) {
		t.Errorf("broken: %v", err)
	}
	own := kept
	own.RequireAttach, own.Origins.RequireAttach = true, at(7)
	if got, _, _ := own.Refresh(shelf{"web": changed}); !got.RequireAttach {
		t.Error("what the domain itself requires was lost")
	}
}

func TestParseSwitch(t *testing.T) {
	for s, want := range map[string]bool{
		"1": true, "yes": true, "on": true, "true": true,
		"0": false, "no": false, "off": false, "false": false,
	} {
		if got, err := ParseSwitch("x", s); err != nil || got != want {
			t.Errorf("%q: %v, %v", s, got, err)
		}
	}
	for _, s := range []string{"", "2", "Yes", "enforce", "\xff"} {
		if _, err := ParseSwitch("x", s); err == nil {
			t.Errorf("%q is accepted", s)
		}
	}
}
