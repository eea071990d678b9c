package command

import (
	"fmt"

	"github.com/spf13/cobra"
)

func (a *app) detachCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "detach DOM",
		Short: "End the protection of a domain",
		Long: `End the protection of a domain, which goes on running. When the command has
ended well, nothing of hvi is left in Xen for this domain, but that one which a
guard has paused stays paused: hvictl resume lets it run on.

Only root may detach.`,
		Example:           `  hvictl detach web1`,
		Args:              argCount(1, 1, aDomain),
		ValidArgsFunction: a.completeDomain,
		RunE: func(cmd *cobra.Command, args []string) error {
			c := a.client()
			defer c.Close()
			d, err := c.Detach(cmd.Context(), args[0])
			if err != nil {
				return suggest(err, args[0])
			}
			if a.format == formatJSON {
				return a.json(d)
			}
			fmt.Fprintf(a.out, "%s (domain %d): %s\n", d.Name, d.ID, a.paint(stateCell(d.State)))
			return nil
		},
	}
}
