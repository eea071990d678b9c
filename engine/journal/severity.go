package journal

import "slices"

// Severity says how much a record matters to whoever runs the host.
type Severity string

// Severities, the least first. They are OCSF's, of which Informational is used for
// what is no violation.
const (
	Informational Severity = "informational"
	Low           Severity = "low"
	Medium        Severity = "medium"
	High          Severity = "high"
	Critical      Severity = "critical"
)

// Severities returns them, the least first.
func Severities() []Severity { return []Severity{Informational, Low, Medium, High, Critical} }

// rank orders them; one that is not known is the least.
func (s Severity) rank() int { return slices.Index(Severities(), s) }

// severity is the record's own or, of one that was written before there were any,
// what its action says.
func (r *Record) severity() Severity {
	if r.Severity != "" {
		return r.Severity
	}
	return SeverityOf(r.Action, High)
}

// SeverityOf is the severity of a violation of a guard, of which most is what it
// has where nothing prevented it: what was blocked is one step less, also where the
// process was killed. Where the domain was stopped it is not, for somebody must look
// at it.
func SeverityOf(a Action, most Severity) Severity {
	if i := most.rank(); (a == Blocked || a == Killed) && i > 0 {
		return Severities()[i-1]
	}
	return most
}
