package libvirt

import (
	"context"
	"encoding/binary"
	"errors"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	rpc "github.com/digitalocean/go-libvirt"

	"github.com/xen-hvi/hvi/engine/policy"
	"github.com/xen-hvi/hvi/engine/xen"
	"github.com/xen-hvi/hvi/libvirt/metadata"
)

// watched is a client whose calls are kept.
type watched struct {
	*Client
	t       *testing.T
	changed chan Domain
	up      chan error // nil for a connect
}

func watch(t *testing.T, opt Options) *watched {
	t.Helper()
	w := &watched{t: t, changed: make(chan Domain, 1000), up: make(chan error, 1000)}
	opt.Changed = func(d Domain) { w.changed <- d }
	opt.Connected = func(up bool, why error) {
		if up != (why == nil) {
			t.Errorf("connected %v, %v", up, why)
		}
		w.up <- why
	}
	opt.RetryMin, opt.RetryMax = 5*time.Millisecond, 20*time.Millisecond
	if opt.CallTimeout == 0 {
		opt.CallTimeout = 10 * time.Second
	}
	opt.Log = slog.New(slog.DiscardHandler)
	w.Client = Start(context.Background(), opt)
	t.Cleanup(w.Close)
	return w
}

const patience = 20 * time.Second

func (w *watched) next() Domain {
	w.t.Helper()
	select {
	case d := <-w.changed:
		return d
	case <-time.After(patience):
		w.t.Fatal("nothing was told")
		return Domain{}
	}
}

func (w *watched) connected() error {
	w.t.Helper()
	select {
	case err := <-w.up:
		return err
	case <-time.After(patience):
		w.t.Fatal("neither a connect nor a failure was told")
		return nil
	}
}

func (w *watched) mustConnect() {
	w.t.Helper()
	for {
		if w.connected() == nil {
			return
		}
	}
}

var webUUID = xen.UUID{0x6a, 0x14, 15: 1}

func web() *guest {
	return &guest{name: "web1", uuid: webUUID, id: 7, live: ours(`mode="enforce"`), config: ours(`mode="observe"`)}
}

func socketIn(t *testing.T) string { return filepath.Join(t.TempDir(), "libvirt-sock") }

func TestTellsOfWhatRuns(t *testing.T) {
	g := web()
	d := startDaemon(t, socketIn(t), g,
		&guest{name: "plain", uuid: xen.UUID{1}, id: 8},
		&guest{name: "off", uuid: xen.UUID{2}, id: -1, config: ours(`mode="enforce"`)},
		&guest{name: "a\x1b[31m b;rm", uuid: xen.UUID{3}, id: 9, live: ours(`mode="enforced"`)},
		&guest{name: "own", uuid: xen.UUID{4}, id: 10, live: ours(`mode="enforce" policy="mine"`)})
	w := watch(t, Options{Sockets: []string{filepath.Join(t.TempDir(), "virtxend-sock"), d.socket}})
	w.mustConnect()
	seen := map[string]Domain{}
	for range 4 {
		got := w.next()
		seen[got.Name] = got
	}
	if got := seen["web1"]; got.UUID != g.uuid || got.ID != 7 || got.Err != nil || got.Spec.Mode != policy.ModeEnforce || !got.Declared() {
		t.Errorf("web1: %+v", got)
	}
	if got := seen["web1"].Spec.Origins.Mode.String(); got != "domain XML:5:55" {
		t.Errorf("the mode was written at %s", got)
	}
	if got := seen["plain"]; got.Declared() || got.Err != nil || got.Spec.Declared() {
		t.Errorf("plain: %+v", got)
	}
	if got := seen["a\x1b[31m b;rm"]; got.Err == nil || !got.Declared() || got.Spec.Declared() {
		t.Errorf("a broken one: %+v", got)
	}
	if got := seen["own"]; got.Err == nil || got.Spec.Declared() || got.Element == nil {
		t.Errorf("one with a policy that is not there: %+v", got)
	}
	if got := d.opened; len(got) != 1 || got[0] != "xen:///system" {
		t.Errorf("opened %q", got)
	}
}

type policies map[string]policy.Named

func (p policies) Policy(name string) (*policy.Named, error) {
	if n, ok := p[name]; ok {
		return &n, nil
	}
	return nil, nil
}
func (p policies) Names() []string { return nil }

func TestAnAdminsPolicies(t *testing.T) {
	g := web()
	g.live = ours(`mode="enforce" policy="mine"`)
	d := startDaemon(t, socketIn(t), g)
	w := watch(t, Options{Sockets: []string{d.socket}, Policies: policies{"mine": {Name: "mine", Origin: policy.Origin{Source: "mine.toml"}}}})
	if got := w.next(); got.Err != nil || got.Spec.Preset != "mine" {
		t.Errorf("%+v", got)
	}
}

func TestEvents(t *testing.T) {
	g, other := web(), &guest{name: "db", uuid: xen.UUID{9}, id: -1, config: ours(`mode="off"`)}
	d := startDaemon(t, socketIn(t), g, other)
	w := watch(t, Options{Sockets: []string{d.socket}})
	w.mustConnect()
	w.next()

	d.setLive(g, ours(`mode="observe"`), metadata.Namespace)
	if got := w.next(); got.Spec.Mode != policy.ModeObserve {
		t.Errorf("after a change: %+v", got)
	}
	d.setLive(g, "", metadata.Namespace)
	if got := w.next(); got.Declared() {
		t.Errorf("after it was removed: %+v", got)
	}
	// Others' metadata, and what does not matter of a domain's life.
	d.setLive(g, ours(`mode="enforce"`), "urn:other")
	d.with(func() {
		d.lifecycle(g, rpc.DomainEventSuspended)
		d.lifecycle(g, rpc.DomainEventDefined)
		// What matters, of another domain.
		other.id, other.live = 12, ours(`mode="enforce"`)
		d.lifecycle(other, rpc.DomainEventStarted)
	})
	if got := w.next(); got.Name != "db" || got.ID != 12 || got.Spec.Mode != policy.ModeEnforce {
		t.Errorf("after a start: %+v", got)
	}
	d.with(func() {
		other.id = -1
		d.changed(other, metadata.Namespace)
	})
	if got := w.next(); got.Name != "db" || got.ID != -1 || got.Spec.Mode != policy.ModeOff {
		t.Errorf("one that does not run: %+v", got)
	}
}

func TestManyChanges(t *testing.T) {
	g := web()
	d := startDaemon(t, socketIn(t), g)
	w := watch(t, Options{Sockets: []string{d.socket}})
	w.mustConnect()
	w.next()
	for range 200 {
		d.setLive(g, ours(`mode="observe"`), metadata.Namespace)
	}
	d.setLive(g, ours(`mode="off"`), metadata.Namespace)
	// However many are told, the last one counts.
	for w.next().Spec.Mode != policy.ModeOff || len(w.changed) > 0 {
	}
}

func TestComesBack(t *testing.T) {
	socket, g := socketIn(t), web()
	w := watch(t, Options{Sockets: []string{socket}})
	if err := w.connected(); err == nil || !strings.Contains(err.Error(), "there is no such socket") {
		t.Errorf("without a daemon: %v", err)
	}
	if _, err := w.Domain(context.Background(), webUUID, Live); !errors.Is(err, ErrNotConnected) {
		t.Errorf("without a daemon: %v", err)
	}
	for round, mode := range []policy.Mode{policy.ModeEnforce, policy.ModeObserve, policy.ModeOff} {
		// What changes while libvirtd is away is seen when it is back.
		g.live = ours(`mode="` + mode.String() + `"`)
		d := startDaemon(t, socket, g)
		if err := w.connected(); err != nil {
			t.Fatalf("round %d: %v", round, err)
		}
		if got := w.next(); got.Spec.Mode != mode {
			t.Errorf("round %d: %+v", round, got)
		}
		d.stop()
		if err := w.connected(); !errors.Is(err, ErrNotConnected) {
			t.Errorf("round %d, stopped: %v", round, err)
		}
	}
}

func TestNothingIsLeft(t *testing.T) {
	before := runtime.NumGoroutine()
	socket := socketIn(t)
	d := startDaemon(t, socket, web())
	w := watch(t, Options{Sockets: []string{socket}, CallTimeout: 200 * time.Millisecond, PingEvery: 20 * time.Millisecond})
	for range 5 {
		w.mustConnect()
		w.next()
		// Questions that are never answered.
		d.with(func() { d.hold[procXML] = true })
		if _, err := w.Domain(context.Background(), webUUID, Live); !errors.Is(err, ErrTimeout) {
			t.Errorf("a question that hangs: %v", err)
		}
		d.stop()
		d = startDaemon(t, socket, web())
	}
	w.mustConnect()
	d.with(func() { d.hold[procXML] = true })
	if _, err := w.Domain(context.Background(), webUUID, Live); !errors.Is(err, ErrTimeout) {
		t.Errorf("a question that hangs: %v", err)
	}
	w.Close()
	d.stop()
	deadline := time.Now().Add(patience)
	for runtime.NumGoroutine() > before {
		if time.Now().After(deadline) {
			buf := make([]byte, 1<<20)
			t.Fatalf("%d goroutines, %d before:\n%s", runtime.NumGoroutine(), before, buf[:runtime.Stack(buf, true)])
		}
		runtime.Gosched()
	}
}

func TestDaemonsThatHang(t *testing.T) {
	for name, proc := range map[string]uint32{"at authentication": procAuthList, "at opening": procOpen, "at listening": procRegister, "at listing": procList} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			d := startDaemon(t, socketIn(t), web())
			d.with(func() { d.hold[proc] = true })
			w := watch(t, Options{Sockets: []string{d.socket}, CallTimeout: 100 * time.Millisecond})
			if err := w.connected(); !errors.Is(err, ErrTimeout) {
				t.Errorf("error %v", err)
			}
			if _, err := w.Domain(context.Background(), webUUID, Live); !errors.Is(err, ErrNotConnected) {
				t.Errorf("error %v", err)
			}
			d.with(func() { delete(d.hold, proc) })
			w.mustConnect()
			w.next()
		})
	}
	t.Run("later", func(t *testing.T) {
		t.Parallel()
		d := startDaemon(t, socketIn(t), web())
		w := watch(t, Options{Sockets: []string{d.socket}, CallTimeout: 100 * time.Millisecond, PingEvery: 10 * time.Millisecond})
		w.mustConnect()
		w.next()
		d.with(func() { d.hold[procVersion] = true })
		if err := w.connected(); err == nil || !strings.Contains(err.Error(), "libvirt does not answer within") {
			t.Errorf("error %v", err)
		}
		d.with(func() { delete(d.hold, procVersion) })
		w.mustConnect()
	})
}

// TestALateAnswer is about a domain that somebody else works on for long: the
// connection is kept, and what it says in the end is told.
func TestALateAnswer(t *testing.T) {
	g := web()
	d := startDaemon(t, socketIn(t), g)
	w := watch(t, Options{Sockets: []string{d.socket}, CallTimeout: 200 * time.Millisecond, PingEvery: 10 * time.Millisecond})
	w.mustConnect()
	w.next()
	// The fake answers nothing else while its lock is held, as a real daemon does
	// not about this domain; here the pings are the ones that matter.
	d.with(func() { d.hold[procSet] = true })
	if err := w.SetMetadata(context.Background(), webUUID, nil, true, false); !errors.Is(err, ErrTimeout) {
		t.Errorf("error %v", err)
	}
	d.setLive(g, ours(`mode="observe"`), metadata.Namespace)
	if got := w.next(); got.Spec.Mode != policy.ModeObserve {
		t.Errorf("%+v", got)
	}
	// All questions hang: the next is not even asked, and the pings still are.
	for range maxCalls {
		w.SetMetadata(context.Background(), webUUID, nil, true, false)
	}
	if _, err := w.Domain(context.Background(), webUUID, Live); !errors.Is(err, ErrTimeout) || !strings.Contains(err.Error(), "too many answers are due") {
		t.Errorf("error %v", err)
	}
	var pings int
	d.with(func() { pings = d.pings })
	for deadline := time.Now().Add(patience); ; runtime.Gosched() {
		var now int
		d.with(func() { now = d.pings })
		if now > pings+2 {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("no pings any more")
		}
	}
	if len(w.up) > 0 {
		t.Errorf("the connection was given up: %v", <-w.up)
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if _, err := w.Domain(ctx, webUUID, Live); !errors.Is(err, context.Canceled) {
		t.Errorf("error %v", err)
	}
}

func TestWhatIsNoLibvirt(t *testing.T) {
	for name, raw := range map[string][]byte{
		"text":      []byte("220 mail.example ESMTP\r\n"),
		"too short": binary.BigEndian.AppendUint32(nil, 27),
		"too long":  binary.BigEndian.AppendUint32(nil, 1<<30),
		"zero":      make([]byte, 64),
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			d := startDaemon(t, socketIn(t))
			d.with(func() { d.raw = raw })
			w := watch(t, Options{Sockets: []string{d.socket}})
			if err := w.connected(); err == nil || !strings.Contains(err.Error(), "which no libvirt sends") {
				t.Errorf("error %v", err)
			}
		})
	}
	t.Run("it hangs up", func(t *testing.T) {
		l, err := net.Listen("unix", socketIn(t))
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
				c.Close()
			}
		}()
		w := watch(t, Options{Sockets: []string{l.Addr().String()}})
		if err := w.connected(); !errors.Is(err, ErrNotConnected) {
			t.Errorf("error %v", err)
		}
	})
	t.Run("no driver for Xen", func(t *testing.T) {
		d := startDaemon(t, socketIn(t))
		d.with(func() {
			d.fail[procOpen] = rpc.Error{Code: uint32(rpc.ErrNoConnect), Message: "no connection driver available for xen:///system"}
		})
		w := watch(t, Options{Sockets: []string{d.socket}})
		if err := w.connected(); !errors.As(err, new(*declined)) || !strings.Contains(err.Error(), "no connection driver available") {
			t.Errorf("error %v", err)
		}
	})
}

func TestTheFirstSocketCounts(t *testing.T) {
	dir := t.TempDir()
	modular, monolithic := filepath.Join(dir, "virtxend-sock"), filepath.Join(dir, "libvirt-sock")
	g, h := web(), web()
	h.live = ours(`mode="off"`)
	startDaemon(t, monolithic, h)
	m := startDaemon(t, modular, g)
	w := watch(t, Options{Sockets: []string{modular, monolithic}})
	if got := w.next(); got.Spec.Mode != policy.ModeEnforce {
		t.Errorf("%+v", got)
	}
	m.stop()
	if got := w.next(); got.Spec.Mode != policy.ModeOff {
		t.Errorf("%+v", got)
	}
}

func TestAsking(t *testing.T) {
	ctx := context.Background()
	d := startDaemon(t, socketIn(t), web())
	w := watch(t, Options{Sockets: []string{d.socket}})
	w.mustConnect()
	for name, ask := range map[string]func(Which) (Domain, error){
		"by UUID": func(which Which) (Domain, error) { return w.Domain(ctx, webUUID, which) },
		"by name": func(which Which) (Domain, error) { return w.Named(ctx, "web1", which) },
	} {
		live, errLive := ask(Live)
		config, errConfig := ask(Config)
		if errLive != nil || errConfig != nil || live.Spec.Mode != policy.ModeEnforce || config.Spec.Mode != policy.ModeObserve || live.ID != 7 {
			t.Errorf("%s: %+v, %v; %+v, %v", name, live, errLive, config, errConfig)
		}
	}
	if _, err := w.Named(ctx, "../../x", Live); !errors.Is(err, ErrNoDomain) {
		t.Errorf("error %v", err)
	}
	if _, err := w.Domain(ctx, xen.UUID{5}, Live); !errors.Is(err, ErrNoDomain) {
		t.Errorf("error %v", err)
	}
	if err := w.SetMetadata(ctx, xen.UUID{5}, nil, true, true); !errors.Is(err, ErrNoDomain) {
		t.Errorf("error %v", err)
	}
}

func element(t *testing.T, text string) *metadata.Element {
	t.Helper()
	e, err := metadata.ParseElement("test", []byte(text))
	if err != nil {
		t.Fatal(err)
	}
	return e
}

func TestSetMetadata(t *testing.T) {
	ctx := context.Background()
	g, idle := web(), &guest{name: "db", uuid: xen.UUID{9}, id: -1}
	d := startDaemon(t, socketIn(t), g, idle)
	w := watch(t, Options{Sockets: []string{d.socket}})
	w.mustConnect()
	w.next()

	e := element(t, ours(`mode="enforce" require_attach="yes"`))
	e.Guards = []metadata.Guard{{Name: metadata.Word{Text: "kernel-text", At: e.At}, Action: metadata.Word{Text: "alert", At: e.At}}}
	if err := w.SetMetadata(ctx, webUUID, e, true, false); err != nil {
		t.Fatal(err)
	}
	if want := `<introspection mode="enforce" require_attach="yes"><guard name="kernel-text" action="alert"/></introspection>|hvi|urn:xen-hvi:domain:1.0`; d.sets[0] != want {
		t.Errorf("libvirt was given\n%s, want\n%s", d.sets[0], want)
	}
	if got := w.next(); !got.Spec.RequireAttach || len(got.Spec.Guards) != 1 {
		t.Errorf("told of %+v", got)
	}
	if got, err := w.Domain(ctx, webUUID, Config); err != nil || got.Spec.Mode != policy.ModeObserve {
		t.Errorf("what is kept is %+v, %v", got, err)
	}
	if err := w.SetMetadata(ctx, webUUID, nil, true, true); err != nil {
		t.Fatal(err)
	}
	if want := "||urn:xen-hvi:domain:1.0"; d.sets[1] != want {
		t.Errorf("libvirt was given %s, want %s", d.sets[1], want)
	}
	for _, which := range []Which{Live, Config} {
		if got, err := w.Domain(ctx, webUUID, which); err != nil || got.Declared() {
			t.Errorf("after removal: %+v, %v", got, err)
		}
	}

	if err := w.SetMetadata(ctx, idle.uuid, e, true, true); err != nil {
		t.Errorf("one that does not run: %v", err)
	}
	if got, err := w.Named(ctx, "db", Live); err != nil || !got.Spec.RequireAttach {
		t.Errorf("one that does not run: %+v, %v", got, err)
	}
	if err := w.SetMetadata(ctx, idle.uuid, e, true, false); err == nil || !strings.Contains(err.Error(), "libvirt says: domain is not running") {
		t.Errorf("live, and it does not run: %v", err)
	}
	if err := w.SetMetadata(ctx, webUUID, e, false, false); err == nil {
		t.Error("nothing at all is set")
	}
}

func TestADomainThatIsGone(t *testing.T) {
	g := web()
	d := startDaemon(t, socketIn(t), g)
	w := watch(t, Options{Sockets: []string{d.socket}})
	w.mustConnect()
	w.next()
	d.with(func() {
		d.changed(&guest{name: "ghost", uuid: xen.UUID{0xff}, id: 3}, metadata.Namespace)
		d.changed(g, metadata.Namespace)
	})
	if got := w.next(); got.Name != "web1" {
		t.Errorf("told of %+v", got)
	}
}

func TestLengths(t *testing.T) {
	msg := func(n int) []byte { return append(binary.BigEndian.AppendUint32(nil, uint32(n)), make([]byte, n-4)...) }
	stream := append(append(msg(28), msg(100)...), msg(1000)...)
	for step := 1; step < len(stream); step += 13 {
		c := &conn{}
		for b := stream; len(b) > 0; b = b[min(step, len(b)):] {
			if err := c.check(b[:min(step, len(b))]); err != nil {
				t.Fatalf("in steps of %d: %v", step, err)
			}
		}
		if c.left != 0 || len(c.head) != 0 {
			t.Errorf("in steps of %d: %d bytes are left", step, c.left)
		}
		if err := c.check([]byte{0, 0, 0, 1}); err == nil {
			t.Error("a message of one byte is taken")
		}
	}
}

// TestBackoff waits longer from try to try, and hardly for a daemon that has just
// come or been lost.
func TestBackoff(t *testing.T) {
	const second = time.Second
	no := &declined{errors.New("no driver")}
	b := backoff{min: second, max: 5 * second}
	for i, c := range []struct {
		connected bool
		err       error
		want      time.Duration
	}{
		{false, errNotRunning, 1 * second}, {false, errNotRunning, 2 * second}, {false, errNotRunning, 4 * second}, {false, errNotRunning, 5 * second},
		{false, no, 1 * second}, {false, no, 2 * second}, {false, no, 4 * second}, {false, no, 8 * second},
		{false, no, 16 * second}, {false, no, 32 * second}, {false, no, 60 * second}, {false, no, 60 * second},
		{true, ErrNotConnected, 1 * second}, {false, ErrTimeout, 2 * second}, {false, errNotRunning, 4 * second}, {false, errNotRunning, 5 * second},
		{true, ErrNotConnected, 1 * second},
	} {
		if got := b.next(c.connected, c.err); got != c.want {
			t.Errorf("%d, after %v: %v, want %v", i, c.err, got, c.want)
		}
	}
}

// TestConnectWithoutSocket looks for no daemon where there is no socket, and does where
// there is one.
func TestConnectWithoutSocket(t *testing.T) {
	socket, asked := filepath.Join(t.TempDir(), "libvirt-sock"), 0
	c := &Client{opt: Options{Sockets: []string{socket}, Ready: func() bool { asked++; return false }}}
	for want := range 2 {
		if _, err := c.connect(t.Context()); !errors.Is(err, errNotRunning) || asked != want {
			t.Errorf("with %d sockets daemons were looked for %d times: %v", want, asked, err)
		}
		if err := os.WriteFile(socket, nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
}
