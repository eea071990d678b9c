package machine

import (
	"context"
	"errors"
	"testing"
)

func TestAcquireSlot(t *testing.T) {
	dir := t.TempDir()
	var releases []func()
	for range MaxMachines {
		release, err := AcquireSlot(t.Context(), dir, nil)
		if err != nil {
			t.Fatal(err)
		}
		releases = append(releases, release)
	}
	ctx, cancel := context.WithCancel(t.Context())
	if _, err := AcquireSlot(ctx, dir, cancel); !errors.Is(err, context.Canceled) {
		t.Errorf("one more than there are: %v", err)
	}
	releases[1]()
	release, err := AcquireSlot(t.Context(), dir, func() { t.Error("it waits for a free place") })
	if err != nil {
		t.Fatal(err)
	}
	release()
	releases[0]()
}

// A place that is kept is taken once, and others have it when it is given back.
func TestPlace(t *testing.T) {
	dir := t.TempDir()
	other, err := AcquireSlot(t.Context(), dir, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer other()
	never := func() { t.Error("it waits") }
	var p Place
	p.Close()
	for range MaxMachines + 1 {
		if err := p.Take(t.Context(), dir, never); err != nil {
			t.Fatal(err)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	if err := new(Place).Take(ctx, dir, cancel); !errors.Is(err, context.Canceled) {
		t.Errorf("one more than there are: %v", err)
	}
	p.Close()
	p.Close()
	if err := new(Place).Take(t.Context(), dir, never); err != nil {
		t.Errorf("after it was given back: %v", err)
	}
}
