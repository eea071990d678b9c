package hooks

import (
	"bufio"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/xen-hvi/hvi/control"
)

// settingsFile is hvid's, and maxSettings what is read of it.
const (
	settingsFile = "/etc/hvi/hvid.toml"
	maxSettings  = 64 << 10
)

// socket is where hvid listens: as the environment says, or hvid's settings.
func (h Host) socket() string {
	if s := h.env("HVI_SOCKET"); s != "" {
		return s
	}
	f, err := os.Open(h.Root + settingsFile)
	if err != nil {
		return control.DefaultSocket
	}
	defer f.Close()
	return orElse(socketSetting(io.LimitReader(f, maxSettings)), control.DefaultSocket)
}

// socketSetting finds hvid's socket in its settings, or "". A hook has to start
// in no time, so this knows no more of TOML than the line that people write: a
// key before the first table, and a string on one line.
func socketSetting(r io.Reader) string {
	lines := bufio.NewScanner(r)
	for lines.Scan() {
		line := strings.TrimSpace(lines.Text())
		if strings.HasPrefix(line, "[") {
			return ""
		}
		key, value, ok := strings.Cut(line, "=")
		if !ok || strings.TrimSpace(key) != "socket" {
			continue
		}
		if path := tomlString(strings.TrimSpace(value)); filepath.IsAbs(path) {
			return path
		}
		return ""
	}
	return ""
}

// tomlString is the string that a value begins with, or "".
func tomlString(value string) string {
	if rest, ok := strings.CutPrefix(value, "'"); ok {
		text, _, ok := strings.Cut(rest, "'")
		if !ok {
			return ""
		}
		return text
	}
	// The escapes that are found in paths are those of Go.
	quoted, err := strconv.QuotedPrefix(value)
	if err != nil || !strings.HasPrefix(quoted, `"`) {
		return ""
	}
	text, err := strconv.Unquote(quoted)
	if err != nil {
		return ""
	}
	return text
}
