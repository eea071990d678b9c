package linux

import (
	"strings"

	"github.com/xen-hvi/hvi/engine/guest"
	"github.com/xen-hvi/hvi/engine/x86"
)

// Over returns the same kernel read through another Memory of the same guest,
// for who opens the memory anew for each reading. The two share their tables.
func (k *Kernel) Over(mem guest.Memory) *Kernel {
	c := *k
	c.as = k.as.WithMemory(mem)
	return &c
}

// RunsOn reports whether a vCPU with these registers runs this kernel, and not
// one that was started since by kexec or a reset: the vCPU's page tables lead to
// the same image, and the image says that it is the same build. Only CR3 is used
// of regs.
func (k *Kernel) RunsOn(regs *x86.Registers) bool {
	va, ok := k.Symbols.Lookup("linux_banner")
	if !ok {
		return false
	}
	banner, err := k.as.ReadCString(va, maxBanner)
	if err != nil || strings.TrimSuffix(banner, "\n") != k.Banner {
		return false
	}
	root := x86.PhysAddr(regs.CR3 & x86.CR3AddrMask)
	// With page-table isolation the user half does not map the image.
	for _, r := range []x86.PhysAddr{root, root &^ x86.CR3KPTIUser} {
		as := k.as.WithRoot(r)
		if t, err := as.Translate(k.Base); err == nil && t.Phys == k.PhysBase {
			return true
		}
	}
	return false
}
