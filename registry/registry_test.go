package registry

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/xen-hvi/hvi/config"
	"github.com/xen-hvi/hvi/engine/policy"
	"github.com/xen-hvi/hvi/engine/xen"
	"github.com/xen-hvi/hvi/xlplugin"
)

// world is a host: its xl processes, its admin's files, its clock.
type world struct {
	*Registry
	t   *testing.T
	now time.Time
	log bytes.Buffer

	// found is the config that an xl process names, xlErr what is wrong.
	found xlplugin.Found
	xlErr error
	// updates are what xl config-update left, by domain.
	updates map[xen.DomID]xlplugin.Update
	nodes   map[string]string
	asked   []xlplugin.Domain

	dir string
	opt Options
}

func newWorld(t *testing.T) *world {
	t.Helper()
	w := &world{t: t, now: noon, updates: map[xen.DomID]xlplugin.Update{}, nodes: map[string]string{}, dir: t.TempDir()}
	w.noXL()
	for _, d := range []string{config.DomainsDir, config.PoliciesDir} {
		if err := os.Mkdir(filepath.Join(w.dir, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	w.opt = Options{
		Store: open(t), XL: w, XenStore: w,
		Files: &config.Files{Dir: w.dir, Owner: uint32(os.Getuid())},
		Log:   slog.New(slog.NewTextHandler(&w.log, nil)),
		Now:   func() time.Time { return w.now },
	}
	w.Registry = New(w.opt)
	return w
}

// restart is what a restart of hvid comes to.
func (w *world) restart() { w.Registry = New(w.opt) }

func (w *world) noXL() {
	w.found, w.xlErr = xlplugin.Found{}, &xlplugin.NoConfigError{}
}

// xlSays makes an xl process, started at that time, name a config of that mode;
// "" is one without our keys.
func (w *world) xlSays(mode string, started time.Time) {
	w.found, w.xlErr = xlplugin.Found{ConfigPath: "/etc/xen/web.cfg", Started: started}, nil
	if mode != "" {
		w.found.Spec = spec(w.t, mode, "/etc/xen/web.cfg")
	}
}

// file writes an admin's file, last changed now.
func (w *world) file(name, content string) {
	w.t.Helper()
	path := filepath.Join(w.dir, name)
	if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
		w.t.Fatal(err)
	}
	if err := os.Chtimes(path, w.now, w.now); err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) Resolve(d xlplugin.Domain) (xlplugin.Found, error) {
	w.asked = append(w.asked, d)
	return w.found, w.xlErr
}

func (w *world) Updated(id xen.DomID, _ xen.UUID) (xlplugin.Update, bool, error) {
	u, ok := w.updates[id]
	return u, ok, nil
}

// updated is what xl config-update leaves for a domain.
func (w *world) updated(id xen.DomID, mode string) {
	u := xlplugin.Update{Declared: xlplugin.Declared{Name: "web"}, Stored: w.now}
	if mode != "" {
		u.Declared.Spec = spec(w.t, mode, "userdata")
	}
	w.updates[id] = u
}

func (w *world) Read(path string) (string, error) {
	if v, ok := w.nodes[path]; ok {
		return v, nil
	}
	return "", os.ErrNotExist
}

func (w *world) handed(mode string) {
	w.t.Helper()
	e := Entry{UUID: uuid1, Name: "web", Toolstack: ToolstackLibvirt, Source: "libvirt metadata"}
	if mode != "" {
		e.Spec = spec(w.t, mode, "libvirt metadata")
	}
	if err := w.Hand(e); err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) set(mode string) {
	w.t.Helper()
	if err := w.Set(uuid1, "web", spec(w.t, mode, "hvictl set"), "hvictl set"); err != nil {
		w.t.Fatal(err)
	}
}

// Why a guest has stopped, in Xen's numbers.
const (
	poweroff xen.ShutdownReason = iota
	reboot
	suspend
	crash
	watchdog
	softReset
)

func dom(id int) xen.DomainInfo { return xen.DomainInfo{ID: xen.DomID(id), UUID: uuid1} }

func stopped(id int, why xen.ShutdownReason) xen.DomainInfo {
	d := dom(id)
	d.Shutdown, d.ShutdownReason = true, why
	return d
}

// is asks what holds for domain id, called web, and compares.
func (w *world) is(id int, from From, mode string) Decision {
	w.t.Helper()
	return w.named(id, "web", from, mode)
}

func (w *world) named(id int, name string, from From, mode string) Decision {
	w.t.Helper()
	w.now = w.now.Add(time.Second)
	d, err := w.Registry.Resolve(dom(id), name)
	if err != nil {
		w.t.Errorf("domain %d: %v", id, err)
	}
	if d.From != from || d.Spec.Mode.String() != mode || d.Spec.Declared() != (from != FromNone) {
		w.t.Errorf("domain %d: %s from %s (%s), want %s from %s", id, d.Spec.Mode, d.From, d.Source, mode, from)
	}
	if d.Source == "" {
		w.t.Errorf("domain %d: nothing is said about where %s comes from", id, from)
	}
	return d
}

func (w *world) fails(id int, from From, words ...string) {
	w.t.Helper()
	d, err := w.Registry.Resolve(dom(id), "web")
	if err == nil || d.From != from || d.Spec.Declared() {
		w.t.Errorf("domain %d: %+v, %v; want an error from %s", id, d, err, from)
		return
	}
	for _, word := range words {
		if !strings.Contains(err.Error()+d.Source, word) {
			w.t.Errorf("domain %d: %q of %q does not say %q", id, err, d.Source, word)
		}
	}
}

// ends is a domain's whole end, as the watcher reports it.
func (w *world) ends(info xen.DomainInfo) {
	w.t.Helper()
	if info.Shutdown {
		if err := w.ShutDown(info); err != nil {
			w.t.Error(err)
		}
	}
	delete(w.updates, info.ID)
	if err := w.Ended(info); err != nil {
		w.t.Error(err)
	}
}

func (w *world) keeps(n int) {
	w.t.Helper()
	if names := files(w.t, w.opt.Store); len(names) != n {
		w.t.Errorf("%d files are kept, want %d: %q", len(names), n, names)
	}
}

// TestPrecedence takes every source away, one after the other.
func TestPrecedence(t *testing.T) {
	w := newWorld(t)
	w.opt.Default = spec(t, "observe", "/etc/hvi/hvid.toml")
	w.restart()
	w.set("enforce")
	w.now = w.now.Add(time.Minute)
	w.file("domains/web.toml", `mode = "observe"`)
	w.file("domains/"+uuid1.String()+".toml", `mode = "enforce"`)
	w.xlSays("observe", w.now)
	w.now = w.now.Add(time.Minute)
	w.handed("enforce")

	w.is(1, FromHook, "enforce")
	w.restart()
	w.is(1, FromXL, "observe")
	w.noXL()
	w.is(1, FromFile, "enforce")
	os.Remove(filepath.Join(w.dir, "domains", uuid1.String()+".toml"))
	w.is(1, FromFile, "observe")
	os.Remove(filepath.Join(w.dir, "domains", "web.toml"))
	// What the file said was kept, but it is not there any more.
	d := w.is(1, FromDefault, "observe")
	if !strings.Contains(d.Source, "the host's default at /etc/hvi/hvid.toml:1, since nothing is declared") {
		t.Errorf("source %q", d.Source)
	}
	w.opt.Default = policy.Spec{}
	w.restart()
	d = w.is(1, FromNone, "off")
	for _, want := range []string{"no xl process", "no file for it in domains", "nothing is kept", "default is off"} {
		if !strings.Contains(d.Source, want) {
			t.Errorf("source %q does not say %q", d.Source, want)
		}
	}
	w.keeps(0)
}

// TestWithoutOurKeys removes the key and starts the guest anew.
func TestWithoutOurKeys(t *testing.T) {
	for name, silent := range map[string]func(*world){
		"xl":      func(w *world) { w.xlSays("", w.now.Add(time.Minute)) },
		"libvirt": func(w *world) { w.noXL(); w.handed("") },
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			w.xlSays("enforce", w.now)
			w.is(1, FromXL, "enforce")
			w.ends(stopped(1, reboot))
			w.keeps(1)
			silent(w)
			d := w.is(2, FromNone, "off")
			if !strings.Contains(d.Source, "no introspection key") && !strings.Contains(d.Source, "no policy in it") {
				t.Errorf("source %q", d.Source)
			}
			w.keeps(0)
			w.noXL()
			w.restart()
			w.is(3, FromNone, "off")

			// The admin's file and the host's default stand in all the same.
			w.file("domains/web.toml", `mode = "observe"`)
			silent(w)
			w.is(4, FromFile, "observe")
		})
	}
}

func TestRoads(t *testing.T) {
	t.Run("reboot, with the xl process gone", func(t *testing.T) {
		w := newWorld(t)
		w.xlSays("enforce", w.now)
		w.is(1, FromXL, "enforce")
		w.noXL()
		w.ends(stopped(1, reboot))
		d := w.is(2, FromKept, "enforce")
		if !strings.Contains(d.Source, `xl config "/etc/xen/web.cfg"`) || d.Captured.IsZero() {
			t.Errorf("%+v", d)
		}
		w.ends(dom(2))
		w.keeps(0)
		w.is(3, FromNone, "off")
	})
	t.Run("hvid restarts in between", func(t *testing.T) {
		w := newWorld(t)
		w.xlSays("enforce", w.now)
		w.is(1, FromXL, "enforce")
		w.noXL()
		w.restart()
		w.is(1, FromKept, "enforce")
		w.restart() // and misses the reboot
		w.is(2, FromKept, "enforce")
	})
	t.Run("every reason a guest stops for", func(t *testing.T) {
		for _, why := range []xen.ShutdownReason{reboot, crash, watchdog, softReset, poweroff} {
			w := newWorld(t)
			w.xlSays("enforce", w.now)
			w.is(1, FromXL, "enforce")
			w.noXL()
			w.ends(stopped(1, why))
			w.is(2, FromKept, "enforce")
			w.ends(stopped(2, why))
			w.now = w.now.Add(RestartGrace)
			if n, err := w.Prune(func(xen.UUID) bool { return false }); n != 1 || err != nil {
				t.Errorf("%v: removed %d, %v", why, n, err)
			}
		}
	})
	t.Run("save, and restore a year later", func(t *testing.T) {
		w := newWorld(t)
		w.xlSays("enforce", w.now)
		w.is(1, FromXL, "enforce")
		w.noXL()
		w.ends(stopped(1, suspend))
		w.now = w.now.Add(365 * 24 * time.Hour)
		if n, err := w.Prune(func(xen.UUID) bool { return false }); n != 0 || err != nil {
			t.Errorf("removed %d, %v", n, err)
		}
		w.restart()
		w.is(2, FromKept, "enforce")
		// It stays, for the image may be restored again.
		w.ends(dom(2))
		w.is(3, FromKept, "enforce")
		w.ends(stopped(3, poweroff))
		w.is(4, FromKept, "enforce")
	})
	t.Run("restore with a config", func(t *testing.T) {
		w := newWorld(t)
		w.xlSays("enforce", w.now)
		w.is(1, FromXL, "enforce")
		w.ends(stopped(1, suspend))
		w.xlSays("observe", w.now.Add(time.Minute))
		w.is(2, FromXL, "observe")
		w.noXL()
		w.is(2, FromKept, "observe")
		w.ends(stopped(2, suspend))
		w.xlSays("", w.now.Add(time.Hour))
		w.is(3, FromNone, "off")
		w.noXL()
		w.is(3, FromNone, "off")
	})
	t.Run("a snapshot, and it runs on", func(t *testing.T) {
		w := newWorld(t)
		w.xlSays("enforce", w.now)
		w.is(1, FromXL, "enforce")
		if err := w.ShutDown(stopped(1, suspend)); err != nil {
			t.Fatal(err)
		}
		w.noXL()
		w.is(1, FromKept, "enforce")
		e, _, _ := w.Get(uuid1)
		if !e.Suspended || !e.Gone.IsZero() || e.Domain != 1 {
			t.Errorf("%+v", e)
		}
	})
	t.Run("xl rename, then reboot", func(t *testing.T) {
		w := newWorld(t)
		w.xlSays("enforce", w.now)
		w.is(1, FromXL, "enforce")
		w.noXL() // its config has the old name
		w.ends(stopped(1, reboot))
		w.named(2, "renamed", FromKept, "enforce")
		if e, _, _ := w.Get(uuid1); e.Name != "renamed" {
			t.Errorf("kept as %q", e.Name)
		}
	})
	t.Run("migrated to this host", func(t *testing.T) {
		w := newWorld(t)
		w.file("domains/web.toml", `mode = "enforce"`)
		w.named(1, "web--incoming", FromFile, "enforce")
		if got := w.asked[len(w.asked)-1]; got.Name != "web" {
			t.Errorf("xl was asked about %q", got.Name)
		}
		w.is(1, FromFile, "enforce")
	})
	t.Run("migrated to this host, announced by the other", func(t *testing.T) {
		from, w := newWorld(t), newWorld(t)
		from.xlSays("enforce", from.now)
		from.is(1, FromXL, "enforce")
		sent, _, _ := from.Get(uuid1)
		if err := w.Import(sent); err != nil {
			t.Fatal(err)
		}
		for range 2 {
			w.now = w.now.Add(24 * time.Hour)
			if n, err := w.Prune(func(xen.UUID) bool { return false }); n != 0 || err != nil {
				t.Errorf("removed %d, %v", n, err)
			}
		}
		w.named(1, "web--incoming", FromKept, "enforce")
		w.is(1, FromKept, "enforce")
	})
	t.Run("migrated within this host", func(t *testing.T) {
		w := newWorld(t)
		w.xlSays("enforce", w.now)
		w.is(1, FromXL, "enforce")
		w.noXL()
		w.named(2, "web--incoming", FromKept, "enforce")
		if err := w.ShutDown(stopped(1, suspend)); err != nil {
			t.Fatal(err)
		}
		w.named(1, "web--migratedaway", FromKept, "enforce")
		w.ends(stopped(1, suspend))
		w.is(2, FromKept, "enforce")
		w.ends(stopped(2, reboot))
		w.is(3, FromKept, "enforce")
	})
	t.Run("a migration within this host that fails", func(t *testing.T) {
		w := newWorld(t)
		w.xlSays("enforce", w.now)
		w.is(1, FromXL, "enforce")
		w.noXL()
		w.named(2, "web--incoming", FromKept, "enforce")
		w.ends(dom(2))
		w.is(1, FromKept, "enforce")
	})
	t.Run("renamed and restarted: the crashed one is kept under another UUID", func(t *testing.T) {
		w := newWorld(t)
		w.xlSays("enforce", w.now)
		w.is(1, FromXL, "enforce")
		w.noXL()
		// The new domain is there before the old one's end was told.
		w.is(2, FromKept, "enforce")
		w.ends(stopped(1, crash))
		w.ends(dom(1))
		w.restart()
		w.is(2, FromKept, "enforce")
	})
	t.Run("10,000 domains come and go", func(t *testing.T) {
		w := newWorld(t)
		w.xlSays("enforce", w.now)
		for i := range 10_000 {
			info := xen.DomainInfo{ID: xen.DomID(i%32_000 + 1), UUID: numbered(i)}
			if d, err := w.Registry.Resolve(info, fmt.Sprintf("../../%d;rm -rf /\xff", i)); err != nil || d.From != FromXL {
				t.Fatalf("%d: %+v, %v", i, d, err)
			}
			if err := w.Ended(info); err != nil {
				t.Fatalf("%d: %v", i, err)
			}
		}
		w.keeps(0)
		if n := len(w.next) + len(w.Registry.handed); n != 0 {
			t.Errorf("%d are remembered", n)
		}
	})
}

func TestHandOver(t *testing.T) {
	t.Run("hvid restarts between the hook and the start", func(t *testing.T) {
		w := newWorld(t)
		w.handed("enforce")
		w.restart()
		w.is(1, FromKept, "enforce")
	})
	t.Run("a restart hands over before the old domain's end is seen", func(t *testing.T) {
		w := newWorld(t)
		w.handed("observe")
		w.is(1, FromHook, "observe")
		w.handed("enforce")
		w.ends(dom(1))
		w.keeps(1)
		w.is(2, FromHook, "enforce")
		w.restart()
		w.is(2, FromKept, "enforce")
		w.ends(dom(2))
		w.keeps(0)
	})
	t.Run("metadata is edited while the domain runs", func(t *testing.T) {
		w := newWorld(t)
		w.handed("observe")
		w.is(1, FromHook, "observe")
		if err := w.Hand(Entry{UUID: uuid1, Name: "web", Toolstack: ToolstackLibvirt, Source: "libvirt metadata", Domain: 1, Spec: spec(t, "enforce", "x")}); err != nil {
			t.Fatal(err)
		}
		w.is(1, FromHook, "enforce")
		w.ends(dom(1))
		w.keeps(0)
	})
	t.Run("the element is removed", func(t *testing.T) {
		w := newWorld(t)
		w.handed("enforce")
		w.is(1, FromHook, "enforce")
		w.ends(stopped(1, reboot))
		w.handed("")
		w.keeps(0)
		w.is(2, FromNone, "off")
	})
	t.Run("the domain was saved once", func(t *testing.T) {
		w := newWorld(t)
		w.handed("enforce")
		w.is(1, FromHook, "enforce")
		w.ends(stopped(1, suspend))
		w.handed("observe")
		w.is(2, FromHook, "observe")
		w.ends(dom(2))
		if e, ok, _ := w.Get(uuid1); !ok || !e.Suspended {
			t.Errorf("%+v", e)
		}
		w.handed("")
		w.is(3, FromNone, "off")
		if e, ok, _ := w.Get(uuid1); !ok || !e.Suspended || e.Spec.Declared() {
			t.Errorf("%+v", e)
		}
	})
	t.Run("it cannot be honoured", func(t *testing.T) {
		w := newWorld(t)
		w.file("domains/web.toml", `mode = "observe"`)
		if err := w.Hand(Entry{UUID: uuid1, Toolstack: ToolstackLibvirt, Source: "libvirt metadata", Broken: `web.xml:3:5: unknown mode "x"`}); err != nil {
			t.Fatal(err)
		}
		w.fails(1, FromHook, "web.xml:3:5")
		w.restart()
		os.Remove(filepath.Join(w.dir, "domains", "web.toml"))
		w.fails(1, FromKept, "web.xml:3:5")
	})
	t.Run("the domain becomes xl's", func(t *testing.T) {
		w := newWorld(t)
		w.handed("enforce")
		w.is(1, FromHook, "enforce")
		w.ends(dom(1))
		w.xlSays("observe", w.now.Add(time.Minute))
		w.is(2, FromXL, "observe")
	})
	t.Run("a start that never came is forgotten", func(t *testing.T) {
		w := newWorld(t)
		w.handed("enforce")
		for range 2 {
			w.now = w.now.Add(RestartGrace)
			if _, err := w.Prune(func(xen.UUID) bool { return false }); err != nil {
				t.Fatal(err)
			}
		}
		w.keeps(0)
		w.is(1, FromNone, "off")
	})
	t.Run("it is checked", func(t *testing.T) {
		w := newWorld(t)
		for _, e := range []Entry{
			{UUID: uuid1, Toolstack: "xm"},
			{UUID: uuid1, Toolstack: ToolstackLibvirt, Name: strings.Repeat("x", MaxText+1)},
			{UUID: uuid1, Toolstack: ToolstackLibvirt, Spec: policy.Spec{Mode: 9}},
		} {
			if err := w.Hand(e); err == nil {
				t.Errorf("%+v was taken", e)
			}
		}
		w.keeps(0)
	})
}

func TestSetByHand(t *testing.T) {
	t.Run("it holds against an older xl process and an older file", func(t *testing.T) {
		w := newWorld(t)
		w.file("domains/web.toml", `mode = "off"`)
		w.xlSays("observe", w.now)
		w.is(1, FromXL, "observe")
		w.now = w.now.Add(time.Minute)
		w.set("enforce")
		w.is(1, FromHvictl, "enforce")
		w.ends(stopped(1, reboot))
		w.is(2, FromHvictl, "enforce")
		w.noXL()
		w.is(2, FromHvictl, "enforce")
		w.restart()
		w.is(2, FromHvictl, "enforce")

		// A newer file does not.
		w.now = w.now.Add(time.Minute)
		w.file("domains/web.toml", `mode = "observe"`)
		w.is(2, FromFile, "observe")
	})
	t.Run("the guest is created anew", func(t *testing.T) {
		w := newWorld(t)
		w.xlSays("observe", w.now)
		w.is(1, FromXL, "observe")
		w.now = w.now.Add(time.Minute)
		w.set("enforce")
		w.ends(stopped(1, poweroff))
		w.xlSays("observe", w.now.Add(10*time.Second))
		w.is(2, FromXL, "observe")
		w.is(2, FromXL, "observe")
	})
	t.Run("the guest is created anew without our keys", func(t *testing.T) {
		w := newWorld(t)
		w.set("enforce")
		w.xlSays("", w.now.Add(time.Minute))
		w.is(1, FromNone, "off")
		w.noXL()
		w.is(1, FromNone, "off")
	})
	t.Run("it is cleared", func(t *testing.T) {
		w := newWorld(t)
		w.xlSays("observe", w.now)
		w.is(1, FromXL, "observe")
		w.now = w.now.Add(time.Minute)
		w.set("enforce")
		if err := w.Clear(uuid1); err != nil {
			t.Fatal(err)
		}
		w.is(1, FromXL, "observe")
	})
	t.Run("of a domain that was saved", func(t *testing.T) {
		w := newWorld(t)
		w.xlSays("observe", w.now)
		w.is(1, FromXL, "observe")
		w.noXL()
		w.ends(stopped(1, suspend))
		w.set("enforce")
		if e, _, _ := w.Get(uuid1); !e.Suspended || e.Toolstack != ToolstackHvictl {
			t.Errorf("%+v", e)
		}
		w.is(2, FromHvictl, "enforce")
	})
}

func TestConfigUpdate(t *testing.T) {
	start := func(t *testing.T) *world {
		w := newWorld(t)
		w.xlSays("observe", w.now)
		w.is(1, FromXL, "observe")
		w.now = w.now.Add(time.Minute)
		return w
	}
	t.Run("it counts from the restart on", func(t *testing.T) {
		w := start(t)
		w.updated(1, "enforce")
		w.ConfigUpdated(1, uuid1)
		w.is(1, FromXL, "observe")
		w.ends(stopped(1, reboot))
		d := w.is(2, FromXL, "enforce")
		if !strings.Contains(d.Source, "xl config-update of 2026-03-01T12:01") {
			t.Errorf("source %q", d.Source)
		}
		w.ends(stopped(2, reboot))
		w.is(3, FromXL, "enforce")
		w.noXL()
		w.restart()
		w.is(4, FromXL, "enforce")
		w.keeps(1)
	})
	t.Run("it is seen only when the guest stops", func(t *testing.T) {
		w := start(t)
		w.updated(1, "enforce")
		w.ends(stopped(1, reboot))
		w.is(2, FromXL, "enforce")
	})
	t.Run("hvid was not there when the guest restarted", func(t *testing.T) {
		w := start(t)
		w.updated(1, "enforce")
		w.ConfigUpdated(1, uuid1)
		delete(w.updates, 1)
		w.restart()
		w.is(2, FromXL, "enforce")
	})
	t.Run("soft reset keeps the number", func(t *testing.T) {
		w := start(t)
		w.updated(1, "enforce")
		if err := w.ShutDown(stopped(1, softReset)); err != nil {
			t.Fatal(err)
		}
		delete(w.updates, 1)
		w.is(1, FromXL, "enforce")
	})
	t.Run("xl makes up another UUID", func(t *testing.T) {
		w := start(t)
		w.updated(1, "enforce")
		w.ends(stopped(1, reboot))
		info := dom(2)
		info.UUID = uuid2
		d, err := w.Registry.Resolve(info, "web")
		if err != nil || d.From != FromXL || d.Spec.Mode != policy.ModeEnforce {
			t.Errorf("%+v, %v", d, err)
		}
		if _, ok, _ := w.Get(uuid1); ok {
			t.Error("the old UUID's entry is still there")
		}
		if _, ok, _ := w.Get(uuid2); !ok {
			t.Error("nothing is kept for the new UUID")
		}
		// Another domain of another name has nothing to do with it.
		info.UUID, info.ID = numbered(9), 3
		w.noXL()
		if d, err := w.Registry.Resolve(info, "db"); err != nil || d.From != FromNone {
			t.Errorf("%+v, %v", d, err)
		}
	})
	t.Run("it names a UUID", func(t *testing.T) {
		w := start(t)
		w.updated(1, "enforce")
		u := w.updates[1]
		u.Declared.UUID, u.Declared.HasUUID = uuid2, true
		w.updates[1] = u
		w.ends(stopped(1, reboot))
		w.noXL()
		w.is(2, FromKept, "observe") // the old UUID, by whatever toolstack
		w = start(t)
		w.updates[1] = u
		w.ends(stopped(1, reboot))
		info := dom(2)
		info.UUID = uuid2
		if d, err := w.Registry.Resolve(info, "renamed"); err != nil || d.From != FromXL || d.Spec.Mode != policy.ModeEnforce {
			t.Errorf("%+v, %v", d, err)
		}
	})
	t.Run("it takes our keys away", func(t *testing.T) {
		w := start(t)
		w.updated(1, "")
		w.ends(stopped(1, reboot))
		w.is(2, FromNone, "off")
		w.ends(stopped(2, reboot))
		w.is(3, FromNone, "off")
		w.xlSays("enforce", w.now.Add(time.Minute))
		w.is(4, FromXL, "enforce")
	})
	t.Run("a domain about which nothing was known", func(t *testing.T) {
		w := newWorld(t)
		w.is(1, FromNone, "off")
		w.updated(1, "enforce")
		w.ConfigUpdated(1, uuid1)
		w.is(1, FromNone, "off")
		w.ends(stopped(1, reboot))
		w.is(2, FromXL, "enforce")
	})
	t.Run("its policy is broken", func(t *testing.T) {
		w := start(t)
		w.updated(1, "")
		u := w.updates[1]
		u.Err = errors.New("userdata:3:1: unknown mode\nuserdata:4:1: unknown guard")
		w.updates[1] = u
		w.ends(stopped(1, reboot))
		w.fails(2, FromXL, "userdata:3:1: unknown mode; userdata:4:1", "xl config-update")
		w.restart()
		w.fails(2, FromXL, "userdata:3:1")
	})
	t.Run("a save loses it, in xl too", func(t *testing.T) {
		w := start(t)
		w.updated(1, "enforce")
		w.ends(stopped(1, suspend))
		w.noXL()
		w.is(2, FromKept, "observe")
		w.ends(stopped(2, reboot))
		w.is(3, FromKept, "observe")
	})
	t.Run("the domain is sent to another number", func(t *testing.T) {
		w := start(t)
		w.updated(1, "enforce")
		w.ConfigUpdated(1, uuid1)
		w.noXL()
		w.named(2, "web--incoming", FromKept, "observe")
		w.ends(stopped(1, suspend))
		w.is(2, FromKept, "observe")
		w.ends(stopped(2, reboot))
		w.is(3, FromKept, "observe")
	})
	t.Run("the domain fails to be sent", func(t *testing.T) {
		w := start(t)
		w.updated(1, "enforce")
		w.ConfigUpdated(1, uuid1)
		w.named(2, "web--incoming", FromXL, "observe")
		w.ends(dom(2))
		w.ends(stopped(1, reboot))
		w.is(3, FromXL, "enforce")
	})
	t.Run("another domain of the name, much later", func(t *testing.T) {
		w := start(t)
		w.updated(1, "enforce")
		w.noXL()
		w.ends(stopped(1, poweroff))
		info := dom(2)
		info.UUID = uuid2
		if d, err := w.Registry.Resolve(info, "db"); err != nil || d.From != FromNone {
			t.Errorf("another name: %+v, %v", d, err)
		}
		w.now = w.now.Add(PowerOffGrace)
		info.ID = 3
		if d, err := w.Registry.Resolve(info, "web"); err != nil || d.From != FromNone {
			t.Errorf("later: %+v, %v", d, err)
		}
	})
	t.Run("it is written down once", func(t *testing.T) {
		w := start(t)
		w.updated(1, "enforce")
		w.ConfigUpdated(1, uuid1)
		w.opt.Store.sync = func(*os.File) error { return errors.New("it is written again") }
		w.ConfigUpdated(1, uuid1)
		if w.log.Len() > 0 {
			t.Errorf("log: %s", w.log.String())
		}
	})
	t.Run("the domain is destroyed", func(t *testing.T) {
		w := start(t)
		w.updated(1, "enforce")
		w.ConfigUpdated(1, uuid1)
		w.ends(dom(1))
		w.keeps(0)
		w.xlSays("observe", w.now)
		w.is(2, FromXL, "observe")
	})
}

func TestBrokenIsNotSkipped(t *testing.T) {
	t.Run("xl", func(t *testing.T) {
		w := newWorld(t)
		w.file("domains/web.toml", `mode = "enforce"`)
		w.xlSays("", w.now)
		w.xlErr = errors.New("/etc/xen/web.cfg:2:1: unknown mode")
		w.fails(1, FromXL, "web.cfg:2:1", `xl config "/etc/xen/web.cfg"`)
		w.keeps(0)
		if w.log.Len() > 0 {
			t.Errorf("log: %s", w.log.String())
		}
	})
	t.Run("several xl processes contradict each other", func(t *testing.T) {
		w := newWorld(t)
		w.found, w.xlErr = xlplugin.Found{}, &xlplugin.AmbiguousError{}
		w.fails(1, FromXL, "several xl configs")
	})
	t.Run("the admin's file", func(t *testing.T) {
		w := newWorld(t)
		w.set("enforce")
		w.now = w.now.Add(time.Minute)
		w.file("domains/web.toml", "mode = \"enforce\"\n[guards]\nkernel_txt = \"block\"\n")
		w.fails(1, FromFile, "web.toml:3:", `did you mean "kernel-text"?`)
	})
	t.Run("others can write the admin's file", func(t *testing.T) {
		w := newWorld(t)
		w.file("domains/web.toml", `mode = "off"`)
		if err := os.Chmod(filepath.Join(w.dir, "domains", "web.toml"), 0o666); err != nil {
			t.Fatal(err)
		}
		w.fails(1, FromFile, "not believed", "0666")
	})
	t.Run("what was kept stays for when it is mended", func(t *testing.T) {
		w := newWorld(t)
		w.xlSays("enforce", w.now)
		w.is(1, FromXL, "enforce")
		w.xlErr = errors.New("broken")
		w.fails(2, FromXL)
		w.noXL()
		w.is(2, FromKept, "enforce")
	})
	t.Run("a damaged entry counts as none, and is told of", func(t *testing.T) {
		w := newWorld(t)
		if err := os.WriteFile(w.opt.Store.path(uuid1), []byte("{"), 0o600); err != nil {
			t.Fatal(err)
		}
		w.is(1, FromNone, "off")
		if !strings.Contains(w.log.String(), "is damaged") {
			t.Errorf("log: %s", w.log.String())
		}
	})
}

func TestNamedPolicies(t *testing.T) {
	w := newWorld(t)
	w.file("policies/web.toml", "require_attach = true\n[guards]\nkernel-text = \"block\"\n")
	w.file("domains/web.toml", "mode = \"enforce\"\npolicy = \"web\"\n")
	d := w.is(1, FromFile, "enforce")
	if !d.Spec.RequireAttach || d.Spec.Named == nil {
		t.Errorf("%+v", d.Spec)
	}
	// As if libvirt had said so: the entry is kept with the policy in it.
	e := Entry{UUID: uuid1, Toolstack: ToolstackLibvirt, Source: "libvirt metadata", Spec: d.Spec}
	if err := w.Hand(e); err != nil {
		t.Fatal(err)
	}
	os.Remove(filepath.Join(w.dir, "domains", "web.toml"))
	w.restart()

	w.file("policies/web.toml", "[guards]\nkernel-text = \"alert\"\n")
	d = w.is(2, FromKept, "enforce")
	if d.Spec.RequireAttach || d.Spec.Effective().Action(policy.GuardKernelText) != policy.ActionAlert || len(d.Warnings) != 0 {
		t.Errorf("the changed policy: %+v, %q", d.Spec, d.Warnings)
	}
	os.Remove(filepath.Join(w.dir, "policies", "web.toml"))
	d = w.is(2, FromKept, "enforce")
	if d.Spec.Effective().Action(policy.GuardKernelText) != policy.ActionAlert || len(d.Warnings) != 1 || !strings.Contains(d.Warnings[0], `policy "web" is not on this host`) {
		t.Errorf("without the policy: %+v, %q", d.Spec, d.Warnings)
	}
	w.file("policies/web.toml", "mode = \"enforce\"\n")
	w.fails(2, FromKept, `policy "web"`, "web.toml:1:1", "cannot be set in a policy")
}

// TestHostileNames gives domains names that are paths, and looks that no file
// but their own is read or written.
func TestHostileNames(t *testing.T) {
	w := newWorld(t)
	w.file("hvid.toml", `mode = "enforce"`)
	w.file("policies/web.toml", `mode = "enforce"`)
	for i, name := range []string{
		"", ".", "..", "../hvid", "../policies/web", "/etc/passwd", "a b;rm -rf /", "web\x00", "\xff\xfe",
		strings.Repeat("n", 200), strings.Repeat("n", MaxText), "\u202eweb", "web.toml/..", "-web", uuid2.String(),
	} {
		info := xen.DomainInfo{ID: xen.DomID(i + 1), UUID: numbered(i)}
		if d, err := w.Registry.Resolve(info, name); err != nil || d.From != FromNone {
			t.Errorf("%q: %+v, %v", name, d, err)
		}
		if err := w.Set(info.UUID, name, spec(t, "observe", "hvictl set"), "hvictl set"); err != nil {
			t.Errorf("%q: %v", name, err)
		}
		if d, err := w.Registry.Resolve(info, name); err != nil || d.From != FromHvictl {
			t.Errorf("%q: %+v, %v", name, d, err)
		}
		if e, ok, err := w.Get(info.UUID); err != nil || !ok || e.Name != name {
			t.Errorf("%q is kept as %q, %v, %v", name, e.Name, ok, err)
		}
	}
	for _, name := range files(t, w.opt.Store) {
		if u, err := xen.ParseUUID(strings.TrimSuffix(name, ".json")); err != nil || u.String()+".json" != name {
			t.Errorf("an odd file: %q", name)
		}
	}
}

// TestHostileSources hands over what would control a terminal.
func TestHostileSources(t *testing.T) {
	const nasty = "metadata of \"a\nb\x1b[2J\xff\""
	for _, e := range []Entry{
		{Source: nasty}, {Source: nasty, Spec: spec(t, "enforce", "x")}, {Source: nasty, Broken: nasty},
	} {
		w := newWorld(t)
		e.UUID, e.Toolstack = uuid1, ToolstackLibvirt
		if err := w.Hand(e); err != nil {
			t.Fatal(err)
		}
		for range 2 {
			d, err := w.Registry.Resolve(dom(1), "web")
			text := d.Source + fmt.Sprint(err)
			if !strings.Contains(text, `metadata of "a\nb\x1b[2J\xff"`) && e.Spec.Declared() || strings.ContainsAny(text, "\n\x1b") {
				t.Errorf("%q", text)
			}
			w.restart()
		}
	}
}

func TestXAPI(t *testing.T) {
	w := newWorld(t)
	come := uuid1
	copy(come[10:], []byte{0, 0, 0, 0, 0, 1})
	w.nodes["/vm/"+come.String()+"/final-uuid"] = uuid1.String()
	w.file("domains/"+uuid1.String()+".toml", `mode = "enforce"`)
	info := dom(5)
	info.UUID = come
	d, err := w.Registry.Resolve(info, "vm")
	if err != nil || !d.Temporary || d.UUID != uuid1 || d.From != FromFile || d.Spec.Mode != policy.ModeEnforce {
		t.Errorf("%+v, %v", d, err)
	}
	if err := w.Ended(info); err != nil {
		t.Error(err)
	}
	w.keeps(0)
	w.is(5, FromFile, "enforce")
	w.keeps(1)

	// Whoever names a domain by what it is called for the moment means its VM.
	if err := w.Set(come, "vm", spec(t, "observe", "x"), "hvictl set"); err != nil {
		t.Fatal(err)
	}
	w.keeps(1)
	if e, ok, err := w.Get(come); err != nil || !ok || e.UUID != uuid1 || e.Toolstack != ToolstackHvictl {
		t.Errorf("%+v, %v, %v", e, ok, err)
	}
	if err := w.Clear(come); err != nil {
		t.Fatal(err)
	}
	w.keeps(0)
}

func TestDiskTrouble(t *testing.T) {
	w := newWorld(t)
	w.opt.Store.sync = func(*os.File) error { return errors.New("no space left") }
	w.xlSays("enforce", w.now)
	d := w.is(1, FromXL, "enforce")
	if len(d.Warnings) != 1 || !strings.Contains(d.Warnings[0], "no space left") {
		t.Errorf("warnings %q", d.Warnings)
	}
	if !strings.Contains(w.log.String(), "no space left") {
		t.Errorf("log: %s", w.log.String())
	}
}

// TestRequiredOfBroken passes on that a broken policy requires protection.
func TestRequiredOfBroken(t *testing.T) {
	broken := errors.New("broken")
	for name, c := range map[string]struct {
		say  func(*world)
		want bool
	}{
		"xl":            {func(w *world) { w.xlSays("", noon); w.found.Required, w.xlErr = true, broken }, true},
		"xl, without":   {func(w *world) { w.xlSays("", noon); w.xlErr = broken }, false},
		"xl, ambiguous": {func(w *world) { w.found, w.xlErr = xlplugin.Found{Required: true}, &xlplugin.AmbiguousError{} }, true},
		"a file":        {func(w *world) { w.file("domains/web.toml", "mode = \"x\"\nrequire_attach = true\n") }, true},
		"a policy that is broken by now": {func(w *world) {
			w.file("policies/strict.toml", "require_attach = true\n")
			w.file("domains/web.toml", "mode = \"enforce\"\npolicy = \"strict\"\n")
			w.is(7, FromFile, "enforce")
			w.file("policies/strict.toml", "require_attach = \"maybe\"\n")
			if err := os.Remove(filepath.Join(w.dir, "domains/web.toml")); err != nil {
				w.t.Fatal(err)
			}
			e, _, err := w.Get(uuid1)
			if err != nil {
				w.t.Fatal(err)
			}
			if err := w.Set(uuid1, "web", e.Spec, "test"); err != nil {
				w.t.Fatal(err)
			}
		}, true},
		"xl config-update": {func(w *world) {
			w.xlSays("enforce", noon)
			w.is(7, FromXL, "enforce")
			w.noXL()
			w.updated(7, "")
			u := w.updates[7]
			u.Err, u.Declared.Required = broken, true
			w.updates[7] = u
			w.ends(stopped(7, reboot))
			w.restart()
		}, true},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			c.say(w)
			d, err := w.Registry.Resolve(dom(8), "web")
			if err == nil || d.Required != c.want || d.Spec.RequireAttach {
				t.Errorf("%+v, %v; want required %v", d, err, c.want)
			}
		})
	}
}
