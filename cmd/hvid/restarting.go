package main

import (
	"log/slog"
	"os"
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
}

// readNotice reads what the last hvid left. A notice that can't be read costs a
// word in status and nothing else.
func readNotice(runDir string, now time.Time, log *slog.Logger) *restarting {
	r := &restarting{byUUID: map[string]control.RestartDomain{}}
	n, ok, err := control.ReadRestartNotice(runDir)
	if err != nil {
		log.Warn("read what the last hvid left", "err", err)
	}
	if ok && n.Fresh(now) {
		for _, d := range n.Domains {
			r.byUUID[d.UUID] = d
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
			n.Domains = append(n.Domains, control.RestartDomain{
				ID: uint16(st.Info.ID), Name: printable.Escape(st.Name), UUID: st.Info.UUID.String(), Mode: st.Policy.Mode.String(),
			})
		}
	}
	return control.WriteRestartNotice(runDir, n)
}
