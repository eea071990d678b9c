package hypercall

import (
	"errors"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"golang.org/x/sys/unix"
)

// heapSlabs backs a pool with ordinary memory, as a fake hypervisor does.
type heapSlabs struct {
	mapped, unmapped int
	fail             error
}

func (h *heapSlabs) MapSlab(pages int) ([]byte, error) {
	if h.fail != nil {
		return nil, h.fail
	}
	h.mapped++
	return make([]byte, pages*PageSize), nil
}
func (h *heapSlabs) UnmapSlab([]byte) error      { h.unmapped++; return nil }
func (h *heapSlabs) AddressOf(mem []byte) uint64 { return AddressOf(mem) }

func TestPool(t *testing.T) {
	src := &heapSlabs{}
	p := NewPool(src)
	a, err := p.Alloc(100)
	if err != nil {
		t.Fatal(err)
	}
	if len(a.Bytes()) != 100 {
		t.Errorf("length %d", len(a.Bytes()))
	}
	a.PutU32(96, 0x01020304)
	a.PutU8(0, 1)
	a.PutBool(1, true)
	a.PutU16(2, 0x0506)
	a.PutU64(8, 0x0708090a0b0c0d0e)
	if a.U32(96) != 0x01020304 || a.U8(0) != 1 || a.U8(1) != 1 || a.U16(2) != 0x0506 || a.U64(8) != 0x0708090a0b0c0d0e {
		t.Errorf("stored %x", a.Bytes())
	}
	if got := a.Bytes()[96:]; got[0] != 4 || got[3] != 1 {
		t.Errorf("not little-endian: %x", got)
	}
	if got, ok := p.Find(a.Addr()+96, 4); !ok || got[0] != 4 {
		t.Errorf("Find = %x, %v", got, ok)
	}
	for _, bad := range []struct {
		addr uint64
		n    int
	}{{a.Addr() + 97, 4}, {a.Addr() - 1, 1}, {a.Addr() + PageSize, 1}, {0, 1}, {a.Addr(), -1}} {
		if _, ok := p.Find(bad.addr, bad.n); ok {
			t.Errorf("Find(%#x, %d) found something", bad.addr, bad.n)
		}
	}
	addr := a.Addr()
	a.Free()
	if _, ok := p.Find(addr, 4); ok {
		t.Error("a freed buffer is found")
	}
	b, err := p.Alloc(PageSize)
	if err != nil {
		t.Fatal(err)
	}
	if b.Addr() != addr {
		t.Error("the buffer freed last is not used first")
	}
	for _, v := range b.Bytes() {
		if v != 0 {
			t.Fatal("buffer is not zeroed")
		}
	}
	big, err := p.Alloc(PageSize + 1)
	if err != nil {
		t.Fatal(err)
	}
	if p.Live() != 2 {
		t.Errorf("live %d", p.Live())
	}
	if err := p.Close(); err == nil {
		t.Error("Close ignores buffers in use")
	}
	big.Free()
	b.Free()
	if err := p.Close(); err != nil {
		t.Error(err)
	}
	if src.mapped != 2 || src.unmapped != 2 {
		t.Errorf("mapped %d, unmapped %d", src.mapped, src.unmapped)
	}
	if _, err := p.Alloc(1); !errors.Is(err, ErrClosed) {
		t.Errorf("Alloc after Close: %v", err)
	}
	if err := p.Close(); err != nil {
		t.Errorf("second Close: %v", err)
	}
}

func TestPoolLimits(t *testing.T) {
	p := NewPool(&heapSlabs{})
	for _, n := range []int{-1, MaxBuffer + 1} {
		if _, err := p.Alloc(n); !errors.Is(err, ErrTooBig) {
			t.Errorf("Alloc(%d): %v", n, err)
		}
	}
	var all []*Buffer
	for {
		b, err := p.Alloc(MaxBuffer)
		if err != nil {
			if !errors.Is(err, ErrExhausted) {
				t.Fatal(err)
			}
			break
		}
		all = append(all, b)
	}
	if len(all) != maxSlabs {
		t.Errorf("%d buffers of the largest size", len(all))
	}
	for _, b := range all {
		b.Free()
	}
	func() {
		defer func() {
			if recover() == nil {
				t.Error("freeing twice does not panic")
			}
		}()
		all[0].Free()
	}()
	broken := errors.New("no pages")
	if _, err := NewPool(&heapSlabs{fail: broken}).Alloc(1); !errors.Is(err, broken) {
		t.Errorf("got %v", err)
	}
}

func TestPoolConcurrent(t *testing.T) {
	p := NewPool(&heapSlabs{})
	var wg sync.WaitGroup
	for g := range 8 {
		wg.Add(1)
		go func() {
			defer wg.Done()
			for i := range 2000 {
				size := 64
				if i%5 == 0 {
					size = MaxBuffer
				}
				b, err := p.Alloc(size)
				if err != nil {
					t.Error(err)
					return
				}
				b.PutU32(0, uint32(g))
				if b.U32(0) != uint32(g) {
					t.Error("two owners of one buffer")
				}
				b.Free()
			}
		}()
	}
	wg.Wait()
	if p.Live() != 0 {
		t.Errorf("live %d", p.Live())
	}
	if err := p.Close(); err != nil {
		t.Error(err)
	}
}

func TestPoolDoesNotAllocate(t *testing.T) {
	p := NewPool(&heapSlabs{})
	step := func() {
		b, err := p.Alloc(144)
		if err != nil {
			t.Fatal(err)
		}
		b.Free()
	}
	step()
	if n := testing.AllocsPerRun(100, step); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

// TestLockedMemory exercises the fallback on a machine without the device.
func TestLockedMemory(t *testing.T) {
	s := &slabs{path: filepath.Join(t.TempDir(), "absent")}
	p := NewPool(s)
	b, err := p.Alloc(10)
	if err != nil {
		t.Fatal(err)
	}
	if b.Addr() == 0 || b.Addr()%PageSize != 0 {
		t.Errorf("address %#x", b.Addr())
	}
	b.Free()
	if err := p.Close(); err != nil {
		t.Error(err)
	}
	// A device that is there but cannot be opened is an error, not a reason
	// to fall back silently.
	s.path = t.TempDir()
	if _, err := s.MapSlab(1); err == nil {
		t.Error("a directory was accepted as the device")
	}
}

func TestDevicesAbsent(t *testing.T) {
	root := t.TempDir() + "/"
	if _, err := Open(root); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("Open: %v", err)
	}
	if _, err := NewEvtchn(root).BindInterdomain(1, 1); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("BindInterdomain: %v", err)
	}
}

// TestNotADevice runs the ioctls against a file that has none of them: what
// the kernel answers must come back as an errno, without an allocation.
func TestNotADevice(t *testing.T) {
	root := t.TempDir() + "/"
	if err := os.MkdirAll(root+"dev/xen", 0o755); err != nil {
		t.Fatal(err)
	}
	for _, f := range []string{privcmdPath, evtchnPath} {
		if err := os.WriteFile(root+f, make([]byte, 2*PageSize), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	p, err := Open(root)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := p.Hypercall(17, [5]uint64{}); err != unix.ENOTTY {
		t.Errorf("Hypercall: %v", err)
	}
	if n := testing.AllocsPerRun(50, func() { _, _ = p.Hypercall(17, [5]uint64{}) }); n != 0 {
		t.Errorf("a hypercall makes %v allocations", n)
	}
	b, err := p.Alloc(32)
	if err != nil {
		t.Fatal(err)
	}
	if err := p.DMOp(1, b); err != unix.ENOTTY {
		t.Errorf("DMOp: %v", err)
	}
	if n := testing.AllocsPerRun(50, func() { _ = p.DMOp(1, b) }); n != 0 {
		t.Errorf("a device model operation makes %v allocations", n)
	}
	big, err := p.Alloc(65)
	if err != nil {
		t.Fatal(err)
	}
	if err := p.DMOp(1, big); err != unix.E2BIG {
		t.Errorf("DMOp of 65 bytes: %v", err)
	}
	big.Free()
	if err := p.Close(); err == nil {
		t.Error("Close does not report the buffer in use")
	}
	if err := p.DMOp(1, b); err != unix.EBADF {
		t.Errorf("DMOp after Close: %v", err)
	}
	b.Free()
	if _, err := p.Hypercall(17, [5]uint64{}); err != unix.EBADF {
		t.Errorf("Hypercall after Close: %v", err)
	}
	if _, err := p.MapForeign(1, []uint64{1}, make([]int32, 1), false); err != unix.EBADF {
		t.Errorf("MapForeign after Close: %v", err)
	}
	if err := p.Close(); err != nil {
		t.Errorf("second Close: %v", err)
	}

	p, err = Open(root)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := p.MapForeign(1, []uint64{1, 2}, make([]int32, 2), true); err != unix.ENOTTY {
		t.Errorf("MapForeign: %v", err)
	}
	if _, err := p.MapForeign(1, nil, nil, true); err != unix.EINVAL {
		t.Errorf("MapForeign of nothing: %v", err)
	}
	if err := p.Close(); err != nil {
		t.Error(err)
	}
	if _, err := NewEvtchn(root).BindInterdomain(1, 1); err != unix.ENOTTY {
		t.Errorf("BindInterdomain: %v", err)
	}
	// A port over a descriptor without the requests, to see errors pass.
	fd, err := unix.Open(root+evtchnPath, unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	port := &evtchnPort{fd: fd, port: 7}
	if port.FD() != fd || port.Port() != 7 {
		t.Error("port does not keep what it was made of")
	}
	if err := port.Notify(); err != unix.ENOTTY {
		t.Errorf("Notify: %v", err)
	}
	if n := testing.AllocsPerRun(50, func() { _ = port.Notify() }); n != 0 {
		t.Errorf("a notification makes %v allocations", n)
	}
	if err := port.Close(); err != unix.ENOTTY {
		t.Errorf("Close: %v", err)
	}
}
