package journal

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/xen-hvi/hvi/engine/printable"
)

// MaxQuery is the greatest number of records that Query returns, and
// DefaultQuery the number where none is asked for.
const (
	MaxQuery     = 10_000
	DefaultQuery = 1_000
)

// Filter selects records. A zero field selects all.
type Filter struct {
	// Domain is a domain's UUID, name or domid in decimal. A domid is used
	// again after 32752 others, a name whenever its owner likes.
	Domain string
	// Guard is a guard's name.
	Guard string
	// ID is that of the only record that is wanted.
	ID ID
	// Action is what was done, and Severity the least severity.
	Action   Action
	Severity Severity
	// Since leaves out what happened before it, Until what did at it or later.
	Since, Until time.Time
	// After leaves out the record of that ID and what precedes it in the log.
	// If the log no longer has it, the stream begins with a Missed.
	After ID
}

func (f *Filter) match(r *Record) bool {
	if f.Guard != "" && f.Guard != r.Guard {
		return false
	}
	if !f.Since.IsZero() && r.Time.Before(f.Since) {
		return false
	}
	switch {
	case f.ID != "" && f.ID != r.ID,
		f.Action != "" && f.Action != r.Action,
		f.Severity != "" && r.severity().rank() < f.Severity.rank(),
		!f.Until.IsZero() && !r.Time.Before(f.Until):
		return false
	}
	d := f.Domain
	return d == "" ||
		strings.EqualFold(d, r.Domain.UUID) ||
		printable.Text(d) == r.Domain.Name || printable.Escape(d) == r.Domain.Name ||
		d == strconv.Itoa(int(r.Domain.ID))
}

// Query returns the newest limit records that the filter selects, oldest
// first. A limit of 0 means DefaultQuery; the error is ErrLimit if it is
// negative or above MaxQuery.
func (j *Journal) Query(ctx context.Context, f Filter, limit int) ([]Record, error) {
	switch {
	case limit < 0 || limit > MaxQuery:
		return nil, fmt.Errorf("%w: %d, at most %d", ErrLimit, limit, MaxQuery)
	case limit == 0:
		limit = DefaultQuery
	}
	s, err := j.Subscribe(SubscribeOptions{Filter: f, History: limit})
	if err != nil {
		return nil, err
	}
	defer s.Close()
	var out []Record
	for {
		it, err := s.Next(ctx)
		switch {
		case errors.Is(err, io.EOF):
			return out, nil
		case err != nil:
			return nil, err
		case it.Record != nil:
			out = append(out, *it.Record)
		}
	}
}

// HistoryAll, as SubscribeOptions.History, asks for every record in the log.
const HistoryAll = -1

// SubscribeOptions says what a Subscription delivers.
type SubscribeOptions struct {
	Filter Filter
	// History is the number of records already in the log to begin with, the
	// newest; HistoryAll is all of them, which takes no more memory than one.
	// At most MaxQuery otherwise.
	History int
	// Follow goes on with the records that are appended from now on. Without
	// it the stream ends after the history.
	Follow bool
}

// Subscribe begins a stream of records. None is lost or repeated between the
// history and what follows. The caller must Close the subscription.
func (j *Journal) Subscribe(opt SubscribeOptions) (*Subscription, error) {
	if opt.History < HistoryAll || opt.History > MaxQuery {
		return nil, fmt.Errorf("%w: %d, at most %d", ErrLimit, opt.History, MaxQuery)
	}
	s := &Subscription{j: j, filter: opt.Filter, follow: opt.Follow, wake: make(chan struct{}, 1)}
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.closed {
		return nil, ErrClosed
	}
	if opt.History != 0 {
		h, err := j.snapshot(opt)
		if err != nil {
			return nil, err
		}
		s.hist = h
	}
	if opt.Follow {
		s.queue = make([]entry, j.opt.Queue)
		j.subs[s] = struct{}{}
	}
	return s, nil
}

// Subscription is a stream of records for one reader. Next must not be called
// from two goroutines at once; Close may be called from any, once or more.
type Subscription struct {
	j      *Journal
	filter Filter
	follow bool

	// histMu is held by Next while it reads the log, so that Close can close
	// the files.
	histMu sync.Mutex
	hist   *history

	// wake has a token when there may be something new in what follows.
	wake chan struct{}

	mu     sync.Mutex
	queue  []entry // a ring of n entries from head
	head   int
	n      int
	missed uint64 // dropped since the newest entry in the queue
	ended  bool
}

type entry struct {
	rec          *Record
	missedBefore uint64
}

// push is called by Append, in order, with the journal's lock held.
func (s *Subscription) push(r *Record) {
	if !s.filter.match(r) {
		return
	}
	s.mu.Lock()
	if s.n == len(s.queue) {
		s.missed++
	} else {
		s.queue[(s.head+s.n)%len(s.queue)] = entry{r, s.missed}
		s.n++
		s.missed = 0
	}
	s.mu.Unlock()
	s.signal()
}

func (s *Subscription) signal() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

func (s *Subscription) end() {
	s.mu.Lock()
	s.ended = true
	s.mu.Unlock()
	s.signal()
}

// Next returns the next record, or a Missed in the place of those that were
// dropped because this reader was slow. It waits for one if the subscription
// follows; otherwise it returns io.EOF after the history. When the journal or
// the subscription has been closed, it returns what is left and then ErrClosed.
//
// The record is shared with other readers and must not be changed.
func (s *Subscription) Next(ctx context.Context) (Item, error) {
	for {
		it, ok, err := s.TryNext(ctx)
		if ok || err != nil {
			return it, err
		}
		select {
		case <-ctx.Done():
			return Item{}, ctx.Err()
		case <-s.wake:
		}
	}
}

// TryNext is Next without the waiting for an event: ok is false where there is
// none now. A writer that buffers flushes then, and calls Next.
func (s *Subscription) TryNext(ctx context.Context) (it Item, ok bool, err error) {
	it, err = s.nextOld(ctx)
	if !errors.Is(err, io.EOF) {
		return it, err == nil, err
	}
	if !s.follow {
		return Item{}, false, io.EOF
	}
	it, ok, ended := s.pop()
	if !ok && ended {
		return Item{}, false, ErrClosed
	}
	return it, ok, nil
}

// nextOld returns the next item of the history, io.EOF after the last.
func (s *Subscription) nextOld(ctx context.Context) (Item, error) {
	s.histMu.Lock()
	defer s.histMu.Unlock()
	if s.hist == nil {
		return Item{}, io.EOF
	}
	it, err := s.hist.next(ctx)
	if err != nil {
		s.hist.close()
		s.hist = nil
	}
	return it, err
}

const slowReader = "the reader was too slow"

func (s *Subscription) pop() (it Item, ok, ended bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.n == 0 {
		if s.missed > 0 {
			it.Missed = &Missed{Count: s.missed, Reason: slowReader}
			s.missed = 0
			return it, true, false
		}
		return Item{}, false, s.ended
	}
	e := &s.queue[s.head]
	if e.missedBefore > 0 {
		it.Missed = &Missed{Count: e.missedBefore, Reason: slowReader}
		e.missedBefore = 0
		return it, true, false
	}
	it.Record = e.rec
	*e = entry{}
	s.head = (s.head + 1) % len(s.queue)
	s.n--
	return it, true, false
}

// Close ends the subscription and releases what it holds. A Next that waits
// returns ErrClosed.
func (s *Subscription) Close() error {
	s.j.mu.Lock()
	delete(s.j.subs, s)
	s.j.mu.Unlock()
	s.end()
	s.histMu.Lock()
	defer s.histMu.Unlock()
	if s.hist != nil {
		s.hist.close()
		s.hist = nil
	}
	return nil
}
