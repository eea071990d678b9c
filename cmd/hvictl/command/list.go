package command

import (
	"fmt"

	"github.com/spf13/cobra"

	"github.com/xen-hvi/hvi/control"
)

func (a *app) listCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "list",
		Short: "List all domains, protected or not",
		Long: `List every domain of this host with its state, its mode and the tier of
protection that Xen and the processor allow for it. While hvid restarts, those
domains are listed that wait for it, as restarting, and the exit code is 3.`,
		Example: `  hvictl list
  hvictl list -o json | jq -r '.[] | select(.state == "unprotected") | .name'`,
		Args:              argCount(0, 0, ""),
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c := a.client()
			defer c.Close()
			show := func(ds []control.DomainStatus) error {
				if a.format == formatJSON {
					return a.json(ds)
				}
				a.listTable(ds)
				return nil
			}
			ds, err := c.Domains(cmd.Context())
			if err != nil {
				return a.restarting(err, show)
			}
			return show(ds)
		},
	}
}

func (a *app) listTable(ds []control.DomainStatus) {
	if len(ds) == 0 {
		fmt.Fprintln(a.out, "No domain is running.")
		return
	}
	var rows [][]cell
	for _, d := range ds {
		rows = append(rows, []cell{
			number(d.ID), text(d.Name.String()), dash(d.Type), heldCell(d), dash(d.Mode), dash(string(d.Tier)), dash(d.UUID),
		})
	}
	a.table(a.out, "", []string{"ID", "NAME", "TYPE", "STATE", "MODE", "TIER", "UUID"}, rows)
}
