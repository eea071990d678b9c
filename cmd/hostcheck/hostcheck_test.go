package hostcheck

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/xen-hvi/hvi/config"
	"github.com/xen-hvi/hvi/control"
)

// host is a directory that plays a host.
type host struct {
	t *testing.T
	o Options
}

func newHost(t *testing.T) *host {
	t.Helper()
	h := &host{t: t, o: Options{
		Root: t.TempDir(), uid: uint32(os.Geteuid()),
		group: func(string) (*user.Group, error) { return &user.Group{Gid: strconv.Itoa(os.Getegid())}, nil },
	}}
	h.write("proc/stat", 0o644, "cpu  1 2 3\nbtime %d\n", time.Now().Add(-time.Hour).Unix())
	return h
}

func (h *host) write(name string, mode os.FileMode, format string, args ...any) {
	h.t.Helper()
	path := filepath.Join(h.o.Root, name)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		h.t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(fmt.Sprintf(format, args...)), mode); err != nil {
		h.t.Fatal(err)
	}
	if err := os.Chmod(path, mode); err != nil {
		h.t.Fatal(err)
	}
}

// process makes one that started so long after the kernel.
func (h *host) process(pid int, name string, start time.Duration) {
	h.write(fmt.Sprintf("proc/%d/stat", pid), 0o644, "%d (%s) S 1 1 1 0 -1 4194560 1 0 0 0 0 0 0 0 20 0 1 0 %d 1 1\n", pid, name, int64(start/(time.Second/ticks)))
}

// check returns the check of a name.
func (h *host) check(name string) control.Check {
	h.t.Helper()
	for _, c := range Checks(context.Background(), h.o) {
		if c.Name == name {
			if c.Status != control.CheckOK && c.Status != control.CheckInfo && c.Fix == "" {
				h.t.Errorf("%+v: nothing says what to do", c)
			}
			if strings.Contains(c.Detail+c.Fix, h.o.Root) {
				h.t.Errorf("%+v: the root is told", c)
			}
			return c
		}
	}
	return control.Check{}
}

func (h *host) expect(what, name string, status control.CheckStatus, mention string) {
	h.t.Helper()
	if c := h.check(name); c.Status != status || !strings.Contains(c.Detail, mention) {
		h.t.Errorf("%s: %+v, want %s and %q", what, c, status, mention)
	}
}

func TestDevices(t *testing.T) {
	h := newHost(t)
	h.expect("none", "/dev/xen/privcmd", control.CheckMissing, "hypercalls")
	h.expect("none", "/dev/xen/hypercall", control.CheckWarn, "hypercall buffers")
	h.write("dev/xen/evtchn", 0o600, "")
	h.expect("a file", "/dev/xen/evtchn", control.CheckFail, "no device")
	if err := os.Symlink("/dev/null", filepath.Join(h.o.Root, "dev/xen/privcmd")); err != nil {
		t.Fatal(err)
	}
	h.expect("a device", "/dev/xen/privcmd", control.CheckOK, "hypercalls")
}

func TestXenstored(t *testing.T) {
	h := newHost(t)
	h.expect("none, without hvid", "xenstored", control.CheckWarn, "only hvid can tell")
	h.o.Store = func(context.Context) error { return errors.New("no such device") }
	h.expect("none", "xenstored", control.CheckMissing, "no such device")
	h.process(7, "x (y) oxenstored", 0)
	h.expect("one that is called alike", "xenstored", control.CheckMissing, "no such device")
	h.process(8, "oxenstored", time.Second)
	h.expect("one that hangs", "xenstored", control.CheckFail, "oxenstored (pid 8) runs and does not answer")
	h.o.Store = func(context.Context) error { return nil }
	h.expect("one that answers", "xenstored", control.CheckOK, "oxenstored (pid 8)")
	h.o.uid++
	h.expect("somebody's own", "xenstored", control.CheckOK, "a domain of its own")
	h.o.uid--
	h.o.Store = nil
	if err := os.MkdirAll(filepath.Join(h.o.Root, "run/xenstored"), 0o755); err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("unix", filepath.Join(h.o.Root, storeSocket))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	h.expect("its socket", "xenstored", control.CheckOK, "")
}

func TestLibvirt(t *testing.T) {
	h := newHost(t)
	h.expect("none", "libvirt", control.CheckInfo, "does not run")
	if c := h.check("libvirt hook"); c.Name != "" {
		t.Errorf("a hook is looked for without libvirt: %+v", c)
	}
	const before, after = 59 * time.Minute, 61 * time.Minute // of the kernel's start, an hour ago
	h.process(9, "libvirtd", before)
	h.expect("monolithic", "libvirt", control.CheckInfo, "libvirtd (pid 9)")
	h.expect("no hook", "libvirt hook", control.CheckMissing, "not installed")

	h.write(ourHook, 0o644, "#!/bin/sh\n")
	h.expect("not executable", "libvirt hook", control.CheckFail, "cannot be executed")
	h.write(ourHook, 0o755, "#!/bin/sh\n")
	h.expect("no program", "libvirt hook", control.CheckFail, hookProgram)
	h.write(hookProgram, 0o755, "")
	h.expect("installed later", "libvirt hook", control.CheckWarn, "after libvirtd (pid 9) started")
	for _, tc := range []struct {
		name, script string
		status       control.CheckStatus
		mention      string
	}{
		{"reloaded", "echo 3602000000", control.CheckOK, "was told to reload at"},
		{"not reloaded", "echo 3500000000", control.CheckFail, "was not told to reload"},
		{"unknown to systemd", "echo 0", control.CheckWarn, "does not know libvirtd.service"},
		{"no systemd", "exit 1", control.CheckWarn, "unknown"},
		{"nonsense", "echo n/a", control.CheckWarn, "unknown"},
	} {
		h.write("systemctl", 0o755, "#!/bin/sh\n[ \"$*\" = 'show --property=StateChangeTimestampMonotonic --value libvirtd.service' ] || exit 2\n%s\n", tc.script)
		h.o.UnitChanged = Systemctl(filepath.Join(h.o.Root, "systemctl"))
		h.expect(tc.name, "libvirt hook", tc.status, tc.mention)
		if c, ok := Hook(t.Context(), h.o); !ok || c.Status != tc.status {
			t.Errorf("%s: alone: %+v", tc.name, c)
		}
	}
	h.o.UnitChanged = nil
	h.o.HookHeard = time.Now()
	h.expect("installed later, and heard", "libvirt hook", control.CheckOK, "called last at")
	h.o.HookHeard = time.Now().Add(-30 * time.Minute)
	h.expect("heard by an earlier one", "libvirt hook", control.CheckWarn, "after")

	h.process(9, "libvirtd", after)
	h.expect("installed before", "libvirt hook", control.CheckOK, "before libvirtd (pid 9) started")
	h.process(9, "libvirtd", time.Hour)
	h.expect("installed at the same time", "libvirt hook", control.CheckWarn, "may not have been seen")
	h.o.HookHeard = time.Time{}
	h.write("proc/stat", 0o644, "cpu 1\n")
	h.expect("no start time", "libvirt hook", control.CheckWarn, "unknown")
	h.write("proc/stat", 0o644, "btime %d\n", time.Now().Add(-time.Hour).Unix())

	// Another's hook that was there before makes libvirt call ours, too.
	h.process(9, "libvirtd", before)
	h.expect("alone", "libvirt hook", control.CheckWarn, "after")
	h.process(12, "virtxend", after)
	h.o.FixedAltP2M = true
	h.expect("modular", "libvirt", control.CheckInfo, "tier access at most")
	if c := h.check("libvirt hook"); c.Status != control.CheckOK || !strings.Contains(c.Detail, "virtxend") {
		t.Errorf("modular: %+v", c)
	}

	// A release without the directory.
	os.Remove(filepath.Join(h.o.Root, ourHook))
	h.write(hookFile, 0o755, "#!/bin/sh\nexec something\n")
	h.expect("another's file", "libvirt hook", control.CheckMissing, "not installed")
	h.write(hookFile, 0o755, "#!/bin/sh\nexec %s libvirt \"$@\"\n", hookProgram)
	h.expect("ours in the file", "libvirt hook", control.CheckOK, hookFile)
	os.Remove(filepath.Join(h.o.Root, hookFile))
	if err := os.Symlink(filepath.Join(h.o.Root, hookProgram), filepath.Join(h.o.Root, hookFile)); err != nil {
		t.Fatal(err)
	}
	h.expect("a link to ours", "libvirt hook", control.CheckOK, hookFile)
}

// TestOldLibvirt looks where a libvirt looks that knows no directory of hooks.
func TestOldLibvirt(t *testing.T) {
	h := newHost(t)
	h.process(7, "libvirtd", -time.Hour)
	h.write(hookProgram, 0o755, "x")
	h.write(ourHook, 0o755, "#!/bin/sh\nexec %s libvirt \"$@\"\n", hookProgram)
	library := func(name string) {
		h.write("usr/lib/x86_64-linux-gnu/"+name, 0o644, "")
		t.Cleanup(func() { os.Remove(filepath.Join(h.o.Root, "usr/lib/x86_64-linux-gnu", name)) })
	}
	h.o.HookHeard = time.Now()
	h.expect("a library of no version", "libvirt hook", control.CheckOK, ourHook)
	library("libvirt.so.0.5000.0") // Debian 10
	h.expect("too old for the directory", "libvirt hook", control.CheckMissing, "libvirt before 6.5")
	if c := h.check("libvirt hook"); !strings.Contains(c.Fix, "ln -s libxl.d/50-hvi "+hookFile) {
		t.Errorf("%+v", c)
	}
	if err := os.Symlink("libxl.d/50-hvi", filepath.Join(h.o.Root, hookFile)); err != nil {
		t.Fatal(err)
	}
	h.expect("linked, as the manual says", "libvirt hook", control.CheckOK, hookFile)
	os.Remove(filepath.Join(h.o.Root, hookFile))
	os.Remove(filepath.Join(h.o.Root, "usr/lib/x86_64-linux-gnu/libvirt.so.0.5000.0"))
	library("libvirt.so.0.6005.0")
	h.expect("the first that knows it", "libvirt hook", control.CheckOK, ourHook)
}

func TestSocket(t *testing.T) {
	h := newHost(t)
	h.o.Socket = "/run/hvid.sock"
	if c := h.check("socket"); c.Name != "" {
		t.Errorf("none: %+v", c)
	}
	h.write("run/hvid.sock", 0o660, "")
	h.expect("a file", "socket", control.CheckFail, "no socket")
	os.Remove(filepath.Join(h.o.Root, "run/hvid.sock"))
	l, err := net.Listen("unix", filepath.Join(h.o.Root, "run/hvid.sock"))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	mode := func(m os.FileMode) {
		if err := os.Chmod(filepath.Join(h.o.Root, "run/hvid.sock"), m); err != nil {
			t.Fatal(err)
		}
	}
	mode(0o666)
	h.expect("for everybody", "socket", control.CheckWarn, "0666")
	mode(0o660)
	h.expect("as it is made", "socket", control.CheckOK, "group hvi")
	h.o.group = func(string) (*user.Group, error) { return &user.Group{Gid: "4711"}, nil }
	h.expect("another group", "socket", control.CheckWarn, "not to hvi")
	h.o.group = func(string) (*user.Group, error) { return nil, errors.New("unknown group") }
	h.expect("no group", "socket", control.CheckWarn, "no group hvi")
}

func TestFiles(t *testing.T) {
	h := newHost(t)
	h.o.Files = &config.Files{Dir: filepath.Join(h.o.Root, "etc/hvi"), Owner: h.o.uid}
	h.expect("none", "configuration", control.CheckOK, "policies: 0, files of domains: 0")
	h.expect("none", "host default", control.CheckInfo, "not protected")
	h.write("etc/hvi/hvid.toml", 0o644, "[default]\nmode = \"observe\"\n")
	h.write("etc/hvi/policies/ours.toml", 0o644, "[guards]\nkernel-text = \"alert\"\n")
	h.write("etc/hvi/policies/ours.toml~", 0o644, "{")
	h.write("etc/hvi/domains/web1.toml", 0o644, "mode = \"enforce\"\npolicy = \"ours\"\n")
	h.write("etc/hvi/domains/a2b0f0f4-6f0e-4f9b-8f4c-0c8c6d1e2f30.toml", 0o644, "mode = \"off\"\n")
	h.expect("good", "configuration", control.CheckOK, "policies: 1, files of domains: 2")
	h.expect("good", "host default", control.CheckInfo, "mode observe")

	for name, tc := range map[string]struct{ file, text, says string }{
		"a word":             {"domains/web2.toml", "mode = \"enforced\"\n", `did you mean "enforce"`},
		"a policy's":         {"policies/two.toml", "[guards]\nkernel-txt = \"alert\"\n", `did you mean "kernel-text"`},
		"a policy's name":    {"policies/a b;rm.toml", "", "a b;rm"},
		"a domain's name":    {"domains/a b\x1b;rm.toml", "mode = \"off\"\n", "never read"},
		"a UUID's case":      {"domains/A2B0F0F4-6f0e-4f9b-8f4c-0c8c6d1e2f31.toml", "mode = \"off\"\n", "never read"},
		"hvid's":             {"hvid.toml", "[metrics]\nlisten = \"0.0.0.0:9617\"\n", "hvid.toml"},
		"one that names one": {"domains/web3.toml", "mode = \"enforce\"\npolicy = \"theirs\"\n", "theirs"},
	} {
		path := filepath.Join(h.o.Root, "etc/hvi", tc.file)
		old, err := os.ReadFile(path)
		h.write("etc/hvi/"+tc.file, 0o644, "%s", tc.text)
		h.expect(name, "configuration", control.CheckFail, tc.says)
		if c := h.check("configuration"); strings.ContainsRune(c.Detail, '\x1b') {
			t.Errorf("%s: %q", name, c.Detail)
		}
		os.Remove(path)
		if err == nil {
			h.write("etc/hvi/"+tc.file, 0o644, "%s", old)
		}
	}
	for i := range 20 {
		h.write(fmt.Sprintf("etc/hvi/domains/bad%d.toml", i), 0o644, "")
	}
	h.expect("many", "configuration", control.CheckFail, "and 16 more")
}

// TestThisHost: nothing panics or hangs on whatever this one is.
func TestThisHost(t *testing.T) {
	for _, c := range Checks(t.Context(), Options{Socket: control.DefaultSocket, Files: &config.Files{}}) {
		if c.Name == "" || c.Status == "" {
			t.Errorf("%+v", c)
		}
	}
}
