package scenario

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"sync"
	"time"

	"github.com/xen-hvi/hvi/control"
)

func init() {
	Register(Scenario{
		Name:     "package-upgrade",
		Brief:    "Upgrade, restart and purge under a running guest: never a long pause, never a silent gap",
		Emulator: Bochs,
		System:   Debian,
		Timeout:  20 * time.Minute,
		Run:      packageUpgrade,
	})
}

func packageUpgrade(t *T) error {
	if _, err := t.InstallPackage(); err != nil {
		return err
	}
	g, _, err := t.protectedGuest(enforce, control.StateProtecting)
	if err != nil {
		return err
	}
	if err := g.watchClock(); err != nil {
		return err
	}
	for _, step := range []struct {
		name string
		do   func() error
	}{
		// dpkg runs the same scripts for the same version as for a newer one.
		{"upgrade", func() error { _, err := t.Exec("dpkg", "-i", PackageFile); return err }},
		{"restart", func() error { _, err := t.Systemctl("restart", "hvid.service"); return err }},
	} {
		seen := t.watchStates(g)
		if err := t.Step(step.name, step.do); err != nil {
			return err
		}
		if _, err := g.WaitState(protectLimit, control.StateProtecting); err != nil {
			return err
		}
		states := seen()
		t.Fact(step.name+".states", states)
		t.Check(slices.Contains(states, string(control.StateRestarting)), "%s: who asks meanwhile is told that protection comes back: %v", step.name, states)
		for _, bad := range []control.State{control.StateUnprotected, control.StateFailed, "unknown"} {
			t.Check(!slices.Contains(states, string(bad)), "%s: and never that the guest is %s: %v", step.name, bad, states)
		}
		if err := g.attackIsBlocked("lstar"); err != nil {
			return err
		}
	}
	gap, err := g.longestGap()
	if err != nil {
		return err
	}
	t.Fact("longest_pause_ms", gap.Milliseconds())
	t.Check(gap > 0 && gap < maxPause, "over an upgrade and a restart the guest stood still for %v at most", gap)

	for _, verb := range []string{"remove", "purge"} {
		if err := t.Step(verb, func() error { _, err := t.Apt(verb, "hvi"); return err }); err != nil {
			return err
		}
		left, err := t.leftovers(g.ID)
		if err != nil {
			return err
		}
		t.Check(left.restricted == 0 && !left.paused, "after %s nothing of hvi is left in Xen: %d of %d pages restricted, paused %v", verb, left.restricted, left.frames, left.paused)
		out, err := g.Run("echo on my own")
		t.Check(err == nil && out == "on my own", "after %s the guest runs on: %q %v", verb, out, err)
		if verb == "purge" {
			break
		}
		if _, err := t.Apt("install", PackageFile); err != nil {
			return err
		}
		st, err := g.WaitState(protectLimit, control.StateProtecting)
		if err != nil {
			return err
		}
		t.Check(st.Mode == "enforce", "installed again, hvi protects the guest that runs: mode %s, from %s", st.Mode, st.PolicySource)
	}
	var rest []string
	for _, path := range []string{"/etc/hvi", "/var/lib/hvi", "/run/hvi", "/var/cache/hvi", "/usr/sbin/hvid", "/usr/bin/hvictl", "/etc/libvirt/hooks/libxl.d/50-hvi", "/etc/xen/scripts/hvi-vif-bridge", "/etc/apparmor.d/usr.sbin.hvid"} {
		if _, err := os.Lstat(path); !errors.Is(err, fs.ErrNotExist) {
			rest = append(rest, path)
		}
	}
	t.Check(len(rest) == 0, "purge leaves no file: %v", rest)
	return g.Shutdown()
}

// watchStates asks for the guest's state again and again, as an admin with
// `watch hvictl status` does: of hvid, or while there is none, of the notice that
// hvid left. The function it returns ends that and tells every state seen, each
// once.
func (t *T) watchStates(g *Guest) func() []string {
	ctx, cancel := context.WithCancel(t.ctx)
	var wg sync.WaitGroup
	var seen []string
	wg.Go(func() {
		for ctx.Err() == nil {
			s := g.stateNow(ctx)
			if ctx.Err() == nil && !slices.Contains(seen, s) {
				seen = append(seen, s)
			}
			select {
			case <-ctx.Done():
			case <-time.After(50 * time.Millisecond):
			}
		}
	})
	return func() []string {
		cancel()
		wg.Wait()
		return seen
	}
}

// stateNow is what hvictl would say now, or "unknown" where it could not say
// anything.
func (g *Guest) stateNow(ctx context.Context) string {
	st, err := client.Domain(ctx, fmt.Sprint(g.ID))
	switch {
	case err == nil:
		return string(st.State)
	case errors.Is(err, &control.Problem{Code: control.CodeNoSuchDomain}):
		return "unknown" // hvid runs and denies it
	}
	n, ok, err := control.ReadRestartNotice("/run/hvi")
	if err == nil && ok {
		for _, d := range n.Domains {
			if d.UUID == g.UUID {
				return string(control.StateRestarting)
			}
		}
		return "unknown"
	}
	// hvid has taken the notice and does not answer yet, or is about to leave
	// one: hvictl waits and says so.
	return "not answering"
}
