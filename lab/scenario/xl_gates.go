package scenario

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/xen-hvi/hvi/control"
)

// gates are what holds a start until hvi is attached, and fails it otherwise.
func (rs *roads) gates() {
	t := rs.t
	if err := t.Bridge(); err != nil {
		t.Check(false, "%v", err)
		return
	}
	const require = "introspection_require_attach = 1"
	vif := rs.guest(KernelTiny, "gated", enforceLine, require, VifLine("script=hvi-vif-bridge"))
	dm := rs.guest(KernelTiny, "gated", enforceLine, require, `device_model_override = "/usr/libexec/hvi/dm-gate"`)
	dm.Type = TypeHVM
	for _, w := range []struct {
		name   string
		config GuestConfig
	}{{"gate-vif", vif}, {"gate-device-model", dm}} {
		rs.take(w.name, func(r *road) error {
			entry := rs.entry[KernelTiny]
			if w.config.Type == TypeHVM {
				var err error
				if entry, err = hvmLoader(); err != nil {
					return err
				}
			}
			g, err := t.StartGuest(w.config)
			if err != nil {
				return err
			}
			st, err := r.attached(g, want{source: "gated.cfg", at: entry})
			if err != nil {
				return err
			}
			r.check(st.RequireAttach, "its policy requires it")
			if _, err := g.WaitUp(); err != nil {
				return err
			}
			if err := g.Destroy(); err != nil {
				return err
			}
			return r.clean(g)
		})
		rs.take(w.name+"-shut", func(r *road) error {
			// Without hvid there is nobody to attach, and so no guest.
			if _, err := t.Systemctl("stop", "hvid.service"); err != nil {
				return err
			}
			path, err := t.WriteConfig(w.config)
			if err != nil {
				return err
			}
			start := time.Now()
			out, err := t.XL("create", path)
			r.check(err != nil, "xl create fails: %s", lastLines(out.String(), 3))
			r.check(time.Since(start) < time.Minute, "within a minute: %s", time.Since(start))
			ids, errIDs := t.domains()
			r.check(errIDs == nil && len(ids) == 0, "and leaves no domain: %v %v", ids, errIDs)
			_, err = t.Systemctl("start", "hvid.service")
			return err
		})
	}
	rs.take("hvictl-create", func(r *road) error {
		c := rs.guest(KernelTiny, "wrapped", enforceLine, require)
		path, err := t.WriteConfig(c)
		if err != nil {
			return err
		}
		if _, err := t.Exec("hvictl", "create", path); err != nil {
			return err
		}
		g, err := t.OpenGuest(c.Name)
		if err != nil {
			return err
		}
		if _, err := r.attached(g, want{source: "wrapped.cfg", kernel: KernelTiny}); err != nil {
			return err
		}
		if _, err := g.WaitUp(); err != nil {
			return err
		}
		if err := g.Destroy(); err != nil {
			return err
		}
		return r.clean(g)
	})
}

// held are guests that must not run unprotected, and whose policy is broken.
func (rs *roads) held() {
	t := rs.t
	const require = "introspection_require_attach = 1"
	// start has such a guest created, and checks that it stands still.
	start := func(r *road, name string) (*Guest, GuestConfig, error) {
		broken := rs.guest(KernelTiny, name, `introspection = "enfroce"`, require)
		g, err := t.StartGuest(broken)
		if err != nil {
			return nil, broken, err
		}
		return g, broken, rs.stands(r, g, "after xl create")
	}
	rs.take("held-beyond-hvid", func(r *road) error {
		g, c, err := start(r, "held")
		if err != nil {
			return err
		}
		if _, err := t.Systemctl("stop", "hvid.service"); err != nil {
			return err
		}
		paused, err := t.paused(g.ID)
		r.check(err == nil && paused, "without hvid the guest stands still: %v", err)
		for _, command := range []string{"status", "list", "doctor"} {
			out, err := t.Exec("hvictl", command)
			said := out.String()
			r.check(err != nil && strings.Contains(said, g.Name+" ("+strconv.Itoa(g.ID)+")") && strings.Contains(said, "hvid recover"),
				"hvictl %s names it, and says what lets it go: %s", command, lastLines(said, 6))
		}
		if _, err := t.Systemctl("start", "hvid.service"); err != nil {
			return err
		}
		if err := rs.stands(r, g, "under the next hvid"); err != nil {
			return err
		}
		before, err := t.mainPID("hvid.service")
		if err != nil {
			return err
		}
		if _, err := t.Systemctl("kill", "--kill-whom=main", "--signal=SIGKILL", "hvid.service"); err != nil {
			return err
		}
		err = t.Eventually(hvidLimit, "systemd has started another hvid", func() (bool, error) {
			now, err := t.mainPID("hvid.service")
			if err != nil || now == before || now == 0 {
				return false, err
			}
			_, err = client.Version(t.ctx)
			return err == nil, nil
		})
		if err != nil {
			return err
		}
		if err := rs.stands(r, g, "after hvid was killed"); err != nil {
			return err
		}
		good := rs.guest(KernelTiny, c.Name, enforceLine, require)
		if err := os.WriteFile(c.Path(), []byte(good.String()), 0o644); err != nil {
			return err
		}
		if _, err := t.Exec("hvictl", "attach", c.Name); err != nil {
			return err
		}
		if _, err := r.attached(g, want{source: "held.cfg", kernel: KernelTiny}); err != nil {
			return err
		}
		if _, err := g.WaitUp(); err != nil {
			return err
		}
		if err := g.Destroy(); err != nil {
			return err
		}
		return r.clean(g)
	})
	rs.take("held-let-go-by-recover", func(r *road) error {
		g, _, err := start(r, "released")
		if err != nil {
			return err
		}
		if _, err := t.Systemctl("stop", "hvid.service"); err != nil {
			return err
		}
		out, err := t.Exec("hvid", "recover")
		r.Special = strings.TrimSpace(out.Stdout)
		r.check(err == nil, "hvid recover: %s %v", r.Special, err)
		if n, err := g.Poke(); err != nil || n != 1 {
			return fmt.Errorf("the guest does not run: %d, %w", n, err)
		}
		said, err := t.Exec("hvictl", "status")
		r.check(err != nil && !strings.Contains(said.String(), g.Name), "hvictl status speaks of it no more: %s", lastLines(said.String(), 3))
		if _, err := t.Systemctl("start", "hvid.service"); err != nil {
			return err
		}
		if err := g.Destroy(); err != nil {
			return err
		}
		return r.clean(g)
	})
}

// stands checks that a guest is held because its policy requires protection.
func (rs *roads) stands(r *road, g *Guest, when string) error {
	st, err := g.WaitState(attachLimit, control.StateFailed)
	if err != nil {
		return err
	}
	paused, err := rs.t.paused(g.ID)
	r.check(err == nil && paused && st.Held != "", "%s the guest stands still: paused %v, held %q, %v", when, paused, st.Held, err)
	return nil
}

// mainPID is the process of a service, 0 while it has none.
func (t *T) mainPID(unit string) (int, error) {
	out, err := t.Systemctl("show", "--property=MainPID", "--value", unit)
	if err != nil {
		return 0, err
	}
	return strconv.Atoi(strings.TrimSpace(out.Stdout))
}
