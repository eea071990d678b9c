package journal

import (
	"slices"
	"strconv"
	"strings"
)

// OCSFVersion is the release of the Open Cybersecurity Schema Framework that
// [Record.OCSF] follows.
const OCSFVersion = "1.4.0"

// What OCSF numbers (schema.ocsf.io, class Detection Finding).
const (
	ocsfCategoryFindings   = 2
	ocsfDetectionFinding   = 2004
	ocsfCreate             = 1
	ocsfStatusNew          = 1
	ocsfAnalyticRule       = 1
	ocsfDeviceVirtual      = 6
	ocsfOSLinux            = 200
	ocsfActionAllowed      = 1
	ocsfActionDenied       = 2
	ocsfDispositionBlocked = 2
	// Logged is what is no violation, Detected what was seen afterwards, Alert what was reported and not blocked.
	ocsfDispositionDetected = 15
	ocsfDispositionAlert    = 19
	ocsfDispositionLogged   = 17
)

// OCSF returns the record as a Detection Finding of OCSF, ready for JSON: what OCSF
// has a place for stands there, and the whole record is in "unmapped".
func (r *Record) OCSF() map[string]any {
	type object = map[string]any
	device := object{"name": r.Domain.Name, "uid": r.Domain.UUID, "hypervisor": "Xen", "type": "Virtual", "type_id": ocsfDeviceVirtual}
	if r.Domain.Kernel != "" {
		device["os"] = object{"name": "Linux", "type": "Linux", "type_id": ocsfOSLinux, "kernel_release": r.Domain.Kernel}
	}
	attacks := []object{}
	for _, t := range r.Attack {
		attacks = append(attacks, t.ocsf())
	}
	evidence := object{"device": device}
	if r.Process.Unknown == "" {
		evidence["process"] = r.Process.ocsf()
		evidence["actor"] = object{"process": r.Process.ocsf()}
	}
	action, actionID, disposition, dispositionID := "Allowed", ocsfActionAllowed, "Alert", ocsfDispositionAlert
	switch {
	case r.prevented():
		action, actionID, disposition, dispositionID = "Denied", ocsfActionDenied, "Blocked", ocsfDispositionBlocked
	case r.Action == Noted:
		disposition, dispositionID = "Logged", ocsfDispositionLogged
	case r.Late():
		disposition, dispositionID = "Detected", ocsfDispositionDetected
	}
	kind := r.Guard
	if kind == "" {
		kind = string(r.Target.Kind)
	}
	sev := r.severity()
	return object{
		"category_uid": ocsfCategoryFindings, "category_name": "Findings",
		"class_uid": ocsfDetectionFinding, "class_name": "Detection Finding",
		"activity_id": ocsfCreate, "activity_name": "Create", "type_uid": ocsfDetectionFinding*100 + ocsfCreate, "type_name": "Detection Finding: Create",
		// OCSF's words are ours with a capital, and its numbers begin at 1.
		"severity_id": slices.Index(Severities(), sev) + 1, "severity": strings.ToUpper(string(sev[:1])) + string(sev[1:]),
		"status_id": ocsfStatusNew, "status": "New", "is_alert": r.Action != Noted,
		"action_id": actionID, "action": action, "disposition_id": dispositionID, "disposition": disposition,
		"time": r.Time.UnixMilli(), "message": r.Summary(),
		"metadata": object{"version": OCSFVersion, "uid": r.ID, "profiles": []string{"host", "security_control"}, "product": object{"name": "hvi", "vendor_name": "hvi"}},
		"finding_info": object{
			"uid": r.ID, "title": r.Summary(), "created_time": r.Time.UnixMilli(), "types": []string{kind},
			"analytic": object{"name": kind, "type": "Rule", "type_id": ocsfAnalyticRule}, "attacks": attacks,
		},
		"attacks":   attacks,
		"device":    device,
		"resources": []object{{"uid": r.Domain.UUID, "name": r.Domain.Name, "type": "Xen domain"}},
		"evidences": []object{evidence},
		"unmapped":  object{"hvi": r},
	}
}

// ocsf is OCSF's attack object. It has a subtechnique beside the technique.
func (t Technique) ocsf() map[string]any {
	type object = map[string]any
	id, _, sub := strings.Cut(t.ID, ".")
	name, subName, _ := strings.Cut(t.Name, ": ")
	out := object{"technique": object{"uid": id, "name": name}}
	if sub {
		out["sub_technique"] = object{"uid": t.ID, "name": subName}
	}
	return out
}

// ocsf is OCSF's process object. It has one parent: OCSF asks for no deeper nesting.
func (p *Process) ocsf() map[string]any {
	out := map[string]any{"pid": p.TGID, "tid": p.PID, "name": p.Comm}
	if p.Exe != "" {
		path := p.Exe.String()
		const regularFile = 1 // type_id
		out["file"] = map[string]any{"path": path, "name": path[strings.LastIndexByte(path, '/')+1:], "type_id": regularFile}
	}
	if p.EUID != nil {
		out["user"] = map[string]any{"uid": strconv.FormatUint(uint64(*p.EUID), 10)}
	}
	if len(p.Parents) > 0 {
		out["parent_process"] = map[string]any{"pid": p.Parents[0].TGID, "name": p.Parents[0].Comm}
	}
	return out
}
