package command

import (
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/xen-hvi/hvi/control"
)

func (a *app) versionCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "version",
		Short: "Show the versions of hvictl, hvid and Xen",
		Long: `Show the versions of hvictl and, where it is reachable, of hvid and Xen. The
exit code is 0 without hvid too.`,
		Example: `  hvictl version
  hvictl version -o json | jq -r .hvictl.version`,
		Args:              argCount(0, 0, ""),
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c := a.client()
			defer c.Close()
			res := struct {
				Hvictl control.Build `json:"hvictl"`
				// Hvid is nil where there is none to ask.
				Hvid    *control.Version `json:"hvid"`
				Problem *control.Problem `json:"hvid_problem,omitempty"`
			}{Hvictl: control.ThisBuild()}
			v, err := c.Version(cmd.Context())
			switch {
			case err == nil:
				res.Hvid = &v
			case !errors.As(err, &res.Problem):
				return err
			}
			if a.format == formatJSON {
				return a.json(res)
			}
			fmt.Fprintf(a.out, "hvictl  %s\n", safe(res.Hvictl.String()))
			if res.Hvid == nil {
				fmt.Fprintf(a.out, "hvid    unknown: %s\n", safe(res.Problem.Error()))
				return nil
			}
			fmt.Fprintf(a.out, "hvid    %s\n", safe(v.Build.String()))
			fmt.Fprintf(a.out, "Xen     %s\n", dash(v.Xen).text)
			return nil
		},
	}
}
