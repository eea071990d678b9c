package linux

import (
	"bytes"
	"syscall"
	"testing"

	"github.com/xen-hvi/hvi/engine/guest"
	"github.com/xen-hvi/hvi/engine/guest/report"
	"github.com/xen-hvi/hvi/engine/x86"
)

// On a real kernel: what is remembered is what was read, what is written is read
// again as it was, and what is guessed is so.
func TestImagesProfile(t *testing.T) {
	for _, img := range testImages(t) {
		t.Run(img.name(), func(t *testing.T) {
			mem := img.memory(t)
			cold, err := Identify(mem, img.Regs[0])
			if err != nil {
				t.Fatal(err)
			}
			dir := t.TempDir()
			for i, c := range []*Cache{openCache(t, dir), openCache(t, dir)} {
				k, err := IdentifyWith(mem, img.Regs[0], Options{Cache: c})
				if err != nil {
					t.Fatal(err)
				}
				c.Close()
				if k.Cached != (i == 1) {
					t.Errorf("identification %d: cached %v", i, k.Cached)
				}
				same(t, "the cache", k, cold)
			}
			checkGuess(t, cold, img)

			var file bytes.Buffer
			if err := ExportISF(&file, cold); err != nil {
				t.Fatal(err)
			}
			f := checkISF(t, file.Bytes())
			if got := string(f.Symbols["linux_banner"].Data); got != img.Version+"\n\x00" {
				t.Errorf("linux_banner %q", got)
			}
			if a := f.Symbols["init_task"].Address; a == nil || x86.VirtAddr(*a) != lookup(t, cold, "init_task")-cold.Base+0xffff_ffff_8100_0000 {
				t.Errorf("init_task at %v", a)
			}
			isf, err := ReadISF("export", &file)
			if err != nil {
				t.Fatal(err)
			}
			if isf.Banner != cold.Banner || isf.offsets != cold.Offsets {
				t.Errorf("read again: %q, %+v, want %+v", isf.Banner, isf.offsets, cold.Offsets)
			}
			k, err := IdentifyWith(mem, img.Regs[0], Options{ISF: isf})
			if err != nil || k.Types != report.TypesISF || k.Offsets != cold.Offsets {
				t.Errorf("identified with it: %+v, %v", k, err)
			}
		})
	}
}

func lookup(t *testing.T, k *Kernel, name string) x86.VirtAddr {
	va, ok := k.Lookup(name)
	if !ok {
		t.Fatalf("no %s", name)
	}
	return va
}

// checkGuess compares the guess with the kernel's own word.
func checkGuess(t *testing.T, k *Kernel, img testImage) {
	o, ok := k.guessOffsets()
	if !ok {
		if img.Running {
			t.Error("no guess")
		}
		return
	}
	want := noOffsets()
	want.Task.Tasks, want.Task.PID, want.Task.TGID, want.Task.Comm = k.Offsets.Task.Tasks, k.Offsets.Task.PID, k.Offsets.Task.TGID, k.Offsets.Task.Comm
	if o != want {
		t.Errorf("guessed %+v, want %+v", o.Task, want.Task)
	}
}

// BenchmarkIdentify is a kernel found and profiled: from nothing; known from a
// file, as by a program that has just started; and known to this process. Beside
// the time that passed it reports the processor's, which a busy machine changes
// less.
func BenchmarkIdentify(b *testing.B) {
	for _, img := range testImages(b) {
		mem := img.memory(b)
		b.Run(img.name()+"/cold", func(b *testing.B) { benchmarkIdentify(b, mem, img, nil, false) })
		b.Run(img.name()+"/file", func(b *testing.B) { benchmarkIdentify(b, mem, img, openCache(b, b.TempDir()), false) })
		b.Run(img.name()+"/shared", func(b *testing.B) { benchmarkIdentify(b, mem, img, openCache(b, b.TempDir()), true) })
	}
}

func benchmarkIdentify(b *testing.B, mem *guest.RawImage, img testImage, c *Cache, shared bool) {
	opt := Options{Cache: c}
	first, err := IdentifyWith(mem, img.Regs[0], opt)
	if err != nil {
		b.Fatal(err)
	}
	c.Close()
	if !shared {
		first.profile = nil
	}
	b.ReportAllocs()
	b.ResetTimer()
	begin := processorTime()
	for range b.N {
		if c != nil && !shared {
			clear(c.live)
		}
		k, err := IdentifyWith(mem, img.Regs[0], opt)
		if err != nil || k.Cached != (c != nil) {
			b.Fatalf("cached %v, %v", k != nil && k.Cached, err)
		}
	}
	b.ReportMetric(float64(processorTime()-begin)/float64(b.N)/1e6, "cpu-ms/op")
	b.StopTimer()
	if shared && first.profile == nil {
		b.Fatal("nothing is shared")
	}
}

// processorTime is what this process has used, in nanoseconds.
func processorTime() int64 {
	var u syscall.Rusage
	if syscall.Getrusage(syscall.RUSAGE_SELF, &u) != nil {
		return 0
	}
	return u.Utime.Nano() + u.Stime.Nano()
}
