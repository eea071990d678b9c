package runner

import (
	"context"
	"sync"
	"time"

	"github.com/xen-hvi/hvi/lab/scenario"
	"github.com/xen-hvi/hvi/lab/wire"
)

// host runs scenarios in this process: those of [scenario.Host].
func (r *Runner) host(ctx context.Context, list []scenario.Scenario) ([]*Result, error) {
	f := newFollower(list, func(source, line string) { r.Show(scenario.Host, source, line) })
	begun := time.Now()
	h := &hostReporter{take: func(m wire.Message) { f.take(input{message: &m}, time.Now(), begun) }}
	scenario.RunAll(ctx, h, list)
	_ = h.Encode(wire.Message{Kind: wire.Done}) // it can't fail
	f.finish(0, time.Now())
	for i, x := range f.results {
		if err := x.write(r.Out, f.logOf(i)); err != nil {
			return f.results, err
		}
	}
	return f.results, nil
}

// hostReporter passes messages on, one at a time.
type hostReporter struct {
	mu   sync.Mutex
	take func(wire.Message)
}

func (h *hostReporter) Encode(m wire.Message) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.take(m)
	return nil
}
