package guest_test

import (
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"sync"
	"syscall"
	"testing"

	"github.com/xen-hvi/hvi/engine/guest"
	"github.com/xen-hvi/hvi/engine/guest/dump"
	"github.com/xen-hvi/hvi/engine/guest/guesttest"
	"github.com/xen-hvi/hvi/engine/guest/linux"
	"github.com/xen-hvi/hvi/engine/x86"
)

// benchEnv names a memory image of a Linux guest for the benchmarks. Without it
// they build one of 512 MiB, in which every page of memory is mapped by an entry
// of its own: the worst a guest can do to a translation.
const benchEnv = "HVI_BENCH_IMAGE"

// benchGuest is a memory image, mapped as a real one is, with its kernel's
// address space and the first address of each 4 KiB that are mapped there, in
// random order.
type benchGuest struct {
	im    *dump.Image
	as    guest.AddressSpace
	pages []x86.VirtAddr
}

var bench = sync.OnceValues(func() (*benchGuest, error) {
	path := os.Getenv(benchEnv)
	if path == "" {
		return buildBench()
	}
	im, err := dump.Open(path)
	if err != nil {
		return nil, err
	}
	k, err := linux.Find(im, nil, im.Ranges())
	if err != nil {
		return nil, err
	}
	g := &benchGuest{im: im, as: k.AddressSpace()}
	// The direct map and all else from the kernel half on, of what is in
	// the image; a device's memory isn't.
	for va := x86.VirtAddr(0xffff_8000_0000_0000); va != 0; {
		t, err := g.as.Translate(va)
		if err != nil {
			te, ok := err.(*guest.TranslateError)
			if !ok {
				return nil, err
			}
			va = te.Skip()
			continue
		}
		for n := t.PageEnd(va); n > 0; n -= x86.PageSize {
			if _, err := g.as.ReadUint64(va); err == nil {
				g.pages = append(g.pages, va)
			}
			va += x86.PageSize
		}
		if len(g.pages) > 1<<21 {
			break
		}
	}
	g.shuffle()
	return g, nil
})

func buildBench() (*benchGuest, error) {
	const size = 512 << 20
	b := guesttest.New(4, size)
	rng := rand.New(rand.NewPCG(7, 8))
	for i := 0; i < size-8<<20; i += 8 {
		b.Put(x86.PhysAddr(i), rng.Uint64())
	}
	g := &benchGuest{}
	frames := rng.Perm((size - 8<<20) >> 12)
	for i, frame := range frames {
		va := directVA + x86.VirtAddr(i)<<12
		b.Map(va, x86.PhysAddr(frame)<<12, x86.PageSize, guest.Page4K, guesttest.Writable)
		g.pages = append(g.pages, va)
	}
	g.shuffle()
	dir, err := os.MkdirTemp("", "hvi-bench")
	if err != nil {
		return nil, err
	}
	defer func() { _ = os.RemoveAll(dir) }() // what is mapped stays
	path := filepath.Join(dir, "image")
	if err := os.WriteFile(path, b.Mem, 0o600); err != nil {
		return nil, err
	}
	if g.im, err = dump.Open(path); err != nil {
		return nil, err
	}
	g.as = guest.NewAddressSpace(g.im, b.CR3(), b.CR4(), b.EFER())
	return g, nil
}

func (g *benchGuest) shuffle() {
	rng := rand.New(rand.NewPCG(9, 10))
	rng.Shuffle(len(g.pages), func(i, j int) { g.pages[i], g.pages[j] = g.pages[j], g.pages[i] })
}

// benchImage gets the image and starts measuring. Beside ns/op a benchmark
// reports the processor time of its own thread, which on a machine shared with
// others is the truer figure.
func benchImage(b *testing.B) *benchGuest {
	b.Helper()
	g, err := bench()
	if err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	runtime.LockOSThread()
	used := func() int64 {
		const thread = 1 // RUSAGE_THREAD
		var u syscall.Rusage
		if err := syscall.Getrusage(thread, &u); err != nil {
			b.Fatal(err)
		}
		return u.Utime.Nano() + u.Stime.Nano()
	}
	before := used()
	b.Cleanup(func() {
		b.ReportMetric(float64(used()-before)/float64(b.N), "cpu-ns/op")
		runtime.UnlockOSThread()
	})
	return g
}

// BenchmarkTranslate translates pages scattered over all of memory, one after
// the other, again and again.
func BenchmarkTranslate(b *testing.B) {
	for name, n := range map[string]int{"200": 200, "4096": 4096} {
		for how, tlb := range map[string]*guest.TLB{"walk": nil, "cached": guest.NewTLB()} {
			b.Run(name+"/"+how, func(b *testing.B) {
				g := benchImage(b)
				as := g.as.WithTLB(tlb)
				pages := slices.Clone(g.pages[:n])
				i := 0
				for b.Loop() {
					if _, err := as.Translate(pages[i] + 0x123); err != nil {
						b.Fatal(err)
					}
					if i++; i == n {
						i = 0
					}
				}
			})
		}
	}
	// Every page once: nothing is in a cache, not of the processor either.
	b.Run("all/walk", func(b *testing.B) {
		g := benchImage(b)
		i := 0
		for b.Loop() {
			if _, err := g.as.Translate(g.pages[i]); err != nil {
				b.Fatal(err)
			}
			if i++; i == len(g.pages) {
				i = 0
			}
		}
	})
}

// BenchmarkTLBFlush is a translation after a flush: the price of a TLB that
// serves one reading operation.
func BenchmarkTLBFlush(b *testing.B) {
	for how, flush := range map[string]func(*guest.TLB, x86.PhysAddr, x86.VirtAddr){
		"all":  func(t *guest.TLB, _ x86.PhysAddr, _ x86.VirtAddr) { t.Flush() },
		"root": func(t *guest.TLB, root x86.PhysAddr, _ x86.VirtAddr) { t.FlushRoot(root) },
		"page": func(t *guest.TLB, root x86.PhysAddr, va x86.VirtAddr) { t.FlushPage(root, va) },
	} {
		b.Run(how, func(b *testing.B) {
			g := benchImage(b)
			tlb := guest.NewTLB()
			as := g.as.WithTLB(tlb)
			va := g.pages[0]
			for b.Loop() {
				flush(tlb, as.Root(), va)
				if _, err := as.Translate(va); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// BenchmarkReadWord reads 8 bytes: hot, at a few physical addresses; random,
// over all of memory; virtual, in 4,096 pages, with and without a TLB.
func BenchmarkReadWord(b *testing.B) {
	physical := func(name string, mask uint64) {
		b.Run(name, func(b *testing.B) {
			g := benchImage(b)
			ranges := g.im.Ranges()
			first, size := ranges[0].Start, uint64(ranges[0].End-ranges[0].Start)
			x := uint64(1)
			for b.Loop() {
				x = x*6364136223846793005 + 1442695040888963407
				pa := first + x86.PhysAddr((x>>20&mask)%(size-8))&^7
				if _, err := g.im.ReadPhysUint64(pa); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
	physical("hot", 0xff)
	physical("random", ^uint64(0))
	for how, tlb := range map[string]*guest.TLB{"walk": nil, "cached": guest.NewTLB()} {
		b.Run("virtual/"+how, func(b *testing.B) {
			g := benchImage(b)
			as := g.as.WithTLB(tlb)
			i := 0
			for b.Loop() {
				// Not always at the same offset: the lines would share one
				// set of the processor's cache.
				if _, err := as.ReadUint64(g.pages[i&4095] + x86.VirtAddr(i*72&0xff8)); err != nil {
					b.Fatal(err)
				}
				i++
			}
		})
	}
	b.Run("32 bits/cached", func(b *testing.B) {
		g := benchImage(b)
		as := g.as.WithTLB(guest.NewTLB())
		i := 0
		for b.Loop() {
			if _, err := as.ReadUint32(g.pages[i&4095] + x86.VirtAddr(i*68&0xffc)); err != nil {
				b.Fatal(err)
			}
			i++
		}
	})
}

// BenchmarkReadBulk reads all of memory in pieces of 1 MiB: by physical
// address, and as 256 pages that lie anywhere.
func BenchmarkReadBulk(b *testing.B) {
	const piece = 1 << 20
	b.Run("physical", func(b *testing.B) {
		g := benchImage(b)
		ranges := g.im.Ranges()
		first, end := ranges[0].Start, ranges[0].End
		buf := make([]byte, piece)
		b.SetBytes(piece)
		pa := first
		for b.Loop() {
			if err := g.im.ReadPhys(pa, buf); err != nil {
				b.Fatal(err)
			}
			if pa += piece; end-pa < piece {
				pa = first
			}
		}
	})
	for how, tlb := range map[string]*guest.TLB{"walk": nil, "cached": guest.NewTLB()} {
		b.Run("pages/"+how, func(b *testing.B) {
			g := benchImage(b)
			as := g.as.WithTLB(tlb)
			buf := make([]byte, piece)
			b.SetBytes(piece)
			i := 0
			for b.Loop() {
				for off := 0; off < piece; off += x86.PageSize {
					if err := as.Read(g.pages[i], buf[off:off+x86.PageSize]); err != nil {
						b.Fatal(err)
					}
					if i++; i == len(g.pages) {
						i = 0
					}
				}
			}
		})
	}
}
