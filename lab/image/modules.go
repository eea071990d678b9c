package image

import (
	"bytes"
	"compress/gzip"
	"debug/elf"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/ulikunitz/xz"
)

// withDependencies returns the files of kernel modules and of those they depend
// on, below a folder, each after what it depends on.
func withDependencies(dir string, names []string) ([]string, error) {
	files := map[string]string{}
	err := filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
		if name, packed, ok := strings.Cut(filepath.Base(p), ".ko"); ok && err == nil && (packed == "" || packed[0] == '.') {
			files[moduleName(name)] = p
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	var out []string
	var add func(name string) error
	add = func(name string) error {
		file, ok := files[moduleName(name)]
		if !ok {
			return fmt.Errorf("kernel module %s: %w in %s", name, fs.ErrNotExist, dir)
		}
		if slices.Contains(out, file) {
			return nil
		}
		depends, err := moduleDependencies(file)
		if err != nil {
			return err
		}
		for _, d := range depends {
			if err := add(d); err != nil {
				return err
			}
		}
		out = append(out, file)
		return nil
	}
	for _, n := range names {
		if err := add(n); err != nil {
			return nil, err
		}
	}
	return out, nil
}

// moduleName returns the one spelling of a module's name.
func moduleName(s string) string { return strings.ReplaceAll(s, "-", "_") }

// maxModule bounds what unpacking a module may produce; Debian's largest have
// 10 MB.
const maxModule = 64 << 20

// readModule returns a module as the kernel takes it. Debian 13 and later pack
// theirs.
func readModule(file string) ([]byte, error) {
	data, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	var r io.Reader
	switch filepath.Ext(file) {
	case ".ko":
		return data, nil
	case ".xz":
		r, err = xz.NewReader(bytes.NewReader(data))
	case ".gz":
		r, err = gzip.NewReader(bytes.NewReader(data))
	default:
		err = errors.New("packed in an unknown way")
	}
	if err == nil {
		data, err = io.ReadAll(io.LimitReader(r, maxModule))
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	return data, nil
}

// moduleDependencies returns what a module's .modinfo says it depends on.
func moduleDependencies(file string) ([]string, error) {
	data, err := readModule(file)
	if err != nil {
		return nil, err
	}
	f, err := elf.NewFile(bytes.NewReader(data))
	if err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	s := f.Section(".modinfo")
	if s == nil {
		return nil, fmt.Errorf("%s is no kernel module: it has no .modinfo", file)
	}
	info, err := s.Data()
	if err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	for field := range bytes.SplitSeq(info, []byte{0}) {
		if list, ok := bytes.CutPrefix(field, []byte("depends=")); ok && len(list) > 0 {
			return strings.Split(string(list), ","), nil
		}
	}
	return nil, nil
}
