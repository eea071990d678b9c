package kernel

import (
	"bytes"
	"encoding/binary"
)

// Page frames covered by a paravirtualized kernel's map of its memory: what
// CONFIG_XEN_MEMORY_HOTPLUG_LIMIT=512 (GiB) makes of it, and what we put there.
const (
	p2mFrames     = 512 << 30 >> 12
	p2mFramesLess = 8 << 30 >> 12
)

// ShrinkP2M lowers the memory that Debian's kernel prepares for as a Xen
// control domain from 512 GiB to 8 GiB, in place, and tells whether it found
// what to change. xen_vmalloc_p2m_tree (arch/x86/xen/p2m.c) has the limit as a
// constant, and xen_rebuild_p2m_list looks at each of its 134 million frames in
// turn: 1.3 of the 2.2 thousand million instructions of such a kernel's boot,
// 8 of 27 seconds in Bochs. The lab's machines have less than 4 GiB. Without the
// change, the kernel boots as well, only later.
func ShrinkP2M(image []byte) bool {
	var want [4]byte
	binary.LittleEndian.PutUint32(want[:], p2mFrames)
	found := -1
	for at := 0; ; at++ {
		i := bytes.Index(image[at:], want[:])
		if i < 0 {
			break
		}
		at += i
		if !isP2MLimit(image, at) {
			continue
		}
		if found >= 0 {
			return false // not as unique as we think
		}
		found = at
	}
	if found < 0 {
		return false
	}
	binary.LittleEndian.PutUint32(image[found:], p2mFramesLess)
	return true
}

// isP2MLimit tells whether the constant at i is the operand of a move to a
// register, and what follows is max(x, limit) and the rounding of 8 times that
// to 2 MiB:
//
//	mov    $0x8000000,%edx
//	cmp    %rdx,%rax
//	cmovb  %rdx,%rax
//	lea    0x1fffff(,%rax,8),%rax
func isP2MLimit(image []byte, i int) bool {
	if i < 1 || image[i-1]&0xf8 != 0xb8 {
		return false
	}
	after := image[i+4 : min(len(image), i+4+48)]
	lea := bytes.Index(after, []byte{0xff, 0xff, 0x1f, 0x00})
	if lea < 4 || after[lea-4]&0xf8 != 0x48 || after[lea-3] != 0x8d || after[lea-1]&0xc7 != 0xc5 {
		return false
	}
	before := after[:lea-4]
	return bytes.Contains(before, []byte{0x0f, 0x42}) || bytes.Contains(before, []byte{0x0f, 0x43}) ||
		bytes.Contains(before, []byte{0x0f, 0x46}) || bytes.Contains(before, []byte{0x0f, 0x47})
}
