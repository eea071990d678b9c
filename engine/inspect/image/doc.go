// Package image answers questions about the guest in a memory image: a file, no
// Xen, no daemon. It opens the file, finds the Linux kernel in it and hands a
// reader of that to the questions of package inspect.
//
// An [Image] owns the open file; Close releases it. It belongs to one
// goroutine. The file is as hostile as the guest that was written into it.
package image
