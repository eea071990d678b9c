package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/xen-hvi/hvi/cmd/hostcheck"
	"github.com/xen-hvi/hvi/config"
	"github.com/xen-hvi/hvi/control"
	"github.com/xen-hvi/hvi/engine"
	"github.com/xen-hvi/hvi/engine/journal"
	"github.com/xen-hvi/hvi/engine/keeper"
	"github.com/xen-hvi/hvi/engine/printable"
	"github.com/xen-hvi/hvi/engine/xen"
)

// inspector examines what belongs to the daemon, and each domain from outside
// its session.
type inspector struct {
	// xen is the host.
	xen interface {
		Listened(dom xen.DomID) (bool, error)
		PagingPool(dom xen.DomID) (uint64, error)
	}
	store  store
	events interface{ Stats() journal.Stats }
	files  *config.Files
	socket string
	// kept is the directory of the declarations that are kept.
	kept string
	// hookHeard is when libvirt's hook called last.
	hookHeard func() time.Time
	// keeper says how the keeper is, recovered what was done for the last hvid.
	keeper    func() keeper.State
	recovered *control.Recovery
	// fixedAltP2M: this Xen fixes a domain's altp2m when it is created.
	fixedAltP2M bool
}

// host examines the host and the daemon's own files.
func (x *inspector) host(ctx context.Context) []control.Check {
	checks := hostcheck.Checks(ctx, hostcheck.Options{
		Socket: x.socket, Files: x.files, HookHeard: x.hookHeard(), FixedAltP2M: x.fixedAltP2M,
		Store: x.askStore,
	})
	return append(checks, x.journal(), x.declarations(), keeperCheck(x.keeper(), x.recovered))
}

// askStore reports whether xenstored answers. A node that is not there is an
// answer.
func (x *inspector) askStore(ctx context.Context) error {
	done := make(chan error, 1)
	go func() {
		_, err := x.store.Read("/local/domain/0/name")
		done <- err
	}()
	select {
	case err := <-done:
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		return err
	case <-ctx.Done():
		return errors.New("no answer in time")
	}
}

// journal looks whether security events are written down.
func (x *inspector) journal() control.Check {
	c := control.Check{Name: "event log", Status: control.CheckOK}
	s := x.events.Stats()
	c.Detail = fmt.Sprintf("events since start: %d, readers: %d", s.Appended, s.Subscribers)
	if s.TornBytes > 0 {
		c.Detail += fmt.Sprintf("; %d bytes of an unfinished event were cut off at start", s.TornBytes)
	}
	last := ""
	if s.LastFailure != nil {
		last = "; the last failure: " + s.LastFailure.Error()
	}
	switch {
	case s.WriteFailures > 0:
		c.Status = control.CheckFail
		c.Detail = fmt.Sprintf("%d of %d events since start are not in the log%s", s.WriteFailures, s.Appended, last)
		c.Fix = "look for a full or broken disk, and restart hvid: systemctl restart hvid"
	case s.SyncFailures > 0:
		c.Status = control.CheckWarn
		c.Detail = fmt.Sprintf("the log could not be put on disk %d times since start%s", s.SyncFailures, last)
		c.Fix = "look for a broken disk"
	}
	return c
}

// declarations looks for kept declarations that were found damaged.
func (x *inspector) declarations() control.Check {
	c := control.Check{Name: "kept policies", Status: control.CheckOK}
	files, err := os.ReadDir(x.kept)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		c.Status, c.Detail, c.Fix = control.CheckFail, err.Error(), "make "+x.kept+" readable and writable for root"
		return c
	}
	n := 0
	var damaged []string
	for _, f := range files {
		switch {
		case strings.HasSuffix(f.Name(), ".corrupt"):
			damaged = append(damaged, filepath.Join(x.kept, f.Name()))
		case strings.HasSuffix(f.Name(), ".json"):
			n++
		}
	}
	c.Detail = fmt.Sprintf("of %d domains", n)
	if len(damaged) > 0 {
		c.Status = control.CheckWarn
		c.Detail = fmt.Sprintf("%d were damaged and are set aside: %s", len(damaged), printable.Text(strings.Join(damaged, ", ")))
		c.Fix = "declare these domains anew (hvictl set, or start them from their config), and remove the files"
	}
	return c
}

// domain examines one.
func (x *inspector) domain(st engine.Status) []control.Check {
	if st.Info.Type == xen.PV || st.Info.Dying {
		return nil
	}
	var cs []control.Check
	if c, ok := x.pool(st); ok {
		cs = append(cs, c)
	}
	if c, ok := x.listener(st); ok {
		cs = append(cs, c)
	}
	if st.Held != "" {
		c := control.Check{Name: "held", Status: control.CheckInfo, Detail: st.Held}
		if st.State == engine.StateFailed {
			c.Status, c.Fix = control.CheckFail, "remove the failure's cause and run: hvictl attach; or let it run unprotected: hvictl detach"
		}
		cs = append(cs, c)
	}
	return cs
}

// listener looks whether somebody else listens to a domain that hvid is not
// attached to. Where Xen does not tell, only an attempt to attach shows it, and
// fails.
func (x *inspector) listener(st engine.Status) (control.Check, bool) {
	switch st.State {
	case engine.StateUnprotected, engine.StateDetached, engine.StateFailed:
	default:
		return control.Check{}, false // we do, or are about to
	}
	other, err := x.xen.Listened(st.Info.ID)
	if err != nil || !other {
		return control.Check{}, false
	}
	return control.Check{
		Name: "monitor ring", Status: control.CheckFail,
		Detail: "another program listens to this domain's events; Xen lets one listen, so hvid cannot attach",
		Fix:    "find and stop it: xen-access, a debugger, another introspection tool",
	}, true
}

// Sizes of page tables, in bytes.
const (
	entrySize = 8
	pageSize  = 4096
	perTable  = pageSize / entrySize
	// poolSlack is what Xen takes of the pool besides tables of the lowest two
	// levels: the upper levels, and what each vCPU has of its own.
	poolSlack = 1 << 20
)

// pool compares the memory that Xen has for a domain's page tables with what
// they take when every page has an entry of its own, as it has where access is
// restricted page by page. Xen crashes a domain whose pool runs out.
func (x *inspector) pool(st engine.Status) (control.Check, bool) {
	if !st.Info.HAP {
		return control.Check{}, false
	}
	have, err := x.xen.PagingPool(st.Info.ID)
	if err != nil {
		return control.Check{Name: "paging pool", Status: control.CheckWarn, Detail: "its size is unknown: " + err.Error(), Fix: "run: xl dmesg"}, true
	}
	pages := max(st.Info.MaxPages, st.Info.Pages)
	tables := (pages + perTable - 1) / perTable
	need := (tables+tables/perTable+1)*pageSize + poolSlack
	c := control.Check{Name: "paging pool", Status: control.CheckOK, Detail: mib(have) + ", and " + mib(need) + " are enough"}
	if have < need {
		c.Status = control.CheckWarn
		c.Detail = mib(have) + ", and up to " + mib(need) + " may be needed: Xen crashes a guest whose pool runs out"
		c.Fix = fmt.Sprintf("write shadow_memory = %d in its config", (need+1<<20-1)>>20)
	}
	return c, true
}

func mib(n uint64) string { return fmt.Sprintf("%.1f MiB", float64(n)/(1<<20)) }
