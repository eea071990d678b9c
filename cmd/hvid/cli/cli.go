// Package cli is hvid's command line: its flags and help, without what they
// start. It is apart from the daemon so that the manual pages can be made from
// it.
package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/xen-hvi/hvi/control"
	"github.com/xen-hvi/hvi/engine/policy"
)

// DefaultConfig is where hvid's settings are.
const DefaultConfig = "/etc/hvi/hvid.toml"

// Exit codes of hvid.
const (
	ExitFailure = 1
	ExitUsage   = 2
)

// Options is what the command line says. What it leaves empty is as the
// configuration file says.
type Options struct {
	Config string
	// Socket, Journal and Ledger are paths.
	Socket, Journal, Ledger string
	Level                   *slog.Level
	// KeepHeld is recover's: domains whose policy requires protection stay held.
	KeepHeld bool
	// Of is keeper's: the hvid that started it.
	Of int
}

// Actions are what the commands do.
type Actions struct {
	// Run is hvid itself, until ctx ends.
	Run func(ctx context.Context, opt Options) error
	// Recover writes what it did to out, for people.
	Recover func(ctx context.Context, opt Options, out io.Writer) error
	// Keep is the keeper, until the hvid opt.Of has ended.
	Keep func(ctx context.Context, opt Options) error
}

// UsageError is a command line that hvid does not understand.
type UsageError struct{ Err error }

// Error says what is wrong and where the help is.
func (e *UsageError) Error() string { return e.Err.Error() + "; run: hvid --help" }

// Unwrap returns the cause.
func (e *UsageError) Unwrap() error { return e.Err }

// ExitCode is the exit code an error stands for.
func ExitCode(err error) int {
	var usage *UsageError
	switch {
	case err == nil:
		return 0
	case errors.As(err, &usage):
		return ExitUsage
	default:
		return ExitFailure
	}
}

// New returns hvid's commands.
func New(a Actions) *cobra.Command {
	var opt Options
	var level slog.Level
	root := &cobra.Command{
		Use:   "hvid",
		Short: "hvi's daemon: protects Xen guests from outside",
		Long: `hvid watches this host's domains. It attaches to each whose xl config, libvirt
metadata or file below /etc/hvi/domains asks for introspection, before its first
instruction, and detaches when it shuts down or hvid is stopped. It runs in the
foreground, in the control domain, as root, and logs to standard error.

Settings are read from ` + DefaultConfig + `; flags go before them.

Exit codes: 0 stopped by SIGTERM or SIGINT, 1 failed, 2 the command line is
wrong.`,
		Example:       "  hvid\n  hvid --log-level debug\n  hvid --config /etc/hvi/hvid.toml",
		Version:       control.ThisBuild().String(),
		Args:          noArguments,
		SilenceErrors: true,
		SilenceUsage:  true,
		RunE:          func(cmd *cobra.Command, _ []string) error { return a.Run(cmd.Context(), opt) },
	}
	f := root.PersistentFlags()
	f.StringVar(&opt.Config, "config", DefaultConfig, "file of settings")
	f.StringVar(&opt.Socket, "socket", "", "control socket (default "+control.DefaultSocket+")")
	f.StringVar(&opt.Journal, "journal", "", "directory of the security events (default /var/lib/hvi/events)")
	f.StringVar(&opt.Ledger, "ledger", "", "directory of what is changed in Xen and not yet undone (default /run/hvi/ledger)")
	f.TextVar(&level, "log-level", slog.LevelInfo, "debug, info, warn or error")
	root.PersistentPreRunE = func(cmd *cobra.Command, _ []string) error {
		if cmd.Flags().Changed("log-level") {
			opt.Level = &level
		}
		return nil
	}
	root.SetFlagErrorFunc(flagError)
	recoverCmd := &cobra.Command{
		Use:   "recover",
		Short: "undo what a hvid that died left in Xen, and resume its guests",
		Long: `recover undoes every change of Xen's state that a dead hvid has noted in its
ledgers, and resumes each vCPU that waits for its answer. hvid does the same
when it starts. It refuses to run beside a living hvid.

It also lets go of the domains that hvid has left held because their policy says
require_attach and they could not be attached to. hvid itself, when it starts,
holds them on; so does recover with --keep-held.`,
		Example: "  hvid recover\n  hvid recover --keep-held",
		Args:    noArguments,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.Recover(cmd.Context(), opt, cmd.OutOrStdout())
		},
	}
	recoverCmd.Flags().BoolVar(&opt.KeepHeld, "keep-held", false, "hold on to domains that must not run unprotected")
	// For hvid alone, which says where everything is: no configuration is read.
	keeperCmd := &cobra.Command{
		Use:    "keeper",
		Short:  "watch over hvid, which starts this",
		Hidden: true,
		Args:   noArguments,
		RunE:   func(cmd *cobra.Command, _ []string) error { return a.Keep(cmd.Context(), opt) },
	}
	keeperCmd.Flags().IntVar(&opt.Of, "of", 0, "the hvid")
	root.AddCommand(recoverCmd, keeperCmd)
	return root
}

func noArguments(cmd *cobra.Command, args []string) error {
	if len(args) == 0 {
		return nil
	}
	var names []string
	for _, c := range cmd.Commands() {
		if c.IsAvailableCommand() {
			names = append(names, c.Name())
		}
	}
	if len(names) == 0 {
		return &UsageError{fmt.Errorf("%s takes no argument, but was given %s", cmd.CommandPath(), policy.Quote(args[0]))}
	}
	return &UsageError{policy.UnknownWord("command", args[0], names, policy.Origin{})}
}

// flagError names the nearest flag for one that there is not.
func flagError(cmd *cobra.Command, err error) error {
	var unknown *pflag.NotExistError
	if !errors.As(err, &unknown) || unknown.GetSpecifiedShortnames() != "" {
		return &UsageError{err}
	}
	var names []string
	cmd.Flags().VisitAll(func(f *pflag.Flag) { names = append(names, "--"+f.Name) })
	return &UsageError{policy.UnknownWord("flag", "--"+strings.TrimLeft(unknown.GetSpecifiedName(), "-"), names, policy.Origin{})}
}
