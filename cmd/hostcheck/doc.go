// Package hostcheck examines what hvi needs of its host besides Xen: devices,
// xenstored, libvirt's hook, the control socket, and the files an admin writes.
// hvid answers with it when it is asked for a doctor's report, and hvictl where
// there is no hvid to ask, so both say the same.
//
// It reads files and /proc and changes nothing. It owns nothing: every file is
// closed before a check returns.
package hostcheck
