package command

import (
	"context"
	"io"
	"os"
	"time"

	"github.com/spf13/cobra"

	"github.com/xen-hvi/hvi/cmd/hostcheck"
	"github.com/xen-hvi/hvi/config"
)

// Run executes a command line on the terminal of this process, until it is done
// or ctx ends, and returns the exit code.
func Run(ctx context.Context, args []string) int { return terminal().run(ctx, args) }

// New returns the tree of commands, whose names and texts are those of hvictl.
func New() *cobra.Command { return terminal().root() }

func terminal() *app {
	return &app{
		in: os.Stdin, out: os.Stdout, errOut: os.Stderr,
		colour: wantsColour(os.Stdout, os.Getenv), progress: isTerminal(os.Stderr), screen: isTerminal(os.Stdout),
		now: time.Now, zone: time.Local,
		host: hostcheck.Options{Files: new(config.Files), UnitChanged: hostcheck.Systemctl("systemctl")}, xl: "xl",
	}
}

// wantsColour reports whether w is a terminal whose user did not object; see
// no-color.org.
func wantsColour(w io.Writer, env func(string) string) bool {
	f, ok := w.(*os.File)
	if !ok || env("NO_COLOR") != "" || env("TERM") == "dumb" || env("TERM") == "" {
		return false
	}
	return isTerminal(f)
}

func isTerminal(f *os.File) bool {
	fi, err := f.Stat()
	return err == nil && fi.Mode()&os.ModeCharDevice != 0
}
