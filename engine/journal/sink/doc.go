// Package sink passes security events on: to systemd's journal, to syslog, to a
// file. A [Forwarder] follows the journal for one [Sink], tries again what failed,
// and says how many events it could not pass on; none is lost without a word. What
// was written to the journal before the Forwarder began is not passed on again.
//
// A Forwarder owns its sink and one goroutine, both until Close. A Sink belongs to
// its Forwarder's goroutine.
package sink
