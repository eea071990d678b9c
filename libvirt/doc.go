// Package libvirt is hvi's side of libvirt: it listens to a libvirt daemon that
// manages the domains of this host, reads hvi's element in their XML, and writes
// it. What the element means is the business of package metadata below; how a
// domain's start is held is that of package hooks.
//
// # Being connected
//
// [Start] makes a [Client], which connects to the first socket that answers, the
// modular daemon's before the monolithic one's, and connects again whenever the
// connection is lost: after a tenth of a second at first, then after ever longer
// pauses. After each connect it asks for all domains that run, so that whatever
// changed meanwhile is noticed, in hvid's absence or libvirtd's.
//
// Only a daemon of root's is believed, or one of the user's own that hvid runs
// as. The kernel says whose it is.
//
// # Waiting
//
// No method waits for libvirt longer than Options.CallTimeout. libvirt answers
// about a domain only when nobody else works on it, so an answer that is late is
// no sign of a broken daemon: what was to be told is told when it comes. A
// daemon that does not even say its version is taken for dead, and the
// connection is given up.
//
// # Ownership
//
// A Client owns one connection and the goroutines that serve it. Close, or the
// end of the context given to Start, ends all of them; Changed and Connected are
// not called any more once Close has returned.
package libvirt
