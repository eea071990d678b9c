package xlplugin

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"time"

	"github.com/xen-hvi/hvi/engine/xen"
)

// XenStore is what a [Watcher] needs of a connection to xenstore, whose events
// may be of any type E: that one came is all that matters. The connection must
// be the watcher's own, since it consumes all its events.
type XenStore[E any] interface {
	Watch(path, token string) error
	Unwatch(path, token string) error
	// Events is closed when the connection is lost.
	Events() <-chan E
	// Read returns the value of a node, or an error if there is none.
	Read(path string) (string, error)
}

// connection is the part of a XenStore that has no E in it.
type connection interface {
	Watch(path, token string) error
	Unwatch(path, token string) error
	Read(path string) (string, error)
}

// DomainLister is what a [Watcher] needs of the hypervisor.
type DomainLister interface {
	// Domains lists all domains, the dying ones too.
	Domains() ([]xen.DomainInfo, error)
}

// EventKind is what happened to a domain.
type EventKind uint8

const (
	// Appeared is a domain that is built: its memory is there and it has a
	// vCPU, so that it can be attached to. Whether it runs yet, Info.Paused
	// tells.
	Appeared EventKind = iota + 1
	// ShutDown is a guest that has stopped by itself; Info.ShutdownReason says
	// why. The domain is still there. A suspended guest may come back.
	ShutDown
	// Resumed is a guest that had shut down and runs again. Xen does not
	// announce this: it is noticed when something else happens, or at
	// [Watcher.Rescan].
	Resumed
	// Gone is a domain that is dying or does not exist any more, or whose
	// number belongs to another one now. What is held of it must be let go:
	// Xen keeps a domain as long as somebody holds its pages.
	Gone
	// Trouble is a list of domains that could not be had; Err says why. It is
	// reported once and tried again until it works.
	Trouble
)

// String returns the kind in lower case.
func (k EventKind) String() string {
	switch k {
	case Appeared:
		return "appeared"
	case ShutDown:
		return "shut down"
	case Resumed:
		return "resumed"
	case Gone:
		return "gone"
	case Trouble:
		return "trouble"
	default:
		return "event(" + strconv.Itoa(int(k)) + ")"
	}
}

// Event is something that happened to a domain. A domain that XAPI migrates is
// told of only while it has its VM's UUID, see [OwnUUID]. Of one domain they come in
// this order: Appeared, then ShutDown and Resumed alternating, then Gone. A
// domain that dies before it is built has only a Gone.
type Event struct {
	Kind EventKind
	// Info is the domain as it was listed last; with Gone, the last time it
	// was seen alive.
	Info xen.DomainInfo
	// Name is the domain's name when it appeared, as it is in xenstore: any
	// bytes, to be shown only quoted. It is empty if the toolstack gave none.
	Name string
	// Existing is set for a domain that was there when the watcher started.
	Existing bool
	// Err is set with Trouble.
	Err error
}

// String is the event on one line.
func (e Event) String() string {
	if e.Kind == Trouble {
		return "trouble: " + e.Err.Error()
	}
	return fmt.Sprintf("%s %v", Domain{ID: e.Info.ID, Name: e.Name, UUID: e.Info.UUID}, e.Kind)
}

// WatchOptions adjusts [Watch]. The zero value is usable.
type WatchOptions struct {
	// OnAppear is called for each new domain the moment it is seen, before
	// anything else is asked about it: to take a pause reference before the
	// toolstack lets the guest run. It must be quick, for the next domain
	// waits. The toolstack may still be building the domain, so more than
	// pausing may not be possible; that comes with the Appeared event. Every
	// domain it was called for gets a Gone in the end.
	//
	// For domains that exist when the watcher starts, existing is true and the
	// call comes from within Watch; otherwise it comes from the watcher's
	// goroutine. A domain created in the very moment the watcher starts counts
	// as existing; info.Paused tells whether it runs.
	OnAppear func(info xen.DomainInfo, existing bool)
	// RetryAfter is how long to wait after a list of domains could not be had;
	// 0 is one second.
	RetryAfter time.Duration
}

// ErrStoreLost is the end of a watcher whose connection to xenstore was closed.
var ErrStoreLost = errors.New("the connection to xenstore is lost")

// The special watches of xenstore. Neither names the domain before Xen 4.22, so
// domains are listed and compared each time.
const (
	introduceDomain = "@introduceDomain"
	releaseDomain   = "@releaseDomain"
	// vmPath is where a toolstack writes what a domain is, right after it has
	// made it and before it builds it: well before it introduces it, which is
	// shortly before it lets it run. No guest can write there.
	vmPath     = "/vm"
	watchToken = "hvi-domains"
)

// MaxName is the longest name taken from xenstore, which itself allows 4096
// bytes in a message.
const MaxName = 4096

// Watcher reports domains that come and go.
type Watcher struct {
	store  connection
	host   DomainLister
	opts   WatchOptions
	events chan Event
	nudge  chan struct{} // a scan is due
	lost   chan struct{} // closed when the store is

	// All below belongs to the goroutine, or to Watch before it starts.
	known    map[xen.DomID]*watched
	queue    []Event
	troubled bool
	err      error // set before events is closed
}

// watched is a domain the watcher knows.
type watched struct {
	info     xen.DomainInfo
	name     string
	existing bool
	built    bool // Appeared was sent
	gone     bool // Gone was sent; the domain is still dying
	// hidden is a domain that is told of only when it has its own UUID.
	hidden bool
	// renamed is the node whose change says that it has, once watched.
	renamed string
}

// Watch starts to watch domains. Those that exist are the first events; domain
// 0 never appears.
//
// The watcher ends when ctx does or the connection to xenstore is lost: the
// channel of [Watcher.Events] is then closed and [Watcher.Err] says why. It
// does not close the connection.
func Watch[E any](ctx context.Context, store XenStore[E], host DomainLister, opts WatchOptions) (*Watcher, error) {
	if opts.RetryAfter <= 0 {
		opts.RetryAfter = time.Second
	}
	w := &Watcher{
		store: store, host: host, opts: opts,
		events: make(chan Event),
		nudge:  make(chan struct{}, 1),
		lost:   make(chan struct{}),
		known:  map[xen.DomID]*watched{},
	}
	// Every watch fires once when it is set; somebody must take that event
	// before the connection can answer anything else. The same holds for
	// events that come while the watches are taken back at the end.
	pumping, stop := context.WithCancel(context.WithoutCancel(ctx))
	go pump(pumping, w, store.Events())
	if err := w.start(); err != nil {
		stop()
		return nil, err
	}
	go func() {
		defer stop()
		w.run(ctx)
	}()
	return w, nil
}

// watchPaths are what is watched, and what for.
var watchPaths = []struct{ name, what string }{
	{introduceDomain, "new domains"},
	{releaseDomain, "domains that end"},
	{vmPath, "domains that are being made"},
}

// unwatch takes the first n watches back.
func (w *Watcher) unwatch(n int) error {
	var errs []error
	for _, path := range watchPaths[:n] {
		errs = append(errs, w.store.Unwatch(path.name, watchToken))
	}
	return errors.Join(errs...)
}

// start sets the watches, and then lists: so that nothing happens unseen
// between the two. On error it takes the watches back.
func (w *Watcher) start() error {
	for i, path := range watchPaths {
		if err := w.store.Watch(path.name, watchToken); err != nil {
			return errors.Join(fmt.Errorf("cannot watch for %s: %w", path.what, err), w.unwatch(i))
		}
	}
	if err := w.scan(true); err != nil {
		return errors.Join(fmt.Errorf("cannot list the domains: %w", err), w.unwatch(len(watchPaths)))
	}
	return nil
}

// Events delivers what happens, without loss: a slow reader makes them wait,
// but does not delay OnAppear. The channel is closed at the end.
func (w *Watcher) Events() <-chan Event { return w.events }

// Err is why the watcher ended: the error of its context, or [ErrStoreLost]. It
// may be called once Events is closed.
func (w *Watcher) Err() error { return w.err }

// Rescan makes the watcher list the domains now. It does not wait for it.
func (w *Watcher) Rescan() {
	select {
	case w.nudge <- struct{}{}:
	default: // one is due already
	}
}

// pump drains the store's events. It is a goroutine of its own, because a
// connection that waits to deliver an event does not answer a read.
func pump[E any](ctx context.Context, w *Watcher, events <-chan E) {
	for {
		select {
		case <-ctx.Done():
			return
		case _, ok := <-events:
			if !ok {
				close(w.lost)
				return
			}
			w.Rescan()
		}
	}
}

func (w *Watcher) run(ctx context.Context) {
	defer close(w.events)
	var retry <-chan time.Time
	for {
		var out chan Event
		var next Event
		if len(w.queue) > 0 {
			out, next = w.events, w.queue[0]
		}
		select {
		case <-ctx.Done():
			w.err = ctx.Err()
			// The connection may be going down with the context; then there is
			// nothing left to undo.
			_ = w.unwatch(len(watchPaths))
			for _, k := range w.known {
				if k.hidden {
					w.unhide(k)
				}
			}
			return
		case <-w.lost:
			w.err = ErrStoreLost
			return
		case out <- next:
			w.queue[0] = Event{}
			w.queue = w.queue[1:]
			continue
		case <-w.nudge:
		case <-retry:
		}
		retry = nil
		if err := w.scan(false); err != nil {
			if !w.troubled {
				w.queue = append(w.queue, Event{Kind: Trouble, Err: fmt.Errorf("cannot list the domains: %w", err)})
			}
			w.troubled = true
			retry = time.After(w.opts.RetryAfter)
		} else {
			w.troubled = false
		}
	}
}

// scan lists the domains and compares them with those known. New ones are
// announced to OnAppear first of all; everything else is queued.
func (w *Watcher) scan(existing bool) error {
	infos, err := w.host.Domains()
	if err != nil {
		return err
	}
	listed := make(map[xen.DomID]bool, len(infos))
	for _, info := range infos {
		if info.ID == 0 {
			continue
		}
		listed[info.ID] = true
		k := w.known[info.ID]
		if k != nil && k.hidden && (k.info.UUID != info.UUID || !w.hide(info)) {
			w.unhide(k)
			k = nil
		}
		// A number is used again sooner or later; that its UUID is another
		// tells. So does one that was dying and is not any more.
		if k != nil && (k.info.UUID != info.UUID || k.gone && !info.Dying) {
			w.sendGone(k)
			k = nil
		}
		switch {
		case k == nil && w.hide(info):
			w.keepHidden(info)
		case info.Dying && k == nil:
			w.known[info.ID] = &watched{info: info, gone: true}
		case k != nil && k.hidden:
			w.keepHidden(info)
		case info.Dying:
			w.sendGone(k)
		case k == nil:
			if w.opts.OnAppear != nil {
				w.opts.OnAppear(info, existing)
			}
			w.known[info.ID] = &watched{info: info, existing: existing}
		}
	}
	for id, k := range w.known {
		switch {
		case listed[id]:
		case k.hidden:
			w.unhide(k)
		default:
			w.sendGone(k)
			delete(w.known, id)
		}
	}

	slices.SortFunc(infos, func(a, b xen.DomainInfo) int { return int(a.ID) - int(b.ID) })
	for _, info := range infos {
		k := w.known[info.ID]
		if k == nil || k.gone || k.hidden {
			continue
		}
		was := k.info.Shutdown
		k.info = info
		// The first vCPU comes online with the last step of building. A list
		// made because of another domain can show this one before.
		if !k.built {
			if info.OnlineVCPUs == 0 {
				continue
			}
			k.built, was = true, false
			k.name = w.name(info.ID)
			w.send(k, Appeared)
		}
		switch {
		case info.Shutdown && !was:
			w.send(k, ShutDown)
		case !info.Shutdown && was:
			w.send(k, Resumed)
		}
	}
	return nil
}

func (w *Watcher) send(k *watched, kind EventKind) {
	w.queue = append(w.queue, Event{Kind: kind, Info: k.info, Name: k.name, Existing: k.existing})
}

func (w *Watcher) sendGone(k *watched) {
	if !k.gone {
		k.gone = true
		w.send(k, Gone)
	}
}

// xenopsNode is there on a host where the xenopsd of XAPI makes domains.
const xenopsNode = "/xenops"

// hide reports whether a domain is not to be told of yet, because its UUID is
// going to change: to hvi a domain with another UUID is another domain, and what
// was begun with the first could not be undone. The toolstack keeps such a
// domain paused until it has its own.
func (w *Watcher) hide(info xen.DomainInfo) bool {
	if !Temporary(info.UUID) || info.Dying {
		return false
	}
	if _, temporary := OwnUUID(w.store.Read, info.UUID); temporary {
		return true
	}
	// What tells is written some time after the UUID is given: in the one to
	// come before it is built, in the one that is sent after it stopped. People
	// make up such UUIDs, too; theirs mean nothing without xenopsd.
	if info.OnlineVCPUs > 0 && !info.Shutdown {
		return false
	}
	_, err := w.store.Read(xenopsNode)
	return err == nil
}

// keepHidden notes a hidden domain, and asks to be told when it gets its UUID:
// Xen does not announce that.
func (w *Watcher) keepHidden(info xen.DomainInfo) {
	k := w.known[info.ID]
	if k == nil || !k.hidden {
		k = &watched{hidden: true}
		w.known[info.ID] = k
	}
	k.info = info
	if k.renamed == "" && info.OnlineVCPUs > 0 {
		k.renamed = vmNode(info.UUID, "final-uuid")
		if w.store.Watch(k.renamed, watchToken) != nil {
			k.renamed = "" // the next scan tries again
		}
	}
}

// unhide forgets a hidden domain.
func (w *Watcher) unhide(k *watched) {
	delete(w.known, k.info.ID)
	if k.renamed != "" {
		// Only a connection that goes down refuses it.
		_ = w.store.Unwatch(k.renamed, watchToken)
	}
}

// name reads the name the toolstack gave a domain. libxl writes it before it
// introduces the domain, to where the guest may only read. A domain without a
// name is one all the same.
func (w *Watcher) name(id xen.DomID) string {
	name, err := w.store.Read("/local/domain/" + strconv.Itoa(int(id)) + "/name")
	if err != nil || len(name) > MaxName {
		return ""
	}
	return name
}
