package scenario

import (
	"debug/elf"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/xen-hvi/hvi/control"
	"github.com/xen-hvi/hvi/engine/x86"
)

func init() {
	Register(Scenario{
		Name:     "package-xl",
		Brief:    "The package on a Debian 12 with systemd and real xl, on AMD: from install to protecting, every road",
		Emulator: QEMU,
		System:   Debian,
		Timeout:  40 * time.Minute,
		Run:      func(t *T) error { return packageXL(t, false) },
	})
	Register(Scenario{
		Name:     "package-xl-intel",
		Brief:    "The same on Intel",
		Emulator: Bochs,
		System:   Debian,
		Timeout:  40 * time.Minute,
		Run:      func(t *T) error { return packageXL(t, true) },
	})
}

// packageXL installs the package and takes every road with the hvid that
// systemd runs.
func packageXL(t *T, intel bool) error {
	begin := time.Now()
	if err := t.Step("install", func() error { _, err := t.InstallPackage(); return err }); err != nil {
		return err
	}
	out, err := t.Systemctl("is-active", "hvid.service")
	if !t.Check(err == nil, "hvid runs once it is installed: %s", strings.TrimSpace(out.Stdout)) {
		text, _ := t.Journal("hvid.service")
		return fmt.Errorf("hvid.service: %s", lastLines(text, 8))
	}
	rs, err := newRoads(t, intel, nil)
	if err != nil {
		return err
	}
	rs.installed = begin
	// First what a new admin does.
	for _, take := range []func(*roads){
		(*roads).protected, (*roads).creations, (*roads).lives, (*roads).endings, (*roads).softReset,
		(*roads).hvm, (*roads).gates, (*roads).xendomains, (*roads).names,
	} {
		take(rs)
	}
	failed, err := t.FailedUnits()
	if err != nil {
		return err
	}
	t.Check(len(failed) == 0, "no unit has failed: %v", failed)
	return nil
}

// hvmLoader is what an HVM guest starts with.
func hvmLoader() (x86.VirtAddr, error) {
	files, err := filepath.Glob("/usr/lib/xen-*/boot/hvmloader")
	if err != nil || len(files) != 1 {
		return 0, errors.Join(fmt.Errorf("hvmloader: %q", files), err)
	}
	f, err := elf.Open(files[0])
	if err != nil {
		return 0, err
	}
	defer f.Close()
	return x86.VirtAddr(f.Entry), nil
}

// hvm are the roads of a guest with a device model that another does not go.
func (rs *roads) hvm() {
	t := rs.t
	guest := func(name, reason string) GuestConfig {
		c := rs.guest(KernelTiny, name, enforceLine)
		c.Type = TypeHVM
		if reason != "" {
			c.KernelArgs = []string{reason}
		}
		return c
	}
	start := func(r *road, c GuestConfig) (*Guest, x86.VirtAddr, error) {
		entry, err := hvmLoader()
		if err != nil {
			return nil, 0, err
		}
		g, err := t.StartGuest(c)
		if err != nil {
			return nil, 0, err
		}
		if _, err := r.attached(g, want{source: c.Name + ".cfg", at: entry}); err != nil {
			return nil, 0, err
		}
		_, err = g.WaitUp()
		return g, entry, err
	}
	rs.take("hvm-create-destroy", func(r *road) error {
		g, _, err := start(r, guest("hvm", ""))
		if err != nil {
			return err
		}
		if err := g.Destroy(); err != nil {
			return err
		}
		return r.clean(g)
	})
	rs.take("hvm-guest-reboot", func(r *road) error {
		g, entry, err := start(r, guest("hvm", "1"))
		if err != nil {
			return err
		}
		if err := g.poke(); err != nil {
			return err
		}
		n, err := r.next(g)
		if err != nil {
			return err
		}
		_, err = r.attached(n, want{from: fromXLOrKept, source: "hvm.cfg", at: entry})
		return err
	})
	rs.take("hvm-save-restore", func(r *road) error {
		g, _, err := start(r, guest("hvm", ""))
		if err != nil {
			return err
		}
		if _, err := g.Poke(); err != nil {
			return err
		}
		image := filepath.Join(rs.dir, "hvm.save")
		if err := g.Save(image); err != nil {
			return err
		}
		if err := r.clean(g); err != nil {
			return err
		}
		n, err := t.RestoreGuest(g.Name, image)
		if err := errors.Join(err, os.Remove(image)); err != nil {
			return err
		}
		st, err := n.WaitState(attachLimit, control.StateAttached, control.StateIdentifying)
		if err != nil {
			return err
		}
		r.PolicySource, r.PolicyFrom = st.PolicySource, string(st.PolicyFrom)
		r.check(st.Mode == "enforce" && st.PolicyFrom == control.FromCaptured, "the restored guest has the policy that was kept: %s, %s %q", st.Mode, st.PolicyFrom, st.PolicySource)
		count, err := n.Poke()
		r.check(count == 2, "and goes on: poked %d times", count)
		return err
	})
	rs.take("hvm-soft-reset", func(r *road) error {
		// The same domain runs on, from where it asked for it, and is never
		// without us.
		g, _, err := start(r, guest("hvm", "5"))
		if err != nil {
			return err
		}
		before, err := g.Status()
		if err != nil {
			return err
		}
		if err := g.poke(); err != nil {
			return err
		}
		return t.Eventually(shutLimit, "hvi is attached to the reset domain again", func() (bool, error) {
			st, err := g.Status()
			if err != nil || !st.AttachedAt.After(before.AttachedAt) {
				return false, err
			}
			r.PolicySource, r.PolicyFrom = st.PolicySource, string(st.PolicyFrom)
			r.check(st.Mode == "enforce" && st.ID == before.ID, "the same domain, reset, has its policy: %d, mode %s", st.ID, st.Mode)
			return true, nil
		})
	})
}

// xendomains is the service that starts guests with the host, saves them when it
// shuts down and restores them afterwards.
func (rs *roads) xendomains() {
	t := rs.t
	rs.take("xendomains", func(r *road) error {
		c := rs.guest(KernelTiny, "auto", enforceLine)
		path, err := t.WriteConfig(c)
		if err != nil {
			return err
		}
		const auto = "/etc/xen/auto/auto.cfg"
		if err := errors.Join(os.MkdirAll(filepath.Dir(auto), 0o755), os.Symlink(path, auto)); err != nil {
			return err
		}
		defer os.Remove(auto)
		if _, err := t.Systemctl("restart", "xendomains.service"); err != nil {
			return err
		}
		g, err := t.OpenGuest(c.Name)
		if err != nil {
			return err
		}
		if _, err := r.attached(g, want{source: "auto", kernel: KernelTiny}); err != nil {
			return err
		}
		if _, err := g.WaitUp(); err != nil {
			return err
		}
		if _, err := g.Poke(); err != nil {
			return err
		}
		// The host goes down, and comes up with an hvid that knows what the
		// other kept.
		if _, err := t.Systemctl("stop", "xendomains.service"); err != nil {
			return err
		}
		if err := r.clean(g); err != nil {
			return err
		}
		if err := rs.restartHVID(); err != nil {
			return err
		}
		if _, err := t.Systemctl("start", "xendomains.service"); err != nil {
			return err
		}
		n, err := t.OpenGuest(c.Name)
		if err != nil {
			return err
		}
		st, err := n.WaitState(attachLimit, control.StateAttached, control.StateIdentifying)
		if err != nil {
			return err
		}
		r.PolicySource, r.PolicyFrom = st.PolicySource, string(st.PolicyFrom)
		r.check(st.Mode == "enforce" && st.PolicyFrom == control.FromCaptured && n.UUID == g.UUID, "the restored guest has the policy that was kept: %s, %s %q", st.Mode, st.PolicyFrom, st.PolicySource)
		count, err := n.Poke()
		r.check(count == 2, "and goes on: domain %s, poked %d times", strconv.Itoa(n.ID), count)
		return err
	})
}
