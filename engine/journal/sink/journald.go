package sink

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"net"
	"strconv"
	"time"

	"github.com/xen-hvi/hvi/engine/journal"
	"github.com/xen-hvi/hvi/engine/printable"
)

// JournaldSocket is where systemd's journal takes entries.
const JournaldSocket = "/run/systemd/journal/socket"

// MessageID is the MESSAGE_ID of each entry, by which journalctl finds them.
const MessageID = "6d6b2c3e2f0e4b7d9a51c0de5f8a7b14"

// datagrams is a socket that takes one datagram for each event. It is connected
// anew after an error: whoever listens may have been restarted.
type datagrams struct {
	path string
	conn net.Conn
}

// sendTime is how long a datagram may wait for one who listens and does not read.
const sendTime = time.Second

func (d *datagrams) send(b []byte) error {
	if d.conn == nil {
		conn, err := net.Dial("unixgram", d.path)
		if err != nil {
			return err
		}
		d.conn = conn
	}
	err := d.conn.SetWriteDeadline(time.Now().Add(sendTime))
	if err == nil {
		_, err = d.conn.Write(b)
	}
	if err != nil {
		d.conn.Close()
		d.conn = nil
	}
	return err
}

// Close releases the socket.
func (d *datagrams) Close() error {
	if d.conn == nil {
		return nil
	}
	return d.conn.Close()
}

// journald speaks systemd's native protocol (systemd's docs/JOURNAL_NATIVE_PROTOCOL.md).
type journald struct{ datagrams }

// Journald returns a sink that makes an entry of systemd's journal of each event,
// with fields of its own: HVI_EVENT is the whole as JSON. path is JournaldSocket.
func Journald(path string) Sink { return &journald{datagrams{path: path}} }

// Name implements Sink.
func (j *journald) Name() string { return "systemd's journal at " + j.path }

// Write implements Sink.
func (j *journald) Write(r *journal.Record) error {
	whole, err := json.Marshal(r)
	if err != nil {
		return fmt.Errorf("encode event %s: %w", r.ID, err)
	}
	return j.send(entry(
		field{"MESSAGE", r.Summary()},
		field{"PRIORITY", strconv.Itoa(priority(r.Severity))},
		field{"SYSLOG_IDENTIFIER", "hvid"},
		field{"MESSAGE_ID", MessageID},
		field{"HVI_ID", string(r.ID)},
		field{"HVI_DOMAIN", r.Domain.Name.String()},
		field{"HVI_DOMAIN_UUID", r.Domain.UUID},
		field{"HVI_GUARD", r.Guard},
		field{"HVI_ACTION", string(r.Action)},
		field{"HVI_SEVERITY", string(r.Severity)},
		field{"HVI_EVENT", string(whole)},
	))
}

// Missed implements Sink.
func (j *journald) Missed(m journal.Missed) error {
	return j.send(entry(
		field{"MESSAGE", missedText(m)},
		field{"PRIORITY", strconv.Itoa(priorityWarning)},
		field{"SYSLOG_IDENTIFIER", "hvid"},
		field{"MESSAGE_ID", MessageID},
		field{"HVI_MISSED", strconv.FormatUint(m.Count, 10)},
	))
}

func missedText(m journal.Missed) string {
	return fmt.Sprintf("%d events are not told here: %s; hvictl events has those that the log still has", m.Count, printable.Text(m.Reason))
}

// field is one of an entry's.
type field struct{ name, value string }

// entry encodes fields. A value with a newline has its length before it.
func entry(fields ...field) []byte {
	var b bytes.Buffer
	for _, f := range fields {
		b.WriteString(f.name)
		if !bytes.ContainsRune([]byte(f.value), '\n') {
			b.WriteString("=" + f.value + "\n")
			continue
		}
		b.WriteByte('\n')
		b.Write(binary.LittleEndian.AppendUint64(nil, uint64(len(f.value))))
		b.WriteString(f.value + "\n")
	}
	return b.Bytes()
}

// Severities of syslog (RFC 5424, table 2).
const (
	priorityCritical = 2
	priorityError    = 3
	priorityWarning  = 4
	priorityNotice   = 5
	priorityInfo     = 6
)

func priority(s journal.Severity) int {
	switch s {
	case journal.Critical:
		return priorityCritical
	case journal.High:
		return priorityError
	case journal.Medium:
		return priorityWarning
	case journal.Low:
		return priorityNotice
	}
	return priorityInfo
}
