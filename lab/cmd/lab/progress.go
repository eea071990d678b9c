package main

import (
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/xen-hvi/hvi/lab/archive"
	"github.com/xen-hvi/hvi/lab/image"
)

// progress writes lines with the time since the program's start. On a terminal,
// the state of a download is shown in place.
type progress struct {
	mu       sync.Mutex
	w        io.Writer
	start    time.Time
	terminal bool
	open     bool // the cursor stands behind a state that is not final
}

func newProgress(f *os.File) *progress {
	st, err := f.Stat()
	return &progress{w: f, start: time.Now(), terminal: err == nil && st.Mode()&os.ModeCharDevice != 0}
}

// text writes a line as it is.
func (p *progress) text(line string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.write("", line, true)
}

// line writes a line of the lab's own.
func (p *progress) line(format string, args ...any) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.write(p.clock(), fmt.Sprintf(format, args...), true)
}

// state replaces the state written before.
func (p *progress) state(format string, args ...any) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.terminal {
		p.write(p.clock(), fmt.Sprintf(format, args...), false)
	}
}

func (p *progress) clock() string { return fmt.Sprintf("lab %6.1fs  ", time.Since(p.start).Seconds()) }

func (p *progress) write(head, line string, final bool) {
	if p.open {
		io.WriteString(p.w, "\r\x1b[K")
	}
	end := "\n"
	if !final {
		end = ""
	}
	io.WriteString(p.w, head+line+end)
	p.open = !final
}

// archive shows what happens to packages.
func (p *progress) archive(e archive.Event) {
	if e.Kind == archive.Notice {
		p.line("%s: %s", e.Name, e.Text)
		return
	}
	what := map[archive.Kind]string{archive.Index: "index of", archive.Download: "downloading", archive.Unpack: "unpacking"}[e.Kind]
	parts := []string{what}
	if e.Name != "" {
		parts[0] += " " + e.Name
	}
	if e.ItemsTotal > 0 {
		parts = append(parts, fmt.Sprintf("%d of %d packages", e.Items, e.ItemsTotal))
	}
	parts = append(parts, fmt.Sprintf("%.1f of %.1f MB", float64(e.Done)/1e6, float64(e.Total)/1e6), fmt.Sprintf("%.1f s", e.Elapsed.Seconds()))
	line := strings.Join(parts, ", ")
	if e.Text != "" {
		line += " (" + e.Text + ")"
	}
	if e.Final {
		p.line("%s", line)
	} else {
		p.state("%s", line)
	}
}

// image shows what is built.
func (p *progress) image(e image.Event) {
	if e.Final {
		p.line("built %s in %.1f s", e.Name, e.Elapsed.Seconds())
	} else {
		p.state("building %s", e.Name)
	}
}
