package scenario

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net"
	"reflect"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/xen-hvi/hvi/lab/wire"
)

// recorder keeps what a run reports.
type recorder struct {
	mu sync.Mutex
	ms []wire.Message
}

func (r *recorder) Encode(m wire.Message) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.ms = append(r.ms, m)
	return nil
}

func (r *recorder) end(t *testing.T) wire.Message {
	t.Helper()
	last := r.ms[len(r.ms)-1]
	if last.Kind != wire.End {
		t.Fatalf("the last message is %+v", last)
	}
	return last
}

func TestRun(t *testing.T) {
	tests := []struct {
		name string
		run  func(*T) error
		ok   bool
		says string
	}{
		{"passes", func(t *T) error { t.Check(true, "fine"); return nil }, true, ""},
		{"fails", func(*T) error { return errors.New("no luck") }, false, "no luck"},
		{"check", func(t *T) error { t.Check(1 > 2, "%d is more", 1); return nil }, false, "1 is more"},
		{"panics", func(*T) error { panic("ouch") }, false, "panicked: ouch"},
		{"cleanup panics", func(t *T) error { t.Cleanup(func() { panic("late") }); return nil }, false, "cleanup panicked: late"},
		{"fact that is none", func(t *T) error { t.Fact("f", make(chan int)); return nil }, false, "fact f"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var r recorder
			ok := RunAll(t.Context(), &r, []Scenario{{Name: "s", Run: tt.run}})
			end := r.end(t)
			if ok != tt.ok || end.OK != tt.ok || !strings.Contains(end.Text, tt.says) {
				t.Errorf("passed %v, end %+v; want %v and %q", ok, end, tt.ok, tt.says)
			}
			if r.ms[0].Kind != wire.Start || r.ms[0].Scenario != "s" {
				t.Errorf("the first message is %+v", r.ms[0])
			}
		})
	}
}

func TestRunGoesOn(t *testing.T) {
	var r recorder
	var ran []string
	mk := func(name string, err error) Scenario {
		return Scenario{Name: name, Run: func(*T) error { ran = append(ran, name); return err }}
	}
	if RunAll(t.Context(), &r, []Scenario{mk("a", errors.New("x")), mk("b", nil)}) {
		t.Error("a failure is reported as success")
	}
	if !reflect.DeepEqual(ran, []string{"a", "b"}) {
		t.Errorf("ran %v", ran)
	}
}

func TestCleanupOrder(t *testing.T) {
	var r recorder
	var order []int
	RunAll(t.Context(), &r, []Scenario{{Name: "s", Run: func(t *T) error {
		for i := range 3 {
			t.Cleanup(func() { order = append(order, i) })
		}
		panic("x")
	}}})
	if !reflect.DeepEqual(order, []int{2, 1, 0}) {
		t.Errorf("order %v", order)
	}
}

func TestTimeout(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var r recorder
		ok := RunAll(t.Context(), &r, []Scenario{{Name: "s", Timeout: time.Minute, Run: func(t *T) error {
			return t.Eventually(time.Hour, "pigs fly", func() (bool, error) { return false, nil })
		}}})
		if end := r.end(t); ok || !strings.Contains(end.Text, "pigs fly") || !strings.Contains(end.Text, "deadline") {
			t.Errorf("end %+v", end)
		}
	})
}

func TestEventually(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &T{ctx: t.Context(), report: &recorder{}}
		n := 0
		if err := s.Eventually(time.Minute, "it is so", func() (bool, error) { n++; return n == 3, nil }); err != nil || n != 3 {
			t.Errorf("%v after %d", err, n)
		}
		stop := errors.New("broken")
		if err := s.Eventually(time.Minute, "it is so", func() (bool, error) { return false, stop }); !errors.Is(err, stop) {
			t.Errorf("got %v", err)
		}
		if err := s.Eventually(time.Second, "it is so", func() (bool, error) { return false, nil }); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("got %v", err)
		}
	})
}

func TestFactsAreSent(t *testing.T) {
	var r recorder
	RunAll(t.Context(), &r, []Scenario{{Name: "s", Run: func(t *T) error {
		t.Fact("list", []int{1, 2})
		return t.Step("x", func() error { return nil })
	}}})
	got := map[string]string{}
	for _, m := range r.ms {
		if m.Kind == wire.Fact {
			got[m.Key] = string(m.Value)
		}
	}
	var seconds float64
	if got["list"] != "[1,2]" || json.Unmarshal([]byte(got["seconds.x"]), &seconds) != nil {
		t.Errorf("facts %v", got)
	}
}

func TestExec(t *testing.T) {
	s := &T{ctx: t.Context(), report: &recorder{}}
	out, err := s.Sh("echo out; echo err >&2")
	if err != nil || out.Stdout != "out\n" || out.Stderr != "err\n" {
		t.Fatalf("%+v, %v", out, err)
	}
	out, err = s.Sh("echo why >&2; exit 7")
	var e *ExecError
	if !errors.As(err, &e) || e.Code != 7 || out.Stderr != "why\n" || !strings.Contains(err.Error(), "why") {
		t.Errorf("%+v, %v", out, err)
	}
	if out, err = s.Exec("/no/such/program"); !errors.As(err, &e) || e.Code != -1 || out == nil {
		t.Errorf("%+v, %v", out, err)
	}
}

func TestProcess(t *testing.T) {
	var r recorder
	ok := RunAll(t.Context(), &r, []Scenario{{Name: "s", Run: func(t *T) error {
		p, err := t.Start("/bin/sh", "-c", "trap 'echo bye; exit 3' TERM; echo ready; while :; do sleep 0.01; done")
		if err != nil {
			return err
		}
		if err := t.Eventually(10*time.Second, "it is ready", func() (bool, error) { return strings.Contains(p.Log(), "ready"), nil }); err != nil {
			return err
		}
		err = p.Stop(10 * time.Second)
		t.Check(err != nil && strings.Contains(err.Error(), "exit status 3"), "it ended as told: %v", err)
		t.Check(strings.HasSuffix(p.Log(), "bye\n"), "its last word is kept: %q", p.Log())
		forever, err := t.Start("/bin/sh", "-c", "exec sleep 1000")
		if err != nil {
			return err
		}
		t.Cleanup(func() {
			select {
			case <-forever.Exited():
				panic("it ended before its cleanup")
			default:
			}
		})
		return nil
	}}})
	if !ok {
		t.Errorf("%+v", r.end(t))
	}
}

func TestGuestConfig(t *testing.T) {
	got := GuestConfig{Name: "a", Memory: 96, Altp2m: "external", Lines: []string{`introspection = "enforce"`}, KernelArgs: []string{"x=1"}}.String()
	for _, want := range []string{`name = "a"`, "memory = 96", "vcpus = 1", `altp2m = "external"`, "\nintrospection = \"enforce\"\n", ` x=1"`} {
		if !strings.Contains(got, want) {
			t.Errorf("%q is not in\n%s", want, got)
		}
	}
	got = GuestConfig{Kernel: KernelTiny, KernelArgs: []string{"3"}}.String()
	for _, want := range []string{"kernel = \"/guest/tiny\"\n", "memory = 16\n", "extra = \"3\"\n"} {
		if !strings.Contains(got, want) || strings.Contains(got, "ramdisk") {
			t.Errorf("%q is not in\n%s", want, got)
		}
	}
	if got := (GuestConfig{System: true}).String(); !strings.Contains(got, "ramdisk = \"/guest/system\"\n") {
		t.Errorf("a whole Debian starts by\n%s", got)
	}
	if got := (GuestConfig{}).Path(); got != "/etc/xen/guest.cfg" {
		t.Errorf("path %s", got)
	}
	if got := (GuestConfig{Text: "x"}).String(); got != "x" {
		t.Errorf("text %q", got)
	}
}

func TestParseAnswer(t *testing.T) {
	tests := []struct {
		name, text string
		out        string
		code       int
		ok         bool
	}{
		{"none yet", "@@BEGIN 4\r\nfoo", "", 0, false},
		{"empty", "@@BEGIN 4\r\n\r\n@@RC 0 4\r\n", "", 0, true},
		{"lines", "x\n@@BEGIN 4\r\na\r\nb\r\n\r\n@@RC 2 4\r\n", "a\nb", 2, true},
		{"an older answer", "@@RC 0 3\n@@BEGIN 4\nq\n@@RC 1 4\n", "q", 1, true},
		{"another's within", "@@BEGIN 4\n@@RC 9 44\n\n@@RC 0 4\n", "@@RC 9 44", 0, true},
		{"cut number", "@@BEGIN 4\n@@RC 0 4", "", 0, false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			out, code, ok := parseAnswer(tt.text, 4)
			if out != tt.out || code != tt.code || ok != tt.ok {
				t.Errorf("%q %d %v, want %q %d %v", out, code, ok, tt.out, tt.code, tt.ok)
			}
		})
	}
}

// fakeGuest answers commands the way the guest's init does.
func fakeGuest(t *testing.T, answer func(id, command string) string) *Guest {
	t.Helper()
	ours, theirs := net.Pipe()
	t.Cleanup(func() { theirs.Close() })
	go func() {
		io.WriteString(theirs, "[ 0.1] Linux\r\n"+upMark+"6.1.0-test\r\n")
		buf := make([]byte, 512)
		for {
			n, err := theirs.Read(buf)
			if err != nil {
				return
			}
			id, command, _ := strings.Cut(strings.TrimSpace(string(buf[:n])), " ")
			io.WriteString(theirs, "@@BEGIN "+id+"\r\n")
			io.WriteString(theirs, answer(id, command))
		}
	}()
	return &Guest{Name: "g", t: &T{ctx: t.Context(), report: &recorder{}}, console: newConsole(ours, nil)}
}

func TestGuestRun(t *testing.T) {
	g := fakeGuest(t, func(id, command string) string {
		if command == "false" {
			return "no\r\n\r\n@@RC 1 " + id + "\r\n"
		}
		return "did " + command + "\r\n\r\n@@RC 0 " + id + "\r\n"
	})
	release, err := g.WaitUp()
	if err != nil || release != "6.1.0-test" {
		t.Fatalf("%q, %v", release, err)
	}
	for range 2 {
		out, err := g.Run("it now")
		if err != nil || out != "did it now" {
			t.Errorf("%q, %v", out, err)
		}
	}
	var e *CommandError
	if _, err := g.Run("false"); !errors.As(err, &e) || e.Code != 1 || !strings.Contains(e.Error(), "no") {
		t.Errorf("got %v", err)
	}
	if _, err := g.Run("two\nlines"); err == nil {
		t.Error("two lines are taken for one")
	}
	g.console.close()
	if _, err := g.Run("late"); err == nil {
		t.Error("a closed console answers")
	}
}

func TestPoked(t *testing.T) {
	for text, want := range map[string]string{
		"@@GUEST-UP tiny\r\n@@POKED 0000001f\r\n": "0000001f",
		"@@POKED 00000002\n":                      "00000002",
		"@@POKED 0000":                            "",
	} {
		got := ""
		if m := poked.FindStringSubmatch(text); m != nil {
			got = m[1]
		}
		if got != want {
			t.Errorf("%q in %q, want %q", got, text, want)
		}
	}
}

func TestGuestSilent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ours, theirs := net.Pipe()
		defer theirs.Close()
		go io.Copy(io.Discard, theirs)
		g := &Guest{Name: "g", t: &T{ctx: t.Context(), report: &recorder{}}, console: newConsole(ours, nil)}
		defer g.console.close()
		if _, err := g.Run("hello"); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("got %v", err)
		}
	})
}

func TestParseVerdict(t *testing.T) {
	v, err := parseVerdict("[ 1.0] hvi-pwn: mode=text address=0xffffffff81000000 before=0x55 tried=0xf after=0xf WRITTEN\n")
	want := Verdict{Mode: "text", Address: 0xffffffff81000000, Before: 0x55, Tried: 0xf, After: 0xf, Written: true}
	if err != nil || v != want {
		t.Errorf("%+v, %v", v, err)
	}
	for _, bad := range []string{"", "insmod: killed", "hvi-pwn: mode=text address=0x1 before=0x2 tried=0x3 after=0x1ffffffffffffffff0 BLOCKED"} {
		if _, err := parseVerdict(bad); !errors.Is(err, ErrNoVerdict) {
			t.Errorf("%q: %v", bad, err)
		}
	}
}

func TestParseInfo(t *testing.T) {
	got := parseInfo("release                : 6.1.0-56-amd64\nxen_version            : 4.17.7\nversion                : #1 SMP: x\nrubbish\n")
	want := map[string]string{"release": "6.1.0-56-amd64", "xen_version": "4.17.7", "version": "#1 SMP: x"}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got %v", got)
	}
}

func TestFind(t *testing.T) {
	got, err := Find(All(), "boot-amd", "boot-intel")
	if err != nil || len(got) != 2 || got[0].Name != "boot-amd" {
		t.Errorf("%v, %v", got, err)
	}
	got, err = Find(All(), "views@4.20", "views")
	if err != nil || len(got) != 2 || got[0].Name != "views" || got[0].Title() != "views@4.20" || got[1].Title() != "views" || got[0].Boot() == got[1].Boot() {
		t.Errorf("%v, %v", got, err)
	}
	var e *UnknownError
	if _, err := Find(All(), "boot"); !errors.As(err, &e) || len(e.Near) < 2 {
		t.Errorf("got %v", err)
	}
	if _, err := Find(All(), "zzz"); !errors.As(err, &e) || e.Near != nil {
		t.Errorf("got %v", err)
	}
}

func TestRegisterRefuses(t *testing.T) {
	good := Scenario{Name: "x", Brief: "b", Emulator: Bochs, Run: func(*T) error { return nil }}
	tests := map[string]func(*Scenario){
		"name":     func(s *Scenario) { s.Name = "A b" },
		"brief":    func(s *Scenario) { s.Brief = "" },
		"run":      func(s *Scenario) { s.Run = nil },
		"emulator": func(s *Scenario) { s.Emulator = "vax" },
		"system":   func(s *Scenario) { s.System = "beos" },
		"twice":    func(s *Scenario) { s.Name = "boot-amd" },
	}
	for name, spoil := range tests {
		t.Run(name, func(t *testing.T) {
			defer func() {
				if recover() == nil {
					t.Error("it was taken")
				}
			}()
			s := good
			spoil(&s)
			Register(s)
		})
	}
}

func TestBoot(t *testing.T) {
	a := Scenario{Emulator: QEMU, Xen: []string{"debian"}}
	for _, b := range []Scenario{
		{Emulator: Bochs, Xen: a.Xen}, {Emulator: QEMU}, {Emulator: QEMU, System: Debian}, {Emulator: QEMU, System: Debian, Xen: a.Xen},
		{Emulator: QEMU, Xen: a.Xen, GuestSystem: true},
	} {
		if a.Boot() == b.Boot() {
			t.Errorf("%+v and %+v share a boot", a, b)
		}
	}
	if b := (Scenario{Name: "x", Emulator: QEMU, Xen: a.Xen}); a.Boot() != b.Boot() {
		t.Error("the name keeps two scenarios from sharing a boot")
	}
}

func TestEveryScenarioIsComplete(t *testing.T) {
	all := All()
	if len(all) < 2 {
		t.Fatalf("%d scenarios", len(all))
	}
	for _, s := range all {
		if s.Limit() <= 0 || s.Boot() == "" || strings.HasSuffix(s.Brief, ".") || len(s.Brief) > 110 {
			t.Errorf("%s: limit %v, brief %q", s.Name, s.Limit(), s.Brief)
		}
	}
}
