package main

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/xen-hvi/hvi/engine/xen"
	"github.com/xen-hvi/hvi/engine/xen/xenstore"
	"github.com/xen-hvi/hvi/engine/xen/xenstore/xenstoretest"
	"github.com/xen-hvi/hvi/xlplugin"
)

// listing is a hypervisor that lists domains.
type listing struct {
	mu  sync.Mutex
	all []xen.DomainInfo
}

func (l *listing) Domains() ([]xen.DomainInfo, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return append([]xen.DomainInfo(nil), l.all...), nil
}

func (l *listing) set(ids ...int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.all = nil
	for _, id := range ids {
		l.all = append(l.all, xen.DomainInfo{ID: xen.DomID(id), UUID: xen.UUID{byte(id)}, Type: xen.PVH, VCPUs: 1, OnlineVCPUs: 1})
	}
}

// TestXenstoredRestarts has a domain go and another come while there is no xenstored.
// Both are seen when it is back, and what happens later too; the domain that stayed is
// left alone.
func TestXenstoredRestarts(t *testing.T) {
	dir := t.TempDir()
	s, err := xenstoretest.New(dir)
	if err != nil {
		t.Fatal(err)
	}
	lost := make(chan error, 1)
	store, err := xenstore.OpenLasting(xenstore.LastingOptions{
		Dial: func() (*xenstore.Client, error) { return xenstore.Dial(dir + "/socket") },
		Lost: func(why error) { lost <- why }, RedialAfter: time.Millisecond,
	})
	if err != nil {
		t.Fatal(err)
	}
	domains := &listing{}
	domains.set(1, 2)
	ctx, cancel := context.WithCancel(t.Context())
	var gated []string // before the event of the same domain
	w, err := xlplugin.Watch(ctx, store, domains, xlplugin.WatchOptions{
		OnAppear: func(info xen.DomainInfo, existing bool) {
			gated = append(gated, fmt.Sprint(info.ID, existing))
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	want := func(all ...string) {
		t.Helper()
		got := map[string]bool{}
		for range all {
			e, ok := <-w.Events()
			if !ok {
				t.Fatalf("the watcher ended: %v", w.Err())
			}
			got[fmt.Sprint(e.Info.ID, " ", e.Kind)] = true
		}
		for _, k := range all {
			if !got[k] {
				t.Errorf("got %v, want %v", got, all)
			}
		}
	}
	want("1 appeared", "2 appeared")

	if err := s.Close(); err != nil {
		t.Error(err)
	}
	<-lost
	domains.set(1, 3)
	if s, err = xenstoretest.New(dir); err != nil {
		t.Fatal(err)
	}
	want("2 gone", "3 appeared")
	if n := len(gated); n != 3 || gated[2] != "3 false" {
		t.Errorf("gated: %q", gated)
	}
	domains.set(1)
	s.Fire("@releaseDomain")
	want("3 gone")

	cancel()
	for range w.Events() {
		t.Error("an event was left over")
	}
	if err := store.Close(); err != nil {
		t.Error(err)
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
}
