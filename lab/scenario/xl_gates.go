package scenario

import "time"

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
