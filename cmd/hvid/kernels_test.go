package main

import (
	"bytes"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/xen-hvi/hvi/config"
)

// hvid comes up with whatever it finds, and says what is wrong with it.
func TestKnownKernels(t *testing.T) {
	dir := t.TempDir()
	if err := os.Mkdir(filepath.Join(dir, "profiles"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "profiles", "old.json"), []byte("{"), 0o644); err != nil {
		t.Fatal(err)
	}
	open := filepath.Join(dir, "open")
	if err := os.Mkdir(open, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(open, 0o777); err != nil {
		t.Fatal(err)
	}
	for cache, want := range map[string]struct {
		opened bool
		says   string
	}{
		filepath.Join(dir, "cache"): {opened: true},
		"":                          {},
		open:                        {says: "others may write there"},
	} {
		var log bytes.Buffer
		set := settings{files: &config.Files{Dir: dir}, log: slog.New(slog.NewTextHandler(&log, nil))}
		set.CacheDir = cache
		known, done := knownKernels(set)
		done()
		if (known.Cache != nil) != want.opened || known.ISFs == nil {
			t.Errorf("%q: %+v", cache, known)
		}
		if got := log.String(); !strings.Contains(got, "old.json") || !strings.Contains(got, want.says) || (want.says == "") == strings.Contains(got, "cache of kernels") {
			t.Errorf("%q: %s", cache, got)
		}
	}
}
