package config

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"net/netip"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/xen-hvi/hvi/engine/policy"
)

// Config is what hvid.toml sets. [Defaults] is what it is without one.
type Config struct {
	Socket   string
	StateDir string
	RunDir   string
	// CacheDir is where kernels that were identified are remembered, or "".
	CacheDir string
	LogLevel slog.Level
	// Default applies to a domain nobody declares anything for. It declares
	// nothing itself if the file has no such table, which comes to mode off.
	Default policy.Spec
	Gate    Gate
	Looks   Looks
	Dumps   Dumps
	// Watchdog is when something of hvid's own is too slow.
	Watchdog Watchdog
	Libvirt  Libvirt
	Metrics  Metrics
	Journal  Journal
	Events   Events
}

// Events is where security events are passed on to.
type Events struct {
	// Journald says that systemd's journal gets each.
	Journald bool
	// Syslog is the socket of a syslog daemon, File a file; "" for none.
	Syslog, File string
	// Format is what the lines of File are: "hvi" or "ocsf".
	Format string
}

// Looks is how often guests are looked into.
type Looks struct {
	// Quiet is how long a guest may run in a second and is quiet; 0: none is.
	Quiet time.Duration
}

// Watchdog is how long what guests wait for may take.
type Watchdog struct {
	// Decision is how long a guard may take to decide on one event; 0: any time.
	Decision time.Duration
}

// Dumps is what memory dumps are taken, and how much room they may take.
type Dumps struct {
	// OnViolation asks for one of each domain that a guard pauses.
	OnViolation bool
	// MaxCount and MaxBytes bound them all; MinFree bytes are left of the file system.
	MaxCount, MaxBytes, MinFree int64
}

// Gate is how long a start waits for protection.
type Gate struct {
	Timeout time.Duration
}

// Libvirt is the connection to libvirt.
type Libvirt struct {
	// Enabled is "auto", "yes" or "no".
	Enabled string
	Sockets []string
}

// Metrics is where metrics can be read.
type Metrics struct {
	// Listen is empty, "unix:" and a path, or a loopback address and port.
	Listen string
}

// Journal is how the log of security events is kept.
type Journal struct {
	MaxBytes  int64
	Keep      int64
	SyncEvery time.Duration
}

// Defaults returns the settings without a file.
func Defaults() Config {
	return Config{
		Socket:   "/run/hvi/hvid.sock",
		StateDir: "/var/lib/hvi",
		RunDir:   "/run/hvi",
		CacheDir: "/var/cache/hvi",
		LogLevel: slog.LevelInfo,
		Gate:     Gate{Timeout: 20 * time.Second},
		Looks:    Looks{Quiet: 5 * time.Millisecond},
		Watchdog: Watchdog{Decision: 50 * time.Millisecond},
		Dumps:    Dumps{MaxCount: 8, MaxBytes: 64 << 30, MinFree: 1 << 30},
		Libvirt:  Libvirt{Enabled: "auto", Sockets: []string{"/run/libvirt/virtxend-sock", "/run/libvirt/libvirt-sock"}},
		Events:   Events{Format: "hvi"},
		Journal:  Journal{MaxBytes: 16 << 20, Keep: 8, SyncEvery: time.Second},
	}
}

// Load reads hvid.toml at path, as [Files.Load] does for its directory. A file
// that is not there means [Defaults].
func Load(path string) (Config, error) {
	return (&Files{Dir: filepath.Dir(path)}).Load(path)
}

// Load reads the daemon's settings from a file that is believed. The policies
// it may name are those of f.
func (f *Files) Load(path string) (Config, error) {
	data, _, err := f.read(path)
	if errors.Is(err, fs.ErrNotExist) {
		return Defaults(), nil
	}
	if err != nil {
		return Config{}, err
	}
	return Parse(path, data, f)
}

// Parse reads the contents of a hvid.toml. source is the file's name in errors
// and origins, and known are the policies it may name. On error it returns all
// that is wrong, joined, and nothing else.
func Parse(source string, data []byte, known policy.Policies) (Config, error) {
	d, err := parse(source, data)
	if err != nil {
		return Config{}, err
	}
	c := Defaults()
	b := policy.Builder{Policies: known}
	feed(&b, d, []string{"default"}, []string{wordMode, wordPolicy, wordRequireAttach, wordEngineFailure, wordGuards})
	refuseExceptions(&b, d)
	refuseViews(&b, d)
	for _, t := range d.tables {
		if !slices.ContainsFunc(sections, func(s Section) bool { return s.Name == dotted(t.path) }) && t.path[0] != "default" {
			b.Fail(policy.UnknownWord("table", dotted(t.path), tableNames(), t.at))
		}
	}
	for _, s := range d.settings {
		if s.path[0] == "default" && len(s.path) > 1 {
			continue
		}
		b.Fail(c.apply(s))
	}
	spec, err := b.Build()
	if err != nil {
		return Config{}, err
	}
	c.Default = spec
	return c, nil
}

func (c *Config) apply(s setting) error {
	table := dotted(s.path[:len(s.path)-1])
	if table != "" && !slices.Contains(tableNames(), table) {
		if len(s.path) == 2 {
			return nil // the table was reported
		}
		return policy.UnknownWord("setting", s.name(), keyNames(), s.at)
	}
	for _, k := range keys {
		if k.Name == s.name() && k.set != nil {
			return k.set(c, s)
		}
	}
	return policy.UnknownWord("setting", s.name(), keyNames(), s.at)
}

func tableNames() []string {
	var names []string
	for _, s := range sections {
		if s.Name != "" {
			names = append(names, s.Name)
		}
	}
	return names
}

func keyNames() []string {
	names := make([]string, len(keys))
	for i, k := range keys {
		names[i] = k.Name
	}
	return names
}

func (s setting) bad(reason, hint string) error {
	shown := s.text
	if s.kind == kindNumber {
		shown = strconv.FormatInt(s.number, 10)
	}
	return &policy.Error{Origin: s.value.at, What: s.name(), Value: shown, Reason: reason, Hint: hint}
}

func (s setting) word(known ...string) (string, error) {
	if s.kind != kindText {
		return "", s.wrongKind(kindText)
	}
	if !slices.Contains(known, s.text) {
		return "", policy.UnknownWord(s.name(), s.text, known, s.value.at)
	}
	return s.text, nil
}

// absolute reads an absolute path.
func (s setting) absolute(to *string, longest int) error {
	if s.kind != kindText {
		return s.wrongKind(kindText)
	}
	if why := badPath(s.text, longest); why != "" {
		return s.bad(why, "")
	}
	*to = s.text
	return nil
}

// absoluteOrNone is absolute for a path that may be empty.
func (s setting) absoluteOrNone(to *string, longest int) error {
	if s.kind == kindText && s.text == "" {
		*to = ""
		return nil
	}
	return s.absolute(to, longest)
}

func badPath(p string, longest int) string {
	switch {
	case p == "":
		return "is empty"
	case !filepath.IsAbs(p):
		return "is not an absolute path"
	case filepath.Clean(p) != p:
		return "is not written plainly: " + filepath.Clean(p)
	case len(p) > longest:
		return fmt.Sprintf("is longer than %d bytes", longest)
	case strings.ContainsFunc(p, func(r rune) bool { return r < ' ' || r == 0x7f }):
		return "has control characters in it"
	default:
		return ""
	}
}

func (s setting) paths(to *[]string) error {
	if s.kind != kindList {
		return s.wrongKind(kindList)
	}
	var list []string
	for _, v := range s.list {
		e := setting{path: s.path, at: s.at, value: v}
		var p string
		if err := e.absolute(&p, maxPath); err != nil {
			return err
		}
		list = append(list, p)
	}
	if len(list) == 0 || len(list) > maxSockets {
		return s.bad(fmt.Sprintf("must have 1 to %d elements", maxSockets), "")
	}
	*to = list
	return nil
}

func (s setting) integer(to *int64, least, most int64) error {
	if s.kind != kindNumber {
		return s.wrongKind(kindNumber)
	}
	if s.number < least || s.number > most {
		return s.bad(fmt.Sprintf("is not between %d and %d", least, most), "")
	}
	*to = s.number
	return nil
}

func (s setting) duration(to *time.Duration, least, most time.Duration) error {
	if s.kind != kindText {
		e := s.wrongKind(kindText)
		if pe := new(policy.Error); errors.As(e, &pe) {
			pe.Hint = `write it with its unit, as in "20s"`
		}
		return e
	}
	v, err := time.ParseDuration(s.text)
	if err != nil {
		return s.bad("is not a time", `write it with its unit, as in "20s" or "500ms"`)
	}
	if v < least || v > most {
		return s.bad(fmt.Sprintf("is not between %v and %v", least, most), "")
	}
	*to = v
	return nil
}

// listen reads where metrics can be read.
func (s setting) listen(to *string) error {
	if s.kind != kindText {
		return s.wrongKind(kindText)
	}
	if path, ok := strings.CutPrefix(s.text, "unix:"); ok {
		if why := badPath(path, maxPath); why != "" {
			return s.bad(why, `for example "unix:/run/hvi/metrics.sock"`)
		}
	} else if s.text != "" {
		const hint = `write "127.0.0.1:9617", "[::1]:9617", "unix:/run/hvi/metrics.sock", or "" for none`
		host, port, err := net.SplitHostPort(s.text)
		if err != nil {
			return s.bad("is neither an address with a port nor a unix socket", hint)
		}
		n, err := strconv.ParseUint(port, 10, 16)
		if err != nil || n == 0 {
			return s.bad("has no port between 1 and 65535", hint)
		}
		// Names are not looked up: what one resolves to can change.
		addr, err := netip.ParseAddr(host)
		if err != nil || !addr.IsLoopback() || addr.Zone() != "" {
			return s.bad("is not an address of the loopback interface, and metrics are not encrypted", hint)
		}
	}
	*to = s.text
	return nil
}
