package scenario

import (
	"debug/elf"
	"path/filepath"
	"testing"
)

// TestPVKernel reads the smallest PV kernel back as Xen's domain builder does:
// its notes and its one segment.
func TestPVKernel(t *testing.T) {
	path := filepath.Join(t.TempDir(), "pv")
	if err := writePVKernel(path); err != nil {
		t.Fatal(err)
	}
	f, err := elf.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	found := map[elf.ProgType][]byte{}
	for _, p := range f.Progs {
		data := make([]byte, p.Filesz)
		if _, err := p.ReadAt(data, 0); err != nil {
			t.Fatal(err)
		}
		found[p.Type] = data
	}
	entry, ok := findNote(found[elf.PT_NOTE], "Xen\x00", 1)
	if !ok || entry != f.Entry {
		t.Errorf("entry in the notes %#x, %v; in the header %#x", entry, ok, f.Entry)
	}
	if base, ok := findNote(found[elf.PT_NOTE], "Xen\x00", 3); !ok || found[elf.PT_LOAD][entry-base] != 0xeb {
		t.Errorf("no jump at the entry: base %#x, %v", base, ok)
	}
	if _, err := kernelEntry(path); err == nil {
		t.Error("a PV kernel has a PVH entry")
	}
}

// FuzzFindNote gives the reader of notes damaged ones.
func FuzzFindNote(f *testing.F) {
	f.Add([]byte("\x04\x00\x00\x00\x04\x00\x00\x00\x12\x00\x00\x00Xen\x00\x50\x08\x00\x01"))
	f.Add([]byte("\xff\xff\xff\xff\xff\xff\xff\xff\x12\x00\x00\x00Xen\x00"))
	f.Fuzz(func(t *testing.T, data []byte) {
		if v, ok := findNote(data, "Xen\x00", elfnotePhys32Entry); ok && len(data) < 20 {
			t.Errorf("%#x in %d bytes", v, len(data))
		}
	})
}
