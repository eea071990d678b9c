package config

import (
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"time"

	"bytes"
	"reflect"
	"regexp"
	"testing"

	"github.com/xen-hvi/hvi/engine/policy"
)

// TestShippedFile holds the file that is installed against the code: with every
// line commented out, and with every setting taken in.
func TestShippedFile(t *testing.T) {
	shipped := Default()
	taken := regexp.MustCompile(`(?m)^#([a-z_]+ = )`).ReplaceAll(shipped, []byte("$1"))
	if n := bytes.Count(taken, []byte("\n")) - bytes.Count(taken, []byte("\n#")); bytes.Equal(shipped, taken) || n < len(keys) {
		t.Fatalf("the settings were not found in\n%s", shipped)
	}
	got, err := Parse("hvid.toml", shipped, nil)
	if err != nil || !reflect.DeepEqual(got, Defaults()) {
		t.Errorf("got %+v, %v; want %+v", got, err, Defaults())
	}
	got, err = Parse("hvid.toml", taken, nil)
	if err != nil {
		t.Fatal(err)
	}
	if e := got.Default.Effective(); e.Mode != 0 || e.RequireAttach || e.Preset != "default" {
		t.Errorf("the default policy is %+v", e)
	}
	got.Default = Defaults().Default
	if !reflect.DeepEqual(got, Defaults()) {
		t.Errorf("the table of keys says %+v, the code %+v", got, Defaults())
	}
	for _, line := range bytes.Split(shipped, []byte("\n")) {
		if len(line) > 100 {
			t.Errorf("a line of %d columns: %s", len(line), line)
		}
	}
}

func TestParse(t *testing.T) {
	_, err := Parse("hvid.toml", []byte(`
socket = "/run/x/hvid.sock"
state_dir = '/srv/hvi'
run_dir = "/run/x"
log_level = "debug"

[default]
mode = "enforce"
require_attach = true
[default.guards]
kernel-text = "alert"

[gate]
timeout = "1m0s"
`), nil)
	wantError(t, err, `hvid.toml:14:11: gate.timeout "1m0s" is not between 1s and 35s`)

	if c, err := Parse("hvid.toml", []byte(`cache_dir = ""`), nil); err != nil || c.CacheDir != "" {
		t.Errorf("no cache: %q, %v", c.CacheDir, err)
	}

	got, err := Parse("hvid.toml", []byte(`
socket = "/run/x/hvid.sock"
state_dir = '/srv/hvi'
run_dir = "/run/x"
cache_dir = "/srv/cache"
log_level = "debug"
default = { mode = "enforce", require_attach = "yes", guards.kernel-text = "alert" }
gate.timeout = "35s"
looks.quiet = "0s"
watchdog.decision = "0s"
dumps.on_violation = true
dumps.max_count = 3
dumps.max_bytes = 2097152
dumps.min_free = 0
libvirt.enabled = "no"
libvirt.sockets = [
  "/run/libvirt/other-sock", # a comment
]
metrics = { listen = "[::1]:9617" }
events = { journald = true, syslog = "/dev/log", file = "/var/log/hvi.json", format = "ocsf" }

[journal]
max_bytes = 2_000_000
keep = 0x10
sync_every = "250ms"
`), nil)
	if err != nil {
		t.Fatal(err)
	}
	spec := got.Default
	got.Default = policy.Spec{}
	want := Config{
		Socket: "/run/x/hvid.sock", StateDir: "/srv/hvi", RunDir: "/run/x", CacheDir: "/srv/cache", LogLevel: slog.LevelDebug,
		Gate:    Gate{Timeout: 35 * time.Second},
		Looks:   Looks{},
		Dumps:   Dumps{OnViolation: true, MaxCount: 3, MaxBytes: 2097152},
		Libvirt: Libvirt{Enabled: "no", Sockets: []string{"/run/libvirt/other-sock"}},
		Metrics: Metrics{Listen: "[::1]:9617"},
		Events:  Events{Journald: true, Syslog: "/dev/log", File: "/var/log/hvi.json", Format: "ocsf"},
		Journal: Journal{MaxBytes: 2_000_000, Keep: 16, SyncEvery: 250 * time.Millisecond},
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got  %+v\nwant %+v", got, want)
	}
	e := spec.Effective()
	if e.Mode != policy.ModeEnforce || !e.RequireAttach || e.Action(policy.GuardKernelText) != policy.ActionAlert {
		t.Errorf("%+v", e)
	}
	if at := (policy.Origin{Source: "hvid.toml", Line: 7, Column: 20}); spec.Origins.Mode != at {
		t.Errorf("the mode is said to be at %v, not %v", spec.Origins.Mode, at)
	}
}

// wantError compares the lines of an error.
func wantError(t *testing.T, err error, want ...string) {
	t.Helper()
	if err == nil {
		t.Errorf("no error, want %q", want)
		return
	}
	got := strings.Split(err.Error(), "\n")
	for i, w := range want {
		if i >= len(got) || !strings.Contains(got[i], w) {
			t.Errorf("got\n%v\nwant %q in line %d", err, w, i+1)
			return
		}
	}
	if len(got) != len(want) {
		t.Errorf("%d errors, want %d:\n%v", len(got), len(want), err)
	}
}

func TestParseErrors(t *testing.T) {
	for _, tt := range []struct {
		name, text string
		want       []string
	}{
		{"misspelt key", "sokcet = \"/x\"", []string{`h.toml:1:1: unknown setting "sokcet"; did you mean "socket"?`}},
		{"misspelt table", "[libvrit]\nenabled = \"no\"", []string{`h.toml:1:2: unknown table "libvrit"; did you mean "libvirt"? (known: default, default.guards, gate,`}},
		{"misspelt table inside", "libvrit = { enabled = \"no\" }", []string{`h.toml:1:1: unknown table "libvrit"`}},
		{"misspelt key in a table", "[libvirt]\nenable = \"no\"", []string{`h.toml:2:1: unknown setting "libvirt.enable"; did you mean "libvirt.enabled"?`}},
		{"a table too deep", "[libvirt.sockets]\nx = 1", []string{`h.toml:1:2: unknown table "libvirt.sockets"`, `h.toml:2:1: unknown setting "libvirt.sockets.x"`}},
		{"a key at the wrong place", "[gate]\nlisten = \"\"", []string{`h.toml:2:1: unknown setting "gate.listen"`}},
		{"a table as a value", "socket = { path = \"/x\" }", []string{`h.toml:1:1: unknown table "socket"`}},
		{"a value as a table", "gate = \"20s\"", []string{`h.toml:1:1: unknown setting "gate"`}},
		{"hostile key", "\"a\\u001b[2J\\nb\" = 1", []string{`h.toml:1:1: unknown setting "\"a\\x1b[2J\\nb\""`}},
		{"not a path", "socket = \"hvid.sock\"", []string{`h.toml:1:10: socket "hvid.sock" is not an absolute path`}},
		{"an odd path", "socket = \"/run/../etc/x\"", []string{`h.toml:1:10: socket "/run/../etc/x" is not written plainly: /etc/x`}},
		{"a path too long", "socket = \"/" + strings.Repeat("x", 100) + "\"", []string{`is longer than 100 bytes`}},
		{"a path that would control a terminal", "socket = \"/a\\u001b\"", []string{`h.toml:1:10: socket "/a\x1b" has control characters in it`}},
		{"a cache nowhere plain", "cache_dir = \"/srv/../x\"", []string{`h.toml:1:13: cache_dir "/srv/../x" is not written plainly: /x`}},
		{"an empty path", "state_dir = \"\"", []string{`h.toml:1:13: state_dir is empty`}},
		{"a number for a string", "socket = 5", []string{`h.toml:1:10: setting "socket" is a whole number, but must be a string`}},
		{"a date", "socket = 2020-01-01", []string{`setting "socket" is a date, but must be a string`}},
		{"a list for a string", "log_level = [\"info\"]", []string{`setting "log_level" is a list, but must be a string`}},
		{"log level", "log_level = \"waring\"", []string{`h.toml:1:13: unknown log_level "waring"; did you mean "warn"? (known: debug, info, warn, error)`}},
		{"a time without unit", "[gate]\ntimeout = 20", []string{`h.toml:2:11: setting "gate.timeout" is a whole number, but must be a string; write it with its unit, as in "20s"`}},
		{"no time", "[gate]\ntimeout = \"soon\"", []string{`h.toml:2:11: gate.timeout "soon" is not a time; write it with its unit`}},
		{"a time too short", "[journal]\nsync_every = \"0s\"", []string{`is not between 10ms and 1m0s`}},
		{"libvirt", "[libvirt]\nenabled = true", []string{`h.toml:2:11: setting "libvirt.enabled" is true or false, but must be a string`}},
		{"no sockets", "[libvirt]\nsockets = []", []string{`h.toml:2:1: libvirt.sockets must have 1 to 8 elements`}},
		{"a socket that is none", "[libvirt]\nsockets = [\"/a\", \"b\"]", []string{`h.toml:2:18: libvirt.sockets "b" is not an absolute path`}},
		{"too large", "[journal]\nmax_bytes = 99999999999999", []string{`h.toml:2:13: journal.max_bytes "99999999999999" is not between 1048576 and 4294967296`}},
		{"beyond any number", "[journal]\nkeep = 99999999999999999999", []string{"h.toml:2:8: file is not TOML"}},
		{"a half", "[journal]\nkeep = 1.5", []string{`setting "journal.keep" is another kind of value, but must be a whole number`}},
		{"metrics to everybody", "[metrics]\nlisten = \"0.0.0.0:9617\"", []string{`h.toml:2:10: metrics.listen "0.0.0.0:9617" is not an address of the loopback interface, and metrics are not encrypted; write "127.0.0.1:9617"`}},
		{"default", "[default]\nmode = \"enfroce\"\npolicy = \"web\"\nrequire_attach = 1\nguard = 2\n[default.guards]\nkernel-text = true\nkernl-text = \"block\"\n", []string{
			`h.toml:2:8: unknown mode "enfroce"; did you mean "enforce"?`,
			`h.toml:3:10: unknown policy preset "web" (known: default, linux-observe, linux-server, linux-strict)`,
			`h.toml:4:18: setting "default.require_attach" is a whole number, but must be true or false`,
			`h.toml:5:1: unknown setting "guard"; did you mean "guards"? (known: mode, policy, require_attach, on_engine_failure, guards)`,
			`h.toml:7:15: setting "default.guards.kernel-text" is true or false, but must be a string`,
			`h.toml:8:14: unknown guard "kernl-text"; did you mean "kernel-text"?`,
		}},
		{"guards without a mode", "[default.guards]\nkernel-text = \"block\"", []string{`h.toml:2:15: a guard is set, but the mode is not`}},
		{"block under observe", "[default]\nmode = \"observe\"\nguards = { kernel-text = \"block\" }", []string{`h.toml:3:26: guard "kernel-text" is set to block, but mode observe never blocks`}},
		{"require_attach under off", "[default]\nmode = \"off\"\nrequire_attach = true", []string{`h.toml:3:18: require_attach is set, but mode off attaches nothing`}},
		{"twice", "socket = \"/a\"\nsocket = \"/b\"", []string{"h.toml:2:1: file is not TOML"}},
		{"a table twice", "[gate]\n[gate]", []string{"h.toml:2:2: file is not TOML"}},
		{"a table as a list", "[[gate]]\ntimeout = \"20s\"", []string{`h.toml:1:3: table "gate" has double brackets, which nothing here takes; write [gate]`}},
		{"yaml", "socket: /run/x", []string{"h.toml:1:7: file is not TOML"}},
		{"no quotes", "mode = enforce", []string{"h.toml:1:8: file is not TOML"}},
		{"not UTF-8", "socket = \"\xff\"", []string{"file is not TOML"}},
		{"open string", "socket = \"/x", []string{"file is not TOML"}},
		{"size", strings.Repeat("#", MaxFileSize+1), []string{"h.toml: file is larger than 262144 bytes"}},
		{"settings", "gate = {" + strings.Repeat(" ", 5) + "}\n" + manySettings(), []string{"h.toml:"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c, err := Parse("h.toml", []byte(tt.text), nil)
			if tt.name == "settings" {
				if n := len(policy.Errors(err)); n > maxErrors || !strings.Contains(err.Error(), "has more than 4096 settings") {
					t.Errorf("%d errors", n)
				}
				return
			}
			wantError(t, err, tt.want...)
			if !reflect.DeepEqual(c, Config{}) {
				t.Errorf("an error came with %+v", c)
			}
		})
	}
}

func manySettings() string {
	var b strings.Builder
	for i := range maxSettings + 100 {
		fmt.Fprintf(&b, "k%d = 1\n", i)
	}
	return b.String()
}

func TestListen(t *testing.T) {
	for addr, ok := range map[string]bool{
		"": true, "127.0.0.1:9617": true, "127.9.9.9:1": true, "[::1]:65535": true, "unix:/run/hvi/metrics.sock": true,
		"localhost:9617": false, "0.0.0.0:9617": false, "[::]:9617": false, ":9617": false, "10.0.0.1:9617": false,
		"127.0.0.1": false, "127.0.0.1:0": false, "127.0.0.1:65536": false, "127.0.0.1:http": false, "[::1%lo]:1": false,
		"unix:": false, "unix:metrics.sock": false, "unix:/a/../b": false, "unix:/" + strings.Repeat("x", 100): false,
		"[::ffff:10.0.0.1]:1": false, "http://127.0.0.1:9617": false,
	} {
		c, err := Parse("h.toml", fmt.Appendf(nil, "[metrics]\nlisten = %q", addr), nil)
		if (err == nil) != ok || ok && c.Metrics.Listen != addr {
			t.Errorf("%q: %q, %v", addr, c.Metrics.Listen, err)
		}
	}
}

func TestKeysAreWhole(t *testing.T) {
	seen := map[string]bool{}
	for _, k := range Keys() {
		if k.Meaning == "" || !strings.HasSuffix(k.Meaning, ".") || k.Default == "" || k.Kind == "" || seen[k.Name] {
			t.Errorf("%+v", k)
		}
		seen[k.Name] = true
		if !slices.ContainsFunc(Sections(), func(s Section) bool { return s.Name == k.Table() }) {
			t.Errorf("%s stands in no section", k.Name)
		}
		if k.set == nil && k.Table() != "default" {
			t.Errorf("%s sets nothing", k.Name)
		}
	}
	Keys()[0].Name, Sections()[1].Name = "changed", "changed"
	if Keys()[0].Name == "changed" || Sections()[1].Name == "changed" {
		t.Error("a caller can change the tables")
	}
}

func FuzzParse(f *testing.F) {
	f.Add(Default())
	f.Add([]byte("[default]\nmode='enforce'\nguards={kernel-text='block'}\n[metrics]\nlisten='127.0.0.1:1'"))
	f.Add([]byte("allowed_modules=['none-after-boot','a*','b@01234567']\nforbidden_ebpf='lsm'\nallowed_ebpf=['user:1',\"x\"]"))
	f.Add([]byte("[[a.b]]\n\"c\\u001b\"=[1,2.5,'x',{y=1979-05-27}]"))
	f.Add([]byte("[[view]]\nname='a'\nguards=['idt','vdso']\nswitch='nobody'\ninitial=true\n[[view]]\nname='b'"))
	f.Add([]byte("[[exception]]\nguard='cr'\nprocess='a b*'\ntarget=\"CR4\"\nvalue='0x1f'\ncomment='\"\\ é'\nexpires=2030-01-01\ncreated=2026-01-01T00:00:00+02:00\n[[exception]]\nguard='kernel-text'\nbytes='e9'"))
	f.Fuzz(func(t *testing.T, data []byte) {
		clean := func(err error) {
			if err != nil && strings.ContainsFunc(err.Error(), func(r rune) bool { return r < ' ' && r != '\n' || r == 0x7f || r == 0x202e }) {
				t.Errorf("the error would control a terminal: %q", err)
			}
		}
		c, err := Parse("f.toml", data, nil)
		clean(err)
		if err == nil {
			if err := c.Default.Validate(); err != nil {
				t.Errorf("accepted but not valid: %v", err)
			}
		}
		spec, err := ParseDomain("f.toml", data, nil)
		clean(err)
		if err == nil && (spec.Validate() != nil || !spec.Declared()) {
			t.Errorf("accepted but not valid: %+v", spec)
		}
		named, err := ParsePolicy("web", "f.toml", data)
		clean(err)
		if err == nil && named.Validate() != nil {
			t.Errorf("accepted but not valid: %+v", named)
		}
		list, err := ParseExceptions("f.toml", data)
		clean(err)
		for _, e := range list {
			if err := e.Validate(); err != nil {
				t.Errorf("accepted but not valid: %+v: %v", e, err)
			}
		}
		// What hvid writes, it reads.
		if again, err := ParseExceptions("f.toml", FormatExceptions("", list)); err != nil || len(again) != len(list) {
			t.Errorf("written and read again: %d of %d, %v", len(again), len(list), err)
		}
	})
}
