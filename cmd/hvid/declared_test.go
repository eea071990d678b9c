package main

import (
	"log/slog"
	"testing"

	"github.com/xen-hvi/hvi/engine"
	"github.com/xen-hvi/hvi/engine/policy"
	"github.com/xen-hvi/hvi/engine/xen"
	"github.com/xen-hvi/hvi/registry"
)

// TestNoNews keeps what was set by hand for a domain that runs when its
// toolstack, which was away, says again what it has said all along.
func TestNoNews(t *testing.T) {
	info := xen.DomainInfo{ID: 7, UUID: xen.UUID{7}, Type: xen.PVH, OnlineVCPUs: 1}
	spec := func(mode string) policy.Spec {
		var b policy.Builder
		b.Mode(mode, policy.Origin{Source: "test"})
		s, err := b.Build()
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	for name, c := range map[string]struct {
		first, again policy.Spec
		restarted    bool // hvid was, in between
		kept         string
	}{
		"nothing, twice":                  {policy.Spec{}, policy.Spec{}, false, setBy},
		"nothing, before a restart":       {policy.Spec{}, policy.Spec{}, true, setBy},
		"the same":                        {spec("observe"), spec("observe"), false, setBy},
		"something else":                  {spec("observe"), spec("off"), false, virtSource},
		"something else, after a restart": {policy.Spec{}, spec("off"), true, virtSource},
		"nothing any more":                {spec("observe"), policy.Spec{}, false, ""},
	} {
		t.Run(name, func(t *testing.T) {
			store, err := registry.Open(t.TempDir())
			if err != nil {
				t.Fatal(err)
			}
			log := slog.New(slog.DiscardHandler)
			a := &api{log: log, alive: func(xen.DomainInfo) bool { return true }}
			start := func() {
				a.registry = registry.New(registry.Options{Store: store})
				a.resolve, a.engine = resolver(a.registry), engine.New(engine.Options{Log: log})
			}
			say := func(s policy.Spec) {
				t.Helper()
				if err := a.handOver(registry.Entry{UUID: info.UUID, Name: "web", Toolstack: registry.ToolstackLibvirt, Source: virtSource, Spec: s}); err != nil {
					t.Fatal(err)
				}
			}
			start()
			say(c.first)
			a.engine.Gate(info, true)
			if err := a.registry.Set(info.UUID, "web", spec("enforce"), setBy); err != nil {
				t.Fatal(err)
			}
			if c.restarted {
				start()
				a.engine.Gate(info, true)
			}
			say(c.again)
			e, ok, err := a.registry.Get(info.UUID)
			if err != nil || e.Source != c.kept || ok != (c.kept != "") {
				t.Errorf("kept: %q, %v, %v; want %q", e.Source, ok, err, c.kept)
			}
		})
	}
}
