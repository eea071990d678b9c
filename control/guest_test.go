package control

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/xen-hvi/hvi/engine/guest/report"
	"github.com/xen-hvi/hvi/engine/inspect"
)

// TestGuest: every question reaches the engine with its arguments, and its
// answer the client.
func TestGuest(t *testing.T) {
	w := newWorld(t, nil)
	for _, q := range inspect.Questions() {
		var args inspect.Args
		if q.PID != inspect.NoPID {
			args.PID = 812
		}
		args.Threads = q.Threads
		w.engine.answer = q.Result()
		got := q.Result()
		if err := w.client.Guest(t.Context(), "web1", q.Kind, args, got); err != nil {
			t.Errorf("%s: %v", q.Kind, err)
		}
		if want := fmt.Sprintf("guest 7 %s %+v", q.Kind, args); !slices.Contains(w.engine.asks, want) {
			t.Errorf("%s: the engine was asked %q, want %q", q.Kind, w.engine.asks, want)
		}
	}

	want := &report.List[report.Process]{
		Reading: report.Reading{Retries: 2, Incomplete: []string{"x"}, Microseconds: 9},
		Items:   []report.Process{{PID: 1, Comm: "in\\x1bit", Task: 0xffff888003a40000, Cred: report.Credentials{Effective: 1 << 40}}},
	}
	w.engine.answer = want
	got := new(report.List[report.Process])
	if err := w.client.Guest(t.Context(), "7", inspect.Processes, inspect.Args{}, got); err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("arrived as %+v, %v", got, err)
	}
}

// TestGuestAnswersAreBounded: a guest may claim any number of things.
func TestGuestAnswersAreBounded(t *testing.T) {
	w := newWorld(t, nil)
	w.engine.answer = &report.List[report.LogRecord]{Items: make([]report.LogRecord, maxItems+2)}
	got := new(report.List[report.LogRecord])
	if err := w.client.Guest(t.Context(), "7", inspect.Log, inspect.Args{}, got); err != nil {
		t.Fatal(err)
	}
	if len(got.Items) != maxItems || len(got.Reading.Incomplete) != 1 || !strings.Contains(got.Reading.Incomplete[0], fmt.Sprint(maxItems+2)) {
		t.Errorf("%d items, incomplete %q", len(got.Items), got.Reading.Incomplete)
	}
}

func TestGuestIsReadStrictly(t *testing.T) {
	w := newWorld(t, nil)
	for _, tc := range []struct {
		path, mention string
		code          Code
	}{
		{"domains/7/guest/ps?pid=1", "pid", CodeBadRequest}, // it has no use for one
		{"domains/7/guest/ps?threads=yes", "threads", CodeBadRequest},
		{"domains/7/guest/ps?threads=1&threads=1", "twice", CodeBadRequest},
		{"domains/7/guest/maps", "process", CodeBadRequest},
		{"domains/7/guest/maps?pid=0", "pid", CodeBadRequest},
		{"domains/7/guest/maps?pid=-1", "pid", CodeBadRequest},
		{"domains/7/guest/maps?pid=4294967297", "pid", CodeBadRequest},
		{"domains/7/guest/maps?pid=1&threads=1", "threads", CodeBadRequest},
		{"domains/7/guest/mounts?pid=x%1b", `\x1b`, CodeBadRequest},
		{"domains/7/guest/", "nothing", CodeNotFound},
		{"domains/7/guest", "nothing", CodeNotFound},
		{"domains/7/guest/passwords", "nothing", CodeNotFound},
		{"domains/99/guest/ps", "99", CodeNoSuchDomain},
	} {
		var out any
		err := w.client.call(t.Context(), w.client.ReadTimeout, "GET", tc.path, nil, &out)
		var p *Problem
		if !errors.As(err, &p) || p.Code != tc.code || !strings.Contains(p.What, tc.mention) || p.Fix == "" {
			t.Errorf("%s: %+v", tc.path, err)
		}
	}
	if len(w.engine.asks) != 0 {
		t.Errorf("the engine was asked %q", w.engine.asks)
	}
	if err := w.client.call(t.Context(), w.client.ReadTimeout, "POST", "domains/7/guest/ps", nil, nil); !errors.Is(err, &Problem{Code: CodeMethod}) {
		t.Errorf("POST: %v", err)
	}
}

func TestProfile(t *testing.T) {
	w := newWorld(t, nil)
	w.engine.profile = bytes.Repeat([]byte("0123456789abcdef"), 1<<16)
	var got bytes.Buffer
	if err := w.client.Profile(t.Context(), "web1", &got); err != nil || !bytes.Equal(got.Bytes(), w.engine.profile) {
		t.Errorf("%d bytes of %d arrived: %v", got.Len(), len(w.engine.profile), err)
	}
	if !slices.Contains(w.engine.asks, "profile 7") {
		t.Errorf("the engine was asked %q", w.engine.asks)
	}
	full := errors.New("no space")
	if err := w.client.Profile(t.Context(), "web1", failingWriter{full}); !errors.Is(err, full) {
		t.Errorf("a writer that fails: %v", err)
	}
	w.engine.err = &Problem{Code: CodeNotPossible, What: "no BTF", Fix: "x"}
	if err := w.client.Profile(t.Context(), "web1", io.Discard); !errors.Is(err, w.engine.err) {
		t.Errorf("a kernel without types: %v", err)
	}
}

type failingWriter struct{ err error }

func (w failingWriter) Write([]byte) (int, error) { return 0, w.err }

// TestProfileThatBreaksOff: a part is not taken for the whole.
func TestProfileThatBreaksOff(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			_, _ = c.Read(make([]byte, 4096))
			_, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{")
			c.Close()
		}
	}()
	c := NewClient(path)
	defer c.Close()
	if err := c.Profile(t.Context(), "7", io.Discard); !errors.Is(err, &Problem{Code: CodeUnreachable}) {
		t.Errorf("a part of a profile: %v", err)
	}
}
