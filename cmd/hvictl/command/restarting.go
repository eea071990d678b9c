package command

import (
	"errors"
	"fmt"
	"path/filepath"

	"github.com/xen-hvi/hvi/control"
)

// restarting looks, where hvid can't be reached, whether it has left word that
// it restarts. Then show, if it is not nil, is given the domains that wait for
// it, and the error says so; otherwise err is returned as it is.
func (a *app) restarting(err error, show func([]control.DomainStatus) error) error {
	var p *control.Problem
	if !errors.As(err, &p) || p.Code != control.CodeUnreachable {
		return err
	}
	n, ok, noticeErr := control.ReadRestartNotice(filepath.Dir(a.socket))
	if noticeErr != nil || !ok || !n.Fresh(a.now()) {
		return err
	}
	ds := make([]control.DomainStatus, len(n.Domains))
	for i, d := range n.Domains {
		ds[i] = d.Status()
	}
	if show != nil {
		if err := show(ds); err != nil {
			return err
		}
	}
	q := *p
	q.What = "hvid is restarting since " + a.moment(n.At)
	switch len(ds) {
	case 0:
	case 1:
		q.What += "; 1 domain runs without protection meanwhile"
	default:
		q.What += fmt.Sprintf("; %d domains run without protection meanwhile", len(ds))
	}
	q.Fix = "wait a moment; if it lasts: systemctl status hvid"
	return &q
}
