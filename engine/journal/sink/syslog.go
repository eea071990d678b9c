package sink

import (
	"encoding/json"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/xen-hvi/hvi/engine/journal"
)

// SyslogSocket is where a host's syslog daemon listens.
const SyslogSocket = "/dev/log"

const (
	facilityAuthPriv = 10 // security messages, RFC 5424 table 1
	// nilValue stands for what is not known.
	nilValue = "-"
	// maxHostname is RFC 5424's.
	maxHostname = 255
)

// syslog speaks RFC 5424.
type syslog struct {
	datagrams
	host string
	pid  int
	now  func() time.Time
}

// Syslog returns a sink that sends each event to the syslog daemon at path, as a
// message of RFC 5424: facility authpriv, application hvid, the event's ID for the
// kind of message, and the event as JSON for its text.
func Syslog(path string) Sink {
	host, err := os.Hostname()
	if err != nil {
		host = ""
	}
	return &syslog{datagrams{path: path}, header(host, maxHostname), os.Getpid(), time.Now}
}

// Name implements Sink.
func (s *syslog) Name() string { return "syslog at " + s.path }

// Write implements Sink.
func (s *syslog) Write(r *journal.Record) error {
	text, err := json.Marshal(r)
	if err != nil {
		return fmt.Errorf("encode event %s: %w", r.ID, err)
	}
	return s.send(s.message(priority(r.Severity), r.Time, header(string(r.ID), 32), string(text)))
}

// Missed implements Sink.
func (s *syslog) Missed(m journal.Missed) error {
	return s.send(s.message(priorityWarning, s.now(), "missed", missedText(m)))
}

// message is one of RFC 5424's, without structured data: that needs a number of
// the IANA's.
func (s *syslog) message(severity int, at time.Time, id, text string) []byte {
	return fmt.Appendf(nil, "<%d>1 %s %s hvid %d %s - %s", facilityAuthPriv<<3|severity, at.UTC().Format("2006-01-02T15:04:05.000000Z"), s.host, s.pid, id, text)
}

// header makes a string fit for a message's header: printable ASCII without blanks.
func header(s string, longest int) string {
	s = strings.Map(func(r rune) rune {
		if r <= ' ' || r > '~' {
			return -1
		}
		return r
	}, s)
	if s == "" {
		return nilValue
	}
	return s[:min(len(s), longest)]
}
