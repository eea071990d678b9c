package image

import (
	"context"
	"errors"
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
