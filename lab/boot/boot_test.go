package boot

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"github.com/xen-hvi/hvi/lab/kernel"
)

func sector() []byte {
	b := make([]byte, SectorSize)
	b[510], b[511] = 0x55, 0xaa
	return b
}

func piece(name string, size int) Piece {
	data := make([]byte, size)
	for i := range data {
		data[i] = name[i%len(name)]
	}
	return Piece{Name: name, Size: int64(size), Data: bytes.NewReader(data)}
}

func spec() Spec {
	return Spec{
		Loader:      sector(),
		Kernel:      kernel.Flat{Entry: 0x200040, Address: 0x200000, Data: bytes.Repeat([]byte("xen!"), 300), Zero: 70000},
		Args:        "console=com1 loglvl=all",
		Module:      piece("vmlinux", 100001),
		ModuleArgs:  "console=hvc0",
		Ramdisk:     []Piece{piece("base", 5000), piece("guest", 4096), piece("payload", 1)},
		MemoryBytes: 1 << 30,
	}
}

// memory is a machine's memory after the loader has run. It begins full of
// what a careless loader would leave there.
type memory map[uint32]byte

func (m memory) bytes(t *testing.T, at, n uint32) []byte {
	t.Helper()
	b := make([]byte, n)
	for i := range b {
		c, ok := m[at+uint32(i)]
		if !ok {
			t.Fatalf("nothing is loaded at %#x", at+uint32(i))
		}
		b[i] = c
	}
	return b
}

func (m memory) word(t *testing.T, at uint32) uint32 {
	t.Helper()
	return binary.LittleEndian.Uint32(m.bytes(t, at, 4))
}

func (m memory) text(t *testing.T, at uint32) string {
	t.Helper()
	var s strings.Builder
	for ; m.bytes(t, at, 1)[0] != 0; at++ {
		s.WriteByte(m[at])
	}
	return s.String()
}

// loaded does what loader.S does.
func loaded(t *testing.T, disk []byte) memory {
	t.Helper()
	m := memory{}
	read := func(lba, sectors, to uint32) {
		for i := range sectors * SectorSize {
			if lba == 0 {
				m[to+i] = 0
				continue
			}
			m[to+i] = disk[lba*SectorSize+i]
		}
	}
	read(paramLBA, paramSectors, params)
	if got := m.word(t, params); got != magic {
		t.Fatalf("magic %#x", got)
	}
	for at := uint32(params + pLoads); m.word(t, at+4) != 0; at += 12 {
		read(m.word(t, at), m.word(t, at+4), m.word(t, at+8))
	}
	return m
}

func TestWrite(t *testing.T) {
	s := spec()
	var disk bytes.Buffer
	n, err := Write(&disk, s)
	if err != nil {
		t.Fatal(err)
	}
	if n != int64(disk.Len()) || n%Geometry != 0 || n > 2*Geometry {
		t.Errorf("%d bytes are said, %d written", n, disk.Len())
	}
	if !bytes.Equal(disk.Bytes()[:SectorSize], s.Loader) {
		t.Error("the first sector is not the loader")
	}
	m := loaded(t, disk.Bytes())

	if got := m.word(t, params+4); got != s.Kernel.Entry {
		t.Errorf("entry %#x", got)
	}
	if got := m.bytes(t, s.Kernel.Address, 1200); !bytes.Equal(got, s.Kernel.Data) {
		t.Error("the kernel is not what it was")
	}
	for i, c := range m.bytes(t, s.Kernel.Address+1200, s.Kernel.Zero) {
		if c != 0 {
			t.Fatalf("byte %d behind the kernel is %#x", i, c)
		}
	}

	info := m.word(t, params+8)
	if got := m.word(t, info); got != hasCmdline|hasMods|hasMmap|hasName {
		t.Errorf("flags %#x", got)
	}
	if got := m.text(t, m.word(t, info+16)); got != "xen "+s.Args {
		t.Errorf("command line %q", got)
	}
	if got := m.word(t, info+48); got != mmap {
		t.Errorf("memory map at %#x", got)
	}
	if got := m.word(t, info+20); got != 2 {
		t.Fatalf("%d modules", got)
	}
	mods := m.word(t, info+24)
	start, end := m.word(t, mods), m.word(t, mods+4)
	if end-start != 100001 || start%pageSize != 0 || !bytes.HasPrefix(m.bytes(t, start, end-start), []byte("vmlinuxvmlinux")) {
		t.Errorf("first module at %#x to %#x", start, end)
	}
	if got := m.text(t, m.word(t, mods+8)); got != "vmlinux "+s.ModuleArgs {
		t.Errorf("its command line is %q", got)
	}
	start, end = m.word(t, mods+16), m.word(t, mods+20)
	ramdisk := m.bytes(t, start, end-start)
	want := append(append(append(bytes.Repeat([]byte("base"), 1250), make([]byte, 2*pageSize-5000)...), bytes.Repeat([]byte("guest"), 820)[:4096]...), 'p')
	if !bytes.Equal(ramdisk, want) {
		t.Errorf("the second module is %d bytes, want %d", len(ramdisk), len(want))
	}
}

func TestWriteRefuses(t *testing.T) {
	tests := []struct {
		name  string
		spoil func(*Spec)
		large bool
	}{
		{"no loader", func(s *Spec) { s.Loader = nil }, false},
		{"no signature", func(s *Spec) { s.Loader = make([]byte, SectorSize) }, false},
		{"module larger than memory", func(s *Spec) { s.MemoryBytes = 128 << 20; s.Module.Size = 100 << 20 }, true},
		{"ramdisk larger than memory", func(s *Spec) { s.Ramdisk[2].Size = 1 << 30 }, true},
		{"kernel over the modules", func(s *Spec) { s.Kernel.Zero = moduleBase }, true},
		{"long command line", func(s *Spec) { s.Args = strings.Repeat("x", paramSectors*SectorSize) }, true},
		{"many pieces", func(s *Spec) {
			s.Ramdisk = make([]Piece, 0)
			for range maxLoads + 1 {
				s.Ramdisk = append(s.Ramdisk, piece("p", 1))
			}
		}, true},
		{"a piece shorter than said", func(s *Spec) { s.Ramdisk[0].Size++ }, false},
		{"a piece that cannot be read", func(s *Spec) { s.Module.Data = broken{} }, false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			s := spec()
			tt.spoil(&s)
			var b bytes.Buffer
			if _, err := Write(&b, s); err == nil || errors.Is(err, ErrTooLarge) != tt.large {
				t.Errorf("got %v", err)
			}
		})
	}
}

type broken struct{}

func (broken) Read([]byte) (int, error) { return 0, errors.New("broken") }

// TestTwins holds the loader's constants to this package's.
func TestTwins(t *testing.T) {
	found := map[string]uint64{}
	for _, m := range regexp.MustCompile(`(?m)^\s+\.set\s+(\w+),\s+(\w+)`).FindAllStringSubmatch(string(Source), -1) {
		v, err := strconv.ParseUint(m[2], 0, 32)
		if err != nil {
			t.Fatalf("%s: %v", m[0], err)
		}
		found[m[1]] = v
	}
	for name, want := range map[string]uint64{
		"PARAMS": params, "PARAM_LBA": paramLBA, "PARAM_SECTS": paramSectors, "MAGIC": magic, "MMAP": mmap, "P_LOADS": pLoads,
	} {
		if got, ok := found[name]; !ok || got != want {
			t.Errorf("%s is %#x in loader.S, %#x here", name, got, want)
		}
	}
	if fmt.Sprintf("%x", found["MAGIC"]) != "31495648" {
		t.Errorf("magic %#x", found["MAGIC"])
	}
}
