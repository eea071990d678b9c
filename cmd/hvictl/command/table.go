package command

import (
	"fmt"
	"io"
	"strings"
	"time"
	"unicode"

	"github.com/xen-hvi/hvi/control"
)

// colour is the number of a terminal's foreground colour, 0 for its own.
type colour int

const (
	plain  colour = 0
	red    colour = 31
	green  colour = 32
	yellow colour = 33
)

// cell is a piece of text in a colour.
type cell struct {
	text   string
	colour colour
}

func text(s string) cell { return cell{text: safe(s)} }

func number[T uint16 | uint64 | int](n T) cell { return cell{text: fmt.Sprint(n)} }

// dash stands for what is empty.
func dash(s string) cell {
	if s == "" {
		return cell{text: "-"}
	}
	return text(s)
}

// paint returns the cell's text, coloured if the output is.
func (a *app) paint(c cell) string {
	if !a.colour || c.colour == plain {
		return c.text
	}
	return fmt.Sprintf("\x1b[%dm%s\x1b[0m", c.colour, c.text)
}

// table writes rows in aligned columns; the last one is not padded.
func (a *app) table(w io.Writer, indent string, header []string, rows [][]cell) {
	width := make([]int, len(header))
	for i, h := range header {
		width[i] = len(h)
	}
	for _, r := range rows {
		for i, c := range r {
			width[i] = max(width[i], columns(c.text))
		}
	}
	line := func(r []cell) {
		var b strings.Builder
		last := len(r) - 1
		for last > 0 && r[last].text == "" {
			last--
		}
		for i, c := range r[:last+1] {
			b.WriteString(a.paint(c))
			if i < last {
				b.WriteString(strings.Repeat(" ", width[i]-columns(c.text)+2))
			}
		}
		fmt.Fprintln(w, indent+b.String())
	}
	head := make([]cell, len(header))
	for i, h := range header {
		head[i].text = h
	}
	line(head)
	for _, r := range rows {
		line(r)
	}
}

// columns is the room that s takes on a terminal: a character of East Asian
// scripts or an emoji takes two columns, a combining mark none.
func columns(s string) int {
	n := 0
	for _, r := range s {
		switch {
		case unicode.In(r, unicode.Mn, unicode.Me):
		case unicode.In(r, unicode.Han, unicode.Hangul, unicode.Hiragana, unicode.Katakana),
			r >= 0xff01 && r <= 0xff60, r >= 0x1f300 && r <= 0x1faff:
			n += 2
		default:
			n++
		}
	}
	return n
}

// stateCell colours a state by how it is to be taken.
func stateCell(s control.State) cell {
	c := text(string(s))
	switch s {
	case control.StateProtecting:
		c.colour = green
	case control.StateFailed:
		c.colour = red
	case control.StateDegraded, control.StateDeclared, control.StateGated, control.StateAttached, control.StateIdentifying, control.StateDetaching, control.StateRestarting:
		c.colour = yellow
	}
	return c
}

// heldCell is the state of a domain, and whether hvid keeps it paused.
func heldCell(d control.DomainStatus) cell {
	c := stateCell(d.State)
	if d.Held != "" {
		c.text += ", held"
		c.colour = red
	}
	return c
}

func guardCell(s control.GuardState) cell {
	c := text(string(s))
	switch s {
	case control.GuardArmed:
		c.colour = green
	case control.GuardUnavailable, control.GuardDegraded:
		c.colour = red
	case control.GuardPending, control.GuardScanning, control.GuardInactive:
		c.colour = yellow
	}
	return c
}

func checkCell(s control.CheckStatus) cell {
	c := text(string(s))
	switch s {
	case control.CheckOK:
		c.colour = green
	case control.CheckWarn:
		c.colour = yellow
	case control.CheckMissing, control.CheckFail:
		c.colour = red
	}
	return c
}

// duration writes the two greatest units: "3d4h", "5m12s", "0s".
func duration(d time.Duration) string {
	d = max(d, 0).Truncate(time.Second)
	days, h := d/(24*time.Hour), d%(24*time.Hour)/time.Hour
	m, s := d%time.Hour/time.Minute, d%time.Minute/time.Second
	switch {
	case days > 0:
		return fmt.Sprintf("%dd%dh", days, h)
	case h > 0:
		return fmt.Sprintf("%dh%dm", h, m)
	case m > 0:
		return fmt.Sprintf("%dm%ds", m, s)
	}
	return fmt.Sprintf("%ds", s)
}

// moment writes a time in the user's zone.
func (a *app) moment(t time.Time) string { return t.In(a.zone).Format("2006-01-02 15:04:05") }
