// Package image builds what the lab boots, from Debian packages and nothing
// else.
//
// A [Builder] turns packages into artifacts: the hypervisor, the control
// domain's kernel and its two systems, guests with an attack module, the
// emulators. An artifact is a folder in the cache, named after a hash over
// everything it is made of (packages by their content, our own sources, the
// recipe's version), built under a temporary name and renamed. So there is
// nothing to invalidate: equal inputs are found, different ones are built
// beside. Several processes may build at a time; one waits for another that
// builds the same.
//
// The control domain's first system is an initial file system with busybox and
// the toolstack ([Images]). The second is a whole Debian ([Builder.Debian]): its
// packages' own scripts run, in a folder changed into, which needs root. In the
// same way guests get one, as a ramdisk ([Builder.GuestSystem]).
//
// Artifacts and package trees belong to the cache: read them only.
// [Builder.Payload] and [Builder.RunDisk] alone are made anew for each run,
// because they hold the programs under test.
//
// The recipes run programs of the host: cc, binutils, mkfs.ext4; [ToolError]
// names the packages where one is missing.
package image
