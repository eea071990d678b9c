package image

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// toolchain makes programs of another suite run here. They need that suite's
// libraries, and name a dynamic linker that isn't theirs; so in their place
// stand scripts that start each through its own linker. Nothing is installed,
// and no root is needed.
//
// It returns a folder for PATH, with the compiler and the binutils of a tree,
// and one that stands in for the tree's linux-kbuild package, both below dir.
func toolchain(tree, dir string) (path, kbuild string, err error) {
	path, kbuild = filepath.Join(dir, "toolchain"), filepath.Join(dir, "kbuild")
	linker, err := only(tree, "usr/lib/x86_64-linux-gnu/ld-linux-x86-64.so.2")
	if err != nil {
		return "", "", err
	}
	if err := os.Mkdir(path, 0o755); err != nil {
		return "", "", err
	}
	programs, err := filepath.Glob(filepath.Join(tree, "usr/bin/x86_64-linux-gnu-*"))
	if err != nil {
		return "", "", err
	}
	plain, err := filepath.Glob(filepath.Join(tree, "usr/bin/gcc-[0-9]*")) // as Debian 11's kernel asks for it
	if err != nil {
		return "", "", err
	}
	// What the compiler starts itself, it looks for by these names.
	inner, err := filepath.Glob(filepath.Join(tree, "usr/lib*/gcc/x86_64-linux-gnu/*/cc1"))
	if err != nil {
		return "", "", err
	}
	if len(programs) == 0 || len(inner) != 1 {
		return "", "", fmt.Errorf("no compiler in %s: %w", tree, fs.ErrNotExist)
	}
	for _, p := range append(programs, plain...) {
		name := filepath.Base(p)
		var args []string
		if strings.HasPrefix(strings.TrimPrefix(name, "x86_64-linux-gnu-"), "gcc-") {
			args = []string{"-B" + path + "/"}
		}
		err := through(linker, p, filepath.Join(path, name), args...)
		if err == nil && name == "x86_64-linux-gnu-as" {
			err = through(linker, p, filepath.Join(path, "as"))
		}
		if err != nil {
			return "", "", err
		}
	}
	if err := through(linker, inner[0], filepath.Join(path, "cc1")); err != nil {
		return "", "", err
	}
	from, err := only(tree, "usr/lib/linux-kbuild-*")
	if err != nil {
		return "", "", err
	}
	return path, kbuild, filepath.WalkDir(from, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(from, p)
		if err != nil {
			return err
		}
		to := filepath.Join(kbuild, rel)
		if d.IsDir() {
			return os.Mkdir(to, 0o755)
		}
		return through(linker, p, to)
	})
}

// through puts at to a script that starts a program through a dynamic linker,
// with the libraries beside that, and a link where it is no program.
func through(linker, program, to string, args ...string) error {
	// Some of Debian's programs only choose one of these and start it.
	for _, machine := range []string{".real-x86", ".real-lsb-64"} {
		if isFile(program + machine) {
			program += machine
		}
	}
	head := make([]byte, 4)
	f, err := os.Open(program)
	if errors.Is(err, fs.ErrNotExist) {
		return nil // a link whose package was left out
	}
	if err != nil {
		return err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return err
	}
	if _, err := f.Read(head); err != nil || !bytes.Equal(head, []byte("\x7fELF")) || st.Mode()&0o111 == 0 {
		return os.Symlink(program, to)
	}
	var line []string
	for _, word := range append([]string{linker, "--library-path", filepath.Dir(linker), program}, args...) {
		line = append(line, "'"+strings.ReplaceAll(word, "'", `'\''`)+"'")
	}
	return os.WriteFile(to, []byte("#!/bin/sh\nexec "+strings.Join(line, " ")+" \"$@\"\n"), 0o755)
}

func isFile(path string) bool {
	st, err := os.Stat(path)
	return err == nil && st.Mode().IsRegular()
}
