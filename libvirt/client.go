package libvirt

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	rpc "github.com/digitalocean/go-libvirt"

	"github.com/xen-hvi/hvi/engine/policy"
	"github.com/xen-hvi/hvi/engine/xen"
	"github.com/xen-hvi/hvi/libvirt/metadata"
)

// DefaultSockets are where libvirt's daemons for Xen listen: the modular one,
// and the monolithic one or the proxy that stands in for it.
func DefaultSockets() []string {
	return []string{"/run/libvirt/virtxend-sock", "/run/libvirt/libvirt-sock"}
}

var (
	errNoSocket   = errors.New("no libvirt daemon is reachable")
	errNotRunning = errors.New("no libvirt daemon runs, and hvid starts none")
)

var (
	// ErrNotConnected matches the error of a call that no daemon is there for.
	ErrNotConnected = errors.New("libvirt is not connected")
	// ErrNoDomain matches the error about a domain that libvirt does not have.
	ErrNoDomain = errors.New("libvirt has no such domain")
	// ErrTimeout matches the error of a call that libvirt did not answer in
	// time. What it asked for may still be done.
	ErrTimeout = errors.New("libvirt does not answer")
)

// Options adjusts a [Client]. The zero value is usable.
type Options struct {
	// Sockets are tried in this order. Default: [DefaultSockets].
	Sockets []string
	// Log is told of domains that libvirt does not tell about. What matters of
	// the connection, Connected is told.
	Log *slog.Logger
	// Policies looks up what an admin keeps by name; see [metadata.Element.Spec].
	Policies policy.Policies
	// Changed is told of a domain that runs: after each connect, when it has
	// started, and when its metadata have changed; and of one that does not run
	// when its metadata have. It is called by one goroutine at a time, for a
	// domain in the order of its changes. It must return soon, and not call Close.
	Changed func(Domain)
	// Connected is told of each connect, and of the loss of the connection or
	// the first failure to make one, with the reason. It is called as Changed is,
	// and never at the same time.
	Connected func(up bool, why error)

	// Ready says whether to try to connect now; nil is always. [Running.Ready] is one.
	Ready func() bool

	// CallTimeout bounds every wait for libvirt. Default: 10 s.
	CallTimeout time.Duration
	// PingEvery is how often the daemon is asked whether it lives. Default: 15 s.
	PingEvery time.Duration
	// RetryMin and RetryMax are the pauses between two tries to connect, the
	// first and the longest. Where a daemon answers and declines, because it has
	// no driver for Xen, the longest is 12 times as long: each try may start it.
	// Defaults: 100 ms and 5 s.
	RetryMin, RetryMax time.Duration
}

const (
	defaultCallTimeout = 10 * time.Second
	defaultPing        = 15 * time.Second
	defaultRetryMin    = 100 * time.Millisecond
	defaultRetryMax    = 5 * time.Second

	// maxCalls is how many questions are asked at once, beside the ping. libvirt
	// reads no more from a client that has 5 under way, and then the ping would
	// not be heard.
	maxCalls = 3
)

// Domain is what libvirt knows of a domain and hvi cares for.
type Domain struct {
	UUID xen.UUID
	// Name is any text, to be shown only quoted.
	Name string
	// ID is the domain's number, or -1 if it does not run.
	ID int32
	// Element is hvi's in the domain's metadata, or nil.
	Element *metadata.Element
	// Spec is what it declares. It declares nothing without an element, and if
	// Err is set.
	Spec policy.Spec
	// Err says what is wrong with the element.
	Err error
}

// Declared reports whether the domain has an element, be it a broken one.
func (d Domain) Declared() bool { return d.Element != nil || d.Err != nil }

// Client listens to a libvirt daemon. Its methods may be called from several
// goroutines at once.
type Client struct {
	opt    Options
	log    *slog.Logger
	cancel context.CancelFunc
	wg     sync.WaitGroup

	mu sync.Mutex
	s  *session // nil while not connected
	// why nobody is there.
	why error

	// tell is held while Changed or Connected is called.
	tell sync.Mutex
}

// Start begins to connect and returns at once.
func Start(ctx context.Context, opt Options) *Client {
	if len(opt.Sockets) == 0 {
		opt.Sockets = DefaultSockets()
	}
	if opt.Log == nil {
		opt.Log = slog.New(slog.DiscardHandler)
	}
	if opt.Changed == nil {
		opt.Changed = func(Domain) {}
	}
	if opt.Connected == nil {
		opt.Connected = func(bool, error) {}
	}
	for d, to := range map[*time.Duration]time.Duration{
		&opt.CallTimeout: defaultCallTimeout, &opt.PingEvery: defaultPing,
		&opt.RetryMin: defaultRetryMin, &opt.RetryMax: defaultRetryMax,
	} {
		if *d <= 0 {
			*d = to
		}
	}
	ctx, cancel := context.WithCancel(ctx)
	c := &Client{opt: opt, log: opt.Log, cancel: cancel, why: errNoSocket}
	c.wg.Go(func() { c.run(ctx) })
	return c
}

// Close ends the connection and waits until all that belongs to it has ended.
func (c *Client) Close() {
	c.cancel()
	c.wg.Wait()
}

// run keeps a connection.
func (c *Client) run(ctx context.Context) {
	b := backoff{min: c.opt.RetryMin, max: c.opt.RetryMax}
	told := false
	for ctx.Err() == nil {
		s, err := c.connect(ctx)
		connected := err == nil
		if connected {
			err = c.serve(ctx, s)
			told = false
		}
		c.setSession(nil, err)
		if ctx.Err() != nil {
			return
		}
		// Once for each time that it was lost, not for each vain try.
		if !told {
			told = true
			c.connected(false, err)
		}
		again := time.NewTimer(b.next(connected, err))
		select {
		case <-again.C:
		case <-ctx.Done():
			again.Stop()
		}
	}
}

// backoff makes the pauses between tries to connect.
type backoff struct {
	min, max time.Duration
	pause    time.Duration // the next
	absent   bool          // no daemon ran at the last try
}

// next is the pause after a connection that was lost, or a try that failed.
func (b *backoff) next(connected bool, err error) time.Duration {
	absent := errors.Is(err, errNotRunning)
	// A daemon that has just come may not be ready at once.
	if b.pause == 0 || connected || b.absent && !absent {
		b.pause = b.min
	}
	b.absent = absent
	pause, longest := b.pause, b.max
	if errors.As(err, new(*declined)) {
		longest *= 12
	}
	b.pause = min(2*pause, longest)
	return pause
}

// declined is the answer of a daemon that does not serve Xen.
type declined struct{ error }

// Unwrap gives the answer.
func (d *declined) Unwrap() error { return d.error }

func (c *Client) setSession(s *session, why error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.s, c.why = s, why
}

func (c *Client) connected(up bool, why error) {
	c.tell.Lock()
	defer c.tell.Unlock()
	c.opt.Connected(up, why)
}

// session is one connection.
type session struct {
	*Client
	lv     *rpc.Libvirt
	conn   *conn
	socket string
	// calls holds a token for each question under way.
	calls chan struct{}
	wg    sync.WaitGroup

	mu sync.Mutex
	// asking are the domains that are being asked about; true if something
	// changed since.
	asking map[xen.UUID]bool
}

// connect makes a connection to the first daemon that takes one and serves Xen.
func (c *Client) connect(ctx context.Context) (*session, error) {
	if c.opt.Ready != nil && (!c.haveSocket() || !c.opt.Ready()) {
		return nil, errNotRunning
	}
	var errs []error
	for _, socket := range c.opt.Sockets {
		s, err := c.connectTo(ctx, socket)
		if err == nil {
			return s, nil
		}
		errs = append(errs, fmt.Errorf("%s: %w", socket, plain(err)))
		if ctx.Err() != nil {
			break
		}
	}
	return nil, errors.Join(append([]error{errNoSocket}, errs...)...)
}

// haveSocket reports whether there is a socket at all: on a host without libvirt there is
// none, and no daemon needs to be looked for all day.
func (c *Client) haveSocket() bool {
	return slices.ContainsFunc(c.opt.Sockets, func(socket string) bool {
		_, err := os.Lstat(socket)
		return !errors.Is(err, fs.ErrNotExist)
	})
}

// plain takes away what an error repeats of the socket's name.
func plain(err error) error {
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return errors.New("there is no such socket")
	case errors.Is(err, syscall.ECONNREFUSED):
		return errors.New("nobody serves it")
	}
	return err
}

func (c *Client) connectTo(ctx context.Context, socket string) (*session, error) {
	d := net.Dialer{Timeout: c.opt.CallTimeout}
	raw, err := d.DialContext(ctx, "unix", socket)
	if err != nil {
		return nil, err
	}
	if err := checkPeer(raw.(*net.UnixConn)); err != nil {
		raw.Close()
		return nil, err
	}
	cn := newConn(raw)
	s := &session{
		Client: c, lv: rpc.NewWithDialer(cn), conn: cn, socket: socket,
		calls: make(chan struct{}, maxCalls), asking: map[xen.UUID]bool{},
	}
	_, err = ask(ctx, s, "to open xen:///system", func() (struct{}, error) {
		return struct{}{}, s.lv.ConnectToURI(rpc.XenSystem)
	})
	if err != nil {
		s.end()
		if !errors.Is(err, ErrNotConnected) && !errors.Is(err, ErrTimeout) && ctx.Err() == nil {
			err = &declined{err}
		}
		return nil, err
	}
	return s, nil
}

// end closes the connection and waits for its goroutines.
func (s *session) end() {
	s.conn.Close()
	s.wg.Wait()
}

// ask puts a question to libvirt and waits for the answer, but not for ever. A
// question that is given up stays under way until it is answered or the
// connection ends, which every question notices.
func ask[T any](ctx context.Context, s *session, what string, question func() (T, error)) (T, error) {
	var none T
	late := time.NewTimer(s.opt.CallTimeout)
	defer late.Stop()
	select {
	case s.calls <- struct{}{}:
	case <-late.C:
		return none, fmt.Errorf("%w within %v: it was not asked %s, too many answers are due", ErrTimeout, s.opt.CallTimeout, what)
	case <-s.conn.done:
		return none, s.lost()
	case <-ctx.Done():
		return none, ctx.Err()
	}
	type answer struct {
		value T
		err   error
	}
	got := make(chan answer, 1)
	s.wg.Go(func() {
		v, err := question()
		<-s.calls
		got <- answer{v, err}
	})
	select {
	case a := <-got:
		return a.value, s.judge(a.err)
	case <-late.C:
		return none, fmt.Errorf("%w within %v when asked %s", ErrTimeout, s.opt.CallTimeout, what)
	case <-ctx.Done():
		return none, ctx.Err()
	}
}

// judge makes errors matchable: what libvirt says, and that it is gone, which the
// library says in several ways.
func (s *session) judge(err error) error {
	if err == nil || errors.As(err, new(rpc.Error)) {
		return explain(err)
	}
	select {
	case <-s.conn.done:
		return s.lost()
	default:
		return err
	}
}

func (s *session) lost() error {
	return fmt.Errorf("%w: the connection to %s has ended: %w", ErrNotConnected, s.socket, s.conn.why)
}

// explain makes libvirt's errors matchable.
func explain(err error) error {
	var e rpc.Error
	if errors.As(err, &e) && rpc.ErrorNumber(e.Code) == rpc.ErrNoDomain {
		return fmt.Errorf("%w: %s", ErrNoDomain, policy.Quote(e.Message))
	}
	if errors.As(err, &e) {
		return fmt.Errorf("libvirt says: %s", strings.Trim(policy.Quote(e.Message), `"`))
	}
	return err
}

// serve listens until the connection ends, and returns why it has.
func (c *Client) serve(ctx context.Context, s *session) error {
	defer s.end()
	stop := context.AfterFunc(ctx, func() { s.conn.Close() })
	defer stop()

	events := make(chan rpc.Domain)
	// Listen first, ask for all domains then: nothing falls between.
	for _, e := range []struct {
		id   rpc.DomainEventID
		what string
	}{{rpc.DomainEventIDMetadataChange, "for changes of metadata"}, {rpc.DomainEventIDLifecycle, "for starts of domains"}} {
		if err := s.listen(ctx, e.id, e.what, events); err != nil {
			return err
		}
	}
	domains, err := ask(ctx, s, "for its domains", func() ([]rpc.Domain, error) {
		ds, _, err := s.lv.ConnectListAllDomains(1, rpc.ConnectListDomainsActive)
		return ds, err
	})
	if err != nil {
		return err
	}
	c.setSession(s, nil)
	c.connected(true, nil)
	for _, d := range domains {
		s.refresh(ctx, d)
	}

	s.wg.Go(s.ping)
	for {
		select {
		case d := <-events:
			s.refresh(ctx, d)
		case <-s.conn.done:
			return s.lost()
		}
	}
}

// ping asks what can always be answered, now and then, and ends the connection
// if no answer comes. It does not queue behind the questions.
func (s *session) ping() {
	every := time.NewTicker(s.opt.PingEvery)
	defer every.Stop()
	for {
		select {
		case <-every.C:
		case <-s.conn.done:
			return
		}
		late := time.AfterFunc(s.opt.CallTimeout, func() {
			s.conn.end(fmt.Errorf("%w within %v", ErrTimeout, s.opt.CallTimeout))
		})
		_, err := s.lv.ConnectGetLibVersion()
		late.Stop()
		if err != nil {
			s.conn.end(explain(err))
			return
		}
	}
}

// listen subscribes to one kind of event and sends the domains of those that
// matter, until the connection ends.
func (s *session) listen(ctx context.Context, id rpc.DomainEventID, what string, to chan<- rpc.Domain) error {
	stream, err := ask(ctx, s, what, func() (<-chan any, error) {
		// The subscription ends with the connection; to end it earlier would take
		// an answer.
		return s.lv.SubscribeEvents(context.Background(), id, nil)
	})
	if err != nil {
		return err
	}
	s.wg.Go(func() {
		// The stream is read to its end, for the library waits for its reader.
		for e := range stream {
			d, matters := domainOf(e)
			if !matters {
				continue
			}
			select {
			case to <- d:
			case <-s.conn.done:
			}
		}
	})
	return nil
}

// domainOf finds out whether an event matters.
func domainOf(event any) (rpc.Domain, bool) {
	switch e := event.(type) {
	case *rpc.DomainEventCallbackMetadataChangeMsg:
		ours := len(e.Nsuri) == 1 && e.Nsuri[0] == metadata.Namespace
		return e.Dom, ours && rpc.DomainMetadataType(e.Type) == rpc.DomainMetadataElement
	case *rpc.DomainEventCallbackLifecycleMsg:
		kind := rpc.DomainEventType(e.Msg.Event)
		return e.Msg.Dom, kind == rpc.DomainEventStarted || kind == rpc.DomainEventResumed
	}
	return rpc.Domain{}, false
}

// refresh asks about a domain and tells of it. While it is being asked about
// already, it is asked about once more afterwards.
func (s *session) refresh(ctx context.Context, d rpc.Domain) {
	u := xen.UUID(d.UUID)
	s.mu.Lock()
	_, under := s.asking[u]
	s.asking[u] = under
	s.mu.Unlock()
	if under {
		return
	}
	s.wg.Go(func() {
		for again := true; again; {
			s.look(ctx, d)
			s.mu.Lock()
			if again = s.asking[u]; again {
				s.asking[u] = false
			} else {
				delete(s.asking, u)
			}
			s.mu.Unlock()
		}
	})
}

// look asks about a domain, for as long as it takes, and tells of it.
func (s *session) look(ctx context.Context, d rpc.Domain) {
	select {
	case s.calls <- struct{}{}:
	case <-s.conn.done:
		return
	}
	slow := time.AfterFunc(s.opt.CallTimeout, func() {
		s.log.Warn("libvirt takes long to tell about a domain", "domain", policy.Quote(d.Name), "after", s.opt.CallTimeout)
	})
	found, err := s.read(d, 0)
	slow.Stop()
	<-s.calls
	select {
	case <-s.conn.done:
		return
	default:
	}
	if err != nil {
		// It may have ended meanwhile, which others see.
		if !errors.Is(err, ErrNoDomain) {
			s.log.Warn("libvirt does not tell about a domain", "domain", policy.Quote(d.Name), "err", err)
		}
		return
	}
	s.tell.Lock()
	defer s.tell.Unlock()
	if ctx.Err() == nil {
		s.opt.Changed(found)
	}
}

// read asks for a domain's XML and reads it.
func (s *session) read(d rpc.Domain, flags rpc.DomainXMLFlags) (Domain, error) {
	// The number in an event or a list may have changed since.
	d, err := s.lv.DomainLookupByUUID(d.UUID)
	if err != nil {
		return Domain{}, explain(err)
	}
	doc, err := s.lv.DomainGetXMLDesc(d, flags)
	if err != nil {
		return Domain{}, explain(err)
	}
	return s.parse(d, doc), nil
}

// parse reads the element out of a domain's XML.
func (s *session) parse(d rpc.Domain, doc string) Domain {
	out := Domain{UUID: xen.UUID(d.UUID), Name: d.Name, ID: d.ID}
	said, err := metadata.ParseDomain("domain XML", []byte(doc))
	switch {
	case err != nil:
		out.Err = err
	case said.Element != nil:
		out.Element = said.Element
		if out.Spec, out.Err = said.Element.Spec(s.opt.Policies); out.Err != nil {
			out.Spec = policy.Spec{}
		}
	}
	return out
}

// session returns the connection there is.
func (c *Client) session() (*session, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.s == nil {
		return nil, fmt.Errorf("%w: %w", ErrNotConnected, c.why)
	}
	return c.s, nil
}

// Which of a domain's two definitions is meant: the one it runs with, or the one
// its next start will use.
type Which uint8

// Definitions.
const (
	// Live is what a domain runs with; of one that does not run, Config.
	Live Which = iota
	// Config is what its next start will use.
	Config
)

// Domain returns the domain of this UUID.
func (c *Client) Domain(ctx context.Context, uuid xen.UUID, which Which) (Domain, error) {
	return c.about(ctx, which, func(lv *rpc.Libvirt) (rpc.Domain, error) { return lv.DomainLookupByUUID(rpc.UUID(uuid)) })
}

// Named returns the domain of this name.
func (c *Client) Named(ctx context.Context, name string, which Which) (Domain, error) {
	return c.about(ctx, which, func(lv *rpc.Libvirt) (rpc.Domain, error) { return lv.DomainLookupByName(name) })
}

func (c *Client) about(ctx context.Context, which Which, lookup func(*rpc.Libvirt) (rpc.Domain, error)) (Domain, error) {
	s, err := c.session()
	if err != nil {
		return Domain{}, err
	}
	var flags rpc.DomainXMLFlags
	if which == Config {
		flags = rpc.DomainXMLInactive
	}
	return ask(ctx, s, "about a domain", func() (Domain, error) {
		d, err := lookup(s.lv)
		if err != nil {
			return Domain{}, err
		}
		return s.read(d, flags)
	})
}

// SetMetadata writes the element of a domain, or removes it if e is nil, and
// leaves what others keep there alone. live changes what the domain runs with,
// config what its next start will use. Of a domain that does not run only the
// latter can be changed, and live is left out if config is set.
func (c *Client) SetMetadata(ctx context.Context, uuid xen.UUID, e *metadata.Element, live, config bool) error {
	if !live && !config {
		return errors.New("libvirt: neither what runs nor what is kept is to be changed")
	}
	s, err := c.session()
	if err != nil {
		return err
	}
	var text, key rpc.OptString
	if e != nil {
		text, key = rpc.OptString{e.Bare()}, rpc.OptString{metadata.Prefix}
	}
	_, err = ask(ctx, s, "to change a domain's metadata", func() (struct{}, error) {
		d, err := s.lv.DomainLookupByUUID(rpc.UUID(uuid))
		if err != nil {
			return struct{}{}, err
		}
		var flags rpc.DomainModificationImpact
		if live && (d.ID >= 0 || !config) {
			flags |= rpc.DomainAffectLive
		}
		if config {
			flags |= rpc.DomainAffectConfig
		}
		return struct{}{}, s.lv.DomainSetMetadata(d, int32(rpc.DomainMetadataElement), text, key, rpc.OptString{metadata.Namespace}, flags)
	})
	return err
}
