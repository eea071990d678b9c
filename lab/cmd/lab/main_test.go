package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/xen-hvi/hvi/lab/archive"
	"github.com/xen-hvi/hvi/lab/image"
	"github.com/xen-hvi/hvi/lab/runner"
	"github.com/xen-hvi/hvi/lab/scenario"
)

func TestList(t *testing.T) {
	var out bytes.Buffer
	c := command()
	c.SetOut(&out)
	c.SetArgs([]string{"list"})
	if err := c.ExecuteContext(t.Context()); err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(strings.TrimSpace(out.String()), "\n")
	if len(lines) != len(scenarios(nil)) || len(lines) <= len(scenario.All()) || !strings.Contains(out.String(), "boot-intel") {
		t.Errorf("%s", out.String())
	}
	names := map[string]bool{}
	for _, s := range scenarios(nil) {
		if names[s.Name] {
			t.Errorf("two scenarios are called %s", s.Name)
		}
		names[s.Name] = true
	}
}

func TestRunUnknown(t *testing.T) {
	for _, args := range [][]string{{"run"}, {"run", "no-such"}, {"run", "boot-intel,no-such"}, {"run", "boot-intel@4.19"}, {"run", "linux-matrix-quick@4.20"}, {"walk"}} {
		c := command()
		c.SetOut(&bytes.Buffer{})
		c.SetArgs(args)
		if err := c.ExecuteContext(t.Context()); err == nil {
			t.Errorf("%v is taken", args)
		}
	}
	c := command()
	c.SetArgs([]string{"run", "boot-inte"})
	var unknown *scenario.UnknownError
	if err := c.ExecuteContext(t.Context()); !errors.As(err, &unknown) || len(unknown.Near) != 1 {
		t.Errorf("got %v", err)
	}
}

// TestFind gives each scenario the release that it names, or else the run's, and none
// to what runs on the host.
func TestFind(t *testing.T) {
	list, err := find(nil, "4.20", []string{"views,views@4.17", "boot-amd@4.14 linux-matrix-quick"})
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, s := range list {
		got = append(got, s.Title())
	}
	if want := []string{"views@4.20", "views", "boot-amd@4.14", "linux-matrix-quick"}; !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
	var wrong *image.XenError
	if _, err := find(nil, "4.17", []string{"views@4.19"}); !errors.As(err, &wrong) || wrong.Release != "4.19" {
		t.Errorf("got %v", err)
	}
}

func TestProgress(t *testing.T) {
	name := filepath.Join(t.TempDir(), "out")
	f, err := os.Create(name)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	p := newProgress(f)
	e := archive.Event{Kind: archive.Download, Name: "bochs", Done: 1e6, Total: 2e6, Items: 1, ItemsTotal: 2}
	p.archive(e)
	p.image(image.Event{Name: "guest"})
	e.Final = true
	p.archive(e)
	p.archive(archive.Event{Kind: archive.Notice, Name: "trixie", Text: "is old"})
	p.image(image.Event{Name: "guest", Final: true})
	p.text("as it is")
	got, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(strings.TrimSpace(string(got)), "\n")
	// A file gets what is final only.
	for i, want := range []string{"downloading bochs, 1 of 2 packages, 1.0 of 2.0 MB", "trixie: is old", "built guest in", "as it is"} {
		if i >= len(lines) || !strings.Contains(lines[i], want) {
			t.Errorf("line %d is not %q in\n%s", i, want, got)
		}
	}
	if len(lines) != 4 {
		t.Errorf("%d lines:\n%s", len(lines), got)
	}

	p.terminal = true
	p.archive(archive.Event{Kind: archive.Unpack, Name: "x"})
	p.text("next")
	got, err = os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	if !strings.HasSuffix(string(got), "\r\x1b[Knext\n") || !strings.Contains(string(got), "unpacking x") {
		t.Errorf("%q", got)
	}
}

// TestProtectionPage shows each attack in one row, and what was not tried.
func TestProtectionPage(t *testing.T) {
	rows := []scenario.Outcome{
		{Attack: "patch", Guard: "kernel-text", Mode: "off", Landed: true},
		{Attack: "patch", Guard: "kernel-text", Mode: "observe", Landed: true, Reported: "alerted"},
		{Attack: "patch", Guard: "kernel-text", Mode: "enforce", Reported: "blocked"},
		{Attack: "NXE", Guard: "cr", Mode: "enforce", Reported: "blocked"},
		{Attack: "hide", Guard: "hidden-objects", Mode: "enforce", Landed: true, Reported: "found"},
	}
	facts, err := json.Marshal(rows)
	if err != nil {
		t.Fatal(err)
	}
	r := runner.Result{
		Scenario: "attacks", OK: true, Xen: "4.17.7", GuestKernel: "6.1",
		Facts:  map[string]json.RawMessage{"outcomes": facts, "tier.enforce": []byte(`"views"`)},
		Checks: []runner.Check{{OK: true}, {OK: false}},
	}
	page, err := protectionPage([]runner.Result{r})
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		"## Tier views, guest 6.1, Xen 4.17.7", "1 of 2 checks held",
		"| patch | `kernel-text` | succeeds | alerted | blocked |",
		"| NXE | `cr` | not tried | not tried | blocked |",
		"| hide | `hidden-objects` | not tried | not tried | found |",
	} {
		if !strings.Contains(page, want) {
			t.Errorf("no %q in\n%s", want, page)
		}
	}
	r.Facts = nil
	if _, err := protectionPage([]runner.Result{r}); err == nil {
		t.Error("a result without outcomes makes a page")
	}
	if _, err := protectionPage(nil); err == nil {
		t.Error("no result makes a page")
	}
}
