package xlplugin

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/xen-hvi/hvi/engine/xen"
)

// LibDir is where libxl keeps what belongs to a domain.
const LibDir = "/var/lib/xen"

// Names of the files that `xl config-update` leaves: userdata-d.DOMID.UUID.xl.
const (
	userdataPrefix = "userdata-d."
	userdataSuffix = ".xl"
)

// Update is a config that `xl config-update` put in the place of the one a
// domain was created from. xl uses it at the domain's next restart, and removes
// it then.
type Update struct {
	// Declared is what is in it, as of [FromConfig]; Err is what is wrong with
	// it.
	Declared Declared
	Err      error
	// Path is the file, and Stored when it was put there.
	Path   string
	Stored time.Time
	// Warnings are for the admin.
	Warnings []string
}

// Updated reads the config that is to be used at the next restart of a domain,
// and reports whether there is one. The error is that it cannot be read.
func (r *Resolver) Updated(id xen.DomID, uuid xen.UUID) (Update, bool, error) {
	dir := r.Lib
	if dir == "" {
		dir = LibDir
	}
	name := userdataPrefix + strconv.Itoa(int(id)) + "." + uuid.String() + userdataSuffix
	u := Update{Path: filepath.Join(dir, name)}
	f, err := openRegular(u.Path)
	if errors.Is(err, fs.ErrNotExist) {
		return Update{}, false, nil
	}
	if err != nil {
		return Update{}, false, fmt.Errorf("read the config of xl config-update, %s: %w", u.Path, err)
	}
	defer f.Close()
	info, err := f.Stat()
	var data []byte
	if err == nil {
		data, err = readAll(f, MaxConfigSize)
	}
	if err != nil {
		return Update{}, false, fmt.Errorf("read the config of xl config-update: %w", err)
	}
	u.Stored = info.ModTime()
	if len(data) == 0 {
		return Update{}, false, nil // xl takes an empty one for none
	}
	if why := writers(info, r.uid, false); why != "" {
		return Update{}, false, fmt.Errorf("the config of xl config-update, %s, is not believed: it %s", u.Path, why)
	}
	cfg, err := Parse(u.Path, data)
	if err != nil {
		u.Err = err
		return u, true, nil
	}
	u.Declared, u.Err = FromConfig(cfg, r.Policies)
	for _, w := range append(cfg.Warnings, u.Declared.Warnings...) {
		u.Warnings = append(u.Warnings, w.String())
	}
	return u, true, nil
}

// parseUpdateName understands the name of a file that `xl config-update` left.
func parseUpdateName(name string) (id xen.DomID, uuid xen.UUID, ok bool) {
	rest, ok := strings.CutPrefix(name, userdataPrefix)
	if !ok {
		return 0, xen.UUID{}, false
	}
	if rest, ok = strings.CutSuffix(rest, userdataSuffix); !ok {
		return 0, xen.UUID{}, false
	}
	number, text, ok := strings.Cut(rest, ".")
	n, err := strconv.ParseUint(number, 10, 16)
	if !ok || err != nil || strconv.FormatUint(n, 10) != number {
		return 0, xen.UUID{}, false
	}
	if uuid, err = xen.ParseUUID(text); err != nil || uuid.String() != text {
		return 0, xen.UUID{}, false
	}
	return xen.DomID(n), uuid, true
}

// WatchUpdates calls f for each domain whose config `xl config-update` has
// replaced or replaces, until ctx ends, which is no error. xl reads the config
// and removes it in the moment the guest stops, so whoever wants to know what is
// in it asks [Resolver.Updated] at once.
func (r *Resolver) WatchUpdates(ctx context.Context, f func(xen.DomID, xen.UUID)) error {
	dir := r.Lib
	if dir == "" {
		dir = LibDir
	}
	fd, err := syscall.InotifyInit1(syscall.IN_CLOEXEC | syscall.IN_NONBLOCK)
	if err != nil {
		return fmt.Errorf("watch %s: %w", dir, err)
	}
	// Non-blocking, so that closing it ends a read.
	notices := os.NewFile(uintptr(fd), "inotify")
	defer notices.Close()
	const interesting = syscall.IN_MOVED_TO | syscall.IN_CLOSE_WRITE | syscall.IN_ONLYDIR
	if _, err := syscall.InotifyAddWatch(fd, dir, interesting); err != nil {
		return fmt.Errorf("watch %s: %w", dir, err)
	}
	stop := context.AfterFunc(ctx, func() { notices.Close() })
	defer stop()

	// Those that are there already: after the watch was set, so that none is
	// missed in between.
	if err := updatesIn(dir, f); err != nil {
		return err
	}
	buf := make([]byte, 64<<10)
	for {
		n, err := notices.Read(buf)
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			return fmt.Errorf("watch %s: %w", dir, err)
		}
		again, err := parseNotices(buf[:n], f)
		if err != nil {
			return fmt.Errorf("watch %s: %w", dir, err)
		}
		if again {
			if err := updatesIn(dir, f); err != nil {
				return err
			}
		}
	}
}

func updatesIn(dir string, f func(xen.DomID, xen.UUID)) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return fmt.Errorf("look for updated configs: %w", err)
	}
	for _, e := range entries {
		if id, uuid, ok := parseUpdateName(e.Name()); ok {
			f(id, uuid)
		}
	}
	return nil
}

// noticeHeader is the size of an inotify event without its name: the watch, the
// mask, a cookie and the length of the name, 32 bits each.
const noticeHeader = 16

// parseNotices reads inotify events. again says that some were lost, so that
// the directory must be read anew.
func parseNotices(data []byte, f func(xen.DomID, xen.UUID)) (again bool, err error) {
	for len(data) > 0 {
		if len(data) < noticeHeader {
			return false, errors.New("a notice is cut off")
		}
		mask := binary.NativeEndian.Uint32(data[4:])
		length := binary.NativeEndian.Uint32(data[12:])
		if uint64(length) > uint64(len(data)-noticeHeader) {
			return false, errors.New("a notice is cut off")
		}
		name, _, _ := strings.Cut(string(data[noticeHeader:noticeHeader+int(length)]), "\x00")
		data = data[noticeHeader+int(length):]
		switch {
		case mask&syscall.IN_Q_OVERFLOW != 0:
			again = true
		case mask&(syscall.IN_IGNORED|syscall.IN_UNMOUNT) != 0:
			return false, errors.New("the directory was removed")
		default:
			if id, uuid, ok := parseUpdateName(name); ok {
				f(id, uuid)
			}
		}
	}
	return again, nil
}
