package archive

import (
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"
)

// TestOnline uses the mirror that this machine's apt is configured with, and
// its keyring. It downloads a few megabytes of packages and the indexes of
// several suites: HVI_LAB_ONLINE=1 go test -run Online ./lab/archive
func TestOnline(t *testing.T) {
	if os.Getenv("HVI_LAB_ONLINE") != "1" {
		t.Skip("needs a Debian mirror; set HVI_LAB_ONLINE=1")
	}
	cache := t.TempDir()
	open := func() *Archive {
		a, err := Open(t.Context(), Options{CacheDir: cache, Progress: func(e Event) {
			if e.Final {
				t.Logf("%+v", e)
			}
		}})
		if err != nil {
			t.Fatal(err)
		}
		return a
	}
	a := open()
	suites := []string{"bookworm", "bookworm-security"}

	meta, err := a.Lookup(t.Context(), suites, "linux-image-cloud-amd64")
	if err != nil {
		t.Fatal(err)
	}
	deps, err := meta.Dependencies()
	if err != nil || len(deps) == 0 {
		t.Fatalf("%v depends on %v, %v", meta, deps, err)
	}
	kernel, err := a.Lookup(t.Context(), suites, deps[0][0].Name)
	if err != nil || !strings.HasPrefix(kernel.Name, "linux-image-6.1.0-") || !deps[0][0].Holds(kernel.Version) {
		t.Errorf("%v depends on %v, which is %v, %v", meta, deps, kernel, err)
	}

	// A release of each suite the lab needs, verified with this machine's keys.
	for suite, pkg := range map[string]string{"bullseye": "xen-hypervisor-4.14-amd64", "bookworm": "xen-hypervisor-4.17-amd64", "trixie": "bochs", "forky": "busybox"} {
		if p, err := a.Lookup(t.Context(), []string{suite}, pkg); err != nil {
			t.Errorf("%s: %v", suite, err)
		} else {
			t.Log(p)
		}
	}

	ask := []string{"xen-utils-4.17", "xenstore-utils", "busybox", "kmod"}
	cold, err := a.Closure(t.Context(), suites, ask, ClosureOptions{})
	if err != nil {
		t.Fatal(err)
	}
	a = open()
	began := time.Now()
	warm, err := a.Closure(t.Context(), suites, ask, ClosureOptions{})
	took := time.Since(began)
	if err != nil || !slices.Equal(cold, warm) {
		t.Errorf("warm closure differs: %v, %v", warm, err)
	}
	t.Logf("%d packages in %s", len(warm), took)
	if took > 300*time.Millisecond {
		t.Errorf("a warm closure took %s", took)
	}

	// What comes out of the tree is what dpkg-deb itself makes of the packages.
	few, err := a.Closure(t.Context(), suites, []string{"busybox", "base-files", "tzdata"}, ClosureOptions{Exclude: []string{"awk", "libc6", "debconf"}})
	if err != nil {
		t.Fatal(err)
	}
	tree, err := a.Tree(t.Context(), "few", few)
	if err != nil {
		t.Fatal(err)
	}
	files, err := a.Download(t.Context(), few)
	if err != nil {
		t.Fatal(err)
	}
	ref := t.TempDir()
	for _, f := range files {
		if out, err := exec.CommandContext(t.Context(), "dpkg-deb", "-x", f, ref).CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
	}
	got, want := merged(list(t, tree, true)), merged(list(t, ref, true))
	if !slices.Equal(got, want) {
		for _, s := range want {
			if !slices.Contains(got, s) {
				t.Errorf("missing: %s", s)
			}
		}
		for _, s := range got {
			if !slices.Contains(want, s) {
				t.Errorf("too much: %s", s)
			}
		}
	}
	if len(got) < 500 {
		t.Errorf("only %d entries", len(got))
	}

	t.Setenv("HVI_LAB_OFFLINE", "1")
	if again, err := open().Tree(t.Context(), "few", few); err != nil || again != tree {
		t.Errorf("offline: %s, %v", again, err)
	}
}

// merged maps the entries of a list to the merged-/usr layout, and leaves out
// the folders and links that make it.
func merged(list []string) (out []string) {
	for _, s := range list {
		name, rest, _ := strings.Cut(s, " ")
		top, below, _ := strings.Cut(strings.TrimPrefix(name, "usr/"), "/")
		switch top {
		case "bin", "sbin", "lib", "lib64":
			if below == "" {
				continue
			}
			s = "usr/" + top + "/" + below + " " + rest
		}
		out = append(out, s)
	}
	slices.Sort(out)
	return slices.Compact(out)
}
