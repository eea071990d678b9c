package scenario

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/xen-hvi/hvi/control"
)

func init() {
	Register(Scenario{
		Name:     "xenstored-restarted",
		Brief:    "xenstored dies and another is started: hvid says so, and a guest is protected throughout",
		Emulator: Bochs,
		// A boot of its own: Xen's toolstack knows nothing of its domains afterwards.
		Xen:     []string{"conring_size=64k"},
		Timeout: 15 * time.Minute,
		Run:     xenstoredRestarted,
	})
}

const xenstoredPID = "/run/xenstored.pid"

func xenstoredRestarted(t *T) error {
	hvid, err := t.StartHVID()
	if err != nil {
		return err
	}
	g, _, err := t.protectedGuest(enforce, control.StateProtecting)
	if err != nil {
		return err
	}
	// Without xenstored nobody can tell the guest to attack.
	if _, err := g.Run("(while :; do attack lstar; sleep 1; done) >/dev/null 2>&1 &"); err != nil {
		return err
	}
	var last control.DomainStatus
	attacked := func(when string) error {
		before, err := g.Status()
		if err != nil {
			return err
		}
		err = t.Eventually(commandLimit, "an attack is blocked "+when, func() (bool, error) {
			last, err = g.Status()
			return guardStatus(last, "syscall-entry").Blocked > guardStatus(before, "syscall-entry").Blocked, err
		})
		t.Check(err == nil && last.State == control.StateProtecting && last.AttachedAt.Equal(before.AttachedAt),
			"attacks are blocked %s, by the session that was there before: %s, %v", when, last.State, err)
		return err
	}
	logs := func(what string) error {
		return t.Eventually(hvidLimit, "hvid says that "+what, func() (bool, error) { return strings.Contains(hvid.Log(), what), nil })
	}
	if err := attacked("while all is well"); err != nil {
		return err
	}

	text, err := os.ReadFile(xenstoredPID)
	if err != nil {
		return err
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(text)))
	if err != nil {
		return fmt.Errorf("%s: %w", xenstoredPID, err)
	}
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		return err
	}
	if err := logs("xenstore is lost"); err != nil {
		return err
	}
	if err := attacked("without xenstored"); err != nil {
		return err
	}
	if err := os.Remove(xenstoredPID); err != nil {
		return err
	}
	if _, err := t.Exec("xenstored", "--pid-file", xenstoredPID); err != nil {
		return err
	}
	if err := logs("xenstore is back"); err != nil {
		return err
	}
	if err := attacked("when there is another xenstored, which knows no domain"); err != nil {
		return err
	}
	t.Check(last.UUID == g.UUID && last.Mode == "enforce", "the guest is who it was: %s, mode %s", last.UUID, last.Mode)

	if _, err := t.Exec("hvictl", "detach", g.UUID); err != nil {
		return err
	}
	if _, err := g.WaitState(hvidLimit, control.StateDetached); err != nil {
		return err
	}
	left, err := t.leftovers(g.ID)
	if err != nil {
		return err
	}
	t.Check(left.frames > 0 && left.restricted == 0 && !left.paused && !left.views && left.steps == 0, "it can be let go of, and nothing is left of hvid: %+v", left)
	return nil
}
