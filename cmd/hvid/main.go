// Command hvid is hvi's daemon: it watches the host's domains, attaches to
// those whose configuration asks for it, and serves hvictl.
package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/xen-hvi/hvi/control"
	"github.com/xen-hvi/hvi/engine"
	"github.com/xen-hvi/hvi/engine/ledger"
	"github.com/xen-hvi/hvi/engine/xen"
	"github.com/xen-hvi/hvi/engine/xen/abi"
	"github.com/xen-hvi/hvi/engine/xen/mutate"
)

// defaultJournal is where security events are kept.
const defaultJournal = "/var/lib/hvi/events"

func main() {
	if err := command().Execute(); err != nil {
		fmt.Fprintln(os.Stderr, "hvid:", explain(err))
		os.Exit(1)
	}
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

func command() *cobra.Command {
	opt := options{}
	var level slog.Level
	root := &cobra.Command{
		Use:   "hvid",
		Short: "hvi's daemon: protects Xen guests from outside",
		Long: "hvid watches this host's domains, attaches to each whose xl config has\n" +
			"introspection = \"observe\" or \"enforce\" before its first instruction, and\n" +
			"detaches when it shuts down or hvid is stopped. It runs in the foreground\n" +
			"and logs to standard error.",
		Example:       "  hvid\n  hvid --log-level debug",
		Version:       control.ThisBuild().String(),
		Args:          cobra.NoArgs,
		SilenceErrors: true,
		SilenceUsage:  true,
		RunE: func(*cobra.Command, []string) error {
			opt.log = slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: level}))
			ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
			defer stop()
			return run(ctx, opt)
		},
	}
	f := root.PersistentFlags()
	f.StringVar(&opt.socket, "socket", control.DefaultSocket, "control socket")
	f.StringVar(&opt.journal, "journal", defaultJournal, "directory of the security events")
	f.StringVar(&opt.ledgerDir, "ledger", ledger.DefaultDir, "directory of what is changed in Xen and not yet undone")
	f.TextVar(&level, "log-level", slog.LevelInfo, "debug, info, warn or error")
	root.AddCommand(recoverCommand(&opt))
	return root
}

func recoverCommand(opt *options) *cobra.Command {
	return &cobra.Command{
		Use:   "recover",
		Short: "undo what a hvid that died left in Xen, and resume its guests",
		Long: "recover undoes every change of Xen's state that a dead hvid has noted in its\n" +
			"ledgers, and resumes each vCPU that waits for its answer. hvid does the same\n" +
			"when it starts.",
		Example: "  hvid recover",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			// A living hvid's ledgers are not to be undone under it.
			l, err := control.Listen(opt.socket)
			if err != nil {
				return err
			}
			defer l.Close()
			host, err := xen.Open()
			if err != nil {
				return err
			}
			log := slog.New(slog.NewTextHandler(os.Stderr, nil))
			done, err := engine.Recover(engine.OnXen(host), mutate.New(host), opt.ledgerDir, log)
			for _, line := range done {
				fmt.Fprintln(cmd.OutOrStdout(), line)
			}
			if len(done) == 0 && err == nil {
				fmt.Fprintln(cmd.OutOrStdout(), "nothing was left to undo")
			}
			return errors.Join(err, host.Close())
		},
	}
}
