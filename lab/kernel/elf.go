package kernel

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
	"fmt"
)

const (
	headerSize = 64 // of an ELF64 file
	progSize   = 56
	page       = 4096
	// minGap is the shortest run of zeros that is worth a program header of its
	// own.
	minGap = 64 << 10
	// maxProgs keeps the program headers within the first page, where Xen's
	// loader and libxenguest look for them without a bound of their own.
	maxProgs = 64
)

// Compact returns an equivalent of a 64-bit kernel without sections, symbols
// and long runs of zeros. A loader fills what a segment has in memory but not
// in the file with zeros, so the memory image is the same.
func Compact(in []byte) ([]byte, error) {
	f, err := elf.NewFile(bytes.NewReader(in))
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrFormat, err)
	}
	if f.Class != elf.ELFCLASS64 || f.Data != elf.ELFDATA2LSB {
		return nil, fmt.Errorf("%w: %v, want ELFCLASS64", ErrFormat, f.Class)
	}
	var progs []elf.ProgHeader // Off is the place in the input
	for _, p := range f.Progs {
		if end := p.Off + p.Filesz; end < p.Off || end > uint64(len(in)) {
			return nil, fmt.Errorf("%w: a segment ends at %#x of %#x bytes", ErrFormat, p.Off+p.Filesz, len(in))
		}
		if p.Type != elf.PT_LOAD {
			continue
		}
		if p.Memsz < p.Filesz {
			return nil, fmt.Errorf("%w: a segment has %#x bytes in the file, %#x in memory", ErrFormat, p.Filesz, p.Memsz)
		}
		progs = append(progs, split(p.ProgHeader, in[p.Off:p.Off+p.Filesz])...)
	}
	if len(progs) == 0 {
		return nil, fmt.Errorf("%w: nothing to load", ErrFormat)
	}
	out := make([]byte, page, len(in))
	moved := func(off uint64) (uint64, bool) { return 0, false }
	for i := range progs {
		p, at, before := &progs[i], uint64(len(out)), moved
		from := p.Off
		moved = func(off uint64) (uint64, bool) {
			if off >= from && off < from+p.Filesz {
				return at + off - from, true
			}
			return before(off)
		}
		out = append(out, in[from:from+p.Filesz]...)
		out = append(out, make([]byte, -len(out)&(page-1))...)
		p.Off = at
	}
	// Notes lie within a loaded segment. Xen and libxenguest read the entry
	// point from them.
	for _, p := range f.Progs {
		if p.Type != elf.PT_NOTE {
			continue
		}
		at, ok := moved(p.Off)
		if !ok {
			return nil, fmt.Errorf("%w: a note outside of what is loaded", ErrFormat)
		}
		h := p.ProgHeader
		h.Off = at
		progs = append(progs, h)
	}
	if len(progs) > maxProgs {
		return nil, fmt.Errorf("%w: %d segments", ErrFormat, len(progs))
	}
	copy(out, in[:headerSize])
	le := binary.LittleEndian
	le.PutUint64(out[32:], headerSize)         // e_phoff
	le.PutUint64(out[40:], 0)                  // e_shoff
	le.PutUint16(out[54:], progSize)           // e_phentsize
	le.PutUint16(out[56:], uint16(len(progs))) // e_phnum
	clear(out[58:headerSize])                  // no sections
	for i, p := range progs {
		b := out[headerSize+i*progSize:]
		le.PutUint32(b, uint32(p.Type))
		le.PutUint32(b[4:], uint32(p.Flags))
		for j, v := range [...]uint64{p.Off, p.Vaddr, p.Paddr, p.Filesz, p.Memsz, p.Align} {
			le.PutUint64(b[8+8*j:], v)
		}
	}
	return out, nil
}

// split cuts a segment at its long runs of zeros. Each piece has the run that
// follows it as memory that is not in the file, and begins on a page of the
// segment.
func split(p elf.ProgHeader, data []byte) []elf.ProgHeader {
	var out []elf.ProgHeader
	for start := 0; ; {
		end, next := nextRun(data, start)
		piece := p
		piece.Off += uint64(start)
		piece.Vaddr += uint64(start)
		piece.Paddr += uint64(start)
		piece.Filesz = uint64(end - start)
		piece.Memsz = uint64(next - start)
		if next == len(data) {
			piece.Memsz = p.Memsz - uint64(start)
		}
		out = append(out, piece)
		if next == len(data) {
			return out
		}
		start = next
	}
}

// nextRun returns where the first long run of zeros from start on begins and
// where it ends, both at pages; the end of data counts as such a run.
func nextRun(data []byte, start int) (begin, end int) {
	begin = start
	for at := start; at < len(data); at += page {
		if isZero(data[at:min(at+page, len(data))]) {
			continue
		}
		if at-begin >= minGap {
			return begin, at
		}
		begin = min(at+page, len(data))
	}
	return begin, len(data)
}

func isZero(b []byte) bool {
	for _, c := range b {
		if c != 0 {
			return false
		}
	}
	return true
}

// Flat is a 32-bit kernel as it stands in memory.
type Flat struct {
	Entry   uint32
	Address uint32 // physical, of Data's first byte
	Data    []byte
	Zero    uint32 // bytes of zeros behind Data
}

// Flatten returns the memory image of a 32-bit kernel with one loaded segment,
// such as Xen's.
func Flatten(in []byte) (Flat, error) {
	f, err := elf.NewFile(bytes.NewReader(in))
	if err != nil {
		return Flat{}, fmt.Errorf("%w: %w", ErrFormat, err)
	}
	if f.Class != elf.ELFCLASS32 || f.Machine != elf.EM_386 {
		return Flat{}, fmt.Errorf("%w: %v for %v, want 32-bit", ErrFormat, f.Class, f.Machine)
	}
	flat := Flat{Entry: uint32(f.Entry)}
	for _, p := range f.Progs {
		if p.Type != elf.PT_LOAD {
			continue
		}
		if flat.Data != nil {
			return Flat{}, fmt.Errorf("%w: several segments", ErrFormat)
		}
		if p.Off+p.Filesz > uint64(len(in)) || p.Memsz < p.Filesz || p.Filesz == 0 {
			return Flat{}, fmt.Errorf("%w: a segment of %#x bytes at %#x", ErrFormat, p.Filesz, p.Off)
		}
		flat.Address = uint32(p.Paddr)
		flat.Data = in[p.Off : p.Off+p.Filesz]
		flat.Zero = uint32(p.Memsz - p.Filesz)
	}
	if flat.Data == nil {
		return Flat{}, fmt.Errorf("%w: nothing to load", ErrFormat)
	}
	return flat, nil
}
