// Package vmevent serves the monitor ring of one domain: it decodes what Xen
// reports, asks a handler for a verdict, and answers.
//
// The ring is one shared page with Xen as producer of requests and us as
// producer of responses (xen/include/public/vm_event.h and io/ring.h). A
// request marked VCPU_PAUSED has stopped its vCPU until it is answered, so
// every request read here is answered exactly once: at once, or, when the
// handler says Hold, when the session releases it, and at the latest when the
// server stops.
//
// Ownership: the caller owns the ring page and the event channel and closes
// them after Server.Run has returned. One Server serves one ring on a
// goroutine of its own; that path neither allocates nor locks nor logs. A ring that is
// never empty is served in turns of a bounded number of requests (EventsPerTurn).
package vmevent
