package xlplugin

import (
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"strconv"
	"strings"
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
