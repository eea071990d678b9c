// Package wire carries what a scenario measured out of the emulated machine.
//
// The only way out that every emulator offers without a driver is a byte port
// that the emulator copies to a file of the host (port 0xE9, see [PortE9]).
// Nothing promises that such a stream is ours alone: an emulator prints its
// banner there, and on a fallback over the serial console the hypervisor cuts
// into our lines. So a [Message] travels as short lines, each with its place
// in the message and its own checksum; [Decoder] takes the lines that are
// whole, hands everything else on as text, and [Decoder.Lost] tells how many
// messages did not arrive complete. A result with losses is never taken for
// whole by whoever reads it.
//
// The package owns nothing: writers and readers are the caller's to close.
package wire
