package main

import (
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/xen-hvi/hvi/cmd/hvid/cli"
	"github.com/xen-hvi/hvi/control"
	"github.com/xen-hvi/hvi/engine/journal"
	"github.com/xen-hvi/hvi/engine/ledger"
	"github.com/xen-hvi/hvi/engine/policy"
)

// TestSettings joins file and command line, and has the other rooms' defaults
// where neither says anything.
func TestSettings(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "hvid.toml")
	set, err := readSettings(cli.Options{Config: file})
	if err != nil {
		t.Fatal(err)
	}
	if set.Socket != control.DefaultSocket || set.ledgerDir != ledger.DefaultDir || set.journal != journal.DefaultDir {
		t.Errorf("without a file: socket %s, ledgers %s, journal %s", set.Socket, set.ledgerDir, set.journal)
	}
	if err := os.WriteFile(file, []byte("socket = \"/run/x.sock\"\nstate_dir = \"/srv/hvi\"\nrun_dir = \"/run/y\"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	set, err = readSettings(cli.Options{Config: file, Ledger: "/l"})
	if os.Getuid() != 0 {
		if err == nil {
			t.Error("a file that is not root's is believed")
		}
		return
	}
	if err != nil {
		t.Fatal(err)
	}
	if set.Socket != "/run/x.sock" || set.ledgerDir != "/l" || set.journal != "/srv/hvi/events" || set.declarations() != "/srv/hvi/domains" {
		t.Errorf("with one: socket %s, ledgers %s, journal %s, declarations %s", set.Socket, set.ledgerDir, set.journal, set.declarations())
	}
	if err := os.WriteFile(file, []byte("sockett = \"/run/x.sock\"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	opt := cli.Options{Config: file, Socket: filepath.Join(dir, "hvid.sock"), Ledger: filepath.Join(dir, "ledger")}
	if _, err := readSettings(opt); err == nil || !strings.Contains(err.Error(), "hvid.toml:1:1") {
		t.Errorf("an unknown key: %v", err)
	}
	// Guests may wait for what recover does: it goes as far as without a
	// configuration, which on a machine without Xen is as far as Xen.
	if err := recoverLeft(t.Context(), opt, io.Discard); errors.As(err, new(*policy.Error)) {
		t.Errorf("recover, with a broken configuration: %v", err)
	}
}
