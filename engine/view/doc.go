// Package view holds what the ring goroutine has to know of a domain's views: which
// pages have a copy of ours in the view that the vCPUs run in, and where in it
// hidden breakpoints stand.
//
// A hidden breakpoint is an INT3 in a shadow page: a copy of a page of the guest's
// that only the running view leads to, and that can be executed there and
// nothing else. A vCPU that comes to the INT3 makes one step in the stepping
// view, which leads to the guest's own page and restricts what the running view
// restricts otherwise. So does one that reads the page: it sees its own bytes. A
// write that a guard lets through is made in the host's view, and the copy then
// follows.
//
// Three views, then: the host's (0), which restricts nothing; the running view,
// with restrictions and shadow pages; and the stepping view, with restrictions
// alone, so that not even a step over a breakpoint can be used to write to what
// is guarded.
//
// The shadow pages lie in the guest's physical memory, above all of its own, for
// only such a page can be put into a view (HVMOP_altp2m_change_gfn). There they
// are inaccessible in every view: a read finds all bits set, as where there is no
// memory, and a write is dropped.
//
// Where there are no views there are [Traps]: pages that can't be executed, so that each
// instruction in them is an event.
//
// The session's goroutine changes a [Breakpoints], or [Traps], and does everything that takes a
// hypercall; the ring goroutine asks it about events. It neither allocates nor
// locks for a hit or a read; only where the guest changes a page that has a
// shadow, which is rare, it takes a lock.
package view
