package scenario

import (
	"debug/elf"
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/xen-hvi/hvi/engine/x86"
)

// elfnotePhys32Entry is the type of the ELF note that gives a PVH kernel's
// entry point (XEN_ELFNOTE_PHYS32_ENTRY, xen/include/public/elfnote.h).
const elfnotePhys32Entry = 18

// kernelEntry returns the address of a PVH guest's first instruction: what the
// note in its kernel says.
func kernelEntry(path string) (x86.VirtAddr, error) {
	f, err := elf.Open(path)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	for _, p := range f.Progs {
		if p.Type != elf.PT_NOTE {
			continue
		}
		data := make([]byte, p.Filesz)
		if _, err := p.ReadAt(data, 0); err != nil {
			return 0, fmt.Errorf("%s: %w", path, err)
		}
		if v, ok := findNote(data, "Xen\x00", elfnotePhys32Entry); ok {
			return x86.VirtAddr(v), nil
		}
	}
	return 0, fmt.Errorf("%s: %w", path, errors.New("no PVH entry point in its notes"))
}

// findNote returns the value, of 4 or 8 bytes, of an ELF note.
func findNote(data []byte, owner string, typ uint32) (uint64, bool) {
	align := func(n uint32) int { return (int(n) + 3) &^ 3 }
	for len(data) >= 12 {
		namesz, descsz, t := binary.LittleEndian.Uint32(data), binary.LittleEndian.Uint32(data[4:]), binary.LittleEndian.Uint32(data[8:])
		data = data[12:]
		end := align(namesz) + align(descsz)
		if end > len(data) {
			return 0, false
		}
		if t == typ && string(data[:namesz]) == owner {
			desc := data[align(namesz):]
			switch descsz {
			case 4:
				return uint64(binary.LittleEndian.Uint32(desc)), true
			case 8:
				return binary.LittleEndian.Uint64(desc), true
			}
		}
		data = data[end:]
	}
	return 0, false
}
