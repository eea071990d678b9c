package main

import (
	"log/slog"
	"os"

	"github.com/xen-hvi/hvi/cmd/hvid/cli"
	"github.com/xen-hvi/hvi/control"
	"github.com/xen-hvi/hvi/engine/ledger"
)

// defaultJournal is where security events are kept.
const defaultJournal = "/var/lib/hvi/events"

// settings are what hvid works with.
type settings struct {
	Socket    string
	journal   string
	ledgerDir string
	runDir    string
	log       *slog.Logger
}

// readSettings joins the configuration and the command line, which goes first.
func readSettings(opt cli.Options) (settings, error) {
	set := settings{Socket: control.DefaultSocket, journal: defaultJournal, ledgerDir: ledger.DefaultDir, runDir: "/run/hvi"}
	level := slog.LevelInfo
	if opt.Level != nil {
		level = *opt.Level
	}
	for to, from := range map[*string]string{&set.Socket: opt.Socket, &set.journal: opt.Journal, &set.ledgerDir: opt.Ledger} {
		if from != "" {
			*to = from
		}
	}
	set.log = slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: level}))
	return set, nil
}
