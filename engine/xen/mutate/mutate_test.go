package mutate_test

import (
	"encoding/json"
	"errors"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/xen-hvi/hvi/engine/x86"
	"github.com/xen-hvi/hvi/engine/xen"
	"github.com/xen-hvi/hvi/engine/xen/abi"
	"github.com/xen-hvi/hvi/engine/xen/mutate"
	"github.com/xen-hvi/hvi/engine/xen/xentest"
)

func open(t *testing.T, cfg xentest.Config) (*xentest.Hypervisor, *xen.Host, *mutate.Mutator) {
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
		if err := errors.Join(h.Close(), hv.Close()); err != nil {
			t.Error(err)
		}
	})
	return hv, h, mutate.New(h)
}

func eachRelease(t *testing.T, test func(t *testing.T, r xen.Release)) {
	for _, s := range abi.Releases() {
		t.Run(s.String(), func(t *testing.T) { test(t, xen.Release{Major: s.Major, Minor: s.Minor}) })
	}
}

func check(t *testing.T, what string, err error) {
	t.Helper()
	if err != nil {
		t.Errorf("%s: %v", what, err)
	}
}

func clean(t *testing.T, d *xentest.Domain) {
	t.Helper()
	if left := d.Clean(); len(left) > 0 {
		t.Errorf("left behind: %s", strings.Join(left, "; "))
	}
}

func TestPause(t *testing.T) {
	eachRelease(t, func(t *testing.T, r xen.Release) {
		hv, h, m := open(t, xentest.Config{Release: r})
		d := hv.AddDomain(xentest.Spec{ID: 2, Type: xen.PVH})
		check(t, "pause", m.Pause(2))
		check(t, "pause", m.Pause(2))
		if info, err := h.Domain(2); err != nil || !info.Paused || d.Pauses() != 2 {
			t.Errorf("%d pauses, %+v, %v", d.Pauses(), info, err)
		}
		check(t, "unpause", m.Unpause(2))
		check(t, "unpause", m.Unpause(2))
		if err := m.Unpause(2); !errors.Is(err, unix.EINVAL) || !strings.Contains(err.Error(), "not paused") {
			t.Errorf("one too many: %v", err)
		}
		clean(t, d)
		for range 255 {
			check(t, "pause", m.Pause(2))
		}
		if err := m.Pause(2); !errors.Is(err, unix.EOVERFLOW) {
			t.Errorf("the 256th: %v", err)
		}
		if err := m.Pause(0); !errors.Is(err, unix.EINVAL) {
			t.Errorf("of itself: %v", err)
		}
		if err := m.Pause(9); !errors.Is(err, xen.ErrNoDomain) {
			t.Errorf("of no domain: %v", err)
		}
	})
}

func TestReservation(t *testing.T) {
	eachRelease(t, func(t *testing.T, r xen.Release) {
		hv, h, m := open(t, xentest.Config{Release: r})
		d := hv.AddDomain(xentest.Spec{ID: 1, Type: xen.PVH, Pages: 4, MaxPages: 6})
		g, err := h.RingFrame(1)
		if err != nil {
			t.Fatal(err)
		}
		check(t, "release", m.ReleasePage(1, g))
		if d.HasPage(g) {
			t.Error("the page is there")
		}
		if err := m.ReleasePage(1, g); !errors.Is(err, unix.ENOENT) || !strings.Contains(err.Error(), "gfn 0xfeff2") {
			t.Errorf("a page that is gone: %v", err)
		}
		check(t, "populate", m.PopulatePage(1, g))
		if !d.HasPage(g) {
			t.Error("the page is not there")
		}
		check(t, "populate", m.PopulatePage(1, 100))
		if err := m.PopulatePage(1, 101); !errors.Is(err, unix.ENOMEM) {
			t.Errorf("beyond the limit: %v", err)
		}
		if err := m.PopulatePage(9, 1); !errors.Is(err, xen.ErrNoDomain) {
			t.Errorf("of no domain: %v", err)
		}
	})
}

func TestVMEvent(t *testing.T) {
	eachRelease(t, func(t *testing.T, r xen.Release) {
		hv, _, m := open(t, xentest.Config{Release: r})
		d := hv.AddDomain(xentest.Spec{ID: 1, Type: xen.HVM})
		port, err := m.VMEventEnable(1)
		if err != nil || port == 0 || !d.RingConnected() {
			t.Fatalf("enable: port %d, %v", port, err)
		}
		// Another process finds the ring taken.
		h2, err := hv.Host()
		if err != nil {
			t.Fatal(err)
		}
		defer h2.Close()
		if _, err := mutate.New(h2).VMEventEnable(1); !errors.Is(err, xen.ErrRingTaken) || !errors.Is(err, unix.EBUSY) {
			t.Errorf("a second listener: %v", err)
		}
		d.SetRingWaiters(1)
		if err := m.VMEventDisable(1); !errors.Is(err, unix.EBUSY) || errors.Is(err, xen.ErrRingTaken) {
			t.Errorf("with vCPUs waiting: %v", err)
		}
		d.SetRingWaiters(0)
		check(t, "monitor", m.Monitor(1, mutate.MonitorOp{Event: abi.MonitorEventSoftwareBreakpoint, On: true}))
		check(t, "disable", m.VMEventDisable(1))
		clean(t, d)
		if err := m.VMEventDisable(1); !errors.Is(err, xen.ErrNoRing) {
			t.Errorf("a second time: %v", err)
		}
		if _, err := m.VMEventEnable(1); err != nil {
			t.Errorf("anew: %v", err)
		}
		// On a dying domain there is nothing to undo.
		d.Kill()
		check(t, "disable on a dying domain", m.VMEventDisable(1))
		if port, err := m.VMEventEnable(1); !errors.Is(err, xen.ErrNoDomain) || !strings.Contains(err.Error(), "dying") {
			t.Errorf("enable on a dying domain: port %d, %v", port, err)
		}
	})
}

func TestVMEventFails(t *testing.T) {
	hv, _, m := open(t, xentest.Config{})
	hv.AddDomain(xentest.Spec{ID: 1, Type: xen.PV})
	hv.AddDomain(xentest.Spec{ID: 2, Type: xen.PVH, NoRingFrame: true})
	hv.AddDomain(xentest.Spec{ID: 3, Type: xen.PVH, NoVCPUs: true})
	hv.AddDomain(xentest.Spec{ID: 4, Type: xen.PVH}).DropPage(xentest.DefaultRingFrame)
	for dom, want := range map[xen.DomID]error{1: xen.ErrNotSupported, 2: xen.ErrNotSupported, 3: unix.EINVAL, 4: unix.EINVAL, 9: xen.ErrNoDomain} {
		if _, err := m.VMEventEnable(dom); !errors.Is(err, want) {
			t.Errorf("domain %d: %v", dom, err)
		}
	}
	_, _, m = open(t, xentest.Config{NoVMEvent: true})
	if _, err := m.VMEventEnable(1); !errors.Is(err, xen.ErrNotSupported) {
		t.Errorf("without vm_event: %v", err)
	}
	if err := m.VMEventDisable(0); !errors.Is(err, xen.ErrNotSupported) {
		t.Errorf("without vm_event: %v", err)
	}
}

func TestMonitor(t *testing.T) {
	ops := []struct {
		op    mutate.MonitorOp
		name  string
		state xentest.MonitorState
		since int
	}{
		{mutate.MonitorOp{Event: abi.MonitorEventWriteCtrlReg, On: true, Register: abi.VMEventX86CR4, Sync: true, OnChangeOnly: true, IgnoreBits: 1 << 7},
			"enable write-ctrlreg CR4", xentest.MonitorState{Event: 0, Register: 2, Sync: true, OnChangeOnly: true, IgnoreBits: 0x80}, 11},
		{mutate.MonitorOp{Event: abi.MonitorEventWriteCtrlReg, On: true, Register: abi.VMEventX86CR3},
			"enable write-ctrlreg CR3", xentest.MonitorState{Event: 0, Register: 1}, 11},
		{mutate.MonitorOp{Event: abi.MonitorEventMovToMSR, On: true, MSR: x86.MSRLSTAR, OnChangeOnly: true},
			"enable mov-to-msr LSTAR", xentest.MonitorState{Event: 1, MSR: 0xc0000082, OnChangeOnly: true}, 11},
		{mutate.MonitorOp{Event: abi.MonitorEventMovToMSR, On: true, MSR: 0x123},
			"enable mov-to-msr 0x123", xentest.MonitorState{Event: 1, MSR: 0x123}, 11},
		{mutate.MonitorOp{Event: abi.MonitorEventSingleStep, On: true},
			"enable singlestep", xentest.MonitorState{Event: 2}, 11},
		{mutate.MonitorOp{Event: abi.MonitorEventGuestRequest, On: true, Sync: true, AllowUserspace: true},
			"enable guest-request", xentest.MonitorState{Event: 4, Sync: true, AllowUserspace: true}, 11},
		{mutate.MonitorOp{Event: abi.MonitorEventDebugException, On: true, Sync: true},
			"enable debug-exception", xentest.MonitorState{Event: 5, Sync: true}, 11},
		{mutate.MonitorOp{Event: abi.MonitorEventDescAccess, On: true},
			"enable desc-access", xentest.MonitorState{Event: 9}, 11},
		{mutate.MonitorOp{Event: abi.MonitorEventInguestPagefault, On: true},
			"enable inguest-pagefault", xentest.MonitorState{Event: 11}, 12},
		{mutate.MonitorOp{Event: abi.MonitorEventVMExit, On: true, Sync: true},
			"enable vmexit", xentest.MonitorState{Event: 12, Sync: true}, 17},
		{mutate.MonitorOp{Event: abi.MonitorEventIO, On: true},
			"enable io", xentest.MonitorState{Event: 13}, 18},
	}
	eachRelease(t, func(t *testing.T, r xen.Release) {
		hv, _, m := open(t, xentest.Config{Release: r})
		d := hv.AddDomain(xentest.Spec{ID: 1, Type: xen.PVH})
		if err := m.Monitor(1, mutate.MonitorOp{Event: abi.MonitorEventMovToMSR, On: true, MSR: 1}); !errors.Is(err, xen.ErrNoRing) {
			t.Errorf("an MSR without a ring: %v", err)
		}
		if _, err := m.VMEventEnable(1); err != nil {
			t.Fatal(err)
		}
		for _, tc := range ops {
			if tc.op.String() != tc.name {
				t.Errorf("%+v is called %q", tc.op, tc.op)
			}
			err := m.Monitor(1, tc.op)
			if r.Minor < tc.since {
				if !errors.Is(err, xen.ErrNotSupported) {
					t.Errorf("%v: %v", tc.op, err)
				}
				continue
			}
			check(t, tc.name, err)
			if !slices.Contains(d.Monitored(), tc.state) {
				t.Errorf("%v: monitored is %+v", tc.op, d.Monitored())
			}
			if err := m.Monitor(1, tc.op); !errors.Is(err, unix.EEXIST) {
				t.Errorf("%v twice: %v", tc.op, err)
			}
		}
		for _, tc := range ops {
			inv := tc.op.Inverse()
			if inv.On || inv.Inverse() != tc.op {
				t.Errorf("%v is the inverse of %v", inv, tc.op)
			}
			if r.Minor >= tc.since {
				check(t, inv.String(), m.Monitor(1, inv))
			}
		}
		if err := m.Monitor(1, mutate.MonitorOp{Event: abi.MonitorEventMovToMSR, On: true, MSR: 0xd0000000}); !errors.Is(err, unix.EINVAL) {
			t.Errorf("an MSR out of range: %v", err)
		}
		check(t, "disable", m.VMEventDisable(1))
		clean(t, d)
		for _, bad := range []mutate.MonitorOp{{Event: abi.MonitorEventPrivilegedCall}, {Event: -1}, {Event: 32}} {
			if err := m.Monitor(1, bad); !errors.Is(err, xen.ErrNotSupported) {
				t.Errorf("%v: %v", bad, err)
			}
		}
		err := m.Monitor(1, mutate.MonitorOp{Register: 9, On: true})
		if !errors.Is(err, unix.EINVAL) || !strings.Contains(err.Error(), "monitor_op(enable write-ctrlreg register 9) on domain 1") {
			t.Errorf("a register there is not: %v", err)
		}
	})
}

func TestMonitorOpJSON(t *testing.T) {
	in := mutate.MonitorOp{Event: abi.MonitorEventMovToMSR, On: true, MSR: x86.MSRLSTAR}
	b, err := json.Marshal(in)
	if err != nil || string(b) != `{"event":1,"on":true,"msr":3221225602}` {
		t.Errorf("%s, %v", b, err)
	}
	var out mutate.MonitorOp
	if err := json.Unmarshal(b, &out); err != nil || out != in {
		t.Errorf("%+v, %v", out, err)
	}
	for r, want := range map[uint8]string{0: "CR0", 1: "CR3", 2: "CR4", 3: "XCR0"} {
		if s := (mutate.MonitorOp{Register: r}).String(); s != "disable write-ctrlreg "+want {
			t.Errorf("register %d: %q", r, s)
		}
	}
}

func TestArchMonitor(t *testing.T) {
	eachRelease(t, func(t *testing.T, r xen.Release) {
		hv, _, m := open(t, xentest.Config{Release: r})
		d := hv.AddDomain(xentest.Spec{ID: 1, Type: xen.PVH})
		if err := m.EmulateEachRep(1, true); !errors.Is(err, unix.EINVAL) {
			t.Errorf("without a ring: %v", err)
		}
		if _, err := m.VMEventEnable(1); err != nil {
			t.Fatal(err)
		}
		if d.DefersRegisters() != (r.Minor < 14) {
			t.Errorf("defers register writes: %v", d.DefersRegisters())
		}
		check(t, "defer", m.DeferRegisterWrites(1))
		if !d.DefersRegisters() {
			t.Error("register writes are not deferred")
		}
		check(t, "each rep", m.EmulateEachRep(1, true))
		if !d.EmulatesEachRep() {
			t.Error("each rep is off")
		}
		check(t, "each rep", m.EmulateEachRep(1, false))
		if d.EmulatesEachRep() {
			t.Error("each rep is on")
		}
		check(t, "disable", m.VMEventDisable(1))
		clean(t, d)
	})
}

func TestSwitches(t *testing.T) {
	eachRelease(t, func(t *testing.T, r xen.Release) {
		hv, h, m := open(t, xentest.Config{Release: r, AltP2M: true})
		d := hv.AddDomain(xentest.Spec{ID: 1, Type: xen.PVH, VCPUs: 2})
		check(t, "step", m.SingleStep(1, 1, true))
		if d.SingleStepping(0) || !d.SingleStepping(1) {
			t.Error("the wrong vCPU steps")
		}
		check(t, "step", m.SingleStep(1, 1, false))
		if err := m.SingleStep(1, 2, true); !errors.Is(err, unix.EINVAL) || !strings.Contains(err.Error(), "vCPU 2") {
			t.Errorf("no vCPU: %v", err)
		}
		check(t, "required", m.SetAccessRequired(1, true))
		if !d.AccessRequired() {
			t.Error("access is not required")
		}
		check(t, "required", m.SetAccessRequired(1, false))
		if err := m.SetAccessRequired(0, true); !errors.Is(err, unix.EPERM) {
			t.Errorf("of itself: %v", err)
		}

		check(t, "param", m.SetHVMParam(1, abi.HVMParamStorePFN, 0x1234_5678_9abc))
		if v, err := h.HVMParam(1, abi.HVMParamStorePFN); err != nil || v != 0x1234_5678_9abc || d.Param(abi.HVMParamStorePFN) != v {
			t.Errorf("parameter %#x, %v", v, err)
		}
		if err := m.SetHVMParam(1, 99, 1); !errors.Is(err, unix.EINVAL) {
			t.Errorf("an unknown parameter: %v", err)
		}
		if err := m.AltP2MSetState(1, true); !errors.Is(err, unix.EINVAL) {
			t.Errorf("altp2m without a mode: %v", err)
		}
		err := m.SetHVMParam(1, abi.HVMParamAltP2M, abi.AltP2MModeExternal)
		if r.Minor >= 19 {
			if !errors.Is(err, unix.EEXIST) || !strings.Contains(err.Error(), "toolstack") {
				t.Errorf("altp2m mode: %v", err)
			}
			clean(t, d)
			return
		}
		check(t, "altp2m mode", err)
		if err := m.SetHVMParam(1, abi.HVMParamAltP2M, abi.AltP2MModeMixed); !errors.Is(err, unix.EEXIST) {
			t.Errorf("another mode: %v", err)
		}
		check(t, "altp2m on", m.AltP2MSetState(1, true))
		if !d.AltP2MActive() {
			t.Error("altp2m is off")
		}
		check(t, "altp2m off", m.AltP2MSetState(1, false))
		clean(t, d)
	})
	_, _, m := open(t, xentest.Config{})
	if err := m.AltP2MSetState(0, true); !errors.Is(err, xen.ErrNotSupported) {
		t.Errorf("altp2m switched off: %v", err)
	}
	hv, _, m := open(t, xentest.Config{AMD: true})
	hv.AddDomain(xentest.Spec{ID: 1, Type: xen.PVH})
	if err := m.SingleStep(1, 0, true); !errors.Is(err, xen.ErrNotSupported) {
		t.Errorf("stepping on AMD: %v", err)
	}
	if err := m.Monitor(1, mutate.MonitorOp{Event: abi.MonitorEventSingleStep, On: true}); !errors.Is(err, xen.ErrNotSupported) {
		t.Errorf("stepping on AMD: %v", err)
	}
	if _, err := m.VMEventEnable(1); err != nil {
		t.Fatal(err)
	}
	check(t, "MSR events on AMD", m.Monitor(1, mutate.MonitorOp{Event: abi.MonitorEventMovToMSR, MSR: 1, On: true}))
}

func TestInjectEvent(t *testing.T) {
	eachRelease(t, func(t *testing.T, r xen.Release) {
		hv, _, m := open(t, xentest.Config{Release: r})
		d := hv.AddDomain(xentest.Spec{ID: 1, Type: xen.PVH, VCPUs: 2})
		pf := mutate.Event{VCPU: 1, Vector: 14, Type: abi.DMOpEventHWExc, HasErrorCode: true, ErrorCode: 2, CR2: 0xffff_8000_1234_5678}
		check(t, "#PF", m.InjectEvent(1, pf))
		if err := m.InjectEvent(1, pf); !errors.Is(err, unix.EBUSY) {
			t.Errorf("a second one: %v", err)
		}
		if e := d.TakeInjected(1); e == nil || *e != (xentest.Injected{Vector: 14, Type: 3, ErrorCode: 2, CR2: 0xffff_8000_1234_5678}) {
			t.Errorf("injected %+v", e)
		}
		check(t, "#BP", m.InjectEvent(1, mutate.Event{Vector: 3, Type: abi.DMOpEventSWExc, InsnLen: 1}))
		if e := d.TakeInjected(0); e == nil || *e != (xentest.Injected{Vector: 3, Type: 6, InsnLen: 1, ErrorCode: 0xffff_ffff}) {
			t.Errorf("injected %+v", e)
		}
		if err := m.InjectEvent(1, mutate.Event{VCPU: 2}); !errors.Is(err, unix.EINVAL) {
			t.Errorf("no vCPU: %v", err)
		}
		if err := m.InjectEvent(9, mutate.Event{}); !errors.Is(err, xen.ErrNoDomain) {
			t.Errorf("no domain: %v", err)
		}
	})
}

func TestShutDown(t *testing.T) {
	eachRelease(t, func(t *testing.T, r xen.Release) {
		hv, _, m := open(t, xentest.Config{Release: r})
		d := hv.AddDomain(xentest.Spec{ID: 1, Type: xen.PVH})
		check(t, "shut down", m.ShutDown(1, abi.ShutdownCrash))
		check(t, "again, for another reason", m.ShutDown(1, abi.ShutdownPoweroff))
		if why, down := d.IsShutDown(); !down || why != abi.ShutdownCrash {
			t.Errorf("down %v, for %d", down, why)
		}
		latched := hv.AddDomain(xentest.Spec{ID: 2, Type: xen.HVM})
		latched.Announce(abi.ShutdownSuspend)
		check(t, "shut down", m.ShutDown(2, abi.ShutdownCrash))
		if why, down := latched.IsShutDown(); !down || why != abi.ShutdownSuspend {
			t.Errorf("down %v, for %d: the guest's own reason goes first", down, why)
		}
		hv.AddDomain(xentest.Spec{ID: 3, Type: xen.PV})
		if err := m.ShutDown(3, abi.ShutdownCrash); !errors.Is(err, unix.EINVAL) {
			t.Errorf("a PV domain: %v", err)
		}
		if err := m.ShutDown(9, abi.ShutdownCrash); !errors.Is(err, xen.ErrNoDomain) {
			t.Errorf("no domain: %v", err)
		}
	})
}

func TestSetMemAccess(t *testing.T) {
	eachRelease(t, func(t *testing.T, r xen.Release) {
		hv, _, m := open(t, xentest.Config{Release: r})
		d := hv.AddDomain(xentest.Spec{ID: 1, Type: xen.PVH})
		if err := m.SetMemAccess(1, xen.AccessRX, 1, 1); !errors.Is(err, xen.ErrNoRing) {
			t.Errorf("without a ring: %v", err)
		}
		if err := m.SetMemAccessMulti(1, []x86.GFN{1}, []xen.Access{xen.AccessR}); !errors.Is(err, xen.ErrNoRing) {
			t.Errorf("without a ring: %v", err)
		}
		if _, err := m.VMEventEnable(1); err != nil {
			t.Fatal(err)
		}
		check(t, "set", m.SetMemAccess(1, xen.AccessRX, 0x10, 3))
		if got := d.Restricted(); !slices.Equal(got, []x86.GFN{0x10, 0x11, 0x12}) || d.Access(0x11) != abi.AccessRX {
			t.Errorf("restricted %v", got)
		}
		// The default is what the release calls so.
		check(t, "default", m.SetMemAccess(1, xen.AccessDefault, 0x11, 1))
		check(t, "multi", m.SetMemAccessMulti(1, []x86.GFN{0x40, 0x12, 0x41}, []xen.Access{xen.AccessN, xen.AccessRWX, xen.AccessRX2RW}))
		if got := d.Restricted(); !slices.Equal(got, []x86.GFN{0x10, 0x40, 0x41}) || d.Access(0x40) != 0 || d.Access(0x41) != 8 {
			t.Errorf("restricted %v", got)
		}
		check(t, "nothing", m.SetMemAccess(1, xen.AccessRX, 0, 0))
		check(t, "nothing", m.SetMemAccessMulti(1, nil, nil))
		check(t, "default access", m.SetDefaultMemAccess(1, xen.AccessRW))
		if d.DefaultAccess() != abi.AccessRW {
			t.Errorf("default access %d", d.DefaultAccess())
		}
		check(t, "default access", m.SetDefaultMemAccess(1, xen.AccessRWX))
		check(t, "undo", m.SetMemAccessMulti(1, []x86.GFN{0x10, 0x40, 0x41}, []xen.Access{xen.AccessRWX, xen.AccessRWX, xen.AccessRWX}))

		if err := m.SetMemAccess(1, xen.AccessRX, 0xfffff, 1); !errors.Is(err, unix.EINVAL) {
			t.Errorf("above the highest frame: %v", err)
		}
		err := m.SetMemAccess(1, xen.AccessRPW, 5, 1)
		if r.Minor < 20 && !errors.Is(err, xen.ErrNotSupported) || r.Minor >= 20 && err != nil {
			t.Errorf("r_pw: %v", err)
		}
		if r.Minor < 20 && len(d.Restricted()) != 0 {
			t.Errorf("r_pw restricts %v", d.Restricted())
		}
		for name, err := range map[string]error{
			"beyond the last frame": m.SetMemAccess(1, xen.AccessRX, ^x86.GFN(0), 2),
			"unknown access":        m.SetMemAccess(1, 99, 1, 1),
			"lists differ":          m.SetMemAccessMulti(1, []x86.GFN{1, 2}, []xen.Access{xen.AccessR}),
			"unknown in a list":     m.SetMemAccessMulti(1, []x86.GFN{1}, []xen.Access{99}),
			"default to default":    m.SetDefaultMemAccess(1, xen.AccessDefault),
			"unknown default":       m.SetDefaultMemAccess(1, 99),
		} {
			if err == nil {
				t.Errorf("%s: no error", name)
			}
		}
	})
}

// TestLargeLists crosses the limits of one call.
func TestLargeLists(t *testing.T) {
	hv, _, m := open(t, xentest.Config{})
	d := hv.AddDomain(xentest.Spec{ID: 1, Type: xen.PVH, Pages: 10000})
	if _, err := m.VMEventEnable(1); err != nil {
		t.Fatal(err)
	}
	var gfns []x86.GFN
	var access []xen.Access
	for i := range 9001 {
		gfns = append(gfns, x86.GFN(i))
		access = append(access, []xen.Access{xen.AccessR, xen.AccessRX, xen.AccessN}[i%3])
	}
	hv.Log()
	check(t, "multi", m.SetMemAccessMulti(1, gfns, access))
	if log := hv.Log(); len(log) != 3 {
		t.Errorf("calls: %v", log)
	}
	for i, g := range gfns {
		if xen.Access(d.Access(g)) != access[i] {
			t.Fatalf("gfn %v is %d", g, d.Access(g))
		}
	}
	if d.Access(9001) != abi.AccessRWX {
		t.Error("one frame too many")
	}
	// The whole of a guest of 4 GiB and more is one range for the caller.
	d.AddPage(1_100_000)
	check(t, "range", m.SetMemAccess(1, xen.AccessRX, 0, 1_100_001))
	if log := hv.Log(); len(log) != 2 {
		t.Errorf("calls: %v", log)
	}
	if d.Access(1_100_000) != abi.AccessRX || d.Access(1<<20) != abi.AccessRX {
		t.Error("the range has gaps")
	}
	// A failure says how far it came.
	hv.FailNext("mem_access(set_multi)", 0)
	hv.FailNext("mem_access(set_multi)", unix.ENOMEM)
	err := m.SetMemAccessMulti(1, gfns, access)
	if !errors.Is(err, unix.ENOMEM) || !strings.Contains(err.Error(), "entries 4096 to 8191 of 9001, the first for gfn 0x1000") {
		t.Errorf("got %v", err)
	}
	hv.FailNext("mem_access(set)", 0)
	hv.FailNext("mem_access(set)", unix.ENOMEM)
	err = m.SetMemAccess(1, xen.AccessRWX, 0, 1_100_001)
	if !errors.Is(err, unix.ENOMEM) || !strings.Contains(err.Error(), "from 0x100000") || !strings.Contains(err.Error(), "paging pool") {
		t.Errorf("got %v", err)
	}
}

func TestTriesAgain(t *testing.T) {
	hv, _, m := open(t, xentest.Config{})
	d := hv.AddDomain(xentest.Spec{ID: 1, Type: xen.PVH})
	if _, err := m.VMEventEnable(1); err != nil {
		t.Fatal(err)
	}
	for range 3 {
		hv.FailNext("mem_access(set)", unix.EAGAIN)
	}
	hv.Log()
	check(t, "set", m.SetMemAccess(1, xen.AccessRX, 7, 1))
	if n := len(hv.Log()); n != 4 || d.Access(7) != abi.AccessRX {
		t.Errorf("%d calls, access %d", n, d.Access(7))
	}
}

func TestHotPathDoesNotAllocate(t *testing.T) {
	c := newRecorder(t)
	h, err := xen.OpenWith(c, nil)
	if err != nil {
		t.Fatal(err)
	}
	m := mutate.New(h)
	gfns, access := []x86.GFN{1, 2, 3}, []xen.Access{xen.AccessRX, xen.AccessRX, xen.AccessRW}
	c.quiet = true
	for name, f := range map[string]func() error{
		"SetMemAccess":      func() error { return m.SetMemAccess(1, xen.AccessRX, 5, 2) },
		"SetMemAccessMulti": func() error { return m.SetMemAccessMulti(1, gfns, access) },
		"SingleStep":        func() error { return m.SingleStep(1, 0, true) },
		"InjectEvent":       func() error { return m.InjectEvent(1, mutate.Event{Vector: 3}) },
		"Pause":             func() error { return m.Pause(1) },
		// It changes nothing, and is asked for each frame that is restricted.
		"ViewAccess": func() error { _, err := h.ViewAccess(1, 1, 5); return err },
	} {
		if err := f(); err != nil {
			t.Fatal(err)
		}
		if n := testing.AllocsPerRun(50, func() { _ = f() }); n != 0 {
			t.Errorf("%s makes %v allocations", name, n)
		}
	}
}
