package xentest

import (
	"errors"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/xen-hvi/hvi/engine/x86"
	"github.com/xen-hvi/hvi/engine/xen"
	"github.com/xen-hvi/hvi/engine/xen/abi"
)

func TestHandlesMustBeBuffers(t *testing.T) {
	h := New(Config{})
	defer h.Close()
	c := newCaller(h)
	for _, op := range []uint64{abi.HypercallDomctl, abi.HypercallSysctl} {
		if _, err := c.Hypercall(op, [5]uint64{0x1000}); err != unix.EFAULT {
			t.Errorf("hypercall %d: %v", op, err)
		}
	}
	b, err := c.Alloc(h.layout.Domctl.Size - 1)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.Hypercall(abi.HypercallDomctl, [5]uint64{b.Addr()}); err != unix.EFAULT {
		t.Errorf("a structure that is cut off: %v", err)
	}
	b.Free()
	if _, err := c.Hypercall(abi.HypercallDomctl, [5]uint64{b.Addr()}); err != unix.EFAULT {
		t.Errorf("a buffer that was freed: %v", err)
	}
	if _, err := c.Hypercall(99, [5]uint64{}); err != unix.ENOSYS {
		t.Errorf("no such hypercall: %v", err)
	}
	if err := c.Close(); err != nil {
		t.Error(err)
	}
}

func TestRefusesWrongEnvelope(t *testing.T) {
	h := New(Config{Release: xen.Release{Major: 4, Minor: 14}})
	defer h.Close()
	c := newCaller(h)
	b, err := c.Alloc(h.layout.Domctl.Size)
	if err != nil {
		t.Fatal(err)
	}
	defer b.Free()
	call := func() error {
		_, err := c.Hypercall(abi.HypercallDomctl, [5]uint64{b.Addr()})
		return err
	}
	b.PutU32(0, abi.DomctlGetDomainInfo)
	b.PutU32(4, 0x15) // 4.17's
	if err := call(); err != unix.EACCES {
		t.Errorf("another version: %v", err)
	}
	b.PutU32(4, 0x12)
	if err := call(); err != nil {
		t.Errorf("its own version: %v", err)
	}
	b.PutU8(11, 1)
	if err := call(); err != unix.EINVAL {
		t.Errorf("padding that is not zero: %v", err)
	}
}

func TestLogAndFailures(t *testing.T) {
	hv := New(Config{})
	defer hv.Close()
	h, err := hv.Host()
	if err != nil {
		t.Fatal(err)
	}
	defer h.Close()
	hv.Log()
	hv.FailNext("domctl(getdomaininfo)", 0)
	hv.FailNext("domctl(getdomaininfo)", unix.EFAULT)
	var got []bool
	for range 3 {
		_, err := h.Domain(0)
		got = append(got, errors.Is(err, unix.EFAULT))
	}
	if !slices.Equal(got, []bool{false, true, false}) {
		t.Errorf("failures %v", got)
	}
	if log := strings.Join(hv.Log(), ","); log != "domctl(getdomaininfo) 0,domctl(getdomaininfo) 0,domctl(getdomaininfo) 0" {
		t.Errorf("log %q", log)
	}
	if len(hv.Log()) != 0 {
		t.Error("the log is not forgotten")
	}
}

func TestMemoryAliases(t *testing.T) {
	hv := New(Config{})
	defer hv.Close()
	d := hv.AddDomain(Spec{ID: 1, Type: xen.PVH, Pages: 3})
	d.Write(0xff8, []byte("across a page"))
	if got := d.Read(0xff8, 13); string(got) != "across a page" {
		t.Errorf("read %q", got)
	}
	mem, n, err := d.mem.mapFrames([]uint64{1, 7, 2, 1}, make([]int32, 4), true, false)
	if err != nil || n != 3 {
		t.Fatalf("%d mapped, %v", n, err)
	}
	defer unix.Munmap(mem)
	if string(mem[:5]) != " page" || string(mem[3*x86.PageSize:][:5]) != " page" {
		t.Errorf("mapped %q, %q", mem[:5], mem[3*x86.PageSize:][:5])
	}
	mem[0] = '-'
	if d.Read(0x1000, 1)[0] != '-' || mem[3*x86.PageSize] != '-' {
		t.Error("a page is not the same everywhere")
	}
	for name, f := range map[string]func(){
		"read of nothing": func() { d.Read(0x9000, 1) },
		"same number":     func() { hv.AddDomain(Spec{ID: 1}) },
	} {
		func() {
			defer func() {
				if recover() == nil {
					t.Errorf("%s does not panic", name)
				}
			}()
			f()
		}()
	}
}

func TestClean(t *testing.T) {
	hv := New(Config{})
	defer hv.Close()
	d := hv.AddDomain(Spec{ID: 1, Type: xen.PVH, Pauses: 1})
	if left := d.Clean(); len(left) > 0 {
		t.Errorf("a fresh domain: %v", left)
	}
	d.pauses++
	d.access[3] = abi.AccessRX
	d.vcpus[0].eventPause = 1
	d.altp2mActive = true
	want := []string{"2 pauses, were 1", "altp2m active", "1 frames restricted", "vCPU 0 waits for 1 answers"}
	if left := d.Clean(); !slices.Equal(left, want) {
		t.Errorf("left %q", left)
	}
}

func TestSend(t *testing.T) {
	hv := New(Config{})
	defer hv.Close()
	d := hv.AddDomain(Spec{ID: 1, Type: xen.PVH})
	if err := d.Send(nil); err == nil {
		t.Error("an event without a listener")
	}
	if d.Responses() != nil || d.Answered() != nil {
		t.Error("answers without a listener")
	}
	if _, err := d.connect(); err != nil {
		t.Fatal(err)
	}
	if err := d.Send(make([]byte, 3)); err == nil {
		t.Error("an entry of the wrong size")
	}
	e := make([]byte, hv.layout.VMEvent.Size)
	e[hv.layout.VMEvent.OffFlags] = abi.VMEventFlagVCPUPaused
	e[hv.layout.VMEvent.OffVCPU] = 5
	if err := d.Send(e); err == nil {
		t.Error("an event of a vCPU there is not")
	}
	// An answer of another version is passed over, as Xen does.
	e[hv.layout.VMEvent.OffVCPU] = 0
	if err := d.Send(e); err != nil {
		t.Fatal(err)
	}
	d.ring.page[64] = 99
	index(d.ring.page, hv.layout.SRing.RspProd).Store(1)
	d.resume()
	if n := d.EventPauses(0); n != 1 || len(d.Responses()) != 0 {
		t.Errorf("paused %d times", n)
	}
	d.disconnect()
}
