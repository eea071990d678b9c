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
		Run:      func(t *T) error { return packageXL(t, false, everyPackageRoad...) },
	})
	Register(Scenario{
		Name:     "package-xl-intel",
		Brief:    "The same on Intel",
		Emulator: Bochs,
		System:   Debian,
		Timeout:  90 * time.Minute,
		Run:      func(t *T) error { return packageXL(t, true, everyPackageRoad...) },
	})
	Register(Scenario{
		Name:     "package-units",
		Brief:    "Of package-xl: xendomains alone and beside libvirtd, guests held while hvid is down",
		Emulator: QEMU,
		System:   Debian,
		Timeout:  20 * time.Minute,
		Run:      func(t *T) error { return packageXL(t, false, unitRoads...) },
	})
	Register(Scenario{
		Name:     "package-units-intel",
		Brief:    "The same on Intel",
		Emulator: Bochs,
		System:   Debian,
		Timeout:  60 * time.Minute,
		Run:      func(t *T) error { return packageXL(t, true, unitRoads...) },
	})
}

// everyPackageRoad begins with what a new admin does.
var everyPackageRoad = []func(*roads){
	(*roads).protected, (*roads).creations, (*roads).lives, (*roads).endings, (*roads).softReset,
	(*roads).hvm, (*roads).gates, (*roads).held, (*roads).xendomains, (*roads).xendomainsBesideLibvirt, (*roads).names,
}

// unitRoads are those that go by systemd's units.
var unitRoads = []func(*roads){(*roads).xendomains, (*roads).xendomainsBesideLibvirt, (*roads).held}

// packageXL installs the package and takes roads with the hvid that systemd runs.
func packageXL(t *T, intel bool, parts ...func(*roads)) error {
	begin := time.Now()
	if err := t.Step("install", func() error { _, err := t.InstallPackage(); return err }); err != nil {
		return err
	}
	out, err := t.Systemctl("is-active", "hvid.service")
	if !t.Check(err == nil, "hvid runs once it is installed: %s", strings.TrimSpace(out.Stdout)) {
		text, _ := t.Journal("hvid.service")
		return fmt.Errorf("hvid.service: %s", lastLines(text, 8))
	}
	if err := t.keeperWatches(); err != nil {
		return err
	}
	rs, err := newRoads(t, intel, nil)
	if err != nil {
		return err
	}
	rs.installed = begin
	for _, take := range parts {
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

// auto is a guest that xendomains starts, until undo is called.
func (rs *roads) auto() (c GuestConfig, undo func(), err error) {
	c = rs.guest(KernelTiny, "auto", enforceLine)
	path, err := rs.t.WriteConfig(c)
	if err != nil {
		return c, nil, err
	}
	const link = "/etc/xen/auto/auto.cfg"
	err = errors.Join(os.MkdirAll(filepath.Dir(link), 0o755), os.Symlink(path, link))
	return c, func() { os.Remove(link) }, err
}

// xendomains is the service that starts guests with the host, saves them when it
// shuts down and restores them afterwards.
func (rs *roads) xendomains() {
	t := rs.t
	rs.take("xendomains", func(r *road) error {
		c, undo, err := rs.auto()
		if err != nil {
			return err
		}
		defer undo()
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

// libvirtLimit is time for libvirtd to start and hvid to find it. In QEMU it is
// the host's.
const libvirtLimit = 3 * time.Minute

// libvirtQuiet is emulated time for which libvirtd must stay as it is: longer than
// the longest pause between two looks of hvid's for it.
const libvirtQuiet = 12 * time.Second

// xendomainsBesideLibvirt has xendomains start where libvirtd runs and hvid is
// connected to it. Of these two units systemd stops one to start the other. So
// whoever connects to libvirtd's socket then, which systemd holds, would have
// libvirtd started again and the guests of xendomains shut down.
func (rs *roads) xendomainsBesideLibvirt() {
	t := rs.t
	property := func(unit, name string) (string, error) {
		out, err := t.Systemctl("show", "--property="+name, "--value", unit)
		return strings.TrimSpace(out.Stdout), err
	}
	const connected = "connected to libvirt"
	connections := func() (int, error) {
		log, err := t.Journal("hvid.service")
		return strings.Count(log, connected), err
	}
	// startLibvirt has the admin start it, and returns the start's own number.
	startLibvirt := func() (invocation string, err error) {
		before, err := connections()
		if err != nil {
			return "", err
		}
		if _, err := t.Systemctl("restart", "libvirtd.service"); err != nil {
			return "", err
		}
		err = t.Eventually(libvirtLimit, "hvid is connected to libvirtd", func() (bool, error) {
			n, err := connections()
			return n > before, err
		})
		if err != nil {
			log, _ := t.Journal("hvid.service", "libvirtd.service")
			t.Logf("%s", lastLines(log, 20))
			return "", err
		}
		return property("libvirtd.service", "InvocationID")
	}
	rs.take("xendomains-beside-libvirtd", func(r *road) error {
		c, undo, err := rs.auto()
		if err != nil {
			return err
		}
		defer undo()
		hvid, err := property("hvid.service", "InvocationID")
		if err != nil {
			return err
		}
		libvirtd, err := startLibvirt()
		if err != nil {
			return err
		}
		// quiet checks that xendomains has its way.
		quiet := func() {
			err := t.Stays(libvirtQuiet, "libvirtd is stopped, and xendomains active", func() (bool, error) {
				state, err := property("libvirtd.service", "ActiveState")
				if err != nil {
					return false, err
				}
				xendomains, err := property("xendomains.service", "ActiveState")
				return state == "inactive" && xendomains == "active", err
			})
			r.check(err == nil, "libvirtd is stopped for xendomains, and stays so: %v", err)
			now, err := property("libvirtd.service", "InvocationID")
			r.check(err == nil && (now == "" || now == libvirtd), "nobody has started it: %q, it was %q, %v", now, libvirtd, err)
			now, err = property("hvid.service", "InvocationID")
			r.check(err == nil && now == hvid, "hvid is the same: %q, it was %q, %v", now, hvid, err)
		}
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
		quiet()
		count, err := g.Poke()
		r.check(err == nil && count == 1, "the guest that xendomains started lives: poked %d times, %v", count, err)
		st, err := g.Status()
		r.check(err == nil && st.Mode == "enforce" && !st.AttachedAt.IsZero(), "and is attached to: %s, mode %s, %v", st.State, st.Mode, err)

		// The other way round: libvirtd's start has the guest saved, and that of
		// xendomains restores it.
		if libvirtd, err = startLibvirt(); err != nil {
			return err
		}
		if err := r.clean(g); err != nil {
			return err
		}
		if _, err := t.Systemctl("start", "xendomains.service"); err != nil {
			return err
		}
		n, err := t.OpenGuest(c.Name)
		if err != nil {
			return err
		}
		if st, err = n.WaitState(attachLimit, control.StateAttached, control.StateIdentifying); err != nil {
			return err
		}
		r.PolicySource, r.PolicyFrom = st.PolicySource, string(st.PolicyFrom)
		r.check(st.Mode == "enforce" && n.UUID == g.UUID, "the restored guest has its policy: mode %s, %s %q", st.Mode, st.PolicyFrom, st.PolicySource)
		quiet()
		count, err = n.Poke()
		r.check(err == nil && count == 2, "and goes on: poked %d times, %v", count, err)
		return nil
	})
}
