package command

import (
	"fmt"
	"strings"

	"github.com/xen-hvi/hvi/engine/guest/report"
	"github.com/xen-hvi/hvi/engine/inspect"
)

var logView = view{
	kind: inspect.Log,
	long: `As dmesg shows it in the guest: seconds since boot by the kernel's clock, and the
message. On a terminal the time is green, warnings are yellow and errors red.`,
	example: `  hvictl dmesg web1
  hvictl dmesg web1 -o json | jq -r '.items[] | select(.level <= 3) | .message'`,
	show: func(a *app, _ inspect.Args, answer any) error {
		l := answer.(*report.List[report.LogRecord])
		for _, r := range l.Items {
			a.logRecord(r)
		}
		a.incomplete(l.Reading)
		return nil
	},
}

// logRecord writes a message, a line for each of its lines. Only the first has
// the time, so that no message can pass for two.
func (a *app) logRecord(r report.LogRecord) {
	c := cell{colour: plain}
	switch {
	case r.Level <= 3: // emergency to error
		c.colour = red
	case r.Level == 4:
		c.colour = yellow
	}
	stamp := fmt.Sprintf("[%5d.%06d]", r.Nanoseconds/1e9, r.Nanoseconds%1e9/1e3)
	head := a.paint(cell{text: stamp, colour: green})
	lines := textLines(r.Message.String())
	for i, line := range lines {
		c.text = line
		if r.Cut && i == len(lines)-1 {
			c.text += "…"
		}
		fmt.Fprintf(a.out, "%s %s\n", head, a.paint(c))
		head = strings.Repeat(" ", len(stamp))
	}
}

// textLines splits a guest's text where it has an escaped newline. A backslash
// of the guest's own is escaped, too, so the two can be told.
func textLines(s string) []string {
	var lines []string
	from := 0
	for i := 0; i+1 < len(s); i++ {
		if s[i] != '\\' {
			continue
		}
		if s[i+1] == 'n' {
			lines = append(lines, s[from:i])
			from = i + 2
		}
		i++
	}
	if from < len(s) || len(lines) == 0 {
		lines = append(lines, s[from:])
	}
	return lines
}
