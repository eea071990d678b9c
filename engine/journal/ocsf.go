package journal

import "slices"

// OCSFVersion is the release of the Open Cybersecurity Schema Framework that
// [Record.OCSF] follows.
const OCSFVersion = "1.3.0"

// What OCSF numbers (schema.ocsf.io, class Detection Finding).
const (
	ocsfCategoryFindings  = 2
	ocsfDetectionFinding  = 2004
	ocsfCreate            = 1
	ocsfStatusNew         = 1
	ocsfAnalyticRule      = 1
	ocsfDeviceVirtual     = 6
	ocsfOSLinux           = 200
	ocsfActionAllowed     = 1
	ocsfActionDenied      = 2
	ocsfDispositionAllow  = 1
	ocsfDispositionBlock  = 2
	ocsfDispositionDetect = 15
)

// OCSF returns the record as a Detection Finding of OCSF, ready for JSON: what OCSF
// has a place for stands there, and the whole record is in "unmapped".
func (r *Record) OCSF() map[string]any {
	type object = map[string]any
	sev := r.severity()
	device := object{"name": r.Domain.Name, "uid": r.Domain.UUID, "hypervisor": "Xen", "type": "Virtual", "type_id": ocsfDeviceVirtual}
	if r.Domain.Kernel != "" {
		device["os"] = object{"name": "Linux", "type": "Linux", "type_id": ocsfOSLinux, "kernel_release": r.Domain.Kernel}
	}
	finding := object{
		"uid": r.ID, "title": r.Summary(), "created_time": r.Time.UnixMilli(), "types": []string{r.Guard},
		"analytic": object{"name": r.Guard, "type": "Rule", "type_id": ocsfAnalyticRule},
	}
	attacks := []object{}
	for _, t := range r.Attack {
		attacks = append(attacks, object{"technique": object{"uid": t.ID, "name": t.Name}})
	}
	finding["attacks"] = attacks
	out := object{
		"category_uid": ocsfCategoryFindings, "category_name": "Findings",
		"class_uid": ocsfDetectionFinding, "class_name": "Detection Finding",
		"activity_id": ocsfCreate, "activity_name": "Create", "type_uid": ocsfDetectionFinding*100 + ocsfCreate, "type_name": "Detection Finding: Create",
		"severity_id": slices.Index(Severities(), sev) + 1, "severity": sev,
		"status_id": ocsfStatusNew, "status": "New",
		"time": r.Time.UnixMilli(), "message": r.Summary(),
		"metadata":     object{"version": OCSFVersion, "uid": r.ID, "profiles": []string{"security_control"}, "product": object{"name": "hvi", "vendor_name": "hvi"}},
		"finding_info": finding,
		"resources":    []object{{"uid": r.Domain.UUID, "name": r.Domain.Name, "type": "Xen domain"}},
		"unmapped":     object{"hvi": r},
	}
	out["action_id"], out["action"] = ocsfActionAllowed, "Allowed"
	out["disposition_id"], out["disposition"] = ocsfDispositionAllow, "Allowed"
	switch r.Action {
	case Blocked:
		out["action_id"], out["action"] = ocsfActionDenied, "Denied"
		out["disposition_id"], out["disposition"] = ocsfDispositionBlock, "Blocked"
	case Found:
		out["disposition_id"], out["disposition"] = ocsfDispositionDetect, "Detected"
	}
	evidence := object{"device": device}
	if r.Process.Unknown == "" {
		evidence["process"] = r.ocsfProcess()
		evidence["actor"] = object{"process": r.ocsfProcess()}
	}
	out["evidences"] = []object{evidence}
	return out
}

// ocsfProcess is the process with its parents, each within the one that it began.
func (r *Record) ocsfProcess() map[string]any {
	p := map[string]any{"pid": r.Process.TGID, "tid": r.Process.PID, "name": r.Process.Comm}
	at := p
	for _, parent := range r.Process.Parents {
		next := map[string]any{"pid": parent.TGID, "name": parent.Comm}
		at["parent_process"] = next
		at = next
	}
	return p
}
