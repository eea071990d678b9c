package command

import (
	"bytes"
	"encoding/json"
	"os"
	"strings"
	"testing"

	"github.com/xen-hvi/hvi/control"
	"github.com/xen-hvi/hvi/engine/guest/report"
	"github.com/xen-hvi/hvi/engine/inspect"
	"github.com/xen-hvi/hvi/engine/printable"
)

// fakeGuest answers every question with a few things of each kind.
type fakeGuest struct {
	// text makes what the guest chose.
	text func(string) report.Text
	// verdict is that of Check.
	verdict report.Verdict
}

// guestOf returns a guest that chose s for all that it could choose, or what a
// healthy one does for "".
func guestOf(s string) *fakeGuest {
	g := &fakeGuest{text: printable.Escape, verdict: foundVerdict()}
	if s != "" {
		// As a reader that forgot to escape would.
		g.text = func(string) report.Text { return report.Text(s) }
		v := &g.verdict
		for i := range v.Findings {
			v.Findings[i].Object, v.Findings[i].Detail = report.Text(s), report.Text(s)
		}
		v.Reading.Incomplete = []string{s}
		for i := range v.Checks {
			v.Checks[i].Why = s
		}
	}
	return g
}

func list[T any](items ...T) (report.List[T], error) {
	return report.List[T]{Reading: report.Reading{Retries: 1, Microseconds: 812}, Items: items}, nil
}

func (g *fakeGuest) place(symbol string, in report.Region) report.Place {
	return report.Place{Addr: 0xffffffff81001230, Symbol: g.text(symbol), Offset: 0x30, In: in}
}

func (g *fakeGuest) Info() (report.Info, error) {
	return report.Info{
		Reading: report.Reading{Incomplete: []string{"the uptime: no timekeeper " + g.text("").String()}},
		System:  "linux", Release: g.text("6.1.0-35-amd64"), Banner: g.text("Linux version 6.1.0-35-amd64 (debian)"), Hostname: g.text("web1"),
		CommandLine: g.text("root=/dev/xvda1 ro"), Uptime: 93784.25, Taints: "OE",
		Base: 0xffffffff9a000000, PhysBase: 0x1000000, Slide: 0x19000000, PagingLevels: 4, Isolation: true,
		Symbols: 123456, Types: report.TypesBTF, TypesNote: "from the cache",
		CPUs: []report.CPU{
			{
				ID: 0, PID: 812, Comm: g.text("nginx"), Task: 0xffff888003a40000, RIP: g.place("do_idle", report.InKernel), LSTAR: g.place("entry_SYSCALL_64", report.InKernel),
				CR0: 0x80050033, CR3: 0x3a40000, CR4: 0x3606f0, EFER: 0xd01,
				FSBase: 0x7f0012340740, GSBase: 0xffff88807dc00000, STAR: 0x23001000000000, SFMask: 0x257fd5,
				CSTAR: g.place("entry_SYSCALL_compat", report.InKernel), SysenterEIP: g.place("entry_SYSENTER_compat", report.InKernel),
			},
			{ID: 1, User: true, RIP: report.Place{Addr: 0x7f0012345678, In: report.InUnknown}, LSTAR: report.Place{Addr: 0xffffffffc0de0000, In: report.InUnknown}},
		},
	}, nil
}

func (g *fakeGuest) Processes() (report.List[report.Process], error) {
	return list(
		report.Process{PID: 1, TGID: 1, Comm: g.text("systemd"), State: "S", Threads: 1, Start: 12_345_678, Exe: g.text("/usr/lib/systemd/systemd"), MM: 1},
		report.Process{PID: 2, TGID: 2, Comm: g.text("kthreadd"), State: "I", KernelThread: true, Threads: 1, Start: 12_000_000},
		report.Process{PID: 812, TGID: 812, PPID: 1, Comm: g.text("nginx: wörker"), State: "R", Threads: 4, CPU: 1, Start: 93_784_250_000_000, Exe: g.text("/usr/sbin/nginx"), Cred: report.Credentials{EUID: 33}, MM: 1},
	)
}

func (g *fakeGuest) Threads(int32) (report.List[report.Process], error) {
	return list(
		report.Process{PID: 1, TGID: 1, Comm: g.text("systemd"), State: "S", Threads: 1, Start: 12_345_678},
		report.Process{PID: 813, TGID: 812, PPID: 1, Comm: g.text("pool"), State: "D", Threads: 4, CPU: 1, Start: 93_784_250_000_000, Cred: report.Credentials{EUID: 33}},
	)
}

func (g *fakeGuest) Maps(pid int32) (report.List[report.Mapping], error) {
	return list(
		report.Mapping{Start: 0x55d000000000, End: 0x55d000021000, Perm: "r-xp", Offset: 0x1000, Device: "8:1", Inode: 4711, Path: g.text("/usr/sbin/nginx")},
		report.Mapping{Start: 0x7f0000000000, End: 0x7f0000001000, Perm: "rwxp", Inode: uint64(pid)},
		report.Mapping{Start: 0x7ffc00000000, End: 0x7ffc00021000, Perm: "rw-p", Path: g.text("[stack]")},
	)
}

func (g *fakeGuest) Mounts(pid int32) (report.List[report.Mount], error) {
	return list(
		report.Mount{ID: 21, Parent: 1, Device: "202:1", Point: g.text("/"), Type: g.text("ext4"), Source: g.text("/dev/xvda1"), Options: "rw,relatime"},
		report.Mount{ID: 22, Parent: int(pid), Device: "0:5", Point: g.text("/dev"), Type: g.text("devtmpfs"), Source: g.text("udev"), Options: "rw,nosuid"},
	)
}

func (g *fakeGuest) Modules() (report.List[report.Module], error) {
	return list(
		report.Module{Name: g.text("xen_netfront"), State: "live", Base: 0xffffffffc0100000, Size: 49152, Refcount: 0},
		report.Module{Name: g.text("evil"), State: "coming", Base: 0xffffffffc0200000, Size: 16384, Refcount: 2, UsedBy: []report.Text{g.text("a"), g.text("b")}, Taints: "OE"},
	)
}

func (g *fakeGuest) Sockets() (report.List[report.Socket], error) {
	many := []report.Owner{{PID: 1, Comm: g.text("systemd"), FD: 40}, {PID: 812, Comm: g.text("nginx"), FD: 6}, {PID: 813, Comm: g.text("nginx"), FD: 6}, {PID: 814, Comm: g.text("nginx"), FD: 6}, {PID: 815, Comm: g.text("nginx"), FD: 6}}
	return list(
		report.Socket{Family: "inet", Type: "stream", Protocol: "tcp", State: "listen", Local: g.text("0.0.0.0:80"), Remote: g.text("0.0.0.0:*"), UID: 0, Owners: many, NetNS: 4026531840},
		report.Socket{Family: "unix", Type: "dgram", Local: g.text("/run/systemd/notify"), Owners: many[:1], NetNS: 4026531840},
		report.Socket{Family: "netlink", Type: "raw", Protocol: "route"},
	)
}

func (g *fakeGuest) Syscalls() (report.List[report.SyscallTable], error) {
	return list(
		report.SyscallTable{Name: "sys_call_table", Addr: 0xffffffff82000000, Entries: []report.Syscall{
			{Number: 0, Handler: report.Place{Addr: 0xffffffff81301230, Symbol: g.text("__x64_sys_read"), In: report.InKernel}},
			{Number: 1, Handler: report.Place{Addr: 0xffffffffc0201000, Module: g.text("evil"), Offset: 0x1000, In: report.InModule}},
			{Number: 2, Handler: report.Place{Addr: 0xffffffffdead0000, In: report.InUnknown}},
		}},
	)
}

func (g *fakeGuest) Interrupts() (report.List[report.Gate], error) {
	return list(
		report.Gate{CPU: 0, Vector: 14, Handler: g.place("asm_exc_page_fault", report.InKernel), Type: "interrupt"},
		report.Gate{CPU: 0, Vector: 128, Handler: report.Place{In: report.InNothing}, Type: "interrupt", DPL: 3, IST: 1},
	)
}

func (g *fakeGuest) Segments() (report.List[report.Segment], error) {
	return list(report.Segment{CPU: 0, Index: 2, Type: "code", Limit: 0xffffffff, Long: true}, report.Segment{CPU: 0, Index: 8, Type: "tss", Base: 0xfffffe0000003000, Limit: 0x4087, DPL: 0})
}

func (g *fakeGuest) Probes() (report.List[report.Probe], error) {
	return list(
		report.Probe{Kind: "kprobe", Target: g.place("do_sys_openat2", report.InKernel), Handler: report.Place{Addr: 0xffffffffdead0000, In: report.InUnknown}},
		report.Probe{Kind: "ftrace", Target: report.Place{In: report.InNothing}, Targets: 3, Handler: g.place("function_trace_call", report.InKernel), Disabled: true},
	)
}

func (g *fakeGuest) Programs() (report.List[report.Program], error) {
	return list(
		report.Program{ID: 7, Name: g.text("egress"), Type: "cgroup_skb", Tag: "6deef7357e7b4530", Loaded: 3_500_000_000, Instructions: 64, Attached: []report.Attachment{{Kind: "cgroup", Target: g.text("/system.slice")}, {Kind: "netns"}}},
		report.Program{ID: 8, Type: "kprobe", Tag: "aaaabbbbccccdddd", UID: 1000},
	)
}

func (g *fakeGuest) Log() (report.List[report.LogRecord], error) {
	return list(
		report.LogRecord{Seq: 0, Level: 5, Message: g.text("Linux version 6.1.0-35-amd64")},
		report.LogRecord{Seq: 1, Nanoseconds: 1_234_567_000, Level: 4, Message: g.text("a warning")},
		report.LogRecord{Seq: 2, Nanoseconds: 93_784_250_000_000, Level: 2, Message: g.text("BUG: in two lines\n[    0.000000] of \"one\" \\n message"), Cut: true},
	)
}

func (g *fakeGuest) Check() (report.Verdict, error) { return g.verdict, nil }

func foundVerdict() report.Verdict {
	v := cleanVerdict()
	v.Clean, v.Checks[1].Status = false, report.CheckFound
	v.Findings = []report.Finding{
		{Check: "hidden-modules", Object: "module evil", Detail: "in memory, but not in the list", Place: &report.Place{Addr: 0xffffffffc0200000, In: report.InUnknown}},
		{Check: "hidden-modules", Object: "module evil2", Detail: "in sysfs, but not in the list"},
	}
	return v
}

func cleanVerdict() report.Verdict {
	return report.Verdict{
		Clean: true,
		Checks: []report.Check{
			{Name: "hidden-processes", Means: "a process hides from ps", Status: report.CheckClean, Examined: 112},
			{Name: "hidden-modules", Means: "a module hides from lsmod", Status: report.CheckClean, Examined: 0},
		},
		Findings: []report.Finding{},
	}
}

// unavailableVerdict has one check that the kernel doesn't allow, and
// uncheckedVerdict allows none.
func unavailableVerdict() report.Verdict {
	v := cleanVerdict()
	v.Checks[1].Status, v.Checks[1].Why = report.CheckUnavailable, "no sysfs in this kernel"
	return v
}

func uncheckedVerdict() report.Verdict {
	v := unavailableVerdict()
	v.Clean = false
	v.Checks[0].Status, v.Checks[0].Why, v.Checks[0].Examined = report.CheckUnavailable, "no types in this kernel", 0
	return v
}

// failedVerdict has one check that could not be carried through.
func failedVerdict() report.Verdict {
	v := unavailableVerdict()
	v.Clean = false
	v.Checks[0].Status, v.Checks[0].Why = report.CheckFailed, "tasks: more than 65536 entries"
	return v
}

// operandsOf is what the question's command needs beside what it is asked of.
func operandsOf(q inspect.Question) []string {
	if q.PID == inspect.RequiredPID {
		return []string{"812"}
	}
	return nil
}

// TestViews: every question has a command, which shows the answer as a table and
// as JSON.
func TestViews(t *testing.T) {
	h := newHost(t)
	if got := len(views()); got != len(inspect.Questions()) {
		t.Errorf("%d views of %d questions", got, len(inspect.Questions()))
	}
	for i, q := range inspect.Questions() {
		if views()[i].kind != q.Kind {
			t.Errorf("view %d is of %s, want %s", i, views()[i].kind, q.Kind)
		}
		want := exitOK
		if q.Kind == inspect.Check {
			want = exitFindings
		}
		args := append([]string{string(q.Kind), "web1"}, operandsOf(q)...)
		out, errOut, code := hvictl(t, h.socket, args...)
		if code != want || q.Kind != inspect.Info && errOut != "" {
			t.Errorf("%v: exit code %d, want %d; stderr %q", args, code, want, errOut)
		}
		golden(t, "view-"+string(q.Kind), out)

		out, errOut, code = hvictl(t, h.socket, append(args, "-o", "json")...)
		if code != want || errOut != "" {
			t.Errorf("%v as JSON: exit code %d, want %d; stderr %q", args, code, want, errOut)
		}
		got, asked := q.Result(), q.Result()
		if err := json.Unmarshal([]byte(out), got); err != nil {
			t.Errorf("%v: %v", args, err)
		}
		answer, err := q.Ask(guestOf(""), inspect.Args{PID: map[bool]int32{true: 812}[q.PID == inspect.RequiredPID]})
		if err != nil {
			t.Fatal(err)
		}
		b, _ := json.Marshal(answer)
		if err := json.Unmarshal(b, asked); err != nil {
			t.Fatal(err)
		}
		if a, b := jsonOf(t, got), jsonOf(t, asked); a != b {
			t.Errorf("%s arrived as\n%s\nwant\n%s", q.Kind, a, b)
		}
	}
	out, _, code := hvictl(t, h.socket, "ps", "web1", "--threads")
	if code != exitOK || h.engine.asked != "guest 7 ps {PID:0 Threads:true}" {
		t.Errorf("exit code %d, asked %s", code, h.engine.asked)
	}
	golden(t, "view-threads", out)
	if _, _, code := hvictl(t, h.socket, "mounts", "web1", "812"); code != exitOK || h.engine.asked != "guest 7 mounts {PID:812 Threads:false}" {
		t.Errorf("exit code %d, asked %s", code, h.engine.asked)
	}
	if _, errOut, _ := hvictl(t, h.socket, "info", "web1"); errOut != "hvictl: not shown: the uptime: no timekeeper \n" {
		t.Errorf("what is missing is told as %q", errOut)
	}
}

func jsonOf(t *testing.T, v any) string {
	t.Helper()
	b, err := json.MarshalIndent(v, "", " ")
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// TestViewColours: a terminal gets colours, and they end.
func TestViewColours(t *testing.T) {
	for _, v := range views() {
		q := v.question()
		answer, err := q.Ask(guestOf(""), inspect.Args{PID: map[bool]int32{true: 812}[q.PID == inspect.RequiredPID]})
		if err != nil {
			t.Fatal(err)
		}
		var plainOut, colourOut bytes.Buffer
		a := newApp(&plainOut, &plainOut)
		_ = v.show(a, inspect.Args{}, answer)
		a.out, a.errOut, a.colour = &colourOut, &colourOut, true
		_ = v.show(a, inspect.Args{}, answer)
		got := colourOut.String()
		if n := strings.Count(got, "\x1b[0m"); n*2 != strings.Count(got, "\x1b[") {
			t.Errorf("%s: %d of %d colours end", q.Kind, n, strings.Count(got, "\x1b["))
		}
		for _, c := range []string{"\x1b[0m", "\x1b[31m", "\x1b[32m", "\x1b[33m"} {
			got = strings.ReplaceAll(got, c, "")
		}
		if got != plainOut.String() {
			t.Errorf("%s in colour is\n%s\nwant\n%s", q.Kind, got, plainOut.String())
		}
		if q.Kind == inspect.Log {
			golden(t, "view-dmesg-colour", colourOut.String())
		}
	}
}

// TestViewsOfHostileGuests: whatever a guest calls its things, and whatever a
// hvid sends, a terminal is written text only, in as many lines as there are
// things.
func TestViewsOfHostileGuests(t *testing.T) {
	h := newHost(t)
	for _, name := range strangeNames {
		h.engine.text = name
		for _, q := range inspect.Questions() {
			for _, format := range []string{"table", "json"} {
				args := append([]string{string(q.Kind), "web1", "-o", format}, operandsOf(q)...)
				out, errOut, code := hvictl(t, h.socket, args...)
				if code != exitOK && code != exitFindings {
					t.Errorf("%v: exit code %d: %s", args, code, errOut)
				}
				harmless(t, strings.Join(args, " "), out+errOut)
				if _, err := os.Stat("testdata/view-" + string(q.Kind) + ".golden"); err == nil && format == "table" && q.Kind != inspect.Log {
					want, _ := os.ReadFile("testdata/view-" + string(q.Kind) + ".golden")
					if got := strings.Count(out, "\n"); got != bytes.Count(want, []byte("\n")) {
						t.Errorf("%v with %q: %d lines", args, name, got)
					}
				}
			}
		}
	}
}

// TestLogLines: a message can't pass for two.
func TestLogLines(t *testing.T) {
	for s, want := range map[string][]string{
		"":         {""},
		"a":        {"a"},
		"a\nb":     {"a", "b"},
		"a\n":      {"a"},
		"\n":       {""},
		`a\nb`:     {`a\\nb`},
		"a\\\nb":   {`a\\`, "b"},
		"\\":       {`\\`},
		"a\n\nb":   {"a", "", "b"},
		"\x1b[2Ja": {`\x1b[2Ja`},
	} {
		if got := textLines(printable.Escape(s).String()); strings.Join(got, "|") != strings.Join(want, "|") {
			t.Errorf("%q: %q, want %q", s, got, want)
		}
	}
}

func TestCheckExitCodes(t *testing.T) {
	for _, tc := range []struct {
		name    string
		verdict report.Verdict
		code    int
	}{
		{"check-clean", cleanVerdict(), exitOK},
		{"check-found", foundVerdict(), exitFindings},
		{"check-unavailable", unavailableVerdict(), exitOK},
		{"check-failed", failedVerdict(), exitUnchecked},
		{"check-unchecked", uncheckedVerdict(), exitUnchecked},
	} {
		for _, format := range []format{formatTable, formatJSON} {
			var out, errOut bytes.Buffer
			a := newApp(&out, &errOut)
			a.format = format
			if code := a.report(a.show(checkView, inspect.Args{}, &tc.verdict)); code != tc.code || errOut.String() != "" {
				t.Errorf("%s as %s: exit code %d, want %d; stderr %q", tc.name, format, code, tc.code, errOut.String())
			}
			if format == formatTable {
				golden(t, tc.name, out.String())
			}
		}
	}
}

// TestViewErrors: what hvid refuses, and what the command line has wrong.
func TestViewErrors(t *testing.T) {
	h := newHost(t)
	for _, tc := range []struct {
		args    []string
		err     error
		code    int
		mention string
	}{
		{args: []string{"ps"}, code: exitUsage, mention: "needs one domain"},
		{args: []string{"ps", "web1", "812"}, code: exitUsage, mention: "812"},
		{args: []string{"maps", "web1"}, code: exitUsage, mention: "PID"},
		{args: []string{"maps", "web1", "0"}, code: exitUsage, mention: "no PID"},
		{args: []string{"maps", "web1", "x\x1b"}, code: exitUsage, mention: `x\x1b`},
		{args: []string{"modules", "web1", "--threads"}, code: exitUsage, mention: "--threads"},
		{args: []string{"ps", "web2"}, code: exitNoDomain, mention: `did you mean "web1"`},
		{args: []string{"ps", "twin"}, code: exitRefused, mention: "names 2 domains"},
		{args: []string{"ps", "web1"}, err: &control.Problem{Code: control.CodePermission, What: "uid 1000 may not look into a guest", Fix: "run it as root"}, code: exitPermission, mention: "may not look"},
		{args: []string{"ps", "web1"}, err: &control.Problem{Code: control.CodeNotPossible, What: "the domain is a PV guest", Fix: "x"}, code: exitRefused, mention: "PV guest"},
		{args: []string{"check", "web1"}, err: &control.Problem{Code: control.CodeConflict, What: "the guest's kernel is not up yet", Fix: "wait"}, code: exitRefused, mention: "not up yet"},
	} {
		h.engine.err = tc.err
		out, errOut, code := hvictl(t, h.socket, tc.args...)
		if code != tc.code || out != "" || !strings.Contains(errOut, tc.mention) {
			t.Errorf("%q: exit code %d, want %d; %q, stderr %q", tc.args, code, tc.code, out, errOut)
		}
		harmless(t, strings.Join(tc.args, " "), errOut)
	}
	h.engine.err = nil
	for _, q := range inspect.Questions() {
		out, _, _ := hvictl(t, h.socket, "__complete", string(q.Kind), "")
		if !strings.Contains(out, "web1\t") {
			t.Errorf("%s does not complete domains: %q", q.Kind, out)
		}
	}
}
