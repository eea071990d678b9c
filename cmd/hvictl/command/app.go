package command

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf16"
	"unicode/utf8"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/xen-hvi/hvi/cmd/hostcheck"
	"github.com/xen-hvi/hvi/control"
	"github.com/xen-hvi/hvi/engine/policy"
)

// app is what the commands share: where they write, and what the global flags
// said.
type app struct {
	in          io.Reader
	out, errOut io.Writer
	colour      bool
	// progress says that what takes long may show so, on errOut.
	progress bool
	// screen says that out is a terminal, which can be cleared.
	screen bool
	now    func() time.Time
	zone   *time.Location
	// host is what doctor examines without hvid.
	host hostcheck.Options
	// xl is the program.
	xl string

	socket string
	format format
}

// format is how a command writes its result.
type format string

const (
	formatTable format = "table"
	formatJSON  format = "json"
)

var formats = []string{string(formatTable), string(formatJSON)}

// String returns the word.
func (f *format) String() string { return string(*f) }

// Type is what help calls the value.
func (f *format) Type() string { return strings.Join(formats, "|") }

// Set takes one of the words.
func (f *format) Set(s string) error {
	if !slices.Contains(formats, s) {
		return policy.UnknownWord("output format", s, formats, policy.Origin{})
	}
	*f = format(s)
	return nil
}

// run executes a command line and returns the exit code.
func (a *app) run(ctx context.Context, args []string) int {
	root := a.root()
	root.SetArgs(args)
	return a.report(a.restarting(root.ExecuteContext(ctx), nil))
}

// Groups of commands, as help shows them.
const (
	groupProtection = "protection"
	groupGuest      = "guest"
)

func (a *app) root() *cobra.Command {
	a.socket, a.format = control.DefaultSocket, formatTable
	root := &cobra.Command{
		Use:   "hvictl",
		Short: "See and steer the protection of this host's guests",
		Long: `hvictl talks to hvid, the daemon that protects the kernels of this host's Xen
guests from outside. Guests are named by domid, name or UUID.`,
		Example: `  hvictl status              what is protected, and how
  hvictl status web1         one guest in full
  hvictl events -f           violations as they happen
  hvictl ps web1             what runs in the guest, read from outside
  hvictl doctor              what is missing on this host`,
		Args:          cobra.ArbitraryArgs,
		SilenceErrors: true,
		SilenceUsage:  true,
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) > 0 {
				return unknownCommand(cmd, "command", args[0])
			}
			return cmd.Help()
		},
	}
	root.SetOut(a.out)
	root.SetErr(a.errOut)
	root.SetFlagErrorFunc(flagError)
	p := root.PersistentFlags()
	p.StringVar(&a.socket, "socket", a.socket, "hvid's control socket")
	p.VarP(&a.format, "output", "o", "write a table for people, or JSON")
	// The flag exists: it can't fail.
	_ = root.RegisterFlagCompletionFunc("output", cobra.FixedCompletions(formats, cobra.ShellCompDirectiveNoFileComp))
	root.AddGroup(&cobra.Group{ID: groupProtection, Title: "Protection:"}, &cobra.Group{ID: groupGuest, Title: "Looking into a guest:"})
	for _, c := range []*cobra.Command{
		a.allowCommand(), a.attachCommand(), a.breakpointCommand(), a.createCommand(), a.detachCommand(), a.doctorCommand(), a.eventsCommand(), a.exceptionsCommand(), a.guardsCommand(),
		a.learnCommand(), a.listCommand(), a.policyCommand(), a.resumeCommand(), a.setCommand(), a.statusCommand(), a.topCommand(), a.viewsCommand(),
	} {
		c.GroupID = groupProtection
		root.AddCommand(c)
	}
	root.AddCommand(a.inspectCommand(), a.profileCommand())
	for _, v := range views() {
		root.AddCommand(a.guestCommand(v))
	}
	root.AddCommand(a.versionCommand(), exitCodesTopic())
	root.SetHelpCommand(helpCommand(root))
	return root
}

// helpCommand is cobra's, but an unknown topic is an error.
func helpCommand(root *cobra.Command) *cobra.Command {
	return &cobra.Command{
		Use:   "help [command]",
		Short: "Help about a command or a topic",
		Example: `  hvictl help attach
  hvictl help exit-codes`,
		ValidArgsFunction: func(_ *cobra.Command, args []string, _ string) ([]cobra.Completion, cobra.ShellCompDirective) {
			var names []cobra.Completion
			if len(args) == 0 {
				for _, c := range root.Commands() {
					names = append(names, cobra.CompletionWithDesc(c.Name(), c.Short))
				}
			}
			return names, cobra.ShellCompDirectiveNoFileComp
		},
		RunE: func(_ *cobra.Command, args []string) error {
			cmd, rest, err := root.Find(args)
			if err != nil || cmd == nil || len(rest) > 0 {
				return unknownCommand(root, "help topic", strings.Join(args, " "))
			}
			cmd.InitDefaultHelpFlag()
			return cmd.Help()
		},
	}
}

// unknownCommand names the command that may have been meant.
func unknownCommand(root *cobra.Command, what, got string) error {
	var names []string
	for _, c := range root.Commands() {
		if !c.Hidden {
			names = append(names, c.Name())
		}
	}
	p := usage(root, policy.UnknownWord(what, got, names, policy.Origin{}).Error())
	return p
}

// flagError explains what is wrong with a flag.
func flagError(cmd *cobra.Command, err error) error {
	unknown, ok := err.(*pflag.NotExistError)
	if !ok || unknown.GetSpecifiedShortnames() != "" {
		return usage(cmd, err.Error())
	}
	var names []string
	cmd.Flags().VisitAll(func(f *pflag.Flag) { names = append(names, f.Name) })
	near := policy.Nearest(unknown.GetSpecifiedName(), names)
	p := usage(cmd, "unknown flag "+policy.Quote("--"+unknown.GetSpecifiedName()))
	if near != "" {
		p.What += "; did you mean --" + near + "?"
	}
	return p
}

// usage makes the error for a command line that is wrong.
func usage(cmd *cobra.Command, what string) *control.Problem {
	return &control.Problem{Code: codeUsage, What: what, Fix: cmd.CommandPath() + " --help"}
}

// argCount accepts between least and most arguments, which help names.
func argCount(least, most int, what string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		switch {
		case len(args) < least:
			return usage(cmd, cmd.CommandPath()+" needs "+what)
		case len(args) > most && most == 0:
			return usage(cmd, fmt.Sprintf("%s takes no arguments, not %s", cmd.CommandPath(), policy.Quote(args[0])))
		case len(args) > most:
			return usage(cmd, fmt.Sprintf("%s takes %s, and not %s too", cmd.CommandPath(), what, policy.Quote(args[most])))
		}
		return nil
	}
}

const aDomain = "one domain: a domid, a name or a UUID"

// client returns a client of the hvid that --socket names.
func (a *app) client() *control.Client { return control.NewClient(a.socket) }

// json writes a result for programs.
func (a *app) json(v any) error { return writeJSON(a.out, v, "  ") }

// writeJSON writes v and a newline. What a terminal would not print but obey is
// escaped, which means the same to programs: JSON is read by people, too.
func writeJSON(w io.Writer, v any, indent string) error {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	e.SetIndent("", indent)
	if err := e.Encode(v); err != nil {
		return err
	}
	out := make([]byte, 0, b.Len())
	for _, r := range b.String() {
		switch {
		case r == '\n' || strconv.IsPrint(r):
			out = utf8.AppendRune(out, r)
		case r < 0x10000:
			out = fmt.Appendf(out, `\u%04x`, r)
		default:
			r1, r2 := utf16.EncodeRune(r)
			out = fmt.Appendf(out, `\u%04x\u%04x`, r1, r2)
		}
	}
	_, err := w.Write(out)
	return err
}

// completionTime bounds how long a shell waits for hvid after a tab.
const completionTime = 2 * time.Second

// completeDomain offers the names of domains in the place of the first
// argument.
func (a *app) completeDomain(cmd *cobra.Command, args []string, _ string) ([]cobra.Completion, cobra.ShellCompDirective) {
	if len(args) > 0 {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	return a.domainNames(cmd)
}

func (a *app) domainNames(cmd *cobra.Command) ([]cobra.Completion, cobra.ShellCompDirective) {
	ctx, cancel := context.WithTimeout(cmd.Context(), completionTime)
	defer cancel()
	c := a.client()
	defer c.Close()
	ds, err := c.Domains(ctx)
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	var names []cobra.Completion
	for _, d := range ds {
		// A shell would split or run what is in a strange name.
		if name := d.Name.String(); name != "" && strings.Trim(name, plainName) == "" {
			names = append(names, cobra.CompletionWithDesc(name, string(d.State)))
		}
	}
	return names, cobra.ShellCompDirectiveNoFileComp
}

const plainName = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_."
