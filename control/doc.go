// Package control is how programs talk to hvid: the types of its interface,
// the server that hvid runs and the client that hvictl, the hooks and the tests
// use. It is HTTP and JSON over a unix socket, [DefaultSocket].
//
//	GET  /v1/version                  Version
//	GET  /v1/domains                  []DomainStatus
//	GET  /v1/domains/{dom}            DomainStatus
//	POST /v1/domains/{dom}/attach     AttachRequest -> DomainStatus
//	POST /v1/domains/{dom}/detach     DomainStatus
//	GET  /v1/events                   JSON lines, see below
//	GET  /v1/doctor                   DoctorReport
//
// {dom} is a domid, a name or a UUID, percent-encoded. A list is never null. A
// request that fails is answered with a [Problem] and the status of its [Code].
// Within /v1, members are added to what hvid sends but never renamed or
// removed, and a reader ignores those it doesn't know. What hvid receives is
// read strictly: an unknown member or parameter is an error.
//
// # Events
//
// GET /v1/events takes follow=1, domain, guard, since (RFC 3339), after (the ID
// of an event) and limit (the newest so many; without it all that match). With
// follow the answer goes on with events as they happen, and history is only
// sent where limit, since or after asks for it. Each line is an object with a
// member "type": "event" is a [journal.Record]; "missed" says that a reader was
// too slow and how many events it did not get, in the place where they would
// have been; "problem" is a Problem that ended the stream; "end" says that hvid
// ended it. Readers ignore other types.
//
// # Who may
//
// The socket is of mode 0660 and belongs to the group hvi, where that exists,
// in a directory that everybody can enter. The kernel names the process at the
// other end (SO_PEERCRED and SO_PEERGROUPS): root and members of the group hvi
// may read; only root may attach and detach, because taking protection away
// from a guest is an administrator's act and reading alerts is not.
//
// # Who owns what
//
// A [Listener] owns the socket's name and a lock beside it; Close removes the
// name and gives the lock up.
// A [Server] owns the connections; Shutdown ends the event streams, then waits
// for the other requests. It owns neither Engine nor journal. A [Client] owns
// idle connections, released by Close; an [EventStream] must be closed.
package control
