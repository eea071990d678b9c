package control

import (
	"context"
	"slices"
	"time"

	"github.com/xen-hvi/hvi/engine/inspect"
	"github.com/xen-hvi/hvi/engine/journal"
	"github.com/xen-hvi/hvi/engine/policy"
	"github.com/xen-hvi/hvi/engine/printable"
	"github.com/xen-hvi/hvi/engine/x86"
)

// DefaultSocket is where hvid listens.
const DefaultSocket = "/run/hvi/hvid.sock"

// Group is the group whose members may read.
const Group = "hvi"

// Engine is what the server needs of hvid. Its methods are called from many
// goroutines at once and honour their context. An error that is or wraps a
// *Problem reaches the client as it is; any other becomes CodeInternal with its
// text.
type Engine interface {
	// Version describes hvid and the Xen it runs on.
	Version(ctx context.Context) (Version, error)
	// Domains returns every domain that could be named, the unprotected ones
	// too, in any order.
	Domains(ctx context.Context) ([]DomainStatus, error)
	// Domain returns one of them in full. It fails with CodeNoSuchDomain if
	// the domain has gone.
	Domain(ctx context.Context, dom DomainRef) (DomainStatus, error)
	// Attach begins protection and returns the status once attached or
	// failed for good; the guards may still be pending.
	Attach(ctx context.Context, dom DomainRef, req AttachRequest) (DomainStatus, error)
	// Detach ends protection and returns when nothing of it is left in Xen.
	Detach(ctx context.Context, dom DomainRef) (DomainStatus, error)
	// Resume has a domain run on that a guard has paused. It fails with CodeConflict
	// if none has.
	Resume(ctx context.Context, dom DomainRef) (DomainStatus, error)
	// SetBreakpoint puts a hidden breakpoint at a symbol, or symbol+offset, of the
	// domain's kernel, or takes it away where on is false.
	SetBreakpoint(ctx context.Context, dom DomainRef, symbol string, on bool) (DomainStatus, error)
	// SwitchView has the domain run in another view that its policy declares, on
	// request of by.
	SwitchView(ctx context.Context, dom DomainRef, view string, by journal.Peer) (DomainStatus, error)
	// Doctor examines the host and the domains.
	Doctor(ctx context.Context) (DoctorReport, error)

	// Guest answers a question about the domain's guest from its memory, with
	// the question's type of result. It changes nothing of the domain.
	Guest(ctx context.Context, dom DomainRef, q inspect.Question, args inspect.Args) (any, error)
	// Profile returns the symbols and types of the domain's kernel, JSON in the
	// format of Volatility 3 of at most MaxProfile bytes.
	Profile(ctx context.Context, dom DomainRef) ([]byte, error)

	// Declare takes what a toolstack declares for the domain of this UUID,
	// which is in lower case; the domain need not exist yet.
	Declare(ctx context.Context, uuid string, req DeclareRequest) (Declared, error)
	// Declarations returns what is kept of every domain, in any order.
	Declarations(ctx context.Context) ([]Declaration, error)
	// Import keeps a declaration of another host; d.UUID is in lower case.
	Import(ctx context.Context, d Declaration) (Declaration, error)

	// Exceptions returns the exceptions there are, in the order they are asked.
	Exceptions(ctx context.Context) ([]Exception, error)
	// Allow keeps an exception, which is valid, and returns Exceptions when it is
	// in force.
	Allow(ctx context.Context, e policy.Exception) ([]Exception, error)
	// Disallow forgets exceptions that are kept, all or none.
	Disallow(ctx context.Context, ids []string) ([]Exception, error)
	// ReloadExceptions reads the admin's file anew.
	ReloadExceptions(ctx context.Context) ([]Exception, error)

	// The methods below take a DomainRef of a domain that may not run, or that
	// was not among Domains yet.

	// Gate waits until the domain's start may go on, or can't. Where it can't
	// that is a result and no error. dom.Ref may be the domid of a domain that
	// was made a moment ago.
	Gate(ctx context.Context, dom DomainRef, req GateRequest) (GateResult, error)
	// Policy returns the policy of the domain and where it comes from.
	Policy(ctx context.Context, dom DomainRef) (PolicyReport, error)
	// SetPolicy replaces it; req.Where is never empty.
	SetPolicy(ctx context.Context, dom DomainRef, req PolicyRequest) (PolicyReport, error)
	// ClearPolicy makes it that nothing is declared for the domain. where is
	// never empty.
	ClearPolicy(ctx context.Context, dom DomainRef, where string) (PolicyReport, error)
}

// DomainRef is a domain that the server found in Engine.Domains. One that it
// did not find there has the ID NoDomID, and what Ref can be: a UUID or a Name.
type DomainRef struct {
	ID   uint16
	UUID string
	Name printable.Text
	// Ref is what the client wrote, byte for byte: a domid, a name or a UUID.
	Ref string
}

// State is where a domain's session stands.
type State string

// States, in the order of a session's life.
const (
	// StateUnprotected: nobody asked for protection.
	StateUnprotected State = "unprotected"
	// StateDeclared: protection is asked for and not begun.
	StateDeclared State = "declared"
	// StateGated: the domain's start is held until hvi is attached.
	StateGated State = "gated"
	// StateAttached: Xen sends us the domain's events.
	StateAttached State = "attached"
	// StateIdentifying: the guest's kernel is being looked for.
	StateIdentifying State = "identifying"
	// StateProtecting: every guard that was asked for is armed.
	StateProtecting State = "protecting"
	// StateDetaching: protection is being taken down.
	StateDetaching State = "detaching"
	// StateDetached: nothing of ours is left in Xen.
	StateDetached State = "detached"
	// StateDegraded: attached, and some guard is not armed; see its reason.
	StateDegraded State = "degraded"
	// StateFailed: not protected though it was asked for; see Failure.
	StateFailed State = "failed"
	// StateRestarting: it was protected until hvid stopped, and will be again
	// when hvid has started.
	StateRestarting State = "restarting"
)

// Tier is what Xen and the processor allow for a domain.
type Tier string

// Tiers, the best first.
const (
	TierViews     Tier = "views"
	TierAccess    Tier = "access"
	TierRegisters Tier = "registers"
	TierNone      Tier = "none"
)

// DomainStatus is all that is known of a domain's protection.
type DomainStatus struct {
	ID   uint16         `json:"id"`
	Name printable.Text `json:"name"`
	UUID string         `json:"uuid"`
	// Type is "PV", "HVM" or "PVH".
	Type  string `json:"type"`
	State State  `json:"state"`
	// Mode is "off", "learn", "observe" or "enforce".
	Mode string `json:"mode"`
	Tier Tier   `json:"tier"`
	// TierReason says why the tier is not a better one; empty for views.
	TierReason string `json:"tier_reason,omitempty"`
	// GuestKernel is nil until it was found.
	GuestKernel *GuestKernel  `json:"guest_kernel,omitempty"`
	Guards      []GuardStatus `json:"guards"`
	// AttachedAt is zero while not attached.
	AttachedAt time.Time `json:"attached_at,omitzero"`
	// AttachPC is the instruction pointer of vCPU 0 when hvi attached: the
	// guest's entry point if that was before its first instruction. nil while
	// not attached.
	AttachPC *x86.VirtAddr `json:"attach_pc,omitempty"`
	// Failure is set in StateFailed and says why, and in StateAttached after a
	// kernel entry at which no known kernel was found.
	Failure *Failure `json:"failure,omitempty"`
	// PolicySource is where the policy was found, or looked for in vain, in
	// words for people: `xl config "/etc/xen/web1.cfg"`, "hvictl attach".
	PolicySource string `json:"policy_source,omitempty"`
	// PolicyFrom is the kind of that place.
	PolicyFrom PolicyFrom `json:"policy_from,omitempty"`
	// RequireAttach: the domain may only run with hvi attached.
	RequireAttach bool `json:"require_attach,omitempty"`
	// Held says why hvid keeps the domain paused, where it does.
	Held string `json:"held,omitempty"`
	// Dump is the memory dump of the domain, where a guard has paused it and that is
	// asked for.
	Dump     *MemoryDump `json:"dump,omitempty"`
	Counters Counters    `json:"counters"`
	// Views are the translations of the domain's memory that hvi has a hand in,
	// the host's first. There are none while no guard is armed.
	Views []View `json:"views,omitempty"`
	// Breakpoints are the hidden breakpoints in the domain's kernel, in the order
	// of their addresses.
	Breakpoints []Breakpoint `json:"breakpoints,omitempty"`
}

// MemoryDump is the memory dump of a domain that a guard has paused.
type MemoryDump struct {
	// State is waiting, writing, written or failed.
	State string `json:"state"`
	// File is where it is, once it is written.
	File string `json:"file,omitempty"`
	// Memory is how many bytes of the domain's memory were read, of about Total; Stored
	// is how many of these were not zero, and take room on disk.
	Memory uint64 `json:"memory"`
	Stored uint64 `json:"stored"`
	Total  uint64 `json:"total,omitempty"`
	// Began is when the domain was paused.
	Began time.Time `json:"began"`
	// Reason is why there is none.
	Reason string `json:"reason,omitempty"`
}

// Breakpoint is a hidden breakpoint in a domain's kernel.
type Breakpoint struct {
	// Symbol is the place, as it was asked for: "do_filp_open+0x5".
	Symbol  string       `json:"symbol"`
	Address x86.VirtAddr `json:"address"`
	// Since is when it was set, Hits how often a vCPU has come to it since.
	Since time.Time `json:"since"`
	Hits  uint64    `json:"hits"`
	// Rests is how often its page was executed unseen for a moment, which happens on tier
	// access alone.
	Rests uint64 `json:"rests,omitempty"`
}

// BreakpointRequest asks for a hidden breakpoint, or for one to be taken away.
type BreakpointRequest struct {
	Symbol string `json:"symbol"`
}

// MaxSymbol is the length of the longest symbol with an offset: of the kernel's
// KSYM_NAME_LEN, 512 bytes, and a hexadecimal number.
const MaxSymbol = 512 + 16

// ViewRequest asks for a domain to run in another view.
type ViewRequest struct {
	View string `json:"view"`
}

// View is one translation of a domain's physical memory.
type View struct {
	// ID is Xen's number of it. 0 is the host's, which a domain without altp2m
	// has as well.
	ID uint16 `json:"id"`
	// Name is what the policy calls it, empty for one that it does not declare.
	Name string `json:"name,omitempty"`
	// Guards are those of memory that hold in one that it declares, and Switch is who
	// may have the domain switched to it: "admin", "nobody".
	Guards []string `json:"guards,omitempty"`
	Switch string   `json:"switch,omitempty"`
	// Current says that the vCPUs run in it, but for one that makes a single
	// step in another.
	Current bool `json:"current"`
	// Steps says that steps over breakpoints are made in it.
	Steps bool `json:"steps,omitempty"`
	// Restricted are the frames that may not be accessed freely, but for those of
	// Shadows.
	Restricted []RestrictedFrames `json:"restricted"`
	// Shadows are the frames that lead to a page of hvi's, with breakpoints in it,
	// that can be executed and nothing else.
	Shadows []ShadowPage `json:"shadows,omitempty"`
	// Traps are the frames with breakpoints where there is no view: they can't be executed.
	Traps []TrappedPage `json:"traps,omitempty"`
}

// TrappedPage is a page of the guest's that can't be executed, with breakpoints in it.
type TrappedPage struct {
	Frame       x86.GFN `json:"frame"`
	Breakpoints int     `json:"breakpoints"`
	// Instructions counts those that were carried out for the guest, Rests how often the
	// page was executed as any other for a moment.
	Instructions uint64 `json:"instructions"`
	Rests        uint64 `json:"rests"`
}

// ShadowPage is a page of hvi's in the place of one of the guest's.
type ShadowPage struct {
	// Frame is the guest physical frame, Shadow the frame of the page it leads to.
	Frame       x86.GFN `json:"frame"`
	Shadow      x86.GFN `json:"shadow"`
	Breakpoints int     `json:"breakpoints"`
}

// RestrictedFrames are page frames in a row with less than full access.
type RestrictedFrames struct {
	// First is the number of the first guest physical page frame, Count how
	// many there are, of 4 KiB each.
	First x86.GFN `json:"first"`
	Count uint64  `json:"count"`
	// Access is what they permit: "r-x".
	Access string `json:"access"`
	// Guard is whose they are.
	Guard string `json:"guard"`
}

// GuestKernel is the operating system kernel found in a guest. All of it comes
// from the guest's memory.
type GuestKernel struct {
	// Release is as uname -r prints it.
	Release printable.Text `json:"release"`
	// Banner is the kernel's own description of its build.
	Banner printable.Text `json:"banner,omitzero"`
	// Base is the linear address of the start of its text.
	Base x86.VirtAddr `json:"base"`
	// SymbolCount is the number of symbols read from its memory.
	SymbolCount int `json:"symbol_count"`
}

// GuardState is where a guard stands.
type GuardState string

// Guard states.
const (
	GuardPending     GuardState = "pending"
	GuardArmed       GuardState = "armed"
	GuardOff         GuardState = "off"
	GuardUnavailable GuardState = "unavailable"
	GuardDegraded    GuardState = "degraded"
	GuardScanning    GuardState = "scanning"
	GuardInactive    GuardState = "inactive"
)

// GuardStatus is one guard of one domain.
type GuardStatus struct {
	Name string `json:"name"`
	// Action is what the guard does about a violation, in a policy's words: "alert".
	Action string     `json:"action"`
	State  GuardState `json:"state"`
	// Reason says why the state is neither armed nor off.
	Reason string `json:"reason,omitempty"`
	// Events counts violations, Blocked those of them that were prevented,
	// Found those that took place unseen and were found afterwards, Passed what
	// the guard looked at and found legitimate.
	Events  uint64 `json:"events"`
	Blocked uint64 `json:"blocked"`
	Found   uint64 `json:"found"`
	Passed  uint64 `json:"passed"`
	// Allowed counts what an exception permits, which is no violation.
	Allowed uint64 `json:"allowed"`
	// Decisions counts the requests of Xen's that the guard has decided on, Busy is
	// about how long hvid's thread for the domain took for that: one decision in
	// sixteen is timed.
	Decisions uint64        `json:"decisions"`
	Busy      time.Duration `json:"busy_ns"`
	// OverBudget counts decisions that took longer than watchdog.decision in
	// hvid.toml says, of those that were timed.
	OverBudget uint64 `json:"over_budget"`
}

// Failure says what went wrong in a session and what to do.
type Failure struct {
	// Stage is what was being done: "attach to the monitor ring".
	Stage    string `json:"stage"`
	Expected string `json:"expected,omitempty"`
	Got      string `json:"got"`
	Fix      string `json:"fix,omitempty"`
}

// Counters count since the domain was attached.
type Counters struct {
	// RingEvents is the number of requests answered on the monitor ring.
	RingEvents uint64 `json:"ring_events"`
	// RingBusy is about how long hvid has worked at this domain's requests, and
	// RingPeak how many requests were waiting at once at most, of the 30 or so that
	// the ring holds.
	RingBusy time.Duration `json:"ring_busy_ns"`
	RingPeak int           `json:"ring_peak"`
	// Alerted and Blocked count the violations by what was done about them,
	// Found those that were found afterwards.
	Alerted uint64 `json:"alerted"`
	Blocked uint64 `json:"blocked"`
	Found   uint64 `json:"found"`
	// Allowed counts what exceptions permit.
	Allowed uint64 `json:"allowed"`
	// RecordsLost counts violations whose record could not be kept.
	RecordsLost uint64 `json:"records_lost"`
	// Stepped and Emulated count the accesses to restricted frames that were
	// let through, by who carried the instruction out: the processor, in a
	// single step in the host's view, or Xen's emulator.
	Stepped  uint64 `json:"stepped"`
	Emulated uint64 `json:"emulated"`
	// Restored counts frames that were restricted again after Xen had dropped
	// their restriction.
	Restored uint64 `json:"restored"`
	// Compared counts pages of the kernel's code that were compared after it had patched
	// them, Opened those that it could write for a moment without an event, and Undone
	// changes that were not the kernel's own and were undone.
	Compared uint64 `json:"compared"`
	Opened   uint64 `json:"opened"`
	Undone   uint64 `json:"undone"`
	// ShadowReads and ShadowWrites count the guest's accesses to the pages that
	// have breakpoints, Concealed those to hvi's own pages, which it cannot see,
	// and GuestBreakpoints the breakpoints of its own.
	ShadowReads      uint64 `json:"shadow_reads"`
	ShadowWrites     uint64 `json:"shadow_writes"`
	Concealed        uint64 `json:"concealed"`
	GuestBreakpoints uint64 `json:"guest_breakpoints"`
}

// AttachRequest asks for a domain's protection. An empty one means the policy
// that is declared for the domain; guards without a mode are refused.
type AttachRequest struct {
	Mode   string         `json:"mode,omitempty"`
	Guards []GuardRequest `json:"guards,omitempty"`
}

// GuardRequest asks for one guard.
type GuardRequest struct {
	Name   string `json:"name"`
	Action string `json:"action"`
}

// Version describes a hvid that runs.
type Version struct {
	Build
	// API is "v1".
	API string `json:"api"`
	PID int    `json:"pid"`
	// Run is the part of this run's event IDs before the dash.
	Run       string    `json:"run"`
	StartedAt time.Time `json:"started_at"`
	// Xen is the release, "4.17.4", empty where it isn't known.
	Xen string `json:"xen,omitempty"`
	// Keeper is how hvid's second process is.
	Keeper Keeper `json:"keeper"`
	// Recovered says that the hvid before this one failed; nil if it did not.
	Recovered *Recovery `json:"recovered,omitempty"`
}

// Keeper is the process that watches over hvid.
type Keeper struct {
	Alive bool `json:"alive"`
	// PID and Since are of the one that is alive.
	PID   int       `json:"pid,omitempty"`
	Since time.Time `json:"since,omitzero"`
	// Restarts counts those that had to follow one that died or hung, since hvid
	// was started.
	Restarts uint64 `json:"restarts"`
	// Problem is why none is alive.
	Problem string `json:"problem,omitempty"`
}

// CheckStatus is the outcome of a check.
type CheckStatus string

// Outcomes. CheckMissing is something that is not there and could be, CheckFail
// something that is there and does not work. CheckInfo is neither good nor bad.
const (
	CheckOK      CheckStatus = "ok"
	CheckInfo    CheckStatus = "info"
	CheckWarn    CheckStatus = "warn"
	CheckMissing CheckStatus = "missing"
	CheckFail    CheckStatus = "fail"
)

// Check is one line of a doctor's report.
type Check struct {
	Name   string      `json:"name"`
	Status CheckStatus `json:"status"`
	// Detail is what was found.
	Detail string `json:"detail,omitempty"`
	// Fix is what to do, where the status is not ok.
	Fix string `json:"fix,omitempty"`
}

// DoctorReport is the state of a host.
type DoctorReport struct {
	Checks  []Check        `json:"checks"`
	Domains []DomainReport `json:"domains"`
}

// DomainReport is the part of a DoctorReport about one domain.
type DomainReport struct {
	ID         uint16         `json:"id"`
	Name       printable.Text `json:"name"`
	UUID       string         `json:"uuid"`
	Tier       Tier           `json:"tier"`
	TierReason string         `json:"tier_reason,omitempty"`
	Checks     []Check        `json:"checks"`
}

// Problems returns the number of checks, of the host and of the domains, whose
// status is missing or fail.
func (r DoctorReport) Problems() int { return r.count(CheckMissing, CheckFail) }

// Warnings returns the number of checks, of the host and of the domains, whose
// status is warn.
func (r DoctorReport) Warnings() int { return r.count(CheckWarn) }

func (r DoctorReport) count(which ...CheckStatus) (n int) {
	in := func(cs []Check) {
		for _, c := range cs {
			if slices.Contains(which, c.Status) {
				n++
			}
		}
	}
	in(r.Checks)
	for _, d := range r.Domains {
		in(d.Checks)
	}
	return n
}

// EventsQuery selects events. The zero value selects all.
type EventsQuery struct {
	// Domain is a domid, name or UUID; the domain need not exist any more.
	Domain string
	Guard  string
	// ID is of the only event that is wanted.
	ID journal.ID
	// Action is what was done, Severity the least.
	Action   journal.Action
	Severity journal.Severity
	// Since and Until enclose the time; Until is not in it.
	Since, Until time.Time
	After        journal.ID
	// Limit is the number of past events to begin with, the newest. 0 means
	// all that match, or none with Follow where neither Since nor After is
	// set.
	Limit int
	// Follow goes on with events as they happen.
	Follow bool
}
