package config

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/xen-hvi/hvi/engine/policy"
	"github.com/xen-hvi/hvi/engine/xen"
)

// DefaultDir is where the files are.
const DefaultDir = "/etc/hvi"

// Names below the directory.
const (
	DaemonFile  = "hvid.toml"
	PoliciesDir = "policies"
	DomainsDir  = "domains"

	suffix = ".toml"
)

// MaxDomainName is the longest name of a domain that a file can be named after,
// in bytes.
const MaxDomainName = 128

// maxListed bounds how many policies [Files.Names] lists.
const maxListed = 64

// Files are the files in an admin's directory. They are read anew each time, so
// that a change counts from the next question on.
type Files struct {
	// Dir is the directory; empty is [DefaultDir].
	Dir string
	// Owner is whose files are believed beside root's. It is 0, root, but in
	// tests.
	Owner uint32
}

func (f *Files) path(parts ...string) string {
	dir := f.Dir
	if dir == "" {
		dir = DefaultDir
	}
	return filepath.Join(append([]string{dir}, parts...)...)
}

// Domain is the file of a domain.
type Domain struct {
	Spec policy.Spec
	// Required says, where the file is broken, that as far as it can be
	// understood the domain may run only while it is attached to.
	Required bool
	// Path is the file, and Modified when it was changed last.
	Path     string
	Modified time.Time
}

// Domain reads the file of a domain: that of its UUID or, if there is none,
// that of its name, provided the name can be a file's ([FileName]). It reports
// whether there is one. The error says what is wrong with it; Path and Required
// are set then, too.
func (f *Files) Domain(uuid xen.UUID, name string) (Domain, bool, error) {
	names := []string{uuid.String()}
	if FileName(name) {
		names = append(names, name)
	}
	for _, n := range names {
		d := Domain{Path: f.path(DomainsDir, n+suffix)}
		data, info, err := f.read(d.Path)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return d, true, err
		}
		d.Modified = info.ModTime()
		d.Spec, d.Required, err = parseDomain(d.Path, data, f)
		return d, true, err
	}
	return Domain{}, false, nil
}

// FileName reports whether a domain's file can be found by its name: a letter or
// digit, followed by letters, digits, dots, underscores and dashes, and no UUID.
func FileName(name string) bool {
	const alnum = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"
	if name == "" || len(name) > MaxDomainName || !strings.Contains(alnum, name[:1]) || strings.Trim(name, alnum+"._-") != "" {
		return false
	}
	_, err := xen.ParseUUID(name)
	return err != nil
}

// Policy implements [policy.Policies].
func (f *Files) Policy(name string) (*policy.Named, error) {
	if err := policy.CheckName(name); err != nil {
		return nil, err
	}
	path := f.path(PoliciesDir, name+suffix)
	data, _, err := f.read(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	named, err := ParsePolicy(name, path, data)
	if err != nil {
		return nil, err
	}
	return &named, nil
}

// Names implements [policy.Policies].
func (f *Files) Names() []string {
	entries, err := os.ReadDir(f.path(PoliciesDir))
	if err != nil {
		return nil
	}
	var names []string
	for _, e := range entries {
		name, ok := strings.CutSuffix(e.Name(), suffix)
		if ok && policy.CheckName(name) == nil && len(names) < maxListed {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names
}

// read reads a file that is believed.
func (f *Files) read(path string) ([]byte, fs.FileInfo, error) {
	bad := func(reason string) error {
		return &policy.Error{Origin: policy.Origin{Source: path}, What: "file", Reason: reason}
	}
	real, err := filepath.EvalSymlinks(path)
	if err != nil {
		if errors.Is(err, fs.ErrNotExist) && !dangling(path) {
			return nil, nil, err
		}
		return nil, nil, bad("cannot be read: " + bare(err))
	}
	file, err := os.OpenFile(real, os.O_RDONLY|syscall.O_NONBLOCK|syscall.O_NOFOLLOW, 0)
	if err != nil {
		return nil, nil, bad("cannot be read: " + bare(err))
	}
	defer file.Close()
	info, err := file.Stat()
	if err != nil {
		return nil, nil, bad("cannot be read: " + bare(err))
	}
	if !info.Mode().IsRegular() {
		return nil, nil, bad("is not a regular file")
	}
	if why := f.disbelieve(real, info); why != "" {
		e := &policy.Error{
			Origin: policy.Origin{Source: path}, What: "file", Reason: "is not believed: " + why,
			Hint: "make it root's alone: chown root:root and chmod go-w",
		}
		return nil, nil, e
	}
	data, err := io.ReadAll(io.LimitReader(file, MaxFileSize+1))
	if err != nil {
		return nil, nil, bad("cannot be read: " + bare(err))
	}
	return data, info, nil
}

// dangling reports whether a path is a symbolic link to nothing: somebody meant
// a file to be there.
func dangling(path string) bool {
	info, err := os.Lstat(path)
	return err == nil && info.Mode()&fs.ModeSymlink != 0
}

// disbelieve says who else could change or replace a file, or "". In a
// directory such as /tmp only its owner can replace a file.
func (f *Files) disbelieve(real string, info fs.FileInfo) string {
	if why := f.writers(info, false); why != "" {
		return "it " + why
	}
	for dir := filepath.Dir(real); ; dir = filepath.Dir(dir) {
		info, err := os.Lstat(dir)
		if err != nil {
			return "who can change " + dir + " is unknown: " + bare(err)
		}
		if why := f.writers(info, info.Mode()&fs.ModeSticky != 0); why != "" {
			return "the directory " + dir + " " + why
		}
		if dir == filepath.Dir(dir) {
			return ""
		}
	}
}

func (f *Files) writers(info fs.FileInfo, sticky bool) string {
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return "has no owner"
	}
	switch perm := info.Mode().Perm(); {
	case st.Uid != 0 && st.Uid != f.Owner:
		return fmt.Sprintf("belongs to user %d", st.Uid)
	case perm&0o002 != 0 && !sticky:
		return fmt.Sprintf("can be written by everybody (mode %04o)", perm)
	case perm&0o020 != 0 && st.Gid != 0 && !sticky:
		return fmt.Sprintf("can be written by group %d (mode %04o)", st.Gid, perm)
	default:
		return ""
	}
}

// bare is an error without its path, which stands before it already.
func bare(err error) string {
	var pe *fs.PathError
	if errors.As(err, &pe) {
		return pe.Err.Error()
	}
	return err.Error()
}
