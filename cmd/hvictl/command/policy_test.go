package command

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/xen-hvi/hvi/control"
	"github.com/xen-hvi/hvi/engine/policy"
	"github.com/xen-hvi/hvi/engine/printable"
)

const web1UUID = "a2b0f0f4-6f0e-4f9b-8f4c-0c8c6d1e2f30"

// aSpec is what words declare in a config.
func aSpec(t *testing.T, w control.PolicyWords) policy.Spec {
	t.Helper()
	b := policy.Builder{Policies: anyPolicy{}}
	w.Feed(&b, policy.Origin{Source: "/etc/xen/web1.cfg", Line: 3, Column: 1})
	s, err := b.Build()
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func aReport(t *testing.T, w control.PolicyWords) control.PolicyReport {
	t.Helper()
	r := control.PolicyReport{
		ID: 7, Name: "web1", UUID: web1UUID, Toolstack: "xl", From: control.FromXL,
		Source: `xl config "/etc/xen/web1.cfg"`, CapturedAt: noon.Add(-time.Hour), Warnings: []string{},
	}
	r.SetSpec(aSpec(t, w))
	return r
}

func keptPolicies(t *testing.T) []control.Declaration {
	t.Helper()
	words := control.PolicyWords{Mode: "enforce", Policy: "ours", Guards: []control.GuardRequest{{Name: "kernel-text", Action: "alert"}}}
	return []control.Declaration{
		{UUID: web1UUID, Name: "web1", Toolstack: "xl", Source: `xl config "/etc/xen/web1.cfg"`, Spec: aSpec(t, words), CapturedAt: noon.Add(-time.Hour)},
		{UUID: "b2b0f0f4-6f0e-4f9b-8f4c-0c8c6d1e2f31", Name: printable.Escape("../../x\x1b[31m"), Spec: aSpec(t, control.PolicyWords{Mode: "observe"}), CapturedAt: noon.Add(-time.Hour), Suspended: true, GoneAt: noon.Add(-90 * time.Second)},
		{UUID: "b2b0f0f4-6f0e-4f9b-8f4c-0c8c6d1e2f32", Name: "old", Spec: aSpec(t, control.PolicyWords{Mode: "off"}), GoneAt: noon.Add(-time.Minute)},
		{UUID: "b2b0f0f4-6f0e-4f9b-8f4c-0c8c6d1e2f33", Name: "old", Spec: aSpec(t, control.PolicyWords{Mode: "enforce"}), Suspended: true},
	}
}

func TestPolicyOutput(t *testing.T) {
	h := newHost(t)
	h.engine.kept = keptPolicies(t)
	r := aReport(t, control.PolicyWords{Mode: "enforce", RequireAttach: "yes", Guards: []control.GuardRequest{{Name: "syscall-entry", Action: "alert"}}})
	r.Warnings = []string{"a warning\x1b[31m"}
	h.engine.policy = r
	for _, tc := range []struct{ name, args string }{
		{"policy-show", "policy show web1"},
		{"policy-show-json", "policy show web1 -o json"},
		{"policy-list", "policy list"},
		{"policy-list-json", "policy list -o json"},
		{"policy-export", "policy export " + web1UUID},
	} {
		out, errOut, code := hvictl(t, h.socket, strings.Fields(tc.args)...)
		if code != exitOK || errOut != "" {
			t.Errorf("%s: exit code %d, %s", tc.name, code, errOut)
		}
		golden(t, tc.name, out)
	}
	h.engine.policy = control.PolicyReport{ID: control.NoDomID, Name: printable.Escape("a b;rm"), From: "later\x1b"}
	out, _, code := hvictl(t, h.socket, "policy", "show", "a b;rm")
	if code != exitOK || !strings.HasPrefix(out, "a b;rm (not running)\n  From       later\\x1b\n") || h.engine.asked != "policy a b;rm" {
		t.Errorf("exit code %d, asked %q: %q", code, h.engine.asked, out)
	}
	h.engine.kept = nil
	if out, _, code := hvictl(t, h.socket, "policy", "list"); code != exitOK || out != "No policy is kept.\n" {
		t.Errorf("none: exit code %d, %q", code, out)
	}
}

func TestSet(t *testing.T) {
	h := newHost(t)
	now := control.PolicyWords{Mode: "enforce", Policy: "ours", RequireAttach: "yes", Guards: []control.GuardRequest{{Name: "kernel-text", Action: "alert"}}}
	for _, tc := range []struct {
		name  string
		now   control.PolicyWords
		args  []string
		asked string
		code  int
		says  string
	}{
		{"mode of none", control.PolicyWords{}, []string{"--mode", "enforce"}, "set web1 {Mode:enforce Policy: RequireAttach: Guards:[] OnEngineFailure: Where:both}", 0, "web1 (domain 7)"},
		{"mode alone changed", now, []string{"--mode=observe"}, "set web1 {Mode:observe Policy:ours RequireAttach:yes Guards:[{Name:kernel-text Action:alert}] OnEngineFailure: Where:both}", 0, ""},
		{"one guard", now, []string{"--guard", "syscall-entry=off"}, "set web1 {Mode:enforce Policy:ours RequireAttach:yes Guards:[{Name:kernel-text Action:alert} {Name:syscall-entry Action:off}] OnEngineFailure: Where:both}", 0, ""},
		{"a guard again", now, []string{"--guard", " kernel-text = block"}, "set web1 {Mode:enforce Policy:ours RequireAttach:yes Guards:[{Name:kernel-text Action:block}] OnEngineFailure: Where:both}", 0, ""},
		{"a guard back", now, []string{"--guard=kernel-text=default", "--live"}, "set web1 {Mode:enforce Policy:ours RequireAttach:yes Guards:[] OnEngineFailure: Where:live}", 0, ""},
		{"require", control.PolicyWords{Mode: "enforce"}, []string{"--require-attach", "--config"}, "set web1 {Mode:enforce Policy: RequireAttach:yes Guards:[] OnEngineFailure: Where:config}", 0, ""},
		{"require no more", now, []string{"--require-attach=no", "--both"}, "set web1 {Mode:enforce Policy:ours RequireAttach:no Guards:[{Name:kernel-text Action:alert}] OnEngineFailure: Where:both}", 0, ""},
		{"require back", now, []string{"--require-attach=default"}, "set web1 {Mode:enforce Policy:ours RequireAttach: Guards:[{Name:kernel-text Action:alert}] OnEngineFailure: Where:both}", 0, ""},
		{"off requires nothing", now, []string{"--mode", "off"}, "set web1 {Mode:off Policy:ours RequireAttach: Guards:[{Name:kernel-text Action:alert}] OnEngineFailure: Where:both}", 0, ""},
		{"policy", now, []string{"--policy", "default"}, "set web1 {Mode:enforce Policy:default RequireAttach:yes Guards:[{Name:kernel-text Action:alert}] OnEngineFailure: Where:both}", 0, ""},
		{"remove", now, []string{"--remove"}, "clear web1 both", 0, ""},
		{"remove live", now, []string{"--remove", "--live"}, "clear web1 live", 0, ""},

		{"nothing", now, nil, "", exitUsage, "nothing is to be set"},
		{"only where", now, []string{"--live"}, "", exitUsage, "nothing is to be set"},
		{"two places", now, []string{"--mode=off", "--live", "--config"}, "", exitUsage, "exclude each other"},
		{"remove and set", now, []string{"--remove", "--mode=off"}, "", exitUsage, "no other setting"},
		{"no mode yet", control.PolicyWords{}, []string{"--guard", "kernel-text=alert"}, "policy web1", exitUsage, "give --mode"},
		{"empty mode", now, []string{"--mode="}, "policy web1", exitUsage, "mode"},
		{"unknown mode", now, []string{"--mode=enforced"}, "policy web1", exitUsage, `did you mean "enforce"`},
		{"unknown guard", now, []string{"--guard=kernel-txt=alert"}, "policy web1", exitUsage, `did you mean "kernel-text"`},
		{"unknown guard back", now, []string{"--guard=kernel-txt=default"}, "policy web1", exitUsage, `did you mean "kernel-text"`},
		{"no action", now, []string{"--guard=kernel-text"}, "policy web1", exitUsage, "name=action"},
		{"guard twice", now, []string{"--guard=kernel-text=off", "--guard=kernel-text=alert"}, "policy web1", exitUsage, "twice"},
		{"block under observe", now, []string{"--mode=observe", "--guard=kernel-text=block"}, "policy web1", exitUsage, "never blocks"},
		{"stand still", now, []string{"--on-engine-failure=pause"}, "set web1 {Mode:enforce Policy:ours RequireAttach:yes Guards:[{Name:kernel-text Action:alert}] OnEngineFailure:pause Where:both}", 0, ""},
		{"run on", control.PolicyWords{Mode: "enforce", OnEngineFailure: "pause"}, []string{"--on-engine-failure=default"}, "set web1 {Mode:enforce Policy: RequireAttach: Guards:[] OnEngineFailure: Where:both}", 0, ""},
		{"kept", control.PolicyWords{Mode: "enforce", OnEngineFailure: "pause"}, []string{"--mode=observe"}, "set web1 {Mode:observe Policy: RequireAttach: Guards:[] OnEngineFailure:pause Where:both}", 0, ""},
		{"unknown failure", now, []string{"--on-engine-failure=paus"}, "policy web1", exitUsage, `did you mean "pause"`},
		{"unknown switch", now, []string{"--require-attach=maybe"}, "policy web1", exitUsage, "require_attach"},
		{"policy's name", now, []string{"--policy=../../etc"}, "policy web1", exitUsage, "policy"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			h.engine.policy, h.engine.asked = aReport(t, tc.now), ""
			for _, verb := range [][]string{{"set"}, {"policy", "set"}} {
				out, errOut, code := hvictl(t, h.socket, append(append(verb, "web1"), tc.args...)...)
				if code != tc.code || h.engine.asked != tc.asked || !strings.Contains(out+errOut, tc.says) {
					t.Errorf("exit code %d, want %d; hvid was asked %q, want %q; to mention %q:\n%s%s", code, tc.code, h.engine.asked, tc.asked, tc.says, out, errOut)
				}
			}
		})
	}
	// A domain that does not run may be named; hvid judges.
	h.engine.policy = aReport(t, now)
	if _, errOut, code := hvictl(t, h.socket, "set", "../../x", "--mode", "off"); code != exitOK || !strings.HasPrefix(h.engine.asked, "set ../../x ") {
		t.Errorf("exit code %d, asked %q: %s", code, h.engine.asked, errOut)
	}
	h.engine.err = &control.Problem{Code: control.CodeNoSuchDomain, What: "no domain", Candidates: []control.Candidate{{ID: 7, Name: "web1"}}}
	if _, errOut, code := hvictl(t, h.socket, "set", "wbe1", "--mode", "off"); code != exitNoDomain || !strings.Contains(errOut, `did you mean "web1"`) {
		t.Errorf("exit code %d: %s", code, errOut)
	}
}

func TestExportImport(t *testing.T) {
	h := newHost(t)
	h.engine.kept = keptPolicies(t)
	for _, tc := range []struct {
		args []string
		want []int
		code int
		says string
	}{
		{[]string{"web1"}, []int{0}, exitOK, ""},
		{[]string{"7"}, []int{0}, exitOK, ""},
		{[]string{strings.ToUpper(web1UUID)}, []int{0}, exitOK, ""},
		{[]string{"../../x\x1b[31m", "web1"}, []int{1, 0}, exitOK, ""},
		{[]string{"b2b0f0f4-6f0e-4f9b-8f4c-0c8c6d1e2f33"}, []int{3}, exitOK, ""},
		{[]string{"--all"}, []int{0, 1, 2, 3}, exitOK, ""},
		{[]string{"old"}, nil, exitRefused, "give the UUID"},
		{[]string{"wbe1"}, nil, exitNoDomain, `did you mean "web1"`},
		{[]string{"Domain-0"}, nil, exitRefused, "nothing is kept for Domain-0"},
		{nil, nil, exitUsage, "--all"},
		{[]string{"--all", "web1"}, nil, exitUsage, "exclude"},
	} {
		out, errOut, code := hvictl(t, h.socket, append([]string{"policy", "export"}, tc.args...)...)
		if code != tc.code || !strings.Contains(errOut, tc.says) {
			t.Errorf("%q: exit code %d, %s", tc.args, code, errOut)
			continue
		}
		if code != exitOK {
			if out != "" {
				t.Errorf("%q: something was written: %s", tc.args, out)
			}
			continue
		}
		// The other host.
		other := newHost(t)
		var res, resErr bytes.Buffer
		a := newApp(&res, &resErr)
		a.in = strings.NewReader(out)
		if code := a.run(t.Context(), []string{"--socket", other.socket, "policy", "import"}); code != exitOK {
			t.Fatalf("%q: import: exit code %d, %s", tc.args, code, resErr.String())
		}
		var want []control.Declaration
		lines := ""
		for _, i := range tc.want {
			k := h.engine.kept[i]
			want = append(want, k)
			lines += fmt.Sprintf("%s  %s: %s\n", k.UUID, k.Name, k.Spec.Mode)
		}
		got, _ := json.Marshal(other.engine.kept)
		if w, _ := json.Marshal(want); !bytes.Equal(got, w) {
			t.Errorf("%q: the other host has\n%s\nwant\n%s", tc.args, got, w)
		}
		if res.String() != lines {
			t.Errorf("%q: import says %q, want %q", tc.args, res.String(), lines)
		}
	}
}

// endless is an input without end.
type endless struct {
	s string
	i int
}

func (e *endless) Read(b []byte) (int, error) {
	n := 0
	for n < len(b) {
		k := copy(b[n:], e.s[e.i:])
		n, e.i = n+k, (e.i+k)%len(e.s)
	}
	return n, nil
}

func TestImportRefuses(t *testing.T) {
	h := newHost(t)
	run := func(in any, args ...string) (string, int) {
		var out, errOut bytes.Buffer
		a := newApp(&out, &errOut)
		switch in := in.(type) {
		case string:
			a.in = strings.NewReader(in)
		case *endless:
			a.in = in
		}
		code := a.run(t.Context(), append([]string{"--socket", h.socket, "policy", "import"}, args...))
		return errOut.String(), code
	}
	one, err := json.Marshal(keptPolicies(t)[0])
	if err != nil {
		t.Fatal(err)
	}
	good := string(one)
	for name, tc := range map[string]struct {
		in   any
		says string
	}{
		"nothing":           {"", "nothing to import"},
		"no JSON":           {"<xml/>", "policy 1"},
		"half":              {good[:len(good)-2], "policy 1"},
		"second broken":     {good + "{", "policy 2"},
		"a list":            {"[" + good + "]", "policy 1"},
		"unknown member":    {strings.Replace(good, `"name"`, `"titel"`, 1), "titel"},
		"unknown guard":     {strings.Replace(good, "kernel-text", "kernel-txt", 1), "did you mean"},
		"no UUID":           {`{"spec":{"mode":"enforce"}}`, "no UUID"},
		"control character": {strings.Replace(good, "kernel-text", `\u001b[31m`, 1), `\x1b`},
		"endless blanks":    {&endless{s: " "}, "bytes"},
		"endless objects":   {&endless{s: good + "\n"}, "more than"},
		"endless nesting":   {&endless{s: "["}, ""},
	} {
		errOut, code := run(tc.in)
		if code != exitUsage || !strings.Contains(errOut, tc.says) || strings.ContainsRune(errOut, '\x1b') {
			t.Errorf("%s: exit code %d: %.300q", name, code, errOut)
		}
	}
	if len(h.engine.kept) > 0 {
		t.Errorf("something was imported: %+v", h.engine.kept)
	}
	h.engine.err = errors.New("disk full")
	if errOut, code := run(good); code != exitFailure || !strings.Contains(errOut, "disk full") {
		t.Errorf("hvid fails: exit code %d: %s", code, errOut)
	}
}

func TestPolicyCheck(t *testing.T) {
	dir := t.TempDir()
	write := func(name, text string) string {
		t.Helper()
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	const xml = "<domain type='xen'>\n  <name>db \u2066;rm</name>\n  <uuid>" + web1UUID + "</uuid>\n  <metadata>%s</metadata>\n</domain>\n"
	element := `<h:introspection xmlns:h="urn:xen-hvi:domain:1.0" mode="enforce" policy="ours" require_attach="yes"><h:guard name="kernel-text" action="%s"/></h:introspection>`
	files := []struct {
		name, text string
		wrong      bool
	}{
		{"etc/hvid.toml", "[default]\nmode = \"observe\"\n", false},
		{"etc/policies/ours.toml", "require_attach = true\n[guards]\nsyscall-entry = \"alert\"\n", false},
		{"etc/domains/db.toml", "mode = \"enforce\"\npolicy = \"ours\"\n", false},
		{"draft.toml", "mode = \"enforce\"\npolicy = \"theirs\"\n", true},
		{"ours2.toml", "[guards]\nkernel-txt = \"block\"\n", true},
		{"web1.cfg", "name = \"web1\"\nuuid = \"" + web1UUID + "\"\nintrospection = \"enforce\"\nintrospection_policy = \"ours\"\n", false},
		{"bad.cfg", "name = \"x\"\nintrospection = \"enforced\"\nintrospection_guards = [ \"kernel-text=blok\" ]\n", true},
		{"none.cfg", "name = \"quiet\"\n", false},
		{"near.cfg", "name = \"quiet\"\nrequire_attach = 1\n", false},
		{"syntax.cfg", "name = web1\nmemory\n", true},
		{"db.xml", fmt.Sprintf(xml, fmt.Sprintf(element, "block")), false},
		{"bad.xml", fmt.Sprintf(xml, fmt.Sprintf(element, "blok")), true},
		{"dump", fmt.Sprintf(xml, ""), false},
		{"etc/policies/lists.toml", "allowed_modules = [\"virtio_net\", \"nf*\"]\nforbidden_ebpf = \"lsm\"\n", false},
	}
	args := []string{"policy", "check", "--dir", filepath.Join(dir, "etc")}
	var paths []string
	wrong := 0
	for _, f := range files {
		paths = append(paths, write(f.name, f.text))
		if f.wrong {
			wrong++
		}
	}
	out, errOut, code := hvictl(t, "/nonexistent/hvid.sock", append(args, paths...)...)
	if code != exitWrongFile || errOut != "" {
		t.Errorf("exit code %d: %s", code, errOut)
	}
	// The directory's name would change the columns' width: cut it off first.
	var lines []string
	for line := range strings.Lines(strings.ReplaceAll(out, dir+"/", "")) {
		indent := line[:len(line)-len(strings.TrimLeft(line, " "))]
		lines = append(lines, indent+strings.Join(strings.Fields(line), " "))
	}
	golden(t, "policy-check", strings.Join(lines, "\n")+"\n")

	out, _, code = hvictl(t, "/nonexistent/hvid.sock", append(append(args, "-o", "json"), paths...)...)
	var all []checked
	if err := json.Unmarshal([]byte(out), &all); err != nil || code != exitWrongFile || len(all) != len(files) {
		t.Fatalf("exit code %d, %v: %s", code, err, out)
	}
	for i, c := range all {
		if (len(c.Errors) > 0) != files[i].wrong || c.Warnings == nil || c.Errors == nil || c.Declares && c.Policy == nil {
			t.Errorf("%s: %+v", files[i].name, c)
		}
		if _, _, code := hvictl(t, "/nonexistent/hvid.sock", append(args, paths[i])...); (code == exitWrongFile) != files[i].wrong {
			t.Errorf("%s alone: exit code %d", files[i].name, code)
		}
	}

	for _, tc := range []struct {
		name string
		args []string
		in   string
		code int
		says string
	}{
		{"standard input", []string{"-"}, fmt.Sprintf(xml, fmt.Sprintf(element, "block")), exitOK, `standard input: libvirt domain "db \u2066;rm": ok`},
		{"standard input, xl", []string{"-"}, "name='x'\nintrospection=1\n", exitOK, `xl config "x": ok`},
		{"standard input, endless", []string{"-"}, "", exitWrongFile, "longer than"},
		{"said to be another", []string{"--as", "xl", paths[10]}, "", exitWrongFile, "config language"},
		{"said to be a domain's", []string{"--as", "domain", paths[1]}, "", exitWrongFile, "error"},
		{"no such kind", []string{"--as", "libvrit", paths[0]}, "", exitUsage, `did you mean "libvirt"`},
		{"no file", nil, "", exitUsage, "needs a file"},
		{"not there", []string{filepath.Join(dir, "a b;rm\x1b.cfg")}, "", exitWrongFile, `a b;rm\x1b.cfg`},
		{"a directory", []string{dir}, "", exitWrongFile, "not a regular file"},
		{"a device", []string{"/dev/zero"}, "", exitWrongFile, "not a regular file"},
		{"nothing in it", []string{write("empty.cfg", "")}, "", exitWrongFile, "name"},
		{"binary", []string{write("binary.toml", "\xff\x00\x1b")}, "", exitWrongFile, "error"},
	} {
		var out, errOut bytes.Buffer
		a := newApp(&out, &errOut)
		a.in = strings.NewReader(tc.in)
		if tc.name == "standard input, endless" {
			a.in = &endless{s: "#\n"}
		}
		code := a.run(t.Context(), append(slices.Clone(args), tc.args...))
		if code != tc.code || !strings.Contains(out.String()+errOut.String(), tc.says) || strings.ContainsRune(out.String()+errOut.String(), '\x1b') {
			t.Errorf("%s: exit code %d, want %d; to mention %q:\n%q%q", tc.name, code, tc.code, tc.says, out.String(), errOut.String())
		}
	}
}
