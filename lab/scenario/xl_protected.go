package scenario

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/xen-hvi/hvi/control"
	"github.com/xen-hvi/hvi/engine/x86"
)

// journey is a Linux guest that goes from road to road: it boots once, and is
// protected again after each.
type journey struct {
	rs     *roads
	config GuestConfig
	g      *Guest // nil when a road has lost it
	// resume is the instruction at which a suspended Linux goes on.
	resume x86.VirtAddr
	// from is the kind of place its policy comes from, as of the last start.
	from control.PolicyFrom
}

// protected takes the roads on which a guest that runs must be protected before
// and after.
func (rs *roads) protected() {
	t := rs.t
	j := &journey{rs: rs, config: rs.guest(KernelLinux, "web", enforceLine)}
	j.config.Memory = 128
	image := filepath.Join(rs.dir, "web.save")

	j.leg("boot-linux", func(*road) error { return nil })
	if rs.intel {
		// More often than Xen has views of a domain's memory, of which none may
		// be left behind.
		j.leg("attach-detach", func(r *road) error {
			for range 12 {
				if _, err := t.Exec("hvictl", "detach", j.g.Name); err != nil {
					return err
				}
				if _, err := t.Exec("hvictl", "attach", j.g.Name); err != nil {
					return err
				}
			}
			return j.secure(r)
		})
	}
	j.leg("save-checkpoint", func(r *road) error {
		// The guest runs on, and never without us.
		err := j.g.Save(image, "-c")
		if err := errors.Join(err, os.Remove(image)); err != nil {
			return err
		}
		return j.again(r, j.resume, control.FromXL)
	})
	j.leg("save-paused", func(r *road) error {
		err := j.g.Save(image, "-p")
		if err := errors.Join(err, os.Remove(image)); err != nil {
			return err
		}
		paused, err := t.paused(j.g.ID)
		if err != nil {
			return err
		}
		r.check(paused, "the guest is still paused for the admin")
		if _, err := t.XL("unpause", strconv.Itoa(j.g.ID)); err != nil {
			return err
		}
		return j.again(r, j.resume, control.FromXL)
	})
	j.leg("save-fails", func(r *road) error {
		// On a full disk, when the guest is suspended already.
		full := filepath.Join(rs.dir, "full")
		if err := os.Mkdir(full, 0o755); err != nil {
			return err
		}
		if _, err := t.Exec("mount", "-t", "tmpfs", "-o", "size=4m", "full", full); err != nil {
			return err
		}
		saved := j.g.Save(filepath.Join(full, "web.save"))
		if _, err := t.Exec("umount", full); err != nil {
			return err
		}
		r.check(saved != nil, "a save to a full disk fails: %v", saved)
		return j.again(r, j.resume, control.FromXL)
	})
	j.leg("save-restore", func(r *road) error {
		special, err := rs.specialFrames()
		if err != nil {
			return err
		}
		old := j.g
		if err := old.Save(image); err != nil {
			return err
		}
		if err := r.clean(old); err != nil {
			return err
		}
		frames, err := savedFrames(image)
		if err != nil {
			return err
		}
		var ours []uint64
		for f := range frames {
			if f >= uint64(j.config.Memory)<<8 && !special[f] {
				ours = append(ours, f)
			}
		}
		r.check(len(frames) > j.config.Memory<<7 && len(ours) == 0, "nothing of ours travels with the guest: %d frames, of them not the guest's %#x", len(frames), ours)
		// The host is rebooted meanwhile, for all hvid can tell.
		if err := rs.restartHVID(); err != nil {
			return err
		}
		if j.g, err = t.RestoreGuest(j.config.Name, image); err != nil {
			return err
		}
		if err := os.Remove(image); err != nil {
			return err
		}
		r.check(j.g.UUID == old.UUID && j.g.ID != old.ID, "the restored domain has the UUID: %s", j.g.UUID)
		return j.again(r, j.resume, control.FromCaptured)
	})
	j.leg("save-restore-with-config", func(r *road) error {
		old := j.g
		if err := old.Save(image); err != nil {
			return err
		}
		if err := r.clean(old); err != nil {
			return err
		}
		var err error
		if j.g, err = t.RestoreGuest(j.config.Name, image, j.config.Path()); err != nil {
			return err
		}
		if err := os.Remove(image); err != nil {
			return err
		}
		return j.again(r, j.resume, control.FromXL)
	})
	j.leg("migrate", func(r *road) error {
		// Here, for a moment, two domains have one UUID: web--incoming and
		// web--migratedaway.
		old := j.g
		g, err := old.Migrate()
		if err != nil {
			return err
		}
		j.g = g
		if err := r.clean(old); err != nil {
			return err
		}
		r.check(g.UUID == old.UUID && g.ID != old.ID, "the domain at the other end has the UUID: %s", g.UUID)
		if err := j.again(r, j.resume, control.FromCaptured); err != nil {
			return err
		}
		st, err := g.Status()
		r.check(string(st.Name) == j.config.Name, "and its name: %q", st.Name)
		return err
	})
	j.leg("migrate-fails", func(r *road) error {
		// The other end goes away when most of the guest is there.
		cut := `head -c 100000000 | xl migrate-receive`
		_, err := t.XL("migrate", "-s", "", strconv.Itoa(j.g.ID), cut)
		r.check(err != nil, "a migration whose other end fails is called off")
		if err := r.alone(j.g); err != nil {
			return err
		}
		return j.again(r, 0, "")
	})
	j.leg("hostile-xenstore", func(r *road) error { return j.hostileStore(r) })
	j.leg("reboot", func(r *road) error {
		old := j.g
		if _, err := t.XL("reboot", strconv.Itoa(old.ID)); err != nil {
			return err
		}
		g, err := r.next(old)
		if err != nil {
			return err
		}
		j.g = g
		_, err = r.attached(g, want{from: j.from, kernel: KernelLinux})
		return err
	})
	rs.sweep()
}

// specialFrames are the frames beyond its memory that every guest has, as the
// toolstack made them: those of a guest nobody protects.
func (rs *roads) specialFrames() (map[uint64]bool, error) {
	c := rs.guest(KernelTiny, "bare")
	g, err := rs.t.StartGuest(c)
	if err != nil {
		return nil, err
	}
	if _, err := g.WaitUp(); err != nil {
		return nil, err
	}
	image := filepath.Join(rs.dir, "bare.save")
	if err := g.Save(image); err != nil {
		return nil, err
	}
	frames, err := savedFrames(image)
	return frames, errors.Join(err, os.Remove(image))
}

// leg takes one road with the guest, which must be protected when it begins.
func (j *journey) leg(name string, f func(*road) error) {
	r := &road{rs: j.rs, name: name}
	t := j.rs.t
	t.Logf("road %s ...", name)
	start := time.Now()
	err := t.protect("road "+name, func() error {
		if j.g == nil {
			if err := j.begin(r); err != nil {
				return err
			}
		}
		return f(r)
	})
	r.Seconds = round(time.Since(start))
	if err != nil {
		t.Check(false, "road %s: %v", name, err)
		j.g = nil
		j.rs.sweep()
	}
	t.Fact("road."+name, r)
}

// begin boots the guest.
func (j *journey) begin(r *road) error {
	g, err := j.rs.t.StartGuest(j.config)
	if err != nil {
		return err
	}
	j.g, j.from = g, control.FromXL
	if _, err := r.attached(g, want{source: j.config.Name + ".cfg", kernel: KernelLinux}); err != nil {
		return err
	}
	if err := j.secure(r); err != nil {
		return err
	}
	j.resume, err = g.resumePoint()
	return err
}

// resumePoint returns the instruction at which a Linux guest that is suspended
// goes on: the one behind its call of the hypervisor.
func (g *Guest) resumePoint() (x86.VirtAddr, error) {
	out, err := g.Run(`grep -E ' (hypercall_page|xen_hypercall_intel|xen_hypercall_amd)$' /proc/kallsyms; grep -m 1 vendor_id /proc/cpuinfo`)
	if err != nil {
		return 0, err
	}
	vendor := "amd"
	if strings.Contains(out, "GenuineIntel") {
		vendor = "intel"
	}
	for line := range strings.Lines(out) {
		f := strings.Fields(line)
		if len(f) != 3 {
			continue
		}
		at, err := strconv.ParseUint(f[0], 16, 64)
		switch {
		case err != nil:
		case f[2] == "hypercall_page":
			// 32 bytes for each call: mov $29, %eax (5 bytes); vmcall or vmmcall (3).
			return x86.VirtAddr(at + 29*32 + 8), nil
		case f[2] == "xen_hypercall_"+vendor:
			return x86.VirtAddr(at + 3), nil
		}
	}
	return 0, fmt.Errorf("where the guest calls the hypervisor is not in its symbols: %q", out)
}

// secure waits until the guest is protected, and attacks it.
func (j *journey) secure(r *road) error {
	state, mode := control.StateProtecting, "text"
	if !j.rs.intel {
		state, mode = control.StateDegraded, "lstar"
	}
	if _, err := j.g.WaitState(protectLimit, state); err != nil {
		return err
	}
	yes := true
	r.Protecting = &yes
	if !j.rs.installed.IsZero() {
		j.rs.t.Fact("seconds.install_to_protecting", round(time.Since(j.rs.installed)))
		j.rs.installed = time.Time{}
		out, err := j.rs.t.Exec("hvictl", "status", j.g.Name)
		r.check(err == nil && strings.Contains(out.Stdout, string(state)), "hvictl status says %s: %q %v", state, out.Stdout, err)
	}
	if err := j.live(); err != nil {
		return err
	}
	failures := j.rs.t.failures()
	if err := j.g.attackIsBlocked(mode); err != nil {
		return err
	}
	ok := failures == j.rs.t.failures()
	r.AttackBlocked = &ok
	return nil
}

// live checks that the guest answers.
func (j *journey) live() error {
	out, err := j.g.Run("echo $((6 * 7))")
	if err == nil && out != "42" {
		err = fmt.Errorf("the guest answers %q", out)
	}
	return err
}

// again checks that the guest, which was suspended, has been attached to before
// it went on, at an instruction, by a policy of this kind, and is protected. An
// instruction of 0 leaves the first open, and an empty kind the second.
func (j *journey) again(r *road, at x86.VirtAddr, from control.PolicyFrom) error {
	if from != "" {
		j.from = from
	}
	if at != 0 {
		if _, err := r.attached(j.g, want{from: j.from, at: at}); err != nil {
			return err
		}
	}
	return j.secure(r)
}

// alone waits until a guest is the only domain.
func (r *road) alone(g *Guest) error {
	t := r.rs.t
	return t.Eventually(shutLimit, "only one domain is there", func() (bool, error) {
		ids, err := t.domains()
		return len(ids) == 1 && ids[0] == g.ID, err
	})
}

// failures is the number of checks that did not hold so far.
func (t *T) failures() int {
	t.mu.Lock()
	defer t.mu.Unlock()
	return len(t.failed)
}
