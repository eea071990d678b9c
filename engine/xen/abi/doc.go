// Package abi holds what hvi must know of Xen's binary interface: for every
// release series the size of each structure and the offset of each field hvi
// exchanges with the hypervisor, and the constants.
//
// Xen promises no stable interface to its toolstack: structures grow, and
// most of them carry a version number that changes almost every release. hvi
// is one static binary for all of them, so the numbers are data, chosen at run
// time by the release Xen reports (For), and an unknown release is refused by
// name rather than guessed.
//
// Offsets are plain ints, -1 where a release lacks the field. Widths are in
// the comments and are the same in all releases: the generator fails where
// that would stop being true. All values are little-endian.
//
// The files named zz_generated_* come from gen, whose input was measured by
// compiling Xen's public headers at every release tag. The package holds no
// state and needs no cleanup.
package abi

//go:generate go run ./gen
