package main

import (
	"context"
	"errors"
	"strconv"
	"time"

	"github.com/xen-hvi/hvi/control"
	"github.com/xen-hvi/hvi/engine"
	"github.com/xen-hvi/hvi/engine/policy"
	"github.com/xen-hvi/hvi/engine/xen"
)

// Gate implements control.Engine: a toolstack's script asks whether a start may
// go on. It may if hvi is attached, or nobody asks that it is. Where that can't
// be told it may not: whoever puts a gate into a config wants certainty.
func (a *api) Gate(ctx context.Context, dom control.DomainRef, req control.GateRequest) (control.GateResult, error) {
	id := dom.ID
	if id == control.NoDomID {
		n, err := strconv.ParseUint(dom.Ref, 10, 16)
		if err != nil {
			return control.GateResult{}, &control.Problem{Code: control.CodeNoSuchDomain, What: "there is no such domain: " + policy.Quote(dom.Ref), Fix: "run: hvictl list"}
		}
		id = uint16(n)
	}
	limit := a.gateTimeout
	if req.TimeoutMS > 0 {
		limit = time.Duration(req.TimeoutMS) * time.Millisecond
	}
	wait, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	st, err := a.engine.Wait(wait, xen.DomID(id))
	res := judgeGate(st, err, limit)
	if !res.Open {
		a.refused.Add(1)
	}
	return res, nil
}

// judgeGate makes an answer of what became of a domain's start within limit.
func judgeGate(st engine.Status, err error, limit time.Duration) control.GateResult {
	res := control.GateResult{State: control.State(st.State), Required: st.Policy.RequireAttach}
	switch {
	case errors.Is(err, xen.ErrNoDomain):
		res.State, res.Required = control.StateFailed, true
		res.Reason = "hvid has not seen the domain within " + limit.String()
		res.Fix = "run: hvictl doctor"
	case err != nil || !st.Decided:
		res.Required = true
		res.Reason = "hvid was not done with the domain within " + limit.String()
		res.Fix = "see hvid's log; a longer time can be set as gate.timeout in /etc/hvi/hvid.toml"
	case st.State == engine.StateUnprotected:
		res.Open, res.Reason = true, "no protection is asked for"
	case st.State == engine.StateFailed:
		// Also after the ring was served for a moment: nothing is attached now. Of a policy that can't be read nobody knows what it requires.
		res.Required = res.Required || st.Policy.Mode == policy.ModeOff
		res.Open = !res.Required
		if f := st.Failure; f != nil {
			res.Reason, res.Fix = f.Stage+": "+f.Err.Error(), f.Fix
		}
	case st.AttachedAt.IsZero():
		res.Open = !res.Required
		res.Reason = "the domain's session is " + string(st.State)
	default:
		res.Open = true
	}
	return res
}
