// Package xenstore is a client of Xen's configuration store: a tree of small
// values that toolstacks, dom0 and guests share, with watches that tell of
// changes. It speaks the wire protocol of docs/misc/xenstore.txt and
// public/io/xs_wire.h over the daemon's socket or the kernel's device.
//
// # What belongs to whom
//
// Open or Dial makes a Client, which owns one connection and two goroutines;
// Close ends them. Watches and transactions belong to the connection and end
// with it. A connection that broke stays broken: every call then fails with
// ErrDead and the reason, the channel of events is closed, and the owner opens
// a new client and watches anew, or has a Lasting do so.
//
// # Trust
//
// A guest can write below /local/domain/<its number> and elsewhere where it
// was allowed to. Values from there are its claims. What says that domains
// come and go is a watch on IntroduceDomain and ReleaseDomain, which only the
// toolstack fires, and then Xen itself.
package xenstore
