package control

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/xen-hvi/hvi/engine/printable"
)

// gateGrace is what a gate's answer may take beyond the time it waits.
const gateGrace = 3 * time.Second

// declare takes what a hook hands over.
func (s *Server) declare(w http.ResponseWriter, r *http.Request, ref string) error {
	uuid, ok := parseUUID(ref)
	if !ok {
		return &Problem{Code: CodeBadRequest, What: printable.Escape(ref).Quoted() + " is no UUID", Where: "declaration", Fix: "write it as 01234567-89ab-cdef-0123-456789abcdef"}
	}
	var req DeclareRequest
	if err := readBody(w, r, &req); err != nil {
		return err
	}
	if p := req.Words().check("declaration"); p != nil {
		return p
	}
	if p := checkTold("declaration", req.Toolstack, req.Source); p != nil {
		return p
	}
	ctx, cancel := context.WithTimeout(r.Context(), s.opt.ChangeTimeout)
	defer cancel()
	d, err := s.opt.Engine.Declare(ctx, uuid, req)
	if err != nil {
		return err
	}
	if d.Warnings == nil {
		d.Warnings = []string{}
	}
	return s.answer(w, d)
}

func (s *Server) declarations(w http.ResponseWriter, r *http.Request, _ string) error {
	ctx, cancel := context.WithTimeout(r.Context(), s.opt.ReadTimeout)
	defer cancel()
	ds, err := s.opt.Engine.Declarations(ctx)
	if err != nil {
		return err
	}
	if ds == nil {
		ds = []Declaration{}
	}
	return s.answer(w, ds)
}

// importOne takes a declaration that another host exported.
func (s *Server) importOne(w http.ResponseWriter, r *http.Request, _ string) error {
	var d Declaration
	if err := readBody(w, r, &d); err != nil {
		return err
	}
	const where = "import"
	uuid, ok := parseUUID(d.UUID)
	if !ok {
		return &Problem{Code: CodeBadRequest, What: printable.Escape(d.UUID).Quoted() + " is no UUID", Where: where, Fix: "send what hvictl policy export wrote"}
	}
	d.UUID = uuid
	if !d.Spec.Declared() {
		return &Problem{Code: CodeBadRequest, What: "it declares nothing: nobody wrote its mode", Where: where, Fix: "send what hvictl policy export wrote"}
	}
	if err := d.Spec.Validate(); err != nil {
		return &Problem{Code: CodeBadRequest, What: strings.ReplaceAll(err.Error(), "\n", "; "), Where: where, Fix: "correct it on the host it comes from, and export it again", Err: err}
	}
	if p := checkTold(where, d.Toolstack, d.Source); p != nil {
		return p
	}
	ctx, cancel := context.WithTimeout(r.Context(), s.opt.ChangeTimeout)
	defer cancel()
	d, err := s.opt.Engine.Import(ctx, d)
	if err != nil {
		return err
	}
	return s.answer(w, d)
}

func (s *Server) gate(w http.ResponseWriter, r *http.Request, ref string) error {
	var req GateRequest
	if err := readBody(w, r, &req); err != nil {
		return err
	}
	timeout := s.opt.ChangeTimeout
	if req.TimeoutMS != 0 {
		if req.TimeoutMS < 0 || int64(req.TimeoutMS) > MaxGate.Milliseconds() {
			return &Problem{Code: CodeBadRequest, What: fmt.Sprintf("a gate of %d ms", req.TimeoutMS), Where: "gate request", Fix: fmt.Sprintf("give 1 to %d ms", MaxGate.Milliseconds())}
		}
		timeout = time.Duration(req.TimeoutMS)*time.Millisecond + gateGrace
	}
	ctx, cancel := context.WithTimeout(r.Context(), timeout)
	defer cancel()
	dom := DomainRef{ID: NoDomID, Name: printable.Escape(ref), Ref: ref}
	// A gate asks for a domain that may not have been seen yet: a number is a
	// number here, and not another domain's name.
	if _, err := strconv.ParseUint(ref, 10, 16); err != nil {
		if dom, err = s.refer(ctx, ref); err != nil {
			return err
		}
	}
	g, err := s.opt.Engine.Gate(ctx, dom, req)
	if err != nil {
		return err
	}
	return s.answer(w, g)
}

func (s *Server) policy(w http.ResponseWriter, r *http.Request, ref string) error {
	return s.onPolicy(w, r, ref, s.opt.ReadTimeout, s.opt.Engine.Policy)
}

func (s *Server) setPolicy(w http.ResponseWriter, r *http.Request, ref string) error {
	var req PolicyRequest
	if err := readBody(w, r, &req); err != nil {
		return err
	}
	const where = "policy request"
	if req.Mode == "" {
		return &Problem{Code: CodeBadRequest, What: "there is no mode", Where: where, Fix: "give off, learn, observe or enforce; to declare nothing, delete the policy"}
	}
	if p := req.Words().check(where); p != nil {
		return p
	}
	var p *Problem
	if req.Where, p = checkWhere(req.Where); p != nil {
		return p
	}
	return s.onPolicy(w, r, ref, s.opt.ChangeTimeout, func(ctx context.Context, dom DomainRef) (PolicyReport, error) {
		return s.opt.Engine.SetPolicy(ctx, dom, req)
	})
}

func (s *Server) clearPolicy(w http.ResponseWriter, r *http.Request, ref string) error {
	if err := readBody(w, r, &struct{}{}); err != nil {
		return err
	}
	where, p := checkWhere(r.URL.Query().Get("where"))
	if p != nil {
		return p
	}
	return s.onPolicy(w, r, ref, s.opt.ChangeTimeout, func(ctx context.Context, dom DomainRef) (PolicyReport, error) {
		return s.opt.Engine.ClearPolicy(ctx, dom, where)
	})
}

// onPolicy resolves, acts and answers.
func (s *Server) onPolicy(w http.ResponseWriter, r *http.Request, ref string, timeout time.Duration, act func(context.Context, DomainRef) (PolicyReport, error)) error {
	ctx, cancel := context.WithTimeout(r.Context(), timeout)
	defer cancel()
	dom, err := s.refer(ctx, ref)
	if err != nil {
		return err
	}
	rep, err := act(ctx, dom)
	if err != nil {
		return err
	}
	if rep.Guards == nil {
		rep.Guards = []PolicyGuard{}
	}
	if rep.Warnings == nil {
		rep.Warnings = []string{}
	}
	return s.answer(w, rep)
}

// refer is resolve for what may be asked of a domain that does not run, or that
// hvid has not seen yet: then only the part of the reference that ref can be is
// set. An ambiguous name stays an error.
func (s *Server) refer(ctx context.Context, ref string) (DomainRef, error) {
	dom, err := s.resolve(ctx, ref)
	if err == nil || !errors.Is(err, &Problem{Code: CodeNoSuchDomain}) {
		return dom, err
	}
	dom = DomainRef{ID: NoDomID, Ref: ref}
	if uuid, ok := parseUUID(ref); ok {
		dom.UUID = uuid
	} else {
		dom.Name = printable.Escape(ref)
	}
	return dom, nil
}

// checkWhere fills in the default.
func checkWhere(where string) (string, *Problem) {
	switch where {
	case "":
		return WhereBoth, nil
	case WhereLive, WhereConfig, WhereBoth:
		return where, nil
	}
	return "", &Problem{Code: CodeBadRequest, What: "where is " + clip(where), Fix: "give live, config or both"}
}

// check looks at the form of a policy; what the words mean is the policy's.
func (w PolicyWords) check(where string) *Problem {
	bad := func(what, fix string) *Problem {
		return &Problem{Code: CodeBadRequest, What: what, Where: where, Fix: fix}
	}
	switch {
	case len(w.Mode) > maxWord:
		return bad("the mode is longer than any mode", "give off, learn, observe or enforce")
	case len(w.Policy) > maxPolicy:
		return bad("the policy's name is longer than any", fmt.Sprintf("a name has at most %d bytes", maxPolicy))
	case len(w.RequireAttach) > maxWord:
		return bad("require_attach is longer than any of its words", "give yes or no")
	case len(w.OnEngineFailure) > maxWord:
		return bad("on_engine_failure is longer than any of its words", "give release or pause")
	case w.Mode == "" && (w.Policy != "" || w.RequireAttach != "" || w.OnEngineFailure != "" || len(w.Guards) > 0):
		return bad("a policy without a mode: nothing would be protected", "give the mode: off, learn, observe or enforce")
	}
	return checkGuards(w.Guards, where)
}

// checkTold bounds what is only shown again.
func checkTold(where, toolstack, source string) *Problem {
	switch {
	case len(toolstack) > maxWord:
		return &Problem{Code: CodeBadRequest, What: "the toolstack's name is longer than any", Where: where}
	case len(source) > maxSource:
		return &Problem{Code: CodeBadRequest, What: "the source is longer than any", Where: where, Fix: fmt.Sprintf("it has room for %d bytes", maxSource)}
	}
	return nil
}

// parseUUID returns a UUID in its usual form with lower-case digits.
func parseUUID(s string) (string, bool) {
	if len(s) != 36 {
		return "", false
	}
	for i := range len(s) {
		c := s[i]
		switch i {
		case 8, 13, 18, 23:
			if c != '-' {
				return "", false
			}
		default:
			if !(c >= '0' && c <= '9' || c >= 'a' && c <= 'f' || c >= 'A' && c <= 'F') {
				return "", false
			}
		}
	}
	return strings.ToLower(s), true
}
