package command

import (
	"bufio"
	"strings"

	"github.com/spf13/cobra"

	"github.com/xen-hvi/hvi/engine/inspect/image"
)

func (a *app) profileCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "profile",
		Short: "Write what a guest's kernel says of its symbols and types",
		Long: `Every Linux kernel with BTF describes its own structures. Other tools want that as
a file.`,
		Example: `  hvictl profile export web1 > web1.json`,
		GroupID: groupGuest,
		Args:    argCount(0, 0, ""),
		RunE:    func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(a.profileExportCommand())
	return cmd
}

func (a *app) profileExportCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "export DOM|FILE",
		Short: "Write a profile for Volatility 3",
		Long: `Write the symbols and types of a guest's kernel as a profile in the intermediate
symbol format (ISF) of Volatility 3, some 15 MB of JSON, to standard output. What
has a slash in it is a memory image, anything else a running domain.

It takes a kernel with BTF. Only root may export from a running domain.`,
		Example: `  hvictl profile export web1 > web1.json
  hvictl profile export ./web1.core | xz > symbols/linux/web1.json.xz`,
		Args:              argCount(1, 1, "one domain, or a memory image as a path with a slash"),
		ValidArgsFunction: a.completeDomain,
		RunE: func(cmd *cobra.Command, args []string) error {
			if strings.Contains(args[0], "/") {
				return a.onImage(args[0], image.Options{}, func(im *image.Image) error { return im.ExportISF(a.out) })
			}
			c := a.client()
			defer c.Close()
			work := a.work("reading " + args[0])
			defer work.end()
			w := bufio.NewWriterSize(a.out, 1<<20)
			if err := c.Profile(cmd.Context(), args[0], w); err != nil {
				return a.restarting(suggest(err, args[0]), nil)
			}
			return w.Flush()
		},
	}
}
