package machine

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

func sh(script string) Command {
	return Command{Path: "/bin/sh", Args: []string{"-c", script}, Dir: "/"}
}

func start(ctx context.Context, t *testing.T, c Command) (m *Machine, console, results *bytes.Buffer) {
	t.Helper()
	console, results = &bytes.Buffer{}, &bytes.Buffer{}
	m, err := Start(ctx, c, Output{Console: console, Results: results})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(m.Kill)
	return m, console, results
}

func wait(t *testing.T, m *Machine) {
	t.Helper()
	select {
	case <-m.Exited():
	case <-time.After(30 * time.Second):
		t.Fatal("it does not end")
	}
}

func TestOutput(t *testing.T) {
	m, console, results := start(t.Context(), t, sh("echo serial >"+ConsolePath+"; echo port >"+ResultsPath+"; echo own; echo err >&2"))
	wait(t, m)
	if console.String() != "serial\n" || results.String() != "port\n" || m.Log() != "own\nerr" || m.Err() != nil {
		t.Errorf("console %q, results %q, log %q, %v", console, results, m.Log(), m.Err())
	}
}

func TestResultsOnStdout(t *testing.T) {
	c := sh("echo port; echo err >&2; exit 1")
	c.ResultsOnStdout = true
	m, _, results := start(t.Context(), t, c)
	wait(t, m)
	if results.String() != "port\n" || m.Log() != "err" || m.Err() == nil {
		t.Errorf("results %q, log %q, %v", results, m.Log(), m.Err())
	}
}

func TestKill(t *testing.T) {
	// A child of its own would hold the pipes open; the emulators have none.
	m, _, _ := start(t.Context(), t, sh("exec sleep 1000"))
	m.Kill()
	wait(t, m)
	if err := syscall.Kill(m.Pid(), 0); err == nil {
		t.Error("it is still there")
	}
	m.Kill() // once more does no harm
}

func TestContext(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	m, _, _ := start(ctx, t, sh("exec sleep 1000"))
	cancel()
	wait(t, m)
	if m.Err() == nil {
		t.Error("it ended well")
	}
}

func TestNoProgram(t *testing.T) {
	if _, err := Start(t.Context(), Command{Path: "/no/such/emulator"}, Output{}); err == nil || !strings.Contains(err.Error(), "/no/such/emulator") {
		t.Errorf("got %v", err)
	}
}

func TestBochsCommand(t *testing.T) {
	dir := t.TempDir()
	b := Bochs{Tree: "/tree", Memory: 1024, Disk: filepath.Join(dir, "disk.img"), Dir: dir}
	c, err := b.Command()
	if err != nil {
		t.Fatal(err)
	}
	if !c.ResultsOnStdout || !strings.HasPrefix(c.Path, "/tree/") {
		t.Errorf("%+v", c)
	}
	rc, err := os.ReadFile(filepath.Join(dir, "bochsrc"))
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"path=" + b.Disk + ",", "dev=" + ConsolePath, "port_e9_hack: enabled=1", "guest=1024, host=1024", "model=corei7_haswell_4770", "count=1"} {
		if !strings.Contains(string(rc), want) {
			t.Errorf("%q is not in\n%s", want, rc)
		}
	}
}

func TestDisks(t *testing.T) {
	dir := t.TempDir()
	b := Bochs{Disk: "/boot", System: "/system", Lab: "/lab", Dir: dir}
	if _, err := b.Command(); err != nil {
		t.Fatal(err)
	}
	rc, err := os.ReadFile(filepath.Join(dir, "bochsrc"))
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"ata0-slave: type=disk, mode=volatile, path=/system,", "ata1: enabled=1,", "ata1-master: type=disk, mode=flat, path=/lab,"} {
		if !strings.Contains(string(rc), want) {
			t.Errorf("%q is not in\n%s", want, rc)
		}
	}
	args := strings.Join(QEMU{System: "/sys,tem", Lab: "/lab"}.Command().Args, "\n")
	system, lab := strings.Index(args, "file=/sys,,tem,format=raw,if=none,readonly=on,id="), strings.Index(args, "file=/lab,format=raw")
	if system < 0 || lab < system {
		t.Errorf("the disks are not there, or in another order, in\n%s", args)
	}
	if none := strings.Join(QEMU{}.Command().Args, "\n"); strings.Contains(none, "-drive") {
		t.Errorf("a disk in\n%s", none)
	}
}

func TestQEMUCommand(t *testing.T) {
	c := QEMU{Tree: "/tree", Program: "/qemu", Kernel: "/xen", Args: "a=b,c", Module: "/vmlinux", ModuleArgs: "x=1,2", Ramdisk: "/ini,trd"}.Command()
	args := strings.Join(c.Args, "\n")
	for _, want := range []string{"/qemu\n", "-append\na=b,c\n", "-initrd\n/vmlinux x=1,,2,/ini,,trd\n", "file:" + ConsolePath, "file:" + ResultsPath, "qemu64,+svm,+npt,+smep,+smap,+umip", "\n-m\n3072\n"} {
		if !strings.Contains(args+"\n", want) {
			t.Errorf("%q is not in\n%s", want, args)
		}
	}
	if c.ResultsOnStdout {
		t.Error("results on standard output")
	}
}

func TestXenArgs(t *testing.T) {
	intel, amd := XenArgs(true, 512, []string{"x=1", "y"}), XenArgs(false, 768, nil)
	if !strings.HasSuffix(intel, " x=1 y") || !strings.Contains(intel, "altp2m=1 apicv=0") {
		t.Errorf("intel: %s", intel)
	}
	if strings.Contains(amd, "altp2m") || strings.Contains(amd, "  ") {
		t.Errorf("amd: %s", amd)
	}
	if !strings.Contains(intel, " dom0_mem=512M,max:512M ") || !strings.Contains(amd, " dom0_mem=768M,max:768M") {
		t.Errorf("memory: %s; %s", intel, amd)
	}
	if d := DebianArgs("/dev/a", "/dev/b"); !strings.HasSuffix(d, " lab.root=/dev/a lab.disk=/dev/b") || strings.Contains(d, "apparmor=0") || strings.ContainsAny(d, "\n\t") {
		t.Errorf("debian: %s", d)
	}
	if !strings.Contains(Dom0Args(), "rdinit=/init") || strings.ContainsAny(Dom0Args()+intel, "\n\t") {
		t.Errorf("dom0: %s", Dom0Args())
	}
}

func TestMemoryOfOneThatSharesNone(t *testing.T) {
	m, _, _ := start(t.Context(), t, sh("exec sleep 1000"))
	if name, err := m.Memory(); err == nil {
		t.Errorf("%s is its memory", name)
	}
}
