package machine

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
)

// Command is an emulator ready to be started. Its arguments name the pipes
// [ConsolePath] and [ResultsPath] as files to write to.
type Command struct {
	Path string
	Args []string // without the program's name
	Env  []string // added to the environment
	Dir  string   // working directory
	// ResultsOnStdout says that the results port comes out of the program's
	// standard output instead of ResultsPath.
	ResultsOnStdout bool
	// Terminal says that the program makes a terminal for itself and draws on it.
	Terminal bool
}

// The pipes as the emulator sees them.
const (
	ConsolePath = "/dev/fd/3"
	ResultsPath = "/dev/fd/4"
)

// Output says where a machine's text goes. Each writer is used from one
// goroutine.
type Output struct {
	Console io.Writer // the serial port
	Results io.Writer // the results port, and what else the emulator mixes in
}

// Machine is a running emulator.
type Machine struct {
	cmd  *exec.Cmd
	done chan struct{}

	mu  sync.Mutex
	err error
	log bytes.Buffer // the emulator's own messages
}

// Start starts an emulator. It is killed when ctx ends.
func Start(ctx context.Context, c Command, out Output) (*Machine, error) {
	m := &Machine{done: make(chan struct{})}
	m.cmd = exec.CommandContext(ctx, c.Path, c.Args...)
	m.cmd.Dir = c.Dir
	m.cmd.Env = append(os.Environ(), c.Env...)
	// Its own group, so that a Ctrl-C at the terminal is ours alone to handle;
	// its end with ours, however that comes.
	m.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}

	consoleR, consoleW, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	resultsR, resultsW, err := os.Pipe()
	if err != nil {
		return nil, errors.Join(err, consoleR.Close(), consoleW.Close())
	}
	m.cmd.ExtraFiles = []*os.File{consoleW, resultsW}
	m.cmd.Stderr = lockedWriter{m}
	m.cmd.Stdout = lockedWriter{m}
	if c.ResultsOnStdout {
		m.cmd.Stdout = resultsW
	}

	started := make(chan error)
	go func() {
		// Pdeathsig watches the thread that forked, not the process.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := m.cmd.Start()
		err = errors.Join(err, consoleW.Close(), resultsW.Close())
		started <- err
		if err != nil {
			return
		}
		var copies sync.WaitGroup
		copies.Go(func() { _, _ = io.Copy(out.Console, consoleR) }) // ends with the emulator
		copies.Go(func() { _, _ = io.Copy(out.Results, resultsR) })
		copies.Wait()
		err = m.cmd.Wait()
		_ = errors.Join(consoleR.Close(), resultsR.Close()) // only read
		m.mu.Lock()
		m.err = err
		m.mu.Unlock()
		close(m.done)
	}()
	if err := <-started; err != nil {
		return nil, errors.Join(fmt.Errorf("start %s: %w", c.Path, err), consoleR.Close(), resultsR.Close())
	}
	if c.Terminal {
		go drainTerminal(m.Pid(), m.done)
	}
	return m, nil
}

type lockedWriter struct{ m *Machine }

func (w lockedWriter) Write(p []byte) (int, error) {
	w.m.mu.Lock()
	defer w.m.mu.Unlock()
	return w.m.log.Write(p)
}

// Pid returns the emulator's process id.
func (m *Machine) Pid() int { return m.cmd.Process.Pid }

// Memory returns a file that is the memory of a [PC] that is Shared, byte n of
// it at address n. It can be opened as long as the emulator runs.
func (m *Machine) Memory() (string, error) {
	open, err := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", m.Pid()))
	if err != nil {
		return "", err
	}
	for _, fd := range open {
		if name, err := os.Readlink(fd); err == nil && strings.HasPrefix(name, "/memfd:memory-backend") {
			return fd, nil
		}
	}
	return "", errors.New("the emulator shares no memory")
}

// Exited is closed when the emulator has ended and all it said has been passed
// on.
func (m *Machine) Exited() <-chan struct{} { return m.done }

// Err returns how the emulator ended, once it has. Emulators end with a failure
// on some regular ways of switching off: judge a run by its results.
func (m *Machine) Err() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.err
}

// Log returns what the emulator said about itself.
func (m *Machine) Log() string {
	m.mu.Lock()
	defer m.mu.Unlock()
	return strings.TrimSpace(m.log.String())
}

// Kill ends the emulator and waits until it has.
func (m *Machine) Kill() {
	_ = m.cmd.Process.Kill() // fails only if it has ended
	<-m.done
}
