package main

import (
	"bytes"
	"context"
	"errors"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/xen-hvi/hvi/control"
	"github.com/xen-hvi/hvi/engine/journal"
)

// The test binary plays hvi-hook where this is set.
const play = "HVI_HOOK_TEST"

func TestMain(m *testing.M) {
	if os.Getenv(play) != "" {
		main()
	}
	os.Exit(m.Run())
}

// gateEngine opens every gate.
type gateEngine struct {
	control.Engine
	open bool
}

func (e gateEngine) Version(context.Context) (control.Version, error) {
	return control.Version{API: "v1"}, nil
}
func (e gateEngine) Domains(context.Context) ([]control.DomainStatus, error) { return nil, nil }
func (e gateEngine) Gate(context.Context, control.DomainRef, control.GateRequest) (control.GateResult, error) {
	return control.GateResult{Open: e.open, Reason: map[bool]string{false: "the test says so"}[e.open]}, nil
}

func hvid(t *testing.T, open bool) string {
	t.Helper()
	dir := t.TempDir()
	j, err := journal.Open(journal.Options{Dir: filepath.Join(dir, "journal")})
	if err != nil {
		t.Fatal(err)
	}
	l, err := control.Listen(filepath.Join(dir, "hvid.sock"))
	if err != nil {
		t.Fatal(err)
	}
	s := control.NewServer(control.ServerOptions{Engine: gateEngine{open: open}, Journal: j})
	go s.Serve(l)
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		s.Shutdown(ctx)
		j.Close()
	})
	return filepath.Join(dir, "hvid.sock")
}

// hook prepares a run of this binary under another name.
func hook(t *testing.T, path, socket string, args ...string) *exec.Cmd {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(self, path); err != nil && !errors.Is(err, os.ErrExist) {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	t.Cleanup(cancel)
	cmd := exec.CommandContext(ctx, path, args...)
	cmd.Env = append(os.Environ(), play+"=1", "HVI_SOCKET="+socket)
	return cmd
}

// real writes a program that shows what it was given.
func realProgram(t *testing.T, path string) {
	t.Helper()
	const script = `#!/bin/sh
printf 'name %s\n' "$0"
for a in "$@"; do printf 'arg %s\n' "$a"; done
printf 'env %s\n' "$XENBUS_PATH"
printf 'limit %s\n' "$(ulimit -S -n)"
printf 'fd %s\n' "$(cat <&3)"
printf 'stdin %s\n' "$(cat)"
exit 7
`
	if err := os.WriteFile(path, []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
}

// TestBecoming lets the gates become real programs, which get the arguments, the
// environment, the limits and the inherited descriptors of a toolstack.
func TestBecoming(t *testing.T) {
	socket := hvid(t, true)
	dir := t.TempDir()
	limit, err := exec.Command("/bin/sh", "-c", "ulimit -S -n").Output()
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name, gate, real string
		args             []string
	}{
		{"vif script", "hvi-vif-bridge", "vif-bridge", []string{"online", "type_if=vif"}},
		{"vif script, offline", "hvi-vif-route", "vif-route", []string{"offline", "a  b", ""}},
		{"device model", "dm-gate", "qemu", []string{"-xen-domid", "7", "-chardev", "socket,path=/run/a b,fd=3"}},
		{"device model, asked", "dm-gate", "qemu", []string{"-help"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			realProgram(t, filepath.Join(dir, tt.real))
			cmd := hook(t, filepath.Join(dir, tt.gate), socket, tt.args...)
			cmd.Env = append(cmd.Env, "XENBUS_PATH=backend/vif/7/0", "HVI_DM="+filepath.Join(dir, "qemu"))
			r, w, err := os.Pipe()
			if err != nil {
				t.Fatal(err)
			}
			defer r.Close()
			if _, err := w.WriteString("inherited"); err != nil {
				t.Fatal(err)
			}
			w.Close()
			cmd.ExtraFiles = []*os.File{r}
			cmd.Stdin = strings.NewReader("typed")
			var stderr bytes.Buffer
			cmd.Stderr = &stderr
			out, err := cmd.Output()
			var exit *exec.ExitError
			if !errors.As(err, &exit) || exit.ExitCode() != 7 {
				t.Errorf("%v; %s", err, &stderr)
			}
			want := "name " + filepath.Join(dir, tt.real) + "\n"
			for _, a := range tt.args {
				want += "arg " + a + "\n"
			}
			want += "env backend/vif/7/0\nlimit " + string(limit) + "fd inherited\nstdin typed\n"
			if string(out) != want {
				t.Errorf("the real program got:\n%s\nwant:\n%s", out, want)
			}
		})
	}
}

func TestAGateThatStaysShut(t *testing.T) {
	dir := t.TempDir()
	realProgram(t, filepath.Join(dir, "qemu"))
	silent, err := net.Listen("unix", filepath.Join(dir, "silent.sock"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { silent.Close() })
	for name, tt := range map[string]struct{ socket, says string }{
		"by hvid":   {hvid(t, false), "hvi: domain 7 is not started: the test says so\n"},
		"by nobody": {filepath.Join(dir, "nothing.sock"), "there is no such socket"},
		// Connections are made by the kernel, and never accepted.
		"by a hung hvid": {filepath.Join(dir, "silent.sock"), "hvid does not answer"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			cmd := hook(t, filepath.Join(t.TempDir(), "dm-gate"), tt.socket, "-xen-domid", "7")
			cmd.Env = append(cmd.Env, "HVI_DM="+filepath.Join(dir, "qemu"))
			began := time.Now()
			out, err := cmd.CombinedOutput()
			if cmd.ProcessState.ExitCode() != 1 || !strings.Contains(string(out), tt.says) {
				t.Errorf("%v: %s", err, out)
			}
			if took := time.Since(began); took > 20*time.Second {
				t.Errorf("took %v", took)
			}
		})
	}
}

func TestLibvirtCallsIt(t *testing.T) {
	cmd := hook(t, filepath.Join(t.TempDir(), "50-hvi"), filepath.Join(t.TempDir(), "none.sock"), "web1", "start", "begin", "-")
	cmd.Stdin = strings.NewReader(`<domain><name>web1</name><uuid>6a14b9b1-7d2b-4e3f-9f2a-0123456789ab</uuid>
<metadata><x:introspection xmlns:x="urn:xen-hvi:domain:1.0" mode="enforce"/></metadata></domain>`)
	out, _ := cmd.CombinedOutput()
	if cmd.ProcessState.ExitCode() != 1 || !strings.Contains(string(out), `hvi: domain "web1" is not started: mode enforce asks for protection`) {
		t.Errorf("%v: %s", cmd.ProcessState, out)
	}
}

// TestItStaysSmall keeps the program quick to start: a toolstack runs it several
// times for each domain, with the domain locked.
func TestItStaysSmall(t *testing.T) {
	deps, err := exec.Command("go", "list", "-deps", ".").Output()
	if err != nil {
		t.Skipf("there is no go to ask: %v", err)
	}
	// The plain values of engine/guest/report come with the control interface;
	// what reads a guest doesn't.
	for _, heavy := range []string{"prometheus", "spf13/cobra", "hvi/engine/guest\n", "hvi/engine/guest/linux", "hvi/engine/guest/dump", "cilium/ebpf", "hvi/engine/guard", "go-libvirt", "go-toml", "hvi/lab", "hvi/engine/xen\n"} {
		if strings.Contains(string(deps), heavy) {
			t.Errorf("hvi-hook depends on %s", strings.TrimSpace(heavy))
		}
	}
}
