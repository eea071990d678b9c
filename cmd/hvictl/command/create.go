package command

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/xen-hvi/hvi/control"
	"github.com/xen-hvi/hvi/engine/policy"
	"github.com/xen-hvi/hvi/engine/printable"
	"github.com/xen-hvi/hvi/xlplugin"
)

// creation is a command line of `hvictl create`: xl's own options and ours.
type creation struct {
	quiet, paused, console, dry, debug, foreground, unwatched bool
	vnc, vncPass, anyCPU                                      bool
	// defconfig is the value of -f, config the one that counts.
	defconfig, config string
	// extra are assignments that xl reads after the config.
	extra   []string
	timeout time.Duration
}

func (a *app) createCommand() *cobra.Command {
	var o creation
	cmd := &cobra.Command{
		Use:   "create CONFIG [KEY=VALUE...]",
		Short: "Create a domain with xl, protected before its first instruction",
		Long: `Create a domain from an xl config and let it run only once hvi is attached.

This is xl create with all its options, and a gate: the domain is created
paused, hvid is asked, and then the domain is unpaused. If hvid cannot attach
although the config asks for it, whether with require_attach or without, the
domain is destroyed and the command fails. A domain for which nothing is
declared is started as xl starts it, and the result says so. Without hvid
nothing is created.

KEY=VALUE are assignments as in the config; they come after its own. A config of
/dev/null stands for none: all is in the assignments. Options may stand anywhere,
also after the config. A domain that restarts later is created by xl itself: to
gate those starts too, set introspection_require_attach = 1 in the config.

With -F the command stays until the domain has ended. With -n it is exactly
xl create -n. What xl says goes to standard error; the result is one line, or
with -o json an object with the members id, name, uuid, state, paused, reason.`,
		Example: `  hvictl create /etc/xen/web1.cfg
  hvictl create -c /etc/xen/web1.cfg memory=2048
  hvictl create -p /etc/xen/web1.cfg && xl unpause web1
  hvictl create -q -e -f web1.cfg 'introspection="enforce"' || echo "not protected: exit code $?"`,
		Args: func(cmd *cobra.Command, args []string) error { return o.arguments(cmd, args) },
		ValidArgsFunction: func(_ *cobra.Command, args []string, _ string) ([]cobra.Completion, cobra.ShellCompDirective) {
			if len(args) > 0 {
				return nil, cobra.ShellCompDirectiveNoFileComp
			}
			return []cobra.Completion{"cfg", "xl", "hvm", "pvh"}, cobra.ShellCompDirectiveFilterFileExt
		},
		RunE: func(cmd *cobra.Command, _ []string) error {
			if o.dry {
				return a.runXL(true, o.argv()...)
			}
			return a.create(cmd.Context(), cmd, o)
		},
	}
	f := cmd.Flags()
	f.SortFlags = false
	f.StringVarP(&o.defconfig, "defconfig", "f", "", "the config `FILE`, instead of the argument")
	f.BoolVarP(&o.paused, "paused", "p", false, "leave the domain paused, attached")
	f.BoolVarP(&o.console, "console", "c", false, "connect to its console")
	f.BoolVarP(&o.quiet, "quiet", "q", false, "say nothing but errors")
	f.BoolVarP(&o.unwatched, "no-monitor", "e", false, "leave no xl in the background to restart it when it ends")
	f.BoolVarP(&o.foreground, "foreground", "F", false, "stay until the domain has ended")
	f.BoolVarP(&o.dry, "dryrun", "n", false, "create nothing; write the domain's configuration as xl understands it")
	f.BoolVarP(&o.debug, "debug", "d", false, "let xl write debug messages")
	f.BoolVarP(&o.vnc, "vncviewer", "V", false, "connect to its VNC display")
	f.BoolVarP(&o.vncPass, "vncviewer-autopass", "A", false, "the same, and give the viewer the password")
	f.BoolVarP(&o.anyCPU, "ignore-global-affinity-masks", "i", false, "ignore the affinity masks of xl.conf")
	f.DurationVar(&o.timeout, "timeout", 0, "how long to wait for hvid, at most 35s; default: hvid's own")
	return cmd
}

// arguments sorts them as xl does: what has a "=" is an assignment.
func (o *creation) arguments(cmd *cobra.Command, args []string) error {
	o.config, o.extra = "", nil
	given := cmd.Flags().Changed("defconfig")
	if given {
		o.config = o.defconfig
	}
	for _, arg := range args {
		switch {
		case strings.Contains(arg, "="):
			o.extra = append(o.extra, arg)
		case given:
			return usage(cmd, fmt.Sprintf("two configs are given: %s and %s", policy.Quote(o.config), policy.Quote(arg)))
		default:
			o.config, given = arg, true
		}
	}
	switch {
	case o.config == "":
		p := usage(cmd, "hvictl create needs a config")
		p.Fix = "name a file, or /dev/null where all is in KEY=VALUE arguments"
		return p
	case o.timeout < 0 || o.timeout > control.MaxGate || o.timeout > 0 && o.timeout < time.Millisecond:
		return usage(cmd, fmt.Sprintf("--timeout is out of range: give 1ms to %v", control.MaxGate))
	}
	return nil
}

// argv is the command line of xl: options, config and assignments in the order
// and form that every xl and C library reads alike.
func (o *creation) argv() []string {
	argv := []string{"create"}
	for _, opt := range []struct {
		given bool
		arg   string
	}{
		{o.dry, "-n"}, {!o.dry, "-p"}, {o.quiet, "-q"}, {o.debug, "-d"}, {o.unwatched, "-e"},
		{o.foreground, "-F"}, {o.vnc, "-V"}, {o.vncPass, "-A"}, {o.anyCPU, "--ignore-global-affinity-masks"},
	} {
		if opt.given {
			argv = append(argv, opt.arg)
		}
	}
	argv = append(argv, "--defconfig="+o.config)
	if len(o.extra) > 0 {
		argv = append(append(argv, "--"), o.extra...)
	}
	return argv
}

// created is the result, for programs.
type created struct {
	ID    uint16         `json:"id"`
	Name  printable.Text `json:"name"`
	UUID  string         `json:"uuid,omitempty"`
	State control.State  `json:"state"`
	// Paused reports whether the domain was left paused, as -p asks.
	Paused bool   `json:"paused"`
	Reason string `json:"reason,omitempty"`
}

func (a *app) create(ctx context.Context, cmd *cobra.Command, o creation) error {
	name, warnings, err := o.name(cmd)
	if err != nil {
		return err
	}
	for _, w := range warnings {
		fmt.Fprintf(a.errOut, "hvictl: warning: %s\n", safe(w.String()))
	}
	c := a.client()
	defer c.Close()
	// Nothing is created where it could not be protected.
	before, err := c.Domains(ctx)
	if err != nil {
		return err
	}
	x, id, err := a.begin(o)
	if err != nil {
		return a.leftBehind(err, name, before)
	}
	defer x.stop()
	if x == nil {
		if id, err = a.domid(name, a.errOut); err != nil {
			return err
		}
	}
	if slices.ContainsFunc(before, func(d control.DomainStatus) bool { return d.ID == id }) {
		return &control.Problem{
			Code: control.CodeConflict, What: fmt.Sprintf("the domain that is called %s ran before: domain %d", policy.Quote(name), id),
			Where: o.config, Fix: "see xl list; the new domain, if there is one, is paused",
		}
	}
	g, uuid, err := a.gate(ctx, c, id, o.timeout)
	if err == nil && !mayRun(g) {
		reason := g.Reason
		if reason == "" {
			reason = "its state is " + string(g.State)
		}
		err = &control.Problem{Code: codeFailed, What: printable.Escape(name).String() + " is not protected: " + reason, Fix: g.Fix}
	}
	if err != nil {
		return a.abandon(err, id)
	}
	res := created{ID: id, Name: printable.Escape(name), UUID: uuid, State: g.State, Paused: o.paused, Reason: g.Reason}
	var console *exec.Cmd
	if o.console {
		// Before the guest runs, so that nothing of it is missed.
		console = a.xlCommand("console", strconv.Itoa(int(id)))
		console.Stdin, console.Stdout, console.Stderr = os.Stdin, a.out, a.errOut
		if err := console.Start(); err != nil {
			return a.abandon(xlProblem("console", err, nil), id)
		}
	}
	if !o.paused {
		if err := a.runXL(false, "unpause", strconv.Itoa(int(id))); err != nil {
			return err
		}
	}
	if err := a.createdLine(o, res); err != nil {
		return err
	}
	if console != nil {
		if err := console.Wait(); err != nil {
			return xlProblem("console", err, nil)
		}
	}
	if o.foreground {
		return x.wait(ctx)
	}
	return nil
}

// mayRun reports whether a new domain may be started: hvi is attached, or
// nobody asks for it. Whoever names the gate wants certainty, so a domain that
// may run unprotected by its policy may not here.
func mayRun(g control.GateResult) bool {
	switch g.State {
	case control.StateUnprotected, control.StateAttached, control.StateIdentifying, control.StateProtecting, control.StateDegraded:
		return g.Open
	}
	return false
}

// name finds what the config calls the domain, and refuses a config that xl or
// hvid would.
func (o *creation) name(cmd *cobra.Command) (string, []xlplugin.Warning, error) {
	bad := func(err error) error {
		p := usage(cmd, oneLine(err))
		p.Where, p.Err = o.config, err
		p.Fix = "correct the config; nothing was created"
		return p
	}
	var data []byte
	if o.config != "/dev/null" { // as xl
		var err error
		if data, err = readRegular(o.config, xlplugin.MaxConfigSize); err != nil {
			return "", nil, bad(err)
		}
	}
	cfg, err := xlplugin.Parse(o.config, data, o.extra...)
	if err != nil {
		return "", nil, bad(err)
	}
	d, err := xlplugin.FromConfig(cfg, anyPolicy{})
	if err == nil && d.Name == "" {
		err = errors.New("the config gives the domain no name")
	}
	if err != nil {
		return "", nil, bad(err)
	}
	return d.Name, d.Warnings, nil
}

// anyPolicy has every policy that a config may name: which there are is hvid's
// to know.
type anyPolicy struct{}

// Policy returns an empty one.
func (anyPolicy) Policy(name string) (*policy.Named, error) {
	return &policy.Named{Name: name, Origin: policy.Origin{Source: "hvid"}}, nil
}

// Names returns none.
func (anyPolicy) Names() []string { return nil }

// oneLine joins the lines of a joined error.
func oneLine(err error) string { return strings.ReplaceAll(err.Error(), "\n", "; ") }

// readRegular reads a file that is no pipe or device: xl refuses those, and
// they can be read only once.
func readRegular(path string, most int) ([]byte, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	fi, err := f.Stat()
	switch {
	case err != nil:
		return nil, err
	case !fi.Mode().IsRegular():
		return nil, fmt.Errorf("%s is not a regular file", policy.Quote(path))
	}
	b, err := io.ReadAll(io.LimitReader(f, int64(most)+1))
	if err == nil && len(b) > most {
		err = fmt.Errorf("%s is larger than %d bytes", policy.Quote(path), most)
	}
	return b, err
}

// foreground is an xl that stays until its domain ends; nil for one that does
// not.
type foreground struct {
	cmd *exec.Cmd
	// done is closed when it has ended, with err.
	done chan struct{}
	err  error
}

// begin has xl create the domain, paused. An xl that stays is returned with the
// domain's number.
func (a *app) begin(o creation) (*foreground, uint16, error) {
	argv := o.argv()
	if !o.foreground {
		return nil, 0, a.runXL(false, argv...)
	}
	// This xl does not end and says nothing to programs when the domain is
	// ready, but what it logs then names the domain's number.
	cmd := a.xlCommand(argv...)
	r, w, err := os.Pipe()
	if err != nil {
		return nil, 0, err
	}
	cmd.Stdout, cmd.Stderr = a.errOut, w
	if err := cmd.Start(); err != nil {
		r.Close()
		w.Close()
		return nil, 0, xlProblem("create", err, nil)
	}
	w.Close()
	x := &foreground{cmd: cmd, done: make(chan struct{})}
	ready := make(chan uint16, 1)
	go func() {
		x.pass(r, a.errOut, ready)
		x.err = cmd.Wait()
		close(x.done)
	}()
	select {
	case id := <-ready:
		return x, id, nil
	case <-x.done:
		err := x.err
		if err == nil {
			err = errors.New("it ended before the domain was ready")
		}
		return nil, 0, xlProblem("create", err, nil)
	}
}

// pass passes on what xl says and looks for the line by which the domain is
// ready. It closes r.
func (x *foreground) pass(r *os.File, w io.Writer, ready chan<- uint16) {
	defer r.Close()
	br := bufio.NewReaderSize(r, 8<<10)
	for {
		line, err := br.ReadSlice('\n')
		_, _ = w.Write(line)
		if id, ok := readyLine(string(line)); ok {
			select {
			case ready <- id:
			default: // it restarted
			}
		}
		if err != nil && !errors.Is(err, bufio.ErrBufferFull) {
			return
		}
	}
}

// readyLine reads "Waiting for domain NAME (domid 7) to die [pid 812]", which
// xl 4.11 to 4.22 logs (tools/xl/xl_vmcontrol.c). The name may hold anything.
func readyLine(line string) (uint16, bool) {
	if !strings.HasPrefix(line, "Waiting for domain ") {
		return 0, false
	}
	i := strings.LastIndex(line, " (domid ")
	if i < 0 {
		return 0, false
	}
	digits, rest, ok := strings.Cut(line[i+len(" (domid "):], ")")
	if !ok || !strings.HasPrefix(rest, " to die ") {
		return 0, false
	}
	id, err := strconv.ParseUint(digits, 10, 16)
	return uint16(id), err == nil
}

// wait waits for the domain's end, or interrupts xl when ctx ends.
func (x *foreground) wait(ctx context.Context) error {
	select {
	case <-x.done:
		return xlProblem("create", x.err, nil)
	case <-ctx.Done():
		return ctx.Err()
	}
}

// stop ends an xl that still runs; the domain is no longer its business.
func (x *foreground) stop() {
	if x == nil {
		return
	}
	select {
	case <-x.done:
	default:
		_ = x.cmd.Process.Signal(syscall.SIGTERM)
		<-x.done
	}
}

// leftBehind adds to the failure of an xl that it left a domain behind: xl does
// where it cannot open its log, whose name has the domain's in it. The domain
// is not destroyed, because it may be somebody else's of the same name.
func (a *app) leftBehind(err error, name string, before []control.DomainStatus) error {
	var p *control.Problem
	if !errors.As(err, &p) || p.Code != codeXL || errors.Is(err, exec.ErrNotFound) {
		return err
	}
	id, lookup := a.domid(name, io.Discard)
	if lookup != nil || slices.ContainsFunc(before, func(d control.DomainStatus) bool { return d.ID == id }) {
		return err
	}
	q := *p
	q.Fix += fmt.Sprintf("; there is a domain %s now, number %d: if xl left it, destroy it with xl destroy %d", policy.Quote(name), id, id)
	return &q
}

// domid asks xl, whose names are those of xenstore.
func (a *app) domid(name string, stderr io.Writer) (uint16, error) {
	var out bytes.Buffer
	cmd := a.xlCommand("domid", "--", name)
	cmd.Stdout, cmd.Stderr = &out, stderr
	if err := cmd.Run(); err != nil {
		return 0, xlProblem("domid", err, errors.New("the new domain is paused: find it with xl list, and destroy it"))
	}
	id, err := strconv.ParseUint(strings.TrimSpace(out.String()), 10, 16)
	if err != nil {
		return 0, xlProblem("domid", err, errors.New("the new domain is paused: find it with xl list, and destroy it"))
	}
	return uint16(id), nil
}

// gate asks hvid about the domain with this number, and for its UUID.
func (a *app) gate(ctx context.Context, c *control.Client, id uint16, timeout time.Duration) (control.GateResult, string, error) {
	req := control.GateRequest{TimeoutMS: int(timeout.Milliseconds())}
	ref := strconv.Itoa(int(id))
	g, err := c.Gate(ctx, ref, req)
	var p *control.Problem
	if errors.As(err, &p) && p.Code == control.CodeAmbiguous {
		// Another domain is called by this one's number.
		for _, d := range p.Candidates {
			if d.ID == id {
				ref = d.UUID
				g, err = c.Gate(ctx, ref, req)
				break
			}
		}
	}
	if err != nil {
		return g, "", err
	}
	uuid := ""
	ds, err := c.Domains(ctx)
	for _, d := range ds {
		if d.ID == id {
			uuid = d.UUID
		}
	}
	return g, uuid, err
}

// abandon destroys a domain that may not run, and returns why.
func (a *app) abandon(why error, id uint16) error {
	err := a.runXL(false, "destroy", strconv.Itoa(int(id)))
	what := "; the domain was destroyed"
	if err != nil {
		what = fmt.Sprintf("; domain %d is left, paused: %v", id, err)
	}
	var p *control.Problem
	if !errors.As(why, &p) {
		if err != nil {
			fmt.Fprintf(a.errOut, "hvictl: domain %d is left, paused: %s\n", id, safe(err.Error()))
		}
		return why // interrupted
	}
	q := *p
	q.What += what
	return &q
}

func (a *app) createdLine(o creation, r created) error {
	if a.format == formatJSON {
		return a.json(r)
	}
	if o.quiet {
		return nil
	}
	what := "running"
	if r.Paused {
		what = "left paused"
	}
	line := fmt.Sprintf("%s (domain %d): %s, %s", r.Name, r.ID, a.paint(stateCell(r.State)), what)
	if r.Reason != "" {
		line += "; " + safe(r.Reason)
	}
	fmt.Fprintln(a.out, line)
	return nil
}

// xlCommand is xl with arguments. It is in a process group of its own: an
// interrupt at the terminal ends hvictl, which then cleans up, and does not end
// an xl that is half done.
func (a *app) xlCommand(args ...string) *exec.Cmd {
	cmd := exec.Command(a.xl, args...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, a.errOut, a.errOut
	if len(args) > 0 && args[0] != "console" {
		cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	}
	// An xl that goes on in the background may hold what it was given.
	cmd.WaitDelay = time.Second
	return cmd
}

// runXL runs xl to its end. What it writes goes to our standard error, or to
// our standard output if that is what was asked for.
func (a *app) runXL(result bool, args ...string) error {
	cmd := a.xlCommand(args...)
	if result {
		cmd.Stdout = a.out
	}
	err := cmd.Run()
	if errors.Is(err, exec.ErrWaitDelay) {
		err = nil
	}
	return xlProblem(args[0], err, nil)
}

// xlProblem explains how an xl ended; xl itself has said why. hint says what is
// to be done, nil where that is in what xl said.
func xlProblem(verb string, err, hint error) error {
	if err == nil {
		return nil
	}
	p := &control.Problem{Code: codeXL, What: fmt.Sprintf("xl %s failed: %v", verb, err), Fix: "see what xl says above", Err: err}
	if errors.Is(err, exec.ErrNotFound) {
		p.What, p.Fix = "there is no xl on this host", "install Xen's tools (Debian: apt install xen-utils-common), or put xl on the PATH"
	}
	if hint != nil {
		p.Fix = hint.Error()
	}
	return p
}
