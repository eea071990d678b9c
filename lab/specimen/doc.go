// Package specimen takes images of guests' memory, each beside what the guest
// said about itself a moment before: what hvi reads out of the one can be
// compared with the other.
//
// A specimen is one Debian kernel with the witness (lab/witness) on a plain
// emulated PC: no Xen, no KVM, no root. The machine is stopped when the witness
// has written its report, and its memory and registers are taken from outside.
// Then it may run on and report once more, because a kernel is never quite at
// rest: what both reports say was so in between.
//
// A [Live] is such a guest while it runs.
//
// Specimens are artifacts of the cache: made once for each kernel, program and
// variant, and never changed.
package specimen
