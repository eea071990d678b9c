// Package guard holds the protections. Each is one file and declarative: what
// it needs of the platform, what it watches, and what a violation is. What is
// done about one is not the guard's business but the policy's.
//
// A Set is the guards armed for one domain. Its HandleEvent runs on the ring
// thread:
// lookups are O(1) in the number of guarded frames, and nothing is allocated,
// locked or logged for an access that is not a violation. A violation leaves
// as a fixed-size Evidence through a bounded queue; everything that can wait
// (decoding, symbols, the record) is done from it elsewhere.
//
// All that comes from the guest (registers, memory, instruction bytes) is
// hostile here.
package guard
