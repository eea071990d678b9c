package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/xen-hvi/hvi/lab/image"
	"github.com/xen-hvi/hvi/lab/runner"
	"github.com/xen-hvi/hvi/lab/scenario"
)

// attackScenarios fill docs/protection.md, in this order.
var attackScenarios = []string{"attacks", "attacks-old", "attacks-middle", "attacks-next", "attacks-access", "attacks-amd"}

// attackResults are what the page is made of, as kept in the repository: a file for each
// scenario, so that one can be run again without the others.
const attackResults = "lab/results/attacks"

// attackRun is what one run of an attack scenario came to.
type attackRun struct {
	Scenario    string `json:"scenario"`
	GuestKernel string `json:"guest_kernel"`
	Xen         string `json:"xen"`
	Tier        string `json:"tier"`
	Held        int    `json:"checks_held"`
	Checks      int    `json:"checks"`
	// Error says why the run failed; "" if it passed.
	Error   string      `json:"error,omitempty"`
	Attacks []attackRow `json:"attacks"`
}

// attackRow is what came of an attack without protection, observed, and under enforce; ""
// where it was not tried.
type attackRow struct {
	Attack  string `json:"attack"`
	Guard   string `json:"guard"`
	Off     string `json:"off,omitempty"`
	Observe string `json:"observe,omitempty"`
	Enforce string `json:"enforce,omitempty"`
}

func protectionCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "protection",
		Short: "Write docs/protection.md from the results of the attack scenarios",
		Long: "Protection takes what the last runs of the scenarios " + strings.Join(attackScenarios, ", ") +
			" left in lab/out into " + attackResults + ", and writes docs/protection.md from what is there.",
		Args: cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			root, err := image.FindRoot(".")
			if err != nil {
				return err
			}
			if err := keepAttackRuns(root); err != nil {
				return err
			}
			runs, err := readAttackRuns(root)
			if err != nil {
				return err
			}
			return os.WriteFile(filepath.Join(root, "docs", "protection.md"), []byte(protectionPage(runs)), 0o644)
		},
	}
}

// keepAttackRuns takes the results in lab/out over into the repository.
func keepAttackRuns(root string) error {
	for _, name := range attackScenarios {
		r, err := readResult(filepath.Join(root, "lab", "out", name+".json"))
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err != nil {
			return err
		}
		run, err := attackRunOf(r)
		if err != nil {
			return err
		}
		b, err := json.MarshalIndent(run, "", "\t")
		if err != nil {
			return err
		}
		if err := os.MkdirAll(filepath.Join(root, attackResults), 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(root, attackResults, name+".json"), append(b, '\n'), 0o644); err != nil {
			return err
		}
	}
	return nil
}

// readAttackRuns returns the runs that are kept, in the page's order.
func readAttackRuns(root string) ([]attackRun, error) {
	var runs []attackRun
	for _, name := range attackScenarios {
		path := filepath.Join(root, attackResults, name+".json")
		b, err := os.ReadFile(path)
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, err
		}
		var run attackRun
		if err := json.Unmarshal(b, &run); err != nil {
			return nil, fmt.Errorf("%s: %w", path, err)
		}
		runs = append(runs, run)
	}
	if len(runs) == 0 {
		return nil, errors.New("no results: run make lab S=attacks first")
	}
	return runs, nil
}

func readResult(path string) (r runner.Result, err error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return r, err
	}
	if err := json.Unmarshal(b, &r); err != nil {
		return r, fmt.Errorf("%s: %w", path, err)
	}
	return r, nil
}

// attackRunOf is what a result says of the attacks.
func attackRunOf(r runner.Result) (attackRun, error) {
	run := attackRun{Scenario: r.Scenario, GuestKernel: r.GuestKernel, Xen: r.Xen, Held: held(r), Checks: len(r.Checks)}
	if !r.OK {
		run.Error = r.Error
	}
	var outcomes []scenario.Outcome
	if err := json.Unmarshal(r.Facts["outcomes"], &outcomes); err != nil {
		return run, fmt.Errorf("the outcomes of %s: %w", r.Scenario, err)
	}
	if err := json.Unmarshal(r.Facts["tier.enforce"], &run.Tier); err != nil {
		return run, fmt.Errorf("the tier of %s: %w", r.Scenario, err)
	}
	for _, o := range outcomes {
		i := slices.IndexFunc(run.Attacks, func(a attackRow) bool { return a.Attack == o.Attack })
		if i < 0 {
			i = len(run.Attacks)
			run.Attacks = append(run.Attacks, attackRow{Attack: o.Attack})
		}
		row := &run.Attacks[i]
		row.Guard = o.Guard
		switch o.Mode {
		case "off":
			row.Off = o.Cell()
		case "observe":
			row.Observe = o.Cell()
		case "enforce":
			row.Enforce = o.Cell()
		}
	}
	return run, nil
}

const protectionHead = `# What was attacked, and what came of it

This page is written by ` + "`lab protection`" + ` from the results of ` + "`make lab S=attacks`" + ` and its
siblings: an attack module in the guest's kernel, real Xen, real kernels of Debian's, in
an emulator. Each attack is made in a guest without protection, in one under ` + "`observe`" + ` and
in one under ` + "`enforce`" + `.

- **succeeds**: the attack had its effect.
- **alerted**: it had, and was reported as it took place, by the guard and with the attacker.
- **blocked**: what it wrote did not land, it was reported so, and the guest went on.
- **found**: it had its effect, and was reported some time later (within 40 seconds;
  function pointers within 80).
- **not seen**: it had, and was taken back before anybody looked. On a tier without page
  access, a change of memory that stays is found within 30 seconds
  ([tiers](tiers.md#amd)); these attacks take theirs back at once.
- **not tried**: it would have ended the guest.
`

// protectionPage is the page for some runs.
func protectionPage(runs []attackRun) string {
	var b strings.Builder
	b.WriteString(protectionHead)
	missing := slices.Clone(attackScenarios)
	for _, r := range runs {
		missing = slices.DeleteFunc(missing, func(name string) bool { return name == r.Scenario })
	}
	if len(missing) > 0 {
		fmt.Fprintf(&b, "\nNot run for this page: `make lab S=%s`.\n", strings.Join(missing, ","))
	}
	for _, r := range runs {
		fmt.Fprintf(&b, "\n## Tier %s, guest %s, Xen %s\n\n", r.Tier, r.GuestKernel, r.Xen)
		if r.Error != "" {
			fmt.Fprintf(&b, "**This run failed**: %s\n\n", r.Error)
		}
		fmt.Fprintf(&b, "`make lab S=%s`, %d of %d checks held.\n\n", r.Scenario, r.Held, r.Checks)
		b.WriteString("| attack | guard | off | observe | enforce |\n|---|---|---|---|---|\n")
		for _, a := range r.Attacks {
			fmt.Fprintf(&b, "| %s | `%s` | %s | %s | %s |\n", a.Attack, a.Guard, orNone(a.Off), orNone(a.Observe), orNone(a.Enforce))
		}
	}
	return b.String()
}

func held(r runner.Result) (n int) {
	for _, c := range r.Checks {
		if c.OK {
			n++
		}
	}
	return n
}

// orNone is for what was not tried.
func orNone(cell string) string {
	if cell == "" {
		return "not tried"
	}
	return cell
}
