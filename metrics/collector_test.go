package metrics

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/prometheus/client_golang/prometheus/testutil/promlint"

	"github.com/xen-hvi/hvi/engine/journal"
)

// fakeSource answers from its fields.
type fakeSource struct {
	mu      sync.Mutex
	domains []Domain
	host    Host
	// asked is called while the source is asked for domains.
	asked func()
}

func (s *fakeSource) Domains() []Domain {
	s.mu.Lock()
	defer s.mu.Unlock()
	ds := slices.Clone(s.domains)
	if s.asked != nil {
		s.asked()
	}
	return ds
}

func (s *fakeSource) Host() Host { return s.host }

const (
	uuidWeb = "2afdc6e7-4864-4a2c-9dcf-67c4e1ddc1c8"
	uuidDB  = "9f0a5c1e-0001-4b7e-8a44-5a0d3c2b1a09"
)

var began = time.Unix(1800000000, 500000000)

// web is a protected domain that saw a few things.
func web() Domain {
	return Domain{
		ID: 3, UUID: uuidWeb, Name: "web", Type: "PVH", State: "protecting", Mode: "enforce", Tier: "access",
		PolicyFrom: "xl", AttachedAt: began, RingEvents: 27, Stray: 1, RecordsLost: 2,
		Guards: []Guard{
			{Name: "kernel-text", Action: "block", State: "armed", Violations: 5, Blocked: 3, Passed: 40, Decisions: 45, Busy: 90 * time.Microsecond, OverBudget: 2},
			{Name: "syscall-entry", Action: "alert", State: "armed", Violations: 1},
		},
	}
}

// db failed to be protected.
func db() Domain {
	return Domain{ID: 4, UUID: uuidDB, Name: "db", Type: "HVM", State: "failed", Mode: "off", PolicyFrom: "xl", Held: true}
}

func fullHost() Host {
	return Host{
		Journal:      journal.Stats{Appended: 6, WriteFailures: 1, SyncFailures: 2, TornBytes: 7, Subscribers: 3},
		Declarations: 9, Attaches: 4, AttachTime: 3 * time.Second / 2, AttachFailures: 5, GateRefused: 8,
		Libvirt: &Libvirt{Connected: true}, Keeper: Keeper{Alive: true, Restarts: 2},
	}
}

func collector(t *testing.T, s Source) *Collector {
	t.Helper()
	c := NewCollector(s, Build{Version: "1.2.3", Revision: "abcdef", Go: "go1.26", Xen: "4.17.4"})
	now := began.Add(time.Hour)
	c.now = func() time.Time { return now }
	return c
}

func TestEveryMetric(t *testing.T) {
	c := collector(t, &fakeSource{domains: []Domain{db(), web()}, host: fullHost()})
	want := `
# HELP hvi_attach_duration_seconds Time from a domain's appearance, or the request, until hvi was attached and the domain could run on.
# TYPE hvi_attach_duration_seconds summary
hvi_attach_duration_seconds_sum 1.5
hvi_attach_duration_seconds_count 4
# HELP hvi_attach_failures_total Attempts to attach to a domain that failed.
# TYPE hvi_attach_failures_total counter
hvi_attach_failures_total 5
# HELP hvi_build_info The hvid that runs and the Xen it runs on; always 1.
# TYPE hvi_build_info gauge
hvi_build_info{goversion="go1.26",revision="abcdef",version="1.2.3",xen="4.17.4"} 1
# HELP hvi_declarations Domains whose declared policy hvid keeps.
# TYPE hvi_declarations gauge
hvi_declarations 9
# HELP hvi_domain_attached_timestamp_seconds When hvi attached to the domain, in seconds since 1970; absent while it is not attached.
# TYPE hvi_domain_attached_timestamp_seconds gauge
hvi_domain_attached_timestamp_seconds{domain="web",uuid="2afdc6e7-4864-4a2c-9dcf-67c4e1ddc1c8"} 1.8000000005e+09
# HELP hvi_domain_held Whether hvi keeps the domain paused (1) or not (0): it was saved or migrated and may yet run on, it must not run without protection, or a guard has paused it.
# TYPE hvi_domain_held gauge
hvi_domain_held{domain="db",uuid="9f0a5c1e-0001-4b7e-8a44-5a0d3c2b1a09"} 1
hvi_domain_held{domain="web",uuid="2afdc6e7-4864-4a2c-9dcf-67c4e1ddc1c8"} 0
# HELP hvi_domain_info What a domain is and where its policy comes from; always 1.
# TYPE hvi_domain_info gauge
hvi_domain_info{domain="db",domid="4",mode="off",policy_from="xl",tier="",type="HVM",uuid="9f0a5c1e-0001-4b7e-8a44-5a0d3c2b1a09"} 1
hvi_domain_info{domain="web",domid="3",mode="enforce",policy_from="xl",tier="access",type="PVH",uuid="2afdc6e7-4864-4a2c-9dcf-67c4e1ddc1c8"} 1
# HELP hvi_domain_protected Whether every guard that was asked for is armed (1) or not (0).
# TYPE hvi_domain_protected gauge
hvi_domain_protected{domain="db",uuid="9f0a5c1e-0001-4b7e-8a44-5a0d3c2b1a09"} 0
hvi_domain_protected{domain="web",uuid="2afdc6e7-4864-4a2c-9dcf-67c4e1ddc1c8"} 1
# HELP hvi_domain_protection_asked Whether the domain's policy asks for protection (1), or is broken so that it can't be told (1), or doesn't (0).
# TYPE hvi_domain_protection_asked gauge
hvi_domain_protection_asked{domain="db",uuid="9f0a5c1e-0001-4b7e-8a44-5a0d3c2b1a09"} 1
hvi_domain_protection_asked{domain="web",uuid="2afdc6e7-4864-4a2c-9dcf-67c4e1ddc1c8"} 1
# HELP hvi_domain_state The state of the domain's protection; 1 for the state it is in, other states have no series.
# TYPE hvi_domain_state gauge
hvi_domain_state{domain="db",state="failed",uuid="9f0a5c1e-0001-4b7e-8a44-5a0d3c2b1a09"} 1
hvi_domain_state{domain="web",state="protecting",uuid="2afdc6e7-4864-4a2c-9dcf-67c4e1ddc1c8"} 1
# HELP hvi_domains Domains of this host by the state of their protection, as hvictl status shows it.
# TYPE hvi_domains gauge
hvi_domains{state="attached"} 0
hvi_domains{state="declared"} 0
hvi_domains{state="degraded"} 0
hvi_domains{state="detached"} 0
hvi_domains{state="detaching"} 0
hvi_domains{state="failed"} 1
hvi_domains{state="gated"} 0
hvi_domains{state="identifying"} 0
hvi_domains{state="protecting"} 1
hvi_domains{state="restarting"} 0
hvi_domains{state="unprotected"} 0
# HELP hvi_gate_refused_total Starts of domains that were refused because they must not run without protection.
# TYPE hvi_gate_refused_total counter
hvi_gate_refused_total 8
# HELP hvi_guard_allowed_total Accesses that an exception permits, which would have been violations.
# TYPE hvi_guard_allowed_total counter
hvi_guard_allowed_total{domain="web",guard="kernel-text",uuid="2afdc6e7-4864-4a2c-9dcf-67c4e1ddc1c8"} 0
hvi_guard_allowed_total{domain="web",guard="syscall-entry",uuid="2afdc6e7-4864-4a2c-9dcf-67c4e1ddc1c8"} 0
# HELP hvi_guard_decision_seconds_total About how long a guard's decisions took, for each of which a virtual processor waits: one in sixteen is timed.
# TYPE hvi_guard_decision_seconds_total counter
hvi_guard_decision_seconds_total{domain="web",guard="kernel-text",uuid="2afdc6e7-4864-4a2c-9dcf-67c4e1ddc1c8"} 9e-05
hvi_guard_decision_seconds_total{domain="web",guard="syscall-entry",uuid="2afdc6e7-4864-4a2c-9dcf-67c4e1ddc1c8"} 0
# HELP hvi_guard_decisions_total Requests of Xen on the domain's monitor ring that a guard decided on.
# TYPE hvi_guard_decisions_total counter
hvi_guard_decisions_total{domain="web",guard="kernel-text",uuid="2afdc6e7-4864-4a2c-9dcf-67c4e1ddc1c8"} 45
hvi_guard_decisions_total{domain="web",guard="syscall-entry",uuid="2afdc6e7-4864-4a2c-9dcf-67c4e1ddc1c8"} 0
# HELP hvi_guard_over_budget_total Decisions of a guard that took longer than they may, of those that were timed.
# TYPE hvi_guard_over_budget_total counter
hvi_guard_over_budget_total{domain="web",guard="kernel-text",uuid="2afdc6e7-4864-4a2c-9dcf-67c4e1ddc1c8"} 2
hvi_guard_over_budget_total{domain="web",guard="syscall-entry",uuid="2afdc6e7-4864-4a2c-9dcf-67c4e1ddc1c8"} 0
# HELP hvi_guard_passed_total Accesses that a guard looked at and found legitimate.
# TYPE hvi_guard_passed_total counter
hvi_guard_passed_total{domain="web",guard="kernel-text",uuid="2afdc6e7-4864-4a2c-9dcf-67c4e1ddc1c8"} 40
hvi_guard_passed_total{domain="web",guard="syscall-entry",uuid="2afdc6e7-4864-4a2c-9dcf-67c4e1ddc1c8"} 0
# HELP hvi_guard_state The state of a guard; 1 for the state it is in, other states have no series. The action is the policy's.
# TYPE hvi_guard_state gauge
hvi_guard_state{action="alert",domain="web",guard="syscall-entry",state="armed",uuid="2afdc6e7-4864-4a2c-9dcf-67c4e1ddc1c8"} 1
hvi_guard_state{action="block",domain="web",guard="kernel-text",state="armed",uuid="2afdc6e7-4864-4a2c-9dcf-67c4e1ddc1c8"} 1
# HELP hvi_guard_violations_total Violations that a guard saw, by what was done about them: blocked, alerted, or found afterwards.
# TYPE hvi_guard_violations_total counter
hvi_guard_violations_total{action="alerted",domain="web",guard="kernel-text",uuid="2afdc6e7-4864-4a2c-9dcf-67c4e1ddc1c8"} 2
hvi_guard_violations_total{action="alerted",domain="web",guard="syscall-entry",uuid="2afdc6e7-4864-4a2c-9dcf-67c4e1ddc1c8"} 1
hvi_guard_violations_total{action="blocked",domain="web",guard="kernel-text",uuid="2afdc6e7-4864-4a2c-9dcf-67c4e1ddc1c8"} 3
hvi_guard_violations_total{action="found",domain="web",guard="kernel-text",uuid="2afdc6e7-4864-4a2c-9dcf-67c4e1ddc1c8"} 0
hvi_guard_violations_total{action="blocked",domain="web",guard="syscall-entry",uuid="2afdc6e7-4864-4a2c-9dcf-67c4e1ddc1c8"} 0
hvi_guard_violations_total{action="found",domain="web",guard="syscall-entry",uuid="2afdc6e7-4864-4a2c-9dcf-67c4e1ddc1c8"} 0
# HELP hvi_journal_records_total Records of security events that were made.
# TYPE hvi_journal_records_total counter
hvi_journal_records_total 6
# HELP hvi_journal_subscribers Readers that follow the journal now.
# TYPE hvi_journal_subscribers gauge
hvi_journal_subscribers 3
# HELP hvi_journal_sync_failures_total Failed attempts to put written records on disk.
# TYPE hvi_journal_sync_failures_total counter
hvi_journal_sync_failures_total 2
# HELP hvi_journal_torn_bytes Length of the unfinished record that was removed when hvid opened the journal.
# TYPE hvi_journal_torn_bytes gauge
hvi_journal_torn_bytes 7
# HELP hvi_journal_write_failures_total Records that could not be written to the journal.
# TYPE hvi_journal_write_failures_total counter
hvi_journal_write_failures_total 1
# HELP hvi_keeper_alive Whether a process watches over hvid (1) or none could be started (0).
# TYPE hvi_keeper_alive gauge
hvi_keeper_alive 1
# HELP hvi_keeper_restarts_total Processes that watched over hvid, and died or hung.
# TYPE hvi_keeper_restarts_total counter
hvi_keeper_restarts_total 2
# HELP hvi_libvirt_connected Whether hvid is connected to libvirt (1) or not (0); absent where it doesn't try.
# TYPE hvi_libvirt_connected gauge
hvi_libvirt_connected 1
# HELP hvi_records_lost_total Violations that were acted upon but have no record.
# TYPE hvi_records_lost_total counter
hvi_records_lost_total{domain="db",uuid="9f0a5c1e-0001-4b7e-8a44-5a0d3c2b1a09"} 0
hvi_records_lost_total{domain="web",uuid="2afdc6e7-4864-4a2c-9dcf-67c4e1ddc1c8"} 2
# HELP hvi_ring_events_total Requests of Xen answered on the domain's monitor ring.
# TYPE hvi_ring_events_total counter
hvi_ring_events_total{domain="db",uuid="9f0a5c1e-0001-4b7e-8a44-5a0d3c2b1a09"} 0
hvi_ring_events_total{domain="web",uuid="2afdc6e7-4864-4a2c-9dcf-67c4e1ddc1c8"} 27
# HELP hvi_ring_stray_events_total Requests on the monitor ring that no guard had asked for.
# TYPE hvi_ring_stray_events_total counter
hvi_ring_stray_events_total{domain="db",uuid="9f0a5c1e-0001-4b7e-8a44-5a0d3c2b1a09"} 0
hvi_ring_stray_events_total{domain="web",uuid="2afdc6e7-4864-4a2c-9dcf-67c4e1ddc1c8"} 1
`
	if err := testutil.CollectAndCompare(c, strings.NewReader(want)); err != nil {
		t.Error(err)
	}
	// A pedantic registry also holds the metrics against their descriptions.
	r := prometheus.NewPedanticRegistry()
	r.MustRegister(c)
	if _, err := r.Gather(); err != nil {
		t.Error(err)
	}
}

func TestNamesFollowTheConventions(t *testing.T) {
	c := collector(t, &fakeSource{domains: []Domain{db(), web()}, host: fullHost()})
	problems, err := testutil.GatherAndLint(NewRegistry(c))
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range problems {
		t.Errorf("%s: %s", p.Metric, p.Text)
	}
	// That the linter would find something is worth a proof.
	bad, err := promlint.New(strings.NewReader("# HELP HviBad x\n# TYPE HviBad counter\nHviBad 1\n")).Lint()
	if err != nil || len(bad) == 0 {
		t.Errorf("the linter finds nothing in a bad name: %v, %v", bad, err)
	}
}

// gather returns the values of the metrics of these names as "name{a="b"}".
func gather(t *testing.T, c *Collector, names ...string) map[string]float64 {
	t.Helper()
	r := prometheus.NewPedanticRegistry()
	r.MustRegister(c)
	fams, err := r.Gather()
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]float64{}
	for _, f := range fams {
		if !slices.Contains(names, f.GetName()) {
			continue
		}
		for _, m := range f.Metric {
			var ls []string
			for _, l := range m.Label {
				ls = append(ls, fmt.Sprintf("%s=%q", l.GetName(), l.GetValue()))
			}
			out[f.GetName()+"{"+strings.Join(ls, ",")+"}"] = m.GetGauge().GetValue() + m.GetCounter().GetValue()
		}
	}
	return out
}

// blocked returns the number of kernel-text violations of web that were
// blocked, -1 if there is no such series.
func blocked(t *testing.T, c *Collector) float64 {
	t.Helper()
	const name = "hvi_guard_violations_total"
	for k, v := range gather(t, c, name) {
		if strings.Contains(k, `"blocked"`) && strings.Contains(k, "kernel-text") && strings.Contains(k, uuidWeb) {
			return v
		}
	}
	return -1
}

func TestHostileNames(t *testing.T) {
	names := []string{
		"../../x", "a b;rm", strings.Repeat("n", 200), strings.Repeat("ü", 150), "\xff\xfe\x00", "a\nb\x1b[31m",
		`q"u\o{te}`, "\u202eevil", "日本語", "", strings.Repeat("\x00", 5000), "{}=,#",
	}
	src := &fakeSource{}
	for i, n := range names {
		d := web()
		d.ID, d.Name, d.UUID = uint16(i+1), n, fmt.Sprintf("%08x-4864-4a2c-9dcf-67c4e1ddc1c8", i+1)
		src.domains = append(src.domains, d)
	}
	// What no toolstack sends must not stop a scrape either.
	odd := web()
	odd.ID, odd.UUID, odd.State, odd.Mode, odd.Tier = 99, "\xff", "\x00", "\n", strings.Repeat("t", 999)
	odd.Guards = append(odd.Guards, odd.Guards[0], Guard{Name: "\xff", State: "\xff"})
	for i := range 200 {
		odd.Guards = append(odd.Guards, Guard{Name: fmt.Sprint("g", i)})
	}
	src.domains = append(src.domains, odd)
	c := collector(t, src)

	r := prometheus.NewPedanticRegistry()
	r.MustRegister(c)
	fams, err := r.Gather()
	if err != nil {
		t.Fatal(err)
	}
	seen := map[string]bool{}
	guards := 0
	for _, f := range fams {
		for _, m := range f.Metric {
			for _, l := range m.Label {
				v := l.GetValue()
				if len(v) > MaxLabel || !utf8.ValidString(v) || strings.ContainsFunc(v, func(r rune) bool { return r < ' ' || r == '\u202e' }) {
					t.Errorf("%s: label %s is %q", f.GetName(), l.GetName(), v)
				}
				if f.GetName() == "hvi_domain_state" && l.GetName() == "domain" {
					seen[v] = true
				}
				if f.GetName() == "hvi_guard_state" && l.GetName() == "domid" {
					t.Error("a domain's number is a label of a guard")
				}
			}
			if f.GetName() == "hvi_guard_state" {
				guards++
			}
		}
	}
	for _, want := range []string{"../../x", "a b;rm", `\xff\xfe\x00`, `a\nb\x1b[31m`, `q\"u\\o{te}`, `\u202eevil`, "日本語", "", strings.Repeat("n", MaxLabel-len(ellipsis)) + ellipsis} {
		if !seen[want] {
			t.Errorf("no domain is called %q", want)
		}
	}
	if most := 2*len(names) + maxGuards; guards > most {
		t.Errorf("%d guards, want at most %d", guards, most)
	}
}

func TestCountersDoNotGoBackwards(t *testing.T) {
	src := &fakeSource{}
	c := collector(t, src)
	show := func(ds ...Domain) { src.domains = ds }
	session := func(id uint16, after time.Duration, blocked uint64) Domain {
		d := web()
		d.ID, d.AttachedAt = id, began.Add(after)
		d.Guards[0].Violations, d.Guards[0].Blocked = blocked, blocked
		return d
	}
	last := -1.0
	check := func(what string, want float64) {
		t.Helper()
		got := blocked(t, c)
		if got != want {
			t.Errorf("%s: %v, want %v", what, got, want)
		}
		if got < last {
			t.Errorf("%s: fell from %v to %v", what, last, got)
		}
		last = got
	}

	show(session(3, 0, 3))
	check("first scrape", 3)
	show(session(3, 0, 5))
	check("more of the same session", 5)
	show(session(3, 0, 4))
	check("an older snapshot of it", 5)
	idle := session(3, 0, 0)
	idle.AttachedAt, idle.State = time.Time{}, "declared"
	show(idle)
	check("between two sessions", 5)
	show(session(3, time.Minute, 1))
	check("attached again", 6)
	show()
	check("gone", 6)
	show(session(9, 2*time.Minute, 2))
	check("rebooted under another number", 8)
	// A migration within the host: two domains of one UUID.
	show(session(9, 2*time.Minute, 3), session(10, 3*time.Minute, 1))
	check("two at once", 10)
	show(session(10, 3*time.Minute, 4))
	check("the old one gone", 13)
	// hvid says what a session had in the end, though nobody scraped then.
	c.Ended(session(10, 3*time.Minute, 7))
	show(session(10, 3*time.Minute, 7))
	check("told of the end, and still shown", 16)
	show(session(11, 4*time.Minute, 1))
	check("the next one", 17)
	c.Ended(session(11, 4*time.Minute, 5))
	show()
	check("told of the end, and gone", 21)
	for i := range uint16(100) {
		c.Ended(session(12+i, time.Duration(5+i)*time.Minute, 1))
	}
	check("a hundred sessions between two scrapes", 121)
	for _, m := range c.machines {
		if len(m.sessions) > maxSessions {
			t.Errorf("%d sessions are kept, want at most %d", len(m.sessions), maxSessions)
		}
	}
	// The clock may be set back.
	show(session(200, -time.Hour, 1))
	check("a session that began before the others", 122)
	show(session(200, -2*time.Hour, 1))
	check("and one before that", 123)
}

// A session that ends, and one that begins, while a scrape is under way, are
// neither lost nor counted twice.
func TestEndedWhileScraping(t *testing.T) {
	src := &fakeSource{}
	c := collector(t, src)
	first, second := web(), web()
	second.AttachedAt = began.Add(time.Minute)
	second.Guards = []Guard{{Name: "kernel-text", Violations: 2, Blocked: 2}}
	end := first
	end.Guards = []Guard{{Name: "kernel-text", Violations: 4, Blocked: 4}}

	src.domains = []Domain{first}
	src.asked = func() {
		c.Ended(end)
		c.Ended(second)
	}
	if got := blocked(t, c); got != 6 {
		t.Errorf("blocked %v, want 4 + 2", got)
	}
	src.asked = nil
	src.domains = []Domain{second}
	for range 2 {
		if got := blocked(t, c); got != 6 {
			t.Errorf("blocked %v, want 4 + 2 still", got)
		}
	}
	src.domains = nil
	if got := blocked(t, c); got != 6 {
		t.Errorf("blocked %v once gone, want 4 + 2 still", got)
	}
}

func TestGoneDomainsDisappear(t *testing.T) {
	src := &fakeSource{domains: []Domain{web(), db()}, host: fullHost()}
	c := collector(t, src)
	now := began
	c.now = func() time.Time { return now }
	series := func(uuid string) (gauges, counters int) {
		r := prometheus.NewPedanticRegistry()
		r.MustRegister(c)
		fams, err := r.Gather()
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range fams {
			for _, m := range f.Metric {
				for _, l := range m.Label {
					if l.GetValue() == uuid {
						if m.Counter != nil {
							counters++
						} else {
							gauges++
						}
					}
				}
			}
		}
		return gauges, counters
	}
	g0, c0 := series(uuidWeb)
	if g0 == 0 || c0 == 0 {
		t.Fatalf("%d gauges and %d counters while it is there", g0, c0)
	}
	src.domains = []Domain{db()}
	if g, n := series(uuidWeb); g != 0 || n != c0 {
		t.Errorf("%d gauges and %d counters once it has gone, want 0 and %d", g, n, c0)
	}
	now = now.Add(Linger - time.Second)
	if _, n := series(uuidWeb); n != c0 {
		t.Errorf("%d counters a moment before their time, want %d", n, c0)
	}
	now = now.Add(time.Second)
	if g, n := series(uuidWeb); g != 0 || n != 0 {
		t.Errorf("%d gauges and %d counters after their time", g, n)
	}
	// One that comes back in time has its counts for good.
	src.domains = []Domain{web(), db()}
	series(uuidWeb)
	src.domains = []Domain{db()}
	series(uuidWeb)
	again := web()
	again.AttachedAt = began.Add(time.Minute)
	src.domains = []Domain{again, db()}
	series(uuidWeb)
	now = now.Add(2 * Linger)
	series(uuidWeb)
	if got := blocked(t, c); got != 6 {
		t.Errorf("blocked %v in two lives, want 6", got)
	}
	if g, n := series(uuidDB); g == 0 || n == 0 {
		t.Errorf("%d gauges and %d counters of a domain that stayed", g, n)
	}
}

// TestUnscrapedCountsStay has sessions of a domain end for longer than Linger while nobody
// scrapes: the next scrape finds what all of them have counted, also where the domain has
// gone by then.
func TestUnscrapedCountsStay(t *testing.T) {
	for name, gone := range map[string]bool{"there": false, "gone": true} {
		t.Run(name, func(t *testing.T) {
			src := &fakeSource{domains: []Domain{web()}, host: fullHost()}
			c := collector(t, src)
			now := began
			c.now = func() time.Time { return now }
			one := blocked(t, c)
			const lives = 40
			for i := range lives {
				d := web()
				d.AttachedAt = began.Add(time.Duration(i) * time.Minute)
				c.Ended(d)
				now = now.Add(time.Minute)
			}
			src.domains = nil
			if !gone {
				d := web()
				d.AttachedAt = began.Add(lives * time.Minute)
				src.domains = []Domain{d}
			}
			want := lives * one
			if !gone {
				want += one
			}
			if got := blocked(t, c); got != want {
				t.Errorf("blocked %v, want %v", got, want)
			}
			now = now.Add(Linger)
			if got := blocked(t, c); gone && got != -1 || !gone && got != want {
				t.Errorf("blocked %v after its time", got)
			}
		})
	}
}

// What has gone is bounded, whether or not anybody scrapes.
func TestGoneDomainsAreBounded(t *testing.T) {
	src := &fakeSource{}
	c := collector(t, src)
	now := began
	c.now = func() time.Time { now = now.Add(time.Millisecond); return now }
	name := func(i int) string { return fmt.Sprintf("%08x-0000-4000-8000-000000000001", i+1) }
	for i := range maxGone + 50 {
		d := web()
		d.UUID = name(i)
		c.Ended(d)
	}
	if n := len(c.machines); n != maxGone {
		t.Errorf("%d are kept, want %d", n, maxGone)
	}
	if c.machines[name(0)] != nil || c.machines[name(maxGone+49)] == nil {
		t.Error("not the oldest were dropped")
	}
}

func TestDomainsWithoutIdentity(t *testing.T) {
	const zero = "00000000-0000-0000-0000-000000000000"
	a, b, twin := web(), web(), web()
	a.ID, a.UUID, a.Name = 1, zero, "a"
	b.ID, b.UUID, b.Name = 2, zero, "b"
	twin.ID, twin.UUID, twin.Name, twin.State = 7, zero, "a", "degraded"
	c := collector(t, &fakeSource{domains: []Domain{twin, a, b}})
	got := gather(t, c, "hvi_domain_state", "hvi_ring_events_total", "hvi_domains")
	for k, v := range map[string]float64{
		`hvi_domain_state{domain="a",state="degraded",uuid="` + zero + `"}`:   1,
		`hvi_domain_state{domain="b",state="protecting",uuid="` + zero + `"}`: 1,
		`hvi_ring_events_total{domain="a",uuid="` + zero + `"}`:               54,
		`hvi_ring_events_total{domain="b",uuid="` + zero + `"}`:               27,
		`hvi_domains{state="protecting"}`:                                     2,
		`hvi_domains{state="degraded"}`:                                       1,
	} {
		if have, ok := got[k]; !ok || have != v {
			t.Errorf("%s is %v (%v), want %v; there are %v", k, have, ok, v, slices.Sorted(maps.Keys(got)))
		}
	}
}

func TestWhatIsAskedFor(t *testing.T) {
	for _, c := range []struct {
		state, mode string
		want        bool
	}{
		{"protecting", "enforce", true}, {"detached", "observe", true}, {"unprotected", "off", false},
		{"failed", "off", true}, {"failed", "", true}, {"gated", "", false}, {"restarting", "enforce", true},
	} {
		d := Domain{State: c.state, Mode: c.mode}
		if got := d.asked(); got != c.want {
			t.Errorf("state %s, mode %q: asked is %v", c.state, c.mode, got)
		}
	}
}

// A scrape changes nothing that it was given.
func TestSourceIsLeftAlone(t *testing.T) {
	src := &fakeSource{domains: []Domain{db(), web()}}
	src.domains[1].Guards[0].Name = "\xff"
	want := fmt.Sprint(src.domains)
	own := sharing{src.domains}
	gather(t, collector(t, own))
	if got := fmt.Sprint(src.domains); got != want {
		t.Errorf("the source's domains were changed:\n%s\n%s", want, got)
	}
}

// sharing is a source that hands out its own slice.
type sharing struct{ domains []Domain }

func (s sharing) Domains() []Domain { return s.domains }
func (s sharing) Host() Host        { return Host{} }

func TestConcurrentScrapes(t *testing.T) {
	src := &fakeSource{domains: []Domain{web(), db()}}
	c := collector(t, src)
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for range 20 {
				ch := make(chan prometheus.Metric)
				go func() { c.Collect(ch); close(ch) }()
				for range ch {
				}
				c.Ended(web())
			}
		})
	}
	wg.Wait()
	if got := blocked(t, c); got != 3 {
		t.Errorf("blocked %v, want 3", got)
	}
}
