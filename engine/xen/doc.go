// Package xen is the room that talks to the hypervisor and the only one that
// issues hypercalls. This package reads: domains, registers, memory,
// capabilities. Its subfolder mutate changes Xen's state, its subfolder
// xenstore speaks to the store, abi holds the layouts per release, xentest a
// fake hypervisor for tests.
//
// # What belongs to whom
//
//   - Open returns a Host; Close releases it. A Host keeps nothing of any
//     domain.
//   - A Mapping, PageMapping or Memory holds references on the guest's pages.
//     While one is open, the pages stay allocated and a domain that died stays
//     a zombie, so its owner closes it when the domain goes. Closing the Host
//     does not unmap them.
//   - An EventChannel holds a local port until Close.
//
// All types are safe for concurrent use where their documentation does not
// say otherwise. After Close, methods fail with ErrClosed and do not crash.
//
// # Errors
//
// What Xen refused is an *OpError. It names the call, the domain, what the
// errno means for that call, and what to do; "%+v" prints all of it. It
// unwraps to the errno, and matches ErrNoDomain, ErrNotSupported and their
// like where that is what the errno means. A release that is not known is an
// *abi.UnknownReleaseError.
//
// # What a mapping shows
//
// A mapping refers to machine pages, not to frame numbers. If the guest gives
// a page back and gets another in its place (ballooning, memory hotplug, a
// reset), the mapping keeps showing the old page, which Xen keeps alive for
// us; see Memory.Invalidate. It never becomes an access to another domain's
// memory, and it does not fault: a page that was mapped stays readable until
// it is unmapped, on PV and PVH control domains alike (arch/x86/mm.c,
// get_page_from_l1e; arch/x86/mm/p2m.c, p2m_add_foreign, 4.22). A page that
// could not be mapped does fault; such pages are remembered and not touched.
// As a last defence reads are made with faults turned into errors.
package xen
