package unixsocket

import (
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// stale leaves a socket behind that nobody serves.
func stale(t *testing.T, path string) {
	t.Helper()
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	l.SetUnlinkOnClose(false)
	l.Close()
}

func mustListen(t *testing.T, path string, opt Options) *Listener {
	t.Helper()
	l, err := Listen(path, opt)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// TestListen makes a socket, over nothing and over one that was left behind, and
// removes it, and no other.
func TestListen(t *testing.T) {
	for name, opt := range map[string]Options{"plain": {Group: -1}, "locked": {Group: os.Getegid(), Lock: true}} {
		t.Run(name, func(t *testing.T) {
			dir := filepath.Join(t.TempDir(), "run", "hvi")
			path := filepath.Join(dir, "s")
			l := mustListen(t, path, opt)
			fi, err := os.Lstat(path)
			if err != nil || fi.Mode() != os.ModeSocket|0o660 || int(fi.Sys().(*syscall.Stat_t).Gid) != os.Getegid() {
				t.Errorf("%v, %v", fi.Mode(), err)
			}
			var e *Error
			if _, err := Listen(path, opt); !errors.As(err, &e) || e.Reason != InUse {
				t.Errorf("a second one: %v", err)
			}
			if err := errors.Join(l.Close(), l.Close()); err != nil {
				t.Error(err)
			}
			stale(t, path)
			l = mustListen(t, path, opt)
			if err := os.Remove(path); err != nil {
				t.Fatal(err)
			}
			stale(t, path)
			if err := l.Close(); err != nil {
				t.Error(err)
			}
			if _, err := os.Lstat(path); err != nil {
				t.Errorf("another's socket was removed: %v", err)
			}
			left, err := os.ReadDir(dir)
			want := 1
			if opt.Lock {
				want = 2
			}
			if err != nil || len(left) != want {
				t.Errorf("left: %v, %v", left, err)
			}
		})
	}
}

// TestRefused says why there is no socket, and harms nothing that is there.
func TestRefused(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, []byte("precious"), 0o600); err != nil {
		t.Fatal(err)
	}
	open := filepath.Join(dir, "open")
	if err := errors.Join(os.Mkdir(open, 0o777), os.Chmod(open, 0o777)); err != nil {
		t.Fatal(err)
	}
	live := filepath.Join(dir, "live")
	l, err := net.Listen("unix", live)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	for path, want := range map[string]Reason{
		"s": BadPath, "/" + strings.Repeat("x", MaxPath): BadPath,
		filepath.Join(open, "s"): OpenDirectory, filepath.Join(file, "s"): Other, file: Occupied, live: InUse,
	} {
		for _, lock := range []bool{false, true} {
			var e *Error
			if got, err := Listen(path, Options{Group: -1, Lock: lock}); !errors.As(err, &e) || e.Reason != want || got != nil {
				t.Errorf("%.60s: %v, reason %v, want %v", path, err, e.Reason, want)
			}
		}
	}
	if b, err := os.ReadFile(file); err != nil || string(b) != "precious" {
		t.Errorf("the file is now %q (%v)", b, err)
	}
	c, err := net.Dial("unix", live)
	if err != nil {
		t.Fatalf("the live socket is gone: %v", err)
	}
	c.Close()
}

// TestLongestPath makes a socket of the longest path there may be.
func TestLongestPath(t *testing.T) {
	dir, err := os.MkdirTemp("/tmp", "s")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	path := dir + "/" + strings.Repeat("x", MaxPath-len(dir)-1)
	if err := mustListen(t, path, Options{Group: -1}).Close(); err != nil {
		t.Error(err)
	}
}

func TestGroupID(t *testing.T) {
	if _, ok := GroupID("no such group"); ok {
		t.Error("a group that is not there")
	}
	if id, ok := GroupID("root"); !ok || id != 0 {
		t.Errorf("root is %d, %v", id, ok)
	}
}
