package registry

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/xen-hvi/hvi/engine/xen"
)

// How long an entry is kept and how many of them there are.
const (
	// RestartGrace is how long an entry waits for its domain's next life after
	// the guest asked for a reboot or crashed.
	RestartGrace = 10 * time.Minute
	// PowerOffGrace is the same after the guest powered off: a toolstack can be
	// told to start it anew then, too.
	PowerOffGrace = time.Minute
	// MaxSaved is how many entries of domains that are not there are kept. The
	// ones that went first give way.
	MaxSaved = 4096
	// maxCorrupt is how many damaged files are kept for somebody to look at.
	maxCorrupt = 64
)

const (
	suffix        = ".json"
	corruptSuffix = ".json.corrupt"
	tempSuffix    = ".json.new"
)

// Store keeps entries on disk, one file for each UUID.
type Store struct {
	dir string
	// sync makes a file or directory durable; tests count without it.
	sync func(*os.File) error

	mu sync.Mutex
}

// CorruptError is an entry that could not be read. Its file was set aside.
type CorruptError struct {
	// Path is the damaged file as it was, Aside where it is now, or empty if
	// it could not be moved.
	Path, Aside string
	Err         error
}

// Error says what is damaged, how, and where it is kept.
func (e *CorruptError) Error() string {
	s := fmt.Sprintf("the kept declaration %s is damaged: %v", e.Path, e.Err)
	if e.Aside != "" {
		s += "; it is set aside as " + e.Aside
	}
	return s
}

// Unwrap is what is wrong with the file.
func (e *CorruptError) Unwrap() error { return e.Err }

// Open prepares the directory of a store, which it makes with mode 0700 if it is
// missing, and removes what a writer that died left half done. There must be
// one store for a directory at a time; hvid's socket sees to that.
func Open(dir string) (*Store, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("keep declarations: %w", err)
	}
	s := &Store{dir: dir, sync: (*os.File).Sync}
	left, err := s.names(tempSuffix)
	if err != nil {
		return nil, fmt.Errorf("keep declarations: %w", err)
	}
	for _, name := range left {
		if err := os.Remove(filepath.Join(dir, name)); err != nil {
			return nil, fmt.Errorf("keep declarations: %w", err)
		}
	}
	return s, nil
}

// Dir is the store's directory.
func (s *Store) Dir() string { return s.dir }

func (s *Store) path(uuid xen.UUID) string { return filepath.Join(s.dir, uuid.String()+suffix) }

// Put writes an entry in the place of the one of its UUID. When it returns
// without an error the entry survives a crash of the host; with one, the older
// entry is still there.
func (s *Store) Put(e Entry) error {
	data, err := EncodeEntry(e)
	if err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.write(e.UUID, data); err != nil {
		return fmt.Errorf("keep what is declared for %v: %w", e.UUID, err)
	}
	return nil
}

func (s *Store) write(uuid xen.UUID, data []byte) error {
	temp := filepath.Join(s.dir, uuid.String()+tempSuffix)
	f, err := os.OpenFile(temp, os.O_WRONLY|os.O_CREATE|os.O_TRUNC|syscall.O_NOFOLLOW, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	if err == nil {
		err = s.sync(f)
	}
	err = errors.Join(err, f.Close())
	if err == nil {
		err = os.Rename(temp, s.path(uuid))
	}
	if err != nil {
		return errors.Join(err, ignoreMissing(os.Remove(temp)))
	}
	return s.syncDir()
}

func (s *Store) syncDir() error {
	d, err := os.Open(s.dir)
	if err != nil {
		return err
	}
	return errors.Join(s.sync(d), d.Close())
}

func ignoreMissing(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// Get returns the entry of a UUID, and whether there is one. A damaged one is
// set aside and reported as a [*CorruptError]; the next call finds none.
func (s *Store) Get(uuid xen.UUID) (Entry, bool, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.get(uuid)
}

func (s *Store) get(uuid xen.UUID) (Entry, bool, error) {
	data, err := read(s.path(uuid))
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return Entry{}, false, nil
	case errors.Is(err, errNotKept):
		return Entry{}, false, s.setAside(uuid, err)
	case err != nil:
		return Entry{}, false, fmt.Errorf("read what was declared for %v: %w", uuid, err)
	}
	e, err := DecodeEntry(data)
	if err == nil && e.UUID != uuid {
		err = fmt.Errorf("it is that of %v", e.UUID)
	}
	if err != nil {
		return Entry{}, false, s.setAside(uuid, err)
	}
	return e, true, nil
}

// errNotKept is a file that no store wrote.
var errNotKept = errors.New("it is not a file that was kept here")

func read(path string) ([]byte, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NOFOLLOW|syscall.O_NONBLOCK, 0)
	if errors.Is(err, syscall.ELOOP) || errors.Is(err, syscall.ENXIO) {
		return nil, errors.Join(errNotKept, err)
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if info, err := f.Stat(); err != nil || !info.Mode().IsRegular() {
		return nil, errors.Join(errNotKept, err)
	}
	return io.ReadAll(io.LimitReader(f, MaxEntrySize+1))
}

// setAside renames a damaged file, so that it is reported once and can be looked
// at.
func (s *Store) setAside(uuid xen.UUID, why error) error {
	e := &CorruptError{Path: s.path(uuid), Err: why}
	aside := filepath.Join(s.dir, uuid.String()+corruptSuffix)
	if err := os.Rename(e.Path, aside); err != nil {
		return errors.Join(e, err)
	}
	e.Aside = aside
	return e
}

// Delete removes the entry of a UUID, if there is one.
func (s *Store) Delete(uuid xen.UUID) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.delete(uuid)
}

func (s *Store) delete(uuid xen.UUID) error {
	switch err := os.Remove(s.path(uuid)); {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return fmt.Errorf("forget what was declared for %v: %w", uuid, err)
	}
	return s.syncDir()
}

// All returns every entry, by UUID. Damaged ones are set aside and joined into
// the error, as [*CorruptError]; the others are returned all the same.
func (s *Store) All() ([]Entry, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.all()
}

func (s *Store) all() ([]Entry, error) {
	names, err := s.names(suffix)
	if err != nil {
		return nil, fmt.Errorf("read what was declared: %w", err)
	}
	var out []Entry
	var errs []error
	for _, name := range names {
		uuid, err := xen.ParseUUID(strings.TrimSuffix(name, suffix))
		if err != nil || uuid.String()+suffix != name {
			continue // not ours
		}
		e, ok, err := s.get(uuid)
		if err != nil {
			errs = append(errs, err)
		}
		if ok {
			out = append(out, e)
		}
	}
	return out, errors.Join(errs...)
}

// names lists the files with an ending, by name.
func (s *Store) names(ending string) ([]string, error) {
	entries, err := os.ReadDir(s.dir)
	if err != nil {
		return nil, err
	}
	var names []string
	for _, e := range entries {
		if strings.HasSuffix(e.Name(), ending) {
			names = append(names, e.Name())
		}
	}
	return names, nil
}

// Ended notes that the domain of a UUID ended, and removes its entry if nothing
// of it can come back.
func (s *Store) Ended(uuid xen.UUID, how End, now time.Time) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	e, ok, err := s.get(uuid)
	if err != nil || !ok {
		return err
	}
	e.Suspended = e.Suspended || how == Saved
	if how == Destroyed && !e.Suspended {
		return s.delete(uuid)
	}
	e.Gone, e.End = now.Round(0), how
	data, err := EncodeEntry(e)
	if err != nil {
		return err
	}
	return s.write(uuid, data)
}

// over reports whether an entry is of no more use.
func (e Entry) over(now time.Time) bool {
	if e.Gone.IsZero() || e.Suspended {
		return false
	}
	grace := RestartGrace
	if e.End == PoweredOff {
		grace = PowerOffGrace
	}
	return now.Sub(e.Gone) >= grace
}

// Prune removes the entries whose time is up and those above [MaxSaved], and
// says how many. alive tells the domains that are there. An entry of a domain
// that is not there, and of whose end nobody knows (hvid was not running, or
// the start it was handed over for failed), begins to count its time now.
func (s *Store) Prune(now time.Time, alive func(xen.UUID) bool) (removed int, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	entries, err := s.all()
	errs := []error{err, s.pruneCorrupt()}
	var absent []Entry
	for _, e := range entries {
		if alive(e.UUID) {
			continue
		}
		switch {
		case e.over(now):
			errs = append(errs, s.delete(e.UUID))
			removed++
			continue
		case e.Gone.IsZero():
			e.Gone, e.End = now.Round(0), Unseen
			if data, err := EncodeEntry(e); err != nil {
				errs = append(errs, err)
			} else {
				errs = append(errs, s.write(e.UUID, data))
			}
		}
		absent = append(absent, e)
	}
	if len(absent) > MaxSaved {
		slices.SortFunc(absent, func(a, b Entry) int { return a.Gone.Compare(b.Gone) })
		for _, e := range absent[:len(absent)-MaxSaved] {
			errs = append(errs, s.delete(e.UUID))
			removed++
		}
	}
	return removed, errors.Join(errs...)
}

// pruneCorrupt bounds the number of damaged files that are kept.
func (s *Store) pruneCorrupt() error {
	names, err := s.names(corruptSuffix)
	if err != nil {
		return err
	}
	var errs []error
	for len(names) > maxCorrupt {
		errs = append(errs, os.Remove(filepath.Join(s.dir, names[0])))
		names = names[1:]
	}
	return errors.Join(errs...)
}
