// Command hvid is hvi's daemon: it watches the host's domains, attaches to
// those whose configuration asks for it, and serves hvictl.
package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/xen-hvi/hvi/cmd/hvid/cli"
	"github.com/xen-hvi/hvi/control"
	"github.com/xen-hvi/hvi/engine"
	"github.com/xen-hvi/hvi/engine/xen"
	"github.com/xen-hvi/hvi/engine/xen/abi"
	"github.com/xen-hvi/hvi/engine/xen/mutate"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	err := command().ExecuteContext(ctx)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "hvid:", explain(err))
	}
	os.Exit(cli.ExitCode(err))
}

func command() *cobra.Command {
	return cli.New(cli.Actions{Run: runDaemon, Recover: recoverLeft, Keep: keep})
}

// runDaemon runs hvid as its configuration and the command line say.
func runDaemon(ctx context.Context, opt cli.Options) error {
	set, err := readSettings(opt)
	if err != nil {
		return err
	}
	return run(ctx, set)
}

// recoverLeft undoes what a dead hvid left in Xen. A configuration that can't be
// read is no reason to let guests wait: the places are then the usual ones.
func recoverLeft(ctx context.Context, opt cli.Options, out io.Writer) error {
	set, err := readSettings(opt)
	if err != nil {
		set = usualSettings(opt)
		set.log.Warn("the configuration cannot be read; recovering with the defaults", "err", err)
	}
	// A living hvid's ledgers are not to be undone under it.
	l, err := control.Listen(set.Socket)
	if err != nil {
		return err
	}
	defer l.Close()
	host, err := xen.Open()
	if err != nil {
		return err
	}
	// The keeper of the dead hvid may be at it already: then nothing is left.
	lock, err := lockLedgers(ctx, set)
	if err != nil {
		return errors.Join(err, host.Close())
	}
	defer func() { _ = lock.Release() }() // it goes with the process, too
	done, err := engine.Recover(engine.OnXen(host), mutate.New(host), set.ledgerDir, !opt.KeepHeld, set.log)
	for _, r := range done {
		fmt.Fprintln(out, r)
	}
	if len(done) == 0 && err == nil {
		fmt.Fprintln(out, "nothing was left to undo")
	}
	err = errors.Join(err, noticeHeld(set.noticeDir(), time.Now(), heldAfter(done)))
	return errors.Join(err, host.Close())
}

// heldAfter are those that recovery has left held.
func heldAfter(done []engine.Recovered) (held []control.RestartDomain) {
	for _, r := range done {
		if r.Held {
			why := cmp.Or(r.Why, "its policy requires protection, and hvid ended")
			held = append(held, control.RestartDomain{ID: uint16(r.Domain), UUID: r.UUID.String(), Held: why})
		}
	}
	return held
}

// explain adds to an error of starting what the admin can do about it.
func explain(err error) string {
	switch {
	case errors.Is(err, xen.ErrNotXen):
		return err.Error() + ": boot this machine under Xen, and run hvid in its control domain (dom0)"
	case errors.Is(err, xen.ErrNotRoot):
		return err.Error() + ": start hvid as root"
	case errors.Is(err, xen.ErrNotControl):
		return err.Error() + ": run hvid in dom0"
	}
	var unknown *abi.UnknownReleaseError
	if errors.As(err, &unknown) {
		return err.Error() + ": install a newer hvi; this one will not guess at another release's interface"
	}
	return err.Error()
}
