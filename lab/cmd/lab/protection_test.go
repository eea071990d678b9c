package main

import (
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/xen-hvi/hvi/lab/image"
	"github.com/xen-hvi/hvi/lab/runner"
	"github.com/xen-hvi/hvi/lab/scenario"
)

// TestProtectionPage: the page is what the results that are kept come to.
func TestProtectionPage(t *testing.T) {
	root, err := image.FindRoot(".")
	if err != nil {
		t.Fatal(err)
	}
	runs, err := readAttackRuns(root)
	if err != nil {
		t.Fatal(err)
	}
	page, err := os.ReadFile(filepath.Join(root, "docs", "protection.md"))
	if err != nil {
		t.Fatal(err)
	}
	if string(page) != protectionPage(runs) {
		t.Error("docs/protection.md is not what lab/results/attacks says; run: go run ./lab/cmd/lab protection")
	}
}

// TestKeepAttackRuns takes a new result over, and leaves an older one of another scenario.
func TestKeepAttackRuns(t *testing.T) {
	root := t.TempDir()
	fact := func(v any) json.RawMessage {
		b, err := json.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	write := func(name string, v any) {
		path := filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, fact(v), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	old := attackRun{Scenario: "attacks", Tier: "views", Held: 1, Checks: 1, Attacks: []attackRow{{Attack: "a", Guard: "cr", Off: "succeeds"}}}
	write(attackResults+"/attacks.json", old)
	write("lab/out/attacks-old.json", runner.Result{
		Scenario: "attacks-old", Xen: "4.17.7", GuestKernel: "5.10", OK: false, Error: "one check",
		Checks: []runner.Check{{OK: true}, {OK: false}},
		Facts: map[string]json.RawMessage{"tier.enforce": fact("access"), "outcomes": fact([]scenario.Outcome{
			{Attack: "a", Guard: "cr", Mode: "off", Landed: true},
			{Attack: "b", Guard: "idt", Mode: "off", Landed: true},
			{Attack: "a", Guard: "cr", Mode: "enforce", Reported: "blocked"},
			{Attack: "b", Guard: "idt", Mode: "observe", Landed: true},
		})},
	})
	if _, err := readAttackRuns(t.TempDir()); err == nil {
		t.Error("no result makes a page")
	}
	if _, err := attackRunOf(runner.Result{Scenario: "attacks", OK: true}); err == nil {
		t.Error("a result without outcomes makes a page")
	}
	if err := keepAttackRuns(root); err != nil {
		t.Fatal(err)
	}
	runs, err := readAttackRuns(root)
	if err != nil {
		t.Fatal(err)
	}
	want := []attackRow{{Attack: "a", Guard: "cr", Off: "succeeds", Enforce: "blocked"}, {Attack: "b", Guard: "idt", Off: "succeeds", Observe: "not seen"}}
	if len(runs) != 2 || runs[0].Attacks[0] != old.Attacks[0] || runs[1].Held != 1 || runs[1].Tier != "access" || !slices.Equal(runs[1].Attacks, want) {
		t.Fatalf("%+v", runs)
	}
	page := protectionPage(runs)
	for _, line := range []string{
		"Not run for this page: `make lab S=attacks-middle,attacks-next,attacks-access,attacks-amd`.",
		"## Tier access, guest 5.10, Xen 4.17.7", "**This run failed**: one check", "1 of 2 checks held",
		"| a | `cr` | succeeds | not tried | blocked |", "| b | `idt` | succeeds | not seen | not tried |",
	} {
		if !strings.Contains(page, line) {
			t.Errorf("the page lacks %q:\n%s", line, page)
		}
	}
}
