// Package control is how programs talk to hvid: the types of its interface,
// the server that hvid runs and the client that hvictl, the hooks and the tests
// use. It is HTTP and JSON over a unix socket, [DefaultSocket].
//
//	GET    /v1/version                 Version
//	GET    /v1/domains                 []DomainStatus
//	GET    /v1/domains/{dom}           DomainStatus
//	GET    /v1/domains/{dom}/guest/{kind}  ?pid=, threads=1 -> a type of package report
//	GET    /v1/domains/{dom}/profile   a profile of the kernel, in the format of Volatility 3
//	POST   /v1/domains/{dom}/attach    AttachRequest -> DomainStatus
//	POST   /v1/domains/{dom}/detach    DomainStatus
//	POST   /v1/domains/{dom}/resume    DomainStatus
//	POST   /v1/domains/{dom}/gate      GateRequest -> GateResult
//	GET    /v1/domains/{dom}/policy    PolicyReport
//	PUT    /v1/domains/{dom}/policy    PolicyRequest -> PolicyReport
//	DELETE /v1/domains/{dom}/policy    ?where=live, config or both -> PolicyReport
//	PUT    /v1/declarations/{uuid}     DeclareRequest -> Declared
//	GET    /v1/declarations            []Declaration
//	POST   /v1/declarations            Declaration -> Declaration
//	GET    /v1/exceptions              []Exception
//	POST   /v1/exceptions              policy.Exception -> []Exception
//	PUT    /v1/exceptions              reads the admin's file anew -> []Exception
//	DELETE /v1/exceptions              ?id=ID,... -> []Exception
//	GET    /v1/events                  JSON lines, see below
//	GET    /v1/doctor                  DoctorReport
//
// {dom} is a domid, a name or a UUID, percent-encoded; for gate and policy the
// domain need not be among /v1/domains. A list is never null. A request that fails is answered with a [Problem] and the status of its [Code].
// Within /v1, members are added to what hvid sends but never renamed or
// removed, and a reader ignores those it doesn't know. What hvid receives is
// read strictly: an unknown member or parameter is an error.
//
// # Looking into a guest
//
// GET /v1/domains/{dom}/guest/{kind} answers a question about the guest from its
// memory, which needs no protection of the domain and changes nothing of it. The
// kinds, what they take and their types are [inspect.Questions]. The answer holds
// at most 65,536 things; its member "reading" says what is missing and why. A PV
// domain, another system than 64-bit Linux, or a view that the kernel doesn't
// allow is CodeNotPossible; a kernel that isn't up yet is CodeConflict; too many
// questions at once are CodeBusy.
//
// # Events
//
// GET /v1/events takes follow=1, domain, guard, action, severity (at least), id,
// since and until (RFC 3339), after (the ID of an event) and limit (the newest so
// many; without it all that match). With
// follow the answer goes on with events as they happen, and history is only
// sent where limit, since or after asks for it. Each line is an object with a
// member "type": "event" is a [journal.Record]; "missed" says that a reader was
// too slow and how many events it did not get, in the place where they would
// have been; "problem" is a Problem that ended the stream; "end" says that hvid
// ended it. Readers ignore other types.
//
// # Restarting
//
// A hvid that stops leaves a [RestartNotice] beside its socket, so that clients
// can tell a hvid that restarts from one that nobody started, and show the
// domains that run without protection meanwhile as [StateRestarting]. A notice
// is believed for [RestartWindow]; the next hvid removes it.
//
// # Who may
//
// The socket is of mode 0660 and belongs to the group hvi, where that exists,
// in a directory that everybody can enter. The kernel names the process at the
// other end (SO_PEERCRED and SO_PEERGROUPS): root and members of the group hvi
// may read; only root may change anything, because taking protection away from
// a guest is an administrator's act and reading alerts is not. Only root may look
// into a guest, whose memory holds what its users hold secret.
//
// # Who owns what
//
// A [Listener] owns the socket's name and a lock beside it; Close removes the
// name and gives the lock up.
// A [Server] owns the connections; Shutdown ends the event streams, then waits
// for the other requests. It owns neither Engine nor journal. A [Client] owns
// idle connections, released by Close; an [EventStream] must be closed.
package control
