package xen_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/xen-hvi/hvi/engine/x86"
	"github.com/xen-hvi/hvi/engine/xen"
	"github.com/xen-hvi/hvi/engine/xen/abi"
	"github.com/xen-hvi/hvi/engine/xen/mutate"
	"github.com/xen-hvi/hvi/engine/xen/xentest"
)

// open opens a fake for the length of a test, which then must have freed
// every hypercall buffer.
func open(t *testing.T, cfg xentest.Config) (*xentest.Hypervisor, *xen.Host) {
	t.Helper()
	hv := xentest.New(cfg)
	h, err := hv.Host()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if n := hv.LiveBuffers(); n != 0 {
			t.Errorf("%d hypercall buffers were not freed", n)
		}
		if err := h.Close(); err != nil {
			t.Error(err)
		}
		if err := hv.Close(); err != nil {
			t.Error(err)
		}
	})
	return hv, h
}

// eachRelease runs a test for every known release.
func eachRelease(t *testing.T, test func(t *testing.T, r xen.Release)) {
	for _, s := range abi.Releases() {
		t.Run(s.String(), func(t *testing.T) {
			test(t, xen.Release{Major: s.Major, Minor: s.Minor, Extra: ".1"})
		})
	}
}

var testUUID = xen.UUID{0x12, 0x34, 0x56, 0x78, 0x9a, 0xbc, 0xde, 0xf0, 1, 2, 3, 4, 5, 6, 7, 8}

func TestDomains(t *testing.T) {
	eachRelease(t, func(t *testing.T, r xen.Release) {
		hv, h := open(t, xentest.Config{Release: r, CommandLine: "console=com1 altp2m=1"})
		hv.AddDomain(xentest.Spec{ID: 3, UUID: testUUID, Type: xen.PVH, VCPUs: 4, Pages: 300, MaxPages: 400, Pauses: 1})
		hv.AddDomain(xentest.Spec{ID: 7, Type: xen.HVM, NoHAP: true}).Shutdown(abi.ShutdownCrash)
		hv.Domain(3).SetOnline(2, false)
		hv.Domain(3).SetOnline(3, false)

		if h.Release() != r || h.CommandLine() != "console=com1 altp2m=1" {
			t.Errorf("release %v, command line %q", h.Release(), h.CommandLine())
		}
		all, err := h.Domains()
		if err != nil {
			t.Fatal(err)
		}
		var ids []xen.DomID
		for _, d := range all {
			ids = append(ids, d.ID)
			one, err := h.Domain(d.ID)
			if err != nil {
				t.Fatal(err)
			}
			if one != d {
				t.Errorf("listed as\n%+v, asked for\n%+v", d, one)
			}
		}
		if !slices.Equal(ids, []xen.DomID{0, 3, 7}) {
			t.Errorf("domains %v", ids)
		}
		want := xen.DomainInfo{
			ID: 3, UUID: testUUID, Type: xen.PVH, HAP: true, Paused: true,
			VCPUs: 4, OnlineVCPUs: 2, Pages: 301, MaxPages: 400, CPUTime: 1500 * time.Millisecond,
		}
		if all[1] != want {
			t.Errorf("got\n%+v, want\n%+v", all[1], want)
		}
		if d := all[2]; d.Type != xen.HVM || d.HAP || d.Paused || !d.Shutdown || d.ShutdownReason.String() != "crash" {
			t.Errorf("got %+v", d)
		}
		if d := all[0]; d.Type != xen.PV {
			t.Errorf("dom0 is %v", d.Type)
		}

		building := hv.AddDomain(xentest.Spec{ID: 9, Type: xen.PVH, NoVCPUs: true})
		if d, err := h.Domain(building.ID()); err != nil || d.VCPUs != 0 || d.OnlineVCPUs != 0 {
			t.Errorf("a domain without vCPUs has %d, %d of them online, %v", d.VCPUs, d.OnlineVCPUs, err)
		}

		// Before 4.18, Xen answers with domain 7 here.
		for _, id := range []xen.DomID{1, 5, 8, xen.NoDomain} {
			_, err := h.Domain(id)
			var op *xen.OpError
			if !errors.Is(err, xen.ErrNoDomain) || !errors.As(err, &op) || op.Domain != id {
				t.Errorf("domain %d: %v", id, err)
			}
		}
	})
}

// TestManyDomains needs more than one call to list them.
func TestManyDomains(t *testing.T) {
	hv, h := open(t, xentest.Config{})
	const n = 700
	for i := 1; i <= n; i++ {
		hv.AddDomain(xentest.Spec{ID: xen.DomID(2 * i), Type: xen.PV, Pages: 1})
	}
	all, err := h.Domains()
	if err != nil {
		t.Fatal(err)
	}
	if len(all) != n+1 || all[n].ID != 2*n {
		t.Errorf("%d domains, the last is %d", len(all), all[len(all)-1].ID)
	}
}

func TestRegisters(t *testing.T) {
	eachRelease(t, func(t *testing.T, r xen.Release) {
		hv, h := open(t, xentest.Config{Release: r})
		d := hv.AddDomain(xentest.Spec{ID: 1, Type: xen.PVH, VCPUs: 3})
		// A different value in every field shows a field that is left out or
		// taken for another.
		var want x86.Registers
		v := reflect.ValueOf(&want).Elem()
		for i := range v.NumField() {
			n := uint64(0x1111_0000_0000_0000 + 0x101*(i+1))
			switch f := v.Field(i); f.Kind() {
			case reflect.Uint64:
				f.SetUint(n)
			case reflect.Uint32:
				f.SetUint(n & 0xffff_ffff)
			case reflect.Uint16:
				f.SetUint(n & 0xffff)
			case reflect.Uint8:
				f.SetUint(3) // CPL
			default:
				t.Fatalf("field %s of kind %v", v.Type().Field(i).Name, f.Kind())
			}
		}
		d.SetRegisters(1, want)
		got, err := h.Registers(1, 1)
		if err != nil {
			t.Fatal(err)
		}
		if got != want {
			t.Errorf("got\n%+v, want\n%+v", got, want)
		}
		if got, err := h.CPU(1).Registers(1); err != nil || got != want {
			t.Errorf("through CPU: %+v, %v", got, err)
		}
		d.SetOnline(2, false)
		if _, err := h.Registers(1, 2); !errors.Is(err, xen.ErrVCPUOffline) || errors.Is(err, xen.ErrNoVCPU) {
			t.Errorf("offline vCPU: %v", err)
		}
		for _, vcpu := range []int{3, -1} {
			if _, err := h.Registers(1, vcpu); !errors.Is(err, xen.ErrNoVCPU) {
				t.Errorf("vCPU %d: %v", vcpu, err)
			}
		}
		if _, err := h.Registers(9, 0); !errors.Is(err, xen.ErrNoDomain) {
			t.Errorf("no domain: %v", err)
		}
		hv.AddDomain(xentest.Spec{ID: 2, Type: xen.PV})
		if _, err := h.Registers(2, 0); !errors.Is(err, unix.EINVAL) {
			t.Errorf("PV: %v", err)
		}
	})
}

func TestVCPURunning(t *testing.T) {
	eachRelease(t, func(t *testing.T, r xen.Release) {
		hv, h := open(t, xentest.Config{Release: r})
		d := hv.AddDomain(xentest.Spec{ID: 1, Type: xen.PVH, VCPUs: 3})
		d.SetOnline(2, false)
		for vcpu, want := range []bool{true, true, false} {
			if got, err := h.VCPURunning(1, uint32(vcpu)); err != nil || got != want {
				t.Errorf("vCPU %d runs: %v, %v", vcpu, got, err)
			}
		}
		if _, err := h.VCPURunning(1, 3); !errors.Is(err, unix.EINVAL) {
			t.Errorf("no such vCPU: %v", err)
		}
		if _, err := h.VCPURunning(9, 0); !errors.Is(err, xen.ErrNoDomain) {
			t.Errorf("no domain: %v", err)
		}
		paused := hv.AddDomain(xentest.Spec{ID: 2, Type: xen.PVH, Pauses: 1})
		if got, err := h.VCPURunning(2, 0); err != nil || got || paused.Pauses() != 1 {
			t.Errorf("a paused domain's vCPU runs: %v, %v", got, err)
		}
	})
}

func TestReads(t *testing.T) {
	eachRelease(t, func(t *testing.T, r xen.Release) {
		hv, h := open(t, xentest.Config{Release: r, AltP2M: true})
		d := hv.AddDomain(xentest.Spec{ID: 1, Type: xen.PVH, AltP2M: xen.AltP2MExternal, OnDemand: 7})
		if g, err := h.RingFrame(1); err != nil || g != xentest.DefaultRingFrame {
			t.Errorf("RingFrame = %v, %v", g, err)
		}
		if n, err := h.OnDemand(1); err != nil || n != 7 {
			t.Errorf("OnDemand = %d, %v", n, err)
		}
		if g, err := h.MaxGFN(1); err != nil || g != xentest.DefaultRingFrame {
			t.Errorf("MaxGFN = %v, %v", g, err)
		}
		if _, err := h.MaxGFN(2); !errors.Is(err, xen.ErrNoDomain) {
			t.Errorf("MaxGFN of no domain: %v", err)
		}
		if v, err := h.VMEventVersion(); err != nil || v != h.Layout().VMEvent.Version {
			t.Errorf("VMEventVersion = %d, %v", v, err)
		}
		for gfn, present := range map[x86.GFN]bool{0: true, 255: true, 256: false, xentest.DefaultRingFrame: true} {
			typ, err := h.PageFrameType(1, gfn)
			if err != nil || typ.Present() != present {
				t.Errorf("PageFrameType(%v) = %v, %v", gfn, typ, err)
			}
		}
		for _, tt := range []struct {
			first x86.GFN
			n     int
			want  bool
		}{{0, 1, true}, {255, 3000, true}, {256, 3000, false}, {256, 1024, false}, {xentest.DefaultRingFrame - 2000, 2000, false}, {xentest.DefaultRingFrame - 2000, 2001, true}, {0, 0, false}} {
			if got, err := h.AnyPage(1, tt.first, tt.n); err != nil || got != tt.want {
				t.Errorf("AnyPage(%v, %d) = %v, %v", tt.first, tt.n, got, err)
			}
		}
		caps, err := h.MonitorCapabilities(1)
		if err != nil || !caps.Has(abi.MonitorEventMovToMSR) || !caps.Has(abi.MonitorEventSingleStep) || caps.Has(abi.MonitorEventPrivilegedCall) || caps.Has(-1) || caps.Has(32) {
			t.Errorf("MonitorCapabilities = %v, %v", caps, err)
		}
		if s := caps.String(); !strings.HasPrefix(s, "write-ctrlreg,mov-to-msr,singlestep") {
			t.Errorf("capabilities %q", s)
		}
		if caps.Has(abi.MonitorEventVMExit) != (r.Minor >= 17) {
			t.Errorf("vmexit events in %v: %v", r, caps)
		}
		if caps, err := h.MonitorCapabilities(0); err == nil {
			t.Errorf("dom0 monitors itself: %v", caps)
		}
		a, err := h.AltP2M(1)
		if err != nil || a.Mode != xen.AltP2MExternal || a.Active {
			t.Errorf("AltP2M = %+v, %v", a, err)
		}
		d.SetAltP2MActive(true)
		if a, err := h.AltP2M(1); err != nil || !a.Active || !d.AltP2MActive() {
			t.Errorf("AltP2M = %+v, %v", a, err)
		}
		hv.AddDomain(xentest.Spec{ID: 2, Type: xen.HVM, NoRingFrame: true})
		if a, err := h.AltP2M(2); err != nil || a.Mode != xen.AltP2MDisabled || a.Active {
			t.Errorf("AltP2M of a domain without = %+v, %v", a, err)
		}
		if _, err := h.RingFrame(2); !errors.Is(err, xen.ErrNotSupported) {
			t.Errorf("RingFrame of a domain without: %v", err)
		}
		p, err := h.PhysInfo()
		want := xen.PhysInfo{
			CPUs: 8, Nodes: 1, ThreadsPerCore: 2, MHz: 2600, TotalPages: 4 << 20, FreePages: 1 << 20,
			VMX: true, HVM: true, HAP: r.Minor >= 13, HAPKnown: r.Minor >= 13,
		}
		if err != nil || p != want {
			t.Errorf("PhysInfo = %+v, %v", p, err)
		}
	})
}

func TestMemAccess(t *testing.T) {
	eachRelease(t, func(t *testing.T, r xen.Release) {
		hv, h := open(t, xentest.Config{Release: r})
		d := hv.AddDomain(xentest.Spec{ID: 1, Type: xen.PVH})
		if err := h.ProbeMemAccess(1); err != nil {
			t.Errorf("probe: %v", err)
		}
		if _, err := h.MemAccess(1, 0x10); !errors.Is(err, xen.ErrNoRing) || !errors.Is(err, unix.ENODEV) {
			t.Errorf("without a ring: %v", err)
		}
		if _, err := d.Connect(); err != nil {
			t.Fatal(err)
		}
		d.SetAccess(0x10, abi.AccessRX)
		for gfn, want := range map[x86.GFN]xen.Access{0x10: xen.AccessRX, 0x11: xen.AccessRWX} {
			if a, err := h.MemAccess(1, gfn); err != nil || a != want {
				t.Errorf("MemAccess(%v) = %v, %v", gfn, a, err)
			}
		}
		if _, err := h.MemAccess(1, 0x1000); !errors.Is(err, xen.ErrNoPage) || errors.Is(err, xen.ErrNoDomain) {
			t.Errorf("at a hole: %v", err)
		}
		if _, err := h.MemAccess(9, 0); !errors.Is(err, xen.ErrNoDomain) {
			t.Errorf("of no domain: %v", err)
		}
		if err := h.ProbeMemAccess(1); err != nil {
			t.Errorf("probe with a ring: %v", err)
		}
		if got := d.Restricted(); !slices.Equal(got, []x86.GFN{0x10}) {
			t.Errorf("restricted %v", got)
		}
	})
}

// TestViewAccesses reads the access of many frames at a time: more than Xen is asked
// after in one call, also where it takes no calls in bulk.
func TestViewAccesses(t *testing.T) {
	for _, alone := range []bool{false, true} {
		eachRelease(t, func(t *testing.T, r xen.Release) {
			hv, h := open(t, xentest.Config{Release: r, AltP2M: true, NoMulticall: alone})
			hv.AddDomain(xentest.Spec{ID: 1, Type: xen.PVH, AltP2M: xen.AltP2MExternal, Pages: 1024})
			access := make([]xen.Access, 700)
			if err := h.ViewAccesses(1, 1, 0x10, access); !errors.Is(err, xen.ErrNotSupported) {
				t.Errorf("without views: %v", err)
			}
			if !h.Layout().Has.AltP2MGetMemAccess {
				return
			}
			m := mutate.New(h)
			if err := m.AltP2MSetState(1, true); err != nil {
				t.Fatal(err)
			}
			view, err := m.CreateView(1)
			if err != nil {
				t.Fatal(err)
			}
			if err := m.SetViewAccess(1, view, xen.AccessRX, 0x11, 600); err != nil {
				t.Fatal(err)
			}
			if err := m.SetViewAccess(1, view, xen.AccessX, 0x11+555, 1); err != nil {
				t.Fatal(err)
			}
			if err := h.ViewAccesses(1, view, 0x10, access); err != nil {
				t.Fatal(err)
			}
			for i, a := range access {
				want := xen.AccessRX
				switch {
				case i == 0 || i > 600:
					want = xen.AccessUnknown
				case i == 556:
					want = xen.AccessX
				}
				if a != want {
					t.Fatalf("frame %d: %v, want %v", i, a, want)
				}
			}
			if err := h.ViewAccesses(1, 7, 0x10, access); !errors.Is(err, unix.EINVAL) {
				t.Errorf("no such view: %v", err)
			}
			if err := h.ViewAccesses(9, 0, 0, access); !errors.Is(err, xen.ErrNoDomain) {
				t.Errorf("no domain: %v", err)
			}
		})
	}
}

// TestMemAccesses does so in the host's view.
func TestMemAccesses(t *testing.T) {
	for _, alone := range []bool{false, true} {
		eachRelease(t, func(t *testing.T, r xen.Release) {
			hv, h := open(t, xentest.Config{Release: r, NoMulticall: alone})
			d := hv.AddDomain(xentest.Spec{ID: 1, Type: xen.PVH, Pages: 1024})
			access := make([]xen.Access, 700)
			if err := h.MemAccesses(1, 0x10, access); !errors.Is(err, xen.ErrNoRing) {
				t.Errorf("without a ring: %v", err)
			}
			if _, err := d.Connect(); err != nil {
				t.Fatal(err)
			}
			d.SetAccess(0x10+300, abi.AccessRX)
			d.DropPage(0x10 + 301)
			if err := h.MemAccesses(1, 0x10, access); err != nil {
				t.Fatal(err)
			}
			for i, a := range access {
				want := xen.AccessRWX
				switch i {
				case 300:
					want = xen.AccessRX
				case 301:
					want = xen.AccessUnknown
				}
				if a != want {
					t.Fatalf("frame %d: %v, want %v", i, a, want)
				}
			}
			if err := h.MemAccesses(9, 0, access); !errors.Is(err, xen.ErrNoDomain) {
				t.Errorf("no domain: %v", err)
			}
		})
	}
}

// TestListened: who listens is seen without listening.
// TestViewAccess reads the access of frames in a view of their own.
func TestViewAccess(t *testing.T) {
	eachRelease(t, func(t *testing.T, r xen.Release) {
		hv, h := open(t, xentest.Config{Release: r, AltP2M: true})
		hv.AddDomain(xentest.Spec{ID: 1, Type: xen.PVH, AltP2M: xen.AltP2MExternal})
		if _, err := h.ViewAccess(1, 1, 0x10); !errors.Is(err, xen.ErrNotSupported) {
			t.Errorf("without views: %v", err)
		}
		if !h.Layout().Has.AltP2MGetMemAccess {
			return
		}
		m := mutate.New(h)
		if err := m.AltP2MSetState(1, true); err != nil {
			t.Fatal(err)
		}
		view, err := m.CreateView(1)
		if err != nil {
			t.Fatal(err)
		}
		if err := m.SetViewAccess(1, view, xen.AccessRX, 0x10, 2); err != nil {
			t.Fatal(err)
		}
		for _, c := range []struct {
			view uint16
			gfn  x86.GFN
			want xen.Access
		}{{view, 0x10, xen.AccessRX}, {view, 0x11, xen.AccessRX}, {0, 0x10, xen.AccessRWX}} {
			if a, err := h.ViewAccess(1, c.view, c.gfn); err != nil || a != c.want {
				t.Errorf("gfn %v in view %d: %v, %v", c.gfn, c.view, a, err)
			}
		}
		if _, err := h.ViewAccess(1, view, 0x12); !errors.Is(err, xen.ErrNoPage) {
			t.Errorf("a frame that is not in the view: %v", err)
		}
		if _, err := h.ViewAccess(1, 7, 0x10); !errors.Is(err, unix.EINVAL) {
			t.Errorf("no such view: %v", err)
		}
		if _, err := h.ViewAccess(9, 0, 0); !errors.Is(err, xen.ErrNoDomain) {
			t.Errorf("no domain: %v", err)
		}
	})
}

func TestListened(t *testing.T) {
	eachRelease(t, func(t *testing.T, r xen.Release) {
		hv, h := open(t, xentest.Config{Release: r})
		d := hv.AddDomain(xentest.Spec{ID: 1, Type: xen.PVH})
		hv.AddDomain(xentest.Spec{ID: 2, Type: xen.PV})
		if on, err := h.Listened(1); on || err != nil {
			t.Errorf("nobody: %v, %v", on, err)
		}
		if _, err := d.Connect(); err != nil {
			t.Fatal(err)
		}
		if on, err := h.Listened(1); !on || err != nil {
			t.Errorf("somebody: %v, %v", on, err)
		}
		for _, dom := range []xen.DomID{2, 9} {
			if on, err := h.Listened(dom); on || err == nil {
				t.Errorf("domain %d: %v, %v", dom, on, err)
			}
		}
	})
}

func TestPagingPool(t *testing.T) {
	eachRelease(t, func(t *testing.T, r xen.Release) {
		hv, h := open(t, xentest.Config{Release: r})
		hv.AddDomain(xentest.Spec{ID: 1, Type: xen.PVH, PagingPool: 9<<20 + 4096})
		hv.AddDomain(xentest.Spec{ID: 2, Type: xen.PV})
		want := uint64(9<<20 + 4096)
		if r.Minor < 17 {
			want = 9 << 20
		}
		if n, err := h.PagingPool(1); n != want || err != nil {
			t.Errorf("%d, %v; want %d", n, err, want)
		}
		if _, err := h.PagingPool(2); err == nil {
			t.Error("a PV domain has one")
		}
		if _, err := h.PagingPool(9); !errors.Is(err, xen.ErrNoDomain) {
			t.Errorf("of no domain: %v", err)
		}
	})
}

func TestNotSupported(t *testing.T) {
	for _, tc := range []struct {
		name  string
		cfg   xentest.Config
		spec  xentest.Spec
		needs string
	}{
		{"AMD", xentest.Config{AMD: true}, xentest.Spec{Type: xen.PVH}, "Intel VT-x"},
		{"PV", xentest.Config{}, xentest.Spec{Type: xen.PV}, "this one is PV"},
		{"shadow paging", xentest.Config{}, xentest.Spec{Type: xen.HVM, NoHAP: true}, "HAP"},
		{"no vm_event", xentest.Config{NoVMEvent: true}, xentest.Spec{Type: xen.HVM}, "CONFIG_VM_EVENT"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			hv, h := open(t, tc.cfg)
			tc.spec.ID = 1
			hv.AddDomain(tc.spec)
			err := h.ProbeMemAccess(1)
			var ns *xen.NotSupportedError
			if !errors.As(err, &ns) || !errors.Is(err, xen.ErrNotSupported) || !strings.Contains(ns.Needs, tc.needs) {
				t.Errorf("probe: %v", err)
			}
			var op *xen.OpError
			if !errors.As(err, &op) {
				t.Errorf("no evidence in %v", err)
			}
		})
	}
	hv, h := open(t, xentest.Config{NoVMEvent: true})
	hv.AddDomain(xentest.Spec{ID: 1, Type: xen.PVH})
	if _, err := h.MonitorCapabilities(1); !errors.Is(err, xen.ErrNotSupported) {
		t.Errorf("capabilities without vm_event: %v", err)
	}
	if _, err := h.VMEventVersion(); !errors.Is(err, xen.ErrNotSupported) {
		t.Errorf("version without vm_event: %v", err)
	}
	if _, err := h.AltP2M(1); !errors.Is(err, xen.ErrNotSupported) || !strings.Contains(err.Error(), "altp2m=1") {
		t.Errorf("altp2m switched off: %v", err)
	}
	if err := h.ProbeMemAccess(9); !errors.Is(err, xen.ErrNoDomain) && !errors.Is(err, xen.ErrNotSupported) {
		t.Errorf("probe of no domain: %v", err)
	}
}

func TestOpenFails(t *testing.T) {
	if _, err := xentest.NewUnknown(xen.Release{Major: 4, Minor: 23, Extra: "-unstable"}).Host(); err == nil ||
		err.Error() != "Xen 4.23 is not known to this hvi (4.11 to 4.22)" {
		t.Errorf("unknown release: %v", err)
	}
	_, err := xentest.New(xentest.Config{Unprivileged: true}).Host()
	if !errors.Is(err, xen.ErrNotControl) || !errors.Is(err, unix.EPERM) {
		t.Errorf("in a guest: %v", err)
	}
	_, err = xentest.New(xentest.Config{OtherInterface: true}).Host()
	if !errors.Is(err, unix.EACCES) || !strings.Contains(err.Error(), "Xen 4.17.5") {
		t.Errorf("other interface: %v", err)
	}
	var op *xen.OpError
	if !errors.As(err, &op) || !strings.Contains(op.Hint, "development build") {
		t.Errorf("no hint in %+v", err)
	}

	root := t.TempDir() + "/"
	if _, err := xen.OpenAt(root); !errors.Is(err, xen.ErrNotXen) || !errors.Is(err, os.ErrNotExist) {
		t.Errorf("not on Xen: %v", err)
	}
	write := func(name, s string, mode os.FileMode) {
		t.Helper()
		if err := os.MkdirAll(filepath.Dir(root+name), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(root+name, []byte(s), mode); err != nil {
			t.Fatal(err)
		}
	}
	write("sys/hypervisor/type", "xen\n", 0o644)
	if _, err := xen.OpenAt(root); err == nil || errors.Is(err, xen.ErrNotXen) || !strings.Contains(err.Error(), "xen-privcmd") {
		t.Errorf("module missing: %v", err)
	}
	write("dev/xen/privcmd", "", 0o600)
	if _, err := xen.OpenAt(root); !errors.Is(err, unix.ENOTTY) {
		t.Errorf("not a device: %v", err)
	}
	if os.Geteuid() != 0 {
		if err := os.Chmod(root+"dev/xen/privcmd", 0); err != nil {
			t.Fatal(err)
		}
		if _, err := xen.OpenAt(root); !errors.Is(err, xen.ErrNotRoot) {
			t.Errorf("not root: %v", err)
		}
	}
}

func TestClosed(t *testing.T) {
	hv := xentest.New(xentest.Config{})
	h, err := hv.Host()
	if err != nil {
		t.Fatal(err)
	}
	mem := h.OpenMemory(0)
	for range 2 {
		if err := h.Close(); err != nil {
			t.Fatal(err)
		}
	}
	for name, err := range map[string]error{
		"Domain":        second(h.Domain(0)),
		"Domains":       second(h.Domains()),
		"Registers":     second(h.Registers(0, 0)),
		"HVMParam":      second(h.HVMParam(0, 1)),
		"MaxGFN":        second(h.MaxGFN(0)),
		"PageFrameType": second(h.PageFrameType(0, 0)),
		"AnyPage":       second(h.AnyPage(0, 0, 1)),
		"MemAccess":     second(h.MemAccess(0, 0)),
		"Capabilities":  second(h.MonitorCapabilities(0)),
		"Version":       second(h.VMEventVersion()),
		"AltP2M":        second(h.AltP2M(0)),
		"PhysInfo":      second(h.PhysInfo()),
		"MapForeign":    second(h.MapForeign(0, []x86.GFN{0}, false)),
		"MapPage":       second(h.MapPage(0, 0)),
		"Bind":          second(h.BindInterdomain(0, 1)),
		"ReadPhys":      mem.ReadPhys(0, make([]byte, 1)),
	} {
		if !errors.Is(err, xen.ErrClosed) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := hv.Close(); err != nil {
		t.Error(err)
	}
}

func second[T any](_ T, err error) error { return err }

func TestOpError(t *testing.T) {
	hv, h := open(t, xentest.Config{})
	hv.AddDomain(xentest.Spec{ID: 5, Type: xen.PVH})
	hv.FailNext("domctl(getdomaininfo)", unix.EFAULT)
	_, err := h.Domain(5)
	if got, want := err.Error(), "domctl(getdomaininfo) on domain 5: Xen could not access hvi's buffer (EFAULT)"; got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
	full := fmt.Sprintf("%+v", err)
	for _, part := range []string{"call:    domctl(getdomaininfo)", "domain:  5", "errno:   14 EFAULT (bad address)", "Xen:     4.17.5", "hint:"} {
		if !strings.Contains(full, part) {
			t.Errorf("%q is not in\n%s", part, full)
		}
	}
	if s := fmt.Sprintf("%v", err); s != err.Error() {
		t.Errorf("%%v prints %q", s)
	}
	hv.FailNext("domctl(getdomaininfo)", unix.EXDEV)
	if _, err := h.Domain(5); err == nil || err.Error() != "domctl(getdomaininfo) on domain 5: invalid cross-device link (EXDEV)" {
		t.Errorf("an errno without a meaning: %v", err)
	}
	if s := xen.NewOpError("altp2m(set_domain_state)", unix.EOPNOTSUPP).Error(); !strings.HasSuffix(s, "(EOPNOTSUPP)") {
		t.Errorf("not Xen's name: %s", s)
	}
	hv.FailNext("sysctl(physinfo)", unix.EPERM)
	if _, err := h.PhysInfo(); err == nil || strings.Contains(err.Error(), "domain 32") || !errors.Is(err, xen.ErrNotControl) {
		t.Errorf("a call about no domain: %v", err)
	}
	for _, tc := range []struct {
		op    string
		errno unix.Errno
		text  string
		is    error
	}{
		{"vm_event_op(enable)", unix.EBUSY, "another listener", xen.ErrRingTaken},
		{"vm_event_op(disable)", unix.EINVAL, "no monitor ring", xen.ErrNoRing},
		{"mem_access(set)", unix.ENODEV, "no monitor ring", xen.ErrNoRing},
		{"mem_access(set)", unix.EINVAL, "Intel VT-x with HAP", nil},
		{"altp2m(set_domain_state)", unix.EOPNOTSUPP, "altp2m is off", xen.ErrNotSupported},
		{"hvm_op(set_param altp2m)", unix.EEXIST, "only the toolstack", nil},
		{"monitor_op(enable mov-to-msr LSTAR)", unix.EEXIST, "already", nil},
		{"domctl(pausedomain)", unix.EACCES, "version of its interface", nil},
		{"domctl(pausedomain)", unix.EOVERFLOW, "255 pauses", nil},
		{"domctl(pausedomain)", unix.ESRCH, "no such domain", xen.ErrNoDomain},
		{"debug_op(single_step)", unix.EOPNOTSUPP, "monitor trap flag", xen.ErrNotSupported},
		{"anything", unix.EXDEV, "", nil},
	} {
		err := xen.NewOpError(tc.op, tc.errno)
		var op *xen.OpError
		if !errors.As(err, &op) || !errors.Is(err, tc.errno) || !strings.Contains(op.Meaning, tc.text) || tc.text == "" && op.Meaning != "" {
			t.Errorf("%s %v: %v", tc.op, tc.errno, err)
		}
		for _, sentinel := range []error{xen.ErrRingTaken, xen.ErrNoRing, xen.ErrNotSupported, xen.ErrNoDomain, xen.ErrNoPage} {
			if errors.Is(err, sentinel) != (sentinel == tc.is) {
				t.Errorf("%v matches %q: %v", err, sentinel, errors.Is(err, sentinel))
			}
		}
	}
}

func TestUUID(t *testing.T) {
	const s = "12345678-9abc-def0-0102-030405060708"
	if testUUID.String() != s {
		t.Errorf("String = %s", testUUID)
	}
	for _, in := range []string{s, strings.ToUpper(s)} {
		if u, err := xen.ParseUUID(in); err != nil || u != testUUID {
			t.Errorf("ParseUUID(%q) = %v, %v", in, u, err)
		}
	}
	for _, in := range []string{"", s + "0", s[:35], "1234567-89abc-def0-0102-030405060708", "g" + s[1:], strings.ReplaceAll(s, "-", "0")} {
		if _, err := xen.ParseUUID(in); err == nil {
			t.Errorf("ParseUUID(%q) accepts", in)
		}
	}
	type rec struct{ U xen.UUID }
	b, err := json.Marshal(rec{testUUID})
	if err != nil || string(b) != `{"U":"`+s+`"}` {
		t.Errorf("JSON %s, %v", b, err)
	}
	var back rec
	if err := json.Unmarshal(b, &back); err != nil || back.U != testUUID {
		t.Errorf("back %v, %v", back, err)
	}
	if err := json.Unmarshal([]byte(`{"U":"x"}`), &back); err == nil {
		t.Error("a bad UUID is accepted")
	}
}

func FuzzParseUUID(f *testing.F) {
	f.Add("12345678-9abc-def0-0102-030405060708")
	f.Add("--------")
	f.Fuzz(func(t *testing.T, s string) {
		u, err := xen.ParseUUID(s)
		if err != nil {
			return
		}
		if !strings.EqualFold(u.String(), s) {
			t.Errorf("%q became %v", s, u)
		}
	})
}

func TestNames(t *testing.T) {
	for got, want := range map[string]string{
		xen.AccessRX.String():                     "r-x",
		xen.AccessN.String():                      "---",
		xen.AccessRWX.String():                    "rwx",
		xen.AccessW.String():                      "-w-",
		xen.AccessRX2RW.String():                  "r-x>rw-",
		xen.AccessN2RWX.String():                  "--->rwx",
		xen.AccessRPW.String():                    "r-pw",
		xen.AccessDefault.String():                "default",
		xen.Access(99).String():                   "Access(99)",
		xen.PV.String():                           "PV",
		xen.DomainType(9).String():                "DomainType(9)",
		xen.ShutdownReason(0).String():            "poweroff",
		xen.ShutdownReason(5).String():            "soft_reset",
		xen.ShutdownReason(77).String():           "ShutdownReason(77)",
		xen.AltP2MLimited.String():                "limited",
		xen.AltP2MMixed.String():                  "mixed",
		xen.AltP2MMode(9).String():                "AltP2MMode(9)",
		xen.MonitorEventName(13):                  "io",
		xen.MonitorEventName(14):                  "event 14",
		xen.PageType(abi.PFInfoXTab).String():     "none",
		xen.PageType(abi.PFInfoNoTab).String():    "page",
		xen.PageType(abi.PFInfoXAlloc).String():   "unallocated",
		xen.PageType(abi.PFInfoBroken).String():   "broken",
		xen.PageType(1 << 28).String():            "page table 0x10000000",
		xen.Release{Major: 4, Minor: 20}.String(): "4.20",
	} {
		if got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	}
	b, err := json.Marshal(struct {
		T xen.DomainType
		R xen.ShutdownReason
	}{xen.PVH, 3})
	if err != nil || string(b) != `{"T":"PVH","R":"crash"}` {
		t.Errorf("JSON %s, %v", b, err)
	}
}

// TestAccessNumbers holds the one number that silently changed its meaning.
func TestAccessNumbers(t *testing.T) {
	for _, s := range abi.Releases() {
		l, err := abi.For(s.Major, s.Minor)
		if err != nil {
			t.Fatal(err)
		}
		def, err := xen.EncodeAccess(l, xen.AccessDefault)
		if err != nil {
			t.Fatal(err)
		}
		rpw, err := xen.EncodeAccess(l, xen.AccessRPW)
		if s.Minor < 20 {
			if def != 10 || !errors.Is(err, xen.ErrNotSupported) {
				t.Errorf("%v: default %d, r_pw %d, %v", s, def, rpw, err)
			}
		} else if def != 11 || rpw != 10 || err != nil {
			t.Errorf("%v: default %d, r_pw %d, %v", s, def, rpw, err)
		}
		if v, err := xen.EncodeAccess(l, xen.AccessRX); v != 5 || err != nil {
			t.Errorf("%v: r-x is %d, %v", s, v, err)
		}
		if _, err := xen.EncodeAccess(l, 12); err == nil {
			t.Errorf("%v: access 12 is accepted", s)
		}
	}
}
