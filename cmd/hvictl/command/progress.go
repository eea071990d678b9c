package command

import (
	"fmt"
	"io"
	"strings"
	"sync"
	"time"
	"unicode/utf8"
)

// What is done within a second needs no bar.
const (
	progressAfter = time.Second
	progressEvery = 200 * time.Millisecond
	progressWidth = 20
)

// progress is a bar on a terminal's last line while something takes long. A nil
// one shows nothing.
type progress struct {
	w     io.Writer
	start time.Time
	stop  chan struct{}
	done  sync.WaitGroup

	mu    sync.Mutex
	label string
	// step counts from 0 to steps; without steps there is no bar.
	step, steps int
}

// work begins to show progress, in so many steps, or without steps where there
// is no telling. The caller ends it.
func (a *app) work(label string, steps ...string) *progress {
	if !a.progress {
		return nil
	}
	p := &progress{w: a.errOut, start: time.Now(), stop: make(chan struct{}), label: label, steps: len(steps)}
	p.done.Go(p.run)
	return p
}

// at says what is done now, step counted from 0.
func (p *progress) at(step int, label string) {
	if p == nil {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.step, p.label = step, label
}

// end removes the bar.
func (p *progress) end() {
	if p == nil {
		return
	}
	close(p.stop)
	p.done.Wait()
}

func (p *progress) run() {
	wait := time.NewTimer(progressAfter)
	defer wait.Stop()
	shown := 0
	for {
		select {
		case <-p.stop:
			if shown > 0 {
				fmt.Fprintf(p.w, "\r%s\r", strings.Repeat(" ", shown))
			}
			return
		case <-wait.C:
			line := p.line()
			n := utf8.RuneCountInString(line)
			fmt.Fprintf(p.w, "\r%s%s", line, strings.Repeat(" ", max(0, shown-n)))
			shown = max(shown, n)
			wait.Reset(progressEvery)
		}
	}
}

func (p *progress) line() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	s := ""
	if p.steps > 0 {
		full := progressWidth * p.step / p.steps
		s = "[" + strings.Repeat("#", full) + strings.Repeat("-", progressWidth-full) + "] "
	}
	return s + safe(p.label) + ", " + duration(time.Since(p.start))
}
