package command

import (
	"context"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/xen-hvi/hvi/config"
	"github.com/xen-hvi/hvi/control"
	"github.com/xen-hvi/hvi/engine/policy"
)

// acceptAll is the word for every proposal that permits no more than was seen.
const acceptAll = "all"

func (a *app) learnCommand() *cobra.Command {
	var any, accept []string
	var since, expires, comment string
	var show bool
	cmd := &cobra.Command{
		Use:   "learn DOM",
		Short: "Propose exceptions from what a guest did while it was learnt from",
		Long: `Propose exceptions from what was reported of a domain under mode learn: what a
healthy guest does that guards would block or report. Under that mode nothing is
blocked. Let the guest do for some days what it is there for, look at what it did,
and accept what it is to do from now on.

Each proposal permits as little as its events allow, as that of hvictl allow does.
Where more than ` + fmt.Sprint(control.LearnedBytes) + ` differ in the bytes alone, or more than ` + fmt.Sprint(control.LearnedProcesses) + ` in the process alone, they are
one proposal without that condition. Such a one, and one for which an event does not
tell enough, permits more than was seen: "all" does not accept it, its ID does.

What an attacker did meanwhile is proposed as well. Who accepts says that the guest
was healthy. Accepted exceptions are kept by hvid and seen with hvictl exceptions list;
with --print proposals are written as TOML instead. Only root may accept.`,
		Example: `  hvictl set web1 --mode learn
  hvictl learn web1                       after a week
  hvictl learn web1 --accept all --expires 180d --comment "learnt in May"
  hvictl learn web1 --accept x1a2b3c4d5e
  hvictl learn web1 --any domain --print >> /etc/hvi/exceptions.toml
  hvictl set web1 --mode enforce`,
		Args:              argCount(1, 1, "one domain"),
		ValidArgsFunction: a.completeDomain,
		RunE: func(cmd *cobra.Command, args []string) error {
			if show && len(accept) > 0 {
				return usage(cmd, "--print and --accept exclude each other")
			}
			leave, err := leftOut(cmd, any)
			if err != nil {
				return err
			}
			q := control.EventsQuery{Domain: args[0]}
			if q.Since, err = a.parseTime(cmd, "since", since); err != nil {
				return err
			}
			ends, err := a.parseExpiry(cmd, expires)
			if err != nil {
				return err
			}
			l, err := a.learned(cmd.Context(), q, leave)
			if err != nil {
				return err
			}
			for i := range l.Proposals {
				e := &l.Proposals[i].Exception
				e.Comment, e.Expires, e.Created = comment, ends, a.now().UTC().Truncate(time.Second)
				if err := e.Validate(); err != nil {
					return usage(cmd, oneLine(err))
				}
			}
			switch {
			case len(accept) > 0:
				return a.acceptLearned(cmd, l, accept)
			case a.format == formatJSON:
				return a.json(l)
			case show:
				return a.printLearned(l)
			}
			return a.showLearned(cmd.Context(), args[0], l)
		},
	}
	f := cmd.Flags()
	f.StringArrayVar(&accept, "accept", nil, "put the proposal with this `ID` in force, or "+acceptAll+" that permit no more than was seen; can be given again")
	f.StringArrayVar(&any, "any", nil, "leave out a `CONDITION` of all; can be given again")
	f.StringVar(&since, "since", "", "only what was reported from this time: 24h, 7d ago, or 2026-05-09, 2026-05-09 07:29")
	f.StringVar(&expires, "expires", "", "when what is accepted ends: 12h or 30d from now, or 2026-12-31, or a time in RFC 3339")
	f.StringVar(&comment, "comment", "", "why, for whoever finds it later")
	f.BoolVar(&show, "print", false, "write the proposals as TOML")
	// The flags exist: it can't fail.
	_ = cmd.RegisterFlagCompletionFunc("any", cobra.FixedCompletions(control.Conditions(), cobra.ShellCompDirectiveNoFileComp))
	return cmd
}

// learned goes through what was reported of a domain while it was learnt from.
func (a *app) learned(ctx context.Context, q control.EventsQuery, leave map[string]bool) (control.Learned, error) {
	c := a.client()
	defer c.Close()
	s, err := c.Events(ctx, q)
	if err != nil {
		return control.Learned{}, err
	}
	defer s.Close()
	l := control.Learner{Any: leave}
	for {
		it, err := s.Next()
		switch {
		case err == io.EOF:
			return l.Result(), nil
		case err != nil:
			return control.Learned{}, err
		case it.Record != nil && it.Record.Mode == policy.ModeLearn.String():
			l.Add(it.Record)
		}
	}
}

// acceptLearned puts proposals in force, none where one that is named is not there.
func (a *app) acceptLearned(cmd *cobra.Command, l control.Learned, accept []string) error {
	var out []policy.Exception
	broad := 0
	for _, p := range l.Proposals {
		switch {
		case slices.Contains(accept, p.ID):
		case !slices.Contains(accept, acceptAll):
			continue
		case p.Broad():
			broad++
			continue
		}
		out = append(out, p.Exception)
	}
	for _, id := range accept {
		if id != acceptAll && !slices.ContainsFunc(l.Proposals, func(p control.Proposal) bool { return p.ID == id }) {
			p := usage(cmd, "there is no proposal "+policy.Quote(id))
			p.Fix = "see the proposals, with the same --any and --since: hvictl learn DOM"
			return p
		}
	}
	if err := a.allow(cmd.Context(), out); err != nil {
		return err
	}
	if broad > 0 && a.format != formatJSON {
		fmt.Fprintf(a.out, "Not accepted, since they permit more than was seen: %d. Accept them by their IDs.\n", broad)
	}
	return nil
}

// printLearned writes proposals as a file of exceptions has them.
func (a *app) printLearned(l control.Learned) error {
	var exact, broad []policy.Exception
	for _, p := range l.Proposals {
		if p.Broad() {
			broad = append(broad, p.Exception)
		} else {
			exact = append(exact, p.Exception)
		}
	}
	text := config.FormatExceptions("", exact)
	if len(broad) > 0 {
		if len(exact) > 0 {
			text = append(text, '\n')
		}
		text = append(text, config.FormatExceptions("What follows permits more than was seen.", broad)...)
	}
	_, err := a.out.Write(text)
	return err
}

func (a *app) showLearned(ctx context.Context, dom string, l control.Learned) error {
	if l.Violations+l.Unrecorded == 0 {
		c := a.client()
		defer c.Close()
		d, err := c.Domain(ctx, dom)
		if err != nil {
			return err
		}
		if d.Mode == policy.ModeLearn.String() {
			fmt.Fprintf(a.out, "%s is being learnt from, and nothing was reported so far.\n", d.Name)
		} else {
			fmt.Fprintf(a.out, "Nothing was reported of %s under mode learn; its mode is %s.\nTo learn from it: hvictl set %s --mode learn\n", d.Name, d.Mode, d.Name)
		}
		return nil
	}
	fmt.Fprintf(a.out, "Violations while it was learnt from: %d, from %s to %s.\n", l.Violations, a.moment(l.First), a.moment(l.Last))
	var rows [][]cell
	for _, p := range l.Proposals {
		id := text(p.ID)
		if p.Broad() {
			id.colour = yellow
		}
		rows = append(rows, []cell{id, text(fmt.Sprint(p.Violations)), text(duration(a.now().Sub(p.Last)) + " ago"), text(string(p.Event)), text(p.Exception.String())})
	}
	if len(rows) > 0 {
		a.table(a.out, "", []string{"ID", "SEEN", "LAST", "EVENT", "WOULD PERMIT"}, rows)
	}
	for _, p := range l.Proposals {
		if len(p.Various) > 0 {
			fmt.Fprintln(a.out, a.paint(cell{fmt.Sprintf("%s permits more than was seen: there were too many different %s", p.ID, strings.Join(p.Various, ", ")), yellow}))
		}
		if len(p.Untold) > 0 {
			fmt.Fprintln(a.out, a.paint(cell{fmt.Sprintf("%s permits more than was seen: its events do not tell %s", p.ID, strings.Join(p.Untold, ", ")), yellow}))
		}
	}
	if l.Unrecorded > 0 {
		fmt.Fprintln(a.out, a.paint(cell{fmt.Sprintf("violations besides that came too fast to be recorded one by one: %d; what they were is not known", l.Unrecorded), yellow}))
	}
	if l.Unproposed > 0 {
		fmt.Fprintln(a.out, a.paint(cell{fmt.Sprintf("violations for which no exception can be proposed: %d; see hvictl events", l.Unproposed), yellow}))
	}
	return nil
}
