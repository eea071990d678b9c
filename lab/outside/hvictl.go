package outside

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/xen-hvi/hvi/lab/scenario"
)

// hvictl is the program under test.
type hvictl struct {
	path string
	// seconds is how long each command took, by its name.
	seconds map[string]float64
}

// build compiles hvictl for the scenario.
func (e Env) build(t *scenario.T) (*hvictl, error) {
	dir, err := t.TempDir()
	if err != nil {
		return nil, err
	}
	if err := e.Builder.Compile(t.Context(), dir, "cmd/hvictl"); err != nil {
		return nil, err
	}
	return &hvictl{path: filepath.Join(dir, "hvictl"), seconds: map[string]float64{}}, nil
}

// commandLimit bounds one command: a reader that runs in circles is a failure,
// not a scenario that hangs.
const commandLimit = 2 * time.Minute

// run runs hvictl and returns what it printed and its exit code. An error says
// that it did not end by itself.
func (h *hvictl) run(ctx context.Context, args ...string) (stdout, stderr []byte, code int, err error) {
	ctx, cancel := context.WithTimeoutCause(ctx, commandLimit, fmt.Errorf("it took longer than %v", commandLimit))
	defer cancel()
	cmd := exec.CommandContext(ctx, h.path, args...)
	var out, bad bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &bad
	err = cmd.Run()
	if ctx.Err() != nil {
		return nil, nil, -1, fmt.Errorf("hvictl %s: %w", strings.Join(args, " "), context.Cause(ctx))
	}
	var exit *exec.ExitError
	if errors.As(err, &exit) && exit.ExitCode() >= 0 {
		err = nil
	}
	return out.Bytes(), bad.Bytes(), cmd.ProcessState.ExitCode(), err
}

// inspect asks about an image and decodes the answer.
func (h *hvictl) inspect(ctx context.Context, into any, file string, command ...string) (code int, err error) {
	start := time.Now()
	args := append([]string{"inspect", "-o", "json", file}, command...)
	out, bad, code, err := h.run(ctx, args...)
	h.seconds[strings.Join(command, " ")] = float64(time.Since(start).Milliseconds()) / 1000
	if err != nil {
		return code, err
	}
	if len(out) == 0 {
		return code, fmt.Errorf("hvictl %s: exit code %d: %s", strings.Join(args, " "), code, bytes.TrimSpace(bad))
	}
	if err := json.Unmarshal(out, into); err != nil {
		return code, fmt.Errorf("hvictl %s: exit code %d, %w: %s", strings.Join(args, " "), code, err, bytes.TrimSpace(bad))
	}
	return code, nil
}
