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

func protectionCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "protection",
		Short: "Write docs/protection.md from the results of the attack scenarios",
		Long:  "Protection writes docs/protection.md from what the last runs of the scenarios " + strings.Join(attackScenarios, ", ") + " left in lab/out.",
		Args:  cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			root, err := image.FindRoot(".")
			if err != nil {
				return err
			}
			var results []runner.Result
			for _, name := range attackScenarios {
				r, err := readResult(filepath.Join(root, "lab", "out", name+".json"))
				switch {
				case errors.Is(err, os.ErrNotExist):
					continue
				case err != nil:
					return err
				}
				results = append(results, r)
			}
			page, err := protectionPage(results)
			if err != nil {
				return err
			}
			return os.WriteFile(filepath.Join(root, "docs", "protection.md"), []byte(page), 0o644)
		},
	}
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

// protectionPage is the page for some results.
func protectionPage(results []runner.Result) (string, error) {
	if len(results) == 0 {
		return "", errors.New("no results: run make lab S=attacks first")
	}
	var b strings.Builder
	b.WriteString(protectionHead)
	missing := slices.Clone(attackScenarios)
	for _, r := range results {
		missing = slices.DeleteFunc(missing, func(name string) bool { return name == r.Scenario })
	}
	if len(missing) > 0 {
		fmt.Fprintf(&b, "\nNot run for this page: `make lab S=%s`.\n", strings.Join(missing, ","))
	}
	for _, r := range results {
		var rows []scenario.Outcome
		if err := json.Unmarshal(r.Facts["outcomes"], &rows); err != nil {
			return "", fmt.Errorf("the outcomes of %s: %w", r.Scenario, err)
		}
		var tier string
		if err := json.Unmarshal(r.Facts["tier.enforce"], &tier); err != nil {
			return "", fmt.Errorf("the tier of %s: %w", r.Scenario, err)
		}
		fmt.Fprintf(&b, "\n## Tier %s, guest %s, Xen %s\n\n", tier, r.GuestKernel, r.Xen)
		if !r.OK {
			fmt.Fprintf(&b, "**This run failed**: %s\n\n", r.Error)
		}
		fmt.Fprintf(&b, "`make lab S=%s`, %d of %d checks held.\n\n", r.Scenario, held(r), len(r.Checks))
		b.WriteString("| attack | guard | off | observe | enforce |\n|---|---|---|---|---|\n")
		var names []string
		cells := map[string]map[string]string{}
		guards := map[string]string{}
		for _, o := range rows {
			if !slices.Contains(names, o.Attack) {
				names = append(names, o.Attack)
				cells[o.Attack] = map[string]string{}
			}
			cells[o.Attack][o.Mode], guards[o.Attack] = o.Cell(), o.Guard
		}
		for _, n := range names {
			fmt.Fprintf(&b, "| %s | `%s` | %s | %s | %s |\n", n, guards[n], orNone(cells[n]["off"]), orNone(cells[n]["observe"]), orNone(cells[n]["enforce"]))
		}
	}
	return b.String(), nil
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
