package command

import (
	"errors"
	"fmt"
	"path/filepath"
	"strings"

	"github.com/xen-hvi/hvi/control"
)

// errNoticed marks an error that says already what hvid's notice does.
var errNoticed = errors.New("hvid has left word")

// restarting looks, where hvid can't be reached, whether it has left word that
// it restarts, or of domains that it left held, whenever that was. Then show, if
// it is not nil, is given the domains that wait for it, and the error says so;
// otherwise err is returned as it is.
func (a *app) restarting(err error, show func([]control.DomainStatus) error) error {
	var p *control.Problem
	if !errors.As(err, &p) || p.Code != control.CodeUnreachable || errors.Is(err, errNoticed) {
		return err
	}
	n, ok, noticeErr := control.ReadRestartNotice(filepath.Dir(a.socket))
	if noticeErr != nil || !ok {
		return err
	}
	fresh, held := n.Fresh(a.now()), n.Held()
	waiting := n.Domains
	if !fresh {
		waiting = held
	}
	if !fresh && len(held) == 0 {
		return err
	}
	ds := make([]control.DomainStatus, len(waiting))
	for i, d := range waiting {
		ds[i] = d.Status()
	}
	if show != nil {
		if err := show(ds); err != nil {
			return err
		}
	}
	q := *p
	q.Err = errors.Join(p.Err, errNoticed)
	if fresh {
		q.What = "hvid is restarting since " + a.moment(n.At)
		q.Fix = "wait a moment; if it lasts: systemctl status hvid"
		switch bare := len(ds) - len(held); bare {
		case 0:
		case 1:
			q.What += "; 1 domain runs without protection meanwhile"
		default:
			q.What += fmt.Sprintf("; %d domains run without protection meanwhile", bare)
		}
	}
	if len(held) > 0 {
		q.What += "; " + count(len(held), "domain was", "domains were") + " left paused, since the policy requires protection or a guard has paused it: " + names(held)
		q.Fix = "start hvid: systemctl start hvid; or let what is paused run unprotected: hvid recover"
	}
	return &q
}

// names lists a few domains.
func names(ds []control.RestartDomain) string {
	const most = 5
	var parts []string
	for i, d := range ds {
		if i == most {
			parts = append(parts, "…")
			break
		}
		name := safe(d.Name.String())
		if name == "" {
			name = d.UUID
		}
		parts = append(parts, fmt.Sprintf("%s (%d)", name, d.ID))
	}
	return strings.Join(parts, ", ")
}
