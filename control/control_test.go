package control

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"reflect"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/xen-hvi/hvi/engine/inspect"
	"github.com/xen-hvi/hvi/engine/journal"
	"github.com/xen-hvi/hvi/engine/policy"
	"github.com/xen-hvi/hvi/engine/printable"
	"github.com/xen-hvi/hvi/engine/x86"
)

// fakeEngine answers from its fields.
type fakeEngine struct {
	mu      sync.Mutex
	domains []DomainStatus
	kept    []Declaration
	err     error
	panics  bool
	// hold, where not nil, keeps Attach until it is closed or ctx ends.
	hold chan struct{}
	// in says that Attach has begun.
	in   chan struct{}
	asks []string
	// answer is that of every question about a guest.
	answer any
	// profile is that of every kernel.
	profile []byte
	// exceptions are those there are.
	exceptions []Exception
}

func (e *fakeEngine) note(format string, args ...any) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.asks = append(e.asks, fmt.Sprintf(format, args...))
	if e.panics {
		panic("the fake was told to")
	}
	return e.err
}

func (e *fakeEngine) Version(context.Context) (Version, error) {
	return Version{Build: Build{Version: "1.2.3", Go: "go1.26"}, API: "v1", PID: 7, Run: "69fe2b1d7c3a", StartedAt: time.Unix(1, 0).UTC(), Xen: "4.17.4"}, e.note("version")
}

func (e *fakeEngine) Domains(context.Context) ([]DomainStatus, error) { return e.domains, nil }

func (e *fakeEngine) find(dom DomainRef) DomainStatus {
	for _, d := range e.domains {
		if d.UUID == dom.UUID {
			return d
		}
	}
	return DomainStatus{}
}

func (e *fakeEngine) Domain(_ context.Context, dom DomainRef) (DomainStatus, error) {
	return e.find(dom), e.note("domain %d %s %s", dom.ID, dom.UUID, dom.Name)
}

func (e *fakeEngine) Attach(ctx context.Context, dom DomainRef, req AttachRequest) (DomainStatus, error) {
	if e.hold != nil {
		close(e.in)
		select {
		case <-e.hold:
		case <-ctx.Done():
			return DomainStatus{}, fmt.Errorf("waiting for the guest: %w", ctx.Err())
		}
	}
	return e.find(dom), e.note("attach %d %+v", dom.ID, req)
}

func (e *fakeEngine) Resume(_ context.Context, dom DomainRef) (DomainStatus, error) {
	return e.find(dom), e.note("resume %d", dom.ID)
}

func (e *fakeEngine) Detach(_ context.Context, dom DomainRef) (DomainStatus, error) {
	return e.find(dom), e.note("detach %d", dom.ID)
}

func (e *fakeEngine) SwitchView(_ context.Context, dom DomainRef, view string, by journal.Peer) (DomainStatus, error) {
	return e.find(dom), e.note("switch %d %s by %d %d", dom.ID, view, by.UID, by.PID)
}

func (e *fakeEngine) SetBreakpoint(_ context.Context, dom DomainRef, symbol string, on bool) (DomainStatus, error) {
	return e.find(dom), e.note("breakpoint %d %s %v", dom.ID, symbol, on)
}

func (e *fakeEngine) Doctor(context.Context) (DoctorReport, error) {
	return DoctorReport{
		Checks:  []Check{{Name: "xen", Status: CheckOK, Detail: "4.17"}, {Name: "altp2m", Status: CheckMissing, Fix: "add altp2m=1 to Xen's command line"}},
		Domains: []DomainReport{{ID: 7, Name: "web1", Tier: TierAccess}, {ID: 8, Name: "db", Checks: []Check{{Name: "ring", Status: CheckFail}, {Name: "pages", Status: CheckWarn}}}},
	}, e.note("doctor")
}

func (e *fakeEngine) Declare(_ context.Context, uuid string, req DeclareRequest) (Declared, error) {
	return Declared{UUID: uuid, Mode: "enforce", Known: true}, e.note("declare %s %+v", uuid, req)
}

func (e *fakeEngine) Declarations(context.Context) ([]Declaration, error) {
	return e.kept, e.note("declarations")
}

func (e *fakeEngine) Import(_ context.Context, d Declaration) (Declaration, error) {
	return d, e.note("import %+v", d)
}

func (e *fakeEngine) Gate(ctx context.Context, dom DomainRef, req GateRequest) (GateResult, error) {
	if e.hold != nil {
		select {
		case <-e.hold:
		case <-ctx.Done():
			return GateResult{}, ctx.Err()
		}
	}
	return GateResult{Required: true, State: StateFailed, Reason: "EBUSY", Fix: "stop it"}, e.note("gate %+v %+v", dom, req)
}

func (e *fakeEngine) Policy(_ context.Context, dom DomainRef) (PolicyReport, error) {
	return PolicyReport{ID: dom.ID, UUID: dom.UUID, From: FromNone}, e.note("policy %+v", dom)
}

func (e *fakeEngine) SetPolicy(_ context.Context, dom DomainRef, req PolicyRequest) (PolicyReport, error) {
	return PolicyReport{ID: dom.ID, Mode: PolicyValue{req.Mode, "x"}}, e.note("set %+v %+v", dom, req)
}

func (e *fakeEngine) ClearPolicy(_ context.Context, dom DomainRef, where string) (PolicyReport, error) {
	return PolicyReport{ID: dom.ID}, e.note("clear %+v %s", dom, where)
}

func (e *fakeEngine) Profile(_ context.Context, dom DomainRef) ([]byte, error) {
	return e.profile, e.note("profile %d", dom.ID)
}

func (e *fakeEngine) Guest(_ context.Context, dom DomainRef, q inspect.Question, args inspect.Args) (any, error) {
	return e.answer, e.note("guest %d %s %+v", dom.ID, q.Kind, args)
}

const (
	uuid7 = "a2b0f0f4-6f0e-4f9b-8f4c-0c8c6d1e2f30"
	uuid8 = "b2b0f0f4-6f0e-4f9b-8f4c-0c8c6d1e2f30"
	uuid9 = "c2b0f0f4-6f0e-4f9b-8f4c-0c8c6d1e2f30"
)

func someDomains() []DomainStatus {
	pc := x86.VirtAddr(0x1000000)
	return []DomainStatus{
		{ID: 9, Name: printable.Escape("twin"), UUID: uuid9, Type: "PV", State: StateUnprotected, Tier: TierNone, TierReason: "a PV guest"},
		{
			ID: 7, Name: printable.Escape("web1"), UUID: uuid7, Type: "PVH", State: StateProtecting, Mode: "enforce", Tier: TierViews,
			GuestKernel: &GuestKernel{Release: "6.1.0-9-amd64", Base: 0xffffffff81000000, SymbolCount: 120000},
			Guards:      []GuardStatus{{Name: "kernel-text", Action: "block", State: GuardArmed, Events: 2, Blocked: 2, Passed: 40}},
			AttachedAt:  time.Date(2026, 5, 9, 7, 0, 0, 0, time.UTC), AttachPC: &pc,
			Counters: Counters{RingEvents: 42, Blocked: 2},
		},
		{ID: 8, Name: printable.Escape("twin"), UUID: uuid8, Type: "PVH", State: StateFailed, Failure: &Failure{Stage: "attach", Got: "EBUSY", Fix: "detach the other listener"}},
	}
}

// world is a server on a real socket, with a client of it.
type world struct {
	engine  *fakeEngine
	journal *journal.Journal
	server  *Server
	path    string
	client  *Client
	log     *bytes.Buffer
	served  chan error
}

type lockedWriter struct {
	mu sync.Mutex
	w  io.Writer
}

func (l *lockedWriter) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.w.Write(b)
}

func newWorld(t *testing.T, change func(*ServerOptions)) *world {
	t.Helper()
	j, err := journal.Open(journal.Options{Dir: t.TempDir(), Queue: 16})
	if err != nil {
		t.Fatal(err)
	}
	w := &world{
		engine: &fakeEngine{domains: someDomains(), in: make(chan struct{})}, journal: j,
		path: filepath.Join(t.TempDir(), "hvid.sock"), log: new(bytes.Buffer), served: make(chan error, 1),
	}
	opt := ServerOptions{Engine: w.engine, Journal: j, Logger: slog.New(slog.NewTextHandler(&lockedWriter{w: w.log}, nil))}
	if change != nil {
		change(&opt)
	}
	w.server = NewServer(opt)
	l, err := listen(w.path, -1)
	if err != nil {
		t.Fatal(err)
	}
	go func() { w.served <- w.server.Serve(l) }()
	w.client = NewClient(w.path)
	t.Cleanup(func() {
		w.client.Close()
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		if err := w.server.Shutdown(ctx); err != nil {
			t.Errorf("shutdown: %v", err)
		}
		if err := <-w.served; err != nil {
			t.Errorf("serve: %v", err)
		}
		l.Close()
		if err := j.Close(); err != nil {
			t.Errorf("journal: %v", err)
		}
		if _, err := os.Lstat(w.path); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("the socket is left: %v", err)
		}
	})
	return w
}

func TestClientAndServer(t *testing.T) {
	w := newWorld(t, nil)
	ctx := t.Context()

	v, err := w.client.Version(ctx)
	if err != nil || v.Build.Version != "1.2.3" || v.Xen != "4.17.4" || v.Run != "69fe2b1d7c3a" {
		t.Errorf("version: %+v, %v", v, err)
	}
	ds, err := w.client.Domains(ctx)
	if err != nil || len(ds) != 3 || ds[0].ID != 7 || ds[1].ID != 8 || ds[2].ID != 9 {
		t.Fatalf("domains: %+v, %v", ds, err)
	}
	want := someDomains()[1]
	if !reflect.DeepEqual(ds[0], want) {
		t.Errorf("domain 7 arrived as\n%+v\nwant\n%+v", ds[0], want)
	}
	if ds[1].Guards == nil {
		t.Error("no guards arrived as null")
	}
	for _, ref := range []string{"7", "web1", uuid7, strings.ToUpper(uuid7)} {
		if d, err := w.client.Domain(ctx, ref); err != nil || d.ID != 7 {
			t.Errorf("domain %q: %+v, %v", ref, d, err)
		}
	}
	req := AttachRequest{Mode: "enforce", Guards: []GuardRequest{{"kernel-text", "block"}}}
	if d, err := w.client.Attach(ctx, "web1", req); err != nil || d.ID != 7 {
		t.Errorf("attach: %+v, %v", d, err)
	}
	if d, err := w.client.Detach(ctx, uuid8); err != nil || d.ID != 8 {
		t.Errorf("detach: %+v, %v", d, err)
	}
	if d, err := w.client.Resume(ctx, uuid8); err != nil || d.ID != 8 || !slices.Contains(w.engine.asks, "resume 8") {
		t.Errorf("resume: %+v, %v", d, err)
	}
	peer := fmt.Sprintf("switch 8 maintenance by %d %d", os.Getuid(), os.Getpid())
	if d, err := w.client.SwitchView(ctx, uuid8, "maintenance"); err != nil || d.ID != 8 || !slices.Contains(w.engine.asks, peer) {
		t.Errorf("switch: %+v, %v, asked %q", d, err, w.engine.asks)
	}
	if _, err := w.client.SwitchView(ctx, uuid8, "No Name"); !errors.Is(err, &Problem{Code: CodeBadRequest}) {
		t.Errorf("switch to no name: %v", err)
	}
	if !slices.Contains(w.engine.asks, "attach 7 {Mode:enforce Guards:[{Name:kernel-text Action:block}]}") || !slices.Contains(w.engine.asks, "detach 8") {
		t.Errorf("the engine was asked %q", w.engine.asks)
	}
	r, err := w.client.Doctor(ctx)
	if err != nil || r.Problems() != 2 || r.Domains[0].Checks == nil {
		t.Errorf("doctor: %+v, %v", r, err)
	}
}

func TestDomainsThatDoNotResolve(t *testing.T) {
	w := newWorld(t, nil)
	_, err := w.client.Domain(t.Context(), "web9")
	var p *Problem
	if !errors.As(err, &p) || p.Code != CodeNoSuchDomain || len(p.Candidates) != 3 || p.Fix == "" || !strings.Contains(p.What, `"web9"`) {
		t.Errorf("unknown: %+v", err)
	}
	_, err = w.client.Detach(t.Context(), "twin")
	if !errors.As(err, &p) || p.Code != CodeAmbiguous || len(p.Candidates) != 2 || p.Candidates[1].UUID != uuid9 {
		t.Errorf("ambiguous: %+v", err)
	}
	w.engine.domains = nil
	_, err = w.client.Domain(t.Context(), "web1")
	if !errors.As(err, &p) || p.Code != CodeNoSuchDomain || !strings.Contains(p.Fix, "no domain runs") {
		t.Errorf("no domains: %+v", err)
	}
	if ds, err := w.client.Domains(t.Context()); err != nil || ds == nil || len(ds) != 0 {
		t.Errorf("no domains: %v, %v", ds, err)
	}
}

// TestStrangeNames: a name is only ever compared.
func TestStrangeNames(t *testing.T) {
	names := []string{"../../x", "..", ".", "a b;rm", "a/b", "%2e%2e", "x?y=1#z", strings.Repeat("n", 200), "naïve-服务器", "a\x1b[31m\nb", `q"\`, "\xff", "attach", "a//b", "a%00b", "+"}
	w := newWorld(t, nil)
	w.engine.domains = nil
	for i, n := range names {
		w.engine.domains = append(w.engine.domains, DomainStatus{ID: uint16(100 + i), Name: printable.Escape(n), UUID: fmt.Sprintf("00000000-0000-0000-0000-%012d", i)})
	}
	for i, n := range names {
		for _, ref := range []string{n, printable.Escape(n).String()} {
			d, err := w.client.Domain(t.Context(), ref)
			if err != nil || d.ID != uint16(100+i) || d.Name != printable.Escape(n) {
				t.Errorf("%q: got %d %q, %v", ref, d.ID, d.Name, err)
			}
		}
		if d, err := w.client.Attach(t.Context(), n, AttachRequest{}); err != nil || d.ID != uint16(100+i) {
			t.Errorf("attach %q: %d, %v", n, d.ID, err)
		}
	}
	if _, err := w.client.Domain(t.Context(), ""); !errors.Is(err, &Problem{Code: CodeBadRequest}) {
		t.Errorf("an empty name: %v", err)
	}
	if _, err := w.client.Domain(t.Context(), strings.Repeat("x", maxRef+1)); !errors.Is(err, &Problem{Code: CodeBadRequest}) {
		t.Errorf("a name beyond all bounds: %v", err)
	}
}

func TestResolve(t *testing.T) {
	ds := append(someDomains(), DomainStatus{ID: 12, Name: "7"}, DomainStatus{ID: 13, Name: "13"})
	for ref, want := range map[string]Code{"7": CodeAmbiguous, "13": "", uuid7: "", "twin": CodeAmbiguous, "WEB1": CodeNoSuchDomain, "07": CodeNoSuchDomain, "": CodeNoSuchDomain} {
		_, err := Resolve(ds, ref)
		var p *Problem
		switch {
		case want == "" && err != nil, want != "" && (!errors.As(err, &p) || p.Code != want):
			t.Errorf("%q: %v, want %q", ref, err, want)
		}
	}
	many := make([]DomainStatus, 500)
	var p *Problem
	if _, err := Resolve(many, "x"); !errors.As(err, &p) || len(p.Candidates) != maxCandidates {
		t.Errorf("%d candidates", len(p.Candidates))
	}
}

func TestEngineErrorsReachTheClient(t *testing.T) {
	for _, tc := range []struct {
		name string
		err  error
		code Code
		what string
	}{
		{"problem", &Problem{Code: CodeNotPossible, What: "web1 is a PV guest", Where: "domain 7", Fix: "use type=pvh"}, CodeNotPossible, "web1 is a PV guest"},
		{"wrapped", fmt.Errorf("attach: %w", &Problem{Code: CodeConflict, What: "already attached"}), CodeConflict, "already attached"},
		{"plain", errors.New("ring exploded"), CodeInternal, "ring exploded"},
		{"deadline", fmt.Errorf("x: %w", context.DeadlineExceeded), CodeTimeout, "hvid did not finish in time"},
		{"cancelled", context.Canceled, CodeUnavailable, "hvid is stopping"},
		{"unknown code", &Problem{Code: "from_the_future", What: "odd"}, "from_the_future", "odd"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			w := newWorld(t, nil)
			w.engine.err = tc.err
			_, err := w.client.Attach(t.Context(), "7", AttachRequest{})
			var p *Problem
			if !errors.As(err, &p) || p.Code != tc.code || p.What != tc.what {
				t.Fatalf("got %+v", err)
			}
		})
	}
}

func TestPanicIsAnAnswer(t *testing.T) {
	w := newWorld(t, nil)
	w.engine.panics = true
	_, err := w.client.Version(t.Context())
	if !errors.Is(err, &Problem{Code: CodeInternal}) {
		t.Errorf("got %v", err)
	}
	w.engine.mu.Lock()
	w.engine.panics = false
	w.engine.mu.Unlock()
	if _, err := w.client.Version(t.Context()); err != nil {
		t.Errorf("after the panic: %v", err)
	}
}

func TestChangeIsBoundedInTime(t *testing.T) {
	w := newWorld(t, func(o *ServerOptions) { o.ChangeTimeout = time.Millisecond })
	w.engine.hold = make(chan struct{})
	_, err := w.client.Attach(t.Context(), "7", AttachRequest{})
	if !errors.Is(err, &Problem{Code: CodeTimeout}) {
		t.Errorf("got %v", err)
	}
}

// raw sends a request as is and returns the status and the problem.
func raw(t *testing.T, w *world, method, target, body string) (int, Problem, http.Header) {
	t.Helper()
	req, err := http.NewRequest(method, "http://hvid"+target, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	resp, err := w.client.http.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	var p struct {
		Error string `json:"error"`
		Problem
	}
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	if resp.StatusCode != 200 {
		if err := json.Unmarshal(b, &p); err != nil || p.Error == "" || p.Code == "" || p.What == "" {
			t.Fatalf("%s %s: %q is no problem (%v)", method, target, b, err)
		}
	}
	return resp.StatusCode, p.Problem, resp.Header
}

func TestRequestsAreReadStrictly(t *testing.T) {
	w := newWorld(t, nil)
	many := `{"guards":[` + strings.Repeat(`{"name":"g","action":"a"},`, maxGuards) + `{"name":"g","action":"a"}]}`
	for _, tc := range []struct {
		method, target, body string
		status               int
		code                 Code
		mention              string
	}{
		{"GET", "/", "", 404, CodeNotFound, ""},
		{"GET", "/v2/version", "", 404, CodeNotFound, "/v2/version"},
		{"GET", "/v1/versions", "", 404, CodeNotFound, ""},
		{"GET", "/v1/domains/7/explode", "", 404, CodeNotFound, ""},
		{"GET", "/v1/domains/", "", 400, CodeBadRequest, ""},
		{"GET", "/v1/domains//attach", "", 400, CodeBadRequest, ""},
		{"POST", "/v1/version", "", 405, CodeMethod, ""},
		{"GET", "/v1/domains/7/attach", "", 405, CodeMethod, ""},
		{"DELETE", "/v1/domains/7", "", 405, CodeMethod, ""},
		{"GET", "/v1/version?x=1", "", 400, CodeBadRequest, "x"},
		{"POST", "/v1/domains/7/attach?mode=off", "", 400, CodeBadRequest, "mode"},
		{"GET", "/v1/events?follw=1", "", 400, CodeBadRequest, "follw"},
		{"GET", "/v1/events?follow=1&follow=0", "", 400, CodeBadRequest, "twice"},
		{"GET", "/v1/events?follow=yes", "", 400, CodeBadRequest, "follow"},
		{"GET", "/v1/events?since=yesterday", "", 400, CodeBadRequest, "yesterday"},
		{"GET", "/v1/events?after=17", "", 400, CodeBadRequest, "after"},
		{"GET", "/v1/events?limit=-1", "", 400, CodeBadRequest, "limit"},
		{"GET", "/v1/events?limit=99999999999999999999", "", 400, CodeBadRequest, "limit"},
		{"GET", "/v1/events?domain=" + strings.Repeat("x", maxRef+1), "", 400, CodeBadRequest, "longer"},
		{"GET", "/v1/events?a;b", "", 400, CodeBadRequest, "query"},
		{"POST", "/v1/domains/7/attach", `{"mod":"enforce"}`, 400, CodeBadRequest, "mod"},
		{"POST", "/v1/domains/7/attach", `{"mode":1}`, 400, CodeBadRequest, "mode"},
		{"POST", "/v1/domains/7/attach", `{"mode":"enforce"} {}`, 400, CodeBadRequest, "after its end"},
		{"POST", "/v1/domains/7/attach", `[`, 400, CodeBadRequest, ""},
		{"POST", "/v1/domains/7/attach", strings.Repeat(" ", maxBody+1), 400, CodeBadRequest, "larger"},
		{"POST", "/v1/domains/7/attach", `{"mode":"` + strings.Repeat("x", maxWord+1) + `"}`, 400, CodeBadRequest, "mode"},
		{"POST", "/v1/domains/7/attach", many, 400, CodeBadRequest, "65 guards"},
		{"POST", "/v1/domains/7/attach", `{"guards":[{"name":"kernel-text"}]}`, 400, CodeBadRequest, "without"},
		{"POST", "/v1/domains/7/attach", `{"guards":[{"name":"g","action":"a"},{"name":"g","action":"b"}]}`, 400, CodeBadRequest, "twice"},
		{"POST", "/v1/domains/7/attach", `{"guards":[{"name":"g","action":"` + strings.Repeat("x", maxWord+1) + `"}]}`, 400, CodeBadRequest, "longer"},
		{"POST", "/v1/domains/7/detach", `{"force":true}`, 400, CodeBadRequest, "force"},
		{"POST", "/v1/domains/7/detach", `{}`, 200, "", ""},
		{"POST", "/v1/domains/7/attach", ``, 200, "", ""},
		{"GET", "/v1/domains/7/", ``, 200, "", ""},
	} {
		status, p, h := raw(t, w, tc.method, tc.target, tc.body)
		if status != tc.status || p.Code != tc.code || !strings.Contains(p.What, tc.mention) {
			t.Errorf("%s %s %.60s: %d %+v, want %d %s mentioning %q", tc.method, tc.target, tc.body, status, p, tc.status, tc.code, tc.mention)
		}
		if status == 405 && h.Get("Allow") == "" {
			t.Errorf("%s %s: no Allow", tc.method, tc.target)
		}
	}
	if slices.ContainsFunc(w.engine.asks, func(s string) bool { return strings.HasPrefix(s, "attach") && s != "attach 7 {Mode: Guards:[]}" }) {
		t.Errorf("a bad request reached the engine: %q", w.engine.asks)
	}
}

// event appends an event that VCPU tells.
func event(t *testing.T, j *journal.Journal, n int) journal.Record {
	t.Helper()
	r, err := j.Append(journal.Record{
		Domain: journal.Domain{UUID: uuid7, Name: "web1", ID: 7}, VCPU: n, Guard: "kernel-text", Action: journal.Blocked, Mode: "enforce",
		Target: journal.Target{Kind: journal.TargetMSR, MSR: &journal.MSRTarget{Index: 1}},
		Before: journal.Number(1), Attempted: journal.Number(2),
	})
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func vcpus(t *testing.T, w *world, q EventsQuery) []int {
	t.Helper()
	s, err := w.client.Events(t.Context(), q)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	ns := []int{}
	for {
		it, err := s.Next()
		if err == io.EOF {
			return ns
		}
		if err != nil {
			t.Fatal(err)
		}
		ns = append(ns, it.Record.VCPU)
	}
}

func TestEvents(t *testing.T) {
	w := newWorld(t, nil)
	if got := vcpus(t, w, EventsQuery{}); len(got) != 0 {
		t.Errorf("an empty log has %v", got)
	}
	var second journal.Record
	for n := 1; n <= 4; n++ {
		if r := event(t, w.journal, n); n == 2 {
			second = r
		}
	}
	for _, tc := range []struct {
		q    EventsQuery
		want []int
	}{
		{EventsQuery{}, []int{1, 2, 3, 4}},
		{EventsQuery{Limit: 2}, []int{3, 4}},
		{EventsQuery{After: second.ID}, []int{3, 4}},
		{EventsQuery{After: second.ID, Limit: 1}, []int{4}},
		{EventsQuery{Since: second.Time}, []int{2, 3, 4}},
		{EventsQuery{Domain: "web1", Guard: "kernel-text"}, []int{1, 2, 3, 4}},
		{EventsQuery{Domain: "7"}, []int{1, 2, 3, 4}},
		{EventsQuery{Domain: "other"}, []int{}},
		{EventsQuery{Guard: "other"}, []int{}},
	} {
		if got := vcpus(t, w, tc.q); !slices.Equal(got, tc.want) {
			t.Errorf("%+v: got %v, want %v", tc.q, got, tc.want)
		}
	}
}

func TestFollow(t *testing.T) {
	w := newWorld(t, nil)
	first := event(t, w.journal, 1)
	event(t, w.journal, 2)
	follow := func(q EventsQuery) *EventStream {
		t.Helper()
		q.Follow = true
		s, err := w.client.Events(t.Context(), q)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { s.Close() })
		return s
	}
	expect := func(s *EventStream, want ...int) {
		t.Helper()
		for _, n := range want {
			it, err := s.Next()
			if err != nil || it.Record == nil || it.Record.VCPU != n {
				t.Fatalf("got %+v, %v; want %d", it, err, n)
			}
		}
	}
	live, last, since := follow(EventsQuery{}), follow(EventsQuery{Limit: 1}), follow(EventsQuery{Since: first.Time})
	expect(last, 2)
	expect(since, 1, 2)
	third := event(t, w.journal, 3)
	expect(live, 3)
	expect(last, 3)
	expect(since, 3)
	expect(follow(EventsQuery{After: third.ID, Domain: "nobody"}))

	ctx, cancel := context.WithCancel(t.Context())
	s, err := w.client.Events(ctx, EventsQuery{Follow: true})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	cancel()
	if _, err := s.Next(); !errors.Is(err, context.Canceled) {
		t.Errorf("a cancelled stream: %v", err)
	}
}

// TestSlowFollower: a reader that does not read holds nobody up and is told how
// much it missed.
func TestSlowFollower(t *testing.T) {
	w := newWorld(t, nil)
	s, err := w.client.Events(t.Context(), EventsQuery{Follow: true})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	// More than the buffers of both sockets and the queue hold.
	const total = 3000
	for n := range total {
		event(t, w.journal, n)
	}
	seen, missed := 0, 0
	for seen+missed < total {
		it, err := s.Next()
		switch {
		case err != nil:
			t.Fatal(err)
		case it.Missed != nil:
			missed += int(it.Missed.Count)
		case it.Record.VCPU != seen+missed:
			t.Fatalf("event %d after %d seen and %d missed", it.Record.VCPU, seen, missed)
		default:
			seen++
		}
	}
	if missed == 0 || seen == 0 {
		t.Errorf("%d seen, %d missed", seen, missed)
	}
}

func TestFollowersAreBounded(t *testing.T) {
	w := newWorld(t, nil)
	for range maxFollowers {
		s, err := w.client.Events(t.Context(), EventsQuery{Follow: true})
		if err != nil {
			t.Fatal(err)
		}
		defer s.Close()
	}
	if _, err := w.client.Events(t.Context(), EventsQuery{Follow: true}); !errors.Is(err, &Problem{Code: CodeBusy}) {
		t.Errorf("one too many: %v", err)
	}
	if _, err := w.client.Version(t.Context()); err != nil {
		t.Errorf("others are held up: %v", err)
	}
}

func TestShutdownEndsStreamsAndFinishesRequests(t *testing.T) {
	w := newWorld(t, nil)
	w.engine.hold = make(chan struct{})
	reading, err := w.client.Events(t.Context(), EventsQuery{Follow: true})
	if err != nil {
		t.Fatal(err)
	}
	defer reading.Close()
	// This one's server is blocked in a write when the end comes.
	stuck, err := w.client.Events(t.Context(), EventsQuery{Follow: true})
	if err != nil {
		t.Fatal(err)
	}
	defer stuck.Close()
	for n := range 2000 {
		event(t, w.journal, n)
	}
	attached := make(chan error, 1)
	go func() {
		_, err := w.client.Attach(context.Background(), "7", AttachRequest{})
		attached <- err
	}()
	<-w.engine.in
	down := make(chan error, 1)
	go func() { down <- w.server.Shutdown(context.Background()) }()
	for err == nil {
		_, err = reading.Next()
	}
	if !errors.Is(err, &Problem{Code: CodeUnavailable}) {
		t.Errorf("the stream ended with %v", err)
	}
	close(w.engine.hold)
	if err := <-attached; err != nil {
		t.Errorf("attach under way: %v", err)
	}
	if err := <-down; err != nil {
		t.Errorf("shutdown: %v", err)
	}
	_, err = w.client.Version(t.Context())
	if !errors.Is(err, &Problem{Code: CodeUnreachable}) {
		t.Errorf("after shutdown: %v", err)
	}
}

func TestRights(t *testing.T) {
	r := rights{uid: 0, gid: 120}
	daemon := rights{uid: 990, gid: -1}
	for _, tc := range []struct {
		name         string
		r            rights
		p            peer
		read, change bool
	}{
		{"root", r, peer{}, true, true},
		{"root of a daemon that is not", daemon, peer{}, true, true},
		{"the daemon's own", daemon, peer{uid: 990, gid: 990}, true, true},
		{"primary group", r, peer{uid: 1000, gid: 120}, true, false},
		{"member", r, peer{uid: 1000, gid: 1000, groups: []uint32{4, 120}}, true, false},
		{"stranger", r, peer{uid: 1000, gid: 1000, groups: []uint32{4, 121}}, false, false},
		{"group root", r, peer{uid: 1000, gid: 0}, false, false},
		{"no such group on the host", daemon, peer{uid: 1000, gid: 4294967295}, false, false},
	} {
		if got := tc.r.check(tc.p, mayRead) == nil; got != tc.read {
			t.Errorf("%s may read: %v", tc.name, got)
		}
		if got := tc.r.check(tc.p, mayChange) == nil; got != tc.change {
			t.Errorf("%s may change: %v", tc.name, got)
		}
		if got := tc.r.check(tc.p, mayLook) == nil; got != tc.change {
			t.Errorf("%s may look into a guest: %v", tc.name, got)
		}
	}
	for _, need := range []right{mayRead, mayLook, mayChange} {
		if p := r.check(peer{uid: 1000}, need); p.Code != CodePermission || p.Fix == "" || !strings.Contains(p.What, "1000") {
			t.Errorf("refusal: %+v", p)
		}
	}
}

// TestPeerIsWhatTheKernelSays uses this process as the peer.
func TestPeerIsWhatTheKernelSays(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	l, err := listen(path, -1)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	c, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	s, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	got, ok := peerOf(context.Background(), s).Value(peerKey{}).(peer)
	gs, err := syscall.Getgroups()
	if err != nil {
		t.Fatal(err)
	}
	var groups []uint32
	for _, g := range gs {
		groups = append(groups, uint32(g))
	}
	slices.Sort(groups)
	slices.Sort(got.groups)
	if !ok || got.pid != int32(os.Getpid()) || got.uid != uint32(os.Geteuid()) || got.gid != uint32(os.Getegid()) || !slices.Equal(got.groups, groups) {
		t.Errorf("peer is %+v, want this process with groups %v", got, groups)
	}
	// A connection that is over no unix socket has no peer.
	a, b := net.Pipe()
	defer a.Close()
	defer b.Close()
	if peerOf(context.Background(), a).Value(peerKey{}) != nil {
		t.Error("a pipe has a peer")
	}
}

func TestStrangersAreRefused(t *testing.T) {
	w := newWorld(t, nil)
	ask := func(p *peer, method, target string) int {
		r := httptest.NewRequest(method, target, nil)
		if p != nil {
			r = r.WithContext(context.WithValue(r.Context(), peerKey{}, *p))
		}
		rec := httptest.NewRecorder()
		w.server.ServeHTTP(rec, r)
		return rec.Code
	}
	w.server.rights = rights{uid: 0, gid: 120}
	member, stranger := &peer{uid: 1000, gid: 120}, &peer{uid: 1001, gid: 1001}
	for _, tc := range []struct {
		who            *peer
		method, target string
		want           int
	}{
		{nil, "GET", "/v1/version", 403},
		{stranger, "GET", "/v1/version", 403},
		{stranger, "GET", "/v1/nothing", 403},
		{stranger, "GET", "/v1/events", 403},
		{stranger, "POST", "/v1/domains/7/detach", 403},
		{member, "GET", "/v1/domains/7", 200},
		{member, "GET", "/v1/nothing", 404},
		{member, "POST", "/v1/domains/7/attach", 403},
		{member, "POST", "/v1/domains/7/detach", 403},
		{&peer{}, "POST", "/v1/domains/7/detach", 200},
		{member, "GET", "/v1/domains/7/policy", 200},
		{member, "GET", "/v1/declarations", 200},
		{member, "PUT", "/v1/domains/7/policy", 403},
		{member, "DELETE", "/v1/domains/7/policy", 403},
		{member, "POST", "/v1/domains/7/gate", 403},
		{member, "POST", "/v1/declarations", 403},
		{member, "PUT", "/v1/declarations/" + uuid7, 403},
		{stranger, "GET", "/v1/declarations", 403},
		{stranger, "GET", "/v1/domains/7/guest/ps", 403},
		{member, "GET", "/v1/domains/7/guest/ps", 403},
		{member, "GET", "/v1/domains/7/guest/check", 403},
		{member, "GET", "/v1/domains/7/profile", 403},
		{&peer{}, "GET", "/v1/domains/7/guest/ps", 200},
		{&peer{}, "PUT", "/v1/declarations/" + uuid7, 200},
	} {
		if got := ask(tc.who, tc.method, tc.target); got != tc.want {
			t.Errorf("%+v %s %s: %d, want %d", tc.who, tc.method, tc.target, got, tc.want)
		}
	}
	if !strings.Contains(w.log.String(), "refused a peer") {
		t.Error("the log does not have the refusals")
	}
}

func TestClientSaysWhyThereIsNoAnswer(t *testing.T) {
	dir := t.TempDir()
	check := func(name string, err error, code Code, mention string) {
		t.Helper()
		var p *Problem
		if !errors.As(err, &p) || p.Code != code || !strings.Contains(p.What, mention) || p.Fix == "" || p.Where == "" {
			t.Errorf("%s: %+v", name, err)
		}
	}
	_, err := NewClient(filepath.Join(dir, "none")).Version(t.Context())
	check("no socket", err, CodeUnreachable, "no such socket")

	stale := filepath.Join(dir, "stale")
	leaveStale(t, stale)
	_, err = NewClient(stale).Version(t.Context())
	check("stale socket", err, CodeUnreachable, "nobody serves")

	serve := func(name string, handle func(net.Conn)) *Client {
		path := filepath.Join(dir, name)
		l, err := net.Listen("unix", path)
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
				handle(c)
			}
		}()
		return NewClient(path)
	}
	hung := serve("hung", func(c net.Conn) { t.Cleanup(func() { c.Close() }) })
	hung.ReadTimeout, hung.ChangeTimeout = 10*time.Millisecond, 10*time.Millisecond
	_, err = hung.Version(t.Context())
	check("hung", err, CodeUnreachable, "does not answer")
	_, err = hung.Detach(t.Context(), "x")
	check("hung", err, CodeUnreachable, "does not answer")
	_, err = hung.Events(t.Context(), EventsQuery{Follow: true})
	check("hung", err, CodeUnreachable, "does not answer")
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err = hung.Version(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}

	_, err = serve("closes", func(c net.Conn) { c.Close() }).Version(t.Context())
	check("closes", err, CodeUnreachable, "closed")

	say := func(s string) func(net.Conn) {
		return func(c net.Conn) {
			io.ReadFull(c, make([]byte, 16))
			io.WriteString(c, s)
			c.(*net.UnixConn).CloseWrite()
			io.Copy(io.Discard, c)
			c.Close()
		}
	}
	_, err = serve("ssh", say("SSH-2.0-OpenSSH\r\n")).Version(t.Context())
	check("ssh", err, CodeUnreachable, "")
	_, err = serve("web", say("HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\n<html>")).Version(t.Context())
	check("web", err, CodeUnreachable, "not a hvid")
	_, err = serve("web404", say("HTTP/1.1 404 Not\x1b Found\r\nContent-Length: 6\r\n\r\n<html>")).Version(t.Context())
	check("web404", err, CodeUnreachable, "404")
	_, err = serve("moved", say("HTTP/1.1 302 Found\r\nLocation: http://hvid/\r\nContent-Length: 0\r\n\r\n")).Version(t.Context())
	check("moved", err, CodeUnreachable, "302")
	_, err = serve("cut", say("HTTP/1.1 200 OK\r\nContent-Length: 60\r\n\r\n{")).Version(t.Context())
	check("cut", err, CodeUnreachable, "closed the connection")

	stream := func(name, body string) error {
		t.Helper()
		s, err := serve(name, say("HTTP/1.1 200 OK\r\nContent-Length: "+strconv.Itoa(len(body))+"\r\n\r\n"+body)).Events(t.Context(), EventsQuery{})
		if err != nil {
			t.Fatal(err)
		}
		defer s.Close()
		_, err = s.Next()
		return err
	}
	check("bad line", stream("e1", "{\n"), CodeUnreachable, "not a hvid")
	check("bad event", stream("e2", `{"type":"event","schema":"x"}`+"\n"), CodeUnreachable, "not a hvid")
	check("half a line", stream("e3", `{"type":"ev`), CodeUnreachable, "closed the connection")
	check("endless line", stream("e4", strings.Repeat("x", 3*journal.MaxLine)), CodeUnreachable, "too long")
	check("end", stream("e5", `{"type":"from_the_future"}`+"\n"+`{"type":"end","reason":"it is late"}`+"\n"), CodeUnavailable, "it is late")
	if err := stream("e6", `{"type":"problem","error":"x","what":"disk","code":"internal"}`+"\n"); !errors.Is(err, &Problem{Code: CodeInternal}) {
		t.Errorf("problem: %v", err)
	}
	if err := stream("e7", ""); err != io.EOF {
		t.Errorf("nothing: %v", err)
	}
}

func leaveStale(t *testing.T, path string) {
	t.Helper()
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	l.SetUnlinkOnClose(false)
	l.Close()
}

func TestListen(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "run", "hvi")
	path := filepath.Join(dir, "hvid.sock")
	l, err := listen(path, os.Getegid())
	if err != nil {
		t.Fatal(err)
	}
	for p, mode := range map[string]os.FileMode{dir: os.ModeDir | 0o755, path: os.ModeSocket | 0o660} {
		fi, err := os.Lstat(p)
		if err != nil || fi.Mode() != mode || int(fi.Sys().(*syscall.Stat_t).Gid) != os.Getegid() {
			t.Errorf("%s: %v, %v; want %v", p, fi.Mode(), err, mode)
		}
	}
	if _, err := listen(path, -1); !errors.Is(err, ErrSocketInUse) || !strings.Contains(err.Error(), "systemctl stop hvid") {
		t.Errorf("a second listener: %v", err)
	}
	if err := l.Close(); err != nil {
		t.Errorf("close: %v", err)
	}
	if err := l.Close(); err != nil {
		t.Errorf("second close: %v", err)
	}

	// One that was left behind is replaced.
	leaveStale(t, path)
	l, err = listen(path, -1)
	if err != nil {
		t.Fatalf("over a stale socket: %v", err)
	}
	// Close leaves what took its name since.
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	leaveStale(t, path)
	if err := l.Close(); err != nil {
		t.Errorf("close: %v", err)
	}
	if _, err := os.Lstat(path); err != nil {
		t.Errorf("another's socket was removed: %v", err)
	}
	os.Remove(path)

	// One that lives without our lock is refused, and still works.
	other, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := listen(path, -1); !errors.Is(err, ErrSocketInUse) {
		t.Errorf("over a live socket: %v", err)
	}
	c, err := net.Dial("unix", path)
	if err != nil {
		t.Errorf("the live socket is gone: %v", err)
	} else {
		c.Close()
	}
	other.Close()
}

func TestListenRefuses(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, []byte("precious"), 0o600); err != nil {
		t.Fatal(err)
	}
	open := filepath.Join(dir, "open")
	if err := os.Mkdir(open, 0o777); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(open, 0o777); err != nil {
		t.Fatal(err)
	}
	for name, path := range map[string]string{
		"no socket":    file,
		"everybody":    filepath.Join(open, "s"),
		"absolute":     "hvid.sock",
		"at most":      filepath.Join(dir, strings.Repeat("x", 108)),
		"can't be mad": filepath.Join(file, "s"),
	} {
		var le *ListenError
		if _, err := listen(path, -1); !errors.As(err, &le) || !strings.Contains(err.Error(), name) || !strings.Contains(err.Error(), path) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if b, err := os.ReadFile(file); err != nil || string(b) != "precious" {
		t.Errorf("the file is now %q (%v)", b, err)
	}
}

func TestProblemFormats(t *testing.T) {
	cause := errors.New("EBUSY")
	p := &Problem{Code: CodeConflict, What: "the ring is taken", Where: "domain 7", Fix: "stop the other listener", Err: cause}
	for verb, want := range map[string]string{
		"%v":  "the ring is taken (domain 7)",
		"%s":  "the ring is taken (domain 7)",
		"%q":  `"the ring is taken (domain 7)"`,
		"%+v": "the ring is taken (domain 7) [conflict]; fix: stop the other listener; cause: EBUSY",
	} {
		if got := fmt.Sprintf(verb, p); got != want {
			t.Errorf("%s: %s, want %s", verb, got, want)
		}
	}
	if !errors.Is(p, cause) || errors.Is(p, &Problem{Code: CodeBusy}) {
		t.Error("errors.Is is wrong about it")
	}
}

func TestBuild(t *testing.T) {
	dirty := &debug.BuildInfo{GoVersion: "go1.26", Settings: []debug.BuildSetting{{Key: "vcs.revision", Value: "abc"}, {Key: "vcs.modified", Value: "true"}}}
	dirty.Main.Version = "(devel)"
	released := &debug.BuildInfo{GoVersion: "go1.26"}
	released.Main.Version = "v0.1.0"
	for _, tc := range []struct {
		linked string
		bi     *debug.BuildInfo
		want   Build
	}{
		{"", dirty, Build{"devel", "abc+dirty", "go1.26"}},
		{"1.2.3", dirty, Build{"1.2.3", "abc+dirty", "go1.26"}},
		{"", released, Build{"v0.1.0", "", "go1.26"}},
		{"", new(debug.BuildInfo), Build{"devel", "", ""}},
	} {
		if got := buildOf(tc.linked, tc.bi); got != tc.want {
			t.Errorf("got %+v, want %+v", got, tc.want)
		}
	}
	for b, want := range map[Build]string{{"1.2.3", "abc", "go1.26"}: "1.2.3 (abc), go1.26", {Version: "devel"}: "devel"} {
		if got := b.String(); got != want {
			t.Errorf("%+v is written %q, want %q", b, got, want)
		}
	}
	if ThisBuild().Version == "" {
		t.Error("this build has no version")
	}
}

// FuzzRequest sends requests of any kind past the network.
func FuzzRequest(f *testing.F) {
	f.Add("GET", "/v1/version", "", []byte(nil))
	f.Add("GET", "/v1/domains/web1", "", []byte(nil))
	f.Add("GET", "/v1/domains/%2E%2E", "", []byte(nil))
	f.Add("POST", "/v1/domains/7/attach", "", []byte(`{"mode":"enforce","guards":[{"name":"kernel-text","action":"block"}]}`))
	f.Add("POST", "/v1/domains/7/detach", "", []byte(`{}`))
	f.Add("GET", "/v1/events", "limit=2&since=2026-01-02T15:04:05Z&after=69fe2b1d7c3a-1&domain=x&guard=y&follow=0", []byte(nil))
	f.Add("GET", "/v1/doctor", "x;y", []byte("{"))
	f.Add("POST", "/v1/domains/web9/gate", "", []byte(`{"timeout_ms":20000}`))
	f.Add("PUT", "/v1/domains/web9/policy", "", []byte(`{"mode":"enforce","guards":[{"name":"kernel-text","action":"block"}],"where":"live"}`))
	f.Add("DELETE", "/v1/domains/7/policy", "where=config", []byte(nil))
	f.Add("PUT", "/v1/declarations/"+uuid9, "", []byte(`{"name":"x","mode":"observe","source":"y"}`))
	f.Add("POST", "/v1/declarations", "", []byte(`{"uuid":"`+uuid9+`","mode":"observe"}`))
	j, err := journal.Open(journal.Options{Dir: f.TempDir()})
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(func() { j.Close() })
	if _, err := j.Append(journal.Record{Guard: "kernel-text", Action: journal.Alerted}); err != nil {
		f.Fatal(err)
	}
	s := NewServer(ServerOptions{Engine: &fakeEngine{domains: someDomains()}, Journal: j})
	f.Fuzz(func(t *testing.T, method, path, query string, body []byte) {
		r := httptest.NewRequest("GET", "/", bytes.NewReader(body))
		r.Method = method
		r.URL.Path, r.URL.RawPath, r.URL.RawQuery = path, path, query
		ctx, cancel := context.WithCancel(context.WithValue(r.Context(), peerKey{}, peer{}))
		defer cancel()
		if strings.Contains(query, "follow") {
			cancel() // it would wait for events
		}
		rec := httptest.NewRecorder()
		s.ServeHTTP(rec, r.WithContext(ctx))
		switch {
		case rec.Code == http.StatusInternalServerError:
			t.Fatalf("%s %q?%q: %s", method, path, query, rec.Body)
		case rec.Code != http.StatusOK:
			p := new(Problem)
			if err := json.Unmarshal(rec.Body.Bytes(), p); err != nil || p.Code.HTTPStatus() != rec.Code || p.What == "" {
				t.Fatalf("%s %q?%q: %d %s", method, path, query, rec.Code, rec.Body)
			}
		}
		for _, c := range rec.Body.String() {
			if c < ' ' && c != '\n' || c == 0x7f {
				t.Fatalf("%s %q?%q: the answer has control characters: %q", method, path, query, rec.Body)
			}
		}
	})
}

// FuzzStream reads what a server that is none may send.
func FuzzStream(f *testing.F) {
	f.Add([]byte(`{"type":"missed","missed":3,"reason":"x"}` + "\n"))
	f.Add([]byte(`{"type":"event","schema":1,"vcpu":3}` + "\n" + `{"type":"end"}` + "\n"))
	f.Add([]byte("{}\nnull\n[]\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		c := NewClient("/nowhere")
		s := newEventStream(context.Background(), func(error) {}, c, io.NopCloser(bytes.NewReader(b)))
		for range bytes.Count(b, []byte("\n")) + 1 {
			it, err := s.Next()
			if err == io.EOF {
				return
			}
			var p *Problem
			if err != nil && !errors.As(err, &p) {
				t.Fatalf("%q: an error that is no problem: %v", b, err)
			}
			if err == nil && (it.Record == nil) == (it.Missed == nil) {
				t.Fatalf("%q: an item of %+v", b, it)
			}
			if err != nil {
				return
			}
		}
		t.Fatalf("%q has more lines than lines", b)
	})
}

func (e *fakeEngine) Exceptions(context.Context) ([]Exception, error) {
	return e.exceptions, e.note("exceptions")
}

func (e *fakeEngine) Allow(_ context.Context, x policy.Exception) ([]Exception, error) {
	return []Exception{{ID: x.ID(), Exception: x, From: ExceptionKept}}, e.note("allow %s", x)
}

func (e *fakeEngine) Disallow(_ context.Context, ids []string) ([]Exception, error) {
	return nil, e.note("disallow %q", ids)
}

func (e *fakeEngine) ReloadExceptions(context.Context) ([]Exception, error) {
	return e.exceptions, e.note("reload")
}
