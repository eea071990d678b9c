package hostcheck

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/xen-hvi/hvi/control"
)

// Where libvirt looks for hooks of its Xen driver: the file since 2.1.0, the
// directory since 6.5.0.
const (
	hookFile = "/etc/libvirt/hooks/libxl"
	hookDir  = "/etc/libvirt/hooks/libxl.d"
	ourHook  = hookDir + "/50-hvi"
	// hookProgram is what a hook of ours runs.
	hookProgram = "/usr/libexec/hvi/hvi-hook"
)

// clockSlack is how far the times of files and processes may be off: that of a
// process is known to the second at best.
const clockSlack = 2 * time.Second

// libvirt looks whether libvirt manages domains here, and whether it will call
// hvi's hook when it starts one.
func (o Options) libvirt(ctx context.Context) []control.Check {
	daemon := control.Check{Name: "libvirt", Status: control.CheckInfo}
	// The modular daemon goes before the monolithic one, which then only passes
	// on.
	running := o.processes("virtxend")
	if len(running) == 0 {
		running = o.processes("libvirtd")
	}
	if len(running) == 0 {
		daemon.Detail = "it does not run: nothing of it is needed"
		return []control.Check{daemon}
	}
	p := running[0]
	daemon.Detail = p.String()
	if o.FixedAltP2M {
		daemon.Detail += "; this Xen fixes altp2m when a domain is created, and libvirt cannot ask for it: its domains get tier access at most, xl's with altp2m = \"external\" get tier views"
	}
	return []control.Check{daemon, o.hook(ctx, p)}
}

// hook looks whether the running daemon calls our hook. It notes whether there
// are hooks when it starts and when it is told to reload, and never looks
// again; but which ones there are it looks up at each call.
func (o Options) hook(ctx context.Context, daemon process) control.Check {
	c := control.Check{Name: HookName, Status: control.CheckOK}
	reload := "systemctl restart " + daemon.name
	if daemon.name == "libvirtd" {
		reload = "systemctl reload libvirtd"
	}
	ours, err := o.findHook()
	switch {
	case err != nil:
		c.Status, c.Detail, c.Fix = control.CheckFail, o.shown(err), "run it as root"
		return c
	case ours == "":
		c.Status = control.CheckMissing
		c.Detail = "it is not installed: a domain of libvirt's is protected some time after its start only"
		c.Fix = "install hvi's package again, or link " + hookFile + " to " + hookProgram + "; then: " + reload
		if !o.looksIntoDir() {
			c.Detail = "libvirt before 6.5 does not look into " + hookDir + ", and " + hookFile + " is not hvi's: a domain of libvirt's is protected some time after its start only"
			c.Fix = "ln -s libxl.d/50-hvi " + hookFile + "; then: " + reload
		}
		return c
	}
	if fi, err := os.Stat(o.path(ours)); err != nil || fi.Mode()&0o111 == 0 {
		c.Status, c.Detail, c.Fix = control.CheckFail, ours+" cannot be executed", "chmod 755 "+ours+"; then: "+reload
		return c
	}
	if fi, err := os.Stat(o.path(hookProgram)); err != nil || fi.Mode()&0o111 == 0 {
		c.Status, c.Detail, c.Fix = control.CheckFail, hookProgram+" is missing or cannot be executed", "install hvi's package again"
		return c
	}
	switch first := o.firstHook(); {
	case !o.HookHeard.IsZero() && (daemon.start.IsZero() || o.HookHeard.After(daemon.start)):
		c.Detail = ours + ", called last at " + o.HookHeard.Format(when)
	case daemon.start.IsZero():
		c.Status = control.CheckWarn
		c.Detail = ours + " is there; whether " + daemon.String() + " has seen it is unknown: /proc does not say when it started"
		c.Fix = reload
	case first.Before(daemon.start.Add(-clockSlack)):
		c.Detail = ours + ", there before " + daemon.String() + " started"
	case first.Before(daemon.start.Add(clockSlack)):
		c.Status = control.CheckWarn
		c.Detail = ours + " came when " + daemon.String() + " started: it may not have been seen"
		c.Fix = reload
	default:
		o.reloaded(ctx, &c, ours, daemon, first)
		if c.Status != control.CheckOK {
			c.Fix = reload
		}
	}
	return c
}

const when = "2006-01-02 15:04:05"

// reloaded judges a hook that came after the daemon had started: the daemon
// calls it only if it was told to reload since. It leaves no trace of that, but
// systemd does if it was systemd that told it.
func (o Options) reloaded(ctx context.Context, c *control.Check, hook string, daemon process, came time.Time) {
	c.Status = control.CheckWarn
	c.Detail = hook + " came at " + came.Format(when) + ", after " + daemon.String() + " started at " + daemon.start.Format(when)
	if o.UnitChanged == nil {
		c.Detail += ": unless that was told to reload since, which hvid cannot see, it does not call it"
		return
	}
	after, err := o.UnitChanged(ctx, daemon.name+".service")
	if err != nil {
		c.Detail += ": unless that was told to reload since, which is unknown (" + o.shown(err) + "), it does not call it"
		return
	}
	changed := o.bootTime().Add(after)
	if changed.Before(came.Add(-clockSlack)) {
		c.Status = control.CheckFail
		c.Detail += ", which was not told to reload since: it does not call it"
		return
	}
	c.Status = control.CheckOK
	c.Detail = hook + ", there before " + daemon.String() + " was told to reload at " + changed.Format(when)
}

// dirSince is the first libvirt that looks into hookDir, as the number in its
// library's name: 1000 times the major version, plus the minor one.
const dirSince = 6005

// looksIntoDir reports whether this host's libvirt looks into hookDir. Its version
// is in the name that its library's links lead to, libvirt.so.0.9000.0; where none
// is found it is taken for one that does.
func (o Options) looksIntoDir() bool {
	for _, pattern := range []string{"/usr/lib*/libvirt.so.0.*", "/usr/lib/*/libvirt.so.0.*"} {
		names, err := filepath.Glob(o.path(pattern))
		if err != nil {
			continue // the pattern is a good one
		}
		for _, name := range names {
			_, version, _ := strings.Cut(filepath.Base(name), ".so.0.")
			number, _, _ := strings.Cut(version, ".")
			if n, err := strconv.Atoi(number); err == nil {
				return n >= dirSince
			}
		}
	}
	return true
}

// findHook returns our hook, "" if there is none that libvirt calls.
func (o Options) findHook() (string, error) {
	if o.looksIntoDir() {
		if _, err := os.Lstat(o.path(ourHook)); err == nil {
			return ourHook, nil
		} else if !errors.Is(err, fs.ErrNotExist) {
			return "", err
		}
	}
	if to, err := os.Readlink(o.path(hookFile)); err == nil && filepath.Base(to) == filepath.Base(hookProgram) {
		return hookFile, nil
	}
	text, err := o.read(hookFile)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return "", nil
	case err != nil:
		return "", err
	case strings.Contains(text, filepath.Base(hookProgram)):
		return hookFile, nil
	}
	return "", nil
}

// firstHook is when the first hook, whosever, got where it is: any that is there
// makes libvirt look for all. It is the time of the file's last change of any
// kind, which a package cannot set.
func (o Options) firstHook() time.Time {
	paths := []string{hookFile}
	if entries, err := os.ReadDir(o.path(hookDir)); err == nil && o.looksIntoDir() {
		for _, e := range entries {
			paths = append(paths, filepath.Join(hookDir, e.Name()))
		}
	}
	var first time.Time
	for _, p := range paths {
		fi, err := os.Stat(o.path(p))
		if err != nil || fi.IsDir() || fi.Mode()&0o111 == 0 {
			continue
		}
		st, ok := fi.Sys().(*syscall.Stat_t)
		if !ok {
			continue
		}
		if t := time.Unix(st.Ctim.Unix()); first.IsZero() || t.Before(first) {
			first = t
		}
	}
	return first
}
