package hooks

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/xen-hvi/hvi/control"
	"github.com/xen-hvi/hvi/engine/journal"
	"github.com/xen-hvi/hvi/engine/policy"
)

const uuid = "6a14b9b1-7d2b-4e3f-9f2a-0123456789ab"

// fakeEngine is a hvid behind the real server. What isn't here is not called.
type fakeEngine struct {
	control.Engine
	mu       sync.Mutex
	declared []control.DeclareRequest
	uuids    []string
	gated    []string
	answer   control.Declared
	gate     control.GateResult
	err      error
}

func (e *fakeEngine) Version(context.Context) (control.Version, error) {
	return control.Version{API: "v1"}, nil
}

func (e *fakeEngine) Domains(context.Context) ([]control.DomainStatus, error) { return nil, nil }

func (e *fakeEngine) Declare(_ context.Context, uuid string, r control.DeclareRequest) (control.Declared, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.declared, e.uuids = append(e.declared, r), append(e.uuids, uuid)
	return e.answer, e.err
}

func (e *fakeEngine) Gate(ctx context.Context, dom control.DomainRef, _ control.GateRequest) (control.GateResult, error) {
	e.mu.Lock()
	e.gated = append(e.gated, dom.Ref)
	e.mu.Unlock()
	if e.gate.State == control.StateGated {
		<-ctx.Done()
		return e.gate, ctx.Err()
	}
	return e.gate, e.err
}

// asked is what the gates were asked for.
func (e *fakeEngine) asked() string {
	e.mu.Lock()
	defer e.mu.Unlock()
	return strings.Join(e.gated, " ")
}

// serve makes a hvid at a socket.
func serve(t *testing.T, socket string, e *fakeEngine) {
	t.Helper()
	j, err := journal.Open(journal.Options{Dir: filepath.Join(t.TempDir(), "journal")})
	if err != nil {
		t.Fatal(err)
	}
	l, err := control.Listen(socket)
	if err != nil {
		t.Fatal(err)
	}
	s := control.NewServer(control.ServerOptions{Engine: e, Journal: j})
	served := make(chan error, 1)
	go func() { served <- s.Serve(l) }()
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		if err := errors.Join(s.Shutdown(ctx), <-served); err != nil {
			t.Error(err)
		}
		l.Close()
		j.Close()
	})
}

// Ways in which hvid is there, or is not.
const (
	up        = "up"
	missing   = "missing"
	refusing  = "refusing"
	hung      = "hung"
	stranger  = "stranger"
	starting  = "starting"
	hurrying  = "hung up"
	forbidden = "unwilling"
)

// hvid arranges for a way and returns the socket.
func hvid(t *testing.T, way string, e *fakeEngine) string {
	t.Helper()
	socket := filepath.Join(t.TempDir(), "hvid.sock")
	each := func(answer func(net.Conn)) {
		l, err := net.Listen("unix", socket)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { l.Close() })
		go func() {
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				t.Cleanup(func() { c.Close() })
				answer(c)
			}
		}()
	}
	switch way {
	case up:
		serve(t, socket, e)
	case starting:
		e.err = &control.Problem{Code: control.CodeUnavailable, What: "hvid is starting"}
		serve(t, socket, e)
	case forbidden:
		e.err = &control.Problem{Code: control.CodeBadRequest, What: `unknown policy "linux-servr"`, Fix: "write linux-server"}
		serve(t, socket, e)
	case refusing:
		l, err := net.ListenUnix("unix", &net.UnixAddr{Name: socket})
		if err != nil {
			t.Fatal(err)
		}
		l.SetUnlinkOnClose(false)
		l.Close()
	case hung:
		each(func(net.Conn) {})
	case hurrying:
		each(func(c net.Conn) { c.Close() })
	case stranger:
		each(func(c net.Conn) {
			io.WriteString(c, "220 mail.example ESMTP\r\n")
		})
	}
	return socket
}

func xml(element string) string {
	return "<domain type='xen'>\n  <name>web1</name>\n  <uuid>" + uuid + "</uuid>\n  <metadata>\n" + element + "\n  </metadata>\n</domain>\n"
}

func element(attributes string) string {
	return xml(`<hvi:introspection xmlns:hvi="urn:xen-hvi:domain:1.0" ` + attributes + `/>`)
}

var (
	enforce = element(`mode="enforce"`)
	observe = element(`mode="observe"`)
	require = element(`mode="observe" require_attach="yes"`)
	off     = element(`mode="off"`)
	absent  = xml("")
	broken  = element(`mode="enforced"`)
)

// run plays a hook.
type run struct {
	host   Host
	stderr bytes.Buffer
	stdout bytes.Buffer
	exec   []string // what it became: path, arguments
	store  []string
}

func newRun(socket, stdin string, args ...string) *run {
	r := &run{}
	r.host = Host{
		Args: args, Env: []string{"PATH=/bin", "HVI_SOCKET=" + socket}, Stdin: strings.NewReader(stdin),
		Stdout: &r.stdout, Stderr: &r.stderr,
		Exec: func(path string, argv, _ []string) error {
			r.exec = append([]string{path}, argv...)
			return nil
		},
		StoreWrite: func(path, value string) error {
			if !strings.HasPrefix(path, "/local/domain/0/") {
				return fmt.Errorf("%s is no absolute path", path)
			}
			r.store = append(r.store, path+"="+value)
			return nil
		},
		InputTime: 10 * time.Second, AnswerTime: 200 * time.Millisecond, GateTime: 400 * time.Millisecond, Patience: 300 * time.Millisecond,
	}
	return r
}

func (r *run) do(t *testing.T) int {
	t.Helper()
	began := time.Now()
	code := Run(context.Background(), r.host)
	if took := time.Since(began); took > 30*time.Second {
		t.Errorf("took %v", took)
	}
	if s := r.stderr.String(); strings.ContainsFunc(s, func(c rune) bool { return c != '\n' && (c < ' ' || c == 0x7f) }) {
		t.Errorf("what it says would control a terminal: %q", s)
	}
	return code
}

func TestLibvirtHook(t *testing.T) {
	for _, tt := range []struct {
		name, hvid, xml, op string
		code                int
		declared            string // the mode, "-" for nothing asked of hvid
		says                []string
	}{
		{"start, enforce", up, enforce, "start", 0, "enforce", nil},
		{"start, observe", up, observe, "start", 0, "observe", nil},
		{"start, off", up, off, "start", 0, "off", nil},
		// So that an element that was removed takes effect.
		{"start, absent", up, absent, "start", 0, "", nil},
		{"prepare only checks", up, enforce, "prepare", 0, "-", nil},
		{"reconnect", up, enforce, "reconnect", 0, "enforce", nil},
		{"migrate", up, enforce, "migrate", 0, "enforce", nil},
		{"unknown operation", up, enforce, "rejoice", 0, "-", nil},

		{"prepare, broken", up, broken, "prepare", 1, "-", []string{`domain "web1" is not started`, `domain XML:5:55: unknown mode "enforced"; did you mean "enforce"?`, `virsh edit "web1"`}},
		{"start, broken", up, broken, "start", 1, "-", []string{`unknown mode "enforced"`}},
		{"migrate, broken", up, broken, "migrate", 1, "-", []string{`unknown mode "enforced"`}},
		{"reconnect, broken", up, broken, "reconnect", 0, "-", []string{`domain "web1" runs on`, `unknown mode "enforced"`}},
		{"broken without hvid", missing, broken, "prepare", 1, "-", nil},
		{"prepare without hvid", missing, enforce, "prepare", 0, "-", nil},

		{"hvid missing, enforce", missing, enforce, "start", 1, "-", []string{"mode enforce asks for protection, and hvid is not reachable: there is no such socket", "systemctl start hvid"}},
		{"hvid missing, required", missing, require, "start", 1, "-", []string{"require_attach asks for protection"}},
		{"hvid missing, observe", missing, observe, "start", 0, "-", []string{"starts without introspection until hvid can be reached: hvid is not reachable"}},
		{"hvid missing, off", missing, off, "start", 0, "-", nil},
		{"hvid missing, absent", missing, absent, "start", 0, "-", nil},
		{"hvid missing, reconnect", missing, enforce, "reconnect", 0, "-", []string{"runs on", "not reachable"}},
		{"hvid missing, migrate", missing, enforce, "migrate", 1, "-", []string{"not reachable"}},
		{"hvid refusing, enforce", refusing, enforce, "start", 1, "-", []string{"nobody serves its socket"}},
		{"hvid refusing, observe", refusing, observe, "start", 0, "-", []string{"nobody serves its socket"}},
		{"hvid hung, enforce", hung, enforce, "start", 1, "-", []string{"hvid does not answer", "journalctl -u hvid"}},
		{"hvid hung, observe", hung, observe, "start", 0, "-", []string{"hvid does not answer"}},
		{"hvid hung, absent", hung, absent, "start", 0, "-", nil},
		{"hvid hung, reconnect", hung, enforce, "reconnect", 0, "-", []string{"hvid does not answer"}},
		{"hvid hangs up, enforce", hurrying, enforce, "start", 1, "-", []string{"asks for protection"}},
		{"not hvid, enforce", stranger, enforce, "start", 1, "-", nil},
		{"not hvid, observe", stranger, observe, "start", 0, "-", []string{"starts without introspection"}},
		{"hvid starting, enforce", starting, enforce, "start", 1, "enforce", []string{"hvid is starting"}},
		{"hvid starting, observe", starting, observe, "start", 0, "observe", []string{"hvid is starting"}},
		{"unknown policy, enforce", forbidden, enforce, "start", 1, "enforce", []string{`unknown policy "linux-servr"; write linux-server`}},
		{"unknown policy, observe", forbidden, observe, "start", 1, "observe", []string{`unknown policy "linux-servr"`}},

		{"stdin empty", up, "", "start", 1, "-", []string{"XML is empty"}},
		{"stdin empty, prepare", up, "", "prepare", 1, "-", []string{"XML is empty"}},
		{"stdin empty, reconnect", up, "", "reconnect", 0, "-", []string{"XML is empty"}},
		{"stdin of 10 MB", up, strings.Repeat("<a/>", 10<<18), "start", 1, "-", []string{"XML is longer than 8 MiB"}},
		{"no XML", up, "hello", "start", 1, "-", []string{"not well-formed"}},
		{"no UUID", up, strings.Replace(enforce, uuid, "none", 1), "start", 1, "-", []string{"the domain XML has no UUID"}},
		{"no UUID, absent", up, "<domain/>", "start", 0, "-", nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			e := &fakeEngine{}
			r := newRun(hvid(t, tt.hvid, e), tt.xml, "/etc/libvirt/hooks/libxl.d/50-hvi", "web1", tt.op, "begin", "-")
			if code := r.do(t); code != tt.code {
				t.Errorf("exit %d, want %d; it says:\n%s", code, tt.code, &r.stderr)
			}
			for _, s := range tt.says {
				if !strings.Contains(r.stderr.String(), s) {
					t.Errorf("it does not say %q but:\n%s", s, &r.stderr)
				}
			}
			if len(tt.says) == 0 && tt.code == 0 && r.stderr.Len() > 0 {
				t.Errorf("it says: %s", &r.stderr)
			}
			// libvirt takes what a migrate hook prints for the domain's new XML.
			if r.stdout.Len() > 0 {
				t.Errorf("it prints: %s", &r.stdout)
			}
			switch {
			case tt.declared == "-" && len(e.declared) > 0:
				t.Errorf("declared %+v", e.declared)
			case tt.declared != "-" && (len(e.declared) != 1 || e.declared[0].Mode != tt.declared || e.uuids[0] != uuid || e.declared[0].Toolstack != "libvirt" || e.declared[0].Name != "web1"):
				t.Errorf("declared %+v of %v", e.declared, e.uuids)
			}
		})
	}
}

// TestHookOfAnOldLibvirt is called by the one name that a libvirt before 6.5 calls.
func TestHookOfAnOldLibvirt(t *testing.T) {
	for op, code := range map[string]int{"prepare": 0, "start": 0, "started": 0, "stopped": 0, "release": 0} {
		e := &fakeEngine{}
		sub := "begin"
		if op == "stopped" || op == "release" {
			sub = "end"
		}
		r := newRun(hvid(t, up, e), enforce, "/etc/libvirt/hooks/libxl", "web1", op, sub, "-")
		if got := r.do(t); got != code || r.stdout.Len()+r.stderr.Len() > 0 {
			t.Errorf("%s: exit %d, %s%s", op, got, &r.stdout, &r.stderr)
		}
		if want := op == "start"; (len(e.declared) == 1 && e.declared[0].Mode == "enforce") != want {
			t.Errorf("%s: declared %+v", op, e.declared)
		}
	}
	r := newRun(filepath.Join(t.TempDir(), "none"), enforce, "/etc/libvirt/hooks/libxl", "web1", "start", "begin", "-")
	if code := r.do(t); code != 1 || !strings.Contains(r.stderr.String(), "mode enforce asks for protection") {
		t.Errorf("without hvid: exit %d, %s", code, &r.stderr)
	}
}

func TestLibvirtHookHandsEverythingOver(t *testing.T) {
	e := &fakeEngine{answer: control.Declared{Warnings: []string{"guard x\nis unavailable"}}}
	r := newRun(hvid(t, up, e), xml(`<hvi:introspection xmlns:hvi="urn:xen-hvi:domain:1.0" mode="enforce" policy="linux-server" require_attach="yes">
	  <hvi:guard name="kernel-text" action="alert"/></hvi:introspection>`), "hvi-hook", "libvirt", "web1", "start", "begin", "-")
	if code := r.do(t); code != 0 {
		t.Fatalf("exit %d: %s", code, &r.stderr)
	}
	d := e.declared[0]
	if d.Policy != "linux-server" || d.RequireAttach != "yes" || !slices.Equal(d.Guards, []control.GuardRequest{{Name: "kernel-text", Action: "alert"}}) {
		t.Errorf("declared %+v", d)
	}
	if want := "hvi: domain \"web1\": guard x is unavailable\n"; r.stderr.String() != want {
		t.Errorf("it says %q, want %q", &r.stderr, want)
	}
}

func TestLibvirtHookNeedsNoInput(t *testing.T) {
	// A pipe that nobody writes to and nobody closes.
	never, hold := io.Pipe()
	defer hold.Close()
	for _, args := range [][]string{
		{"web1", "stopped", "end", "-"}, {"web1", "release", "end", "-"}, {"web1", "started", "begin", "-"},
		{"web1", "restore", "begin", "-"}, {"web1", "future", "begin", "x", "y"}, {"web1", "prepare", "end", "-"},
	} {
		r := newRun("/nonexistent/sock", "", append([]string{"50-hvi"}, args...)...)
		r.host.Stdin = never
		r.host.InputTime = time.Hour
		if code := r.do(t); code != 0 || r.stderr.Len() > 0 {
			t.Errorf("%q: exit %d, %s", args, code, &r.stderr)
		}
	}
}

func TestInputThatNeverEnds(t *testing.T) {
	never, hold := io.Pipe()
	defer hold.Close()
	r := newRun(hvid(t, up, &fakeEngine{}), "", "50-hvi", "web1", "start", "begin", "-")
	r.host.Stdin, r.host.InputTime = never, 200*time.Millisecond
	if code := r.do(t); code != 1 || !strings.Contains(r.stderr.String(), "it does not end within 200ms") {
		t.Errorf("exit %d, %s", code, &r.stderr)
	}
}

func TestWrongArguments(t *testing.T) {
	for _, args := range [][]string{
		{"hvi-hook"}, {"hvi-hook", "libvrt"}, {"50-hvi"}, {"50-hvi", "web1"}, {"50-hvi", "web1", "start", "begin"}, {"50-hvi", "", "start", "begin", "-"},
		{"50-hvi", "web1", "", "begin", "-"}, {"hvi-hook", "vif-gate"}, {"hvi-hook", "vif-gate", ""}, {"hvi-hook", "vif-gate", "vif-bridge"}, {"hvi-vif-bridge"}, {"hvi-hook", "libvirt"},
		{"hvi-hook", "\x1b[2J"},
	} {
		r := newRun("/nonexistent/sock", enforce, args...)
		if code := r.do(t); code != 2 || !strings.Contains(r.stderr.String(), "usage: hvi-hook") {
			t.Errorf("%q: exit %d, %s", args, code, &r.stderr)
		}
	}
	if code := newRun("", "").do(t); code != 2 {
		t.Errorf("no arguments: exit %d", code)
	}
	r := newRun("", "", "hvi-hook", "libvrt")
	r.do(t)
	if !strings.Contains(r.stderr.String(), `did you mean "libvirt"?`) {
		t.Errorf("it says: %s", &r.stderr)
	}
	for _, args := range [][]string{{"hvi-hook", "--help"}, {"hvi-hook", "--version"}} {
		r := newRun("", "", args...)
		if code := r.do(t); code != 0 || r.stdout.Len() == 0 {
			t.Errorf("%q: exit %d, %q", args, code, &r.stdout)
		}
	}
}

func TestHostileNames(t *testing.T) {
	for _, name := range []string{"../../x", "a b;rm -rf /", strings.Repeat("n", 200), "žluť", "a\x1b[31m\nb", "--help", "-"} {
		r := newRun("/nonexistent/sock", enforce, "50-hvi", name, "start", "begin", "-")
		if code := r.do(t); code != 1 || !strings.Contains(r.stderr.String(), policy.Quote(name)) {
			t.Errorf("%q: exit %d, %s", name, code, &r.stderr)
		}
	}
}

func TestPatienceWithARestart(t *testing.T) {
	for _, way := range []string{"comes back", "does not"} {
		t.Run(way, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			socket := filepath.Join(dir, "hvid.sock")
			if err := control.WriteRestartNotice(dir, control.RestartNotice{At: time.Now()}); err != nil {
				t.Fatal(err)
			}
			e := &fakeEngine{}
			r := newRun(socket, "", "50-hvi", "web1", "start", "begin", "-")
			r.host.Patience = 5 * time.Second
			want := 0
			if way == "comes back" {
				// The hook has been found wanting once it has read its input; it may
				// well have asked in vain by the time hvid is there.
				r.host.Stdin = io.MultiReader(strings.NewReader(enforce), readerFunc(func([]byte) (int, error) {
					time.AfterFunc(150*time.Millisecond, func() { serve(t, socket, e) })
					return 0, io.EOF
				}))
			} else {
				r.host.Stdin, r.host.Patience, want = strings.NewReader(enforce), 300*time.Millisecond, 1
			}
			if code := r.do(t); code != want {
				t.Errorf("exit %d: %s", code, &r.stderr)
			}
		})
	}
}

type readerFunc func([]byte) (int, error)

func (f readerFunc) Read(p []byte) (int, error) { return f(p) }

func TestVifGate(t *testing.T) {
	const path = "backend/vif/7/0"
	open := control.GateResult{Open: true, State: control.StateAttached}
	for _, tt := range []struct {
		name, hvid string
		gate       control.GateResult
		xenbus     string
		args       []string
		code       int
		becomes    bool
		asks       string // the domain
		says       string
	}{
		{"attached", up, open, path, []string{"online", "type_if=vif"}, 0, true, "7", ""},
		{"open all the same", up, control.GateResult{Open: true, Reason: "nobody requires it"}, path, []string{"online"}, 0, true, "7", "domain 7 starts: nobody requires it"},
		{"full path", up, open, "/local/domain/0/backend/vif/12/3", []string{"online"}, 0, true, "12", ""},
		{"shut", up, control.GateResult{Required: true, State: control.StateFailed, Reason: "another listener is on the ring", Fix: "stop it"}, path, []string{"online"}, 1, false, "7", "domain 7 is not started: another listener is on the ring; stop it"},
		{"shut without a reason", up, control.GateResult{State: control.StateFailed}, path, []string{"online"}, 1, false, "7", "its state is failed"},
		{"too slow", up, control.GateResult{State: control.StateGated}, path, []string{"online"}, 1, false, "7", "hvid is not attached after 400ms"},
		{"offline", hung, open, path, []string{"offline", "type_if=vif"}, 0, true, "", ""},
		{"emulated half", missing, open, path, []string{"add", "type_if=tap"}, 0, true, "", ""},
		{"remove", missing, open, "", []string{"remove", "type_if=tap"}, 0, true, "", ""},
		{"missing", missing, open, path, []string{"online"}, 1, false, "", "there is no such socket"},
		{"refusing", refusing, open, path, []string{"online"}, 1, false, "", "nobody serves"},
		{"hung", hung, open, path, []string{"online"}, 1, false, "", "hvid does not answer"},
		{"stranger", stranger, open, path, []string{"online"}, 1, false, "", "not started"},
		{"no path", up, open, "", []string{"online"}, 1, false, "", "libxl did not call this script"},
		{"a disk's path", up, open, "backend/vbd/7/51712", []string{"online"}, 1, false, "", "libxl did not call this script"},
		{"no device", up, open, "backend/vif/7", []string{"online"}, 1, false, "", "libxl did not call this script"},
		{"more than a device", up, open, "backend/vif/7/0/../../8/0", []string{"online"}, 1, false, "", "libxl did not call this script"},
		{"no number", up, open, "backend/vif/web1/0", []string{"online"}, 1, false, "", "libxl did not call this script"},
		{"no domain's number", up, open, "backend/vif/32752/0", []string{"online"}, 1, false, "", "libxl did not call this script"},
		{"hostile", up, open, "backend/vif/\x1b[2J/0", []string{"online"}, 1, false, "", "libxl did not call this script"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			e := &fakeEngine{gate: tt.gate}
			r := newRun(hvid(t, tt.hvid, e), "", append([]string{"/etc/xen/scripts/hvi-vif-bridge"}, tt.args...)...)
			r.host.Env = append(r.host.Env, "XENBUS_PATH="+tt.xenbus)
			code := r.do(t)
			if !tt.becomes && code != tt.code {
				t.Errorf("exit %d, want %d: %s", code, tt.code, &r.stderr)
			}
			if !strings.Contains(r.stderr.String(), tt.says) {
				t.Errorf("it does not say %q but: %s", tt.says, &r.stderr)
			}
			var became []string
			if tt.becomes {
				became = append([]string{"/etc/xen/scripts/vif-bridge", "/etc/xen/scripts/vif-bridge"}, tt.args...)
			}
			if !slices.Equal(r.exec, became) {
				t.Errorf("it became %q, want %q", r.exec, became)
			}
			if got := e.asked(); got != tt.asks {
				t.Errorf("it asked for %q, want %q", got, tt.asks)
			}
			// libxl reads the reason there.
			node := "/local/domain/0/" + strings.TrimPrefix(tt.xenbus, "/local/domain/0/")
			told := slices.ContainsFunc(r.store, func(s string) bool {
				return strings.HasPrefix(s, node+"/hotplug-error=hvi: domain ") && strings.Contains(s, tt.says)
			}) && slices.Contains(r.store, node+"/hotplug-status=error")
			if want := !tt.becomes && strings.Contains(tt.says+r.stderr.String(), "is not started"); told != want {
				t.Errorf("xenstore was told %q", r.store)
			}
		})
	}
}

func TestVifGateNames(t *testing.T) {
	e := &fakeEngine{gate: control.GateResult{Open: true}}
	socket := hvid(t, up, e)
	for _, tt := range []struct {
		args []string
		want string
	}{
		{[]string{"hvi-vif-route", "online"}, "/etc/xen/scripts/vif-route"},
		{[]string{"/opt/scripts/hvi-vif-mine", "online"}, "/opt/scripts/vif-mine"},
		{[]string{"hvi-hook", "vif-gate", "vif-nat", "online"}, "/etc/xen/scripts/vif-nat"},
		{[]string{"hvi-hook", "vif-gate", "/opt/x", "online"}, "/opt/x"},
	} {
		r := newRun(socket, "", tt.args...)
		r.host.Env = append(r.host.Env, "XENBUS_PATH=backend/vif/3/0")
		r.do(t)
		if want := []string{tt.want, tt.want, "online"}; !slices.Equal(r.exec, want) {
			t.Errorf("%q became %q, want %q", tt.args, r.exec, want)
		}
	}
}

func TestVifScriptThatIsNotThere(t *testing.T) {
	r := newRun(hvid(t, up, &fakeEngine{gate: control.GateResult{Open: true}}), "", "hvi-vif-none", "online")
	r.host.Env = append(r.host.Env, "XENBUS_PATH=backend/vif/3/0")
	r.host.Exec = func(string, []string, []string) error { return os.ErrNotExist }
	if code := r.do(t); code != 1 || !strings.Contains(r.stderr.String(), `"/etc/xen/scripts/vif-none" cannot be run`) || len(r.store) != 2 {
		t.Errorf("exit %d, %s, xenstore %q", code, &r.stderr, r.store)
	}
}

func TestXenstoreThatFails(t *testing.T) {
	r := newRun("/nonexistent/sock", "", "hvi-vif-bridge", "online")
	r.host.Env = append(r.host.Env, "XENBUS_PATH=backend/vif/3/0")
	r.host.StoreWrite = func(string, string) error { return errors.New("no xenstored") }
	if code := r.do(t); code != 1 || !strings.Contains(r.stderr.String(), "xenstore does not take the reason: no xenstored") {
		t.Errorf("exit %d, %s", code, &r.stderr)
	}
}

func TestDMGate(t *testing.T) {
	root := t.TempDir()
	const qemu = "/usr/libexec/xen-qemu-system-i386"
	install(t, root+qemu)
	open := control.GateResult{Open: true, State: control.StateAttached}
	shut := control.GateResult{State: control.StateFailed, Reason: "no"}
	for _, tt := range []struct {
		name, hvid string
		gate       control.GateResult
		args       []string
		code       int
		becomes    bool
		asks       string
	}{
		{"attached", up, open, []string{"-xen-domid", "7", "-no-shutdown", "-name", "a b"}, 0, true, "7"},
		{"shut", up, shut, []string{"-xen-domid", "7"}, 1, false, "7"},
		{"too slow", up, control.GateResult{State: control.StateGated}, []string{"-xen-domid", "7"}, 1, false, "7"},
		{"missing", missing, open, []string{"-xen-domid", "7"}, 1, false, ""},
		{"hung", hung, open, []string{"-xen-domid", "7"}, 1, false, ""},
		{"refusing", refusing, open, []string{"-xen-domid", "7"}, 1, false, ""},
		{"capabilities", hung, open, []string{"-help"}, 0, true, ""},
		{"version", missing, open, []string{"--version"}, 0, true, ""},
		{"nothing", missing, open, nil, 0, true, ""},
		{"machines", missing, open, []string{"-M", "?", "-xen-domid-restrict"}, 0, true, ""},
		{"back ends of a PV domain", missing, open, []string{"-xen-domid", "7", "-xen-attach", "-M", "xenpv"}, 0, true, ""},
		{"back ends of dom0", missing, open, []string{"-xen-domid", "0"}, 0, true, ""},
		{"no number", up, open, []string{"-xen-domid", "web1"}, 2, false, ""},
		{"no value", up, open, []string{"-xen-domid"}, 2, false, ""},
		{"negative", up, open, []string{"-xen-domid", "-1"}, 2, false, ""},
		{"too large", up, open, []string{"-xen-domid", "65536"}, 2, false, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			e := &fakeEngine{gate: tt.gate}
			r := newRun(hvid(t, tt.hvid, e), "", append([]string{"/usr/libexec/hvi/dm-gate"}, tt.args...)...)
			r.host.Root = root
			code := r.do(t)
			if !tt.becomes && code != tt.code {
				t.Errorf("exit %d, want %d: %s", code, tt.code, &r.stderr)
			}
			var became []string
			if tt.becomes {
				became = append([]string{root + qemu, root + qemu}, tt.args...)
			}
			if !slices.Equal(r.exec, became) {
				t.Errorf("it became %q, want %q", r.exec, became)
			}
			if got := e.asked(); got != tt.asks {
				t.Errorf("it asked for %q, want %q", got, tt.asks)
			}
		})
	}
}

func install(t *testing.T, path string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, nil, 0o755); err != nil {
		t.Fatal(err)
	}
}

func TestDeviceModelIsFound(t *testing.T) {
	root := t.TempDir()
	h := Host{Root: root, Stderr: io.Discard}
	if m, ok := h.deviceModel(); ok {
		t.Errorf("found %s", m)
	}
	r := newRun("", "", "dm-gate", "-help")
	r.host.Root = root
	if code := r.do(t); code != 1 || !strings.Contains(r.stderr.String(), "set HVI_DM") {
		t.Errorf("exit %d, %s", code, &r.stderr)
	}
	// Each is preferred over those before it.
	for _, path := range []string{
		"/usr/bin/qemu-system-i386", "/usr/lib/xen/bin/qemu-system-i386", "/usr/libexec/xen-qemu-system-i386",
		"/usr/lib/xen-4.14/bin/qemu-system-i386", "/usr/lib/xen-4.17/bin/qemu-system-i386",
	} {
		install(t, root+path)
		if m, _ := h.deviceModel(); m != root+path {
			t.Errorf("found %s, want %s", m, path)
		}
	}
	for name, n := range map[string]int{"major": 4, "minor": 14} {
		install(t, root+"/sys/hypervisor/version/"+name)
		if err := os.WriteFile(root+"/sys/hypervisor/version/"+name, fmt.Appendln(nil, n), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if m, _ := h.deviceModel(); m != root+"/usr/lib/xen-4.14/bin/qemu-system-i386" {
		t.Errorf("found %s, and Xen 4.14 runs", m)
	}
	h.Env = []string{"HVI_DM=/opt/a", "HVI_DM=/opt/qemu"}
	if m, _ := h.deviceModel(); m != "/opt/qemu" {
		t.Errorf("found %s", m)
	}
}

func FuzzVifDomain(f *testing.F) {
	f.Add("backend/vif/1/0")
	f.Add("/local/domain/0/backend/vif/65535/0")
	f.Add("/backend/vif//backend/vif/1/0")
	f.Fuzz(func(t *testing.T, path string) {
		if dom, ok := vifDomain(path); ok {
			if again, ok := domainID(dom); !ok || again != dom || !strings.Contains(path, "backend/vif/") {
				t.Errorf("%q gives %q", path, dom)
			}
		}
	})
}

// TestSocketOfSettings finds hvid where its settings say that it listens.
func TestSocketOfSettings(t *testing.T) {
	const elsewhere = "/run/elsewhere/s.sock"
	for text, want := range map[string]string{
		"":                                     control.DefaultSocket,
		"socket = \"/run/elsewhere/s.sock\"\n": elsewhere,
		"  socket='/run/elsewhere/s.sock' # mine":                                              elsewhere,
		"# socket = \"/x\"\nlog_level = \"info\"\nsocket = \"/run/elsewhere/s.sock\" # mine\n": elsewhere,
		"socket = \"/run/else\\u0077here/s.sock\"\n":                                           elsewhere,
		"socket = 7\n":                                     control.DefaultSocket, // hvid does not start with it
		"socket = \"/run/elsewhere\n":                      control.DefaultSocket,
		"socket = '/run/elsewhere\n":                       control.DefaultSocket,
		"socket = \"elsewhere\"\n":                         control.DefaultSocket,
		"[metrics]\nsocket = \"/run/elsewhere/s.sock\"\n":  control.DefaultSocket,
		strings.Repeat("x", 1<<20) + "\nsocket = \"/x\"\n": control.DefaultSocket,
	} {
		h := Host{Root: t.TempDir()}
		if text != "" {
			dir := filepath.Join(h.Root, "etc/hvi")
			if err := os.MkdirAll(dir, 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(filepath.Join(dir, "hvid.toml"), []byte(text), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		if got := h.socket(); got != want {
			t.Errorf("%.80q: %s, want %s", text, got, want)
		}
		h.Env = []string{"HVI_SOCKET=/x"}
		if got := h.socket(); got != "/x" {
			t.Errorf("%.80q: the environment goes first: %s", text, got)
		}
	}
}
