package xenstore_test

import (
	"errors"
	"io"
	"net"
	"path/filepath"
	"testing"
	"time"

	"github.com/xen-hvi/hvi/engine/xen/xenstore"
	"github.com/xen-hvi/hvi/engine/xen/xenstore/xenstoretest"
)

// TestLasting restarts xenstored: that is told, calls fail meanwhile, and then everything
// is watched again, and an event says that some may have been missed.
func TestLasting(t *testing.T) {
	dir := t.TempDir()
	s, err := xenstoretest.New(dir)
	if err != nil {
		t.Fatal(err)
	}
	lost, back := make(chan error, 1), make(chan struct{}, 1)
	l, err := xenstore.OpenLasting(xenstore.LastingOptions{
		Dial: func() (*xenstore.Client, error) { return xenstore.Dial(dir + "/socket") },
		Lost: func(why error) { lost <- why }, Back: func() { back <- struct{}{} }, RedialAfter: time.Millisecond,
	})
	if err != nil {
		t.Fatal(err)
	}
	seen := make(chan xenstore.Event, 100)
	go func() {
		defer close(seen)
		for e := range l.Events() {
			seen <- e
		}
	}()
	check(t, "watch", l.Watch("/a", "kept"))
	check(t, "watch", l.Watch("/b", "dropped"))
	check(t, "watch", l.Watch("/c", "dropped meanwhile"))
	check(t, "unwatch", l.Unwatch("/b", "dropped"))

	check(t, "stop xenstored", s.Close())
	if why := <-lost; !errors.Is(why, xenstore.ErrDead) {
		t.Errorf("lost: %v", why)
	}
	if _, err := l.Read("/a"); !errors.Is(err, xenstore.ErrDead) {
		t.Errorf("a read without a connection: %v", err)
	}
	if err := l.Watch("/d", "never"); !errors.Is(err, xenstore.ErrDead) {
		t.Errorf("a watch without a connection: %v", err)
	}
	check(t, "unwatch without a connection", l.Unwatch("/c", "dropped meanwhile"))

	s, err = xenstoretest.New(dir)
	if err != nil {
		t.Fatal(err)
	}
	s.Set("/a", "1")
	<-back
	for e := range seen {
		if e.Lost {
			break
		}
	}
	if v, err := l.Read("/a"); v != "1" || err != nil {
		t.Errorf("read %q, %v", v, err)
	}
	for path, want := range map[string]int{"/a": 1, "/b": 0, "/c": 0, "/d": 0} {
		if n := s.Watches(path); n != want {
			t.Errorf("%d watches of %s, want %d", n, path, want)
		}
	}
	check(t, "close", l.Close())
	check(t, "close again", l.Close())
	for range seen {
		// It ends.
	}
	check(t, "stop xenstored", s.Close())
}

// TestLastingCloseWithout closes one whose xenstored is gone for good.
func TestLastingCloseWithout(t *testing.T) {
	dir := t.TempDir()
	s, err := xenstoretest.New(dir)
	if err != nil {
		t.Fatal(err)
	}
	lost := make(chan error, 1)
	l, err := xenstore.OpenLasting(xenstore.LastingOptions{
		Dial: func() (*xenstore.Client, error) { return xenstore.Dial(dir + "/socket") },
		Lost: func(why error) { lost <- why }, RedialAfter: time.Hour,
	})
	if err != nil {
		t.Fatal(err)
	}
	check(t, "stop xenstored", s.Close())
	<-lost
	check(t, "close", l.Close())
	if _, err := xenstore.OpenLasting(xenstore.LastingOptions{Dial: func() (*xenstore.Client, error) { return xenstore.Dial(dir + "/socket") }}); err == nil {
		t.Error("opened without a xenstored")
	}
}

// TestLastingSilent has somebody take requests and never answer, as the kernel's device
// does where there is no xenstored: who asks meanwhile is told that there is no
// connection, and does not wait for that.
func TestLastingSilent(t *testing.T) {
	dir := t.TempDir()
	s, err := xenstoretest.New(dir)
	if err != nil {
		t.Fatal(err)
	}
	silent := filepath.Join(dir, "silent")
	listener, err := net.Listen("unix", silent)
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	asked := make(chan struct{})
	go func() {
		conn, err := listener.Accept()
		if err != nil {
			return
		}
		defer conn.Close()
		if _, err := conn.Read(make([]byte, 1)); err == nil {
			close(asked)
		}
		_, _ = io.Copy(io.Discard, conn) // until it is given up
	}()
	first := true
	lost := make(chan error, 1)
	l, err := xenstore.OpenLasting(xenstore.LastingOptions{
		Dial: func() (*xenstore.Client, error) {
			if first {
				first = false
				return xenstore.Dial(dir + "/socket")
			}
			return xenstore.Dial(silent)
		},
		Lost: func(why error) { lost <- why }, RedialAfter: time.Hour,
	})
	if err != nil {
		t.Fatal(err)
	}
	check(t, "watch", l.Watch("/a", "kept"))
	go func() {
		for range l.Events() {
			// Nobody else does.
		}
	}()
	check(t, "stop xenstored", s.Close())
	<-lost
	<-asked
	done := make(chan struct{})
	go func() {
		defer close(done)
		if _, err := l.Read("/a"); !errors.Is(err, xenstore.ErrDead) {
			t.Errorf("a read without a connection: %v", err)
		}
		if err := l.Watch("/d", "never"); !errors.Is(err, xenstore.ErrDead) {
			t.Errorf("a watch without a connection: %v", err)
		}
		check(t, "unwatch without a connection", l.Unwatch("/a", "kept"))
	}()
	select {
	case <-done:
	case <-time.After(10 * time.Second):
		t.Fatal("who asks waits for an answer to somebody else")
	}
	closed := make(chan error)
	go func() { closed <- l.Close() }()
	select {
	case err := <-closed:
		check(t, "close", err)
	case <-time.After(10 * time.Second):
		t.Fatal("Close waits for an answer to the connection that is being made")
	}
}
