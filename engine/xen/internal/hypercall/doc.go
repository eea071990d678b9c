// Package hypercall is the syscall boundary to Xen: Linux's /dev/xen/privcmd,
// /dev/xen/hypercall and /dev/xen/evtchn, and nothing of what the calls mean.
//
// # Buffers
//
// Xen reads and writes the structures of a hypercall at user-space virtual
// addresses while no Linux code runs, so it cannot take a page fault: a page
// that is absent at that moment, if only because the kernel is moving it,
// makes the call fail with EFAULT. Structures therefore live in a Pool of
// pages that stay put, mapped from /dev/xen/hypercall (Linux 4.18 and later)
// or, where that is missing, in locked memory that is not inherited across a
// fork. Addresses of Go's heap or stack never go into a guest handle.
//
// # Ownership
//
// Whoever calls Caller.Alloc owns the Buffer and frees it. Whoever calls
// MapForeign owns the mapping and unmaps it; while it is mapped, Xen keeps a
// reference on each page and a dead domain stays a zombie. Close releases the
// device and the pool and reports buffers that were not freed.
//
// # Fakes
//
// Caller and EventBinder are interfaces so that a fake hypervisor can stand
// in where there is no Xen; see engine/xen/xentest.
package hypercall
