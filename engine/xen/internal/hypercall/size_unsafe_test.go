package hypercall

import (
	"testing"
	"unsafe"
)

// TestArgumentStructs compares the arguments of the ioctls with the sizes and
// offsets measured from the headers of Xen and Linux.
func TestArgumentStructs(t *testing.T) {
	for _, c := range []struct {
		what      string
		got, want uintptr
	}{
		{"privcmd_hypercall", unsafe.Sizeof(privcmdHypercall{}), 48},
		{"privcmd_hypercall.arg", unsafe.Offsetof(privcmdHypercall{}.arg), 8},
		{"privcmd_mmapbatch_v2", unsafe.Sizeof(privcmdMmapBatchV2{}), 32},
		{"privcmd_mmapbatch_v2.dom", unsafe.Offsetof(privcmdMmapBatchV2{}.dom), 4},
		{"privcmd_mmapbatch_v2.addr", unsafe.Offsetof(privcmdMmapBatchV2{}.addr), 8},
		{"privcmd_mmapbatch_v2.arr", unsafe.Offsetof(privcmdMmapBatchV2{}.arr), 16},
		{"privcmd_mmapbatch_v2.err", unsafe.Offsetof(privcmdMmapBatchV2{}.err), 24},
		{"privcmd_dm_op", unsafe.Sizeof(privcmdDMOp{}), 16},
		{"privcmd_dm_op.num", unsafe.Offsetof(privcmdDMOp{}.num), 2},
		{"privcmd_dm_op.ubufs", unsafe.Offsetof(privcmdDMOp{}.ubufs), 8},
		{"privcmd_dm_op_buf", unsafe.Sizeof(privcmdDMOpBuf{}), 16},
		{"privcmd_dm_op_buf.size", unsafe.Offsetof(privcmdDMOpBuf{}.size), 8},
		{"evtchn_bind_interdomain", unsafe.Sizeof(evtchnBindInterdomain{}), 8},
		{"evtchn_bind_interdomain.remote_port", unsafe.Offsetof(evtchnBindInterdomain{}.remotePort), 4},
	} {
		if c.got != c.want {
			t.Errorf("%s is %d, want %d", c.what, c.got, c.want)
		}
	}
}
