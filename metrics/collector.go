package metrics

import (
	"cmp"
	"slices"
	"strconv"
	"sync"
	"time"
	"unicode/utf8"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/xen-hvi/hvi/engine/journal"
	"github.com/xen-hvi/hvi/engine/printable"
)

// MaxLabel is the greatest length of a label's value in bytes; what is longer is
// cut and ends in an ellipsis.
const MaxLabel = 128

const ellipsis = "…"

// Build describes the hvid that runs and the Xen it runs on.
type Build struct{ Version, Revision, Go, Xen string }

// Collector makes metrics of a Source. It implements prometheus.Collector and
// is safe for concurrent use.
type Collector struct {
	source Source
	build  Build
	now    func() time.Time

	// scrape is held from asking the source until its answer is taken in, so
	// that no older answer is taken in after a newer one. It is taken before
	// mu, and mu is never held while the source is asked: the source may hold
	// its own locks when it calls Ended.
	scrape sync.Mutex

	mu       sync.Mutex
	machines map[string]*machine
	// told counts the calls of Ended.
	told uint64
}

// NewCollector returns a collector over source.
func NewCollector(source Source, build Build) *Collector {
	return &Collector{source: source, build: build, now: time.Now, machines: make(map[string]*machine)}
}

var (
	ofDomain = []string{"domain", "uuid"}
	ofGuard  = []string{"domain", "uuid", "guard"}

	descBuild = desc("hvi_build_info", "The hvid that runs and the Xen it runs on; always 1.", "version", "revision", "goversion", "xen")

	descDomains  = desc("hvi_domains", "Domains of this host by the state of their protection, as hvictl status shows it.", "state")
	descInfo     = desc("hvi_domain_info", "What a domain is and where its policy comes from; always 1.", append(slices.Clone(ofDomain), "domid", "type", "mode", "tier", "policy_from")...)
	descState    = desc("hvi_domain_state", "The state of the domain's protection; 1 for the state it is in, other states have no series.", append(slices.Clone(ofDomain), "state")...)
	descAsked    = desc("hvi_domain_protection_asked", "Whether the domain's policy asks for protection (1), or is broken so that it can't be told (1), or doesn't (0).", ofDomain...)
	descProtects = desc("hvi_domain_protected", "Whether every guard that was asked for is armed (1) or not (0).", ofDomain...)
	descHeld     = desc("hvi_domain_held", "Whether hvi keeps the domain paused (1) or not (0): it was saved or migrated and may yet run on, it must not run without protection, or a guard has paused it.", ofDomain...)
	descAttached = desc("hvi_domain_attached_timestamp_seconds", "When hvi attached to the domain, in seconds since 1970; absent while it is not attached.", ofDomain...)
	descEvents   = desc("hvi_ring_events_total", "Requests of Xen answered on the domain's monitor ring.", ofDomain...)
	descStray    = desc("hvi_ring_stray_events_total", "Requests on the monitor ring that no guard had asked for.", ofDomain...)
	descLost     = desc("hvi_records_lost_total", "Violations that were acted upon but have no record.", ofDomain...)

	descGuard      = desc("hvi_guard_state", "The state of a guard; 1 for the state it is in, other states have no series. The action is the policy's.", append(slices.Clone(ofGuard), "action", "state")...)
	descViolations = desc("hvi_guard_violations_total", "Violations that a guard saw, by what was done about them: blocked, alerted, or found afterwards.", append(slices.Clone(ofGuard), "action")...)
	descAllowed    = desc("hvi_guard_allowed_total", "Accesses that an exception permits, which would have been violations.", ofGuard...)
	descPassed     = desc("hvi_guard_passed_total", "Accesses that a guard looked at and found legitimate.", ofGuard...)
	descDecisions  = desc("hvi_guard_decisions_total", "Requests of Xen on the domain's monitor ring that a guard decided on.", ofGuard...)
	descBusy       = desc("hvi_guard_decision_seconds_total", "About how long a guard's decisions took, for each of which a virtual processor waits: one in sixteen is timed.", ofGuard...)
	descOver       = desc("hvi_guard_over_budget_total", "Decisions of a guard that took longer than they may, of those that were timed.", ofGuard...)

	descRecords      = desc("hvi_journal_records_total", "Records of security events that were made.")
	descWriteFail    = desc("hvi_journal_write_failures_total", "Records that could not be written to the journal.")
	descSyncFail     = desc("hvi_journal_sync_failures_total", "Failed attempts to put written records on disk.")
	descTorn         = desc("hvi_journal_torn_bytes", "Length of the unfinished record that was removed when hvid opened the journal.")
	descSubscribers  = desc("hvi_journal_subscribers", "Readers that follow the journal now.")
	descDeclarations = desc("hvi_declarations", "Domains whose declared policy hvid keeps.")
	descAttach       = desc("hvi_attach_duration_seconds", "Time from a domain's appearance, or the request, until hvi was attached and the domain could run on.")
	descAttachFail   = desc("hvi_attach_failures_total", "Attempts to attach to a domain that failed.")
	descRefused      = desc("hvi_gate_refused_total", "Starts of domains that were refused because they must not run without protection.")
	descKeeper       = desc("hvi_keeper_alive", "Whether a process watches over hvid (1) or none could be started (0).")
	descKeepers      = desc("hvi_keeper_restarts_total", "Processes that watched over hvid, and died or hung.")
	descLibvirt      = desc("hvi_libvirt_connected", "Whether hvid is connected to libvirt (1) or not (0); absent where it doesn't try.")

	descs = []*prometheus.Desc{
		descBuild, descDomains, descInfo, descState, descAsked, descProtects, descHeld, descAttached,
		descEvents, descStray, descLost, descGuard, descViolations, descPassed, descAllowed, descDecisions, descBusy, descOver,
		descRecords, descWriteFail, descSyncFail, descTorn, descSubscribers,
		descDeclarations, descAttach, descAttachFail, descRefused, descKeeper, descKeepers, descLibvirt,
	}
)

func desc(name, help string, labels ...string) *prometheus.Desc {
	return prometheus.NewDesc(name, help, labels, nil)
}

// Describe implements prometheus.Collector.
func (c *Collector) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range descs {
		ch <- d
	}
}

// Collect implements prometheus.Collector: it takes a snapshot of the source.
func (c *Collector) Collect(ch chan<- prometheus.Metric) {
	gauge := func(d *prometheus.Desc, v float64, values ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, values...)
	}
	count := func(d *prometheus.Desc, v uint64, values ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, float64(v), values...)
	}
	gauge(descBuild, 1, label(c.build.Version), label(c.build.Revision), label(c.build.Go), label(c.build.Xen))

	h := c.source.Host()
	count(descRecords, h.Journal.Appended)
	count(descWriteFail, h.Journal.WriteFailures)
	count(descSyncFail, h.Journal.SyncFailures)
	gauge(descTorn, float64(h.Journal.TornBytes))
	gauge(descSubscribers, float64(h.Journal.Subscribers))
	gauge(descDeclarations, float64(h.Declarations))
	ch <- prometheus.MustNewConstSummary(descAttach, h.Attaches, h.AttachTime.Seconds(), nil)
	count(descAttachFail, h.AttachFailures)
	count(descRefused, h.GateRefused)
	gauge(descKeeper, number(h.Keeper.Alive))
	count(descKeepers, h.Keeper.Restarts)
	if h.Libvirt != nil {
		gauge(descLibvirt, number(h.Libvirt.Connected))
	}

	domains, sums := c.take()
	in := make(map[string]int, len(States))
	for _, s := range States {
		in[s] = 0
	}
	for _, d := range domains {
		for _, s := range d.states {
			in[label(s)]++
		}
		of := []string{d.name, d.uuid}
		gauge(descInfo, 1, d.name, d.uuid, strconv.Itoa(int(d.ID)), label(d.Type), label(d.Mode), label(d.Tier), label(d.PolicyFrom))
		gauge(descState, 1, d.name, d.uuid, label(d.State))
		gauge(descAsked, number(d.asked()), of...)
		gauge(descProtects, number(d.State == stateProtecting), of...)
		gauge(descHeld, number(d.Held), of...)
		if !d.AttachedAt.IsZero() && attached(d.State) {
			gauge(descAttached, float64(d.AttachedAt.UnixNano())/1e9, of...)
		}
		for _, g := range d.Guards {
			gauge(descGuard, 1, d.name, d.uuid, g.Name, label(g.Action), label(g.State))
		}
	}
	for s, n := range in {
		gauge(descDomains, float64(n), s)
	}
	for _, s := range sums {
		of := []string{s.name, s.uuid}
		count(descEvents, s.events, of...)
		count(descStray, s.stray, of...)
		count(descLost, s.lost, of...)
		for name, g := range s.guards {
			count(descViolations, g.blocked, s.name, s.uuid, name, string(journal.Blocked))
			count(descViolations, g.found, s.name, s.uuid, name, string(journal.Found))
			count(descViolations, g.violations-g.blocked-g.found, s.name, s.uuid, name, string(journal.Alerted))
			count(descPassed, g.passed, s.name, s.uuid, name)
			count(descAllowed, g.allowed, s.name, s.uuid, name)
			count(descDecisions, g.decisions, s.name, s.uuid, name)
			count(descOver, g.overBudget, s.name, s.uuid, name)
			ch <- prometheus.MustNewConstMetric(descBusy, prometheus.CounterValue, g.busy.Seconds(), s.name, s.uuid, name)
		}
	}
}

// attached reports whether a session in this state has the domain's ring.
func attached(state string) bool {
	switch state {
	case "attached", "identifying", stateProtecting, "degraded", "detaching":
		return true
	}
	return false
}

// shown is a machine as the gauges show it.
type shown struct {
	labels
	Domain
	// states are those of all domains that are this machine.
	states []string
}

// sum is a machine as the counters show it.
type sum struct {
	labels
	counts
}

// take asks the source, and brings the sums up to date.
func (c *Collector) take() ([]*shown, []sum) {
	c.scrape.Lock()
	defer c.scrape.Unlock()
	c.mu.Lock()
	asOf := c.told
	c.mu.Unlock()
	all := slices.Clone(c.source.Domains())
	c.mu.Lock()
	defer c.mu.Unlock()
	// The newest last: it decides what is shown of two domains of one UUID.
	slices.SortFunc(all, func(a, b Domain) int { return cmp.Compare(a.ID, b.ID) })

	byKey := make(map[string]*shown, len(all))
	live := make(map[string]map[sessionKey]bool, len(all))
	for _, d := range all {
		m := c.machine(&d)
		m.see(&d, asOf)
		m.gone = time.Time{}
		s := byKey[m.key]
		if s == nil {
			s = new(shown)
			byKey[m.key], live[m.key] = s, make(map[sessionKey]bool)
		}
		s.labels, s.Domain, s.states = m.labels, d, append(s.states, d.State)
		if !d.AttachedAt.IsZero() {
			live[m.key][sessionKey{d.ID, d.AttachedAt.UnixNano()}] = true
		}
	}
	now := c.now()
	for key, m := range c.machines {
		m.settle(func(s *session) bool { return s.told <= asOf && !live[key][s.key] })
		if byKey[key] == nil && (m.gone.IsZero() || m.told) {
			m.gone, m.told = now, false
		}
	}
	c.forget(now)

	domains := make([]*shown, 0, len(byKey))
	for _, s := range byKey {
		domains = append(domains, s)
	}
	sums := make([]sum, 0, len(c.machines))
	for _, m := range c.machines {
		sums = append(sums, sum{m.labels, m.total()})
	}
	return domains, sums
}

// machine cleans d and returns its machine. The caller holds c.mu.
func (c *Collector) machine(d *Domain) *machine {
	l := labels{label(d.Name), label(d.UUID)}
	d.Guards = guards(d.Guards)
	key := keyOf(l)
	m := c.machines[key]
	if m == nil {
		m = &machine{key: key}
		c.machines[key] = m
	}
	// A domain may have been renamed.
	m.labels = l
	return m
}

// guards returns gs with names that are fit for a label, each once.
func guards(gs []Guard) []Guard {
	out := make([]Guard, 0, min(len(gs), maxGuards))
	for _, g := range gs[:min(len(gs), maxGuards)] {
		g.Name = label(g.Name)
		if !slices.ContainsFunc(out, func(o Guard) bool { return o.Name == g.Name }) {
			out = append(out, g)
		}
	}
	return out
}

// Ended tells of the last counts of a session, before the source shows another
// one of that domain or no longer shows it. It does not call the source.
func (c *Collector) Ended(d Domain) {
	c.mu.Lock()
	defer c.mu.Unlock()
	m := c.machine(&d)
	c.told++
	if s := m.see(&d, c.told); s != nil {
		s.told = c.told
	}
	// Until a scrape sees it, which alone can tell: nobody may scrape for long, and
	// the domain may never be seen again.
	now := c.now()
	m.gone, m.told = now, true
	c.forget(now)
}

// forget drops the machines that have been gone for long, and those that went first
// where there are too many. The caller holds c.mu.
func (c *Collector) forget(now time.Time) {
	var gone []*machine
	for key, m := range c.machines {
		switch {
		case m.gone.IsZero():
		case !m.told && now.Sub(m.gone) >= Linger:
			delete(c.machines, key)
		default:
			gone = append(gone, m)
		}
	}
	if len(gone) <= maxGone {
		return
	}
	slices.SortFunc(gone, func(a, b *machine) int { return a.gone.Compare(b.gone) })
	for _, m := range gone[:len(gone)-maxGone] {
		delete(c.machines, m.key)
	}
}

// label makes a label's value of any string: printable, and not too long.
func label(s string) string {
	t := printable.Escape(s).String()
	if len(t) <= MaxLabel {
		return t
	}
	n := MaxLabel - len(ellipsis)
	for n > 0 && !utf8.RuneStart(t[n]) {
		n--
	}
	return t[:n] + ellipsis
}

func number(b bool) float64 {
	if b {
		return 1
	}
	return 0
}
