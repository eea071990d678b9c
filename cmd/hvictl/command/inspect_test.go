package command

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/xen-hvi/hvi/control"
	"github.com/xen-hvi/hvi/engine/guest/dump"
	"github.com/xen-hvi/hvi/engine/guest/linux/linuxtest"
	"github.com/xen-hvi/hvi/engine/inspect"
)

// memoryImage writes a small guest's memory to a file.
func memoryImage(t *testing.T) string {
	t.Helper()
	g := linuxtest.New(linuxtest.Config{})
	g.Map(0xffff_ffff_ff5f_d000, 0x1000, 0x1000, 4096, 0) // a page in the fixmap, which every kernel has
	return file(t, string(g.Mem))
}

func file(t *testing.T, content string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "memory")
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// TestInspectErrors: what is wrong with a file is said in one line each for what,
// where and what to do, with the exit code that is documented.
func TestInspectErrors(t *testing.T) {
	image := memoryImage(t)
	none := filepath.Join(t.TempDir(), "none")
	locked := file(t, "x")
	if err := os.Chmod(locked, 0); err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		name    string
		args    []string
		code    int
		mention string
		problem control.Code
	}{
		{"missing", []string{none, "ps"}, exitImage, "no such file", codeImage},
		{"empty", []string{file(t, ""), "ps"}, exitImage, "empty file", codeImage},
		{"a folder", []string{t.TempDir(), "ps"}, exitImage, "not a regular file", codeImage},
		{"a text", []string{file(t, "no memory\n"), "ps"}, exitImage, "not a memory image", codeImage},
		{"truncated", []string{file(t, elfCore), "ps"}, exitImage, "truncated", codeImage},
		{"packed", []string{file(t, "\x1f\x8b\x08"), "ps"}, exitImage, "gzip", codeImage},
		{"saved by xl", []string{file(t, "Xen saved domain, xl format\n \x00 \r"), "ps"}, exitImage, "saved by xl", codeImage},
		{"not Linux", []string{file(t, strings.Repeat("windows\n", 1<<16)), "check"}, exitImage, "no Linux kernel", codeNoKernel},
		{"a strange name", []string{"/none/\x1b[31m\u202e", "ps"}, exitImage, `\x1b[31m\u202e`, codeImage},
		{"no command", []string{none}, exitUsage, "what to show", codeUsage},
		{"an unknown command", []string{none, "sockts"}, exitUsage, `"sockets"`, codeUsage},
		{"a PID too many", []string{none, "ps", "1"}, exitUsage, "ps", codeUsage},
		{"a PID too few", []string{none, "maps"}, exitUsage, "maps", codeUsage},
		{"no PID", []string{none, "maps", "init"}, exitUsage, `"init"`, codeUsage},
		{"threads of modules", []string{none, "modules", "--threads"}, exitUsage, "modules", codeUsage},
		{"no such format", []string{none, "ps", "--format", "lme"}, exitUsage, `"lime"`, codeUsage},
		{"another format", []string{image, "ps", "--format", "lime"}, exitImage, "not of the format LiME", codeImage},
		{"a wrong profile", []string{image, "ps", "--profile", file(t, "{}")}, exitRefused, "profile", control.CodeNotPossible},
		{"no such profile", []string{image, "ps", "--profile", none}, exitRefused, "no such file", control.CodeNotPossible},
		{"not readable", []string{locked, "ps"}, exitPermission, "permission", control.CodePermission},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if tc.code == exitPermission && os.Geteuid() == 0 {
				t.Skip("root reads everything")
			}
			out, errOut, code := hvictl(t, "/nonexistent", append([]string{"inspect"}, tc.args...)...)
			if code != tc.code || out != "" || !strings.Contains(errOut, tc.mention) {
				t.Errorf("exit code %d, want %d; %q, stderr %q", code, tc.code, out, errOut)
			}
			lines := strings.Split(strings.TrimSuffix(errOut, "\n"), "\n")
			if len(lines) > 3 || !strings.HasPrefix(lines[0], "hvictl: ") || !strings.HasPrefix(lines[len(lines)-1], "  fix:   ") {
				t.Errorf("stderr is %q", errOut)
			}
			harmless(t, tc.name, errOut)

			_, errOut, code = hvictl(t, "/nonexistent", append([]string{"inspect", "-o", "json"}, tc.args...)...)
			var p control.Problem
			if err := json.Unmarshal([]byte(errOut), &p); err != nil || p.Code != tc.problem || p.Fix == "" || code != tc.code {
				t.Errorf("as JSON: exit code %d, %v in %q", code, err, errOut)
			}
		})
	}
}

// TestUnreadableFile: permission has its own exit code, also where this test is
// run by root, to whom nothing is denied.
func TestUnreadableFile(t *testing.T) {
	err := imageProblem(openError(os.ErrPermission), "/x")
	p, ok := err.(*control.Problem)
	if !ok || p.Code != control.CodePermission || p.Fix == "" || exitOf[p.Code] != exitPermission {
		t.Errorf("%+v", err)
	}
}

// TestInspect: without Xen and hvid, the same commands.
func TestInspect(t *testing.T) {
	path := memoryImage(t)
	out, errOut, code := hvictl(t, "/nonexistent", "__complete", "inspect", path, "")
	for _, k := range inspect.Kinds() {
		if code != exitOK || !strings.Contains(out, k+"\t") {
			t.Errorf("%s is not completed: exit code %d, %q, %q", k, code, out, errOut)
		}
	}
	help, _, _ := hvictl(t, "/nonexistent", "inspect", "--help")
	for _, k := range inspect.Kinds() {
		if !strings.Contains(help, "\n  "+k) {
			t.Errorf("the help does not name %s", k)
		}
	}
}

// elfCore is the beginning of an ELF core whose program headers are missing.
const elfCore = "\x7fELF\x02\x01\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00" + "\x04\x00\x3e\x00\x01\x00\x00\x00" +
	"\x00\x00\x00\x00\x00\x00\x00\x00" + "\x40\x00\x00\x00\x00\x00\x00\x00" + "\x00\x00\x00\x00\x00\x00\x00\x00" +
	"\x00\x00\x00\x00\x40\x00\x38\x00" + "\x02\x00\x40\x00\x00\x00\x00\x00"

func openError(err error) error { return &dump.OpenError{Path: "/x", Err: err} }

// TestProfileExport: of a domain, and of a memory image, which has a slash.
func TestProfileExport(t *testing.T) {
	h := newHost(t)
	out, errOut, code := hvictl(t, h.socket, "profile", "export", "web1")
	if code != exitOK || out != `{"metadata":{}}` || h.engine.asked != "profile 7" {
		t.Errorf("exit code %d, %q, %q, asked %s", code, out, errOut, h.engine.asked)
	}
	out, errOut, code = hvictl(t, "/nonexistent", "profile", "export", memoryImage(t))
	var isf struct {
		Metadata struct{ Format string }
		Symbols  map[string]any
		Types    map[string]any `json:"user_types"`
	}
	if err := json.Unmarshal([]byte(out), &isf); err != nil || code != exitOK || isf.Metadata.Format == "" || isf.Symbols["linux_banner"] == nil || isf.Types["task_struct"] == nil {
		t.Errorf("exit code %d, %v, %q; %d symbols, %d types", code, err, errOut, len(isf.Symbols), len(isf.Types))
	}
	// What was written is taken back.
	profile := file(t, out)
	if _, errOut, _ := hvictl(t, "/nonexistent", "inspect", memoryImage(t), "ps", "--profile", profile); strings.Contains(errOut, "profile") {
		t.Errorf("our own profile: %q", errOut)
	}
	for _, tc := range []struct {
		args []string
		code int
	}{{[]string{"export"}, exitUsage}, {[]string{"export", "web9"}, exitNoDomain}, {[]string{"export", "./none"}, exitImage}, {[]string{"exprot", "web1"}, exitUsage}} {
		if out, errOut, code := hvictl(t, h.socket, append([]string{"profile"}, tc.args...)...); code != tc.code || errOut == "" {
			t.Errorf("profile %v: exit code %d, want %d; %q, %q", tc.args, code, tc.code, out, errOut)
		}
	}
}
