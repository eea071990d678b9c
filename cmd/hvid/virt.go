package main

import (
	"context"
	"errors"
	"log/slog"
	"sync/atomic"

	"github.com/xen-hvi/hvi/config"
	"github.com/xen-hvi/hvi/control"
	"github.com/xen-hvi/hvi/engine/policy"
	"github.com/xen-hvi/hvi/engine/xen"
	"github.com/xen-hvi/hvi/libvirt"
	"github.com/xen-hvi/hvi/libvirt/metadata"
	"github.com/xen-hvi/hvi/registry"
)

// virt is hvid's connection to libvirt.
type virt struct {
	client *libvirt.Client
	up     atomic.Bool
	wasUp  atomic.Bool
	wanted bool // the configuration says so
	lanes  *lanes[xen.UUID]
}

// expected reports whether a libvirt that is not there is worth a word: on a
// host that only has xl it is not.
func (v *virt) expected() bool { return v.wanted || v.wasUp.Load() }

// startVirt connects to libvirt, nil if the configuration says not to. What
// libvirt tells is handed over as its hook does: the hook is heard before a
// domain starts, this when its metadata change while it runs, and after hvid or
// libvirtd was away.
func startVirt(ctx context.Context, opt config.Libvirt, policies policy.Policies, log *slog.Logger, a *api) *virt {
	if opt.Enabled == "no" {
		return nil
	}
	v := &virt{lanes: newLanes[xen.UUID](), wanted: opt.Enabled == "yes"}
	o := libvirt.Options{
		Sockets: opt.Sockets, Log: log, Policies: policies,
		Changed: func(d libvirt.Domain) {
			if d.ID < 0 {
				return // its start is told of by the hook
			}
			v.lanes.do(d.UUID, func() {
				if err := a.handOver(virtEntry(d)); err != nil {
					log.Error("take over changed metadata", "domain", d.Name, "uuid", d.UUID, "err", err)
				}
			})
		},
		Connected: func(up bool, why error) {
			v.up.Store(up)
			switch {
			case up:
				v.wasUp.Store(true)
				log.Info("connected to libvirt")
			case opt.Enabled == "yes":
				log.Warn("libvirt is not there", "err", why)
			default:
				log.Debug("libvirt is not there", "err", why)
			}
		},
	}
	if !v.wanted {
		// On a host of xl's it would be us who start it, by way of systemd, and
		// it would stop xendomains and with it the guests.
		running, tell := libvirt.NewRunning("/proc"), o.Connected
		o.Ready = running.Ready
		o.Connected = func(up bool, why error) {
			running.Connected(up)
			tell(up, why)
		}
	}
	v.client = libvirt.Start(ctx, o)
	return v
}

// close ends the connection and returns when nothing it told is under way.
func (v *virt) close() {
	if v != nil {
		v.client.Close()
		v.lanes.wait(laneLimit)
	}
}

// virtSource is where libvirt's word was found, for people.
const virtSource = "libvirt metadata"

func virtEntry(d libvirt.Domain) registry.Entry {
	e := registry.Entry{UUID: d.UUID, Name: d.Name, Toolstack: registry.ToolstackLibvirt, Source: virtSource, Spec: d.Spec}
	if d.Err != nil {
		e.Spec, e.Broken = policy.Spec{}, d.Err.Error()
		if len(e.Broken) > registry.MaxText {
			e.Broken = e.Broken[:registry.MaxText]
		}
	}
	return e
}

// find returns a domain as libvirt knows it, as it runs or will start next; nil
// if libvirt is not there or does not know it.
func (v *virt) find(ctx context.Context, log *slog.Logger, which libvirt.Which, ask func(context.Context, libvirt.Which) (libvirt.Domain, error)) *libvirt.Domain {
	if v == nil || !v.up.Load() {
		return nil
	}
	d, err := ask(ctx, which)
	switch {
	case errors.Is(err, libvirt.ErrNoDomain):
		return nil
	case err != nil:
		log.Warn("ask libvirt about a domain", "err", err)
		return nil
	}
	return &d
}

func (a *api) virtByUUID(ctx context.Context, u xen.UUID) *libvirt.Domain {
	return a.virt.find(ctx, a.log, libvirt.Live, func(ctx context.Context, w libvirt.Which) (libvirt.Domain, error) {
		return a.virt.client.Domain(ctx, u, w)
	})
}

func (a *api) virtByName(ctx context.Context, name string) *libvirt.Domain {
	return a.virt.find(ctx, a.log, libvirt.Config, func(ctx context.Context, w libvirt.Which) (libvirt.Domain, error) {
		return a.virt.client.Named(ctx, name, w)
	})
}

// setVirt writes a domain's metadata. A spec that declares nothing removes them.
// The change that libvirt then tells of is no news: it is handed over here, so
// that it has been taken up when this returns.
func (a *api) setVirt(ctx context.Context, t target, spec policy.Spec, live, config bool) error {
	var e *metadata.Element
	if spec.Declared() {
		e = metadata.Of(spec)
	}
	if err := a.virt.client.SetMetadata(ctx, t.uuid, e, live, config); err != nil {
		return &control.Problem{
			Code: control.CodeNotPossible, What: "libvirt did not take the metadata: " + err.Error(), Where: policy.Quote(t.name), Err: err,
			Fix: "a transient domain has no configuration: use --live",
		}
	}
	if !live || t.running == nil {
		return nil
	}
	return a.registry.Hand(registry.Entry{
		UUID: t.uuid, Name: t.name, Domain: t.running.Info.ID, Toolstack: registry.ToolstackLibvirt, Source: virtSource, Spec: spec,
	})
}
