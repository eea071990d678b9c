package scenario

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"time"

	"github.com/xen-hvi/hvi/control"
)

func init() {
	Register(Scenario{
		Name:     "bad-input",
		Brief:    "Wrong configs, PV guests, a second listener, no hvid, no root: a clear error each, and nothing half done",
		Emulator: Bochs,
		Timeout:  15 * time.Minute,
		Run:      badInput,
	})
}

func badInput(t *T) error {
	// hvid not running.
	code, text := t.fails("hvictl", "status")
	t.Check(code == 3 && strings.Contains(text, "hvid"), "hvictl without hvid: exit code %d, %q", code, text)

	code, text = t.failsAs(nobody, "hvid")
	t.Check(code == 1 && strings.Contains(text, "start hvid as root"), "hvid as nobody: exit code %d, %q", code, text)

	if _, err := t.StartHVID(); err != nil {
		return err
	}
	code, text = t.fails("hvid")
	t.Check(code == 1 && strings.Contains(text, "another process serves it"), "a second hvid: exit code %d, %q", code, text)
	code, text = t.failsAs(nobody, "hvictl", "list")
	t.Check(code == 5 && strings.Contains(text, "root"), "hvictl as nobody: exit code %d, %q", code, text)
	code, text = t.fails("hvictl", "status", "nosuchdomain")
	t.Check(code == 4 && strings.Contains(text, "nosuchdomain"), "an unknown domain: exit code %d, %q", code, text)

	// A config that xl itself cannot read.
	path, err := t.WriteConfig(GuestConfig{Name: "broken", Text: "name = \"broken\"\nmemory = [ 64\nintrospection = \"enforce\"\n"})
	if err != nil {
		return err
	}
	_, err = t.XL("create", path)
	t.Check(err != nil, "xl refuses a broken config: %v", err)
	code, _ = t.fails("hvictl", "status", "broken")
	t.Check(code == 4, "and hvid has seen no such domain: exit code %d", code)

	// Policies that cannot be honoured: the guest runs, unprotected, and its
	// status says why. The domains are created paused so that they cost
	// nothing.
	for _, c := range []struct{ name, line, want string }{
		{"badmode", `introspection = "enforc"`, "enforce"},
		{"badguard", "introspection = \"enforce\"\nintrospection_guards = [ \"kernel-txt=block\" ]", "kernel-text"},
		{"badaction", "introspection = \"enforce\"\nintrospection_guards = [ \"kernel-text=blok\" ]", "block"},
		{"badkey", "introspection = \"enforce\"\nintrospection_guard = [ \"kernel-text=block\" ]", "introspection_guards"},
		{"badblock", "introspection = \"observe\"\nintrospection_guards = [ \"kernel-text=block\" ]", "enforce"},
	} {
		g, err := t.StartGuest(GuestConfig{Name: c.name, Memory: 160, Lines: []string{c.line}, CreateArgs: []string{"-p"}})
		if err != nil {
			return err
		}
		st, err := t.waitFailed(g)
		if err != nil {
			return err
		}
		got := ""
		if st.Failure != nil {
			got = st.Failure.Got
		}
		t.Check(strings.Contains(got, c.want) && strings.Contains(got, c.name+".cfg:"), "%s: the error names the place and the nearest word: %q", c.name, got)
		t.Check(st.AttachedAt.IsZero(), "%s: nothing is attached", c.name)
		if err := g.runsAndGoes(); err != nil {
			return err
		}
	}

	// A PV guest.
	path, err = t.WriteConfig(GuestConfig{Name: "pv", Text: "name=\"pv\"\ntype=\"pv\"\nkernel=\"" + pvKernel + "\"\nmemory=32\nintrospection=\"enforce\"\n"})
	if err != nil {
		return err
	}
	if err := writePVKernel(pvKernel); err != nil {
		return err
	}
	if _, err := t.XL("create", "-p", path); err != nil {
		return err
	}
	pv, err := t.OpenGuest("pv")
	if err != nil {
		return err
	}
	st, err := t.waitFailed(pv)
	if err != nil {
		return err
	}
	t.Check(st.Failure != nil && strings.Contains(st.Failure.Got, "PV") && strings.Contains(st.Failure.Fix, "pvh"), "a PV guest: %+v", st.Failure)
	if err := pv.Destroy(); err != nil {
		return err
	}

	return t.secondListener()
}

// secondListener lets another program hold a guest's ring when hvid wants it.
func (t *T) secondListener() error {
	c := enforce
	c.Name, c.Lines = "taken", nil
	g, err := t.StartGuest(c)
	if err != nil {
		return err
	}
	if _, err := g.WaitUp(); err != nil {
		return err
	}
	release, err := t.occupyRing(g.ID)
	if err != nil {
		return err
	}
	// Doctor sees it without an attempt to attach.
	code, text := t.fails("hvictl", "doctor")
	t.Check(code == 7 && strings.Contains(text, "another program listens"), "doctor on a ring that is taken: exit code %d, %q", code, text)
	code, text = t.fails("hvictl", "attach", g.Name, "--mode", "enforce")
	t.Check(code == 6 && strings.Contains(text, "listen"), "a ring that is taken: exit code %d, %q", code, text)
	out, err := g.Run("echo unharmed")
	t.Check(err == nil && out == "unharmed", "the guest goes on: %q %v", out, err)
	if err := release(); err != nil {
		return err
	}
	// A config that was broken after the guest had started: attaching as it
	// declares fails, and says where.
	if err := os.WriteFile(c.Path(), []byte("name = \"taken\"\nintrospection = [ \"enforce\"\n"), 0o644); err != nil {
		return err
	}
	code, text = t.fails("hvictl", "attach", g.Name)
	t.Check(code != 0 && strings.Contains(text, c.Path()+":"), "a config broken since: exit code %d, %q", code, text)
	if _, err := t.Exec("hvictl", "attach", g.Name, "--mode", "enforce"); err != nil {
		return err
	}
	if _, err := g.WaitState(protectLimit, control.StateProtecting); err != nil {
		return err
	}
	return g.Shutdown()
}

// waitFailed waits until hvid has given up on a guest.
func (t *T) waitFailed(g *Guest) (control.DomainStatus, error) {
	var st control.DomainStatus
	err := t.Eventually(hvidLimit, "hvid reports the failure", func() (bool, error) {
		var err error
		st, err = g.Status()
		return err == nil && st.State == control.StateFailed, nil
	})
	return st, err
}

// runsAndGoes checks that a domain created paused is under no pause but its
// creator's: one unpause starts it.
func (g *Guest) runsAndGoes() error {
	t := g.t
	paused, err := t.paused(g.ID)
	if err != nil {
		return err
	}
	t.Check(paused, "%s: still held by its creator", g.Name)
	if _, err := t.XL("unpause", g.Name); err != nil {
		return err
	}
	if paused, err = t.paused(g.ID); err != nil {
		return err
	}
	t.Check(!paused, "%s: one unpause lets it run: hvid holds nothing", g.Name)
	if err := g.Destroy(); err != nil {
		return err
	}
	return g.WaitGone(hvidLimit)
}

// nobody is a user without any right.
var nobody = &syscall.Credential{Uid: 65534, Gid: 65534}

func (t *T) fails(name string, args ...string) (code int, text string) {
	return t.failsAs(nil, name, args...)
}

// failsAs runs a program as another user and returns its exit code and all it
// wrote. A program that would not end is ended.
func (t *T) failsAs(as *syscall.Credential, name string, args ...string) (code int, text string) {
	ctx, cancel := context.WithTimeout(t.ctx, hvidLimit)
	defer cancel()
	cmd := exec.CommandContext(ctx, name, args...)
	if as != nil {
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: as}
	}
	out, err := cmd.CombinedOutput()
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return exit.ExitCode(), string(out)
	}
	if err != nil {
		return -1, err.Error()
	}
	return 0, string(out)
}
