package config

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/xen-hvi/hvi/engine/policy"
)

const twoViews = `[guards]
vdso = "off"

[[view]]
name = "strict"
initial = true
switch = "admin"

[[view]]
name = "maintenance"
guards = ["syscall-table", "kernel-rodata"]
switch = "nobody"
`

func TestViews(t *testing.T) {
	named, err := ParsePolicy("web", "p.toml", []byte(twoViews))
	if err != nil || len(named.Views) != 2 {
		t.Fatalf("%+v, %v", named, err)
	}
	strict, other := named.Views[0], named.Views[1]
	if strict.Name != "strict" || !strict.Initial || strict.Switch != policy.SwitchAdmin || !slices.Equal(strict.Guards, policy.MemoryGuards()) || strict.Origin.String() != "p.toml:4:3" {
		t.Errorf("%+v", strict)
	}
	if other.Name != "maintenance" || other.Initial || other.Switch != policy.SwitchNobody || !slices.Equal(other.Guards, []policy.GuardName{policy.GuardKernelROData, policy.GuardSyscallTable}) {
		t.Errorf("%+v", other)
	}
	if !other.Holds(policy.GuardControlRegisters) || other.Holds(policy.GuardKernelText) {
		t.Error("a guard of registers holds in every view, one of memory where it is named")
	}
	if err := named.Validate(); err != nil {
		t.Error(err)
	}
	// Without a word on it the first is the initial one; an empty list is one.
	named, err = ParsePolicy("web", "p.toml", []byte("[[view]]\nname='none'\nguards=[]\n[[view]]\nname='all'\n"))
	if err != nil || !named.Views[0].Initial || named.Views[1].Initial || named.Views[0].Guards == nil || len(named.Views[0].Guards) != 0 {
		t.Errorf("%+v, %v", named.Views, err)
	}
}

func TestBrokenViews(t *testing.T) {
	const all = "[[view]]\nname='all'\n"
	many := func(n int) (text string) {
		for i := range n {
			text += fmt.Sprintf("[[view]]\nname='v%d'\n", i)
		}
		return text
	}
	for _, c := range []struct {
		name, text string
		want       []string
	}{
		{"no name", "[[view]]\ninitial=true", []string{`p.toml:1:3: view has no name; add name`}},
		{"empty name", "[[view]]\nname=''", []string{`p.toml:2:6: view name is empty`}},
		{"capital", "[[view]]\nname='Strict'", []string{`p.toml:2:6: view name "Strict" has a character that such names do not have`}},
		{"digit", "[[view]]\nname='1st'", []string{`view name "1st" does not begin with a small letter`}},
		{"the host's", "[[view]]\nname='host'", []string{`view name "host" is that of the view that every domain has`}},
		{"long name", "[[view]]\nname='" + strings.Repeat("v", 33) + "'", []string{"is longer than 32 bytes"}},
		{"a number", "[[view]]\nname=7", []string{`p.toml:2:6: setting "name" is a whole number, but must be a string`}},
		{"twice", all + "[[view]]\nname='all'", []string{`p.toml:3:3: view "all" is declared twice; the first is at p.toml:1:3`}},
		{"unknown guard", "[[view]]\nname='a'\nguards=['kernel-txt']\n" + all, []string{`p.toml:3:9: unknown guard of a view "kernel-txt"; did you mean "kernel-text"?`}},
		{"no memory", "[[view]]\nname='a'\nguards=['cr']\n" + all, []string{`p.toml:3:9: guard "cr" is none of memory: it holds in every view; leave it out here`}},
		{"guard twice", "[[view]]\nname='a'\nguards=['idt', 'idt']\n" + all, []string{`p.toml:3:16: guard "idt" is in the view twice`}},
		{"no list", "[[view]]\nname='a'\nguards='idt'", []string{`p.toml:3:8: setting "guards" is a string, but must be a list`}},
		{"a list of numbers", "[[view]]\nname='a'\nguards=[1]", []string{`setting "guards" is a whole number, but must be a string`}},
		{"unknown switch", all + "switch='root'", []string{`p.toml:3:8: unknown switch "root" (known: admin, nobody)`}},
		{"switch", all + "switch=true", []string{`setting "switch" is true or false, but must be a string`}},
		{"initial", all + "initial='yes'", []string{`setting "initial" is a string, but must be true or false`}},
		{"unknown key", all + "guard=['idt']", []string{`p.toml:3:1: unknown setting of a view "guard"; did you mean "guards"?`}},
		{"two initial ones", all + "initial=true\n[[view]]\nname='b'\ninitial=true", []string{`p.toml:4:3: view "b" is a second initial one; the first is at p.toml:1:3`}},
		{"a guard in none", "[[view]]\nname='a'\nguards=['kernel-text','modules','kernel-rodata','ex-table','syscall-table','vdso']", []string{`p.toml:1:3: guard "idt" is in no view: it would protect nothing; name it in one, or set it to off in [guards]`}},
		{"one too many", many(policy.MaxViews + 1), []string{`p.toml:17:3: view "v8" is one too many: a policy has at most 8`}},
		{"far too many", many(policy.MaxViews + 2), []string{"p.toml:19:3: file has more than 9 tables [[view]]"}},
		{"single brackets", "[view]\nname='a'", []string{`p.toml:1:2: unknown table "view"`}},
		{"a subtable", all + "[view.more]\na=1", []string{`unknown table "view.more"`}},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := ParsePolicy("web", "p.toml", []byte(c.text))
			if err == nil {
				t.Fatal("no error")
			}
			for _, want := range c.want {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("%v\nwant %s", err, want)
				}
			}
			if strings.Count(err.Error(), "\n") >= len(c.want)+1 {
				t.Errorf("more is said than is wrong:\n%v", err)
			}
		})
	}
	const elsewhere = `table "view" cannot stand in this file; views stand in policies`
	_, domain := ParseDomain("d.toml", []byte("mode='enforce'\n"+all), nil)
	_, daemon := Parse("h.toml", []byte(all), nil)
	_, exceptions := ParseExceptions("x.toml", []byte(all))
	for name, err := range map[string]error{"domain": domain, "daemon": daemon, "exceptions": exceptions} {
		if err == nil || !strings.Contains(err.Error(), elsewhere) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestViewsOfDomain: what a domain switches on holds in a view of its policy.
func TestViewsOfDomain(t *testing.T) {
	known := policies{"web": "[guards]\nidt='off'\n[[view]]\nname='a'\nguards=['kernel-text','modules','kernel-rodata','ex-table','syscall-table','vdso']\n"}
	const domain = "mode='enforce'\npolicy='web'\n[guards]\nidt='block'\n"
	_, err := ParseDomain("d.toml", []byte(domain), known)
	if err == nil || !strings.Contains(err.Error(), `d.toml:4:5: guard "idt" is set to block, but is in none of the views of policy "web"; name it in one of them, at web.toml:3:3`) {
		t.Errorf("%v", err)
	}
	spec, err := ParseDomain("d.toml", []byte(strings.Replace(domain, "block", "off", 1)), known)
	if err != nil || len(spec.Effective().Views) != 1 {
		t.Errorf("%+v, %v", spec, err)
	}
	other := policies{"web": strings.Replace(known["web"], "name='a'", "name='b'", 1)}
	if again, err := ParseDomain("d.toml", []byte("mode='enforce'\npolicy='web'\n"), other); err != nil || again.SameIntent(spec) {
		t.Errorf("another view is the same intent: %v", err)
	}
}

// policies are those of a test, by name.
type policies map[string]string

func (p policies) Policy(name string) (*policy.Named, error) {
	text, ok := p[name]
	if !ok {
		return nil, nil
	}
	n, err := ParsePolicy(name, name+".toml", []byte(text))
	return &n, err
}

func (p policies) Names() []string { return nil }
