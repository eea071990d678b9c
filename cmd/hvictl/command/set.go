package command

import (
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/xen-hvi/hvi/config"
	"github.com/xen-hvi/hvi/control"
	"github.com/xen-hvi/hvi/engine/policy"
)

// wordDefault takes a setting back to what follows from the others.
const wordDefault = "default"

// settings are the flags of `hvictl set`.
type settings struct {
	mode, policy, requireAttach string
	onEngineFailure             string
	guards                      []string
	live, config, both, remove  bool
}

// setCommand is `hvictl set`; it is `hvictl policy set`, too.
func (a *app) setCommand() *cobra.Command {
	var s settings
	cmd := &cobra.Command{
		Use:   "set DOM",
		Short: "Change what is declared for a domain",
		Long: `Change the policy of one domain. What is not given stays as it is declared.

For a domain of libvirt's this writes hvi's element into the domain's metadata,
so that nobody edits XML by hand; the domain need not run. For a domain of xl's
hvid keeps the policy by the domain's UUID, for this life and the next ones; xl's
config is not changed, and what it says counts again when the domain is created
from it. --live changes the domain that runs, --config what its next start finds;
without either, or with --both, both are changed.

A change of a domain that runs takes effect at once. Only root may set.`,
		Example: `  hvictl set web1 --mode enforce
  hvictl set web1 --guard syscall-entry=alert --guard kernel-text=default
  hvictl set web1 --guard syscall-entry=kill --live
  hvictl set web1 --mode enforce --require-attach --config
  hvictl set web1 --on-engine-failure pause
  hvictl set web1 --remove`,
		Args:              argCount(1, 1, aDomain),
		ValidArgsFunction: a.completeDomain,
		RunE: func(cmd *cobra.Command, args []string) error {
			where, err := s.where(cmd)
			if err != nil {
				return err
			}
			c := a.client()
			defer c.Close()
			if s.remove {
				rep, err := c.ClearPolicy(cmd.Context(), args[0], where)
				if err != nil {
					return suggest(err, args[0])
				}
				return a.policyReport(rep)
			}
			now, err := c.Policy(cmd.Context(), args[0])
			if err != nil {
				return suggest(err, args[0])
			}
			req, err := s.request(cmd, now.Declared)
			if err != nil {
				return err
			}
			req.Where = where
			rep, err := c.SetPolicy(cmd.Context(), args[0], req)
			if err != nil {
				return suggest(err, args[0])
			}
			return a.policyReport(rep)
		},
	}
	f := cmd.Flags()
	f.StringVar(&s.mode, "mode", "", "off, learn: see hvictl learn, observe: alert only, or enforce: guards may block")
	f.StringVar(&s.policy, "policy", "", "the policy to start from: a preset or one below /etc/hvi/policies")
	f.StringVar(&s.requireAttach, "require-attach", "", "yes: the domain may only run with hvi attached; no; or default")
	f.Lookup("require-attach").NoOptDefVal = "yes"
	f.StringVar(&s.onEngineFailure, "on-engine-failure", "", "release: the domain runs on when hvid fails; pause: it stands still until it is protected again; or default")
	f.StringArrayVar(&s.guards, "guard", nil, "set one guard's action, `NAME=ACTION`, or NAME=default; can be given again")
	f.BoolVar(&s.live, "live", false, "change the domain that runs")
	f.BoolVar(&s.config, "config", false, "change what its next start finds")
	f.BoolVar(&s.both, "both", false, "change both (the default)")
	f.BoolVar(&s.remove, "remove", false, "declare nothing any more")
	// The flags exist: it can't fail.
	_ = cmd.RegisterFlagCompletionFunc("mode", cobra.FixedCompletions(policy.Modes(), cobra.ShellCompDirectiveNoFileComp))
	_ = cmd.RegisterFlagCompletionFunc("require-attach", cobra.FixedCompletions([]string{"yes", "no", wordDefault}, cobra.ShellCompDirectiveNoFileComp))
	_ = cmd.RegisterFlagCompletionFunc("on-engine-failure", cobra.FixedCompletions(append(policy.EngineFailures(), wordDefault), cobra.ShellCompDirectiveNoFileComp))
	_ = cmd.RegisterFlagCompletionFunc("guard", cobra.FixedCompletions(append(guardWords(), guardDefaults()...), cobra.ShellCompDirectiveNoFileComp))
	_ = cmd.RegisterFlagCompletionFunc("policy", func(*cobra.Command, []string, string) ([]cobra.Completion, cobra.ShellCompDirective) {
		return policyNames(config.DefaultDir), cobra.ShellCompDirectiveNoFileComp
	})
	return cmd
}

func guardDefaults() []string {
	var ws []string
	for _, g := range policy.Guards() {
		ws = append(ws, string(g.Name)+"="+wordDefault)
	}
	return ws
}

// where reads the flags that say what is to be changed.
func (s *settings) where(cmd *cobra.Command) (string, error) {
	changes := false
	for _, name := range []string{"mode", "policy", "require-attach", "on-engine-failure", "guard"} {
		changes = changes || cmd.Flags().Changed(name)
	}
	given := 0
	where := control.WhereBoth
	for w, on := range map[string]bool{control.WhereLive: s.live, control.WhereConfig: s.config, control.WhereBoth: s.both} {
		if on {
			given, where = given+1, w
		}
	}
	switch {
	case given > 1:
		return "", usage(cmd, "--live, --config and --both exclude each other")
	case s.remove && changes:
		return "", usage(cmd, "--remove goes with no other setting")
	case !s.remove && !changes:
		return "", usage(cmd, "nothing is to be set: give --mode, --policy, --guard, --require-attach, --on-engine-failure or --remove")
	}
	return where, nil
}

// request changes what is declared now by the flags, and checks the words as
// far as that can be done without the policies that hvid knows.
func (s *settings) request(cmd *cobra.Command, now control.PolicyWords) (control.PolicyRequest, error) {
	req := control.PolicyRequest{Mode: now.Mode, Policy: now.Policy, RequireAttach: now.RequireAttach, OnEngineFailure: now.OnEngineFailure, Guards: slices.Clone(now.Guards)}
	changed := cmd.Flags().Changed
	if changed("mode") {
		req.Mode = s.mode
		if m, err := policy.ParseMode(s.mode); err == nil && m == policy.ModeOff && !changed("require-attach") {
			// A domain that nobody attaches to could never run.
			req.RequireAttach = ""
		}
	}
	if changed("policy") {
		req.Policy = s.policy
	}
	if changed("require-attach") {
		req.RequireAttach = s.requireAttach
		if s.requireAttach == wordDefault {
			req.RequireAttach = ""
		}
	}
	if changed("on-engine-failure") {
		req.OnEngineFailure = s.onEngineFailure
		if s.onEngineFailure == wordDefault {
			req.OnEngineFailure = ""
		}
	}
	b := policy.Builder{Policies: anyPolicy{}}
	if changed("mode") || req.Mode != "" {
		b.Mode(req.Mode, policy.Origin{Source: "--mode"})
	}
	if changed("policy") || req.Policy != "" {
		b.Preset(req.Policy, policy.Origin{Source: "--policy"})
	}
	if req.RequireAttach != "" || s.requireAttach == "" && changed("require-attach") {
		b.RequireAttach(req.RequireAttach, policy.Origin{Source: "--require-attach"})
	}
	if req.OnEngineFailure != "" || s.onEngineFailure == "" && changed("on-engine-failure") {
		b.OnEngineFailure(req.OnEngineFailure, policy.Origin{Source: "--on-engine-failure"})
	}
	seen := map[string]bool{}
	for _, g := range s.guards {
		name, action, _ := strings.Cut(g, "=")
		name, action = strings.TrimSpace(name), strings.TrimSpace(action)
		if seen[name] {
			return req, usage(cmd, "--guard sets "+policy.Quote(name)+" twice")
		}
		seen[name] = true
		req.Guards = slices.DeleteFunc(req.Guards, func(old control.GuardRequest) bool { return old.Name == name })
		if action != wordDefault {
			b.GuardAssignment(g, policy.Origin{Source: "--guard"})
			req.Guards = append(req.Guards, control.GuardRequest{Name: name, Action: action})
		} else if _, err := policy.ParseGuardName(name); err != nil {
			b.Fail(err)
		}
	}
	for _, g := range req.Guards {
		if !seen[g.Name] {
			b.Guard(g.Name, g.Action, policy.Origin{Source: "declared now"})
		}
	}
	if req.Mode == "" && !changed("mode") {
		p := usage(cmd, "nothing is declared for the domain yet, so that there is no mode")
		p.Fix = "give --mode observe or --mode enforce"
		return req, p
	}
	if _, err := b.Build(); err != nil {
		return req, usage(cmd, oneLine(err))
	}
	return req, nil
}
