package libvirt

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// fakeProc is a procfs of the test's.
type fakeProc struct {
	t   *testing.T
	dir string
}

func (f fakeProc) add(pid, exe string, start int) {
	f.t.Helper()
	dir := filepath.Join(f.dir, pid)
	if err := os.Mkdir(dir, 0o755); err != nil {
		f.t.Fatal(err)
	}
	if err := os.Symlink(exe, filepath.Join(dir, "exe")); err != nil {
		f.t.Fatal(err)
	}
	stat := fmt.Sprintf("%s (a) b) S 1 12 12 0 -1 4194560 1 1 0 0 1 1 0 0 20 0 17 0 %d 1 1 1\n", pid, start)
	if err := os.WriteFile(filepath.Join(dir, "stat"), []byte(stat), 0o644); err != nil {
		f.t.Fatal(err)
	}
}

func (f fakeProc) end(pid string) {
	if err := os.RemoveAll(filepath.Join(f.dir, pid)); err != nil {
		f.t.Fatal(err)
	}
}

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
		proc := fakeProc{t, t.TempDir()}
		proc.add(c.pid, c.exe, 500)
		r := NewRunning(proc.dir)
		r.uid = c.uid
		if got := r.Ready(); got != c.want {
			t.Errorf("%s: %v, want %v", name, got, c.want)
		}
	}
	if NewRunning(filepath.Join(t.TempDir(), "none")).Ready() {
		t.Error("a daemon runs where there is no procfs")
	}
}

// TestRunningEnds goes to no daemon that closed the connection and may be ending,
// and to another at once.
func TestRunningEnds(t *testing.T) {
	proc := fakeProc{t, t.TempDir()}
	now := time.Unix(1000, 0)
	r := NewRunning(proc.dir)
	r.uid, r.now = uint32(os.Getuid()), func() time.Time { return now }
	expect := func(when string, want bool) {
		t.Helper()
		if got := r.Ready(); got != want {
			t.Errorf("%s: %v, want %v", when, got, want)
		}
	}
	r.Connected(false) // there was none at all
	proc.add("12", "/usr/sbin/libvirtd", 500)
	expect("a daemon was started", true)
	r.Connected(true)
	expect("it runs", true)
	r.Connected(false)
	expect("it has closed the connection", false)
	now = now.Add(stopTime - time.Second)
	r.Connected(false)
	expect("it takes its time to end", false)
	proc.end("12")
	expect("it has ended", false)
	proc.add("12", "/usr/sbin/libvirtd", 900)
	expect("another has got its number", true)
	r.Connected(true)
	proc.add("13", "/usr/sbin/virtxend", 901)
	r.Connected(false)
	expect("there is another beside it", true)
	r.Connected(true)
	r.Connected(false)
	expect("both were there when the connection was made", false)
	now = now.Add(stopTime)
	expect("neither has ended in the time systemd gives", true)
}
