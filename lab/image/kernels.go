package image

import (
	"context"
	"errors"
	"io/fs"
	"slices"
)

// Kernel names one of Debian's kernels for guests: "6.1-cloud".
type Kernel struct {
	// Name is its series and its flavour: amd64, cloud or rt.
	Name string

	suites  []string
	pkg     string // the metapackage
	headers string // that of what modules are built with
}

// Suites that other kernels than the lab's own come from.
var (
	// Without its security archive, which has begun to lose packages that its
	// index names.
	bullseye = []string{"bullseye"}
	// The newest kernel of these is that of the next release.
	forky = []string{"forky"}
)

// kernels are all, the oldest first.
var kernels = []Kernel{
	{"5.10-cloud", bullseye, "linux-image-cloud-amd64", "linux-headers-cloud-amd64"},
	{"5.10-amd64", bullseye, "linux-image-amd64", "linux-headers-amd64"},
	{"5.10-rt", bullseye, "linux-image-rt-amd64", "linux-headers-rt-amd64"},
	{"6.1-cloud", bookworm, "linux-image-cloud-amd64", "linux-headers-cloud-amd64"},
	{"6.1-amd64", bookworm, "linux-image-amd64", "linux-headers-amd64"},
	{"6.1-rt", bookworm, "linux-image-rt-amd64", "linux-headers-rt-amd64"},
	{"6.12-cloud", bookworm, "linux-image-6.12-cloud-amd64", "linux-headers-6.12-cloud-amd64"},
	{"6.12-amd64", bookworm, "linux-image-6.12-amd64", "linux-headers-6.12-amd64"},
	{"6.12-rt", bookworm, "linux-image-6.12-rt-amd64", "linux-headers-6.12-rt-amd64"},
	{"7.2-cloud", forky, "linux-image-cloud-amd64", "linux-headers-cloud-amd64"},
	{"7.2-amd64", forky, "linux-image-amd64", "linux-headers-amd64"},
	{"7.2-rt", forky, "linux-image-rt-amd64", "linux-headers-rt-amd64"},
}

// Kernels returns all that the lab knows, the oldest first.
func Kernels() []Kernel { return slices.Clone(kernels) }

// FindKernel returns the kernel of a name.
func FindKernel(name string) (Kernel, bool) {
	i := slices.IndexFunc(kernels, func(k Kernel) bool { return k.Name == name })
	if i < 0 {
		return Kernel{}, false
	}
	return kernels[i], true
}

// Attacks builds the attack modules for a kernel and returns the folder that
// holds them. For Debian 12's own kernels this machine's compiler does; others
// bring theirs.
func (b *Builder) Attacks(ctx context.Context, k Kernel) (string, error) {
	tree, own, err := b.headers(ctx, k)
	if err != nil {
		return "", err
	}
	return b.modules(ctx, tree, own)
}

// headers returns the tree that modules for a kernel are built with, and whether
// it has a compiler of its own.
func (b *Builder) headers(ctx context.Context, k Kernel) (tree string, own bool, err error) {
	exclude := []string{"linux-image-*"}
	if own = !slices.Equal(k.suites, bookworm); !own {
		exclude = append(exclude, "linux-compiler-*", "gcc*", "cpp*", "binutils*")
	}
	tree, err = b.tree(ctx, recipe{"headers-" + k.Name, k.suites, []string{k.headers}, exclude})
	return tree, own, err
}

// recipe is the tree with a kernel and its modules.
func (k Kernel) recipe() recipe {
	return recipe{"kernel-" + k.Name, k.suites, []string{k.pkg},
		[]string{"kmod", "linux-base", "initramfs-tools*", "dracut*", "linux-initramfs-tool"}}
}

// kernelFile returns the bzImage of a tree's only kernel. From 7.2 on Debian
// keeps it beside the modules.
func kernelFile(tree string) (string, error) {
	file, err := only(tree, "boot/vmlinuz-*")
	if errors.Is(err, fs.ErrNotExist) {
		if file, err := only(tree, "usr/lib/modules/*/vmlinuz"); err == nil {
			return file, nil
		}
	}
	return file, err
}
