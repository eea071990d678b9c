package command

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/xen-hvi/hvi/control"
	"github.com/xen-hvi/hvi/engine/journal"
	"github.com/xen-hvi/hvi/engine/policy"
)

// How many past events are shown where nothing else is said.
const (
	linesAtOnce    = 50
	linesFollowing = 10
)

func (a *app) eventsCommand() *cobra.Command {
	var q control.EventsQuery
	var since, until, action, severity string
	var lines int
	cmd := &cobra.Command{
		Use:   "events",
		Short: "Show security events, past or as they happen",
		Long: fmt.Sprintf(`Show the violations that guards reported, the oldest first. Without --since or
-n the newest %d are shown; with -f the newest %d, and then each as it happens
until the command is interrupted.

A line of the form "-- 12 events missed ... --" says that hvid had to drop events
for this reader; they are in the log and can be asked for with --since.

With -o json each event is one line of JSON; a line of type "missed" stands for
events that were dropped.`, linesAtOnce, linesFollowing),
		Example: `  hvictl events
  hvictl events -f
  hvictl events --domain web1 --guard kernel-text --since 24h
  hvictl events --action blocked --severity high --since 7d --until 1d
  hvictl events --since "2026-05-09 07:00" -o json | jq -r .process.comm
  hvictl events -n 0             all that the log has`,
		Args:              argCount(0, 0, ""),
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if q.Guard != "" {
				if _, err := policy.ParseGuardName(q.Guard); err != nil {
					p := usage(cmd, err.Error())
					p.Fix = "run: hvictl help events"
					return p
				}
			}
			var err error
			if q.Since, err = a.parseTime(cmd, "since", since); err != nil {
				return err
			}
			if q.Until, err = a.parseTime(cmd, "until", until); err != nil {
				return err
			}
			if q.Action, err = oneOf(cmd, "action", journal.Action(action), journal.Actions()); err != nil {
				return err
			}
			if q.Severity, err = oneOf(cmd, "severity", journal.Severity(severity), journal.Severities()); err != nil {
				return err
			}
			switch {
			case lines < 0 || lines > journal.MaxQuery:
				p := usage(cmd, fmt.Sprintf("-n %d is out of range", lines))
				p.Fix = fmt.Sprintf("give 1 to %d, or 0 for all", journal.MaxQuery)
				return p
			case cmd.Flags().Changed("lines"):
				q.Limit = lines
				if lines == 0 && q.Since.IsZero() {
					q.Since = time.Unix(0, 0) // all, with -f too
				}
			case !q.Since.IsZero():
			case q.Follow:
				q.Limit = linesFollowing
			default:
				q.Limit = linesAtOnce
			}
			return a.events(cmd.Context(), q)
		},
	}
	f := cmd.Flags()
	f.BoolVarP(&q.Follow, "follow", "f", false, "go on with events as they happen")
	f.IntVarP(&lines, "lines", "n", 0, "show the newest `N` past events; 0 means all")
	f.StringVar(&q.Domain, "domain", "", "only of the domain with this domid, name or UUID; it need not run any more")
	f.StringVar(&q.Guard, "guard", "", "only of this guard")
	f.StringVar(&action, "action", "", "only where this was done: "+words(journal.Actions()))
	f.StringVar(&severity, "severity", "", "only of this severity or more: "+words(journal.Severities()))
	f.StringVar(&since, "since", "", "only from this time: 10m, 24h, 7d ago, or 2026-05-09, 2026-05-09 07:29")
	f.StringVar(&until, "until", "", "only before this time, in the same forms")
	// The flags exist: it can't fail.
	_ = cmd.RegisterFlagCompletionFunc("domain", func(cmd *cobra.Command, _ []string, _ string) ([]cobra.Completion, cobra.ShellCompDirective) {
		return a.domainNames(cmd)
	})
	var guards []string
	for _, g := range policy.Guards() {
		guards = append(guards, string(g.Name))
	}
	_ = cmd.RegisterFlagCompletionFunc("action", cobra.FixedCompletions(strings.Split(words(journal.Actions()), ", "), cobra.ShellCompDirectiveNoFileComp))
	_ = cmd.RegisterFlagCompletionFunc("severity", cobra.FixedCompletions(strings.Split(words(journal.Severities()), ", "), cobra.ShellCompDirectiveNoFileComp))
	_ = cmd.RegisterFlagCompletionFunc("guard", cobra.FixedCompletions(guards, cobra.ShellCompDirectiveNoFileComp))
	return cmd
}

// words lists words for people.
func words[T ~string](all []T) string {
	out := make([]string, len(all))
	for i, w := range all {
		out[i] = string(w)
	}
	return strings.Join(out, ", ")
}

// oneOf checks the word that a flag was given.
func oneOf[T ~string](cmd *cobra.Command, flag string, word T, known []T) (T, error) {
	if !cmd.Flags().Changed(flag) || slices.Contains(known, word) {
		return word, nil
	}
	p := usage(cmd, policy.UnknownWord(flag, string(word), strings.Split(words(known), ", "), policy.Origin{}).Error())
	return word, p
}

// span reads a length of time as people write it: of Go's forms, or a number of
// days as in 30d.
func span(s string) (time.Duration, bool) {
	if n := len(s) - 1; n > 0 && s[n] == 'd' {
		if days, err := strconv.ParseUint(s[:n], 10, 16); err == nil {
			return time.Duration(days) * 24 * time.Hour, true
		}
	}
	d, err := time.ParseDuration(s)
	return d, err == nil && d >= 0
}

// parseTime reads a time in one of the forms that people write.
func (a *app) parseTime(cmd *cobra.Command, flag, s string) (time.Time, error) {
	if s == "" && !cmd.Flags().Changed(flag) {
		return time.Time{}, nil
	}
	if d, ok := span(s); ok {
		return a.now().Add(-d), nil
	}
	if t, err := time.Parse(time.RFC3339Nano, s); err == nil {
		return t, nil
	}
	for _, layout := range []string{"2006-01-02", "2006-01-02 15:04", "2006-01-02 15:04:05"} {
		if t, err := time.ParseInLocation(layout, s, a.zone); err == nil {
			return t, nil
		}
	}
	p := usage(cmd, "--"+flag+" "+policy.Quote(s)+" is no time")
	p.Fix = "write how long ago, as 10m, 24h or 7d, or when, as 2026-05-09 or \"2026-05-09 07:29\""
	return time.Time{}, p
}

func (a *app) events(ctx context.Context, q control.EventsQuery) error {
	c := a.client()
	defer c.Close()
	s, err := c.Events(ctx, q)
	if err != nil {
		return err
	}
	defer s.Close()
	for {
		it, err := s.Next()
		switch {
		case err == io.EOF:
			return nil
		case q.Follow && errors.Is(err, context.Canceled):
			return nil // how one ends it
		case err != nil:
			return err
		}
		if err := a.event(it); err != nil {
			return err
		}
	}
}

// event writes one line.
func (a *app) event(it journal.Item) error {
	if a.format == formatJSON {
		return writeJSON(a.out, it, "")
	}
	if m := it.Missed; m != nil {
		n := "an unknown number of events"
		if m.Count > 0 {
			n = count(int(m.Count), "event", "events")
		}
		_, err := fmt.Fprintln(a.out, a.paint(cell{fmt.Sprintf("-- %s missed: %s --", n, safe(m.Reason)), yellow}))
		return err
	}
	r := it.Record
	c := cell{r.Summary(), yellow}
	switch r.Action {
	case journal.Alerted:
	case journal.Noted:
		c.colour = plain
	default:
		c.colour = red
	}
	_, err := fmt.Fprintf(a.out, "%s  %s  %s\n", r.Time.In(a.zone).Format("2006-01-02 15:04:05.000"), safe(string(r.ID)), a.paint(c))
	return err
}
