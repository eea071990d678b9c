package image

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/u-root/u-root/pkg/cpio"

	"github.com/xen-hvi/hvi/lab/boot"
)

// module makes an ELF file that says what it depends on, as a kernel module
// does.
func module(t *testing.T, dir, name, depends string) {
	t.Helper()
	le := binary.LittleEndian
	info := "license=GPL\x00"
	if depends != "none" {
		info += "depends=" + depends + "\x00"
	}
	names := "\x00.modinfo\x00.shstrtab\x00"
	b := make([]byte, 64)
	copy(b, "\x7fELF\x02\x01\x01")
	le.PutUint16(b[16:], 1) // relocatable
	le.PutUint16(b[18:], 62)
	le.PutUint32(b[20:], 1)
	infoAt := len(b)
	b = append(b, info...)
	namesAt := len(b)
	b = append(b, names...)
	le.PutUint64(b[40:], uint64(len(b)))
	le.PutUint16(b[52:], 64)
	le.PutUint16(b[58:], 64)
	le.PutUint16(b[60:], 3)
	le.PutUint16(b[62:], 2)
	section := func(name, typ uint32, off, size int) {
		s := make([]byte, 64)
		le.PutUint32(s, name)
		le.PutUint32(s[4:], typ)
		le.PutUint64(s[24:], uint64(off))
		le.PutUint64(s[32:], uint64(size))
		b = append(b, s...)
	}
	section(0, 0, 0, 0)
	section(1, 1, infoAt, len(info))
	section(10, 3, namesAt, len(names))
	write(t, filepath.Join(dir, name+".ko"), string(b), 0o644)
}

func TestWithDependencies(t *testing.T) {
	dir := t.TempDir()
	module(t, dir, "fs/ext4/ext4", "jbd2,mbcache")
	module(t, dir, "fs/jbd2", "")
	module(t, dir, "fs/mbcache", "none")
	module(t, dir, "block/virtio_blk", "virtio,virtio-ring")
	module(t, dir, "virtio/virtio", "virtio-ring")
	module(t, dir, "virtio/virtio-ring", "")
	got, err := withDependencies(dir, []string{"virtio-blk", "ext4", "virtio_ring"})
	if err != nil {
		t.Fatal(err)
	}
	for i := range got {
		got[i] = strings.TrimSuffix(filepath.Base(got[i]), ".ko")
	}
	if want := []string{"virtio-ring", "virtio", "virtio_blk", "jbd2", "mbcache", "ext4"}; !reflect.DeepEqual(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
	if _, err := withDependencies(dir, []string{"btrfs"}); !errors.Is(err, fs.ErrNotExist) || !strings.Contains(err.Error(), "btrfs") {
		t.Errorf("got %v", err)
	}
	program(t, filepath.Join(dir, "odd.ko"))
	if _, err := withDependencies(dir, []string{"odd"}); err == nil || !strings.Contains(err.Error(), "no kernel module") {
		t.Errorf("got %v", err)
	}
}

func TestOwnFiles(t *testing.T) {
	own, err := ownFiles("files/debian")
	if err != nil {
		t.Fatal(err)
	}
	perms := map[string]fs.FileMode{}
	for _, f := range own {
		perms[f.name] = f.perm
	}
	if perms["usr/local/sbin/hvi-lab"] != 0o755 || perms["etc/systemd/system/hvi-lab.service"] != 0o644 {
		t.Errorf("%v", perms)
	}
}

func TestFileSystem(t *testing.T) {
	if err := CheckTools(); err != nil {
		t.Skip(err)
	}
	dir := t.TempDir()
	write(t, filepath.Join(dir, "in", "guest", "release"), "6.1\n", 0o644)
	file := filepath.Join(dir, "disk")
	if err := fileSystem(t.Context(), filepath.Join(dir, "in"), file, "lab", 5<<20); err != nil {
		t.Fatal(err)
	}
	st, err := os.Stat(file)
	if err != nil || st.Size()%boot.Geometry != 0 || st.Size() < 5<<20 {
		t.Errorf("%v, %v", st.Size(), err)
	}
	out, err := exec.Command("debugfs", "-R", "cat /guest/release", file).Output()
	if err != nil || !bytes.Equal(out, []byte("6.1\n")) {
		t.Errorf("%q, %v", out, err)
	}
}

func TestLinkOrCopy(t *testing.T) {
	dir := t.TempDir()
	from := write(t, filepath.Join(dir, "a"), "text", 0o644)
	if err := linkOrCopy(from, filepath.Join(dir, "b")); err != nil {
		t.Fatal(err)
	}
	// Never into what may be linked to the cache.
	if err := linkOrCopy(from, filepath.Join(dir, "b")); !errors.Is(err, fs.ErrExist) {
		t.Errorf("got %v", err)
	}
	if data, err := os.ReadFile(filepath.Join(dir, "b")); err != nil || string(data) != "text" {
		t.Errorf("%q, %v", data, err)
	}
}

// TestSystem: a system goes into a ramdisk as it is.
func TestSystem(t *testing.T) {
	root := t.TempDir()
	su := write(t, filepath.Join(root, "bin", "su"), "run", 0o755)
	if err := errors.Join(os.Chmod(su, 0o755|fs.ModeSetuid), os.Link(su, filepath.Join(root, "bin", "again")),
		os.Mkdir(filepath.Join(root, "tmp"), 0o755), os.Chmod(filepath.Join(root, "tmp"), 0o777|fs.ModeSticky),
		os.Symlink("bin/su", filepath.Join(root, "init")), os.Chtimes(su, time.Unix(7, 0), time.Unix(7, 0))); err != nil {
		t.Fatal(err)
	}
	l := newLayer()
	defer l.close()
	if err := l.system(root); err != nil {
		t.Fatal(err)
	}
	data, err := l.bytes()
	if err != nil {
		t.Fatal(err)
	}
	got, err := cpio.ReadAllRecords(cpio.Newc.Reader(bytes.NewReader(data)))
	if err != nil {
		t.Fatal(err)
	}
	names, text := map[string]cpio.Record{}, map[string]string{}
	for _, r := range got {
		data := make([]byte, r.FileSize)
		if _, err := io.ReadFull(io.NewSectionReader(r, 0, int64(r.FileSize)), data); err != nil {
			t.Fatal(err)
		}
		names[r.Name], text[r.Name] = r, string(data)
	}
	for _, name := range []string{"bin/su", "bin/again"} {
		if r := names[name]; text[name] != "run" || r.Mode != cpio.S_IFREG|0o4755 || r.UID != uint64(os.Getuid()) || r.GID != uint64(os.Getgid()) || r.MTime != 7 {
			t.Errorf("%s: %q, %+v", name, text[name], r.Info)
		}
	}
	if m := names["tmp"].Mode; m != cpio.S_IFDIR|0o1777 || text["init"] != "bin/su" {
		t.Errorf("tmp has mode %o, init leads to %q", m, text["init"])
	}
}
