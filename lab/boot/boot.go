package boot

import (
	_ "embed" // for Source
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"github.com/xen-hvi/hvi/lab/kernel"
)

// Source is the loader in GNU assembler's syntax. Assembled with
//
//	as --32
//	ld -m elf_i386 -Ttext 0x7c00 --oformat binary
//
// it is the sector that [Write] takes.
//
//go:embed loader.S
var Source []byte

// SectorSize is the unit of the disk, and the loader's size.
const SectorSize = 512

// The constants that loader.S has too.
const (
	params       = 0x8000
	paramLBA     = 1
	paramSectors = 16
	magic        = 0x31495648
	mmap         = 0x6000
	pLoads       = 12
)

// Within the parameters: the multiboot information and its texts.
const (
	infoOffset = 0x400
	modsOffset = 0x480
	textOffset = 0x500
	maxLoads   = (infoOffset - pLoads) / 12
)

// Multiboot information flags, Multiboot Specification 0.6.96, section 3.3.
const (
	hasCmdline = 1 << 2
	hasMods    = 1 << 3
	hasMmap    = 1 << 6
	hasName    = 1 << 9
)

const (
	pageSize = 4096
	// moduleBase is where the modules go: above the hypervisor's image, below
	// where it will move itself.
	moduleBase = 64 << 20
)

// Geometry is what a disk's size must be a multiple of, so that the BIOS and the
// emulator agree on its cylinders.
const Geometry = 16 * 63 * SectorSize

// Piece is something to copy onto the disk.
type Piece struct {
	Name string
	Size int64
	Data io.Reader
}

// Spec says what to boot.
type Spec struct {
	Loader      []byte // Source, assembled
	Kernel      kernel.Flat
	Args        string // the kernel's command line
	Module      Piece  // the first module: the control domain's kernel
	ModuleArgs  string
	Ramdisk     []Piece // the second module: its parts follow one another in memory, each at a page
	MemoryBytes int64   // of the machine, to check that all fits
}

// ErrTooLarge reports a Spec whose parts do not fit.
var ErrTooLarge = errors.New("boot image is too large")

type load struct{ lba, sectors, address uint32 }

// Write writes the disk to w and returns its size. It reads each Piece once,
// in order.
func Write(w io.Writer, s Spec) (int64, error) {
	if len(s.Loader) != SectorSize || binary.LittleEndian.Uint16(s.Loader[510:]) != 0xaa55 {
		return 0, fmt.Errorf("the loader has %d bytes or no signature, want one boot sector", len(s.Loader))
	}
	var loads []load
	lba := uint32(paramLBA + paramSectors)
	place := func(address uint32, size int64) {
		n := sectors(size)
		if n > 0 {
			loads = append(loads, load{lba, n, address})
			lba += n
		}
	}
	place(s.Kernel.Address, int64(len(s.Kernel.Data)))
	// The last page read has brought the first zeros already.
	behind := s.Kernel.Address + sectors(int64(len(s.Kernel.Data)))*SectorSize
	if end := s.Kernel.Address + uint32(len(s.Kernel.Data)) + s.Kernel.Zero; end > behind {
		loads = append(loads, load{0, sectors(int64(end - behind)), behind})
	}
	if end := int64(s.Kernel.Address) + int64(len(s.Kernel.Data)) + int64(s.Kernel.Zero); end > moduleBase {
		return 0, fmt.Errorf("%w: the kernel ends at %#x", ErrTooLarge, end)
	}

	pieces := append([]Piece{s.Module}, s.Ramdisk...)
	var bounds [2][2]uint32 // the modules
	at := int64(moduleBase)
	for i, p := range pieces {
		if at+p.Size > s.MemoryBytes/2 {
			return 0, fmt.Errorf("%w: %s ends at %#x of %#x bytes of memory, of which a half can be used", ErrTooLarge, p.Name, at+p.Size, s.MemoryBytes)
		}
		place(uint32(at), p.Size)
		m := &bounds[min(i, 1)]
		if m[0] == 0 {
			m[0] = uint32(at)
		}
		m[1] = uint32(at + p.Size)
		at = (at + p.Size + pageSize - 1) &^ (pageSize - 1)
	}
	if len(loads) >= maxLoads {
		return 0, fmt.Errorf("%w: %d pieces", ErrTooLarge, len(pieces))
	}
	block, err := parameters(s, loads, bounds)
	if err != nil {
		return 0, err
	}

	const head = (paramLBA + paramSectors) * SectorSize
	out := &counter{w: w}
	if _, err := out.Write(append(append([]byte{}, s.Loader...), block...)); err != nil {
		return out.n, err
	}
	if _, err := out.Write(s.Kernel.Data); err != nil {
		return out.n, err
	}
	if err := out.padFrom(head, pageSize); err != nil {
		return out.n, err
	}
	for _, p := range pieces {
		n, err := io.Copy(out, p.Data)
		if err == nil && n != p.Size {
			err = fmt.Errorf("it has %d bytes, not %d", n, p.Size)
		}
		if err != nil {
			return out.n, fmt.Errorf("%s: %w", p.Name, err)
		}
		if err := out.padFrom(head, pageSize); err != nil {
			return out.n, err
		}
	}
	err = out.padFrom(0, Geometry)
	return out.n, err
}

func parameters(s Spec, loads []load, mods [2][2]uint32) ([]byte, error) {
	le := binary.LittleEndian
	b := make([]byte, textOffset)
	le.PutUint32(b, magic)
	le.PutUint32(b[4:], s.Kernel.Entry)
	le.PutUint32(b[8:], params+infoOffset)
	for i, l := range loads {
		for j, v := range [...]uint32{l.lba, l.sectors, l.address} {
			le.PutUint32(b[pLoads+12*i+4*j:], v)
		}
	}
	text := func(t string) uint32 {
		at := uint32(params + len(b))
		b = append(append(b, t...), 0)
		return at
	}
	// Xen takes the first word for the image's name, except from loaders that it
	// knows to leave it out (cmdline_cook, xen/arch/x86/setup.c, 4.17).
	args, moduleArgs, name := text("xen "+s.Args), text("vmlinux "+s.ModuleArgs), text("hvi lab")
	none := text("")
	if len(b) > paramSectors*SectorSize {
		return nil, fmt.Errorf("%w: command lines of %d and %d bytes", ErrTooLarge, len(s.Args), len(s.ModuleArgs))
	}
	info := b[infoOffset:]
	le.PutUint32(info, hasCmdline|hasMods|hasMmap|hasName)
	le.PutUint32(info[16:], args)
	le.PutUint32(info[20:], 2)
	le.PutUint32(info[24:], params+modsOffset)
	le.PutUint32(info[48:], mmap) // its length at 44 is the loader's to fill in
	le.PutUint32(info[64:], name)
	for i, t := range [...]uint32{moduleArgs, none} {
		m := b[modsOffset+16*i:]
		le.PutUint32(m, mods[i][0])
		le.PutUint32(m[4:], mods[i][1])
		le.PutUint32(m[8:], t)
	}
	return append(b, make([]byte, paramSectors*SectorSize-len(b))...), nil
}

// sectors returns the sectors of the whole pages that size bytes take. What
// follows them in their last page is on the disk too, as zeros: the memory there
// need not be.
func sectors(size int64) uint32 {
	return uint32((size + pageSize - 1) / pageSize * (pageSize / SectorSize))
}

// counter pads what it passes on.
type counter struct {
	w io.Writer
	n int64
}

func (c *counter) Write(p []byte) (int, error) {
	n, err := c.w.Write(p)
	c.n += int64(n)
	return n, err
}

// ReadFrom lets a file take a file without a detour.
func (c *counter) ReadFrom(r io.Reader) (int64, error) {
	n, err := io.Copy(c.w, r)
	c.n += n
	return n, err
}

// padFrom writes zeros until what was written since start is a multiple of
// unit.
func (c *counter) padFrom(start, unit int64) error {
	_, err := c.Write(make([]byte, (unit-(c.n-start)%unit)%unit))
	return err
}
