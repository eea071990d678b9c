// Package mutate is the one door through which hvi changes Xen's state. Only
// engine/ledger may import it: the ledger writes down what it is about to do,
// and how to undo it, before it calls here.
//
// Each method makes one change and says what undoes it. None of them
// remembers anything: after a crash a new process undoes what the old one
// wrote down. All are safe for concurrent use, and all errors are those of
// package xen. Methods that the ring's goroutine calls (SetMemAccess,
// InjectEvent, SingleStep) do not allocate unless they fail.
//
// Some methods have no operation in the ledger yet. Nothing can reach them until
// one, with its undo, is written.
//
// A Mutator does not own its Host; close the Host after the last use.
package mutate
