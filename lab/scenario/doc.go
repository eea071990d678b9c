// Package scenario says what the lab can run, and gives each run its hands.
//
// A [Scenario] is a function that runs inside the control domain of a real
// Xen, in an emulator, as root. It is linked into two programs: cmd/lab on the
// host, which lists it and decides how to boot for it, and cmd/labrun in the
// control domain, which calls it. Scenarios with equal needs share one boot
// and run one after the other, so a scenario leaves the machine as it found
// it: what it started through [T] is stopped for it, in reverse order, also
// when it panics.
//
// The control domain runs one of two systems: Initramfs, which boots in
// seconds, or Debian, where packages, units, libvirt and guests with a device
// model or a network are at home. Every file written there is gone after the
// boot, but scenarios of one boot see each other's.
//
// All times inside a scenario are those of the emulated clock. It stands still
// against the wall clock while the emulator works hard and jumps while the
// machine is idle; a timeout of a minute is a minute of the guest's life.
package scenario
