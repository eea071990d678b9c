package command

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"github.com/xen-hvi/hvi/control"
	"github.com/xen-hvi/hvi/engine/policy"
	"github.com/xen-hvi/hvi/engine/printable"
)

func (a *app) policyCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "policy",
		Short: "See, check, change and carry over what is declared for domains",
		Long: `What is declared for a domain decides whether and how it is protected: its mode,
the policy it starts from, its guards, and whether it may run without protection.
It is written in an xl config, in libvirt's XML, in a file below /etc/hvi/domains,
or set with hvictl. hvid keeps it by the domain's UUID, because xl forgets it.`,
		Example: `  hvictl policy show web1
  hvictl policy check /etc/xen/web1.cfg
  hvictl policy export web1 | ssh other hvictl policy import`,
		Args: cobra.ArbitraryArgs,
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) > 0 {
				return unknownCommand(cmd, "policy command", args[0])
			}
			return cmd.Help()
		},
	}
	set := a.setCommand()
	set.Example = strings.ReplaceAll(set.Example, "hvictl set", "hvictl policy set")
	set.Short = "The same as hvictl set"
	cmd.AddCommand(a.policyShowCommand(), a.policyCheckCommand(), a.policyDiffCommand(), set, a.policyListCommand(), a.policyExportCommand(), a.policyImportCommand())
	return cmd
}

func (a *app) policyShowCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "show DOM",
		Short: "Show a domain's policy and where each part of it comes from",
		Long: `Show the policy that holds for a domain with every default filled in, and of each
value where it comes from: a place in a file, or the default it follows from. The
domain need not run.`,
		Example: `  hvictl policy show web1
  hvictl policy show web1 -o json | jq -r .mode.value`,
		Args:              argCount(1, 1, aDomain),
		ValidArgsFunction: a.completeDomain,
		RunE: func(cmd *cobra.Command, args []string) error {
			c := a.client()
			defer c.Close()
			rep, err := c.Policy(cmd.Context(), args[0])
			if err != nil {
				return suggest(err, args[0])
			}
			return a.policyReport(rep)
		},
	}
}

// fromWords say for people where a policy comes from.
var fromWords = map[control.PolicyFrom]string{
	control.FromHanded:   "handed over by the toolstack",
	control.FromXL:       "xl's config",
	control.FromFile:     "a file of the administrator's",
	control.FromCaptured: "kept since an earlier life",
	control.FromDefault:  "the host's default",
	control.FromHvictl:   "set with hvictl",
	control.FromNone:     "nobody declares anything",
}

func (a *app) policyReport(r control.PolicyReport) error {
	if a.format == formatJSON {
		return a.json(r)
	}
	line := func(label, value string) {
		if value != "" {
			fmt.Fprintf(a.out, "  %-10s %s\n", label, safe(value))
		}
	}
	where := "not running"
	if r.ID != control.NoDomID {
		where = fmt.Sprintf("domain %d", r.ID)
	}
	fmt.Fprintf(a.out, "%s (%s)\n", r.Name, where)
	line("UUID", r.UUID)
	line("Toolstack", r.Toolstack)
	from, ok := fromWords[r.From]
	if !ok {
		from = string(r.From)
	}
	line("From", from)
	line("Source", r.Source)
	if !r.CapturedAt.IsZero() {
		line("Kept since", a.moment(r.CapturedAt))
	}
	fmt.Fprintln(a.out)
	a.policyTable(r)
	for _, w := range r.Warnings {
		fmt.Fprintf(a.out, "  %s\n", a.paint(cell{"warning: " + safe(w), yellow}))
	}
	return nil
}

// policyTable shows each value of a policy.
func (a *app) policyTable(r control.PolicyReport) {
	rows := [][]cell{
		{text("mode"), text(r.Mode.Value), text(r.Mode.From)},
		{text("policy"), text(r.Policy.Value), text(r.Policy.From)},
		{text("require_attach"), text(r.RequireAttach.Value), text(r.RequireAttach.From)},
		{text("on_engine_failure"), text(r.OnEngineFailure.Value), text(r.OnEngineFailure.From)},
	}
	for _, g := range r.Guards {
		rows = append(rows, []cell{text(g.Name), text(g.Action), text(g.From)})
	}
	for _, l := range r.Lists {
		rows = append(rows, []cell{text(string(l.Name)), text(strings.Join(l.Elements, ", ")), text(l.Origin.String())})
	}
	a.table(a.out, "  ", []string{"SETTING", "VALUE", "FROM"}, rows)
	for _, v := range r.Views {
		fmt.Fprintf(a.out, "  %s\n", viewLine(v))
	}
	for _, e := range r.Exceptions {
		fmt.Fprintf(a.out, "  permits %s\n", safe(e.String()))
	}
}

// viewLine tells of a declared view on one line.
func viewLine(v policy.View) string {
	s := "view " + safe(v.Name) + ": "
	switch names := v.Guards; {
	case len(names) == 0:
		s += "no guard of memory"
	case len(names) == len(policy.MemoryGuards()):
		s += "all guards of memory"
	default:
		var words []string
		for _, g := range names {
			words = append(words, safe(string(g)))
		}
		s += strings.Join(words, ", ")
	}
	if v.Initial {
		s += "; a domain begins in it"
	}
	if v.Switch == policy.SwitchNobody {
		s += "; nobody may switch to it"
	}
	return s
}

func (a *app) policyListCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "list",
		Short: "List the policies that hvid keeps",
		Long: `List the policies that hvid keeps by the UUIDs of domains, also of domains that
are saved, migrated away, or ended a moment ago. What stands in libvirt's XML or in
a file is not kept until its domain starts.`,
		Example: `  hvictl policy list
  hvictl policy list -o json | jq -r '.[] | select(.suspended) | .uuid'`,
		Args:              argCount(0, 0, ""),
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c := a.client()
			defer c.Close()
			ds, err := c.Declarations(cmd.Context())
			if err != nil {
				return err
			}
			if a.format == formatJSON {
				return a.json(ds)
			}
			if len(ds) == 0 {
				fmt.Fprintln(a.out, "No policy is kept.")
				return nil
			}
			var rows [][]cell
			for _, d := range ds {
				rows = append(rows, []cell{
					text(d.UUID), dash(d.Name.String()), dash(d.Toolstack), text(d.Spec.Mode.String()), dash(d.Spec.Preset),
					a.lifeCell(d), dash(d.Source),
				})
			}
			a.table(a.out, "", []string{"UUID", "NAME", "TOOLSTACK", "MODE", "POLICY", "DOMAIN", "SOURCE"}, rows)
			return nil
		},
	}
}

// lifeCell says what became of a domain whose policy is kept.
func (a *app) lifeCell(d control.Declaration) cell {
	switch {
	case !d.GoneAt.IsZero():
		s := "gone " + duration(a.now().Sub(d.GoneAt)) + " ago"
		if d.Suspended {
			s += ", saved"
		}
		return cell{text: s}
	case d.Suspended:
		return cell{text: "saved once"}
	}
	return cell{text: "-"}
}

func (a *app) policyExportCommand() *cobra.Command {
	var all bool
	cmd := &cobra.Command{
		Use:   "export [DOM...]",
		Short: "Write kept policies, for policy import on another host",
		Long: `Write the policies that hvid keeps for these domains as JSON, one object after
another. A domain is named by its UUID or name, or by its domid while it runs. The
policies of the administrator's that they name are written along.

Import them on the host to which a domain is migrated, or on which its saved image
is restored, before that.`,
		Example: `  hvictl policy export web1 | ssh other hvictl policy import
  hvictl policy export --all > policies.json`,
		Args: func(cmd *cobra.Command, args []string) error {
			switch {
			case all && len(args) > 0:
				return usage(cmd, "--all and domains exclude each other")
			case !all && len(args) == 0:
				return usage(cmd, "hvictl policy export needs domains, or --all")
			}
			return nil
		},
		ValidArgsFunction: func(cmd *cobra.Command, _ []string, _ string) ([]cobra.Completion, cobra.ShellCompDirective) {
			return a.domainNames(cmd)
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			c := a.client()
			defer c.Close()
			kept, err := c.Declarations(cmd.Context())
			if err != nil {
				return err
			}
			out := kept
			if !all {
				running, err := c.Domains(cmd.Context())
				if err != nil {
					return err
				}
				out = nil
				for _, ref := range args {
					d, err := findKept(kept, running, ref)
					if err != nil {
						return err
					}
					out = append(out, d)
				}
			}
			for _, d := range out {
				if err := a.json(d); err != nil {
					return err
				}
			}
			return nil
		},
	}
	cmd.Flags().BoolVar(&all, "all", false, "every policy that is kept")
	return cmd
}

// findKept finds what is kept for the domain that ref names.
func findKept(kept []control.Declaration, running []control.DomainStatus, ref string) (control.Declaration, error) {
	ds := make([]control.DomainStatus, 0, len(kept))
	for _, k := range kept {
		ds = append(ds, control.DomainStatus{ID: control.NoDomID, Name: k.Name, UUID: k.UUID})
	}
	d, err := control.Resolve(running, ref)
	if errors.Is(err, &control.Problem{Code: control.CodeNoSuchDomain}) {
		d, err = control.Resolve(ds, ref)
	}
	if err != nil {
		var p *control.Problem
		if errors.As(err, &p) && p.Code == control.CodeNoSuchDomain {
			p.What = "nothing is kept for a domain " + printable.Escape(ref).Quoted()
			p.Fix = "hvictl policy list shows what is"
		}
		return control.Declaration{}, suggest(err, ref)
	}
	for _, k := range kept {
		if k.UUID == d.UUID {
			return k, nil
		}
	}
	return control.Declaration{}, &control.Problem{
		Code: codeNotKept, What: "nothing is kept for " + d.Name.String(), Where: d.UUID,
		Fix: "hvictl policy show says where its policy comes from",
	}
}

// Bounds of an import.
const (
	maxImport        = 8 << 20
	maxImportObjects = 4096
)

func (a *app) policyImportCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "import",
		Short: "Take over policies that policy export wrote",
		Long: `Read from standard input what hvictl policy export wrote on another host, and have
hvid keep it by the domains' UUIDs. What was kept for them before is replaced.
Nothing is taken over if any of it cannot be read. Only root may import.`,
		Example: `  ssh other hvictl policy export web1 | hvictl policy import
  hvictl policy import < policies.json`,
		Args:              argCount(0, 0, ""),
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, _ []string) error {
			ds, err := readDeclarations(cmd, a.in)
			if err != nil {
				return err
			}
			c := a.client()
			defer c.Close()
			for i, d := range ds {
				kept, err := c.Import(cmd.Context(), d)
				if err != nil {
					var p *control.Problem
					if errors.As(err, &p) && i > 0 {
						q := *p
						q.What += fmt.Sprintf("; %s before it taken over", count(i, "policy was", "policies were"))
						return &q
					}
					return err
				}
				if a.format == formatJSON {
					err = a.json(kept)
				} else {
					_, err = fmt.Fprintf(a.out, "%s  %s: %s\n", safe(kept.UUID), kept.Name, safe(kept.Spec.Mode.String()))
				}
				if err != nil {
					return err
				}
			}
			return nil
		},
	}
}

// readDeclarations reads JSON objects to the end, strictly: a member that is not
// known may be one that protects.
func readDeclarations(cmd *cobra.Command, r io.Reader) ([]control.Declaration, error) {
	bad := func(what string) error {
		p := usage(cmd, what)
		p.Where, p.Fix = "standard input", "give it what hvictl policy export of the same release wrote"
		return p
	}
	lr := &io.LimitedReader{R: r, N: maxImport + 1}
	dec := json.NewDecoder(lr)
	dec.DisallowUnknownFields()
	var ds []control.Declaration
	for {
		var d control.Declaration
		err := dec.Decode(&d)
		switch {
		case lr.N <= 0 || err == nil && len(ds) == maxImportObjects:
			return nil, bad(fmt.Sprintf("more than %d policies or %d bytes", maxImportObjects, maxImport))
		case err == io.EOF && len(ds) == 0:
			return nil, bad("there is nothing to import")
		case err == io.EOF:
			return ds, nil
		case err != nil:
			return nil, bad(fmt.Sprintf("policy %d: %s", len(ds)+1, printable.Escape(err.Error())))
		case d.UUID == "":
			return nil, bad(fmt.Sprintf("policy %d has no UUID", len(ds)+1))
		}
		if err := d.Spec.Validate(); err != nil {
			return nil, bad(fmt.Sprintf("policy %d, %s: %s", len(ds)+1, policy.Quote(d.UUID), oneLine(err)))
		}
		ds = append(ds, d)
	}
}
