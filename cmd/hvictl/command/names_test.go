package command

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/xen-hvi/hvi/cmd/hostcheck"
	"github.com/xen-hvi/hvi/control"
	"github.com/xen-hvi/hvi/engine/journal"
	"github.com/xen-hvi/hvi/engine/printable"
)

// strangeNames are names that a toolstack accepts for a domain.
var strangeNames = []string{
	"../../x", "..", "a b;rm -rf /", "$(reboot)", "`id`", "--help", "-o", "7", "a\nb\tc\r", "\x1b[31mred\x1b[0m", "\x00", "\x7f", "\xff\xfe",
	strings.Repeat("n", 200), strings.Repeat("服", 200), "naïve-服务器-🦊", "\u202egnp.exe", "\u2066x\u2069", "\u200b", "\ufeff", `"q" \n`, "%s%d%n", "<b>&amp;</b>", "a=b", "#",
}

// harmless fails for output that does anything to a terminal but print.
func harmless(t *testing.T, what, s string) {
	t.Helper()
	for i, r := range s {
		if r != '\n' && !strconv.IsPrint(r) {
			t.Errorf("%s: writes %q near %q", what, r, s[max(0, i-40):min(len(s), i+40)])
			return
		}
	}
}

// TestStrangeNames: whatever a domain is called, every command finds it by its
// name, writes one row for it, and prints nothing but text.
func TestStrangeNames(t *testing.T) {
	h := newHost(t)
	spec := aSpec(t, control.PolicyWords{Mode: "enforce"})
	h.engine.domains, h.engine.kept = nil, nil
	h.engine.policy = aReport(t, control.PolicyWords{Mode: "enforce"})
	for i, name := range strangeNames {
		uuid := fmt.Sprintf("a2b0f0f4-6f0e-4f9b-8f4c-%012d", i)
		text := printable.Escape(name)
		h.engine.domains = append(h.engine.domains, control.DomainStatus{
			ID: uint16(100 + i), Name: text, UUID: uuid, State: control.StateProtecting, Mode: "enforce",
			GuestKernel: &control.GuestKernel{Release: printable.Text(name), Banner: printable.Text(name)}, PolicySource: `xl config ` + name,
			Failure: &control.Failure{Stage: name, Got: name, Fix: name}, TierReason: name, Held: name,
		})
		h.engine.doctor.Domains = append(h.engine.doctor.Domains, control.DomainReport{
			ID: uint16(100 + i), Name: text, TierReason: name, Checks: []control.Check{{Name: name, Status: control.CheckWarn, Detail: name, Fix: name}},
		})
		h.engine.kept = append(h.engine.kept, control.Declaration{UUID: uuid, Name: text, Source: name, Toolstack: name, Spec: spec})
		if _, err := h.journal.Append(journal.Record{
			Domain: journal.Domain{UUID: uuid, Name: text, ID: uint16(100 + i)}, Guard: "kernel-text", Action: journal.Alerted, Mode: "enforce",
			Process: journal.Process{Comm: printable.Text(name)}, Target: journal.Target{Kind: journal.TargetMSR, MSR: &journal.MSRTarget{Index: 1}},
			Before: journal.Number(1), Attempted: journal.Number(2),
		}); err != nil {
			t.Fatal(err)
		}
	}
	n := len(strangeNames)
	for _, tc := range []struct {
		args  string
		lines int // 0 for any
	}{
		{"list", n + 1}, {"status", n + 3}, {"policy list", n + 1}, {"events -n 0", n}, {"doctor", 0}, {"policy export --all", 0},
	} {
		for _, format := range []string{"table", "json"} {
			out, errOut, code := hvictl(t, h.socket, append(strings.Fields(tc.args), "-o", format)...)
			if code != exitOK {
				t.Errorf("%s -o %s: exit code %d: %s", tc.args, format, code, errOut)
			}
			harmless(t, tc.args+" -o "+format, out+errOut)
			if got := strings.Count(out, "\n"); format == "table" && tc.lines > 0 && got != tc.lines {
				t.Errorf("%s: %d lines, want %d:\n%s", tc.args, got, tc.lines, out)
			}
			if format == "json" {
				d := json.NewDecoder(strings.NewReader(out))
				for {
					var v any
					if err := d.Decode(&v); err == io.EOF {
						break
					} else if err != nil {
						t.Errorf("%s: %v", tc.args, err)
						break
					}
				}
			}
		}
	}
	for i, name := range strangeNames {
		for _, tc := range []struct {
			args  []string
			asked string
		}{
			{[]string{"status"}, ""},
			{[]string{"attach"}, fmt.Sprintf("attach %d ", 100+i)},
			{[]string{"detach"}, fmt.Sprintf("detach %d", 100+i)},
			{[]string{"resume"}, fmt.Sprintf("resume %d", 100+i)},
			{[]string{"policy", "show"}, "policy " + name},
			{[]string{"set", "--mode", "off"}, "set " + name},
			{[]string{"policy", "export"}, ""},
		} {
			h.engine.asked = ""
			out, errOut, code := hvictl(t, h.socket, append(tc.args, "--", name)...)
			if code != exitOK && (tc.args[0] != "attach" || code != exitRefused) || !strings.HasPrefix(h.engine.asked, tc.asked) {
				t.Errorf("%q of %q: exit code %d, hvid was asked %q: %s", tc.args, name, code, h.engine.asked, errOut)
			}
			harmless(t, fmt.Sprintf("%q of %q", tc.args, name), out+errOut)
		}
	}

	// The same names, of domains that there are not.
	h.engine.domains, h.engine.kept = fakeDomains(), nil
	h.engine.onDomains = nil
	for _, name := range strangeNames {
		if name == "7" {
			continue
		}
		for _, args := range [][]string{{"status"}, {"attach"}, {"detach"}, {"policy", "export"}} {
			for _, format := range []string{"table", "json"} {
				out, errOut, code := hvictl(t, h.socket, append(args, "-o", format, "--", name)...)
				if code != exitNoDomain || out != "" {
					t.Errorf("%q of no %q: exit code %d: %s%s", args, name, code, out, errOut)
				}
				harmless(t, fmt.Sprintf("%q of no %q", args, name), errOut)
			}
		}
	}

	// And while hvid restarts.
	dir := t.TempDir()
	notice := control.RestartNotice{At: noon.Add(-time.Second)}
	for i, name := range strangeNames {
		notice.Domains = append(notice.Domains, control.RestartDomain{ID: uint16(i), Name: printable.Text(name), UUID: name, Mode: name})
	}
	if err := control.WriteRestartNotice(dir, notice); err != nil {
		t.Fatal(err)
	}
	for _, args := range []string{"list", "status", "list -o json", "status -o json"} {
		out, errOut, code := hvictl(t, filepath.Join(dir, "hvid.sock"), strings.Fields(args)...)
		if code != exitUnreachable || out == "" {
			t.Errorf("%s: exit code %d: %s", args, code, errOut)
		}
		harmless(t, args+" while hvid restarts", out+errOut)
	}
}

// TestStrangeFiles: a file may be called and hold anything, too.
func TestStrangeFiles(t *testing.T) {
	dir := t.TempDir()
	var paths []string
	for i, name := range strangeNames {
		name = strings.NewReplacer("/", "_", "\x00", "0").Replace(name)
		if len(name) > 200 {
			name = name[:200]
		}
		path := filepath.Join(dir, fmt.Sprint(i)+name)
		text := "name = '" + strings.NewReplacer("'", "", "\n", "", "\x00", "", "\r", "").Replace(strangeNames[i]) + "'\nintrospection = '" + name + "'\n"
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		paths = append(paths, path)
	}
	for _, format := range []string{"table", "json"} {
		var out, errOut bytes.Buffer
		code := newApp(&out, &errOut).run(t.Context(), append([]string{"-o", format, "policy", "check", "--"}, paths...))
		if code != exitWrongFile {
			t.Errorf("exit code %d: %s", code, errOut.String())
		}
		harmless(t, "policy check -o "+format, out.String()+errOut.String())
	}
}

// TestLookAgain: what hvid cannot tell of libvirt's hook is looked up here.
func TestLookAgain(t *testing.T) {
	h := newHost(t)
	unsure := control.Check{Name: hostcheck.HookName, Status: control.CheckWarn, Detail: "unsure", Fix: "reload"}
	h.engine.doctor = control.DoctorReport{Checks: []control.Check{unsure}}
	root := t.TempDir()
	run := func() string {
		var out bytes.Buffer
		a := newApp(&out, io.Discard)
		a.host = hostcheck.Options{Root: root, UnitChanged: hostcheck.Systemctl("/nonexistent/systemctl")}
		if code := a.run(t.Context(), []string{"--socket", h.socket, "doctor"}); code != exitOK && code != exitDoctor {
			t.Errorf("exit code %d", code)
		}
		return out.String()
	}
	if out := run(); !strings.Contains(out, "unsure") {
		t.Errorf("without libvirt:\n%s", out)
	}
	if os.Geteuid() != 0 {
		return // what others run is not believed to be libvirt
	}
	for name, text := range map[string]string{
		"proc/9/stat": "9 (libvirtd) S 1 1 1 0 -1 4194560 1 0 0 0 0 0 0 0 20 0 1 0 100 1 1\n",
		"proc/stat":   "btime 1000000000\n",
	} {
		if err := os.MkdirAll(filepath.Dir(filepath.Join(root, name)), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(root, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if out := run(); strings.Contains(out, "unsure") || !strings.Contains(out, "it is not installed") {
		t.Errorf("with libvirt:\n%s", out)
	}
}
