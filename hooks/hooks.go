package hooks

import (
	"context"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/xen-hvi/hvi/control"
	"github.com/xen-hvi/hvi/engine/policy"
)

// Exit codes.
const (
	exitOK      = 0
	exitRefused = 1
	exitUsage   = 2
)

// Bounds of what a hook waits for.
const (
	// inputTime bounds the reading of the domain's XML.
	inputTime = 2 * time.Second
	// answerTime bounds a question that hvid answers from memory.
	answerTime = 2 * time.Second
	// gateTime bounds the wait for a gate. libxl gives a vif script 40 s, of
	// which the real one needs some, and a device model 60 s.
	gateTime = 30 * time.Second
	// patience is how long a hvid that restarts is waited for, where the start
	// would be refused without it.
	patience   = 5 * time.Second
	retryAfter = 100 * time.Millisecond
	// storeTime bounds the writing of a reason into xenstore.
	storeTime = 2 * time.Second
)

// Host is the world a hook runs in.
type Host struct {
	// Args are the program's, its name first.
	Args []string
	// Env is the environment, as KEY=value.
	Env            []string
	Stdin          io.Reader
	Stdout, Stderr io.Writer
	// Exec becomes another program, with the open file descriptors of this one.
	// It returns only if it failed.
	Exec func(path string, argv, env []string) error
	// StoreWrite writes into xenstore. It need not be bounded in time.
	StoreWrite func(path, value string) error
	// Root is put before the paths of device models and hvid's settings; empty
	// but in tests.
	Root string
	// InputTime, AnswerTime, GateTime and Patience replace the bounds where they
	// are set.
	InputTime, AnswerTime, GateTime, Patience time.Duration
}

// Usage is what hvi-hook says to a person.
const Usage = `usage: hvi-hook libvirt NAME OPERATION SUB-OPERATION EXTRA <XML
       hvi-hook vif-gate SCRIPT online|offline|add|remove ...
       hvi-hook dm-gate ARGUMENTS-OF-THE-DEVICE-MODEL
       hvi-hook --version

Toolstacks call this program while they start a domain; it is of little use
otherwise. Called as 50-hvi it is the libvirt hook, as hvi-vif-NAME the gate of
the vif script vif-NAME, as dm-gate the gate of the device model.

Environment:
  HVI_SOCKET  hvid's socket (as /etc/hvi/hvid.toml says, or else
              ` + control.DefaultSocket + `)
  HVI_DM      the device model that dm-gate becomes

Exit codes: 0 go on, 1 refused or failed, 2 wrong arguments.
`

// Run plays the part that the arguments say and returns the exit code. If the
// part ends in becoming another program, it does not return.
func Run(ctx context.Context, h Host) int {
	if len(h.Args) == 0 {
		return h.usage("no arguments at all")
	}
	fallback(&h.InputTime, inputTime)
	fallback(&h.AnswerTime, answerTime)
	fallback(&h.GateTime, gateTime)
	fallback(&h.Patience, patience)

	switch base := filepath.Base(h.Args[0]); {
	case base == "50-hvi" || base == "libxl":
		return h.libvirt(ctx, h.Args[1:])
	case base == "dm-gate":
		return h.dmGate(ctx, h.Args[1:])
	case strings.HasPrefix(base, vifPrefix):
		return h.vifGate(ctx, besides(h.Args[0], base), h.Args[1:])
	}
	if len(h.Args) < 2 {
		return h.usage("no part to play")
	}
	args := h.Args[2:]
	switch part := h.Args[1]; part {
	case "libvirt":
		return h.libvirt(ctx, args)
	case "dm-gate":
		return h.dmGate(ctx, args)
	case "vif-gate":
		if len(args) == 0 || args[0] == "" {
			return h.usage("vif-gate: no script")
		}
		return h.vifGate(ctx, script(args[0]), args[1:])
	case "--version", "version":
		fmt.Fprintln(h.Stdout, "hvi-hook", control.ThisBuild())
		return exitOK
	case "--help", "-h", "help":
		fmt.Fprint(h.Stdout, Usage)
		return exitOK
	default:
		return h.usage(policy.UnknownWord("part", part, []string{"libvirt", "vif-gate", "dm-gate"}, policy.Origin{}).Error())
	}
}

func fallback(d *time.Duration, to time.Duration) {
	if *d <= 0 {
		*d = to
	}
}

func (h Host) usage(wrong string) int {
	fmt.Fprintf(h.Stderr, "hvi-hook: %s\n%s", wrong, Usage)
	return exitUsage
}

// say tells whoever started the domain.
func (h Host) say(format string, args ...any) {
	fmt.Fprintf(h.Stderr, "hvi: "+format+"\n", args...)
}

// env returns a variable of the environment, or "". Of several the last counts,
// as in a shell.
func (h Host) env(name string) string {
	for _, e := range slices.Backward(h.Env) {
		if v, ok := strings.CutPrefix(e, name+"="); ok {
			return v
		}
	}
	return ""
}

// client makes a client of hvid.
func (h Host) client() *control.Client {
	c := control.NewClient(h.socket())
	c.ReadTimeout, c.ChangeTimeout = h.AnswerTime, h.AnswerTime
	return c
}

// patiently asks hvid, and if it is restarting, as it does when it is upgraded,
// asks again until it is back or the patience has run out.
func (h Host) patiently(ctx context.Context, ask func() error) error {
	ctx, cancel := context.WithTimeout(ctx, h.Patience)
	defer cancel()
	for {
		err := ask()
		var p *control.Problem
		if !errors.As(err, &p) || (p.Code != control.CodeUnreachable && p.Code != control.CodeUnavailable) || !h.restarting() {
			return err
		}
		again := time.NewTimer(retryAfter)
		select {
		case <-again.C:
		case <-ctx.Done():
			again.Stop()
			return err
		}
	}
}

// restarting reports whether a hvid left word that it would be back.
func (h Host) restarting() bool {
	n, ok, err := control.ReadRestartNotice(filepath.Dir(h.socket()))
	return err == nil && ok && n.Fresh(time.Now())
}

// become turns into another program; it returns only if that failed.
func (h Host) become(path string, args []string) int {
	err := h.Exec(path, append([]string{path}, args...), h.Env)
	h.say("%s cannot be run: %v", policy.Quote(path), err)
	return exitRefused
}

// gate asks hvid to hold the start of a domain and reports whether it may go on.
// If not, reason says why, on one line.
func (h Host) gate(ctx context.Context, dom string) (open bool, reason string) {
	c := h.client()
	defer c.Close()
	ctx, cancel := context.WithTimeout(ctx, h.GateTime)
	defer cancel()
	// A hvid that hangs is found out before the long wait.
	if err := h.patiently(ctx, func() error { _, err := c.Version(ctx); return err }); err != nil {
		return false, explain(err)
	}
	g, err := c.Gate(ctx, dom, control.GateRequest{})
	switch {
	case errors.Is(err, context.DeadlineExceeded):
		return false, fmt.Sprintf("hvid is not attached after %v; look at it: hvictl status %s", h.GateTime, dom)
	case err != nil:
		return false, explain(err)
	case !g.Open:
		return false, explain(&control.Problem{What: orElse(g.Reason, "hvid is not attached, and its state is "+string(g.State)), Fix: g.Fix})
	case g.Reason != "":
		h.say("domain %s starts: %s", dom, oneLine(g.Reason))
	}
	return true, ""
}

func orElse(s, other string) string {
	if s == "" {
		return other
	}
	return s
}

// explain is an error with what to do about it.
func explain(err error) string {
	s := oneLine(err.Error())
	var p *control.Problem
	if errors.As(err, &p) && p.Fix != "" {
		s += "; " + oneLine(p.Fix)
	}
	return s
}

// oneLine takes line ends out of a text, and whatever else would disturb a log.
func oneLine(s string) string {
	return strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f {
			return ' '
		}
		return r
	}, s)
}
