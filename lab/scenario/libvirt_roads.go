package scenario

import (
	"encoding/json"
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
		Name:     "package-libvirt-intel",
		Brief:    "The same ways on Intel, where a Linux guest is protected as well",
		Emulator: Bochs,
		System:   Debian,
		Timeout:  40 * time.Minute,
		Run:      func(t *T) error { return packageLibvirt(t, true, everyVirtRoad...) },
	})
	Register(Scenario{
		Name:     "package-metadata-intel",
		Brief:    "Of package-libvirt-intel the changes of metadata alone: by virsh, its editor, the official binding, hvictl",
		Emulator: Bochs,
		System:   Debian,
		Timeout:  30 * time.Minute,
		Run:      func(t *T) error { return packageLibvirt(t, true, (*virtRoads).changes) },
	})
	Register(Scenario{
		Name:     "package-libvirt-first-intel",
		Brief:    "Of package-libvirt-intel what a new admin does: install, define, start, see it protected",
		Emulator: Bochs,
		System:   Debian,
		Timeout:  30 * time.Minute,
		Run:      func(t *T) error { return packageLibvirt(t, true, (*virtRoads).protects) },
	})
	Register(Scenario{
		Name:     "package-libvirt",
		Brief:    "The package on Debian 12 with its libvirtd, on AMD: every way of virsh's, gates and refusals",
		Emulator: QEMU,
		System:   Debian,
		Timeout:  30 * time.Minute,
		Run:      func(t *T) error { return packageLibvirt(t, false, everyVirtRoad...) },
	})
}

const (
	hviNamespace = "urn:xen-hvi:domain:1.0"
	// foreign is what another program keeps in a domain's metadata.
	foreign = `<note:note xmlns:note="urn:example:note" owner="somebody">keep <note:b>this</note:b></note:note>`
	// virtLimit is emulated time for a change of metadata to take effect: what is
	// promised on Intel, where time counts instructions. In QEMU it is the host's.
	virtLimit        = time.Second
	virtLimitOnAHost = 10 * time.Second
	// refuseLimit is emulated time for a start to be refused or to go on, hvid
	// being dead or hung.
	refuseLimit = 40 * time.Second
)

// introspection is hvi's element with these attributes and children.
func introspection(attributes string, children ...string) string {
	return `<hvi:introspection xmlns:hvi="` + hviNamespace + `" ` + attributes + `>` + strings.Join(children, "") + `</hvi:introspection>`
}

// virtDomain is a domain as libvirt is told of it.
type virtDomain struct {
	name string
	// hvm is a domain with a device model, behind its gate.
	hvm      bool
	kernel   string // KernelTiny or KernelLinux
	args     string // of the kernel's command line
	metadata string
	devices  string
}

var xmlText = strings.NewReplacer("&", "&amp;", "<", "&lt;", ">", "&gt;")

// xml is the domain's definition.
func (d virtDomain) xml() string {
	kernel, memory, args := "<kernel>"+TinyKernel+"</kernel>", 16, d.args
	if d.kernel == KernelLinux {
		kernel, memory = "<kernel>"+GuestKernel+"</kernel><initrd>"+GuestRamdisk+"</initrd>", 160
		args = strings.TrimSpace(guestCmdline + " " + args)
	}
	system := "<type arch='x86_64' machine='xenpvh'>xenpvh</type>" + kernel + "<cmdline>" + xmlText.Replace(args) + "</cmdline>"
	devices, more := d.devices, ""
	if d.hvm {
		system = "<type arch='x86_64' machine='xenfv'>hvm</type><boot dev='hd'/>"
		devices += "<emulator>/usr/libexec/hvi/dm-gate</emulator>" +
			"<disk type='file' device='disk'><driver name='qemu' type='raw'/><source file='" + d.config().hvmFile("img") + "'/><target dev='hda'/></disk>"
		more = "<xen:commandline xmlns:xen='http://libvirt.org/schemas/domain/xen/1.0'>"
		for _, l := range []string{"file=" + TinyKernel, fmt.Sprintf("file=%s,addr=%#x,force-raw=on", d.config().hvmFile("params"), hvmAddress)} {
			more += "<xen:arg value='-device'/><xen:arg value='loader," + l + "'/>"
		}
		more += "</xen:commandline>"
	}
	return fmt.Sprintf(`<domain type='xen'>
  <name>%s</name>
  <uuid>%s</uuid>
  <metadata>
    %s
  </metadata>
  <memory unit='MiB'>%d</memory>
  <vcpu>1</vcpu>
  <os>
    %s
  </os>
  <on_poweroff>destroy</on_poweroff>
  <on_reboot>restart</on_reboot>
  <on_crash>destroy</on_crash>
  <devices>
    <console type='pty'><target type='xen' port='0'/></console>
    %s
  </devices>
  %s
</domain>
`, xmlText.Replace(d.name), uuidOf(d.name), foreign+d.metadata, memory, system, devices, more)
}

// config is the same domain as xl would be told of it, for the files it needs.
func (d virtDomain) config() GuestConfig {
	return GuestConfig{Name: d.name, Type: TypeHVM, Kernel: d.kernel}
}

// define gives the domain to libvirt, which forgets it after Run.
func (t *T) define(d virtDomain) error {
	dir, err := t.TempDir()
	if err != nil {
		return err
	}
	file := filepath.Join(dir, "domain.xml")
	if err := os.WriteFile(file, []byte(d.xml()), 0o600); err != nil {
		return err
	}
	if d.hvm {
		if err := t.writeHVMFiles(d.config()); err != nil {
			return err
		}
	}
	if _, err := t.Virsh("define", file); err != nil {
		return err
	}
	t.Cleanup(func() {
		// A domain that several roads define is gone after the first time.
		out, err := t.Virsh("undefine", uuidOf(d.name))
		if err != nil && !strings.Contains(out.Stderr, "failed to get domain") {
			t.Logf("cleaning up: %v", err)
		}
	})
	return nil
}

// virtRoads takes the ways of libvirt.
type virtRoads struct {
	*roads
	limit time.Duration
}

// everyVirtRoad are the ways of libvirt, what a new admin does first.
var everyVirtRoad = []func(*virtRoads){
	(*virtRoads).protects, (*virtRoads).first, (*virtRoads).changes, (*virtRoads).restarts, (*virtRoads).lives, (*virtRoads).names, (*virtRoads).refusals, (*virtRoads).gates,
}

// packageLibvirt installs the package as an admin does and takes ways.
func packageLibvirt(t *T, intel bool, parts ...func(*virtRoads)) error {
	began := time.Now()
	var apt *Output
	if err := t.Step("install", func() (err error) { apt, err = t.InstallPackage(); return err }); err != nil {
		return err
	}
	for _, unit := range []string{"hvid.service", "libvirtd.socket"} {
		out, err := t.Systemctl("is-active", unit)
		if t.Check(err == nil, "%s is active after the installation: %s", unit, strings.TrimSpace(out.Stdout)) {
			continue
		}
		status, _ := t.Systemctl("status", "--full", "--lines=30", unit)
		return fmt.Errorf("%s does not run: %s; apt said: %s", unit, lastLines(status.String(), 40), lastLines(apt.String(), 12))
	}
	if err := t.keeperWatches(); err != nil {
		return err
	}
	out, err := t.Virsh("version")
	if err != nil {
		return err
	}
	for line := range strings.Lines(out.Stdout) {
		if name, version, ok := strings.Cut(line, ": "); ok && strings.HasPrefix(name, "Using library") {
			t.Fact("libvirt", strings.TrimSpace(version))
		}
	}
	rs, err := newRoads(t, intel, nil)
	if err != nil {
		return err
	}
	rs.installed = began
	vs := &virtRoads{rs, virtLimit}
	if !intel {
		vs.limit = virtLimitOnAHost
	}
	for _, take := range parts {
		take(vs)
	}
	t.Fact("seconds.all", round(time.Since(began)))
	failed, err := t.FailedUnits()
	t.Check(err == nil && len(failed) == 0, "no unit has failed: %v %v", failed, err)
	return nil
}

// run defines and starts a domain, and checks that hvi was there first.
func (vs *virtRoads) run(r *road, d virtDomain, w want) (*Guest, error) {
	if err := vs.t.define(d); err != nil {
		return nil, err
	}
	if _, err := vs.t.Virsh("start", d.name); err != nil {
		return nil, err
	}
	g, err := vs.t.OpenGuest(d.name)
	if err != nil {
		return nil, err
	}
	w.kernel, w.from, w.source = d.kernel, control.FromHanded, "libvirt metadata"
	if _, err := r.attached(g, w); err != nil {
		return nil, err
	}
	_, err = g.WaitUp()
	return g, err
}

// mode waits until hvid says that a domain's mode is another one, and returns
// how long it took.
func (vs *virtRoads) mode(g *Guest, mode string, since time.Time) (time.Duration, error) {
	err := vs.t.Eventually(hvidLimit, g.Name+" has the mode "+mode, func() (bool, error) {
		st, err := g.Status()
		return st.Mode == mode, err
	})
	return time.Since(since), err
}

// dump returns a domain's XML, what it runs with or what is kept.
func (vs *virtRoads) dump(name string, inactive bool) (string, error) {
	args := []string{"dumpxml", name}
	if inactive {
		args = append(args, "--inactive")
	}
	out, err := vs.t.Virsh(args...)
	return out.Stdout, err
}

// keeps checks that what another program has put into a domain's metadata is
// there and unharmed, in what runs and in what is kept.
func (vs *virtRoads) keeps(r *road, name string) {
	for _, inactive := range []bool{false, true} {
		text, err := vs.dump(name, inactive)
		flat := strings.Join(strings.Fields(text), " ")
		r.check(err == nil && strings.Contains(flat, foreign), "others' metadata is unharmed (inactive: %v): %v", inactive, err)
	}
}

// probe runs the program of libvirt's own binding and returns what it says.
func (vs *virtRoads) probe(args ...string) (string, error) {
	out, err := vs.t.Exec("virtprobe", args...)
	if err != nil {
		return "", err
	}
	var said string
	err = json.Unmarshal([]byte(out.Stdout), &said)
	return said, err
}

// gone destroys a domain and checks that nothing is left of it.
func (vs *virtRoads) gone(r *road, g *Guest) error {
	if _, err := vs.t.Virsh("destroy", g.UUID); err != nil {
		return err
	}
	return r.clean(g)
}

const enforced = `mode="enforce"`

// first is a domain's plain start and end.
func (vs *virtRoads) first() {
	t := vs.t
	d := virtDomain{name: "web", kernel: KernelTiny, metadata: introspection(enforced)}
	vs.take("virsh-start", func(r *road) error {
		g, err := vs.run(r, d, want{})
		if err != nil {
			return err
		}
		if n, err := g.Poke(); err != nil || n != 1 {
			return errors.Join(fmt.Errorf("the guest does not live: %d", n), err)
		}
		// What libvirt itself knows and says.
		for _, v := range []struct{ args, want string }{
			{"domstate web", "running"}, {"domid web", strconv.Itoa(g.ID)}, {"domuuid web", g.UUID}, {"list --name", "web"}, {"dominfo web", "State: running"},
		} {
			out, err := t.Virsh(strings.Fields(v.args)...)
			said := strings.Join(strings.Fields(out.Stdout), " ")
			r.check(err == nil && strings.Contains(said, v.want), "virsh %s says %q: %v", v.args, v.want, err)
		}
		vs.keeps(r, "web")
		text, err := vs.probe("get", "web", "live")
		r.check(err == nil && strings.Contains(text, enforced), "libvirt's own binding reads the element: %s %v", text, err)
		return vs.gone(r, g)
	})
	vs.take("virsh-start-paused", func(r *road) error {
		d := virtDomain{name: "paused", kernel: KernelTiny, metadata: introspection(enforced)}
		if err := t.define(d); err != nil {
			return err
		}
		if _, err := t.Virsh("start", "--paused", d.name); err != nil {
			return err
		}
		g, err := t.OpenGuest(d.name)
		if err != nil {
			return err
		}
		if _, err := r.attached(g, want{from: control.FromHanded, kernel: KernelTiny}); err != nil {
			return err
		}
		paused, err := t.paused(g.ID)
		r.check(err == nil && paused, "the guest is still paused for the admin: %v %v", paused, err)
		out, err := t.Virsh("domstate", d.name)
		r.check(err == nil && strings.HasPrefix(out.Stdout, "paused"), "libvirt says so: %s %v", strings.TrimSpace(out.Stdout), err)
		if _, err := t.Virsh("resume", d.name); err != nil {
			return err
		}
		if n, err := g.Poke(); err != nil || n != 1 {
			return errors.Join(fmt.Errorf("after virsh resume the guest does not live: %d", n), err)
		}
		return vs.gone(r, g)
	})
	vs.take("virsh-create-transient", func(r *road) error {
		d := virtDomain{name: "transient", kernel: KernelTiny, metadata: introspection(`mode="observe"`)}
		dir, err := t.TempDir()
		if err != nil {
			return err
		}
		file := filepath.Join(dir, "transient.xml")
		if err := os.WriteFile(file, []byte(d.xml()), 0o600); err != nil {
			return err
		}
		if _, err := t.Virsh("create", file); err != nil {
			return err
		}
		g, err := t.OpenGuest(d.name)
		if err != nil {
			return err
		}
		if _, err := r.attached(g, want{mode: "observe", from: control.FromHanded, kernel: KernelTiny}); err != nil {
			return err
		}
		return vs.gone(r, g)
	})
	vs.take("virsh-start-nothing-declared", func(r *road) error {
		d := virtDomain{name: "plain", kernel: KernelTiny}
		if err := t.define(d); err != nil {
			return err
		}
		if _, err := t.Virsh("start", d.name); err != nil {
			return err
		}
		g, err := t.OpenGuest(d.name)
		if err != nil {
			return err
		}
		st, err := g.WaitState(hvidLimit, control.StateUnprotected)
		r.PolicySource, r.PolicyFrom = st.PolicySource, string(st.PolicyFrom)
		if err != nil {
			return err
		}
		return vs.gone(r, g)
	})
}

// changes are those of a domain's metadata while it runs.
func (vs *virtRoads) changes() {
	t := vs.t
	d := virtDomain{name: "changing", kernel: KernelTiny, metadata: introspection(enforced)}
	var g *Guest
	start := func(r *road) (err error) { g, err = vs.run(r, d, want{}); return err }
	measure := func(r *road, key, mode string, change func() error) error {
		began := time.Now()
		if err := change(); err != nil {
			return err
		}
		// From the moment virsh has returned: until then libvirt itself is at work.
		returned := time.Now()
		took, err := vs.mode(g, mode, returned)
		if err != nil {
			return err
		}
		t.Fact("metadata."+key+".seconds_after_return", round(took))
		t.Fact("metadata."+key+".seconds_in_all", round(time.Since(began)))
		r.check(took <= vs.limit, "%s: mode %s is in force %v after the change, at most %v", key, mode, took, vs.limit)
		vs.keeps(r, d.name)
		return nil
	}
	virsh := func(args ...string) func() error {
		return func() error {
			_, err := t.Virsh(append([]string{"metadata", d.name, hviNamespace, "--key", "hvi"}, args...)...)
			return err
		}
	}
	vs.take("metadata-live", func(r *road) error {
		if err := start(r); err != nil {
			return err
		}
		if err := measure(r, "virsh-set", "observe", virsh("--live", "--set", `<introspection mode="observe"/>`)); err != nil {
			return err
		}
		if err := measure(r, "virsh-edit", "enforce", func() error {
			// As an admin does it, whose editor happens to be sed.
			editor := filepath.Join(vs.dir, "editor")
			if err := os.WriteFile(editor, []byte("#!/bin/sh\nexec sed -i 's/\"observe\"/\"enforce\"/' \"$1\"\n"), 0o755); err != nil {
				return err
			}
			_, err := t.Exec("env", "EDITOR="+editor, "VISUAL="+editor, "virsh", "-q", "-c", "xen:///system", "metadata", d.name, hviNamespace, "--key", "hvi", "--live", "--edit")
			return err
		}); err != nil {
			return err
		}
		if err := measure(r, "virsh-remove", "off", func() error {
			_, err := t.Virsh("metadata", d.name, hviNamespace, "--live", "--remove")
			return err
		}); err != nil {
			return err
		}
		if err := measure(r, "virsh-set-again", "enforce", virsh("--live", "--set", `<introspection mode="enforce"><guard name="kernel-text" action="alert"/></introspection>`)); err != nil {
			return err
		}
		if err := measure(r, "binding-set", "observe", func() error {
			_, err := vs.probe("set", d.name, "live", `<introspection mode="observe"/>`)
			return err
		}); err != nil {
			return err
		}
		// What is broken is told, and what is in force stays.
		if err := virsh("--live", "--set", `<introspection mode="enforced"/>`)(); err != nil {
			return err
		}
		err := t.Eventually(hvidLimit, "hvid's log names the broken word", func() (bool, error) {
			log, err := t.Journal("hvid")
			return strings.Contains(log, "enforced"), err
		})
		if err != nil {
			return err
		}
		st, err := g.Status()
		r.check(err == nil && st.Mode == "observe", "a broken element changes nothing: mode %s %v", st.Mode, err)
		if n, err := g.Poke(); err != nil || n != 1 {
			return errors.Join(fmt.Errorf("the guest does not live: %d", n), err)
		}
		return vs.gone(r, g)
	})
	vs.take("hvictl-set", func(r *road) error {
		if err := start(r); err != nil {
			return err
		}
		watch, err := t.Start("virtprobe", "watch", "600")
		if err != nil {
			return err
		}
		if err := t.Eventually(hvidLimit, "libvirt's own binding listens", func() (bool, error) {
			return strings.Contains(watch.Log(), "watching"), nil
		}); err != nil {
			return err
		}
		for _, w := range []struct{ where, live, config string }{
			{"--live", "observe", "enforce"}, {"--config", "observe", "off"}, {"--both", "enforce", "enforce"},
		} {
			mode := w.live
			if w.where == "--config" {
				mode = w.config
			}
			if err := measure(r, "hvictl"+w.where, w.live, func() error {
				_, err := t.Exec("hvictl", "set", d.name, "--mode", mode, w.where)
				return err
			}); err != nil {
				return err
			}
			for which, want := range map[string]string{"live": w.live, "config": w.config} {
				text, err := vs.probe("get", d.name, which)
				r.check(err == nil && strings.Contains(text, `mode="`+want+`"`), "after hvictl set %s the %s metadata say %s: %s %v", w.where, which, want, text, err)
			}
		}
		err = t.Eventually(hvidLimit, "libvirt's own binding is told of the changes", func() (bool, error) {
			return strings.Count(watch.Log(), hviNamespace) >= 3, nil
		})
		if err := errors.Join(err, watch.Signal(os.Kill)); err != nil {
			return err
		}
		if err := measure(r, "hvictl-remove", "off", func() error {
			_, err := t.Exec("hvictl", "set", d.name, "--remove")
			return err
		}); err != nil {
			return err
		}
		for _, which := range []string{"live", "config"} {
			text, err := vs.probe("get", d.name, which)
			r.check(err == nil && text == "", "after hvictl set --remove nothing of it is left in the %s metadata: %q %v", which, text, err)
		}
		return vs.gone(r, g)
	})
	vs.take("hvictl-set-inactive", func(r *road) error {
		if _, err := t.Exec("hvictl", "set", d.name, "--mode", "observe", "--config"); err != nil {
			return err
		}
		text, err := vs.probe("get", d.name, "config")
		r.check(err == nil && strings.Contains(text, `mode="observe"`), "the metadata of a domain that does not run are written: %s %v", text, err)
		if _, err := t.Virsh("start", d.name); err != nil {
			return err
		}
		if g, err = t.OpenGuest(d.name); err != nil {
			return err
		}
		if _, err := r.attached(g, want{mode: "observe", from: control.FromHanded, kernel: KernelTiny}); err != nil {
			return err
		}
		return vs.gone(r, g)
	})
}

// restarts are those of the daemons, with a domain that runs.
func (vs *virtRoads) restarts() {
	t := vs.t
	d := virtDomain{name: "lasting", kernel: KernelTiny, metadata: introspection(enforced)}
	set := func(mode string) error {
		_, err := t.Virsh("metadata", d.name, hviNamespace, "--key", "hvi", "--live", "--set", `<introspection mode="`+mode+`"/>`)
		return err
	}
	vs.take("restarts", func(r *road) error {
		g, err := vs.run(r, d, want{})
		if err != nil {
			return err
		}
		attached := func(what string) error {
			st, err := g.WaitState(attachLimit, control.StateAttached, control.StateIdentifying, control.StateProtecting, control.StateDegraded)
			r.check(err == nil && st.PolicySource != "", "after %s it is %s, mode %s, from %s %q: %v", what, st.State, st.Mode, st.PolicyFrom, st.PolicySource, err)
			return err
		}
		if _, err := t.Systemctl("restart", "hvid"); err != nil {
			return err
		}
		if err := attached("hvid's restart"); err != nil {
			return err
		}
		if _, err := t.Systemctl("restart", "libvirtd"); err != nil {
			return err
		}
		if err := attached("libvirtd's restart"); err != nil {
			return err
		}
		n, err := g.Poke()
		r.check(err == nil && n == 1, "the guest has lived through both: %d %v", n, err)
		// hvid finds the new libvirtd by itself.
		if err := set("observe"); err != nil {
			return err
		}
		took, err := vs.mode(g, "observe", time.Now())
		if err != nil {
			return err
		}
		t.Fact("metadata.after-libvirtd-restart.seconds_after_return", round(took))
		// What changes while hvid is away is seen when it is back.
		if _, err := t.Systemctl("stop", "hvid"); err != nil {
			return err
		}
		if err := vs.released(r, g); err != nil {
			return err
		}
		if err := set("enforce"); err != nil {
			return err
		}
		if _, err := t.Systemctl("start", "hvid"); err != nil {
			return err
		}
		if _, err := vs.mode(g, "enforce", time.Now()); err != nil {
			return err
		}
		if err := attached("hvid's absence"); err != nil {
			return err
		}
		return vs.gone(r, g)
	})
}

// released checks that nothing of hvi's is in Xen while hvid is away.
func (vs *virtRoads) released(r *road, g *Guest) error {
	n, err := g.Poke()
	r.check(err == nil && n > 0, "without hvid the guest runs on: %d %v", n, err)
	return r.released(g)
}

// lives are the ways a domain is rebooted, saved and ended.
func (vs *virtRoads) lives() {
	t := vs.t
	vs.take("virsh-reboot", func(r *road) error {
		d := virtDomain{name: "rebooting", kernel: KernelTiny, metadata: introspection(enforced)}
		g, err := vs.run(r, d, want{})
		if err != nil {
			return err
		}
		if _, err := t.Virsh("reboot", d.name); err != nil {
			return err
		}
		if g, err = r.next(g); err != nil {
			return err
		}
		if _, err := r.attached(g, want{from: control.FromHanded, kernel: KernelTiny}); err != nil {
			return err
		}
		return vs.gone(r, g)
	})
	vs.take("guest-reboot-under-libvirt", func(r *road) error {
		d := virtDomain{name: "restless", kernel: KernelTiny, args: "1", metadata: introspection(enforced)}
		g, err := vs.run(r, d, want{})
		if err != nil {
			return err
		}
		if err := g.poke(); err != nil {
			return err
		}
		if g, err = r.next(g); err != nil {
			return err
		}
		if _, err := r.attached(g, want{from: control.FromHanded, kernel: KernelTiny}); err != nil {
			return err
		}
		return vs.gone(r, g)
	})
	vs.take("virsh-shutdown", func(r *road) error {
		g, err := vs.run(r, virtDomain{name: "ending", kernel: KernelTiny, metadata: introspection(enforced)}, want{})
		if err != nil {
			return err
		}
		if _, err := t.Virsh("shutdown", g.Name); err != nil {
			return err
		}
		return r.clean(g)
	})
	vs.take("guest-crash-under-libvirt", func(r *road) error {
		g, err := vs.run(r, virtDomain{name: "crashing", kernel: KernelTiny, args: "3", metadata: introspection(enforced)}, want{})
		if err != nil {
			return err
		}
		if err := g.poke(); err != nil {
			return err
		}
		return r.clean(g)
	})
	vs.take("virsh-save-restore", func(r *road) error {
		d := virtDomain{name: "saved", kernel: KernelTiny, metadata: introspection(enforced)}
		g, err := vs.run(r, d, want{})
		if err != nil {
			return err
		}
		if n, err := g.Poke(); err != nil || n != 1 {
			return errors.Join(fmt.Errorf("the guest does not live: %d", n), err)
		}
		image := filepath.Join(vs.dir, "saved.image")
		if _, err := t.Virsh("save", d.name, image); err != nil {
			return err
		}
		if err := r.clean(g); err != nil {
			return err
		}
		if _, err := t.Virsh("restore", image); err != nil {
			return err
		}
		old := g
		if g, err = t.OpenGuest(d.name); err != nil {
			return err
		}
		r.check(g.UUID == old.UUID && g.ID != old.ID, "the restored domain has the UUID: %s", g.UUID)
		st, err := g.WaitState(attachLimit, control.StateAttached, control.StateIdentifying, control.StateProtecting, control.StateDegraded)
		if err != nil {
			return err
		}
		r.PolicySource, r.PolicyFrom = st.PolicySource, string(st.PolicyFrom)
		r.check(st.Mode == "enforce" && st.PolicyFrom == control.FromHanded, "it is attached again, mode %s from %s %q", st.Mode, st.PolicyFrom, st.PolicySource)
		n, err := g.Poke()
		r.check(err == nil && n == 2, "it goes on where it was: %d %v", n, err)
		return errors.Join(vs.gone(r, g), os.Remove(image))
	})
}

// names are hostile ones.
func (vs *virtRoads) names() {
	for _, n := range []struct{ what, name string }{
		{"blanks", "a b;rm -rf x"}, {"long", strings.Repeat("n", 200)}, {"unicode", "žluťoučký-кот"}, {"dots", "...x"}, {"markup", `<a href="&">'`},
	} {
		name := n.name
		vs.take("name-"+n.what, func(r *road) error {
			d := virtDomain{name: name, kernel: KernelTiny, metadata: introspection(enforced)}
			if err := vs.t.define(d); err != nil {
				return err
			}
			if _, err := vs.t.Virsh("start", uuidOf(name)); err != nil {
				return err
			}
			g, err := vs.t.OpenGuest(d.name)
			if err != nil {
				return err
			}
			if _, err := r.attached(g, want{from: control.FromHanded, kernel: KernelTiny}); err != nil {
				return err
			}
			if _, err := vs.t.Exec("hvictl", "set", name, "--mode", "observe", "--live"); err != nil {
				return err
			}
			if _, err := vs.mode(g, "observe", time.Now()); err != nil {
				return err
			}
			return vs.gone(r, g)
		})
	}
}

// refusals are starts that may not be, and those that may be all the same.
func (vs *virtRoads) refusals() {
	t := vs.t
	// attempt starts a domain and says whether it did.
	attempt := func(d virtDomain) (started bool, said string, took time.Duration, err error) {
		if err := t.define(d); err != nil {
			return false, "", 0, err
		}
		began := time.Now()
		out, startErr := t.Virsh("start", d.name)
		return startErr == nil, out.String(), time.Since(began), nil
	}
	refused := func(r *road, d virtDomain, words ...string) error {
		started, said, took, err := attempt(d)
		if err != nil {
			return err
		}
		r.check(!started && took < refuseLimit, "the start is refused, in %v", took)
		for _, w := range words {
			r.check(strings.Contains(said, w), "virsh says %q: %s", w, strings.TrimSpace(said))
		}
		r.Special = strings.TrimSpace(said)
		ids, err := t.domains()
		r.check(err == nil && len(ids) == 0, "no domain is left: %v %v", ids, err)
		return nil
	}
	goesOn := func(r *road, d virtDomain) error {
		started, said, took, err := attempt(d)
		if err != nil {
			return err
		}
		r.check(started && took < refuseLimit, "the start goes on, in %v: %s", took, strings.TrimSpace(said))
		_, err = t.Virsh("destroy", d.name)
		return err
	}
	tiny := func(name, metadata string) virtDomain {
		return virtDomain{name: name, kernel: KernelTiny, metadata: metadata}
	}
	vs.take("refuse-unknown-mode", func(r *road) error {
		return refused(r, tiny("typo", introspection(`mode="enforced"`)), `unknown mode "enforced"; did you mean "enforce"?`, "domain XML:")
	})
	vs.take("refuse-unknown-guard", func(r *road) error {
		return refused(r, tiny("guard", introspection(enforced, `<hvi:guard name="kernel-txt" action="block"/>`)), `did you mean "kernel-text"?`)
	})
	vs.take("refuse-unknown-policy", func(r *road) error {
		return refused(r, tiny("policy", introspection(`mode="enforce" policy="no-such-policy"`)), "no-such-policy")
	})
	vs.take("refuse-namespace-of-another-version", func(r *road) error {
		return refused(r, tiny("version", `<hvi:introspection xmlns:hvi="urn:xen-hvi:domain:2.0" mode="enforce"/>`), "is not the one this version knows, "+hviNamespace)
	})
	vs.take("no-namespace-is-dropped-by-libvirt", func(r *road) error {
		d := tiny("nameless", `<introspection mode="enforce"/>`)
		if err := t.define(d); err != nil {
			return err
		}
		text, err := vs.dump(d.name, true)
		r.check(err == nil && !strings.Contains(text, "introspection"), "libvirt drops an element without a namespace: %v", err)
		// Only who reads the file can tell.
		dir, err := t.TempDir()
		if err != nil {
			return err
		}
		out, checkErr := t.Exec("hvictl", "policy", "check", filepath.Join(dir, "domain.xml"))
		r.check(checkErr != nil && strings.Contains(out.String(), "is in no namespace"), "hvictl policy check tells: %s", strings.TrimSpace(out.String()))
		return nil
	})
	vs.take("twice-is-once-for-libvirt", func(r *road) error {
		d := tiny("twice", introspection(enforced)+introspection(`mode="off"`))
		if err := t.define(d); err != nil {
			return err
		}
		text, err := vs.dump(d.name, true)
		n := strings.Count(text, "<hvi:introspection")
		r.Special = fmt.Sprintf("of two elements libvirt keeps %d", n)
		r.check(err == nil && n <= 1, "%s: %v", r.Special, err)
		return nil
	})

	if _, err := t.Systemctl("stop", "hvid"); err != nil {
		t.Check(false, "hvid stops: %v", err)
		return
	}
	vs.take("hvid-down-enforce", func(r *road) error {
		return refused(r, tiny("down-enforce", introspection(enforced)), "mode enforce asks for protection, and hvid is not reachable", "systemctl start hvid")
	})
	vs.take("hvid-down-require-attach", func(r *road) error {
		return refused(r, tiny("down-require", introspection(`mode="observe" require_attach="yes"`)), "require_attach asks for protection")
	})
	vs.take("hvid-down-observe", func(r *road) error { return goesOn(r, tiny("down-observe", introspection(`mode="observe"`))) })
	vs.take("hvid-down-off", func(r *road) error { return goesOn(r, tiny("down-off", introspection(`mode="off"`))) })
	vs.take("hvid-down-absent", func(r *road) error { return goesOn(r, tiny("down-absent", "")) })
	if _, err := t.Systemctl("start", "hvid"); err != nil {
		t.Check(false, "hvid starts: %v", err)
		return
	}

	// A hvid that hangs, and its keeper with it, which no signal can stop for long. It
	// must be back before its watchdog sees it.
	hang := func(name string, f func(*road) error) {
		vs.take(name, func(r *road) error {
			if _, err := t.Systemctl("freeze", "hvid"); err != nil {
				return err
			}
			err := f(r)
			_, wake := t.Systemctl("thaw", "hvid")
			return errors.Join(err, wake)
		})
	}
	hang("hvid-hung-enforce", func(r *road) error {
		return refused(r, tiny("hung-enforce", introspection(enforced)), "mode enforce asks for protection, and hvid does not answer")
	})
	hang("hvid-hung-observe", func(r *road) error { return goesOn(r, tiny("hung-observe", introspection(`mode="observe"`))) })
	// One that hangs alone is replaced, and the start waits for that; also one whose keeper
	// was stopped with it, which goes on.
	replaced := func(name, whom string) {
		vs.take(name, func(r *road) error {
			before, err := client.Version(t.ctx)
			if err != nil {
				return err
			}
			if _, err := t.Systemctl("kill", "--kill-whom="+whom, "--signal=SIGSTOP", "hvid"); err != nil {
				return err
			}
			g, err := vs.run(r, tiny(strings.TrimPrefix(name, "hvid-"), introspection(enforced)), want{at: vs.entry[KernelTiny]})
			if err != nil {
				return err
			}
			v, err := client.Version(t.ctx)
			r.check(err == nil && v.PID != before.PID && v.Recovered != nil && strings.Contains(v.Recovered.Why, "stands still"), "the keeper ended the hvid that hung: %+v, %v", v.Recovered, err)
			return vs.gone(r, g)
		})
	}
	replaced("hvid-hung-replaced", "main")
	replaced("hvid-stopped-replaced", "all")
	err := t.Eventually(hvidLimit, "hvid answers again", func() (bool, error) {
		_, err := client.Version(t.ctx)
		return err == nil, nil
	})
	t.Check(err == nil, "hvid is back: %v", err)
}

// gates are what holds a start until hvi is attached, named in libvirt's own
// words: an interface's script, and the emulator.
func (vs *virtRoads) gates() {
	t := vs.t
	if err := t.Bridge(); err != nil {
		t.Check(false, "%v", err)
		return
	}
	loader, err := hvmLoader()
	if err != nil {
		t.Check(false, "%v", err)
		return
	}
	const vif = "<interface type='bridge'><source bridge='" + Bridge + "'/><script path='hvi-vif-bridge'/></interface>"
	required := introspection(`mode="enforce" require_attach="yes"`)
	for _, w := range []struct {
		name  string
		d     virtDomain
		entry x86.VirtAddr
	}{
		{"libvirt-vif-gate", virtDomain{name: "gated-vif", kernel: KernelTiny, devices: vif}, vs.entry[KernelTiny]},
		{"libvirt-emulator-gate", virtDomain{name: "gated-hvm", kernel: KernelTiny, hvm: true}, loader},
	} {
		shut := w.d
		shut.name += "-shut"
		vs.take(w.name, func(r *road) error {
			w.d.metadata = required
			g, err := vs.run(r, w.d, want{at: w.entry})
			if err != nil {
				return err
			}
			return vs.gone(r, g)
		})
		vs.take(w.name+"-shut", func(r *road) error {
			// Nothing is declared, so the hook lets it pass; the gate does not.
			if _, err := t.Systemctl("stop", "hvid"); err != nil {
				return err
			}
			if err := t.define(shut); err != nil {
				return err
			}
			began := time.Now()
			out, startErr := t.Virsh("start", shut.name)
			r.check(startErr != nil && time.Since(began) < time.Minute, "without hvid the start is refused, in %v: %s", time.Since(began), lastLines(out.String(), 3))
			ids, err := t.domains()
			r.check(err == nil && len(ids) == 0, "no domain is left: %v %v", ids, err)
			why, err := t.Sh("cat /var/log/libvirt/libxl/*.log /var/log/xen/qemu-dm-*.log 2>/dev/null | grep 'hvi: domain' | tail -n 1")
			r.Special = strings.TrimSpace(why.Stdout)
			r.check(err == nil && strings.Contains(r.Special, "is not started"), "the toolstack's log says why: %s", r.Special)
			_, err = t.Systemctl("start", "hvid")
			return err
		})
	}
}

// protects is a Linux guest, and what all of it is for.
func (vs *virtRoads) protects() {
	if !vs.intel {
		// On AMD a boot takes 17,000 events, and minutes: other scenarios have it.
		return
	}
	vs.take("linux-protected", func(r *road) error {
		g, err := vs.run(r, virtDomain{name: "linux", kernel: KernelLinux, metadata: introspection(enforced)}, want{})
		if err != nil {
			return err
		}
		st, err := g.WaitState(protectLimit, control.StateProtecting)
		ok := err == nil
		r.Protecting = &ok
		if err != nil {
			return err
		}
		vs.t.Fact("seconds.install_to_protecting", round(time.Since(vs.installed)))
		// libvirt knows no altp2m: hvi sets it itself.
		r.Special = "tier " + string(st.Tier) + " " + st.TierReason
		failures := vs.t.failures()
		if err := g.attackIsBlocked("text"); err != nil {
			return err
		}
		blocked := failures == vs.t.failures()
		r.AttackBlocked = &blocked
		return vs.gone(r, g)
	})
}
