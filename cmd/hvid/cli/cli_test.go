package cli_test

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"strings"
	"testing"

	"github.com/xen-hvi/hvi/cmd/hvid/cli"
)

// TestUsage refuses what hvid does not know, names the nearest word, and ends
// with a code of its own.
func TestUsage(t *testing.T) {
	for line, want := range map[string]string{
		"--sockett x":      "--socket",
		"--log-level loud": "loud",
		"recoverr":         "recover",
		"start":            "start",
		"recover now":      "now",
		"-z":               "z",
	} {
		started := errors.New("started")
		c := cli.New(cli.Actions{
			Run:     func(context.Context, cli.Options) error { return started },
			Recover: func(context.Context, cli.Options, io.Writer) error { return started },
		})
		c.SetArgs(strings.Fields(line))
		err := c.ExecuteContext(t.Context())
		if cli.ExitCode(err) != cli.ExitUsage || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), "--help") {
			t.Errorf("hvid %s: exit code %d, %v; want %q and --help in it", line, cli.ExitCode(err), err, want)
		}
	}
}

// TestOptions passes on what was said, and nothing that was not.
func TestOptions(t *testing.T) {
	var got cli.Options
	run := func(line string) {
		got = cli.Options{}
		c := cli.New(cli.Actions{
			Run:     func(_ context.Context, o cli.Options) error { got = o; return nil },
			Recover: func(_ context.Context, o cli.Options, _ io.Writer) error { got = o; return errors.New("no") },
		})
		c.SetArgs(strings.Fields(line))
		if err := c.ExecuteContext(t.Context()); cli.ExitCode(err) == cli.ExitUsage {
			t.Fatal(err)
		}
	}
	run("--config /c --ledger /l --log-level debug")
	if got.Config != "/c" || got.Ledger != "/l" || got.Socket != "" || got.Level == nil || *got.Level != slog.LevelDebug {
		t.Errorf("%+v", got)
	}
	run("recover --log-level error")
	if got.Config != cli.DefaultConfig || got.Level == nil || *got.Level != slog.LevelError {
		t.Errorf("%+v", got)
	}
	run("recover")
	if got.Level != nil {
		t.Errorf("a level nobody gave: %v", got.Level)
	}
}
