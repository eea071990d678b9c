package sink_test

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/xen-hvi/hvi/engine/journal"
	"github.com/xen-hvi/hvi/engine/journal/sink"
)

func aRecord(guard string) journal.Record {
	return journal.Record{
		Schema: journal.Schema, Time: time.Date(2026, 5, 9, 7, 29, 33, 0, time.UTC), Domain: journal.Domain{UUID: "6c9f7a1e-0b1d-4f0e-9c5c-0123456789ab", Name: "web\\n1", ID: 7},
		Guard: guard, Action: journal.Blocked, Severity: journal.High, Mode: "enforce",
		Process: journal.Process{PID: 3, TGID: 2, Comm: "x", Parents: []journal.Parent{{TGID: 1, Comm: "init"}}},
		Target:  journal.Target{Kind: journal.TargetMSR, MSR: &journal.MSRTarget{Index: 1}},
		Attack:  []journal.Technique{{ID: "T1014", Name: "Rootkit"}},
	}
}

// listener is a socket that takes datagrams.
type listener struct {
	t    *testing.T
	path string
	conn *net.UnixConn
}

func listen(t *testing.T, path string) listener {
	t.Helper()
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return listener{t, path, conn}
}

func (l listener) next() string {
	l.t.Helper()
	buf := make([]byte, 1<<16)
	if err := l.conn.SetReadDeadline(time.Now().Add(time.Minute)); err != nil {
		l.t.Fatal(err)
	}
	n, err := l.conn.Read(buf)
	if err != nil {
		l.t.Fatal(err)
	}
	return string(buf[:n])
}

// fields takes an entry of systemd's native protocol apart.
func fields(t *testing.T, s string) map[string]string {
	t.Helper()
	out := map[string]string{}
	for s != "" {
		i := strings.IndexAny(s, "=\n")
		if i < 0 {
			t.Fatalf("no field in %q", s)
		}
		name := s[:i]
		if s[i] == '=' {
			value, rest, ok := strings.Cut(s[i+1:], "\n")
			if !ok {
				t.Fatalf("no end of %q", s)
			}
			out[name], s = value, rest
			continue
		}
		n := int(binary.LittleEndian.Uint64([]byte(s[i+1 : i+9])))
		out[name], s = s[i+9:i+9+n], s[i+9+n+1:]
	}
	return out
}

func TestJournald(t *testing.T) {
	l := listen(t, filepath.Join(t.TempDir(), "s"))
	s := sink.Journald(l.path)
	defer s.Close()
	r := aRecord("cr")
	r.ID = "69fe2b1d7c3a-1"
	if err := s.Write(&r); err != nil {
		t.Fatal(err)
	}
	got := fields(t, l.next())
	var back journal.Record
	if err := json.Unmarshal([]byte(got["HVI_EVENT"]), &back); err != nil || back.ID != r.ID {
		t.Errorf("event %q: %v", got["HVI_EVENT"], err)
	}
	for name, want := range map[string]string{
		"MESSAGE": r.Summary(), "PRIORITY": "3", "HVI_GUARD": "cr", "HVI_ACTION": "blocked", "HVI_SEVERITY": "high", "HVI_ID": "69fe2b1d7c3a-1",
		"SYSLOG_IDENTIFIER": "hvid", "HVI_DOMAIN_UUID": r.Domain.UUID, "MESSAGE_ID": sink.MessageID,
	} {
		if got[name] != want {
			t.Errorf("%s is %q, want %q", name, got[name], want)
		}
	}
	r.Guard = "two\nlines"
	if err := s.Write(&r); err != nil {
		t.Fatal(err)
	}
	if got := fields(t, l.next()); got["HVI_GUARD"] != r.Guard || got["HVI_ACTION"] != "blocked" {
		t.Errorf("%q", got)
	}
	if err := s.Missed(journal.Missed{Count: 12, Reason: "slow"}); err != nil {
		t.Fatal(err)
	}
	if got := fields(t, l.next()); got["HVI_MISSED"] != "12" || !strings.Contains(got["MESSAGE"], "12 events") || got["PRIORITY"] != "4" {
		t.Errorf("%q", got)
	}
}

func TestSyslog(t *testing.T) {
	l := listen(t, filepath.Join(t.TempDir(), "s"))
	s := sink.Syslog(l.path)
	defer s.Close()
	r := aRecord("cr")
	r.ID = "69fe2b1d7c3a-1"
	if err := s.Write(&r); err != nil {
		t.Fatal(err)
	}
	got := l.next()
	m := regexp.MustCompile(`^<83>1 2026-05-09T07:29:33\.000000Z \S+ hvid \d+ 69fe2b1d7c3a-1 - (\{.*\})$`).FindStringSubmatch(got)
	if m == nil {
		t.Fatalf("message %q", got)
	}
	var back journal.Record
	if err := json.Unmarshal([]byte(m[1]), &back); err != nil || back.Guard != "cr" {
		t.Errorf("%v", err)
	}
	if err := s.Missed(journal.Missed{Count: 3, Reason: "slow"}); err != nil {
		t.Fatal(err)
	}
	if got := l.next(); !strings.HasPrefix(got, "<84>1 ") || !strings.Contains(got, " missed - 3 events") {
		t.Errorf("message %q", got)
	}
}

// TestFile: lines that can be read back, in a new file once the old one was moved.
func TestFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "events.json")
	s := sink.File(path, sink.FormatHVI)
	r := aRecord("cr")
	if err := s.Write(&r); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(path, path+".1"); err != nil {
		t.Fatal(err)
	}
	if err := s.Write(&r); err != nil {
		t.Fatal(err)
	}
	if err := s.Missed(journal.Missed{Count: 2, Reason: "slow"}); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]int{path + ".1": 1, path: 2} {
		b, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		lines := strings.Split(strings.TrimSuffix(string(b), "\n"), "\n")
		if len(lines) != want {
			t.Errorf("%s has %d lines, want %d", name, len(lines), want)
		}
		for _, line := range lines {
			var it journal.Item
			if err := json.Unmarshal([]byte(line), &it); err != nil {
				t.Errorf("%s: %v", line, err)
			}
		}
	}
	ocsf := sink.File(path+".ocsf", sink.FormatOCSF)
	defer ocsf.Close()
	if err := ocsf.Write(&r); err != nil {
		t.Fatal(err)
	}
	var got struct {
		Metadata struct {
			Version string `json:"version"`
		} `json:"metadata"`
	}
	b, err := os.ReadFile(path + ".ocsf")
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(b, &got); err != nil || got.Metadata.Version != journal.OCSFVersion {
		t.Errorf("%s: %v", b, err)
	}
}

// TestFileIsNone: a pipe without a reader would hold the sink up for ever.
func TestFileIsNone(t *testing.T) {
	dir := t.TempDir()
	if err := syscall.Mkfifo(filepath.Join(dir, "pipe"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("elsewhere", filepath.Join(dir, "link")); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{dir, filepath.Join(dir, "pipe"), filepath.Join(dir, "link"), "/dev/null"} {
		s := sink.File(path, sink.FormatHVI)
		r := aRecord("cr")
		if err := s.Write(&r); err == nil {
			t.Errorf("%s was written to", path)
		}
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	}
}

// TestDeaf: one who listens and never reads holds nobody up for long.
func TestDeaf(t *testing.T) {
	l := listen(t, filepath.Join(t.TempDir(), "s"))
	s := sink.Syslog(l.path)
	r := aRecord("cr")
	for range 100_000 {
		if err := s.Write(&r); err != nil {
			if !errors.Is(err, os.ErrDeadlineExceeded) {
				t.Error(err)
			}
			if err := s.Close(); err != nil {
				t.Error(err)
			}
			return
		}
	}
	t.Error("100,000 messages that nobody read were taken")
}

// stubborn is a sink that takes an event at the third try.
type stubborn struct {
	mu    sync.Mutex
	tries int
	took  []string
	got   chan struct{}
}

func (s *stubborn) Name() string { return "a stubborn one" }

func (s *stubborn) Write(r *journal.Record) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.tries++; s.tries%3 != 0 {
		return errors.New("not now")
	}
	s.took = append(s.took, r.Guard)
	s.got <- struct{}{}
	return nil
}

func (s *stubborn) Missed(journal.Missed) error { return nil }
func (s *stubborn) Close() error                { return nil }

// TestForward: every event gets there, in its order, however often it takes.
func TestForward(t *testing.T) {
	j, err := journal.Open(journal.Options{Dir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	before := aRecord("before")
	if _, err := j.Append(before); err != nil {
		t.Fatal(err)
	}
	s := &stubborn{got: make(chan struct{}, 8)}
	f, err := sink.Forward(j, s, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	for _, g := range []string{"a", "b"} {
		if _, err := j.Append(aRecord(g)); err != nil {
			t.Fatal(err)
		}
	}
	<-s.got
	<-s.got
	if err := errors.Join(j.Close(), f.Close()); err != nil {
		t.Fatal(err)
	}
	if got := strings.Join(s.took, " "); got != "a b" || s.tries != 6 {
		t.Errorf("took %q in %d tries", got, s.tries)
	}
}
