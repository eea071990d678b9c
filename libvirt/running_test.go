package libvirt

import (
	"os"
	"path/filepath"
	"testing"
)

// TestRunning finds a daemon by its program and owner, and nothing else.
func TestRunning(t *testing.T) {
	me := uint32(os.Getuid())
	for name, c := range map[string]struct {
		pid, exe string
		uid      uint32
		want     bool
	}{
		"monolithic":      {"12", "/usr/sbin/libvirtd", me, true},
		"modular":         {"12", "/usr/sbin/virtxend", me, true},
		"somebody else's": {"12", "/home/eve/libvirtd", me + 1, false},
		"only the proxy":  {"12", "/usr/sbin/virtproxyd", me, false},
		"not a process":   {"self", "/usr/sbin/libvirtd", me, false},
		"nothing":         {"12", "/usr/bin/sh", me, false},
	} {
		proc := t.TempDir()
		dir := filepath.Join(proc, c.pid)
		if err := os.Mkdir(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.Symlink(c.exe, filepath.Join(dir, "exe")); err != nil {
			t.Fatal(err)
		}
		if got := running(proc, c.uid); got != c.want {
			t.Errorf("%s: %v, want %v", name, got, c.want)
		}
	}
	if Running(filepath.Join(t.TempDir(), "none")) {
		t.Error("a daemon runs where there is no procfs")
	}
}
