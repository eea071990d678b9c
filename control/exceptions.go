package control

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/xen-hvi/hvi/engine/journal"
	"github.com/xen-hvi/hvi/engine/policy"
	"github.com/xen-hvi/hvi/engine/printable"
)

// Exception is an exception that hvid knows, and what it has permitted.
type Exception struct {
	ID string `json:"id"`
	policy.Exception
	// From is ExceptionKept, ExceptionFile or ExceptionPolicy.
	From string `json:"from"`
	// Expired: it has ended, and permits nothing.
	Expired bool `json:"expired,omitempty"`
	// Domains are the running domains in whose guards it is.
	Domains []ExceptionUse `json:"domains"`
}

// Where exceptions come from.
const (
	// ExceptionKept: hvid keeps it, since somebody allowed it.
	ExceptionKept = "kept"
	// ExceptionFile: the admin's file of exceptions.
	ExceptionFile = "file"
	// ExceptionPolicy: a policy that a running domain names.
	ExceptionPolicy = "policy"
)

// ExceptionUse is what has become of an exception in one domain.
type ExceptionUse struct {
	ID   uint16         `json:"id"`
	Name printable.Text `json:"name"`
	UUID string         `json:"uuid"`
	// Uses counts what it has permitted since the domain was attached to.
	Uses uint64    `json:"uses"`
	Last time.Time `json:"last,omitzero"`
	// Inactive says why it can permit nothing there, "" if it can.
	Inactive string `json:"inactive,omitempty"`
}

// maxExceptionRefs bounds how many are removed at once.
const maxExceptionRefs = policy.MaxExceptions

func (s *Server) exceptions(w http.ResponseWriter, r *http.Request, _ string) error {
	return s.onExceptions(w, r, s.opt.ReadTimeout, s.opt.Engine.Exceptions)
}

func (s *Server) allow(w http.ResponseWriter, r *http.Request, _ string) error {
	var e policy.Exception
	if err := readBody(w, r, &e); err != nil {
		return err
	}
	const where = "exception"
	e.Domain = strings.ToLower(e.Domain)
	if err := e.Validate(); err != nil {
		return &Problem{Code: CodeBadRequest, What: strings.ReplaceAll(err.Error(), "\n", "; "), Where: where, Err: err}
	}
	return s.onExceptions(w, r, s.opt.ChangeTimeout, func(ctx context.Context) ([]Exception, error) { return s.opt.Engine.Allow(ctx, e) })
}

func (s *Server) reloadExceptions(w http.ResponseWriter, r *http.Request, _ string) error {
	if err := readBody(w, r, &struct{}{}); err != nil {
		return err
	}
	return s.onExceptions(w, r, s.opt.ChangeTimeout, s.opt.Engine.ReloadExceptions)
}

func (s *Server) disallow(w http.ResponseWriter, r *http.Request, _ string) error {
	if err := readBody(w, r, &struct{}{}); err != nil {
		return err
	}
	ids := strings.Split(r.URL.Query().Get("id"), ",")
	for _, id := range ids {
		if id == "" || len(id) > maxWord || len(ids) > maxExceptionRefs {
			return &Problem{Code: CodeBadRequest, What: "the request names no exception, or too many", Fix: "give id=ID, or several with commas between"}
		}
	}
	return s.onExceptions(w, r, s.opt.ChangeTimeout, func(ctx context.Context) ([]Exception, error) { return s.opt.Engine.Disallow(ctx, ids) })
}

// onExceptions does something and answers with what there is then.
func (s *Server) onExceptions(w http.ResponseWriter, r *http.Request, timeout time.Duration, do func(context.Context) ([]Exception, error)) error {
	ctx, cancel := context.WithTimeout(r.Context(), timeout)
	defer cancel()
	list, err := do(ctx)
	if err != nil {
		return err
	}
	out := make([]Exception, len(list))
	for i, e := range list {
		if e.Domains == nil {
			e.Domains = []ExceptionUse{}
		}
		out[i] = e
	}
	return s.answer(w, out)
}

// Exceptions returns the exceptions that hvid knows.
func (c *Client) Exceptions(ctx context.Context) (es []Exception, err error) {
	return es, c.call(ctx, c.ReadTimeout, http.MethodGet, "exceptions", nil, &es)
}

// Allow has hvid keep an exception, and returns what there is when it is in force.
func (c *Client) Allow(ctx context.Context, e policy.Exception) (es []Exception, err error) {
	return es, c.call(ctx, c.ChangeTimeout, http.MethodPost, "exceptions", e, &es)
}

// Disallow has hvid forget exceptions that it keeps, all or none.
func (c *Client) Disallow(ctx context.Context, ids []string) (es []Exception, err error) {
	return es, c.call(ctx, c.ChangeTimeout, http.MethodDelete, "exceptions?id="+url.QueryEscape(strings.Join(ids, ",")), nil, &es)
}

// ReloadExceptions has hvid read the admin's file of exceptions anew.
func (c *Client) ReloadExceptions(ctx context.Context) (es []Exception, err error) {
	return es, c.call(ctx, c.ChangeTimeout, http.MethodPut, "exceptions", nil, &es)
}

// The conditions that ExceptionOf can leave out, for people.
const (
	AnyDomain  = "domain"
	AnyProcess = "process"
	AnyCode    = "code"
	AnyTarget  = "target"
	AnyBytes   = "bytes"
	AnyKernel  = "kernel"
)

// Conditions are the words for ExceptionOf.
func Conditions() []string {
	return []string{AnyDomain, AnyProcess, AnyCode, AnyTarget, AnyBytes, AnyKernel}
}

// UnnamedError is a condition of which an event does not say enough to be met
// again.
type UnnamedError struct {
	// Condition is one of Conditions, Why the reason.
	Condition, Why string
}

// Error names the condition and the reason.
func (e *UnnamedError) Error() string { return e.Why }

// ExceptionOf makes an exception that permits what an event reports, and as little
// else as the event allows. any are the conditions that are left out. A condition
// that the event can't tell and that is not left out is an *UnnamedError; all of
// them are joined.
func ExceptionOf(r *journal.Record, any map[string]bool) (policy.Exception, error) {
	e := policy.Exception{Guard: policy.GuardName(r.Guard)}
	if r.Action == journal.Noted {
		return e, errors.New("it is no violation: there is nothing to permit")
	}
	var errs []error
	need := func(condition string, known bool, why string, set func()) {
		switch {
		case any[condition]:
		case known:
			set()
		default:
			errs = append(errs, &UnnamedError{condition, why})
		}
	}
	// What was escaped, or shortened, is not what the guest said.
	plain := func(t printable.Text) bool {
		return t != "" && !strings.ContainsAny(string(t), `\`) && printable.Escape(string(t)) == t
	}
	// A finding is compared in the event's words, escaped as they are.
	writable := func(t printable.Text) bool {
		return t != "" && !strings.HasSuffix(string(t), "*") && (policy.Exception{Guard: e.Guard, Object: string(t)}).Validate() == nil
	}
	need(AnyDomain, r.Domain.UUID != "", "it does not name the domain", func() { e.Domain = strings.ToLower(r.Domain.UUID) })
	need(AnyKernel, plain(r.Domain.Kernel) && !strings.HasSuffix(string(r.Domain.Kernel), "*"), "it does not name the guest's kernel", func() { e.Kernel = r.Domain.Kernel.String() })
	if !r.Late() {
		comm := r.Process.Comm
		need(AnyProcess, r.Process.Unknown == "" && plain(comm) && !strings.HasSuffix(string(comm), "*"), "it does not name the process in a way that can be written", func() { e.Process = comm.String() })
		need(AnyCode, plain(r.RIP.Module) || r.RIP.Module == "" && plain(r.RIP.Symbol), "the code that did it lies in no known module and no function of the kernel", func() {
			if e.Module = r.RIP.Module.String(); e.Module == "" {
				e.Symbol = r.RIP.Symbol.String()
			}
		})
	}
	switch t := r.Target; {
	case t.Memory != nil:
		need(AnyTarget, plain(t.Memory.Symbol) || plain(t.Memory.Module), "it does not name what was written to", func() {
			if e.TargetModule = t.Memory.Module.String(); e.TargetModule == "" {
				e.Target = t.Memory.Symbol.String()
			}
		})
		if r.Detail.Access == "w" {
			b := r.Attempted.Bytes[:min(len(r.Attempted.Bytes), policy.MaxExceptionBytes)]
			need(AnyBytes, len(b) > 0, "it does not tell the bytes that were written", func() { e.Bytes = fmt.Sprintf("%x", []byte(b)) })
		}
	case t.MSR != nil:
		need(AnyTarget, t.MSR.Name != "", "the register has no name", func() { e.Target = t.MSR.Name })
	case t.Object != nil:
		need(AnyTarget, writable(t.Object.Name), "it does not name what was found in a way that can be written", func() { e.Object = string(t.Object.Name) })
		need(AnyBytes, writable(t.Object.What), "it does not tell what was found in a way that can be written", func() { e.What = string(t.Object.What) })
	case t.CR != nil:
		need(AnyTarget, t.CR.Name != "", "the register has no name", func() { e.Target = t.CR.Name })
	}
	if n := r.Attempted.Number; n != nil {
		need(AnyBytes, true, "", func() { e.Value = fmt.Sprintf("%#x", uint64(*n)) })
	}
	return e, errors.Join(errs...)
}
