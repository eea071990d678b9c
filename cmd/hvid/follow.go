package main

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"time"

	"github.com/xen-hvi/hvi/engine"
	"github.com/xen-hvi/hvi/engine/xen"
	"github.com/xen-hvi/hvi/registry"
	"github.com/xen-hvi/hvi/xlplugin"
)

const (
	// rescanPeriod is how often the domains are listed while one is shut down
	// and may yet run on, which Xen does not announce. A protected domain
	// stands still until it is seen.
	rescanPeriod = 100 * time.Millisecond
	// rescanAfter is for how long after an event of any domain a look is taken
	// whether one waits. With nothing going on there is nothing to look for, and a
	// host that is idle stays so.
	rescanAfter = 30 * time.Second
	// updatePeriod is how often is looked whether xl config-update has given a
	// domain another config, and whether one that was never built is gone, where nobody
	// tells of it.
	updatePeriod = 10 * time.Second
	// prunePeriod is how often is forgotten what is kept for nobody.
	prunePeriod = time.Minute
	// laneLimit bounds the wait for what is under way when hvid stops.
	laneLimit = 10 * time.Second
)

// follower passes on what becomes of domains.
type follower struct {
	engine   *engine.Engine
	registry *registry.Registry
	watcher  *xlplugin.Watcher
	log      *slog.Logger
	lanes    *lanes[xen.DomID]
}

// follow does so until ctx ends. A domain's events are handled one after the
// other, and one domain's attachment does not hold up another's.
func (f *follower) follow(ctx context.Context, served <-chan error) error {
	defer func() {
		// A config that can't be read, on a file server that is gone, must not
		// keep the other domains from being let go.
		if !f.lanes.wait(laneLimit) {
			f.log.Error("hvid stops while it waits for something about a domain", "for", laneLimit)
		}
	}()
	rescan := time.NewTicker(rescanPeriod)
	defer rescan.Stop()
	rescanning, until := true, time.Now().Add(rescanAfter)
	wake := func() {
		if until = time.Now().Add(rescanAfter); !rescanning {
			rescanning = true
			rescan.Reset(rescanPeriod)
		}
	}
	update := time.NewTicker(updatePeriod)
	defer update.Stop()
	prune := time.NewTicker(prunePeriod)
	defer prune.Stop()
	var alive <-chan time.Time
	if period := watchdogPeriod(os.Getenv, os.Getpid()); period > 0 {
		t := time.NewTicker(period)
		defer t.Stop()
		alive = t.C
	}
	f.prune()
	for {
		select {
		case <-alive:
			notify("WATCHDOG=1")
		case <-rescan.C:
			if f.engine.Waiting() {
				f.watcher.Rescan()
			} else if time.Now().After(until) {
				rescanning = false
				rescan.Stop()
			}
		case <-update.C:
			if f.engine.Waiting() {
				wake()
			}
			if f.engine.Undecided() {
				f.watcher.Rescan()
			}
			for _, st := range f.engine.Status() {
				f.registry.ConfigUpdated(st.Info.ID, st.Info.UUID)
			}
		case <-prune.C:
			f.prune()
		case <-ctx.Done():
			return nil
		case err := <-served:
			return fmt.Errorf("serve the control socket: %w", err)
		case ev, ok := <-f.watcher.Events():
			if !ok {
				if ctx.Err() != nil {
					return nil
				}
				return fmt.Errorf("watch the domains: %w", f.watcher.Err())
			}
			wake()
			f.handle(ev)
		}
	}
}

func (f *follower) handle(ev xlplugin.Event) {
	switch ev.Kind {
	case xlplugin.Appeared:
		f.lanes.do(ev.Info.ID, func() { f.engine.Appeared(ev.Info, ev.Name) })
	case xlplugin.ShutDown:
		// First, while xl has not yet taken up what config-update left.
		f.note(ev.Info, f.registry.ShutDown)
		f.lanes.do(ev.Info.ID, func() { f.engine.ShutDown(ev.Info) })
	case xlplugin.Resumed:
		f.lanes.do(ev.Info.ID, func() { f.engine.Resumed(ev.Info, ev.Name) })
	case xlplugin.Gone:
		f.note(ev.Info, f.registry.Ended)
		f.lanes.do(ev.Info.ID, func() { f.engine.Gone(ev.Info) })
	case xlplugin.Trouble:
		f.log.Error("watch the domains", "err", ev.Err)
	}
}

// note tells the registry of a domain's end.
func (f *follower) note(info xen.DomainInfo, tell func(xen.DomainInfo) error) {
	if err := tell(info); err != nil {
		f.log.Error("keep what is declared for a domain", "domid", info.ID, "uuid", info.UUID, "err", err)
	}
}

func (f *follower) prune() {
	alive := map[xen.UUID]bool{}
	for _, st := range f.engine.Status() {
		alive[st.Info.UUID] = true
	}
	n, err := f.registry.Prune(func(u xen.UUID) bool { return alive[u] })
	if err != nil {
		f.log.Error("forget what is kept for nobody", "err", err)
	}
	if n > 0 {
		f.log.Debug("forgot what was kept for domains that are no more", "domains", n)
	}
}
