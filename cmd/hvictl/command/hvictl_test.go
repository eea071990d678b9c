package command

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/spf13/cobra"

	"github.com/xen-hvi/hvi/cmd/hostcheck"
	"github.com/xen-hvi/hvi/control"
	"github.com/xen-hvi/hvi/engine/inspect"
	"github.com/xen-hvi/hvi/engine/journal"
	"github.com/xen-hvi/hvi/engine/policy"
	"github.com/xen-hvi/hvi/engine/printable"
	"github.com/xen-hvi/hvi/engine/x86"
)

var update = flag.Bool("update", false, "rewrite the golden files")

var noon = time.Date(2026, 5, 9, 12, 0, 0, 0, time.UTC)

// fakeEngine answers as an engine with a few domains.
type fakeEngine struct {
	domains []control.DomainStatus
	doctor  control.DoctorReport
	err     error
	asked   string

	gate   control.GateResult
	onGate func(control.DomainRef)
	// onDomains is told how often Domains was asked for.
	onDomains func(int)
	looks     int
	policy    control.PolicyReport
	kept      []control.Declaration
	// exceptions are those there are.
	exceptions []control.Exception
	// text replaces what a guest chose, if it is not empty.
	text string
}

func (e *fakeEngine) Version(context.Context) (control.Version, error) {
	return control.Version{
		Build: control.Build{Version: "0.1.0", Revision: "abcdef", Go: "go1.26.8"}, API: "v1", PID: 812, Run: "69fe2b1d7c3a",
		StartedAt: noon.Add(-50 * time.Hour), Xen: "4.17.4",
	}, e.err
}

func (e *fakeEngine) Domains(context.Context) ([]control.DomainStatus, error) {
	if e.looks++; e.onDomains != nil {
		e.onDomains(e.looks)
	}
	return e.domains, nil
}

func (e *fakeEngine) get(dom control.DomainRef) (control.DomainStatus, error) {
	for _, d := range e.domains {
		if d.UUID == dom.UUID {
			return d, e.err
		}
	}
	return control.DomainStatus{}, &control.Problem{Code: control.CodeNoSuchDomain, What: "gone"}
}

func (e *fakeEngine) Domain(_ context.Context, dom control.DomainRef) (control.DomainStatus, error) {
	return e.get(dom)
}

func (e *fakeEngine) Attach(_ context.Context, dom control.DomainRef, req control.AttachRequest) (control.DomainStatus, error) {
	e.asked = fmt.Sprintf("attach %d %+v", dom.ID, req)
	return e.get(dom)
}

func (e *fakeEngine) Detach(_ context.Context, dom control.DomainRef) (control.DomainStatus, error) {
	e.asked = fmt.Sprintf("detach %d", dom.ID)
	d, err := e.get(dom)
	d.State = control.StateDetached
	return d, err
}

func (e *fakeEngine) Resume(_ context.Context, dom control.DomainRef) (control.DomainStatus, error) {
	e.asked = fmt.Sprintf("resume %d", dom.ID)
	return e.get(dom)
}

func (e *fakeEngine) SetBreakpoint(_ context.Context, dom control.DomainRef, symbol string, on bool) (control.DomainStatus, error) {
	e.asked = fmt.Sprintf("breakpoint %d %s %v", dom.ID, symbol, on)
	d, err := e.get(dom)
	if on {
		d.Breakpoints = append(d.Breakpoints, control.Breakpoint{Symbol: symbol, Address: 0xffffffff81234560, Since: noon})
	}
	return d, err
}

func (e *fakeEngine) SwitchView(_ context.Context, dom control.DomainRef, view string, by journal.Peer) (control.DomainStatus, error) {
	e.asked = fmt.Sprintf("switch %d %s", dom.ID, view)
	d, err := e.get(dom)
	d.Views = slices.Clone(d.Views)
	for i := range d.Views {
		d.Views[i].Current = d.Views[i].Name == view
	}
	return d, err
}

func (e *fakeEngine) Doctor(context.Context) (control.DoctorReport, error) { return e.doctor, e.err }

func (e *fakeEngine) Declare(context.Context, string, control.DeclareRequest) (control.Declared, error) {
	return control.Declared{}, errors.New("hvictl declares nothing")
}

func (e *fakeEngine) Declarations(context.Context) ([]control.Declaration, error) {
	return e.kept, e.err
}

func (e *fakeEngine) Import(_ context.Context, d control.Declaration) (control.Declaration, error) {
	e.kept = append(e.kept, d)
	return d, e.err
}

func (e *fakeEngine) Gate(_ context.Context, dom control.DomainRef, req control.GateRequest) (control.GateResult, error) {
	e.asked = fmt.Sprintf("gate %s %+v", dom.Ref, req)
	if e.onGate != nil {
		e.onGate(dom)
	}
	return e.gate, e.err
}

func (e *fakeEngine) Policy(_ context.Context, dom control.DomainRef) (control.PolicyReport, error) {
	e.asked = "policy " + dom.Ref
	return e.policy, e.err
}

func (e *fakeEngine) SetPolicy(_ context.Context, dom control.DomainRef, req control.PolicyRequest) (control.PolicyReport, error) {
	e.asked = fmt.Sprintf("set %s %+v", dom.Ref, req)
	return e.policy, e.err
}

func (e *fakeEngine) ClearPolicy(_ context.Context, dom control.DomainRef, where string) (control.PolicyReport, error) {
	e.asked = "clear " + dom.Ref + " " + where
	return e.policy, e.err
}

func (e *fakeEngine) Profile(_ context.Context, dom control.DomainRef) ([]byte, error) {
	e.asked = fmt.Sprintf("profile %d", dom.ID)
	return []byte(`{"metadata":{}}`), e.err
}

func (e *fakeEngine) Guest(_ context.Context, dom control.DomainRef, q inspect.Question, args inspect.Args) (any, error) {
	e.asked = fmt.Sprintf("guest %d %s %+v", dom.ID, q.Kind, args)
	if e.err != nil {
		return nil, e.err
	}
	return q.Ask(guestOf(e.text), args)
}

func fakeDomains() []control.DomainStatus {
	pc := x86.VirtAddr(0x1000000)
	return []control.DomainStatus{
		{ID: 0, Name: "Domain-0", UUID: "00000000-0000-0000-0000-000000000000", Type: "PV", State: control.StateUnprotected, Tier: control.TierNone, TierReason: "a PV domain"},
		{
			ID: 7, Name: "web1", UUID: "a2b0f0f4-6f0e-4f9b-8f4c-0c8c6d1e2f30", Type: "PVH", State: control.StateProtecting, Mode: "enforce", Tier: control.TierViews,
			GuestKernel: &control.GuestKernel{Release: "6.1.0-35-amd64", Banner: "Linux version 6.1.0-35-amd64", Base: 0xffffffff81000000, SymbolCount: 123456},
			Guards: []control.GuardStatus{
				{Name: "kernel-text", Action: "block", State: control.GuardArmed, Events: 2, Blocked: 2, Passed: 4096, Decisions: 4098, Busy: 6 * time.Millisecond},
				{Name: "syscall-entry", Action: "alert", State: control.GuardArmed, Events: 1},
			},
			AttachedAt: noon.Add(-3*time.Hour - 12*time.Minute), AttachPC: &pc, PolicySource: "xl.cfg:/etc/xen/web1.cfg",
			Counters: control.Counters{RingEvents: 4099, Alerted: 1, Blocked: 2, Stepped: 4096, Restored: 3},
			Views: []control.View{
				{ID: 0, Restricted: []control.RestrictedFrames{}},
				{ID: 1, Current: true, Restricted: []control.RestrictedFrames{
					{First: 0x1000, Count: 3586, Access: "r-x", Guard: "kernel-text"},
				}},
			},
		},
		{
			ID: 8, Name: printable.Escape("db \x1b[31m"), UUID: "b2b0f0f4-6f0e-4f9b-8f4c-0c8c6d1e2f30", Type: "HVM", State: control.StateDegraded, Mode: "enforce",
			Tier: control.TierRegisters, TierReason: "the processor is not from Intel",
			Guards: []control.GuardStatus{
				{Name: "kernel-text", Action: "block", State: control.GuardUnavailable, Reason: "needs tier access"},
				{Name: "syscall-entry", Action: "block", State: control.GuardArmed},
			},
			AttachedAt: noon.Add(-42 * time.Second),
		},
		{
			ID: 12, Name: printable.Escape("naïve-服务器"), UUID: "c2b0f0f4-6f0e-4f9b-8f4c-0c8c6d1e2f30", Type: "PVH", State: control.StateFailed, Mode: "observe", Tier: control.TierAccess,
			TierReason: "Xen's command line lacks altp2m=1",
			Failure:    &control.Failure{Stage: "attach", Expected: "a free monitor ring", Got: "EBUSY", Fix: "stop the other listener of this domain"},
		},
		{
			ID: 9, Name: "hidden", UUID: "a9b0f0f4-6f0e-4f9b-8f4c-0c8c6d1e2f30", Type: "PVH", State: control.StateProtecting, Mode: "observe", Tier: control.TierViews,
			Counters: control.Counters{ShadowReads: 3, ShadowWrites: 1, Concealed: 2},
			Breakpoints: []control.Breakpoint{
				{Symbol: "do_filp_open", Address: 0xffffffff81234560, Since: noon.Add(-time.Minute), Hits: 10000},
				{Symbol: "commit_creds+0x5", Address: 0xffffffff810abcd5, Since: noon.Add(-time.Hour)},
			},
			Views: []control.View{
				{ID: 0},
				{ID: 1, Current: true, Restricted: []control.RestrictedFrames{{First: 0x1000, Count: 3586, Access: "r-x", Guard: "kernel-text"}},
					Shadows: []control.ShadowPage{{Frame: 0x1234, Shadow: 0x100000, Breakpoints: 1}, {Frame: 0x10ab, Shadow: 0x100001, Breakpoints: 1}}},
				{ID: 2, Steps: true, Restricted: []control.RestrictedFrames{{First: 0x1000, Count: 3586, Access: "r-x", Guard: "kernel-text"}}},
			},
		},
		{
			ID: 10, Name: "trapped", UUID: "b9b0f0f4-6f0e-4f9b-8f4c-0c8c6d1e2f30", Type: "PVH", State: control.StateProtecting, Mode: "observe", Tier: control.TierAccess,
			Breakpoints: []control.Breakpoint{{Symbol: "ksys_sync", Address: 0xffffffff81234560, Since: noon.Add(-time.Minute), Hits: 20, Rests: 1}},
			Views: []control.View{{
				ID: 0, Current: true, Restricted: []control.RestrictedFrames{{First: 0x1000, Count: 3586, Access: "r-x", Guard: "kernel-text"}},
				Traps: []control.TrappedPage{{Frame: 0x1234, Breakpoints: 1, Instructions: 10300, Rests: 1}},
			}},
		},
		{ID: 13, Name: "twin", UUID: "d2b0f0f4-6f0e-4f9b-8f4c-0c8c6d1e2f30", Type: "PVH", State: control.StateUnprotected},
		{ID: 14, Name: "twin", UUID: "e2b0f0f4-6f0e-4f9b-8f4c-0c8c6d1e2f30", Type: "PVH", State: control.StateUnprotected},
	}
}

func ptr[T any](v T) *T { return &v }

// fakeEvents are a blocked write to kernel text and an alert about LSTAR.
func fakeEvents() []journal.Record {
	web1 := journal.Domain{UUID: "a2b0f0f4-6f0e-4f9b-8f4c-0c8c6d1e2f30", Name: "web1", ID: 7}
	return []journal.Record{
		{
			Time: noon.Add(-time.Hour), Domain: web1, VCPU: 1, Guard: "kernel-text", Action: journal.Blocked, Mode: "enforce",
			RIP:     journal.Location{Addr: 0xffffffffc0001024, Symbol: "evil_init", Offset: 0x24, Module: "evil"},
			Process: journal.Process{PID: 412, TGID: 412, Comm: printable.Escape("ins\x1bmod"), Task: 0xffff888003a40000},
			Target: journal.Target{Kind: journal.TargetMemory, Memory: &journal.MemoryTarget{
				Location: journal.Location{Addr: 0xffffffff81002012, Symbol: "do_syscall_64", Offset: 0x12}, Phys: 0x1002012, GFN: 0x1002,
			}},
			Before: journal.Bytes([]byte{0x0f, 0x1f}), Attempted: journal.Bytes([]byte{0x90, 0x90}), Detail: journal.Detail{Access: "w", CPL: ptr(uint8(0))},
		},
		{
			Time: noon.Add(-time.Minute), Domain: web1, Guard: "syscall-entry", Action: journal.Alerted, Mode: "enforce",
			RIP: journal.Location{Addr: 0xffffffffc0001040}, Process: journal.Process{Unknown: "no task was found"},
			Target: journal.Target{Kind: journal.TargetMSR, MSR: &journal.MSRTarget{Index: 0xc0000082, Name: "LSTAR"}},
			Before: journal.Number(0xffffffff81800000), Attempted: journal.Number(0xffffffffc0002000),
		},
	}
}

// host is a hvid with the fake engine on a real socket, and hvictl beside it.
type host struct {
	engine  *fakeEngine
	journal *journal.Journal
	server  *control.Server
	socket  string
}

func newHost(t *testing.T) *host {
	t.Helper()
	j, err := journal.Open(journal.Options{Dir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	h := &host{engine: &fakeEngine{domains: fakeDomains()}, journal: j, socket: filepath.Join(t.TempDir(), "hvid.sock")}
	h.server = control.NewServer(control.ServerOptions{Engine: h.engine, Journal: j})
	l, err := control.Listen(h.socket)
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 1)
	go func() { served <- h.server.Serve(l) }()
	t.Cleanup(func() {
		if err := h.server.Shutdown(context.Background()); err != nil {
			t.Errorf("shutdown: %v", err)
		}
		if err := <-served; err != nil {
			t.Errorf("serve: %v", err)
		}
		if err := j.Close(); err != nil {
			t.Errorf("journal: %v", err)
		}
	})
	return h
}

func newApp(out, errOut io.Writer) *app {
	return &app{out: out, errOut: errOut, now: func() time.Time { return noon }, zone: time.UTC, host: hostcheck.Options{Root: "/nonexistent"}, xl: "/nonexistent/xl"}
}

// hvictl runs a command line against a socket.
func hvictl(t *testing.T, socket string, args ...string) (stdout, stderr string, code int) {
	t.Helper()
	var out, errOut bytes.Buffer
	code = newApp(&out, &errOut).run(t.Context(), append([]string{"--socket", socket}, args...))
	return out.String(), errOut.String(), code
}

// golden compares with a file in testdata; -update writes it.
func golden(t *testing.T, name, got string) {
	t.Helper()
	file := filepath.Join("testdata", name+".golden")
	if *update {
		if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Errorf("%s is now\n%s\nwant\n%s", name, got, want)
	}
}

func TestOutput(t *testing.T) {
	h := newHost(t)
	h.engine.doctor = control.DoctorReport{
		Checks: []control.Check{
			{Name: "xen", Status: control.CheckOK, Detail: "release 4.17.4 is known"},
			{Name: "altp2m", Status: control.CheckMissing, Detail: "Xen's command line lacks altp2m=1", Fix: "add it to GRUB_CMDLINE_XEN and reboot"},
			{Name: "paging pool", Status: control.CheckWarn, Detail: "nearly full", Fix: "raise it"},
		},
		Domains: []control.DomainReport{{ID: 7, Name: "web1", Tier: control.TierAccess, TierReason: "no altp2m", Checks: []control.Check{{Name: "ring", Status: control.CheckOK, Detail: "ours"}}}},
	}
	for _, tc := range []struct {
		name string
		args []string
		code int
	}{
		{"list", []string{"list"}, 0},
		{"list-json", []string{"list", "-o", "json"}, 0},
		{"status", []string{"status"}, 0},
		{"status-json", []string{"status", "-o", "json"}, 0},
		{"status-protecting", []string{"status", "web1"}, 0},
		{"status-protecting-json", []string{"status", "web1", "-o", "json"}, 0},
		{"status-degraded", []string{"status", "8"}, 0},
		{"status-failed", []string{"status", "naïve-服务器"}, 0},
		{"status-unprotected", []string{"status", "Domain-0"}, 0},
		{"views", []string{"views", "web1"}, 0},
		{"views-json", []string{"views", "web1", "-o", "json"}, 0},
		{"views-none", []string{"views", "8"}, 0},
		{"views-breakpoints", []string{"views", "hidden"}, 0},
		{"breakpoint-set", []string{"breakpoint", "set", "web1", "do_filp_open"}, 0},
		{"breakpoint-list", []string{"breakpoint", "list", "hidden"}, 0},
		{"breakpoint-list-access", []string{"breakpoint", "list", "trapped"}, 0},
		{"views-access", []string{"views", "trapped"}, 0},
		{"breakpoint-list-json", []string{"breakpoint", "list", "hidden", "-o", "json"}, 0},
		{"breakpoint-clear", []string{"breakpoint", "clear", "web1", "do_filp_open"}, 0},
		{"attach", []string{"attach", "web1"}, 0},
		{"detach", []string{"detach", "web1"}, 0},
		{"resume", []string{"resume", "web1"}, 0},
		{"detach-json", []string{"detach", "web1", "-o", "json"}, 0},
		{"doctor", []string{"doctor"}, exitDoctor},
		{"doctor-json", []string{"doctor", "-o", "json"}, exitDoctor},
		{"exit-codes", []string{"help", "exit-codes"}, 0},
	} {
		t.Run(tc.name, func(t *testing.T) {
			out, errOut, code := hvictl(t, h.socket, tc.args...)
			if code != tc.code || errOut != "" {
				t.Errorf("exit code %d, want %d; stderr %q", code, tc.code, errOut)
			}
			golden(t, tc.name, out)
			if strings.ContainsRune(out, '\x1b') {
				t.Error("the output has escape characters")
			}
		})
	}
}

// TestDeclaredViews shows the views of a policy, switches, and completes their names.
func TestDeclaredViews(t *testing.T) {
	h := newHost(t)
	text := control.RestrictedFrames{First: 0x1000, Count: 3586, Access: "r-x", Guard: "kernel-text"}
	rodata := control.RestrictedFrames{First: 0x2000, Count: 1024, Access: "r-x", Guard: "kernel-rodata"}
	h.engine.domains = append(h.engine.domains, control.DomainStatus{
		ID: 21, Name: "twofold", UUID: "e1b0f0f4-6f0e-4f9b-8f4c-0c8c6d1e2f30", Type: "PVH", State: control.StateProtecting, Mode: "enforce", Tier: control.TierViews,
		Guards: []control.GuardStatus{
			{Name: "kernel-text", Action: "block", State: control.GuardArmed},
			{Name: "syscall-entry", Action: "block", State: control.GuardArmed},
		},
		Views: []control.View{
			{ID: 0},
			{ID: 1, Name: "strict", Current: true, Switch: "admin", Guards: []string{"kernel-text", "kernel-rodata"}, Restricted: []control.RestrictedFrames{text, rodata}},
			{ID: 2, Name: "maintenance", Switch: "admin", Guards: []string{"kernel-rodata"}, Restricted: []control.RestrictedFrames{rodata}},
			{ID: 3, Name: "open", Switch: "nobody"},
		},
	})
	for _, tc := range []struct {
		name string
		args []string
	}{
		{"views-declared", []string{"views", "twofold"}},
		{"views-switch", []string{"views", "twofold", "--switch", "maintenance"}},
		{"views-switch-json", []string{"views", "twofold", "--switch", "maintenance", "-o", "json"}},
	} {
		out, errOut, code := hvictl(t, h.socket, tc.args...)
		if code != 0 || errOut != "" {
			t.Errorf("%v: exit code %d, stderr %q", tc.args, code, errOut)
		}
		golden(t, tc.name, out)
	}
	if h.engine.asked != "switch 21 maintenance" {
		t.Errorf("asked: %s", h.engine.asked)
	}
	if _, errOut, code := hvictl(t, h.socket, "views", "twofold", "--switch", "Strict"); code != 2 || !strings.Contains(errOut, `view name "Strict" has a character`) {
		t.Errorf("exit code %d, %s", code, errOut)
	}
	out, _, _ := hvictl(t, h.socket, "__complete", "views", "twofold", "--switch", "")
	if !strings.HasPrefix(out, "strict\nmaintenance\n:") {
		t.Errorf("completed by %q", out)
	}
}

// withoutRun replaces the identity of the run, which is new each time.
func withoutRun(h *host, s string) string {
	return strings.ReplaceAll(s, h.journal.Run(), "0123456789ab")
}

func TestEventsOutput(t *testing.T) {
	h := newHost(t)
	for _, r := range fakeEvents() {
		if _, err := h.journal.Append(r); err != nil {
			t.Fatal(err)
		}
	}
	for _, tc := range []struct {
		name string
		args []string
	}{
		{"events", nil},
		{"events-json", []string{"-o", "json"}},
		{"events-newest", []string{"-n", "1"}},
		{"events", []string{"-n", "0"}},
		{"events", []string{"--since", "2h"}},
		{"events", []string{"--since", "7d"}},
		{"events-newest", []string{"--since", "30m"}},
		{"events-newest", []string{"--since", "2026-05-09T11:59:00Z"}},
		{"events-newest", []string{"--since", "2026-05-09 11:30"}},
		{"events", []string{"--since", "2026-05-09"}},
		{"events-newest", []string{"--guard", "syscall-entry", "--domain", "7"}},
		{"events-none", []string{"--domain", "db"}},
	} {
		out, errOut, code := hvictl(t, h.socket, append([]string{"events"}, tc.args...)...)
		if code != 0 || errOut != "" {
			t.Errorf("%v: exit code %d, stderr %q", tc.args, code, errOut)
		}
		golden(t, tc.name, withoutRun(h, out))
	}
}

// lineWriter hands on each line as it is written.
type lineWriter struct{ lines chan string }

func (w lineWriter) Write(b []byte) (int, error) {
	for line := range strings.Lines(string(b)) {
		w.lines <- line
	}
	return len(b), nil
}

func TestEventsFollow(t *testing.T) {
	h := newHost(t)
	records := fakeEvents()
	if _, err := h.journal.Append(records[0]); err != nil {
		t.Fatal(err)
	}
	follow := func(ctx context.Context, args ...string) (chan string, chan int, *bytes.Buffer) {
		lines, code, errOut := make(chan string, 16), make(chan int, 1), new(bytes.Buffer)
		a := newApp(lineWriter{lines}, errOut)
		go func() { code <- a.run(ctx, append([]string{"--socket", h.socket, "events", "-f"}, args...)) }()
		return lines, code, errOut
	}
	ctx, cancel := context.WithCancel(t.Context())
	lines, code, errOut := follow(ctx)
	jsonLines, jsonCode, jsonErr := follow(t.Context(), "-o", "json", "-n", "0")
	for _, l := range []chan string{lines, jsonLines} {
		if got := <-l; !strings.Contains(got, "kernel-text") {
			t.Errorf("the first line is %q", got)
		}
	}
	if _, err := h.journal.Append(records[1]); err != nil {
		t.Fatal(err)
	}
	if got := <-lines; !strings.Contains(got, "syscall-entry") {
		t.Errorf("the second line is %q", got)
	}
	var rec journal.Record
	if err := json.Unmarshal([]byte(<-jsonLines), &rec); err != nil || rec.Guard != "syscall-entry" {
		t.Errorf("the second JSON line is %+v (%v)", rec, err)
	}
	// The user ends one, hvid the other.
	cancel()
	if got := <-code; got != exitOK || errOut.Len() > 0 {
		t.Errorf("interrupted: exit code %d, stderr %q", got, errOut)
	}
	if err := h.server.Shutdown(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got := <-jsonCode; got != exitUnreachable || !strings.Contains(jsonErr.String(), "hvid ended the stream") {
		t.Errorf("ended by hvid: exit code %d, stderr %q", got, jsonErr)
	}
}

func TestMissedIsShown(t *testing.T) {
	var out bytes.Buffer
	a := newApp(&out, io.Discard)
	a.format = formatTable
	for _, m := range []journal.Missed{{Count: 12, Reason: "the reader was too slow"}, {Count: 1, Reason: "x\x1b"}, {Reason: "gone"}} {
		if err := a.event(journal.Item{Missed: &m}); err != nil {
			t.Fatal(err)
		}
	}
	a.format = formatJSON
	if err := a.event(journal.Item{Missed: &journal.Missed{Count: 3, Reason: "slow"}}); err != nil {
		t.Fatal(err)
	}
	const want = "-- 12 events missed: the reader was too slow --\n-- 1 event missed: x\\x1b --\n-- an unknown number of events missed: gone --\n" +
		`{"type":"missed","missed":3,"reason":"slow"}` + "\n"
	if out.String() != want {
		t.Errorf("got\n%s\nwant\n%s", out.String(), want)
	}
}

// TestExitCodes runs hvictl for each code and looks at what people and programs
// are told.
func TestExitCodes(t *testing.T) {
	h := newHost(t)
	none := filepath.Join(t.TempDir(), "none.sock")
	problem := func(code control.Code) error {
		return &control.Problem{Code: code, What: "told so", Where: "there", Fix: "do this"}
	}
	for _, tc := range []struct {
		name   string
		socket string
		args   []string
		err    error
		code   int
		says   string
	}{
		{"done", h.socket, []string{"list"}, nil, exitOK, ""},
		{"no arguments", h.socket, nil, nil, exitOK, ""},
		{"help", none, []string{"help", "status"}, nil, exitOK, ""},
		{"version without hvid", none, []string{"version"}, nil, exitOK, ""},
		{"completion", none, []string{"completion", "bash"}, nil, exitOK, ""},

		{"internal", h.socket, []string{"status", "7"}, errors.New("boom"), exitFailure, "boom"},
		{"timeout", h.socket, []string{"attach", "7"}, problem(control.CodeTimeout), exitFailure, "told so"},
		{"code of a later release", h.socket, []string{"attach", "7"}, problem("later"), exitFailure, "told so"},

		{"unknown command", h.socket, []string{"statsu"}, nil, exitUsage, `did you mean "status"?`},
		{"unknown policy command", h.socket, []string{"policy", "chek"}, nil, exitUsage, `did you mean "check"?`},
		{"help on a command of a command", none, []string{"help", "policy", "check"}, nil, exitOK, ""},
		{"policy alone", none, []string{"policy"}, nil, exitOK, ""},
		{"unknown flag", h.socket, []string{"events", "--folow"}, nil, exitUsage, "did you mean --follow?"},
		{"unknown flag, nothing near", h.socket, []string{"list", "--zzzzzz"}, nil, exitUsage, `unknown flag "--zzzzzz"`},
		{"unknown short flag", h.socket, []string{"list", "-z"}, nil, exitUsage, "'z'"},
		{"unknown format", h.socket, []string{"list", "-o", "jsn"}, nil, exitUsage, `did you mean "json"?`},
		{"unknown topic", h.socket, []string{"help", "exitcodes"}, nil, exitUsage, `did you mean "exit-codes"?`},
		{"too few", h.socket, []string{"attach"}, nil, exitUsage, "needs one domain"},
		{"too many", h.socket, []string{"status", "a", "b"}, nil, exitUsage, `not "b" too`},
		{"none wanted", h.socket, []string{"list", "x"}, nil, exitUsage, "no arguments"},
		{"unknown mode", h.socket, []string{"attach", "7", "--mode", "enforced"}, nil, exitUsage, `did you mean "enforce"?`},
		{"empty mode", h.socket, []string{"attach", "7", "--mode", ""}, nil, exitUsage, "mode"},
		{"mode off", h.socket, []string{"attach", "7", "--mode", "off"}, nil, exitUsage, "hvictl detach"},
		{"unknown guard", h.socket, []string{"attach", "7", "--mode", "enforce", "--guard", "kernel-txt=block"}, nil, exitUsage, `did you mean "kernel-text"?`},
		{"guard without mode", h.socket, []string{"attach", "7", "--guard", "kernel-text=block"}, nil, exitUsage, "mode"},
		{"guard without action", h.socket, []string{"attach", "7", "--mode", "enforce", "--guard", "kernel-text"}, nil, exitUsage, "name=action"},
		{"bad since", h.socket, []string{"events", "--since", "soon"}, nil, exitUsage, `"soon"`},
		{"empty since", h.socket, []string{"events", "--since", ""}, nil, exitUsage, "no time"},
		{"since the future", h.socket, []string{"events", "--since", "-5m"}, nil, exitUsage, "no time"},
		{"bad count", h.socket, []string{"events", "-n", "-1"}, nil, exitUsage, "out of range"},
		{"huge count", h.socket, []string{"events", "-n", "10001"}, nil, exitUsage, "out of range"},
		{"hvid finds it bad", h.socket, []string{"attach", "7"}, problem(control.CodeBadRequest), exitUsage, "told so"},

		{"no hvid", none, []string{"status"}, nil, exitUnreachable, "systemctl start hvid"},
		{"no hvid, events", none, []string{"events", "-f"}, nil, exitUnreachable, "systemctl start hvid"},
		{"hvid stops", h.socket, []string{"attach", "7"}, problem(control.CodeUnavailable), exitUnreachable, "told so"},

		{"no domain", h.socket, []string{"status", "wbe1"}, nil, exitNoDomain, `did you mean "web1"?`},
		{"no domain near", h.socket, []string{"detach", "zzzzzzzz"}, nil, exitNoDomain, "known: Domain-0 (0), web1 (7)"},
		{"strange name", h.socket, []string{"attach", "../../x\x1b[31m"}, nil, exitNoDomain, `"../../x\x1b[31m"`},
		{"permission", h.socket, []string{"detach", "7"}, problem(control.CodePermission), exitPermission, "do this"},

		{"ambiguous", h.socket, []string{"status", "twin"}, nil, exitRefused, "twin (14) e2b0f0f4-6f0e-4f9b-8f4c-0c8c6d1e2f30"},
		{"conflict", h.socket, []string{"attach", "7"}, problem(control.CodeConflict), exitRefused, "there"},
		{"not possible", h.socket, []string{"attach", "7"}, problem(control.CodeNotPossible), exitRefused, "told so"},
		{"busy", h.socket, []string{"events"}, nil, exitOK, ""},
		{"attach failed", h.socket, []string{"attach", "12"}, nil, exitRefused, "stop the other listener"},

		{"doctor without hvid", none, []string{"doctor"}, nil, exitDoctor, ""},
		{"doctor, hvid fails", h.socket, []string{"doctor"}, errors.New("boom"), exitDoctor, ""},
		{"doctor with warnings", h.socket, []string{"doctor"}, nil, exitOK, ""},
		{"doctor --warnings", h.socket, []string{"doctor", "--warnings"}, nil, exitWarnings, ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			h.engine.err = tc.err
			h.engine.doctor = control.DoctorReport{Checks: []control.Check{{Name: "x", Status: control.CheckWarn}, {Name: "y", Status: control.CheckInfo}}}
			_, errOut, code := hvictl(t, tc.socket, tc.args...)
			if code != tc.code || !strings.Contains(errOut, tc.says) || (tc.says == "") != (errOut == "") {
				t.Errorf("exit code %d, want %d; stderr, to mention %q:\n%s", code, tc.code, tc.says, errOut)
			}
			if strings.ContainsRune(errOut, '\x1b') {
				t.Errorf("stderr has escape characters: %q", errOut)
			}
			if tc.code == exitOK || tc.code == exitDoctor || tc.code == exitWarnings || tc.name == "unknown format" {
				return
			}
			// The same for programs.
			_, errOut, code = hvictl(t, tc.socket, append([]string{"-o", "json"}, tc.args...)...)
			var p struct {
				Error, What, Code string
			}
			if err := json.Unmarshal([]byte(errOut), &p); err != nil || p.Error == "" || p.What == "" || p.Code == "" || code != tc.code {
				t.Errorf("as JSON: exit code %d, stderr %q (%v)", code, errOut, err)
			}
		})
	}
}

func TestInterruptedIsNoSuccess(t *testing.T) {
	h := newHost(t)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	for _, args := range [][]string{{"list"}, {"doctor"}, {"version"}} {
		code := newApp(io.Discard, io.Discard).run(ctx, append([]string{"--socket", h.socket}, args...))
		if code != exitInterrupted {
			t.Errorf("%v: exit code %d", args, code)
		}
	}
}

func TestErrorLayout(t *testing.T) {
	h := newHost(t)
	_, errOut, _ := hvictl(t, h.socket, "status", "twin")
	golden(t, "error-ambiguous", errOut)
	_, errOut, _ = hvictl(t, h.socket, "status", "wbe1")
	golden(t, "error-no-domain", errOut)
	_, errOut, _ = hvictl(t, "/nonexistent/hvid.sock", "status")
	golden(t, "error-unreachable", errOut)
	_, errOut, _ = hvictl(t, "/nonexistent/hvid.sock", "status", "-o", "json")
	golden(t, "error-unreachable-json", errOut)

	p := &control.Problem{Code: control.CodeNoSuchDomain, What: "none"}
	for i := range 20 {
		p.Candidates = append(p.Candidates, control.Candidate{ID: uint16(i), Name: "x"})
	}
	if got := candidates(p); !strings.HasSuffix(got, "x (11) and 8 more") {
		t.Errorf("20 candidates are shown as %s", got)
	}
}

func TestAttachRequest(t *testing.T) {
	h := newHost(t)
	for _, tc := range []struct {
		args []string
		want string
	}{
		{[]string{"web1"}, "attach 7 {Mode: Guards:[]}"},
		{[]string{"web1", "--mode", "observe"}, "attach 7 {Mode:observe Guards:[]}"},
		{[]string{"7", "--mode=enforce", "--guard=kernel-text=block", "--guard", "syscall-entry=alert"}, "attach 7 {Mode:enforce Guards:[{Name:kernel-text Action:block} {Name:syscall-entry Action:alert}]}"},
	} {
		h.engine.asked = ""
		if _, errOut, code := hvictl(t, h.socket, append([]string{"attach"}, tc.args...)...); code != 0 || h.engine.asked != tc.want {
			t.Errorf("%v: exit code %d, the engine was asked %q, want %q; %s", tc.args, code, h.engine.asked, tc.want, errOut)
		}
	}
}

func TestDoctorWithoutHvid(t *testing.T) {
	root := t.TempDir()
	dev := filepath.Join(root, "dev/xen")
	if err := os.MkdirAll(dev, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dev, "evtchn"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("/dev/null", filepath.Join(dev, "privcmd")); err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	a := newApp(&out, io.Discard)
	a.host = hostcheck.Options{Root: root}
	code := a.run(t.Context(), []string{"--socket", "/nonexistent/hvid.sock", "doctor"})
	if code != exitDoctor {
		t.Errorf("exit code %d", code)
	}
	golden(t, "doctor-without-hvid", out.String())

	out.Reset()
	if code := a.run(t.Context(), []string{"--socket", "/nonexistent/hvid.sock", "doctor", "-o", "json"}); code != exitDoctor {
		t.Errorf("exit code %d", code)
	}
	var rep control.DoctorReport
	if err := json.Unmarshal(out.Bytes(), &rep); err != nil || rep.Checks[0].Name != "hvid" || rep.Checks[0].Status != control.CheckFail || rep.Domains == nil {
		t.Errorf("as JSON: %+v (%v)", rep, err)
	}
}

func TestVersion(t *testing.T) {
	h := newHost(t)
	out, _, code := hvictl(t, h.socket, "version")
	if code != 0 || !strings.HasPrefix(out, "hvictl  ") || !strings.HasSuffix(out, "hvid    0.1.0 (abcdef), go1.26.8\nXen     4.17.4\n") {
		t.Errorf("exit code %d:\n%s", code, out)
	}
	out, _, code = hvictl(t, "/nonexistent/hvid.sock", "version")
	if code != 0 || !strings.Contains(out, "hvid    unknown: hvid is not reachable") {
		t.Errorf("without hvid: exit code %d:\n%s", code, out)
	}
	out, _, code = hvictl(t, h.socket, "version", "-o", "json")
	var v struct {
		Hvictl control.Build
		Hvid   *control.Version
	}
	if err := json.Unmarshal([]byte(out), &v); err != nil || code != 0 || v.Hvid == nil || v.Hvid.Xen != "4.17.4" || v.Hvictl.Version == "" {
		t.Errorf("as JSON: exit code %d, %+v (%v)", code, v, err)
	}
}

func TestNoDomains(t *testing.T) {
	h := newHost(t)
	h.engine.domains = nil
	for _, tc := range []struct{ args, want string }{
		{"list", "No domain is running.\n"},
		{"list -o json", "[]\n"},
		{"status", "hvid 0.1.0 on Xen 4.17.4, up 2d2h\n\nNo domain is protected, and none is meant to be.\n"},
	} {
		if out, _, code := hvictl(t, h.socket, strings.Fields(tc.args)...); code != 0 || out != tc.want {
			t.Errorf("%s: exit code %d, %q", tc.args, code, out)
		}
	}
	if _, errOut, code := hvictl(t, h.socket, "status", "web1"); code != exitNoDomain || !strings.Contains(errOut, "no domain runs") {
		t.Errorf("status of none: exit code %d, %q", code, errOut)
	}
}

func TestColour(t *testing.T) {
	h := newHost(t)
	var out bytes.Buffer
	a := newApp(&out, io.Discard)
	a.colour = true
	if code := a.run(t.Context(), []string{"--socket", h.socket, "status"}); code != 0 {
		t.Fatalf("exit code %d", code)
	}
	golden(t, "status-colour", out.String())
	out.Reset()
	if code := a.run(t.Context(), []string{"--socket", h.socket, "list", "-o", "json"}); code != 0 || strings.ContainsRune(out.String(), '\x1b') {
		t.Errorf("JSON is coloured: exit code %d, %q", code, out.String())
	}

	env := func(kv ...string) func(string) string {
		return func(k string) string {
			if i := slices.Index(kv, k); i >= 0 && i%2 == 0 {
				return kv[i+1]
			}
			return ""
		}
	}
	// A character device stands for a terminal, as in the kernel.
	tty, err := os.OpenFile("/dev/null", os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer tty.Close()
	file, err := os.Create(filepath.Join(t.TempDir(), "out"))
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	for _, tc := range []struct {
		name string
		w    io.Writer
		env  func(string) string
		want bool
	}{
		{"terminal", tty, env("TERM", "xterm"), true},
		{"NO_COLOR", tty, env("TERM", "xterm", "NO_COLOR", "1"), false},
		{"empty NO_COLOR", tty, env("TERM", "xterm", "NO_COLOR", ""), true},
		{"dumb", tty, env("TERM", "dumb"), false},
		{"no TERM", tty, env(), false},
		{"file", file, env("TERM", "xterm"), false},
		{"buffer", &out, env("TERM", "xterm"), false},
	} {
		if got := wantsColour(tc.w, tc.env); got != tc.want {
			t.Errorf("%s: %v", tc.name, got)
		}
	}
}

func TestDuration(t *testing.T) {
	for d, want := range map[time.Duration]string{
		-time.Second: "0s", 0: "0s", 999 * time.Millisecond: "0s", 59 * time.Second: "59s", time.Minute: "1m0s",
		61 * time.Minute: "1h1m", 24 * time.Hour: "1d0h", 1000 * time.Hour: "41d16h",
	} {
		if got := duration(d); got != want {
			t.Errorf("%v is written %s, want %s", d, got, want)
		}
	}
}

func TestColumns(t *testing.T) {
	for s, want := range map[string]int{"": 0, "web1": 4, "naïve": 5, "nai\u0308ve": 5, "服务器": 6, "カナ": 4, "🦊": 2, "…": 1} {
		if got := columns(s); got != want {
			t.Errorf("%q takes %d columns, want %d", s, got, want)
		}
	}
}

// TestEveryCommandIsDocumented: help has an example for each, and each name in
// exit-codes is what the code says.
func TestEveryCommandIsDocumented(t *testing.T) {
	a := newApp(io.Discard, io.Discard)
	root := a.root()
	all := append(root.Commands(), root)
	for _, c := range root.Commands() {
		all = append(all, c.Commands()...)
	}
	for _, c := range all {
		if c.Short == "" {
			t.Errorf("%s has no short description", c.Name())
		}
		if c.Runnable() && !strings.Contains(c.Example, "hvictl") {
			t.Errorf("%s has no example", c.Name())
		}
	}
	topic := exitCodesTopic().Long
	for _, code := range append([]int{exitOK, exitFailure, exitInterrupted}, slices.Collect(maps.Values(exitOf))...) {
		if !strings.Contains(topic, fmt.Sprintf("\n  %-4d ", code)) {
			t.Errorf("exit code %d is not documented", code)
		}
	}
}

func TestCompletion(t *testing.T) {
	h := newHost(t)
	h.engine.domains = append(h.engine.domains, control.DomainStatus{ID: 20, Name: "a b;rm"})
	for _, tc := range []struct {
		args string
		want []string
		not  string
	}{
		{"status ", []string{"Domain-0", "web1\tprotecting", "twin"}, "rm"},
		{"attach web1 --guard ", []string{"kernel-text=block", "syscall-entry=alert"}, ""},
		{"attach --mode ", []string{"observe", "enforce"}, "off"},
		{"events --domain ", []string{"web1"}, ""},
		{"events --guard ", []string{"kernel-text"}, ""},
		{"list -o ", []string{"table", "json"}, ""},
		{"help ", []string{"exit-codes", "status"}, ""},
		{"detach web1 ", nil, "web1"},
		{"st", []string{"status"}, ""},
	} {
		args := append([]string{cobra.ShellCompRequestCmd}, strings.Split(tc.args, " ")...)
		out, _, code := hvictl(t, h.socket, args...)
		for _, w := range tc.want {
			if !strings.Contains(out, w) {
				t.Errorf("%q offers %q, without %q", tc.args, out, w)
			}
		}
		if code != 0 || (tc.not != "" && strings.Contains(out, tc.not)) {
			t.Errorf("%q: exit code %d, offers %q", tc.args, code, out)
		}
	}
	if out, _, code := hvictl(t, "/nonexistent/hvid.sock", cobra.ShellCompRequestCmd, "status", ""); code != 0 || strings.Contains(out, "web1") {
		t.Errorf("without hvid: exit code %d, %q", code, out)
	}
}

func (e *fakeEngine) Exceptions(context.Context) ([]control.Exception, error) {
	return e.exceptions, e.err
}

func (e *fakeEngine) Allow(_ context.Context, x policy.Exception) ([]control.Exception, error) {
	e.asked = "allow " + x.String()
	e.exceptions = append(e.exceptions, control.Exception{ID: x.ID(), Exception: x, From: control.ExceptionKept})
	return e.exceptions, e.err
}

func (e *fakeEngine) Disallow(_ context.Context, ids []string) ([]control.Exception, error) {
	e.asked = fmt.Sprint("disallow ", ids)
	return nil, e.err
}

func (e *fakeEngine) ReloadExceptions(context.Context) ([]control.Exception, error) {
	e.asked = "reload"
	return e.exceptions, e.err
}
