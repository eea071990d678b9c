package engine

import (
	"time"

	"github.com/xen-hvi/hvi/engine/guard"
	"github.com/xen-hvi/hvi/engine/policy"
	"github.com/xen-hvi/hvi/engine/view"
	"github.com/xen-hvi/hvi/engine/x86"
	"github.com/xen-hvi/hvi/engine/xen"
)

// State is how far a session has come. Its words are shown to users as they
// are.
type State string

// The states of a session, in the order of an uneventful life.
const (
	// StateUnprotected: no policy asks for protection.
	StateUnprotected State = "unprotected"
	// StateGated: the domain is held while its policy is looked for.
	StateGated State = "gated"
	// StateDeclared: a policy asks for protection and the session begins.
	StateDeclared State = "declared"
	// StateAttached: the monitor ring is served; the guest may run.
	StateAttached State = "attached"
	// StateIdentifying: the guest's kernel was entered, or is being read.
	StateIdentifying State = "identifying"
	// StateProtecting: all guards that were asked for are armed.
	StateProtecting State = "protecting"
	// StateDegraded: attached, but some guard that was asked for is not armed.
	StateDegraded  State = "degraded"
	StateDetaching State = "detaching"
	StateDetached  State = "detached"
	// StateFailed: nothing is attached; Failure says why.
	StateFailed State = "failed"
)

// Tier is what Xen offers for a domain.
type Tier string

// Tiers, best first.
const (
	TierViews     Tier = "views"     // altp2m views and all below
	TierAccess    Tier = "access"    // per-page access on the host's translation
	TierRegisters Tier = "registers" // register and breakpoint events only
	TierNone      Tier = "none"      // nothing: PV guests
)

// GuardState is what became of a guard.
type GuardState string

// States of a guard.
const (
	GuardPending     GuardState = "pending"     // waits for the guest's kernel
	GuardArmed       GuardState = "armed"       // in force
	GuardOff         GuardState = "off"         // the policy turned it off
	GuardUnavailable GuardState = "unavailable" // the tier cannot carry it
	GuardDegraded    GuardState = "degraded"    // it could not be armed, sees nothing, or is too slow
	// GuardInactive: it does not hold in the view that the domain runs in.
	GuardInactive GuardState = "inactive"
	// GuardScanning: the tier cannot carry it, and what it protects is compared
	// with what it was instead.
	GuardScanning GuardState = "scanning"
)

// GuardStatus is one guard of one domain.
type GuardStatus struct {
	Name   policy.GuardName
	Action policy.Action
	State  GuardState
	Reason string // why it is unavailable, degraded, inactive or scanning
	// Passed, Violations and Blocked count what the guard saw, Found the
	// violations that it found afterwards, Allowed what an exception permits.
	Passed, Violations, Blocked, Found, Allowed uint64
	// Decisions counts the events that it decided on, Busy is about how long that took
	// the ring goroutine; see [guard.Armed.Decisions].
	Decisions uint64
	Busy      time.Duration
	// OverBudget counts decisions that took longer than they may, of those that were
	// timed.
	OverBudget uint64
}

// Failure says why a session could not go on: in which stage, what went wrong
// and what to do about it.
type Failure struct {
	Stage string
	Err   error
	Fix   string
}

// KernelStatus is what was found out about the guest's kernel.
type KernelStatus struct {
	Release string
	Banner  string
	Base    x86.VirtAddr
	Symbols int
}

// Status is a snapshot of a session.
type Status struct {
	Info  xen.DomainInfo
	Name  string
	State State
	// Decided says that the domain's policy has been looked for. Until then the
	// state is a provisional one.
	Decided      bool
	Policy       policy.Effective
	PolicySource string
	// PolicyFrom is the kind of source, in the words of Declaration.From.
	PolicyFrom string
	// Held says why the domain is held by a pause reference of ours beyond its
	// start; empty if it is not.
	Held string
	// Dump is the memory dump of a domain that a guard has paused, nil if there was
	// none.
	Dump       *DumpStatus
	Tier       Tier
	TierReason string // why it is not a better one
	Kernel     *KernelStatus
	Guards     []GuardStatus
	// AttachedAt is zero before the ring is served.
	AttachedAt time.Time
	// AttachPC is vCPU 0's instruction pointer at that moment.
	AttachPC x86.VirtAddr
	// Failure is set in StateFailed, and in StateAttached after a kernel entry
	// at which no known kernel was found.
	Failure *Failure
	// Views are the translations of the domain's memory in which pages are
	// restricted or could be: the host's first, then those of ours. None while
	// no guard is armed.
	Views []ViewStatus
	// Exceptions are those in force, and what each has permitted. None before the
	// guards are armed.
	Exceptions []guard.ExceptionUse
	// Breakpoints are the hidden ones, in the order of their addresses, and Hidden
	// says what else had to do with their pages.
	Breakpoints []BreakpointStatus
	Hidden      view.Counters
	points      []*breakpoint
	hidden      *view.Breakpoints
	// Stepped and Emulated count the accesses to restricted pages that were let
	// through: by a step in the host's view, and by Xen's emulator.
	Stepped, Emulated uint64
	// Patching says what has become of the kernel's patching of its own code.
	Patching PatchingStatus
	// Restored counts frames that were restricted again after Xen had dropped
	// their restriction in a view.
	Restored uint64
	// Events counts requests read from the ring, Stray those nobody asked
	// for, Unrecorded violations acted upon without a record.
	Events, Stray, Unrecorded uint64
	// Served is about how long the ring goroutine has worked for the guest since the
	// session began, and RingPeak how many requests it found at once at most.
	Served   time.Duration
	RingPeak int
}
