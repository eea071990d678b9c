package engine

import (
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// chores are what is done for one guest now and then. The engine goes through those of
// all guests when it has seen how each has run, and wakes whoever has something to do: a
// timer for each would wake threads for what is then left out.
type chores struct {
	mu   sync.Mutex
	list []*chore
}

// chore is one of them.
type chore struct {
	every, jitter time.Duration
	wake          chan<- struct{} // has room for one
	due           atomic.Bool     // since taken was last asked
	// eager is one that is never left out but while it rests.
	eager bool
	rest  atomic.Pointer[rest]

	// Guarded by chores.mu.
	at   time.Time
	lazy lazy
}

// rest is when a chore has nothing to do: until a time, unless the guest is busy after
// another.
type rest struct{ until, since time.Time }

// add has something be done at a time, and then each time that about so much has passed,
// give or take jitter; less often while the guest is quiet, as lazy says. Who does it is
// woken, and asks which it is. Times are as exact as half of activityEvery.
func (c *chores) add(at time.Time, every, jitter time.Duration, wake chan<- struct{}) *chore {
	return c.put(&chore{every: every, jitter: jitter, wake: wake, at: at})
}

// addEager has something be done each time that so much has passed, but while it rests.
func (c *chores) addEager(every time.Duration, wake chan<- struct{}) *chore {
	return c.put(&chore{every: every, wake: wake, eager: true})
}

// addRare is add without jitter, for what is done each times-th time while the guest is
// quiet.
func (c *chores) addRare(at time.Time, every time.Duration, times int, wake chan<- struct{}) *chore {
	return c.put(&chore{every: every, wake: wake, at: at, lazy: lazy{times: times}})
}

func (c *chores) put(ch *chore) *chore {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.list = append(c.list, ch)
	return ch
}

// drop ends it. nil is none.
func (c *chores) drop(ch *chore) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.list = slices.DeleteFunc(c.list, func(x *chore) bool { return x == ch })
}

// tick wakes who has something to do.
func (c *chores) tick(now time.Time, guest *activity) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, ch := range c.list {
		if now.Before(ch.at) {
			continue
		}
		next := ch.every
		if ch.jitter > 0 {
			next += rand.N(2*ch.jitter) - ch.jitter
		}
		// With the clock's own time rounded, so that it is not a tick later each now and then.
		ch.at = now.Add(next - activityEvery/2)
		if ch.eager {
			if r := ch.rest.Load(); r != nil && now.Before(r.until) && !guest.busySince(r.since) {
				continue
			}
		} else if !ch.lazy.due(guest, now) {
			continue
		}
		ch.due.Store(true)
		select {
		case ch.wake <- struct{}{}:
		default:
		}
	}
}

// taken reports whether it is to be done now. nil never is.
func (ch *chore) taken() bool { return ch != nil && ch.due.Swap(false) }
