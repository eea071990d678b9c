package linux

import (
	"errors"
	"strings"
	"testing"

	"github.com/xen-hvi/hvi/engine/guest"
	"github.com/xen-hvi/hvi/engine/guest/guesttest"
	"github.com/xen-hvi/hvi/engine/guest/linux/linuxtest"
	"github.com/xen-hvi/hvi/engine/x86"
)

// Where the guest of these tests has what its kernel addresses by variables.
const (
	testDirect  = linuxtest.DirectMap
	testVmalloc = x86.VirtAddr(0xffff_c900_0000_0000)
	testVmemmap = x86.VirtAddr(0xffff_ea00_0000_0000)
	// aFrame is one that nothing else uses.
	aFrame = x86.PhysAddr(0x9_8000)
)

// newSealedGuest is a guest whose image is mapped as at the end of its boot.
func newSealedGuest(t *testing.T) *kernelGuest {
	t.Helper()
	b := newKernelGuest(t, false)
	b.Map(b.Base, b.PhysBase, linuxtest.ImageSize, guest.Page2M, guesttest.Writable|guesttest.NX)
	at := b.Entry(b.Base, 2)
	b.Put(at, b.Get(at)&^(guesttest.Writable|guesttest.NX|guesttest.Large)) // now a table is wanted
	b.Put(at, 0)
	b.Map(b.Base, b.PhysBase, linuxtest.TextSize, guest.Page4K, 0)
	b.Map(b.Base+linuxtest.TextSize, b.PhysBase+linuxtest.TextSize, 0x20_0000-linuxtest.TextSize, guest.Page4K, guesttest.NX)
	b.pointer(b.Addr("page_offset_base"), testDirect)
	b.pointer(b.Addr("vmalloc_base"), testVmalloc)
	b.pointer(b.Addr("vmemmap_base"), testVmemmap)
	return b
}

// page maps the page aFrame.
func (b *kernelGuest) page(va x86.VirtAddr, flags uint64) {
	b.Map(va, aFrame, x86.PageSize, guest.Page4K, flags)
}

// TestCheckExecutable tells what the kernel may execute from what it may not.
func TestCheckExecutable(t *testing.T) {
	const bpf, stray = coreBase + 0x8_0000, coreBase + 0x9_0000
	for _, c := range []struct {
		name string
		do   func(b *kernelGuest)
		want string // beginning of the finding's object, "" for none
		what string // in its detail
	}{
		{"nothing", func(*kernelGuest) {}, "", ""},
		{"a page of vmalloc", func(b *kernelGuest) { b.page(testVmalloc+0x3000, guesttest.Writable) }, "executable memory in vmalloc's area at 0xffffc90000003000", "execute it and write it: 4096 bytes, from 0x98000"},
		{"a page that it can't write", func(b *kernelGuest) { b.page(testVmalloc+0x3000, 0) }, "executable memory in vmalloc's area at 0xffffc90000003000", "execute it: 4096 bytes"},
		{"two pages", func(b *kernelGuest) {
			b.Map(testVmalloc, aFrame-x86.PageSize, 2*x86.PageSize, guest.Page4K, 0)
		}, "executable memory in vmalloc's area at 0xffffc90000000000", "8192 bytes, from 0x97000"},
		{"a large page", func(b *kernelGuest) {
			b.Map(testVmemmap, 0, 0x20_0000, guest.Page2M, 0)
		}, "executable memory at 0xffffea0000000000", "2097152 bytes, from 0x0"},
		{"the page behind the text", func(b *kernelGuest) {
			b.Map(b.Base+linuxtest.TextSize, b.PhysBase+linuxtest.TextSize, x86.PageSize, guest.Page4K, 0)
		}, "executable memory in the kernel's image at ", "execute it: 4096 bytes"},
		{"text in one large page with data", func(b *kernelGuest) {
			b.Put(b.Entry(b.Base, 2), uint64(b.PhysBase)|guesttest.Present|guesttest.Large)
		}, "executable memory in the kernel's image at ", "execute it: "},
		{"text", func(b *kernelGuest) {
			b.Map(b.Base+0x1000, b.PhysBase+0x1000, x86.PageSize, guest.Page4K, guesttest.Writable)
		}, "writable code in the kernel's image at ", "4096 bytes"},
		{"a page among the modules", func(b *kernelGuest) { b.page(stray, 0) }, "", ""}, // checkModules tells of it
		{"that it can write", func(b *kernelGuest) { b.page(stray, guesttest.Writable) }, "writable code among the modules at ", "4096 bytes"},
		{"of a BPF trampoline", func(b *kernelGuest) {
			ksym := b.alloc(96)
			b.pointer(ksym, bpf)
			b.pointer(ksym+8, bpf+0x80)
			b.link(b.Addr("bpf_kallsyms"), ksym+80)
			b.page(bpf, guesttest.Writable)
		}, "", ""},
		{"what other processors are started with", func(b *kernelGuest) {
			b.pointer(b.Addr("real_mode_header"), testVmalloc+0x3000)
			b.page(testVmalloc+0x3000, 0)
		}, "", ""},
		{"and is written", func(b *kernelGuest) {
			b.pointer(b.Addr("real_mode_header"), testVmalloc+0x3000)
			b.page(testVmalloc+0x3000, guesttest.Writable)
		}, "executable memory in vmalloc's area at ", ""},
		{"what calls a hypervisor", func(b *kernelGuest) {
			b.pointer(b.Addr("hv_hypercall_pg"), testVmalloc+0x3000)
			b.page(testVmalloc+0x3000, 0)
		}, "", ""},
		{"what leads to a kernel of kexec", func(b *kernelGuest) {
			image := b.alloc(16)
			b.pointer(b.Addr("kexec_image"), image)
			b.pointer(image+8, testVmemmap+0x30_0000/x86.PageSize*64)
			b.Put(b.Entry(testDirect+0x20_0000, 2), 0)
			b.Map(testDirect+0x30_0000, 0x30_0000, x86.PageSize, guest.Page4K, 0)
		}, "", ""},
		{"the entry code once more", func(b *kernelGuest) {
			b.Map(cpuEntryArea+0x6000, b.PhysBase+0x1000, x86.PageSize, guest.Page4K, 0)
		}, "", ""},
		{"and elsewhere", func(b *kernelGuest) {
			b.Map(testVmalloc, b.PhysBase+0x1000, x86.PageSize, guest.Page4K, 0)
		}, "executable memory in vmalloc's area at ", ""},
		{"while it boots", func(b *kernelGuest) {
			b.u32(b.Addr("system_state"), 0)
			b.page(testVmalloc, guesttest.Writable)
		}, "", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			b := newSealedGuest(t)
			c.do(b)
			n, found, err := b.reader().checkExecutable()
			if err != nil || n == 0 && c.name != "while it boots" {
				t.Fatalf("%d entries, %v", n, err)
			}
			if c.want == "" {
				if len(found) != 0 {
					t.Errorf("%+v", found)
				}
				return
			}
			if len(found) != 1 || !strings.HasPrefix(string(found[0].Object), c.want) || !strings.Contains(string(found[0].Detail), c.what) {
				t.Errorf("%+v, want %q with %q", found, c.want, c.what)
			}
		})
	}
}

// TestCheckExecutableHostile: a guest whose tables lead to themselves costs no more than
// is allowed, and one with executable pages everywhere no more memory.
func TestCheckExecutableHostile(t *testing.T) {
	b := newSealedGuest(t)
	root := b.k.as.Root()
	for i := range x86.PhysAddr(200) {
		b.Put(root+8*(256+i), uint64(root)|guesttest.Present|guesttest.Writable)
	}
	if _, _, err := b.reader().checkExecutable(); !errors.Is(err, ErrImplausible) {
		t.Errorf("tables that lead to themselves: %v", err)
	}
	b = newSealedGuest(t)
	for i := range x86.VirtAddr(2 * maxFindings) {
		b.page(testVmalloc+2*i*x86.PageSize, 0)
	}
	if _, found, err := b.reader().checkExecutable(); err != nil || len(found) != maxFindings {
		t.Errorf("%d findings, %v, want %d", len(found), err, maxFindings)
	}
}
