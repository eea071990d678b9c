// Package journal keeps hvi's security events: what one is ([Record]), where
// they are kept ([Journal], an append-only log of JSON lines that survives
// crashes), and how they are read back ([Journal.Query], [Journal.Subscribe]).
//
// # The log
//
// The log is a directory. events.jsonl is written now, events-NNNNNNNN.jsonl
// are the older files, the highest number the newest. A file is closed when
// the next record would make it larger than [Options.MaxBytes]; the newest
// [Options.Keep] closed files are kept and the others removed, so the log's
// size on disk is bounded by MaxBytes*(Keep+1). Each line is one Record as
// JSON. A line that a crash cut short is removed when the log is opened again;
// a line that can't be read is passed over and counted.
//
// A record is in the page cache when Append returns, and on disk at most
// [Options.SyncEvery] later or when Sync or Close returns.
//
// # Who owns what
//
// A Journal owns its directory while it is open: it holds an flock(2) on
// events.lock, so a second daemon on the same directory fails with [ErrBusy]
// rather than interleave. Close releases the lock, stops the one background
// goroutine and ends every subscription. A [Subscription] is owned by whoever
// called Subscribe and must be closed; it holds at most [Options.Queue] records
// and, while it replays history, one open file per log file.
//
// Append writes to a file and takes a lock. It is for the goroutine that owns
// a session, never for the thread that serves a monitor ring.
//
// # Hostile text
//
// A process name, a symbol or a module name is chosen by the guest, a domain's
// name by whoever made it. Such strings are [printable.Text]: they hold
// only printable characters, whatever they are written to. There is one form of
// a string, in the log, in JSON and on a terminal.
package journal
