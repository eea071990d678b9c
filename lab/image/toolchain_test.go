package image

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

// TestThrough starts this machine's own `true` through its own linker.
func TestThrough(t *testing.T) {
	const linker = "/lib64/ld-linux-x86-64.so.2"
	if _, err := os.Stat(linker); err != nil {
		t.Skip(err)
	}
	real, err := filepath.EvalSymlinks(linker)
	if err != nil {
		t.Fatal(err)
	}
	// A name that a shell must not take apart.
	dir := filepath.Join(t.TempDir(), "it's a folder")
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	echo, err := os.ReadFile("/bin/echo")
	if err != nil {
		t.Fatal(err)
	}
	program := filepath.Join(dir, "echo")
	write(t, program, string(echo), 0o755)
	to := filepath.Join(dir, "started")
	if err := through(real, program, to, "first 'word'"); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.CommandContext(t.Context(), to, "a  b").CombinedOutput(); err != nil || string(out) != "first 'word' a  b\n" {
		t.Errorf("%q, %v", out, err)
	}

	script := filepath.Join(dir, "script")
	write(t, script, "#!/bin/sh\n", 0o755)
	if err := through(real, script, filepath.Join(dir, "link")); err != nil {
		t.Fatal(err)
	}
	if target, err := os.Readlink(filepath.Join(dir, "link")); err != nil || target != script {
		t.Errorf("%s, %v", target, err)
	}
	if err := through(real, filepath.Join(dir, "none"), filepath.Join(dir, "nothing")); err != nil {
		t.Errorf("a link to nothing: %v", err)
	}

	// One that only chooses another.
	write(t, filepath.Join(dir, "choose"), "#!/bin/sh\nexit 1\n", 0o755)
	write(t, filepath.Join(dir, "choose.real-x86"), string(echo), 0o755)
	if err := through(real, filepath.Join(dir, "choose"), filepath.Join(dir, "chosen")); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.CommandContext(t.Context(), filepath.Join(dir, "chosen"), "x").CombinedOutput(); err != nil || string(out) != "x\n" {
		t.Errorf("%q, %v", out, err)
	}
}
