package scenario

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/xen-hvi/hvi/control"
	"github.com/xen-hvi/hvi/engine/ledger"
	"github.com/xen-hvi/hvi/engine/x86"
	"github.com/xen-hvi/hvi/engine/xen"
)

func init() {
	Register(Scenario{
		Name:     "xl-roads-intel",
		Brief:    "Every way xl makes, moves, names and ends a domain, on Intel: attached first, its policy, nothing left",
		Emulator: Bochs,
		Timeout:  25 * time.Minute,
		Run:      func(t *T) error { return xlRoads(t, true, everyRoad...) },
	})
	Register(Scenario{
		Name:     "xl-roads-amd",
		Brief:    "The same on AMD",
		Emulator: QEMU,
		Timeout:  25 * time.Minute,
		Run:      func(t *T) error { return xlRoads(t, false, everyRoad...) },
	})
	Register(Scenario{
		Name:     "xl-coredump-intel",
		Brief:    "Guests crash and xl dumps their memory, of which it is told where it ends",
		Emulator: Bochs,
		Timeout:  15 * time.Minute,
		Run:      func(t *T) error { return xlRoads(t, true, (*roads).coreDumps) },
	})
	Register(Scenario{
		Name:     "xl-coredump-amd",
		Brief:    "The same on AMD",
		Emulator: QEMU,
		Timeout:  15 * time.Minute,
		Run:      func(t *T) error { return xlRoads(t, false, (*roads).coreDumps) },
	})
	Register(Scenario{
		Name:     "xl-coredump-whole",
		Brief:    "The same on Intel, and xl asks Xen itself where the memory ends: three quarters of an hour each",
		Emulator: Bochs,
		Timeout:  150 * time.Minute,
		Run:      func(t *T) error { return xlRoads(t, true, (*roads).wholeCoreDumps) },
	})
}

// everyRoad is what the scenarios of both makes of processor share.
var everyRoad = []func(*roads){
	(*roads).creations, (*roads).lives, (*roads).endings, (*roads).softReset, (*roads).names, (*roads).protected,
}

// xlRoads starts hvid and takes roads.
func xlRoads(t *T, intel bool, parts ...func(*roads)) error {
	hvid, err := t.StartHVID()
	if err != nil {
		return err
	}
	rs, err := newRoads(t, intel, hvid)
	if err != nil {
		return err
	}
	for _, take := range parts {
		take(rs)
	}
	return nil
}

// roads takes the ways a domain begins, moves and ends, and keeps a fact of
// each.
type roads struct {
	t     *T
	intel bool
	hvid  *Process // nil where something else runs the daemon
	dir   string   // for saved domains
	// entry is where a guest of this kernel begins.
	entry map[string]x86.VirtAddr
	// installed is when the package's installation began, if it was.
	installed time.Time
}

func newRoads(t *T, intel bool, hvid *Process) (*roads, error) {
	dir, err := t.TempDir()
	if err != nil {
		return nil, err
	}
	rs := &roads{t: t, intel: intel, hvid: hvid, dir: dir, entry: map[string]x86.VirtAddr{}}
	for kernel, file := range map[string]string{KernelTiny: TinyKernel, KernelLinux: GuestKernel} {
		if rs.entry[kernel], err = kernelEntry(file); err != nil {
			return nil, err
		}
	}
	return rs, nil
}

// road is what is recorded of one way.
type road struct {
	AttachedFirst *bool   `json:"attached_before_first_instruction,omitempty"`
	PolicySource  string  `json:"policy_source,omitempty"`
	PolicyFrom    string  `json:"policy_from,omitempty"`
	DetachedClean *bool   `json:"detached_clean,omitempty"`
	Protecting    *bool   `json:"protecting,omitempty"`
	AttackBlocked *bool   `json:"attack_blocked,omitempty"`
	Special       string  `json:"special,omitempty"`
	Seconds       float64 `json:"seconds"`

	rs   *roads
	name string
}

// take goes one way. What goes wrong fails the scenario, and the next way is
// taken all the same, from an empty host.
func (rs *roads) take(name string, f func(*road) error) {
	r := &road{rs: rs, name: name}
	rs.t.Logf("road %s ...", name)
	start := time.Now()
	err := rs.t.protect("road "+name, func() error { return f(r) })
	r.Seconds = round(time.Since(start))
	if err != nil {
		rs.t.Check(false, "road %s: %v", name, err)
	}
	rs.t.Fact("road."+name, r)
	rs.sweep()
}

func (r *road) check(ok bool, format string, args ...any) bool {
	return r.rs.t.Check(ok, "road %s: "+format, append([]any{r.name}, args...)...)
}

// sweep destroys what domains a road has left, so that the next begins alone.
func (rs *roads) sweep() {
	ids, err := rs.t.domains()
	if err != nil {
		rs.t.Logf("%v", err)
	}
	for _, id := range ids {
		if _, err := rs.t.XL("destroy", strconv.Itoa(id)); err != nil {
			rs.t.Logf("sweeping: %v", err)
		}
	}
}

// domains asks Xen for the domains but dom0, the dying too.
func (t *T) domains() (ids []int, err error) {
	h, err := xen.Open()
	if err != nil {
		return nil, err
	}
	defer h.Close()
	all, err := h.Domains()
	for _, d := range all {
		if d.ID != 0 {
			ids = append(ids, int(d.ID))
		}
	}
	return ids, err
}

// uuidOf makes a UUID of a name, so that a scenario knows it beforehand.
func uuidOf(name string) string {
	h := sha256.Sum256([]byte(name))
	h[6], h[8] = h[6]&0x0f|0x40, h[8]&0x3f|0x80
	return fmt.Sprintf("%x-%x-%x-%x-%x", h[:4], h[4:6], h[6:8], h[8:10], h[10:16])
}

// guest is the config of a guest on this machine, with a UUID of its own.
func (rs *roads) guest(kernel, name string, lines ...string) GuestConfig {
	c := GuestConfig{Name: name, Kernel: kernel, Lines: append([]string{`uuid = "` + uuidOf(name) + `"`}, lines...)}
	if rs.intel {
		c.Altp2m = "external"
	}
	return c
}

// attachLimit is emulated time from xl's return to hvi's being attached.
const attachLimit = 30 * time.Second

const enforceLine = `introspection = "enforce"`

// want is what must be true of a domain at the end of a road.
type want struct {
	mode   string             // default "enforce"
	from   control.PolicyFrom // default FromXL; fromXLOrKept
	source string             // part of the words for people
	at     x86.VirtAddr       // where the guest stood when hvi attached; 0 is the kernel's entry point
	kernel string
}

// fromXLOrKept is wanted where xl's own process makes a domain anew: it still
// names the config, and what was kept says the same.
const fromXLOrKept control.PolicyFrom = "xl or captured"

// attached waits until hvi is attached to a domain and checks that it was so
// before the guest ran, and by which policy.
func (r *road) attached(g *Guest, w want) (control.DomainStatus, error) {
	if w.mode == "" {
		w.mode = "enforce"
	}
	if w.from == "" {
		w.from = control.FromXL
	}
	if w.at == 0 {
		w.at = r.rs.entry[w.kernel]
	}
	st, err := g.WaitState(attachLimit, control.StateAttached, control.StateIdentifying, control.StateProtecting, control.StateDegraded)
	if err != nil {
		// What it says of itself tells more than that it was not what was wanted.
		if now, e := g.Status(); e == nil {
			r.PolicySource, r.PolicyFrom = now.PolicySource, string(now.PolicyFrom)
			err = fmt.Errorf("%w; it is %s, mode %s, %s %q, failure %+v", err, now.State, now.Mode, now.PolicyFrom, now.PolicySource, now.Failure)
		}
		return st, err
	}
	first := st.AttachPC != nil && *st.AttachPC == w.at
	r.AttachedFirst = &first
	pc := "nowhere"
	if st.AttachPC != nil {
		pc = st.AttachPC.String()
	}
	r.check(first, "attached before the guest's next instruction: at %s, it stood at %s", pc, w.at)
	r.PolicySource, r.PolicyFrom = st.PolicySource, string(st.PolicyFrom)
	r.check(st.Mode == w.mode, "mode is %s: %s, from %q", w.mode, st.Mode, st.PolicySource)
	kind := st.PolicyFrom == w.from || w.from == fromXLOrKept && (st.PolicyFrom == control.FromXL || st.PolicyFrom == control.FromCaptured)
	r.check(kind && strings.Contains(st.PolicySource, w.source), "the policy is of kind %s and names %q: %s, %q", w.from, w.source, st.PolicyFrom, st.PolicySource)
	r.check(st.UUID == g.UUID, "hvid knows the domain by its UUID: %s, xl says %s", st.UUID, g.UUID)
	return st, nil
}

// clean checks that nothing is left of a domain that is gone.
func (r *road) clean(g *Guest) error {
	if err := g.WaitGone(shutLimit); err != nil {
		return err
	}
	return r.forgotten(g)
}

func (r *road) forgotten(g *Guest) error {
	t := r.rs.t
	err := t.Eventually(hvidLimit, "hvid forgets the domain", func() (bool, error) {
		_, err := g.Status()
		return err != nil, nil
	})
	if err != nil {
		return err
	}
	ids, err := t.domains()
	if err != nil {
		return err
	}
	zombie := false
	for _, id := range ids {
		zombie = zombie || id == g.ID
	}
	file := filepath.Join(ledger.DefaultDir, fmt.Sprintf("%d-%s.jsonl", g.ID, g.UUID))
	_, err = os.Lstat(file)
	ok := !zombie && errors.Is(err, fs.ErrNotExist)
	r.check(ok, "nothing is left of domain %d: zombie %v, ledger %v", g.ID, zombie, err)
	if r.DetachedClean != nil {
		ok = ok && *r.DetachedClean
	}
	r.DetachedClean = &ok
	return nil
}

// released checks, through Xen itself, that hvi has let go of a domain that is
// still there.
func (r *road) released(g *Guest) error {
	left, err := r.rs.t.leftovers(g.ID)
	ok := err == nil && left.restricted == 0 && (left.frames > 0 || !r.rs.intel)
	r.DetachedClean = &ok
	r.check(ok, "hvi has let go of domain %d: %d pages of %d restricted, %v", g.ID, left.restricted, left.frames, err)
	return nil
}

// creations are the ways `xl create` is told what to make.
func (rs *roads) creations() {
	t := rs.t
	// ended is what each of them is followed by.
	ended := func(r *road, g *Guest) error {
		if err := g.Destroy(); err != nil {
			return err
		}
		return r.clean(g)
	}
	start := func(c GuestConfig, args ...string) (*Guest, error) {
		path, err := t.WriteConfig(c)
		if err != nil {
			return nil, err
		}
		for i := range args {
			args[i] = strings.ReplaceAll(args[i], "CFG", path)
		}
		if _, err := t.XL(append([]string{"create"}, args...)...); err != nil {
			return nil, err
		}
		return t.OpenGuest(c.Name)
	}
	for _, w := range []struct {
		name   string
		config GuestConfig
		args   []string
		source string
	}{
		{"create-file", rs.guest(KernelTiny, "file", enforceLine), []string{"CFG"}, "file.cfg"},
		{"create-assignments", rs.guest(KernelTiny, "assigned", `introspection = "off"`), []string{"CFG", enforceLine}, "assigned.cfg"},
		{"create-defconfig", rs.guest(KernelTiny, "auto", enforceLine), []string{"--quiet", "--defconfig", "CFG"}, "auto.cfg"},
		{"create-e", rs.guest(KernelTiny, "unwatched", enforceLine), []string{"-e", "CFG"}, "unwatched.cfg"},
		{"create-dev-null", GuestConfig{Name: "nofile", Text: "\n"}, append([]string{"/dev/null"}, rs.assignments(rs.guest(KernelTiny, "nofile", enforceLine))...), ""},
	} {
		rs.take(w.name, func(r *road) error {
			g, err := start(w.config, w.args...)
			if err != nil {
				return err
			}
			if _, err := r.attached(g, want{source: w.source, kernel: KernelTiny}); err != nil {
				return err
			}
			if n, err := g.Poke(); err != nil || n != 1 {
				return errors.Join(fmt.Errorf("the guest does not live: %d", n), err)
			}
			return ended(r, g)
		})
	}
	rs.take("create-stdin", func(r *road) error {
		c := rs.guest(KernelTiny, "stdin", enforceLine)
		path, err := t.WriteConfig(c)
		if err != nil {
			return err
		}
		// From a pipe xl takes no config, only from a file.
		if _, err := t.Sh("exec xl create /proc/self/fd/0 <" + path); err != nil {
			return err
		}
		g, err := t.OpenGuest(c.Name)
		if err != nil {
			return err
		}
		if _, err := r.attached(g, want{kernel: KernelTiny}); err != nil {
			return err
		}
		return ended(r, g)
	})
	rs.take("create-p", func(r *road) error {
		g, err := start(rs.guest(KernelTiny, "paused", enforceLine), "-p", "CFG")
		if err != nil {
			return err
		}
		if _, err := r.attached(g, want{source: "paused.cfg", kernel: KernelTiny}); err != nil {
			return err
		}
		paused, err := t.paused(g.ID)
		if err != nil {
			return err
		}
		r.check(paused, "the guest is still paused for the admin")
		if _, err := t.XL("unpause", strconv.Itoa(g.ID)); err != nil {
			return err
		}
		if n, err := g.Poke(); err != nil || n != 1 {
			return errors.Join(fmt.Errorf("after xl unpause the guest does not live: %d", n), err)
		}
		return ended(r, g)
	})
	rs.take("create-c", func(r *road) error {
		c := rs.guest(KernelTiny, "console", enforceLine)
		path, err := t.WriteConfig(c)
		if err != nil {
			return err
		}
		// Where xenconsole locks the console; Debian has it.
		if err := os.MkdirAll("/var/lock", 0o755); err != nil {
			return err
		}
		xl, err := t.Start("xl", "create", "-c", path)
		if err != nil {
			return err
		}
		err = t.Eventually(bootLimit, "the console shows the guest", func() (bool, error) {
			return strings.Contains(xl.Log(), upMark), nil
		})
		if err != nil {
			return err
		}
		g, err := t.OpenGuest(c.Name)
		if err != nil {
			return err
		}
		if _, err := r.attached(g, want{source: "console.cfg", kernel: KernelTiny}); err != nil {
			return err
		}
		return ended(r, g)
	})
	rs.take("create-nothing-declared", func(r *road) error {
		g, err := start(rs.guest(KernelTiny, "plain"), "CFG")
		if err != nil {
			return err
		}
		st, err := g.WaitState(hvidLimit, control.StateUnprotected)
		if err != nil {
			return err
		}
		r.PolicySource, r.PolicyFrom = st.PolicySource, string(st.PolicyFrom)
		r.check(st.Mode == "off" && st.AttachedAt.IsZero() && st.PolicySource != "", "it is left alone, and status says where was looked: %s %s %q", st.Mode, st.PolicyFrom, st.PolicySource)
		return ended(r, g)
	})
}

// assignments are a config's lines as arguments of xl create.
func (rs *roads) assignments(c GuestConfig) []string {
	return strings.Split(strings.TrimSpace(c.String()), "\n")
}

// next waits for the domain that follows one.
func (r *road) next(g *Guest) (*Guest, error) {
	if err := g.WaitGone(shutLimit); err != nil {
		return nil, err
	}
	n, err := r.rs.t.OpenNext(g)
	if err != nil {
		return nil, err
	}
	r.check(n.UUID == g.UUID && n.ID != g.ID, "another domain of the same UUID follows: %d %s after %d %s", n.ID, n.UUID, g.ID, g.UUID)
	return n, r.forgotten(g)
}

// poke sends an NMI, which a tiny guest may be set to end at.
func (g *Guest) poke() error {
	_, err := g.t.XL("trigger", strconv.Itoa(g.ID), "nmi")
	return err
}

// lives are what befalls a domain that was created.
func (rs *roads) lives() {
	t := rs.t
	start := func(r *road, c GuestConfig) (*Guest, error) {
		g, err := t.StartGuest(c)
		if err != nil {
			return nil, err
		}
		if _, err := r.attached(g, want{source: c.Name + ".cfg", kernel: c.Kernel}); err != nil {
			return nil, err
		}
		_, err = g.WaitUp()
		return g, err
	}
	// A guest that reboots when it is poked.
	reboots := func(name string, lines ...string) GuestConfig {
		c := rs.guest(KernelTiny, name, lines...)
		c.KernelArgs = []string{"1"}
		return c
	}
	rs.take("destroy", func(r *road) error {
		g, err := start(r, rs.guest(KernelTiny, "victim", enforceLine))
		if err != nil {
			return err
		}
		if err := g.Destroy(); err != nil {
			return err
		}
		return r.clean(g)
	})
	rs.take("guest-reboot", func(r *road) error {
		g, err := start(r, reboots("reboots", enforceLine))
		for range 2 {
			if err != nil {
				return err
			}
			if err = g.poke(); err != nil {
				return err
			}
			if g, err = r.next(g); err != nil {
				return err
			}
			if _, err = r.attached(g, want{from: fromXLOrKept, source: "reboots.cfg", kernel: KernelTiny}); err != nil {
				return err
			}
			_, err = g.WaitUp()
		}
		return err
	})
	rs.take("rename", func(r *road) error {
		// Its config has no UUID, so that after a reboot only what was kept
		// tells what it is: xl's own process still has the old name.
		c := reboots("before", enforceLine)
		c.Lines = c.Lines[1:]
		g, err := start(r, c)
		if err != nil {
			return err
		}
		if _, err := t.XL("rename", strconv.Itoa(g.ID), "after"); err != nil {
			return err
		}
		err = t.Eventually(hvidLimit, "hvid shows the new name", func() (bool, error) {
			st, err := g.Status()
			return string(st.Name) == "after", err
		})
		if err != nil {
			return err
		}
		g.Name = "after"
		if err := g.poke(); err != nil {
			return err
		}
		n, err := r.next(g)
		if err != nil {
			return err
		}
		st, err := r.attached(n, want{from: control.FromCaptured, kernel: KernelTiny})
		r.check(string(st.Name) == n.Name, "it reboots under the name %q: %q", n.Name, st.Name)
		return err
	})
	rs.take("create-e-then-reboot-of-hvid", func(r *road) error {
		// With -e no process of xl's is left that knows the config, so what a
		// new hvid finds is what the old one kept.
		c := rs.guest(KernelTiny, "kept", enforceLine)
		c.CreateArgs = []string{"-e"}
		g, err := start(r, c)
		if err != nil {
			return err
		}
		if err := rs.restartHVID(); err != nil {
			return err
		}
		st, err := g.WaitState(attachLimit, control.StateAttached, control.StateIdentifying)
		if err != nil {
			return err
		}
		r.PolicySource, r.PolicyFrom = st.PolicySource, string(st.PolicyFrom)
		r.check(st.Mode == "enforce" && st.PolicyFrom == control.FromCaptured, "the new hvid goes by what the old one kept: %s, %s %q", st.Mode, st.PolicyFrom, st.PolicySource)
		return nil
	})
	rs.take("config-update-then-reboot", func(r *road) error {
		g, err := start(r, reboots("updated", enforceLine))
		if err != nil {
			return err
		}
		next := reboots("updated", `introspection = "observe"`)
		file := filepath.Join(rs.dir, "other.cfg")
		if err := os.WriteFile(file, []byte(next.String()), 0o644); err != nil {
			return err
		}
		if _, err := t.XL("config-update", strconv.Itoa(g.ID), file); err != nil {
			return err
		}
		if err := g.poke(); err != nil {
			return err
		}
		n, err := r.next(g)
		if err != nil {
			return err
		}
		_, err = r.attached(n, want{mode: "observe", kernel: KernelTiny})
		return err
	})
	rs.take("config-removed-then-reboot", func(r *road) error {
		c := reboots("changed", enforceLine)
		g, err := start(r, c)
		if err != nil {
			return err
		}
		if err := os.Remove(c.Path()); err != nil {
			return err
		}
		if err := g.poke(); err != nil {
			return err
		}
		n, err := r.next(g)
		if err != nil {
			return err
		}
		_, err = r.attached(n, want{from: control.FromCaptured, kernel: KernelTiny})
		return err
	})
	rs.take("config-edited-then-reboot", func(r *road) error {
		// Of its own keys xl would not take the change before the next create;
		// of ours it counts from the next start of the guest on.
		c := reboots("changed", enforceLine)
		g, err := start(r, c)
		if err != nil {
			return err
		}
		if err := os.WriteFile(c.Path(), []byte(reboots("changed", `introspection = "observe"`).String()), 0o644); err != nil {
			return err
		}
		if err := g.poke(); err != nil {
			return err
		}
		n, err := r.next(g)
		if err != nil {
			return err
		}
		_, err = r.attached(n, want{mode: "observe", source: "changed.cfg", kernel: KernelTiny})
		return err
	})
}

// restartHVID ends hvid as systemd would and starts it again.
func (rs *roads) restartHVID() error {
	if rs.hvid == nil {
		_, err := rs.t.Exec("systemctl", "restart", "hvid.service")
		return err
	}
	if err := rs.hvid.Stop(hvidLimit); err != nil {
		return err
	}
	var err error
	rs.hvid, err = rs.t.StartHVID()
	return err
}

// ending is a way a guest ends by itself, and what xl does then.
type ending struct {
	reason string // what the guest ends with
	line   string // what xl is told to do then
	after  string // "": nothing, "again": another domain, "kept": the same, "both": the same renamed and another
}

// endings are the ways a guest ends by itself.
func (rs *roads) endings() {
	rs.end(shutLimit, nil, []ending{
		{"3", `on_crash = "destroy"`, ""},
		{"3", `on_crash = "restart"`, "again"},
		{"3", `on_crash = "rename-restart"`, "both"},
		{"3", `on_crash = "preserve"`, "kept"},
		{"4", `on_watchdog = "restart"`, "again"},
		{"0", `on_poweroff = "destroy"`, ""},
		{"0", `on_poweroff = "preserve"`, "kept"},
	})
}

// coreDumps are the endings at which xl dumps the guest's memory. It would try each
// of the million frames below 4 GiB, of which the guest has tinyFrames.
func (rs *roads) coreDumps() {
	rs.dumps(shutLimit, "LD_PRELOAD="+dumpCore, fmt.Sprint("DUMPCORE_FRAMES=", tinyFrames))
}

// tinyFrames is how many frames the small guest has: 16 MiB.
const tinyFrames = 4096

// wholeCoreDumps are the same, and xl does try each.
func (rs *roads) wholeCoreDumps() { rs.dumps(time.Hour) }

// dumps takes them, each of which is over within limit, with what xl finds in its
// environment.
func (rs *roads) dumps(limit time.Duration, env ...string) {
	if err := os.MkdirAll(dumpDir, 0o755); err != nil {
		rs.t.Check(false, "%v", err)
	}
	rs.end(limit, env, []ending{
		{"3", `on_crash = "coredump-destroy"`, ""},
		{"3", `on_crash = "coredump-restart"`, "again"},
	})
}

// end takes the roads of endings, each of which is over within limit.
func (rs *roads) end(limit time.Duration, env []string, endings []ending) {
	t := rs.t
	for _, w := range endings {
		key, value, _ := strings.Cut(w.line, " = ")
		value = strings.Trim(value, `"`)
		rs.take(strings.TrimPrefix(key, "on_")+"-"+value, func(r *road) error {
			c := rs.guest(KernelTiny, "ends", enforceLine, w.line)
			c.KernelArgs, c.Env = []string{w.reason}, env
			g, err := t.StartGuest(c)
			if err != nil {
				return err
			}
			if _, err := r.attached(g, want{source: "ends.cfg", kernel: KernelTiny}); err != nil {
				return err
			}
			if _, err := g.WaitUp(); err != nil {
				return err
			}
			if err := g.poke(); err != nil {
				return err
			}
			if w.after == "" || w.after == "again" {
				err = g.WaitGone(limit)
			}
			if err == nil && w.after == "" {
				err = r.clean(g)
			}
			var n *Guest
			switch w.after {
			case "again":
				n, err = r.next(g)
			case "both":
				n, err = t.OpenNext(g)
			}
			if err != nil {
				return err
			}
			if w.after == "kept" || w.after == "both" {
				if _, err := g.WaitState(shutLimit, control.StateDetached); err != nil {
					return err
				}
				if err := r.released(g); err != nil {
					return err
				}
			}
			if n != nil {
				// A domain that is renamed gets a UUID of its own, and the one that
				// follows keeps the old.
				r.check(n.UUID == uuidOf("ends"), "the domain that follows has the UUID of the config: %s", n.UUID)
				if _, err := r.attached(n, want{from: fromXLOrKept, source: "ends.cfg", kernel: KernelTiny}); err != nil {
					return err
				}
			}
			if strings.HasPrefix(value, "coredump") {
				dumps, err := filepath.Glob(filepath.Join(dumpDir, "*"))
				if err != nil {
					return err
				}
				r.check(len(dumps) == 1, "xl wrote a core dump: %q", dumps)
				for _, d := range dumps {
					// It holds no Linux, but is read as what it is.
					code, text := t.fails("hvictl", "inspect", d, "info")
					r.check(code == exitImage && strings.Contains(text, "no Linux kernel is found in this Xen core image"),
						"hvictl reads the dump and says what it lacks: exit code %d, %s", code, text)
					if err := os.Remove(d); err != nil {
						return err
					}
				}
			}
			return nil
		})
	}
}

// softReset has a PVH guest ask to be reset. That libxl does for HVM guests
// alone: it refuses, and xl destroys the domain.
func (rs *roads) softReset() {
	rs.take("soft-reset-pvh", func(r *road) error {
		c := rs.guest(KernelTiny, "resets", enforceLine)
		c.KernelArgs = []string{"5"}
		g, err := rs.t.StartGuest(c)
		if err != nil {
			return err
		}
		if _, err := r.attached(g, want{source: "resets.cfg", kernel: KernelTiny}); err != nil {
			return err
		}
		if _, err := g.WaitUp(); err != nil {
			return err
		}
		if err := g.poke(); err != nil {
			return err
		}
		r.Special = "xl destroys a PVH guest that asks for a soft reset"
		return r.clean(g)
	})
}

// dumpDir is where xl puts core dumps.
const dumpDir = "/var/lib/xen/dump"
