package xlplugin

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/xen-hvi/hvi/engine/policy"
)

var update = flag.Bool("update", false, "write the golden files instead of comparing with them")

// describe writes everything a config comes to, for the golden files.
func describe(name string, data []byte) string {
	var b strings.Builder
	lines := func(what string, err error) {
		for _, l := range strings.Split(err.Error(), "\n") {
			fmt.Fprintf(&b, "%s: %s\n", what, l)
		}
	}
	cfg, err := Parse(name, data)
	if err != nil {
		lines("syntax error", err)
		return b.String()
	}
	d, err := FromConfig(cfg, nil)
	fmt.Fprintf(&b, "name: %s\n", policy.Quote(d.Name))
	if d.HasUUID {
		fmt.Fprintf(&b, "uuid: %s\n", d.UUID)
	}
	for _, w := range append(cfg.Warnings, d.Warnings...) {
		fmt.Fprintf(&b, "warning: %s\n", w)
	}
	if err != nil {
		lines("error", err)
		return b.String()
	}
	if !d.Spec.Declared() {
		b.WriteString("declares nothing\n")
		return b.String()
	}
	e := d.Spec.Effective()
	fmt.Fprintf(&b, "mode: %s (%s)\npolicy: %s (%s)\n", e.Mode, e.Origins.Mode, e.Preset, e.Origins.Preset)
	if e.RequireAttach {
		fmt.Fprintf(&b, "require_attach (%s)\n", e.Origins.RequireAttach)
	}
	for _, g := range e.Guards {
		fmt.Fprintf(&b, "guard %s: %s (%s)\n", g.Name, g.Action, g.From)
	}
	return b.String()
}

func TestGolden(t *testing.T) {
	configs, err := filepath.Glob("../testdata/xl/*.cfg")
	if err != nil || len(configs) < 10 {
		t.Fatalf("%d configs found, %v", len(configs), err)
	}
	for _, path := range configs {
		t.Run(filepath.Base(path), func(t *testing.T) {
			data, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			got := describe(filepath.Base(path), data)
			golden := strings.TrimSuffix(path, ".cfg") + ".golden"
			if *update {
				if err := os.WriteFile(golden, []byte(got), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(golden)
			if err != nil {
				t.Fatal(err)
			}
			if got != string(want) {
				t.Errorf("got:\n%s\nwant:\n%s", got, want)
			}
		})
	}
}

func TestFromConfigKeepsIdentityBesideErrors(t *testing.T) {
	cfg, err := Parse("g.cfg", []byte("name='g'\nuuid='6c9f7a1e-0b1d-4f0e-9c5c-0123456789ab'\nintrospection='x'\n"))
	if err != nil {
		t.Fatal(err)
	}
	d, err := FromConfig(cfg, nil)
	if err == nil || len(policy.Errors(err)) != 1 {
		t.Errorf("error %v, want one", err)
	}
	if d.Name != "g" || !d.HasUUID || d.Spec.Declared() {
		t.Errorf("got %+v", d)
	}
}

// shelf is one policy of the admin's.
type shelf struct{ policy.Named }

func (s shelf) Policy(name string) (*policy.Named, error) {
	if name != s.Name {
		return nil, nil
	}
	return &s.Named, nil
}

func (s shelf) Names() []string { return []string{s.Name} }

func TestPolicyOfTheAdmins(t *testing.T) {
	file := policy.Origin{Source: "/etc/hvi/policies/web.toml", Line: 2}
	known := shelf{policy.Named{Name: "web", Origin: file, RequireAttach: true, RequireAttachAt: file}}
	read := func(name string) (Declared, error) {
		t.Helper()
		cfg, err := Parse("g.cfg", []byte("name='g'\nintrospection='enforce'\nintrospection_policy='"+name+"'\n"))
		if err != nil {
			t.Fatal(err)
		}
		return FromConfig(cfg, known)
	}
	d, err := read("web")
	if err != nil || d.Spec.Preset != "web" || !d.Spec.RequireAttach || d.Spec.Origins.RequireAttach != file {
		t.Errorf("%+v, %v", d.Spec, err)
	}
	if _, err := read("wbe"); err == nil || !strings.Contains(err.Error(), `g.cfg:3:22: unknown policy "wbe"; did you mean "web"?`) {
		t.Errorf("a policy there is not: %v", err)
	}
}

func TestCommandLineWins(t *testing.T) {
	cfg, err := Parse("g.cfg", []byte("name='g'\nintrospection='enforce'\n"), `introspection="off"`)
	if err != nil {
		t.Fatal(err)
	}
	d, err := FromConfig(cfg, nil)
	if err != nil {
		t.Fatal(err)
	}
	if d.Spec.Mode != policy.ModeOff || d.Spec.Origins.Mode.Source != CommandLine {
		t.Errorf("mode %v from %v", d.Spec.Mode, d.Spec.Origins.Mode)
	}
	if len(d.Warnings) != 0 {
		t.Errorf("overriding on the command line is what it is for, but: %v", d.Warnings)
	}
}

func FuzzFromConfig(f *testing.F) {
	configs, _ := filepath.Glob("../testdata/xl/*.cfg")
	for _, path := range configs {
		if data, err := os.ReadFile(path); err == nil {
			f.Add(data)
		}
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		cfg, err := Parse("c", data)
		if err != nil {
			return
		}
		d, err := FromConfig(cfg, nil)
		if err == nil {
			if err := d.Spec.Validate(); err != nil {
				t.Errorf("accepted but not valid: %v", err)
			}
			if _, asked := cfg.Lookup(KeyMode); asked != d.Spec.Declared() {
				t.Errorf("the config has a mode: %v, the spec says %v", asked, d.Spec.Declared())
			}
		} else if d.Spec.Declared() {
			t.Errorf("an error, %v, came with a policy", err)
		}
	})
}

// TestRequiredOfBroken sees of a broken policy whether it requires protection.
func TestRequiredOfBroken(t *testing.T) {
	strict := shelf{policy.Named{Name: "strict", RequireAttach: true, RequireAttachAt: policy.Origin{Source: "strict"}}}
	for text, want := range map[string]bool{
		`introspection = "enfroce"`:                                               false,
		`introspection = "enfroce"; introspection_require_attach = 1`:             true,
		`introspection = "enfroce"; introspection_require_attach = 0`:             false,
		`introspection_require_attach = 1`:                                        true,
		`introspection = "off"; introspection_require_attach = "yes"`:             true,
		`introspection = 1; introspection_require_attach = "maybe"`:               true,
		`introspection = 1; introspection_require_attach = [ "1" ]`:               true,
		`introspection = 1; introspection_require_atach = 1`:                      true,
		`introspection = 1; introspection_require_atach = 0`:                      false,
		`introspection = 1; require_attach = 1`:                                   true,
		`introspection = 1; require_attach = "no"`:                                false,
		`introspection = 1; introspection_policy = "strict"; introspection_x = 1`: true,
		`introspection = 1; introspection_policy = "strcit"`:                      false,
		`introspection = "enforce"; introspection_require_attach = 1`:             false, // it is not broken
	} {
		cfg, err := Parse("web.cfg", []byte(`name = "web"; `+text))
		if err != nil {
			t.Fatal(err)
		}
		d, err := FromConfig(cfg, strict)
		if d.Required != want || d.Spec.RequireAttach != (err == nil) {
			t.Errorf("%s: required %v, want %v; %v", text, d.Required, want, err)
		}
	}
}
