package scenario

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"maps"
	"slices"
	"testing"
)

// savedDomain is a saved domain with these page records.
func savedDomain(pages ...[]uint64) []byte {
	var b bytes.Buffer
	le := func(v ...any) {
		for _, x := range v {
			_ = binary.Write(&b, binary.LittleEndian, x)
		}
	}
	b.WriteString("Xen saved domain, xl format\n \x00 \r")
	le(uint32(0x01020304), uint32(3), uint32(0), uint32(5))
	b.WriteString("12345")
	_ = binary.Write(&b, binary.BigEndian, []uint64{0x4c6962786c466d74, 2 << 32})
	le(uint32(2), uint32(3), []byte("abc\x00\x00\x00\x00\x00")) // some record before
	le(uint32(libxlLibxc), uint32(0), make([]byte, 24+16))
	le(uint32(0x0f), uint32(0)) // static data end
	for _, p := range pages {
		n := 0
		for _, pfn := range p {
			if pfn>>60 < 0xd {
				n++
			}
		}
		le(uint32(libxcPageData), uint32(8+8*len(p)+4096*n), uint32(len(p)), uint32(0), p, make([]byte, 4096*n))
	}
	le(uint32(libxcEnd), uint32(0))
	return b.Bytes()
}

func TestReadFrames(t *testing.T) {
	data := savedDomain([]uint64{0, 1, 0xf<<60 | 2}, []uint64{0xfeffc, 0x100})
	got, err := readFrames(bufio.NewReader(bytes.NewReader(data)))
	if err != nil {
		t.Fatal(err)
	}
	if frames := slices.Sorted(maps.Keys(got)); !slices.Equal(frames, []uint64{0, 1, 0x100, 0xfeffc}) {
		t.Errorf("frames %#x", frames)
	}
	for n := range len(data) - 8 {
		if _, err := readFrames(bufio.NewReader(bytes.NewReader(data[:n]))); err == nil {
			t.Fatalf("no error for the first %d bytes of %d", n, len(data))
		}
	}
	if _, err := readFrames(bufio.NewReader(bytes.NewReader(make([]byte, 4096)))); !errors.Is(err, errNotSaved) {
		t.Errorf("for something else: %v", err)
	}
}

func FuzzReadFrames(f *testing.F) {
	f.Add(savedDomain([]uint64{0, 1}))
	f.Add(savedDomain())
	f.Fuzz(func(t *testing.T, data []byte) {
		frames, err := readFrames(bufio.NewReader(bytes.NewReader(data)))
		if err == nil && len(frames) > len(data)/8 {
			t.Errorf("%d frames in %d bytes", len(frames), len(data))
		}
	})
}
