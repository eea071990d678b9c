// Package guest sees a virtual machine as what its processor sees: physical
// memory, registers, and address spaces made of page tables. It knows x86-64
// and no operating system; the packages below it (linux) give memory meaning.
//
// # Who owns what
//
// A [Memory] belongs to whoever made it: a mapped domain, a dump file, a byte
// slice in a test. Nothing here closes or keeps one alive. An [AddressSpace] is
// a small value that borrows its Memory; copy it freely, drop it without
// ceremony, and stop using it before its Memory is closed. Files that hold
// memory are read by package dump below.
//
// # The guest is hostile
//
// Page tables and everything they lead to are the guest's, and it changes them
// while they are read. Every walk is bounded by the number of levels, every
// length is the caller's, and no value read is used as an index. Whoever parses
// guest data copies it first and parses the copy.
//
// # Cost
//
// [AddressSpace.Translate], [AddressSpace.Read] and the fixed-size reads
// allocate nothing when the page is mapped, so they may run on a ring goroutine.
// A failing call allocates its error. Whoever translates the same pages again
// and again keeps a [TLB], and flushes it as its documentation says.
package guest
