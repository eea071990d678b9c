package hostcheck

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/xen-hvi/hvi/config"
	"github.com/xen-hvi/hvi/control"
	"github.com/xen-hvi/hvi/engine/printable"
	"github.com/xen-hvi/hvi/engine/xen"
)

// Options is what is to be examined.
type Options struct {
	// Root is where the host's files are; empty is "/".
	Root string
	// Socket is hvid's control socket; empty leaves it out.
	Socket string
	// Files are the admin's; nil leaves them out.
	Files *config.Files
	// Store reads something of xenstore, where there is a connection; nil has
	// its socket tried instead.
	Store func(context.Context) error
	// HookHeard is when libvirt's hook called hvid last, zero if it never did
	// or isn't known.
	HookHeard time.Time
	// UnitChanged tells how long after the kernel's start a unit of systemd's
	// changed its state last; a reload is such a change. nil where nobody can
	// be asked, as in hvid, which runs no programs.
	UnitChanged func(ctx context.Context, unit string) (time.Duration, error)
	// FixedAltP2M: this Xen fixes a domain's altp2m when it is created.
	FixedAltP2M bool

	// What tests put in place: the group that may read, and root's user.
	group func(string) (*user.Group, error)
	uid   uint32
}

// Checks examines everything.
func Checks(ctx context.Context, o Options) []control.Check {
	o = o.filled()
	checks := o.devices()
	checks = append(checks, o.xenstored(ctx))
	checks = append(checks, o.libvirt(ctx)...)
	if o.Socket != "" {
		checks = append(checks, o.socket()...)
	}
	if o.Files != nil {
		checks = append(checks, o.files()...)
	}
	return checks
}

// HookName is the name of the check of libvirt's hook.
const HookName = "libvirt hook"

// Hook makes the check HookName alone, false where libvirt does not run.
func Hook(ctx context.Context, o Options) (control.Check, bool) {
	for _, c := range o.filled().libvirt(ctx) {
		if c.Name == HookName {
			return c, true
		}
	}
	return control.Check{}, false
}

func (o Options) filled() Options {
	if o.Root == "" {
		o.Root = "/"
	}
	if o.group == nil {
		o.group = user.LookupGroup
	}
	return o
}

// path is a file of the host's.
func (o Options) path(p string) string { return filepath.Join(o.Root, p) }

// shown is an error fit for a terminal.
func (o Options) shown(err error) string { return o.text(err.Error()) }

// text is s fit for a terminal, on one line and with the host's names of files.
func (o Options) text(s string) string {
	if root := strings.TrimSuffix(o.Root, "/"); root != "" {
		s = strings.ReplaceAll(s, root, "")
	}
	return printable.Text(strings.ReplaceAll(s, "\n", "; ")).String()
}

// devices are what a dom0 kernel has, what each is for, and how to get it.
var devices = []struct {
	name, use, fix string
	missing        control.CheckStatus
}{
	{"privcmd", "hypercalls and guest memory", "boot this host under Xen as dom0; modprobe xen-privcmd", control.CheckMissing},
	// The kernel makes it along with privcmd, since Linux 4.18.
	{"hypercall", "hypercall buffers", "use a dom0 kernel of Linux 4.18 or later; until then hvid locks memory of its own, which Linux may move under a hypercall", control.CheckWarn},
	{"evtchn", "event channels", "boot this host under Xen as dom0; modprobe xen-evtchn", control.CheckMissing},
	{"xenbus", "xenstore", "boot this host under Xen as dom0", control.CheckMissing},
}

// devices looks for each.
func (o Options) devices() []control.Check {
	var cs []control.Check
	for _, dev := range devices {
		name := "/dev/xen/" + dev.name
		c := control.Check{Name: name, Status: control.CheckOK, Detail: dev.use}
		fi, err := os.Stat(o.path(name))
		switch {
		case errors.Is(err, fs.ErrNotExist):
			c.Status, c.Detail, c.Fix = dev.missing, "there is none; it is for "+dev.use, dev.fix
		case err != nil:
			c.Status, c.Detail, c.Fix = control.CheckFail, o.shown(err), "run it as root"
		case fi.Mode()&os.ModeCharDevice == 0:
			c.Status, c.Detail, c.Fix = control.CheckFail, "it is no device", "remove it and restart udev"
		}
		cs = append(cs, c)
	}
	return cs
}

// process is one that runs here.
type process struct {
	pid   int
	name  string
	start time.Time
}

// String names it.
func (p process) String() string { return fmt.Sprintf("%s (pid %d)", p.name, p.pid) }

// ticks is USER_HZ, in which /proc counts; it is 100 on x86.
const ticks = 100

// processes finds the processes of root's with one of these names, by /proc.
func (o Options) processes(names ...string) []process {
	entries, err := os.ReadDir(o.path("/proc"))
	if err != nil {
		return nil
	}
	boot := o.bootTime()
	var found []process
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		dir := filepath.Join("/proc", e.Name())
		stat, err := o.read(filepath.Join(dir, "stat"))
		if err != nil {
			continue // it has ended
		}
		// "pid (name) state ppid ...": the name may hold anything.
		open, end := strings.IndexByte(stat, '('), strings.LastIndexByte(stat, ')')
		if open < 0 || end < open {
			continue
		}
		p := process{pid: pid, name: stat[open+1 : end]}
		known := false
		for _, n := range names {
			known = known || p.name == n
		}
		if fi, err := os.Stat(o.path(dir)); !known || err != nil || !o.owns(fi) {
			continue // anybody may call a process so
		}
		fields := strings.Fields(stat[end+1:])
		if len(fields) > 19 && !boot.IsZero() { // starttime is field 22 (proc(5))
			if n, err := strconv.ParseInt(fields[19], 10, 64); err == nil {
				p.start = boot.Add(time.Duration(n) * (time.Second / ticks))
			}
		}
		found = append(found, p)
	}
	return found
}

func (o Options) owns(fi fs.FileInfo) bool {
	st, ok := fi.Sys().(*syscall.Stat_t)
	return ok && st.Uid == o.uid
}

// bootTime is when the kernel started, to the second.
func (o Options) bootTime() time.Time {
	stat, err := o.read("/proc/stat")
	if err != nil {
		return time.Time{}
	}
	for line := range strings.Lines(stat) {
		if s, ok := strings.CutPrefix(line, "btime "); ok {
			if n, err := strconv.ParseInt(strings.TrimSpace(s), 10, 64); err == nil {
				return time.Unix(n, 0)
			}
		}
	}
	return time.Time{}
}

// maxRead is the most that is read of a file that somebody else wrote.
const maxRead = 1 << 20

func (o Options) read(path string) (string, error) {
	f, err := os.OpenFile(o.path(path), os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return "", err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxRead))
	return string(b), err
}

// socket looks at who may talk to hvid.
func (o Options) socket() []control.Check {
	c := control.Check{Name: "socket", Status: control.CheckOK}
	fi, err := os.Lstat(o.path(o.Socket))
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil // hvid does not run, which is said elsewhere
	case err != nil:
		c.Status, c.Detail, c.Fix = control.CheckFail, o.shown(err), "run it as root"
		return []control.Check{c}
	case fi.Mode().Type() != fs.ModeSocket:
		c.Status, c.Detail, c.Fix = control.CheckFail, o.Socket+" is no socket", "remove it and restart hvid: systemctl restart hvid"
		return []control.Check{c}
	}
	st, ok := fi.Sys().(*syscall.Stat_t)
	if !ok {
		return nil
	}
	g, err := o.group(control.Group)
	mode := fi.Mode().Perm()
	switch {
	case err != nil:
		c.Status = control.CheckWarn
		c.Detail = "there is no group " + control.Group + ": only root may talk to hvid"
		c.Fix = "groupadd --system " + control.Group + "; systemctl restart hvid"
	case g.Gid != strconv.FormatUint(uint64(st.Gid), 10):
		c.Status = control.CheckWarn
		c.Detail = fmt.Sprintf("%s belongs to group %d, not to %s", o.Socket, st.Gid, control.Group)
		c.Fix = "systemctl restart hvid"
	case mode != 0o660 || st.Uid != o.uid:
		c.Status = control.CheckWarn
		c.Detail = fmt.Sprintf("%s is of mode %#o and user %d, not 0660 and root", o.Socket, mode, st.Uid)
		c.Fix = "systemctl restart hvid"
	default:
		c.Detail = "root, and to read also the group " + control.Group
	}
	return []control.Check{c}
}

// files reads what the admin wrote.
func (o Options) files() []control.Check {
	c := control.Check{Name: "configuration", Status: control.CheckOK}
	const fix = "correct it; hvictl policy check FILE says more"
	var wrong []string
	dir := cmp.Or(o.Files.Dir, config.DefaultDir)
	conf, err := o.Files.Load(filepath.Join(dir, config.DaemonFile))
	if err != nil {
		wrong = append(wrong, o.shown(err))
	}
	policies, w := o.each(filepath.Join(dir, config.PoliciesDir), func(name string) error {
		_, err := o.Files.Policy(name)
		return err
	})
	wrong = append(wrong, w...)
	domains, w := o.each(filepath.Join(dir, config.DomainsDir), o.domain)
	wrong = append(wrong, w...)
	if len(wrong) > 0 {
		c.Status, c.Detail, c.Fix = control.CheckFail, listed(wrong), fix
		return []control.Check{c}
	}
	c.Detail = o.text(fmt.Sprintf("%s; policies: %d, files of domains: %d", dir, policies, domains))
	d := control.Check{Name: "host default", Status: control.CheckInfo, Detail: "domains nobody declares anything for are not protected"}
	if conf.Default.Declared() {
		d.Detail = "mode " + conf.Default.Mode.String() + " for domains nobody declares anything for"
	}
	return []control.Check{c, d}
}

// domain reads a domain's file as hvid would when it looks for it.
func (o Options) domain(name string) error {
	uuid, err := xen.ParseUUID(name)
	if err == nil {
		name = ""
	} else {
		// No domain has this one.
		uuid = xen.UUID{0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff}
	}
	_, found, err := o.Files.Domain(uuid, name)
	if err == nil && !found {
		err = fmt.Errorf("%s/%s.toml is never read: a file is called by a domain's UUID in lower case, or by its name if that has only letters, digits, dots, dashes and underscores", config.DomainsDir, printable.Escape(cmp.Or(name, uuid.String())))
	}
	return err
}

// maxListed is how many wrong files are told of.
const maxListed = 4

// listed joins what is wrong.
func listed(wrong []string) string {
	if n := len(wrong) - maxListed; n > 0 {
		wrong = append(wrong[:maxListed:maxListed], fmt.Sprintf("and %d more", n))
	}
	return strings.Join(wrong, "; ")
}

// each has every file of a directory read, and counts them.
func (o Options) each(dir string, read func(name string) error) (n int, wrong []string) {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return 0, nil
	}
	if err != nil {
		return 0, []string{o.shown(err)}
	}
	for _, e := range entries {
		name, ok := strings.CutSuffix(e.Name(), ".toml")
		if !ok {
			continue // an editor's backup, a README
		}
		n++
		if err := read(name); err != nil {
			wrong = append(wrong, o.shown(err))
		}
	}
	return n, wrong
}
