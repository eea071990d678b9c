// Package ledger is the one door through which hvi changes the state of Xen.
//
// Every mutation of a domain (a pause reference, the monitor ring, a monitor
// operation, a page's access) is written down before it is made and again
// when it has been undone, so that the same list serves an ordinary detach, a
// daemon that is stopped, and a fresh process that finds the list of one that
// died. Nothing else in hvi may import engine/xen/mutate; the linter holds
// that.
//
// A ledger is a file of JSON lines, one per domain, in a directory that does
// not outlive the host's boot: what it describes does not either. The file is
// removed when nothing is outstanding and the ledger is closed.
//
// A Ledger is owned by its domain's session and used by one goroutine at a
// time.
package ledger
