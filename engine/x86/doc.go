// Package x86 is the architecture's own vocabulary, shared by every room that
// speaks of a guest: address types that cannot be mixed up, the registers of a
// vCPU, and the bits and model-specific registers the guards care about.
//
// It has no dependencies and holds no state. Numbers are those of the Intel
// SDM volumes 3 and 4 and the AMD APM volume 2; names are theirs too.
package x86
