package machine

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"syscall"
	"time"
)

// QMP is a connection to a [PC]'s monitor. Close it when it is no longer
// needed; the machine runs on.
type QMP struct {
	conn net.Conn
	in   *json.Decoder
}

// MonitorError is the monitor's refusal of a command.
type MonitorError struct {
	Command     string `json:"-"`
	Class       string `json:"class"`
	Description string `json:"desc"`
}

func (e *MonitorError) Error() string {
	return fmt.Sprintf("QEMU's monitor refused %s: %s (%s)", e.Command, e.Description, e.Class)
}

// Dial connects to a socket that a starting emulator is about to listen on. It
// tries until ctx ends.
func Dial(ctx context.Context, path string) (net.Conn, error) {
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	var d net.Dialer
	for {
		c, err := d.DialContext(ctx, "unix", path)
		if err == nil {
			return c, nil
		}
		if !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, syscall.ECONNREFUSED) {
			return nil, err
		}
		select {
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		case <-tick.C:
		}
	}
}

// DialQMP connects to a PC's monitor.
func DialQMP(ctx context.Context, path string) (*QMP, error) {
	conn, err := Dial(ctx, path)
	if err != nil {
		return nil, err
	}
	q := &QMP{conn: conn, in: json.NewDecoder(bufio.NewReader(conn))}
	var greeting struct{ QMP json.RawMessage }
	if err := q.in.Decode(&greeting); err != nil {
		return nil, errors.Join(fmt.Errorf("QEMU's monitor: %w", err), conn.Close())
	}
	if err := q.Execute(ctx, "qmp_capabilities", nil, nil); err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	return q, nil
}

// Close ends the connection.
func (q *QMP) Close() error { return q.conn.Close() }

// Execute runs a command and decodes what it returns into out, unless that is
// nil. A refusal is a [*MonitorError].
func (q *QMP) Execute(ctx context.Context, command string, arguments, out any) error {
	stop := context.AfterFunc(ctx, func() { _ = q.conn.SetDeadline(time.Now()) })
	defer stop()
	text, err := json.Marshal(struct {
		Execute   string `json:"execute"`
		Arguments any    `json:"arguments,omitempty"`
	}{command, arguments})
	if err != nil {
		return err
	}
	fail := func(err error) error {
		if ctx.Err() != nil {
			err = context.Cause(ctx)
		}
		return fmt.Errorf("QEMU's monitor: %s: %w", command, err)
	}
	if _, err := q.conn.Write(append(text, '\n')); err != nil {
		return fail(err)
	}
	for {
		var answer struct {
			Return json.RawMessage `json:"return"`
			Error  *MonitorError   `json:"error"`
			Event  string          `json:"event"`
		}
		if err := q.in.Decode(&answer); err != nil {
			return fail(err)
		}
		switch {
		case answer.Error != nil:
			answer.Error.Command = command
			return answer.Error
		case answer.Event != "":
		case out != nil:
			return json.Unmarshal(answer.Return, out)
		default:
			return nil
		}
	}
}

// Human runs a command of the monitor for people and returns its text.
func (q *QMP) Human(ctx context.Context, command string) (string, error) {
	var text string
	err := q.Execute(ctx, "human-monitor-command", map[string]string{"command-line": command}, &text)
	return text, err
}
