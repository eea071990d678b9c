package kernel

import (
	"bytes"
	"compress/gzip"
	"debug/elf"
	"encoding/binary"
	"errors"
	"io"
	"testing"

	"github.com/klauspost/compress/zstd"
)

type segment struct {
	typ         elf.ProgType
	vaddr       uint64
	file        []byte
	memsz       uint64
	insideFirst int // for a note: its place within the first segment's bytes
}

// build64 makes an ELF with a section table and a gap between its segments.
func build64(segs ...segment) []byte {
	le := binary.LittleEndian
	out := make([]byte, 0x2000)
	copy(out, "\x7fELF\x02\x01\x01")
	le.PutUint16(out[16:], uint16(elf.ET_EXEC))
	le.PutUint16(out[18:], uint16(elf.EM_X86_64))
	le.PutUint32(out[20:], 1)
	le.PutUint64(out[24:], 0x1000000)
	le.PutUint64(out[32:], headerSize)
	le.PutUint16(out[52:], headerSize)
	le.PutUint16(out[54:], progSize)
	le.PutUint16(out[56:], uint16(len(segs)))
	le.PutUint16(out[58:], 64)
	var first uint64
	for i, s := range segs {
		off := uint64(len(out))
		if s.typ == elf.PT_LOAD {
			out = append(out, s.file...)
			if first == 0 {
				first = off
			}
		} else {
			off = first + uint64(s.insideFirst)
		}
		b := out[headerSize+i*progSize:]
		le.PutUint32(b, uint32(s.typ))
		le.PutUint32(b[4:], 5)
		for j, v := range []uint64{off, s.vaddr, s.vaddr & 0xffffffff, uint64(len(s.file)), s.memsz, 0x200000} {
			le.PutUint64(b[8+8*j:], v)
		}
		out = append(out, "between"...)
	}
	return out
}

// memory is what a loader makes of an ELF.
func memory(t *testing.T, image []byte) map[uint64]byte {
	t.Helper()
	f, err := elf.NewFile(bytes.NewReader(image))
	if err != nil {
		t.Fatal(err)
	}
	m := map[uint64]byte{}
	for _, p := range f.Progs {
		if p.Type != elf.PT_LOAD {
			continue
		}
		data, err := io.ReadAll(io.NewSectionReader(p, 0, int64(p.Filesz)))
		if err != nil {
			t.Fatal(err)
		}
		for i := range p.Memsz {
			if _, twice := m[p.Vaddr+i]; twice {
				t.Fatalf("%#x is loaded twice", p.Vaddr+i)
			}
			m[p.Vaddr+i] = 0
		}
		for i, c := range data {
			m[p.Vaddr+uint64(i)] = c
		}
	}
	return m
}

func sparse(n int, at ...int) []byte {
	b := make([]byte, n)
	for _, i := range at {
		b[i] = byte(i%255) + 1
	}
	return b
}

func TestCompact(t *testing.T) {
	tests := []struct {
		name  string
		segs  []segment
		loads int
	}{
		{"one", []segment{{typ: elf.PT_LOAD, vaddr: 0x1000000, file: sparse(5000, 0, 4999), memsz: 5000}}, 1},
		{"zeros at the end", []segment{{typ: elf.PT_LOAD, vaddr: 0x1000000, file: sparse(500000, 0), memsz: 600000}}, 1},
		{"zeros within", []segment{{typ: elf.PT_LOAD, vaddr: 0x1000000, file: sparse(500000, 9, 200001), memsz: 500000}}, 2},
		{"zeros first", []segment{{typ: elf.PT_LOAD, vaddr: 0x1000000, file: sparse(300000, 299999), memsz: 300000}}, 2},
		{"a short run", []segment{{typ: elf.PT_LOAD, vaddr: 0x1000000, file: sparse(60000, 0, 59999), memsz: 60000}}, 1},
		{"nothing but zeros", []segment{{typ: elf.PT_LOAD, vaddr: 0x1000000, file: make([]byte, 300000), memsz: 300000}}, 1},
		{"two and a note", []segment{
			{typ: elf.PT_LOAD, vaddr: 0x1000000, file: sparse(200000, 3, 150000), memsz: 200000},
			{typ: elf.PT_LOAD, vaddr: 0x2000000, file: sparse(100, 99), memsz: 9000},
			{typ: elf.PT_NOTE, vaddr: 0x1000000 + 150000, file: make([]byte, 8), memsz: 8, insideFirst: 150000},
		}, 3},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			in := build64(tt.segs...)
			out, err := Compact(in)
			if err != nil {
				t.Fatal(err)
			}
			want, got := memory(t, in), memory(t, out)
			if len(want) != len(got) {
				t.Fatalf("%d bytes of memory, want %d", len(got), len(want))
			}
			for a, c := range want {
				if got[a] != c {
					t.Fatalf("%#x holds %#x, want %#x", a, got[a], c)
				}
			}
			f, err := elf.NewFile(bytes.NewReader(out))
			if err != nil {
				t.Fatal(err)
			}
			loads := 0
			for _, p := range f.Progs {
				switch p.Type {
				case elf.PT_LOAD:
					loads++
				case elf.PT_NOTE:
					b := make([]byte, 1)
					if _, err := p.ReadAt(b, 0); err != nil || b[0] != byte(150000%255)+1 {
						t.Errorf("the note holds %#x, %v", b[0], err)
					}
				}
			}
			if loads != tt.loads || len(f.Sections) != 0 || f.Entry != 0x1000000 {
				t.Errorf("%d segments, want %d; %d sections; entry %#x", loads, tt.loads, len(f.Sections), f.Entry)
			}
			if again, err := Compact(out); err != nil || !bytes.Equal(again, out) {
				t.Errorf("a second time it changes: %v", err)
			}
		})
	}
}

func TestCompactRefuses(t *testing.T) {
	good := build64(segment{typ: elf.PT_LOAD, vaddr: 0x1000000, file: sparse(5000, 0), memsz: 5000})
	le := binary.LittleEndian
	tests := map[string]func([]byte) []byte{
		"empty":           func([]byte) []byte { return nil },
		"no ELF":          func(b []byte) []byte { b[0] = 0; return b },
		"beyond the file": func(b []byte) []byte { le.PutUint64(b[headerSize+32:], 1<<40); return b },
		"overflow":        func(b []byte) []byte { le.PutUint64(b[headerSize+32:], ^uint64(0)); return b },
		"less memory":     func(b []byte) []byte { le.PutUint64(b[headerSize+40:], 1); return b },
		"nothing to load": func(b []byte) []byte { le.PutUint32(b[headerSize:], 0); return b },
		"a note that is not": func(b []byte) []byte {
			return build64(segment{typ: elf.PT_LOAD, vaddr: 1 << 24, file: sparse(9, 1), memsz: 9}, segment{typ: elf.PT_NOTE, insideFirst: 500})
		},
	}
	for name, spoil := range tests {
		t.Run(name, func(t *testing.T) {
			if _, err := Compact(spoil(bytes.Clone(good))); !errors.Is(err, ErrFormat) {
				t.Errorf("got %v", err)
			}
		})
	}
}

func bzImage(payload []byte) []byte {
	le := binary.LittleEndian
	b := make([]byte, 5*512)
	b[setupSects] = 4
	copy(b[headerMagic:], "HdrS")
	le.PutUint16(b[versionOffset:], 0x300)
	copy(b[0x500:], "6.1.0-56-amd64 (debian-kernel@lists.debian.org) #1\x00")
	le.PutUint32(b[payloadOffset:], 16)
	le.PutUint32(b[payloadLength:], uint32(len(payload)))
	b = append(b, make([]byte, 16)...)
	b = append(b, payload...)
	return append(b, "tail"...)
}

func TestUnpack(t *testing.T) {
	want := append([]byte("\x7fELF"), sparse(100000, 5, 70000)...)
	var packed bytes.Buffer
	for name, packer := range map[string]func(io.Writer) (io.WriteCloser, error){
		"zstd": func(w io.Writer) (io.WriteCloser, error) { return zstd.NewWriter(w) },
		"gzip": func(w io.Writer) (io.WriteCloser, error) { return gzip.NewWriter(w), nil },
	} {
		packed.Reset()
		w, err := packer(&packed)
		if err != nil {
			t.Fatal(err)
		}
		w.Write(want)
		w.Close()
		packed.Write([]byte{0xa4, 0x86, 1, 0}) // the size, as the build appends it
		got, err := Unpack(bzImage(packed.Bytes()))
		if err != nil || !bytes.Equal(got, want) {
			t.Errorf("%s: %d bytes, %v", name, len(got), err)
		}
	}
	release, err := Release(bzImage(nil))
	if err != nil || release != "6.1.0-56-amd64" {
		t.Errorf("%q, %v", release, err)
	}

	cut := bzImage(packed.Bytes())
	for name, bad := range map[string][]byte{
		"empty":           nil,
		"no header":       make([]byte, 4096),
		"payload outside": cut[:len(cut)-40],
		"unknown":         bzImage([]byte("PK\x03\x04")),
		"no payload":      bzImage(nil),
	} {
		if _, err := Unpack(bad); !errors.Is(err, ErrFormat) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := Release(nil); !errors.Is(err, ErrFormat) {
		t.Errorf("got %v", err)
	}
}

func TestFlatten(t *testing.T) {
	le := binary.LittleEndian
	b := make([]byte, 0x100)
	copy(b, "\x7fELF\x01\x01\x01")
	le.PutUint16(b[16:], uint16(elf.ET_EXEC))
	le.PutUint16(b[18:], uint16(elf.EM_386))
	le.PutUint32(b[20:], 1)
	le.PutUint32(b[24:], 0x200040)
	le.PutUint32(b[28:], 52)
	le.PutUint16(b[40:], 52)
	le.PutUint16(b[42:], 32)
	le.PutUint16(b[44:], 1)
	for i, v := range []uint32{1, 0x80, 0x200000, 0x200000, 0x70, 0x1000, 7, 0} {
		le.PutUint32(b[52+4*i:], v)
	}
	copy(b[0x80:], "code")
	f, err := Flatten(b)
	if err != nil || f.Entry != 0x200040 || f.Address != 0x200000 || len(f.Data) != 0x70 || f.Zero != 0xf90 || string(f.Data[:4]) != "code" {
		t.Errorf("%+v, %v", f, err)
	}
	le.PutUint32(b[52+16:], 0x200)
	if _, err := Flatten(b); !errors.Is(err, ErrFormat) {
		t.Errorf("got %v", err)
	}
	if _, err := Flatten(build64()); !errors.Is(err, ErrFormat) {
		t.Errorf("got %v", err)
	}
}

func FuzzCompact(f *testing.F) {
	f.Add(build64(segment{typ: elf.PT_LOAD, vaddr: 0x1000000, file: sparse(5000, 0), memsz: 5000}))
	f.Add(bzImage([]byte("\x1f\x8b")))
	f.Fuzz(func(t *testing.T, b []byte) {
		if out, err := Compact(b); err == nil {
			if _, err := Compact(out); err != nil {
				t.Errorf("its own result is refused: %v", err)
			}
		}
		if out, err := Unpack(b); err == nil && len(out) < 4 {
			t.Error("unpacked to nothing")
		}
		_, _ = Release(b)
		_, _ = Flatten(b)
	})
}
