package wire

import "encoding/json"

// Kind says what a Message reports.
type Kind string

// The kinds, in the order in which a run sends them.
const (
	// Hello is sent once, when the machine is up and the runner has started.
	// Value holds a [Machine].
	Hello Kind = "hello"
	// Start opens a scenario.
	Start Kind = "start"
	// Log is one line for people: Text.
	Log Kind = "log"
	// Fact is one measured value: Key and Value.
	Fact Kind = "fact"
	// Check is one expectation: Text says which, OK whether it held.
	Check Kind = "check"
	// End closes a scenario: OK, and Text holds the error if it failed.
	End Kind = "end"
	// Done is sent once, when all scenarios have ended. What comes without it
	// was cut off.
	Done Kind = "done"
)

// Message is one report from the runner. Fields that a Kind does not name are
// left out.
type Message struct {
	Kind     Kind            `json:"kind"`
	Scenario string          `json:"scenario,omitempty"`
	Time     float64         `json:"time"` // seconds of the machine's own clock since its boot
	Key      string          `json:"key,omitempty"`
	Value    json.RawMessage `json:"value,omitempty"`
	Text     string          `json:"text,omitempty"`
	OK       bool            `json:"ok,omitempty"`
}

// Machine describes what the runner found itself on.
type Machine struct {
	Xen         string `json:"xen"`          // release with its extra version, "4.17.7"
	Dom0Kernel  string `json:"dom0_kernel"`  // uname -r
	GuestKernel string `json:"guest_kernel"` // uname -r of the kernel that guests boot
	Capability  string `json:"virt_caps"`    // xl info's virt_caps
}
