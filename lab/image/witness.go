package image

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/xen-hvi/hvi/lab/kernel"
	"github.com/xen-hvi/hvi/lab/witness"
)

// Witness is a guest that tells what it is made of, as paths of files.
type Witness struct {
	Dir     string // the artifact
	Kernel  string // a bzImage
	Ramdisk string // cpio
	Release string // uname -r
}

// witnessModules are what a witness loads where its kernel doesn't have it
// built in: the disks its reports go to, the processors' registers, and some
// that lean on one another.
var witnessModules = []string{"virtio_pci", "virtio_blk", "msr", "loop", "dummy", "vfat", "xt_tcpudp"}

// Witness builds the witness with a kernel.
func (b *Builder) Witness(ctx context.Context, k Kernel) (Witness, error) {
	var w Witness
	tree, err := b.tree(ctx, k.recipe())
	if err != nil {
		return w, err
	}
	xen, err := b.tree(ctx, treeXen) // for its busybox
	if err != nil {
		return w, err
	}
	program, err := b.witnessProgram(ctx)
	if err != nil {
		return w, err
	}
	attacks, err := b.Attacks(ctx, k)
	if err != nil {
		return w, err
	}
	inputs := []string{filepath.Base(tree), filepath.Base(xen), filepath.Base(attacks), hash(program)}
	inputs = append(inputs, witnessModules...)
	dir, err := b.Artifact(ctx, "witness-"+k.Name, inputs, func(dir string) error {
		return writeWitness(ctx, dir, tree, xen, attacks, program)
	})
	if err != nil {
		return w, err
	}
	release, err := os.ReadFile(filepath.Join(dir, "release"))
	return Witness{
		Dir: dir, Kernel: filepath.Join(dir, "vmlinuz"), Ramdisk: filepath.Join(dir, "initrd"),
		Release: strings.TrimSpace(string(release)),
	}, err
}

func writeWitness(ctx context.Context, dir, tree, xen, attacks string, program []byte) error {
	from, err := kernelFile(tree)
	if err != nil {
		return err
	}
	image, err := os.ReadFile(from)
	if err != nil {
		return err
	}
	release, err := kernel.Release(image)
	if err != nil {
		return fmt.Errorf("%s: %w", from, err)
	}
	l := newLayer()
	defer l.close()
	for _, d := range []string{"proc", "sys", "dev", "run", "etc", "mnt"} {
		l.dir(d, 0o755)
	}
	if err := busybox(ctx, l, filepath.Join(xen, "bin/busybox"), "bin"); err != nil {
		return err
	}
	l.text("init", string(program), 0o755)
	if err := addModules(l, tree); err != nil {
		return err
	}
	if err := l.copyTree(witness.ModuleDir[1:], attacks); err != nil {
		return err
	}
	return errors.Join(
		l.writeFile(filepath.Join(dir, "initrd")),
		os.WriteFile(filepath.Join(dir, "vmlinuz"), image, 0o644),
		os.WriteFile(filepath.Join(dir, "release"), []byte(release+"\n"), 0o644))
}

// witnessProgram compiles the witness.
func (b *Builder) witnessProgram(ctx context.Context) ([]byte, error) {
	dir, err := os.MkdirTemp("", "hvi-lab-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	if err := b.Compile(ctx, dir, "lab/cmd/witness"); err != nil {
		return nil, err
	}
	return os.ReadFile(filepath.Join(dir, "witness"))
}

// addModules adds what the witness loads, and in which order. What a flavour
// doesn't have, or has built in, is left out.
func addModules(l *layer, tree string) error {
	dir, err := only(tree, "usr/lib/modules/*")
	if err != nil {
		return err
	}
	var order []string
	for _, want := range witnessModules {
		files, err := withDependencies(dir, []string{want})
		if errors.Is(err, fs.ErrNotExist) {
			continue // without its disks, the witness says so itself
		}
		if err != nil {
			return err
		}
		for _, file := range files {
			name, _, _ := strings.Cut(filepath.Base(file), ".ko")
			if slices.Contains(order, name) {
				continue
			}
			data, err := readModule(file)
			if err != nil {
				return err
			}
			l.text(filepath.Join(witness.ModuleDir, name+".ko")[1:], string(data), 0o644)
			order = append(order, name)
		}
	}
	l.text(witness.OrderFile[1:], strings.Join(order, "\n")+"\n", 0o644)
	return nil
}
