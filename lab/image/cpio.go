package image

import (
	"bufio"
	"bytes"
	"debug/elf"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"github.com/u-root/u-root/pkg/cpio"
)

// layer is one cpio archive in the making: a part of an initial file system.
// Archives that follow one another make one file system, so a layer holds no
// more than it adds. Names are relative to the root.
type layer struct {
	records map[string]cpio.Record
	open    []*os.File
	libs    []string // folders of shared libraries, the first that has one wins
}

func newLayer() *layer { return &layer{records: map[string]cpio.Record{}} }

// close closes the files that the layer's contents come from.
func (l *layer) close() {
	for _, f := range l.open {
		_ = f.Close() // only read
	}
}

func (l *layer) put(r cpio.Record) {
	for dir := path.Dir(r.Name); dir != "."; dir = path.Dir(dir) {
		if _, ok := l.records[dir]; !ok {
			l.records[dir] = cpio.Directory(dir, 0o755)
		}
	}
	l.records[r.Name] = r
}

func (l *layer) dir(name string, perm uint64)        { l.put(cpio.Directory(name, perm)) }
func (l *layer) link(name, target string)            { l.put(cpio.Symlink(name, target)) }
func (l *layer) text(name, text string, perm uint64) { l.put(cpio.StaticFile(name, text, perm)) }

// file adds a file of the host, following links.
func (l *layer) file(name, from string, perm uint64) error {
	f, err := os.Open(from)
	if err != nil {
		return err
	}
	l.open = append(l.open, f)
	st, err := f.Stat()
	if err != nil {
		return err
	}
	if !st.Mode().IsRegular() {
		return fmt.Errorf("%s is no file", from)
	}
	// A section reader, because the writer closes what it can.
	l.put(cpio.Record{ReaderAt: io.NewSectionReader(f, 0, st.Size()), Info: cpio.Info{Name: name, Mode: cpio.S_IFREG | perm, FileSize: uint64(st.Size())}})
	return nil
}

// program adds a program and the shared libraries it needs.
func (l *layer) program(name, from string) error {
	if err := l.file(name, from, 0o755); err != nil {
		return err
	}
	return l.needs(from)
}

// needs adds the shared libraries that an ELF file needs, and those they need.
func (l *layer) needs(from string) error {
	f, err := elf.Open(from)
	var format *elf.FormatError
	if errors.As(err, &format) || errors.Is(err, io.EOF) {
		return nil // a script, perhaps shorter than an ELF's first field
	}
	if err != nil {
		return err
	}
	libs, err := f.ImportedLibraries()
	if err = errors.Join(err, f.Close()); err != nil {
		return fmt.Errorf("%s: %w", from, err)
	}
	for _, lib := range libs {
		if err := l.library(lib); err != nil {
			return fmt.Errorf("%s: %w", from, err)
		}
	}
	return nil
}

// library adds a shared library, if it is not there yet, and those it needs.
func (l *layer) library(lib string) error {
	name := "usr/lib/x86_64-linux-gnu/" + lib
	if _, ok := l.records[name]; ok {
		return nil
	}
	host, err := l.findLib(lib)
	if err != nil {
		return err
	}
	if err := l.file(name, host, 0o755); err != nil {
		return err
	}
	return l.needs(host)
}

func (l *layer) findLib(lib string) (string, error) {
	for _, dir := range l.libs {
		p := filepath.Join(dir, lib)
		if _, err := os.Stat(p); err == nil {
			return p, nil
		}
	}
	return "", fmt.Errorf("library %s: %w in %s", lib, fs.ErrNotExist, strings.Join(l.libs, ", "))
}

// copyTree adds what is below a folder of the host, links as links.
func (l *layer) copyTree(name, from string) error {
	return filepath.WalkDir(from, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(from, p)
		if err != nil {
			return err
		}
		at := path.Join(name, filepath.ToSlash(rel))
		switch {
		case d.IsDir():
			l.dir(at, 0o755)
		case d.Type() == fs.ModeSymlink:
			target, err := os.Readlink(p)
			if err != nil {
				return err
			}
			l.link(at, target)
		case d.Type().IsRegular():
			info, err := d.Info()
			if err != nil {
				return err
			}
			return l.file(at, p, uint64(info.Mode().Perm()))
		}
		return nil
	})
}

// system adds all that is below a folder of the host as it is, with owners, modes
// and times. What has several names is added for each.
func (l *layer) system(from string) error {
	return filepath.WalkDir(from, func(p string, _ fs.DirEntry, err error) error {
		if err != nil || p == from {
			return err
		}
		rel, err := filepath.Rel(from, p)
		if err != nil {
			return err
		}
		r, err := cpio.NewRecorder().GetRecord(p) // a new one, which knows of no other name
		if err != nil {
			return err
		}
		r.Name = filepath.ToSlash(rel)
		l.records[r.Name] = r // its folder is there already
		return nil
	})
}

// write writes the archive, in an order and with times that depend on nothing
// but its contents.
func (l *layer) write(w io.Writer) error {
	names := make([]string, 0, len(l.records))
	for n := range l.records {
		names = append(names, n)
	}
	slices.Sort(names) // a folder comes before what is in it
	rw := cpio.Newc.Writer(w)
	for i, n := range names {
		r := l.records[n]
		r.Ino = uint64(i + 1)
		r.NLink = 1
		if err := rw.WriteRecord(r); err != nil {
			return fmt.Errorf("cpio: %s: %w", n, err)
		}
	}
	return cpio.WriteTrailer(rw)
}

// writeFile writes the archive to a file of the host.
func (l *layer) writeFile(name string) (err error) {
	f, err := os.Create(name)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	w := bufio.NewWriterSize(f, 1<<20)
	if err := l.write(w); err != nil {
		return err
	}
	return w.Flush()
}

// bytes returns the archive.
func (l *layer) bytes() ([]byte, error) {
	var b bytes.Buffer
	err := l.write(&b)
	return b.Bytes(), err
}
