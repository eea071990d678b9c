package config

import (
	"slices"
	"strings"
	"testing"

	"github.com/xen-hvi/hvi/engine/policy"
)

// TestLists reads what a policy lists.
func TestLists(t *testing.T) {
	n, err := ParsePolicy("web", "web.toml", []byte("forbidden_ebpf = [\"lsm\", \"kprobe\"]\nallowed_modules = \"none-after-boot\"\nallowed_ebpf = []\n[guards]\ncr = \"alert\"\n"))
	if err != nil {
		t.Fatal(err)
	}
	want := []policy.ListSetting{
		{Name: policy.ListForbiddenEBPF, Elements: []string{"lsm", "kprobe"}, Origin: policy.Origin{Source: "web.toml", Line: 1, Column: 1}},
		{Name: policy.ListAllowedEBPF, Elements: []string{}, Origin: policy.Origin{Source: "web.toml", Line: 3, Column: 1}},
		{Name: policy.ListAllowedModules, Elements: []string{policy.NoneAfterBoot}, Origin: policy.Origin{Source: "web.toml", Line: 2, Column: 1}},
	}
	same := func(a, b policy.ListSetting) bool {
		return a.Name == b.Name && a.Origin == b.Origin && slices.Equal(a.Elements, b.Elements)
	}
	if !slices.EqualFunc(n.Lists, want, same) || len(n.Guards) != 1 {
		t.Errorf("%+v, want %+v", n.Lists, want)
	}
	for text, want := range map[string]string{
		"forbidden_ebpf = [\"kprobes\"]":                             `web.toml:1:19: unknown element of forbidden_ebpf "kprobes"; did you mean "kprobe"?`,
		"allowed_modules = 1":                                        "web.toml:1:19: element of allowed_modules is a whole number, but must be a string",
		"allowed_modules = [\"a\", true]":                            "web.toml:1:25: element of allowed_modules is true or false, but must be a string",
		"allowed_modules = [\"a\",\n\"b@1\"]":                        `web.toml:2:1: element of allowed_modules "b@1" has no build ID`,
		"allowed_modules = \"a\"\nallowed_modules = \"b\"":           "web.toml:2:1",
		"[allowed_modules]":                                          "unknown table",
		"allowed_module = \"a\"":                                     `did you mean "allowed_modules"?`,
		"[guards]\nallowed_modules = \"a\"":                          "unknown guard",
		"allowed_modules = [" + strings.Repeat("\"a\",", 2000) + "]": "has more than 1024 elements",
	} {
		if n, err := ParsePolicy("web", "web.toml", []byte(text)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%.40q: %+v, %v; want %s", text, n, err, want)
		}
	}
	const elsewhere = `d.toml:2:1: setting "allowed_modules" cannot stand in this file; lists stand in policies, /etc/hvi/policies/NAME.toml, which a domain names`
	if _, err := ParseDomain("d.toml", []byte("mode = \"observe\"\nallowed_modules = \"a\"\n"), nil); err == nil || err.Error() != elsewhere {
		t.Errorf("in a domain's file: %v; want %s", err, elsewhere)
	}
}
