package policy_test

import (
	"encoding/json"
	"slices"
	"strings"
	"testing"

	"github.com/xen-hvi/hvi/engine/policy"
)

// listing makes a policy with lists.
func listing(t *testing.T, lists map[policy.ListName][]string) (policy.Named, error) {
	t.Helper()
	var b policy.Builder
	for name, elements := range lists {
		var list []policy.ListElement
		for i, e := range elements {
			list = append(list, policy.ListElement{Text: e, At: policy.Origin{Source: "web.toml", Line: 3, Column: i + 1}})
		}
		b.List(name, list, policy.Origin{Source: "web.toml", Line: 3})
	}
	return b.BuildNamed("web", policy.Origin{Source: "web.toml"})
}

// TestLists: each list takes what it can be made of, and nothing else.
func TestLists(t *testing.T) {
	for _, c := range []struct {
		list    policy.ListName
		element string
		problem string // "" for none
	}{
		{policy.ListForbiddenEBPF, "kprobe", ""},
		{policy.ListForbiddenEBPF, "kprobes", "did you mean"},
		{policy.ListForbiddenEBPF, "", "unknown"},
		{policy.ListAllowedEBPF, "falcon_*", ""},
		{policy.ListAllowedEBPF, "user:999", ""},
		{policy.ListAllowedEBPF, "user:root", "no number"},
		{policy.ListAllowedEBPF, "user:4294967296", "no number"},
		{policy.ListAllowedEBPF, "longer_than_the_kernel_keeps", "longer than the 15 bytes"},
		{policy.ListAllowedModules, "virtio_net", ""},
		{policy.ListAllowedModules, "nf*", ""},
		{policy.ListAllowedModules, "none-after-boot", ""},
		{policy.ListAllowedModules, "zfs@0123456789abcdef", ""},
		{policy.ListAllowedModules, "zfs@0123456", "build ID"},
		{policy.ListAllowedModules, "zfs@01234567z", "build ID"},
		{policy.ListAllowedModules, "@01234567", "is empty"},
		{policy.ListAllowedModules, "a*b", "character"},
		{policy.ListAllowedModules, "a b", "character"},
		{"no_such", "a", "not known"},
	} {
		_, err := listing(t, map[policy.ListName][]string{c.list: {c.element}})
		if c.problem == "" && err != nil || c.problem != "" && (err == nil || !strings.Contains(err.Error(), c.problem) || !strings.Contains(err.Error(), "web.toml:3")) {
			t.Errorf("%s = %q: %v, want %q", c.list, c.element, err, c.problem)
		}
		kept := policy.Named{Name: "web", Origin: policy.Origin{Source: "web.toml"}, Lists: []policy.ListSetting{{Name: c.list, Elements: []string{c.element}}}}
		if err := kept.Validate(); (err == nil) != (c.problem == "") {
			t.Errorf("kept, %s = %q: %v", c.list, c.element, err)
		}
	}
	if _, err := listing(t, map[policy.ListName][]string{policy.ListAllowedModules: slices.Repeat([]string{"a"}, policy.MaxList+1)}); err == nil {
		t.Error("no error of a list that is too long")
	}
	var b policy.Builder
	b.List(policy.ListAllowedModules, nil, policy.Origin{})
	b.List(policy.ListAllowedModules, nil, policy.Origin{})
	if _, err := b.BuildNamed("web", policy.Origin{Source: "web.toml"}); err == nil || !strings.Contains(err.Error(), "set twice") {
		t.Errorf("set twice: %v", err)
	}
}

// TestListsHold: a domain has the lists of the policy that it names, also once they were
// kept.
func TestListsHold(t *testing.T) {
	n, err := listing(t, map[policy.ListName][]string{
		policy.ListAllowedModules: {"virtio-net", "nf*", "zfs@ABCDEF01", policy.NoneAfterBoot}, policy.ListForbiddenEBPF: {"lsm", "kprobe"}, policy.ListAllowedEBPF: {"falcon_*", "user:999"},
	})
	if err != nil {
		t.Fatal(err)
	}
	spec := policy.Spec{Mode: policy.ModeEnforce, Preset: "web", Named: &n}
	text, err := json.Marshal(spec)
	if err != nil {
		t.Fatal(err)
	}
	var kept policy.Spec
	if err := json.Unmarshal(text, &kept); err != nil || kept.Validate() != nil || !kept.SameIntent(spec) {
		t.Fatalf("kept: %v, %v", err, kept.Validate())
	}
	other := *kept.Named
	other.Lists = other.Lists[:2]
	kept.Named = &other
	if kept.SameIntent(spec) {
		t.Error("a policy with other lists is taken for the same")
	}
	e, plain := spec.Effective(), policy.Spec{Mode: policy.ModeEnforce}.Effective()
	for _, c := range []struct {
		typ, name    string
		user         uint32
		listed, none bool // forbidden
	}{
		{"kprobe", "a", 0, true, true},
		{"kprobe", "falcon_x", 0, false, true},
		{"kprobe", "falcon", 0, true, true},
		{"kprobe", "a", 999, false, true},
		{"lsm", "a", 0, true, false},
		{"tracepoint", "a", 0, false, true},
		{"cgroup_skb", "sd_fw_egress", 0, false, false},
		{"type-77", "a", 0, false, false},
	} {
		if got := e.ForbidsProgram(c.typ, c.name, c.user); got != c.listed {
			t.Errorf("%+v: %t", c, got)
		}
		if got := plain.ForbidsProgram(c.typ, c.name, c.user); got != c.none {
			t.Errorf("%+v, without lists: %t", c, got)
		}
	}
	for _, c := range []struct {
		name, id string
		want     bool
	}{
		{"virtio_net", "", true}, {"virtio_netx", "", false}, {"nf_tables", "", true}, {"zfs", "", false}, {"zfs", "abcdef0123", true}, {"zfs", "bbcdef0123", false}, {"pwn", "", false}, {"none_after_boot", "", false},
	} {
		id := func() string { return c.id }
		if got := e.AllowsModule(c.name, id); got != c.want {
			t.Errorf("%+v: %t", c, got)
		}
		if !plain.AllowsModule(c.name, id) {
			t.Errorf("%s is not allowed without a list", c.name)
		}
	}
}

// TestListsProcess: by its name, or by its program's.
func TestListsProcess(t *testing.T) {
	e := policy.Effective{Lists: []policy.ListSetting{{Name: policy.ListSealedProcesses, Elements: []string{"nginx", "post*"}}}}
	for _, c := range []struct {
		comm, exe string
		want      bool
	}{
		{"nginx", "", true}, {"worker", "/usr/sbin/nginx", true}, {"worker", "/usr/sbin/nginx (deleted)", true}, {"postgres", "/bin/x", true},
		{"x", "/nginx/x", false}, {"nginxx", "/bin/x", false}, {"", "", false},
	} {
		if got := e.ListsProcess(policy.ListSealedProcesses, c.comm, c.exe); got != c.want {
			t.Errorf("%q, %q: %v", c.comm, c.exe, got)
		}
	}
	if e.ListsProcess(policy.ListProtectedProcesses, "nginx", "") {
		t.Error("a list that is not set has it")
	}
}
