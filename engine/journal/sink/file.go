package sink

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"syscall"

	"github.com/xen-hvi/hvi/engine/journal"
)

// Format is how a file holds events.
type Format string

// Formats.
const (
	// FormatHVI: lines of JSON as hvictl events -o json writes them.
	FormatHVI Format = "hvi"
	// FormatOCSF: lines of OCSF's Detection Finding.
	FormatOCSF Format = "ocsf"
)

// Formats returns the words.
func Formats() []string { return []string{string(FormatHVI), string(FormatOCSF)} }

// file appends lines to a file, for a shipper to take from there.
type file struct {
	path   string
	format Format
	f      *os.File
}

// File returns a sink that appends each event as a line to the file at path, which
// it makes, with mode 0640, where it is missing. It is opened anew when it was moved
// away, so that logrotate needs to tell nobody.
func File(path string, format Format) Sink { return &file{path: path, format: format} }

// Name implements Sink.
func (s *file) Name() string { return "the file " + s.path }

// open opens the file at the path, unless that is the one that is open.
func (s *file) open() error {
	if s.f != nil {
		have, err := s.f.Stat()
		now, nowErr := os.Lstat(s.path)
		if err == nil && nowErr == nil && os.SameFile(have, now) {
			return nil
		}
		s.f.Close() // its name is gone
		s.f = nil
	}
	f, err := os.OpenFile(s.path, os.O_WRONLY|os.O_CREATE|os.O_APPEND|syscall.O_NOFOLLOW, 0o640)
	if err != nil {
		return err
	}
	s.f = f
	return nil
}

func (s *file) line(v any) error {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	if err := e.Encode(v); err != nil {
		return fmt.Errorf("encode an event: %w", err)
	}
	if err := s.open(); err != nil {
		return err
	}
	_, err := s.f.Write(b.Bytes())
	return err
}

// Write implements Sink.
func (s *file) Write(r *journal.Record) error {
	if s.format == FormatOCSF {
		return s.line(r.OCSF())
	}
	return s.line(r)
}

// Missed implements Sink.
func (s *file) Missed(m journal.Missed) error { return s.line(journal.Item{Missed: &m}) }

// Close closes the file.
func (s *file) Close() error {
	if s.f == nil {
		return nil
	}
	return s.f.Close()
}
