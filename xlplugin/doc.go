// Package xlplugin is hvi's side of xl, Xen's own toolstack.
//
// xl has no plugin mechanism and forgets what it does not know: the keys an
// admin writes into a domain's config for hvi are legal, and gone once xl has
// parsed them. This room gets them back. It does four things:
//
//   - It reads xl's config language ([Parse]) exactly as xl does, with places in
//     its errors, and takes our keys out of a config ([FromConfig]).
//   - It finds the config a domain was created from ([Resolver]): in the command
//     line of the xl process that is creating the domain or, later, watching it.
//   - It finds the config that `xl config-update` has put in the place of that
//     one ([Resolver.Updated]), for xl keeps it only until the next restart.
//   - It sees domains come and go ([Watch]), whatever toolstack makes them, and
//     tells a UUID that XAPI gives for the moment from a VM's own ([OwnUUID]).
//
// # What xl takes for a config
//
// A regular file, and nothing else: "-" is a file of that name, and /dev/stdin
// works only where a file is redirected to it. The name /dev/null means that
// everything stands on the command line. Of a domain that is restored without a
// config, or received from another host, xl has only what libxl kept, without
// our keys. After a restart xl goes by that, too, unless `xl config-update` was
// used; the file is read anew here, for an admin who changes it and reboots the
// guest expects nothing else.
//
// # What is believed
//
// A policy decides whether a guest is watched, so it matters who can write one.
// Only a process counts that runs the program xl, from a path none but root can
// change, with all its user ids 0 and in the same PID namespace as hvid. A user
// can give a process any name and any arguments, and can even make a set-uid
// program that has become root carry them; the path of the program and the ids
// are what cannot be forged.
//
// To ask the kernel what another process runs and where takes CAP_SYS_PTRACE
// where hvid does not have every capability xl has; without it nothing is
// found, and the error says so.
//
// The config itself is believed as xl believes it. If others than root can
// write it, that is reported as a warning and not refused: xl has already
// started the guest from it, with whatever scripts and device model it names,
// as root. To refuse it would leave the guest unprotected and take nothing from
// whoever can write the file.
//
// Nothing a guest can write is believed at all. The name of a domain is read
// from the part of xenstore that the guest cannot write, and is treated as
// foreign text nevertheless: it may hold any bytes, and is shown only quoted.
//
// # Ownership
//
// Parsed configs are plain values. A [Resolver] holds nothing between calls and
// closes every file before it returns. A [Watcher] owns its watches in xenstore
// and one goroutine; both end with its context.
package xlplugin
