package scenario

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/xen-hvi/hvi/engine/guest/report"
	"github.com/xen-hvi/hvi/engine/inspect"
)

func init() {
	Register(Scenario{
		Name:     "linux-xencore",
		Brief:    "What hvictl inspect reads in a file of xl dump-core is what the guest says, and what hides in it is found",
		Emulator: Bochs,
		Timeout:  40 * time.Minute,
		Run:      linuxXenCore,
	})
}

const (
	coreMemory = 128 // MiB
	coreLimit  = 15 * time.Minute
	// dumpCore says to xl where the guest's memory ends, see
	// lab/image/files/dumpcore.c.
	dumpCore = "/guest/dumpcore.so"
)

func linuxXenCore(t *T) error {
	g, err := t.StartGuest(GuestConfig{Name: "core", Memory: coreMemory})
	if err != nil {
		return err
	}
	if _, err := g.WaitUp(); err != nil {
		return err
	}
	if _, err := g.Run("insmod /lib/loop.ko"); err != nil {
		return err
	}
	c := coreFile{t: t, g: g}
	if err := t.Step("clean", c.clean); err != nil {
		return err
	}
	return t.Step("hidden", c.hidden)
}

// coreFile is a guest whose memory xl writes to a file.
type coreFile struct {
	t    *T
	g    *Guest
	path string
}

// dump has xl write a new file.
func (c *coreFile) dump() error {
	dir, err := c.t.TempDir()
	if err != nil {
		return err
	}
	if c.path != "" { // there is room for one
		if err := os.Remove(c.path); err != nil {
			return err
		}
	}
	c.path = filepath.Join(dir, "core")
	if _, err := c.t.XL("pause", c.g.Name); err != nil {
		return err
	}
	const pageSize = 4096
	frames := fmt.Sprint("DUMPCORE_FRAMES=", coreMemory<<20/pageSize)
	start := time.Now()
	_, err = c.t.Exec("env", "LD_PRELOAD="+dumpCore, frames, "xl", "dump-core", c.g.Name, c.path)
	c.t.Fact("dump_seconds", time.Since(start).Seconds())
	_, unpause := c.t.XL("unpause", c.g.Name)
	return errors.Join(err, unpause)
}

// inspect asks hvictl about the file and returns its exit code.
func (c *coreFile) inspect(kind inspect.Kind, into any) (int, error) {
	out, err := c.t.Exec("hvictl", "-o", "json", "inspect", c.path, string(kind))
	code := 0
	var failed *ExecError
	switch {
	case errors.As(err, &failed) && failed.Code >= 0:
		code = failed.Code
	case err != nil:
		return 0, err
	}
	if err := json.Unmarshal([]byte(out.Stdout), into); err != nil {
		return code, fmt.Errorf("hvictl inspect %s: exit code %d, %w: %s", kind, code, err, lastLines(out.String(), 3))
	}
	return code, nil
}

// clean compares all that a guest at rest says with what is read.
func (c *coreFile) clean() error {
	views := ownViews()
	say := func() (all []string, err error) {
		for _, v := range views {
			words, err := c.g.Run(v.asks)
			if err != nil {
				return nil, err
			}
			all = append(all, words)
		}
		return all, nil
	}
	before, err := say()
	if err != nil {
		return err
	}
	if err := c.dump(); err != nil {
		return err
	}
	after, err := say()
	if err != nil {
		return err
	}
	for i, v := range views {
		code, err := c.inspect(v.kind, v.into)
		if !c.t.Check(err == nil && code == 0, "hvictl inspect answers %s: exit code %d, %v", v.kind, code, err) {
			continue
		}
		v.judge(c.t, before[i], after[i])
	}
	var info report.Info
	if _, err := c.inspect(inspect.Info, &info); err != nil {
		return err
	}
	c.t.Fact("info", info)
	return c.verdict(false)
}

// hidden has a process and a module hide before the memory is written.
func (c *coreFile) hidden() error {
	if _, err := c.g.Run("(exec sleep 1000000) </dev/null >/dev/null 2>&1 & insmod /lib/hide.ko task=sleep module=1 && ! grep -q '^hide ' /proc/modules"); err != nil {
		return err
	}
	if err := c.dump(); err != nil {
		return err
	}
	return c.verdict(true)
}

// verdict asks for one. The file lacks registers that some checks need.
func (c *coreFile) verdict(attacked bool) error {
	var v report.Verdict
	code, err := c.inspect(inspect.Check, &v)
	if err != nil {
		return err
	}
	words, checks := verdictWords(v)
	if !attacked {
		c.t.Fact("check", checks)
		c.t.Check(code == exitClean && v.Clean && len(v.Findings) == 0, "hvictl inspect check finds the guest clean: exit code %d, %q, %v", code, words, checks)
		return nil
	}
	c.t.Fact("findings", words)
	c.t.Check(code == exitFindings && !v.Clean, "hvictl inspect check says by its exit code, %d, that it found something", code)
	namesHidden(c.t, words, map[string]string{"process": "(sleep)", "module": "module hide"})
	return nil
}
