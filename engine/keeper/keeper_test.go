package keeper_test

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/xen-hvi/hvi/engine/keeper"
)

// This test's program plays three parts, as its environment says: the test, a hvid
// with a keeper, and that keeper.
const (
	partVar = "HVI_KEEPER_TEST_PART"
	dirVar  = "HVI_KEEPER_TEST_DIR"
)

func TestMain(m *testing.M) {
	switch os.Getenv(partVar) {
	case "":
		os.Exit(m.Run())
	case "hvid":
		exit(playHVID(os.Getenv(dirVar)))
	case "keeper":
		exit(playKeeper(os.Getenv(dirVar)))
	}
}

func exit(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(0)
}

// playHVID does what it reads, line by line, and says when it is done.
func playHVID(dir string) error {
	k, err := keeper.Start(keeper.Options{
		Env: []string{partVar + "=keeper", dirVar + "=" + dir, "HVI_KEEPER_TEST_OF=" + strconv.Itoa(os.Getpid())},
		Dir: dir, Budget: testBudget, Log: slog.New(slog.NewTextHandler(os.Stderr, nil)),
	})
	if err != nil {
		return err
	}
	pulse, release := k.Ring()
	fmt.Println("ready", k.State().PID)
	for in := bufio.NewScanner(os.Stdin); in.Scan(); {
		switch in.Text() {
		case "work":
			pulse.Add(1)
		case "rest":
			pulse.Add(1)
			release()
		case "state":
			s := k.State()
			fmt.Println("state", s.Alive, s.PID, s.Restarts)
			continue
		case "stop":
			return k.Close(true)
		case "fail":
			return errors.Join(k.Close(false), errors.New("not all is undone"))
		}
		fmt.Println("done")
	}
	return errors.New("the test is over")
}

// testBudget is short, and long enough for a machine that does much besides.
const testBudget = 400 * time.Millisecond

// slow is a file that has the keeper take its time as long as it is there, which it says by
// another.
const slow, recovering = "slow", "recovering"

// hangs is a file that has the next keeper say that it is there, and do no more.
const hangs = "hangs"

// playKeeper leaves a file with what it was told instead of recovering.
func playKeeper(dir string) error {
	of, err := strconv.Atoi(os.Getenv("HVI_KEEPER_TEST_OF"))
	if err != nil {
		return err
	}
	if os.Remove(filepath.Join(dir, hangs)) == nil {
		if _, err := os.NewFile(3, "socket").WriteString("r"); err != nil {
			return err
		}
		return syscall.Pause()
	}
	keeper.Harden(slog.New(slog.DiscardHandler))
	if err := keeper.DropCapabilities(); err != nil {
		if !raceDetector || !errors.Is(err, syscall.ENOTSUP) {
			return err
		}
	}
	return keeper.Serve(keeper.Duty{
		HVID: of, Budget: testBudget, Log: slog.New(slog.DiscardHandler),
		Recover: func(why string) error {
			for {
				if _, err := os.Stat(filepath.Join(dir, slow)); err != nil {
					break
				}
				if err := os.WriteFile(filepath.Join(dir, recovering), nil, 0o600); err != nil {
					return err
				}
			}
			if memory, err := os.ReadFile(fmt.Sprintf("/proc/%d/statm", of)); err == nil && !bytes.HasPrefix(memory, []byte("0 ")) {
				why = "hvid lives still: " + why
			}
			name := filepath.Join(dir, "recovered")
			return errors.Join(os.WriteFile(name+".new", []byte(why), 0o600), os.Rename(name+".new", name))
		},
	})
}

// zombie reports whether a process has ended and its parent has not asked for it.
func zombie(pid int) bool {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	_, rest, _ := bytes.Cut(stat, []byte(") "))
	return err != nil || bytes.HasPrefix(rest, []byte("Z"))
}

// hvid is one that plays so.
type hvid struct {
	t      *testing.T
	dir    string
	cmd    *exec.Cmd
	in     io.WriteCloser
	out    *bufio.Scanner
	keeper int
}

func start(t *testing.T) *hvid {
	t.Helper()
	h := &hvid{t: t, dir: t.TempDir()}
	h.cmd = exec.Command(os.Args[0])
	h.cmd.Env = []string{partVar + "=hvid", dirVar + "=" + h.dir, "GOTRACEBACK=none"}
	h.cmd.Stderr = os.Stderr
	in, err := h.cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := h.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	h.in, h.out = in, bufio.NewScanner(out)
	if err := h.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = h.cmd.Process.Kill()
		_ = h.cmd.Wait()
	})
	word, pid, _ := strings.Cut(h.read(), " ")
	h.keeper, err = strconv.Atoi(pid)
	if word != "ready" || err != nil || h.keeper == 0 {
		t.Fatalf("hvid says %q %q: its keeper is not there", word, pid)
	}
	return h
}

func (h *hvid) read() string {
	h.t.Helper()
	if !h.out.Scan() {
		h.t.Fatalf("hvid has ended: %v", h.out.Err())
	}
	return h.out.Text()
}

// tell has it do something.
func (h *hvid) tell(what string) {
	h.t.Helper()
	if _, err := io.WriteString(h.in, what+"\n"); err != nil {
		h.t.Fatal(err)
	}
}

func (h *hvid) ask(what string) string {
	h.t.Helper()
	h.tell(what)
	return h.read()
}

func (h *hvid) signal(pid int, s syscall.Signal) {
	h.t.Helper()
	if err := syscall.Kill(pid, s); err != nil {
		h.t.Fatalf("signal %v to process %d: %v", s, pid, err)
	}
}

// recovered waits until the keeper has done its work and says what it was told.
func (h *hvid) recovered() string {
	h.t.Helper()
	var why []byte
	h.eventually("the keeper recovers", func() bool {
		var err error
		why, err = os.ReadFile(filepath.Join(h.dir, "recovered"))
		return err == nil
	})
	return string(why)
}

// untouched checks that nothing was recovered although the keeper has ended.
func (h *hvid) untouched() {
	h.t.Helper()
	h.gone(h.keeper)
	if why, err := os.ReadFile(filepath.Join(h.dir, "recovered")); err == nil {
		h.t.Errorf("the keeper recovered: %s", why)
	}
}

func (h *hvid) gone(pid int) {
	h.t.Helper()
	h.eventually(fmt.Sprintf("process %d is gone", pid), func() bool { return syscall.Kill(pid, 0) != nil || zombie(pid) })
}

func (h *hvid) eventually(what string, cond func() bool) {
	h.t.Helper()
	limit := time.After(time.Minute)
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for !cond() {
		select {
		case <-limit:
			h.t.Fatalf("waited in vain until %s", what)
		case <-tick.C:
		}
	}
}

// TestDeath has hvid die in every way: the keeper knows.
func TestDeath(t *testing.T) {
	for _, s := range []syscall.Signal{syscall.SIGKILL, syscall.SIGSEGV, syscall.SIGABRT, syscall.SIGTERM} {
		t.Run(s.String(), func(t *testing.T) {
			t.Parallel()
			h := start(t)
			h.signal(h.cmd.Process.Pid, s)
			if why := h.recovered(); why != "hvid died" {
				t.Errorf("recovered because %q", why)
			}
			h.gone(h.keeper)
		})
	}
}

// TestStopped stops hvid as a whole: it is killed, and then is recovered.
func TestStopped(t *testing.T) {
	t.Parallel()
	h := start(t)
	h.signal(h.cmd.Process.Pid, syscall.SIGSTOP)
	if why := h.recovered(); why != "hvid stands still, and was killed" {
		t.Errorf("recovered because %q", why)
	}
}

// TestBothStopped stops the keeper, too, and first: it goes on by itself.
func TestBothStopped(t *testing.T) {
	t.Parallel()
	h := start(t)
	h.signal(h.keeper, syscall.SIGSTOP)
	h.signal(h.cmd.Process.Pid, syscall.SIGSTOP)
	if why := h.recovered(); why != "hvid stands still, and was killed" {
		t.Errorf("recovered because %q", why)
	}
}

// TestKeeperStopped stops the keeper alone: it goes on by itself, and is as good as before.
func TestKeeperStopped(t *testing.T) {
	t.Parallel()
	h := start(t)
	h.signal(h.keeper, syscall.SIGSTOP)
	h.signal(h.cmd.Process.Pid, syscall.SIGKILL)
	if why := h.recovered(); why != "hvid died" {
		t.Errorf("recovered because %q", why)
	}
}

// TestStoppedAtWork stops a keeper that recovers, as often as it goes on.
func TestStoppedAtWork(t *testing.T) {
	t.Parallel()
	h := start(t)
	t.Cleanup(func() { _ = syscall.Kill(h.keeper, syscall.SIGKILL) }) // fails if it has done its work
	if err := os.WriteFile(filepath.Join(h.dir, slow), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	h.signal(h.cmd.Process.Pid, syscall.SIGKILL)
	h.eventually("the keeper recovers", func() bool {
		_, err := os.Stat(filepath.Join(h.dir, recovering))
		return err == nil
	})
	for range 3 {
		h.signal(h.keeper, syscall.SIGSTOP)
		if err := os.Remove(filepath.Join(h.dir, recovering)); err != nil {
			t.Fatal(err)
		}
		h.eventually("the keeper goes on", func() bool {
			_, err := os.Stat(filepath.Join(h.dir, recovering))
			return err == nil
		})
	}
	h.signal(h.keeper, syscall.SIGSTOP)
	if err := os.Remove(filepath.Join(h.dir, slow)); err != nil {
		t.Fatal(err)
	}
	if why := h.recovered(); why != "hvid died" {
		t.Errorf("recovered because %q", why)
	}
}

// TestRingHangs has a ring goroutine stop with a request in its hands, while the rest
// of hvid goes on.
func TestRingHangs(t *testing.T) {
	t.Parallel()
	h := start(t)
	h.ask("work")
	if why := h.recovered(); why != "a ring goroutine stands still with a request in its hands, and was killed" {
		t.Errorf("recovered because %q", why)
	}
}

// TestKeeperDies kills keepers, and has one hang: another follows, and knows of hvid's
// death just as well. What ends hvid in order doesn't end the keeper.
func TestKeeperDies(t *testing.T) {
	t.Parallel()
	h := start(t)
	first := h.keeper
	// The second that is killed is followed by one that hangs, which hvid kills.
	for i, killed := range []bool{true, true, false, true} {
		if i == 1 {
			if err := os.WriteFile(filepath.Join(h.dir, hangs), nil, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		if killed {
			h.signal(h.keeper, syscall.SIGKILL)
		}
		h.eventually("another keeper watches", func() bool {
			var alive bool
			var pid, restarts int
			if _, err := fmt.Sscanf(h.ask("state"), "state %t %d %d", &alive, &pid, &restarts); err != nil {
				t.Fatal(err)
			}
			if !alive || pid == h.keeper {
				return false
			}
			if restarts != i+1 {
				t.Errorf("%d restarts after %d deaths", restarts, i+1)
			}
			h.keeper = pid
			return true
		})
	}
	for _, s := range []syscall.Signal{syscall.SIGTERM, syscall.SIGINT, syscall.SIGHUP, syscall.SIGQUIT, syscall.SIGABRT} {
		h.signal(h.keeper, s)
	}
	h.signal(h.cmd.Process.Pid, syscall.SIGKILL)
	if why := h.recovered(); why != "hvid died" {
		t.Errorf("recovered because %q", why)
	}
	h.gone(first)
}

// TestInOrder has hvid end with nothing to undo, which is no case for the keeper,
// and with something, which is.
func TestInOrder(t *testing.T) {
	t.Parallel()
	h := start(t)
	h.ask("work")
	h.ask("rest")
	h.tell("stop")
	if err := h.cmd.Wait(); err != nil {
		t.Error(err)
	}
	h.untouched()

	h = start(t)
	h.tell("fail")
	if why := h.recovered(); why != "hvid died" {
		t.Errorf("recovered because %q", why)
	}
}

const capIPCLock = 14 // linux/capability.h

// TestCapabilities looks at each thread of a keeper that watches.
func TestCapabilities(t *testing.T) {
	t.Parallel()
	h := start(t)
	threads, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/status", h.keeper))
	if err != nil || len(threads) == 0 {
		t.Fatalf("%d threads: %v", len(threads), err)
	}
	if raceDetector {
		t.Skip("the race detector is linked with C, where a program keeps its capabilities: syscall.AllThreadsSyscall")
	}
	for _, file := range threads {
		status, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		_, caps, _ := strings.Cut(string(status), "CapPrm:")
		var has uint64
		if _, err := fmt.Sscanf(caps, "%x", &has); err != nil {
			t.Fatal(err)
		}
		if has&^(1<<capIPCLock) != 0 {
			t.Errorf("%s: capabilities %#x", file, has)
		}
	}
}

// TestNotStarted has a keeper that can't be started: hvid is told, and goes on.
func TestNotStarted(t *testing.T) {
	k, err := keeper.Start(keeper.Options{
		Env: []string{partVar + "=keeper"}, Dir: t.TempDir(), Budget: testBudget, Log: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		t.Fatal(err)
	}
	if s := k.State(); s.Alive || s.Err == nil || s.Restarts == 0 {
		t.Errorf("%+v", s)
	}
	if err := k.Close(true); err != nil {
		t.Error(err)
	}
}

// mayLock reports whether this process, and so a keeper that it starts, may lock all
// of its memory.
func mayLock(t *testing.T) bool {
	t.Helper()
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		t.Fatal(err)
	}
	_, caps, _ := strings.Cut(string(status), "CapEff:")
	var has uint64
	if _, err := fmt.Sscanf(caps, "%x", &has); err != nil {
		t.Fatal(err)
	}
	limits, err := os.ReadFile("/proc/self/limits")
	if err != nil {
		t.Fatal(err)
	}
	_, limit, _ := strings.Cut(string(limits), "Max locked memory")
	return has&(1<<capIPCLock) != 0 || strings.HasPrefix(strings.TrimSpace(limit), "unlimited")
}

// TestMemory holds a keeper's memory against its program: that is in memory and stays
// there, and little else is.
func TestMemory(t *testing.T) {
	t.Parallel()
	h := start(t)
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps", h.keeper))
	if err != nil {
		t.Fatal(err)
	}
	program, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	var of string
	var size, rss, locked, total int
	for line := range strings.Lines(string(b)) {
		f := strings.Fields(line)
		switch {
		case len(f) > 4 && strings.Contains(f[0], "-"):
			of = f[len(f)-1]
		case f[0] == "Size:" && of == program:
			n, _ := strconv.Atoi(f[1])
			size += n
		case f[0] == "Rss:":
			n, _ := strconv.Atoi(f[1])
			total += n
			if of == program {
				rss += n
			}
		case f[0] == "Locked:" && of == program:
			n, _ := strconv.Atoi(f[1])
			locked += n
		}
	}
	if size == 0 {
		t.Fatalf("no mapping of %s", program)
	}
	if !mayLock(t) {
		t.Skip("neither CAP_IPC_LOCK nor RLIMIT_MEMLOCK lets this user lock as much")
	}
	if rss != size || locked == 0 {
		t.Errorf("%d of the program's %d KiB are in memory, %d are locked", rss, size, locked)
	}
	const most = 16 << 10 // besides the program, KiB
	if total-rss > most {
		t.Errorf("%d KiB besides its program", total-rss)
	}
}
