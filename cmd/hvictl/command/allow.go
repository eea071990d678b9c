package command

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/xen-hvi/hvi/config"
	"github.com/xen-hvi/hvi/control"
	"github.com/xen-hvi/hvi/engine/journal"
	"github.com/xen-hvi/hvi/engine/policy"
)

func (a *app) allowCommand() *cobra.Command {
	var processes, any []string
	var expires, comment string
	var show bool
	cmd := &cobra.Command{
		Use:   "allow EVENT",
		Short: "Permit what an event reported, from now on",
		Long: `Make an exception from an event: what it reported takes place from now on and is
counted, and neither reported nor blocked. Which event is meant is said by its ID,
which hvictl events shows.

The exception permits as little as the event allows. It holds in that domain, while
it runs that kernel, for that process, when code in that module or function of the
kernel writes those bytes to that place; or, of what a guard that looks has found,
while that object ("target") is found with that wrong with it ("bytes"). --any leaves
out one of these conditions:
` + strings.Join(control.Conditions(), ", ") + `. --for names other processes, with * at the end those
whose names begin so.

hvid keeps the exception and puts it in force at once, without pausing the guest.
With --print it is written as TOML instead, to be put into ` + config.DefaultDir + `/` + config.ExceptionsFile + `
or a policy. Names of processes and modules are what the guest says of itself; who
has taken over its kernel can choose them. Only root may allow.`,
		Example: `  hvictl allow 69fe2b1d7c3a-17 --expires 30d --comment "agent 7.2, ticket 4711"
  hvictl allow 69fe2b1d7c3a-17 --for 'falcon*' --any bytes
  hvictl allow 69fe2b1d7c3a-17 --any domain --print >> /etc/hvi/exceptions.toml`,
		Args:              argCount(1, 1, "the ID of one event"),
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, args []string) error {
			out, err := a.exceptionsFor(cmd, journal.ID(args[0]), processes, any)
			if err != nil {
				return err
			}
			ends, err := a.parseExpiry(cmd, expires)
			if err != nil {
				return err
			}
			for i := range out {
				out[i].Comment, out[i].Expires, out[i].Created = comment, ends, a.now().UTC().Truncate(time.Second)
				if err := out[i].Validate(); err != nil {
					return usage(cmd, oneLine(err))
				}
			}
			if show {
				if a.format == formatJSON {
					return a.json(out)
				}
				_, err := a.out.Write(config.FormatExceptions("", out))
				return err
			}
			return a.allow(cmd.Context(), out)
		},
	}
	f := cmd.Flags()
	f.StringArrayVar(&processes, "for", nil, "the `PROCESS` that may do it, instead of the one that did; can be given again")
	f.StringArrayVar(&any, "any", nil, "leave out a `CONDITION`; can be given again")
	f.StringVar(&expires, "expires", "", "when it ends: 12h or 30d from now, or 2026-12-31, or a time in RFC 3339")
	f.StringVar(&comment, "comment", "", "why, for whoever finds it later")
	f.BoolVar(&show, "print", false, "write it as TOML instead of putting it in force")
	// The flags exist: it can't fail.
	_ = cmd.RegisterFlagCompletionFunc("any", cobra.FixedCompletions(control.Conditions(), cobra.ShellCompDirectiveNoFileComp))
	return cmd
}

// allow has hvid keep exceptions, and shows them. Those before one that hvid refuses
// are in force, and are shown as well.
func (a *app) allow(ctx context.Context, list []policy.Exception) error {
	c := a.client()
	defer c.Close()
	made := []control.Exception{}
	var refused error
	for _, e := range list {
		all, err := c.Allow(ctx, e)
		if err != nil {
			refused = err
			break
		}
		made = all
	}
	made = slices.DeleteFunc(made, func(x control.Exception) bool {
		return !slices.ContainsFunc(list, func(e policy.Exception) bool { return e.ID() == x.ID })
	})
	if refused != nil && len(made) == 0 {
		return refused
	}
	return errors.Join(a.exceptionTable(made), refused)
}

// leftOut reads the conditions that --any leaves out.
func leftOut(cmd *cobra.Command, any []string) (map[string]bool, error) {
	leave := map[string]bool{}
	for _, w := range any {
		if !slices.Contains(control.Conditions(), w) {
			return nil, usage(cmd, policy.UnknownWord("condition", w, control.Conditions(), policy.Origin{}).Error())
		}
		leave[w] = true
	}
	return leave, nil
}

// exceptionsFor makes the exceptions for an event.
func (a *app) exceptionsFor(cmd *cobra.Command, id journal.ID, processes, any []string) ([]policy.Exception, error) {
	if _, _, ok := id.Split(); !ok {
		p := usage(cmd, policy.Quote(string(id))+" is not the ID of an event")
		p.Fix = "see the IDs: hvictl events"
		return nil, p
	}
	leave, err := leftOut(cmd, any)
	if err != nil {
		return nil, err
	}
	if len(processes) > 0 {
		if leave[control.AnyProcess] {
			return nil, usage(cmd, "--for and --any process exclude each other")
		}
		leave[control.AnyProcess] = true
	}
	r, err := a.eventByID(cmd, id)
	if err != nil {
		return nil, err
	}
	if r.Guard == "" || r.Action == journal.Noted {
		return nil, usage(cmd, "event "+string(id)+" is no violation of a guard")
	}
	e, err := control.ExceptionOf(r, leave)
	var un *control.UnnamedError
	if errors.As(err, &un) {
		p := usage(cmd, "no exception can be made of event "+string(id)+": "+oneLine(err))
		p.Fix = "to permit it whatever that is: --any " + un.Condition
		return nil, p
	}
	if len(processes) == 0 {
		return []policy.Exception{e}, nil
	}
	var out []policy.Exception
	for _, p := range processes {
		e.Process = p
		out = append(out, e)
	}
	return out, nil
}

// eventByID asks for one event.
func (a *app) eventByID(cmd *cobra.Command, id journal.ID) (*journal.Record, error) {
	c := a.client()
	defer c.Close()
	s, err := c.Events(cmd.Context(), control.EventsQuery{ID: id})
	if err != nil {
		return nil, err
	}
	defer s.Close()
	for {
		it, err := s.Next()
		switch {
		case err == io.EOF:
			return nil, &control.Problem{Code: control.CodeConflict, What: "there is no event " + string(id), Fix: "see what there is: hvictl events; old events are removed when the log is full"}
		case err != nil:
			return nil, err
		case it.Record != nil:
			return it.Record, nil
		}
	}
}

// parseExpiry reads when an exception ends.
func (a *app) parseExpiry(cmd *cobra.Command, s string) (time.Time, error) {
	if s == "" && !cmd.Flags().Changed("expires") {
		return time.Time{}, nil
	}
	var t time.Time
	if d, ok := span(s); ok {
		t = a.now().Add(d).UTC().Truncate(time.Second)
	} else if at, err := policy.ParseDate(s, true); err == nil {
		t = at
	} else {
		p := usage(cmd, "--expires "+policy.Quote(s)+" is no time")
		p.Fix = "write how long from now, as 12h or 30d, or when, as 2026-12-31"
		return t, p
	}
	if !t.After(a.now()) {
		return t, usage(cmd, "--expires "+policy.Quote(s)+" is over already")
	}
	return t, nil
}

// exceptionsCommand is `hvictl exceptions`.
func (a *app) exceptionsCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "exceptions",
		Short: "See and remove exceptions from what guards report and block",
		Long: `An exception permits what would be a violation of a guard. It stands in
` + config.DefaultDir + `/` + config.ExceptionsFile + `, in a policy that a domain names, or was made with hvictl allow
and is kept by hvid. What it permits is counted.`,
		Example: `  hvictl exceptions list
  hvictl exceptions remove x1a2b3c4d5e`,
		Args: cobra.ArbitraryArgs,
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) > 0 {
				return unknownCommand(cmd, "exceptions command", args[0])
			}
			return cmd.Help()
		},
	}
	cmd.AddCommand(a.exceptionsListCommand(), a.exceptionsRemoveCommand(), a.exceptionsReloadCommand())
	return cmd
}

func (a *app) exceptionsListCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "list",
		Short: "List the exceptions, and how often each was used",
		Long: `List the exceptions there are: what each permits, since when and until when, how
often it was used in the domains that run now, and where it comes from. One that
has ended, or that can permit nothing in a domain, says so.`,
		Example: `  hvictl exceptions list
  hvictl exceptions list -o json | jq -r '.[] | select(.expired) | .id'`,
		Args:              argCount(0, 0, ""),
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c := a.client()
			defer c.Close()
			list, err := c.Exceptions(cmd.Context())
			if err != nil {
				return err
			}
			return a.exceptionTable(list)
		},
	}
}

func (a *app) exceptionsRemoveCommand() *cobra.Command {
	var expired bool
	cmd := &cobra.Command{
		Use:   "remove ID...",
		Short: "Remove exceptions that were made with hvictl allow",
		Long: `Remove exceptions that hvid keeps, by their IDs, or with --expired all of them that
have ended. What they permitted is a violation again at once. One that stands in a
file is removed there. Only root may remove.`,
		Example: `  hvictl exceptions remove x1a2b3c4d5e
  hvictl exceptions remove --expired`,
		Args: func(cmd *cobra.Command, args []string) error {
			switch {
			case expired && len(args) > 0:
				return usage(cmd, "--expired and IDs exclude each other")
			case !expired && len(args) == 0:
				return usage(cmd, "hvictl exceptions remove needs IDs, or --expired")
			}
			return nil
		},
		ValidArgsFunction: a.completeException,
		RunE: func(cmd *cobra.Command, args []string) error {
			c := a.client()
			defer c.Close()
			if expired {
				list, err := c.Exceptions(cmd.Context())
				if err != nil {
					return err
				}
				for _, e := range list {
					if e.Expired && e.From == control.ExceptionKept {
						args = append(args, e.ID)
					}
				}
				if len(args) == 0 {
					return a.exceptionTable(list)
				}
			}
			list, err := c.Disallow(cmd.Context(), args)
			if err != nil {
				return err
			}
			return a.exceptionTable(list)
		},
	}
	cmd.Flags().BoolVar(&expired, "expired", false, "all that have ended")
	return cmd
}

// completeException offers the IDs of those that can be removed.
func (a *app) completeException(cmd *cobra.Command, _ []string, _ string) ([]cobra.Completion, cobra.ShellCompDirective) {
	c := a.client()
	defer c.Close()
	list, err := c.Exceptions(cmd.Context())
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	var ids []cobra.Completion
	for _, e := range list {
		if e.From == control.ExceptionKept {
			ids = append(ids, cobra.CompletionWithDesc(e.ID, safe(e.Exception.String())))
		}
	}
	return ids, cobra.ShellCompDirectiveNoFileComp
}

func (a *app) exceptionsReloadCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "reload",
		Short: "Have hvid read the file of exceptions anew",
		Long: `Have hvid read ` + config.DefaultDir + `/` + config.ExceptionsFile + ` anew and put it in force in the domains that
run. A file that is broken changes nothing.`,
		Example: `  hvictl policy check /etc/hvi/exceptions.toml
  hvictl exceptions reload`,
		Args:              argCount(0, 0, ""),
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c := a.client()
			defer c.Close()
			list, err := c.ReloadExceptions(cmd.Context())
			if err != nil {
				return err
			}
			return a.exceptionTable(list)
		},
	}
}

// exceptionTable shows exceptions.
func (a *app) exceptionTable(list []control.Exception) error {
	if a.format == formatJSON {
		return a.json(list)
	}
	if len(list) == 0 {
		fmt.Fprintln(a.out, "There are no exceptions.")
		return nil
	}
	var rows [][]cell
	for _, e := range list {
		var uses uint64
		var last time.Time
		inactive := 0
		for _, d := range e.Domains {
			uses += d.Uses
			if d.Last.After(last) {
				last = d.Last
			}
			if d.Inactive != "" {
				inactive++
			}
		}
		used := cell{text: fmt.Sprint(uses)}
		switch {
		case e.Expired:
			used = cell{"ended", yellow}
		case len(e.Domains) > 0 && inactive == len(e.Domains):
			used = cell{"cannot", yellow}
		}
		ends := "never"
		if !e.Expires.IsZero() {
			ends = a.moment(e.Expires)
		}
		when := "-"
		if !last.IsZero() {
			when = duration(a.now().Sub(last)) + " ago"
		}
		from := e.From
		if e.From != control.ExceptionKept {
			from = e.Origin.String()
		}
		rows = append(rows, []cell{text(e.ID), used, text(when), text(ends), text(from), text(e.Exception.String())})
	}
	a.table(a.out, "", []string{"ID", "USED", "LAST", "ENDS", "FROM", "PERMITS"}, rows)
	for _, e := range list {
		if e.Comment != "" {
			fmt.Fprintf(a.out, "%s: %s\n", safe(e.ID), safe(e.Comment))
		}
		for _, d := range e.Domains {
			if d.Inactive != "" {
				fmt.Fprintln(a.out, a.paint(cell{fmt.Sprintf("%s permits nothing in %s: %s", safe(e.ID), d.Name, safe(d.Inactive)), yellow}))
			}
		}
	}
	return nil
}
