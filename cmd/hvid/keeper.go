package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"github.com/xen-hvi/hvi/cmd/hvid/cli"
	"github.com/xen-hvi/hvi/control"
	"github.com/xen-hvi/hvi/engine"
	"github.com/xen-hvi/hvi/engine/keeper"
	"github.com/xen-hvi/hvi/engine/ledger"
	"github.com/xen-hvi/hvi/engine/xen"
	"github.com/xen-hvi/hvi/engine/xen/mutate"
)

// ledgerLimit bounds the wait for whoever undoes what a dead hvid left, and keeps
// a hvid from starting beside one that lives.
const ledgerLimit = 30 * time.Second

// takeoverLimit bounds the keeper's wait for the same. Who has the ledgers after
// hvid's death does the keeper's work.
const takeoverLimit = 5 * time.Second

// lockLedgers waits until nobody else acts upon the ledgers.
func lockLedgers(ctx context.Context, set settings) (*ledger.Lock, error) {
	ctx, cancel := context.WithTimeout(ctx, ledgerLimit)
	defer cancel()
	return ledger.TakeLock(ctx, set.ledgerDir, func() {
		set.log.Info("waiting for what the last hvid left to be undone")
	})
}

// startKeeper starts the process that takes over when this one fails.
func startKeeper(set settings) (*keeper.Keeper, error) {
	level, err := set.level.MarshalText()
	if err != nil {
		return nil, err
	}
	dir := filepath.Dir(filepath.Clean(set.ledgerDir))
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, fmt.Errorf("start the keeper: %w", err)
	}
	k, err := keeper.Start(keeper.Options{
		Args: []string{
			"keeper", "--of", strconv.Itoa(os.Getpid()),
			"--socket", set.Socket, "--ledger", set.ledgerDir, "--log-level", string(level),
		},
		Dir: dir, Log: set.log,
	})
	if err != nil {
		return nil, fmt.Errorf("start the keeper: %w", err)
	}
	return k, nil
}

// keep is the keeper's process.
func keep(_ context.Context, opt cli.Options) error {
	set := usualSettings(opt)
	set.log = set.log.With("process", "keeper")
	keeper.Harden(set.log)
	// Now, and not when there may be no memory left.
	host, err := xen.Open()
	if err != nil {
		return err
	}
	// What takes long is done.
	raisePriority(set.log)
	if err := keeper.DropCapabilities(); err != nil {
		set.log.Warn("the keeper keeps its capabilities", "err", err)
	}
	err = keeper.Serve(keeper.Duty{
		HVID: opt.Of, Log: set.log,
		Recover: func(why string) error { return takeOver(host, set, opt.Of, why) },
	})
	return errors.Join(err, host.Close())
}

// takeOver undoes what a hvid left that is dead, and leaves word for the next one.
func takeOver(host *xen.Host, set settings, hvid int, why string) error {
	ctx, cancel := context.WithTimeout(context.Background(), takeoverLimit)
	defer cancel()
	lock, err := ledger.TakeLock(ctx, set.ledgerDir, nil)
	if errors.Is(err, ledger.ErrLocked) {
		set.log.Info("another process undoes what hvid left", "err", err)
		return nil
	}
	if err != nil {
		return err
	}
	done, err := engine.Recover(engine.OnXen(host), mutate.New(host), set.ledgerDir, false, set.log)
	now := time.Now()
	set.log.Warn("recovered by the keeper", "domains", len(done), "why", why)
	n := control.RestartNotice{
		At: now, PID: hvid, Domains: heldAfter(done),
		Recovered: &control.Recovery{At: now, By: "the keeper", Why: why, Domains: len(done)},
	}
	for _, r := range done {
		if !r.Held {
			n.Domains = append(n.Domains, control.RestartDomain{ID: uint16(r.Domain), UUID: r.UUID.String()})
		}
	}
	// The next hvid reads it when it has the lock.
	return errors.Join(err, control.WriteRestartNotice(set.noticeDir(), n), lock.Release())
}

// keeperState is how the keeper is, for clients.
func keeperState(s keeper.State) control.Keeper {
	k := control.Keeper{Alive: s.Alive, PID: s.PID, Since: s.Since, Restarts: s.Restarts}
	if s.Err != nil {
		k.Problem = s.Err.Error()
	}
	return k
}

// keeperCheck is doctor's word on it. last is what was done for the hvid before
// this one, if it failed.
func keeperCheck(s keeper.State, last *control.Recovery) control.Check {
	c := control.Check{Name: "keeper", Status: control.CheckOK}
	switch {
	case !s.Alive:
		c.Status, c.Detail = control.CheckFail, "no process watches over hvid: if hvid fails, guests wait until it is started again"
		if s.Err != nil {
			c.Detail += "; " + s.Err.Error()
		}
		c.Fix = "see hvid's log for why it can't be started; it is tried again every few seconds"
	case s.Restarts > 0:
		c.Status = control.CheckWarn
		c.Detail = fmt.Sprintf("process %d watches over hvid; %d before it died", s.PID, s.Restarts)
		c.Fix = "see hvid's log for why"
	default:
		c.Detail = fmt.Sprintf("process %d watches over hvid", s.PID)
	}
	if last != nil {
		c.Detail += fmt.Sprintf("; the hvid before this one failed at %s (%s), and %s undid what it had changed of %d domains",
			last.At.Format(time.RFC3339), last.Why, last.By, last.Domains)
	}
	return c
}
