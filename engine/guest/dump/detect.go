package dump

import (
	"bytes"
	"encoding/binary"

	"github.com/xen-hvi/hvi/engine/x86"
)

// maxPhys bounds physical addresses: the architecture's widest.
const maxPhys = 1 << 52

// others are the beginnings of files that people take for memory images, or
// that hold one in a form that is not read.
var others = []struct{ magic, what, hint string }{
	{"KDUMP   ", "a kdump-compressed dump", "write it again as an ELF core: virsh dump --memory-only --format elf, or QEMU's dump-guest-memory without -z, -l, -s"},
	{"DISKDUMP", "a diskdump", "write it again as an ELF core: virsh dump --memory-only --format elf"},
	{"makedumpfile\x00", "a flattened kdump", "write it again as an ELF core: virsh dump --memory-only --format elf"},
	{"LibvirtQemudSave", "a domain saved by libvirt", "virsh dump --memory-only writes what is read here"},
	{"LibvirtQemudPart", "a domain saved by libvirt, incomplete", "virsh dump --memory-only writes what is read here"},
	{"QEVM", "a QEMU migration stream", "virsh dump needs --memory-only; in QEMU use dump-guest-memory"},
	{"Xen saved domain", "a domain saved by xl", "xl dump-core writes what is read here"},
	{"LibxlFmt", "a domain saved by xl", "xl dump-core writes what is read here"},
	{"AVML", "a compressed LiME dump of AVML", "avml-convert turns it into an uncompressed one"},
	{"PAGEDU64", "a Windows crash dump", "hvi reads Linux guests"},
	{"PAGEDUMP", "a Windows crash dump", "hvi reads Linux guests"},
	{"QFI\xfb", "a qcow2 disk image", "a memory image is wanted, not a disk: xl dump-core, or virsh dump --memory-only"},
	{"KDMV", "a VMDK disk image", "a memory image is wanted, not a disk"},
	{"\x1f\x8b", "compressed by gzip", "unpack it first"},
	{"\x28\xb5\x2f\xfd", "compressed by zstd", "unpack it first"},
	{"\xfd7zXZ\x00", "compressed by xz", "unpack it first"},
	{"BZh", "compressed by bzip2", "unpack it first"},
	{"\x04\x22\x4d\x18", "compressed by lz4", "unpack it first"},
	{"PK\x03\x04", "a zip archive", "unpack it first"},
}

// parse tells a file's format and reads its headers.
func parse(data []byte) (Format, layout, error) {
	switch {
	case bytes.HasPrefix(data, []byte(limeMagic)):
		l, err := parseLiME(data)
		return LiME, l, err
	case bytes.HasPrefix(data, []byte(elfMagic)):
		return parseELF(data)
	}
	// An array of zeros is a raw image; so might be one that begins like
	// one of these, but one in 2^16 at most.
	for _, o := range others {
		if bytes.HasPrefix(data, []byte(o.magic)) {
			return "", layout{}, &OpenError{Detail: o.what, Hint: o.hint, Err: ErrUnsupported}
		}
	}
	l, err := parseRaw(data)
	return Raw, l, err
}

// parseAs reads the headers of a file of a given format, or of any with "".
func parseAs(data []byte, as Format) (Format, layout, error) {
	if as == Raw {
		l, err := parseRaw(data)
		return Raw, l, err
	}
	f, l, err := parse(data)
	if err == nil && as != "" && f != as {
		err = &OpenError{Err: ErrNotImage, Detail: "not of the format " + string(as) + " but of " + string(f), Hint: "leave the format out"}
	}
	return f, l, err
}

// parseRaw takes a file without a header for memory as it was.
func parseRaw(data []byte) (layout, error) {
	var l layout
	if len(data)%x86.PageSize != 0 {
		return l, &OpenError{Err: ErrNotImage, Detail: "no header that is known, and no whole number of pages",
			Hint: "raw, LiME, ELF core (virsh dump --memory-only) and Xen core (xl dump-core) are read"}
	}
	l.add(0, uint64(len(data)), 0)
	l.arrange()
	return l, nil
}

// part returns data[off:off+n] if that is in the file.
func part(data []byte, off, n uint64) ([]byte, bool) {
	if off > uint64(len(data)) || n > uint64(len(data))-off {
		return nil, false
	}
	return data[off : off+n], true
}

func le16(b []byte) uint16 { return binary.LittleEndian.Uint16(b) }
func le32(b []byte) uint32 { return binary.LittleEndian.Uint32(b) }
func le64(b []byte) uint64 { return binary.LittleEndian.Uint64(b) }
