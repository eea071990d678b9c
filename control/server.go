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
	"net/url"
	"os"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/xen-hvi/hvi/engine/journal"
	"github.com/xen-hvi/hvi/engine/policy"
	"github.com/xen-hvi/hvi/engine/printable"
	"github.com/xen-hvi/hvi/unixsocket"
)

// Bounds of what a peer may ask for. A request of hvi's own is far within them.
const (
	maxBody         = 64 << 10
	maxHeader       = 16 << 10
	maxRef          = 4 * printable.MaxText // percent-encoding takes three bytes for one
	maxGuards       = 64
	maxWord         = 64
	maxConnections  = 256
	maxFollowers    = 64
	headerTimeout   = 5 * time.Second
	bodyTimeout     = 10 * time.Second
	idleTimeout     = time.Minute
	answerTimeout   = 10 * time.Second
	stopGrace       = time.Second
	defaultReadTime = 30 * time.Second
	defaultSetTime  = time.Minute
)

// ServerOptions is what a Server needs. Engine and Journal are required.
type ServerOptions struct {
	Engine  Engine
	Journal *journal.Journal
	// Logger is told of changes and refusals. Default: none.
	Logger *slog.Logger
	// ReadTimeout bounds what reads, ChangeTimeout attach and detach: the
	// context of the Engine's methods ends then. Defaults: 30 s and 1 min.
	ReadTimeout, ChangeTimeout time.Duration
}

// Server answers on the control socket. It is safe for concurrent use.
type Server struct {
	opt    ServerOptions
	log    *slog.Logger
	rights rights
	http   *http.Server

	// stopping ends the event streams; stop cancels it.
	stopping context.Context
	stop     context.CancelFunc
	// follow holds a token for each follower.
	follow chan struct{}
}

// NewServer returns a server that does not listen yet.
func NewServer(opt ServerOptions) *Server {
	if opt.Engine == nil || opt.Journal == nil {
		panic("control: NewServer without an Engine or a Journal")
	}
	if opt.Logger == nil {
		opt.Logger = slog.New(slog.DiscardHandler)
	}
	if opt.ReadTimeout <= 0 {
		opt.ReadTimeout = defaultReadTime
	}
	if opt.ChangeTimeout <= 0 {
		opt.ChangeTimeout = defaultSetTime
	}
	s := &Server{
		opt: opt, log: opt.Logger,
		// The daemon's own user may do everything: root in practice.
		rights: rights{uid: uint32(os.Geteuid()), gid: -1},
		follow: make(chan struct{}, maxFollowers),
	}
	if gid, ok := unixsocket.GroupID(Group); ok {
		s.rights.gid = gid
	}
	s.stopping, s.stop = context.WithCancel(context.Background())
	s.http = &http.Server{
		Handler:           s,
		ConnContext:       peerOf,
		ReadHeaderTimeout: headerTimeout,
		IdleTimeout:       idleTimeout,
		MaxHeaderBytes:    maxHeader,
		ErrorLog:          slog.NewLogLogger(opt.Logger.Handler(), slog.LevelDebug),
	}
	return s
}

// Serve answers on l until Shutdown, and then returns nil. It closes l. Only
// connections over a unix socket are answered.
func (s *Server) Serve(l net.Listener) error {
	err := s.http.Serve(&limitListener{Listener: l, room: make(chan struct{}, maxConnections)})
	if errors.Is(err, http.ErrServerClosed) {
		return nil
	}
	return fmt.Errorf("control: %w", err)
}

// Shutdown stops listening, ends the event streams with a word to their
// readers, and waits for the other requests until ctx ends; then it cuts them
// off and returns ctx's error.
func (s *Server) Shutdown(ctx context.Context) error {
	s.stop()
	if err := s.http.Shutdown(ctx); err != nil {
		return errors.Join(err, s.http.Close())
	}
	return nil
}

// limitListener bounds the connections that are open at once; others wait in
// the kernel's queue.
type limitListener struct {
	net.Listener
	room chan struct{}
}

// Accept waits for room, then for a connection.
func (l *limitListener) Accept() (net.Conn, error) {
	l.room <- struct{}{}
	c, err := l.Listener.Accept()
	if err != nil {
		<-l.room
		return nil, err
	}
	uc, ok := c.(*net.UnixConn)
	if !ok {
		c.Close()
		<-l.room
		return nil, fmt.Errorf("control: a connection that is not over a unix socket but %T", c)
	}
	return &limitConn{UnixConn: uc, room: l.room}, nil
}

type limitConn struct {
	*net.UnixConn
	room chan struct{}
	once sync.Once
}

// Close makes room.
func (c *limitConn) Close() error {
	err := c.UnixConn.Close()
	c.once.Do(func() { <-c.room })
	return err
}

// route is one thing that can be asked for.
type route struct {
	method string
	need   right
	params []string
	serve  func(*Server, http.ResponseWriter, *http.Request, string) error
}

// ServeHTTP answers one request; it never panics and answers every error with a
// Problem. The peer comes from the connection, so it is of use to Serve only.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	tw := &trackedWriter{ResponseWriter: w}
	defer func() {
		if v := recover(); v != nil {
			s.log.Error("a request made hvid panic", "method", r.Method, "path", clip(r.URL.Path), "panic", fmt.Sprint(v), "stack", string(debug.Stack()))
			s.fail(tw, r, &Problem{Code: CodeInternal, What: "hvid failed to answer", Fix: "look at hvid's log: journalctl -u hvid, and report it"})
		}
	}()
	if err := s.dispatch(tw, r); err != nil {
		s.fail(tw, r, problemOf(err))
	}
}

func (s *Server) dispatch(w http.ResponseWriter, r *http.Request) error {
	rts, dom, p := routesOf(r.URL)
	var rt route
	if p == nil {
		rt, p = rts.pick(w, r)
	}
	from, known := r.Context().Value(peerKey{}).(peer)
	if !known {
		return &Problem{Code: CodePermission, What: "the process at the other end can't be told", Fix: "use the control socket of hvid"}
	}
	// Who may not read learns nothing of what there is.
	if denied := s.rights.check(from, mayRead); denied != nil {
		s.log.Warn("refused a peer", "peer", from, "path", clip(r.URL.Path))
		return denied
	}
	if p != nil {
		return p
	}
	if denied := s.rights.check(from, rt.need); denied != nil {
		s.log.Warn("refused a peer", "peer", from, "path", clip(r.URL.Path))
		return denied
	}
	if p := checkParams(r.URL, rt.params); p != nil {
		return p
	}
	if rt.need == mayChange {
		s.log.Info("request", "peer", from, "method", r.Method, "path", clip(r.URL.Path))
	}
	return rt.serve(s, w, r, dom)
}

// clip makes a peer's string fit for a log line or an answer.
func clip(s string) string {
	if len(s) > 200 {
		s = s[:200] + "…"
	}
	return printable.Escape(s).String()
}

// pathRoutes are the routes of one path, which differ by their method.
type pathRoutes []route

// pick finds the one of the request's method.
func (rs pathRoutes) pick(w http.ResponseWriter, r *http.Request) (route, *Problem) {
	methods := make([]string, len(rs))
	for i, rt := range rs {
		if rt.method == r.Method {
			return rt, nil
		}
		methods[i] = rt.method
	}
	allow := strings.Join(methods, ", ")
	w.Header().Set("Allow", allow)
	return route{}, &Problem{Code: CodeMethod, What: fmt.Sprintf("%s does not take %s", clip(r.URL.Path), clip(r.Method)), Fix: "use " + allow}
}

// routesOf finds what a path asks for and the domain or UUID in it. It splits
// before it decodes, so a name may hold slashes and dots.
func routesOf(u *url.URL) (pathRoutes, string, *Problem) {
	unknown := &Problem{Code: CodeNotFound, What: "there is nothing at " + clip(u.Path), Fix: "hvid and its client may be of different versions"}
	path, ok := strings.CutPrefix(u.EscapedPath(), "/v1/")
	if !ok {
		return nil, "", unknown
	}
	if uuid, ok := strings.CutPrefix(path, "declarations/"); ok {
		ref, err := url.PathUnescape(uuid)
		if err != nil {
			return nil, "", unknown
		}
		return declarationRoutes, ref, nil
	}
	if dom, ok := strings.CutPrefix(path, "domains/"); ok {
		dom, action, _ := strings.Cut(dom, "/")
		ref, err := url.PathUnescape(dom)
		rt, ok := domainRoutes[action]
		switch {
		case !ok:
			return nil, "", unknown
		case err != nil || ref == "" || len(ref) > maxRef:
			return nil, "", &Problem{Code: CodeBadRequest, What: "the path names no domain", Fix: "give a domid, a name or a UUID"}
		}
		return rt, ref, nil
	}
	rt, ok := routes[path]
	if !ok {
		return nil, "", unknown
	}
	return rt, "", nil
}

var routes = map[string]pathRoutes{
	"version": {{method: http.MethodGet, serve: (*Server).version}},
	"domains": {{method: http.MethodGet, serve: (*Server).domains}},
	"doctor":  {{method: http.MethodGet, serve: (*Server).doctor}},
	"events": {{
		method: http.MethodGet, serve: (*Server).events,
		params: []string{"follow", "domain", "guard", "id", "action", "severity", "since", "until", "after", "limit"},
	}},
	"exceptions": {
		{method: http.MethodGet, serve: (*Server).exceptions},
		{method: http.MethodPost, need: mayChange, serve: (*Server).allow},
		{method: http.MethodPut, need: mayChange, serve: (*Server).reloadExceptions},
		{method: http.MethodDelete, need: mayChange, serve: (*Server).disallow, params: []string{"id"}},
	},
	"declarations": {
		{method: http.MethodGet, serve: (*Server).declarations},
		{method: http.MethodPost, need: mayChange, serve: (*Server).importOne},
	},
}

// declarationRoutes are those of /v1/declarations/{uuid}.
var declarationRoutes = pathRoutes{{method: http.MethodPut, need: mayChange, serve: (*Server).declare}}

// domainRoutes are by what follows /v1/domains/{dom}/; those of guest/{kind} are
// made from the table of questions.
var domainRoutes = withQuestions(map[string]pathRoutes{
	"":       {{method: http.MethodGet, serve: (*Server).domain}},
	"attach": {{method: http.MethodPost, need: mayChange, serve: (*Server).attach}},
	"detach": {{method: http.MethodPost, need: mayChange, serve: (*Server).detach}},
	"resume": {{method: http.MethodPost, need: mayChange, serve: (*Server).resume}},
	"breakpoints": {
		{method: http.MethodPut, need: mayChange, serve: (*Server).setBreakpoint},
		{method: http.MethodDelete, need: mayChange, serve: (*Server).clearBreakpoint},
	},
	"views":   {{method: http.MethodPut, need: mayChange, serve: (*Server).switchView}},
	"profile": {{method: http.MethodGet, need: mayLook, serve: (*Server).profile}},
	"gate":    {{method: http.MethodPost, need: mayChange, serve: (*Server).gate}},
	"policy": {
		{method: http.MethodGet, serve: (*Server).policy},
		{method: http.MethodPut, need: mayChange, serve: (*Server).setPolicy},
		{method: http.MethodDelete, need: mayChange, serve: (*Server).clearPolicy, params: []string{"where"}},
	},
})

func checkParams(u *url.URL, known []string) *Problem {
	q, err := url.ParseQuery(u.RawQuery)
	if err != nil {
		return &Problem{Code: CodeBadRequest, What: "the query can't be read", Fix: "percent-encode its values", Err: err}
	}
	for name, values := range q {
		switch {
		case !slices.Contains(known, name) && len(known) == 0:
			return &Problem{Code: CodeBadRequest, What: "unknown parameter " + clip(name), Fix: "this path takes none"}
		case !slices.Contains(known, name):
			return &Problem{Code: CodeBadRequest, What: "unknown parameter " + clip(name), Fix: "it takes " + strings.Join(known, ", ")}
		case len(values) > 1:
			return &Problem{Code: CodeBadRequest, What: "parameter " + name + " is given twice", Fix: "give it once"}
		}
	}
	return nil
}

// readBody decodes a JSON object strictly; an empty body leaves v as it is.
func readBody(w http.ResponseWriter, r *http.Request, v any) error {
	rc := http.NewResponseController(w)
	// A peer that sends nothing must not hold the request; a writer that has
	// no deadlines is a test's.
	_ = rc.SetReadDeadline(time.Now().Add(bodyTimeout))
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxBody))
	_ = rc.SetReadDeadline(time.Time{})
	var tooBig *http.MaxBytesError
	switch {
	case errors.As(err, &tooBig):
		return &Problem{Code: CodeBadRequest, What: fmt.Sprintf("the request is larger than %d bytes", tooBig.Limit), Fix: "send less", Err: err}
	case err != nil:
		return &Problem{Code: CodeBadRequest, What: "the request can't be read", Fix: "send it whole", Err: err}
	}
	if len(bytes.TrimSpace(body)) == 0 {
		return nil
	}
	d := json.NewDecoder(bytes.NewReader(body))
	d.DisallowUnknownFields()
	if err := d.Decode(v); err != nil {
		return &Problem{Code: CodeBadRequest, What: "the request is not what was expected: " + clip(err.Error()), Fix: "hvid and its client may be of different versions", Err: err}
	}
	if _, err := d.Token(); err != io.EOF {
		return &Problem{Code: CodeBadRequest, What: "the request goes on after its end", Fix: "send one JSON object"}
	}
	return nil
}

func (s *Server) version(w http.ResponseWriter, r *http.Request, _ string) error {
	ctx, cancel := context.WithTimeout(r.Context(), s.opt.ReadTimeout)
	defer cancel()
	v, err := s.opt.Engine.Version(ctx)
	if err != nil {
		return err
	}
	return s.answer(w, v)
}

// list asks the engine for all domains, by domid.
func (s *Server) list(ctx context.Context) ([]DomainStatus, error) {
	ds, err := s.opt.Engine.Domains(ctx)
	if err != nil {
		return nil, err
	}
	ds = slices.Clone(ds)
	for i := range ds {
		tidy(&ds[i])
	}
	slices.SortFunc(ds, func(a, b DomainStatus) int {
		if c := int(a.ID) - int(b.ID); c != 0 {
			return c
		}
		return strings.Compare(a.UUID, b.UUID)
	})
	return ds, nil
}

// tidy makes a status fit to send.
func tidy(d *DomainStatus) {
	if d.Guards == nil {
		d.Guards = []GuardStatus{}
	}
}

func (s *Server) domains(w http.ResponseWriter, r *http.Request, _ string) error {
	ctx, cancel := context.WithTimeout(r.Context(), s.opt.ReadTimeout)
	defer cancel()
	ds, err := s.list(ctx)
	if err != nil {
		return err
	}
	if ds == nil {
		ds = []DomainStatus{}
	}
	return s.answer(w, ds)
}

// resolve finds the domain that a path names.
func (s *Server) resolve(ctx context.Context, ref string) (DomainRef, error) {
	ds, err := s.list(ctx)
	if err != nil {
		return DomainRef{}, err
	}
	d, err := Resolve(ds, ref)
	if err != nil {
		return DomainRef{}, err
	}
	return DomainRef{ID: d.ID, UUID: d.UUID, Name: d.Name, Ref: ref}, nil
}

// onDomain resolves the domain, does something with it and answers with its
// status.
func (s *Server) onDomain(w http.ResponseWriter, r *http.Request, ref string, timeout time.Duration,
	do func(context.Context, DomainRef) (DomainStatus, error),
) error {
	ctx, cancel := context.WithTimeout(r.Context(), timeout)
	defer cancel()
	dom, err := s.resolve(ctx, ref)
	if err != nil {
		return err
	}
	st, err := do(ctx, dom)
	if err != nil {
		return err
	}
	tidy(&st)
	return s.answer(w, st)
}

func (s *Server) domain(w http.ResponseWriter, r *http.Request, ref string) error {
	return s.onDomain(w, r, ref, s.opt.ReadTimeout, s.opt.Engine.Domain)
}

func (s *Server) attach(w http.ResponseWriter, r *http.Request, ref string) error {
	var req AttachRequest
	if err := readBody(w, r, &req); err != nil {
		return err
	}
	if p := req.check(); p != nil {
		return p
	}
	return s.onDomain(w, r, ref, s.opt.ChangeTimeout, func(ctx context.Context, dom DomainRef) (DomainStatus, error) {
		return s.opt.Engine.Attach(ctx, dom, req)
	})
}

// check looks at the form of a request; what the words mean is the policy's.
func (q *AttachRequest) check() *Problem {
	const where = "attach request"
	if len(q.Mode) > maxWord {
		return &Problem{Code: CodeBadRequest, What: "the mode is longer than any mode", Where: where, Fix: "give learn, observe or enforce"}
	}
	return checkGuards(q.Guards, where)
}

// checkGuards looks at the form of a list of guards.
func checkGuards(gs []GuardRequest, where string) *Problem {
	bad := func(what, fix string) *Problem {
		return &Problem{Code: CodeBadRequest, What: what, Where: where, Fix: fix}
	}
	if len(gs) > maxGuards {
		return bad(fmt.Sprintf("%d guards, at most %d", len(gs), maxGuards), "name each guard once")
	}
	seen := make(map[string]bool, len(gs))
	for _, g := range gs {
		switch {
		case g.Name == "" || g.Action == "":
			return bad("a guard without a name or an action", "write name=action")
		case len(g.Name) > maxWord || len(g.Action) > maxWord:
			return bad("a guard's name or action is longer than any", "write name=action")
		case seen[g.Name]:
			return bad("guard "+clip(g.Name)+" is given twice", "give it once")
		}
		seen[g.Name] = true
	}
	return nil
}

func (s *Server) detach(w http.ResponseWriter, r *http.Request, ref string) error {
	if err := readBody(w, r, &struct{}{}); err != nil {
		return err
	}
	return s.onDomain(w, r, ref, s.opt.ChangeTimeout, s.opt.Engine.Detach)
}

func (s *Server) resume(w http.ResponseWriter, r *http.Request, ref string) error {
	if err := readBody(w, r, &struct{}{}); err != nil {
		return err
	}
	return s.onDomain(w, r, ref, s.opt.ChangeTimeout, s.opt.Engine.Resume)
}

func (s *Server) setBreakpoint(w http.ResponseWriter, r *http.Request, ref string) error {
	return s.changeBreakpoint(w, r, ref, true)
}

func (s *Server) clearBreakpoint(w http.ResponseWriter, r *http.Request, ref string) error {
	return s.changeBreakpoint(w, r, ref, false)
}

func (s *Server) changeBreakpoint(w http.ResponseWriter, r *http.Request, ref string, on bool) error {
	var req BreakpointRequest
	if err := readBody(w, r, &req); err != nil {
		return err
	}
	if req.Symbol == "" || len(req.Symbol) > MaxSymbol || printable.Escape(req.Symbol).String() != req.Symbol {
		return &Problem{Code: CodeBadRequest, What: "no symbol, or none that a kernel has", Where: "breakpoint", Fix: "give the name of a function, or name+offset"}
	}
	return s.onDomain(w, r, ref, s.opt.ChangeTimeout, func(ctx context.Context, dom DomainRef) (DomainStatus, error) {
		return s.opt.Engine.SetBreakpoint(ctx, dom, req.Symbol, on)
	})
}

func (s *Server) switchView(w http.ResponseWriter, r *http.Request, ref string) error {
	var req ViewRequest
	if err := readBody(w, r, &req); err != nil {
		return err
	}
	if err := policy.CheckViewName(req.View); err != nil {
		return &Problem{Code: CodeBadRequest, What: err.Error(), Where: "view", Fix: "give the name of a view; hvictl views shows them"}
	}
	by := PeerOf(r.Context())
	return s.onDomain(w, r, ref, s.opt.ChangeTimeout, func(ctx context.Context, dom DomainRef) (DomainStatus, error) {
		return s.opt.Engine.SwitchView(ctx, dom, req.View, by)
	})
}

func (s *Server) doctor(w http.ResponseWriter, r *http.Request, _ string) error {
	ctx, cancel := context.WithTimeout(r.Context(), s.opt.ReadTimeout)
	defer cancel()
	rep, err := s.opt.Engine.Doctor(ctx)
	if err != nil {
		return err
	}
	if rep.Checks == nil {
		rep.Checks = []Check{}
	}
	rep.Domains = append([]DomainReport{}, rep.Domains...)
	for i := range rep.Domains {
		if rep.Domains[i].Checks == nil {
			rep.Domains[i].Checks = []Check{}
		}
	}
	return s.answer(w, rep)
}

// eventsOptions reads the parameters of /v1/events.
func eventsOptions(q url.Values) (journal.SubscribeOptions, *Problem) {
	var o journal.SubscribeOptions
	bad := func(param, fix string) (journal.SubscribeOptions, *Problem) {
		return o, &Problem{Code: CodeBadRequest, What: fmt.Sprintf("parameter %s is %s", param, printable.Escape(q.Get(param)).Quoted()), Fix: fix}
	}
	switch q.Get("follow") {
	case "", "0":
	case "1":
		o.Follow = true
	default:
		return bad("follow", "give 0 or 1")
	}
	o.Filter.Domain = q.Get("domain")
	o.Filter.Guard = q.Get("guard")
	if len(o.Filter.Domain) > maxRef || len(o.Filter.Guard) > maxRef {
		return o, &Problem{Code: CodeBadRequest, What: "domain or guard is longer than any name"}
	}
	for param, to := range map[string]*time.Time{"since": &o.Filter.Since, "until": &o.Filter.Until} {
		if v := q.Get(param); v != "" {
			t, err := time.Parse(time.RFC3339Nano, v)
			if err != nil {
				return bad(param, "give a time as in 2006-01-02T15:04:05Z")
			}
			*to = t
		}
	}
	if v := q.Get("action"); v != "" {
		o.Filter.Action = journal.Action(v)
		if !slices.Contains(journal.Actions(), o.Filter.Action) {
			return bad("action", "give one of "+join(journal.Actions()))
		}
	}
	if v := q.Get("severity"); v != "" {
		o.Filter.Severity = journal.Severity(v)
		if !slices.Contains(journal.Severities(), o.Filter.Severity) {
			return bad("severity", "give one of "+join(journal.Severities()))
		}
	}
	if v := q.Get("id"); v != "" {
		o.Filter.ID = journal.ID(v)
		if _, _, ok := o.Filter.ID.Split(); !ok {
			return bad("id", "give the ID of an event")
		}
	}
	if v := q.Get("after"); v != "" {
		o.Filter.After = journal.ID(v)
		if _, _, ok := o.Filter.After.Split(); !ok {
			return bad("after", "give the ID of an event")
		}
	}
	if v := q.Get("limit"); v != "" {
		n, err := strconv.ParseUint(v, 10, 31)
		if err != nil || n > journal.MaxQuery {
			return bad("limit", fmt.Sprintf("give a number up to %d, or none for all", journal.MaxQuery))
		}
		o.History = int(n)
	}
	if o.History == 0 && (!o.Follow || !o.Filter.Since.IsZero() || o.Filter.After != "" || o.Filter.ID != "") {
		o.History = journal.HistoryAll
	}
	return o, nil
}

// join lists words for people.
func join[T ~string](words []T) string {
	var b strings.Builder
	for i, w := range words {
		if i > 0 {
			b.WriteString(", ")
		}
		b.WriteString(string(w))
	}
	return b.String()
}

// streamEnd is the line that ends a stream in order.
type streamEnd struct {
	Type   string `json:"type"`
	Reason string `json:"reason"`
}

// streamProblem is the line that ends a stream after a failure.
type streamProblem struct {
	Type string `json:"type"`
	wireProblem
}

func (s *Server) events(w http.ResponseWriter, r *http.Request, _ string) error {
	o, p := eventsOptions(r.URL.Query())
	if p != nil {
		return p
	}
	select {
	case s.follow <- struct{}{}:
		defer func() { <-s.follow }()
	default:
		return &Problem{Code: CodeBusy, What: fmt.Sprintf("%d readers of events are connected already", maxFollowers), Fix: "stop one of them"}
	}
	sub, err := s.opt.Journal.Subscribe(o)
	if err != nil {
		return err
	}
	defer sub.Close()

	rc := http.NewResponseController(w)
	ctx, cancel := context.WithCancel(r.Context())
	defer cancel()
	// A stream ends when hvid stops, even one whose reader does not read.
	defer context.AfterFunc(s.stopping, func() {
		cancel()
		_ = rc.SetWriteDeadline(time.Now().Add(stopGrace))
	})()

	w.Header().Set("Content-Type", "application/x-ndjson")
	w.WriteHeader(http.StatusOK)
	if err := rc.Flush(); err != nil {
		return nil // the peer has gone
	}
	for {
		var line any
		last := true
		it, ok, err := sub.TryNext(ctx)
		if !ok && err == nil {
			if err := rc.Flush(); err != nil {
				return nil
			}
			it, err = sub.Next(ctx)
		}
		switch {
		case err == nil:
			line, last = it, false
		case errors.Is(err, io.EOF), r.Context().Err() != nil:
			return nil
		case s.stopping.Err() != nil, errors.Is(err, journal.ErrClosed):
			line = streamEnd{"end", "hvid is stopping"}
		default:
			p := problemOf(err)
			line = streamProblem{"problem", wireProblem{p.Error(), p}}
		}
		b, err := encode(line)
		if err != nil {
			return err // too late for the client; the log has it
		}
		if _, err := w.Write(b); err != nil || last {
			return nil
		}
	}
}

// encode returns v as one line of JSON.
func encode(v any) ([]byte, error) {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	err := e.Encode(v)
	return b.Bytes(), err
}

func (s *Server) answer(w http.ResponseWriter, v any) error {
	b, err := encode(v)
	if err != nil {
		return fmt.Errorf("control: encode the answer: %w", err)
	}
	s.send(w, http.StatusOK, b)
	return nil
}

// fail answers with a Problem, unless an answer has begun.
func (s *Server) fail(w *trackedWriter, r *http.Request, p *Problem) {
	if p.Code == CodeInternal {
		s.log.Error("request failed", "method", r.Method, "path", clip(r.URL.Path), "err", fmt.Sprintf("%+v", p))
	}
	if w.begun {
		return
	}
	b, err := encode(wireProblem{p.Error(), p})
	if err != nil {
		b = []byte(`{"error":"hvid failed to answer","what":"hvid failed to answer","code":"internal"}` + "\n")
	}
	s.send(w, p.Code.HTTPStatus(), b)
}

func (s *Server) send(w http.ResponseWriter, status int, b []byte) {
	rc := http.NewResponseController(w)
	_ = rc.SetWriteDeadline(time.Now().Add(answerTimeout))
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	if _, err := w.Write(b); err == nil {
		// Sent before the deadline is lifted for the connection's next request.
		_ = rc.Flush()
		_ = rc.SetWriteDeadline(time.Time{})
	}
}

// trackedWriter remembers whether an answer has begun.
type trackedWriter struct {
	http.ResponseWriter
	begun bool
}

// WriteHeader begins the answer.
func (w *trackedWriter) WriteHeader(status int) {
	w.begun = true
	w.ResponseWriter.WriteHeader(status)
}

// Write begins the answer.
func (w *trackedWriter) Write(b []byte) (int, error) {
	w.begun = true
	return w.ResponseWriter.Write(b)
}

// Unwrap lets http.ResponseController find what it needs.
func (w *trackedWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }
