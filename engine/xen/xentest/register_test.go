package xentest

import (
	"testing"

	"github.com/xen-hvi/hvi/engine/x86"
	"github.com/xen-hvi/hvi/engine/xen"
	"github.com/xen-hvi/hvi/engine/xen/abi"
)

// TestWriteRegister has a guest write registers, and its listener answer, as they
// were told to be monitored.
func TestWriteRegister(t *testing.T) {
	const wp, ts = x86.CR0WP, 1 << 3
	const msr = "1 3221225600" // of EFER, as Xen's monitor op is keyed
	cr0 := func(m MonitorState) map[string]MonitorState { return map[string]MonitorState{"0 0": m} }
	guarded := MonitorState{Sync: true, OnChangeOnly: true, IgnoreBits: ^uint64(wp)}
	for name, tt := range map[string]struct {
		minor    int
		monitor  map[string]MonitorState
		write    RegisterWrite
		waiting  bool // the listener has Xen wait for answers
		flags    uint64
		early    bool // the answer comes before the vCPU has left its processor
		reported bool
		lands    bool
	}{
		"nobody listens":             {17, nil, RegisterWrite{Value: 0}, true, 0, false, false, true},
		"bits that are let go":       {17, cr0(guarded), RegisterWrite{Value: wp | ts}, true, 0, false, false, true},
		"the same value":             {17, cr0(MonitorState{Sync: true, OnChangeOnly: true}), RegisterWrite{Value: wp}, true, 0, false, false, true},
		"the same value, all wanted": {17, map[string]MonitorState{msr: {}}, RegisterWrite{MSR: x86.MSREFER, Value: wp}, true, 0, false, true, true},
		"let happen":                 {17, cr0(guarded), RegisterWrite{Value: 0}, true, 0, false, true, true},
		"denied":                     {17, cr0(guarded), RegisterWrite{Value: 0}, true, abi.VMEventFlagDeny, false, true, false},
		"denied too soon":            {17, cr0(guarded), RegisterWrite{Value: 0}, true, abi.VMEventFlagDeny, true, true, true},
		"denied, nobody waits":       {17, cr0(guarded), RegisterWrite{Value: 0}, false, abi.VMEventFlagDeny, false, true, true},
		"denied by an old release":   {13, cr0(guarded), RegisterWrite{Value: 0}, false, abi.VMEventFlagDeny, true, true, false},
		"an MSR, denied":             {17, map[string]MonitorState{msr: {OnChangeOnly: true}}, RegisterWrite{MSR: x86.MSREFER, Value: 0}, true, abi.VMEventFlagDeny, false, true, false},
	} {
		t.Run(name, func(t *testing.T) {
			h := New(Config{Release: xen.Release{Major: 4, Minor: tt.minor}})
			defer h.Close()
			d := h.AddDomain(Spec{ID: 3, Type: xen.PVH})
			d.SetRegisters(0, x86.Registers{CR0: wp, EFER: wp})
			if _, err := d.Connect(); err != nil {
				t.Fatal(err)
			}
			d.deferRegisters = tt.waiting
			d.monitored = tt.monitor
			reported, err := d.WriteRegister(tt.write)
			if err != nil || reported != tt.reported {
				t.Fatalf("reported %v, %v", reported, err)
			}
			reg := func() uint64 {
				if r := d.Registers(0); tt.write.MSR == 0 {
					return r.CR0
				} else {
					return r.EFER
				}
			}
			if reported {
				l := h.layout
				slot := d.ring.page[l.SRing.Ring:][:l.VMEvent.Size]
				if old := le(slot[l.VMEvent.WriteCtrlReg.Old:], 8); tt.write.MSR == 0 && old != wp {
					t.Errorf("the old value was %#x", old)
				}
				putLE(slot[l.VMEvent.OffFlags:], 4, abi.VMEventFlagVCPUPaused|tt.flags)
				if !tt.early {
					d.vcpus[0].leaving = 0
				}
				index(d.ring.page, l.SRing.RspProd).Store(1)
				d.resume()
			}
			if got := reg() == tt.write.Value; got != tt.lands {
				t.Errorf("landed: %v, want %v; it is %#x", got, tt.lands, reg())
			}
			if lost := d.LostDenials() == 1; lost != (name == "denied too soon") {
				t.Errorf("the denial was lost: %v", lost)
			}
			d.Kill()
		})
	}
}
