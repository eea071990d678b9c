package scenario

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/xen-hvi/hvi/control"
)

func init() {
	Register(Scenario{
		Name:     "engine-failure",
		Brief:    "hvid dies, by a signal or for want of memory: a guest runs on or stands still, as its policy says",
		Emulator: Bochs,
		Timeout:  20 * time.Minute,
		Run:      engineFailure,
	})
}

// memoryLimit bounds how long dom0's memory takes to be used up.
const memoryLimit = 3 * time.Minute

func engineFailure(t *T) error {
	hvid, err := t.StartHVID()
	if err != nil {
		return err
	}
	c := enforce
	c.Lines = []string{`introspection = "enforce"`, `introspection_on_engine_failure = "pause"`}
	g, _, err := t.protectedGuest(c, control.StateProtecting)
	if err != nil {
		return err
	}
	if err := g.isHeldWithout(hvid); err != nil {
		return err
	}
	if hvid, err = t.StartHVID(); err != nil {
		return err
	}
	if err := g.isProtectedAgain("the next hvid"); err != nil {
		return err
	}

	// Nobody wants to wait for the next one.
	if err := g.isHeldWithout(hvid); err != nil {
		return err
	}
	if _, err := t.Exec("hvid", "recover"); err != nil {
		return err
	}
	if err := g.runsFree("once hvid recover has let it go"); err != nil {
		return err
	}
	if hvid, err = t.StartHVID(); err != nil {
		return err
	}
	if err := g.isProtectedAgain("the hvid after that"); err != nil {
		return err
	}

	if err := t.HVICtl(nil, "set", g.Name, "--on-engine-failure", "release"); err != nil {
		return err
	}
	if err := t.outOfMemory(hvid); err != nil {
		return err
	}
	if err := g.runsFree("after dom0 had no memory and its hvid was ended for that"); err != nil {
		return err
	}
	if _, err = t.StartHVID(); err != nil {
		return err
	}
	if err := g.isProtectedAgain("the hvid after that"); err != nil {
		return err
	}
	if err := g.Shutdown(); err != nil {
		return err
	}
	return g.nothingLeft()
}

// isHeldWithout kills hvid, and checks that the guest stands still and nothing else
// is left of hvid.
func (g *Guest) isHeldWithout(hvid *Process) error {
	t := g.t
	if err := hvid.Signal(syscall.SIGKILL); err != nil {
		return err
	}
	if err := t.keeperHasRecovered(hvid); err != nil {
		return err
	}
	if err := g.standsStill("without hvid"); err != nil {
		return err
	}
	left, err := t.leftovers(g.ID)
	if err != nil {
		return err
	}
	t.Check(left.frames > 0 && left.restricted == 0 && !left.views && left.steps == 0, "and that is all that is left: %+v", left)
	out, err := t.Exec("hvictl", "status")
	var failed *ExecError
	t.Check(errors.As(err, &failed) && failed.Code == 3 && strings.Contains(out.String(), g.UUID) && strings.Contains(out.String(), "held"), "hvictl status says that it is held: %v, %s", err, out)
	return nil
}

// keeperHasRecovered waits until hvid has ended and its keeper has done its work.
func (t *T) keeperHasRecovered(hvid *Process) error {
	err := t.Eventually(hvidLimit, "the keeper has undone what hvid left", func() (bool, error) {
		return strings.Contains(hvid.Log(), "recovered by the keeper"), nil
	})
	if err != nil {
		return err
	}
	select {
	case <-hvid.Exited():
		return nil
	case <-time.After(hvidLimit):
		return fmt.Errorf("hvid is not dead after %v", hvidLimit)
	}
}

// isProtectedAgain checks that a hvid that was started has the guest run, and guards it.
func (g *Guest) isProtectedAgain(by string) error {
	t := g.t
	if _, err := g.WaitState(protectLimit, control.StateProtecting); err != nil {
		return err
	}
	paused, err := t.paused(g.ID)
	if err != nil {
		return err
	}
	out, err := g.Run("echo on again")
	t.Check(!paused && err == nil && out == "on again", "%s lets the guest run: %q %v", by, out, err)
	if err != nil {
		return err
	}
	return g.attackIsBlocked("text")
}

// runsFree checks that the guest runs, and nothing of hvid is left in Xen.
func (g *Guest) runsFree(when string) error {
	t := g.t
	out, err := g.Run("echo on my own")
	if err != nil {
		return err
	}
	t.Check(out == "on my own", "%s the guest runs: %q", when, out)
	left, err := t.leftovers(g.ID)
	if err != nil {
		return err
	}
	t.Check(left.frames > 0 && left.restricted == 0 && !left.paused && !left.views && left.steps == 0, "and nothing is left of hvid: %+v", left)
	return nil
}

// outOfMemory has dom0's kernel run out of memory and end hvid for that, while a
// program goes on to ask for all there is.
func (t *T) outOfMemory(hvid *Process) error {
	v, err := client.Version(t.ctx)
	if err != nil {
		return err
	}
	// What the rest of dom0 needs is spared, as on a host with other programs to end.
	processes, err := filepath.Glob("/proc/[0-9]*/oom_score_adj")
	if err != nil {
		return err
	}
	before := map[string][]byte{}
	for _, p := range processes {
		if before[p], err = os.ReadFile(p); err != nil {
			delete(before, p) // it has ended
			continue
		}
		_ = os.WriteFile(p, []byte("-1000"), 0) // it has ended
	}
	t.Cleanup(func() {
		for p, value := range before {
			_ = os.WriteFile(p, value, 0) // it has ended
		}
	})
	adj := fmt.Sprintf("/proc/%d/oom_score_adj", v.Keeper.PID)
	t.Check(strings.TrimSpace(string(before[adj])) == "-1000", "the keeper is never ended for want of memory: %q", before[adj])
	if err := os.WriteFile(fmt.Sprintf("/proc/%d/oom_score_adj", hvid.Pid()), []byte("1000"), 0); err != nil {
		return err
	}
	hog, err := t.Start("sh", "-c", "echo 0 >/proc/self/oom_score_adj; exec tail -n 1 /dev/zero")
	if err != nil {
		return err
	}
	select {
	case <-hvid.Exited():
	case <-time.After(memoryLimit):
		return fmt.Errorf("dom0's memory is not used up after %v", memoryLimit)
	}
	select {
	case <-hog.Exited():
	case <-time.After(memoryLimit):
		return fmt.Errorf("the program that uses up the memory is not ended after %v", memoryLimit)
	}
	log, err := t.Exec("dmesg")
	if err != nil {
		return err
	}
	t.Check(strings.Contains(log.Stdout, "Killed process "+strconv.Itoa(hvid.Pid())), "the kernel has ended hvid for want of memory: %s", firstLine(log.Stdout, "Killed process"))
	if err := t.keeperHasRecovered(hvid); err != nil {
		return err
	}
	t.Check(!strings.Contains(log.Stdout, "Killed process "+strconv.Itoa(v.Keeper.PID)), "and not its keeper")
	return nil
}
