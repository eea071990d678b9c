package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/xen-hvi/hvi/control"
	"github.com/xen-hvi/hvi/engine"
	"github.com/xen-hvi/hvi/engine/journal"
	"github.com/xen-hvi/hvi/engine/policy"
	"github.com/xen-hvi/hvi/engine/xen"
	"github.com/xen-hvi/hvi/engine/xen/mutate"
	"github.com/xen-hvi/hvi/engine/xen/xenstore"
	"github.com/xen-hvi/hvi/xlplugin"
)

// shutdownLimit bounds the wait for requests under way when hvid stops.
const shutdownLimit = 5 * time.Second

// rescanPeriod is how often the domains are listed while one is shut down and
// may yet run on, which Xen does not announce. A protected domain stands still
// until it is seen.
const rescanPeriod = 100 * time.Millisecond

// run is hvid from start to SIGTERM: it returns when ctx ends and everything
// is undone.
func run(ctx context.Context, opt settings) (err error) {
	started := time.Now()
	host, err := xen.Open()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, host.Close()) }()

	// The socket is the lock that keeps a second hvid from recovering the
	// living state of the first.
	listener, err := control.Listen(opt.Socket)
	if err != nil {
		return err
	}
	defer listener.Close()

	hv, mutator := engine.OnXen(host), mutate.New(host)
	if _, err := engine.Recover(hv, mutator, opt.ledgerDir, opt.log); err != nil {
		opt.log.Error("what an earlier hvid left could not all be undone; hvid goes on with the other domains", "err", err)
	}
	store, err := xenstore.Open()
	if err != nil {
		return fmt.Errorf("reach xenstore: %w", err)
	}
	defer store.Close()
	events, err := journal.Open(journal.Options{
		Dir: opt.journal, MaxBytes: opt.Journal.MaxBytes, Keep: int(opt.Journal.Keep), SyncEvery: opt.Journal.SyncEvery, Logger: opt.log,
	})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, events.Close()) }()

	e := engine.New(engine.Options{
		Hypervisor: hv, Mutator: mutator, LedgerDir: opt.ledgerDir,
		Recorder: events, Resolve: resolve, Log: opt.log,
	})
	watch, cancel := context.WithCancel(ctx)
	defer cancel()
	watcher, err := xlplugin.Watch(watch, store, host, xlplugin.WatchOptions{OnAppear: e.Gate})
	if err != nil {
		return err
	}
	left := takeNotice(opt.RunDir, time.Now(), opt.log)
	server := control.NewServer(control.ServerOptions{
		Engine: &api{
			engine: e, restarting: left, resolve: resolve, gateTimeout: opt.Gate.Timeout, journal: events, xen: host.Release().String(), started: started,
			events: func(info xen.DomainInfo) (xen.MonitorCaps, error) { return host.MonitorCapabilities(info.ID) },
			probe:  func(info xen.DomainInfo) (engine.Tier, string) { return engine.Probe(hv, info) },
			doctor: func() []control.Check { return examineHost(host, opt.ledgerDir, e.Status()) },
		},
		Journal: events, Logger: opt.log,
	})
	served := make(chan error, 1)
	go func() { served <- server.Serve(listener) }()
	notify("READY=1")
	opt.log.Info("ready", "xen", host.Release().String(), "socket", opt.Socket)

	err = follow(watch, e, watcher, served, opt.log)

	notify("STOPPING=1")
	err = errors.Join(err, leaveNotice(opt.RunDir, time.Now(), e.Status()))
	cancel()
	err = errors.Join(err, e.Close())
	limit, done := context.WithTimeout(context.Background(), shutdownLimit)
	defer done()
	return errors.Join(err, server.Shutdown(limit))
}

// follow passes on what becomes of domains until ctx ends. Each event is
// handled by itself, so that one domain's attachment does not hold up
// another's; the engine keeps a domain's own events in order.
func follow(ctx context.Context, e *engine.Engine, w *xlplugin.Watcher, served <-chan error, log *slog.Logger) error {
	var wg sync.WaitGroup
	defer wg.Wait()
	rescan := time.NewTicker(rescanPeriod)
	defer rescan.Stop()
	var alive <-chan time.Time
	if period := watchdogPeriod(os.Getenv, os.Getpid()); period > 0 {
		t := time.NewTicker(period)
		defer t.Stop()
		alive = t.C
	}
	for {
		select {
		case <-alive:
			notify("WATCHDOG=1")
		case <-rescan.C:
			if e.Waiting() {
				w.Rescan()
			}
		case <-ctx.Done():
			return nil
		case err := <-served:
			return fmt.Errorf("serve the control socket: %w", err)
		case ev, ok := <-w.Events():
			if !ok {
				if ctx.Err() != nil {
					return nil
				}
				return fmt.Errorf("watch the domains: %w", w.Err())
			}
			switch ev.Kind {
			case xlplugin.Appeared:
				wg.Go(func() { e.Appeared(ev.Info, ev.Name) })
			case xlplugin.ShutDown:
				wg.Go(func() { e.ShutDown(ev.Info) })
			case xlplugin.Resumed:
				wg.Go(func() { e.Resumed(ev.Info, ev.Name) })
			case xlplugin.Gone:
				wg.Go(func() { e.Gone(ev.Info) })
			case xlplugin.Trouble:
				log.Error("watch the domains", "err", ev.Err)
			}
		}
	}
}

// resolve finds what a domain's xl config declares.
func resolve(info xen.DomainInfo, name string) (engine.Declaration, bool, error) {
	found, err := (&xlplugin.Resolver{}).Resolve(xlplugin.Domain{ID: info.ID, Name: name, UUID: info.UUID})
	if errors.Is(err, xlplugin.ErrNoConfig) {
		// No mistake by itself (the guest may not be xl's), but when it is,
		// status must say what was looked at.
		return engine.Declaration{Source: err.Error()}, false, nil
	}
	d := engine.Declaration{Spec: found.Spec}
	if found.ConfigPath != "" {
		d.Source = "xl config " + policy.Quote(found.ConfigPath)
	}
	if len(found.Warnings) > 0 {
		d.Source += " (" + strings.Join(found.Warnings, "; ") + ")"
	}
	return d, err == nil && found.Spec.Declared(), err
}
