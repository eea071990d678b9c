package scenario

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"runtime/debug"
	"slices"
	"sync"
	"time"

	"github.com/xen-hvi/hvi/lab/wire"
)

// Reporter takes what a scenario has to say. [*wire.Encoder] is one.
type Reporter interface {
	Encode(wire.Message) error
}

// T is one run of one scenario. Its methods may be called from several
// goroutines, but not after Run has returned.
type T struct {
	ctx    context.Context
	name   string
	report Reporter
	start  time.Time

	mu       sync.Mutex
	failed   []string // the checks that did not hold
	cleanups []func()
	temp     string
}

// Context ends when the scenario's time is up. Every helper of T and [Guest]
// obeys it.
func (t *T) Context() context.Context { return t.ctx }

// Name returns the scenario's name.
func (t *T) Name() string { return t.name }

// Fact records a measured value under key in the scenario's result. The value
// is anything that encoding/json takes; a later value of the same key replaces
// the earlier one.
func (t *T) Fact(key string, value any) {
	text, err := json.Marshal(value)
	if err != nil {
		t.Check(false, "fact %s cannot be encoded: %v", key, err)
		return
	}
	t.send(wire.Message{Kind: wire.Fact, Key: key, Value: text})
}

// Logf tells whoever watches the run.
func (t *T) Logf(format string, args ...any) {
	t.send(wire.Message{Kind: wire.Log, Text: fmt.Sprintf(format, args...)})
}

// Check records one expectation and whether it held. A check that did not hold
// fails the scenario, which runs on. It returns ok.
func (t *T) Check(ok bool, format string, args ...any) bool {
	text := fmt.Sprintf(format, args...)
	if !ok {
		t.mu.Lock()
		t.failed = append(t.failed, text)
		t.mu.Unlock()
	}
	t.send(wire.Message{Kind: wire.Check, Text: text, OK: ok})
	return ok
}

// Step runs f, logs its name and records the emulated seconds it took as the
// fact "seconds.<name>". It returns f's error with the name in front.
func (t *T) Step(name string, f func() error) error {
	t.Logf("%s ...", name)
	start := time.Now()
	if err := f(); err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	t.Fact("seconds."+name, round(time.Since(start)))
	return nil
}

func round(d time.Duration) float64 { return float64(d.Round(time.Millisecond)) / float64(time.Second) }

// Cleanup has f called after Run, the last one first, also when Run panics.
func (t *T) Cleanup(f func()) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.cleanups = append(t.cleanups, f)
}

// TempDir returns a directory that is removed after Run. It is in memory.
func (t *T) TempDir() (string, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.temp != "" {
		return t.temp, nil
	}
	dir, err := os.MkdirTemp("", t.name+"-")
	if err != nil {
		return "", err
	}
	t.temp = dir
	t.cleanups = append(t.cleanups, func() { os.RemoveAll(dir) })
	return dir, nil
}

// Eventually calls cond until it returns true, with short pauses of emulated
// time, and fails when it returns an error, after d, or with the scenario's
// context. The error names what.
func (t *T) Eventually(d time.Duration, what string, cond func() (bool, error)) error {
	ctx, cancel := context.WithTimeout(t.ctx, d)
	defer cancel()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		ok, err := cond()
		if err != nil {
			return fmt.Errorf("waiting until %s: %w", what, err)
		}
		if ok {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("waited %v until %s: %w", d, what, ctx.Err())
		case <-tick.C:
		}
	}
}

// Stays calls cond as Eventually does for d of emulated time, and fails as soon
// as it returns false or an error. The error names what.
func (t *T) Stays(d time.Duration, what string, cond func() (bool, error)) error {
	ctx, cancel := context.WithTimeout(t.ctx, d)
	defer cancel()
	tick := time.NewTicker(200 * time.Millisecond)
	defer tick.Stop()
	for {
		ok, err := cond()
		if err != nil {
			return fmt.Errorf("watching that %s: %w", what, err)
		}
		if !ok {
			return fmt.Errorf("it is no longer so that %s", what)
		}
		select {
		case <-ctx.Done():
			return t.ctx.Err()
		case <-tick.C:
		}
	}
}

func (t *T) send(m wire.Message) {
	m.Scenario = t.name
	m.Time = Uptime()
	// A result channel that fails shows on the host as lost messages, which
	// fail the run; there is nobody here to tell.
	_ = t.report.Encode(m)
}

// Run calls the scenario, cleans up after it and reports its start and end.
// It returns whether the scenario passed.
func (s Scenario) run(ctx context.Context, report Reporter) bool {
	ctx, cancel := context.WithTimeout(ctx, s.Limit())
	defer cancel()
	t := &T{ctx: ctx, name: s.Name, report: report, start: time.Now()}
	t.send(wire.Message{Kind: wire.Start})
	err := t.protect("scenario", func() error { return s.Run(t) })
	err = errors.Join(err, t.clean())
	t.mu.Lock()
	failed := slices.Clone(t.failed)
	t.mu.Unlock()
	if len(failed) > 0 {
		err = errors.Join(err, fmt.Errorf("%d checks did not hold; the first: %s", len(failed), failed[0]))
	}
	end := wire.Message{Kind: wire.End, OK: err == nil}
	if err != nil {
		end.Text = err.Error()
	}
	t.send(end)
	return err == nil
}

func (t *T) clean() error {
	var errs []error
	for {
		t.mu.Lock()
		n := len(t.cleanups)
		if n == 0 {
			t.mu.Unlock()
			return errors.Join(errs...)
		}
		f := t.cleanups[n-1]
		t.cleanups = t.cleanups[:n-1]
		t.mu.Unlock()
		errs = append(errs, t.protect("cleanup", func() error { f(); return nil }))
	}
}

// protect turns a panic of f into an error and puts its stack into the log.
func (t *T) protect(what string, f func() error) (err error) {
	defer func() {
		if p := recover(); p != nil {
			t.Logf("%s panicked: %v\n%s", what, p, debug.Stack())
			err = fmt.Errorf("%s panicked: %v", what, p)
		}
	}()
	return f()
}

// RunAll runs scenarios one after the other and returns whether all passed.
// It reports no Hello and no Done: those are the caller's.
func RunAll(ctx context.Context, report Reporter, list []Scenario) bool {
	ok := true
	for _, s := range list {
		ok = s.run(ctx, report) && ok
	}
	return ok
}
