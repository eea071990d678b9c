package policy_test

import (
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/xen-hvi/hvi/engine/policy"
)

func anException() policy.Exception {
	return policy.Exception{
		Guard: policy.GuardKernelText, Domain: "6c9f7a1e-0b1d-4f0e-9c5c-0123456789ab", Process: "my agent", Module: "falcon",
		Target: "do_syscall_64", Bytes: "e90f", Kernel: "6.1.0-18-amd64", Comment: "why", Created: time.Unix(1, 0).UTC(),
		Origin: policy.Origin{Source: "x.toml", Line: 3},
	}
}

// TestExceptionID: what is permitted makes the ID, and nothing else does.
func TestExceptionID(t *testing.T) {
	e := anException()
	if id := e.ID(); len(id) != 11 || id[0] != 'x' {
		t.Fatalf("ID %q", id)
	}
	same := e
	same.Comment, same.Created, same.Expires, same.Origin = "", time.Time{}, time.Unix(9, 0), policy.Origin{}
	if same.ID() != e.ID() {
		t.Error("comment, dates or place change the ID")
	}
	for _, f := range policy.ExceptionFields() {
		if !f.Condition {
			continue
		}
		d := e
		switch f.Name {
		case "domain":
			d.Domain = ""
		case "process":
			d.Process = "my"
		case "module":
			d.Module = "f"
		case "symbol":
			d.Symbol = "f"
		case "target":
			d.Target = "f"
		case "target_module":
			d.TargetModule = "f"
		case "bytes":
			d.Bytes = "e9"
		case "value":
			d.Value = "0x1"
		case "object":
			d.Object = "f"
		case "what":
			d.What = "f"
		case "kernel":
			d.Kernel = "6.1*"
		default:
			t.Errorf("no case for the condition %s", f.Name)
		}
		if d.ID() == e.ID() {
			t.Errorf("%s does not change the ID", f.Name)
		}
	}
	if got, want := e.String(), `kernel-text domain=6c9f7a1e-0b1d-4f0e-9c5c-0123456789ab process="my agent" module=falcon target=do_syscall_64 bytes=e90f kernel=6.1.0-18-amd64`; got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
}

// TestExceptionJSON: it travels in a spec, and what arrives is checked.
func TestExceptionJSON(t *testing.T) {
	e := anException()
	b, err := json.Marshal(e)
	if err != nil {
		t.Fatal(err)
	}
	var back policy.Exception
	if err := json.Unmarshal(b, &back); err != nil || back != e {
		t.Errorf("%+v, %v", back, err)
	}
	if err := e.Validate(); err != nil {
		t.Error(err)
	}
	for name, change := range map[string]func(*policy.Exception){
		"guard": func(e *policy.Exception) { e.Guard = "x" }, "domain": func(e *policy.Exception) { e.Domain = "WEB" },
		"process": func(e *policy.Exception) { e.Process = "\x1b[0m" }, "module": func(e *policy.Exception) { e.Module = "a b" },
		"target": func(e *policy.Exception) { e.Target = strings.Repeat("x", 600) }, "bytes": func(e *policy.Exception) { e.Bytes = "zz" },
		"value": func(e *policy.Exception) { e.Value, e.Bytes = "1", "" }, "kernel": func(e *policy.Exception) { e.Kernel = "*" },
		"comment": func(e *policy.Exception) { e.Comment = "\n" },
	} {
		bad := e
		change(&bad)
		if err := bad.Validate(); err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("%s: %v", name, err)
		}
	}
	spec := policy.Spec{
		Mode: policy.ModeEnforce, Preset: "web", Origins: policy.Origins{Mode: policy.Origin{Source: "x"}, Preset: policy.Origin{Source: "x"}},
		Named: &policy.Named{Name: "web", Origin: policy.Origin{Source: "p"}, Exceptions: []policy.Exception{e}},
	}
	if err := spec.Validate(); err != nil {
		t.Error(err)
	}
	if got := spec.Effective().Exceptions; len(got) != 1 || got[0] != e {
		t.Errorf("in force: %+v", got)
	}
	other := spec
	other.Named = &policy.Named{Name: "web", Origin: policy.Origin{Source: "p"}}
	if spec.SameIntent(other) {
		t.Error("a policy without the exception is the same")
	}
	spec.Named.Exceptions[0].Bytes = "z"
	if spec.Validate() == nil {
		t.Error("a spec with a broken exception is valid")
	}
}

// TestExceptionOfAFinding: what a guard finds is permitted by what was found, and what
// a guard sees by who did what.
func TestExceptionOfAFinding(t *testing.T) {
	for _, tt := range []struct {
		exception policy.Exception
		wrong     string
	}{
		{policy.Exception{Guard: policy.GuardUsermodeHelper, Object: "modprobe_path", What: `it is "/opt/x"`}, ""},
		{policy.Exception{Guard: policy.GuardCredentials, What: "it *"}, ""},
		{policy.Exception{Guard: policy.GuardUsermodeHelper}, "permits everything"},
		{policy.Exception{Guard: policy.GuardUsermodeHelper, Object: "*"}, "would be met by all"},
		{policy.Exception{Guard: policy.GuardUsermodeHelper, Object: "modprobe_path", Process: "agent"}, "is not known of what the guard finds"},
		{policy.Exception{Guard: policy.GuardUsermodeHelper, Target: "modprobe_path"}, "is not known of what the guard finds"},
		{policy.Exception{Guard: policy.GuardKernelText, Object: "do_syscall_64"}, "is none that looks"},
		{policy.Exception{Guard: policy.GuardKernelText, Process: "agent", What: "x"}, "is none that looks"},
	} {
		err := tt.exception.Validate()
		if (err == nil) != (tt.wrong == "") || err != nil && !strings.Contains(err.Error(), tt.wrong) {
			t.Errorf("%v: %v, want %q", tt.exception, err, tt.wrong)
		}
	}
}

func TestExceptionTimes(t *testing.T) {
	e := policy.Exception{Expires: time.Unix(100, 0)}
	for at, want := range map[int64]bool{99: false, 100: true, 101: true} {
		if got := e.Expired(time.Unix(at, 0)); got != want {
			t.Errorf("at %d: %v", at, got)
		}
	}
	if (policy.Exception{}).Expired(time.Unix(1<<40, 0)) {
		t.Error("one without an end has ended")
	}
	for _, tt := range []struct {
		s    string
		last bool
		want string
	}{
		{"2026-12-31", true, "2027-01-01T00:00:00Z"}, {"2026-12-31", false, "2026-12-31T00:00:00Z"}, {"2026-12-31T10:00:00+02:00", true, "2026-12-31T08:00:00Z"},
	} {
		got, err := policy.ParseDate(tt.s, tt.last)
		if err != nil || got.Format(time.RFC3339) != tt.want {
			t.Errorf("%s: %v, %v", tt.s, got, err)
		}
	}
	for _, tt := range []struct {
		condition, text string
		want            bool
	}{{"", "x", true}, {"x", "x", true}, {"x", "xy", false}, {"x*", "xy", true}, {"x*", "x", true}, {"x*", "y", false}} {
		if got := policy.Matches(tt.condition, tt.text); got != tt.want {
			t.Errorf("%q of %q: %v", tt.condition, tt.text, got)
		}
	}
}
