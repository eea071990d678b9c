package scenario

import (
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/xen-hvi/hvi/control"
)

func init() {
	Register(Scenario{
		Name:     "demo",
		Brief:    "What hvi does, told step by step: one line in an xl config, and a kernel rootkit fails",
		Emulator: Bochs,
		Timeout:  10 * time.Minute,
		Run:      demo,
	})
}

// demo is the skeleton told to a newcomer. Its checks are few and in words; the
// skeleton scenarios hold the many.
func demo(t *T) error {
	say := func(format string, args ...any) {
		for _, line := range strings.Split(strings.TrimRight(fmt.Sprintf(format, args...), "\n"), "\n") {
			t.Logf("    %s", line)
		}
	}
	run := func(name string, args ...string) error {
		t.Logf("dom0# %s %s", name, strings.Join(args, " "))
		out, err := t.Exec(name, args...)
		say("%s", out.String())
		return err
	}

	t.Logf("1. A real Xen runs in an emulated machine. hvid, the daemon, is started in its control domain.")
	// Both the daemon and the guest's kernel keep to what matters here.
	if _, err := t.StartHVID("--log-level", "error"); err != nil {
		return err
	}
	t.Logf("2. A guest is started with plain xl. Its config has one line for hvi:")
	web := enforce
	web.KernelArgs = []string{"loglevel=2"}
	web.Lines = append(web.Lines, preserve)
	path, err := t.WriteConfig(web)
	if err != nil {
		return err
	}
	if err := run("cat", path); err != nil {
		return err
	}
	g, err := t.StartGuest(web)
	if err != nil {
		return err
	}
	if _, err := g.WaitState(protectLimit, control.StateProtecting); err != nil {
		return err
	}
	release, err := g.WaitUp()
	if err != nil {
		return err
	}
	t.Logf("3. The guest is up. Nothing of hvi is in it; from outside it looks like this:")
	if err := run("hvictl", "status", g.Name); err != nil {
		return err
	}
	st, err := g.Status()
	if err != nil {
		return err
	}
	if err := g.checkEntry(st); err != nil {
		return err
	}
	t.Check(st.GuestKernel != nil && string(st.GuestKernel.Release) == release, "hvi read the guest's kernel from its memory alone: %s", release)

	t.Logf("4. Now root in the guest loads a kernel module that attacks the kernel: it clears CR0.WP, patches")
	t.Logf("   the code of %s, and then redirects every system call by rewriting LSTAR.", victim)
	attacks := []string{"cr0-wp", "text", "lstar"}
	for _, mode := range attacks {
		v, err := g.Attack(Attack{Mode: mode, Symbol: symbolFor(mode)})
		if err != nil {
			return err
		}
		t.Check(!v.Written, "attack on %s: the module wrote %#x and reads back %#x, what was there before", mode, v.Tried, v.After)
	}
	t.Logf("5. All were blocked, and reported with the instruction, the process and the bytes:")
	if err := run("hvictl", "events", "--domain", strconv.Itoa(g.ID)); err != nil {
		return err
	}
	events, err := g.Events()
	if err != nil {
		return err
	}
	t.Check(len(events) == len(attacks), "%d attacks, %d records", len(attacks), len(events))
	alive, err := g.Run("echo alive, $(uname -r)")
	if err != nil {
		return err
	}
	t.Check(alive == "alive, "+release, "the guest never noticed: it says %q", alive)

	t.Logf("6. The guest is shut down (xl shutdown), and Xen itself is asked what hvi has left:")
	left, err := g.letGo()
	if err != nil {
		return err
	}
	for _, line := range []string{
		"",
		"What you have seen, on a real Xen, with a real Debian kernel:",
		"",
		fmt.Sprintf("  hvi attached        before the guest's first instruction, at %s", *st.AttachPC),
		fmt.Sprintf("  kernel              %s, read from the guest's memory: %d symbols, no symbol file", release, st.GuestKernel.SymbolCount),
		fmt.Sprintf("  attacks             %d tried, %d blocked and reported; the guest lived on", len(attacks), len(events)),
		"  after shutdown      detached; a new listener could be connected, no domain is left as a zombie",
		fmt.Sprintf("                      and %d of its %d pages are restricted", left.restricted, left.frames),
		"",
		"With the guards off the same attacks succeed: make lab S=guards-off",
	} {
		t.Logf("%s", line)
	}
	return nil
}
