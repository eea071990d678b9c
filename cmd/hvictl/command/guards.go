package command

import (
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/xen-hvi/hvi/engine/policy"
)

// guardInfo is what hvictl guards tells of a guard.
type guardInfo struct {
	Name    policy.GuardName `json:"name"`
	Meaning string           `json:"meaning"`
	// Tier is the least on which it does all it can.
	Tier string `json:"tier"`
	// Tiers says what it can do on each: full, finds or none.
	Tiers map[string]policy.Ability `json:"tiers"`
	// Modes are its actions by mode where no policy says otherwise, Presets those
	// under mode enforce by preset.
	Modes   map[string]policy.Action `json:"modes"`
	Presets map[string]presetAction  `json:"presets"`
	// Severity is that of a violation that took place.
	Severity string             `json:"severity,omitempty"`
	Attack   []policy.Technique `json:"attack"`
}

// presetAction is what a preset makes of a guard, and why.
type presetAction struct {
	Action policy.Action `json:"action"`
	Why    string        `json:"why"`
}

// guardInfos tells of every guard.
func guardInfos() []guardInfo {
	var out []guardInfo
	for _, g := range policy.Guards() {
		a, _ := policy.LookupAbout(g.Name)
		i := guardInfo{
			Name: g.Name, Meaning: g.Meaning, Tier: "access", Severity: a.Severity, Attack: a.Techniques,
			Tiers:   map[string]policy.Ability{"views": policy.AbilityFull, "access": policy.AbilityFull, "registers": a.Registers, "none": policy.AbilityNone},
			Modes:   map[string]policy.Action{},
			Presets: map[string]presetAction{},
		}
		switch {
		case g.Views:
			i.Tier, i.Tiers["access"] = "views", policy.AbilityNone
		case g.Finds:
			i.Tier = "registers"
			i.Tiers["views"], i.Tiers["access"] = a.Registers, a.Registers
		case a.Registers == policy.AbilityFull:
			i.Tier = "registers"
		}
		for n := range policy.Modes() {
			m := policy.Mode(n)
			i.Modes[m.String()] = g.Default(m)
		}
		for _, p := range policy.Presets() {
			for _, l := range p.Lines() {
				if l.Guard == g.Name {
					i.Presets[p.Name] = presetAction{l.Action, l.Why}
				}
			}
		}
		out = append(out, i)
	}
	return out
}

func (a *app) guardsCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "guards [GUARD]",
		Short: "List the guards there are, or show one in full",
		Long: `List the guards that a policy can name, what each does where nothing else is said
(under mode observe, under mode enforce, and in the presets under enforce), and which
tier it needs. With a guard, show that one in full: what it can do on each tier, why
a preset does what it does, and the techniques of MITRE ATT&CK that it is for. It needs
neither hvid nor Xen.`,
		Example: `  hvictl guards
  hvictl guards kernel-text
  hvictl guards -o json | jq -r '.[] | select(.tiers.registers == "full") | .name'`,
		Args: argCount(0, 1, "one guard"),
		ValidArgsFunction: func(_ *cobra.Command, args []string, _ string) ([]cobra.Completion, cobra.ShellCompDirective) {
			var names []cobra.Completion
			if len(args) == 0 {
				for _, g := range policy.Guards() {
					names = append(names, cobra.CompletionWithDesc(string(g.Name), g.Meaning))
				}
			}
			return names, cobra.ShellCompDirectiveNoFileComp
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			all := guardInfos()
			if len(args) == 0 {
				if a.format == formatJSON {
					return a.json(all)
				}
				a.guardsTable(all)
				return nil
			}
			name, err := policy.ParseGuardName(args[0])
			if err != nil {
				p := usage(cmd, err.Error())
				p.Fix = "run: hvictl guards"
				return p
			}
			for _, g := range all {
				if g.Name != name {
					continue
				}
				if a.format == formatJSON {
					return a.json(g)
				}
				a.guardBlock(g)
			}
			return nil
		},
	}
}

func (a *app) guardsTable(all []guardInfo) {
	var rows [][]cell
	for _, g := range all {
		row := []cell{text(string(g.Name)), text(g.Tier), text(g.Modes["observe"].String()), text(g.Modes["enforce"].String())}
		for _, p := range []string{policy.PresetLinuxServer, policy.PresetLinuxStrict} {
			row = append(row, text(g.Presets[p].Action.String()))
		}
		rows = append(rows, append(row, text(g.Meaning)))
	}
	a.table(a.out, "", []string{"GUARD", "TIER", "OBSERVE", "ENFORCE", "SERVER", "STRICT", "HOLDS THAT"}, rows)
}

// abilityWords say for people what a guard can do on a tier.
var abilityWords = map[policy.Ability]string{
	policy.AbilityFull:  "sees a violation when it takes place, and can block it",
	policy.AbilityFinds: "finds a violation some time afterwards, and blocks none",
	policy.AbilityNone:  "cannot be armed",
}

func (a *app) guardBlock(g guardInfo) {
	fmt.Fprintf(a.out, "%s holds that %s.\n\n", g.Name, g.Meaning)
	var rows [][]cell
	for _, tier := range []string{"views", "access", "registers"} {
		rows = append(rows, []cell{text(tier), text(abilityWords[g.Tiers[tier]])})
	}
	a.table(a.out, "  ", []string{"TIER", "IT"}, rows)
	fmt.Fprintln(a.out)
	rows = nil
	for _, m := range policy.Modes() {
		rows = append(rows, []cell{text("mode " + m), text(g.Modes[m].String())})
	}
	for _, p := range policy.Presets() {
		if l, ok := g.Presets[p.Name]; ok {
			rows = append(rows, []cell{text("policy " + p.Name), text(l.Action.String()), text(l.Why)})
		}
	}
	a.table(a.out, "  ", []string{"UNDER", "ACTION", "BECAUSE"}, rows)
	fmt.Fprintf(a.out, "\n  severity  %s where it takes place\n", safe(g.Severity))
	var ids []string
	for _, t := range g.Attack {
		ids = append(ids, t.ID+" ("+t.Name+")")
	}
	fmt.Fprintf(a.out, "  ATT&CK    %s\n", safe(strings.Join(ids, ", ")))
}
