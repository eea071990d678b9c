// Package engine attaches to domains, protects them, and lets go of them.
//
// A Session is one attached domain. Its state is owned by one goroutine;
// control operations are queued to it. The monitor ring is served by a second
// goroutine (engine/vmevent), which asks the session's current stage for verdicts:
// first a watch for the moments the session waits for, then the armed guards, last a stage that lets everything
// pass while the session withdraws.
//
// The Engine holds the sessions and turns what the toolstack does (a domain
// appears, shuts down, goes) into operations on them.
//
// No hypercall is made and no guest structure is known here: Xen is reached
// through the Hypervisor interface and, for everything that changes its state,
// through engine/ledger.
package engine
