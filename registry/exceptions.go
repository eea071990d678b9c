package registry

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"syscall"

	"github.com/xen-hvi/hvi/config"
	"github.com/xen-hvi/hvi/engine/policy"
	"github.com/xen-hvi/hvi/engine/xen"
)

// Exceptions are those of the host: the admin's file in /etc/hvi, and those that
// were made from alerts, which are kept in a file of the same format. It is safe
// for concurrent use and needs no closing.
type Exceptions struct {
	files *config.Files
	path  string
	log   *slog.Logger

	mu sync.Mutex
	// kept are in the file at path, written are in the admin's.
	kept, written []policy.Exception
	// broken is what is wrong with the admin's file, whose exceptions are then
	// those of before.
	broken error
}

// keptHead stands at the beginning of the file of those that are kept.
const keptHead = "Exceptions made with hvictl allow. hvid rewrites this file; see hvictl exceptions. What is to stay for good belongs into " +
	config.DefaultDir + "/" + config.ExceptionsFile + ", which has the same format."

// maxExceptionsFile bounds the file that is kept, in bytes.
const maxExceptionsFile = config.MaxFileSize

// ErrNoException says that no exception that is kept has that ID.
var ErrNoException = errors.New("no such exception is kept")

// OpenExceptions reads the exceptions kept at path, which need not be there, and
// the admin's. One of the two that can't be read permits nothing and is logged:
// without its exceptions a guest is protected more, not less.
func OpenExceptions(path string, files *config.Files, log *slog.Logger) *Exceptions {
	x := &Exceptions{files: files, path: path, log: log}
	if err := x.read(); err != nil {
		aside := path + ".corrupt"
		log.Error("the kept exceptions cannot be read; they permit nothing", "err", err, "aside", aside)
		if err := os.Rename(path, aside); err != nil {
			log.Error("set them aside", "err", err)
		}
	}
	if err := x.Reload(); err != nil {
		log.Error("the host's exceptions cannot be read; they permit nothing", "err", err)
	}
	return x
}

func (x *Exceptions) read() error {
	f, err := os.OpenFile(x.path, os.O_RDONLY|syscall.O_NOFOLLOW, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxExceptionsFile+1))
	if err != nil {
		return err
	}
	list, err := config.ParseExceptions(x.path, data)
	if err != nil {
		return err
	}
	x.kept = list
	return nil
}

// Reload reads the admin's file anew. One that is broken changes nothing.
func (x *Exceptions) Reload() error {
	list, err := x.files.Exceptions()
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.broken = err; err != nil {
		return err
	}
	x.written = list
	return nil
}

// Broken is what is wrong with the admin's file, nil if nothing is.
func (x *Exceptions) Broken() error {
	x.mu.Lock()
	defer x.mu.Unlock()
	return x.broken
}

// All returns the admin's exceptions and those that are kept.
func (x *Exceptions) All() (written, kept []policy.Exception) {
	x.mu.Lock()
	defer x.mu.Unlock()
	return slices.Clone(x.written), slices.Clone(x.kept)
}

// For returns those that hold for a domain. One of a temporary UUID has none but
// those that hold for all.
func (x *Exceptions) For(uuid xen.UUID) []policy.Exception {
	x.mu.Lock()
	defer x.mu.Unlock()
	var out []policy.Exception
	for _, list := range [][]policy.Exception{x.written, x.kept} {
		for _, e := range list {
			if e.Domain == "" || e.Domain == uuid.String() {
				out = append(out, e)
			}
		}
	}
	return out
}

// Add keeps an exception, in the place of one that permits the same. When it
// returns without an error the exception survives a crash of the host.
func (x *Exceptions) Add(e policy.Exception) error {
	e.Origin = policy.Origin{Source: x.path}
	if err := e.Validate(); err != nil {
		return err
	}
	x.mu.Lock()
	defer x.mu.Unlock()
	list := slices.DeleteFunc(slices.Clone(x.kept), func(k policy.Exception) bool { return k.ID() == e.ID() })
	if len(list) >= policy.MaxExceptions {
		return fmt.Errorf("%d exceptions are kept, and there cannot be more; remove some, or write them to %s/%s", len(list), config.DefaultDir, config.ExceptionsFile)
	}
	return x.keep(append(list, e))
}

// Remove forgets the exceptions of these IDs. If one of them is not kept nothing
// is removed, and the error is ErrNoException, or says that it is the admin's.
func (x *Exceptions) Remove(ids ...string) error {
	x.mu.Lock()
	defer x.mu.Unlock()
	list := x.kept
	for _, id := range ids {
		with := func(e policy.Exception) bool { return e.ID() == id }
		if !slices.ContainsFunc(list, with) {
			if i := slices.IndexFunc(x.written, with); i >= 0 {
				return fmt.Errorf("%w: %s stands at %s, where an administrator can remove it", ErrNoException, id, x.written[i].Origin)
			}
			return fmt.Errorf("%w: %s", ErrNoException, policy.Quote(id))
		}
		list = slices.DeleteFunc(slices.Clone(list), with)
	}
	return x.keep(list)
}

// keep writes the file, and only then makes its exceptions count. The caller holds
// the lock.
func (x *Exceptions) keep(list []policy.Exception) error {
	if err := x.write(config.FormatExceptions(keptHead, list)); err != nil {
		return fmt.Errorf("keep the exceptions: %w", err)
	}
	x.kept = list
	return nil
}

// write replaces the file by one that is whole on disk.
func (x *Exceptions) write(data []byte) error {
	if len(data) > maxExceptionsFile {
		return fmt.Errorf("they are more than %d bytes", maxExceptionsFile)
	}
	temp := x.path + ".new"
	f, err := os.OpenFile(temp, os.O_WRONLY|os.O_CREATE|os.O_TRUNC|syscall.O_NOFOLLOW, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return errors.Join(err, os.Remove(temp))
	}
	if err := os.Rename(temp, x.path); err != nil {
		return err
	}
	dir, err := os.Open(filepath.Dir(x.path))
	if err != nil {
		return err
	}
	return errors.Join(dir.Sync(), dir.Close())
}
