package image

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// TestXens asks each release's packages from the suite that has it, and refuses
// others by name.
func TestXens(t *testing.T) {
	for release, suite := range map[string]string{"": "bookworm", "4.14": "bullseye", "4.17": "bookworm", "4.20": "trixie"} {
		r, err := (&Builder{Xen: release}).xen()
		if err != nil || r.suites[0] != suite {
			t.Errorf("%q: %v, %v; want suite %s", release, r.suites, err, suite)
		}
		if want := "xen-utils-" + release; release != "" && !slices.Contains(r.packages, want) {
			t.Errorf("%q: %v without %s", release, r.packages, want)
		}
	}
	var wrong *XenError
	if _, err := (&Builder{Xen: "4.19"}).xen(); !errors.As(err, &wrong) || !strings.Contains(err.Error(), "4.14, 4.17, 4.20") {
		t.Errorf("4.19: %v", err)
	}
	if treeXen.packages[1] != "xen-utils-"+DefaultXen {
		t.Errorf("the default tree is %v", treeXen.packages)
	}
	if _, err := (&Builder{Xen: "4.20"}).Debian(context.Background()); err == nil || !strings.Contains(err.Error(), "4.20") {
		t.Errorf("Debian with another Xen: %v", err)
	}
}

// TestMerged finds a file on both sides of usr, and behind a link that means the
// tree's own root.
func TestMerged(t *testing.T) {
	tree := t.TempDir()
	for _, dir := range []string{"bin", "usr/lib64", "lib"} {
		if err := os.MkdirAll(filepath.Join(tree, dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for _, err := range []error{
		os.WriteFile(filepath.Join(tree, "bin/a"), nil, 0o644),
		os.WriteFile(filepath.Join(tree, "usr/lib64/b"), nil, 0o644),
		os.WriteFile(filepath.Join(tree, "lib/c-1.so"), nil, 0o644),
		os.Symlink("/lib/c-1.so", filepath.Join(tree, "bin/c")),
		os.Symlink("/lib/gone", filepath.Join(tree, "bin/d")),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	for name, want := range map[string]string{"bin/a": "bin/a", "lib64/b": "usr/lib64/b", "bin/c": "lib/c-1.so", "bin/d": "", "bin/e": ""} {
		got, err := merged(tree, name)
		if want != "" && (err != nil || got != filepath.Join(tree, want)) || want == "" && !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s: %s, %v; want %s", name, got, err, want)
		}
	}
}
