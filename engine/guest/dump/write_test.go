package dump

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/xen-hvi/hvi/engine/x86"
)

var errAbsent = errors.New("absent")

// patchy is memory of which some pages are not there, and one can't be read.
type patchy struct {
	pages map[x86.GFN][]byte
	bad   x86.GFN
}

func (p patchy) ReadPhys(pa x86.PhysAddr, b []byte) error {
	for ; len(b) > 0; pa, b = pa+x86.PageSize, b[x86.PageSize:] {
		if p.bad != 0 && pa.GFN() == p.bad {
			return syscall.EIO
		}
		page, ok := p.pages[pa.GFN()]
		if !ok {
			return errAbsent
		}
		copy(b, page)
	}
	return nil
}

// sourceOf has memory whose frames below end are written.
func sourceOf(mem patchy, end x86.GFN) Source {
	return Source{Memory: mem, End: end, Absent: isAbsent, Any: func(first x86.GFN, n int) (bool, error) {
		for gfn := first; gfn < first+x86.GFN(n); gfn++ {
			if mem.pages[gfn] != nil {
				return true, nil
			}
		}
		return false, nil
	}}
}

func isAbsent(err error) bool { return errors.Is(err, errAbsent) }

// TestWriteLiME writes memory with gaps and zeros, and reads the same back.
func TestWriteLiME(t *testing.T) {
	page := func(b byte) []byte { return bytes.Repeat([]byte{b}, x86.PageSize) }
	mem := patchy{pages: map[x86.GFN][]byte{0: page(1), 1: page(0), 2: page(2), 5: page(0), 6: page(3), 0x400: page(4)}}
	for gfn := x86.GFN(0x100); gfn < 0x300; gfn++ { // two whole chunks, the second all zeros
		mem.pages[gfn] = page(byte(gfn>>9 - 1))
	}
	for gfn := x86.GFN(0x300); gfn < 0x310; gfn++ { // goes on where they end
		mem.pages[gfn] = page(9)
	}
	path := filepath.Join(t.TempDir(), "m")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	var last Written
	w, err := WriteLiME(t.Context(), f, sourceOf(mem, 0x401), func(now Written) {
		if now.Memory < last.Memory {
			t.Errorf("%+v after %+v", now, last)
		}
		last = now
	})
	if err := errors.Join(err, f.Close()); err != nil {
		t.Fatal(err)
	}
	stored := 0
	for _, p := range mem.pages {
		if !bytes.Equal(p, page(0)) {
			stored += len(p)
		}
	}
	if want := (Written{uint64(len(mem.pages) * x86.PageSize), uint64(stored)}); w != want || last != want {
		t.Errorf("%+v, last told %+v, want %+v", w, last, want)
	}
	st, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	if disk := st.Sys().(*syscall.Stat_t).Blocks * 512; disk >= st.Size() {
		t.Errorf("%d bytes take %d on disk: zeros are no holes", st.Size(), disk)
	}
	im, err := Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer im.Close()
	if im.Format() != LiME {
		t.Errorf("it is %s", im.Format())
	}
	b := make([]byte, x86.PageSize)
	for gfn := range x86.GFN(0x402) {
		want, there := mem.pages[gfn]
		if err := im.ReadPhys(gfn.Addr(), b); (err == nil) != there || there && !bytes.Equal(b, want) {
			t.Errorf("frame %#x: %v, there: %v", uint64(gfn), err, there)
		}
	}
	if n := len(im.segments); n != 4 {
		t.Errorf("%d ranges, want 4: %+v", n, im.segments)
	}
}

// TestWriteLiMEFails: what goes wrong is told, and ends it.
func TestWriteLiMEFails(t *testing.T) {
	mem := patchy{pages: map[x86.GFN][]byte{0: {1}, 2: {1}}, bad: 1}
	newFile := func() *os.File {
		f, err := os.Create(filepath.Join(t.TempDir(), "m"))
		if err != nil {
			t.Fatal(err)
		}
		return f
	}
	none := func(Written) {}
	f := newFile()
	defer f.Close()
	if _, err := WriteLiME(t.Context(), f, sourceOf(mem, 3), none); !errors.Is(err, syscall.EIO) {
		t.Errorf("memory that can't be read: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := WriteLiME(ctx, f, sourceOf(mem, 3), none); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
	mem.bad = 0
	asked := sourceOf(mem, 3)
	asked.Any = func(x86.GFN, int) (bool, error) { return false, syscall.EPERM }
	if _, err := WriteLiME(t.Context(), f, asked, none); !errors.Is(err, syscall.EPERM) {
		t.Errorf("frames that can't be asked for: %v", err)
	}
	closed := newFile()
	closed.Close()
	if _, err := WriteLiME(t.Context(), closed, sourceOf(mem, 3), none); !errors.Is(err, os.ErrClosed) {
		t.Errorf("a file that is closed: %v", err)
	}
}
