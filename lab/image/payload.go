package image

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
)

// programs are what a payload holds, the runner first: commands of this module
// by where they go.
// Those that the checkout does not have are left out.
var programs = []struct{ pkg, dest string }{
	{"lab/cmd/labrun", "usr/bin/labrun"},
	{"cmd/hvid", "usr/bin/hvid"},
	{"cmd/hvictl", "usr/bin/hvictl"},
}

// Payload builds the runner and, unless bare is set, the programs under test,
// and writes a cpio archive with them and the plan, the names of the scenarios
// to run, to file. With commands of this module for guests, it holds an archive
// of them too, to be put behind a guest's ramdisk.
func (b *Builder) Payload(ctx context.Context, file string, plan, guest []string, bare bool) error {
	dir, err := os.MkdirTemp("", "hvi-lab-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	l := newLayer()
	defer l.close()
	if err := b.compile(ctx, dir, bare); err != nil {
		return err
	}
	for _, p := range programs {
		built := filepath.Join(dir, filepath.Base(p.pkg))
		if _, err := os.Stat(built); errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err := l.file(p.dest, built, 0o755); err != nil {
			return err
		}
	}
	if slices.Contains(plan, listenerScenario) {
		listener, err := b.listener(ctx)
		if err != nil {
			return err
		}
		if err := l.file("usr/bin/listener", listener, 0o755); err != nil {
			return err
		}
	}
	if len(guest) > 0 {
		in, err := b.guestPrograms(ctx, dir, guest)
		if err != nil {
			return err
		}
		l.text("guest/programs", string(in), 0o644)
	}
	l.text("lab/plan", strings.Join(plan, " ")+"\n", 0o644)
	return l.writeFile(file)
}

// guestPrograms is an archive of commands of this module, built in a folder.
func (b *Builder) guestPrograms(ctx context.Context, dir string, pkgs []string) ([]byte, error) {
	if err := b.Compile(ctx, dir, pkgs...); err != nil {
		return nil, err
	}
	l := newLayer()
	defer l.close()
	for _, p := range pkgs {
		name := filepath.Base(p)
		if err := l.file("bin/"+name, filepath.Join(dir, name), 0o755); err != nil {
			return nil, err
		}
	}
	return l.bytes()
}

// compile builds the runner and, unless bare is set, the programs under test
// into a folder.
func (b *Builder) compile(ctx context.Context, dir string, bare bool) error {
	var pkgs []string
	for i, p := range programs {
		if bare && i > 0 {
			break
		}
		found, err := filepath.Glob(filepath.Join(b.Root, p.pkg, "*.go"))
		if err != nil {
			return err
		}
		if len(found) > 0 {
			pkgs = append(pkgs, p.pkg)
		}
	}
	return b.Compile(ctx, dir, pkgs...)
}

// Compile builds static programs of this module, "cmd/hvictl", into a folder.
// The same sources make the same files, whenever and wherever.
func (b *Builder) Compile(ctx context.Context, dir string, pkgs ...string) error {
	// Without the commit in them, they are not linked anew for each one.
	args := []string{"build", "-buildvcs=false", "-trimpath", "-ldflags=-s -w", "-o", dir + string(filepath.Separator)}
	for _, p := range pkgs {
		args = append(args, "./"+p)
	}
	cmd := exec.CommandContext(ctx, "go", args...)
	cmd.Dir = b.Root
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOOS=linux", "GOARCH=amd64")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("go %s: %w\n%s", strings.Join(args, " "), err, tail(string(out), 4000))
	}
	return nil
}

// compileProbe builds the program that sees libvirt through libvirt's own
// library, into a folder. It is a module of its own, and takes a C compiler; the
// library itself it finds where it runs.
func (b *Builder) compileProbe(ctx context.Context, dir string) error {
	cmd := exec.CommandContext(ctx, "go", "build", "-buildvcs=false", "-trimpath", "-tags=libvirt_dlopen", "-o", filepath.Join(dir, "virtprobe"), ".")
	cmd.Dir = filepath.Join(b.Root, "lab", "libvirtgo")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=1", "GOOS=linux", "GOARCH=amd64")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%s: %w\n%s", strings.Join(cmd.Args, " "), err, tail(string(out), 4000))
	}
	return nil
}
