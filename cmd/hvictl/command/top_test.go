package command

import (
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/xen-hvi/hvi/control"
)

// TestTop has one guest be busy, one be quiet, one come, and one be attached to anew,
// whose counters begin at nothing.
func TestTop(t *testing.T) {
	at := noon
	web := control.DomainStatus{
		ID: 7, Name: "web\x1b", UUID: "u7", State: control.StateProtecting, AttachedAt: noon,
		Guards:   []control.GuardStatus{{Name: "kernel-text", Passed: 100}, {Name: "cr", Events: 1}, {Name: "modules"}},
		Counters: control.Counters{RingEvents: 1000, RingBusy: time.Second, RingPeak: 2},
	}
	quiet := control.DomainStatus{ID: 8, Name: "db", UUID: "u8", State: control.StateProtecting, AttachedAt: noon, Guards: []control.GuardStatus{{Name: "cr"}}}
	again := control.DomainStatus{ID: 9, Name: "again", UUID: "u9", State: control.StateProtecting, AttachedAt: noon, Counters: control.Counters{RingEvents: 5}, Guards: []control.GuardStatus{{Name: "cr"}}}
	before := []control.DomainStatus{quiet, web, again, {ID: 1, Name: "none", State: control.StateUnprotected}}

	web.Guards = []control.GuardStatus{{Name: "kernel-text", Passed: 2100, Decisions: 2000, Busy: 5 * time.Millisecond}, {Name: "cr", Events: 3, Decisions: 2}, {Name: "modules"}}
	web.Counters = control.Counters{RingEvents: 3002, RingBusy: time.Second + 500*time.Millisecond, RingPeak: 4}
	again.AttachedAt, again.Counters.RingEvents = noon.Add(time.Second), 900
	come := control.DomainStatus{ID: 10, Name: "come", UUID: "u10", State: control.StateProtecting, AttachedAt: noon, Counters: control.Counters{RingEvents: 70}}
	s := sampleOf(before, []control.DomainStatus{quiet, web, again, come}, at, at.Add(2*time.Second))

	if len(s.Domains) != 4 || s.Domains[0].ID != 7 {
		t.Fatalf("%+v", s)
	}
	d := s.Domains[0]
	if d.Events != 1001 || d.Busy != 0.25 || d.Peak != 4 || d.Violations != 1 || len(d.Guards) != 2 || d.Guards[0] != (topOfGuard{Name: "cr", Violations: 1, Decisions: 1}) ||
		d.Guards[1] != (topOfGuard{Name: "kernel-text", Passed: 1000, Decisions: 1000, Busy: 0.0025, Nanoseconds: 2500}) {
		t.Errorf("%+v", d)
	}
	for _, d := range s.Domains[1:] {
		if d.Events != 0 || d.Violations != 0 {
			t.Errorf("%+v", d)
		}
	}

	var out strings.Builder
	a := &app{out: &out, format: formatTable}
	if err := a.showTop(s, 0); err != nil {
		t.Fatal(err)
	}
	want := "7   web\\x1b  protecting  1001      25.0%  4     1.0           cr 1.0, kernel-text 1000 at 2.5µs"
	if !strings.Contains(out.String(), want) {
		t.Errorf("no line %q in\n%s", want, out.String())
	}
	out.Reset()
	a.format = formatJSON
	if err := a.showTop(s, 1); err != nil {
		t.Fatal(err)
	}
	var back topSample
	if err := json.Unmarshal([]byte(out.String()), &back); err != nil || len(back.Domains) != 4 || strings.Count(out.String(), "\n") != 1 {
		t.Errorf("%v in %s", err, out.String())
	}
}
