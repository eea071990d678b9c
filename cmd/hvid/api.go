package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync/atomic"
	"time"

	"github.com/xen-hvi/hvi/control"
	"github.com/xen-hvi/hvi/engine"
	"github.com/xen-hvi/hvi/engine/journal"
	"github.com/xen-hvi/hvi/engine/keeper"
	"github.com/xen-hvi/hvi/engine/policy"
	"github.com/xen-hvi/hvi/engine/printable"
	"github.com/xen-hvi/hvi/engine/xen"
	"github.com/xen-hvi/hvi/registry"
)

// api answers the control socket from the engine. It implements
// control.Engine.
type api struct {
	engine *engine.Engine
	// restarting are the domains an earlier hvid protected.
	restarting *restarting
	resolve    engine.Resolver
	registry   *registry.Registry
	exceptions *registry.Exceptions
	virt       *virt // nil if libvirt is not to be asked
	policies   policy.Policies
	// fallback is the host's default.
	fallback policy.Spec
	log      *slog.Logger
	// gateTimeout bounds a gate that names no bound; refused counts those that
	// stayed shut.
	gateTimeout time.Duration
	refused     atomic.Uint64
	// keeper says how the keeper is.
	keeper func() keeper.State
	doctor func(context.Context) []control.Check
	// alive asks Xen whether a domain still is, and is not being destroyed.
	alive func(xen.DomainInfo) bool
	// inspect examines one domain from outside its session.
	inspect func(engine.Status) []control.Check
	// hookAt is when libvirt's hook called last.
	hookAt atomic.Pointer[time.Time]
	// probe finds the tier of a domain nobody has attached to.
	probe func(xen.DomainInfo) (engine.Tier, string)
	// events lists what Xen can report of a domain.
	events  func(xen.DomainInfo) (xen.MonitorCaps, error)
	journal *journal.Journal
	store   store
	xen     string
	started time.Time
}

func (a *api) Version(context.Context) (control.Version, error) {
	return control.Version{
		Build: control.ThisBuild(), API: "v1", PID: os.Getpid(),
		Run: a.journal.Run(), StartedAt: a.started, Xen: a.xen,
		Keeper: keeperState(a.keeper()), Recovered: a.restarting.recovery,
	}, nil
}

func (a *api) Domains(context.Context) ([]control.DomainStatus, error) {
	refreshNames(a.engine, a.store)
	all := a.engine.Status()
	out := make([]control.DomainStatus, len(all))
	for i, st := range all {
		out[i] = a.status(st)
	}
	return out, nil
}

func (a *api) Domain(_ context.Context, dom control.DomainRef) (control.DomainStatus, error) {
	for _, st := range a.engine.Status() {
		if uint16(st.Info.ID) == dom.ID {
			return a.status(st), nil
		}
	}
	return control.DomainStatus{}, &control.Problem{
		Code: control.CodeNoSuchDomain, What: fmt.Sprintf("domain %d has gone", dom.ID), Fix: "run: hvictl list",
	}
}

func (a *api) Attach(ctx context.Context, dom control.DomainRef, req control.AttachRequest) (control.DomainStatus, error) {
	decl, err := a.declaration(ctx, dom, req)
	if err != nil {
		return control.DomainStatus{}, err
	}
	err = a.engine.Attach(ctx, xen.DomID(dom.ID), decl)
	switch {
	case errors.Is(err, engine.ErrAttached):
		return control.DomainStatus{}, &control.Problem{
			Code: control.CodeConflict, What: "already attached", Where: where(dom), Err: err,
			Fix: "to change its policy, run: hvictl detach " + dom.UUID + ", then attach again",
		}
	case errors.Is(err, engine.ErrTooEarly):
		return control.DomainStatus{}, &control.Problem{
			Code: control.CodeConflict, What: "the domain is still being made", Where: where(dom), Err: err,
			Fix: "wait until hvictl status shows that it is decided about",
		}
	case errors.Is(err, engine.ErrBusy):
		return control.DomainStatus{}, busy(err, where(dom))
	case errors.Is(err, engine.ErrClosing):
		return control.DomainStatus{}, &control.Problem{Code: control.CodeUnavailable, What: "hvid is stopping", Where: where(dom), Err: err}
	case err != nil:
		p := &control.Problem{Code: control.CodeNotPossible, What: err.Error(), Where: where(dom), Err: err}
		if st, e := a.Domain(ctx, dom); e == nil && st.Failure != nil {
			p.Fix = st.Failure.Fix
		}
		return control.DomainStatus{}, p
	}
	return a.Domain(ctx, dom)
}

// declaration is the policy an attach request asks for; an empty request means
// what the domain's own configuration declares.
func (a *api) declaration(ctx context.Context, dom control.DomainRef, req control.AttachRequest) (engine.Declaration, error) {
	bad := func(err error) error {
		return &control.Problem{Code: control.CodeBadRequest, What: err.Error(), Where: where(dom), Err: err}
	}
	if req.Mode == "" && len(req.Guards) == 0 {
		info, err := a.info(dom)
		if err != nil {
			return engine.Declaration{}, err
		}
		decl, found, err := a.resolveWithin(ctx, info, string(dom.Name))
		switch {
		case errors.Is(err, &control.Problem{Code: control.CodeTimeout}):
			return decl, err
		case err != nil:
			return decl, bad(err)
		}
		if !found || decl.Spec.Mode == policy.ModeOff {
			return decl, &control.Problem{
				Code: control.CodeBadRequest, What: "the domain's configuration asks for no protection",
				Where: where(dom) + "; " + decl.Source,
				Fix:   "say what to do: hvictl attach " + dom.UUID + " --mode enforce",
			}
		}
		return decl, nil
	}
	at := policy.Origin{Source: "hvictl attach"}
	b := policy.Builder{Policies: a.policies}
	if req.Mode != "" {
		b.Mode(req.Mode, at)
	}
	for _, g := range req.Guards {
		b.Guard(g.Name, g.Action, at)
	}
	spec, err := b.Build()
	if err != nil {
		return engine.Declaration{}, bad(err)
	}
	if spec.Mode == policy.ModeOff {
		return engine.Declaration{}, &control.Problem{
			Code: control.CodeBadRequest, What: "mode off protects nothing", Where: where(dom),
			Fix: "to end a domain's protection, run: hvictl detach " + dom.UUID,
		}
	}
	return engine.Declaration{Spec: spec, Source: "hvictl attach", From: string(registry.FromHvictl)}, nil
}

// busy is the problem of a domain that something else was done to for too long.
func busy(err error, where string) error {
	return &control.Problem{
		Code: control.CodeTimeout, What: err.Error(), Where: where, Err: err,
		Fix: "see how far it is: hvictl status; if its config lies on a file server, look whether that answers",
	}
}

// resolveWithin is resolve for a request, which does not wait longer than ctx for
// a config on a file server that is gone.
func (a *api) resolveWithin(ctx context.Context, info xen.DomainInfo, name string) (engine.Declaration, bool, error) {
	type answer struct {
		decl  engine.Declaration
		found bool
		err   error
	}
	done := make(chan answer, 1)
	go func() {
		decl, found, err := a.resolve(info, name)
		done <- answer{decl, found, err}
	}()
	select {
	case r := <-done:
		return r.decl, r.found, r.err
	case <-ctx.Done():
		return engine.Declaration{}, false, busy(fmt.Errorf("what is declared for the domain cannot be read: %w", ctx.Err()), fmt.Sprintf("domain %d, %s", info.ID, policy.Quote(name)))
	}
}

func (a *api) info(dom control.DomainRef) (xen.DomainInfo, error) {
	for _, st := range a.engine.Status() {
		if uint16(st.Info.ID) == dom.ID {
			return st.Info, nil
		}
	}
	return xen.DomainInfo{}, &control.Problem{Code: control.CodeNoSuchDomain, What: fmt.Sprintf("domain %d has gone", dom.ID)}
}

func (a *api) Detach(ctx context.Context, dom control.DomainRef) (control.DomainStatus, error) {
	return a.changed(ctx, dom, a.engine.Detach(ctx, xen.DomID(dom.ID)))
}

// Resume has a domain run on that a guard has paused.
func (a *api) Resume(ctx context.Context, dom control.DomainRef) (control.DomainStatus, error) {
	err := a.engine.Resume(ctx, xen.DomID(dom.ID))
	switch {
	case errors.Is(err, engine.ErrNotPaused):
		p := &control.Problem{Code: control.CodeConflict, What: "no guard has paused the domain", Where: where(dom), Err: err}
		if st, e := a.Domain(ctx, dom); e == nil && st.Held != "" {
			p.What += "; hvid holds it for another reason: " + st.Held
			p.Fix = "run: hvictl attach " + dom.UUID + ", or to let it run without protection: hvictl detach " + dom.UUID
		}
		return control.DomainStatus{}, p
	case errors.Is(err, engine.ErrBusy):
		return control.DomainStatus{}, busy(err, where(dom))
	case err != nil:
		return control.DomainStatus{}, err
	}
	return a.Domain(ctx, dom)
}

// SetBreakpoint puts a hidden breakpoint into a domain's kernel, or takes it away.
func (a *api) SetBreakpoint(ctx context.Context, dom control.DomainRef, symbol string, on bool) (control.DomainStatus, error) {
	err := a.engine.SetBreakpoint(ctx, xen.DomID(dom.ID), symbol, on)
	if refused, ok := errors.AsType[*engine.BreakpointError](err); ok {
		return control.DomainStatus{}, notPossible(refused, refused.Fix, dom, err)
	}
	return a.changed(ctx, dom, err)
}

// SwitchView has a domain run in another view that its policy declares.
func (a *api) SwitchView(ctx context.Context, dom control.DomainRef, view string, by journal.Peer) (control.DomainStatus, error) {
	err := a.engine.SwitchView(ctx, xen.DomID(dom.ID), view, by)
	if refused, ok := errors.AsType[*engine.ViewError](err); ok {
		return control.DomainStatus{}, notPossible(refused, refused.Fix, dom, err)
	}
	return a.changed(ctx, dom, err)
}

// notPossible is the answer to what the engine refuses.
func notPossible(refused error, fix string, dom control.DomainRef, err error) error {
	return &control.Problem{Code: control.CodeNotPossible, What: refused.Error(), Where: where(dom), Fix: fix, Err: err}
}

// changed answers what was asked of an attached domain, by what came of it.
func (a *api) changed(ctx context.Context, dom control.DomainRef, err error) (control.DomainStatus, error) {
	switch {
	case errors.Is(err, engine.ErrNotAttached):
		return control.DomainStatus{}, &control.Problem{Code: control.CodeConflict, What: "not attached", Where: where(dom), Err: err}
	case errors.Is(err, engine.ErrBusy):
		return control.DomainStatus{}, busy(err, where(dom))
	case err != nil:
		return control.DomainStatus{}, err
	}
	return a.Domain(ctx, dom)
}

func (a *api) Doctor(ctx context.Context) (control.DoctorReport, error) {
	r := control.DoctorReport{Checks: a.doctor(ctx)}
	if a.exceptions != nil {
		r.Checks = append(r.Checks, a.exceptionsCheck())
	}
	for _, st := range a.engine.Status() {
		if st.Tier == "" {
			st.Tier, st.TierReason = a.probe(st.Info)
		}
		d := domainReport(st)
		d.Checks = append(d.Checks, a.monitorEvents(st.Info))
		if a.inspect != nil {
			d.Checks = append(d.Checks, a.inspect(st)...)
		}
		r.Domains = append(r.Domains, d)
	}
	return r, nil
}

// hookHeard is when libvirt's hook called last, zero if it never did.
func (a *api) hookHeard() time.Time {
	if t := a.hookAt.Load(); t != nil {
		return *t
	}
	return time.Time{}
}

// monitorEvents says which of a domain's events Xen can report.
func (a *api) monitorEvents(info xen.DomainInfo) control.Check {
	c := control.Check{Name: "monitor events", Status: control.CheckOK}
	caps, err := a.events(info)
	switch {
	case err != nil:
		c.Status, c.Detail, c.Fix = control.CheckMissing, err.Error(), "run a Xen that was built with CONFIG_VM_EVENT"
	case caps == 0:
		c.Status, c.Detail, c.Fix = control.CheckMissing, "none: this is a "+info.Type.String()+" domain", "run the guest as HVM or PVH"
	default:
		c.Detail = caps.String()
	}
	return c
}

func where(dom control.DomainRef) string { return fmt.Sprintf("domain %d, %s", dom.ID, dom.Name) }

// status is a session's status as this hvid tells it.
func (a *api) status(st engine.Status) control.DomainStatus {
	out := domainStatus(st)
	if mode, ok := a.restarting.mode(st); ok {
		out.State, out.Mode = control.StateRestarting, mode
	}
	return out
}

// views are a session's views in the words of the socket.
func views(vs []engine.ViewStatus) []control.View {
	var out []control.View
	for _, v := range vs {
		w := control.View{ID: v.ID, Name: v.Name, Current: v.Current, Steps: v.Steps, Restricted: []control.RestrictedFrames{}}
		if v.Name != "" {
			w.Switch = v.Switch.String()
			for _, g := range v.Guards {
				w.Guards = append(w.Guards, string(g))
			}
		}
		for _, p := range v.Shadows {
			w.Shadows = append(w.Shadows, control.ShadowPage{Frame: p.GFN, Shadow: p.Shadow, Breakpoints: p.Breakpoints})
		}
		for _, p := range v.Traps {
			w.Traps = append(w.Traps, control.TrappedPage{Frame: p.GFN, Breakpoints: p.Breakpoints, Instructions: p.Events.Load(), Rests: p.Rests.Load()})
		}
		for _, r := range v.Restricted {
			w.Restricted = append(w.Restricted, control.RestrictedFrames{First: r.First, Count: r.Count, Access: r.Access.String(), Guard: string(r.Guard)})
		}
		out = append(out, w)
	}
	return out
}

// domainStatus is a session's status in the words of the socket.
func domainStatus(st engine.Status) control.DomainStatus {
	out := control.DomainStatus{
		ID: uint16(st.Info.ID), Name: printable.Escape(st.Name), UUID: st.Info.UUID.String(), Type: st.Info.Type.String(),
		State: control.State(st.State), Mode: st.Policy.Mode.String(),
		Tier: control.Tier(st.Tier), TierReason: st.TierReason,
		Guards:     []control.GuardStatus{},
		AttachedAt: st.AttachedAt, PolicySource: st.PolicySource, PolicyFrom: control.PolicyFrom(st.PolicyFrom),
		RequireAttach: st.Policy.RequireAttach, Held: st.Held,
		Counters: control.Counters{
			RingEvents: st.Events, RingBusy: st.Served, RingPeak: st.RingPeak, RecordsLost: st.Unrecorded, Stepped: st.Stepped, Emulated: st.Emulated, Restored: st.Restored,
			Compared: st.Patching.Compared, Opened: st.Patching.Opened, Undone: st.Patching.Undone,
			ShadowReads: st.Hidden.Reads, ShadowWrites: st.Hidden.Writes, Concealed: st.Hidden.Concealed, GuestBreakpoints: st.Hidden.Returned,
		},
		Views: views(st.Views),
	}
	if !st.AttachedAt.IsZero() {
		out.AttachPC = &st.AttachPC
	}
	if d := st.Dump; d != nil {
		out.Dump = &control.MemoryDump{
			State: string(d.State), File: d.File, Memory: d.Memory, Stored: d.Stored, Total: d.Total, Began: d.Began, Reason: d.Reason,
		}
	}
	if k := st.Kernel; k != nil {
		out.GuestKernel = &control.GuestKernel{
			Release: printable.Escape(k.Release), Banner: printable.Escape(k.Banner), Base: k.Base, SymbolCount: k.Symbols,
		}
	}
	for _, g := range st.Guards {
		out.Guards = append(out.Guards, control.GuardStatus{
			Name: string(g.Name), Action: g.Action.String(), State: control.GuardState(g.State), Reason: g.Reason,
			Events: g.Violations, Blocked: g.Blocked, Found: g.Found, Passed: g.Passed, Allowed: g.Allowed,
			Decisions: g.Decisions, Busy: g.Busy, OverBudget: g.OverBudget,
		})
		out.Counters.Blocked += g.Blocked
		out.Counters.Found += g.Found
		out.Counters.Allowed += g.Allowed
		out.Counters.Alerted += g.Violations - g.Blocked - g.Found
	}
	for _, b := range st.Breakpoints {
		out.Breakpoints = append(out.Breakpoints, control.Breakpoint{Symbol: b.Symbol, Address: b.Address, Since: b.Since, Hits: b.Hits, Rests: b.Rests})
	}
	if f := st.Failure; f != nil {
		out.Failure = &control.Failure{Stage: f.Stage, Got: f.Err.Error(), Fix: f.Fix}
	}
	return out
}
