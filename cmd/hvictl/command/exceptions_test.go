package command

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/xen-hvi/hvi/config"
	"github.com/xen-hvi/hvi/control"
	"github.com/xen-hvi/hvi/engine/journal"
	"github.com/xen-hvi/hvi/engine/policy"
	"github.com/xen-hvi/hvi/engine/printable"
)

// TestGuards lists the guards without hvid.
func TestGuards(t *testing.T) {
	for _, tc := range []struct {
		name string
		args []string
	}{
		{"guards", nil},
		{"guards-watching", []string{"kernel-text"}},
		{"guards-looking", []string{"usermode-helper"}},
		{"guards-json", []string{"-o", "json", "cr"}},
	} {
		out, errOut, code := hvictl(t, "/nonexistent/hvid.sock", append([]string{"guards"}, tc.args...)...)
		if code != 0 || errOut != "" {
			t.Errorf("%v: exit code %d, stderr %q", tc.args, code, errOut)
		}
		golden(t, tc.name, out)
	}
	if _, errOut, code := hvictl(t, "/nonexistent/hvid.sock", "guards", "kernel-tex"); code != exitUsage || !strings.Contains(errOut, "kernel-text") {
		t.Errorf("exit code %d, stderr %q", code, errOut)
	}
}

// allowable are events that exceptions can be made of: a write and a finding.
func allowable() []journal.Record {
	web1 := journal.Domain{UUID: "a2b0f0f4-6f0e-4f9b-8f4c-0c8c6d1e2f30", Name: "web1", ID: 7, Kernel: "6.1.0-35-amd64"}
	write := fakeEvents()[0]
	write.Domain, write.Process.Comm, write.RIP.Module = web1, "falcon-sensor", "falcon"
	return []journal.Record{write, {
		Time: noon, Domain: web1, Guard: "usermode-helper", Action: journal.Found, Mode: "enforce", Process: journal.Process{Unknown: "late"},
		Target: journal.Target{Kind: journal.TargetObject, Object: &journal.ObjectTarget{Check: "usermode-helpers", Name: "modprobe_path", What: `it is "/opt/x"`}},
	}}
}

// TestAllow makes exceptions of events, and has hvid keep them or prints them.
func TestAllow(t *testing.T) {
	h := newHost(t)
	var ids []string
	for _, r := range append(allowable(), fakeEvents()[1]) {
		r, err := h.journal.Append(r)
		if err != nil {
			t.Fatal(err)
		}
		ids = append(ids, string(r.ID))
	}
	const domain = " domain=a2b0f0f4-6f0e-4f9b-8f4c-0c8c6d1e2f30"
	for _, tc := range []struct {
		name  string
		args  []string
		code  int
		asked string // of hvid; empty for nothing
		says  string // on stderr
	}{
		{"allow", []string{ids[0], "--expires", "30d", "--comment", "ticket 4711"}, 0,
			"allow kernel-text" + domain + " process=falcon-sensor module=falcon target=do_syscall_64 bytes=9090 kernel=6.1.0-35-amd64", ""},
		{"allow-finding", []string{ids[1]}, 0,
			"allow usermode-helper" + domain + ` object=modprobe_path what="it is \"/opt/x\"" kernel=6.1.0-35-amd64`, ""},
		{"allow-print", []string{ids[0], "--any", "domain", "--any", "kernel", "--for", "falcon*", "--for", "insmod", "--print"}, 0, "", ""},
		{"", []string{ids[2]}, exitUsage, "", "--any kernel"},
		{"", []string{ids[0], "--any", "prcess"}, exitUsage, "", "process"},
		{"", []string{ids[0], "--for", "x", "--any", "process"}, exitUsage, "", "exclude each other"},
		{"", []string{ids[0], "--expires", "2026-05-01"}, exitUsage, "", "is over already"},
		{"", []string{ids[0], "--expires", "soon"}, exitUsage, "", "is no time"},
		{"", []string{"7"}, exitUsage, "", "is not the ID of an event"},
	} {
		h.engine.asked, h.engine.exceptions = "", nil
		out, errOut, code := hvictl(t, h.socket, append([]string{"allow"}, tc.args...)...)
		if code != tc.code || h.engine.asked != tc.asked || !strings.Contains(errOut, tc.says) || (tc.code == 0) != (errOut == "") {
			t.Errorf("%v: exit code %d, want %d; hvid was asked %q, want %q; stderr %q, want %q", tc.args, code, tc.code, h.engine.asked, tc.asked, errOut, tc.says)
		}
		if tc.name == "" {
			continue
		}
		golden(t, tc.name, out)
		if tc.name == "allow-print" {
			if list, err := config.ParseExceptions("printed", []byte(out)); err != nil || len(list) != 2 || list[0].Process != "falcon*" || list[1].Process != "insmod" {
				t.Errorf("what was printed is read as %+v, %v", list, err)
			}
		}
	}
}

// TestLearn proposes exceptions from what was reported under mode learn, and has
// hvid keep them or prints them.
func TestLearn(t *testing.T) {
	h := newHost(t)
	const web = "a2b0f0f4-6f0e-4f9b-8f4c-0c8c6d1e2f30"
	run := "" // what the IDs of this run's events begin with
	add := func(r journal.Record) {
		r.Mode = "learn"
		r, err := h.journal.Append(r)
		if err != nil {
			t.Fatal(err)
		}
		run, _, _ = strings.Cut(string(r.ID), "-")
	}
	list := allowable()
	if _, err := h.journal.Append(list[0]); err != nil { // under another mode
		t.Fatal(err)
	}
	nothing, errOut, code := hvictl(t, h.socket, "learn", "web1")
	if code != 0 || errOut != "" {
		t.Errorf("exit code %d, %q", code, errOut)
	}
	golden(t, "learn-nothing", nothing)
	other, storm, vague := list[0], list[0], list[0]
	other.Process.Comm, other.Detail.Repeats = "falcon-update", 11
	storm.Detail.Suppressed = 300
	vague.RIP, vague.Process = journal.Location{Addr: 0xffffffffc0000000}, journal.Process{Unknown: "no"}
	for _, r := range append(list, other, storm, vague) {
		add(r)
	}
	write, err := control.ExceptionOf(&other, nil)
	if err != nil {
		t.Fatal(err)
	}
	const domain = " domain=" + web
	for _, tc := range []struct {
		name  string
		args  []string
		code  int
		asked string // of hvid, last; empty for nothing
		says  string // on stderr
	}{
		{"learn", nil, 0, "", ""},
		{"learn-json", []string{"-o", "json"}, 0, "", ""},
		{"learn-print", []string{"--any", "domain", "--any", "kernel", "--any", "process", "--print", "--comment", "learnt in May", "--expires", "30d"}, 0, "", ""},
		{"learn-accept", []string{"--accept", write.ID()}, 0,
			"allow kernel-text" + domain + " process=falcon-update module=falcon target=do_syscall_64 bytes=9090 kernel=6.1.0-35-amd64", ""},
		{"learn-accept-all", []string{"--accept", "all"}, 0,
			"allow kernel-text" + domain + " process=falcon-sensor module=falcon target=do_syscall_64 bytes=9090 kernel=6.1.0-35-amd64", ""},
		{"", []string{"--accept", "x1"}, exitUsage, "", "there is no proposal"},
		{"", []string{"--accept", "all", "--print"}, exitUsage, "", "exclude each other"},
		{"", []string{"--any", "prcess"}, exitUsage, "", "process"},
		{"", []string{"--since", "soon"}, exitUsage, "", "is no time"},
	} {
		h.engine.asked, h.engine.exceptions = "", nil
		out, errOut, code := hvictl(t, h.socket, append([]string{"learn", "web1"}, tc.args...)...)
		if code != tc.code || h.engine.asked != tc.asked || !strings.Contains(errOut, tc.says) || (tc.code == 0) != (errOut == "") {
			t.Errorf("%v: exit code %d, want %d; hvid was asked %q, want %q; stderr %q, want %q", tc.args, code, tc.code, h.engine.asked, tc.asked, errOut, tc.says)
		}
		if tc.name != "" {
			golden(t, tc.name, strings.ReplaceAll(out, run, "69fe2b1d7c3a"))
		}
		if tc.name == "learn-print" {
			if list, err := config.ParseExceptions("printed", []byte(out)); err != nil || len(list) != 3 {
				t.Errorf("what was printed is read as %+v, %v", list, err)
			}
		}
	}
	if _, errOut, code := hvictl(t, h.socket, "learn", "nobody"); code != exitNoDomain || errOut == "" {
		t.Errorf("exit code %d, %q", code, errOut)
	}
}

// TestExceptionsOutput lists, removes and reloads exceptions.
func TestExceptionsOutput(t *testing.T) {
	h := newHost(t)
	exception := func(e policy.Exception, from string, uses ...control.ExceptionUse) control.Exception {
		return control.Exception{ID: e.ID(), Exception: e, From: from, Expired: e.Expired(noon), Domains: uses}
	}
	all := []control.Exception{
		exception(policy.Exception{Guard: policy.GuardKernelText, Process: "falcon-sensor", Module: "falcon", Comment: "ticket 4711", Expires: noon.Add(30 * 24 * time.Hour)},
			control.ExceptionKept, control.ExceptionUse{ID: 7, Name: "web1", Uses: 12, Last: noon.Add(-time.Minute)}),
		exception(policy.Exception{Guard: policy.GuardKernelText, Target: "no_such", Origin: policy.Origin{Source: "/etc/hvi/exceptions.toml", Line: 3}},
			control.ExceptionFile, control.ExceptionUse{ID: 8, Name: printable.Escape("db \x1b[31m"), Inactive: "the guest's kernel has no symbol no_such"}),
		exception(policy.Exception{Guard: policy.GuardUsermodeHelper, Object: "modprobe_path", Expires: noon.Add(-time.Hour)}, control.ExceptionKept),
	}
	for _, tc := range []struct {
		name  string
		list  []control.Exception
		args  []string
		code  int
		asked string
	}{
		{"exceptions-list", all, []string{"list"}, 0, ""},
		{"exceptions-list-json", all, []string{"list", "-o", "json"}, 0, ""},
		{"exceptions-none", nil, []string{"list"}, 0, ""},
		{"exceptions-list", all, []string{"reload"}, 0, "reload"},
		{"exceptions-none", all, []string{"remove", all[0].ID, all[2].ID}, 0, "disallow [" + all[0].ID + " " + all[2].ID + "]"},
		{"exceptions-none", all, []string{"remove", "--expired"}, 0, "disallow [" + all[2].ID + "]"},
		{"", all, []string{"remove"}, exitUsage, ""},
		{"", all, []string{"remove", "--expired", "x"}, exitUsage, ""},
		{"", all, []string{"lst"}, exitUsage, ""},
	} {
		h.engine.asked, h.engine.exceptions = "", tc.list
		out, errOut, code := hvictl(t, h.socket, append([]string{"exceptions"}, tc.args...)...)
		if code != tc.code || h.engine.asked != tc.asked || (tc.code == 0) != (errOut == "") {
			t.Errorf("%v: exit code %d, want %d; hvid was asked %q, want %q; stderr %q", tc.args, code, tc.code, h.engine.asked, tc.asked, errOut)
		}
		if tc.name != "" {
			golden(t, tc.name, out)
		}
	}
	h.engine.err = errors.New("no")
	if _, errOut, code := hvictl(t, h.socket, "exceptions", "list"); code == 0 || errOut == "" {
		t.Errorf("an error: exit code %d, stderr %q", code, errOut)
	}
}

// TestPolicyDiff compares built-in policies, files and a domain's.
func TestPolicyDiff(t *testing.T) {
	dir := t.TempDir()
	write := func(name, text string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	file := write("web.cfg", "name = \"web\"\ntype = \"pvh\"\nintrospection = \"enforce\"\nintrospection_guards = [ \"cr=off\" ]\n")
	for _, tc := range []struct {
		name string
		a, b string
	}{
		{"policy-diff-presets", "policy:linux-server", "policy:linux-strict"},
		{"policy-diff-file", "policy:default", file},
		{"policy-diff-same", file, file},
	} {
		out, errOut, code := hvictl(t, "/nonexistent/hvid.sock", "policy", "diff", "--dir", dir, tc.a, tc.b)
		if code != 0 || errOut != "" {
			t.Errorf("%s: exit code %d, stderr %q", tc.name, code, errOut)
		}
		// The folder, whose name is in the heading, is another one each time.
		if tc.name == "policy-diff-file" {
			if !strings.Contains(out, "cr ") || strings.Contains(out, "kernel-text") {
				t.Errorf("%s", out)
			}
			continue
		}
		golden(t, tc.name, out)
	}
	for _, wrong := range [][]string{{"policy:linux-servr", file}, {file}, {file, filepath.Join(dir, "none.cfg")}} {
		if _, errOut, code := hvictl(t, "/nonexistent/hvid.sock", append([]string{"policy", "diff", "--dir", dir}, wrong...)...); code == 0 || errOut == "" {
			t.Errorf("%v: exit code %d, stderr %q", wrong, code, errOut)
		}
	}
}
