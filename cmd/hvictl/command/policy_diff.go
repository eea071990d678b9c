package command

import (
	"context"
	"os"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/xen-hvi/hvi/config"
	"github.com/xen-hvi/hvi/control"
	"github.com/xen-hvi/hvi/engine/policy"
	"github.com/xen-hvi/hvi/engine/printable"
)

// policyPrefix says that an operand is a policy's name.
const policyPrefix = "policy:"

func (a *app) policyDiffCommand() *cobra.Command {
	var dir string
	cmd := &cobra.Command{
		Use:   "diff A B",
		Short: "Compare two policies, value by value",
		Long: `Compare what two policies come to with every default filled in. Each of A and B is

  a file       with a slash or a suffix in its name, as hvictl policy check reads it
  policy:NAME  a built-in policy, or one of the administrator's, under mode enforce
  a domain     what holds for it, which hvid is asked

Nothing is printed where both come to the same.`,
		Example: `  hvictl policy diff web1 /etc/xen/web1.cfg
  hvictl policy diff policy:linux-server policy:linux-strict
  hvictl policy diff web1 web2 -o json | jq -r '.changes[].setting'`,
		Args: argCount(2, 2, "two policies"),
		ValidArgsFunction: func(cmd *cobra.Command, args []string, word string) ([]cobra.Completion, cobra.ShellCompDirective) {
			if len(args) > 1 {
				return nil, cobra.ShellCompDirectiveNoFileComp
			}
			names, _ := a.domainNames(cmd)
			for _, p := range policyNames(dir) {
				names = append(names, policyPrefix+p)
			}
			return names, cobra.ShellCompDirectiveDefault
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			d := policyDiff{A: printable.Escape(args[0]), B: printable.Escape(args[1]), Changes: []policyChange{}}
			var reports [2]control.PolicyReport
			for i, operand := range args {
				r, err := a.policyOf(cmd.Context(), operand, &config.Files{Dir: dir})
				if err != nil {
					return err
				}
				reports[i] = r
			}
			d.compare(reports[0], reports[1])
			if a.format == formatJSON {
				return a.json(d)
			}
			a.diffTable(d)
			return nil
		},
	}
	cmd.Flags().StringVar(&dir, "dir", config.DefaultDir, "where the administrator's policies are")
	// The flag exists: it can't fail.
	_ = cmd.MarkFlagDirname("dir")
	return cmd
}

// policyNames lists the policies that a domain may name.
func policyNames(dir string) []string {
	var names []string
	for _, p := range policy.Presets() {
		names = append(names, p.Name)
	}
	return append(names, (&config.Files{Dir: dir}).Names()...)
}

// policyDiff is in what two policies differ.
type policyDiff struct {
	A       printable.Text `json:"a"`
	B       printable.Text `json:"b"`
	Changes []policyChange `json:"changes"`
}

type policyChange struct {
	Setting string `json:"setting"`
	// A and B are the values, empty where there is none; of an exception, when it
	// ends.
	A     string `json:"a"`
	B     string `json:"b"`
	FromA string `json:"from_a,omitempty"`
	FromB string `json:"from_b,omitempty"`
}

func (d *policyDiff) compare(a, b control.PolicyReport) {
	value := func(setting string, x, y control.PolicyValue) {
		if x.Value != y.Value {
			d.Changes = append(d.Changes, policyChange{setting, x.Value, y.Value, x.From, y.From})
		}
	}
	value("mode", a.Mode, b.Mode)
	value("policy", a.Policy, b.Policy)
	value("require_attach", a.RequireAttach, b.RequireAttach)
	value("on_engine_failure", a.OnEngineFailure, b.OnEngineFailure)
	guard := func(gs []control.PolicyGuard, name string) control.PolicyValue {
		i := slices.IndexFunc(gs, func(g control.PolicyGuard) bool { return g.Name == name })
		if i < 0 {
			return control.PolicyValue{}
		}
		return control.PolicyValue{Value: gs[i].Action, From: gs[i].From}
	}
	var names []string
	for _, g := range append(slices.Clone(a.Guards), b.Guards...) {
		if !slices.Contains(names, g.Name) {
			names = append(names, g.Name)
			value(g.Name, guard(a.Guards, g.Name), guard(b.Guards, g.Name))
		}
	}
	list := func(ls []policy.ListSetting, name policy.ListName) control.PolicyValue {
		for _, l := range ls {
			if l.Name == name {
				return control.PolicyValue{Value: strings.Join(l.Elements, ", "), From: l.Origin.String()}
			}
		}
		return control.PolicyValue{}
	}
	for _, l := range policy.Lists() {
		value(string(l.Name), list(a.Lists, l.Name), list(b.Lists, l.Name))
	}
	has := func(es []policy.Exception, e policy.Exception) control.PolicyValue {
		i := slices.IndexFunc(es, func(x policy.Exception) bool { return x.ID() == e.ID() })
		switch {
		case i < 0:
			return control.PolicyValue{}
		case es[i].Expires.IsZero():
			return control.PolicyValue{Value: "permitted", From: es[i].Origin.String()}
		}
		return control.PolicyValue{Value: "permitted until " + es[i].Expires.UTC().Format("2006-01-02 15:04"), From: es[i].Origin.String()}
	}
	declares := func(vs []policy.View, name string) control.PolicyValue {
		i := slices.IndexFunc(vs, func(v policy.View) bool { return v.Name == name })
		if i < 0 {
			return control.PolicyValue{}
		}
		_, value, _ := strings.Cut(viewLine(vs[i]), ": ")
		return control.PolicyValue{Value: value, From: vs[i].Origin.String()}
	}
	names = nil
	for _, v := range append(slices.Clone(a.Views), b.Views...) {
		if !slices.Contains(names, v.Name) {
			names = append(names, v.Name)
			value("view "+v.Name, declares(a.Views, v.Name), declares(b.Views, v.Name))
		}
	}
	var seen []string
	for _, e := range append(slices.Clone(a.Exceptions), b.Exceptions...) {
		if !slices.Contains(seen, e.ID()) {
			seen = append(seen, e.ID())
			value("exception "+e.String(), has(a.Exceptions, e), has(b.Exceptions, e))
		}
	}
}

func (a *app) diffTable(d policyDiff) {
	if len(d.Changes) == 0 {
		return
	}
	var rows [][]cell
	for _, c := range d.Changes {
		rows = append(rows, []cell{text(c.Setting), dash(c.A), dash(c.B)})
	}
	a.table(a.out, "", []string{"SETTING", d.A.String(), d.B.String()}, rows)
}

// policyOf finds the policy that an operand means.
func (a *app) policyOf(ctx context.Context, operand string, files *config.Files) (control.PolicyReport, error) {
	var r control.PolicyReport
	if name, ok := strings.CutPrefix(operand, policyPrefix); ok {
		at := policy.Origin{Source: operand}
		b := policy.Builder{Policies: files}
		b.Mode(policy.ModeEnforce.String(), at)
		b.Preset(name, at)
		spec, err := b.Build()
		if err != nil {
			return r, &control.Problem{Code: control.CodeBadRequest, What: oneLine(err), Where: "hvictl policy diff"}
		}
		r.SetSpec(spec)
		return r, nil
	}
	if operand == "-" || strings.ContainsAny(operand, "/") || strings.ContainsAny(operand, ".") && isFile(operand) {
		c := a.checkFile(operand, "", files)
		switch {
		case len(c.Errors) > 0:
			return r, &control.Problem{Code: codeUsage, What: strings.Join(c.Errors, "; "), Where: c.File.String(), Fix: "run: hvictl policy check"}
		case c.Policy == nil:
			r.SetSpec(policy.Spec{})
			return r, nil
		}
		return *c.Policy, nil
	}
	c := a.client()
	defer c.Close()
	r, err := c.Policy(ctx, operand)
	return r, suggest(err, operand)
}

func isFile(path string) bool {
	info, err := os.Stat(path)
	return err == nil && info.Mode().IsRegular()
}
