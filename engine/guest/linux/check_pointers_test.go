package linux

import (
	"slices"
	"strings"
	"testing"

	"github.com/xen-hvi/hvi/engine/guest/linux/linuxtest"
	"github.com/xen-hvi/hvi/engine/x86"
)

// TestCheckPointers follows words of the kernel's data to code that nobody owns. Before
// 5.18 a classic filter's code is in no book but that of virtual memory.
func TestCheckPointers(t *testing.T) {
	const code = modulesKASLR // the first that is allocated lies here
	area := func(caller string) func(b *kernelGuest) {
		return func(b *kernelGuest) {
			node, vm := b.alloc(64), b.alloc(64)
			b.pointer(node, code)
			b.pointer(node+8, code+2*x86.PageSize)
			b.pointer(node+32, vm)
			b.pointer(vm+16, b.Addr(caller)+0x10)
			b.link(b.Addr("vmap_area_list"), node+16)
		}
	}
	mapped := func(b *kernelGuest) { b.page(code, 0) }
	points := func(to x86.VirtAddr) func(b *kernelGuest) {
		return func(b *kernelGuest) { b.pointer(b.Addr("_sdata")+0x40, to) }
	}
	for _, c := range []struct {
		name string
		do   []func(b *kernelGuest)
		want string // in the finding's detail, "" for none
	}{
		{"nothing", nil, ""},
		{"no memory there", []func(*kernelGuest){points(code)}, ""},
		{"code without an owner", []func(*kernelGuest){points(code + 8), mapped}, "it leads to 0xffffffffc0000008"},
		{"such as a module's", []func(*kernelGuest){points(code + 8), mapped, area("module_alloc")}, "it leads to 0xffffffffc0000008"},
		{"of a classic filter", []func(*kernelGuest){points(code), mapped, area("bpf_jit_alloc_exec")}, ""},
		{"behind it", []func(*kernelGuest){points(code + 2*x86.PageSize), func(b *kernelGuest) { b.page(code+2*x86.PageSize, 0) }, area("bpf_jit_alloc_exec")},
			"it leads to 0xffffffffc0002000"},
	} {
		t.Run(c.name, func(t *testing.T) {
			b := kernelGuestOf(t, linuxtest.Config{
				Variables: append(slices.Clone(variables), "vmap_area_list", "_sdata", "_edata"),
				Functions: []string{"bpf_jit_alloc_exec", "module_alloc"},
			}, false)
			b.k.Offsets.VMArea = VMAreaOffsets{Start: 0, End: 8, List: 16, VM: 32}
			b.k.Offsets.VMStruct = VMStructOffsets{Caller: 16}
			b.emptyList(b.Addr("vmap_area_list"))
			for _, do := range c.do {
				do(b)
			}
			v, err := b.reader().CheckNamed("function-pointers")
			if err != nil {
				t.Fatal(err)
			}
			if c.want == "" {
				if len(v.Findings) != 0 {
					t.Errorf("%+v", v.Findings)
				}
				return
			}
			if len(v.Findings) != 1 || !strings.Contains(v.Findings[0].Detail.String(), c.want) {
				t.Errorf("%+v, want one: %q", v.Findings, c.want)
			}
		})
	}
}
