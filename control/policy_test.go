package control

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/xen-hvi/hvi/engine/policy"
	"github.com/xen-hvi/hvi/engine/printable"
)

func TestDeclareAndGate(t *testing.T) {
	w := newWorld(t, nil)
	ctx := t.Context()
	last := func() string {
		w.engine.mu.Lock()
		defer w.engine.mu.Unlock()
		return w.engine.asks[len(w.engine.asks)-1]
	}
	req := DeclareRequest{
		Name: "web9", Toolstack: "libvirt", Source: "element in web9", Mode: "enforce", Policy: "linux-server", RequireAttach: "yes",
		Guards: []GuardRequest{{"kernel-text", "block"}},
	}
	d, err := w.client.Declare(ctx, strings.ToUpper(uuid9), req)
	if want := (Declared{UUID: uuid9, Mode: "enforce", Known: true, Warnings: []string{}}); err != nil || !reflect.DeepEqual(d, want) {
		t.Errorf("declare: %+v, %v; want %+v", d, err, want)
	}
	if want := fmt.Sprintf("declare %s %+v", uuid9, req); last() != want {
		t.Errorf("the engine was asked %q, want %q", last(), want)
	}
	if _, err := w.client.Declare(ctx, uuid9, DeclareRequest{Name: "web9"}); err != nil {
		t.Errorf("declare nothing: %v", err)
	}
	g, err := w.client.Gate(ctx, "7", GateRequest{TimeoutMS: 20})
	if want := (GateResult{Required: true, State: StateFailed, Reason: "EBUSY", Fix: "stop it"}); err != nil || g != want {
		t.Errorf("gate: %+v, %v", g, err)
	}
	// A domain that hvid has not seen yet reaches the engine, as it was named.
	if _, err := w.client.Gate(ctx, "77", GateRequest{}); err != nil || last() != "gate {ID:65535 UUID: Name:77 Ref:77} {TimeoutMS:0}" {
		t.Errorf("gate of an unknown domain: %v, the engine was asked %q", err, last())
	}
	// Nor does another domain stand in for it that has its number for a name.
	w.engine.domains = append(w.engine.domains, DomainStatus{ID: 9, Name: "78", UUID: uuid9})
	if _, err := w.client.Gate(ctx, "78", GateRequest{}); err != nil || last() != "gate {ID:65535 UUID: Name:78 Ref:78} {TimeoutMS:0}" {
		t.Errorf("gate of a number that is also a name: %v, the engine was asked %q", err, last())
	}
	for uuid, mention := range map[string]string{"": "UUID", "web1": `"web1"`, uuid9 + "0": "UUID", strings.Replace(uuid9, "-", "0", 1): "UUID", "../" + uuid9[3:]: "UUID"} {
		var p *Problem
		if _, err := w.client.Declare(ctx, uuid, req); !errors.As(err, &p) || p.Code != CodeBadRequest || !strings.Contains(p.What, mention) {
			t.Errorf("declare for %q: %v", uuid, err)
		}
	}
}

// TestGateIsBoundedInTime: an engine that does not keep its bound does not keep
// the caller.
func TestGateIsBoundedInTime(t *testing.T) {
	w := newWorld(t, func(o *ServerOptions) { o.ChangeTimeout = time.Millisecond })
	w.engine.hold = make(chan struct{})
	if _, err := w.client.Gate(t.Context(), "7", GateRequest{}); !errors.Is(err, &Problem{Code: CodeTimeout}) {
		t.Errorf("got %v", err)
	}
}

func TestPolicyOfDomains(t *testing.T) {
	w := newWorld(t, nil)
	ctx := t.Context()
	last := func() string {
		w.engine.mu.Lock()
		defer w.engine.mu.Unlock()
		return w.engine.asks[len(w.engine.asks)-1]
	}
	found := "{ID:7 UUID:" + uuid7 + " Name:web1 Ref:"
	for _, tc := range []struct {
		name, want string
		do         func() (PolicyReport, error)
	}{
		{"show", "policy " + found + "web1}", func() (PolicyReport, error) { return w.client.Policy(ctx, "web1") }},
		{"show one that does not run", "policy {ID:65535 UUID: Name:../../x Ref:../../x}", func() (PolicyReport, error) { return w.client.Policy(ctx, "../../x") }},
		{"show by a UUID nobody has", "policy {ID:65535 UUID:d2b0f0f4-6f0e-4f9b-8f4c-0c8c6d1e2f30 Name: Ref:D2b0f0f4-6f0e-4f9b-8f4c-0c8c6d1e2f30}", func() (PolicyReport, error) {
			return w.client.Policy(ctx, "D2b0f0f4-6f0e-4f9b-8f4c-0c8c6d1e2f30")
		}},
		{"raw bytes reach the engine", "policy {ID:65535 UUID: Name:a\\n\\xff\\\" Ref:a\n\xff\"}", func() (PolicyReport, error) { return w.client.Policy(ctx, "a\n\xff\"") }},
		{"set", "set " + found + "7} {Mode:enforce Policy:p RequireAttach:no Guards:[{Name:g Action:a}] OnEngineFailure: Where:both}", func() (PolicyReport, error) {
			return w.client.SetPolicy(ctx, "7", PolicyRequest{Mode: "enforce", Policy: "p", RequireAttach: "no", Guards: []GuardRequest{{"g", "a"}}})
		}},
		{"set live", "set " + found + "7} {Mode:off Policy: RequireAttach: Guards:[] OnEngineFailure: Where:live}", func() (PolicyReport, error) {
			return w.client.SetPolicy(ctx, "7", PolicyRequest{Mode: "off", Where: WhereLive})
		}},
		{"clear", "clear " + found + "web1} config", func() (PolicyReport, error) { return w.client.ClearPolicy(ctx, "web1", WhereConfig) }},
		{"clear everywhere", "clear " + found + "web1} both", func() (PolicyReport, error) { return w.client.ClearPolicy(ctx, "web1", "") }},
	} {
		p, err := tc.do()
		if err != nil || last() != tc.want {
			t.Errorf("%s: %v, the engine was asked %q, want %q", tc.name, err, last(), tc.want)
		}
		if p.Guards == nil || p.Warnings == nil {
			t.Errorf("%s: a list arrived as null", tc.name)
		}
	}
	// An ambiguous name is no name of a domain that does not run.
	if _, err := w.client.Policy(ctx, "twin"); !errors.Is(err, &Problem{Code: CodeAmbiguous}) {
		t.Errorf("ambiguous: %v", err)
	}
	if _, err := w.client.ClearPolicy(ctx, "7", "a&b=c"); !errors.Is(err, &Problem{Code: CodeBadRequest}) {
		t.Errorf("clear nowhere: %v", err)
	}
}

func TestDeclarations(t *testing.T) {
	w := newWorld(t, nil)
	ctx := t.Context()
	if ds, err := w.client.Declarations(ctx); err != nil || ds == nil || len(ds) != 0 {
		t.Errorf("none: %v, %v", ds, err)
	}
	one := Declaration{
		UUID: uuid9, Name: printable.Escape("a\x1bb"), Toolstack: "xl", Source: `xl config "/etc/xen/web9.cfg"`,
		Spec:       aSpec(t),
		CapturedAt: time.Date(2026, 5, 9, 7, 0, 0, 0, time.UTC), Suspended: true, GoneAt: time.Date(2026, 5, 9, 8, 0, 0, 0, time.UTC),
	}
	w.engine.kept = []Declaration{one}
	ds, err := w.client.Declarations(ctx)
	if err != nil || len(ds) != 1 || !reflect.DeepEqual(ds[0], one) {
		t.Fatalf("got %+v, %v", ds, err)
	}
	// What one host lists another takes.
	if d, err := w.client.Import(ctx, ds[0]); err != nil || !reflect.DeepEqual(d, one) {
		t.Errorf("import: %+v, %v", d, err)
	}
}

// aSpec names a policy of the admin's, which says require_attach.
func aSpec(t *testing.T) policy.Spec {
	t.Helper()
	b := policy.Builder{Policies: shelf{}}
	at := policy.Origin{Source: "/etc/xen/\x1b.cfg", Line: 3}
	PolicyWords{Mode: "enforce", Policy: "ours", Guards: []GuardRequest{{"syscall-entry", "alert"}}}.Feed(&b, at)
	s, err := b.Build()
	if err != nil {
		t.Fatal(err)
	}
	return s
}

type shelf struct{}

func (shelf) Policy(name string) (*policy.Named, error) {
	at := policy.Origin{Source: "/etc/hvi/policies/ours.toml", Line: 1}
	return &policy.Named{Name: name, Origin: at, RequireAttach: true, RequireAttachAt: at, OnEngineFailure: policy.Pause, OnEngineFailureAt: policy.Origin{Source: at.Source, Line: 2}, Guards: []policy.GuardSetting{{Name: "kernel-text", Action: policy.ActionAlert, Origin: at}}}, nil
}

func (shelf) Names() []string { return nil }

func TestReportOfASpec(t *testing.T) {
	var r PolicyReport
	r.SetSpec(aSpec(t))
	const file, ours = `"/etc/xen/\x1b.cfg":3`, "/etc/hvi/policies/ours.toml:1"
	want := PolicyReport{
		Declared: PolicyWords{Mode: "enforce", Policy: "ours", Guards: []GuardRequest{{"syscall-entry", "alert"}}},
		Mode:     PolicyValue{"enforce", file}, Policy: PolicyValue{"ours", file}, RequireAttach: PolicyValue{"yes", ours},
		OnEngineFailure: PolicyValue{"pause", "/etc/hvi/policies/ours.toml:2"},
	}
	for _, g := range policy.Guards() {
		is := PolicyGuard{string(g.Name), g.Enforce.String(), "default of mode enforce"}
		switch g.Name {
		case policy.GuardKernelText:
			is.Action, is.From = "alert", "policy ours at "+ours
		case policy.GuardSyscallEntry:
			is.Action, is.From = "alert", file
		}
		want.Guards = append(want.Guards, is)
	}
	if !reflect.DeepEqual(r, want) {
		t.Errorf("got  %+v\nwant %+v", r, want)
	}
	r.SetSpec(policy.Spec{})
	if r.Declared.Mode != "" || r.Mode != (PolicyValue{"off", "built-in"}) || r.RequireAttach != (PolicyValue{"no", "built-in"}) || r.OnEngineFailure != (PolicyValue{"release", "built-in"}) {
		t.Errorf("of nothing: %+v", r)
	}
	// What was written comes back as it was.
	for _, w := range []PolicyWords{{}, {Mode: "off"}, {Mode: "observe", RequireAttach: "no"}, {Mode: "enforce", Policy: "default", RequireAttach: "yes", Guards: []GuardRequest{{"kernel-text", "off"}}}} {
		var b policy.Builder
		w.Feed(&b, policy.Origin{})
		s, err := b.Build()
		if err != nil || !reflect.DeepEqual(WordsOf(s), w) {
			t.Errorf("%+v comes back as %+v, %v", w, WordsOf(s), err)
		}
	}
}

func TestPolicyRequestsAreReadStrictly(t *testing.T) {
	w := newWorld(t, nil)
	const spec = `"spec":{"mode":"enforce","guards":[{"name":"kernel-text","action":"block"}],"on_engine_failure":"release","origins":{"mode":{"source":"x"}}}`
	long := func(n int) string { return strings.Repeat("x", n+1) }
	for _, tc := range []struct {
		method, target, body string
		status               int
		code                 Code
		mention              string
	}{
		{"GET", "/v1/declarations/" + uuid9, "", 405, CodeMethod, ""},
		{"PUT", "/v1/declarations", "", 405, CodeMethod, ""},
		{"POST", "/v1/domains/7/policy", "", 405, CodeMethod, ""},
		{"GET", "/v1/domains/7/gate", "", 405, CodeMethod, ""},
		{"PUT", "/v1/declarations/", "{}", 400, CodeBadRequest, "UUID"},
		{"PUT", "/v1/declarations/" + uuid9 + "/x", "{}", 400, CodeBadRequest, "UUID"},
		{"PUT", "/v1/declarations/" + uuid9, `{"Mod":"x"}`, 400, CodeBadRequest, "Mod"},
		{"PUT", "/v1/declarations/" + uuid9, `{"policy":"p"}`, 400, CodeBadRequest, "without a mode"},
		{"PUT", "/v1/declarations/" + uuid9, `{"require_attach":"yes"}`, 400, CodeBadRequest, "without a mode"},
		{"PUT", "/v1/declarations/" + uuid9, `{"guards":[{"name":"g","action":"a"}]}`, 400, CodeBadRequest, "without a mode"},
		{"PUT", "/v1/declarations/" + uuid9, `{"mode":"` + long(maxWord) + `"}`, 400, CodeBadRequest, "mode"},
		{"PUT", "/v1/declarations/" + uuid9, `{"mode":"m","policy":"` + long(maxPolicy) + `"}`, 400, CodeBadRequest, "policy"},
		{"PUT", "/v1/declarations/" + uuid9, `{"mode":"m","require_attach":"` + long(maxWord) + `"}`, 400, CodeBadRequest, "require_attach"},
		{"PUT", "/v1/declarations/" + uuid9, `{"mode":"m","guards":[{"name":"g"}]}`, 400, CodeBadRequest, "without"},
		{"PUT", "/v1/declarations/" + uuid9, `{"toolstack":"` + long(maxWord) + `"}`, 400, CodeBadRequest, "toolstack"},
		{"PUT", "/v1/declarations/" + uuid9, `{"source":"` + long(maxSource) + `"}`, 400, CodeBadRequest, "source"},
		{"PUT", "/v1/declarations/" + uuid9, ``, 200, "", ""},
		{"POST", "/v1/declarations", `{"uuid":"x",` + spec + `}`, 400, CodeBadRequest, `"x"`},
		{"POST", "/v1/declarations", `{"uuid":"` + uuid9 + `"}`, 400, CodeBadRequest, "declares nothing"},
		{"POST", "/v1/declarations", `{"uuid":"` + uuid9 + `","spec":{"mode":"enforced"}}`, 400, CodeBadRequest, "did you mean"},
		{"POST", "/v1/declarations", `{"uuid":"` + uuid9 + `",` + strings.Replace(spec, "kernel-text", "kernel-txt", 1) + `}`, 400, CodeBadRequest, "did you mean"},
		{"POST", "/v1/declarations", `{"uuid":"` + uuid9 + `",` + strings.Replace(spec, `"mode"`, `"sode"`, 1) + `}`, 400, CodeBadRequest, "sode"},
		{"POST", "/v1/declarations", `{"uuid":"` + uuid9 + `",` + spec + `,"source":"` + long(maxSource) + `"}`, 400, CodeBadRequest, "source"},
		{"POST", "/v1/declarations", `{"uuid":"` + uuid9 + `",` + spec + `,"captured_at":"yesterday"}`, 400, CodeBadRequest, ""},
		{"POST", "/v1/declarations", `{"uuid":"` + uuid9 + `",` + spec + `}`, 200, "", ""},
		{"POST", "/v1/domains/7/gate", `{"timeout_ms":-1}`, 400, CodeBadRequest, "-1"},
		{"POST", "/v1/domains/7/gate", `{"timeout_ms":35001}`, 400, CodeBadRequest, "35001"},
		{"POST", "/v1/domains/7/gate", `{"timeout_ms":1e30}`, 400, CodeBadRequest, ""},
		{"POST", "/v1/domains/7/gate", ``, 200, "", ""},
		{"PUT", "/v1/domains/7/policy", `{}`, 400, CodeBadRequest, "no mode"},
		{"PUT", "/v1/domains/7/policy", ``, 400, CodeBadRequest, "no mode"},
		{"PUT", "/v1/domains/7/policy", `{"mode":"off","where":"here"}`, 400, CodeBadRequest, "here"},
		{"PUT", "/v1/domains/7/policy?where=live", `{"mode":"off"}`, 400, CodeBadRequest, "where"},
		{"PUT", "/v1/domains/7/policy", `{"mode":"off","guards":[{"name":"g","action":"a"},{"name":"g","action":"a"}]}`, 400, CodeBadRequest, "twice"},
		{"DELETE", "/v1/domains/7/policy?where=here", ``, 400, CodeBadRequest, "here"},
		{"DELETE", "/v1/domains/7/policy", `{"where":"live"}`, 400, CodeBadRequest, ""},
		{"DELETE", "/v1/domains//policy", ``, 400, CodeBadRequest, ""},
	} {
		status, p, h := raw(t, w, tc.method, tc.target, tc.body)
		if status != tc.status || p.Code != tc.code || !strings.Contains(p.What, tc.mention) {
			t.Errorf("%s %s %.60s: %d %+v, want %d %s mentioning %q", tc.method, tc.target, tc.body, status, p, tc.status, tc.code, tc.mention)
		}
		if status == 405 && h.Get("Allow") == "" {
			t.Errorf("%s %s: no Allow", tc.method, tc.target)
		}
	}
	if _, _, h := raw(t, w, "POST", "/v1/domains/7/policy", ""); h.Get("Allow") != "GET, PUT, DELETE" {
		t.Errorf("allowed are %q", h.Get("Allow"))
	}
}

func TestRestartNotice(t *testing.T) {
	dir := t.TempDir()
	if _, ok, err := ReadRestartNotice(dir); ok || err != nil {
		t.Errorf("none: %v, %v", ok, err)
	}
	if err := RemoveRestartNotice(dir); err != nil {
		t.Errorf("remove none: %v", err)
	}
	n := RestartNotice{At: time.Date(2026, 5, 9, 7, 0, 0, 0, time.UTC), PID: 812, Domains: []RestartDomain{{ID: 7, Name: printable.Escape("a\x1bb"), UUID: uuid7, Mode: "enforce"}}}
	for range 2 { // over an older one, too
		if err := WriteRestartNotice(dir, n); err != nil {
			t.Fatal(err)
		}
	}
	got, ok, err := ReadRestartNotice(dir)
	if err != nil || !ok || !reflect.DeepEqual(got, n) {
		t.Errorf("got %+v, %v, %v", got, ok, err)
	}
	if files, _ := os.ReadDir(dir); len(files) != 1 {
		t.Errorf("%d files are there", len(files))
	}
	if fi, err := os.Stat(filepath.Join(dir, restartFile)); err != nil || fi.Mode().Perm()&0o137 != 0 {
		t.Errorf("its mode is %v, %v", fi.Mode(), err)
	}
	if s := got.Domains[0].Status(); s.State != StateRestarting || s.ID != 7 || s.Mode != "enforce" || s.Guards == nil {
		t.Errorf("as a status: %+v", s)
	}
	for age, want := range map[time.Duration]bool{0: true, RestartWindow - 1: true, RestartWindow: false, -time.Minute: true, -RestartWindow: false} {
		if n.Fresh(n.At.Add(age)) != want {
			t.Errorf("after %v: fresh is not %v", age, want)
		}
	}
	if err := RemoveRestartNotice(dir); err != nil {
		t.Error(err)
	}
	if _, ok, _ := ReadRestartNotice(dir); ok {
		t.Error("it is still there")
	}
	if err := WriteRestartNotice(filepath.Join(dir, "none"), n); err == nil {
		t.Error("written into no directory")
	}
	file := filepath.Join(dir, restartFile)
	for name, make := range map[string]func() error{
		"half":    func() error { return os.WriteFile(file, []byte(`{"at":`), 0o600) },
		"a link":  func() error { return os.Symlink("/etc/hostname", file) },
		"endless": func() error { return os.Truncate(file, maxRestart+1) },
		"many": func() error {
			return os.WriteFile(file, []byte(`{"domains":[`+strings.Repeat("{},", maxRestartDomains)+`{}]}`), 0o600)
		},
		"a directory": func() error { return os.Mkdir(file, 0o700) },
	} {
		if name == "endless" {
			if err := os.WriteFile(file, nil, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		if err := make(); err != nil {
			t.Fatal(err)
		}
		if n, ok, err := ReadRestartNotice(dir); ok || err == nil || n.Domains != nil {
			t.Errorf("%s: %v, %v", name, ok, err)
		}
		if err := os.Remove(file); err != nil {
			t.Fatal(err)
		}
	}
}

func TestDoctorCounts(t *testing.T) {
	r := DoctorReport{
		Checks:  []Check{{Status: CheckOK}, {Status: CheckInfo}, {Status: CheckWarn}, {Status: CheckMissing}},
		Domains: []DomainReport{{Checks: []Check{{Status: CheckFail}, {Status: CheckWarn}}}},
	}
	if r.Problems() != 2 || r.Warnings() != 2 {
		t.Errorf("%d problems, %d warnings", r.Problems(), r.Warnings())
	}
}
