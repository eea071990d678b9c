package dump

import (
	"bytes"
	"encoding/binary"
	"errors"
	"math/rand/v2"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/xen-hvi/hvi/engine/guest"
	"github.com/xen-hvi/hvi/engine/x86"
)

const magicHVM = 0xf00f_ebee

func write(t testing.TB, data []byte) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "image")
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func open(t testing.TB, data []byte) *Image {
	t.Helper()
	im, err := Open(write(t, data))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = im.Close() })
	return im
}

// The same memory in every format reads the same: low memory, two neighbours, a
// hole, memory above 4 GiB.
func TestFormats(t *testing.T) {
	chunks := []chunk{random(0, 0x3000), random(0x10_0000, 0x8000), random(0x10_8000, 0x1000), random(0x1_0000_0000, 0x2000)}
	disordered := []chunk{chunks[3], chunks[1], chunks[0], chunks[2]}
	flat := random(0, 0x4000)
	overlapping := []chunk{chunks[0], {0x10_0000, chunks[1].data[:0x2000]}, {0x10_1000, chunks[1].data[0x1000:]}, {0x10_1800, chunks[1].data[0x1800:0x2000]}, chunks[2], chunks[3]}
	user := xenRegs
	user.CPL, user.CS, user.SS, user.GSBase, user.KernelGSBase = 3, 0x13, 0x1b, user.KernelGSBase, user.GSBase
	older := qemuRegs
	older.KernelGSBase = 0
	notes := slices.Concat(noteOf("CORE", 1, make([]byte, 336)), noteOf("QEMU", 0, qemuNote(true)), noteOf("QEMU", 0, qemuNote(false)),
		noteOf("QEMU", 0, make([]byte, 440)), noteOf("VMCOREINFO", 0, []byte("OSRELEASE")))
	ranges := []guest.PhysRange{{Start: 0, End: 0x3000}, {Start: 0x10_0000, End: 0x10_9000}, {Start: 0x1_0000_0000, End: 0x1_0000_2000}}
	for name, c := range map[string]struct {
		file   []byte
		format Format
		memory []chunk
		ranges []guest.PhysRange
		regs   []x86.Registers
	}{
		"raw":             {file: flat.data, format: Raw, memory: []chunk{flat}, ranges: []guest.PhysRange{{End: 0x4000}}},
		"LiME":            {file: limeFile(chunks...), format: LiME, memory: chunks, ranges: ranges},
		"LiME disordered": {file: limeFile(disordered...), format: LiME, memory: chunks, ranges: ranges},
		"ELF":             {file: elfFile(notes, chunks...), format: ELFCore, memory: chunks, ranges: ranges, regs: []x86.Registers{qemuRegs, older}},
		"ELF overlapping": {file: elfFile(nil, overlapping...), format: ELFCore, memory: chunks, ranges: ranges},
		"Xen":             {file: xenFile(magicHVM, 1, append(xenContext(0), xenContext(3)...), chunks...), format: XenCore, memory: chunks, ranges: ranges, regs: []x86.Registers{xenRegs, user}},
		"Xen disordered":  {file: xenFile(magicHVM, 1, nil, disordered...), format: XenCore, memory: chunks, ranges: ranges},
	} {
		t.Run(name, func(t *testing.T) {
			im := open(t, c.file)
			size := uint64(0)
			for _, r := range c.ranges {
				size += uint64(r.End - r.Start)
			}
			if im.Format() != c.format || im.Size() != size || !reflect.DeepEqual(im.Ranges(), c.ranges) {
				t.Errorf("%s of %#x bytes: %v, want %v", im.Format(), im.Size(), im.Ranges(), c.ranges)
			}
			if im.VCPUs() != len(c.regs) {
				t.Fatalf("%d vCPUs, want %d", im.VCPUs(), len(c.regs))
			}
			for i, want := range c.regs {
				if got, err := im.Registers(i); err != nil || got != want {
					t.Errorf("vCPU %d: %+v, %v, want %+v", i, got, err, want)
				}
			}
			if _, err := im.Registers(len(c.regs)); err == nil {
				t.Error("registers of a vCPU that isn't there")
			}
			checkMemory(t, im, c.memory)
		})
	}
}

// checkMemory compares an image with what it was made of, at random.
func checkMemory(t *testing.T, im *Image, chunks []chunk) {
	t.Helper()
	want := func(at uint64, buf []byte) bool {
		for i := range buf {
			found := false
			for _, c := range chunks {
				if off := at + uint64(i) - c.at; at+uint64(i) >= c.at && off < uint64(len(c.data)) {
					buf[i], found = c.data[off], true
				}
			}
			if !found {
				return false
			}
		}
		return true
	}
	rng := rand.New(rand.NewPCG(5, 6))
	inside := 0
	for range 2000 {
		c := chunks[rng.IntN(len(chunks))]
		at := c.at - 64 + uint64(rng.IntN(len(c.data)+128))
		got, ref := make([]byte, rng.IntN(0x1800)), make([]byte, 0x1800)
		if rng.IntN(2) == 0 {
			got = got[:len(got)%33]
		}
		ref = ref[:len(got)]
		ok := want(at, ref)
		err := im.ReadPhys(x86.PhysAddr(at), got)
		var re *guest.RangeError
		switch {
		case ok && (err != nil || !bytes.Equal(got, ref)):
			t.Fatalf("%d bytes at %#x: other contents, %v", len(got), at, err)
		case !ok && (!errors.As(err, &re) || uint64(re.Phys) != at || re.Len != len(got) || re.Size != im.Size()):
			t.Fatalf("%d bytes at %#x: %v, want a RangeError", len(got), at, err)
		case ok:
			inside++
		}
		var word [8]byte
		ok = want(at, word[:])
		v, err := im.ReadPhysUint64(x86.PhysAddr(at))
		if ok != (err == nil) || ok && v != binary.LittleEndian.Uint64(word[:]) {
			t.Fatalf("word at %#x: %#x, %v, want % x", at, v, err, word)
		}
	}
	if inside < 500 {
		t.Errorf("only %d reads were inside", inside)
	}
	if err := im.ReadPhys(^x86.PhysAddr(3), make([]byte, 8)); !errors.Is(err, guest.ErrOutside) {
		t.Errorf("a read over the top: %v", err)
	}
}

func TestOpenErrors(t *testing.T) {
	page := random(0, 0x1000)
	two := []chunk{page, random(0x10_0000, 0x1000)}
	lime, core, xen := limeFile(two...), elfFile(nil, two...), xenFile(magicHVM, 1, nil, two...)
	// changed returns a copy with some bytes put into it.
	changed := func(b []byte, off int, put string) []byte {
		b = bytes.Clone(b)
		copy(b[off:], put)
		return b
	}
	for name, c := range map[string]struct {
		file []byte
		is   error
		says string
	}{
		"empty":                     {nil, ErrEmpty, "empty file"},
		"text":                      {[]byte("Hello\n"), ErrNotImage, "no whole number of pages"},
		"kdump":                     {append([]byte("KDUMP   "), page.data...), ErrUnsupported, "--format elf"},
		"flattened kdump":           {append([]byte("makedumpfile\x00"), page.data...), ErrUnsupported, "--format elf"},
		"qcow2":                     {append([]byte("QFI\xfb"), page.data...), ErrUnsupported, "qcow2 disk image"},
		"gzip":                      {append([]byte("\x1f\x8b\x08"), page.data...), ErrUnsupported, "unpack it"},
		"virsh save":                {append([]byte("LibvirtQemudSave"), page.data...), ErrUnsupported, "--memory-only"},
		"xl save":                   {append([]byte("Xen saved domain, xl format\n"), page.data...), ErrUnsupported, "xl dump-core"},
		"LiME header cut":           {lime[:20], ErrTruncated, "offset 0x0"},
		"LiME cut":                  {lime[:len(lime)-1], ErrTruncated, "0x1000 bytes of memory at 0x100000, and 0xfff are there (it was not"},
		"LiME version":              {changed(lime, 4, "\x02"), ErrUnsupported, "version 2"},
		"LiME backwards":            {changed(lime, 8, "\x00\x20"), ErrDamaged, "from 0x2000 to 0xfff"},
		"LiME without end":          {changed(lime, 16, "\xff\xff\xff\xff\xff\xff\xff\xff"), ErrDamaged, "to 0xffffffffffffffff"},
		"LiME second header":        {changed(lime, 0x1020, "X"), ErrDamaged, "offset 0x1020"},
		"ELF header cut":            {core[:40], ErrTruncated, "40 bytes"},
		"ELF 32-bit":                {changed(core, 4, "\x01"), ErrUnsupported, "32-bit"},
		"ELF big-endian":            {changed(core, 5, "\x02"), ErrUnsupported, "big-endian"},
		"ELF executable":            {changed(core, 16, "\x03"), ErrNotImage, "an ELF executable or library (ET_DYN), not a core"},
		"ELF of another machine":    {changed(core, 18, "\xb7"), ErrUnsupported, "EM_AARCH64"},
		"ELF programs cut":          {core[:70], ErrTruncated, "3 program headers"},
		"ELF program size":          {changed(core, 54, "\x20"), ErrDamaged, "32 bytes"},
		"ELF section size":          {changed(xen, 58, "\x20"), ErrDamaged, "32 bytes"},
		"ELF many programs":         {changed(core, 56, "\xff\xff"), ErrTruncated, "program headers"},
		"ELF cut":                   {core[:len(core)-1], ErrTruncated, "0x1000 bytes at offset"},
		"ELF beyond what there is":  {changed(core, 64+56+24, "\xff\xff\xff\xff\xff\xff\xff\xff"), ErrDamaged, "0xffffffffffffffff"},
		"ELF without memory":        {elfFile([]byte("none")), ErrNotImage, "no memory"},
		"ELF of a process":          {elfFile(nil, page, page), ErrNotImage, "a core of a process"},
		"ELF of notes":              {bytes.Replace(elfFile(nil, make([]chunk, 20)...), []byte{1, 0, 0, 0, 0, 0, 0, 0}, []byte{4, 0, 0, 0, 0, 0, 0, 0}, -1), ErrDamaged, "segments of notes"},
		"ELF with nothing":          {header(0, 0, 0, 0, 0), ErrDamaged, "section 0 of 0"},
		"ELF with other sections":   {bytes.Replace(xen, []byte(".note.Xen"), []byte(".note.Zen"), 1), ErrNotImage, "neither"},
		"ELF sections cut":          {xen[:100], ErrTruncated, "6 section headers"},
		"ELF with 1,000 sections":   {changed(xen, 60, "\xe8\x03"), ErrDamaged, "1000 sections"},
		"Xen PV":                    {xenFile(0xf00f_ebed, 1, nil, two...), ErrUnsupported, "PV guest"},
		"Xen magic":                 {xenFile(7, 1, nil, two...), ErrDamaged, "0x7"},
		"Xen format version":        {xenFile(magicHVM, 5<<32, nil, two...), ErrUnsupported, "version 5"},
		"Xen cut":                   {xen[:len(xen)-1], ErrTruncated, "offset"},
		"Xen without frame numbers": {bytes.Replace(xen, []byte(".xen_pfn"), []byte(".xen_p2m"), 1), ErrDamaged, "3 pages"},
		"Xen frame number":          {xenFile(magicHVM, 1, nil, chunk{1 << 60, page.data}), ErrDamaged, "0x1000000000000"},
		"Xen without memory":        {xenFile(magicHVM, 1, nil), ErrNotImage, "no memory"},
	} {
		im, err := Open(write(t, c.file))
		var oe *OpenError
		if im != nil || !errors.As(err, &oe) || !errors.Is(err, c.is) || !strings.Contains(err.Error(), c.says) ||
			!strings.Contains(err.Error(), oe.Path) || oe.Path == "" || strings.Contains(err.Error(), "\n") {
			t.Errorf("%s: %v, want %v and %q", name, err, c.is, c.says)
		}
	}
}

func TestOpenNoFile(t *testing.T) {
	dir := t.TempDir()
	locked := write(t, make([]byte, 4096))
	if err := os.Chmod(locked, 0); err != nil {
		t.Fatal(err)
	}
	cases := map[string]error{
		filepath.Join(dir, "none"): os.ErrNotExist,
		dir:                        ErrNotRegular,
		os.DevNull:                 ErrNotRegular,
	}
	if os.Getuid() != 0 { // to root, every file is readable
		cases[locked] = os.ErrPermission
	}
	for path, is := range cases {
		im, err := Open(path)
		var oe *OpenError
		if im != nil || !errors.As(err, &oe) || !errors.Is(err, is) || strings.Count(err.Error(), path) != 1 {
			t.Errorf("%s: %v, want %v", path, err, is)
		}
	}
}

// A file cut anywhere is an error or an image without a part of what it had,
// and never anything worse.
func TestCut(t *testing.T) {
	two := []chunk{random(0, 0x1000), random(0x10_0000, 0x1000)}
	for _, file := range [][]byte{limeFile(two...), elfFile(noteOf("QEMU", 0, qemuNote(true)), two...), xenFile(magicHVM, 1, xenContext(0), two...)} {
		for n := 4; n < len(file); n++ {
			if n > 1000 && n < len(file)-1000 && n%97 != 0 {
				continue
			}
			_, l, err := parse(file[:n:n])
			var oe *OpenError
			if err != nil && !errors.As(err, &oe) || err == nil && len(l.segments) == 2 {
				t.Fatalf("%.4q cut to %d: %v, %v", file, n, l, err)
			}
		}
	}
}

// A file that is truncated under a reader is an error to the reader inside
// Guard, and the process lives.
func TestGuard(t *testing.T) {
	im := open(t, make([]byte, 64<<12))
	read := func() error { _, err := im.ReadPhysUint64(60 << 12); return err }
	if err := im.Guard(read); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(im.Path(), 10<<12); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		err := im.Guard(read)
		var gone *GoneError
		if !errors.Is(err, ErrGone) || !errors.As(err, &gone) || gone.Path != im.Path() || gone.Offset != 60<<12 {
			t.Errorf("a word that is gone: %v", err)
		}
	}
	bulk := func() error { return im.ReadPhys(8<<12, make([]byte, 16<<12)) }
	var gone *GoneError
	if err := im.Guard(bulk); !errors.As(err, &gone) || gone.Offset < 10<<12 || gone.Offset >= 24<<12 {
		t.Errorf("many bytes that are gone: %v", err)
	}
	if err := im.Guard(func() error { return im.ReadPhys(8<<12, make([]byte, 4096)) }); err != nil {
		t.Errorf("what is still there: %v", err)
	}
	if err := im.Guard(func() error { return os.ErrInvalid }); !errors.Is(err, os.ErrInvalid) {
		t.Errorf("the operation's own error: %v", err)
	}
	// What is no fault of the file's is none of Guard's business.
	for name, f := range map[string]func() error{
		"a panic":       func() error { panic("mistake") },
		"a nil pointer": func() error { var p *Image; return p.Close() },
	} {
		func() {
			defer func() {
				if recover() == nil {
					t.Errorf("%s was swallowed", name)
				}
			}()
			_ = im.Guard(f)
		}()
	}
}

func TestClosed(t *testing.T) {
	im := open(t, make([]byte, 4096))
	as := guest.NewAddressSpace(im, 0, x86.CR4PAE, 0)
	for range 2 {
		if err := im.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if err := im.ReadPhys(0, make([]byte, 8)); !errors.Is(err, os.ErrClosed) {
		t.Errorf("ReadPhys: %v", err)
	}
	if _, err := im.ReadPhysUint64(0); !errors.Is(err, os.ErrClosed) {
		t.Errorf("ReadPhysUint64: %v", err)
	}
	if _, err := as.Translate(0); !errors.Is(err, os.ErrClosed) {
		t.Errorf("Translate: %v", err)
	}
}

func TestNoAllocations(t *testing.T) {
	im := open(t, limeFile(random(0, 0x1000), random(0x10_0000, 0x4000), random(0x20_0000, 0x1000)))
	buf := make([]byte, 0x800)
	for _, at := range []x86.PhysAddr{0, 0x10_0000, 0x20_0000} {
		n := testing.AllocsPerRun(100, func() {
			_, err1 := im.ReadPhysUint64(at + 8)
			err2 := im.ReadPhys(at+0x100, buf)
			if err1 != nil || err2 != nil {
				t.Fatal(err1, err2)
			}
		})
		if n != 0 {
			t.Errorf("%v allocations at %v", n, at)
		}
	}
}

func BenchmarkGuard(b *testing.B) {
	im := open(b, make([]byte, 4096))
	b.ReportAllocs()
	for b.Loop() {
		if err := im.Guard(func() error { return nil }); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkReadPhysUint64 reads of an image of one segment, and of one of which
// the pages are scattered over many.
func BenchmarkReadPhysUint64(b *testing.B) {
	for name, gap := range map[string]int{"1 segment": 0, "1000 segments": 0x1000} {
		b.Run(name, func(b *testing.B) {
			var chunks []chunk
			for i := range 1000 {
				chunks = append(chunks, chunk{uint64(i * (0x1000 + gap)), make([]byte, 0x1000)})
			}
			im := open(b, xenFile(magicHVM, 1, nil, chunks...))
			b.ReportAllocs()
			i := 0
			for b.Loop() {
				if _, err := im.ReadPhysUint64(x86.PhysAddr(i * (0x1000 + gap))); err != nil {
					b.Fatal(err)
				}
				if i += 7; i >= 1000 {
					i -= 1000
				}
			}
		})
	}
}

// fuzz parses what the fuzzer makes of a file: whatever it says, its memory is
// in the file, in order and apart, and there is no more of it than of the file.
func fuzz(f *testing.F) {
	f.Fuzz(func(t *testing.T, data []byte) {
		format, l, err := parse(data)
		if err != nil {
			var oe *OpenError
			if !errors.As(err, &oe) || oe.Err == nil || oe.Error() == "" {
				t.Fatalf("error %#v", err)
			}
			return
		}
		im := &Image{format: format, data: data, layout: l}
		im.setMain()
		if len(l.segments)*16 > len(data)+16 || len(l.regs) > maxVCPUs || len(l.regs)*400 > len(data)*maxNotes {
			t.Fatalf("%d segments and %d vCPUs of %d bytes", len(l.segments), len(l.regs), len(data))
		}
		end := uint64(0)
		for _, s := range l.segments {
			if s.size == 0 || uint64(s.start) < end || s.off > uint64(len(data)) || s.size > uint64(len(data))-s.off {
				t.Fatalf("segment %+v of %d bytes, the last ends at %#x", s, len(data), end)
			}
			end = uint64(s.start) + s.size
			var b [1]byte
			for _, at := range []uint64{0, s.size / 2, s.size - 1} {
				if err := im.ReadPhys(s.start+x86.PhysAddr(at), b[:]); err != nil || b[0] != data[s.off+at] {
					t.Fatalf("read of segment %+v at %#x: %v, %v", s, at, b, err)
				}
			}
			_, _ = im.ReadPhysUint64(s.start + x86.PhysAddr(s.size) - 1)
		}
	})
}

// The seeds are small: a range is a few bytes where the format allows that.
func FuzzLiME(f *testing.F) {
	f.Add(limeFile(random(0, 16), random(0x1000, 5), random(0x1004, 9)))
	f.Add(limeFile(random(1<<40, 1))[:32])
	fuzz(f)
}

func FuzzELFCore(f *testing.F) {
	f.Add(elfFile(slices.Concat(noteOf("CORE", 1, make([]byte, 8)), noteOf("QEMU", 0, qemuNote(true))), random(0, 16), random(0x1000, 5), random(0x1003, 9)))
	f.Add(elfFile(nil, random(0, 16)))
	many := elfFile(nil, random(0, 16)) // the count of headers in a section
	copy(many[56:], "\xff\xff")
	binary.LittleEndian.PutUint64(many[40:], 120)
	f.Add(many)
	fuzz(f)
}

func FuzzXenCore(f *testing.F) {
	f.Add(xenFile(magicHVM, 1, nil, random(0, 0x1000), random(0x4000, 0x1000)))
	f.Add(xenFile(magicHVM, 1, xenContext(0)[:8]))
	fuzz(f)
}
