package scenario

import (
	"fmt"
	"os"
	"strings"
	"time"
)

// PackageFile is where the control domain's Debian has the package under test,
// unless the scenario is Bare. It is not installed.
const PackageFile = "/root/hvi.deb"

// Systemctl runs systemctl.
func (t *T) Systemctl(args ...string) (*Output, error) {
	return t.Exec("systemctl", append([]string{"--no-pager"}, args...)...)
}

// Journal returns what the units have logged since the boot, as `journalctl -u`.
func (t *T) Journal(units ...string) (string, error) {
	args := []string{"--no-pager", "-o", "cat", "-b"}
	for _, u := range units {
		args = append(args, "-u", u)
	}
	out, err := t.Exec("journalctl", args...)
	return out.Stdout, err
}

// Virsh runs virsh against the Xen driver of the control domain's libvirtd.
func (t *T) Virsh(args ...string) (*Output, error) {
	return t.Exec("virsh", append([]string{"-q", "-c", "xen:///system"}, args...)...)
}

// InstallPackage installs the package under test as an administrator does, from
// its file, and removes it with its settings after Run.
func (t *T) InstallPackage() (*Output, error) {
	out, err := t.Apt("install", "--no-install-recommends", PackageFile)
	if err == nil {
		t.Cleanup(func() {
			if _, err := t.Apt("purge", "hvi"); err != nil {
				t.Logf("cleaning up: %v", err)
			}
		})
	}
	return out, err
}

// Apt runs apt-get without questions. There is no network: what it installs
// must be a file, and all that depends on must be there.
func (t *T) Apt(args ...string) (*Output, error) {
	return t.Exec("env", append([]string{"DEBIAN_FRONTEND=noninteractive", "apt-get", "-y", "-q"}, args...)...)
}

// keeperWatches checks the keeper of the hvid that systemd runs: it is there, has
// hvid's priority and locked memory, and no capabilities.
func (t *T) keeperWatches() error {
	v, err := client.Version(t.ctx)
	if err != nil {
		return err
	}
	if !t.Check(v.Keeper.Alive && v.Keeper.Restarts == 0, "a keeper watches over hvid: %+v", v.Keeper) {
		text, _ := t.Journal("hvid.service")
		return fmt.Errorf("hvid.service: %s", lastLines(text, 8))
	}
	out, err := t.Sh(fmt.Sprintf("grep -E '^(CapPrm|VmLck):' /proc/%d/status; cut -d' ' -f19 /proc/%[1]d/stat", v.Keeper.PID))
	if err != nil {
		return err
	}
	f := strings.Fields(out.Stdout)
	t.Check(len(f) == 6 && f[1] != "0" && f[4] == "0000000000000000" && f[5] == "-15", "its locked memory, capabilities and priority: %q", f)
	return nil
}

// FailedUnits returns the units that systemd counts as failed.
func (t *T) FailedUnits() ([]string, error) {
	out, err := t.Systemctl("--failed", "--plain", "--no-legend", "--full")
	if err != nil {
		return nil, err
	}
	var units []string
	for line := range strings.Lines(out.Stdout) {
		if f := strings.Fields(line); len(f) > 0 {
			units = append(units, f[0])
		}
	}
	return units, nil
}

func init() {
	Register(Scenario{
		Name:     "boot-debian-intel",
		Brief:    "Debian 12 comes up as the control domain on Intel VT-x: systemd, Xen's units, libvirtd, xl",
		Emulator: Bochs,
		System:   Debian,
		Bare:     true,
		Timeout:  10 * time.Minute,
		Run:      bootDebian,
	})
	Register(Scenario{
		Name:     "boot-debian-amd",
		Brief:    "Debian 12 comes up as the control domain on AMD SVM: systemd, Xen's units, libvirtd, xl",
		Emulator: QEMU,
		System:   Debian,
		Bare:     true,
		Timeout:  10 * time.Minute,
		Run:      bootDebian,
	})
}

// bootDebian proves the lab's Debian itself: everything that scenarios about
// packages, units and libvirt take for granted.
func bootDebian(t *T) error {
	err := t.Eventually(2*time.Minute, "systemd has nothing left to start", func() (bool, error) {
		out, err := t.Exec("systemctl", "is-system-running")
		state := strings.TrimSpace(out.Stdout)
		if err != nil && state == "" {
			return false, err
		}
		return state == "running" || state == "degraded", nil
	})
	if err != nil {
		return err
	}
	if out, err := t.Exec("systemd-analyze"); err == nil {
		t.Logf("%s", strings.TrimSpace(out.Stdout))
	}
	failed, err := t.FailedUnits()
	if err != nil {
		return err
	}
	t.Check(len(failed) == 0, "no unit has failed: %v", failed)
	for _, u := range failed {
		text, _ := t.Journal(u)
		t.Logf("%s: %s", u, lastLines(text, 10))
	}
	for _, u := range []string{"multi-user.target", "libvirtd.socket", "xen.service"} {
		out, err := t.Systemctl("is-active", u)
		t.Check(err == nil, "%s is active: %s", u, strings.TrimSpace(out.Stdout))
	}
	release, err := os.ReadFile("/etc/debian_version")
	if err != nil {
		return err
	}
	t.Fact("debian_version", strings.TrimSpace(string(release)))
	t.Check(strings.HasPrefix(string(release), "12"), "this is Debian 12: %s", strings.TrimSpace(string(release)))
	out, err := t.XL("list")
	if err != nil {
		return err
	}
	t.Check(strings.Contains(out.Stdout, "Domain-0"), "xl list names dom0")
	if err := t.Step("virsh-list", func() (err error) { out, err = t.Virsh("list"); return err }); err != nil {
		return err
	}
	t.Check(strings.Contains(out.Stdout, "Domain-0"), "libvirtd's Xen driver answers: %s", strings.TrimSpace(out.Stdout))
	var g *Guest
	err = t.Step("create", func() (err error) { g, err = t.StartGuest(GuestConfig{}); return err })
	if err != nil {
		return err
	}
	if err := t.Step("guest-up", func() error { _, err := g.WaitUp(); return err }); err != nil {
		return err
	}
	echo, err := g.Run("echo $((6 * 7))")
	if err != nil {
		return err
	}
	t.Check(echo == "42", "a PVH guest boots under xl and computes: %q", echo)
	if err := g.Shutdown(); err != nil {
		return fmt.Errorf("shutdown: %w", err)
	}
	return nil
}
