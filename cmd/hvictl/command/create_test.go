package command

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/xen-hvi/hvi/control"
	"github.com/xen-hvi/hvi/engine/printable"
)

// fakeXL plays xl. It writes its arguments as a line to the file "log" beside it; fails where there is a file VERB.fail; names domain 20; and stays
// with -F until the domain is destroyed or the file "gone" is there.
const fakeXL = `#!/bin/sh
dir=${0%/*}
echo "$*" >>"$dir/log"
verb=$1
if [ -e "$dir/$verb.fail" ]; then echo "libxl: error: told to fail" >&2; exit 3; fi
case $verb in
create)
	stay=; for a; do case $a in
	-n) echo '{"c_info":{}}'; exit 0 ;;
	-F) stay=y ;;
	esac; done
	echo "Parsing config" >&2
	if [ $stay ]; then
		echo "Waiting for domain we (domid 3) to die [pid 1]b1 (domid 20) to die [pid 812]" >&2
		while [ ! -e "$dir/gone" ]; do sleep 0.01; done
		echo "Domain 20 has been destroyed." >&2
	fi ;;
domid) cat "$dir/domid" ;;
destroy) : >"$dir/gone" ;;
console) echo "Linux version" ;;
esac
`

// toolstack is a directory with a fake xl and a config.
type toolstack struct {
	dir, config string
}

func newToolstack(t *testing.T, config string) *toolstack {
	t.Helper()
	ts := &toolstack{dir: t.TempDir()}
	ts.config = filepath.Join(ts.dir, "web9.cfg")
	ts.write(t, "xl", fakeXL, 0o755)
	ts.write(t, "web9.cfg", config, 0o600)
	ts.write(t, "domid", "20\n", 0o600)
	return ts
}

func (ts *toolstack) write(t *testing.T, name, text string, mode os.FileMode) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(ts.dir, name), []byte(text), mode); err != nil {
		t.Fatal(err)
	}
}

// calls are the command lines of xl since the last call, without the config's
// directory.
func (ts *toolstack) calls(t *testing.T) []string {
	t.Helper()
	log := filepath.Join(ts.dir, "log")
	b, err := os.ReadFile(log)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		t.Fatal(err)
	}
	os.Remove(log)
	os.Remove(filepath.Join(ts.dir, "gone"))
	var calls []string
	for line := range strings.Lines(strings.ReplaceAll(string(b), ts.dir+"/", "")) {
		calls = append(calls, strings.TrimSuffix(line, "\n"))
	}
	return calls
}

// terminalFake is what several programs write to at once.
type terminalFake struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (f *terminalFake) Write(b []byte) (int, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.b.Write(b)
}

func (ts *toolstack) hvictl(ctx context.Context, socket string, args ...string) (stdout, stderr string, code int) {
	var out, errOut terminalFake
	a := newApp(&out, &errOut)
	a.xl = filepath.Join(ts.dir, "xl")
	code = a.run(ctx, append([]string{"--socket", socket}, args...))
	return out.b.String(), strings.ReplaceAll(errOut.b.String(), ts.dir+"/", ""), code
}

const webConfig = "name = \"web9\"\nintrospection = \"enforce\"\n"

func attached() control.GateResult {
	return control.GateResult{Open: true, State: control.StateAttached}
}

func TestCreate(t *testing.T) {
	h := newHost(t)
	ts := newToolstack(t, webConfig)
	const create = "create -p --defconfig=web9.cfg"
	destroyed := []string{create, "domid -- web9", "destroy 20"}
	started := []string{create, "domid -- web9", "unpause 20"}
	for _, tc := range []struct {
		name  string
		args  []string
		gate  control.GateResult
		err   error
		files []string
		calls []string
		code  int
		says  string
	}{
		{"plain", []string{ts.config}, attached(), nil, nil, started, exitOK, "web9 (domain 20): attached, running\n"},
		{"identifying", []string{ts.config}, control.GateResult{Open: true, State: control.StateIdentifying}, nil, nil, started, exitOK, "identifying, running"},
		{
			"nothing declared", []string{ts.config}, control.GateResult{Open: true, State: control.StateUnprotected, Reason: "nobody asks\x1b for it"}, nil, nil,
			started, exitOK, "web9 (domain 20): unprotected, running; nobody asks\\x1b for it\n",
		},
		{"by -f", []string{"-f", ts.config}, attached(), nil, nil, started, exitOK, "running"},
		{"by -fFILE", []string{"-f" + ts.config}, attached(), nil, nil, started, exitOK, "running"},
		{"by --defconfig=", []string{"--defconfig=" + ts.config}, attached(), nil, nil, started, exitOK, "running"},
		{
			"left paused", []string{"-p", ts.config}, attached(), nil, nil,
			[]string{create, "domid -- web9"}, exitOK, "web9 (domain 20): attached, left paused\n",
		},
		{
			"every option that xl takes in silence", []string{"-q", ts.config, "-d", "-e", "-A", "-i"}, attached(), nil, nil,
			[]string{"create -p -q -d -e -A --ignore-global-affinity-masks --defconfig=web9.cfg", "domid -- web9", "unpause 20"}, exitOK, "",
		},
		{
			"clustered", []string{"-qpV", ts.config}, attached(), nil, nil,
			[]string{"create -p -q -V --defconfig=web9.cfg", "domid -- web9"}, exitOK, "",
		},
		{
			"assignments", []string{"memory=64", ts.config, "name=\"db 2\"", "extra='a=b; rm -rf'"}, attached(), nil, nil,
			[]string{"create -p --defconfig=web9.cfg -- memory=64 name=\"db 2\" extra='a=b; rm -rf'", "domid -- db 2", "unpause 20"}, exitOK, "db 2 (domain 20)",
		},
		{
			"no config but assignments", []string{"/dev/null", `name="only"`, `introspection=1`}, attached(), nil, nil,
			[]string{"create -p --defconfig=/dev/null -- name=\"only\" introspection=1", "domid -- only", "unpause 20"}, exitOK, "only (domain 20)",
		},
		{
			"a name that is an option", []string{ts.config, `name="--help"`}, attached(), nil, nil,
			[]string{create + ` -- name="--help"`, "domid -- --help", "unpause 20"}, exitOK, "--help (domain 20)",
		},
		{
			"console", []string{"-c", ts.config}, attached(), nil, nil,
			[]string{create, "domid -- web9", "console 20", "unpause 20"}, exitOK, "Linux version",
		},
		{"dry run", []string{"-n", ts.config, "memory=1"}, attached(), nil, nil, []string{"create -n --defconfig=web9.cfg -- memory=1"}, exitOK, `{"c_info":{}}`},
		{"timeout", []string{ts.config, "--timeout", "20s"}, attached(), nil, nil, started, exitOK, "running"},

		{
			"refused", []string{ts.config}, control.GateResult{Required: true, State: control.StateFailed, Reason: "EBUSY", Fix: "stop the other listener"}, nil, nil,
			destroyed, exitRefused, "web9 is not protected: EBUSY; the domain was destroyed",
		},
		{
			"failed though not required", []string{ts.config}, control.GateResult{Open: true, State: control.StateFailed, Reason: "EBUSY"}, nil, nil,
			destroyed, exitRefused, "web9 is not protected: EBUSY; the domain was destroyed",
		},
		{
			"not in time", []string{ts.config}, control.GateResult{State: control.StateGated}, nil, nil,
			destroyed, exitRefused, "web9 is not protected: its state is gated; the domain was destroyed",
		},
		{
			"refused and not destroyed", []string{ts.config}, control.GateResult{State: control.StateFailed, Reason: "EBUSY"}, nil, []string{"destroy.fail"},
			destroyed, exitRefused, "domain 20 is left, paused: xl destroy failed",
		},
		{
			"refused with console and -p", []string{"-c", "-p", ts.config}, control.GateResult{State: control.StateFailed, Reason: "EBUSY"}, nil, nil,
			destroyed, exitRefused, "the domain was destroyed",
		},
		{
			"hvid fails", []string{ts.config}, control.GateResult{}, errors.New("boom"), nil,
			destroyed, exitFailure, "boom; the domain was destroyed",
		},
		{"xl fails", []string{ts.config}, attached(), nil, []string{"create.fail", "domid.fail"}, []string{create, "domid -- web9"}, exitFailure, "told to fail"},
		{"xl fails and leaves a domain", []string{ts.config}, attached(), nil, []string{"create.fail"}, []string{create, "domid -- web9"}, exitFailure, "if xl left it, destroy it with xl destroy 20"},
		{"xl knows no such name", []string{ts.config}, attached(), nil, []string{"domid.fail"}, started[:2], exitFailure, "the new domain is paused"},
		{"unpause fails", []string{ts.config}, attached(), nil, []string{"unpause.fail"}, started, exitFailure, "xl unpause failed"},
		{"console fails", []string{"-c", ts.config}, attached(), nil, []string{"console.fail"}, []string{create, "domid -- web9", "console 20", "unpause 20"}, exitFailure, "xl console failed"},

		{"no config", nil, attached(), nil, nil, nil, exitUsage, "needs a config"},
		{"only assignments", []string{"memory=1"}, attached(), nil, nil, nil, exitUsage, "/dev/null"},
		{"two configs", []string{ts.config, "b.cfg"}, attached(), nil, nil, nil, exitUsage, "two configs"},
		{"two configs by -f", []string{"-f", ts.config, "b.cfg"}, attached(), nil, nil, nil, exitUsage, "two configs"},
		{"no such config", []string{"/nonexistent.cfg"}, attached(), nil, nil, nil, exitUsage, "no such file"},
		{"a directory", []string{ts.dir}, attached(), nil, nil, nil, exitUsage, "not a regular file"},
		{"a device", []string{"/dev/zero"}, attached(), nil, nil, nil, exitUsage, "not a regular file"},
		{"unknown option", []string{"-z", ts.config}, attached(), nil, nil, nil, exitUsage, "'z'"},
		{"endless timeout", []string{ts.config, "--timeout", "1h"}, attached(), nil, nil, nil, exitUsage, "out of range"},
		{"broken config", []string{ts.config, "memory"}, attached(), nil, nil, nil, exitUsage, "two configs"},
		{"broken assignment", []string{ts.config, "memory=x"}, attached(), nil, nil, nil, exitUsage, "a word needs quotes"},
		{"broken policy", []string{ts.config, "introspection='enforced'"}, attached(), nil, nil, nil, exitUsage, `did you mean "enforce"`},
		{"key of ours misspelt", []string{ts.config, "introspection_polcy='x'"}, attached(), nil, nil, nil, exitUsage, `introspection_policy`},
		{"policy of the admin's", []string{ts.config, "introspection_policy='ours'"}, attached(), nil, nil, []string{create + " -- introspection_policy='ours'", "domid -- web9", "unpause 20"}, exitOK, "running"},
		{"no name", []string{"/dev/null", "memory=1"}, attached(), nil, nil, nil, exitUsage, "name"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			h.engine.gate, h.engine.err = tc.gate, nil
			h.engine.onGate = func(control.DomainRef) { h.engine.err = tc.err }
			for _, f := range tc.files {
				ts.write(t, f, "", 0o600)
				defer os.Remove(filepath.Join(ts.dir, f))
			}
			out, errOut, code := ts.hvictl(t.Context(), h.socket, append([]string{"create"}, tc.args...)...)
			calls := ts.calls(t)
			if tc.name == "console" || tc.name == "console fails" { // the console runs beside
				slices.Sort(calls[2:])
			}
			if code != tc.code || !slices.Equal(calls, tc.calls) || !strings.Contains(out+errOut, tc.says) {
				t.Errorf("exit code %d, want %d; to mention %q:\n%s%s\nxl was run as %q, want %q", code, tc.code, tc.says, out, errOut, calls, tc.calls)
			}
			if strings.ContainsRune(out+errOut, '\x1b') {
				t.Errorf("escape characters: %q %q", out, errOut)
			}
			if slices.Contains(tc.args, "-q") && out != "" {
				t.Errorf("quiet says %q", out)
			}
		})
	}
	if want := "gate 20 {TimeoutMS:0}"; h.engine.asked != want {
		t.Errorf("hvid was asked %q, want %q", h.engine.asked, want)
	}
}

// TestCreateWithoutHvid: nothing is created where it could not be protected.
func TestCreateWithoutHvid(t *testing.T) {
	ts := newToolstack(t, webConfig)
	_, errOut, code := ts.hvictl(t.Context(), "/nonexistent/hvid.sock", "create", ts.config)
	if calls := ts.calls(t); code != exitUnreachable || len(calls) > 0 || !strings.Contains(errOut, "systemctl start hvid") {
		t.Errorf("exit code %d, xl was run as %q:\n%s", code, calls, errOut)
	}
	// A dry run needs none.
	if _, errOut, code := ts.hvictl(t.Context(), "/nonexistent/hvid.sock", "create", "-n", ts.config); code != exitOK {
		t.Errorf("dry run: exit code %d, %s", code, errOut)
	}
}

func TestCreateWithoutXL(t *testing.T) {
	h := newHost(t)
	ts := newToolstack(t, webConfig)
	var out, errOut bytes.Buffer
	a := newApp(&out, &errOut)
	a.xl = "xl-that-nobody-has"
	if code := a.run(t.Context(), []string{"--socket", h.socket, "create", ts.config}); code != exitFailure || !strings.Contains(errOut.String(), "xen-utils-common") {
		t.Errorf("exit code %d: %s", code, errOut.String())
	}
}

func TestCreateJSON(t *testing.T) {
	h := newHost(t)
	ts := newToolstack(t, "name = \"a\\nb\"\n")
	h.engine.gate = attached()
	h.engine.onGate = func(control.DomainRef) {
		h.engine.domains = append(h.engine.domains, control.DomainStatus{ID: 20, Name: "x", UUID: "f2b0f0f4-6f0e-4f9b-8f4c-0c8c6d1e2f30"})
	}
	out, errOut, code := ts.hvictl(t.Context(), h.socket, "create", "-o", "json", "-p", ts.config)
	var got created
	if err := json.Unmarshal([]byte(out), &got); err != nil || code != exitOK {
		t.Fatalf("exit code %d, %v: %s%s", code, err, out, errOut)
	}
	if want := (created{ID: 20, Name: printable.Escape("a\nb"), UUID: "f2b0f0f4-6f0e-4f9b-8f4c-0c8c6d1e2f30", State: "attached", Paused: true}); got != want {
		t.Errorf("got %+v, want %+v", got, want)
	}
	// The same name again: xl says a number that is not new.
	_, errOut, code = ts.hvictl(t.Context(), h.socket, "create", "-o", "json", ts.config)
	var p struct{ Code, What string }
	if err := json.Unmarshal([]byte(errOut[strings.Index(errOut, "{"):]), &p); err != nil || code != exitRefused || p.Code != "conflict" || !strings.Contains(p.What, `"a\nb"`) {
		t.Errorf("exit code %d, %v: %s", code, err, errOut)
	}
	if calls := ts.calls(t); slices.ContainsFunc(calls, func(s string) bool { return strings.HasPrefix(s, "destroy") }) {
		t.Errorf("another's domain was destroyed: %q", calls)
	}
}

// TestCreateWhereANameIsANumber: domain 13 is called "20", and the new one is
// domain 20.
func TestCreateWhereANameIsANumber(t *testing.T) {
	h := newHost(t)
	ts := newToolstack(t, webConfig)
	const uuid = "f2b0f0f4-6f0e-4f9b-8f4c-0c8c6d1e2f30"
	h.engine.gate = attached()
	h.engine.domains = append(h.engine.domains, control.DomainStatus{ID: 13, Name: "20", UUID: uuid[:35] + "1"})
	asked := 0
	h.engine.onGate = func(dom control.DomainRef) {
		// A gate is asked for by number, and hvid takes it for one.
		if asked++; dom.Ref != "20" {
			t.Errorf("asked about %+v", dom)
		}
	}
	// xl makes the domain, and hvid sees it, after the first look.
	ts.write(t, "domid", "20\n", 0o600)
	h.engine.onDomains = func(n int) {
		if n == 2 {
			h.engine.domains = append(h.engine.domains, control.DomainStatus{ID: 20, Name: "web9", UUID: uuid})
		}
	}
	if out, errOut, code := ts.hvictl(t.Context(), h.socket, "create", ts.config); code != exitOK || asked != 1 {
		t.Errorf("exit code %d, asked %d times: %s%s", code, asked, out, errOut)
	}
}

func TestCreateForeground(t *testing.T) {
	h := newHost(t)
	ts := newToolstack(t, webConfig)
	h.engine.gate = attached()
	h.engine.onGate = func(control.DomainRef) { ts.write(t, "gone", "", 0o600) }
	out, errOut, code := ts.hvictl(t.Context(), h.socket, "create", "-F", ts.config)
	if code != exitOK || out != "web9 (domain 20): attached, running\n" || !strings.Contains(errOut, "Domain 20 has been destroyed.") {
		t.Errorf("exit code %d:\n%s%s", code, out, errOut)
	}
	if calls, want := ts.calls(t), []string{"create -p -F --defconfig=web9.cfg", "unpause 20"}; !slices.Equal(calls, want) {
		t.Errorf("xl was run as %q, want %q", calls, want)
	}

	h.engine.onGate, h.engine.gate = nil, control.GateResult{State: control.StateFailed, Reason: "EBUSY"}
	if _, errOut, code := ts.hvictl(t.Context(), h.socket, "create", "-F", ts.config); code != exitRefused {
		t.Errorf("refused: exit code %d: %s", code, errOut)
	}
	if calls, want := ts.calls(t), []string{"create -p -F --defconfig=web9.cfg", "destroy 20"}; !slices.Equal(calls, want) {
		t.Errorf("refused: xl was run as %q, want %q", calls, want)
	}

	ts.write(t, "create.fail", "", 0o600)
	if _, errOut, code := ts.hvictl(t.Context(), h.socket, "create", "-F", ts.config); code != exitFailure || !strings.Contains(errOut, "told to fail") {
		t.Errorf("xl fails: exit code %d: %s", code, errOut)
	}
	ts.calls(t)
	os.Remove(filepath.Join(ts.dir, "create.fail"))

	// An interrupt before the gate opens leaves no domain, one after it leaves
	// it running.
	for _, early := range []bool{true, false} {
		ctx, cancel := context.WithCancel(t.Context())
		h.engine.gate = attached()
		h.engine.onGate = func(control.DomainRef) {
			if early {
				cancel()
			} else {
				time.AfterFunc(50*time.Millisecond, cancel)
			}
		}
		_, errOut, code := ts.hvictl(ctx, h.socket, "create", "-F", ts.config)
		calls := ts.calls(t)
		if gone := slices.Contains(calls, "destroy 20"); code != exitInterrupted || gone != early {
			t.Errorf("interrupted, early %v: exit code %d, xl was run as %q: %s", early, code, calls, errOut)
		}
		cancel()
	}
}

func TestReadyLine(t *testing.T) {
	for line, want := range map[string]int{
		"Waiting for domain web9 (domid 7) to die [pid 812]\n":                       7,
		"Waiting for domain a (domid 3) to die [pid 1] (domid 4) to die [pid 812]\n": 4,
		"Waiting for domain \n":                                     -1,
		"Waiting for domain web9 (domid 7":                          -1,
		"Waiting for domain web9 (domid 70000) to die [pid 1]\n":    -1,
		"Waiting for domain web9 (domid -1) to die [pid 1]\n":       -1,
		"x Waiting for domain web9 (domid 7) to die [pid 1]\n":      -1,
		"Waiting for domain web9 (domid 7) to be born [pid 1]\n":    -1,
		"Parsing config from /etc/xen/(domid 7) to die [pid 1].cfg": -1,
	} {
		got := -1
		if id, ok := readyLine(line); ok {
			got = int(id)
		}
		if got != want {
			t.Errorf("%q: %d, want %d", line, got, want)
		}
	}
}

func TestRestarting(t *testing.T) {
	dir := t.TempDir()
	socket := filepath.Join(dir, "hvid.sock")
	n := control.RestartNotice{At: noon.Add(-12 * time.Second), PID: 7, Domains: []control.RestartDomain{
		{ID: 7, Name: "web1", UUID: "a2b0f0f4-6f0e-4f9b-8f4c-0c8c6d1e2f30", Mode: "enforce"},
		{ID: 8, Name: printable.Escape("db \x1b[31m"), UUID: "b2b0f0f4-6f0e-4f9b-8f4c-0c8c6d1e2f30", Mode: "observe"},
	}}
	if err := control.WriteRestartNotice(dir, n); err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		name string
		args []string
	}{
		{"list", []string{"list"}},
		{"list-json", []string{"list", "-o", "json"}},
		{"status", []string{"status"}},
		{"status-json", []string{"status", "-o", "json"}},
		{"one", []string{"status", "web1"}},
		{"another", []string{"status", "web2"}},
	} {
		out, errOut, code := hvictl(t, socket, tc.args...)
		golden(t, "restarting-"+tc.name, out+"-- standard error, exit code "+fmt.Sprint(code)+"\n"+strings.ReplaceAll(errOut, dir, "DIR"))
	}
	ts := newToolstack(t, webConfig)
	if _, errOut, code := ts.hvictl(t.Context(), socket, "create", ts.config); code != exitUnreachable || !strings.Contains(errOut, "is restarting") || len(ts.calls(t)) > 0 {
		t.Errorf("create: exit code %d: %s", code, errOut)
	}
	// So do the commands that have nothing to show.
	for _, args := range []string{"attach web1", "detach web1", "events", "policy show web1", "set web1 --mode off"} {
		if out, errOut, code := hvictl(t, socket, strings.Fields(args)...); code != exitUnreachable || out != "" || !strings.Contains(errOut, "is restarting") {
			t.Errorf("%s: exit code %d: %s%s", args, code, out, errOut)
		}
	}
	// One that is not back by now is down.
	n.At = noon.Add(-control.RestartWindow)
	if err := control.WriteRestartNotice(dir, n); err != nil {
		t.Fatal(err)
	}
	if out, errOut, code := hvictl(t, socket, "list"); code != exitUnreachable || out != "" || !strings.Contains(errOut, "systemctl start hvid") {
		t.Errorf("an old notice: exit code %d: %s%s", code, out, errOut)
	}
	// What it left paused is told for as long as it is so.
	n.Domains[1].Held = "its policy says require_attach, and hvi could not attach"
	for name, age := range map[string]time.Duration{"held": 12 * time.Second, "held-long-ago": control.RestartWindow} {
		n.At = noon.Add(-age)
		if err := control.WriteRestartNotice(dir, n); err != nil {
			t.Fatal(err)
		}
		out, errOut, code := hvictl(t, socket, "status")
		golden(t, "restarting-"+name, out+"-- standard error, exit code "+fmt.Sprint(code)+"\n"+strings.ReplaceAll(errOut, dir, "DIR"))
	}
	if err := os.WriteFile(filepath.Join(dir, "restart.json"), []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	if out, errOut, code := hvictl(t, socket, "list"); code != exitUnreachable || out != "" || !strings.Contains(errOut, "systemctl start hvid") {
		t.Errorf("a broken notice: exit code %d: %s%s", code, out, errOut)
	}
}
