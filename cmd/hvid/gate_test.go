package main

import (
	"context"
	"errors"
	"log/slog"
	"testing"
	"time"

	"github.com/xen-hvi/hvi/control"
	"github.com/xen-hvi/hvi/engine"
	"github.com/xen-hvi/hvi/engine/policy"
	"github.com/xen-hvi/hvi/engine/xen"
)

// TestGate opens for an attached hvi and for a domain nobody asks about, and
// for nothing of which that isn't known.
func TestGate(t *testing.T) {
	enforce := policy.Effective{Mode: policy.ModeEnforce}
	required := policy.Effective{Mode: policy.ModeEnforce, RequireAttach: true}
	failed := func(p policy.Effective, at time.Time) engine.Status {
		return engine.Status{State: engine.StateFailed, Decided: true, Policy: p, AttachedAt: at, Failure: &engine.Failure{Stage: "attach", Err: errors.New("no"), Fix: "mend"}}
	}
	now := time.Now()
	for name, c := range map[string]struct {
		st             engine.Status
		err            error
		open, required bool
		reason         bool
	}{
		"attached":                  {engine.Status{State: engine.StateAttached, Decided: true, Policy: required, AttachedAt: now}, nil, true, true, false},
		"protecting":                {engine.Status{State: engine.StateProtecting, Decided: true, Policy: enforce, AttachedAt: now}, nil, true, false, false},
		"nothing asked for":         {engine.Status{State: engine.StateUnprotected, Decided: true}, nil, true, false, true},
		"failed, not required":      {failed(enforce, time.Time{}), nil, true, false, true},
		"failed, required":          {failed(required, time.Time{}), nil, false, true, true},
		"failed late":               {failed(enforce, now), nil, true, false, true},
		"failed late, required":     {failed(required, now), nil, false, true, true},
		"a policy nobody can read":  {failed(policy.Effective{}, time.Time{}), nil, false, true, true},
		"still being looked at":     {engine.Status{State: engine.StateGated}, context.DeadlineExceeded, false, true, true},
		"not decided, hvid closing": {engine.Status{State: engine.StateGated}, nil, false, true, true},
		"not seen":                  {engine.Status{}, xen.ErrNoDomain, false, true, true},
		"gone again":                {engine.Status{State: engine.StateDetached, Decided: true, Policy: required}, nil, false, true, true},
	} {
		got := judgeGate(c.st, c.err, time.Second)
		if got.Open != c.open || got.Required != c.required || (got.Reason != "") != c.reason {
			t.Errorf("%s: %+v", name, got)
		}
		if !got.Open && got.Reason == "" {
			t.Errorf("%s: refused without a reason", name)
		}
	}
}

// TestTooEarly leaves a domain to its appearance while it is still being made:
// attaching by hand is refused, and news of its policy is found then.
func TestTooEarly(t *testing.T) {
	info := xen.DomainInfo{ID: 7, UUID: xen.UUID{7}, Type: xen.PVH, OnlineVCPUs: 1}
	e := engine.New(engine.Options{Log: slog.New(slog.DiscardHandler)})
	e.Gate(info, true)
	a := &api{engine: e, resolve: func(xen.DomainInfo, string) (engine.Declaration, bool, error) {
		return engine.Declaration{Spec: policy.Spec{Mode: policy.ModeEnforce}}, true, nil
	}}
	_, err := a.Attach(t.Context(), control.DomainRef{ID: 7}, control.AttachRequest{Mode: "enforce"})
	if !errors.Is(err, &control.Problem{Code: control.CodeConflict}) {
		t.Errorf("attach: %v", err)
	}
	if err := a.reconsider(e.Status()[0]); err != nil {
		t.Errorf("news of its policy: %v", err)
	}
}
