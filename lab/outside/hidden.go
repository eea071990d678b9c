package outside

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/xen-hvi/hvi/engine/guest/report"
	"github.com/xen-hvi/hvi/lab/image"
	"github.com/xen-hvi/hvi/lab/scenario"
	"github.com/xen-hvi/hvi/lab/specimen"
)

func linuxHidden(env Env) scenario.Scenario {
	return scenario.Scenario{
		Name:    "linux-hidden",
		Brief:   "hvictl check finds what a module hides in a kernel, and is not misled by what another one plants",
		Timeout: 3 * time.Hour,
		Run: func(t *scenario.T) error {
			return hidden(t, env, attacks, "5.10-cloud", "6.1-cloud", "6.12-cloud", "7.2-cloud")
		},
	}
}

func linuxHiddenQuick(env Env) scenario.Scenario {
	return scenario.Scenario{
		Name:    "linux-hidden-quick",
		Brief:   "The same of one kernel: a hidden process, a hidden module, hooks, and false tables",
		Timeout: 30 * time.Minute,
		Run: func(t *scenario.T) error {
			return hidden(t, env, []attack{
				{load: "hide task=hide-me syscall=134 module=1 sysfs=1", finds: []find{
					names("the hidden process", "process", "hide-me"), names("the hidden module", "module hide"), names("the system call", "system call 134"),
				}},
				executable,
				{load: "decoy tables=1 counts=1", misleads: true},
			}, "6.1-cloud")
		},
	}
}

// hidden attacks kernels and has each looked at.
func hidden(t *scenario.T, env Env, list []attack, kernels ...string) error {
	h, err := env.build(t)
	if err != nil {
		return err
	}
	env, giveBack := env.keepPlace()
	defer giveBack()
	var errs []error
	for _, name := range kernels {
		k, ok := image.FindKernel(name)
		if !ok {
			return fmt.Errorf("no kernel is called %s", name)
		}
		for _, a := range list {
			if slices.ContainsFunc(a.skip, func(p string) bool { return strings.HasPrefix(k.Name, p) }) {
				continue
			}
			s, err := env.specimen(t, specimen.Variant{Kernel: k, Load: []string{a.load}})
			if err != nil {
				t.Check(false, "%v", err)
				continue
			}
			errs = append(errs, a.run(t, h, s))
		}
	}
	return errors.Join(errs...)
}

// attack is something done to a guest's kernel.
type attack struct {
	load string
	// finds are what check must find, each by a word of one finding.
	finds []find
	// misleads says that it plants lies instead: what hvi reads must still be
	// what the guest said before.
	misleads bool
	// circle is the question whose answer is a list without an end: hvictl must
	// end, and say that its answer is not complete.
	circle string
	skip   []string // the kernels that it does not work on, by how their names begin
}

// find is a finding that is to be there.
type find struct {
	what string
	is   func(f report.Finding) bool
}

// names wants a finding about an object of a name.
func names(what string, words ...string) find {
	return find{what, func(f report.Finding) bool {
		all := f.Check + " " + string(f.Object) + " " + string(f.Detail)
		for _, w := range words {
			if !strings.Contains(all, w) {
				return false
			}
		}
		return true
	}}
}

// executable makes memory executable, and code writable.
var executable = attack{load: "hide exec=1 nx=1 rwx=vfs_rmdir", finds: []find{
	names("the executable page", "executable memory in the direct mapping"), names("that of vmalloc", "executable memory in vmalloc's area"),
	names("the writable code", "writable code in the kernel's image"),
}}

// attacks are all, the simplest first.
var attacks = []attack{
	{load: "hide task=hide-me", finds: []find{names("the hidden process", "process", "hide-me")}},
	{load: "hide task=yes pids=1", finds: []find{names("the busy process without a number", "process", "yes")}},
	{load: "hide module=1", finds: []find{names("the module that left the list", "module hide")}},
	{load: "hide module=1 sysfs=1", finds: []find{names("the module that left list and sysfs", "module hide")}},
	{load: "hide syscall=134 idt=4 lsm=1 ftrace=vfs_rmdir module=1", skip: []string{"6.12", "7.2"}, finds: []find{
		names("the system call", "system call 134"), names("the interrupt gate", "vector 4"),
		names("the security hook", "security hook"), names("the ftrace user", "ftrace", "vfs_rmdir"),
	}},
	// From 6.12 on, a security hook is a static call.
	{load: "hide syscall=134 idt=4 ftrace=vfs_rmdir module=1", skip: []string{"5.10", "6.1-"}, finds: []find{
		names("the system call", "system call 134"), names("the interrupt gate", "vector 4"), names("the ftrace user", "ftrace", "vfs_rmdir"),
	}},
	executable,
	{load: "hide syscall_data=134", finds: []find{names("the system call that leads to data", "system call 134")}},
	{load: "decoy tables=1 counts=1", misleads: true},
	{load: "decoy tasks=1", circle: "ps"},
	{load: "decoy modules=1", circle: "modules"},
}

// outcome is what is known of one attack on one kernel.
type outcome struct {
	Release  string             `json:"release"`
	Code     int                `json:"exit_code"`
	Findings []string           `json:"findings"`
	Checks   map[string]string  `json:"checks"`
	Seconds  map[string]float64 `json:"seconds"`
}

func (a attack) run(t *scenario.T, h *hvictl, s specimen.Specimen) error {
	name := s.Variant.String()
	say, err := reports(s)
	if err != nil {
		return err
	}
	state, err := say.before.State()
	if err != nil {
		return err
	}
	h.seconds = map[string]float64{}
	var got report.Verdict
	code, err := h.inspect(t.Context(), &got, s.Core(), "check")
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	out := outcome{Release: s.Release, Code: code, Checks: map[string]string{}, Seconds: h.seconds}
	for _, f := range got.Findings {
		out.Findings = append(out.Findings, fmt.Sprintf("%s: %s: %s", f.Check, f.Object, f.Detail))
	}
	for _, c := range got.Checks {
		out.Checks[c.Name] = string(c.Status)
	}
	for _, want := range a.finds {
		found := false
		for _, f := range got.Findings {
			found = found || want.is(f)
		}
		t.Check(found, "%s: check finds %s: %q", name, want.what, out.Findings)
	}
	if !a.misleads {
		t.Check(!got.Clean && code != 0, "%s: check doesn't call the kernel clean: exit code %d", name, code)
	}
	if a.misleads {
		a.notMisled(t, h, s, say, strconv.Itoa(state.Roles["hidden"]))
	}
	if a.circle != "" {
		a.ends(t, h, s)
	}
	t.Fact(name, out)
	return nil
}

// notMisled wants hvi to read what the guest said before the lies were planted.
func (a attack) notMisled(t *scenario.T, h *hvictl, s specimen.Specimen, say truth, hidden string) {
	name := s.Variant.String()
	table, _, err := symbols(s, say.before)
	t.Check(err == nil && table.Different == 0 && table.Things > 0, "%s: symbols and types are the kernel's own: %v", name, err)
	for _, v := range views {
		if v.name != "ps" && v.name != "threads" && v.name != "mounts" {
			continue // a module more has been loaded
		}
		got, _, err := v.ask(t.Context(), h, s.Core())
		if !t.Check(err == nil, "%s: hvictl answers %s: %v", name, v.name, err) {
			continue
		}
		want := v.truth(say.before)
		if p := want[hidden]; p != nil {
			delete(p, "threads") // the one forged count that is shown, as what it is
		}
		c := compare(want, want, got, v.rest)
		t.Check(c.Different == 0 && c.Things > 0, "%s: %s: of %d compared, %d differ: %s", name, v.name, c.Things, c.Different, strings.Join(c.Samples, "; "))
	}
}

// ends wants hvictl to notice that a list leads in a circle.
func (a attack) ends(t *scenario.T, h *hvictl, s specimen.Specimen) {
	var got struct {
		Reading report.Reading `json:"reading"`
		Items   []any          `json:"items"`
	}
	out, bad, code, err := h.run(t.Context(), "inspect", "-o", "json", s.Core(), a.circle)
	if !t.Check(err == nil, "%v: hvictl ends: %v", s.Variant, err) {
		return
	}
	if code != 0 {
		t.Check(len(bad) > 0, "%v: %s fails, exit code %d, and says why: %s", s.Variant, a.circle, code, bad)
		return
	}
	err = json.Unmarshal(out, &got)
	t.Check(err == nil && len(got.Reading.Incomplete) > 0, "%v: %s has %d items and says that it is incomplete: %q, %v",
		s.Variant, a.circle, len(got.Items), got.Reading.Incomplete, err)
}
