package image

import (
	"bytes"
	"encoding/binary"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/xen-hvi/hvi/engine/guest"
	"github.com/xen-hvi/hvi/engine/guest/dump"
	"github.com/xen-hvi/hvi/engine/guest/linux/linuxtest"
	"github.com/xen-hvi/hvi/engine/inspect"
	"github.com/xen-hvi/hvi/engine/x86"
)

func write(tb testing.TB, data []byte) string {
	tb.Helper()
	path := filepath.Join(tb.TempDir(), "image")
	if err := os.WriteFile(path, data, 0o600); err != nil {
		tb.Fatal(err)
	}
	return path
}

// aGuest is a guest's memory with what every kernel has and a search looks for:
// a page in the fixmap.
func aGuest(base x86.VirtAddr) *linuxtest.Guest {
	g := linuxtest.New(linuxtest.Config{Base: base})
	g.Map(0xffff_ffff_ff5f_d000, 0x1000, 0x1000, guest.Page4K, 0)
	return g
}

// askAll asks every question and returns the errors.
func askAll(im *Image) map[inspect.Kind]error {
	errs := make(map[inspect.Kind]error)
	for _, q := range inspect.Questions() {
		var a inspect.Args
		if q.PID == inspect.RequiredPID {
			a.PID = 1
		}
		if _, err := im.Ask(q, a); err != nil {
			errs[q.Kind] = err
		}
	}
	return errs
}

func TestOpen(t *testing.T) {
	g := aGuest(0xffff_ffff_9a00_0000)
	var phases []Phase
	im, err := Open(write(t, g.Mem), Options{Phase: func(p Phase) { phases = append(phases, p) }})
	if err != nil {
		t.Fatal(err)
	}
	defer im.Close()
	if im.kernel.Banner != linuxtest.Banner || im.kernel.Base != g.Base || im.Format() != dump.Raw {
		t.Errorf("found %q at %v in a %s image", im.kernel.Banner, im.kernel.Base, im.Format())
	}
	q, _ := inspect.Find(inspect.Maps)
	var wrong *inspect.ArgumentError
	if _, err := im.Ask(q, inspect.Args{}); !errors.As(err, &wrong) {
		t.Errorf("maps of no process: %v", err)
	}
	if !slices.Equal(phases, []Phase{Opening, Finding, Reading}) {
		t.Errorf("the phases are %q", phases)
	}
}

// TestFormat: memory that begins as a file of another kind is read if it is said
// what it is.
func TestFormat(t *testing.T) {
	g := aGuest(0)
	copy(g.Mem, "\x7fELF\x02\x01\x01")
	path := write(t, g.Mem)
	if im, err := Open(path, Options{}); err == nil {
		im.Close()
		t.Error("a file that begins as ELF does is taken for a raw image")
	}
	im, err := Open(path, Options{Format: "raw"})
	if err != nil {
		t.Fatal(err)
	}
	im.Close()
	for _, format := range Formats() {
		im, err := Open(write(t, aGuest(0).Mem), Options{Format: format})
		if err == nil {
			im.Close()
		}
		if (err == nil) != (format == "raw") {
			t.Errorf("a raw image as %s: %v", format, err)
		}
	}
	if _, err := Open(path, Options{Format: "tape"}); err == nil {
		t.Error("there is no such format")
	}
}

func TestOpenRefuses(t *testing.T) {
	g := aGuest(0)
	zeros := make([]byte, 1<<20)
	elf := make([]byte, 64)
	copy(elf, "\x7fELF\x02\x01\x01")
	binary.LittleEndian.PutUint16(elf[16:], 4) // core
	binary.LittleEndian.PutUint16(elf[18:], 62)
	binary.LittleEndian.PutUint64(elf[32:], 64)
	binary.LittleEndian.PutUint16(elf[54:], 56)
	binary.LittleEndian.PutUint16(elf[56:], 3)
	for name, c := range map[string]struct {
		data []byte
		want error
	}{
		"empty":                 {nil, dump.ErrEmpty},
		"text":                  {[]byte("no memory\n"), dump.ErrNotImage},
		"a truncated ELF core":  {elf, dump.ErrTruncated},
		"packed":                {append([]byte("\x1f\x8b"), zeros...), dump.ErrUnsupported},
		"zeros":                 {zeros, ErrNoKernel},
		"memory of no kernel":   {bytes.Repeat([]byte("0123456789abcdef"), 1<<16), ErrNoKernel},
		"the first half of one": {g.Mem[:len(g.Mem)/2&^4095], ErrNoKernel},
	} {
		im, err := Open(write(t, c.data), Options{})
		if err == nil {
			im.Close()
		}
		if !errors.Is(err, c.want) {
			t.Errorf("%s: %v, want %v", name, err, c.want)
		}
	}
	if _, err := Open(filepath.Join(t.TempDir(), "none"), Options{}); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("missing: %v", err)
	}
}

// TestFileThatShrinks: a file that is cut while it is read is an error.
func TestFileThatShrinks(t *testing.T) {
	path := write(t, aGuest(0).Mem)
	im, err := Open(path, Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer im.Close()
	if err := os.Truncate(path, 4096); err != nil {
		t.Fatal(err)
	}
	im.kernel = im.kernel.Over(im.file)
	if err := im.file.Guard(func() error { _, err := im.kernel.SystemState(); return err }); !errors.Is(err, dump.ErrGone) {
		t.Errorf("a file that was cut: %v", err)
	}
}

// FuzzInspect: no content of a file makes a question panic or go on for ever. The
// first byte says whether the rest is a file by itself, or changes a guest's
// memory: places and what is written there.
func FuzzInspect(f *testing.F) {
	g := aGuest(0)
	whole := filepath.Join(f.TempDir(), "guest")
	if err := os.WriteFile(whole, g.Mem, 0o600); err != nil {
		f.Fatal(err)
	}
	change := func(at uint64, b ...byte) []byte {
		out := binary.LittleEndian.AppendUint32([]byte{1}, uint32(at))
		return append(append(out, byte(len(b))), b...)
	}
	f.Add([]byte{0})
	f.Add([]byte("\x00\x7fELF\x02\x01\x01"))
	f.Add([]byte("\x00EMiL\x01\x00\x00\x00"))
	f.Add(append([]byte{0}, make([]byte, 4096)...))
	f.Add([]byte{1})
	f.Add(change(uint64(g.Root)+511*8, 0, 0, 0, 0, 0, 0, 0, 0))
	f.Add(change(uint64(g.PhysBase)+linuxtest.Data+0x2f00, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff))
	f.Add(change(uint64(g.PhysBase)+linuxtest.ROData+0x4008, 0xff, 0xff, 0xff, 0xff))
	f.Fuzz(func(t *testing.T, data []byte) {
		if len(data) == 0 {
			return
		}
		path := whole
		if data[0]&1 == 0 {
			path = write(t, data[1:])
		} else {
			defer patch(t, whole, data[1:])()
		}
		im, err := Open(path, Options{})
		if err != nil {
			return
		}
		defer im.Close()
		askAll(im)
	})
}

// patch writes what data says into a file and returns a function that takes it
// back.
func patch(t *testing.T, path string, data []byte) (undo func()) {
	file, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	st, err := file.Stat()
	if err != nil {
		t.Fatal(err)
	}
	type change struct {
		at  int64
		old []byte
	}
	var done []change
	for len(data) >= 5 {
		at, n := int64(binary.LittleEndian.Uint32(data)), int(data[4])
		data = data[5:]
		n = min(n, len(data))
		if at %= st.Size(); at+int64(n) <= st.Size() {
			old := make([]byte, n)
			if _, err := file.ReadAt(old, at); err != nil {
				t.Fatal(err)
			}
			if _, err := file.WriteAt(data[:n], at); err != nil {
				t.Fatal(err)
			}
			done = append(done, change{at, old})
		}
		data = data[n:]
	}
	return func() {
		for _, c := range slices.Backward(done) {
			if _, err := file.WriteAt(c.old, c.at); err != nil {
				t.Fatal(err)
			}
		}
		file.Close()
	}
}
