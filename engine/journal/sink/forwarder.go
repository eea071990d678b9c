package sink

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/xen-hvi/hvi/engine/journal"
)

// Sink takes events. Write is called again with the same event after an error.
type Sink interface {
	// Name says for people what it is: "syslog at /dev/log".
	Name() string
	// Write passes one event on, and returns soon.
	Write(*journal.Record) error
	// Missed says that events were not passed on, with how many where that is known.
	Missed(journal.Missed) error
	Close() error
}

// Retries of an event that a sink does not take.
const (
	retryFirst = 100 * time.Millisecond
	retryMost  = 10 * time.Second
)

// Forwarder passes the events of a journal on to one sink, as they happen.
type Forwarder struct {
	sink Sink
	log  *slog.Logger
	sub  *journal.Subscription
	stop context.CancelFunc
	done chan struct{}
}

// Forward begins with the events that are appended from now on. The journal keeps
// some for a sink that is slow, see [journal.Options]; beyond that they are counted
// as missed. The caller must Close the Forwarder, which closes the sink.
func Forward(j *journal.Journal, s Sink, log *slog.Logger) (*Forwarder, error) {
	sub, err := j.Subscribe(journal.SubscribeOptions{Follow: true})
	if err != nil {
		return nil, errors.Join(fmt.Errorf("pass events on to %s: %w", s.Name(), err), s.Close())
	}
	ctx, stop := context.WithCancel(context.Background())
	f := &Forwarder{sink: s, log: log, sub: sub, stop: stop, done: make(chan struct{})}
	go f.run(ctx)
	return f, nil
}

func (f *Forwarder) run(ctx context.Context) {
	defer close(f.done)
	for {
		it, err := f.sub.Next(ctx)
		if err != nil {
			return // closed, or the journal is
		}
		if !f.pass(ctx, it) {
			return
		}
	}
}

// pass tries until the sink has taken it, and reports whether it did.
func (f *Forwarder) pass(ctx context.Context, it journal.Item) bool {
	for wait := retryFirst; ; wait = min(2*wait, retryMost) {
		var err error
		if it.Record != nil {
			err = f.sink.Write(it.Record)
		} else {
			err = f.sink.Missed(*it.Missed)
		}
		if err == nil {
			return true
		}
		if wait == retryFirst {
			f.log.Error("an event cannot be passed on; it is tried again", "sink", f.sink.Name(), "err", err)
		}
		select {
		case <-ctx.Done():
			f.log.Error("events were not passed on; they are in the journal", "sink", f.sink.Name())
			return false
		case <-time.After(wait):
		}
	}
}

// drainTime is how long Close waits for a sink that takes events.
const drainTime = 2 * time.Second

// Close passes on what the journal has had so far, as far as the sink takes it
// within some seconds, and closes the sink. Close the journal first.
func (f *Forwarder) Close() error {
	select {
	case <-f.done:
	case <-time.After(drainTime):
	}
	f.stop()
	<-f.done
	return errors.Join(f.sub.Close(), f.sink.Close())
}
