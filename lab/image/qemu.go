package image

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
)

// QEMU is an emulator of AMD processors.
type QEMU struct {
	Tree    string // the folder of its packages
	Program string // the program to run
	// SeesINT3 tells that Program delivers a guest's breakpoints to the
	// hypervisor. Debian 12's does not unless it is changed.
	SeesINT3 bool
}

// int3Check is where QEMU 7.2 asks whether the hypervisor wants to see an INT3
// (helper_svm_check_intercept_param for SVM_EXIT_SWINT, target/i386): it asks
// for the intercept of INTn, 0x75, in place of exception 3's, 0x43.
var int3Check = []byte{0x31, 0xd2, 0xbe, 0x75, 0x00, 0x00, 0x00, 0xe8}

// fixINT3 corrects that in a program, in place, and tells whether it found the
// one place.
func fixINT3(program []byte) bool {
	if bytes.Count(program, int3Check) != 1 {
		return false
	}
	program[bytes.Index(program, int3Check)+3] = 0x43
	return true
}

// QEMU builds the AMD machine's emulator.
func (b *Builder) QEMU(ctx context.Context) (QEMU, error) {
	const name, fixed = "qemu-system-x86_64", "sees-int3"
	tree, err := b.tree(ctx, treeQEMU)
	if err != nil {
		return QEMU{}, err
	}
	dir, err := b.Artifact(ctx, "qemu", []string{filepath.Base(tree)}, func(dir string) error {
		program, err := os.ReadFile(filepath.Join(tree, "usr/bin", name))
		if err != nil {
			return err
		}
		if fixINT3(program) {
			if err := os.WriteFile(filepath.Join(dir, fixed), nil, 0o644); err != nil {
				return err
			}
		}
		return os.WriteFile(filepath.Join(dir, name), program, 0o755)
	})
	if err != nil {
		return QEMU{}, err
	}
	_, err = os.Stat(filepath.Join(dir, fixed))
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return QEMU{}, err
	}
	return QEMU{Tree: tree, Program: filepath.Join(dir, name), SeesINT3: err == nil}, nil
}
