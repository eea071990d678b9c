package sink

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
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

// file appends lines to a file, for a shipper to take from there.
type file struct {
	path   string
	format Format
	f      *os.File
	end    lineEnd // of f
}

// File returns a sink that appends each event as a line to the file at path, which
// it makes, with mode 0640, where it is missing. It is opened anew when it was moved
// away, so that logrotate needs to tell nobody. What is at path must be a file: hvid
// waits for nobody at the other end of a pipe.
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
		s.f, s.end = nil, lineEnd{}
	}
	f, err := os.OpenFile(s.path, os.O_WRONLY|os.O_CREATE|os.O_APPEND|syscall.O_NOFOLLOW|syscall.O_NONBLOCK, 0o640)
	if err != nil {
		return err
	}
	info, err := f.Stat()
	if err == nil && !info.Mode().IsRegular() {
		err = fmt.Errorf("%s is no file", s.path)
	}
	if err != nil {
		return errors.Join(err, f.Close())
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
	return s.end.write(s.f, b.Bytes())
}

// lineEnd knows whether a file ends within a line, which the disk had no room for.
type lineEnd struct{ torn bool }

// write appends a line that ends in a newline. It is written whole the next time
// where it was not, in a line of its own.
func (e *lineEnd) write(w io.Writer, line []byte) error {
	if e.torn {
		line = append([]byte{'\n'}, line...)
	}
	n, err := w.Write(line)
	if n > 0 {
		e.torn = line[n-1] != '\n'
	}
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
