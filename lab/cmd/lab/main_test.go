package main

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/xen-hvi/hvi/lab/archive"
	"github.com/xen-hvi/hvi/lab/image"
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
