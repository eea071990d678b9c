package main

import (
	"log/slog"
	"os"
	"testing"
	"time"

	"github.com/xen-hvi/hvi/control"
	"github.com/xen-hvi/hvi/engine"
	"github.com/xen-hvi/hvi/engine/policy"
	"github.com/xen-hvi/hvi/engine/xen"
)

// TestRestarting says of a domain that lost its protection to a restart that it
// waits for it, until hvid has come to it.
func TestRestarting(t *testing.T) {
	dir, now := t.TempDir(), time.Unix(1_800_000_000, 0)
	protected := engine.Status{
		Info: xen.DomainInfo{ID: 3, UUID: xen.UUID{3}}, Name: "web", State: engine.StateProtecting,
		AttachedAt: now, Policy: policy.Effective{Mode: policy.ModeEnforce},
	}
	other := engine.Status{Info: xen.DomainInfo{ID: 4, UUID: xen.UUID{4}}, State: engine.StateUnprotected}
	if err := leaveNotice(dir, now, []engine.Status{protected, other}); err != nil {
		t.Fatal(err)
	}
	log := slog.New(slog.DiscardHandler)
	r := readNotice(dir, now.Add(time.Second), log)
	if _, ok, err := control.ReadRestartNotice(dir); !ok || err != nil {
		t.Errorf("the notice is gone before hvid answers: %v", err)
	}
	dropNotice(dir, log)
	if left, _ := os.ReadDir(dir); len(left) != 0 {
		t.Errorf("the notice is still there: %v", left)
	}
	a := &api{restarting: r}
	fresh := engine.Status{Info: protected.Info, State: engine.StateUnprotected}
	if st := a.status(fresh); st.State != control.StateRestarting || st.Mode != "enforce" {
		t.Errorf("not come to yet: %s, mode %s", st.State, st.Mode)
	}
	if st := a.status(other); st.State != control.StateUnprotected {
		t.Errorf("one that was not protected: %s", st.State)
	}
	protected.Decided = true
	if st := a.status(protected); st.State != control.StateProtecting {
		t.Errorf("come to: %s", st.State)
	}
	if st := a.status(fresh); st.State != control.StateUnprotected {
		t.Errorf("once come to, it does not wait again: %s", st.State)
	}

	// A notice that is too old is that of a hvid nobody restarted.
	if err := leaveNotice(dir, now, []engine.Status{protected}); err != nil {
		t.Fatal(err)
	}
	if r := readNotice(dir, now.Add(time.Hour), log); len(r.byUUID) != 0 {
		t.Errorf("an old notice is believed")
	}
}

func TestWatchdogPeriod(t *testing.T) {
	env := func(usec, pid string) func(string) string {
		return func(k string) string { return map[string]string{"WATCHDOG_USEC": usec, "WATCHDOG_PID": pid}[k] }
	}
	for _, c := range []struct {
		usec, pid string
		want      time.Duration
	}{
		{"30000000", "", 15 * time.Second},
		{"30000000", "7", 15 * time.Second},
		{"30000000", "8", 0},
		{"", "", 0},
		{"-1", "7", 0},
		{"x", "7", 0},
		{"99999999999999999", "7", 0},
	} {
		if got := watchdogPeriod(env(c.usec, c.pid), 7); got != c.want {
			t.Errorf("WATCHDOG_USEC=%q WATCHDOG_PID=%q: %v, want %v", c.usec, c.pid, got, c.want)
		}
	}
}

// TestNoticeHeld says which domains hvid leaves held, until they are let go.
func TestNoticeHeld(t *testing.T) {
	dir, now := t.TempDir(), time.Unix(1_800_000_000, 0)
	notice := func() (n control.RestartNotice, ok bool) {
		t.Helper()
		n, ok, err := control.ReadRestartNotice(dir)
		if err != nil {
			t.Fatal(err)
		}
		return n, ok
	}
	tell := func(at time.Time, held ...control.RestartDomain) {
		t.Helper()
		if err := noticeHeld(dir, at, held); err != nil {
			t.Fatal(err)
		}
	}
	tell(now)
	if _, ok := notice(); ok {
		t.Error("a notice of nothing")
	}
	protected := engine.Status{
		Info: xen.DomainInfo{ID: 3, UUID: xen.UUID{3}}, Name: "web", State: engine.StateProtecting,
		AttachedAt: now, Policy: policy.Effective{Mode: policy.ModeEnforce},
	}
	held := engine.Status{Info: xen.DomainInfo{ID: 4, UUID: xen.UUID{4}}, Name: "db", State: engine.StateFailed, Held: "it must be"}
	all := []engine.Status{protected, held}
	if err := leaveNotice(dir, now, all); err != nil {
		t.Fatal(err)
	}
	tell(now, heldStill(all)...)
	if n, _ := notice(); len(n.Domains) != 2 || len(n.Held()) != 1 || n.Held()[0].Name != "db" || n.Domains[0].Held != "" {
		t.Errorf("%+v", n)
	}
	if r := readNotice(dir, now, slog.New(slog.DiscardHandler)); len(r.byUUID) != 1 {
		t.Errorf("what is held is shown as restarting: %v", r.byUUID)
	}
	// recover knows no names.
	nameless := heldStill(all)
	nameless[0].Name = ""
	tell(now, nameless...)
	if n, _ := notice(); len(n.Held()) != 1 || n.Held()[0].Name != "db" {
		t.Errorf("%+v", n)
	}
	tell(now)
	if n, _ := notice(); len(n.Domains) != 1 || len(n.Held()) != 0 {
		t.Errorf("let go, and still told: %+v", n)
	}
	if err := control.RemoveRestartNotice(dir); err != nil {
		t.Fatal(err)
	}
	tell(now, nameless...)
	tell(now.Add(time.Hour))
	if n, ok := notice(); ok {
		t.Errorf("a notice of nothing is left: %+v", n)
	}
}
