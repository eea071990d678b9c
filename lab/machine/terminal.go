package machine

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// terminalEvery is how often is looked whether an emulator has made its terminal.
const terminalEvery = 100 * time.Millisecond

// drainTerminal reads, and drops, what process pid writes to a terminal that it has
// made for itself, until that is closed. Bochs draws the machine's screen on one,
// and says nothing of it but its name; what nobody reads stays in the kernel, and
// when there is no more room, some 40 minutes of a blinking cursor, Bochs stands
// still for ever. It returns when the terminal is closed or done is.
func drainTerminal(pid int, done <-chan struct{}) {
	tick := time.NewTicker(terminalEvery)
	defer tick.Stop()
	for {
		if name := terminalOf(pid); name != "" {
			f, err := os.OpenFile(name, os.O_RDONLY|syscall.O_NOCTTY, 0)
			// The number may have become another's since.
			if err == nil && terminalOf(pid) == name {
				_, _ = io.Copy(io.Discard, f) // ends with EIO
			}
			if err == nil {
				f.Close()
			}
		}
		select {
		case <-done:
			return
		case <-tick.C:
		}
	}
}

// terminalOf returns the terminal whose other end a process has open, or "".
func terminalOf(pid int) string {
	dir := fmt.Sprintf("/proc/%d", pid)
	fds, err := os.ReadDir(filepath.Join(dir, "fd"))
	if err != nil {
		return ""
	}
	for _, fd := range fds {
		to, err := os.Readlink(filepath.Join(dir, "fd", fd.Name()))
		if err != nil || to != "/dev/ptmx" && to != "/dev/pts/ptmx" {
			continue
		}
		info, err := os.ReadFile(filepath.Join(dir, "fdinfo", fd.Name()))
		if err != nil {
			continue
		}
		for lines := bufio.NewScanner(bytes.NewReader(info)); lines.Scan(); {
			if n, ok := strings.CutPrefix(lines.Text(), "tty-index:"); ok {
				return "/dev/pts/" + strings.TrimSpace(n)
			}
		}
	}
	return ""
}
