package hostcheck

import (
	"context"
	"fmt"
	"net"
	"time"

	"github.com/xen-hvi/hvi/control"
)

// storeTimeout bounds the wait for xenstored.
const storeTimeout = 2 * time.Second

// storeSocket is where both daemons listen for programs of dom0.
const storeSocket = "/run/xenstored/socket"

// xenstored looks which xenstored serves this host, and whether it answers.
func (o Options) xenstored(ctx context.Context) control.Check {
	c := control.Check{Name: "xenstored", Status: control.CheckOK}
	ctx, cancel := context.WithTimeout(ctx, storeTimeout)
	defer cancel()
	ask := o.Store
	if ask == nil {
		ask = func(ctx context.Context) error {
			var d net.Dialer
			conn, err := d.DialContext(ctx, "unix", o.path(storeSocket))
			if err != nil {
				return err
			}
			return conn.Close()
		}
	}
	err := ask(ctx)
	running := o.processes("xenstored", "oxenstored")
	const start = "start it: systemctl start xenstored (Debian: systemctl start xen)"
	switch {
	case err != nil && len(running) == 0 && o.Store == nil:
		// A xenstored in a domain of its own has no process and no socket
		// here; only hvid, by /dev/xen/xenbus, can tell.
		c.Status, c.Detail = control.CheckWarn, "there is no xenstored here; if it runs in a domain of its own, only hvid can tell"
		c.Fix = start
	case err != nil && len(running) == 0:
		c.Status, c.Detail, c.Fix = control.CheckMissing, "it does not answer: "+o.shown(err), start
	case err != nil:
		c.Status, c.Detail = control.CheckFail, fmt.Sprintf("%s runs and does not answer: %s", running[0], o.shown(err))
		c.Fix = "look at its log; guests and toolstack need it as much as hvi does"
	case len(running) == 0:
		c.Detail = "it answers, and runs in a domain of its own"
	default:
		c.Detail = running[0].String()
	}
	return c
}
