package xlplugin

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// Bounds for what is read of a process. Linux lets a command line and an
// environment be megabytes.
const (
	maxCmdline = 1 << 20
	maxEnviron = 1 << 20
	maxStatus  = 1 << 16
)

// userHZ is the unit of times in /proc/PID/stat, per second: the kernel's
// USER_HZ, 100 on every architecture Xen runs on.
const userHZ = 100

// procfs reads /proc, or what a test put in its place.
type procfs struct {
	dir string // "/proc"
}

// pids lists the processes, lowest first.
func (p procfs) pids() ([]int, error) {
	entries, err := os.ReadDir(p.dir)
	if err != nil {
		return nil, err
	}
	var pids []int
	for _, e := range entries {
		if n, err := strconv.Atoi(e.Name()); err == nil && n > 0 {
			pids = append(pids, n)
		}
	}
	return pids, nil
}

func (p procfs) of(pid int, name ...string) string {
	return filepath.Join(append([]string{p.dir, strconv.Itoa(pid)}, name...)...)
}

// exe returns the path of the program a process runs, as the process sees it.
// A program that was replaced on disk since keeps its path.
func (p procfs) exe(pid int) (string, error) {
	exe, err := os.Readlink(p.of(pid, "exe"))
	return strings.TrimSuffix(exe, " (deleted)"), err
}

// comm returns the name of a process, which anybody can choose for theirs.
func (p procfs) comm(pid int) string {
	data, err := readBounded(p.of(pid, "comm"), maxStatus)
	if err != nil {
		return ""
	}
	return strings.TrimSuffix(string(data), "\n")
}

// strings reads a file of NUL-terminated strings.
func (p procfs) strings(pid int, name string, limit int) ([]string, error) {
	data, err := readBounded(p.of(pid, name), limit)
	if err != nil {
		return nil, err
	}
	data = bytes.TrimSuffix(data, []byte{0})
	if len(data) == 0 {
		return nil, nil
	}
	return strings.Split(string(data), "\x00"), nil
}

// identity is who a process is, from /proc/PID/status. The owner of the
// directory /proc/PID would not do: the kernel gives it to root for any process
// that cannot be dumped.
type identity struct {
	uids   [4]uint64 // real, effective, saved, file system
	nested bool      // in a PID namespace below ours
}

func (p procfs) identity(pid int) (identity, error) {
	var id identity
	data, err := readBounded(p.of(pid, "status"), maxStatus)
	if err != nil {
		return id, err
	}
	seen := false
	for line := range strings.Lines(string(data)) {
		key, value, _ := strings.Cut(line, ":")
		fields := strings.Fields(value)
		switch key {
		case "Uid":
			if len(fields) != len(id.uids) {
				return id, fmt.Errorf("the Uid line of %s has %d fields", p.of(pid, "status"), len(fields))
			}
			for i, f := range fields {
				if id.uids[i], err = strconv.ParseUint(f, 10, 32); err != nil {
					return id, err
				}
			}
			seen = true
		case "NSpid":
			id.nested = len(fields) > 1
		}
	}
	if !seen {
		return id, fmt.Errorf("%s has no Uid line", p.of(pid, "status"))
	}
	return id, nil
}

// started returns when a process was started, to about a second.
func (p procfs) started(pid int) (time.Time, error) {
	stat, err := readBounded(p.of(pid, "stat"), maxStatus)
	if err != nil {
		return time.Time{}, err
	}
	// The name in parentheses may hold anything; what follows the last
	// parenthesis are fields 3 and up, and the time is field 22 (proc(5)).
	fields := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))
	if len(fields) < 20 {
		return time.Time{}, fmt.Errorf("%s has too few fields", p.of(pid, "stat"))
	}
	ticks, err := strconv.ParseInt(fields[19], 10, 64)
	if err != nil {
		return time.Time{}, err
	}
	system, err := readBounded(filepath.Join(p.dir, "stat"), maxCmdline)
	if err != nil {
		return time.Time{}, err
	}
	for line := range strings.Lines(string(system)) {
		if v, ok := strings.CutPrefix(line, "btime "); ok {
			boot, err := strconv.ParseInt(strings.TrimSpace(v), 10, 64)
			if err != nil {
				return time.Time{}, err
			}
			return time.Unix(boot+ticks/userHZ, ticks%userHZ*int64(time.Second/userHZ)), nil
		}
	}
	return time.Time{}, errors.New("no boot time in " + filepath.Join(p.dir, "stat"))
}

// cwd returns the working directory of a process as a path below its own root.
func (p procfs) cwd(pid int) (string, error) {
	cwd, err := os.Readlink(p.of(pid, "cwd"))
	if err != nil {
		return "", err
	}
	if root, err := os.Readlink(p.of(pid, "root")); err == nil && root != "/" {
		if below, ok := strings.CutPrefix(cwd, root); ok && (below == "" || below[0] == '/') {
			cwd = "/" + strings.TrimPrefix(below, "/")
		}
	}
	if !path.IsAbs(cwd) {
		return "", fmt.Errorf("the working directory of process %d is gone", pid)
	}
	return cwd, nil
}

// errNotRegular is why xl, too, would not read a file.
var errNotRegular = errors.New("not a regular file")

// errStdin is why a config cannot be read again.
var errStdin = errors.New("the config came from standard input or an inherited file and cannot be read again; give the policy with: hvictl attach")

// open opens a regular file as a process would: below its root, with its
// symbolic links followed there, and /dev/stdin meaning its own. It returns the
// path with links resolved. It never blocks on a FIFO or a device and never
// opens one.
func (p procfs) open(pid int, name string) (*os.File, string, error) {
	real, fd, err := p.resolve(pid, name)
	if err != nil {
		return nil, "", err
	}
	host := p.of(pid, "root") + real
	if fd {
		host = p.of(pid, "fd", path.Base(real))
	}
	f, err := openRegular(host)
	if fd && errors.Is(err, errNotRegular) {
		err = errStdin
	}
	return f, real, err
}

func openRegular(host string) (*os.File, error) {
	if info, err := os.Stat(host); err != nil {
		return nil, err
	} else if !info.Mode().IsRegular() {
		return nil, fmt.Errorf("%w (%s)", errNotRegular, kindOf(info.Mode()))
	}
	f, err := os.OpenFile(host, os.O_RDONLY|syscall.O_NONBLOCK|syscall.O_NOCTTY, 0)
	if err != nil {
		return nil, err
	}
	// It may have been replaced between the two calls.
	if info, err := f.Stat(); err != nil || !info.Mode().IsRegular() {
		f.Close()
		return nil, errors.Join(errNotRegular, err)
	}
	return f, nil
}

func kindOf(m fs.FileMode) string {
	switch {
	case m.IsDir():
		return "a directory"
	case m&fs.ModeNamedPipe != 0:
		return "a pipe"
	case m&fs.ModeSocket != 0:
		return "a socket"
	case m&fs.ModeDevice != 0:
		return "a device"
	default:
		return m.Type().String()
	}
}

// maxLinks is how many symbolic links Linux follows in one path.
const maxLinks = 40

// resolve follows the symbolic links of a path below the root of a process. It
// reports true when the path ends at one of the process's open files
// (/proc/self/fd/N), whose link must not be followed by name.
func (p procfs) resolve(pid int, name string) (real string, fd bool, err error) {
	self := "/proc/" + strconv.Itoa(pid)
	todo := strings.Split(name, "/")
	at := "/"
	for links := 0; len(todo) > 0; {
		c := todo[0]
		todo = todo[1:]
		switch c {
		case "", ".":
			continue
		case "..":
			at = path.Dir(at)
			continue
		}
		next := path.Join(at, c)
		if next == "/proc/self" || next == "/proc/thread-self" {
			next = self
		}
		if path.Dir(next) == self+"/fd" && len(todo) == 0 {
			return next, true, nil
		}
		if next == self || strings.HasPrefix(next, self+"/") {
			at = next
			continue
		}
		host := p.of(pid, "root") + next
		info, err := os.Lstat(host)
		if err != nil {
			return "", false, err
		}
		if info.Mode()&fs.ModeSymlink == 0 {
			at = next
			continue
		}
		if links++; links > maxLinks {
			return "", false, &fs.PathError{Op: "open", Path: name, Err: syscall.ELOOP}
		}
		target, err := os.Readlink(host)
		if err != nil {
			return "", false, err
		}
		if path.IsAbs(target) {
			at = "/"
		}
		todo = append(strings.Split(target, "/"), todo...)
	}
	return at, false, nil
}

// othersCanWrite says who besides uid could replace or change a file, by the
// file itself (given by its stat) and every directory above it, or "".
//
// The group root is trusted. A directory in which only the owner of a file may
// replace it, such as /tmp, is acceptable if stickyOK; it is not where the
// question is what the file is and not only what it holds, since others can
// link any file into it.
func (p procfs) othersCanWrite(pid int, real string, file fs.FileInfo, uid uint32, stickyOK bool) string {
	if why := writers(file, uid, false); why != "" {
		return real + " " + why
	}
	for dir := path.Dir(real); ; dir = path.Dir(dir) {
		info, err := os.Lstat(p.of(pid, "root") + dir)
		if err != nil {
			return "who can change " + dir + " is unknown: " + err.Error()
		}
		if why := writers(info, uid, stickyOK); why != "" {
			return dir + " " + why
		}
		if dir == "/" {
			return ""
		}
	}
}

func writers(info fs.FileInfo, uid uint32, stickyOK bool) string {
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return "has no owner"
	}
	perm := info.Mode().Perm()
	switch sticky := stickyOK && info.Mode()&fs.ModeSticky != 0; {
	case st.Uid != uid && st.Uid != 0:
		return fmt.Sprintf("belongs to user %d", st.Uid)
	case perm&0o002 != 0 && !sticky:
		return fmt.Sprintf("can be written by everybody (mode %04o)", perm)
	case perm&0o020 != 0 && st.Gid != 0 && !sticky:
		return fmt.Sprintf("can be written by group %d (mode %04o)", st.Gid, perm)
	default:
		return ""
	}
}

// readBounded reads a file and fails if it is longer than limit.
func readBounded(name string, limit int) ([]byte, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return readAll(f, limit)
}

func readAll(f *os.File, limit int) ([]byte, error) {
	data, err := io.ReadAll(io.LimitReader(f, int64(limit)+1))
	if err != nil {
		return nil, err
	}
	if len(data) > limit {
		return nil, &fs.PathError{Op: "read", Path: f.Name(), Err: syscall.EFBIG}
	}
	return data, nil
}
