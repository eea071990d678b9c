package metrics

import (
	"slices"
	"strings"
	"time"
)

const (
	// Linger is how long the counters of a domain are still shown, and kept for its
	// next one, from the first scrape on that finds it gone.
	Linger = 15 * time.Minute
	// maxGone bounds the domains whose counters are kept though they have
	// gone; the ones that went first are dropped.
	maxGone = 1024
	// maxSessions bounds the sessions of one machine that are told apart.
	// More than two at once have never been seen.
	maxSessions = 8
	// maxGuards bounds a domain's guards; hvi knows a handful.
	maxGuards = 64
)

// counts are what a session, or several together, counted.
type counts struct {
	events, stray, lost uint64
	guards              map[string]guardCounts
}

type guardCounts struct {
	violations, blocked, found, passed, allowed, decisions, overBudget uint64

	busy time.Duration
}

func countsOf(d *Domain) counts {
	c := counts{events: d.RingEvents, stray: d.Stray, lost: d.RecordsLost, guards: make(map[string]guardCounts, len(d.Guards))}
	for _, g := range d.Guards {
		// A guard blocks no more than it sees. Were the two read in the wrong
		// order, the difference would go far below zero.
		c.guards[g.Name] = guardCounts{
			violations: max(g.Violations, g.Blocked+g.Found), blocked: g.Blocked, found: g.Found, passed: g.Passed, allowed: g.Allowed,
			decisions: g.Decisions, busy: g.Busy, overBudget: g.OverBudget,
		}
	}
	return c
}

func (c *counts) add(o counts) {
	c.events += o.events
	c.stray += o.stray
	c.lost += o.lost
	if c.guards == nil {
		c.guards = make(map[string]guardCounts, len(o.guards))
	}
	for name, g := range o.guards {
		sum := c.guards[name]
		sum.violations += g.violations
		sum.blocked += g.blocked
		sum.found += g.found
		sum.passed += g.passed
		sum.allowed += g.allowed
		sum.decisions += g.decisions
		sum.busy += g.busy
		sum.overBudget += g.overBudget
		c.guards[name] = sum
	}
}

// atLeast raises each count of c to o's. A session's counts never fall; a
// snapshot that was taken earlier may arrive later.
func (c *counts) atLeast(o counts) {
	c.events = max(c.events, o.events)
	c.stray = max(c.stray, o.stray)
	c.lost = max(c.lost, o.lost)
	for name, g := range o.guards {
		old := c.guards[name]
		c.guards[name] = guardCounts{
			violations: max(old.violations, g.violations),
			blocked:    max(old.blocked, g.blocked),
			found:      max(old.found, g.found),
			passed:     max(old.passed, g.passed),
			allowed:    max(old.allowed, g.allowed),
			decisions:  max(old.decisions, g.decisions),
			busy:       max(old.busy, g.busy),
			overBudget: max(old.overBudget, g.overBudget),
		}
	}
}

// sessionKey tells one session of a machine from the others.
type sessionKey struct {
	id    uint16
	began int64 // Unix time in nanoseconds; 0 where nothing was attached
}

type session struct {
	key    sessionKey
	counts counts
	// told is when Collector.Ended last told of it, in its own count of calls;
	// 0 if never.
	told uint64
}

// machine is what was counted for one UUID.
type machine struct {
	key    string
	labels labels
	// past is the sum of the sessions that are over.
	past counts
	// sessions are those that may still count, the oldest first.
	sessions []session
	// gone is when the machine was first missed by a scrape, or, with told, when a
	// session of it was last told to have ended: it may be there again by now. It is
	// zero while the machine is there.
	gone time.Time
	told bool
}

// labels name a machine.
type labels struct{ name, uuid string }

// keyOf is what makes a domain the same machine as another. A UUID of zeros is
// no identity; such a domain has only its name.
func keyOf(l labels) string {
	if strings.Trim(l.uuid, "0-") == "" {
		return l.uuid + "/" + l.name
	}
	return l.uuid
}

// see takes over what d has counted. The snapshot was taken when Ended had been
// called asOf times: what Ended said later is newer.
func (m *machine) see(d *Domain, asOf uint64) *session {
	if d.AttachedAt.IsZero() {
		return nil
	}
	key, c := sessionKey{d.ID, d.AttachedAt.UnixNano()}, countsOf(d)
	for i := range m.sessions {
		s := &m.sessions[i]
		if s.key == key {
			s.counts.atLeast(c)
			return s
		}
		if s.key.id == key.id && s.told > asOf {
			return nil // d's session was over before this one, which is settled
		}
	}
	// A domain has one session at a time, so an earlier one of this number
	// is over.
	m.settle(func(s *session) bool { return s.key.id == key.id })
	for len(m.sessions) >= maxSessions {
		oldest := m.sessions[0].key
		m.settle(func(s *session) bool { return s.key == oldest })
	}
	m.sessions = append(m.sessions, session{key: key, counts: c})
	return &m.sessions[len(m.sessions)-1]
}

// settle adds the sessions that are over to the past.
func (m *machine) settle(over func(*session) bool) {
	m.sessions = slices.DeleteFunc(m.sessions, func(s session) bool {
		if !over(&s) {
			return false
		}
		m.past.add(s.counts)
		return true
	})
}

// total is what was counted in all sessions.
func (m *machine) total() counts {
	var c counts
	c.add(m.past)
	for _, s := range m.sessions {
		c.add(s.counts)
	}
	return c
}
