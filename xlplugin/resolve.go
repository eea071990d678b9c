package xlplugin

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/xen-hvi/hvi/engine/policy"
	"github.com/xen-hvi/hvi/engine/xen"
)

// Domain is a domain whose config is wanted.
type Domain struct {
	ID   xen.DomID
	Name string   // as in xenstore; empty if unknown
	UUID xen.UUID // as in the hypervisor
}

// String names the domain for people.
func (d Domain) String() string {
	return fmt.Sprintf("domain %d (name %s, uuid %s)", d.ID, policy.Quote(d.Name), d.UUID)
}

// Match is by what a config was recognised as that of a domain.
type Match uint8

const (
	// ByUUID is a config that has the domain's UUID in it.
	ByUUID Match = iota + 1
	// ByName is a config without a UUID and with the domain's name. Two
	// domains never have the same name at the same time.
	ByName
)

// String is "uuid" or "name".
func (m Match) String() string {
	switch m {
	case ByUUID:
		return "uuid"
	case ByName:
		return "name"
	default:
		return "nothing"
	}
}

// Found is the config a domain was created from.
type Found struct {
	// Spec is the policy in it; it declares nothing if there is none.
	Spec policy.Spec
	// Required is as in [Declared], or that of any of the configs of an
	// [*AmbiguousError].
	Required bool
	// ConfigPath is the file, as the xl process saw it, with symbolic links
	// resolved.
	ConfigPath string
	// PID and Argv are the xl process that named the file. It may be gone.
	PID  int
	Argv []string
	// Started is when that process was started, to about a second, or zero if
	// that cannot be told.
	Started time.Time
	// Match is how the config was recognised.
	Match Match
	// Warnings are for the admin: who else can write the file, that it was
	// changed since, keys that look misspelled.
	Warnings []string
}

// ErrNoConfig matches the error of [Resolver.Resolve] for a domain that no
// known xl process was told to create: one made by `xl create -e` or another
// toolstack, restored or migrated, renamed, or older than its xl process.
var ErrNoConfig = errors.New("no xl config found")

// Looked is an xl process that was considered and why it was not it.
type Looked struct {
	PID    int
	Argv   []string
	Reason string
	// Another says that it is simply that of another domain.
	Another bool
}

// String is the process and the reason, on one line.
func (l Looked) String() string {
	return fmt.Sprintf("process %d, %s: %s", l.PID, commandLine(l.Argv), l.Reason)
}

// NoConfigError says what was looked at in vain. It matches [ErrNoConfig].
type NoConfigError struct {
	Domain Domain
	Looked []Looked
}

// Error names the domain, each process looked at, and what to do.
func (e *NoConfigError) Error() string {
	return fmt.Sprintf("%v for %v: %s; a policy can be given with: hvictl attach", ErrNoConfig, e.Domain, e.Reason())
}

// maxReasons is how many processes an error names: a host may have one for each
// of hundreds of domains.
const maxReasons = 4

// Reason is the processes looked at and why each was not it, without the
// domain. Those that are not simply another domain's come first.
func (e *NoConfigError) Reason() string {
	if len(e.Looked) == 0 {
		return "no xl process is creating or watching a domain"
	}
	looked := slices.Clone(e.Looked)
	slices.SortStableFunc(looked, func(a, b Looked) int {
		switch {
		case a.Another == b.Another:
			return 0
		case b.Another:
			return -1
		default:
			return 1
		}
	})
	var b strings.Builder
	for i, l := range looked {
		if i == maxReasons {
			fmt.Fprintf(&b, "; and %d more xl processes, of other domains", len(looked)-i)
			if !l.Another {
				b.WriteString(" or as above")
			}
			break
		}
		if i > 0 {
			b.WriteString("; ")
		}
		b.WriteString(l.String())
	}
	return b.String()
}

// Unwrap returns [ErrNoConfig].
func (e *NoConfigError) Unwrap() error { return ErrNoConfig }

// AmbiguousError is returned when several configs are equally good and say
// different things.
type AmbiguousError struct {
	Domain     Domain
	Candidates []Found
}

// Error lists the configs and who named them.
func (e *AmbiguousError) Error() string {
	var b strings.Builder
	fmt.Fprintf(&b, "several xl configs claim to be that of %v, and their policies differ: ", e.Domain)
	for i, c := range e.Candidates {
		if i > 0 {
			b.WriteString("; ")
		}
		fmt.Fprintf(&b, "%s (process %d, %s)", policy.Quote(c.ConfigPath), c.PID, commandLine(c.Argv))
	}
	b.WriteString("; put a uuid into the config, or give the policy with: hvictl attach")
	return b.String()
}

// commandLine shows arguments on one line; those with anything but plain
// letters in them are quoted.
func commandLine(argv []string) string {
	const most = 12
	var parts []string
	for i, a := range argv {
		if i == most {
			parts = append(parts, "…")
			break
		}
		q := policy.Quote(a)
		if q == `"`+a+`"` && a != "" && !strings.ContainsAny(a, " ;") {
			q = a
		}
		parts = append(parts, q)
	}
	return strings.Join(parts, " ")
}

// Resolver finds the configs domains were created from. The zero value reads
// /proc; it is safe for concurrent use.
type Resolver struct {
	// Proc is where procfs is mounted; empty is /proc.
	Proc string
	// Lib is where libxl keeps what belongs to a domain; empty is [LibDir].
	Lib string
	// Policies are those a config may name beside the presets, or nil.
	Policies policy.Policies

	// uid is the user whose processes and programs are believed; it is root
	// but in tests.
	uid uint32
	// checkProgram replaces the check of who can write the program, in tests.
	checkProgram func(pid int, exe string) string
}

// candidate is a config that fits the domain.
type candidate struct {
	found   Found
	err     error // what is wrong with its policy
	restore bool
	extra   []string
	guessed bool // the directory was guessed from the environment
	another bool // it is that of another domain
}

// Resolve finds the config of a domain and the policy in it, through the xl
// process that creates the domain or watches it.
//
// Call it as soon as the domain appears: while xl is creating, its working
// directory tells what a relative path means. Afterwards it goes to the
// background and changes to /; then the PWD of its environment has to do, and a
// warning says so.
//
// The error is a [*NoConfigError] if there is no such process, an
// [*AmbiguousError] if there are several that contradict each other, and
// otherwise what is wrong with the policy in the config, as of [FromConfig];
// Found is then set all the same, except for its Spec; of an ambiguous one only
// Required is. It takes a few
// milliseconds, but can take as long as reading the config takes, which may lie
// on a network file system.
func (r *Resolver) Resolve(d Domain) (Found, error) {
	p := procfs{r.Proc}
	if p.dir == "" {
		p.dir = "/proc"
	}
	pids, err := p.pids()
	if err != nil {
		return Found{}, fmt.Errorf("cannot look for the xl process of %v: %w", d, err)
	}
	var looked []Looked
	var fits []candidate
	for _, pid := range pids {
		exe, err := p.exe(pid)
		switch {
		case errors.Is(err, fs.ErrNotExist), errors.Is(err, syscall.ESRCH):
			continue // a kernel thread, or gone
		case err != nil:
			// Without the rights to ask, only the name tells that it matters.
			if p.comm(pid) == "xl" {
				looked = append(looked, Looked{PID: pid, Argv: []string{"xl"}, Reason: "cannot tell what it runs (that takes CAP_SYS_PTRACE): " + bare(err)})
			}
			continue
		case path.Base(exe) != "xl":
			continue
		}
		argv, err := p.strings(pid, "cmdline", maxCmdline)
		if err != nil || len(argv) == 0 {
			continue
		}
		inv, ok := parseInvocation(argv)
		if !ok {
			continue
		}
		env, err := p.strings(pid, "environ", maxEnviron)
		if err != nil {
			env = nil // it only helps with relative paths
		}
		c, reason := r.consider(p, d, pid, exe, inv, argv, env)
		if reason != "" {
			looked = append(looked, Looked{PID: pid, Argv: argv, Reason: reason, Another: c.another})
			continue
		}
		fits = append(fits, c)
	}
	if len(fits) == 0 {
		return Found{}, &NoConfigError{Domain: d, Looked: looked}
	}
	return choose(d, fits)
}

// consider reads the config of one xl process and says why it is not that of
// the domain, or "".
func (r *Resolver) consider(p procfs, d Domain, pid int, exe string, inv invocation, argv, env []string) (candidate, string) {
	var none candidate
	if why := r.disbelieve(p, pid, exe); why != "" {
		return none, why
	}
	switch {
	case inv.receive:
		return none, "it receives a domain from another xl, which sends no config"
	case inv.config == "":
		return none, "it restores a domain without a config"
	}
	paths := []string{inv.config}
	guess := -1 // index of a path that was made with PWD
	if !path.IsAbs(inv.config) {
		cwd, err := p.cwd(pid)
		if err != nil {
			return none, "cannot tell where " + policy.Quote(inv.config) + " is: " + err.Error()
		}
		paths[0] = path.Join(cwd, inv.config)
		if pwd, ok := lookupEnv(env, "PWD"); ok && cwd == "/" && path.IsAbs(pwd) && path.Clean(pwd) != "/" {
			paths = []string{path.Join(pwd, inv.config), paths[0]}
			guess = 0
		}
	}
	var reasons []string
	none.another = true
	for i, name := range paths {
		c, reason := r.fits(p, d, pid, name, inv)
		if reason != "" {
			none.another = none.another && c.another
			reasons = append(reasons, reason)
			continue
		}
		c.found.PID, c.found.Argv = pid, argv
		c.restore, c.extra, c.guessed = inv.restore, inv.extra, i == guess
		if c.guessed {
			c.found.Warnings = append(c.found.Warnings, fmt.Sprintf(
				"xl was given the relative path %s and has gone to the background since; it was looked up in %s, the PWD of its environment",
				policy.Quote(inv.config), policy.Quote(path.Dir(name))))
		}
		return c, ""
	}
	return none, strings.Join(reasons, ", and ")
}

// disbelieve says why a process must not define a policy, or "".
func (r *Resolver) disbelieve(p procfs, pid int, exe string) string {
	id, err := p.identity(pid)
	if err != nil {
		return "cannot tell who runs it: " + err.Error()
	}
	for _, uid := range id.uids {
		if uid != uint64(r.uid) {
			return fmt.Sprintf("it is not believed, because it does not run as root alone (user ids %v)", id.uids)
		}
	}
	if id.nested {
		return "it is not believed, because it runs in a container (another PID namespace)"
	}
	if r.checkProgram != nil {
		return r.checkProgram(pid, exe)
	}
	info, err := os.Stat(p.of(pid, "exe"))
	if err != nil {
		return "cannot tell what it runs: " + err.Error()
	}
	if why := p.othersCanWrite(pid, exe, info, r.uid, false); why != "" {
		return "it is not believed, because others than root may have made its program: " + why
	}
	return ""
}

// fits reads one file and says why it is not the config of the domain, or "".
func (r *Resolver) fits(p procfs, d Domain, pid int, name string, inv invocation) (c candidate, reason string) {
	shown := policy.Quote(name)
	var data []byte
	real := name
	if start, err := p.started(pid); err == nil {
		c.found.Started = start
	}
	// To xl this very name means: only what stands on the command line.
	if inv.config != os.DevNull {
		f, resolved, err := p.open(pid, name)
		if err != nil {
			return c, "its config " + shown + " cannot be read: " + bare(err)
		}
		defer f.Close()
		real = resolved
		info, err := f.Stat()
		if err == nil {
			data, err = readAll(f, MaxConfigSize)
		}
		if err != nil {
			return c, "its config " + shown + " cannot be read: " + bare(err)
		}
		if why := p.othersCanWrite(pid, real, info, r.uid, true); why != "" && !strings.HasPrefix(real, "/proc/") {
			c.found.Warnings = append(c.found.Warnings, fmt.Sprintf(
				"others than root can change the config, and with it the policy and what xl runs as root: %s", why))
		}
		// xl reads the file within a moment of its start.
		if start := c.found.Started; !start.IsZero() && info.ModTime().After(start.Add(2*time.Second)) {
			c.found.Warnings = append(c.found.Warnings, fmt.Sprintf(
				"the config was changed at %s, after xl started at %s; the policy is that of the file as it is now",
				info.ModTime().Format(time.RFC3339), start.Format(time.RFC3339)))
		}
	}
	cfg, err := Parse(name, data, inv.extra...)
	if err != nil {
		return c, "its config has errors, so it is not what xl read: " + strings.ReplaceAll(err.Error(), "\n", "; ")
	}
	declared, err := FromConfig(cfg, r.Policies)
	switch {
	case declared.HasUUID && declared.UUID == d.UUID:
		c.found.Match = ByUUID
	case declared.HasUUID:
		c.another = true
		return c, fmt.Sprintf("its config %s is of a domain with uuid %s", shown, declared.UUID)
	case declared.Name != "" && declared.Name == d.Name:
		c.found.Match = ByName
	default:
		c.another = true
		return c, fmt.Sprintf("its config %s is of a domain named %s", shown, policy.Quote(declared.Name))
	}
	c.err = err
	c.found.Spec, c.found.Required = declared.Spec, declared.Required
	c.found.ConfigPath = real
	for _, w := range append(cfg.Warnings, declared.Warnings...) {
		c.found.Warnings = append(c.found.Warnings, w.String())
	}
	return c, ""
}

// choose picks the best of the configs that fit. A UUID is better than a name,
// and creating better than restoring, whose config xl overrides in part. What
// is left is either the same policy or ambiguous.
func choose(d Domain, fits []candidate) (Found, error) {
	rank := func(c candidate) int {
		n := 0
		if c.found.Match != ByUUID {
			n += 2
		}
		if c.restore {
			n++
		}
		return n
	}
	best := rank(slices.MinFunc(fits, func(a, b candidate) int { return rank(a) - rank(b) }))
	fits = slices.DeleteFunc(fits, func(c candidate) bool { return rank(c) != best })

	// One xl is several processes for a moment, when it goes to the background
	// or starts a helper. The one that still is where it was started tells the
	// path for sure.
	slices.SortStableFunc(fits, func(a, b candidate) int {
		switch {
		case a.guessed == b.guessed:
			return a.found.PID - b.found.PID
		case a.guessed:
			return 1
		default:
			return -1
		}
	})
	first := fits[0]
	var rivals []Found
	for _, c := range fits[1:] {
		sameSource := c.found.ConfigPath == first.found.ConfigPath && slices.Equal(c.extra, first.extra)
		sameWords := c.err == nil && first.err == nil && c.found.Spec.SameIntent(first.found.Spec)
		if !sameSource && !sameWords {
			rivals = append(rivals, c.found)
		}
	}
	if rivals != nil {
		e := &AmbiguousError{Domain: d, Candidates: append([]Found{first.found}, rivals...)}
		required := slices.ContainsFunc(e.Candidates, func(f Found) bool { return f.Required || f.Spec.RequireAttach })
		return Found{Required: required}, e
	}
	if first.err != nil {
		return first.found, fmt.Errorf("the policy in the config of %v is not usable: %w", d, first.err)
	}
	return first.found, nil
}

// bare is an error without the path it happened at, which is one below /proc
// that would only confuse.
func bare(err error) string {
	var pe *fs.PathError
	if errors.As(err, &pe) {
		return pe.Err.Error()
	}
	return err.Error()
}

func lookupEnv(env []string, key string) (string, bool) {
	for _, e := range env {
		if v, ok := strings.CutPrefix(e, key+"="); ok {
			return v, true
		}
	}
	return "", false
}
