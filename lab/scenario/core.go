package scenario

import (
	"slices"
	"strings"
	"time"

	"github.com/xen-hvi/hvi/control"
	"github.com/xen-hvi/hvi/engine/xen"
)

// What hvi asks of Xen differs from release to release in structures, in what a call
// may do and when. These scenarios make one of each call, in as little time as may be,
// so that make test can have them on all releases; what the others show beside that is
// hvi's own and the same on each.
func init() {
	Register(Scenario{
		Name:     "core-intel",
		Brief:    "In brief, for each release of Xen: a guest guarded in a view, a breakpoint in it, nothing left; tier access",
		Emulator: Bochs,
		Timeout:  15 * time.Minute,
		Run:      coreIntel,
	})
	Register(Scenario{
		Name:     "core-amd",
		Brief:    "In brief, for each release of Xen: a guest on AMD whose registers are guarded, nothing left",
		Emulator: QEMU,
		Timeout:  15 * time.Minute,
		Run:      coreAMD,
	})
}

func coreIntel(t *T) error {
	if _, err := t.StartHVID(); err != nil {
		return err
	}
	h, err := xen.Open()
	if err != nil {
		return err
	}
	defer h.Close()
	c := enforce
	c.Lines = append(c.Lines, preserve)
	g, st, err := t.protectedGuest(c, control.StateProtecting)
	if err != nil {
		return err
	}
	if err := g.checkViews(st); err != nil {
		return err
	}
	g.guardsBlock(st, "kernel-text", "kernel-rodata", "syscall-entry", "cr")
	for _, mode := range []string{"text", "rep", "lstar", "cr0-wp"} {
		if err := g.attackIsBlocked(mode); err != nil {
			return err
		}
	}
	if err := g.selfPatching(); err != nil {
		return err
	}
	if err := g.restores(h, st); err != nil {
		return err
	}
	if err := g.breakpointInBrief(h); err != nil {
		return err
	}
	if err := g.lifeGoesOn(); err != nil {
		return err
	}
	if err := t.Step("shutdown", func() error { _, err := g.letGo(); return err }); err != nil {
		return err
	}
	return t.withoutAltp2m(h)
}

// breakpointInBrief sets a hidden breakpoint, has the guest come to it, and takes it
// away.
func (g *Guest) breakpointInBrief(h *xen.Host) error {
	const opens = 20
	t := g.t
	if err := t.breakpoint("set", g, hot); err != nil {
		return err
	}
	if _, err := g.checkHidden(h); err != nil {
		return err
	}
	before, _, err := g.breakpoint(hot)
	if err != nil {
		return err
	}
	if err := g.opens(2, opens); err != nil {
		return err
	}
	after, _, err := g.breakpoint(hot)
	if err != nil {
		return err
	}
	t.Fact("hits", after.Hits-before.Hits)
	t.Check(after.Hits-before.Hits > opens, "the guest comes to it and goes on: %d hits", after.Hits-before.Hits)
	if err := t.breakpoint("clear", g, hot); err != nil {
		return err
	}
	st, err := g.Status()
	if err != nil {
		return err
	}
	n, err := g.restrictedIn(st)
	if err != nil {
		return err
	}
	t.Check(n.inHost == 0 && n.inView == n.frames && n.frames > 0, "cleared, each page is restricted as before: %d of %d, %d in the host's view", n.inView, n.frames, n.inHost)
	return nil
}

// withoutAltp2m protects a guest without altp2m in its config, which gets it from hvid
// as far as Xen permits.
func (t *T) withoutAltp2m(h *xen.Host) error {
	plain := enforce
	plain.Name, plain.Altp2m = "plain", ""
	g, st, err := t.protectedGuest(plain, control.StateProtecting)
	if err != nil {
		return err
	}
	if h.Layout().Has.AltP2MFixedAtCreate {
		t.Check(st.Tier == control.TierAccess && strings.Contains(st.TierReason, "external"), "without altp2m in its config its tier is access, which says why: %s %q", st.Tier, st.TierReason)
	} else if err := g.checkViews(st); err != nil {
		return err
	}
	if err := g.attackIsBlocked("text"); err != nil {
		return err
	}
	return g.Shutdown()
}

// guardsBlock checks that guards are armed and block.
func (g *Guest) guardsBlock(st control.DomainStatus, names ...string) {
	for _, name := range names {
		gs := guardStatus(st, name)
		g.t.Check(gs.State == control.GuardArmed && gs.Action == "block", "guard %s is armed and blocks: %+v", name, gs)
	}
}

func coreAMD(t *T) error {
	if _, err := t.StartHVID(); err != nil {
		return err
	}
	c := enforce
	c.Altp2m = "" // xl refuses it where the processor has none
	c.Lines = append(c.Lines, preserve)
	g, st, err := t.protectedGuest(c, control.StateDegraded)
	if err != nil {
		return err
	}
	t.Check(st.Tier == control.TierRegisters, "tier is registers: %s", st.Tier)
	text := guardStatus(st, "kernel-text")
	t.Check(text.State == control.GuardScanning && strings.Contains(text.Reason, "VT-x"), "kernel-text is compared, and says what it needs: %s %q", text.State, text.Reason)
	g.guardsBlock(st, "syscall-entry", "cr")
	for _, mode := range slices.Concat(entryAttacks, []string{"cr0-wp", "efer-sce"}) {
		if err := g.attackIsBlocked(mode); err != nil {
			return err
		}
	}
	if err := g.denialHolds(); err != nil {
		return err
	}
	if err := g.lifeGoesOn(); err != nil {
		return err
	}
	return t.Step("shutdown", func() error { _, err := g.letGo(); return err })
}
