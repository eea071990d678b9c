package main

import (
	"path/filepath"

	"github.com/xen-hvi/hvi/engine"
	"github.com/xen-hvi/hvi/metrics"
)

// gauge is what the metrics are made of. It implements metrics.Source.
type gauge struct {
	api *api
	// declarations is the directory of what is kept of domains.
	declarations string
}

// kept counts it, without reading it: anybody may ask.
func (g gauge) kept() int {
	files, err := filepath.Glob(filepath.Join(g.declarations, "*.json"))
	if err != nil {
		return 0 // the pattern is a good one
	}
	return len(files)
}

// Domains implements metrics.Source.
func (g gauge) Domains() []metrics.Domain {
	all := g.api.engine.Status()
	out := make([]metrics.Domain, len(all))
	for i, st := range all {
		out[i] = metricsOf(st)
		if mode, ok := g.api.restarting.mode(st); ok {
			out[i].State, out[i].Mode = "restarting", mode
		}
	}
	return out
}

func metricsOf(st engine.Status) metrics.Domain {
	d := metrics.Domain{
		ID: uint16(st.Info.ID), UUID: st.Info.UUID.String(), Name: st.Name, Type: st.Info.Type.String(),
		State: string(st.State), Mode: st.Policy.Mode.String(), Tier: string(st.Tier), PolicyFrom: st.PolicyFrom,
		Held: st.Held != "", AttachedAt: st.AttachedAt,
		RingEvents: st.Events, Stray: st.Stray, RecordsLost: st.Unrecorded,
	}
	for _, gs := range st.Guards {
		d.Guards = append(d.Guards, metrics.Guard{
			Name: string(gs.Name), Action: gs.Action.String(), State: string(gs.State),
			Violations: gs.Violations, Blocked: gs.Blocked, Found: gs.Found, Passed: gs.Passed, Allowed: gs.Allowed,
			Decisions: gs.Decisions, Busy: gs.Busy, OverBudget: gs.OverBudget,
		})
	}
	return d
}

// Host implements metrics.Source.
func (g gauge) Host() metrics.Host {
	n := g.api.engine.Stats()
	h := metrics.Host{
		Journal:  g.api.journal.Stats(),
		Attaches: n.Attaches, AttachTime: n.AttachTime, AttachFailures: n.AttachFailures,
		GateRefused: g.api.refused.Load(),
	}
	k := g.api.keeper()
	h.Keeper = metrics.Keeper{Alive: k.Alive, Restarts: k.Restarts}
	if v := g.api.virt; v != nil && v.expected() {
		h.Libvirt = &metrics.Libvirt{Connected: v.up.Load()}
	}
	h.Declarations = g.kept()
	return h
}
