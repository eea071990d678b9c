package image

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// DefaultXen is the release of Xen that the lab boots unless asked for another.
const DefaultXen = "4.17"

// xenRelease is a release of Xen and where its packages are from.
type xenRelease struct {
	name   string
	suites []string
}

// xens are the releases of Xen that the lab knows, the oldest first, each with
// its own toolstack. They run under one control domain's kernel.
var xens = []xenRelease{
	{"4.14", bullseye},
	{DefaultXen, bookworm},
	{"4.20", trixie},
}

// Xens returns the releases of Xen that the lab can boot, the oldest first.
func Xens() []string {
	var names []string
	for _, x := range xens {
		names = append(names, x.name)
	}
	return names
}

// XenError reports a release of Xen that the lab can't boot.
type XenError struct{ Release string }

func (e *XenError) Error() string {
	return fmt.Sprintf("the lab has no Xen %q; it has %s", e.Release, strings.Join(Xens(), ", "))
}

// treeXen is the default release's tree.
var treeXen = xens[1].recipe()

// recipe is the tree with the hypervisor and its toolstack.
func (x xenRelease) recipe() recipe {
	return recipe{"xen", x.suites,
		[]string{"xen-hypervisor-" + x.name + "-amd64", "xen-utils-" + x.name, "xenstore-utils", "busybox-static"},
		[]string{"udev", "libxml2", "qemu*", "grub*", "kpartx", "iproute2", "bridge-utils"}}
}

// xen returns the tree that was asked for. The error may be a *XenError.
func (b *Builder) xen() (recipe, error) {
	if b.Xen == "" {
		return treeXen, nil
	}
	i := slices.IndexFunc(xens, func(x xenRelease) bool { return x.name == b.Xen })
	if i < 0 {
		return recipe{}, &XenError{b.Xen}
	}
	return xens[i].recipe(), nil
}

// merged finds a file of a package that may have been moved into usr: bin and
// lib64 are links there from Debian 13 on, and packages know. A link is followed
// within the tree.
func merged(tree, name string) (string, error) {
	for _, n := range []string{name, filepath.Join("usr", name)} {
		p := filepath.Join(tree, n)
		if to, err := os.Readlink(p); err == nil && filepath.IsAbs(to) {
			p = filepath.Join(tree, to)
		}
		if _, err := os.Stat(p); err == nil {
			return p, nil
		}
	}
	return "", fmt.Errorf("no %s in %s: %w", name, tree, fs.ErrNotExist)
}
