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
