// Package registry knows what is declared for each domain, whatever toolstack
// makes it, and remembers it for as long as the domain may come back.
//
// xl forgets our keys once it has parsed them, libvirt tells a hook and then
// nobody, a domain that is restored or migrated in has no config at all. So
// whatever is said about a domain is kept by its UUID in a [Store], from the
// moment it is said, and asked again at each start: a [Registry] answers
// "what holds for this domain" with a [Decision].
//
// # Who is heard
//
// In this order; the first that says something wins:
//
//  1. What a toolstack's hook handed over for the domain's UUID
//     ([Registry.Hand]): libvirt's metadata element.
//  2. The config of the xl process that creates the domain or watches it, or
//     the one that `xl config-update` put in its place.
//  3. The admin's file for the domain in /etc/hvi/domains, by UUID, then by
//     name.
//  4. What was kept for the UUID when it was said last.
//  5. The host's default in hvid.toml.
//
// A source that is there and has none of our words in it (an xl config without
// our keys, XML without our element) says nothing itself, but it makes 4 void:
// who removes the key and starts the guest anew means it.
//
// What was said later beats what was said earlier, where that can be told: a
// policy set by hand (hvictl set) or by `xl config-update` holds against an xl
// process that is older, and against an admin's file that is older, because
// that process will be asked at each reboot and would say again what it said at
// first.
//
// A source that is broken is an error that names the place. It is never skipped
// in favour of a weaker one: the admin asked for protection there and would
// believe in it.
//
// # How long it is remembered
//
// A kept entry goes when its domain is destroyed. After a guest's own end it
// stays for some minutes, since the toolstack may start it anew: as a new
// domain of the same UUID. Once the domain was suspended it stays until it is
// removed by hand or [MaxSaved] newer ones push it out: the saved image may be
// restored at any time.
//
// # Temporary identities
//
// A domain that `xl migrate` is receiving is called NAME--incoming, and one that
// was sent is NAME--migratedaway; both are NAME here. XAPI's xenopsd gives a
// domain that it migrates a temporary UUID, the VM's with 000000000001 (to come)
// or 000000000000 (sent away) as its last group, and writes the VM's own UUID to
// xenstore at /vm/UUID/final-uuid or /vm/UUID/origin-uuid, where only dom0 may
// write. Such a domain is answered for as its VM, and nothing is kept under the
// temporary UUID. (Learnt from xenopsd's source; not tried on a XenServer.)
//
// # Ownership
//
// A [Store] owns the files in its directory: NAME.json, one for each UUID,
// replaced atomically; a damaged one is set aside as NAME.json.corrupt. Open
// files are closed before a method returns. A [Registry] owns its store and
// holds what was handed over in memory besides. Both are safe for concurrent
// use, and need no closing.
package registry
