package archive

import (
	"sync"
	"time"
)

// Kind says what an Event is about.
type Kind string

// The kinds of events.
const (
	Notice   Kind = "notice"   // Text says something the user should know
	Index    Kind = "index"    // a suite's InRelease or Packages is being fetched
	Download Kind = "download" // packages are being downloaded
	Unpack   Kind = "unpack"   // a tree is being built
)

// Event is one report of progress. Events of one Archive are delivered one
// after the other; the callback should return soon, because work waits for it.
// Work that needs nothing but the cache reports nothing.
type Event struct {
	Kind Kind
	// Name is the suite, the package or the tree worked on.
	Name string
	// Done and Total are bytes: of the index (Index), of all packages of this
	// call that were not in the cache (Download), of all packages (Unpack).
	Done, Total int64
	// Items and ItemsTotal count packages.
	Items, ItemsTotal int
	// Elapsed is the time since this piece of work began.
	Elapsed time.Duration
	// Final is set on the last event of a piece of work.
	Final bool
	// Text is a sentence for a Notice, or the reason of a retry.
	Text string
}

// eventInterval keeps terminals and logs readable.
const eventInterval = 100 * time.Millisecond

// reporter serializes events and thins out the ones in between.
type reporter struct {
	mu   sync.Mutex
	fn   func(Event)
	last time.Time
}

func (r *reporter) send(e Event) {
	if r.fn == nil {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	now := time.Now()
	if !e.Final && e.Text == "" && now.Sub(r.last) < eventInterval {
		return
	}
	r.last = now
	r.fn(e)
}

func (r *reporter) notice(name, text string) {
	r.send(Event{Kind: Notice, Name: name, Text: text, Final: true})
}
