package main

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/xen-hvi/hvi/control"
	"github.com/xen-hvi/hvi/engine"
	"github.com/xen-hvi/hvi/engine/ledger"
	"github.com/xen-hvi/hvi/engine/policy"
	"github.com/xen-hvi/hvi/engine/xen"
	"github.com/xen-hvi/hvi/engine/xen/abi"
	"github.com/xen-hvi/hvi/engine/xen/xentest"
)

// TestNotOnXen starts hvid where there is no Xen: the error says what to do,
// and nothing is left lying about.
func TestNotOnXen(t *testing.T) {
	if _, err := os.Stat("/dev/xen/privcmd"); err == nil {
		t.Skip("this machine runs on Xen")
	}
	dir := t.TempDir()
	c := command()
	c.SetArgs([]string{"--socket", filepath.Join(dir, "hvid.sock"), "--ledger", filepath.Join(dir, "ledger"), "--journal", filepath.Join(dir, "events")})
	err := c.Execute()
	if !errors.Is(err, xen.ErrNotXen) || !strings.Contains(explain(err), "dom0") {
		t.Errorf("error %v", err)
	}
	if left, _ := os.ReadDir(dir); len(left) != 0 {
		t.Errorf("left behind: %v", left)
	}
}

func TestExplain(t *testing.T) {
	for want, err := range map[string]error{"as root": xen.ErrNotRoot, "under Xen": xen.ErrNotXen, "in dom0": xen.ErrNotControl, "4.99": &abi.UnknownReleaseError{Major: 4, Minor: 99}, "plain": errors.New("plain")} {
		if got := explain(err); !strings.Contains(got, want) || !strings.Contains(got, err.Error()) {
			t.Errorf("%v: %q, want %q in it", err, got, want)
		}
	}
}

// TestBadUsage checks that what hvid does not know is refused and named.
func TestBadUsage(t *testing.T) {
	for _, args := range [][]string{{"--sockett", "x"}, {"--log-level", "loud"}, {"start"}, {"recover", "now"}} {
		c := command()
		c.SetArgs(args)
		c.SetOut(io.Discard)
		c.SetErr(io.Discard)
		if err := c.Execute(); err == nil || !strings.Contains(err.Error(), strings.TrimLeft(args[len(args)-1], "-")) && !strings.Contains(err.Error(), strings.TrimLeft(args[0], "-")) {
			t.Errorf("hvid %q: %v", args, err)
		}
	}
}

// TestDoctor examines hosts that lack one thing each: the check says so, and
// how to mend it.
func TestDoctor(t *testing.T) {
	for _, c := range []struct {
		name   string
		cfg    xentest.Config
		check  string
		status control.CheckStatus
		fix    string
	}{
		{"all there", xentest.Config{AltP2M: true, CommandLine: "dom0_mem=512M altp2m=1"}, "altp2m", control.CheckOK, ""},
		{"no altp2m", xentest.Config{CommandLine: "dom0_mem=512M"}, "altp2m", control.CheckWarn, "altp2m=1"},
		{"altp2m off", xentest.Config{CommandLine: "altp2m=0"}, "altp2m", control.CheckWarn, "altp2m=1"},
		{"AMD", xentest.Config{AMD: true}, "processor", control.CheckWarn, "Intel"},
		{"Intel", xentest.Config{}, "processor", control.CheckOK, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			hv := xentest.New(c.cfg)
			h, err := hv.Host()
			if err != nil {
				t.Fatal(err)
			}
			found := false
			for _, got := range examineHost(h, t.TempDir(), nil) {
				if got.Name != c.check {
					continue
				}
				found = true
				if got.Status != c.status || !strings.Contains(got.Fix, c.fix) {
					t.Errorf("%+v, want %s with %q", got, c.status, c.fix)
				}
			}
			if !found {
				t.Errorf("no check is called %q", c.check)
			}
			if err := errors.Join(h.Close(), hv.Close()); err != nil {
				t.Error(err)
			}
		})
	}
}

// TestLeftover finds the ledger of a domain nobody is attached to.
func TestLeftover(t *testing.T) {
	dir := t.TempDir()
	for _, id := range []xen.DomID{7, 8} {
		if err := os.WriteFile(filepath.Join(dir, ledger.FileName(id, xen.UUID{byte(id)})), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	seven := engine.Status{Info: xen.DomainInfo{ID: 7, UUID: xen.UUID{7}}}
	eight := engine.Status{Info: xen.DomainInfo{ID: 8, UUID: xen.UUID{8}}}
	if c := leftover(dir, []engine.Status{seven, eight}); c.Status != control.CheckOK {
		t.Errorf("both attached: %+v", c)
	}
	if c := leftover(dir, []engine.Status{seven}); c.Status != control.CheckFail || !strings.Contains(c.Detail, "8-") || strings.Contains(c.Detail, "7-") || c.Fix == "" {
		t.Errorf("domain 8 is nobody's: %+v", c)
	}
	if c := leftover(filepath.Join(dir, "none"), nil); c.Status != control.CheckOK {
		t.Errorf("no directory: %+v", c)
	}
}

// TestDomainStatus checks that what the engine says reaches the socket whole.
func TestDomainStatus(t *testing.T) {
	at := time.Unix(1_700_000_000, 0)
	st := domainStatus(engine.Status{
		Info: xen.DomainInfo{ID: 7, UUID: xen.UUID{7}, Type: xen.PVH}, Name: "web\x1b[31m",
		State: engine.StateDegraded, Tier: engine.TierRegisters, TierReason: "AMD",
		Kernel:     &engine.KernelStatus{Release: "6.1\n", Base: 0xffffffff81000000, Symbols: 5},
		Guards:     []engine.GuardStatus{{Name: policy.GuardSyscallEntry, Action: policy.ActionBlock, State: engine.GuardArmed, Passed: 1, Violations: 3, Blocked: 2, Decisions: 4, Busy: 7}},
		AttachedAt: at, AttachPC: 0x1000200, Events: 9, Unrecorded: 4,
		Failure: &engine.Failure{Stage: "arm", Err: errors.New("no"), Fix: "do"},
	})
	if st.ID != 7 || st.Type != "PVH" || st.State != control.StateDegraded || st.Tier != control.TierRegisters || st.TierReason != "AMD" {
		t.Errorf("%+v", st)
	}
	if strings.ContainsAny(string(st.Name)+string(st.GuestKernel.Release), "\x1b\n") {
		t.Errorf("control characters pass: %q %q", st.Name, st.GuestKernel.Release)
	}
	if st.AttachPC == nil || *st.AttachPC != 0x1000200 || !st.AttachedAt.Equal(at) || st.Failure.Stage != "arm" || st.Failure.Fix != "do" {
		t.Errorf("%+v %+v", st, st.Failure)
	}
	want := control.GuardStatus{Name: "syscall-entry", Action: "block", State: control.GuardArmed, Events: 3, Blocked: 2, Passed: 1, Decisions: 4, Busy: 7}
	if len(st.Guards) != 1 || st.Guards[0] != want {
		t.Errorf("%+v", st.Guards)
	}
	if st.Counters != (control.Counters{RingEvents: 9, Alerted: 1, Blocked: 2, RecordsLost: 4}) {
		t.Errorf("%+v", st.Counters)
	}
	if none := domainStatus(engine.Status{}); none.AttachPC != nil || none.Guards == nil {
		t.Errorf("a domain that is not attached: %+v", none)
	}
}

// TestDeclaration checks what an attach by hand comes to.
func TestDeclaration(t *testing.T) {
	dom := control.DomainRef{ID: 7, Name: "web"}
	e := engine.New(engine.Options{Log: slog.New(slog.DiscardHandler)})
	e.Gate(xen.DomainInfo{ID: 7, UUID: xen.UUID{7}, Type: xen.PVH, OnlineVCPUs: 1}, true)
	a := &api{engine: e, resolve: func(xen.DomainInfo, string) (engine.Declaration, bool, error) {
		return engine.Declaration{}, false, nil
	}}
	for _, c := range []struct {
		name string
		req  control.AttachRequest
		mode policy.Mode
		bad  string
	}{
		{"enforce", control.AttachRequest{Mode: "enforce"}, policy.ModeEnforce, ""},
		{"one guard", control.AttachRequest{Mode: "enforce", Guards: []control.GuardRequest{{Name: "kernel-text", Action: "alert"}}}, policy.ModeEnforce, ""},
		{"guards without a mode", control.AttachRequest{Guards: []control.GuardRequest{{Name: "kernel-text", Action: "alert"}}}, 0, "mode"},
		{"unknown mode", control.AttachRequest{Mode: "enfroce"}, 0, "enforce"},
		{"unknown guard", control.AttachRequest{Mode: "enforce", Guards: []control.GuardRequest{{Name: "kernel-txt", Action: "block"}}}, 0, "kernel-text"},
		{"block under observe", control.AttachRequest{Mode: "observe", Guards: []control.GuardRequest{{Name: "kernel-text", Action: "block"}}}, 0, "enforce"},
		{"off", control.AttachRequest{Mode: "off"}, 0, "protects nothing"},
		{"nothing declared", control.AttachRequest{}, 0, "no protection"},
	} {
		t.Run(c.name, func(t *testing.T) {
			d, err := a.declaration(t.Context(), dom, c.req)
			if c.bad == "" {
				if err != nil || d.Spec.Mode != c.mode {
					t.Errorf("%+v, %v", d, err)
				}
				return
			}
			var p *control.Problem
			if !errors.As(err, &p) || p.Code != control.CodeBadRequest || !strings.Contains(p.What, c.bad) {
				t.Errorf("%v, want a bad request with %q", err, c.bad)
			}
		})
	}
	a.doctor = func(context.Context) []control.Check { return nil }
	a.events = func(xen.DomainInfo) (xen.MonitorCaps, error) { return 1 << abi.MonitorEventMovToMSR, nil }
	a.probe = func(xen.DomainInfo) (engine.Tier, string) { return engine.TierAccess, "no altp2m" }
	if r, err := a.Doctor(context.Background()); err != nil || len(r.Domains) != 1 || r.Domains[0].Tier != control.TierAccess || r.Domains[0].TierReason != "no altp2m" {
		t.Errorf("doctor on a domain nobody attached to: %+v, %v", r.Domains, err)
	}
	if c := a.monitorEvents(xen.DomainInfo{}); c.Status != control.CheckOK || c.Detail == "" {
		t.Errorf("%+v", c)
	}
	a.events = func(xen.DomainInfo) (xen.MonitorCaps, error) { return 0, nil }
	if c := a.monitorEvents(xen.DomainInfo{Type: xen.PV}); c.Status != control.CheckMissing || !strings.Contains(c.Detail, "PV") {
		t.Errorf("%+v", c)
	}
	if _, err := a.Detach(context.Background(), dom); !errors.Is(err, &control.Problem{Code: control.CodeConflict}) {
		t.Errorf("detach of a domain that is not attached: %v", err)
	}
	if _, err := a.Domain(context.Background(), control.DomainRef{ID: 9}); !errors.Is(err, &control.Problem{Code: control.CodeNoSuchDomain}) {
		t.Errorf("a domain that is not there: %v", err)
	}
}
