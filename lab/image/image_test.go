package image

import (
	"bytes"
	"context"
	"debug/elf"
	"encoding/binary"
	"errors"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/u-root/u-root/pkg/cpio"

	"github.com/xen-hvi/hvi/lab/boot"
)

func write(t *testing.T, name, text string, perm fs.FileMode) string {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(name, []byte(text), perm); err != nil {
		t.Fatal(err)
	}
	return name
}

// unpack returns what an archive holds, as "mode size contents" by name.
func unpack(t *testing.T, archive []byte) map[string]string {
	t.Helper()
	got := map[string]string{}
	r := cpio.Newc.Reader(bytes.NewReader(archive))
	var last string
	for {
		rec, err := r.ReadRecord()
		if errors.Is(err, io.EOF) {
			return got
		}
		if err != nil {
			t.Fatal(err)
		}
		if rec.Name < last {
			t.Errorf("%s comes after %s", rec.Name, last)
		}
		last = rec.Name
		if dir := filepath.Dir(rec.Name); dir != "." && got[dir] == "" {
			t.Errorf("%s comes before its folder", rec.Name)
		}
		text := ""
		if rec.ReaderAt != nil && rec.Mode&cpio.S_IFMT != cpio.S_IFDIR {
			data, err := io.ReadAll(io.NewSectionReader(rec.ReaderAt, 0, int64(rec.FileSize)))
			if err != nil {
				t.Fatal(err)
			}
			text = string(data)
		}
		kind := map[uint64]string{cpio.S_IFREG: "file", cpio.S_IFDIR: "dir", cpio.S_IFLNK: "link"}[rec.Mode&cpio.S_IFMT]
		got[rec.Name] = strings.TrimSpace(kind + " " + text)
		if rec.MTime != 0 || rec.UID != 0 || rec.GID != 0 {
			t.Errorf("%s: time %d, owner %d:%d", rec.Name, rec.MTime, rec.UID, rec.GID)
		}
	}
}

// program makes an ELF file that needs libraries.
func program(t *testing.T, name string, libs ...string) string {
	t.Helper()
	le := binary.LittleEndian
	strs := []byte{0}
	var dyn []byte
	for _, l := range libs {
		dyn = le.AppendUint64(dyn, uint64(elf.DT_NEEDED))
		dyn = le.AppendUint64(dyn, uint64(len(strs)))
		strs = append(append(strs, l...), 0)
	}
	dyn = append(dyn, make([]byte, 16)...)
	b := make([]byte, 64)
	copy(b, "\x7fELF\x02\x01\x01")
	le.PutUint16(b[16:], uint16(elf.ET_DYN))
	le.PutUint16(b[18:], uint16(elf.EM_X86_64))
	le.PutUint32(b[20:], 1)
	dynAt := len(b)
	b = append(b, dyn...)
	strAt := len(b)
	b = append(b, strs...)
	le.PutUint64(b[40:], uint64(len(b)))
	le.PutUint16(b[52:], 64)
	le.PutUint16(b[58:], 64)
	le.PutUint16(b[60:], 3)
	le.PutUint16(b[62:], 2)
	section := func(typ elf.SectionType, off, size, link int) {
		s := make([]byte, 64)
		le.PutUint32(s[4:], uint32(typ))
		le.PutUint64(s[24:], uint64(off))
		le.PutUint64(s[32:], uint64(size))
		le.PutUint32(s[40:], uint32(link))
		b = append(b, s...)
	}
	section(elf.SHT_NULL, 0, 0, 0)
	section(elf.SHT_DYNAMIC, dynAt, len(dyn), 2)
	section(elf.SHT_STRTAB, strAt, len(strs), 0)
	return write(t, name, string(b), 0o755)
}

func TestLayer(t *testing.T) {
	dir := t.TempDir()
	write(t, filepath.Join(dir, "tree/a/b"), "b", 0o644)
	if err := os.Symlink("b", filepath.Join(dir, "tree/a/l")); err != nil {
		t.Fatal(err)
	}
	l := newLayer()
	defer l.close()
	l.text("init", "#!", 0o755)
	l.link("x/y", "/init")
	if err := l.file("x/f", filepath.Join(dir, "tree/a/l"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := l.copyTree("etc/t", filepath.Join(dir, "tree")); err != nil {
		t.Fatal(err)
	}
	data, err := l.bytes()
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]string{
		"init": "file #!", "x": "dir", "x/y": "link /init", "x/f": "file b",
		"etc": "dir", "etc/t": "dir", "etc/t/a": "dir", "etc/t/a/b": "file b", "etc/t/a/l": "link b",
	}
	if got := unpack(t, data); !reflect.DeepEqual(got, want) {
		t.Errorf("got %v\nwant %v", got, want)
	}
	if len(data)%4 != 0 {
		t.Errorf("%d bytes: another archive could not follow", len(data))
	}
	name := filepath.Join(dir, "out")
	if err := l.writeFile(name); err != nil {
		t.Fatal(err)
	}
	if again, err := os.ReadFile(name); err != nil || !bytes.Equal(again, data) {
		t.Errorf("a second time it differs, %v", err)
	}
	if err := l.file("d", dir, 0o644); err == nil {
		t.Error("a folder is taken for a file")
	}
}

func TestLayerLibraries(t *testing.T) {
	dir := t.TempDir()
	program(t, filepath.Join(dir, "second/liba.so"), "libb.so")
	program(t, filepath.Join(dir, "second/libb.so"), "liba.so")
	program(t, filepath.Join(dir, "first/libc.so"))
	program(t, filepath.Join(dir, "second/libc.so"), "libnever.so")
	l := newLayer()
	defer l.close()
	l.libs = []string{filepath.Join(dir, "first"), filepath.Join(dir, "second")}
	if err := l.program("bin/p", program(t, filepath.Join(dir, "p"), "liba.so", "libc.so")); err != nil {
		t.Fatal(err)
	}
	if err := l.program("bin/script", write(t, filepath.Join(dir, "s"), "#!/bin/sh", 0o755)); err != nil {
		t.Fatal(err)
	}
	var got []string
	for n := range l.records {
		if strings.Contains(n, ".so") || strings.HasPrefix(n, "bin/") {
			got = append(got, n)
		}
	}
	slices.Sort(got)
	const lib = "usr/lib/x86_64-linux-gnu/"
	if want := []string{"bin/p", "bin/script", lib + "liba.so", lib + "libb.so", lib + "libc.so"}; !reflect.DeepEqual(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
	err := l.program("bin/q", program(t, filepath.Join(dir, "q"), "libmissing.so"))
	if !errors.Is(err, fs.ErrNotExist) || !strings.Contains(err.Error(), "libmissing.so") {
		t.Errorf("got %v", err)
	}
}

func TestArtifact(t *testing.T) {
	var mu sync.Mutex
	var events []Event
	b := &Builder{CacheDir: t.TempDir(), Progress: func(e Event) {
		mu.Lock()
		defer mu.Unlock()
		events = append(events, e)
	}}
	built := 0
	make1 := func(inputs ...string) string {
		t.Helper()
		dir, err := b.Artifact(t.Context(), "thing", inputs, func(dir string) error {
			built++
			return os.WriteFile(filepath.Join(dir, "f"), []byte(strings.Join(inputs, "+")), 0o644)
		})
		if err != nil {
			t.Fatal(err)
		}
		return dir
	}
	one := make1("a", "b")
	if make1("a", "b") != one || built != 1 || len(events) != 2 || !events[1].Final {
		t.Errorf("built %d times, events %v", built, events)
	}
	for _, other := range [][]string{{"a", "c"}, {"ab"}, {"b", "a"}} {
		if make1(other...) == one {
			t.Errorf("%v gives the same as a, b", other)
		}
	}
	fail := errors.New("no")
	if _, err := b.Artifact(t.Context(), "bad", nil, func(string) error { return fail }); !errors.Is(err, fail) {
		t.Errorf("got %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	if _, err := b.Artifact(ctx, "cut", nil, func(string) error { cancel(); return nil }); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	left, err := os.ReadDir(filepath.Join(b.CacheDir, "artifacts"))
	if err != nil || len(left) != 4 {
		t.Errorf("%d artifacts are left, want 4: %v, %v", len(left), left, err)
	}
}

func TestPrune(t *testing.T) {
	b := &Builder{CacheDir: t.TempDir()}
	made := map[string]string{}
	for _, name := range []string{"image-old", "image-used", "other-old"} {
		dir, err := b.Artifact(t.Context(), name, nil, func(dir string) error {
			return os.WriteFile(filepath.Join(dir, "f"), []byte("12345"), 0o644)
		})
		if err != nil {
			t.Fatal(err)
		}
		long := time.Now().Add(-time.Hour)
		if err := os.Chtimes(dir, long, long); err != nil {
			t.Fatal(err)
		}
		made[name] = dir
	}
	if _, err := b.Artifact(t.Context(), "image-used", nil, nil); err != nil { // it is there: nothing is built
		t.Fatal(err)
	}
	freed, err := b.Prune(t.Context(), "image-*", time.Now().Add(-time.Minute))
	if err != nil || freed != 5 {
		t.Errorf("%d bytes are freed, %v", freed, err)
	}
	for name, want := range map[string]bool{"image-old": false, "image-used": true, "other-old": true} {
		if isDir(made[name]) != want {
			t.Errorf("%s is there: %v", name, !want)
		}
	}
}

func TestArtifactRace(t *testing.T) {
	b := &Builder{CacheDir: t.TempDir()}
	var wg sync.WaitGroup
	dirs := make([]string, 8)
	var built atomic.Int32
	for i := range dirs {
		wg.Go(func() {
			dir, err := b.Artifact(t.Context(), "thing", nil, func(dir string) error {
				built.Add(1)
				return os.WriteFile(filepath.Join(dir, "f"), nil, 0o644)
			})
			if err != nil {
				t.Error(err)
			}
			dirs[i] = dir
		})
	}
	wg.Wait()
	if built.Load() != 1 {
		t.Errorf("built %d times", built.Load())
	}
	for _, d := range dirs {
		if d != dirs[0] {
			t.Errorf("%s and %s", d, dirs[0])
		}
	}
}

// TestFixes: a place that is there once is changed in place, one that is there
// twice is not.
func TestFixes(t *testing.T) {
	for name, tc := range map[string]struct {
		place, fixed []byte
		fix          func([]byte) bool
	}{
		"INT3":      {int3Check, []byte{0x31, 0xd2, 0xbe, 0x43}, fixINT3},
		"entered":   {entered, enteredPreemptible, fixEntered},
		"injection": {injection, []byte{0x66, 0x0f, 0x1f, 0x44, 0x00, 0x00, 0xc7}, fixInjection},
	} {
		one := append(append([]byte("before"), tc.place...), "behind"...)
		got := bytes.Clone(one)
		want := bytes.Clone(one)
		copy(want[len("before"):], tc.fixed)
		if !tc.fix(got) || !bytes.Equal(got, want) {
			t.Errorf("%s: % x, want % x", name, got, want)
		}
		if tc.fix(got) {
			t.Errorf("%s: it is found again", name)
		}
		twice := append(bytes.Clone(one), one...)
		if tc.fix(twice) || !bytes.Equal(twice, append(bytes.Clone(one), one...)) {
			t.Errorf("%s: of two places, one is changed", name)
		}
	}
}

func TestScripts(t *testing.T) {
	all, err := ownFiles("files")
	if err != nil {
		t.Fatal(err)
	}
	scripts := 0
	for _, f := range all {
		if f.perm != 0o755 {
			continue
		}
		scripts++
		if !bytes.HasPrefix(f.data, []byte("#!/bin/sh\n")) {
			t.Errorf("%s has another interpreter", f.name)
		}
		cmd := exec.Command("sh", "-n")
		cmd.Stdin = bytes.NewReader(f.data)
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Errorf("%s: %v: %s", f.name, err, out)
		}
	}
	if scripts < 9 {
		t.Errorf("%d scripts", scripts)
	}
	for _, src := range guestFiles {
		if len(source(src)) == 0 {
			t.Errorf("%s is empty", src)
		}
	}
}

// TestTiny builds the guest and looks for what Xen needs to start it.
func TestTiny(t *testing.T) {
	if err := CheckTools(); err != nil {
		t.Skip(err)
	}
	b := &Builder{CacheDir: t.TempDir()}
	dir, err := b.small(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	f, err := elf.Open(filepath.Join(dir, "tiny"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	note := []byte("\x04\x00\x00\x00\x04\x00\x00\x00\x12\x00\x00\x00Xen\x00")
	note = binary.LittleEndian.AppendUint32(note, uint32(f.Entry))
	notes := 0
	for _, p := range f.Progs {
		if p.Memsz > 0 && p.Paddr < 4<<20 || p.Paddr+p.Memsz > 5<<20 {
			t.Errorf("a segment at %#x of %#x bytes", p.Paddr, p.Memsz)
		}
		if p.Type != elf.PT_NOTE {
			continue
		}
		notes++
		got, err := io.ReadAll(p.Open())
		if err != nil || !bytes.Equal(got, note) {
			t.Errorf("note % x, want % x, %v", got, note, err)
		}
	}
	disk, err := os.ReadFile(filepath.Join(dir, "hvm.img"))
	if err != nil || len(disk)%boot.Geometry != 0 || disk[510] != 0x55 || disk[511] != 0xaa {
		t.Errorf("a disk of %d bytes, %v", len(disk), err)
	}
	if notes != 1 || f.Class != elf.ELFCLASS32 {
		t.Errorf("%d notes, %v", notes, f.Class)
	}
}

func TestKernelHeaders(t *testing.T) {
	tree, dir := t.TempDir(), t.TempDir()
	src := filepath.Join(tree, "usr/src/linux-headers-6.1-cloud-amd64")
	write(t, filepath.Join(src, "Makefile"), "include /usr/src/linux-headers-6.1-common/Makefile\n", 0o644)
	write(t, filepath.Join(src, "include/x.h"), "x", 0o644)
	out, err := kernelHeaders(tree, dir, "")
	if err != nil {
		t.Fatal(err)
	}
	made, err := os.ReadFile(filepath.Join(out, "Makefile"))
	if want := "include " + tree + "/usr/src/linux-headers-6.1-common/Makefile\n"; err != nil || string(made) != want {
		t.Errorf("%q, %v", made, err)
	}
	if x, err := os.ReadFile(filepath.Join(out, "include/x.h")); err != nil || string(x) != "x" {
		t.Errorf("%q, %v", x, err)
	}
	write(t, filepath.Join(tree, "usr/src/linux-headers-6.2-cloud-amd64/Makefile"), "", 0o644)
	if _, err := kernelHeaders(tree, t.TempDir(), ""); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("of two kernels' headers, one is taken: %v", err)
	}
}

func TestFindRoot(t *testing.T) {
	dir := t.TempDir()
	write(t, filepath.Join(dir, "go.mod"), "module x", 0o644)
	if err := os.MkdirAll(filepath.Join(dir, "a/b"), 0o755); err != nil {
		t.Fatal(err)
	}
	if got, err := FindRoot(filepath.Join(dir, "a/b")); err != nil || got != dir {
		t.Errorf("%s, %v", got, err)
	}
	if _, err := FindRoot("/proc"); err == nil {
		t.Error("found one in /proc")
	}
}

func TestToolError(t *testing.T) {
	err := lookTool("no-such-tool-anywhere")
	var e *ToolError
	if !errors.As(err, &e) || !strings.HasPrefix(e.Install(), "apt-get install ") || !strings.Contains(err.Error(), "gcc") {
		t.Errorf("got %v", err)
	}
	if err := tool(t.Context(), t.TempDir(), "no-such-tool-anywhere"); !errors.As(err, &e) {
		t.Errorf("got %v", err)
	}
	if err := tool(t.Context(), t.TempDir(), "sh", "-c", "echo why; exit 1"); err == nil || !strings.Contains(err.Error(), "why") {
		t.Errorf("got %v", err)
	}
}
