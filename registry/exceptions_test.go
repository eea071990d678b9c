package registry

import (
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/xen-hvi/hvi/config"
	"github.com/xen-hvi/hvi/engine/policy"
	"github.com/xen-hvi/hvi/engine/xen"
)

// TestExceptionsKept: what is allowed is kept over a restart, for its domain, and
// what the admin writes is not hvid's to remove.
func TestExceptionsKept(t *testing.T) {
	dir, state := t.TempDir(), filepath.Join(t.TempDir(), "exceptions.toml")
	files := &config.Files{Dir: dir, Owner: uint32(os.Getuid())}
	log := slog.New(slog.DiscardHandler)
	host := filepath.Join(dir, config.ExceptionsFile)
	if err := os.WriteFile(host, []byte("[[exception]]\nguard = 'cr'\nprocess = 'kexec'\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	x := OpenExceptions(state, files, log)
	uuid := xen.UUID{7}
	mine := policy.Exception{Guard: policy.GuardKernelText, Process: "agent", Domain: uuid.String(), Comment: "first"}
	for _, comment := range []string{"first", "second"} {
		mine.Comment = comment
		if err := x.Add(mine); err != nil {
			t.Fatal(err)
		}
	}
	if err := x.Add(policy.Exception{Guard: policy.GuardKernelText}); err == nil {
		t.Error("one without a condition is kept")
	}

	x = OpenExceptions(state, files, log)
	written, kept := x.All()
	if len(written) != 1 || len(kept) != 1 || kept[0].Comment != "second" || kept[0].ID() != mine.ID() {
		t.Fatalf("after a restart: %+v, %+v", written, kept)
	}
	if n := len(x.For(uuid)); n != 2 {
		t.Errorf("%d hold for the domain, want 2", n)
	}
	if n := len(x.For(xen.UUID{8})); n != 1 {
		t.Errorf("%d hold for another, want 1", n)
	}

	for _, ids := range [][]string{{"x0"}, {written[0].ID()}, {mine.ID(), "x0"}} {
		if err := x.Remove(ids...); !errors.Is(err, ErrNoException) {
			t.Errorf("remove %v: %v", ids, err)
		}
	}
	if _, kept := x.All(); len(kept) != 1 {
		t.Error("a part was removed")
	}
	if err := x.Remove(mine.ID()); err != nil {
		t.Fatal(err)
	}
	if n := len(x.For(uuid)); n != 1 {
		t.Errorf("%d hold after it was removed", n)
	}

	// The admin's file, broken and mended.
	if err := os.WriteFile(host, []byte("[[exception]]\nguard = 'cr'\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := x.Reload(); err == nil || x.Broken() == nil {
		t.Error("a broken file is taken")
	}
	if written, _ := x.All(); len(written) != 1 || written[0].Process != "kexec" {
		t.Errorf("a broken file changed what holds: %+v", written)
	}
	if err := os.Remove(host); err != nil {
		t.Fatal(err)
	}
	if err := x.Reload(); err != nil || x.Broken() != nil || len(x.For(uuid)) != 0 {
		t.Errorf("without a file: %v", err)
	}
}

// TestExceptionsDamaged: a kept file that can't be read permits nothing, is set
// aside, and does not stop hvid.
func TestExceptionsDamaged(t *testing.T) {
	state := filepath.Join(t.TempDir(), "exceptions.toml")
	if err := os.WriteFile(state, []byte("[[exception"), 0o600); err != nil {
		t.Fatal(err)
	}
	x := OpenExceptions(state, &config.Files{Dir: t.TempDir(), Owner: uint32(os.Getuid())}, slog.New(slog.DiscardHandler))
	if _, kept := x.All(); len(kept) != 0 {
		t.Errorf("%+v", kept)
	}
	if b, err := os.ReadFile(state + ".corrupt"); err != nil || string(b) != "[[exception" {
		t.Errorf("set aside: %q, %v", b, err)
	}
	if err := x.Add(policy.Exception{Guard: policy.GuardKernelText, Process: "a"}); err != nil {
		t.Error(err)
	}
	if b, err := os.ReadFile(state); err != nil || !strings.HasPrefix(string(b), "# ") {
		t.Errorf("%q, %v", b, err)
	}
}
