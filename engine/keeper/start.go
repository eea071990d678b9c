package keeper

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"runtime"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/xen-hvi/hvi/engine/tick"
)

const (
	// readyLimit bounds the wait for a keeper that was started. It takes some
	// milliseconds; a keeper that takes longer is waited for no more, and not
	// given up either.
	readyLimit = 5 * time.Second
	// doneLimit is how long a keeper may take to end that is not needed any more.
	doneLimit = time.Second
	// After a keeper has died, the next is started at once, and after a while if
	// that one dies soon, too.
	firstPause, lastPause = 100 * time.Millisecond, 10 * time.Second
	// keeperLooks is how many of hvid's beats may pass without one of the
	// keeper's before it is taken for one that hangs: some seconds, since no guest
	// waits for it.
	keeperLooks = 10 * looks
)

// self is the program that runs, also when an upgrade has put another in its place.
const self = "/proc/self/exe"

// Options is what a keeper is started with.
type Options struct {
	// Args is the keeper's command line, without the program, which is this one.
	Args []string
	// Env is all of its environment.
	Env []string
	// Dir is where a file can be made for a moment, in memory if possible.
	Dir string
	// Budget is the keeper's, see Duty.
	Budget time.Duration
	Log    *slog.Logger
}

// State is what is known of a keeper.
type State struct {
	// Alive says that it watches, as the process PID since Since.
	Alive bool
	PID   int
	Since time.Time
	// Restarts counts the keepers that had to follow one that died or hung.
	Restarts uint64
	// Err is why there is none, if it is not Alive.
	Err error
}

// Keeper is hvid's hold on its keeper: as long as there is one, there is a process
// that keeps watch, or another is being started. It is safe for concurrent use.
type Keeper struct {
	opt    Options
	page   *page
	file   *os.File
	pulses pulses
	cancel context.CancelFunc
	ended  sync.WaitGroup
	proc   atomic.Pointer[os.Process]
	sock   atomic.Pointer[os.File]

	mu    sync.Mutex
	state State
}

// Start starts a keeper and waits until it watches. One that can't be started is
// no error but State's: it is tried again.
func Start(opt Options) (*Keeper, error) {
	p, f, err := newPage(opt.Dir)
	if err != nil {
		return nil, err
	}
	if opt.Budget <= 0 {
		opt.Budget = DefaultBudget
	}
	k := &Keeper{opt: opt, page: p, file: f, pulses: pulses{page: p}}
	k.state.Err = errors.New("it is being started")
	ctx, cancel := context.WithCancel(context.Background())
	k.cancel = cancel
	ready := make(chan struct{})
	k.ended.Go(func() { k.beat(ctx) })
	k.ended.Go(func() { k.supervise(ctx, sync.OnceFunc(func() { close(ready) })) })
	select {
	case <-ready:
	case <-time.After(readyLimit):
	}
	return k, nil
}

// Ring returns what a ring goroutine tells of itself by, see [vmevent.Server], and
// what gives it back.
func (k *Keeper) Ring() (pulse *atomic.Uint64, release func()) { return k.pulses.take() }

// State returns what is known of the keeper now.
func (k *Keeper) State() State {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.state
}

// Close ends the watch. With nothing that is left to undo the keeper just goes;
// else it does, once this process has ended, what it is there for.
func (k *Keeper) Close(undone bool) error {
	if !undone {
		// It is this process's end that ends the watch, and nothing before.
		return nil
	}
	k.cancel()
	if s := k.sock.Load(); s != nil {
		_, _ = s.Write([]byte{sayDone}) // fails if it is dead
	}
	if p := k.proc.Load(); p != nil {
		t := time.AfterFunc(doneLimit, func() { _ = p.Kill() }) // fails if it has ended
		defer t.Stop()
	}
	k.ended.Wait()
	// The memory stays mapped as long as this process lives: whoever might still
	// write there must not die of it.
	return k.file.Close()
}

// beat is hvid's heart, and looks for the keeper's.
func (k *Keeper) beat(ctx context.Context) {
	t := tick.New(k.opt.Budget / looks)
	defer t.Close()
	defer context.AfterFunc(ctx, t.Close)()
	var w stopwatch
	var of *os.Process
	k.page.hvid().Add(1)
	t.Each(func() bool {
		k.page.hvid().Add(1)
		p := k.proc.Load()
		if p != of {
			of, w = p, stopwatch{}
		}
		if w.look(k.page.keeper().Load()) >= keeperLooks && p != nil {
			k.opt.Log.Error("the keeper stands still; it is killed, and another is started", "pid", p.Pid)
			_ = p.Kill() // fails if it has died meanwhile
			w = stopwatch{}
		}
		return true
	})
}

// supervise has one keeper follow the other.
func (k *Keeper) supervise(ctx context.Context, ready func()) {
	pause := firstPause
	for ctx.Err() == nil {
		began := time.Now()
		err := k.run(ctx, ready)
		if ctx.Err() != nil {
			return
		}
		k.set(func(s *State) { s.Alive, s.PID, s.Err = false, 0, err; s.Restarts++ })
		k.opt.Log.Error("the keeper is gone; another is started", "err", err)
		ready()
		if time.Since(began) > time.Minute {
			pause = firstPause
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(pause):
		}
		pause = min(2*pause, lastPause)
	}
}

// run starts a keeper and returns when it has ended.
func (k *Keeper) run(ctx context.Context, ready func()) error {
	near, far, err := socketPair()
	if err != nil {
		return err
	}
	defer near.Close()
	cmd := exec.Command(self, k.opt.Args...)
	cmd.Args[0] = os.Args[0]
	cmd.Env = k.opt.Env
	cmd.Stderr = os.Stderr
	cmd.ExtraFiles = []*os.File{fdSocket - 3: far, fdPage - 3: k.file}
	// A group of its own: what a terminal sends to hvid's is not for it.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	err = startOrdinary(cmd)
	far.Close()
	if err != nil {
		return err
	}
	k.sock.Store(near)
	k.proc.Store(cmd.Process)
	defer k.proc.Store(nil)
	go func() {
		said := make([]byte, 1)
		if _, err := near.Read(said); err != nil || said[0] != sayReady {
			return // it has ended, which Wait tells
		}
		k.set(func(s *State) { s.Alive, s.PID, s.Since, s.Err = true, cmd.Process.Pid, time.Now(), nil })
		k.opt.Log.Info("the keeper watches", "pid", cmd.Process.Pid)
		ready()
	}()
	err = cmd.Wait()
	if err == nil {
		err = errors.New("it ended by itself")
	}
	return err
}

// startOrdinary starts a program as an ordinary process, whatever priority this one
// has: it takes a while, which guests that wait for this process are not to feel. The
// program may raise itself when it has begun.
func startOrdinary(cmd *exec.Cmd) error {
	done := make(chan error)
	go func() {
		// Never unlocked: the thread, whose priority nobody wants, ends with it.
		runtime.LockOSThread()
		// Where it is refused the keeper is started all the same.
		_ = syscall.Setpriority(syscall.PRIO_PROCESS, syscall.Gettid(), 0)
		done <- cmd.Start()
	}()
	return <-done
}

func (k *Keeper) set(f func(*State)) {
	k.mu.Lock()
	defer k.mu.Unlock()
	f(&k.state)
}

// socketPair returns two ends of one, that no program which is started gets.
func socketPair() (near, far *os.File, err error) {
	fds, err := syscall.Socketpair(syscall.AF_UNIX, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("keeper: %w", os.NewSyscallError("socketpair", err))
	}
	if err := syscall.SetNonblock(fds[0], true); err != nil {
		return nil, nil, fmt.Errorf("keeper: %w", os.NewSyscallError("fcntl", err))
	}
	return os.NewFile(uintptr(fds[0]), "socket to the keeper"), os.NewFile(uintptr(fds[1]), "socket to hvid"), nil
}
