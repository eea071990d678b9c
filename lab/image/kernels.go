package image

import (
	"errors"
	"io/fs"
	"slices"
)

// Kernel names one of Debian's kernels for guests: "6.1-cloud".
type Kernel struct {
	// Name is its series and its flavour: amd64, cloud or rt.
	Name string
	// Headers says that modules can be built for it here: the programs that
	// build them are Debian 12's own.
	Headers bool

	suites []string
	pkg    string // the metapackage
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
	{"5.10-cloud", false, bullseye, "linux-image-cloud-amd64"},
	{"5.10-amd64", false, bullseye, "linux-image-amd64"},
	{"5.10-rt", false, bullseye, "linux-image-rt-amd64"},
	{"6.1-cloud", true, bookworm, "linux-image-cloud-amd64"},
	{"6.1-amd64", true, bookworm, "linux-image-amd64"},
	{"6.1-rt", false, bookworm, "linux-image-rt-amd64"},
	{"6.12-cloud", true, bookworm, "linux-image-6.12-cloud-amd64"},
	{"6.12-amd64", true, bookworm, "linux-image-6.12-amd64"},
	{"6.12-rt", false, bookworm, "linux-image-6.12-rt-amd64"},
	{"7.2-cloud", false, forky, "linux-image-cloud-amd64"},
	{"7.2-amd64", false, forky, "linux-image-amd64"},
	{"7.2-rt", false, forky, "linux-image-rt-amd64"},
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
