package journal

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/xen-hvi/hvi/engine/printable"
	"github.com/xen-hvi/hvi/engine/x86"
)

// Schema is the version of Record's JSON. Fields are added without changing
// it; a field is never renamed, removed or given another meaning under the
// same number. A reader ignores fields and kinds it does not know.
const Schema = 1

// ID names one record for ever: the run of the daemon that made it, a dash and
// the record's number within that run, from 1. "69fe2b1d7c3a-17".
type ID string

// NewID returns the ID of record seq of the given run.
func NewID(run string, seq uint64) ID {
	return ID(run + "-" + strconv.FormatUint(seq, 10))
}

// Split returns the run and the number within it; ok is false if id is not of
// the form NewID makes.
func (id ID) Split() (run string, seq uint64, ok bool) {
	run, s, found := strings.Cut(string(id), "-")
	if !found || len(run) != runIDLen || strings.Trim(run, "0123456789abcdef") != "" {
		return "", 0, false
	}
	seq, err := strconv.ParseUint(s, 10, 64)
	if err != nil || seq == 0 || s[0] == '0' || s[0] == '+' {
		return "", 0, false
	}
	return run, seq, true
}

// Action is what hvi did about a violation.
type Action string

// Actions.
const (
	// Alerted: the violation was reported and took place.
	Alerted Action = "alerted"
	// Blocked: the violation was reported and did not take place.
	Blocked Action = "blocked"
	// Killed: as Blocked, and the process that did it gets a SIGKILL: no instruction of
	// its own program is carried out any more.
	Killed Action = "killed"
	// Found: the violation took place unseen, and was found afterwards.
	Found Action = "found"
	// Paused: the violation was reported, and the domain paused for it. Whether it took
	// place, Record.Prevented says.
	Paused Action = "paused"
	// ShutDown: likewise, and the domain was shut down.
	ShutDown Action = "shut-down"
	// Noted: it is no violation. It was noticed some time afterwards.
	Noted Action = "noted"
)

// Actions returns the actions there are.
func Actions() []Action { return []Action{Alerted, Blocked, Killed, Found, Paused, ShutDown, Noted} }

// TargetKind says what a violation was aimed at.
type TargetKind string

// Target kinds.
const (
	TargetMemory TargetKind = "memory"
	TargetMSR    TargetKind = "msr"
	TargetCR     TargetKind = "cr"
	// TargetSeveral: the record stands for many violations, see Detail.Suppressed.
	TargetSeveral TargetKind = "several"
	// TargetObject: something that the guest's kernel keeps, which is not as it
	// should be.
	TargetObject TargetKind = "object"
	// TargetModule: a kernel module that was loaded or unloaded, which is no violation.
	TargetModule TargetKind = "module"
	// TargetView: the view that a domain runs in, which was changed on somebody's
	// request.
	TargetView TargetKind = "view"
	// TargetCall: what a process asked the kernel for.
	TargetCall TargetKind = "call"
)

// Record is one security event: a violation of what a guard protects. Its JSON
// form is hvi's public schema: names in snake_case, addresses, offsets and
// register values as 0x-prefixed strings, times in RFC 3339 UTC.
type Record struct {
	// Schema is set by Append.
	Schema int `json:"schema"`
	// ID is set by Append.
	ID ID `json:"id"`
	// Time is when the violation was read off the ring. Append sets it where
	// it is zero.
	Time   time.Time `json:"time"`
	Domain Domain    `json:"domain"`
	// VCPU is the number of the virtual CPU, from 0.
	VCPU int `json:"vcpu"`
	// Guard is the name of the guard as written in a policy, "kernel-text"; empty of
	// what has to do with no single one.
	Guard  string `json:"guard"`
	Action Action `json:"action"`
	// Prevented says, where Action is Paused or ShutDown, that the violation did not
	// take place; where it is not set the violation was found afterwards.
	Prevented bool `json:"prevented,omitempty"`
	// Severity says how much it matters. Append sets it where it is empty; records of
	// before there were any have none.
	Severity Severity `json:"severity,omitempty"`
	// Policy is where that was decided: a place in a file, a policy's name, or the
	// default of the mode.
	Policy printable.Text `json:"policy,omitzero"`
	// Attack are the techniques of MITRE ATT&CK that the guard is for.
	Attack []Technique `json:"attack,omitempty"`
	// Mode is the domain's mode at the time, "learn", "observe" or "enforce".
	Mode string `json:"mode"`
	// RIP is where the instruction is that did it, and Instruction what it is, nil where
	// it could not be read.
	RIP         Location     `json:"rip"`
	Instruction *Instruction `json:"instruction,omitempty"`
	Process     Process      `json:"process"`
	// Calls are where the calls return to that the kernel was in at that moment, the
	// innermost first, and CallsFrom how they were told. At most MaxCalls.
	Calls     []Location `json:"calls,omitempty"`
	CallsFrom CallsFrom  `json:"calls_from,omitempty"`
	Target    Target     `json:"target"`
	// Before is what the target held, Attempted what it would have become.
	Before    Value  `json:"before"`
	Attempted Value  `json:"attempted"`
	Detail    Detail `json:"detail,omitzero"`
}

// CallsFrom is how a record's Calls were told.
type CallsFrom string

// Ways to tell them.
const (
	// CallsUnwound: the stack was unwound by the kernel's own tables (ORC), as far as
	// it was kept. Each of the calls was under way.
	CallsUnwound CallsFrom = "unwound"
	// CallsScanned: the stack could not be unwound, or not to its beginning, and what
	// looks like addresses to return to on the rest is among them. Some may be left over
	// from calls that are long over.
	CallsScanned CallsFrom = "scanned"
)

// MaxCalls and MaxParents bound a record's Calls and its process's Parents.
const (
	MaxCalls   = 12
	MaxParents = 8
)

// Technique is a technique of MITRE ATT&CK.
type Technique struct {
	ID   string `json:"id"`
	Name string `json:"name"`
}

// Domain identifies the guest. UUID is stable over the guest's reboots, ID is
// not; Name can be changed and is not unique in time.
type Domain struct {
	UUID string         `json:"uuid"`
	Name printable.Text `json:"name"`
	ID   uint16         `json:"id"`
	// Kernel is the guest's kernel as uname -r prints it, empty where it is not
	// known.
	Kernel printable.Text `json:"kernel,omitzero"`
}

// Location is a linear address and, where known, the symbol it lies in.
type Location struct {
	// Addr is zero, and left out of JSON, where the address is not known.
	Addr x86.VirtAddr `json:"addr,omitzero"`
	// Symbol is empty where none is known; Offset is then meaningless.
	Symbol printable.Text `json:"symbol,omitzero"`
	// Offset is Addr minus the symbol's start, in bytes.
	Offset Hex `json:"offset,omitzero"`
	// Module is the kernel module the symbol belongs to, empty for the kernel
	// itself.
	Module printable.Text `json:"module,omitzero"`
}

// String returns "do_syscall_64+0x12", "init+0x4 [evil]" or the bare address.
func (l Location) String() string {
	s := l.Addr.String()
	if l.Symbol != "" {
		s = l.Symbol.String()
		if l.Offset != 0 {
			s += fmt.Sprintf("+%#x", uint64(l.Offset))
		}
	}
	if l.Module != "" {
		s += " [" + l.Module.String() + "]"
	}
	return s
}

// long is String with the address beside the symbol.
func (l Location) long() string {
	switch {
	case l.Symbol == "":
		return l.String()
	case l.Addr == 0:
		return l.String()
	}
	return fmt.Sprintf("%s (%s)", l, l.Addr)
}

// Instruction is one of the processor's.
type Instruction struct {
	Bytes HexBytes `json:"bytes"`
	// Text is the instruction in the assembler's language, in AT&T's syntax as the
	// kernel's own tools show it; empty where it is none.
	Text printable.Text `json:"text,omitzero"`
}

// Process is the task that ran on the vCPU. It is what the guest's memory says
// and as trustworthy as the guest's kernel.
type Process struct {
	// PID is the thread's, TGID the process's number in the initial PID
	// namespace, in Linux's terms.
	PID  int32          `json:"pid"`
	TGID int32          `json:"tgid"`
	Comm printable.Text `json:"comm"`
	// Task is the address of the task's structure in the guest's kernel.
	Task x86.VirtAddr `json:"task,omitzero"`
	// Parents are the process's parent, that one's, and so on, as they were a moment
	// later. At most MaxParents.
	Parents []Parent `json:"parents,omitempty"`
	// Exe is the path of its program as its own root sees it, and Cgroup its path in
	// the unified hierarchy of control groups, or in the first that has a name: a
	// container's process is in one of its own. Both are as they were a moment later;
	// empty where they could not be told.
	Exe    printable.Text `json:"exe,omitzero"`
	Cgroup printable.Text `json:"cgroup,omitzero"`
	// UID and EUID are the user and the effective user, in the first user namespace;
	// nil where they could not be told.
	UID  *uint32 `json:"uid,omitempty"`
	EUID *uint32 `json:"euid,omitempty"`
	// Unknown is empty, or says why the process could not be told; the other
	// fields are then zero.
	Unknown string `json:"unknown,omitempty"`
}

// Parent is a process that began another.
type Parent struct {
	TGID int32          `json:"tgid"`
	Comm printable.Text `json:"comm"`
}

// Target is what a violation was aimed at. Exactly the member that Kind names
// is set; of TargetSeveral there is none.
type Target struct {
	Kind   TargetKind    `json:"kind"`
	Memory *MemoryTarget `json:"memory,omitempty"`
	MSR    *MSRTarget    `json:"msr,omitempty"`
	CR     *CRTarget     `json:"cr,omitempty"`
	Object *ObjectTarget `json:"object,omitempty"`
	Module *ModuleTarget `json:"module,omitempty"`
	View   *ViewTarget   `json:"view,omitempty"`
	Call   *CallTarget   `json:"call,omitempty"`
}

// String returns the target as people read it: a symbol with its address, or
// the name of an MSR with its number.
func (t Target) String() string {
	switch {
	case t.Memory != nil && t.Memory.Addr == 0 && t.Memory.Symbol == "":
		return "physical " + t.Memory.Phys.String()
	case t.Memory != nil:
		return t.Memory.long()
	case t.MSR != nil && t.MSR.Name != "":
		return fmt.Sprintf("MSR %s (%#x)", t.MSR.Name, uint64(t.MSR.Index))
	case t.MSR != nil:
		return fmt.Sprintf("MSR %#x", uint64(t.MSR.Index))
	case t.CR != nil:
		return printable.Text(t.CR.Name).String()
	case t.Object != nil:
		return fmt.Sprintf("%s: %s", t.Object.Name, t.Object.What)
	case t.Module != nil:
		return t.Module.String()
	case t.View != nil:
		return t.View.String()
	case t.Call != nil:
		return t.Call.String()
	}
	return "an unknown target"
}

// cleared returns the names of the protections that the write switched off.
func (t Target) cleared() []string {
	switch {
	case t.MSR != nil:
		return t.MSR.Cleared
	case t.CR != nil:
		return t.CR.Cleared
	}
	return nil
}

// MemoryTarget is a place in the guest's memory.
type MemoryTarget struct {
	// Location's Addr is zero where Xen did not supply the linear address.
	Location
	// Phys is the guest physical address, GFN its frame.
	Phys x86.PhysAddr `json:"phys"`
	GFN  x86.GFN      `json:"gfn"`
}

// MSRTarget is a model-specific register.
type MSRTarget struct {
	Index Hex `json:"index"`
	// Name is the SDM's short name, "LSTAR", or empty.
	Name string `json:"name,omitempty"`
	// Cleared names the protections that the write would switch off, by the
	// SDM's names of their bits: "NXE".
	Cleared []string `json:"cleared,omitempty"`
}

// ObjectTarget is something that the guest's kernel keeps: a process, a module, a
// table, a variable.
type ObjectTarget struct {
	// Check is the check that found it, as hvictl check calls it.
	Check string `json:"check"`
	// Name says which object, What what is wrong with it.
	Name printable.Text `json:"name"`
	What printable.Text `json:"what"`
	// Leads is where it leads, nil where that is no matter.
	Leads *Location `json:"leads,omitempty"`
}

// ModuleChange is what has become of a module.
type ModuleChange string

// What can become of one.
const (
	ModuleLoaded   ModuleChange = "loaded"
	ModuleUnloaded ModuleChange = "unloaded"
)

// ModuleTarget is a kernel module that was loaded or unloaded. All of it is what the
// guest's kernel says.
type ModuleTarget struct {
	Name   printable.Text `json:"name"`
	Change ModuleChange   `json:"change"`
	// Base is where its code begins, Size what all of it takes, in bytes.
	Base x86.VirtAddr `json:"base"`
	Size uint64       `json:"size"`
	// SHA256 is that of its code as it lay in memory when it was seen first: relocated
	// to its address, and patched by the kernel. It is left out of one that was loaded
	// before hvi looked, or that could not be read.
	SHA256 HexBytes `json:"sha256,omitempty"`
	// Taints are the letters of /proc/modules, "OE".
	Taints string `json:"taints,omitempty"`
}

// String returns "module loop loaded at 0xffffffffc0200000, 20480 bytes, taints OE".
func (t *ModuleTarget) String() string {
	s := fmt.Sprintf("module %s %s at %s, %d bytes", t.Name, printable.Text(t.Change), t.Base, t.Size)
	if t.Taints != "" {
		s += ", taints " + printable.Text(t.Taints).String()
	}
	if len(t.SHA256) > 0 {
		s += fmt.Sprintf(", sha256 %x", []byte(t.SHA256))
	}
	return s
}

// ViewTarget is the view that a domain runs in, one of those that its policy declares.
type ViewTarget struct {
	From string `json:"from"`
	To   string `json:"to"`
	// By is who asked for it.
	By Peer `json:"by"`
}

// String returns "view strict -> maintenance, by uid 0, pid 4711".
func (t *ViewTarget) String() string {
	return fmt.Sprintf("view %s -> %s, by uid %d, pid %d", printable.Text(t.From), printable.Text(t.To), t.By.UID, t.By.PID)
}

// CallTarget is what a process asked the kernel for and should not have. All of it is
// what the guest says.
type CallTarget struct {
	// What says what is wrong, of the process that the record names.
	What printable.Text `json:"what"`
	// Program is the path of the program that was to be executed, or its beginning, as
	// the process gave it; left out where that is no matter or could not be read.
	Program printable.Text `json:"program,omitzero"`
	// Victim is the process that it was to be done to, nil where that is no matter.
	Victim *Parent `json:"victim,omitempty"`
	// RIP is the instruction behind the one by which the process called the kernel,
	// RSP its stack pointer.
	RIP x86.VirtAddr `json:"rip"`
	RSP x86.VirtAddr `json:"rsp"`
}

// String returns "executes /bin/sh from memory that no file is mapped in (…)".
func (t *CallTarget) String() string {
	s := t.What.String()
	if t.Program != "" {
		s += ", program " + t.Program.String()
	}
	if t.Victim != nil {
		s += fmt.Sprintf(", of process %d (%s)", t.Victim.TGID, t.Victim.Comm)
	}
	return s + fmt.Sprintf("; rip %s, rsp %s", t.RIP, t.RSP)
}

// Peer is a process of the host that asked hvid for something, as the kernel saw it
// when it connected.
type Peer struct {
	UID uint32 `json:"uid"`
	PID int32  `json:"pid"`
}

// CRTarget is a control register.
type CRTarget struct {
	// Name is the SDM's, "CR4".
	Name string `json:"name"`
	// Cleared names the protections that the write would switch off, by the
	// SDM's names of their bits: "SMEP".
	Cleared []string `json:"cleared,omitempty"`
}

// Detail is what only some events have.
type Detail struct {
	// Access is the kind of memory access that violated: some of "rwx".
	Access string `json:"access,omitempty"`
	// CPL is the privilege level of the instruction, nil where not known.
	CPL *uint8 `json:"cpl,omitempty"`
	// CR3 is the vCPU's page-table root register, whole.
	CR3 Hex `json:"cr3,omitzero"`
	// View is the altp2m view that was active, nil without altp2m.
	View *uint16 `json:"view,omitempty"`
	// Repeats is how many further violations, the same in all but time, this
	// record stands for.
	Repeats uint64 `json:"repeats,omitempty"`
	// Suppressed is how many violations of the guard this record stands for that
	// have none of their own, because there were too many at once.
	Suppressed uint64 `json:"suppressed,omitempty"`
	// Note is one sentence of the guard's own.
	Note printable.Text `json:"note,omitzero"`
	// Dump is the file that the domain's memory is written to, where it was paused and
	// that is asked for. It is there once it is whole.
	Dump printable.Text `json:"dump,omitzero"`
	// Log is the end of the guest's kernel log, a record each, where the guest has
	// crashed.
	Log []printable.Text `json:"log,omitempty"`
}

// Value is the content of a target. It is bytes in memory order, or the number
// in a register, or unknown with the reason; make it with Bytes, Number or
// Unknown.
type Value struct {
	Bytes  HexBytes `json:"bytes,omitempty"`
	Number *Hex     `json:"number,omitempty"`
	Reason string   `json:"unknown,omitempty"`
}

// Bytes returns the value of memory. b is copied.
func Bytes(b []byte) Value {
	if len(b) == 0 {
		return Unknown("no bytes were read")
	}
	return Value{Bytes: append(HexBytes(nil), b...)}
}

// Number returns the value of a register.
func Number(v uint64) Value { h := Hex(v); return Value{Number: &h} }

// Unknown returns a value that is not known and says why, in a few words:
// "the write was not decoded".
func Unknown(why string) Value { return Value{Reason: why} }

// String returns the bytes as "0f 1f 44", the number as "0xffff…", or
// "unknown: " and the reason.
func (v Value) String() string {
	switch {
	case len(v.Bytes) > 0:
		return v.Bytes.String()
	case v.Number != nil:
		return fmt.Sprintf("%#x", uint64(*v.Number))
	case v.Reason != "":
		return "unknown: " + printable.Text(v.Reason).String()
	}
	return "unknown"
}

// Hex is a number that JSON carries as a 0x-prefixed hexadecimal string.
type Hex uint64

// MarshalText writes "0x1f".
func (h Hex) MarshalText() ([]byte, error) { return x86.VirtAddr(h).MarshalText() }

// UnmarshalText reads what MarshalText writes.
func (h *Hex) UnmarshalText(b []byte) error { return (*x86.VirtAddr)(h).UnmarshalText(b) }

// HexBytes is bytes that JSON carries as a string of two hexadecimal digits
// each, without separators.
type HexBytes []byte

// String returns the bytes separated by spaces.
func (b HexBytes) String() string { return fmt.Sprintf("% x", []byte(b)) }

// MarshalText writes "0f1f44".
func (b HexBytes) MarshalText() ([]byte, error) { return hex.AppendEncode(nil, b), nil }

// UnmarshalText reads what MarshalText writes.
func (b *HexBytes) UnmarshalText(t []byte) error {
	d, err := hex.AppendDecode(nil, t)
	if err != nil {
		return fmt.Errorf("journal: bytes %.64q: %w", t, err)
	}
	*b = d
	return nil
}

// Summary is the record in one line for people. Its wording may change; a
// program reads the fields.
func (r *Record) Summary() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s: ", r.Domain.Name)
	if r.Guard != "" {
		fmt.Fprintf(&b, "%s ", printable.Text(r.Guard))
	}
	fmt.Fprintf(&b, "%s: ", r.done())
	if n := r.Detail.Suppressed; n > 0 {
		more := "violations"
		if r.Action == Noted {
			more = "such events"
		}
		fmt.Fprintf(&b, "%d more %s within a second, too many to record each", n, more)
		return b.String()
	}
	if r.Target.Kind == TargetObject || r.Target.Kind == TargetModule || r.Target.Kind == TargetView {
		b.WriteString(r.Target.String())
		return b.String()
	}
	what := "write to "
	switch {
	case r.Target.Kind == TargetMemory && r.Detail.Access != "":
		what = accessWords(r.Detail.Access) + " "
	case r.Target.Kind == TargetCall:
		what = "it "
	}
	fmt.Fprintf(&b, "%s%s", what, r.Target)
	if c := r.Target.cleared(); len(c) > 0 {
		fmt.Fprintf(&b, " that clears %s", printable.Text(strings.Join(c, " and ")))
	}
	switch {
	case r.Target.Kind == TargetMemory && r.Detail.Access == "r" && !r.Attempted.known():
		if r.Before.known() {
			fmt.Fprintf(&b, ", %s", r.Before)
		}
	case r.Before.known() || r.Attempted.known():
		fmt.Fprintf(&b, ", %s -> %s", r.Before, r.Attempted)
	}
	if r.Late() && r.Target.Kind != TargetCall {
		return b.String() // nobody saw who did it
	}
	fmt.Fprintf(&b, ", by %s", r.Process)
	fmt.Fprintf(&b, " at %s, vCPU %d", r.RIP.long(), r.VCPU)
	if n := r.Detail.Repeats; n > 0 {
		fmt.Fprintf(&b, ", and %d more like it", n)
	}
	return b.String()
}

// stopped reports whether the domain was stopped for the violation.
func (r *Record) stopped() bool { return r.Action == Paused || r.Action == ShutDown }

// prevented reports whether the violation did not take place.
func (r *Record) prevented() bool {
	return r.Action == Blocked || r.Action == Killed || r.stopped() && r.Prevented
}

// Late reports whether it was found or noted afterwards, when nobody could see any
// more who did it.
func (r *Record) Late() bool {
	return r.Action == Found || r.Action == Noted || r.stopped() && !r.Prevented
}

// done is what was done, in words.
func (r *Record) done() string {
	if r.Action == Killed {
		return string(Blocked) + " and killed the process"
	}
	if !r.stopped() {
		return printable.Text(r.Action).String()
	}
	did, then := Found, "paused the domain"
	if r.Prevented {
		did = Blocked
	}
	if r.Action == ShutDown {
		then = "shut the domain down"
	}
	return string(did) + " and " + then
}

// String returns `"insmod" (pid 412)`, or that the process is not known.
func (p Process) String() string {
	if p.Unknown != "" {
		return "an unknown process (" + printable.Text(p.Unknown).String() + ")"
	}
	return fmt.Sprintf("%s (pid %d)", p.Comm.Quoted(), p.PID)
}

func (v Value) known() bool { return len(v.Bytes) > 0 || v.Number != nil }

func accessWords(a string) string {
	switch a {
	case "w", "rw":
		return "write to"
	case "x":
		return "execution of"
	case "r":
		return "read of"
	}
	return printable.Text(a).String() + " access to"
}

// lineTypes tell what a line of the log or of an event stream is.
const (
	typeEvent  = "event"
	typeMissed = "missed"
)

// recordJSON is Record without its methods.
type recordJSON Record

// MarshalJSON writes the record with its type ("event") first and its summary
// last.
func (r Record) MarshalJSON() ([]byte, error) {
	return marshal(struct {
		Type string `json:"type"`
		recordJSON
		Summary string `json:"summary"`
	}{typeEvent, recordJSON(r), r.Summary()})
}

// marshal is json.Marshal without the escapes that only HTML needs, so that
// the log can be read and searched: "->" stays "->".
func marshal(v any) ([]byte, error) {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	err := e.Encode(v)
	return bytes.TrimSuffix(b.Bytes(), []byte{'\n'}), err
}

// UnmarshalJSON reads what MarshalJSON writes. The summary is not read: it is
// made from the fields.
func (r *Record) UnmarshalJSON(b []byte) error {
	in := struct {
		Type string `json:"type"`
		*recordJSON
	}{recordJSON: (*recordJSON)(r)}
	if err := json.Unmarshal(b, &in); err != nil {
		return err
	}
	if in.Type != typeEvent {
		return fmt.Errorf("journal: a line of type %.32q is not a security event", in.Type)
	}
	if r.Schema < 1 {
		return fmt.Errorf("journal: a security event without a schema number")
	}
	return nil
}

// Missed says that a reader was too slow, or came too late, and how much it
// did not get. It stands in a stream where the records would have been.
type Missed struct {
	// Count is the number of records missed, 0 where that isn't known.
	Count uint64 `json:"missed"`
	// Reason is why, one clause.
	Reason string `json:"reason"`
}

// Item is one element of a stream: exactly one of the two is set.
type Item struct {
	Record *Record
	Missed *Missed
}

type missedJSON Missed

// MarshalJSON writes the record, or {"type":"missed","missed":N,"reason":...}.
func (i Item) MarshalJSON() ([]byte, error) {
	switch {
	case i.Record != nil:
		return i.Record.MarshalJSON()
	case i.Missed != nil:
		return marshal(struct {
			Type string `json:"type"`
			*missedJSON
		}{typeMissed, (*missedJSON)(i.Missed)})
	}
	return nil, fmt.Errorf("journal: an empty item has no JSON")
}

// UnmarshalJSON reads what MarshalJSON writes.
func (i *Item) UnmarshalJSON(b []byte) error {
	var head struct {
		Type string `json:"type"`
	}
	if err := json.Unmarshal(b, &head); err != nil {
		return err
	}
	switch head.Type {
	case typeEvent:
		r := new(Record)
		if err := json.Unmarshal(b, r); err != nil {
			return err
		}
		*i = Item{Record: r}
	case typeMissed:
		m := new(missedJSON)
		if err := json.Unmarshal(b, m); err != nil {
			return err
		}
		*i = Item{Missed: (*Missed)(m)}
	default:
		return fmt.Errorf("journal: unknown line type %.32q", head.Type)
	}
	return nil
}
