package command

import (
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/xen-hvi/hvi/cmd/guestproblem"
	"github.com/xen-hvi/hvi/control"
	"github.com/xen-hvi/hvi/engine/guest/report"
	"github.com/xen-hvi/hvi/engine/inspect"
)

// view is how hvictl shows the answer to a question about a guest. There is one
// for each of inspect.Questions: `hvictl ps DOM` and `hvictl inspect FILE ps` are
// made from the same.
type view struct {
	kind inspect.Kind
	// long is what help says beside the question's meaning.
	long string
	// example is shown by the help of the domain's command.
	example string
	// show writes an answer, which is of the type of Question.Result. A
	// Problem that it returns decides the exit code only.
	show func(a *app, args inspect.Args, answer any) error
}

// views are all views, in the order of the questions.
func views() []view {
	return []view{
		infoView, processesView, mapsView, mountsView, modulesView, socketsView, logView,
		syscallsView, interruptsView, segmentsView, probesView, programsView, checkView,
	}
}

// question is the one that the view answers.
func (v view) question() inspect.Question {
	q, ok := inspect.Find(v.kind)
	if !ok {
		panic("hvictl shows what cannot be asked: " + string(v.kind))
	}
	return q
}

// operands is what follows the domain or file on the command line.
func operands(q inspect.Question) string {
	switch q.PID {
	case inspect.RequiredPID:
		return " PID"
	case inspect.OptionalPID:
		return " [PID]"
	}
	return ""
}

const aboutReading = `It is read from the guest's memory, from outside, while the guest goes on: nothing
runs in the guest, and nothing of it is changed. What changes while it is read is
read again, and what can't be told is said on standard error.

Only root may look into a guest. hvictl inspect shows the same of a memory image.`

// guestCommand is the command that asks about a running domain.
func (a *app) guestCommand(v view) *cobra.Command {
	q := v.question()
	var args inspect.Args
	long := q.Means + "."
	if v.long != "" {
		long += "\n\n" + v.long
	}
	cmd := &cobra.Command{
		Use:               string(q.Kind) + " DOM" + operands(q),
		Short:             q.Means,
		Long:              long + "\n\n" + aboutReading,
		Example:           v.example,
		GroupID:           groupGuest,
		Args:              pidArgs(q, aDomain),
		ValidArgsFunction: a.completeDomain,
		RunE: func(cmd *cobra.Command, operands []string) error {
			args := args
			if err := setPID(cmd, &args, operands[1:]); err != nil {
				return err
			}
			c := a.client()
			defer c.Close()
			answer := q.Result()
			work := a.work("reading " + operands[0])
			err := c.Guest(cmd.Context(), operands[0], q.Kind, args, answer)
			work.end()
			if err != nil {
				return a.restarting(suggest(err, operands[0]), nil)
			}
			return a.show(v, args, answer)
		},
	}
	if q.Threads {
		threadsFlag(cmd, &args)
	}
	return cmd
}

// pidArgs accepts what is asked about and, where the question has a use for
// one, a PID.
func pidArgs(q inspect.Question, what string) cobra.PositionalArgs {
	switch q.PID {
	case inspect.RequiredPID:
		return argCount(2, 2, what+", and a PID of the guest")
	case inspect.OptionalPID:
		return argCount(1, 2, what+", and maybe a PID of the guest")
	}
	return argCount(1, 1, what)
}

// setPID takes the PID from the operands after the first, if there is one.
func setPID(cmd *cobra.Command, args *inspect.Args, rest []string) error {
	if len(rest) == 0 {
		return nil
	}
	pid, err := inspect.ParsePID(rest[0])
	if err != nil {
		return usage(cmd, err.Error())
	}
	args.PID = pid
	return nil
}

func threadsFlag(cmd *cobra.Command, args *inspect.Args) {
	cmd.Flags().BoolVar(&args.Threads, "threads", false, "with ps, list every thread")
}

// show writes an answer as the user wants it. Its error is one of the view's,
// which decides the exit code in either format.
func (a *app) show(v view, args inspect.Args, answer any) error {
	if a.format != formatJSON {
		return v.show(a, args, answer)
	}
	if err := a.json(answer); err != nil {
		return err
	}
	if verdict, ok := answer.(*report.Verdict); ok {
		return verdictError(verdict)
	}
	return nil
}

// listView makes a view's show of a table: a line for each of rows.
func listView[T any](header []string, rows func(T) [][]cell) func(*app, inspect.Args, any) error {
	return func(a *app, _ inspect.Args, answer any) error {
		l := answer.(*report.List[T])
		var all [][]cell
		for _, it := range l.Items {
			all = append(all, rows(it)...)
		}
		a.table(a.out, "", header, all)
		a.incomplete(l.Reading)
		return nil
	}
}

// row is for a table that has one line for each item.
func row[T any](cells func(T) []cell) func(T) [][]cell {
	return func(it T) [][]cell { return [][]cell{cells(it)} }
}

// incomplete says what a report lacks.
func (a *app) incomplete(r report.Reading) {
	for _, s := range r.Incomplete {
		fmt.Fprintf(a.errOut, "hvictl: not shown: %s\n", safe(s))
	}
}

// place is where code is: red where no code should be.
func place(p report.Place) cell {
	if p.In == report.InNothing {
		return cell{text: "-"}
	}
	c := text(placeName(p))
	if !p.In.Code() {
		c.colour = red
	}
	return c
}

// placeName is "symbol+0x12 [module]", as the kernel itself writes it, or the
// bare address.
func placeName(p report.Place) string {
	var b strings.Builder
	switch {
	case p.Symbol != "":
		b.WriteString(p.Symbol.String())
		if p.Offset != 0 {
			fmt.Fprintf(&b, "+%#x", p.Offset)
		}
		if p.Module != "" {
			fmt.Fprintf(&b, " [%s]", p.Module)
		}
	case p.Module != "":
		fmt.Fprintf(&b, "[%s]+%#x", p.Module, p.Offset)
	case p.In == report.InUnknown:
		b.WriteString("unknown memory")
	default:
		fmt.Fprintf(&b, "(%s)", p.In)
	}
	return b.String()
}

// address is as the kernel writes one: all 16 digits, so that columns align.
func address[T ~uint64](v T) cell { return cell{text: fmt.Sprintf("%016x", uint64(v))} }

// seconds since boot, with so many decimals.
func seconds(ns uint64) string { return fmt.Sprintf("%d.%06d", ns/1e9, ns%1e9/1e3) }

// problemOf says what an error of reading means, with exit codes of hvictl's.
func problemOf(err error, where string) error {
	err = guestproblem.Of(err, where)
	if p, ok := err.(*control.Problem); ok && p.Code == control.CodeBadRequest {
		p.Where = ""
	}
	return err
}
