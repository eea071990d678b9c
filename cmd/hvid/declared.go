package main

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/xen-hvi/hvi/control"
	"github.com/xen-hvi/hvi/engine"
	"github.com/xen-hvi/hvi/engine/policy"
	"github.com/xen-hvi/hvi/engine/printable"
	"github.com/xen-hvi/hvi/engine/xen"
	"github.com/xen-hvi/hvi/libvirt"
	"github.com/xen-hvi/hvi/registry"
)

// resolver asks the registry what is declared for a domain.
func resolver(reg *registry.Registry) engine.Resolver {
	return func(info xen.DomainInfo, name string) (engine.Declaration, bool, error) {
		d, err := reg.Resolve(info, name)
		decl := declaration(d)
		if err != nil {
			decl.Spec.RequireAttach = d.Required
		}
		if d.Temporary {
			// It is another domain to Xen once it has its own UUID, and is
			// decided about then.
			decl.Source = "nothing is done under a temporary UUID, while the domain migrates; " + decl.Source
			return decl, false, nil
		}
		return decl, err == nil && d.Spec.Declared(), err
	}
}

func declaration(d registry.Decision) engine.Declaration {
	decl := engine.Declaration{Spec: d.Spec, Source: d.Source, From: string(d.From)}
	if len(d.Warnings) > 0 {
		decl.Source += " (" + strings.Join(d.Warnings, "; ") + ")"
	}
	return decl
}

// handOver passes on what a toolstack says of a domain. When that is news for a
// domain that runs, it takes effect at once; what was set by hand meanwhile stays
// until there is news.
func (a *api) handOver(e registry.Entry) error {
	before, had, err := a.registry.Get(e.UUID)
	if err != nil {
		a.log.Warn("read what was declared before", "uuid", e.UUID, "err", err)
	}
	running := a.running(e.UUID)
	if running != nil {
		if last, ok := a.registry.Handed(e.UUID); ok && last.Spec.SameIntent(e.Spec) && last.Broken == e.Broken {
			return nil
		} else if !ok && before.Standing && !e.Spec.Declared() && e.Broken == "" {
			return nil // it was set by hand while nobody here could hear the toolstack
		}
		e.Domain = running.Info.ID
	}
	if err := a.registry.Hand(e); err != nil {
		return err
	}
	same := before.Spec.SameIntent(e.Spec) && before.Broken == e.Broken
	if running == nil || same && (had || !e.Spec.Declared()) {
		return nil
	}
	return a.reconsider(*running)
}

// reconsider puts in force what is declared for a domain now.
func (a *api) reconsider(st engine.Status) error {
	decl, _, err := a.resolve(st.Info, st.Name)
	if err != nil {
		// What is in force is better than nothing.
		a.log.Error("the changed policy cannot be honoured; the domain keeps the one it has", "domid", st.Info.ID, "domain", st.Name, "err", err)
		return err
	}
	if now, ok := a.engine.Declared(st.Info); ok && now.Spec.SameIntent(decl.Spec) && st.State != engine.StateFailed {
		return nil
	}
	// Whoever told of the change may be gone before it is in force.
	if err := a.engine.Apply(context.Background(), st.Info, decl); !errors.Is(err, engine.ErrTooEarly) {
		return err
	}
	// It is looked for once more when the domain is built.
	return nil
}

// running returns the living domain of a UUID, nil if there is none. One that is
// being destroyed is not meant by what is said of its successor.
func (a *api) running(uuid xen.UUID) *engine.Status {
	for _, st := range a.engine.Status() {
		if st.Info.UUID == uuid && a.alive(st.Info) {
			return &st
		}
	}
	return nil
}

// Declare implements control.Engine.
func (a *api) Declare(_ context.Context, uuid string, req control.DeclareRequest) (control.Declared, error) {
	if req.Toolstack == registry.ToolstackLibvirt {
		now := time.Now()
		a.hookAt.Store(&now)
	}
	e := registry.Entry{Name: string(req.Name), Toolstack: req.Toolstack, Source: req.Source}
	var err error
	if e.UUID, err = xen.ParseUUID(uuid); err != nil {
		return control.Declared{}, badRequest(err, "declaration")
	}
	if e.Spec, err = a.spec(req.Words(), req.Source); err != nil {
		return control.Declared{}, badRequest(err, req.Source)
	}
	_, known, err := a.registry.Get(e.UUID)
	if err != nil {
		a.log.Warn("read what was declared before", "uuid", e.UUID, "err", err)
	}
	known = known || a.running(e.UUID) != nil
	if err := a.handOver(e); err != nil {
		return control.Declared{}, err
	}
	mode := e.Spec.Mode
	if !e.Spec.Declared() {
		mode = a.fallback.Mode
	}
	return control.Declared{UUID: e.UUID.String(), Mode: mode.String(), Known: known}, nil
}

// spec makes a policy of the words of a request. No words make one that
// declares nothing.
func (a *api) spec(words control.PolicyWords, source string) (policy.Spec, error) {
	b := policy.Builder{Policies: a.policies}
	words.Feed(&b, policy.Origin{Source: source})
	return b.Build()
}

// Declarations implements control.Engine.
func (a *api) Declarations(context.Context) ([]control.Declaration, error) {
	all, err := a.registry.All()
	if err != nil {
		// Those that could be read are better than none.
		a.log.Warn("read what is kept of domains", "err", err)
	}
	out := make([]control.Declaration, 0, len(all))
	for _, e := range all {
		out = append(out, control.Declaration{
			UUID: e.UUID.String(), Name: printable.Escape(e.Name), Toolstack: e.Toolstack, Source: e.Source, Spec: e.Spec,
			CapturedAt: e.Captured, Suspended: e.Suspended, GoneAt: e.Gone,
		})
	}
	return out, nil
}

// Import implements control.Engine.
func (a *api) Import(_ context.Context, d control.Declaration) (control.Declaration, error) {
	e := registry.Entry{Name: string(d.Name), Toolstack: d.Toolstack, Source: d.Source, Spec: d.Spec}
	var err error
	if e.UUID, err = xen.ParseUUID(d.UUID); err != nil {
		return d, badRequest(err, "import")
	}
	if a.running(e.UUID) != nil {
		return d, &control.Problem{
			Code: control.CodeConflict, What: "the domain runs on this host", Where: "import of " + d.UUID,
			Fix: "to change its policy, run: hvictl set " + d.UUID,
		}
	}
	if err := a.registry.Import(e); err != nil {
		return d, badRequest(err, "import")
	}
	kept, _, err := a.registry.Get(e.UUID)
	if err != nil {
		return d, err
	}
	d.CapturedAt, d.Suspended = kept.Captured, kept.Suspended
	return d, nil
}

func badRequest(err error, where string) error {
	return &control.Problem{Code: control.CodeBadRequest, What: err.Error(), Where: where, Err: err}
}

// Policy implements control.Engine.
func (a *api) Policy(ctx context.Context, dom control.DomainRef) (control.PolicyReport, error) {
	t, err := a.target(ctx, dom)
	if err != nil {
		return control.PolicyReport{}, err
	}
	return a.policyReport(t)
}

func (a *api) policyReport(t target) (control.PolicyReport, error) {
	rep := control.PolicyReport{ID: control.NoDomID, Name: printable.Escape(t.name), UUID: t.uuid.String(), From: control.FromNone}
	kept, ok, err := a.registry.Get(t.uuid)
	if err != nil {
		rep.Warnings = append(rep.Warnings, err.Error())
	}
	spec := a.fallback
	switch {
	case t.running != nil:
		rep.ID = uint16(t.running.Info.ID)
		rep.From, rep.Source = control.PolicyFrom(t.running.PolicyFrom), t.running.PolicySource
		if decl, known := a.engine.Declared(t.running.Info); known {
			spec = decl.Spec
		} else if !t.running.Decided && ok {
			// It is being built, and this is what it will find.
			spec, rep.From, rep.Source = kept.Spec, control.FromCaptured, kept.Source
		}
	case t.virt != nil:
		rep.Source = virtSource
		if t.virt.Declared() {
			spec, rep.From = t.virt.Spec, control.FromHanded
		}
		if t.virt.Err != nil {
			rep.Warnings = append(rep.Warnings, "its start will be refused: "+t.virt.Err.Error())
		}
	case ok:
		spec, rep.From, rep.Source = kept.Spec, control.FromCaptured, kept.Source
	default:
		rep.Source = "nothing is kept of this domain"
	}
	if ok {
		rep.CapturedAt, rep.Toolstack = kept.Captured, kept.Toolstack
	}
	if t.virt != nil {
		rep.Toolstack = registry.ToolstackLibvirt
	}
	rep.SetSpec(spec)
	return rep, nil
}

// target is a domain somebody wants to know or change the policy of.
type target struct {
	uuid    xen.UUID
	name    string
	running *engine.Status
	virt    *libvirt.Domain // as libvirt knows it, nil if it does not
}

// target finds the domain a reference means, running or not.
func (a *api) target(ctx context.Context, dom control.DomainRef) (target, error) {
	var t target
	if dom.ID != control.NoDomID {
		for _, st := range a.engine.Status() {
			if uint16(st.Info.ID) == dom.ID {
				t.uuid, t.name, t.running = st.Info.UUID, st.Name, &st
			}
		}
		if t.running == nil {
			return t, &control.Problem{Code: control.CodeNoSuchDomain, What: "the domain has gone", Where: where(dom), Fix: "run: hvictl list"}
		}
		t.virt = a.virtByUUID(ctx, t.uuid)
		return t, nil
	}
	if u, err := xen.ParseUUID(dom.Ref); err == nil {
		t.uuid = u
		t.virt = a.virtByUUID(ctx, u)
		kept, ok, _ := a.registry.Get(u)
		switch {
		case t.virt != nil:
			t.name = t.virt.Name
		case ok:
			t.name = kept.Name
		default:
			return t, noSuch(dom)
		}
		return t, nil
	}
	if v := a.virtByName(ctx, dom.Ref); v != nil {
		t.uuid, t.name, t.virt = v.UUID, v.Name, v
		return t, nil
	}
	all, err := a.registry.All()
	if err != nil {
		a.log.Warn("read what is kept of domains", "err", err)
	}
	var found []registry.Entry
	for _, e := range all {
		if e.Name == dom.Ref {
			found = append(found, e)
		}
	}
	switch len(found) {
	case 0:
		return t, noSuch(dom)
	case 1:
		t.uuid, t.name = found[0].UUID, found[0].Name
		return t, nil
	default:
		return t, &control.Problem{
			Code: control.CodeAmbiguous, What: "several domains that are kept are called " + policy.Quote(dom.Ref),
			Fix: "name it by its UUID; run: hvictl policy list",
		}
	}
}

func noSuch(dom control.DomainRef) error {
	return &control.Problem{
		Code: control.CodeNoSuchDomain, What: "no domain that runs, or that libvirt defines, or whose policy is kept is " + policy.Quote(dom.Ref),
		Fix: "run: hvictl list, or hvictl policy list",
	}
}

// setBy is the source of what was set by hand.
const setBy = "hvictl set"

// SetPolicy implements control.Engine. A domain of libvirt's gets the metadata
// that says so, where everybody can see it; of any other, hvid keeps it.
func (a *api) SetPolicy(ctx context.Context, dom control.DomainRef, req control.PolicyRequest) (control.PolicyReport, error) {
	spec, err := a.spec(req.Words(), setBy)
	if err != nil {
		return control.PolicyReport{}, badRequest(err, "policy request")
	}
	return a.change(ctx, dom, spec, req.Where)
}

// ClearPolicy implements control.Engine.
func (a *api) ClearPolicy(ctx context.Context, dom control.DomainRef, where string) (control.PolicyReport, error) {
	return a.change(ctx, dom, policy.Spec{}, where)
}

// change puts a spec in force, and where it is found at the next start. One that
// declares nothing removes what was there.
func (a *api) change(ctx context.Context, dom control.DomainRef, spec policy.Spec, where string) (control.PolicyReport, error) {
	t, err := a.target(ctx, dom)
	if err != nil {
		return control.PolicyReport{}, err
	}
	live, config := where != control.WhereConfig, where != control.WhereLive
	if t.running == nil {
		if where == control.WhereLive {
			return control.PolicyReport{}, &control.Problem{
				Code: control.CodeConflict, What: "the domain does not run", Where: policy.Quote(dom.Ref), Fix: "use --config to change what its next start finds",
			}
		}
		live = false
	}
	switch {
	case t.virt != nil:
		err = a.setVirt(ctx, t, spec, live, config)
	case config && spec.Declared():
		err = a.registry.Set(t.uuid, t.name, spec, setBy)
	case config:
		err = a.registry.Clear(t.uuid)
	}
	if err == nil && live {
		decl := engine.Declaration{Spec: spec, Source: setBy, From: string(registry.FromHvictl)}
		if !spec.Declared() || t.virt != nil {
			decl, _, err = a.resolveWithin(ctx, t.running.Info, t.name)
			switch {
			case errors.Is(err, &control.Problem{Code: control.CodeTimeout}):
				return control.PolicyReport{}, err
			case err != nil:
				return control.PolicyReport{}, badRequest(err, "what is declared besides")
			}
		}
		err = a.engine.Apply(ctx, t.running.Info, decl)
		switch {
		case errors.Is(err, engine.ErrTooEarly) && (config || t.virt != nil):
			// What was kept or handed over just now is found when it is built.
			err = nil
		case errors.Is(err, engine.ErrTooEarly):
			err = &control.Problem{
				Code: control.CodeConflict, What: "the domain is still being made", Where: policy.Quote(t.name), Err: err,
				Fix: "leave --live out, and it starts with this policy; or wait until hvictl status shows that it is decided about",
			}
		case errors.Is(err, engine.ErrBusy):
			err = busy(fmt.Errorf("the policy is not yet in force: %w", err), policy.Quote(t.name))
		}
	}
	if err != nil {
		var p *control.Problem
		if errors.As(err, &p) {
			return control.PolicyReport{}, err
		}
		return control.PolicyReport{}, &control.Problem{Code: control.CodeNotPossible, What: err.Error(), Where: policy.Quote(t.name), Err: err}
	}
	if t.running != nil {
		t.running = a.running(t.uuid)
	}
	if t.virt != nil {
		t.virt = a.virtByUUID(ctx, t.uuid)
	}
	return a.policyReport(t)
}
