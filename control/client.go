package control

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/xen-hvi/hvi/engine/inspect"
	"github.com/xen-hvi/hvi/engine/journal"
)

const (
	// maxAnswer bounds what a Client reads into memory for one answer.
	maxAnswer = 64 << 20

	clientReadTime   = 35 * time.Second
	clientChangeTime = 70 * time.Second
	// clientGateGrace leaves hvid the time to answer that a gate stays shut.
	clientGateGrace = 5 * time.Second
)

// Client talks to a hvid. It is safe for concurrent use. Every error of its
// methods is a *Problem, with CodeUnreachable where hvid does not answer, or
// the error of the context that the caller gave.
type Client struct {
	// ReadTimeout bounds each call that reads, and how long an event stream
	// takes to begin; ChangeTimeout bounds attach and detach. They are a
	// little longer than the server's own. Set them before the first call.
	ReadTimeout, ChangeTimeout time.Duration

	path string
	http *http.Client
}

// NewClient returns a client of the hvid that listens at path. It connects with
// the first call.
func NewClient(path string) *Client {
	var d net.Dialer
	return &Client{
		ReadTimeout: clientReadTime, ChangeTimeout: clientChangeTime,
		path: path,
		http: &http.Client{
			Transport: &http.Transport{
				DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
					return d.DialContext(ctx, "unix", path)
				},
				DisableCompression: true,
			},
			CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		},
	}
}

// Close releases idle connections. The client can be used again.
func (c *Client) Close() { c.http.CloseIdleConnections() }

// Version describes hvid.
func (c *Client) Version(ctx context.Context) (v Version, err error) {
	return v, c.call(ctx, c.ReadTimeout, http.MethodGet, "version", nil, &v)
}

// Domains returns all domains, by domid.
func (c *Client) Domains(ctx context.Context) (ds []DomainStatus, err error) {
	return ds, c.call(ctx, c.ReadTimeout, http.MethodGet, "domains", nil, &ds)
}

// Domain returns the domain that ref, a domid, name or UUID, names.
func (c *Client) Domain(ctx context.Context, ref string) (d DomainStatus, err error) {
	return d, c.call(ctx, c.ReadTimeout, http.MethodGet, domainPath(ref, ""), nil, &d)
}

// Attach asks for protection of the domain that ref names.
func (c *Client) Attach(ctx context.Context, ref string, req AttachRequest) (d DomainStatus, err error) {
	return d, c.call(ctx, c.ChangeTimeout, http.MethodPost, domainPath(ref, "/attach"), req, &d)
}

// Detach ends the protection of the domain that ref names.
func (c *Client) Detach(ctx context.Context, ref string) (d DomainStatus, err error) {
	return d, c.call(ctx, c.ChangeTimeout, http.MethodPost, domainPath(ref, "/detach"), nil, &d)
}

// Resume has the domain run on that ref names and a guard has paused.
func (c *Client) Resume(ctx context.Context, ref string) (d DomainStatus, err error) {
	return d, c.call(ctx, c.ChangeTimeout, http.MethodPost, domainPath(ref, "/resume"), nil, &d)
}

// SetBreakpoint puts a hidden breakpoint into the kernel of the domain that ref
// names.
func (c *Client) SetBreakpoint(ctx context.Context, ref, symbol string) (d DomainStatus, err error) {
	return d, c.call(ctx, c.ChangeTimeout, http.MethodPut, domainPath(ref, "/breakpoints"), BreakpointRequest{symbol}, &d)
}

// ClearBreakpoint takes one away.
func (c *Client) ClearBreakpoint(ctx context.Context, ref, symbol string) (d DomainStatus, err error) {
	return d, c.call(ctx, c.ChangeTimeout, http.MethodDelete, domainPath(ref, "/breakpoints"), BreakpointRequest{symbol}, &d)
}

// SwitchView has the domain that ref names run in another view of its policy.
func (c *Client) SwitchView(ctx context.Context, ref, view string) (d DomainStatus, err error) {
	return d, c.call(ctx, c.ChangeTimeout, http.MethodPut, domainPath(ref, "/views"), ViewRequest{view}, &d)
}

// Doctor returns what hvid finds of its host.
func (c *Client) Doctor(ctx context.Context) (r DoctorReport, err error) {
	return r, c.call(ctx, c.ReadTimeout, http.MethodGet, "doctor", nil, &r)
}

// Declare hands over what a toolstack declares for the domain with this UUID,
// which need not exist yet.
func (c *Client) Declare(ctx context.Context, uuid string, req DeclareRequest) (d Declared, err error) {
	return d, c.call(ctx, c.ChangeTimeout, http.MethodPut, "declarations/"+pathEscape(uuid), req, &d)
}

// Declarations returns what hvid keeps of every domain.
func (c *Client) Declarations(ctx context.Context) (ds []Declaration, err error) {
	return ds, c.call(ctx, c.ReadTimeout, http.MethodGet, "declarations", nil, &ds)
}

// Import hands over what another host's Declarations had for one domain.
func (c *Client) Import(ctx context.Context, d Declaration) (kept Declaration, err error) {
	return kept, c.call(ctx, c.ChangeTimeout, http.MethodPost, "declarations", d, &kept)
}

// Gate waits until hvid says whether the start of the domain that ref names may
// go on. hvid bounds the wait by req.TimeoutMS, or by its configuration; the
// call itself takes a little longer at most.
func (c *Client) Gate(ctx context.Context, ref string, req GateRequest) (g GateResult, err error) {
	timeout := MaxGate + clientGateGrace
	if req.TimeoutMS > 0 {
		timeout = time.Duration(min(int64(req.TimeoutMS), MaxGate.Milliseconds()))*time.Millisecond + clientGateGrace
	}
	return g, c.call(ctx, timeout, http.MethodPost, domainPath(ref, "/gate"), req, &g)
}

// Policy returns the policy of the domain that ref names and where it comes
// from. The domain need not run.
func (c *Client) Policy(ctx context.Context, ref string) (p PolicyReport, err error) {
	return p, c.call(ctx, c.ReadTimeout, http.MethodGet, domainPath(ref, "/policy"), nil, &p)
}

// SetPolicy replaces the policy of the domain that ref names.
func (c *Client) SetPolicy(ctx context.Context, ref string, req PolicyRequest) (p PolicyReport, err error) {
	return p, c.call(ctx, c.ChangeTimeout, http.MethodPut, domainPath(ref, "/policy"), req, &p)
}

// ClearPolicy makes it that nothing is declared for the domain that ref names;
// where is WhereLive, WhereConfig, or WhereBoth.
func (c *Client) ClearPolicy(ctx context.Context, ref, where string) (p PolicyReport, err error) {
	return p, c.call(ctx, c.ChangeTimeout, http.MethodDelete, domainPath(ref, "/policy?where="+url.QueryEscape(where)), nil, &p)
}

// Guest asks a question about the guest of the domain that ref names. The answer
// is decoded into out, which is a pointer to the kind's type of report: what
// [inspect.Question.Result] returns.
func (c *Client) Guest(ctx context.Context, ref string, kind inspect.Kind, args inspect.Args, out any) error {
	v := url.Values{}
	if args.PID != 0 {
		v.Set("pid", strconv.Itoa(int(args.PID)))
	}
	if args.Threads {
		v.Set("threads", "1")
	}
	path := domainPath(ref, "/guest/"+url.PathEscape(string(kind)))
	if len(v) > 0 {
		path += "?" + v.Encode()
	}
	return c.call(ctx, c.ReadTimeout, http.MethodGet, path, nil, out)
}

// Profile writes the symbols and types of the kernel of the domain that ref names
// to w, as JSON in the format of Volatility 3. An error of w is returned as it
// is; after any error w may have a part.
func (c *Client) Profile(ctx context.Context, ref string, w io.Writer) error {
	ctx, cancel := context.WithTimeoutCause(ctx, c.ChangeTimeout, errNoAnswer)
	defer cancel()
	resp, err := c.do(ctx, http.MethodGet, domainPath(ref, "/profile"), nil)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	body := &tellingReader{r: io.LimitReader(resp.Body, MaxProfile+1)}
	n, err := io.Copy(w, body)
	switch {
	case body.err != nil:
		return c.problem(ctx, body.err)
	case err == nil && n > MaxProfile:
		return c.notHvid(fmt.Errorf("a profile of more than %d bytes", MaxProfile))
	}
	return err
}

// tellingReader keeps the error of reading, to tell it from one of writing.
type tellingReader struct {
	r   io.Reader
	err error
}

// Read reads.
func (t *tellingReader) Read(b []byte) (int, error) {
	n, err := t.r.Read(b)
	if err != nil && err != io.EOF {
		t.err = err
	}
	return n, err
}

func domainPath(ref, action string) string { return "domains/" + pathEscape(ref) + action }

// pathEscape encodes every byte of ref that could mean something in a path,
// dots included: a domain may be called "..".
func pathEscape(ref string) string {
	return strings.ReplaceAll(url.PathEscape(ref), ".", "%2E")
}

// call sends a request and decodes the answer into out.
func (c *Client) call(ctx context.Context, timeout time.Duration, method, path string, in, out any) error {
	ctx, cancel := context.WithTimeoutCause(ctx, timeout, errNoAnswer)
	defer cancel()
	resp, err := c.do(ctx, method, path, in)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer+1))
	switch {
	case err != nil:
		return c.problem(ctx, err)
	case len(body) > maxAnswer:
		return c.notHvid(fmt.Errorf("an answer of more than %d bytes", maxAnswer))
	}
	if err := json.Unmarshal(body, out); err != nil {
		return c.notHvid(err)
	}
	return nil
}

// errNoAnswer is the cause of a context that ended because of our own timeout.
var errNoAnswer = errors.New("no answer in time")

// do sends a request; the response is a successful one and its body is to be
// closed.
func (c *Client) do(ctx context.Context, method, path string, in any) (*http.Response, error) {
	var body io.Reader
	if in != nil {
		b, err := json.Marshal(in)
		if err != nil {
			return nil, &Problem{Code: CodeBadRequest, What: err.Error(), Err: err}
		}
		body = bytes.NewReader(b)
	}
	req, err := http.NewRequestWithContext(ctx, method, "http://hvid/v1/"+path, body)
	if err != nil {
		return nil, &Problem{Code: CodeBadRequest, What: err.Error(), Err: err}
	}
	if in != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return nil, c.problem(ctx, err)
	}
	if resp.StatusCode == http.StatusOK {
		return resp, nil
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer))
	if err != nil {
		return nil, c.problem(ctx, err)
	}
	p := new(Problem)
	if err := json.Unmarshal(b, p); err != nil || p.Code == "" || p.What == "" {
		return nil, c.notHvid(fmt.Errorf("HTTP status %s: %s", clip(resp.Status), clip(string(b))))
	}
	return nil, p
}

const howToStart = "is hvid running? start it: systemctl start hvid"

// problem explains why no answer came.
func (c *Client) problem(ctx context.Context, err error) error {
	p := &Problem{Code: CodeUnreachable, Where: c.path, Fix: howToStart, Err: err}
	switch {
	case context.Cause(ctx) == errNoAnswer:
		p.What = "hvid does not answer"
		p.Fix = "look at its log: journalctl -u hvid; restart it: systemctl restart hvid"
	case ctx.Err() != nil:
		return ctx.Err()
	case errors.Is(err, fs.ErrNotExist):
		p.What = "hvid is not reachable: there is no such socket"
	case errors.Is(err, syscall.ECONNREFUSED):
		p.What = "hvid is not reachable: nobody serves its socket"
	case errors.Is(err, fs.ErrPermission):
		p.Code = CodePermission
		p.What = "this user may not talk to hvid"
		p.Fix = "run it as root, or join the group " + Group + " and log in again"
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, syscall.ECONNRESET), errors.Is(err, syscall.EPIPE):
		p.What = "hvid closed the connection"
	default:
		// Not the URL: it is made up.
		var u *url.Error
		if errors.As(err, &u) {
			err = u.Err
		}
		p.What = "hvid is not reachable: " + err.Error()
	}
	return p
}

// notHvid explains an answer that no hvid gives.
func (c *Client) notHvid(err error) error {
	return &Problem{
		Code: CodeUnreachable, What: "what answers is not a hvid of a known version: " + err.Error(),
		Where: c.path, Fix: "check --socket; use hvictl and hvid of one release", Err: err,
	}
}

// Events begins a stream of events. ctx bounds all of it. The caller must Close
// the stream.
func (c *Client) Events(ctx context.Context, q EventsQuery) (*EventStream, error) {
	v := url.Values{}
	set := func(name, value string) {
		if value != "" {
			v.Set(name, value)
		}
	}
	set("domain", q.Domain)
	set("guard", q.Guard)
	set("id", string(q.ID))
	set("action", string(q.Action))
	set("severity", string(q.Severity))
	set("after", string(q.After))
	if !q.Since.IsZero() {
		set("since", q.Since.UTC().Format(time.RFC3339Nano))
	}
	if !q.Until.IsZero() {
		set("until", q.Until.UTC().Format(time.RFC3339Nano))
	}
	if q.Limit > 0 {
		set("limit", strconv.Itoa(q.Limit))
	}
	if q.Follow {
		set("follow", "1")
	}
	path := "events"
	if len(v) > 0 {
		path += "?" + v.Encode()
	}
	ctx, cancel := context.WithCancelCause(ctx)
	// The timeout is for the beginning only; a stream may be silent for days.
	late := time.AfterFunc(c.ReadTimeout, func() { cancel(errNoAnswer) })
	resp, err := c.do(ctx, http.MethodGet, path, nil)
	if !late.Stop() && err == nil {
		resp.Body.Close()
		err = c.problem(ctx, errNoAnswer)
	}
	if err != nil {
		cancel(nil)
		return nil, err
	}
	return newEventStream(ctx, cancel, c, resp.Body), nil
}

func newEventStream(ctx context.Context, cancel context.CancelCauseFunc, c *Client, body io.ReadCloser) *EventStream {
	return &EventStream{c: c, ctx: ctx, cancel: cancel, body: body, r: bufio.NewReaderSize(body, 64<<10)}
}

// EventStream is a stream of events. Next must not be called from two
// goroutines at once; Close may be called from any.
type EventStream struct {
	c      *Client
	ctx    context.Context
	cancel context.CancelCauseFunc
	body   io.ReadCloser
	r      *bufio.Reader
}

// Next waits for the next event, or the word that some were missed. At the end
// of a stream that does not follow the error is io.EOF; for one that hvid ended
// it is a *Problem of CodeUnavailable.
func (s *EventStream) Next() (journal.Item, error) {
	for {
		line, err := s.line()
		if err != nil {
			return journal.Item{}, err
		}
		var head struct {
			Type   string `json:"type"`
			Reason string `json:"reason"`
		}
		if err := json.Unmarshal(line, &head); err != nil {
			return journal.Item{}, s.c.notHvid(err)
		}
		switch head.Type {
		case "event", "missed":
			var it journal.Item
			if err := json.Unmarshal(line, &it); err != nil {
				return it, s.c.notHvid(err)
			}
			return it, nil
		case "problem":
			p := new(Problem)
			if err := json.Unmarshal(line, p); err != nil {
				return journal.Item{}, s.c.notHvid(err)
			}
			return journal.Item{}, p
		case "end":
			return journal.Item{}, &Problem{Code: CodeUnavailable, What: "hvid ended the stream: " + clip(head.Reason), Where: s.c.path, Fix: "call again when hvid runs"}
		}
		// A type of a later release: not for us.
	}
}

// line reads one line, of bounded length.
func (s *EventStream) line() ([]byte, error) {
	var line []byte
	for {
		part, err := s.r.ReadSlice('\n')
		line = append(line, part...)
		switch {
		case err == nil:
			return line, nil
		case errors.Is(err, bufio.ErrBufferFull) && len(line) <= 2*journal.MaxLine:
			continue
		case errors.Is(err, bufio.ErrBufferFull):
			return nil, s.c.notHvid(errors.New("an event that is too long"))
		case err == io.EOF && len(line) == 0:
			return nil, io.EOF
		}
		return nil, s.c.problem(s.ctx, err)
	}
}

// Close ends the stream; a Next that waits returns context.Canceled.
func (s *EventStream) Close() error {
	s.cancel(nil)
	return s.body.Close()
}
