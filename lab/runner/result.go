package runner

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/xen-hvi/hvi/lab/scenario"
	"github.com/xen-hvi/hvi/lab/wire"
)

// Check is one expectation of a scenario.
type Check struct {
	Text string `json:"text"`
	OK   bool   `json:"ok"`
}

// Seconds says where the time went, in wall-clock seconds unless named
// otherwise. What several scenarios share is in each one's result.
type Seconds struct {
	Images   float64 `json:"images"`   // packages and images, next to nothing if cached
	Payload  float64 `json:"payload"`  // programs under test, disk
	Boot     float64 `json:"boot"`     // from power-on until the control domain is ready
	Run      float64 `json:"run"`      // the scenario
	Emulated float64 `json:"emulated"` // the scenario, by the machine's clock
}

// Result is what lab/out/NAME.json, or NAME@RELEASE.json, holds.
type Result struct {
	Scenario    string                     `json:"scenario"`
	Brief       string                     `json:"brief"`
	OK          bool                       `json:"ok"`
	Error       string                     `json:"error,omitempty"`
	Emulator    string                     `json:"emulator"`
	Xen         string                     `json:"xen"`
	Dom0Kernel  string                     `json:"dom0_kernel"`
	GuestKernel string                     `json:"guest_kernel"`
	XenOptions  []string                   `json:"xen_options,omitempty"` // what the scenario added to Xen's command line
	Changes     []string                   `json:"changes,omitempty"`     // what the lab changed in Debian's binaries
	Facts       map[string]json.RawMessage `json:"facts"`
	Checks      []Check                    `json:"checks"`
	Seconds     Seconds                    `json:"seconds"`
	Started     time.Time                  `json:"started"`

	title    string // the scenario's, with the release of Xen that was asked for
	begun    bool   // a Start has come
	ended    bool   // an End has come
	from     time.Time
	fromTime float64 // the machine's clock at Start
}

func newResult(s scenario.Scenario) *Result {
	return &Result{
		Scenario:   s.Name,
		title:      s.Title(),
		Brief:      s.Brief,
		Emulator:   string(s.Emulator),
		XenOptions: s.Xen,
		Facts:      map[string]json.RawMessage{},
		Checks:     []Check{},
	}
}

// add takes one message of the scenario's.
func (r *Result) add(m wire.Message, now time.Time) {
	switch m.Kind {
	case wire.Start:
		r.begun, r.from, r.fromTime, r.Started = true, now, m.Time, now.UTC().Truncate(time.Second)
	case wire.Fact:
		r.Facts[m.Key] = m.Value
	case wire.Check:
		r.Checks = append(r.Checks, Check{m.Text, m.OK})
	case wire.End:
		r.ended, r.OK, r.Error = true, m.OK, m.Text
		r.Seconds.Run = seconds(now.Sub(r.from))
		r.Seconds.Emulated = round(m.Time - r.fromTime)
	}
}

// fail marks the result as failed for a reason that the scenario itself could
// not give.
func (r *Result) fail(reason string, now time.Time) {
	if r.begun && !r.ended {
		r.Seconds.Run = seconds(now.Sub(r.from))
	}
	r.OK = false
	if r.Error != "" {
		reason = r.Error + "; " + reason
	}
	r.Error = reason
}

func seconds(d time.Duration) float64 { return round(d.Seconds()) }
func round(s float64) float64         { return float64(int64(s*1000+0.5)) / 1000 }

// write writes NAME.json and NAME.console.log into dir, NAME@RELEASE where it was
// run on another release of Xen than the default one.
func (r *Result) write(dir, console string) error {
	text, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return err
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	name := r.title
	if err := os.WriteFile(filepath.Join(dir, name+".console.log"), []byte(console), 0o644); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, name+".json"), append(text, '\n'), 0o644)
}

// Summary is the result in one line.
func (r *Result) Summary() string {
	word := "ok    "
	if !r.OK {
		word = "FAILED"
	}
	held := 0
	for _, c := range r.Checks {
		if c.OK {
			held++
		}
	}
	line := fmt.Sprintf("%s %-24s %5.1f s on %s, boot %.1f s, %d of %d checks held", word, r.title, r.Seconds.Run, r.Emulator, r.Seconds.Boot, held, len(r.Checks))
	if r.Error != "" {
		line += "\n       " + strings.ReplaceAll(r.Error, "\n", "\n       ")
	}
	return line
}
