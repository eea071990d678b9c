package main

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/xen-hvi/hvi/control"
	"github.com/xen-hvi/hvi/engine"
	"github.com/xen-hvi/hvi/engine/journal"
	"github.com/xen-hvi/hvi/engine/xen"
	"github.com/xen-hvi/hvi/engine/xen/mutate"
	"github.com/xen-hvi/hvi/engine/xen/xenstore"
	"github.com/xen-hvi/hvi/metrics"
	"github.com/xen-hvi/hvi/registry"
	"github.com/xen-hvi/hvi/xlplugin"
)

// shutdownLimit bounds the wait for requests under way when hvid stops.
const shutdownLimit = 5 * time.Second

// run is hvid from start to SIGTERM: it returns when ctx ends and everything
// is undone.
func run(ctx context.Context, opt settings) (err error) {
	started := time.Now()
	raisePriority(opt.log)
	raiseParallelism()
	collectEarly()
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

	// Before anything is changed in Xen, so that it is undone if this process dies.
	guard, err := startKeeper(opt)
	if err != nil {
		return err
	}
	undone := true // nothing is changed yet
	defer func() { err = errors.Join(err, guard.Close(undone)) }()
	lock, err := lockLedgers(ctx, opt)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, lock.Release()) }()

	hv, mutator := engine.OnXen(host), mutate.New(host)
	undone = false
	if _, err := engine.Recover(hv, mutator, opt.ledgerDir, false, opt.log); err == nil {
		// A start that fails before it attaches to anything is no failure of a hvid
		// that did, which the keeper would tell the next one.
		undone = true
	} else {
		opt.log.Error("what an earlier hvid left could not all be undone; hvid goes on with the other domains", "err", err)
	}
	store, err := xenstore.OpenLasting(xenstore.LastingOptions{
		Lost: func(why error) {
			opt.log.Error("xenstore is lost; guests stay protected, and what becomes of others is not seen until it is back", "err", why)
		},
		Back: func() { opt.log.Warn("xenstore is back; all domains are looked at again") },
	})
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
	forwarders := forward(events, opt.Events, opt.log)
	defer func() {
		err = errors.Join(err, events.Close())
		for _, f := range forwarders {
			err = errors.Join(err, f.Close())
		}
	}()

	kept, err := registry.Open(opt.declarations())
	if err != nil {
		return err
	}
	xl := &xlplugin.Resolver{Policies: opt.files}
	reg := registry.New(registry.Options{
		Store: kept, XL: xl, Files: opt.files, Default: opt.Default, XenStore: store, Log: opt.log,
	})
	exceptions := registry.OpenExceptions(opt.exceptions(), opt.files, opt.log)
	kernels, closeKernels := knownKernels(opt)
	defer closeKernels()
	var shown atomic.Pointer[metrics.Server]
	undone = false
	e := engine.New(engine.Options{
		Hypervisor: hv, Mutator: mutator, LedgerDir: opt.ledgerDir,
		Recorder: events, Resolve: resolver(reg), Log: opt.log, Identify: kernels, Permitted: exceptions.For, Pulse: guard.Ring, Quiet: opt.Looks.Quiet, Budget: opt.Watchdog.Decision, Dumps: opt.dumps(),
		Ended: func(st engine.Status) {
			if m := shown.Load(); m != nil {
				m.Ended(metricsOf(st))
			}
		},
	})
	watch, cancel := context.WithCancel(ctx)
	defer cancel()
	watcher, err := xlplugin.Watch(watch, store, host, xlplugin.WatchOptions{OnAppear: e.Gate})
	if err != nil {
		return errors.Join(err, e.Close()) // what was held already is let go
	}
	var aside sync.WaitGroup
	defer aside.Wait()
	defer cancel()
	aside.Go(func() {
		// xl takes the config up, and away, the moment the guest stops.
		if err := xl.WatchUpdates(watch, reg.ConfigUpdated); err != nil && watch.Err() == nil {
			opt.log.Warn("watch for xl config-update: a change may be seen too late", "err", err)
		}
	})
	left := readNotice(opt.noticeDir(), time.Now(), opt.log)
	a := &api{
		engine: e, restarting: left, store: store, registry: reg, exceptions: exceptions, resolve: resolver(reg), policies: opt.files, fallback: opt.Default,
		gateTimeout: opt.Gate.Timeout, log: opt.log,
		journal: events, xen: host.Release().String(), started: started,
		keeper: guard.State,
		events: func(info xen.DomainInfo) (xen.MonitorCaps, error) { return host.MonitorCapabilities(info.ID) },
		alive: func(info xen.DomainInfo) bool {
			now, err := host.Domain(info.ID)
			return err == nil && !now.Dying && now.UUID == info.UUID
		},
		probe: func(info xen.DomainInfo) (engine.Tier, string) { return engine.Probe(hv, info) },
	}
	look := &inspector{
		xen: host, store: store, events: events, files: opt.files, socket: opt.Socket, kept: opt.declarations(),
		hookHeard: a.hookHeard, keeper: guard.State, recovered: left.recovery, fixedAltP2M: host.Layout().Has.AltP2MFixedAtCreate,
	}
	a.inspect = look.domain
	a.doctor = func(ctx context.Context) []control.Check {
		return append(examineHost(host, opt.ledgerDir, e.Status()), look.host(ctx)...)
	}
	a.virt = startVirt(watch, opt.Libvirt, opt.files, opt.log, a)
	server := control.NewServer(control.ServerOptions{Engine: a, Journal: events, Logger: opt.log})
	if opt.Metrics.Listen != "" {
		v := control.ThisBuild()
		m, err := metrics.Serve(watch, opt.Metrics.Listen, metrics.Options{
			Source: gauge{a, opt.declarations()}, Log: opt.log,
			Build: metrics.Build{Version: v.Version, Revision: v.Revision, Go: v.Go, Xen: host.Release().String()},
		})
		if err == nil {
			defer m.Close()
			shown.Store(m)
		} else {
			// No reason to leave guests without protection.
			opt.log.Error("serve metrics; hvid goes on without", "err", err)
		}
	}
	served := make(chan error, 1)
	go func() { served <- server.Serve(listener) }()
	dropNotice(opt.noticeDir(), opt.log)
	notify("READY=1")
	opt.log.Info("ready", "xen", host.Release().String(), "socket", opt.Socket)

	err = (&follower{engine: e, registry: reg, watcher: watcher, log: opt.log, lanes: newLanes[xen.DomID]()}).follow(watch, served)

	notify("STOPPING=1")
	err = errors.Join(err, leaveNotice(opt.noticeDir(), time.Now(), e.Status()))
	cancel()
	// The guests first: nobody they depend on is waited for.
	closed := e.Close()
	undone = closed == nil
	err = errors.Join(err, closed)
	err = errors.Join(err, noticeHeld(opt.noticeDir(), time.Now(), heldStill(e.Status())))
	a.virt.close()
	limit, done := context.WithTimeout(context.Background(), shutdownLimit)
	defer done()
	return errors.Join(err, server.Shutdown(limit))
}
