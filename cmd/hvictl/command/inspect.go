package command

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/xen-hvi/hvi/control"
	"github.com/xen-hvi/hvi/engine/guest/dump"
	"github.com/xen-hvi/hvi/engine/inspect"
	"github.com/xen-hvi/hvi/engine/inspect/image"
	"github.com/xen-hvi/hvi/engine/policy"
)

func (a *app) inspectCommand() *cobra.Command {
	var args inspect.Args
	var opt image.Options
	var what strings.Builder
	for _, q := range inspect.Questions() {
		fmt.Fprintf(&what, "  %-16s %s\n", string(q.Kind)+operands(q), q.Means)
	}
	cmd := &cobra.Command{
		Use:   "inspect FILE COMMAND [PID]",
		Short: "Look into a memory image: the same commands, no Xen needed",
		Long: `Look into the Linux guest whose memory is in a file. It takes no Xen, no hvid and
no symbol file, and runs as any user who can read the file. The file is one of:

  a Xen core       xl dump-core
  an ELF core      virsh dump --memory-only, QEMU's dump-guest-memory
  LiME             the LiME kernel module, format=lime
  raw              QEMU's pmemsave: byte n is the byte at physical address n

It is told by its content, unless --format says otherwise. The commands are those for running domains:

` + what.String() + `
What can't be told is said on standard error. A file that can't be read as a
memory image, or has no Linux kernel in it, is exit code 12; one that this user
may not read is 5. check has exit codes of its own: 10 if it found something, 11
if nothing was found but a check failed, or none could be made.`,
		Example: `  xl dump-core web1 web1.core && hvictl inspect web1.core ps
  hvictl inspect web1.core maps 812
  hvictl inspect web1.core check -o json | jq .findings`,
		GroupID: groupGuest,
		Args:    argCount(2, 3, "a file, what to show of it, and maybe a PID"),
		ValidArgsFunction: func(_ *cobra.Command, done []string, _ string) ([]cobra.Completion, cobra.ShellCompDirective) {
			if len(done) == 0 {
				return nil, cobra.ShellCompDirectiveDefault
			}
			var words []cobra.Completion
			if len(done) == 1 {
				for _, q := range inspect.Questions() {
					words = append(words, cobra.CompletionWithDesc(string(q.Kind), q.Means))
				}
			}
			return words, cobra.ShellCompDirectiveNoFileComp
		},
		RunE: func(cmd *cobra.Command, operands []string) error {
			i := slices.IndexFunc(views(), func(v view) bool { return string(v.kind) == operands[1] })
			if i < 0 {
				return usage(cmd, policy.UnknownWord("command", operands[1], inspect.Kinds(), policy.Origin{}).Error())
			}
			v := views()[i]
			args := args
			if err := setPID(cmd, &args, operands[2:]); err != nil {
				return err
			}
			q := v.question()
			var wrong *inspect.ArgumentError
			if err := q.Accepts(args); errors.As(err, &wrong) {
				return usage(cmd, wrong.Error())
			}
			if f := opt.Format; f != "" && !slices.Contains(image.Formats(), f) {
				return usage(cmd, policy.UnknownWord("format", f, image.Formats(), policy.Origin{Source: "--format"}).Error())
			}
			var answer any
			err := a.onImage(operands[0], opt, func(im *image.Image) (err error) {
				answer, err = im.Ask(q, args)
				return err
			})
			if err != nil {
				return err
			}
			return a.show(v, args, answer)
		},
	}
	threadsFlag(cmd, &args)
	f := cmd.Flags()
	f.StringVar(&opt.Profile, "profile", "", "take the kernel's types from `FILE` in the format of Volatility 3, for kernels without BTF")
	f.StringVar(&opt.Format, "format", "", "take the file for `raw|lime|elf|xen`, whatever it looks like")
	// The flag exists: it can't fail.
	_ = cmd.RegisterFlagCompletionFunc("format", cobra.FixedCompletions(image.Formats(), cobra.ShellCompDirectiveNoFileComp))
	return cmd
}

// onImage opens a memory image and does something with it.
func (a *app) onImage(path string, opt image.Options, do func(*image.Image) error) error {
	work := a.work("", phases()...)
	defer work.end()
	opt.Phase = func(p image.Phase) { work.at(slices.Index(image.Phases(), p), string(p)) }
	im, err := image.Open(path, opt)
	if err != nil {
		return imageProblem(err, path)
	}
	defer im.Close()
	if err := do(im); err != nil {
		return imageProblem(err, path)
	}
	return nil
}

func phases() []string {
	var words []string
	for _, p := range image.Phases() {
		words = append(words, string(p))
	}
	return words
}

// imageProblem says what is wrong with a file, or with the guest in it.
func imageProblem(err error, path string) error {
	var open *dump.OpenError
	var kernel *image.KernelError
	switch {
	case errors.As(err, &open):
		p := &control.Problem{Code: codeImage, Where: path, Fix: open.Hint, Err: err}
		words := []string{open.Err.Error()}
		if open.Format != "" {
			words = []string{string(open.Format), open.Err.Error()}
		}
		if open.Detail != "" {
			words = append(words, open.Detail)
		}
		p.What = strings.Join(words, ": ")
		if p.Fix == "" {
			p.Fix = "give a memory image: hvictl inspect --help says which"
		}
		if errors.Is(err, os.ErrPermission) {
			p.Code, p.Fix = control.CodePermission, "run it as a user who may read the file"
		}
		return p
	case errors.As(err, &kernel):
		p := &control.Problem{Code: codeNoKernel, Where: path, Err: err}
		p.What = fmt.Sprintf("%v in this %s image", image.ErrNoKernel, kernel.Format)
		var why *control.Problem
		if errors.As(problemOf(kernel.Err, path), &why) {
			p.What, p.Fix = p.What+": "+why.What, why.Fix
		}
		return p
	case errors.Is(err, dump.ErrGone):
		return &control.Problem{Code: codeImage, What: err.Error(), Where: path, Fix: "inspect it when it is written", Err: err}
	}
	return problemOf(err, path)
}
