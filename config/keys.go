package config

import (
	"bytes"
	"fmt"
	"strings"
	"time"

	"github.com/xen-hvi/hvi/engine/policy"
)

// Key is one setting of hvid.toml.
type Key struct {
	// Name is the key with its table: "gate.timeout".
	Name string
	// Kind is what its value is, for people: "string", "list of strings".
	Kind string
	// Default is its default as it is written in TOML.
	Default string
	// Values are what it may be where these are few words, or nil.
	Values []string
	// Meaning explains it in sentences.
	Meaning string

	set func(*Config, setting) error
}

// Table is the table the key stands in, or "".
func (k Key) Table() string {
	if i := strings.LastIndexByte(k.Name, '.'); i >= 0 {
		return k.Name[:i]
	}
	return ""
}

// Section is a table of hvid.toml.
type Section struct {
	// Name is the table, or "" for the settings that stand before any.
	Name string
	// Meaning introduces it.
	Meaning string
}

var sections = []Section{
	{"", "Settings of hvid, hvi's daemon. Every line that is commented out shows the default; what is left out has it too. A key that is not known is an error, and hvid does not start. Changes count after: systemctl restart hvid"},
	{"default", "What applies to a domain for which nobody declares anything: no key in its xl config, no element in its libvirt metadata, no file in " + DefaultDir + "/" + DomainsDir + "."},
	{"default.guards", `Actions of single guards in the host's default, as in: kernel-text = "alert"`},
	{"gate", "How long a start waits for protection."},
	{"looks", "How often is looked for what can't be prevented."},
	{"watchdog", "How long what guests wait for may take."},
	{"dumps", "Memory dumps of domains that a guard has paused, in dumps below state_dir. They hold all that the guest's memory held. hvid removes none: where there is no room for another, it is not taken, and hvictl status says so."},
	{"libvirt", "The connection to libvirt, for metadata that is edited while a domain runs."},
	{"metrics", "Metrics in the format of Prometheus."},
	{"events", "Where security events are passed on to, besides the log below."},
	{"journal", "The log of security events, which hvictl events shows."},
}

// Sections returns the tables of hvid.toml in their order.
func Sections() []Section { return append([]Section(nil), sections...) }

// Bounds of what may be set.
const (
	minGateTimeout = time.Second
	maxQuiet       = time.Second
	// maxDecision is below what the keeper takes for a hvid that hangs.
	maxDecision    = 200 * time.Millisecond
	maxGateTimeout = 35 * time.Second
	maxSockets     = 8
	maxPath        = 100 // of a socket: sun_path holds 108
)

var keys = []Key{
	{Name: "socket", Kind: "string", Default: `"/run/hvi/hvid.sock"`,
		Meaning: "The control socket, which hvictl and the toolstacks' hooks talk to. Where it is changed, hvictl needs --socket; hooks find it here.",
		set:     func(c *Config, s setting) error { return s.absolute(&c.Socket, maxPath) }},
	{Name: "state_dir", Kind: "string", Default: `"/var/lib/hvi"`,
		Meaning: "Where hvid keeps what must outlive a reboot of the host: security events and what is declared for each domain.",
		set:     func(c *Config, s setting) error { return s.absolute(&c.StateDir, 4095) }},
	{Name: "run_dir", Kind: "string", Default: `"/run/hvi"`,
		Meaning: "Where hvid notes what it has changed in Xen and not yet undone. It must be empty after a reboot of the host.",
		set:     func(c *Config, s setting) error { return s.absolute(&c.RunDir, 4095) }},
	{Name: "cache_dir", Kind: "string", Default: `"/var/cache/hvi"`,
		Meaning: `Where hvid keeps what it has read of guests' kernels, so that the next guest with the same build is known in milliseconds; "" for nowhere. A guest is compared with what is kept byte by byte, by a sum under this host's secret, and can't change what is found for others. What is in the directory may be removed at any time.`,
		set: func(c *Config, s setting) error {
			if s.kind == kindText && s.text == "" {
				c.CacheDir = ""
				return nil
			}
			return s.absolute(&c.CacheDir, 4095)
		}},
	{Name: "log_level", Kind: "string", Default: `"info"`, Values: []string{"debug", "info", "warn", "error"},
		Meaning: "What hvid logs to the system's journal: messages of this level and above.",
		set: func(c *Config, s setting) error {
			word, err := s.word("debug", "info", "warn", "error")
			if err != nil {
				return err
			}
			return c.LogLevel.UnmarshalText([]byte(word))
		}},

	{Name: "default.mode", Kind: "string", Default: `"off"`, Values: policy.Modes(),
		Meaning: "How far introspection goes: not at all, watch and report, or block as well."},
	{Name: "default.policy", Kind: "string", Default: `"default"`,
		Meaning: "The policy to start from: a built-in one, which hvictl policy list shows, or the name of a file in " + DefaultDir + "/" + PoliciesDir + " without its ending."},
	{Name: "default.require_attach", Kind: "boolean", Default: `false`,
		Meaning: "Whether such domains may run only while they are protected: one that hvid cannot attach to does not start. Not with mode off."},
	{Name: "default.on_engine_failure", Kind: "string", Default: `"release"`, Values: []string{"release", "pause"},
		Meaning: "What becomes of such domains when hvid fails: they run on without protection until it is back, or stand still until then. To stop hvid in order is no failure."},

	{Name: "gate.timeout", Kind: "string", Default: `"20s"`,
		Meaning: "How long a hook that gates the start of a domain (require_attach, hvi-vif scripts, dm-gate, hvictl create) waits for hvid to attach before it refuses the start. Xen's toolstack gives up on a script after 40 seconds, so at most 35s.",
		set:     func(c *Config, s setting) error { return s.duration(&c.Gate.Timeout, minGateTimeout, maxGateTimeout) }},

	{Name: "looks.quiet", Kind: "string", Default: `"5ms"`,
		Meaning: "How long the processors of a guest may run in a second, together, for it to be quiet. What is looked at now and then is looked at each tenth time in a guest that was quiet since the last look. With 0s no guest is, and an idle one costs as much as another.",
		set:     func(c *Config, s setting) error { return s.duration(&c.Looks.Quiet, 0, maxQuiet) }},

	{Name: "watchdog.decision", Kind: "string", Default: `"50ms"`,
		Meaning: "How long a guard may take to decide on one event, for which a processor of the guest waits. One that takes longer three times in a row is degraded, which its line in hvictl status says, and in force all the same; one that hangs is the keeper's matter. With 0s a guard may take as long as it likes.",
		set:     func(c *Config, s setting) error { return s.duration(&c.Watchdog.Decision, 0, maxDecision) }},

	{Name: "dumps.on_violation", Kind: "boolean", Default: `false`,
		Meaning: "Whether the memory of a domain is dumped when a guard whose action is pause has paused it. The file is in LiME's format, which hvictl inspect and Volatility read.",
		set: func(c *Config, s setting) error {
			if s.kind != kindSwitch {
				return s.wrongKind(kindSwitch)
			}
			c.Dumps.OnViolation = s.text == "true"
			return nil
		}},
	{Name: "dumps.max_count", Kind: "whole number", Default: `8`,
		Meaning: "How many dumps there may be.",
		set:     func(c *Config, s setting) error { return s.integer(&c.Dumps.MaxCount, 1, 1000) }},
	{Name: "dumps.max_bytes", Kind: "whole number", Default: `68719476736`,
		Meaning: "How many bytes of disk the dumps may take together. Pages of zeros take none, but it is not known before how many there are.",
		set:     func(c *Config, s setting) error { return s.integer(&c.Dumps.MaxBytes, 1<<20, 1<<50) }},
	{Name: "dumps.min_free", Kind: "whole number", Default: `1073741824`,
		Meaning: "How many bytes must be free on the file system after a dump.",
		set:     func(c *Config, s setting) error { return s.integer(&c.Dumps.MinFree, 0, 1<<50) }},

	{Name: "libvirt.enabled", Kind: "string", Default: `"auto"`, Values: []string{"auto", "yes", "no"},
		Meaning: "Whether hvid follows libvirt: no; auto, while a daemon of libvirt's runs; or yes, which reports it if libvirt is not there. With yes hvid may be what starts the daemon, where systemd holds its socket; the libvirtd.service of many distributions conflicts with xendomains.service, so that this shuts down guests of xl's. With auto hvid never starts it.",
		set: func(c *Config, s setting) error {
			word, err := s.word("auto", "yes", "no")
			if err == nil {
				c.Libvirt.Enabled = word
			}
			return err
		}},
	{Name: "libvirt.sockets", Kind: "list of strings", Default: `["/run/libvirt/virtxend-sock", "/run/libvirt/libvirt-sock"]`,
		Meaning: "libvirt's sockets; the first that answers is used. The modular daemon's comes first, then that of libvirtd.",
		set:     func(c *Config, s setting) error { return s.paths(&c.Libvirt.Sockets) }},

	{Name: "metrics.listen", Kind: "string", Default: `""`,
		Meaning: `Where metrics can be read: nowhere (""), a unix socket ("unix:/run/hvi/metrics.sock", which only root and the group hvi may use), or a port of the loopback interface ("127.0.0.1:9617" or "[::1]:9617"). Any program on the host may read the latter; no other address is accepted, since there is no encryption.`,
		set:     func(c *Config, s setting) error { return s.listen(&c.Metrics.Listen) }},

	{Name: "events.journald", Kind: "boolean", Default: `false`,
		Meaning: "Whether each event is an entry of systemd's journal, with fields of its own (HVI_ID, HVI_DOMAIN, HVI_GUARD, HVI_ACTION, HVI_SEVERITY, and HVI_EVENT with the whole as JSON). Without it hvid's log has a line of each.",
		set: func(c *Config, s setting) error {
			if s.kind != kindSwitch {
				return s.wrongKind(kindSwitch)
			}
			c.Events.Journald = s.text == "true"
			return nil
		}},
	{Name: "events.syslog", Kind: "string", Default: `""`,
		Meaning: `The socket of a syslog daemon, as "/dev/log", that gets each event as a message of RFC 5424 with JSON for its text; "" for none.`,
		set:     func(c *Config, s setting) error { return s.absoluteOrNone(&c.Events.Syslog, maxPath) }},
	{Name: "events.file", Kind: "string", Default: `""`,
		Meaning: `A file to which each event is appended as a line of JSON, for a shipper to take it from; "" for none. hvid never shortens it: leave that to logrotate, which has to tell nobody. hvid's own log, which is bounded, is below /var/lib/hvi. hvid.service lets hvid write below /var/lib/hvi, /run/hvi and /var/cache/hvi alone.`,
		set:     func(c *Config, s setting) error { return s.absoluteOrNone(&c.Events.File, 4095) }},
	{Name: "events.format", Kind: "string", Default: `"hvi"`, Values: []string{"hvi", "ocsf"},
		Meaning: "What a line of that file is: hvi's own record, as hvictl events -o json has it, or a Detection Finding of OCSF.",
		set: func(c *Config, s setting) error {
			word, err := s.word("hvi", "ocsf")
			if err == nil {
				c.Events.Format = word
			}
			return err
		}},

	{Name: "journal.max_bytes", Kind: "whole number", Default: `16777216`,
		Meaning: "The size in bytes at which a file of the log is closed and a new one begun.",
		set:     func(c *Config, s setting) error { return s.integer(&c.Journal.MaxBytes, 1<<20, 1<<32) }},
	{Name: "journal.keep", Kind: "whole number", Default: `8`,
		Meaning: "The number of closed files that are kept.",
		set:     func(c *Config, s setting) error { return s.integer(&c.Journal.Keep, 1, 1000) }},
	{Name: "journal.sync_every", Kind: "string", Default: `"1s"`,
		Meaning: "The longest time for which an event can be lost when the host itself dies.",
		set: func(c *Config, s setting) error {
			return s.duration(&c.Journal.SyncEvery, 10*time.Millisecond, time.Minute)
		}},
}

// Keys returns every setting of hvid.toml in its order.
func Keys() []Key { return append([]Key(nil), keys...) }

// Default returns the hvid.toml that is installed: every setting, explained and
// commented out.
func Default() []byte {
	var b bytes.Buffer
	for i, s := range sections {
		if i > 0 {
			b.WriteByte('\n')
		}
		comment(&b, s.Meaning)
		if s.Name != "" {
			// The table itself may stand there without a setting in it.
			fmt.Fprintf(&b, "[%s]\n", s.Name)
		}
		for _, k := range keys {
			if k.Table() != s.Name {
				continue
			}
			b.WriteByte('\n')
			comment(&b, k.Meaning)
			if k.Values != nil {
				comment(&b, "One of: "+strings.Join(k.Values, ", ")+".")
			}
			fmt.Fprintf(&b, "#%s = %s\n", k.Name[strings.LastIndexByte(k.Name, '.')+1:], k.Default)
		}
	}
	return b.Bytes()
}

// comment writes text as TOML comments of at most 78 columns.
func comment(b *bytes.Buffer, text string) {
	line := "#"
	for _, w := range strings.Fields(text) {
		if len(line)+1+len(w) > 78 && line != "#" {
			b.WriteString(line + "\n")
			line = "#"
		}
		line += " " + w
	}
	b.WriteString(line + "\n")
}
