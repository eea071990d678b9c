package journal

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// history reads the log as it was at one moment, oldest record first. It holds
// the files open, so a rotation meanwhile takes nothing away from it.
type history struct {
	files []section
	opt   SubscribeOptions

	started bool
	// lead comes before the records: what can't be delivered any more.
	lead *Missed
	// tail is the answer where only the newest records are wanted.
	tail []*Record
	// sc reads files[at] where all are wanted.
	sc *scanner
	at int
	// bad counts lines that can't be read.
	bad uint64
}

// section is the part of a file that was written at the moment of the snapshot.
type section struct {
	f    *os.File
	size int64
	// from is where reading begins, moved by Filter.After.
	from int64
}

// snapshot is called with the journal's lock held, so that the last line is
// whole.
func (j *Journal) snapshot(opt SubscribeOptions) (*history, error) {
	nums, err := rotated(j.opt.Dir)
	if err != nil {
		return nil, fmt.Errorf("journal: %w", err)
	}
	names := make([]string, 0, len(nums)+1)
	for _, n := range nums {
		names = append(names, fmt.Sprintf(rotatedFmt, n))
	}
	if j.f != nil {
		names = append(names, currentName)
	}
	h := &history{opt: opt}
	for _, name := range names {
		f, err := os.Open(filepath.Join(j.opt.Dir, name))
		if err != nil {
			h.close()
			return nil, fmt.Errorf("journal: %w", err)
		}
		fi, err := f.Stat()
		if err != nil {
			f.Close()
			h.close()
			return nil, fmt.Errorf("journal: %w", err)
		}
		h.files = append(h.files, section{f: f, size: fi.Size()})
	}
	return h, nil
}

func (h *history) close() {
	for _, s := range h.files {
		s.f.Close() // opened for reading: nothing to lose
	}
	h.files = nil
}

func (h *history) next(ctx context.Context) (Item, error) {
	if !h.started {
		h.started = true
		if err := h.seekAfter(ctx); err != nil {
			return Item{}, err
		}
		if h.opt.History != HistoryAll {
			if err := h.readTail(ctx); err != nil {
				return Item{}, err
			}
		}
	}
	if m := h.lead; m != nil {
		h.lead = nil
		return Item{Missed: m}, nil
	}
	if h.opt.History != HistoryAll {
		if len(h.tail) > 0 {
			r := h.tail[0]
			h.tail = h.tail[1:]
			return Item{Record: r}, nil
		}
		return h.finish()
	}
	for h.at < len(h.files) {
		if h.sc == nil {
			h.sc = newScanner(h.files[h.at])
		}
		r, err := h.sc.next(ctx, &h.opt.Filter)
		if err == nil {
			return Item{Record: r}, nil
		}
		if err != io.EOF {
			return Item{}, err
		}
		h.bad += h.sc.bad
		h.sc = nil
		h.at++
	}
	return h.finish()
}

// finish says once how many lines could not be read, then io.EOF.
func (h *history) finish() (Item, error) {
	if h.bad > 0 {
		m := &Missed{Count: h.bad, Reason: "lines of the log are damaged"}
		h.bad = 0
		return Item{Missed: m}, nil
	}
	return Item{}, io.EOF
}

// readTail collects the newest records, file by file from the newest, and
// stops at the file that completes them.
func (h *history) readTail(ctx context.Context) error {
	for i := len(h.files) - 1; i >= 0 && len(h.tail) < h.opt.History; i-- {
		want := h.opt.History - len(h.tail)
		var got []*Record
		sc := newScanner(h.files[i])
		for {
			r, err := sc.next(ctx, &h.opt.Filter)
			if err == io.EOF {
				break
			}
			if err != nil {
				return err
			}
			// Let it grow to twice what is wanted, then keep the newer half.
			if len(got) >= 2*want {
				got = append(got[:0], got[len(got)-want:]...)
			}
			got = append(got, r)
		}
		h.bad += sc.bad
		if len(got) > want {
			got = got[len(got)-want:]
		}
		h.tail = append(got, h.tail...)
	}
	return nil
}

// seekAfter moves the beginning behind the record Filter.After. If that is not
// in the log it finds the nearest later one of the same run and says in lead
// how many are gone, or begins with the oldest record and says that it can't
// tell.
func (h *history) seekAfter(ctx context.Context) error {
	after := h.opt.Filter.After
	if after == "" {
		return nil
	}
	run, seq, ok := after.Split()
	if !ok {
		return fmt.Errorf("journal: %q is not the ID of an event", string(after))
	}
	// at is where the wanted part begins; it is known to be right once a
	// record of the run up to seq was seen.
	atFile, atByte := 0, int64(0)
	var found bool
	var nextSeq uint64 // first of the run that is later than seq
	for i := range h.files {
		sc := newScanner(h.files[i])
		for {
			r, err := sc.nextOfRun(ctx, run)
			if err == io.EOF {
				break
			}
			if err != nil {
				return err
			}
			_, n, _ := r.ID.Split()
			switch {
			case n <= seq:
				atFile, atByte, found = i, sc.end, true
			case !found && nextSeq == 0:
				atFile, atByte, nextSeq = i, sc.begin, n
			}
		}
	}
	switch {
	case found:
	case nextSeq > 0 && nextSeq-seq-1 > 0:
		h.lead = &Missed{Count: nextSeq - seq - 1, Reason: "the log no longer has them"}
	case nextSeq > 0:
	default:
		h.lead = &Missed{Reason: "the log no longer has event " + string(after)}
	}
	for _, s := range h.files[:atFile] {
		s.f.Close()
	}
	h.files = h.files[atFile:]
	if len(h.files) > 0 {
		h.files[0].from = atByte
	}
	return nil
}

// scanner reads the lines of a section.
type scanner struct {
	r *bufio.Reader
	// begin and end are the offsets of the last line returned.
	begin, end int64
	bad        uint64
	buf        []byte
	lines      int
}

func newScanner(s section) *scanner {
	r := io.NewSectionReader(s.f, s.from, s.size-s.from)
	return &scanner{r: bufio.NewReaderSize(r, 64<<10), begin: s.from, end: s.from}
}

// line returns the next line without its newline, nil if it is longer than any
// record. It is valid until the next call.
func (s *scanner) line(ctx context.Context) ([]byte, error) {
	if s.lines++; s.lines%256 == 0 {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
	}
	s.begin = s.end
	s.buf = s.buf[:0]
	tooLong := false
	for {
		part, err := s.r.ReadSlice('\n')
		s.end += int64(len(part))
		if len(s.buf)+len(part) > MaxLine {
			tooLong = true
		} else {
			s.buf = append(s.buf, part...)
		}
		switch err {
		case nil:
			if tooLong {
				return nil, nil
			}
			return s.buf[:len(s.buf)-1], nil
		case bufio.ErrBufferFull:
			continue
		case io.EOF:
			if len(s.buf) == 0 && !tooLong {
				return nil, io.EOF
			}
			return nil, nil // without newline: not a whole line
		default:
			return nil, fmt.Errorf("journal: %w", err)
		}
	}
}

// next returns the next record that the filter selects.
func (s *scanner) next(ctx context.Context, f *Filter) (*Record, error) {
	for {
		line, err := s.line(ctx)
		if err != nil {
			return nil, err
		}
		if !f.Since.IsZero() {
			if t, ok := lineTime(line); ok && t.Before(f.Since) {
				continue
			}
		}
		if r := s.decode(line); r != nil && f.match(r) {
			return r, nil
		}
	}
}

// nextOfRun returns the next record whose ID is of the run.
func (s *scanner) nextOfRun(ctx context.Context, run string) (*Record, error) {
	for {
		line, err := s.line(ctx)
		if err != nil {
			return nil, err
		}
		if !bytes.Contains(line, []byte(run)) {
			continue
		}
		var r Record
		if json.Unmarshal(line, &r) == nil && strings.HasPrefix(string(r.ID), run+"-") {
			if _, _, ok := r.ID.Split(); ok {
				return &r, nil
			}
		}
	}
}

func (s *scanner) decode(line []byte) *Record {
	r := new(Record)
	if line == nil || json.Unmarshal(line, r) != nil {
		s.bad++
		return nil
	}
	return r
}

// lineTime finds the time of a record without decoding the rest: the first
// "time" of a line that Append wrote is the record's own, and a quote inside a
// string is written with a backslash.
func lineTime(line []byte) (time.Time, bool) {
	_, rest, ok := bytes.Cut(line, []byte(`,"time":"`))
	if !ok {
		return time.Time{}, false
	}
	v, _, ok := bytes.Cut(rest, []byte{'"'})
	if !ok || len(v) > 64 {
		return time.Time{}, false
	}
	t, err := time.Parse(time.RFC3339Nano, string(v))
	return t, err == nil
}
