package command

import (
	"fmt"

	"github.com/spf13/cobra"
)

func (a *app) resumeCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "resume DOM",
		Short: "Let a domain run on that a guard has paused",
		Long: `Let a domain run on that a guard has paused, because its action is pause. hvictl
status says which guard and which event; the guest's memory can be looked at as
long as it stands still. The guards stay in force: another violation pauses it
again. A domain that is held for another reason is not let go. A memory dump that is
not whole yet, of which hvictl status tells, is given up.

Only root may let a domain run on.`,
		Example: `  hvictl status web1
  hvictl ps web1
  hvictl resume web1`,
		Args:              argCount(1, 1, aDomain),
		ValidArgsFunction: a.completeDomain,
		RunE: func(cmd *cobra.Command, args []string) error {
			c := a.client()
			defer c.Close()
			d, err := c.Resume(cmd.Context(), args[0])
			if err != nil {
				return suggest(err, args[0])
			}
			if a.format == formatJSON {
				return a.json(d)
			}
			fmt.Fprintf(a.out, "%s (domain %d): %s\n", d.Name, d.ID, a.paint(heldCell(d)))
			if d.Held != "" {
				fmt.Fprintf(a.out, "It is held still: %s\n", safe(d.Held))
			}
			return nil
		},
	}
}
