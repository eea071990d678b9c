package metrics

import (
	"time"

	"github.com/xen-hvi/hvi/engine/journal"
)

// Source is what the metrics are made of. Its methods are called from several
// goroutines at once, answer from memory, and never block for long.
type Source interface {
	// Domains returns every domain of the host but the control domain, the
	// unprotected ones too, in any order.
	Domains() []Domain
	// Host returns what is counted for the host as a whole.
	Host() Host
}

// Domain is a snapshot of one domain.
type Domain struct {
	ID uint16
	// UUID is in the usual form of five groups.
	UUID string
	// Name is the domain's name as it is, any bytes.
	Name string
	// Type is "PV", "HVM" or "PVH".
	Type string
	// State is a word of States.
	State string
	// Mode is "off", "learn", "observe" or "enforce".
	Mode string
	// Tier is what Xen offers for the domain: "views", "access", "registers",
	// "none", or empty while it isn't known.
	Tier string
	// PolicyFrom is the kind of place the policy was found in: "xl",
	// "captured", "default" and so on.
	PolicyFrom string
	// Held says that hvi keeps the domain paused beyond its start: while it is
	// suspended, for want of protection that it must not run without, or because a
	// guard has paused it.
	Held bool
	// AttachedAt is when the session began whose counts follow; zero if there
	// was none. With ID and UUID it tells one session from the next.
	AttachedAt time.Time
	// RingEvents counts the requests read from the monitor ring, Stray those
	// of them nobody asked for, RecordsLost violations without a record. They
	// count since AttachedAt and stay when the session has ended, until there
	// is another one.
	RingEvents, Stray, RecordsLost uint64
	Guards                         []Guard
}

// Guard is one guard of a domain.
type Guard struct {
	Name string
	// Action is what the policy sets, in its words: "block".
	Action string
	// State is "pending", "armed", "off", "unavailable", "degraded", "inactive" or "scanning".
	State string
	// Violations counts since the domain's AttachedAt, Blocked those of them
	// that were prevented, Found those that were found afterwards, Passed what the
	// guard found legitimate, Allowed what an exception permits.
	Violations, Blocked, Found, Passed, Allowed uint64
	// Decisions counts the requests of Xen's that the guard has decided on, Busy is
	// about how long that took. Both count since AttachedAt, too.
	Decisions uint64
	Busy      time.Duration
	// OverBudget counts decisions that took longer than they may, of those that were
	// timed.
	OverBudget uint64
}

// Host is what is counted for the host. All counts are since hvid started.
type Host struct {
	Journal journal.Stats
	// Declarations is the number of domains whose policy is kept.
	Declarations int
	// Attaches counts successful attachments and AttachTime is the sum of the
	// times they took, from the domain's appearance, or the request, until it
	// could run on. AttachFailures counts those that failed.
	Attaches       uint64
	AttachTime     time.Duration
	AttachFailures uint64
	// GateRefused counts starts that were refused because the domain must not
	// run without protection.
	GateRefused uint64
	// Keeper is the process that watches over hvid.
	Keeper Keeper
	// Libvirt is nil where hvid does not talk to libvirt.
	Libvirt *Libvirt
}

// Keeper is the state of the process that watches over hvid. Restarts counts those
// that had to follow one that died or hung.
type Keeper struct {
	Alive    bool
	Restarts uint64
}

// Libvirt is the state of the connection to libvirt.
type Libvirt struct{ Connected bool }

// States are the words of a domain's state. For each of them hvi_domains has a
// series, even where no domain is in it.
var States = []string{
	"unprotected", "gated", "declared", "attached", "identifying", "protecting",
	"degraded", "detaching", "detached", "failed", "restarting",
}

const (
	stateProtecting = "protecting"
	stateFailed     = "failed"
)

// asked reports whether protection is asked for. Where a policy can't be read
// the mode is unknown, and somebody did ask.
func (d *Domain) asked() bool {
	return d.Mode == "learn" || d.Mode == "observe" || d.Mode == "enforce" || d.State == stateFailed
}
