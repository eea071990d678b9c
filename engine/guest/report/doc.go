// Package report is what can be told of a running guest, as plain values:
// processes, modules, sockets, the kernel's log. Readers of an operating system
// (package linux) fill them, the control interface carries them as JSON, and
// hvictl prints them, for a live domain and a memory image alike. It holds no
// state and reads nothing.
//
// # Hostile text
//
// Every string that a guest chose is a [printable.Text]. Numbers are the
// guest's claims, too: a report says what its memory says.
//
// # Names
//
// JSON members are lower case with underscores. Within one version of the
// control interface members are added, never renamed or removed. Addresses are
// strings of 0x-prefixed hexadecimal. A list is never null.
package report
