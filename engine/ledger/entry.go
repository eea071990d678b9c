package ledger

import (
	"github.com/xen-hvi/hvi/engine/xen"
	"github.com/xen-hvi/hvi/engine/xen/mutate"
)

// formatVersion is the version of the file format: the first line's "v". Files of
// the versions since the first are read, too: nothing in them has another meaning.
const formatVersion, firstVersion = 3, 1

// MonitorOp says which event to monitor.
type MonitorOp = mutate.MonitorOp

// Op names a kind of mutation.
type Op string

// The mutations hvi makes.
const (
	// OpPause is one reference on the domain's pause count
	// (XEN_DOMCTL_pausedomain). Its undo is unpausedomain.
	OpPause Op = "pause"
	// OpHold is such a reference that is to outlive hvid: the domain may not run
	// before hvi is attached to it. Recovery leaves it, unless it is asked for
	// more. Its undo is unpausedomain.
	OpHold Op = "hold"
	// OpGuardPause is such a reference that was taken because a guard's action is to
	// pause the domain, or to shut it down. It outlives hvid, as OpHold does, and
	// being attached to does not end it: an admin does. Its undo is unpausedomain.
	OpGuardPause Op = "guard-pause"
	// OpFailClosed changes nothing in Xen. It says that the domain may not run
	// when hvid fails: recovery leaves it held, unless it is asked for more.
	OpFailClosed Op = "fail-closed"
	// OpRingPage is the ring's frame put into the guest's physical memory.
	// Its undo takes the frame out again.
	OpRingPage Op = "ring-page"
	// OpRing is the monitor ring enabled. Its undo disables it, which also
	// clears every monitor operation.
	OpRing Op = "ring"
	// OpMonitor is one kind of event asked for. Its undo stops it.
	OpMonitor Op = "monitor"
	// OpDeferWrites makes Xen hold back register writes until they are
	// answered, so that they can be denied. Only disabling the ring undoes it.
	OpDeferWrites Op = "defer-writes"
	// OpResume is owed: vCPUs wait for answers of a listener that is gone. It
	// changes nothing in Xen; it outlives the ring whose loss made it so.
	OpResume Op = "resume"
	// OpAccess is a range of frames restricted on the host's own
	// translation. Its undo permits everything again.
	OpAccess Op = "access"
	// OpPagingPool is more memory for the domain's page tables. Its undo
	// gives the surplus back.
	OpPagingPool Op = "paging-pool"
	// OpAllowViews is altp2m's mode set to external, where the toolstack left
	// it disabled. Xen has no undo for it: the domain keeps a permission of
	// which nobody makes use.
	OpAllowViews Op = "allow-views"
	// OpSteps is single steps permitted. Its undo ends those under way.
	OpSteps Op = "steps"
	// OpMaxPages is a higher limit of the domain's pages. Its undo returns to the
	// one from before, unless the toolstack has set another meanwhile.
	OpMaxPages Op = "max-pages"
	// OpShadow is a page of ours in the guest's physical memory. Its undo takes
	// it away, which must not be before the views are off that lead to it.
	OpShadow Op = "shadow-page"
	// OpViews is altp2m switched on, with all views made since, their access
	// and which of them vCPUs are in. Its undo deletes all of it at once.
	OpViews Op = "views"
)

// phase says how far a mutation has come.
type phase string

const (
	// phaseIntent is written, and synced, before Xen is asked.
	phaseIntent phase = "intent"
	// phaseUndone is written after the undo succeeded, or after Xen refused
	// the mutation itself.
	phaseUndone phase = "undone"
	// phaseUndoing is written before a pause reference is dropped, and
	// phaseSettled when it is certain again that there is one; see Settle.
	phaseUndoing phase = "undoing"
	phaseSettled phase = "settled"
	// phaseExplained has a better Why of an entry that is outstanding.
	phaseExplained phase = "explained"
)

// Entry is one mutation, with all that its undo needs.
type Entry struct {
	Seq uint64 `json:"seq"`
	Op  Op     `json:"op"`
	// GFN and Count are the frames of OpRingPage, OpShadow and OpAccess; Count is
	// the vCPUs of OpSteps, and the limit that OpMaxPages has set.
	GFN   uint64 `json:"gfn,omitempty"`
	Count uint64 `json:"count,omitempty"`
	// Bytes is the size that OpPagingPool and OpMaxPages return to.
	Bytes uint64 `json:"bytes,omitempty"`
	// Others says that somebody else had paused the domain before the first of
	// the pause references that are outstanding together.
	Others bool `json:"others,omitempty"`
	// Why is what OpGuardPause was taken for, in words for people.
	Why string `json:"why,omitempty"`
	// Access is what OpAccess permits.
	Access xen.Access `json:"access,omitempty"`
	// Monitor is what OpMonitor asked for.
	Monitor *MonitorOp `json:"monitor,omitempty"`
}

// line is one line of the file. The first has V, Domain and UUID, the others
// a phase and an entry (only Seq once undone).
type line struct {
	V      int     `json:"v,omitempty"`
	Domain *uint16 `json:"domid,omitempty"`
	UUID   string  `json:"uuid,omitempty"`
	Phase  phase   `json:"phase,omitempty"`
	Entry  *Entry  `json:"entry,omitempty"`
}
