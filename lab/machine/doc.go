// Package machine starts the emulators that stand in for a server with
// virtualization hardware: Bochs for an Intel one, QEMU's interpreter for an
// AMD one. Neither needs KVM, a display, a terminal or root.
//
// A [Machine] is one emulator process. What it says leaves it through two
// pipes, the serial console and the results port, which are copied to the
// writers it was given until it has ended. The process is this package's from
// [Start] on: it dies with [Machine.Kill], with the context, and with the program
// that started it, and never anything else is signalled.
package machine
