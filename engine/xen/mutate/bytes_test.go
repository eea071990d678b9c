package mutate_test

import (
	"encoding/hex"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/xen-hvi/hvi/engine/x86"
	"github.com/xen-hvi/hvi/engine/xen"
	"github.com/xen-hvi/hvi/engine/xen/abi"
	"github.com/xen-hvi/hvi/engine/xen/internal/hypercall"
	"github.com/xen-hvi/hvi/engine/xen/mutate"
)

// recorder is a Caller that keeps the bytes of each structure, for tests that
// compare them with bytes written by hand from Xen's headers. It answers as
// far as opening needs.
type recorder struct {
	t     *testing.T
	pool  *hypercall.Pool
	minor uint64
	quiet bool
	got   []byte
	op    uint64
	arg0  uint64
	lists [][]byte
}

type heap struct{}

func (heap) MapSlab(pages int) ([]byte, error) { return make([]byte, pages*hypercall.PageSize), nil }
func (heap) UnmapSlab([]byte) error            { return nil }
func (heap) AddressOf(mem []byte) uint64       { return hypercall.AddressOf(mem) }

func newRecorder(t *testing.T) *recorder {
	return &recorder{t: t, pool: hypercall.NewPool(heap{}), minor: 17}
}

func (r *recorder) Yield() error { return nil }

func (r *recorder) Alloc(n int) (*hypercall.Buffer, error) { return r.pool.Alloc(n) }
func (r *recorder) Close() error                           { return r.pool.Close() }
func (r *recorder) Unmap([]byte) error                     { return nil }
func (r *recorder) MapForeign(uint16, []uint64, []int32, bool) ([]byte, error) {
	return nil, unix.ENOSYS
}

func (r *recorder) DMOp(dom uint16, b *hypercall.Buffer) error {
	if !r.quiet {
		r.op, r.arg0, r.got = 41, uint64(dom), append([]byte(nil), b.Bytes()...)
	}
	return nil
}

func (r *recorder) Hypercall(op uint64, a [5]uint64) (int64, error) {
	if r.quiet {
		return 0, nil
	}
	switch op {
	case 17: // xen_version
		if a[0] == 0 {
			return int64(4<<16 | r.minor), nil
		}
		return 0, nil
	case 36: // domctl
		b, ok := r.pool.Find(a[0], 144)
		if !ok {
			r.t.Fatal("domctl is not in a hypercall buffer")
		}
		r.op, r.got = op, append([]byte(nil), b...)
		if b[0] == 56 && b[16] == 3 { // vm_event_op(get_version)
			b[24] = 7
		}
		if b[0] == 56 && b[16] == 0 {
			b[24], b[25] = 0x34, 0x12 // port
		}
		return 0, nil
	case 12: // memory_op
		b, ok := r.pool.Find(a[1], 32)
		if !ok {
			r.t.Fatal("memory_op is not in a hypercall buffer")
		}
		r.op, r.arg0, r.got, r.lists = op, a[0], append([]byte(nil), b...), nil
		for _, off := range []int{0, 16, 24} {
			p := le64(b[off:])
			for _, n := range []int{24, 8, 3} {
				if list, ok := r.pool.Find(p, n); ok {
					r.lists = append(r.lists, append([]byte(nil), list...))
					clear(r.got[off : off+8]) // addresses differ
					break
				}
			}
		}
		return 1, nil
	case 34: // hvm_op
		n := 16
		if a[0] == 25 {
			n = 80
		}
		b, ok := r.pool.Find(a[1], n)
		if !ok {
			r.t.Fatal("hvm_op is not in a hypercall buffer")
		}
		r.op, r.arg0, r.got = op, a[0], append([]byte(nil), b...)
		return 0, nil
	}
	return 0, unix.ENOSYS
}

func le64(b []byte) (v uint64) {
	for i := 7; i >= 0; i-- {
		v = v<<8 | uint64(b[i])
	}
	return v
}

// TestBytes compares what goes to Xen with bytes written by hand from
// public/domctl.h, memory.h, hvm/hvm_op.h and hvm/dm_op.h of 4.17. Spaces
// stand between fields; what follows is zero.
func TestBytes(t *testing.T) {
	c := newRecorder(t)
	h, err := xen.OpenWith(c, nil)
	if err != nil {
		t.Fatal(err)
	}
	m := mutate.New(h)
	// The envelope: cmd, interface version, domain 0x0105, padding.
	domctl := func(cmd, u string) string { return cmd + " 15000000 0501 000000000000 " + u }
	const dom = 0x105
	for _, tc := range []struct {
		name  string
		call  func() error
		op    uint64
		arg0  uint64
		want  string
		lists []string
	}{
		{name: "pause", call: func() error { return m.Pause(dom) }, op: 36, want: domctl("03000000", "")},
		{name: "unpause", call: func() error { return m.Unpause(dom) }, op: 36, want: domctl("04000000", "")},
		{name: "enable", call: func() error {
			port, err := m.VMEventEnable(dom)
			if port != 0x1234 {
				t.Errorf("port %#x", port)
			}
			return err
		}, op: 36, want: domctl("38000000", "00000000 02000000 00000000")},
		{name: "disable", call: func() error { return m.VMEventDisable(dom) }, op: 36, want: domctl("38000000", "01000000 02000000")},
		{name: "cr3", call: func() error {
			return m.Monitor(dom, mutate.MonitorOp{Event: abi.MonitorEventWriteCtrlReg, On: true, Register: 1, Sync: true, OnChangeOnly: true, IgnoreBits: 0x8000000000000001})
		}, op: 36, want: domctl("4d000000", "00000000 00000000 01 01 01 00 00000000 0100000000000080")},
		{name: "lstar", call: func() error {
			return m.Monitor(dom, mutate.MonitorOp{Event: abi.MonitorEventMovToMSR, MSR: 0xc0000082, OnChangeOnly: true})
		}, op: 36, want: domctl("4d000000", "01000000 01000000 820000c0 01")},
		{name: "guest request", call: func() error {
			return m.Monitor(dom, mutate.MonitorOp{Event: abi.MonitorEventGuestRequest, On: true, AllowUserspace: true})
		}, op: 36, want: domctl("4d000000", "00000000 04000000 00 01")},
		{name: "vmexit", call: func() error {
			return m.Monitor(dom, mutate.MonitorOp{Event: abi.MonitorEventVMExit, On: true, Sync: true})
		}, op: 36, want: domctl("4d000000", "00000000 0c000000 01")},
		{name: "defer", call: func() error { return m.DeferRegisterWrites(dom) }, op: 36, want: domctl("4d000000", "04000000")},
		{name: "each rep", call: func() error { return m.EmulateEachRep(dom, true) }, op: 36, want: domctl("4d000000", "03000000 01000000")},
		{name: "step", call: func() error { return m.SingleStep(dom, 3, true) }, op: 36, want: domctl("36000000", "01000000 03000000")},
		{name: "required", call: func() error { return m.SetAccessRequired(dom, true) }, op: 36, want: domctl("40000000", "01")},
		{name: "param", call: func() error { return m.SetHVMParam(dom, 35, 2) }, op: 34, arg0: 0, want: "0501 0000 23000000 0200000000000000"},
		{name: "altp2m", call: func() error { return m.AltP2MSetState(dom, true) }, op: 34, arg0: 25, want: "01000000 02000000 0501 0000 00000000 01"},
		{name: "remap", call: func() error { return m.Remap(dom, 3, 0x123456, 0x100000) }, op: 34, arg0: 25,
			want: "01000000 08000000 0501 0000 00000000 0300 0000 00000000 5634120000000000 0000100000000000"},
		{name: "unmap", call: func() error { return m.Unmap(dom, 3, 0x123456) }, op: 34, arg0: 25,
			want: "01000000 08000000 0501 0000 00000000 0300 0000 00000000 5634120000000000 ffffffffffffffff"},
		{name: "max pages", call: func() error { return m.SetMaxPages(dom, 0x123) }, op: 36, want: domctl("0b000000", "8c04000000000000")},
		{name: "populate", call: func() error { return m.PopulatePage(dom, 0xfeff2) }, op: 12, arg0: 6,
			want: "0000000000000000 0100000000000000 00000000 00000000 0501", lists: []string{"f2ef0f0000000000"}},
		{name: "release", call: func() error { return m.ReleasePage(dom, 0xfeff2) }, op: 12, arg0: 1,
			want: "0000000000000000 0100000000000000 00000000 00000000 0501", lists: []string{"f2ef0f0000000000"}},
		{name: "access", call: func() error { return m.SetMemAccess(dom, xen.AccessRX, 0x123456, 7) }, op: 12, arg0: 21,
			want: "00 05 0501 07000000 5634120000000000"},
		{name: "default", call: func() error { return m.SetMemAccess(dom, xen.AccessDefault, 0x123456, 7) }, op: 12, arg0: 21,
			want: "00 0a 0501 07000000 5634120000000000"},
		{name: "default access", call: func() error { return m.SetDefaultMemAccess(dom, xen.AccessRW) }, op: 12, arg0: 21,
			want: "00 03 0501 00000000 ffffffffffffffff"},
		{name: "multi", call: func() error {
			return m.SetMemAccessMulti(dom, []x86.GFN{1, 0x10002, 3}, []xen.Access{xen.AccessRX, xen.AccessN, xen.AccessRWX})
		}, op: 12, arg0: 21, want: "04 00 0501 03000000", lists: []string{"0100000000000000 0200010000000000 0300000000000000", "050007"}},
		{name: "inject", call: func() error {
			return m.InjectEvent(dom, mutate.Event{VCPU: 2, Vector: 14, Type: 3, HasErrorCode: true, ErrorCode: 6, CR2: 0x1122334455667788})
		}, op: 41, arg0: dom, want: "0d000000 00000000 02000000 0e 03 00 00 06000000 00000000 8877665544332211"},
		{name: "shut down", call: func() error { return m.ShutDown(dom, abi.ShutdownCrash) }, op: 41, arg0: dom,
			want: "10000000 00000000 03000000 00000000 0000000000000000 0000000000000000"},
	} {
		c.got, c.op, c.arg0 = nil, 0, 0
		if err := tc.call(); err != nil {
			t.Errorf("%s: %v", tc.name, err)
			continue
		}
		want, err := hex.DecodeString(strings.ReplaceAll(tc.want, " ", ""))
		if err != nil {
			t.Fatal(err)
		}
		if c.op != tc.op || tc.op != 36 && c.arg0 != tc.arg0 {
			t.Errorf("%s: hypercall %d(%d), want %d(%d)", tc.name, c.op, c.arg0, tc.op, tc.arg0)
		}
		for i, b := range c.got {
			w := byte(0)
			if i < len(want) {
				w = want[i]
			}
			if b != w {
				t.Errorf("%s: byte %d is %#x, want %#x:\n got %x\nwant %x", tc.name, i, b, w, c.got, want)
				break
			}
		}
		if len(c.got) < len(want) {
			t.Errorf("%s: only %d bytes", tc.name, len(c.got))
		}
		if len(tc.lists) > 0 && len(c.lists) != len(tc.lists) {
			t.Errorf("%s: lists %x", tc.name, c.lists)
			continue
		}
		for i, l := range tc.lists {
			if got := hex.EncodeToString(c.lists[i]); got != strings.ReplaceAll(l, " ", "") {
				t.Errorf("%s: list %d is %s, want %s", tc.name, i, got, l)
			}
		}
		c.lists = nil
	}
	if err := h.Close(); err != nil {
		t.Error(err)
	}
}
