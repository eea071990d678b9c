package command

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/xen-hvi/hvi/control"
	"github.com/xen-hvi/hvi/engine/policy"
	"github.com/xen-hvi/hvi/engine/printable"
)

// Exit codes. They are part of hvictl's interface; exitCodesTopic documents
// them.
const (
	exitOK          = 0
	exitFailure     = 1
	exitUsage       = 2
	exitUnreachable = 3
	exitNoDomain    = 4
	exitPermission  = 5
	exitRefused     = 6
	exitDoctor      = 7
	exitWrongFile   = 8
	exitWarnings    = 9
	exitFindings    = 10
	exitUnchecked   = 11
	exitImage       = 12
	exitInterrupted = 130
)

// Codes of problems that hvictl itself finds.
const (
	codeUsage  control.Code = "usage"
	codeDoctor control.Code = "doctor"
	codeFailed control.Code = "not_protected"
	codeXL     control.Code = "xl_failed"
	// codeNotKept: hvid keeps no policy of a domain that there is.
	codeNotKept   control.Code = "not_kept"
	codeWrongFile control.Code = "wrong_file"
	codeWarnings  control.Code = "warnings"
	codeFindings  control.Code = "findings"
	codeUnchecked control.Code = "unchecked"
	// codeImage: a file that is no memory image that can be read; codeNoKernel:
	// one without a Linux kernel.
	codeImage    control.Code = "wrong_image"
	codeNoKernel control.Code = "no_kernel"
)

var exitOf = map[control.Code]int{
	codeUsage:                exitUsage,
	control.CodeBadRequest:   exitUsage,
	control.CodeUnreachable:  exitUnreachable,
	control.CodeUnavailable:  exitUnreachable,
	control.CodeNoSuchDomain: exitNoDomain,
	control.CodePermission:   exitPermission,
	control.CodeAmbiguous:    exitRefused,
	control.CodeConflict:     exitRefused,
	control.CodeNotPossible:  exitRefused,
	control.CodeBusy:         exitRefused,
	codeFailed:               exitRefused,
	codeNotKept:              exitRefused,
	codeDoctor:               exitDoctor,
	codeWrongFile:            exitWrongFile,
	codeWarnings:             exitWarnings,
	codeFindings:             exitFindings,
	codeUnchecked:            exitUnchecked,
	codeImage:                exitImage,
	codeNoKernel:             exitImage,
}

func exitCodesTopic() *cobra.Command {
	return &cobra.Command{
		Use:   "exit-codes",
		Short: "What hvictl's exit codes mean",
		Long: `hvictl ends with one of these codes. They do not change between releases.

  0    done
  1    failed for a reason that has no code of its own; with create, xl failed
  2    the command line or the request is wrong
  3    hvid is not reachable, restarts or is stopping; is it running?
  4    there is no such domain
  5    this user may not do it
  6    refused: not possible with this domain or this Xen, in conflict with
       its state, an ambiguous name, hvid has too much to do, or a domain
       that was to be protected is not
  7    doctor found something missing or failing
  8    policy check found something wrong with a file
  9    doctor --warnings found nothing worse than a warning
  10   check found something in the guest
  11   check found nothing, but a check failed, or none could be made
  12   inspect: the file is missing, empty, truncated, no memory image that
       hvi reads, or has no Linux kernel in it
  130  interrupted; events -f, which ends no other way, ends with 0

With -o json an error is one JSON object on standard error. Its member "code"
is more exact than the exit code and as stable.

Example:
  hvictl doctor >/dev/null || echo "hvictl doctor: exit code $?"`,
	}
}

// report writes an error for people or programs and returns the exit code.
func (a *app) report(err error) int {
	if err == nil {
		return exitOK
	}
	if errors.Is(err, context.Canceled) {
		return exitInterrupted
	}
	var p *control.Problem
	if !errors.As(err, &p) {
		p = &control.Problem{Code: control.CodeInternal, What: err.Error()}
	}
	code, ok := exitOf[p.Code]
	if !ok {
		code = exitFailure
	}
	switch p.Code {
	case codeDoctor, codeWrongFile, codeWarnings, codeFindings, codeUnchecked:
		return code // the report has said it all
	}
	if a.format == formatJSON {
		_ = writeJSON(a.errOut, struct {
			Error string `json:"error"`
			*control.Problem
		}{p.Error(), p}, "")
		return code
	}
	fmt.Fprintf(a.errOut, "hvictl: %s\n", safe(p.What))
	if p.Where != "" {
		fmt.Fprintf(a.errOut, "  where: %s\n", safe(p.Where))
	}
	if len(p.Candidates) > 0 {
		label := "known"
		if p.Code == control.CodeAmbiguous {
			label = "these"
		}
		fmt.Fprintf(a.errOut, "  %s: %s\n", label, candidates(p))
	}
	if p.Fix != "" {
		fmt.Fprintf(a.errOut, "  fix:   %s\n", safe(p.Fix))
	}
	return code
}

// safe returns a string of hvid's fit for a terminal, whatever it holds.
func safe(s string) string { return printable.Text(s).String() }

// shownCandidates is how many domains an error lists.
const shownCandidates = 12

func candidates(p *control.Problem) string {
	var b strings.Builder
	for i, c := range p.Candidates {
		if i == shownCandidates {
			fmt.Fprintf(&b, " and %d more", len(p.Candidates)-i)
			break
		}
		if i > 0 {
			b.WriteString(", ")
		}
		fmt.Fprintf(&b, "%s (%d)", c.Name, c.ID)
		if p.Code == control.CodeAmbiguous {
			b.WriteString(" " + safe(c.UUID))
		}
	}
	return b.String()
}

// suggest adds to an error about an unknown domain the name that may have been
// meant.
func suggest(err error, ref string) error {
	var p *control.Problem
	if !errors.As(err, &p) || p.Code != control.CodeNoSuchDomain {
		return err
	}
	var names []string
	for _, c := range p.Candidates {
		names = append(names, c.Name.String())
	}
	if near := policy.Nearest(ref, names); near != "" {
		q := *p
		q.Fix = `did you mean "` + near + `"? ` + p.Fix
		return &q
	}
	return err
}
