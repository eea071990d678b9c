// Package hooks is what toolstacks call while they start a domain. One small
// program, hvi-hook, plays all the parts; the name it was called by says which.
//
//   - libvirt (50-hvi in /etc/libvirt/hooks/libxl.d) gets the domain's XML,
//     checks our element in it, and hands the policy to hvid before the domain
//     exists. Where protection is asked for and hvid cannot give it, the start
//     is refused.
//   - vif-gate (hvi-vif-bridge and the like in /etc/xen/scripts) is named as the
//     script of a virtual network interface. It holds the start until hvid says
//     that it is attached, and becomes the real script then.
//   - dm-gate is named as the device model of an HVM domain. It does the same and
//     becomes QEMU, with all arguments and file descriptors.
//
// # What is bounded
//
// A toolstack waits for a hook, with the domain's lock held, and libvirt waits
// for ever. So each thing a hook waits for has an end: its input, hvid's answer,
// xenstore. A hook never calls the toolstack back.
//
// # What is refused
//
// A gate that cannot ask hvid stays shut: who names a gate wants certainty. The
// libvirt hook does as the element says: mode enforce, or require_attach, and
// the domain does not start without hvid; otherwise it starts with a warning. An
// element that cannot be understood is refused whatever it seems to say.
//
// The domain's XML and the arguments are the toolstack's, which is root's; names
// in them are anybody's, and are shown quoted and used for nothing else. Nothing
// that a guest can write is read.
//
// # Ownership
//
// Run keeps nothing. It may leave a goroutine behind that reads from an input
// which never ends, because the process ends or becomes another right after.
package hooks
