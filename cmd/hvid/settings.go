package main

import (
	"log/slog"
	"os"
	"path/filepath"

	"github.com/xen-hvi/hvi/cmd/hvid/cli"
	"github.com/xen-hvi/hvi/config"
	"github.com/xen-hvi/hvi/engine"
)

// settings are what hvid works with: its configuration, and what the command
// line put in its place.
type settings struct {
	config.Config
	files     *config.Files
	journal   string
	ledgerDir string
	level     slog.Level
	log       *slog.Logger
}

// declarations is the directory of what is kept of domains' policies.
func (s settings) declarations() string { return filepath.Join(s.StateDir, "domains") }

// dumps is where memory dumps of domains go that a guard has paused, nil for nowhere.
func (s settings) dumps() *engine.Dumps {
	d := s.Dumps
	if !d.OnViolation {
		return nil
	}
	return &engine.Dumps{Dir: filepath.Join(s.StateDir, "dumps"), MaxCount: int(d.MaxCount), MaxBytes: d.MaxBytes, MinFree: d.MinFree}
}

// exceptions is the file of the exceptions that are kept.
func (s settings) exceptions() string { return filepath.Join(s.StateDir, config.ExceptionsFile) }

// noticeDir is where the notice for the next hvid is left: where clients look for
// it, beside the socket.
func (s settings) noticeDir() string { return filepath.Dir(s.Socket) }

// readSettings joins the configuration and the command line, which goes first.
func readSettings(opt cli.Options) (settings, error) {
	files := &config.Files{Dir: filepath.Dir(opt.Config)}
	c, err := files.Load(opt.Config)
	if err != nil {
		return settings{}, err
	}
	return join(c, files, opt), nil
}

// usualSettings are those without a configuration.
func usualSettings(opt cli.Options) settings { return join(config.Defaults(), &config.Files{}, opt) }

func join(c config.Config, files *config.Files, opt cli.Options) settings {
	set := settings{Config: c, files: files}
	set.journal, set.ledgerDir = filepath.Join(set.StateDir, "events"), filepath.Join(set.RunDir, "ledger")
	for _, o := range []struct {
		to   *string
		from string
	}{{&set.Socket, opt.Socket}, {&set.journal, opt.Journal}, {&set.ledgerDir, opt.Ledger}} {
		if o.from != "" {
			*o.to = o.from
		}
	}
	level := set.LogLevel
	if opt.Level != nil {
		level = *opt.Level
	}
	set.level = level
	set.log = slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: level}))
	return set
}
