package xenstore_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/xen-hvi/hvi/engine/xen/xenstore"
	"github.com/xen-hvi/hvi/engine/xen/xenstore/xenstoretest"
)

func start(t *testing.T) (*xenstoretest.Server, *xenstore.Client) {
	t.Helper()
	s, err := xenstoretest.New(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	c, err := xenstore.Dial(s.Path())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s, c
}

func check(t *testing.T, what string, err error) {
	t.Helper()
	if err != nil {
		t.Errorf("%s: %v", what, err)
	}
}

func TestNodes(t *testing.T) {
	s, c := start(t)
	check(t, "write", c.Write("/tool/hvi/7", "bytes \x00\xff\n"))
	if v, err := c.Read("/tool/hvi/7"); err != nil || v != "bytes \x00\xff\n" {
		t.Errorf("read %q, %v", v, err)
	}
	if v, err := c.Read("/tool"); err != nil || v != "" {
		t.Errorf("the node above: %q, %v", v, err)
	}
	if v, ok := s.Get("/tool/hvi/7"); !ok || v != "bytes \x00\xff\n" {
		t.Errorf("the server has %q, %v", v, ok)
	}
	check(t, "write nothing", c.Write("/tool/hvi/8", ""))
	check(t, "mkdir", c.Mkdir("/tool/hvi/9"))
	check(t, "mkdir again", c.Mkdir("/tool/hvi/7"))
	if v, _ := s.Get("/tool/hvi/7"); v == "" {
		t.Error("mkdir emptied a node")
	}
	names, err := c.List("/tool/hvi")
	if err != nil || !slices.Equal(names, []string{"7", "8", "9"}) {
		t.Errorf("list %q, %v", names, err)
	}
	if names, err := c.List("/tool/hvi/7"); err != nil || len(names) != 0 {
		t.Errorf("list of a leaf: %q, %v", names, err)
	}
	for p, want := range map[string]bool{"/tool/hvi/7": true, "/tool/x": false, "/": true} {
		if ok, err := c.Exists(p); err != nil || ok != want {
			t.Errorf("Exists(%q) = %v, %v", p, ok, err)
		}
	}
	check(t, "remove", c.Remove("/tool/hvi/7"))
	check(t, "remove again", c.Remove("/tool/hvi/7"))
	for what, err := range map[string]error{
		"read":        second(c.Read("/tool/hvi/7")),
		"list":        second(c.List("/no")),
		"remove":      c.Remove("/no/no"),
		"permissions": second(c.Permissions("/no")),
	} {
		var e *xenstore.Error
		if !errors.Is(err, fs.ErrNotExist) || !errors.As(err, &e) || e.Code != "ENOENT" {
			t.Errorf("%s: %v", what, err)
		}
	}
	if err := c.Remove("/"); !errors.Is(err, unix.EINVAL) {
		t.Errorf("remove /: %v", err)
	}
	if p, err := c.DomainPath(12); err != nil || p != "/local/domain/12" {
		t.Errorf("domain path %q, %v", p, err)
	}

	perms := []xenstore.Permission{{Domain: 0}, {Domain: 5, Read: true}}
	check(t, "set permissions", c.SetPermissions("/tool/hvi/8", perms))
	if got, err := c.Permissions("/tool/hvi/8"); err != nil || !slices.Equal(got, perms) {
		t.Errorf("permissions %v, %v", got, err)
	}
	if err := c.SetPermissions("/tool/hvi/8", nil); err == nil {
		t.Error("a node without an owner")
	}
}

func second[T any](_ T, err error) error { return err }

func TestBadRequests(t *testing.T) {
	_, c := start(t)
	for what, err := range map[string]error{
		"relative path":  second(c.Read("tool")),
		"bad character":  c.Write("/a b", ""),
		"ends in slash":  c.Mkdir("/a/"),
		"empty part":     c.Remove("/a//b"),
		"watch of space": c.Watch("/a b", "t"),
		"token with NUL": c.Watch("/a", "t\x00"),
		"unwatch":        c.Unwatch("a", "t"),
		"too large":      c.Write("/a", strings.Repeat("x", xenstore.PayloadMax-2)),
	} {
		if err == nil || errors.Is(err, xenstore.ErrDead) {
			t.Errorf("%s: %v", what, err)
		}
	}
	// The connection has survived all of it.
	big := strings.Repeat("x", xenstore.PayloadMax-3)
	check(t, "the largest value", c.Write("/a", big))
	if v, err := c.Read("/a"); err != nil || v != big {
		t.Errorf("read %d bytes, %v", len(v), err)
	}
}

func TestBigDirectory(t *testing.T) {
	s, c := start(t)
	var want []string
	for i := range 1500 {
		name := fmt.Sprintf("node-%04d", i)
		want = append(want, name)
		s.Set("/big/"+name, "")
	}
	if got, err := c.List("/big"); err != nil || !slices.Equal(got, want) {
		t.Errorf("%d names, %v", len(got), err)
	}
	// At the limit between one message and several.
	for _, n := range []int{4095, 4096, 4097} {
		p := fmt.Sprintf("/edge-%d", n)
		for rest := n; rest > 0; {
			size := rest // a name and its NUL
			if rest > 80 {
				size = 64
			}
			s.Set(fmt.Sprintf("%s/%0*d", p, size-1, rest), "")
			rest -= size
		}
		got, err := c.List(p)
		total := 0
		for _, g := range got {
			total += len(g) + 1
		}
		if err != nil || total != n {
			t.Errorf("%s: %d bytes, %v", p, total, err)
		}
	}
	// Others change the node while it is listed in parts.
	var wg sync.WaitGroup
	stop := make(chan struct{})
	wg.Add(1)
	go func() {
		defer wg.Done()
		for i := range 20 {
			select {
			case <-stop:
				return
			default:
				s.Set(fmt.Sprintf("/big/zz-%d", i), "")
			}
		}
	}()
	for range 5 {
		got, err := c.List("/big")
		if err != nil || !slices.IsSorted(got) || len(got) < 1500 || len(slices.Compact(slices.Clone(got))) != len(got) {
			t.Errorf("%d names, %v", len(got), err)
		}
	}
	close(stop)
	wg.Wait()
}

// next returns the next event, which has to come.
func next(t *testing.T, c *xenstore.Client) xenstore.Event {
	t.Helper()
	select {
	case e, ok := <-c.Events():
		if !ok {
			t.Fatalf("events ended: %v", c.Err())
		}
		return e
	case <-time.After(10 * time.Second):
		t.Fatal("no event")
	}
	return xenstore.Event{}
}

func TestWatch(t *testing.T) {
	s, c := start(t)
	expect := func(path, token string) {
		t.Helper()
		if e := next(t, c); e != (xenstore.Event{Path: path, Token: token}) {
			t.Errorf("event %+v, want %s %s", e, path, token)
		}
	}
	check(t, "watch", c.Watch("/local", "tok"))
	expect("/local", "tok")
	s.Set("/local/domain/3/name", "guest")
	expect("/local/domain/3/name", "tok")
	check(t, "write", c.Write("/local/x", "1"))
	expect("/local/x", "tok")
	s.Set("/other", "1") // not watched

	check(t, "special", c.Watch(xenstore.IntroduceDomain, "in"))
	expect(xenstore.IntroduceDomain, "in")
	check(t, "special", c.Watch(xenstore.ReleaseDomain, "out"))
	expect(xenstore.ReleaseDomain, "out")
	s.Fire("@introduceDomain")
	expect("@introduceDomain", "in")
	s.Fire("@introduceDomain/5") // Xen 4.22
	expect("@introduceDomain/5", "in")
	s.Fire("@releaseDomain")
	expect("@releaseDomain", "out")

	if err := c.Watch("/local", "tok"); !errors.Is(err, fs.ErrExist) {
		t.Errorf("watched twice: %v", err)
	}
	check(t, "unwatch", c.Unwatch("/local", "tok"))
	if n := s.Watches("/local"); n != 0 {
		t.Errorf("%d watches", n)
	}
	if err := c.Unwatch("/local", "tok"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("unwatched twice: %v", err)
	}
	s.Set("/local/y", "1")
	s.Fire("@releaseDomain")
	expect("@releaseDomain", "out")

	// A node goes with the one above it.
	s.Set("/a/b/c", "1")
	check(t, "watch", c.Watch("/a/b", "deep"))
	expect("/a/b", "deep")
	s.Delete("/a")
	expect("/a/b", "deep")
}

// TestSlowReceiver leaves events alone while requests go on.
func TestSlowReceiver(t *testing.T) {
	s, c := start(t)
	check(t, "watch", c.Watch("/w", "t"))
	for range 3 {
		for i := range 500 {
			s.Set(fmt.Sprintf("/w/%d", i), "")
		}
		check(t, "write", c.Write("/other", "1"))
	}
	seen := map[xenstore.Event]int{}
	for range 501 {
		e := next(t, c)
		if e.Lost {
			t.Fatal("events were lost")
		}
		seen[e]++
	}
	// Each is there; equal ones were merged, but for what was on its way.
	if len(seen) < 500 {
		t.Errorf("%d different events", len(seen))
	}
}

func TestLostEvents(t *testing.T) {
	s, c := start(t)
	check(t, "watch", c.Watch("/w", "t"))
	if e := next(t, c); e.Path != "/w" {
		t.Errorf("event %+v", e)
	}
	for i := range xenstore.PendingEvents + 100 {
		s.Set(fmt.Sprintf("/w/%d", i), "")
	}
	check(t, "write", c.Write("/other", "1")) // all events are in
	lost := 0
	for {
		e := next(t, c)
		if e.Lost {
			lost++
			break
		}
	}
	s.Set("/w/last", "")
	if e := next(t, c); e.Path != "/w/last" || lost != 1 {
		t.Errorf("after %d losses: %+v", lost, e)
	}
}

func TestTransaction(t *testing.T) {
	s, c := start(t)
	s.Set("/n", "1")
	runs := 0
	add := func(tx *xenstore.Tx) error {
		runs++
		v, err := tx.Read("/n")
		if err != nil {
			return err
		}
		if runs == 1 {
			s.Set("/n", "5") // others are quicker
		}
		if err := tx.Mkdir("/made"); err != nil {
			return err
		}
		if err := tx.SetPermissions("/made", []xenstore.Permission{{Domain: 3}}); err != nil {
			return err
		}
		return tx.Write("/n", v+"+1")
	}
	check(t, "transaction", c.Transaction(add))
	if v, _ := s.Get("/n"); v != "5+1" || runs != 2 {
		t.Errorf("after %d runs: %q", runs, v)
	}
	if p, err := c.Permissions("/made"); err != nil || p[0].Domain != 3 {
		t.Errorf("permissions %v, %v", p, err)
	}

	// What fails leaves nothing behind, and nobody sees the middle.
	broken := errors.New("broken")
	err := c.Transaction(func(tx *xenstore.Tx) error {
		if err := tx.Write("/half", "x"); err != nil {
			return err
		}
		if ok, err := tx.Exists("/half"); err != nil || !ok {
			t.Errorf("within: %v, %v", ok, err)
		}
		if names, err := tx.List("/"); err != nil || !slices.Contains(names, "half") {
			t.Errorf("within: %q, %v", names, err)
		}
		if ok, err := c.Exists("/half"); err != nil || ok {
			t.Errorf("outside: %v, %v", ok, err)
		}
		if err := tx.Remove("/n"); err != nil {
			return err
		}
		return broken
	})
	if err != broken {
		t.Errorf("got %v", err)
	}
	if ok, err := c.Exists("/half"); err != nil || ok {
		t.Errorf("after: %v, %v", ok, err)
	}
	if ok, err := c.Exists("/n"); err != nil || !ok {
		t.Errorf("after: %v, %v", ok, err)
	}
	check(t, "remove", c.Transaction(func(tx *xenstore.Tx) error { return tx.Remove("/n") }))
	if _, ok := s.Get("/n"); ok {
		t.Error("the node is there")
	}

	s.Conflict(3)
	check(t, "after conflicts", c.Transaction(func(tx *xenstore.Tx) error { return tx.Write("/x", "1") }))
	s.Conflict(1000)
	if err := c.Transaction(func(tx *xenstore.Tx) error { return tx.Write("/y", "1") }); !errors.Is(err, xenstore.ErrConflict) {
		t.Errorf("conflicts without end: %v", err)
	}
	s.Conflict(0)
	if _, ok := s.Get("/y"); ok {
		t.Error("a transaction that never ended has changed something")
	}
}

func TestConcurrentRequests(t *testing.T) {
	_, c := start(t)
	var wg sync.WaitGroup
	for g := range 8 {
		wg.Add(1)
		go func() {
			defer wg.Done()
			p := fmt.Sprintf("/g/%d", g)
			for i := range 100 {
				v := fmt.Sprint(i)
				if err := c.Write(p, v); err != nil {
					t.Error(err)
					return
				}
				if got, err := c.Read(p); err != nil || got != v {
					t.Errorf("%s: %q, %v", p, got, err)
					return
				}
			}
		}()
	}
	wg.Wait()
}

func TestHangUp(t *testing.T) {
	s, c := start(t)
	if c.Err() != nil {
		t.Errorf("at first: %v", c.Err())
	}
	// So that there is somebody to hang up.
	check(t, "write", c.Write("/a", "0"))
	s.Mute(true)
	errs := make(chan error)
	for range 3 {
		go func() { errs <- second(c.Read("/")) }()
	}
	s.HangUp()
	for range 3 {
		if err := <-errs; !errors.Is(err, xenstore.ErrDead) {
			t.Errorf("a request under way: %v", err)
		}
	}
	<-c.Done()
	if _, ok := <-c.Events(); ok {
		t.Error("an event after the end")
	}
	err := c.Write("/a", "1")
	if !errors.Is(err, xenstore.ErrDead) || !strings.Contains(err.Error(), "xenstore write /a") {
		t.Errorf("a later request: %v", err)
	}
	if err := c.Transaction(func(*xenstore.Tx) error { return nil }); !errors.Is(err, xenstore.ErrDead) {
		t.Errorf("a transaction: %v", err)
	}
}

func TestClose(t *testing.T) {
	_, c := start(t)
	check(t, "watch", c.Watch("/a", "t"))
	for range 2 {
		check(t, "close", c.Close())
	}
	for range c.Events() {
		// What had come before is of no interest; that it ends is.
	}
	if err := c.Err(); !errors.Is(err, xenstore.ErrDead) || !strings.Contains(err.Error(), "closed by this process") {
		t.Errorf("got %v", err)
	}
}

func TestNoAnswer(t *testing.T) {
	s, c := start(t)
	s.Mute(true)
	c.SetTimeout(20 * time.Millisecond)
	if _, err := c.Read("/"); !errors.Is(err, xenstore.ErrDead) || !strings.Contains(err.Error(), "no answer within") {
		t.Errorf("got %v", err)
	}
}

// TestBrokenDaemon sends what no xenstored sends.
func TestBrokenDaemon(t *testing.T) {
	for name, raw := range map[string]string{
		"too large":           "\x02\x00\x00\x00\x01\x00\x00\x00\x00\x00\x00\x00\x01\x10\x00\x00",
		"answer to nothing":   "\x02\x00\x00\x00\x63\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00",
		"event without token": "\x0f\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x03\x00\x00\x00/a\x00",
	} {
		t.Run(name, func(t *testing.T) {
			s, c := start(t)
			check(t, "write", c.Write("/a", "1")) // the server knows of the client
			s.Send([]byte(raw))
			<-c.Done()
			if err := c.Err(); !errors.Is(err, xenstore.ErrDead) {
				t.Errorf("got %v", err)
			}
		})
	}
	t.Run("answer of another type", func(t *testing.T) {
		s, c := start(t)
		check(t, "write", c.Write("/a", "1"))
		s.Mute(true)
		errs := make(chan error)
		go func() { errs <- second(c.Read("/a")) }()
		go s.Send([]byte("\x0b\x00\x00\x00\x02\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"))
		if err := <-errs; !errors.Is(err, xenstore.ErrDead) {
			t.Errorf("got %v", err)
		}
	})
}

// stream is a connection that has been recorded.
type stream struct {
	r      io.Reader
	closed chan struct{}
	once   sync.Once
}

func (s *stream) Read(b []byte) (int, error)  { return s.r.Read(b) }
func (s *stream) Write(b []byte) (int, error) { return len(b), nil }
func (s *stream) Close() error                { s.once.Do(func() { close(s.closed) }); return nil }

// FuzzClient feeds a client whatever a broken daemon might send: it has to
// end with a reason.
func FuzzClient(f *testing.F) {
	f.Add([]byte("\x0f\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x05\x00\x00\x00/a\x00t\x00"))
	f.Add([]byte("\x10\x00\x00\x00\x01\x00\x00\x00\x00\x00\x00\x00\x07\x00\x00\x00ENOENT\x00"))
	f.Add([]byte("\x02\x00\x00\x00\x01\x00\x00\x00\x00\x00\x00\x00\x03\x00\x00\x00abc"))
	f.Fuzz(func(t *testing.T, b []byte) {
		c := xenstore.NewClient(&stream{r: bytes.NewReader(b), closed: make(chan struct{})})
		_, _ = c.Read("/a")
		<-c.Done()
		if err := c.Err(); !errors.Is(err, xenstore.ErrDead) {
			t.Errorf("got %v", err)
		}
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	})
}

func TestOpen(t *testing.T) {
	dir := t.TempDir()
	_, err := xenstore.OpenAt(filepath.Join(dir, "a"), filepath.Join(dir, "b"))
	if err == nil || !errors.Is(err, fs.ErrNotExist) || !strings.Contains(err.Error(), "xenstored is not reachable") {
		t.Errorf("nothing there: %v", err)
	}
	s, err := xenstoretest.New(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	c, err := xenstore.OpenAt(filepath.Join(dir, "a"), s.Path())
	if err != nil {
		t.Fatal(err)
	}
	check(t, "write", c.Write("/a", "1"))
	check(t, "close", c.Close())

	// A device is opened, not dialled.
	if err := unix.Mkfifo(filepath.Join(dir, "xenbus"), 0o600); err != nil {
		t.Fatal(err)
	}
	c, err = xenstore.Dial(filepath.Join(dir, "xenbus"))
	if err != nil {
		t.Fatal(err)
	}
	// A pipe gives every request back as its own answer.
	if v, err := c.Read("/a"); err != nil || v != "/a\x00" {
		t.Errorf("read %q, %v", v, err)
	}
	check(t, "close", c.Close())
	if os.Geteuid() != 0 {
		if err := os.Chmod(filepath.Join(dir, "xenbus"), 0); err != nil {
			t.Fatal(err)
		}
		if _, err := xenstore.Dial(filepath.Join(dir, "xenbus")); !errors.Is(err, fs.ErrPermission) {
			t.Errorf("not permitted: %v", err)
		}
	}
}
