// Lab boots a real Xen in an emulator and runs scenarios in its control domain,
// and takes memory images of Linux guests.
//
//	lab list               the scenarios, one line each
//	lab run NAME[,NAME]... run them; results go to lab/out/NAME.json. NAME@4.20 is
//	                       one on another release of Xen than usual
//	lab images             build everything that runs need, run nothing
//	lab specimen KERNEL    take a memory image of a Linux guest
//	lab protection         write docs/protection.md from the attacks' results
//	lab clean              remove the cache and the results
//
// It needs no KVM. As root, it installs the few host programs that it lacks;
// everything else it fetches into a cache of its own.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/xen-hvi/hvi/lab/archive"
	"github.com/xen-hvi/hvi/lab/image"
	"github.com/xen-hvi/hvi/lab/outside"
	"github.com/xen-hvi/hvi/lab/runner"
	"github.com/xen-hvi/hvi/lab/scenario"
)

// errFailed ends the program after the results have said why.
var errFailed = errors.New("a scenario failed")

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := command().ExecuteContext(ctx)
	stop()
	if err != nil {
		if !errors.Is(err, errFailed) {
			fmt.Fprintln(os.Stderr, "lab:", err)
		}
		os.Exit(1)
	}
}

func command() *cobra.Command {
	root := &cobra.Command{
		Use:           "lab",
		Short:         "Run scenarios on a real Xen in an emulator",
		SilenceUsage:  true,
		SilenceErrors: true,
	}
	root.AddCommand(runCommand(), listCommand(), imagesCommand(), cleanCommand(), specimenCommand(), protectionCommand())
	return root
}

func listCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "list",
		Short: "Show the scenarios",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			w := tabwriter.NewWriter(cmd.OutOrStdout(), 0, 0, 2, ' ', 0)
			for _, s := range scenarios(nil) {
				fmt.Fprintf(w, "%s\t%s\t%s\n", s.Name, s.Emulator, s.Brief)
			}
			return w.Flush()
		},
	}
}

func imagesCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "images",
		Short: "Build everything that runs need",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			p := newProgress(os.Stderr)
			b, err := newBuilder(cmd.Context(), p)
			if err != nil {
				return err
			}
			if err := b.Everything(cmd.Context()); err != nil {
				return err
			}
			p.line("images are ready in %s", b.CacheDir)
			return nil
		},
	}
}

func runCommand() *cobra.Command {
	var quiet bool
	var xen string
	cmd := &cobra.Command{
		Use:     "run NAME[,NAME]...",
		Short:   "Run scenarios",
		Example: "  lab run boot-intel\n  lab run -q boot-intel,boot-amd\n  lab run boot-intel,boot-intel@4.20\n  lab run --xen 4.20 boot-intel,views",
		Args:    cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			p := newProgress(os.Stderr)
			// What is asked for is looked for before anything is built.
			if _, err := find(nil, xen, args); err != nil {
				return err
			}
			b, err := newBuilder(cmd.Context(), p)
			if err != nil {
				return err
			}
			list, err := find(b, xen, args)
			if err != nil {
				return err
			}
			return run(cmd.Context(), b, p, list, quiet)
		},
	}
	cmd.Flags().StringVar(&xen, "xen", image.DefaultXen, "the release of Xen to boot for a scenario that names none: "+strings.Join(image.Xens(), ", "))
	cmd.Flags().BoolVarP(&quiet, "quiet", "q", false, "do not show the machines' consoles (they are kept in lab/out)")
	return cmd
}

// scenarios returns all that there are, sorted by name. Those of the host can't
// be run without a builder.
func scenarios(b *image.Builder) []scenario.Scenario {
	all := append(scenario.All(), outside.Scenarios(outside.Env{Builder: b})...)
	slices.SortFunc(all, func(a, b scenario.Scenario) int { return strings.Compare(a.Name, b.Name) })
	return all
}

// find returns the scenarios that the arguments name, with xen as the release of Xen
// of those that name none.
func find(b *image.Builder, xen string, args []string) ([]scenario.Scenario, error) {
	names := strings.FieldsFunc(strings.Join(args, ","), func(r rune) bool { return r == ',' || r == ' ' })
	list, err := scenario.Find(scenarios(b), names...)
	if err != nil {
		return nil, err
	}
	for i := range list {
		s := &list[i]
		switch {
		case s.Emulator == scenario.Host && s.Release != "":
			return nil, fmt.Errorf("%s runs on the host, without Xen", s.Name)
		case s.Emulator == scenario.Host:
			continue
		case s.Release == "":
			s.Release = xen
		}
		if !slices.Contains(image.Xens(), s.Release) {
			return nil, &image.XenError{Release: s.Release}
		}
		if s.Release == image.DefaultXen {
			s.Release = "" // so that NAME is the same, however it was asked for
		}
	}
	return list, nil
}

func run(ctx context.Context, b *image.Builder, p *progress, list []scenario.Scenario, quiet bool) error {
	several := map[scenario.Emulator]bool{}
	for _, s := range list {
		several[s.Emulator] = true
	}
	r := &runner.Runner{Builder: b, Out: filepath.Join(b.Root, "lab", "out"), Show: func(e scenario.Emulator, source, line string) {
		prefix := ""
		if len(several) > 1 {
			prefix = string(e) + "| "
		}
		switch {
		case source == "lab":
			p.line("%s%s", prefix, line)
		case source != "" || !quiet:
			p.text(prefix + line)
		}
	}}
	results, err := r.Run(ctx, list)
	failed := err != nil
	for _, x := range results {
		p.text(x.Summary())
		failed = failed || !x.OK
	}
	if len(results) > 0 {
		p.text("results: " + r.Out)
	}
	switch {
	case err != nil:
		return err
	case failed:
		return errFailed
	}
	return nil
}

func newBuilder(ctx context.Context, p *progress) (*image.Builder, error) {
	cache, err := archive.DefaultCacheDir()
	if err != nil {
		return nil, err
	}
	root, err := image.FindRoot(".")
	if err != nil {
		return nil, err
	}
	if err := installTools(ctx, p); err != nil {
		return nil, err
	}
	a, err := archive.Open(ctx, archive.Options{CacheDir: cache, Progress: p.archive})
	if err != nil {
		return nil, err
	}
	return &image.Builder{Archive: a, CacheDir: cache, Root: root, Progress: p.image}, nil
}

// installTools installs the host programs that recipes run, if some are
// missing and we may.
func installTools(ctx context.Context, p *progress) error {
	err := image.CheckTools()
	var missing *image.ToolError
	if !errors.As(err, &missing) || os.Geteuid() != 0 {
		return err
	}
	p.line("%s is not installed: %s", missing.Tool, missing.Install())
	for _, line := range []string{"apt-get -q update", missing.Install()} {
		cmd := exec.CommandContext(ctx, "sh", "-c", line)
		cmd.Env = append(os.Environ(), "DEBIAN_FRONTEND=noninteractive")
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("%s: %w\n%s", line, err, out)
		}
	}
	return image.CheckTools()
}

func cleanCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "clean",
		Short: "Remove the cache and the results",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cache, err := archive.DefaultCacheDir()
			if err != nil {
				return err
			}
			root, err := image.FindRoot(".")
			if err != nil {
				return err
			}
			for _, dir := range []string{cache, filepath.Join(root, "lab", "out")} {
				fmt.Fprintln(cmd.OutOrStdout(), "removing", dir)
				if err := os.RemoveAll(dir); err != nil {
					return err
				}
			}
			return nil
		},
	}
}
