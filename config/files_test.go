package config

import (
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/xen-hvi/hvi/engine/policy"
	"github.com/xen-hvi/hvi/engine/xen"
)

var uuid1 = xen.UUID{0x6c, 0x9f, 0x7a, 0x1e, 0x0b, 0x1d, 0x4f, 0x0e, 0x9c, 0x5c, 1, 0x23, 0x45, 0x67, 0x89, 0xab}

// shelf is an admin's directory.
type shelf struct {
	*Files
	t *testing.T
}

func newShelf(t *testing.T) shelf {
	t.Helper()
	dir := t.TempDir()
	for _, d := range []string{PoliciesDir, DomainsDir} {
		if err := os.Mkdir(filepath.Join(dir, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	return shelf{&Files{Dir: dir, Owner: uint32(os.Getuid())}, t}
}

func (s shelf) write(name, content string) string {
	s.t.Helper()
	path := filepath.Join(s.Dir, name)
	if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
		s.t.Fatal(err)
	}
	return path
}

func TestDomainFiles(t *testing.T) {
	s := newShelf(t)
	if _, ok, err := s.Domain(uuid1, "web"); ok || err != nil {
		t.Errorf("no file: %v, %v", ok, err)
	}
	path := s.write("domains/web.toml", `
mode = "enforce"
policy = "strict"
[guards]
syscall-entry = "alert"
`)
	s.write("policies/strict.toml", "require_attach = true\nguards = { kernel-text = \"alert\" }\n")
	changed := time.Unix(1_700_000_000, 0)
	if err := os.Chtimes(path, changed, changed); err != nil {
		t.Fatal(err)
	}
	d, ok, err := s.Domain(uuid1, "web")
	if err != nil || !ok || d.Path != path || !d.Modified.Equal(changed) {
		t.Fatalf("%+v, %v, %v", d, ok, err)
	}
	e := d.Spec.Effective()
	if e.Mode != policy.ModeEnforce || e.Preset != "strict" || !e.RequireAttach ||
		from(e, policy.GuardKernelText) != "policy strict at "+filepath.Join(s.Dir, "policies/strict.toml")+":2:26" || from(e, policy.GuardSyscallEntry) != path+":5:17" {
		t.Errorf("%+v", e)
	}

	s.write("domains/"+uuid1.String()+".toml", `mode = "off"`)
	if d, ok, err := s.Domain(uuid1, "web"); err != nil || !ok || d.Spec.Mode != policy.ModeOff || !d.Spec.Declared() {
		t.Errorf("the UUID's comes first: %+v, %v, %v", d, ok, err)
	}
	if d, ok, err := s.Domain(xen.UUID{1}, "db"); ok || err != nil {
		t.Errorf("another domain: %+v, %v", d, err)
	}
}

func TestDomainFileErrors(t *testing.T) {
	for text, want := range map[string]string{
		"":                         `web.toml: file says nothing about the domain; write mode = "off"`,
		"[guards]":                 `web.toml: file says nothing about the domain`,
		"mode = 1":                 `web.toml:1:8: setting "mode" is a whole number, but must be a string`,
		"mode = \"enforce":         `web.toml:1:`,
		"polcy = \"x\"":            `web.toml:1:1: unknown setting "polcy"; did you mean "policy"?`,
		"policy = \"default\"":     `web.toml:1:10: a policy is set, but the mode is not`,
		"introspection = 1":        `web.toml:1:1: unknown setting "introspection" (known: mode, policy, require_attach, on_engine_failure, guards); here it is called mode`,
		"mode = \"1\"\n[guard]":    `web.toml:2:2: unknown table "guard"; did you mean "guards"?`,
		"mode = \"1\"\n[[guards]]": `web.toml:2:3: table "guards" has double brackets`,
		"mode = \"1\"\nguards = [ \"kernel-text=alert\" ]":          `web.toml:2:1: setting "guards" is a table; write [guards]`,
		"mode = \"1\"\n[guards.kernel-text]\naction = \"alert\"":    `web.toml:2:2: unknown table "guards.kernel-text"`,
		"mode = \"1\"\nguards.kernel-text.action = \"alert\"":       `web.toml:2:1: unknown setting "guards.kernel-text.action"`,
		"mode = \"1\"\npolicy = \"wbe\"":                            `web.toml:2:10: unknown policy "wbe"; did you mean "web"? (known: default, linux-observe, linux-server, linux-strict, web)`,
		"mode = \"1\"\npolicy = \"../web\"":                         `unknown policy "../web"`,
		"mode = \"enforce\"\nrequire_attach = \"maybe\"":            `web.toml:2:18: require_attach "maybe" is neither yes nor no`,
		"mode = \"observe\"\nguards = { syscall-entry = \"block\"}": `web.toml:2:28: guard "syscall-entry" is set to block, but mode observe never blocks`,
	} {
		s := newShelf(t)
		s.write("policies/web.toml", "")
		s.write("policies/not a name.toml", "")
		path := s.write("domains/web.toml", text)
		d, ok, err := s.Domain(uuid1, "web")
		if !ok || err == nil || d.Path != path || d.Spec.Declared() {
			t.Errorf("%q: %+v, %v, %v", text, d, ok, err)
			continue
		}
		if !strings.Contains(err.Error(), want) {
			t.Errorf("%q: got\n%v\nwant %s", text, err, want)
		}
	}
}

func TestFileName(t *testing.T) {
	for name, ok := range map[string]bool{
		"web": true, "web-1.example_x": true, "0": true, strings.Repeat("n", MaxDomainName): true,
		"": false, ".": false, "..": false, ".web": false, "-web": false, "../x": false, "a/b": false, "a b": false,
		"a\x00": false, "é": false, "\xff": false, strings.Repeat("n", MaxDomainName+1): false, uuid1.String(): false,
		strings.ToUpper(uuid1.String()): false,
	} {
		if got := FileName(name); got != ok {
			t.Errorf("%q: %v", name, got)
		}
	}
	s := newShelf(t)
	s.write("hvid.toml", `mode = "enforce"`)
	for _, name := range []string{"../hvid", "./../hvid", "x/../../hvid", "..", ""} {
		if d, ok, err := s.Domain(uuid1, name); ok || err != nil {
			t.Errorf("%q: %+v, %v", name, d, err)
		}
	}
}

func TestPolicies(t *testing.T) {
	s := newShelf(t)
	if n, err := s.Policy("web"); n != nil || err != nil {
		t.Errorf("%+v, %v", n, err)
	}
	path := s.write("policies/web.toml", "require_attach = \"yes\"\n[guards]\nkernel-text = \"block\"\n")
	want := policy.Named{
		Name: "web", Origin: policy.Origin{Source: path},
		Guards:        []policy.GuardSetting{{Name: policy.GuardKernelText, Action: policy.ActionBlock, Origin: policy.Origin{Source: path, Line: 3, Column: 15}}},
		RequireAttach: true, RequireAttachAt: policy.Origin{Source: path, Line: 1, Column: 18},
	}
	if n, err := s.Policy("web"); err != nil || !reflect.DeepEqual(*n, want) {
		t.Errorf("got %+v, %v; want %+v", n, err, want)
	}
	for _, name := range []string{"../hvid", "", "a b", "default"} {
		if n, err := s.Policy(name); n != nil || err == nil {
			t.Errorf("%q: %+v, %v", name, n, err)
		}
	}
	for text, want := range map[string]string{
		"mode = \"enforce\"":   "web.toml:1:1: setting \"mode\" cannot be set in a policy; the domain that names it sets it",
		"policy = \"default\"": "web.toml:1:1: setting \"policy\" cannot be set in a policy",
		"guards = 1":           `web.toml:1:10: setting "guards" is a table`,
		"[guards]\nx=\"off\"":  `web.toml:2:3: unknown guard "x"`,
		"mdoe = 1":             `web.toml:1:1: unknown setting "mdoe" (known: require_attach, on_engine_failure, guards, forbidden_ebpf, allowed_ebpf, allowed_modules, protected_processes, childless_processes, sealed_processes, reported_processes)`,
	} {
		s.write("policies/web.toml", text)
		if n, err := s.Policy("web"); n != nil || err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %+v, %v; want %s", text, n, err, want)
		}
	}
	s.write("policies/db.toml", "")
	s.write("policies/default.toml", "")
	s.write("policies/.hidden.toml", "")
	s.write("policies/web.toml.bak", "")
	if got := s.Names(); !reflect.DeepEqual(got, []string{"db", "web"}) {
		t.Errorf("names %q", got)
	}
	for range maxListed {
		s.write("policies/"+strings.Repeat("n", len(s.Names()))+".toml", "")
	}
	if n := len(s.Names()); n > maxListed {
		t.Errorf("%d names", n)
	}
}

// TestBelieved is who may write a policy.
func TestBelieved(t *testing.T) {
	const text = `mode = "enforce"`
	chmod := func(name string, mode os.FileMode) func(shelf) {
		return func(s shelf) {
			if err := os.Chmod(filepath.Join(s.Dir, name), mode); err != nil {
				s.t.Fatal(err)
			}
		}
	}
	replace := func(f func(path string) error) func(shelf) {
		return func(s shelf) {
			path := filepath.Join(s.Dir, "domains/web.toml")
			os.Remove(path)
			if err := f(path); err != nil {
				s.t.Fatal(err)
			}
		}
	}
	for _, tt := range []struct {
		name   string
		change func(shelf)
		want   string // "" is believed
	}{
		{"as it should be", func(shelf) {}, ""},
		{"only root may read it", chmod("domains/web.toml", 0o600), ""},
		{"everybody may write it", chmod("domains/web.toml", 0o646), "web.toml: file is not believed: it can be written by everybody (mode 0646); make it root's alone"},
		{"everybody may replace it", chmod("domains", 0o777), "domains can be written by everybody (mode 0777)"},
		{"everybody may replace its directory", chmod(".", 0o777), "can be written by everybody (mode 0777)"},
		{"as in /tmp", chmod("domains", os.ModeSticky|0o777), ""},
		{"a user's", func(s shelf) { s.Owner = 12345; s.chown("domains/web.toml", 54321) }, "belongs to user 54321"},
		{"a user's directory", func(s shelf) { s.Owner = 12345; s.chown("domains", 54321) }, "belongs to user 54321"},
		{"a FIFO", replace(func(p string) error { return syscall.Mkfifo(p, 0o600) }), "is not a regular file"},
		{"a directory", replace(func(p string) error { return os.Mkdir(p, 0o700) }), "is not a regular file"},
		{"a link to nothing", replace(func(p string) error { return os.Symlink("/nowhere/at/all", p) }), "cannot be read: no such file"},
		{"a link in a circle", replace(func(p string) error { return os.Symlink("web.toml", p) }), "cannot be read: "},
		{"a link to a good file", func(s shelf) {
			s.write("other.toml", text)
			replace(func(p string) error { return os.Symlink("../other.toml", p) })(s)
		}, ""},
		{"a link to a bad file", func(s shelf) {
			s.write("other.toml", text)
			chmod("other.toml", 0o666)(s)
			replace(func(p string) error { return os.Symlink("../other.toml", p) })(s)
		}, "can be written by everybody"},
		{"too large", func(s shelf) { s.write("domains/web.toml", strings.Repeat("#", MaxFileSize+1)) }, "is larger than 262144 bytes"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := newShelf(t)
			path := s.write("domains/web.toml", text)
			tt.change(s)
			d, ok, err := s.Domain(uuid1, "web")
			switch {
			case !ok || d.Path != path:
				t.Errorf("the file was taken for missing: %+v", d)
			case tt.want == "" && (err != nil || d.Spec.Mode != policy.ModeEnforce):
				t.Errorf("%+v, %v", d, err)
			case tt.want != "" && (err == nil || !strings.Contains(err.Error(), tt.want)):
				t.Errorf("got %v, want %s", err, tt.want)
			}
		})
	}
}

// chown gives a file to a user, if the test may.
func (s shelf) chown(name string, uid int) {
	s.t.Helper()
	if os.Getuid() != 0 {
		s.t.Skip("only root can give files away")
	}
	if err := os.Chown(filepath.Join(s.Dir, name), uid, -1); err != nil {
		s.t.Fatal(err)
	}
}

func TestLoad(t *testing.T) {
	s := newShelf(t)
	path := filepath.Join(s.Dir, DaemonFile)
	if c, err := s.Load(path); err != nil || !reflect.DeepEqual(c, Defaults()) {
		t.Errorf("no file: %+v, %v", c, err)
	}
	if c, err := Load(path); err != nil || !reflect.DeepEqual(c, Defaults()) {
		t.Errorf("no file: %+v, %v", c, err)
	}
	s.write("policies/strict.toml", "require_attach = true\n")
	s.write(DaemonFile, "[default]\nmode = \"observe\"\npolicy = \"strict\"\n")
	c, err := s.Load(path)
	if err != nil || c.Default.Preset != "strict" || !c.Default.RequireAttach {
		t.Errorf("%+v, %v", c.Default, err)
	}
	s.write("policies/strict.toml", "mode = 1\n")
	if _, err := s.Load(path); err == nil || !strings.Contains(err.Error(), "strict.toml:1:1") {
		t.Errorf("a policy that is broken: %v", err)
	}
	if err := os.Chmod(path, 0o666); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Load(path); err == nil || !strings.Contains(err.Error(), "not believed") {
		t.Errorf("others can write it: %v", err)
	}
}

// TestRequiredOfBrokenFile sees of a broken file whether it requires protection.
func TestRequiredOfBrokenFile(t *testing.T) {
	for text, want := range map[string]bool{
		`mode = "enfroce"`:                                       false,
		"mode = \"enfroce\"\nrequire_attach = true":              true,
		"mode = \"enfroce\"\nrequire_attach = \"no\"":            false,
		"mode = \"enforce\"\nrequire_attach = \"maybe\"":         true,
		"mode = \"enforce\"\nrequire_attach = 7":                 true,
		"mode = \"enforce\"\nintrospection_require_attach = 1":   true,
		"mode = \"enforce\"\nrequire_atach = true":               true,
		"mode = \"enforce\"\npolicy = \"strict\"\nguard = \"x\"": true,
	} {
		s := newShelf(t)
		s.write("policies/strict.toml", "require_attach = true\n")
		s.write("domains/web.toml", text)
		if d, _, err := s.Domain(uuid1, "web"); err == nil || d.Required != want || d.Spec.RequireAttach {
			t.Errorf("%q: required %v, want %v; %v", text, d.Required, want, err)
		}
	}
}

// from is where a guard's action comes from.
func from(e policy.Effective, name policy.GuardName) string {
	for _, g := range e.Guards {
		if g.Name == name {
			return g.From
		}
	}
	return ""
}
