package control

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"

	"github.com/xen-hvi/hvi/engine/journal"
	"github.com/xen-hvi/hvi/engine/printable"
)

// Code is the kind of a Problem, stable for programs.
type Code string

// Codes.
const (
	// CodeBadRequest: the request itself is wrong, whatever the state.
	CodeBadRequest Code = "bad_request"
	// CodeNoSuchDomain: no domain has that id, name or UUID.
	CodeNoSuchDomain Code = "no_such_domain"
	// CodeAmbiguous: several domains have that name.
	CodeAmbiguous Code = "ambiguous_domain"
	// CodePermission: this peer may not do it.
	CodePermission Code = "permission_denied"
	// CodeConflict: not in this state, "already attached".
	CodeConflict Code = "conflict"
	// CodeNotPossible: not with this domain, this Xen or this processor.
	CodeNotPossible Code = "not_possible"
	// CodeBusy: too many requests or followers at once; try again.
	CodeBusy Code = "busy"
	// CodeUnavailable: hvid starts, stops, or is not on Xen.
	CodeUnavailable Code = "unavailable"
	// CodeTimeout: not done within the time for it.
	CodeTimeout Code = "timeout"
	// CodeNotFound: no such path in this interface.
	CodeNotFound Code = "not_found"
	// CodeMethod: not with this HTTP method.
	CodeMethod Code = "method_not_allowed"
	// CodeInternal: a fault of hvid's.
	CodeInternal Code = "internal"
	// CodeUnreachable: hvid does not answer. The Client makes it.
	CodeUnreachable Code = "unreachable"
)

var statusOf = map[Code]int{
	CodeBadRequest:   http.StatusBadRequest,
	CodeNoSuchDomain: http.StatusNotFound,
	CodeAmbiguous:    http.StatusConflict,
	CodePermission:   http.StatusForbidden,
	CodeConflict:     http.StatusConflict,
	CodeNotPossible:  http.StatusUnprocessableEntity,
	CodeBusy:         http.StatusTooManyRequests,
	CodeUnavailable:  http.StatusServiceUnavailable,
	CodeTimeout:      http.StatusGatewayTimeout,
	CodeNotFound:     http.StatusNotFound,
	CodeMethod:       http.StatusMethodNotAllowed,
	CodeInternal:     http.StatusInternalServerError,
}

// HTTPStatus returns the status that goes with the code, 500 for an unknown
// one.
func (c Code) HTTPStatus() int {
	if s, ok := statusOf[c]; ok {
		return s
	}
	return http.StatusInternalServerError
}

// Problem is an error that people can act on and programs can tell apart. It
// matches another *Problem of the same code with errors.Is; Err is the cause
// within hvid and does not travel.
type Problem struct {
	Code Code `json:"code"`
	// What went wrong, one clause: `no domain is called "web9"`.
	What string `json:"what"`
	// Where: the domain, file or stage.
	Where string `json:"where,omitempty"`
	// Fix is what to do.
	Fix string `json:"fix,omitempty"`
	// Candidates are the domains that were meant, with CodeAmbiguous, or that
	// exist, with CodeNoSuchDomain.
	Candidates []Candidate `json:"candidates,omitempty"`
	Err        error       `json:"-"`
}

// Candidate names a domain.
type Candidate struct {
	ID   uint16         `json:"id"`
	Name printable.Text `json:"name"`
	UUID string         `json:"uuid"`
}

// Error returns what and where in one line.
func (p *Problem) Error() string {
	if p.Where == "" {
		return p.What
	}
	return p.What + " (" + p.Where + ")"
}

// Format writes Error, and for %+v all that the problem knows.
func (p *Problem) Format(f fmt.State, verb rune) {
	switch {
	case verb == 'v' && f.Flag('+'):
		fmt.Fprintf(f, "%s [%s]", p.Error(), p.Code)
		if p.Fix != "" {
			fmt.Fprintf(f, "; fix: %s", p.Fix)
		}
		if p.Err != nil {
			fmt.Fprintf(f, "; cause: %+v", p.Err)
		}
	case verb == 'q':
		fmt.Fprintf(f, "%q", p.Error())
	default:
		fmt.Fprint(f, p.Error())
	}
}

// Unwrap returns the cause.
func (p *Problem) Unwrap() error { return p.Err }

// Is reports whether target is a *Problem of the same code.
func (p *Problem) Is(target error) bool {
	t, ok := target.(*Problem)
	return ok && t.Code == p.Code
}

// wireProblem is a Problem as it travels: with its one-line form first.
type wireProblem struct {
	Error string `json:"error"`
	*Problem
}

// problemOf makes the Problem that a client is to see of any error.
func problemOf(err error) *Problem {
	var p *Problem
	switch {
	case errors.As(err, &p):
		return p
	case errors.Is(err, context.DeadlineExceeded):
		return &Problem{Code: CodeTimeout, What: "hvid did not finish in time", Fix: "look at the domain's state with hvictl status, and at hvid's log", Err: err}
	case errors.Is(err, journal.ErrClosed), errors.Is(err, context.Canceled):
		return &Problem{Code: CodeUnavailable, What: "hvid is stopping", Fix: "try again when it runs", Err: err}
	}
	return &Problem{Code: CodeInternal, What: err.Error(), Fix: "look at hvid's log: journalctl -u hvid", Err: err}
}

// Resolve finds the one domain that ref names: by UUID, else by domid or name. A
// number that is the domid of one and the name of another is ambiguous. The
// error is a *Problem of CodeNoSuchDomain or CodeAmbiguous with the candidates.
func Resolve(domains []DomainStatus, ref string) (DomainStatus, error) {
	var byID, byName []DomainStatus
	for _, d := range domains {
		switch {
		case d.UUID != "" && strings.EqualFold(d.UUID, ref):
			return d, nil
		case fmt.Sprint(d.ID) == ref:
			byID = append(byID, d)
		case d.Name == printable.Text(ref) || d.Name == printable.Escape(ref):
			byName = append(byName, d)
		}
	}
	found := append(byID, byName...)
	quoted := printable.Escape(ref).Quoted()
	switch len(found) {
	case 1:
		return found[0], nil
	case 0:
		p := &Problem{
			Code: CodeNoSuchDomain, What: "there is no domain " + quoted,
			Candidates: candidates(domains),
		}
		p.Fix = "hvictl list shows the domains there are"
		if len(p.Candidates) == 0 {
			p.Fix = "no domain runs; start one first"
		}
		return DomainStatus{}, p
	}
	return DomainStatus{}, &Problem{
		Code: CodeAmbiguous, What: fmt.Sprintf("%s names %d domains", quoted, len(found)),
		Fix: "give the UUID", Candidates: candidates(found),
	}
}

// maxCandidates bounds the answer on a host with very many domains.
const maxCandidates = 64

func candidates(ds []DomainStatus) []Candidate {
	cs := make([]Candidate, 0, min(len(ds), maxCandidates))
	for _, d := range ds[:min(len(ds), maxCandidates)] {
		cs = append(cs, Candidate{ID: d.ID, Name: d.Name, UUID: d.UUID})
	}
	return cs
}
