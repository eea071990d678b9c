package journal

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// TestOCSF compares findings with those in testdata, of which every member, number and
// caption was looked up in OCSF's release.
func TestOCSF(t *testing.T) {
	domain := Domain{UUID: "6c9f7a1e-0b1d-4f0e-9c5c-0123456789ab", Name: "web1", ID: 7, Kernel: "6.1.0-35-amd64"}
	at := time.Date(2026, 5, 9, 7, 29, 33, 0, time.UTC)
	for name, r := range map[string]Record{
		"blocked": {
			Schema: Schema, ID: "69fe2b1d7c3a-1", Time: at, Domain: domain, Guard: "kernel-text", Action: Blocked, Severity: High, Mode: "enforce",
			Attack:  []Technique{{ID: "T1014", Name: "Rootkit"}, {ID: "T1547.006", Name: "Boot or Logon Autostart Execution: Kernel Modules and Extensions"}},
			Process: Process{PID: 413, TGID: 412, Comm: "insmod", Parents: []Parent{{TGID: 400, Comm: "sh"}, {TGID: 1, Comm: "init"}}},
			Target:  Target{Kind: TargetMSR, MSR: &MSRTarget{Index: 1}},
		},
		"alerted": {
			Schema: Schema, ID: "69fe2b1d7c3a-2", Time: at, Domain: domain, Guard: "cr", Action: Alerted, Severity: Critical, Mode: "observe",
			Process: Process{PID: 1, TGID: 1, Comm: "init"},
			Target:  Target{Kind: TargetCR, CR: &CRTarget{Name: "CR4"}},
		},
		"killed": {
			Schema: Schema, ID: "69fe2b1d7c3a-7", Time: at, Domain: domain, Guard: "syscall-entry", Action: Killed, Severity: High, Mode: "enforce",
			Process: Process{PID: 413, TGID: 412, Comm: "insmod"},
			Target:  Target{Kind: TargetMSR, MSR: &MSRTarget{Index: 1}},
		},
		"paused": {
			Schema: Schema, ID: "69fe2b1d7c3a-4", Time: at, Domain: domain, Guard: "idt", Action: Paused, Prevented: true, Severity: Critical, Mode: "enforce",
			Process: Process{PID: 1, TGID: 1, Comm: "init"},
			Target:  Target{Kind: TargetMSR, MSR: &MSRTarget{Index: 1}},
		},
		"shut-down": {
			Schema: Schema, ID: "69fe2b1d7c3a-5", Time: at, Domain: domain, Guard: "creds", Action: ShutDown, Severity: Critical, Mode: "enforce",
			Process: Process{Unknown: "it was found afterwards"},
			Target:  Target{Kind: TargetObject, Object: &ObjectTarget{Check: "creds", Name: "x", What: "y"}},
		},
		"noted": {
			Schema: Schema, ID: "69fe2b1d7c3a-6", Time: at, Domain: domain, Guard: "modules", Action: Noted, Severity: Informational, Mode: "observe",
			Process: Process{Unknown: "it was found afterwards"},
			Target:  Target{Kind: TargetModule, Module: &ModuleTarget{Name: "loop", Change: ModuleUnloaded, Base: 1, Size: 2}},
		},
		"switched": {
			Schema: Schema, ID: "69fe2b1d7c3a-7", Time: at, Domain: domain, Action: Noted, Severity: Informational, Mode: "enforce",
			Process: Process{Unknown: "it is hvi's own doing"},
			Target:  Target{Kind: TargetView, View: &ViewTarget{From: "strict", To: "maintenance", By: Peer{UID: 0, PID: 4711}}},
		},
		// Of before there were severities, and of a kernel that is not known.
		"found": {
			Schema: Schema, ID: "69fe2b1d7c3a-3", Time: at, Domain: Domain{UUID: domain.UUID, Name: "web1"}, Guard: "creds", Action: Found, Mode: "enforce",
			Process: Process{Unknown: "it was found afterwards"},
			Target:  Target{Kind: TargetObject, Object: &ObjectTarget{Check: "creds", Name: "x", What: "y"}},
		},
	} {
		got, err := json.MarshalIndent(r.OCSF(), "", "  ")
		if err != nil {
			t.Fatal(err)
		}
		path := filepath.Join("testdata", "ocsf-"+name+".json")
		if *update {
			if err := os.WriteFile(path, append(got, '\n'), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		if want, err := os.ReadFile(path); err != nil || !bytes.Equal(bytes.TrimSpace(want), got) {
			t.Errorf("%s is now\n%s\n(%v)", path, got, err)
		}
	}
}
