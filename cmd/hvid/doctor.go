package main

import (
	"fmt"
	"os"
	"slices"
	"strings"

	"github.com/xen-hvi/hvi/control"
	"github.com/xen-hvi/hvi/engine"
	"github.com/xen-hvi/hvi/engine/ledger"
	"github.com/xen-hvi/hvi/engine/printable"
	"github.com/xen-hvi/hvi/engine/xen"
)

// examineHost checks what hvi needs of this host.
// ledgerDir is where hvid keeps its ledgers, attached the domains it is attached
// to now.
func examineHost(h *xen.Host, ledgerDir string, attached []engine.Status) []control.Check {
	checks := []control.Check{{
		Name: "Xen release", Status: control.CheckOK,
		Detail: h.Release().String() + ", known to this hvi",
	}}
	return append(checks, processor(h), altp2m(h), leftover(ledgerDir, attached))
}

func processor(h *xen.Host) control.Check {
	c := control.Check{Name: "processor", Status: control.CheckOK}
	p, err := h.PhysInfo()
	switch {
	case err != nil:
		c.Status, c.Detail = control.CheckFail, err.Error()
	case !p.HVM:
		c.Status, c.Detail = control.CheckMissing, "Xen cannot run HVM or PVH guests here"
		c.Fix = "switch hardware virtualization (Intel VT-x or AMD-V) on in the firmware's settings"
	case p.SVM:
		c.Status, c.Detail = control.CheckWarn, "AMD-V: register guards only, tier registers; Xen has no per-page access control on AMD"
		c.Fix = "guards of memory need an Intel processor with EPT"
	case p.HAPKnown && !p.HAP:
		c.Status, c.Detail = control.CheckMissing, "Intel VT-x without hardware assisted paging"
		c.Fix = "guards of memory need EPT; remove hap=0 from Xen's command line if it is there"
	default:
		c.Detail = "Intel VT-x with hardware assisted paging"
	}
	return c
}

// altp2m looks at Xen's command line for the option that makes views possible.
func altp2m(h *xen.Host) control.Check {
	c := control.Check{Name: "altp2m", Status: control.CheckOK, Detail: "enabled on Xen's command line"}
	p, err := h.PhysInfo()
	if err == nil && p.SVM {
		c.Status, c.Detail = control.CheckOK, "does not exist on AMD"
		return c
	}
	if !slices.ContainsFunc(strings.Fields(h.CommandLine()), enablesAltp2m) {
		c.Status, c.Detail = control.CheckWarn, "not enabled: domains get tier access at most"
		c.Fix = "add altp2m=1 to Xen's command line (GRUB_CMDLINE_XEN in /etc/default/grub, then update-grub) and reboot"
	}
	return c
}

// enablesAltp2m reports whether a word of Xen's command line switches altp2m
// on, as Xen's boolean parameters are written.
func enablesAltp2m(word string) bool {
	switch word {
	case "altp2m", "altp2m=1", "altp2m=yes", "altp2m=on", "altp2m=true", "altp2m=enable":
		return true
	}
	return false
}

// leftover looks for changes of Xen's state that an earlier hvid made and that
// could not be undone: ledgers of domains this hvid is not attached to.
func leftover(dir string, attached []engine.Status) control.Check {
	c := control.Check{Name: "ledgers", Status: control.CheckOK, Detail: "every change of Xen's state is accounted for"}
	files, err := os.ReadDir(dir)
	if err != nil && !os.IsNotExist(err) {
		c.Status, c.Detail, c.Fix = control.CheckFail, err.Error(), "make "+dir+" readable for hvid"
		return c
	}
	mine := make(map[string]bool)
	for _, st := range attached {
		mine[ledger.FileName(st.Info.ID, st.Info.UUID)] = true
	}
	var left []string
	for _, f := range files {
		if !mine[f.Name()] {
			left = append(left, f.Name())
		}
	}
	if len(left) > 0 {
		c.Status, c.Detail = control.CheckFail, "changes that an earlier hvid made are not undone: "+strings.Join(left, ", ")
		c.Fix = "stop hvid, run: hvid recover, and start it again"
	}
	return c
}

// domainReport examines one domain.
func domainReport(st engine.Status) control.DomainReport {
	r := control.DomainReport{
		ID: uint16(st.Info.ID), Name: printable.Escape(st.Name), UUID: st.Info.UUID.String(),
		Tier: control.Tier(st.Tier), TierReason: st.TierReason,
	}
	state := control.Check{Name: "state", Status: control.CheckOK, Detail: string(st.State)}
	if f := st.Failure; f != nil {
		state = control.Check{Name: "state", Status: control.CheckFail, Detail: fmt.Sprintf("%s: %s: %v", st.State, f.Stage, f.Err), Fix: f.Fix}
	}
	r.Checks = append(r.Checks, state)
	for _, g := range st.Guards {
		c := control.Check{Name: "guard " + string(g.Name), Status: control.CheckOK, Detail: string(g.State)}
		if g.State == engine.GuardUnavailable || g.State == engine.GuardDegraded || g.State == engine.GuardScanning {
			c.Status, c.Detail = control.CheckMissing, string(g.State)+": "+g.Reason
			c.Fix = "see the tier's reason above; or turn the guard off for this domain: introspection_guards = [ \"" + string(g.Name) + "=off\" ]"
		}
		r.Checks = append(r.Checks, c)
	}
	return r
}
