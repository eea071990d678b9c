package xlplugin

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/xen-hvi/hvi/engine/xen"
	"github.com/xen-hvi/hvi/engine/xen/abi"
)

// storeEvent is an event as a client of xenstore delivers it.
type storeEvent struct{ Path, Token string }

// fakeHost is a hypervisor and a xenstore that share a list of domains.
type fakeHost struct {
	mu      sync.Mutex
	domains []xen.DomainInfo
	err     error
	names   map[string]string
	watches []string
	closed  bool   // the connection is lost
	refuse  string // a path that cannot be watched
	trace   []string
	events  chan storeEvent
}

func newFakeHost(domains ...xen.DomainInfo) *fakeHost {
	return &fakeHost{domains: domains, names: map[string]string{}, events: make(chan storeEvent)}
}

func (h *fakeHost) Domains() ([]xen.DomainInfo, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if !slices.Contains(h.trace, "list") { // how often does not matter
		h.trace = append(h.trace, "list")
	}
	return slices.Clone(h.domains), h.err
}

// Watch does not return before the event that xenstored sends for every new
// watch was taken, like a connection that does nothing else meanwhile.
func (h *fakeHost) Watch(path, token string) error {
	if path == h.refuse {
		return errors.New("refused")
	}
	h.mu.Lock()
	h.trace = append(h.trace, "watch "+path)
	h.watches = append(h.watches, path+" "+token)
	h.mu.Unlock()
	h.fire(path)
	return nil
}

// Unwatch, too, first has an event on its hands.
func (h *fakeHost) Unwatch(path, token string) error {
	if !h.closed {
		h.fire(path)
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	i := slices.Index(h.watches, path+" "+token)
	if i < 0 {
		return errors.New("no such watch")
	}
	h.watches = slices.Delete(h.watches, i, i+1)
	return nil
}

func (h *fakeHost) Events() <-chan storeEvent { return h.events }

func (h *fakeHost) Read(path string) (string, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.trace = append(h.trace, "read "+path)
	if n, ok := h.names[path]; ok {
		return n, nil
	}
	return "", errors.New("ENOENT")
}

// set changes the list of domains, without an event.
func (h *fakeHost) set(domains ...xen.DomainInfo) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.domains = domains
}

// fire delivers an event, as xenstored does: after what it is about.
func (h *fakeHost) fire(path string) { h.events <- storeEvent{Path: path, Token: watchToken} }

func built(id int, u xen.UUID) xen.DomainInfo {
	return xen.DomainInfo{ID: xen.DomID(id), UUID: u, Type: xen.PVH, VCPUs: 1, OnlineVCPUs: 1, Paused: true}
}

func with(i xen.DomainInfo, change func(*xen.DomainInfo)) xen.DomainInfo {
	change(&i)
	return i
}

func shut(reason xen.ShutdownReason) func(*xen.DomainInfo) {
	return func(i *xen.DomainInfo) { i.Shutdown, i.ShutdownReason = true, reason }
}

func dying(i *xen.DomainInfo)    { i.Dying = true }
func building(i *xen.DomainInfo) { i.OnlineVCPUs = 0 }

var dom0 = built(0, xen.UUID{})

// watchTest runs a watcher on h and notes the calls of OnAppear.
type watchTest struct {
	*Watcher
	t        *testing.T
	h        *fakeHost
	cancel   context.CancelFunc
	appeared chan string
}

func startWatch(t *testing.T, h *fakeHost) *watchTest {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	wt := &watchTest{t: t, h: h, cancel: cancel, appeared: make(chan string, 100)}
	w, err := Watch(ctx, h, h, WatchOptions{
		OnAppear: func(info xen.DomainInfo, existing bool) {
			h.mu.Lock()
			h.trace = append(h.trace, fmt.Sprintf("appear %d", info.ID))
			h.mu.Unlock()
			wt.appeared <- fmt.Sprintf("%d %v", info.ID, existing)
		},
		RetryAfter: time.Millisecond,
	})
	if err != nil {
		t.Fatal(err)
	}
	wt.Watcher = w
	t.Cleanup(func() {
		cancel()
		for range w.Events() {
			t.Error("an event was left over")
		}
	})
	return wt
}

// expect waits for the next events and compares them.
func (wt *watchTest) expect(want ...string) {
	wt.t.Helper()
	for _, w := range want {
		select {
		case e, ok := <-wt.Events():
			if !ok {
				wt.t.Fatalf("ended with %v, want %q", wt.Err(), w)
			}
			if got := short(e); got != w {
				wt.t.Errorf("got %q, want %q", got, w)
			}
		case <-time.After(10 * time.Second):
			wt.t.Fatalf("nothing came, want %q", w)
		}
	}
}

func short(e Event) string {
	s := fmt.Sprintf("%d %v", e.Info.ID, e.Kind)
	if e.Name != "" {
		s += " " + e.Name
	}
	if e.Existing {
		s += " existing"
	}
	if e.Kind == ShutDown {
		s += " " + e.Info.ShutdownReason.String()
	}
	if e.Err != nil {
		s += " " + e.Err.Error()
	}
	return s
}

func TestWatchLife(t *testing.T) {
	h := newFakeHost(dom0, built(3, uuid1))
	h.names["/local/domain/3/name"] = "old"
	h.names["/local/domain/4/name"] = "new"
	w := startWatch(t, h)
	w.expect("3 appeared old existing")

	four := built(4, uuid2)
	h.set(dom0, built(3, uuid1), four)
	h.fire(introduceDomain)
	w.expect("4 appeared new")

	h.set(dom0, built(3, uuid1), with(four, shut(abi.ShutdownPoweroff)))
	h.fire(releaseDomain)
	w.expect("4 shut down new poweroff")

	h.set(dom0, built(3, uuid1), with(four, dying))
	h.fire(releaseDomain)
	w.expect("4 gone new")

	// A zombie that is gone for us stays listed, and in the end is not.
	h.set(dom0, with(built(3, uuid1), shut(abi.ShutdownCrash)), with(four, dying))
	h.fire(releaseDomain)
	w.expect("3 shut down old existing crash")
	h.set(dom0)
	h.fire(releaseDomain)
	w.expect("3 gone old existing")

	if got, want := drain(w.appeared), []string{"3 true", "4 false"}; !slices.Equal(got, want) {
		t.Errorf("OnAppear was called for %q, want %q", got, want)
	}
}

func drain(c chan string) []string {
	var got []string
	for {
		select {
		case s := <-c:
			got = append(got, s)
		default:
			return got
		}
	}
}

func TestWatchPausesFirst(t *testing.T) {
	h := newFakeHost(dom0)
	w := startWatch(t, h)
	h.mu.Lock()
	h.trace = nil
	h.mu.Unlock()
	h.set(dom0, built(2, uuid2), built(1, uuid1))
	h.fire(introduceDomain)
	w.expect("1 appeared", "2 appeared")

	h.mu.Lock()
	defer h.mu.Unlock()
	want := []string{"list", "appear 2", "appear 1", "read /local/domain/1/name", "read /local/domain/2/name"}
	if !slices.Equal(h.trace, want) {
		t.Errorf("order %q, want %q", h.trace, want)
	}
}

func TestWatchRegistersBeforeListing(t *testing.T) {
	h := newFakeHost(dom0)
	startWatch(t, h)
	h.mu.Lock()
	defer h.mu.Unlock()
	if want := []string{"watch " + introduceDomain, "watch " + releaseDomain, "watch " + vmPath, "list"}; !slices.Equal(h.trace, want) {
		t.Errorf("order %q, want %q", h.trace, want)
	}
}

func TestWatchWaitsUntilBuilt(t *testing.T) {
	h := newFakeHost(dom0)
	w := startWatch(t, h)
	// 2 is listed because 1 was introduced; it is still being built.
	h.set(dom0, built(1, uuid1), with(built(2, uuid2), building))
	h.fire(introduceDomain)
	w.expect("1 appeared")
	h.set(dom0, built(1, uuid1), built(2, uuid2))
	h.fire(introduceDomain)
	w.expect("2 appeared")
	if got, want := drain(w.appeared), []string{"1 false", "2 false"}; !slices.Equal(got, want) {
		t.Errorf("OnAppear was called for %q, want %q", got, want)
	}

	// One that fails while it is built has only an end.
	h.set(dom0, built(1, uuid1), built(2, uuid2), with(built(3, xen.UUID{3}), building), built(4, xen.UUID{4}))
	h.fire(introduceDomain)
	w.expect("4 appeared")
	h.set(dom0, built(1, uuid1), built(2, uuid2), built(4, xen.UUID{4}))
	h.fire(releaseDomain)
	w.expect("3 gone")
}

func TestWatchNumberUsedAgain(t *testing.T) {
	h := newFakeHost(dom0, built(7, uuid1))
	w := startWatch(t, h)
	w.expect("7 appeared existing")
	h.set(dom0, built(7, uuid2))
	h.fire(releaseDomain)
	w.expect("7 gone existing", "7 appeared")

	// The same virtual machine again, under the same number, after it was seen
	// dying.
	h.set(dom0, with(built(7, uuid2), dying))
	h.fire(releaseDomain)
	w.expect("7 gone")
	h.set(dom0, built(7, uuid2))
	h.fire(introduceDomain)
	w.expect("7 appeared")
	if got, want := drain(w.appeared), []string{"7 true", "7 false", "7 false"}; !slices.Equal(got, want) {
		t.Errorf("OnAppear was called for %q, want %q", got, want)
	}
}

func TestWatchSuspendAndResume(t *testing.T) {
	h := newFakeHost(dom0, built(1, uuid1))
	w := startWatch(t, h)
	w.expect("1 appeared existing")
	h.set(dom0, with(built(1, uuid1), shut(abi.ShutdownSuspend)))
	h.fire(releaseDomain)
	w.expect("1 shut down existing suspend")
	h.set(dom0, built(1, uuid1))
	w.Rescan()
	w.expect("1 resumed existing")
	h.set(dom0, with(built(1, uuid1), shut(abi.ShutdownSuspend)))
	h.fire(releaseDomain)
	w.expect("1 shut down existing suspend")
}

func TestWatchSeesWhatIsDeadAlready(t *testing.T) {
	// A zombie at the start is nobody's business; a guest that has shut down
	// is told as both.
	h := newFakeHost(dom0, with(built(1, uuid1), dying), with(built(2, uuid2), shut(abi.ShutdownCrash)))
	w := startWatch(t, h)
	w.expect("2 appeared existing", "2 shut down existing crash")
	h.set(dom0)
	h.fire(releaseDomain)
	w.expect("2 gone existing")
}

func TestWatchSlowReaderDelaysNoPause(t *testing.T) {
	h := newFakeHost(dom0)
	w := startWatch(t, h)
	var domains []xen.DomainInfo
	for i := 1; i <= 50; i++ {
		domains = append(domains, built(i, xen.UUID{byte(i)}))
		h.set(domains...)
		h.fire(introduceDomain)
		select {
		case <-w.appeared:
		case <-time.After(10 * time.Second):
			t.Fatalf("domain %d was not announced while events waited", i)
		}
	}
	for i := 1; i <= 50; i++ {
		w.expect(fmt.Sprintf("%d appeared", i))
	}
}

func TestWatchTrouble(t *testing.T) {
	h := newFakeHost(dom0)
	w := startWatch(t, h)
	h.mu.Lock()
	h.err = errors.New("EFAULT")
	h.domains = []xen.DomainInfo{built(1, uuid1)}
	h.mu.Unlock()
	h.fire(introduceDomain)
	w.expect("0 trouble cannot list the domains: EFAULT")
	h.mu.Lock()
	h.err = nil
	h.mu.Unlock()
	w.expect("1 appeared") // without another event from xenstore, and no second trouble
}

func TestWatchEnds(t *testing.T) {
	t.Run("context", func(t *testing.T) {
		h := newFakeHost(dom0)
		w := startWatch(t, h)
		w.cancel()
		for e := range w.Events() {
			t.Errorf("got %v", e)
		}
		if !errors.Is(w.Err(), context.Canceled) {
			t.Errorf("Err is %v", w.Err())
		}
		if len(h.watches) != 0 {
			t.Errorf("watches left: %q", h.watches)
		}
	})
	t.Run("store", func(t *testing.T) {
		h := newFakeHost(dom0)
		w := startWatch(t, h)
		h.closed = true
		close(h.events)
		for e := range w.Events() {
			t.Errorf("got %v", e)
		}
		if !errors.Is(w.Err(), ErrStoreLost) {
			t.Errorf("Err is %v", w.Err())
		}
	})
}

func TestWatchCannotStart(t *testing.T) {
	for name, tt := range map[string]struct {
		set  func(*fakeHost)
		want string
	}{
		"introduce": {func(h *fakeHost) { h.refuse = introduceDomain }, "cannot watch for new domains: refused"},
		"release":   {func(h *fakeHost) { h.refuse = releaseDomain }, "cannot watch for domains that end: refused"},
		"vm":        {func(h *fakeHost) { h.refuse = vmPath }, "cannot watch for domains that are being made: refused"},
		"list":      {func(h *fakeHost) { h.err = errors.New("EPERM") }, "cannot list the domains: EPERM"},
	} {
		h := newFakeHost()
		tt.set(h)
		w, err := Watch(context.Background(), h, h, WatchOptions{})
		if w != nil || err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: %v", name, err)
		}
		if len(h.watches) != 0 {
			t.Errorf("%s: watches left: %q", name, h.watches)
		}
	}
}

func TestWatchNames(t *testing.T) {
	h := newFakeHost(dom0, built(1, uuid1), built(2, uuid2))
	h.names["/local/domain/1/name"] = "a\x1b[2J\n../x"
	h.names["/local/domain/2/name"] = strings.Repeat("x", MaxName+1)
	w := startWatch(t, h)
	e := <-w.Events()
	if e.Name != "a\x1b[2J\n../x" {
		t.Errorf("name %q", e.Name)
	}
	if s := e.String(); strings.ContainsFunc(s, func(r rune) bool { return r < ' ' }) || !strings.Contains(s, "domain 1") {
		t.Errorf("%q", s)
	}
	w.expect("2 appeared existing")
}

func TestEventString(t *testing.T) {
	for _, tt := range []struct {
		e    Event
		want string
	}{
		{Event{Kind: Gone, Info: built(4, uuid1), Name: "g"}, `domain 4 (name "g", uuid ` + uuid1.String() + ") gone"},
		{Event{Kind: Trouble, Err: errors.New("x")}, "trouble: x"},
		{Event{Kind: 99, Info: built(4, uuid1)}, `domain 4 (name "", uuid ` + uuid1.String() + ") event(99)"},
	} {
		if got := tt.e.String(); got != tt.want {
			t.Errorf("got %q, want %q", got, tt.want)
		}
	}
}

// TestWatchMigratedByXAPI follows both ends of a migration as xenopsd does it:
// the domain to come has a temporary UUID until it is complete, and the one
// that is sent gets one when it has stopped.
func TestWatchMigratedByXAPI(t *testing.T) {
	come, sent := uuid1, uuid1
	copy(come[10:], toCome)
	copy(sent[10:], sentOff)
	source := built(3, uuid1)
	h := newFakeHost(dom0, source)
	h.names["/local/domain/3/name"] = "vm"
	h.names["/local/domain/4/name"] = "vm"
	h.names[xenopsNode] = ""
	w := startWatch(t, h)
	w.expect("3 appeared vm existing")

	// It is made, but what its UUID means is not written yet; then it is built.
	h.set(dom0, source, with(built(4, come), building))
	h.fire(introduceDomain)
	h.names["/vm/"+come.String()+"/final-uuid"] = uuid1.String()
	h.set(dom0, source, built(4, come))
	h.fire(introduceDomain)
	h.set(dom0, with(source, shut(abi.ShutdownSuspend)), built(4, come))
	h.fire(releaseDomain)
	w.expect("3 shut down vm existing suspend")

	// The source is renamed, the copy is; then the source is destroyed.
	h.set(dom0, with(built(3, sent), shut(abi.ShutdownSuspend)), built(4, come))
	h.fire(releaseDomain)
	w.expect("3 gone vm existing")
	h.set(dom0, with(built(3, sent), shut(abi.ShutdownSuspend)), built(4, uuid1))
	h.fire("/vm/" + come.String() + "/final-uuid")
	w.expect("4 appeared vm")
	h.set(dom0, with(with(built(3, sent), shut(abi.ShutdownSuspend)), dying), built(4, uuid1))
	h.fire(releaseDomain)
	h.set(dom0, built(4, uuid1))
	h.fire(releaseDomain)
	h.set(dom0)
	h.fire(releaseDomain)
	w.expect("4 gone vm")

	close(w.appeared)
	var appeared []string
	for a := range w.appeared {
		appeared = append(appeared, a)
	}
	if want := []string{"3 true", "4 false"}; !slices.Equal(appeared, want) {
		t.Errorf("announced %q, want %q", appeared, want)
	}
	w.cancel()
	for range w.Events() {
	}
	if len(h.watches) != 0 {
		t.Errorf("watches left: %q", h.watches)
	}
}

// TestWatchLooksTemporary is a domain whose own UUID has the form of a temporary
// one: where there is no xenopsd it is like any other, and where there is, it
// is told of once it is built and nothing says that its UUID will change.
func TestWatchLooksTemporary(t *testing.T) {
	own := uuid1
	copy(own[10:], toCome)
	for _, xenopsd := range []bool{false, true} {
		h := newFakeHost(dom0)
		if xenopsd {
			h.names[xenopsNode] = ""
		}
		w := startWatch(t, h)
		h.set(dom0, with(built(4, own), building))
		h.fire(introduceDomain)
		if !xenopsd {
			if a := <-w.appeared; a != "4 false" {
				t.Errorf("announced %q", a)
			}
		}
		h.set(dom0, built(4, own))
		h.fire(introduceDomain)
		w.expect("4 appeared")
		w.cancel()
	}
}
