package main

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/xen-hvi/hvi/config"
	"github.com/xen-hvi/hvi/control"
	"github.com/xen-hvi/hvi/engine"
	"github.com/xen-hvi/hvi/engine/journal"
	"github.com/xen-hvi/hvi/engine/keeper"
	"github.com/xen-hvi/hvi/engine/xen"
	"github.com/xen-hvi/hvi/engine/xen/xentest"
)

// fakeEvents is a log with these statistics.
type fakeEvents journal.Stats

func (f fakeEvents) Stats() journal.Stats { return journal.Stats(f) }

// fakeStore answers so.
type fakeStore struct {
	err error
	// hang keeps Read until it is closed.
	hang chan struct{}
}

func (f fakeStore) Read(string) (string, error) {
	if f.hang != nil {
		<-f.hang
	}
	return "", f.err
}

func newInspector(t *testing.T) *inspector {
	t.Helper()
	return &inspector{
		store: fakeStore{}, events: fakeEvents{}, files: &config.Files{Dir: t.TempDir()}, kept: t.TempDir(),
		hookHeard: func() time.Time { return time.Time{} },
		keeper:    func() keeper.State { return keeper.State{Alive: true, PID: 12} },
	}
}

func checkNamed(cs []control.Check, name string) (control.Check, bool) {
	for _, c := range cs {
		if c.Name == name {
			return c, true
		}
	}
	return control.Check{}, false
}

func TestInspectHost(t *testing.T) {
	for _, tc := range []struct {
		name, check string
		change      func(*inspector)
		status      control.CheckStatus
		mention     string
	}{
		{"no event", "event log", func(*inspector) {}, control.CheckOK, "events since start: 0"},
		{"events", "event log", func(x *inspector) { x.events = fakeEvents{Appended: 7, Subscribers: 2, TornBytes: 12} }, control.CheckOK, "start: 7, readers: 2; 12 bytes"},
		{"a full disk", "event log", func(x *inspector) {
			x.events = fakeEvents{Appended: 7, WriteFailures: 3, LastFailure: errors.New("no space left")}
		}, control.CheckFail, "3 of 7 events since start are not in the log; the last failure: no space left"},
		{"a broken disk", "event log", func(x *inspector) {
			x.events = fakeEvents{Appended: 7, SyncFailures: 3, LastFailure: errors.New("input/output error")}
		}, control.CheckWarn, "3 times since start; the last failure: input/output error"},
		{"nothing kept", "kept policies", func(*inspector) {}, control.CheckOK, "of 0 domains"},
		{"no directory", "kept policies", func(x *inspector) { x.kept += "/none" }, control.CheckOK, "of 0 domains"},
		{"kept", "kept policies", func(x *inspector) { touch(t, x.kept, "a.json", "b.json", "c") }, control.CheckOK, "of 2 domains"},
		{"damaged", "kept policies", func(x *inspector) { touch(t, x.kept, "a.json", "b\x1b.json.corrupt") }, control.CheckWarn, `b\x1b.json.corrupt`},
		{"not a directory", "kept policies", func(x *inspector) { touch(t, x.kept, "f"); x.kept += "/f" }, control.CheckFail, "not a directory"},
		{"keeper", "keeper", func(*inspector) {}, control.CheckOK, "process 12 watches"},
		{"a keeper after others", "keeper", func(x *inspector) {
			x.keeper = func() keeper.State { return keeper.State{Alive: true, PID: 12, Restarts: 2} }
		}, control.CheckWarn, "2 before it died"},
		{"no keeper", "keeper", func(x *inspector) {
			x.keeper = func() keeper.State { return keeper.State{Err: errors.New("no such file")} }
		}, control.CheckFail, "no such file"},
		{"the keeper had to act", "keeper", func(x *inspector) {
			x.recovered = &control.Recovery{By: "the keeper", Why: "hvid died", Domains: 3}
		}, control.CheckOK, "failed at 0001-01-01T00:00:00Z (hvid died), and the keeper undid what it had changed of 3 domains"},
		{"configuration", "configuration", func(x *inspector) { touch(t, x.files.Dir, "hvid.toml"); x.files.Owner = uint32(os.Geteuid()) }, control.CheckOK, "policies: 0"},
		{"xenstore answers", "xenstored", func(x *inspector) { x.store = fakeStore{err: os.ErrNotExist} }, control.CheckOK, ""},
		{"xenstore is gone", "xenstored", func(x *inspector) { x.store = fakeStore{err: errors.New("the connection has ended")} }, control.CheckMissing, "has ended"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			x := newInspector(t)
			tc.change(x)
			c, ok := checkNamed(x.host(t.Context()), tc.check)
			if !ok || c.Status != tc.status || !strings.Contains(c.Detail, tc.mention) {
				t.Errorf("%+v, want %s and %q", c, tc.status, tc.mention)
			}
			if c.Status != control.CheckOK && c.Status != control.CheckInfo && c.Fix == "" {
				t.Errorf("%+v: nothing says what to do", c)
			}
		})
	}
	// A xenstored that hangs holds doctor up for a bounded time.
	x := newInspector(t)
	hang := make(chan struct{})
	defer close(hang)
	x.store = fakeStore{hang: hang}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := x.askStore(ctx); err == nil {
		t.Error("a xenstored that hangs answers")
	}
}

func touch(t *testing.T, dir string, names ...string) {
	t.Helper()
	for _, n := range names {
		if err := os.WriteFile(filepath.Join(dir, n), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

// TestInspectDomain examines domains of a fake Xen.
func TestInspectDomain(t *testing.T) {
	hv := xentest.New(xentest.Config{})
	h, err := hv.Host()
	if err != nil {
		t.Fatal(err)
	}
	defer h.Close()
	hv.AddDomain(xentest.Spec{ID: 1, Type: xen.PVH, Pages: 1024, PagingPool: 2 << 20})
	listened := hv.AddDomain(xentest.Spec{ID: 2, Type: xen.HVM, PagingPool: 1 << 20})
	if _, err := listened.Connect(); err != nil {
		t.Fatal(err)
	}
	hv.AddDomain(xentest.Spec{ID: 3, Type: xen.PV})
	hv.AddDomain(xentest.Spec{ID: 4, Type: xen.HVM, NoHAP: true})

	x := newInspector(t)
	x.xen = h
	status := func(id xen.DomID, state engine.State) engine.Status {
		info, err := h.Domain(id)
		if err != nil {
			t.Fatal(err)
		}
		return engine.Status{Info: info, State: state}
	}
	for _, tc := range []struct {
		name   string
		st     engine.Status
		check  string
		status control.CheckStatus // "" for none
	}{
		{"a pool that is enough", status(1, engine.StateProtecting), "paging pool", control.CheckOK},
		{"one that is not", status(2, engine.StateProtecting), "paging pool", control.CheckWarn},
		{"a PV domain's", status(3, engine.StateUnprotected), "paging pool", ""},
		{"one without HAP", status(4, engine.StateUnprotected), "paging pool", ""},
		{"one that has gone", engine.Status{Info: xen.DomainInfo{ID: 9, Type: xen.PVH, HAP: true}}, "paging pool", control.CheckWarn},
		{"nobody listens", status(1, engine.StateUnprotected), "monitor ring", ""},
		{"another listens", status(2, engine.StateUnprotected), "monitor ring", control.CheckFail},
		{"another listens, and we failed", status(2, engine.StateFailed), "monitor ring", control.CheckFail},
		{"we listen", status(2, engine.StateProtecting), "monitor ring", ""},
		{"we begin", status(2, engine.StateGated), "monitor ring", ""},
		{"Xen does not tell", status(4, engine.StateFailed), "monitor ring", ""},
		{"not held", status(1, engine.StateProtecting), "held", ""},
	} {
		c, ok := checkNamed(x.domain(tc.st), tc.check)
		if ok != (tc.status != "") || c.Status != tc.status {
			t.Errorf("%s: %+v, want %q", tc.name, c, tc.status)
		}
		if ok && c.Status != control.CheckOK && c.Fix == "" {
			t.Errorf("%s: %+v: nothing says what to do", tc.name, c)
		}
	}
	st := status(1, engine.StateDetached)
	st.Held = "it is suspended"
	if c, ok := checkNamed(x.domain(st), "held"); !ok || c.Status != control.CheckInfo {
		t.Errorf("held while it is saved: %+v", c)
	}
	st.State = engine.StateFailed
	if c, ok := checkNamed(x.domain(st), "held"); !ok || c.Status != control.CheckFail || c.Fix == "" {
		t.Errorf("held for good: %+v", c)
	}
	if c, _ := checkNamed(x.domain(status(2, engine.StateProtecting)), "paging pool"); !strings.Contains(c.Fix, "shadow_memory = 2") || !strings.Contains(c.Detail, "1.0 MiB") {
		t.Errorf("%+v", c)
	}
}
