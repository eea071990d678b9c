// Package dump reads memory images, and writes one ([WriteLiME]): files that hold what a guest's physical
// memory was. [Open] tells the format by the content:
//
//	raw       byte n of the file is byte n of memory (QEMU's pmemsave)
//	LiME      ranges with a header before each (the LiME kernel module)
//	ELF core  virsh dump --memory-only, QEMU's dump-guest-memory
//	Xen core  xl dump-core, of an HVM or PVH guest
//
// Nothing is decompressed. A file of a format that hvi knows and doesn't read
// (kdump-compressed, a saved domain, a disk image, a packed file) is refused by
// its name, with what to do instead.
//
// # Who owns what
//
// An [Image] owns a mapping of its file and is closed by whoever opened it,
// after the last read. It is immutable and safe for concurrent use.
//
// # The file may be hostile, or change
//
// Sizes, offsets and counts in a file are checked against the file's length
// before they are used, and no table is copied that the file isn't long enough
// for. A mapped file that is truncated raises a signal where it is read; the
// reads of an operation run inside [Image.Guard], which makes an error of that.
//
// # Sources
//
// docs/misc/dump-core-format.txt and xen/include/public/arch-x86 of Xen 4.22,
// target/i386/arch_dump.c of QEMU 10, doc/README.md of LiME, the ELF
// specification.
package dump
