// Package kernel makes Debian's kernels cheap to boot in an emulator.
//
// A distribution's kernel is packed, and unpacking it there takes seconds that
// unpacking it here does not; and the ELF inside the package carries megabytes
// of zeros that an emulated disk would have to bring. [Unpack] and [Compact]
// remove both. What is loaded stays what Debian built, byte for byte, with the
// one exception that [ShrinkP2M] names.
//
// Everything here works on byte slices the caller owns and writes no file.
package kernel
