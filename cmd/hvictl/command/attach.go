package command

import (
	"errors"
	"strings"

	"github.com/spf13/cobra"

	"github.com/xen-hvi/hvi/control"
	"github.com/xen-hvi/hvi/engine/policy"
)

func (a *app) attachCommand() *cobra.Command {
	var mode string
	var guards []string
	cmd := &cobra.Command{
		Use:   "attach DOM",
		Short: "Begin to protect a running domain",
		Long: `Begin to protect a running domain. Without flags hvid takes the policy that was
declared for the domain. --mode, and --guard with it, replace it for as long as
the domain runs; they are not written to its configuration.

Only root may attach.`,
		Example: `  hvictl attach web1
  hvictl attach web1 --mode observe
  hvictl attach web1 --mode enforce --guard kernel-text=block --guard syscall-entry=alert`,
		Args:              argCount(1, 1, aDomain),
		ValidArgsFunction: a.completeDomain,
		RunE: func(cmd *cobra.Command, args []string) error {
			req, err := attachRequest(cmd, mode, guards)
			if err != nil {
				return err
			}
			c := a.client()
			defer c.Close()
			d, err := c.Attach(cmd.Context(), args[0], req)
			if err != nil {
				return suggest(err, args[0])
			}
			return a.changed(d)
		},
	}
	f := cmd.Flags()
	f.StringVar(&mode, "mode", "", "learn: see hvictl learn; observe: alert only; enforce: guards may block")
	f.StringArrayVar(&guards, "guard", nil, "with --mode, set one guard's action, `NAME=ACTION`; can be given again")
	// The flags exist: it can't fail.
	_ = cmd.RegisterFlagCompletionFunc("mode", cobra.FixedCompletions(attachModes(), cobra.ShellCompDirectiveNoFileComp))
	_ = cmd.RegisterFlagCompletionFunc("guard", cobra.FixedCompletions(guardWords(), cobra.ShellCompDirectiveNoFileComp))
	return cmd
}

// attachModes are the modes under which there is something to attach.
func attachModes() []string {
	var ms []string
	for _, m := range policy.Modes() {
		if m != policy.ModeOff.String() {
			ms = append(ms, m)
		}
	}
	return ms
}

// guardWords are all values of --guard.
func guardWords() []string {
	var ws []string
	for _, g := range policy.Guards() {
		for _, act := range policy.Actions() {
			ws = append(ws, string(g.Name)+"="+act)
		}
	}
	return ws
}

// attachRequest reads the flags by the rules of a policy.
func attachRequest(cmd *cobra.Command, mode string, guards []string) (control.AttachRequest, error) {
	var req control.AttachRequest
	if !cmd.Flags().Changed("mode") && len(guards) == 0 {
		return req, nil
	}
	var b policy.Builder
	if cmd.Flags().Changed("mode") {
		b.Mode(mode, policy.Origin{Source: "--mode"})
	}
	for _, g := range guards {
		b.GuardAssignment(g, policy.Origin{Source: "--guard"})
	}
	spec, err := b.Build()
	if err != nil {
		var lines []string
		for _, e := range policy.Errors(err) {
			lines = append(lines, e.Error())
		}
		return req, usage(cmd, strings.Join(lines, "; "))
	}
	if spec.Mode == policy.ModeOff {
		p := usage(cmd, "mode off attaches nothing")
		p.Fix = "hvictl detach ends protection"
		return req, p
	}
	req.Mode = spec.Mode.String()
	for _, g := range spec.Guards {
		req.Guards = append(req.Guards, control.GuardRequest{Name: string(g.Name), Action: g.Action.String()})
	}
	return req, nil
}

// changed shows what became of a domain; a failed one is an error.
func (a *app) changed(d control.DomainStatus) error {
	if a.format == formatJSON {
		if err := a.json(d); err != nil {
			return err
		}
	} else {
		a.domainBlock(d)
	}
	if d.State != control.StateFailed {
		return nil
	}
	p := &control.Problem{Code: codeFailed, What: d.Name.String() + " is not protected"}
	if f := d.Failure; f != nil {
		p.Where, p.Fix, p.Err = f.Stage, f.Fix, errors.New(f.Got)
	}
	return p
}
