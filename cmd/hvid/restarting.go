package main

import (
	"log/slog"
	"os"
	"slices"
	"sync"
	"time"

	"github.com/xen-hvi/hvi/control"
	"github.com/xen-hvi/hvi/engine"
	"github.com/xen-hvi/hvi/engine/policy"
	"github.com/xen-hvi/hvi/engine/printable"
)

// restarting holds the domains that an earlier hvid protected, as its notice
// names them, until this one has come to them: meanwhile they run without
// protection, and status says so.
type restarting struct {
	mu     sync.Mutex
	byUUID map[string]control.RestartDomain
	// recovery says that the last hvid failed and what was done then, nil if it
	// did not.
	recovery *control.Recovery
}

// readNotice reads what the last hvid left. A notice that can't be read costs a
// word in status and nothing else.
func readNotice(runDir string, now time.Time, log *slog.Logger) *restarting {
	r := &restarting{byUUID: map[string]control.RestartDomain{}}
	n, ok, err := control.ReadRestartNotice(runDir)
	if err != nil {
		log.Warn("read what the last hvid left", "err", err)
	}
	if r.recovery = n.Recovered; r.recovery != nil {
		log.Warn("the last hvid failed", "at", r.recovery.At, "why", r.recovery.Why, "recovered_by", r.recovery.By, "domains", r.recovery.Domains)
	}
	if ok && n.Fresh(now) {
		for _, d := range n.Domains {
			if d.Held == "" { // the engine knows the others
				r.byUUID[d.UUID] = d
			}
		}
		log.Info("restarted", "after", now.Sub(n.At), "domains", len(n.Domains))
	}
	return r
}

// dropNotice removes the notice, once this hvid can tell itself what is in it.
func dropNotice(runDir string, log *slog.Logger) {
	if err := control.RemoveRestartNotice(runDir); err != nil {
		log.Warn("remove what the last hvid left", "err", err)
	}
}

// mode returns the mode a domain had under the last hvid, if this one has not
// come to it yet.
func (r *restarting) mode(st engine.Status) (mode string, ok bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	d, ok := r.byUUID[st.Info.UUID.String()]
	if ok && st.Decided {
		delete(r.byUUID, d.UUID)
		return "", false
	}
	return d.Mode, ok
}

// leaveNotice says which domains are about to lose their protection because
// hvid stops.
func leaveNotice(runDir string, now time.Time, all []engine.Status) error {
	n := control.RestartNotice{At: now, PID: os.Getpid()}
	for _, st := range all {
		if st.AttachedAt.IsZero() || st.Policy.Mode == policy.ModeOff {
			continue
		}
		switch st.State {
		case engine.StateAttached, engine.StateIdentifying, engine.StateProtecting, engine.StateDegraded:
			n.Domains = append(n.Domains, restartDomain(st))
		}
	}
	return control.WriteRestartNotice(runDir, n)
}

func restartDomain(st engine.Status) control.RestartDomain {
	return control.RestartDomain{
		ID: uint16(st.Info.ID), Name: printable.Escape(st.Name), UUID: st.Info.UUID.String(), Mode: st.Policy.Mode.String(), Held: st.Held,
	}
}

// heldStill are those that an engine which has closed has left held.
func heldStill(all []engine.Status) (held []control.RestartDomain) {
	for _, st := range all {
		if st.Held != "" {
			held = append(held, restartDomain(st))
		}
	}
	return held
}

// noticeHeld puts into the notice which domains are held now, and which are not
// any more. No notice is left where there would be nothing in it.
func noticeHeld(runDir string, now time.Time, held []control.RestartDomain) error {
	n, ok, err := control.ReadRestartNotice(runDir)
	if err != nil || !ok {
		n = control.RestartNotice{At: now, PID: os.Getpid()}
	}
	had := len(n.Held())
	if had == 0 && len(held) == 0 {
		return nil
	}
	// What an earlier one knew of a domain, such as its name, is kept.
	known := map[string]control.RestartDomain{}
	for _, d := range n.Held() {
		known[d.UUID] = d
	}
	n.Domains = slices.DeleteFunc(n.Domains, func(d control.RestartDomain) bool { return d.Held != "" })
	for _, d := range held {
		if k, ok := known[d.UUID]; ok && d.Name == "" {
			d = k
		}
		n.Domains = append(n.Domains, d)
	}
	if len(n.Domains) == 0 && !n.Fresh(now) {
		return control.RemoveRestartNotice(runDir)
	}
	return control.WriteRestartNotice(runDir, n)
}
