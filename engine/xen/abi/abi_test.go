package abi

import (
	"encoding/json"
	"errors"
	"os"
	"reflect"
	"slices"
	"strings"
	"testing"
)

func TestReleases(t *testing.T) {
	var got []string
	for _, s := range Releases() {
		got = append(got, s.String())
		l, err := For(s.Major, s.Minor)
		if err != nil {
			t.Fatal(err)
		}
		if l.Series() != s {
			t.Errorf("For(%v) is the layout of %v", s, l.Series())
		}
	}
	want := []string{"4.11", "4.12", "4.13", "4.14", "4.15", "4.16", "4.17", "4.18", "4.19", "4.20", "4.21", "4.22"}
	if !slices.Equal(got, want) {
		t.Errorf("releases %v, want %v", got, want)
	}
}

func TestUnknownRelease(t *testing.T) {
	for _, tc := range []struct {
		major, minor int
		want         string
	}{
		{4, 23, "Xen 4.23 is not known to this hvi (4.11 to 4.22)"},
		{4, 10, "Xen 4.10 is not known to this hvi (4.11 to 4.22)"},
		{5, 11, "Xen 5.11 is not known to this hvi (4.11 to 4.22)"},
		{0, 0, "Xen 0.0 is not known to this hvi (4.11 to 4.22)"},
	} {
		l, err := For(tc.major, tc.minor)
		var unknown *UnknownReleaseError
		if l != nil || !errors.As(err, &unknown) {
			t.Fatalf("For(%d, %d) = %v, %v", tc.major, tc.minor, l, err)
		}
		if err.Error() != tc.want {
			t.Errorf("got %q, want %q", err, tc.want)
		}
	}
}

// ofXen says which C structure each field of Layout describes. It is written
// by hand, apart from the generator.
var ofXen = map[string]string{
	"Domctl":             "struct xen_domctl",
	"GetDomainInfo":      "struct xen_domctl_getdomaininfo",
	"GetVCPUInfo":        "struct xen_domctl_getvcpuinfo",
	"VMEventOp":          "struct xen_domctl_vm_event_op",
	"MonitorOp":          "struct xen_domctl_monitor_op",
	"DebugOp":            "struct xen_domctl_debug_op",
	"SetAccessRequired":  "struct xen_domctl_set_access_required",
	"HVMContext":         "struct xen_domctl_hvmcontext",
	"HVMContextPartial":  "struct xen_domctl_hvmcontext_partial",
	"GetPageFrameInfo3":  "struct xen_domctl_getpageframeinfo3",
	"MaxMem":             "struct xen_domctl_max_mem",
	"PauseVCPU":          "struct xen_domctl_gdbsx_pauseunp_vcpu",
	"PagingMempool":      "struct xen_domctl_paging_mempool",
	"ShadowOp":           "struct xen_domctl_shadow_op",
	"GetDomainState":     "struct xen_domctl_get_domain_state",
	"Sysctl":             "struct xen_sysctl",
	"GetDomainInfoList":  "struct xen_sysctl_getdomaininfolist",
	"PhysInfo":           "struct xen_sysctl_physinfo",
	"HVMParam":           "struct xen_hvm_param",
	"AltP2MOp":           "struct xen_hvm_altp2m_op",
	"MemAccessOp":        "struct xen_mem_access_op",
	"MemoryReservation":  "struct xen_memory_reservation",
	"PoDTarget":          "struct xen_pod_target",
	"DMOp":               "struct xen_dm_op",
	"DMOpInjectEvent":    "struct xen_dm_op_inject_event",
	"DMOpRemoteShutdown": "struct xen_dm_op_remote_shutdown",
	"HVMSaveDescriptor":  "struct hvm_save_descriptor",
	"HVMHWCPU":           "struct hvm_hw_cpu",
	"SRing":              "struct vm_event_sring",
	"VMEvent":            "struct vm_event_st",
}

type measured struct {
	Releases map[string]struct {
		Domctl  int64 `json:"domctl"`
		Sysctl  int64 `json:"sysctl"`
		VMEvent int64 `json:"vm_event"`
		AltP2M  int64 `json:"altp2m"`
		Slots   int64 `json:"vm_event_ring_slots_4k"`
	} `json:"releases"`
	Layouts map[string][]struct {
		Releases []string `json:"releases"`
		Size     int      `json:"size"`
		Fields   map[string]struct {
			Off  int `json:"off"`
			Size int `json:"size"`
		} `json:"fields"`
	} `json:"layouts"`
	Varying map[string][]struct {
		Value    int64    `json:"value"`
		Releases []string `json:"releases"`
	} `json:"constants_varying"`
}

func readMeasured(t *testing.T) *measured {
	t.Helper()
	b, err := os.ReadFile("gen/xen-abi.json")
	if err != nil {
		t.Fatal(err)
	}
	var m measured
	if err := json.Unmarshal(b, &m); err != nil {
		t.Fatal(err)
	}
	return &m
}

// TestEveryOffset compares each size and offset of each layout with what was
// measured, for every point release, and each entry with its neighbours.
func TestEveryOffset(t *testing.T) {
	m := readMeasured(t)
	checked := 0
	for tag, rel := range m.Releases {
		s := tag[:strings.LastIndexByte(tag, '.')]
		var l *Layout
		for _, r := range Releases() {
			if r.String() == s {
				l, _ = For(r.Major, r.Minor)
			}
		}
		if l == nil {
			t.Errorf("no layout for %s", tag)
			continue
		}
		if int64(l.DomctlVersion) != rel.Domctl || int64(l.SysctlVersion) != rel.Sysctl ||
			int64(l.VMEvent.Version) != rel.VMEvent || AltP2MInterfaceVersion != rel.AltP2M || VMEventRingSlots != rel.Slots {
			t.Errorf("%s: interface versions %#x %#x %d, want %+v", tag, l.DomctlVersion, l.SysctlVersion, l.VMEvent.Version, rel)
		}
		for _, v := range m.Varying["XENMEM_access_default"] {
			if (slices.Contains(v.Releases, s) || slices.Contains(v.Releases, tag)) && int64(l.AccessDefault) != v.Value {
				t.Errorf("%s: default access %d, want %d", tag, l.AccessDefault, v.Value)
			}
		}
		rv := reflect.ValueOf(l).Elem()
		for i := range rv.NumField() {
			name := rv.Type().Field(i).Name
			if rv.Field(i).Kind() != reflect.Struct || name == "Has" {
				continue
			}
			xen, ok := ofXen[name]
			if !ok {
				t.Errorf("Layout.%s is not in this test's table", name)
				continue
			}
			size := -1
			offsets := map[string]int{}
			for _, v := range m.Layouts[xen] {
				if slices.Contains(v.Releases, s) || slices.Contains(v.Releases, tag) {
					size = v.Size
					for f, e := range v.Fields {
						offsets[f] = e.Off
					}
				}
			}
			checked += checkStruct(t, tag+" "+xen, rv.Field(i), size, offsets)
			if len(offsets) != 0 {
				t.Errorf("%s %s: fields of the measurement that no layout has: %v", tag, xen, offsets)
			}
		}
	}
	if checked < 10000 {
		t.Errorf("only %d offsets were compared", checked)
	}
}

// checkStruct compares v with the measured size and offsets and removes from
// offsets what it has compared.
func checkStruct(t *testing.T, what string, v reflect.Value, size int, offsets map[string]int) (n int) {
	t.Helper()
	for i := range v.NumField() {
		f := v.Type().Field(i)
		switch {
		case f.Type.Kind() == reflect.Struct:
			n += checkStruct(t, what, v.Field(i), size, offsets)
		case f.Name == "Size":
			n++
			if got := int(v.Field(i).Int()); got != size {
				t.Errorf("%s: size %d, want %d", what, got, size)
			}
		case f.Tag.Get("xen") != "":
			n++
			want := -1
			for _, p := range strings.Split(f.Tag.Get("xen"), "|") {
				if off, ok := offsets[p]; ok {
					want = off
					delete(offsets, p)
				}
			}
			got := int(v.Field(i).Int())
			if got != want {
				t.Errorf("%s: %s at %d, want %d", what, f.Name, got, want)
			}
			if size >= 0 && got >= size && f.Name != "Ring" {
				t.Errorf("%s: %s at %d is outside its %d bytes", what, f.Name, got, size)
			}
		}
	}
	return n
}

// TestByHand holds numbers that were read out of Xen's headers by eye, so that
// a mistake in the generator or in the mapping of names shows.
func TestByHand(t *testing.T) {
	type row struct {
		minor                        int
		domctl, sysctl, vmEvent      uint32
		entry, domainInfo, archFlags int
		accessDefault                uint8
		rip, cr3, lstar, gsBase      int // offsets in an entry
		dr6, gdtrBase, cpl           int
		debugLen, debugType          int
		getVersion, fastStep, crOp   bool
		physTotalPages               int
	}
	rows := []row{
		{11, 0x10, 0x11, 3, 312, 104, 96, 10, 200, 224, 280, 296, -1, -1, -1, 32, 36, false, false, false, 32},
		{12, 0x11, 0x12, 4, 376, 104, 96, 10, 208, 232, 288, 320, 192, -1, 332, 32, 36, false, false, false, 32},
		{13, 0x12, 0x12, 5, 384, 104, 96, 10, 208, 232, 288, 328, 192, 296, 340, 32, 36, true, false, false, 32},
		{14, 0x12, 0x13, 6, 384, 104, 96, 10, 208, 232, 288, 328, 192, 296, 340, 40, 44, true, true, true, 32},
		{15, 0x13, 0x13, 7, 400, 104, 96, 10, 208, 232, 288, 344, 192, 296, 356, 40, 44, true, true, true, 32},
		{16, 0x14, 0x14, 7, 400, 112, 104, 10, 208, 232, 288, 344, 192, 296, 356, 40, 44, true, true, true, 32},
		{17, 0x15, 0x15, 7, 400, 112, 104, 10, 208, 232, 288, 344, 192, 296, 356, 40, 44, true, true, true, 40},
		{18, 0x16, 0x15, 7, 400, 112, 104, 10, 208, 232, 288, 344, 192, 296, 356, 40, 44, true, true, true, 40},
		{19, 0x17, 0x15, 7, 400, 112, 104, 10, 208, 232, 288, 344, 192, 296, 356, 40, 44, true, true, true, 40},
		{20, 0x17, 0x15, 7, 400, 112, 104, 11, 208, 232, 288, 344, 192, 296, 356, 40, 44, true, true, true, 40},
		{21, 0x17, 0x16, 7, 400, 112, 104, 11, 208, 232, 288, 344, 192, 296, 356, 40, 44, true, true, true, 40},
		{22, 0x18, 0x16, 7, 400, 112, 104, 11, 208, 232, 288, 344, 192, 296, 356, 40, 44, true, true, true, 40},
	}
	for _, want := range rows {
		l, err := For(4, want.minor)
		if err != nil {
			t.Fatal(err)
		}
		e := &l.VMEvent
		got := row{
			want.minor, l.DomctlVersion, l.SysctlVersion, e.Version,
			e.Size, l.GetDomainInfo.Size, l.GetDomainInfo.ArchEmulationFlags, l.AccessDefault,
			e.Regs.RIP, e.Regs.CR3, e.Regs.MSRLSTAR, e.Regs.GSBase,
			e.Regs.DR6, e.Regs.GDTRBase, e.Regs.SS,
			e.Debug.InsnLength, e.Debug.Type,
			l.Has.VMEventGetVersion, l.Has.FastSingleStep, l.Has.MonitorControlRegisters,
			l.PhysInfo.TotalPages,
		}
		if got != want {
			t.Errorf("%v:\n got %+v\nwant %+v", l.Series(), got, want)
		}

		// What is the same in every release.
		for _, c := range []struct {
			what      string
			got, want int
		}{
			{"domctl size", l.Domctl.Size, 144}, {"domctl cmd", l.Domctl.Cmd, 0},
			{"domctl version", l.Domctl.InterfaceVersion, 4}, {"domctl domain", l.Domctl.Domain, 8}, {"domctl u", l.Domctl.U, 16},
			{"sysctl size", l.Sysctl.Size, 136}, {"sysctl u", l.Sysctl.U, 8},
			{"info flags", l.GetDomainInfo.Flags, 4}, {"info tot_pages", l.GetDomainInfo.TotPages, 8},
			{"info max_pages", l.GetDomainInfo.MaxPages, 16}, {"info online", l.GetDomainInfo.NrOnlineVCPUs, 64},
			{"info max_vcpu_id", l.GetDomainInfo.MaxVCPUID, 68}, {"info handle", l.GetDomainInfo.Handle, 76},
			{"list buffer", l.GetDomainInfoList.Buffer, 8}, {"list num", l.GetDomainInfoList.NumDomains, 16},
			{"vm_event_op size", l.VMEventOp.Size, 12}, {"vm_event_op mode", l.VMEventOp.Mode, 4}, {"vm_event_op port", l.VMEventOp.Port, 8},
			{"monitor_op size", l.MonitorOp.Size, 24}, {"monitor index", l.MonitorOp.MovToCRIndex, 8},
			{"monitor sync", l.MonitorOp.MovToCRSync, 9}, {"monitor onchangeonly", l.MonitorOp.MovToCROnChangeOnly, 10},
			{"monitor bitmask", l.MonitorOp.MovToCRBitmask, 16}, {"monitor msr", l.MonitorOp.MovToMSRMSR, 8},
			{"monitor msr onchangeonly", l.MonitorOp.MovToMSROnChangeOnly, 12},
			{"event version", e.OffVersion, 0}, {"event flags", e.OffFlags, 4}, {"event reason", e.OffReason, 8},
			{"event vcpu", e.OffVCPU, 12}, {"event altp2m", e.OffAltP2MIdx, 16}, {"event u", e.OffU, 24}, {"event data", e.OffData, 56},
			{"mem gfn", e.MemAccess.GFN, 24}, {"mem offset", e.MemAccess.Offset, 32}, {"mem gla", e.MemAccess.GLA, 40}, {"mem flags", e.MemAccess.Flags, 48},
			{"cr index", e.WriteCtrlReg.Index, 24}, {"cr new", e.WriteCtrlReg.New, 32}, {"cr old", e.WriteCtrlReg.Old, 40},
			{"msr", e.MovToMSR.MSR, 24}, {"msr new", e.MovToMSR.New, 32}, {"msr old", e.MovToMSR.Old, 40},
			{"rax", e.Regs.RAX, 56}, {"rcx", e.Regs.RCX, 64}, {"rdx", e.Regs.RDX, 72}, {"rbx", e.Regs.RBX, 80}, {"r15", e.Regs.R15, 176},
			{"ring req_prod", l.SRing.ReqProd, 0}, {"ring req_event", l.SRing.ReqEvent, 4},
			{"ring rsp_prod", l.SRing.RspProd, 8}, {"ring rsp_event", l.SRing.RspEvent, 12}, {"ring entries", l.SRing.Ring, 64},
			{"altp2m size", l.AltP2MOp.Size, 80}, {"altp2m domain", l.AltP2MOp.Domain, 8}, {"altp2m view", l.AltP2MOp.ViewView, 16},
			{"altp2m access", l.AltP2MOp.MemAccessAccess, 18}, {"altp2m gfn", l.AltP2MOp.MemAccessGFN, 24},
			{"altp2m nr", l.AltP2MOp.MemAccessMultiNr, 20}, {"altp2m access_list", l.AltP2MOp.MemAccessMultiAccessList, 40},
			{"mem_access size", l.MemAccessOp.Size, 32}, {"mem_access domid", l.MemAccessOp.DomID, 2}, {"mem_access pfn", l.MemAccessOp.PFN, 8},
			{"reservation size", l.MemoryReservation.Size, 32}, {"reservation domid", l.MemoryReservation.DomID, 24},
			{"pod target size", l.PoDTarget.Size, 40}, {"pod entries", l.PoDTarget.PoDEntries, 24}, {"pod domid", l.PoDTarget.DomID, 32},
			{"partial size", l.HVMContextPartial.Size, 24}, {"partial buffer", l.HVMContextPartial.Buffer, 16},
			{"param size", l.HVMParam.Size, 16}, {"param value", l.HVMParam.Value, 8},
			{"frame info size", l.GetPageFrameInfo3.Size, 16}, {"debug size", l.DebugOp.Size, 8},
			{"required size", l.SetAccessRequired.Size, 1},
			{"cpu record", l.HVMHWCPU.Size, 1032}, {"cpu record length", l.HVMSaveLengthCPU, 1032}, {"cpu rax", l.HVMHWCPU.RAX, 512},
			{"cpu rip", l.HVMHWCPU.RIP, 640}, {"cpu cr3", l.HVMHWCPU.CR3, 672}, {"cpu lstar", l.HVMHWCPU.MSRLSTAR, 960},
			{"cpu efer", l.HVMHWCPU.MSREFER, 992}, {"cpu ss rights", l.HVMHWCPU.SSArBytes, 908},
			{"inject size", l.DMOpInjectEvent.Size, 24}, {"inject vector", l.DMOpInjectEvent.Vector, 4},
			{"inject type", l.DMOpInjectEvent.Type, 5}, {"inject insn_len", l.DMOpInjectEvent.InsnLen, 6},
			{"inject error_code", l.DMOpInjectEvent.ErrorCode, 8}, {"inject cr2", l.DMOpInjectEvent.CR2, 16},
			{"shutdown size", l.DMOpRemoteShutdown.Size, 4}, {"shutdown reason", l.DMOpRemoteShutdown.Reason, 0},
		} {
			if c.got != c.want {
				t.Errorf("%v: %s is %d, want %d", l.Series(), c.what, c.got, c.want)
			}
		}
		if slots := (4096 - l.SRing.Ring) / e.Size; slots < VMEventRingSlots {
			t.Errorf("%v: only %d entries fit a page", l.Series(), slots)
		}
	}
	if n := len(Releases()); n != len(rows) {
		t.Errorf("%d releases, %d rows", n, len(rows))
	}
}

func TestConstantsByHand(t *testing.T) {
	for _, c := range []struct {
		what      string
		got, want int
	}{
		{"domctl pause", DomctlPauseDomain, 3}, {"domctl unpause", DomctlUnpauseDomain, 4}, {"domctl info", DomctlGetDomainInfo, 5},
		{"domctl vm_event", DomctlVMEventOp, 56}, {"domctl monitor", DomctlMonitorOp, 77}, {"domctl access required", DomctlSetAccessRequired, 64},
		{"domctl debug", DomctlDebugOp, 54}, {"domctl partial", DomctlGetHVMContextPartial, 55}, {"domctl frame info", DomctlGetPageFrameInfo3, 61},
		{"memory access op", MemAccessOpCmd, 21}, {"maximum_gpfn", MemMaximumGPFN, 14}, {"populate", MemPopulatePhysmap, 6}, {"decrease", MemDecreaseReservation, 1},
		{"hvmop altp2m", HVMOpAltP2M, 25}, {"param altp2m", HVMParamAltP2M, 35}, {"param ring", HVMParamMonitorRingPFN, 28},
		{"mode external", AltP2MModeExternal, 2}, {"event vmexit", MonitorEventVMExit, 12}, {"event io", MonitorEventIO, 13},
		{"op control registers", MonitorOpControlRegisters, 4}, {"flag fast step", VMEventFlagFastSingleStep, 1 << 11},
		{"flag set registers", VMEventFlagSetRegisters, 1 << 8}, {"flag deny", VMEventFlagDeny, 1 << 6}, {"flag nowrite", VMEventFlagEmulateNoWrite, 1 << 3},
		{"reason cr", VMEventReasonWriteCtrlReg, 4}, {"reason breakpoint", VMEventReasonSoftwareBreakpoint, 6}, {"reason io", VMEventReasonIOInstruction, 16},
		{"access rx", AccessRX, 5}, {"access rwx", AccessRWX, 7}, {"access r_pw", AccessRPW, 10},
		{"xtab", PFInfoXTab, 0xf << 28}, {"inject", DMOpInjectEventCmd, 13}, {"remote shutdown", DMOpRemoteShutdownCmd, 16}, {"hypercall domctl", HypercallDomctl, 36},
		{"ioctl hypercall", IoctlPrivcmdHypercall, 0x305000}, {"ioctl mmapbatch", IoctlPrivcmdMmapBatchV2, 0x205004}, {"ioctl dm_op", IoctlPrivcmdDMOp, 0x105005},
		{"ioctl bind", IoctlEvtchnBindInterdomain, 0x84501}, {"ioctl unbind", IoctlEvtchnUnbind, 0x44503}, {"ioctl notify", IoctlEvtchnNotify, 0x44504},
	} {
		if c.got != c.want {
			t.Errorf("%s is %#x, want %#x", c.what, c.got, c.want)
		}
	}
}

func TestSegmentDPL(t *testing.T) {
	// Access rights as VMX has them: type 3, S, DPL, P, then flags from bit 8
	// of the packed form on, where 4 bits of the limit are left out.
	for dpl := uint32(0); dpl < 4; dpl++ {
		ar := 3 | 1<<4 | dpl<<5 | 1<<7
		if got := SegmentDPL(ar<<20 | 0xfffff); uint32(got) != dpl {
			t.Errorf("SegmentDPL = %d, want %d", got, dpl)
		}
		if SegmentLong((ar|0xd<<8)<<20|0xfffff) || !SegmentLong((ar|2<<8)<<20) { // AVL, D and G; L
			t.Error("SegmentLong takes another flag for L")
		}
	}
}
