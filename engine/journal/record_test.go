package journal

import (
	"bytes"
	"encoding/json"
	"flag"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/xen-hvi/hvi/engine/printable"
)

var update = flag.Bool("update", false, "rewrite the golden files")

func ptr[T any](v T) *T { return &v }

// memoryRecord is a blocked write into kernel text.
func memoryRecord() Record {
	return Record{
		Schema: Schema, ID: "69fe2b1d7c3a-17",
		Time:   time.Date(2026, 5, 9, 7, 29, 33, 123456789, time.UTC),
		Domain: Domain{UUID: "a2b0f0f4-6f0e-4f9b-8f4c-0c8c6d1e2f30", Name: printable.Escape("web1"), ID: 7},
		VCPU:   1, Guard: "kernel-text", Action: Blocked, Mode: "enforce",
		RIP:     Location{Addr: 0xffffffffc0001024, Symbol: printable.Escape("evil_init"), Offset: 0x24, Module: printable.Escape("evil")},
		Process: Process{PID: 412, TGID: 412, Comm: printable.Escape("insmod"), Task: 0xffff888003a40000},
		Target: Target{Kind: TargetMemory, Memory: &MemoryTarget{
			Location: Location{Addr: 0xffffffff81002012, Symbol: printable.Escape("do_syscall_64"), Offset: 0x12},
			Phys:     0x1002012, GFN: 0x1002,
		}},
		Before: Bytes([]byte{0x0f, 0x1f, 0x44}), Attempted: Unknown("the write was not decoded"),
		Detail: Detail{Access: "w", CPL: ptr(uint8(0)), CR3: 0x2a10000, View: ptr(uint16(1)), Repeats: 3, Note: printable.Escape("CR0.WP was clear")},
	}
}

// msrRecord is a reported write to LSTAR by nobody known.
func msrRecord() Record {
	return Record{
		Schema: Schema, ID: "69fe2b1d7c3a-18",
		Time:   time.Date(2026, 5, 9, 7, 29, 34, 0, time.UTC),
		Domain: Domain{UUID: "a2b0f0f4-6f0e-4f9b-8f4c-0c8c6d1e2f30", Name: printable.Escape("web1"), ID: 7},
		Guard:  "syscall-entry", Action: Alerted, Mode: "observe",
		RIP:     Location{Addr: 0xffffffffc0001040},
		Process: Process{Unknown: "the guest's kernel is not identified"},
		Target:  Target{Kind: TargetMSR, MSR: &MSRTarget{Index: 0xc0000082, Name: "LSTAR"}},
		Before:  Number(0xffffffff81800000), Attempted: Number(0xffffffffc0002000),
	}
}

// crRecord is a write to CR4 that was blocked.
func crRecord() Record {
	r := msrRecord()
	r.ID, r.Guard, r.Action, r.Mode = "69fe2b1d7c3a-19", "cr", Blocked, "enforce"
	r.Target = Target{Kind: TargetCR, CR: &CRTarget{Name: "CR4", Cleared: []string{"SMEP", "SMAP"}}}
	r.Before, r.Attempted = Number(0x3006f0), Number(0x6f0)
	return r
}

// moduleRecord is one of a module that was loaded.
func moduleRecord() Record {
	r := crRecord()
	r.Guard, r.Action, r.Severity, r.RIP = "modules", Noted, Informational, Location{}
	r.Process.Unknown = "it was found afterwards"
	r.Target = Target{Kind: TargetModule, Module: &ModuleTarget{
		Name: "loop", Change: ModuleLoaded, Base: 0xffffffffc0200000, Size: 20480, SHA256: HexBytes{0xe3, 0xb0}, Taints: "OE",
	}}
	r.Before, r.Attempted = Unknown("it was found afterwards"), Unknown("it was found afterwards")
	return r
}

// viewRecord is one of a domain that was switched to another view.
func viewRecord() Record {
	r := moduleRecord()
	r.Guard = ""
	r.Target = Target{Kind: TargetView, View: &ViewTarget{From: "strict", To: "maintenance", By: Peer{UID: 0, PID: 4711}}}
	return r
}

// stoppedRecord is one for which the domain was stopped.
func stoppedRecord(a Action, prevented bool) Record {
	r := crRecord()
	r.Action, r.Prevented = a, prevented
	return r
}

// eferRecord is a write to EFER.
func eferRecord() Record {
	r := crRecord()
	r.Target = Target{Kind: TargetMSR, MSR: &MSRTarget{Index: 0xc0000080, Name: "EFER", Cleared: []string{"NXE"}}}
	r.Before, r.Attempted = Number(0xd01), Number(0x501)
	return r
}

// TestRecordJSON pins the public schema.
func TestRecordJSON(t *testing.T) {
	for name, r := range map[string]Record{"memory": memoryRecord(), "msr": msrRecord(), "cr": crRecord(), "efer": eferRecord(), "paused": stoppedRecord(Paused, true), "module": moduleRecord(), "view": viewRecord()} {
		t.Run(name, func(t *testing.T) {
			line, err := marshal(r)
			if err != nil {
				t.Fatal(err)
			}
			var b bytes.Buffer
			if err := json.Indent(&b, append(line, '\n'), "", "  "); err != nil {
				t.Fatal(err)
			}
			got := b.Bytes()
			file := filepath.Join("testdata", "record-"+name+".json")
			if *update {
				if err := os.WriteFile(file, got, 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			if string(got) != string(want) {
				t.Errorf("JSON is\n%s\nwant\n%s", got, want)
			}
			var back Record
			if err := json.Unmarshal(got, &back); err != nil {
				t.Fatal(err)
			}
			if !reflect.DeepEqual(back, r) {
				t.Errorf("read back\n%+v\nwant\n%+v", back, r)
			}
		})
	}
}

func killedRecord() Record {
	r := crRecord()
	r.Action = Killed
	return r
}

func TestSummary(t *testing.T) {
	physical := memoryRecord()
	physical.Target.Memory = &MemoryTarget{Phys: 0x1002012, GFN: 0x1002}
	physical.Detail = Detail{Access: "x"}
	physical.Before = Unknown("not read")
	for _, tc := range []struct {
		name, want string
		r          Record
	}{
		{"memory", `web1: kernel-text blocked: write to do_syscall_64+0x12 (0xffffffff81002012), 0f 1f 44 -> unknown: the write was not decoded, by "insmod" (pid 412) at evil_init+0x24 [evil] (0xffffffffc0001024), vCPU 1, and 3 more like it`, memoryRecord()},
		{"msr", `web1: syscall-entry alerted: write to MSR LSTAR (0xc0000082), 0xffffffff81800000 -> 0xffffffffc0002000, by an unknown process (the guest's kernel is not identified) at 0xffffffffc0001040, vCPU 0`, msrRecord()},
		{"cr", `web1: cr blocked: write to CR4 that clears SMEP and SMAP, 0x3006f0 -> 0x6f0, by an unknown process (the guest's kernel is not identified) at 0xffffffffc0001040, vCPU 0`, crRecord()},
		{"efer", `web1: cr blocked: write to MSR EFER (0xc0000080) that clears NXE, 0xd01 -> 0x501, by an unknown process (the guest's kernel is not identified) at 0xffffffffc0001040, vCPU 0`, eferRecord()},
		{"physical", `web1: kernel-text blocked: execution of physical 0x1002012, by "insmod" (pid 412) at evil_init+0x24 [evil] (0xffffffffc0001024), vCPU 1`, physical},
		{"killed", `web1: cr blocked and killed the process: write to CR4 that clears SMEP and SMAP, 0x3006f0 -> 0x6f0, by an unknown process (the guest's kernel is not identified) at 0xffffffffc0001040, vCPU 0`, killedRecord()},
		{"paused", `web1: cr blocked and paused the domain: write to CR4 that clears SMEP and SMAP, 0x3006f0 -> 0x6f0, by an unknown process (the guest's kernel is not identified) at 0xffffffffc0001040, vCPU 0`, stoppedRecord(Paused, true)},
		{"shut down, found", `web1: cr found and shut the domain down: write to CR4 that clears SMEP and SMAP, 0x3006f0 -> 0x6f0`, stoppedRecord(ShutDown, false)},
		{"module", `web1: modules noted: module loop loaded at 0xffffffffc0200000, 20480 bytes, taints OE, sha256 e3b0`, moduleRecord()},
		{"empty", `: kernel-text alerted: write to an unknown target, by "" (pid 0) at 0x0, vCPU 0`, Record{Guard: "kernel-text", Action: Alerted}},
	} {
		if got := tc.r.Summary(); got != tc.want {
			t.Errorf("%s:\n got %s\nwant %s", tc.name, got, tc.want)
		}
	}
}

func TestUnmarshalRefusesWhatIsNoEvent(t *testing.T) {
	for _, s := range []string{`{}`, `{"type":"missed","missed":3}`, `{"type":"event"}`, `{"type":"event","schema":1,"rip":{"addr":12}}`, `{"type":"event","schema":1,"before":{"bytes":"0"}}`, `[]`} {
		var r Record
		if err := json.Unmarshal([]byte(s), &r); err == nil {
			t.Errorf("%s was read as an event", s)
		}
	}
	var r Record
	later := `{"type":"event","schema":2,"id":"x","new_member":{"a":1},"target":{"kind":"register","register":"CR4"}}`
	if err := json.Unmarshal([]byte(later), &r); err != nil || r.Target.Kind != "register" {
		t.Errorf("an event of a later schema was read as %+v (%v)", r, err)
	}
}

func TestItemJSON(t *testing.T) {
	r := msrRecord()
	for _, it := range []Item{{Record: &r}, {Missed: &Missed{Count: 12, Reason: slowReader}}} {
		b, err := json.Marshal(it)
		if err != nil {
			t.Fatal(err)
		}
		var back Item
		if err := json.Unmarshal(b, &back); err != nil || !reflect.DeepEqual(back, it) {
			t.Errorf("%s read back as %+v (%v)", b, back, err)
		}
	}
	if b, err := json.Marshal(Item{}); err == nil {
		t.Errorf("an empty item was written as %s", b)
	}
	if err := new(Item).UnmarshalJSON([]byte(`{"type":"end"}`)); err == nil {
		t.Error("an unknown type was read as an item")
	}
}

func TestIDSplit(t *testing.T) {
	for _, tc := range []struct {
		id  ID
		run string
		seq uint64
		ok  bool
	}{
		{"69fe2b1d7c3a-17", "69fe2b1d7c3a", 17, true},
		{NewID("000000000000", 1<<63), "000000000000", 1 << 63, true},
		{"", "", 0, false},
		{"69fe2b1d7c3a", "", 0, false},
		{"69fe2b1d7c3a-", "", 0, false},
		{"69fe2b1d7c3a-0", "", 0, false},
		{"69fe2b1d7c3a-017", "", 0, false},
		{"69fe2b1d7c3a-+1", "", 0, false},
		{"69FE2B1D7C3A-1", "", 0, false},
		{"69fe2b1d7c3-1", "", 0, false},
		{"69fe2b1d7c3a-99999999999999999999", "", 0, false},
	} {
		run, seq, ok := tc.id.Split()
		if ok != tc.ok || (ok && (run != tc.run || seq != tc.seq)) {
			t.Errorf("%q split into %q, %d, %v", tc.id, run, seq, ok)
		}
	}
}

func FuzzRecord(f *testing.F) {
	for _, r := range []Record{memoryRecord(), msrRecord(), {}} {
		b, err := json.Marshal(r)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Add([]byte(`{"type":"missed","missed":3,"reason":"x"}`))
	f.Add([]byte(`{"type":"event","schema":1,"target":{"kind":"msr","memory":{"gfn":"0x1"}},"summary":5}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		var it Item
		if json.Unmarshal(b, &it) != nil {
			return
		}
		out, err := json.Marshal(it)
		if err != nil {
			t.Fatalf("%s was read but can't be written: %v", b, err)
		}
		var back Item
		if err := json.Unmarshal(out, &back); err != nil {
			t.Fatalf("%s was written and can't be read: %v", out, err)
		}
		if it.Record != nil {
			s := it.Record.Summary()
			if strings.ContainsFunc(s, func(r rune) bool { return r < ' ' || r == 0x7f }) {
				t.Fatalf("the summary has control characters: %q", s)
			}
		}
	})
}
