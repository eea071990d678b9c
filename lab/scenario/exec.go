package scenario

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/xen-hvi/hvi/lab/wire"
)

// Output is what a finished command wrote.
type Output struct {
	Stdout, Stderr string
}

// String returns both streams, standard output first.
func (o *Output) String() string { return o.Stdout + o.Stderr }

// ExecError reports a command that could not be run or ended with a failure.
type ExecError struct {
	Command string
	Code    int // exit status, -1 when it was killed or never ran
	Output  *Output
	Err     error
}

func (e *ExecError) Error() string {
	msg := fmt.Sprintf("%s: %v", e.Command, e.Err)
	if s := lastLines(e.Output.String(), 4); s != "" {
		msg += ": " + s
	}
	return msg
}

// Unwrap returns the cause: an [*exec.ExitError], or what kept it from running.
func (e *ExecError) Unwrap() error { return e.Err }

// Exec runs a program of the control domain to its end and returns what it
// wrote. Output is never nil; a failure is an [*ExecError].
func (t *T) Exec(name string, args ...string) (*Output, error) {
	return run(t.ctx, name, args...)
}

// Sh runs a line of shell script as Exec does.
func (t *T) Sh(script string) (*Output, error) { return t.Exec("/bin/sh", "-c", script) }

// XL runs xl.
func (t *T) XL(args ...string) (*Output, error) { return t.Exec("xl", args...) }

// XenStore returns the value of one xenstore node.
func (t *T) XenStore(path string) (string, error) {
	out, err := t.Exec("xenstore-read", path)
	return strings.TrimSpace(out.Stdout), err
}

// HVICtl runs `hvictl -o json args...` and decodes what it writes into out,
// which may be nil.
func (t *T) HVICtl(out any, args ...string) error {
	o, err := t.Exec("hvictl", append([]string{"-o", "json"}, args...)...)
	if err != nil || out == nil {
		return err
	}
	if err := json.Unmarshal([]byte(o.Stdout), out); err != nil {
		return fmt.Errorf("hvictl %s: %w in %.200q", strings.Join(args, " "), err, o.Stdout)
	}
	return nil
}

func run(ctx context.Context, name string, args ...string) (*Output, error) {
	var stdout, stderr bytes.Buffer
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	// A daemon that the command leaves behind keeps its pipes open.
	cmd.WaitDelay = 2 * time.Second
	err := cmd.Run()
	if errors.Is(err, exec.ErrWaitDelay) {
		err = nil
	}
	out := &Output{Stdout: stdout.String(), Stderr: stderr.String()}
	if err == nil {
		return out, nil
	}
	if ctx.Err() != nil {
		err = errors.Join(err, ctx.Err())
	}
	return out, &ExecError{
		Command: strings.Join(append([]string{filepath.Base(name)}, args...), " "),
		Code:    cmd.ProcessState.ExitCode(),
		Output:  out,
		Err:     err,
	}
}

func lastLines(s string, n int) string {
	lines := strings.Split(strings.TrimSpace(s), "\n")
	return strings.Join(lines[max(0, len(lines)-n):], " | ")
}

// Process is a program that runs beside the scenario, such as hvid. It is
// killed after Run if it still lives.
type Process struct {
	Name string

	cmd  *exec.Cmd
	done chan struct{}
	err  error // valid after done
	log  logBuffer
}

// Start starts a program. Its two output streams go to [Process.Log] and, line
// by line, to the run's log.
func (t *T) Start(name string, args ...string) (*Process, error) {
	p := &Process{Name: filepath.Base(name), cmd: exec.CommandContext(t.ctx, name, args...), done: make(chan struct{})}
	p.log.line = func(l string) { t.Logf("[%s] %s", p.Name, l) }
	p.cmd.Stdout, p.cmd.Stderr = &p.log, &p.log
	p.cmd.WaitDelay = 2 * time.Second
	if err := p.cmd.Start(); err != nil {
		return nil, fmt.Errorf("start %s: %w", p.Name, err)
	}
	go func() {
		p.err = p.cmd.Wait()
		close(p.done)
	}()
	t.Cleanup(func() {
		_ = p.cmd.Process.Kill() // fails only when it has ended
		<-p.done
	})
	return p, nil
}

// Pid returns the process's id.
func (p *Process) Pid() int { return p.cmd.Process.Pid }

// Log returns what the process has written so far.
func (p *Process) Log() string { return p.log.String() }

// Exited is closed when the process has ended.
func (p *Process) Exited() <-chan struct{} { return p.done }

// Signal sends a signal.
func (p *Process) Signal(sig os.Signal) error { return p.cmd.Process.Signal(sig) }

// Wait waits for the process's end, at most d, and returns its failure, if
// any, as [exec.Cmd.Wait] does.
func (p *Process) Wait(d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-p.done:
		return p.err
	case <-timer.C:
		return fmt.Errorf("%s (pid %d) still runs after %v", p.Name, p.Pid(), d)
	}
}

// Stop sends SIGTERM and waits as Wait does.
func (p *Process) Stop(d time.Duration) error {
	if err := p.Signal(syscall.SIGTERM); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("stop %s: %w", p.Name, err)
	}
	return p.Wait(d)
}

// logBuffer keeps text and hands it on by whole lines.
type logBuffer struct {
	mu   sync.Mutex
	text bytes.Buffer
	rest []byte
	line func(string)
}

func (b *logBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.text.Write(p)
	b.rest = append(b.rest, p...)
	for {
		i := bytes.IndexByte(b.rest, '\n')
		if i < 0 {
			return len(p), nil
		}
		if b.line != nil {
			b.line(strings.TrimRight(string(b.rest[:i]), "\r"))
		}
		b.rest = b.rest[i+1:]
	}
}

func (b *logBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.text.String()
}

// Uptime returns the seconds since the machine's boot by its own clock, 0
// where that cannot be read.
func Uptime() float64 {
	text, err := os.ReadFile("/proc/uptime")
	if err != nil {
		return 0
	}
	var s float64
	if _, err := fmt.Sscan(string(text), &s); err != nil {
		return 0
	}
	return s
}

// Machine asks the control domain what it is.
func Machine(ctx context.Context) (wire.Machine, error) {
	out, err := run(ctx, "xl", "info")
	if err != nil {
		return wire.Machine{}, err
	}
	info := parseInfo(out.Stdout)
	guest, err := os.ReadFile(GuestRelease)
	if err != nil {
		return wire.Machine{}, err
	}
	return wire.Machine{
		Xen:         info["xen_version"],
		Dom0Kernel:  info["release"],
		GuestKernel: strings.TrimSpace(string(guest)),
		Capability:  info["virt_caps"],
	}, nil
}

// parseInfo reads the "key : value" lines of xl info.
func parseInfo(text string) map[string]string {
	info := map[string]string{}
	for line := range strings.Lines(text) {
		if k, v, ok := strings.Cut(line, ":"); ok {
			info[strings.TrimSpace(k)] = strings.TrimSpace(v)
		}
	}
	return info
}
