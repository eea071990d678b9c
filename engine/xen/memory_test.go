package xen_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/xen-hvi/hvi/engine/x86"
	"github.com/xen-hvi/hvi/engine/xen"
	"github.com/xen-hvi/hvi/engine/xen/xentest"
)

func TestMapForeign(t *testing.T) {
	hv, h := open(t, xentest.Config{})
	d := hv.AddDomain(xentest.Spec{ID: 1, Type: xen.PVH, Pages: 8})
	d.Write(3*x86.PageSize+5, []byte("three"))
	m, err := h.MapForeign(1, []x86.GFN{3, 100, 0}, true)
	if err != nil {
		t.Fatal(err)
	}
	if m.Len() != 3 || d.MappedPages() != 2 {
		t.Errorf("%d pages, %d mapped", m.Len(), d.MappedPages())
	}
	p, err := m.Page(0)
	if err != nil {
		t.Fatal(err)
	}
	if len(p) != x86.PageSize || string(p[5:10]) != "three" {
		t.Errorf("page 0 holds %q", p[:16])
	}
	copy(p[5:], "THREE")
	if got := d.Read(3*x86.PageSize+5, 5); string(got) != "THREE" {
		t.Errorf("the guest sees %q", got)
	}
	if _, err := m.Page(1); !errors.Is(err, xen.ErrNoPage) || !strings.Contains(err.Error(), "gfn 0x64 of domain 1") {
		t.Errorf("page 1: %v", err)
	}
	if m.Err(0) != nil || m.Err(2) != nil {
		t.Errorf("errors %v, %v", m.Err(0), m.Err(2))
	}
	var me *xen.MapError
	if err := m.FirstErr(); !errors.As(err, &me) || len(me.Frames) != 1 || me.Asked != 3 {
		t.Errorf("FirstErr = %v", err)
	}
	for range 2 {
		if err := m.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := m.Page(0); !errors.Is(err, xen.ErrClosed) {
		t.Errorf("after Close: %v", err)
	}
	if d.MappedPages() != 0 {
		t.Errorf("%d pages stay mapped", d.MappedPages())
	}

	_, err = h.MapForeign(1, []x86.GFN{50, 51}, false)
	if !errors.As(err, &me) || len(me.Frames) != 2 || !strings.Contains(err.Error(), "1 more of 2 frames failed") {
		t.Errorf("holes only: %v", err)
	}
	if _, err := h.MapForeign(9, []x86.GFN{0}, false); !errors.Is(err, xen.ErrNoDomain) {
		t.Errorf("no domain: %v", err)
	}
	hv.FailNext("map", unix.ENOMEM)
	var op *xen.OpError
	if _, err := h.MapForeign(1, []x86.GFN{0}, false); !errors.As(err, &op) || op.Errno != unix.ENOMEM {
		t.Errorf("the whole call fails: %v", err)
	}
}

func TestMapPage(t *testing.T) {
	hv, h := open(t, xentest.Config{})
	d := hv.AddDomain(xentest.Spec{ID: 1, Type: xen.PVH})
	g, err := h.RingFrame(1)
	if err != nil {
		t.Fatal(err)
	}
	r, err := h.MapPage(1, g)
	if err != nil {
		t.Fatal(err)
	}
	r.Bytes()[7] = 9
	if d.Read(g.Addr()+7, 1)[0] != 9 {
		t.Error("the page is not shared")
	}
	// Taken from the guest, the page stays what it is for its holders.
	d.DropPage(g)
	r.Bytes()[8] = 10
	if r.Bytes()[7] != 9 || d.HasPage(g) {
		t.Error("the page went")
	}
	if err := r.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := h.MapPage(1, g); !errors.Is(err, xen.ErrNoPage) {
		t.Errorf("a page that is gone: %v", err)
	}
}

// fill writes the frame number and a pattern into each page of a domain.
func fill(d *xentest.Domain, pages int) {
	buf := make([]byte, x86.PageSize)
	for g := range pages {
		for off := 0; off < len(buf); off += 8 {
			binary.LittleEndian.PutUint64(buf[off:], uint64(g)<<32|uint64(off))
		}
		d.Write(x86.GFN(g).Addr(), buf)
	}
}

// expect returns what fill has written.
func expect(pa x86.PhysAddr, n int) []byte {
	out := make([]byte, 0, n+16)
	for at := pa &^ 7; len(out) < n+8; at += 8 {
		out = binary.LittleEndian.AppendUint64(out, uint64(at.GFN())<<32|at.Offset())
	}
	return out[pa&7:][:n]
}

func TestReadPhys(t *testing.T) {
	hv, h := open(t, xentest.Config{})
	const pages = 3*256 + 10
	d := hv.AddDomain(xentest.Spec{ID: 1, Type: xen.PVH, Pages: pages})
	fill(d, pages)
	m := h.OpenMemory(1)
	if m.Domain() != 1 {
		t.Errorf("domain %d", m.Domain())
	}
	for _, tc := range []struct {
		pa x86.PhysAddr
		n  int
	}{
		{0, 0}, {0, 1}, {0, 8}, {4093, 7}, {4096, 4096}, {100, 3 * 4096},
		{xen.ChunkBytes - 3, 10}, {xen.ChunkBytes - 1, 1}, {5, 2*xen.ChunkBytes + 9}, {pages*4096 - 8, 8},
	} {
		buf := make([]byte, tc.n)
		if err := m.ReadPhys(tc.pa, buf); err != nil {
			t.Errorf("%v+%d: %v", tc.pa, tc.n, err)
		} else if !bytes.Equal(buf, expect(tc.pa, tc.n)) {
			t.Errorf("%v+%d differs", tc.pa, tc.n)
		}
	}
	rng := rand.New(rand.NewPCG(1, 2))
	for range 300 {
		n := 1 + rng.IntN(9000)
		pa := x86.PhysAddr(rng.IntN(pages*4096 - n))
		buf := make([]byte, n)
		if err := m.ReadPhys(pa, buf); err != nil || !bytes.Equal(buf, expect(pa, n)) {
			t.Fatalf("%v+%d: %v", pa, n, err)
		}
	}
	if st := m.Stats(); st.Maps != 4 || st.MappedBytes != 4*xen.ChunkBytes || st.Evictions != 0 {
		t.Errorf("%+v", st)
	}
	for _, tc := range []struct {
		pa   x86.PhysAddr
		n    int
		at   x86.PhysAddr
		none bool
	}{
		{pages*4096 - 2, 4, pages * 4096, true},
		{0x7_0000_0000, 8, 0x7_0000_0000, true},
		{1<<52 - 4, 8, 1<<52 - 4, true},
		{1 << 52, 1, 1 << 52, true},
		{^x86.PhysAddr(0), 1, ^x86.PhysAddr(0), true},
	} {
		err := m.ReadPhys(tc.pa, make([]byte, tc.n))
		var re *xen.ReadError
		if !errors.As(err, &re) || re.Addr != tc.at || re.Domain != 1 || errors.Is(err, xen.ErrNoPage) != tc.none {
			t.Errorf("%v+%d: %v", tc.pa, tc.n, err)
		}
	}
	for range 2 {
		if err := m.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if d.MappedPages() != 0 || m.Stats().MappedBytes != 0 {
		t.Errorf("%d pages stay mapped", d.MappedPages())
	}
	if err := m.ReadPhys(0, make([]byte, 1)); !errors.Is(err, xen.ErrClosed) {
		t.Errorf("after Close: %v", err)
	}
}

// TestReadHereAndThere reads here and there, for which little is mapped.
func TestReadHereAndThere(t *testing.T) {
	hv, h := open(t, xentest.Config{})
	const pages = 3*256 + 10
	d := hv.AddDomain(xentest.Spec{ID: 1, Type: xen.PVH, Pages: pages})
	fill(d, pages)
	d.DropPage(700)
	m := h.OpenMemoryFor(1, xen.HereAndThere)
	for _, tc := range []struct {
		pa x86.PhysAddr
		n  int
	}{
		{0, 8}, {4093, 7}, {xen.NarrowBytes - 3, 10}, {5 * xen.NarrowBytes, 1}, {xen.ChunkBytes + 8, 8}, {100, 3 * xen.NarrowBytes},
	} {
		buf := make([]byte, tc.n)
		if err := m.ReadPhys(tc.pa, buf); err != nil || !bytes.Equal(buf, expect(tc.pa, tc.n)) {
			t.Errorf("%v+%d: %v", tc.pa, tc.n, err)
		}
	}
	// Chunks 0 to 3, 5, and 32.
	if st := m.Stats(); st.Maps != 6 || st.MappedBytes != 6*xen.NarrowBytes {
		t.Errorf("%+v", st)
	}
	var re *xen.ReadError
	if err := m.ReadPhys(699*4096, make([]byte, 8192)); !errors.As(err, &re) || re.Addr != 700*4096 || !errors.Is(err, xen.ErrNoPage) {
		t.Errorf("at a hole: %v", err)
	}
	m.Invalidate(15, 2)
	if got, want := m.Stats().MappedBytes, int64(5*xen.NarrowBytes); got != want {
		t.Errorf("%d bytes are mapped after two chunks were forgotten, want %d", got, want)
	}
	if err := m.Close(); err != nil {
		t.Fatal(err)
	}
	if d.MappedPages() != 0 {
		t.Errorf("%d pages stay mapped", d.MappedPages())
	}
}

func TestReadPhysAtHoles(t *testing.T) {
	hv, h := open(t, xentest.Config{})
	d := hv.AddDomain(xentest.Spec{ID: 1, Type: xen.PVH, Pages: 20})
	fill(d, 20)
	d.DropPage(7)
	m := h.OpenMemory(1)
	defer m.Close()
	now := time.Unix(1000, 0)
	m.SetClock(func() time.Time { return now })

	buf := make([]byte, 3*x86.PageSize)
	err := m.ReadPhys(x86.GFN(6).Addr()+8, buf)
	var re *xen.ReadError
	if !errors.As(err, &re) || re.Addr != x86.GFN(7).Addr() || !errors.Is(err, xen.ErrNoPage) {
		t.Errorf("across a hole: %v", err)
	}
	for _, g := range []x86.GFN{6, 8} {
		if err := m.ReadPhys(g.Addr(), buf[:4096]); err != nil || !bytes.Equal(buf[:4096], expect(g.Addr(), 4096)) {
			t.Errorf("beside the hole, %v: %v", g, err)
		}
	}
	// What was not there is believed not to be there for a while.
	d.AddPage(7)
	d.Write(x86.GFN(7).Addr(), []byte("new"))
	if err := m.ReadPhys(x86.GFN(7).Addr(), buf[:3]); !errors.Is(err, xen.ErrNoPage) {
		t.Errorf("at once: %v", err)
	}
	maps := m.Stats().Maps
	now = now.Add(xen.HolePatience + 1)
	if err := m.ReadPhys(x86.GFN(7).Addr(), buf[:3]); err != nil || string(buf[:3]) != "new" {
		t.Errorf("later: %q, %v", buf[:3], err)
	}
	if m.Stats().Maps != maps+1 {
		t.Errorf("mapped %d times", m.Stats().Maps-maps)
	}
	// A chunk of nothing is remembered too, and not held.
	far := x86.PhysAddr(0x5_0000_0000)
	maps = m.Stats().Maps
	for range 5 {
		if err := m.ReadPhys(far, buf[:1]); !errors.Is(err, xen.ErrNoPage) {
			t.Errorf("far away: %v", err)
		}
	}
	if m.Stats().Maps != maps+1 {
		t.Errorf("a hole was mapped %d times", m.Stats().Maps-maps)
	}
}

func TestInvalidate(t *testing.T) {
	hv, h := open(t, xentest.Config{})
	d := hv.AddDomain(xentest.Spec{ID: 1, Type: xen.PVH, Pages: 600})
	fill(d, 600)
	m := h.OpenMemory(1)
	defer m.Close()
	read := func(g x86.GFN) string {
		t.Helper()
		buf := make([]byte, 3)
		if err := m.ReadPhys(g.Addr(), buf); err != nil {
			t.Fatal(err)
		}
		return string(buf)
	}
	for _, g := range []x86.GFN{5, 300} {
		d.Write(g.Addr(), []byte("old"))
		read(g)
		d.AddPage(g) // the guest exchanges the page
		d.Write(g.Addr(), []byte("new"))
		if got := read(g); got != "old" {
			t.Errorf("a mapping shows %q", got)
		}
	}
	m.Invalidate(5, 0)
	m.Invalidate(5, 1)
	if read(5) != "new" || read(300) != "old" {
		t.Errorf("after Invalidate: %q, %q", read(5), read(300))
	}
	m.Invalidate(0, ^uint64(0))
	if read(300) != "new" {
		t.Errorf("after Invalidate of all: %q", read(300))
	}
	d.AddPage(300)
	d.Write(x86.GFN(300).Addr(), []byte("3rd"))
	m.Invalidate(299, ^uint64(0)-5) // wraps around
	if read(300) != "3rd" {
		t.Errorf("after a range that wraps: %q", read(300))
	}
	m.InvalidateAll()
	if n := d.MappedPages(); n != 0 {
		t.Errorf("%d pages stay mapped", n)
	}
}

func TestWindowIsBounded(t *testing.T) {
	hv, h := open(t, xentest.Config{})
	d := hv.AddDomain(xentest.Spec{ID: 1, Type: xen.PVH, Pages: 1})
	m := h.OpenMemory(1)
	defer m.Close()
	const n = xen.WindowChunks * 2
	buf := make([]byte, 1)
	for i := range n {
		pa := x86.PhysAddr(i) * xen.ChunkBytes
		d.AddPage(pa.GFN())
		d.Write(pa, []byte{byte(i)})
		if err := m.ReadPhys(pa, buf); err != nil || buf[0] != byte(i) {
			t.Fatalf("%v: %d, %v", pa, buf[0], err)
		}
		if st := m.Stats(); st.MappedBytes > xen.WindowChunks*xen.ChunkBytes {
			t.Fatalf("%d bytes mapped", st.MappedBytes)
		}
	}
	if st := m.Stats(); st.Evictions == 0 || st.Maps != n {
		t.Errorf("%+v", st)
	}
	if got := d.MappedPages(); got > xen.WindowChunks {
		t.Errorf("%d pages mapped", got)
	}
}

// TestConcurrentReads has readers, an invalidator and evictions at a time;
// the race detector and a fault would tell.
func TestConcurrentReads(t *testing.T) {
	hv, h := open(t, xentest.Config{})
	const pages = 2048
	d := hv.AddDomain(xentest.Spec{ID: 1, Type: xen.PVH, Pages: pages})
	fill(d, pages)
	m := h.OpenMemory(1)
	var stop atomic.Bool
	var readers, other sync.WaitGroup
	other.Add(1)
	go func() {
		defer other.Done()
		for i := 0; !stop.Load(); i++ {
			m.Invalidate(x86.GFN(i*97%pages), 300)
			if i%16 == 0 {
				m.InvalidateAll()
			}
		}
	}()
	for g := range 4 {
		readers.Add(1)
		go func() {
			defer readers.Done()
			rng := rand.New(rand.NewPCG(uint64(g), 3))
			buf := make([]byte, 5000)
			for range 500 {
				n := 1 + rng.IntN(len(buf))
				pa := x86.PhysAddr(rng.IntN(pages*4096 - n))
				if err := m.ReadPhys(pa, buf[:n]); err != nil {
					t.Error(err)
					return
				}
				if !bytes.Equal(buf[:n], expect(pa, n)) {
					t.Errorf("%v+%d differs", pa, n)
					return
				}
			}
		}()
	}
	readers.Wait()
	stop.Store(true)
	other.Wait()
	if err := m.Close(); err != nil {
		t.Error(err)
	}
	if n := d.MappedPages(); n != 0 {
		t.Errorf("%d pages stay mapped", n)
	}
}

func TestReadPhysDoesNotAllocate(t *testing.T) {
	hv, h := open(t, xentest.Config{})
	hv.AddDomain(xentest.Spec{ID: 1, Type: xen.PVH, Pages: 600})
	m := h.OpenMemory(1)
	defer m.Close()
	var buf [8192]byte
	read := func() {
		if err := m.ReadPhys(xen.ChunkBytes-4096, buf[:]); err != nil {
			t.Fatal(err)
		}
	}
	read()
	if n := testing.AllocsPerRun(100, read); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func TestDeadDomain(t *testing.T) {
	hv, h := open(t, xentest.Config{})
	d := hv.AddDomain(xentest.Spec{ID: 1, Type: xen.PVH, Pages: 600})
	fill(d, 600)
	m := h.OpenMemory(1)
	buf := make([]byte, 8)
	if err := m.ReadPhys(0, buf); err != nil {
		t.Fatal(err)
	}
	d.Kill()
	if d.Reap() {
		t.Error("a domain with mapped pages is gone")
	}
	if info, err := h.Domain(1); err != nil || !info.Dying {
		t.Errorf("%+v, %v", info, err)
	}
	// What is mapped stays readable; nothing new can be mapped.
	if err := m.ReadPhys(4096, buf); err != nil || !bytes.Equal(buf, expect(4096, 8)) {
		t.Errorf("mapped page: %v", err)
	}
	if err := m.ReadPhys(2*xen.ChunkBytes, buf); !errors.Is(err, xen.ErrNoPage) {
		t.Errorf("other page: %v", err)
	}
	if err := m.Close(); err != nil {
		t.Fatal(err)
	}
	if !d.Reap() {
		t.Error("the domain stays a zombie")
	}
	m = h.OpenMemory(1)
	defer m.Close()
	if err := m.ReadPhys(0, buf); !errors.Is(err, xen.ErrNoDomain) {
		t.Errorf("no domain: %v", err)
	}
}

func TestMapFails(t *testing.T) {
	hv, h := open(t, xentest.Config{})
	hv.AddDomain(xentest.Spec{ID: 1, Type: xen.PVH})
	m := h.OpenMemory(1)
	defer m.Close()
	hv.FailNext("map", unix.ENOMEM)
	var op *xen.OpError
	if err := m.ReadPhys(0, make([]byte, 1)); !errors.As(err, &op) || op.Op != "map" || op.Errno != unix.ENOMEM {
		t.Errorf("got %v", err)
	}
	if err := m.ReadPhys(0, make([]byte, 1)); err != nil {
		t.Errorf("the next read: %v", err)
	}
}

// TestFaultGuard reads a mapping whose page has vanished, which raises SIGBUS.
func TestFaultGuard(t *testing.T) {
	name := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(name, make([]byte, 8192), 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := os.OpenFile(name, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	mem, err := unix.Mmap(int(f.Fd()), 0, 8192, unix.PROT_READ, unix.MAP_SHARED)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Munmap(mem)
	if err := f.Truncate(4096); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 4096)
	if !xen.CopyGuarded(buf, mem[:4096]) {
		t.Error("a page that is there cannot be read")
	}
	for _, n := range []int{1, 8, 4096} {
		if xen.CopyGuarded(buf[:n], mem[4096:4096+n]) {
			t.Errorf("%d bytes of a page that is gone were read", n)
		}
	}
}

func BenchmarkReadPhys(b *testing.B) {
	hv := xentest.New(xentest.Config{})
	h, err := hv.Host()
	if err != nil {
		b.Fatal(err)
	}
	hv.AddDomain(xentest.Spec{ID: 1, Type: xen.PVH, Pages: 600})
	m := h.OpenMemory(1)
	defer m.Close()
	var buf [8]byte
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		if err := m.ReadPhys(x86.PhysAddr(i%500*4096), buf[:]); err != nil {
			b.Fatal(err)
		}
	}
}
