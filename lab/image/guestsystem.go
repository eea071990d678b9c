package image

import (
	"context"
	"errors"
	"os"
	"path/filepath"
)

// debianGuest is the system of a guest that is no more than a server of Debian's
// as it comes: what an installer without a desktop leaves, with a shell to log
// in to from afar.
var debianGuest = installation{
	packages: []string{
		"usr-is-merged", "systemd", "systemd-sysv", "udev", "dbus", "libpam-systemd",
		"kmod", "procps", "iproute2", "ifupdown", "cron", "rsyslog", "logrotate", "openssh-server",
	},
	// Those that a boot could ask for: by a device, a processor's feature, or a unit.
	modules: []string{
		"arch/x86/crypto", "crypto", "lib", "block", "drivers/acpi", "drivers/block/loop.ko", "drivers/block/xen-blkfront.ko", "drivers/char", "drivers/input", "drivers/md/dm-mod.ko", "drivers/net/xen-netfront.ko",
		"drivers/platform", "drivers/virtio", "drivers/xen", "fs/autofs", "fs/binfmt_misc.ko", "fs/configfs", "fs/efivarfs", "fs/fuse", "net/ipv6", "net/packet", "net/unix",
	},
	files: "files/debian-guest",
	setup: "debian-setup-guest",
}

// GuestSystem builds a whole Debian for guests with Debian's kernel for the cloud,
// and returns a cpio archive with guest/system, which is their ramdisk. As
// [Builder.Debian] does, it needs root.
func (b *Builder) GuestSystem(ctx context.Context) (string, error) {
	const name = "guest-system.cpio"
	kernel, err := b.tree(ctx, treeGuestKernel)
	if err != nil {
		return "", err
	}
	dir, err := b.install(ctx, "guest-system", debianGuest, kernel, func(root, dir string) error {
		in, out := newLayer(), newLayer()
		defer in.close()
		defer out.close()
		ramdisk := filepath.Join(dir, "system")
		if err := errors.Join(in.system(root), in.writeFile(ramdisk), out.file("guest/system", ramdisk, 0o644)); err != nil {
			return err
		}
		return errors.Join(out.writeFile(filepath.Join(dir, name)), os.Remove(ramdisk))
	})
	return filepath.Join(dir, name), err
}
