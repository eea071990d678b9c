package engine

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/xen-hvi/hvi/engine/guest/linux"
	"github.com/xen-hvi/hvi/engine/guest/report"
	"github.com/xen-hvi/hvi/engine/journal"
	"github.com/xen-hvi/hvi/engine/policy"
	"github.com/xen-hvi/hvi/engine/printable"
)

// A guest whose kernel panics shuts down as crashed, with its log in its memory.
// What becomes of it then is its toolstack's to say (on_crash), and most often that
// is the end of the memory. So the log is read at once.

const (
	// crashLogLines is how many of the log's last records are kept: an oops with its
	// registers and calls takes some 40.
	crashLogLines = 60
	// crashLineLen bounds each, in bytes.
	crashLineLen = 200
	// crashPatience bounds the reading. The toolstack does not wait for it.
	crashPatience = 2 * time.Second
)

// ReportCrash records that the guest has crashed, with the end of its kernel's log.
func (s *Session) ReportCrash() {
	s.do(s.reportCrash)
}

func (s *Session) reportCrash() {
	if s.stop.last == journal.ShutDown {
		return // it has not crashed: we have shut it down
	}
	if s.finished || s.set == nil || s.policy.Action(policy.GuardPanic) == policy.ActionOff {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), crashPatience)
	defer cancel()
	mem := newReading(ctx, nil, s.hv.OpenMemory(s.info.ID))
	log, err := s.kernel.Over(mem).NewReader(nil).Log()
	if closeErr := mem.Close(); closeErr != nil {
		s.log.Warn("let go of a crashed guest's memory", "err", closeErr)
	}
	what := crashReason(log.Items)
	if err != nil {
		what = "it shut down as crashed, and its log could not be read: " + err.Error()
	}
	const object = "the guest's kernel"
	if s.permits(policy.GuardPanic, object, printable.Escape(what), false) {
		return
	}
	s.countFound(policy.GuardPanic, 1)
	r := foundRecord(policy.GuardPanic, journal.Target{Kind: journal.TargetObject, Object: &journal.ObjectTarget{
		Check: string(policy.GuardPanic), Name: object, What: printable.Escape(what),
	}})
	r.Detail.Log = crashLog(log.Items)
	s.write(r)
}

// crashReason is the line of a log that says why.
func crashReason(log []report.LogRecord) string {
	if why := linux.CrashReason(log); why != "" {
		return cut(string(why))
	}
	return "it shut down as crashed, and its log says nothing of a panic"
}

// crashLog is the end of a log, a record each.
func crashLog(log []report.LogRecord) []printable.Text {
	var out []printable.Text
	for _, r := range log[max(len(log)-crashLogLines, 0):] {
		out = append(out, printable.Text(fmt.Sprintf("[%5d.%06d] %s", r.Nanoseconds/1e9, r.Nanoseconds%1e9/1e3, cut(string(r.Message)))))
	}
	return out
}

// cut bounds a line, which is printable already.
func cut(line string) string {
	if len(line) <= crashLineLen {
		return line
	}
	return strings.ToValidUTF8(line[:crashLineLen], "") + "…"
}
