// Package boot makes a disk that starts a multiboot kernel, Xen, with its two
// modules on a PC that has nothing but a BIOS and an ATA disk.
//
// It stands in for a boot loader because the machine is an emulated one and
// everything there costs: reading 60 MB through a general loader and the BIOS
// takes as long as Xen's and Linux' boot together. The loader (loader.S) is one
// sector; [Write] computes all it needs to know.
package boot
