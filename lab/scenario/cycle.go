package scenario

import (
	"fmt"
	"path/filepath"
	"strings"
	"time"

	"github.com/xen-hvi/hvi/engine/xen"
)

func init() {
	Register(Scenario{
		Name:     "cycle-intel",
		Brief:    "Guests are saved, restored, migrated, rebooted and crash on Intel VT-x, without hvid",
		Emulator: Bochs,
		Bare:     true,
		Timeout:  8 * time.Minute,
		Run:      cycle,
	})
	Register(Scenario{
		Name:     "cycle-amd",
		Brief:    "Guests are saved, restored, migrated, rebooted and crash on AMD SVM, without hvid",
		Emulator: QEMU,
		Bare:     true,
		Timeout:  8 * time.Minute,
		Run:      cycle,
	})
}

// cycle proves what scenarios about a domain's life build upon: that each way
// to begin and to end one works here when nothing else is involved.
func cycle(t *T) error {
	if err := t.cycleTiny(); err != nil {
		return err
	}
	return t.cycleLinux()
}

func (t *T) cycleTiny() error {
	var g *Guest
	err := t.Step("tiny-create", func() (err error) {
		if g, err = t.StartGuest(GuestConfig{Name: "tiny", Kernel: KernelTiny}); err == nil {
			_, err = g.WaitUp()
		}
		return err
	})
	if err != nil {
		return err
	}
	poke := func(want int) error {
		n, err := g.Poke()
		if err == nil {
			t.Check(n == want, "poke %d of the tiny guest's life: %d", want, n)
		}
		return err
	}
	if err := poke(1); err != nil {
		return err
	}
	if err := t.Step("tiny-save-restore", func() (err error) { g, err = t.saveRestore(g); return err }); err != nil {
		return err
	}
	if err := poke(2); err != nil {
		return err
	}
	if err := t.Step("tiny-migrate", func() (err error) { g, err = g.Migrate(); return err }); err != nil {
		return err
	}
	if err := poke(3); err != nil {
		return err
	}
	if err := t.Step("tiny-shutdown", g.Shutdown); err != nil {
		return err
	}

	for _, end := range []struct {
		reason string
		line   string // what xl does then
		again  bool   // a domain follows
	}{
		{"0", `on_poweroff = "destroy"`, false},
		{"1", `on_reboot = "restart"`, true},
		{"3", `on_crash = "destroy"`, false},
		{"3", `on_crash = "restart"`, true},
		{"4", `on_watchdog = "destroy"`, false},
	} {
		what := fmt.Sprintf("reason %s with %s", end.reason, end.line)
		c := GuestConfig{Name: "ends", Kernel: KernelTiny, KernelArgs: []string{end.reason}, Lines: []string{end.line}}
		g, err := t.StartGuest(c)
		if err != nil {
			return fmt.Errorf("%s: %w", what, err)
		}
		if _, err := g.WaitUp(); err != nil {
			return fmt.Errorf("%s: %w", what, err)
		}
		if _, err := t.XL("trigger", fmt.Sprint(g.ID), "nmi"); err != nil {
			return err
		}
		if err := g.WaitGone(shutLimit); err != nil {
			return fmt.Errorf("%s: %w", what, err)
		}
		t.Check(true, "%s: the domain ended", what)
		if !end.again {
			continue
		}
		next, err := t.OpenNext(g)
		if err != nil {
			return fmt.Errorf("%s: %w", what, err)
		}
		t.Check(next.UUID == g.UUID && next.ID != g.ID, "%s: domain %d, UUID %s, follows", what, next.ID, next.UUID)
		if err := next.Destroy(); err != nil {
			return err
		}
	}
	return nil
}

func (t *T) cycleLinux() error {
	g, err := t.StartGuest(GuestConfig{})
	if err != nil {
		return err
	}
	if _, err := g.WaitUp(); err != nil {
		return err
	}
	if _, err := g.Run("echo kept > /tmp/mark"); err != nil {
		return err
	}
	if err := t.Step("linux-save-restore", func() (err error) { g, err = t.saveRestore(g); return err }); err != nil {
		return err
	}
	mark, err := g.Run("cat /tmp/mark")
	if err != nil {
		return err
	}
	t.Check(mark == "kept", "a Linux guest goes on after save and restore: %q", mark)
	if err := t.Step("linux-migrate", func() (err error) { g, err = g.Migrate(); return err }); err != nil {
		return err
	}
	mark, err = g.Run("cat /tmp/mark")
	if err != nil {
		return err
	}
	t.Check(mark == "kept", "a Linux guest goes on after a migration: %q", mark)
	if err := g.End(xen.ShutdownReason(1)); err != nil {
		return err
	}
	if err := g.WaitGone(shutLimit); err != nil {
		return err
	}
	next, err := t.OpenNext(g)
	if err != nil {
		return err
	}
	if _, err := next.WaitUp(); err != nil {
		return err
	}
	t.Check(next.UUID == g.UUID, "a Linux guest that reboots comes back")
	return next.Shutdown()
}

func (t *T) saveRestore(g *Guest) (*Guest, error) {
	dir, err := t.TempDir()
	if err != nil {
		return nil, err
	}
	file := filepath.Join(dir, "saved")
	if err := g.Save(file); err != nil {
		return nil, err
	}
	t.Check(!g.Exists(), "a saved domain is gone")
	next, err := t.RestoreGuest(g.Name, file)
	if err != nil {
		return nil, err
	}
	out, err := t.XL("list", "-l", g.Name)
	if err != nil {
		return nil, err
	}
	t.Check(strings.Contains(out.Stdout, g.UUID), "a restored domain keeps its UUID")
	return next, nil
}
