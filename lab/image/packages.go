package image

import (
	"context"

	"github.com/xen-hvi/hvi/lab/archive"
)

// Suites that packages come from, the main archive first.
var (
	bookworm = []string{"bookworm", "bookworm-security", "bookworm-updates"}
	// trixie has Bochs 3.0. Bookworm's 2.7 lacks VMX's Monitor Trap Flag, and
	// dom0 panics in forky's 3.1.
	trixie = []string{"trixie", "trixie-security"}
)

// maintenance are packages that only maintainer scripts and administrators
// need. They count as present everywhere.
var maintenance = []string{
	"debconf*", "cdebconf*", "dpkg", "ucf", "sensible-utils", "media-types", "adduser", "passwd",
	"init-system-helpers", "lsb-base", "sysvinit-utils", "perl*", "libperl*", "python3*", "libpython3*",
	"install-info", "base-files", "mawk",
}

// recipe names a package tree.
type recipe struct {
	name     string
	suites   []string
	packages []string
	exclude  []string
}

var (
	treeDom0Kernel = recipe{"dom0-kernel", bookworm,
		[]string{"linux-image-amd64"},
		[]string{"kmod", "linux-base", "initramfs-tools*", "dracut*"}}
	treeGuestKernel = recipe{"guest-kernel", bookworm,
		[]string{"linux-image-cloud-amd64", "linux-headers-cloud-amd64"},
		[]string{"kmod", "linux-base", "initramfs-tools*", "dracut*", "linux-compiler-*", "gcc*", "cpp*", "binutils*"}}
	treeQEMU = recipe{"qemu", bookworm,
		[]string{"qemu-system-x86"},
		[]string{"ipxe-qemu", "libgstreamer*", "udev", "acl"}}
	treeBochs = recipe{"bochs", trixie,
		[]string{"bochs", "bochs-term"},
		[]string{"bochs-wx", "bochs-gui", "bochs-x", "bochs-sdl", "dbus*", "dconf*", "systemd*", "libpam*", "adwaita*", "hicolor*",
			"*-icon-theme", "gtk-update-icon-cache", "at-spi2-common", "fonts-*", "fontconfig", "libgtk-3-common", "xkb-data",
			"shared-mime-info", "gsettings-desktop-schemas", "mount", "procps", "openssl*"}}
)

// tree returns the folder of a recipe's packages and how its contents are
// named in an artifact's inputs.
func (b *Builder) tree(ctx context.Context, r recipe) (string, error) {
	pkgs, err := b.Archive.Closure(ctx, r.suites, r.packages, archive.ClosureOptions{
		Exclude: append(append([]string{}, maintenance...), r.exclude...),
	})
	if err != nil {
		return "", err
	}
	return b.Archive.Tree(ctx, r.name, pkgs)
}
