package image

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/xen-hvi/hvi/lab/archive"
)

// Event reports a piece of work that was not found in the cache.
type Event struct {
	Name    string        // the artifact
	Elapsed time.Duration // what it took
	Final   bool          // it is done; before, it has begun
}

// Builder builds artifacts. Its methods may be called from several goroutines.
type Builder struct {
	// Archive is where packages come from.
	Archive *archive.Archive
	// CacheDir holds the artifacts, in a folder of their own below it.
	CacheDir string
	// Xen is the release of the hypervisor and its toolstack, one of [Xens]; ""
	// is DefaultXen.
	Xen string
	// Root is the checkout, the folder with go.mod.
	Root string
	// Progress, where set, receives events, possibly from several goroutines.
	Progress func(Event)
}

// recipeVersion is part of every artifact's hash. It changes when a recipe in
// this package would make something else from the same inputs.
const recipeVersion = "5"

// buildingPrefix marks an artifact that isn't finished.
const buildingPrefix = ".building-"

// Artifact returns the folder that build has filled, now or earlier, for these
// inputs.
func (b *Builder) Artifact(ctx context.Context, name string, inputs []string, build func(dir string) error) (string, error) {
	h := sha256.Sum256([]byte(recipeVersion + "\n" + name + "\n" + strings.Join(inputs, "\x00")))
	root := filepath.Join(b.CacheDir, "artifacts")
	final := filepath.Join(root, name+"-"+hex.EncodeToString(h[:])[:16])
	if isDir(final) {
		used(final)
		return final, nil
	}
	lock := b.lockPath(final)
	if err := errors.Join(os.MkdirAll(root, 0o755), os.MkdirAll(filepath.Dir(lock), 0o755)); err != nil {
		return "", fmt.Errorf("cache: %w", err)
	}
	unlock, err := archive.Lock(ctx, lock)
	if err != nil {
		return "", err
	}
	defer unlock()
	if isDir(final) { // another process was first
		return final, nil
	}
	start := time.Now()
	b.report(Event{Name: name})
	dir, err := os.MkdirTemp(root, buildingPrefix+name+"-")
	if err != nil {
		return "", fmt.Errorf("cache: %w", err)
	}
	defer os.RemoveAll(dir)
	if err := os.Chmod(dir, 0o755); err != nil {
		return "", fmt.Errorf("cache: %w", err)
	}
	if err := build(dir); err != nil {
		return "", fmt.Errorf("build %s: %w", name, err)
	}
	if err := ctx.Err(); err != nil {
		return "", err
	}
	if err := os.Rename(dir, final); err != nil {
		return "", fmt.Errorf("cache: %w", err)
	}
	b.report(Event{Name: name, Elapsed: time.Since(start), Final: true})
	return final, nil
}

// lockPath is the lock of an artifact's folder.
func (b *Builder) lockPath(dir string) string {
	return filepath.Join(b.CacheDir, "locks", "artifact-"+filepath.Base(dir))
}

func (b *Builder) report(e Event) {
	if b.Progress != nil {
		b.Progress(e)
	}
}

func isDir(path string) bool {
	st, err := os.Stat(path)
	return err == nil && st.IsDir()
}

// ToolError reports a program that the host lacks.
type ToolError struct {
	Tool     string
	Packages []string // Debian packages that hold what the lab needs
}

func (e *ToolError) Error() string {
	return fmt.Sprintf("%s is not installed; run: %s", e.Tool, e.Install())
}

// Install returns the command that installs what is missing, for a root shell.
func (e *ToolError) Install() string {
	return "apt-get install -y --no-install-recommends " + strings.Join(e.Packages, " ")
}

// tools are the host's programs that recipes run.
var tools = []string{"gcc", "make", "as", "ld", "strip", "mkfs.ext4"}

// CheckTools returns a [*ToolError] if the host lacks a program that a recipe
// runs. What is in the cache already needs none of them.
func CheckTools() error {
	for _, t := range tools {
		if err := lookTool(t); err != nil {
			return err
		}
	}
	return nil
}

func lookTool(name string) error {
	if _, err := exec.LookPath(name); err != nil {
		return &ToolError{Tool: name, Packages: []string{"gcc", "make", "binutils", "libc6-dev", "e2fsprogs"}}
	}
	return nil
}

// tool runs a program of the host in dir.
func tool(ctx context.Context, dir, name string, args ...string) error {
	if err := lookTool(name); err != nil {
		return err
	}
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "LC_ALL=C", "MAKEFLAGS=")
	out, err := cmd.CombinedOutput()
	if err != nil {
		return fmt.Errorf("%s %s: %w\n%s", name, strings.Join(args, " "), err, tail(string(out), 2000))
	}
	return nil
}

func tail(s string, n int) string { return s[max(0, len(s)-n):] }

// hash returns a hash of a source file, for an artifact's inputs.
func hash(data []byte) string {
	h := sha256.Sum256(data)
	return hex.EncodeToString(h[:])
}

// only returns the one file that a pattern matches in a tree.
func only(tree, pattern string) (string, error) {
	found, err := filepath.Glob(filepath.Join(tree, pattern))
	if err != nil {
		return "", err
	}
	if len(found) != 1 {
		return "", fmt.Errorf("%d files match %s, want 1: %w", len(found), filepath.Join(tree, pattern), fs.ErrNotExist)
	}
	return found[0], nil
}

// FindRoot returns the checkout that dir is in: the nearest folder with a
// go.mod, upwards.
func FindRoot(dir string) (string, error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return "", err
	}
	for {
		if _, err := os.Stat(filepath.Join(dir, "go.mod")); err == nil {
			return dir, nil
		}
		up := filepath.Dir(dir)
		if up == dir {
			return "", errors.New("not within a checkout: no go.mod here or above")
		}
		dir = up
	}
}
