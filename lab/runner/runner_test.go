package runner

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/xen-hvi/hvi/lab/scenario"
	"github.com/xen-hvi/hvi/lab/wire"
)

func scenarios(names ...string) []scenario.Scenario {
	var list []scenario.Scenario
	for _, n := range names {
		list = append(list, scenario.Scenario{Name: n, Brief: "b", Emulator: scenario.Bochs, Timeout: time.Hour})
	}
	return list
}

func message(kind wire.Kind, name string, time float64, more ...func(*wire.Message)) input {
	m := wire.Message{Kind: kind, Scenario: name, Time: time}
	for _, f := range more {
		f(&m)
	}
	return input{message: &m}
}

func hello() input {
	value, _ := json.Marshal(wire.Machine{Xen: "4.17.7", Dom0Kernel: "6.1-dom0", GuestKernel: "6.1-guest"})
	return message(wire.Hello, "", 4, func(m *wire.Message) { m.Value = value })
}

func end(name string, at float64, failure string) input {
	return message(wire.End, name, at, func(m *wire.Message) { m.OK, m.Text = failure == "", failure })
}

func text(l string) input { return input{line: l} }

// fake is a machine that stops when its channel is closed.
type fake struct{ exited chan struct{} }

func (f fake) Exited() <-chan struct{} { return f.exited }
func (f fake) Err() error              { return errors.New("exit status 1") }
func (f fake) Log() string             { return "first\ntriple fault" }

// play plays inputs to a follower. stop says that the machine stops after
// them; otherwise it stays silent.
func play(t *testing.T, list []scenario.Scenario, stop bool, lost int, inputs ...input) *follower {
	t.Helper()
	f := newFollower(list, func(string, string) {})
	synctest.Test(t, func(t *testing.T) {
		in := make(chan input, len(inputs))
		m := fake{make(chan struct{})}
		for _, i := range inputs {
			in <- i
		}
		if stop {
			close(m.exited)
		}
		f.follow(t.Context(), m, in, time.Now())
		f.finish(lost, time.Now())
	})
	return f
}

func TestFollow(t *testing.T) {
	done := message(wire.Done, "", 20)
	last := text("lab: 20.1 end")
	tests := []struct {
		name   string
		list   []scenario.Scenario
		stop   bool
		lost   int
		inputs []input
		errors []string // per scenario, "" passed
	}{
		{"passes", scenarios("a"), false, 0, []input{hello(), message(wire.Start, "a", 5), end("a", 6, ""), done, last}, []string{""}},
		{"passes, and the console never ends", scenarios("a"), false, 0, []input{hello(), message(wire.Start, "a", 5), end("a", 6, ""), done}, []string{""}},
		{"passes, and the machine stops at once", scenarios("a"), true, 0, []input{hello(), message(wire.Start, "a", 5), end("a", 6, ""), done}, []string{""}},
		{"fails", scenarios("a"), false, 0, []input{hello(), message(wire.Start, "a", 5), end("a", 6, "no luck"), done, last}, []string{"no luck"}},
		{"never boots", scenarios("a", "b"), false, 0, []input{text("(XEN) Panic")}, []string{"not ready 4m0s", "(XEN) Panic"}},
		{"the machine stops while it boots", scenarios("a"), true, 0, []input{text("(XEN) Panic")}, []string{"triple fault"}},
		{"cut off", scenarios("a", "b"), false, 0, []input{hello(), message(wire.Start, "a", 5), text("still at it")}, []string{"longer than 1h0m0s; the console's last lines:\n  [a     5.00] begins\n  still", "never began"}},
		{"the machine stops", scenarios("a"), true, 0, []input{hello(), message(wire.Start, "a", 5)}, []string{"the machine stopped (exit status 1)"}},
		{"the second is cut off", scenarios("a", "b"), false, 0, []input{hello(), message(wire.Start, "a", 5), end("a", 6, ""), message(wire.Start, "b", 7)}, []string{"", "longer than"}},
		{"silence between", scenarios("a", "b"), false, 0, []input{hello(), message(wire.Start, "a", 5), end("a", 6, "")}, []string{"", "said nothing for 1m0s"}},
		{"the plan is refused", scenarios("a"), false, 0, []input{hello(), message(wire.Done, "", 5, func(m *wire.Message) { m.Text = "no scenario" }), last}, []string{"no scenario"}},
		{"its end is lost", scenarios("a"), false, 1, []input{hello(), message(wire.Start, "a", 5), done, last}, []string{"the runner ended before it; 1 messages did not arrive"}},
		{"a fact is lost", scenarios("a"), false, 1, []input{hello(), message(wire.Start, "a", 5), end("a", 6, ""), done, last}, []string{"1 messages did not arrive"}},
		{"a stranger's message", scenarios("a"), false, 0, []input{hello(), message(wire.Start, "a", 5), end("x", 6, ""), end("a", 6, ""), done, last}, []string{""}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			f := play(t, tt.list, tt.stop, tt.lost, tt.inputs...)
			for i, want := range tt.errors {
				r := f.results[i]
				if r.OK != (want == "") || !strings.Contains(r.Error, want) {
					t.Errorf("%s: ok %v, error %q; want %q", r.Scenario, r.OK, r.Error, want)
				}
			}
		})
	}
}

func TestInterrupted(t *testing.T) {
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(errors.New("ctrl-c"))
	f := newFollower(scenarios("a"), func(string, string) {})
	f.follow(ctx, fake{make(chan struct{})}, nil, time.Now())
	f.finish(0, time.Now())
	if r := f.results[0]; r.OK || !strings.Contains(r.Error, "interrupted: ctrl-c") {
		t.Errorf("%+v", r)
	}
}

func TestResult(t *testing.T) {
	list := scenarios("a", "b")
	list[1].Release = "4.20"
	f := play(t, list, false, 0,
		text("boot"), hello(), text("between"),
		message(wire.Start, "a", 5), text("in a"),
		message(wire.Fact, "a", 5.5, func(m *wire.Message) { m.Key, m.Value = "pages", json.RawMessage("3586") }),
		message(wire.Check, "a", 5.6, func(m *wire.Message) { m.Text, m.OK = "it holds", true }),
		message(wire.Check, "a", 5.7, func(m *wire.Message) { m.Text = "it does not" }),
		message(wire.Log, "a", 5.8, func(m *wire.Message) { m.Text = "two\nlines" }),
		end("a", 8.25, "1 checks did not hold"),
		message(wire.Start, "b", 9), text("in b"), end("b", 10, ""),
		message(wire.Done, "", 11), text("lab: 11 end"))
	dir := t.TempDir()
	for i, r := range f.results {
		if err := r.write(dir, f.logOf(i)); err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range []string{"b@4.20.json", "b@4.20.console.log"} {
		if _, err := os.Stat(filepath.Join(dir, name)); err != nil {
			t.Error(err)
		}
	}
	data, err := os.ReadFile(filepath.Join(dir, "a.json"))
	if err != nil {
		t.Fatal(err)
	}
	var got Result
	if err := json.Unmarshal(data, &got); err != nil {
		t.Fatal(err)
	}
	if got.Scenario != "a" || got.Emulator != "bochs" || got.Xen != "4.17.7" || got.Dom0Kernel != "6.1-dom0" || got.GuestKernel != "6.1-guest" ||
		got.OK || got.Error != "1 checks did not hold" || string(got.Facts["pages"]) != "3586" || got.Seconds.Emulated != 3.25 {
		t.Errorf("%s", data)
	}
	if want := []Check{{"it holds", true}, {"it does not", false}}; !reflect.DeepEqual(got.Checks, want) {
		t.Errorf("checks %v", got.Checks)
	}
	console, err := os.ReadFile(filepath.Join(dir, "a.console.log"))
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"boot\n", "in a\n", "fact: pages = 3586\n", "CHECK FAILED: it does not\n", "] two\n", "] lines\n"} {
		if !strings.Contains(string(console), want) {
			t.Errorf("%q is not in\n%s", want, console)
		}
	}
	if strings.Contains(string(console), "in b") {
		t.Errorf("another scenario's text is in\n%s", console)
	}
	if b := f.logOf(1); !strings.Contains(b, "boot\n") || !strings.Contains(b, "in b\n") || strings.Contains(b, "in a") {
		t.Errorf("the second scenario's text:\n%s", b)
	}
	if s := f.results[0].Summary(); !strings.HasPrefix(s, "FAILED a ") || !strings.Contains(s, "1 of 2 checks") {
		t.Errorf("summary %q", s)
	}
	if s := f.results[1].Summary(); !strings.HasPrefix(s, "ok ") {
		t.Errorf("summary %q", s)
	}
}

func TestGroup(t *testing.T) {
	list := scenarios("a", "b", "c", "d", "a", "a", "d", "a")
	list[1].Emulator = scenario.QEMU
	list[2].Xen = []string{"altp2m=0"}
	for i := range list[5:] {
		list[5+i].Release = "4.20"
	}
	var got []string
	for _, g := range group(list) {
		var names []string
		for _, s := range g {
			names = append(names, s.Title())
		}
		got = append(got, strings.Join(names, "+"))
	}
	if want := []string{"a+d", "b", "c", "a@4.20+d@4.20"}; !reflect.DeepEqual(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}

// TestGroupDeals has more scenarios than one boot is to run.
func TestGroupDeals(t *testing.T) {
	var list []scenario.Scenario
	for i := range maxSharing + 1 {
		list = append(list, scenario.Scenario{Name: fmt.Sprint(i), Emulator: scenario.Bochs})
	}
	got := group(list)
	if len(got) != 2 || len(got[0]) != 5 || len(got[1]) != 4 || got[0][1].Name != "2" || got[1][1].Name != "3" {
		t.Errorf("%d scenarios are dealt so: %v", len(list), got)
	}
	if got := group(list[1:]); len(got) != 1 || len(got[0]) != maxSharing {
		t.Errorf("%d scenarios are dealt so: %v", maxSharing, got)
	}
}

func TestConcat(t *testing.T) {
	dir := t.TempDir()
	var names []string
	for i, s := range []string{"12345", "1234", ""} {
		n := filepath.Join(dir, string(rune('a'+i)))
		if err := os.WriteFile(n, []byte(s), 0o644); err != nil {
			t.Fatal(err)
		}
		names = append(names, n)
	}
	out := filepath.Join(dir, "out")
	if err := concat(out, names); err != nil {
		t.Fatal(err)
	}
	if got, _ := os.ReadFile(out); string(got) != "12345\x00\x00\x001234" {
		t.Errorf("%q", got)
	}
	if err := concat(out, []string{filepath.Join(dir, "none")}); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("got %v", err)
	}
}

func TestLineWriter(t *testing.T) {
	var got []string
	w := &lineWriter{line: func(l string) { got = append(got, l) }}
	for _, p := range []string{"on", "e\r\ntwo\x1b[31m\x07 \xc3\xa4\n", "rest"} {
		if n, err := w.Write([]byte(p)); n != len(p) || err != nil {
			t.Errorf("%d, %v", n, err)
		}
	}
	if want := []string{"one", "two[31m \u00e4"}; !reflect.DeepEqual(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}
