package registry

import (
	"errors"
	"fmt"
	"reflect"
	"strconv"
	"strings"
	"time"

	"github.com/xen-hvi/hvi/config"
	"github.com/xen-hvi/hvi/engine/policy"
	"github.com/xen-hvi/hvi/engine/xen"
	"github.com/xen-hvi/hvi/xlplugin"
)

// choice is one decision being made.
type choice struct {
	r    *Registry
	info xen.DomainInfo
	d    *Decision

	// What the sources said; asked is whether xl's processes were.
	found    xlplugin.Found
	xlErr    error
	asked    bool
	file     config.Domain
	haveFile bool
	fileErr  error

	// before is the entry of the UUID as it was found, if existed, and kept
	// what counts of it, if have. unread says that it could not be read.
	before, kept          Entry
	existed, have, unread bool
	// won is the entry whose word holds, if any.
	won *Entry
	// void says that a source was there that has none of our words in it, so
	// that what was kept does not count.
	void bool
	// vain are the sources that had nothing.
	vain []string
	// incoming says that xl is receiving the domain.
	incoming bool
}

// slack is how far a process may seem to be older than it is.
const slack = time.Second

// load reads what is kept, and makes what was to hold from this restart on hold.
func (c *choice) load() {
	var err error
	c.kept, c.have, err = c.r.kept(c.d.UUID)
	c.before, c.existed, c.unread = c.kept, c.have, err != nil
	if err != nil {
		c.d.Warnings = append(c.d.Warnings, "what was kept for the domain cannot be read: "+err.Error())
	}
	if c.d.Temporary || c.incoming {
		return
	}
	if c.have && c.kept.Next != nil {
		c.restartOf(c.kept)
		return
	}
	for uuid := range c.r.next {
		e, ok, err := c.r.kept(uuid)
		if err == nil && ok && e.Next != nil && c.restartOf(e) {
			return
		}
	}
}

// restartOf takes over the config-update of an entry if the domain is the next
// life of that entry's, and says whether it is.
func (c *choice) restartOf(e Entry) bool {
	same := e.UUID == c.d.UUID
	if same && e.Domain == c.info.ID && (e.Gone.IsZero() || e.End == Saved) {
		return false // it has not ended
	}
	n := e.Next
	mine := n.Name == c.d.Name && !e.over(c.r.opt.Now())
	if n.HasUUID {
		mine = n.UUID == c.d.UUID
	}
	// xl does not save the update with the guest.
	if e.End == Saved && !e.Gone.IsZero() {
		mine = false
	}
	if mine {
		suspended := c.have && c.kept.Suspended
		c.kept, c.have = Entry{
			UUID: c.d.UUID, Name: c.d.Name, Toolstack: ToolstackXL, Source: n.Source, Spec: n.Spec, Broken: n.Broken, Required: n.Required,
			Asserted: n.Asserted, Captured: c.r.opt.Now().Round(0), Standing: true, Suspended: suspended,
		}, true
	}
	switch {
	case same:
		if !mine {
			c.kept.Next = nil
		}
	case !mine:
	case e.Suspended:
		e.Next = nil
		c.warn(c.r.put(e))
	default:
		c.warn(c.r.drop(e.UUID))
	}
	return mine
}

func (c *choice) warn(err error) {
	if err != nil {
		c.r.opt.Log.Error("keep what is declared for a domain", "domid", c.info.ID, "uuid", c.d.UUID, "err", err)
		c.d.Warnings = append(c.d.Warnings, oneLine(err.Error()))
	}
}

func (c *choice) lookedAt(s string) { c.vain = append(c.vain, s) }

// take makes an entry's word the decision. It is the error if it is broken, and
// reports whether the entry says anything.
func (c *choice) take(e Entry, from From) (bool, error) {
	c.d.From, c.d.Source, c.d.Captured = from, shown(e.Source), e.Captured
	switch {
	case e.Broken != "":
		c.d.Required = e.Required
		return true, errors.New(shown(e.Broken))
	case !e.Spec.Declared():
		c.d.From, c.d.Source, c.d.Captured = FromNone, "", time.Time{}
		return false, nil
	default:
		c.d.Spec, c.won = e.Spec, &e
		return true, nil
	}
}

// shown makes text that was kept fit for a terminal: who handed it over may have
// put a domain's name into it.
func shown(s string) string {
	q := strconv.Quote(s)
	return strings.ReplaceAll(q[1:len(q)-1], `\"`, `"`)
}

// choose asks the sources in their order.
func (c *choice) choose() error {
	for _, ask := range []func() (bool, error){c.hook, c.xl, c.standing, c.adminsFile, c.remembered} {
		if done, err := ask(); done || err != nil {
			return err
		}
	}
	c.hostDefault()
	return nil
}

func (c *choice) hook() (bool, error) {
	h := c.r.handed[c.d.UUID]
	if h == nil {
		return false, nil
	}
	if c.xlSays() && c.found.Started.After(h.at.Add(slack)) {
		// The domain has changed hands: it is xl's now.
		return false, nil
	}
	done, err := c.take(h.entry, FromHook)
	if !done {
		c.void = true
		c.lookedAt(shown(h.entry.Source) + " has no policy in it")
	}
	return done, err
}

// xlSays reports whether an xl process has the domain's config.
func (c *choice) xlSays() bool { return c.asked && c.found.ConfigPath != "" }

func (c *choice) xl() (bool, error) {
	switch {
	case !c.asked:
		return false, nil
	case errors.Is(c.xlErr, xlplugin.ErrNoConfig):
		var none *xlplugin.NoConfigError
		if errors.As(c.xlErr, &none) {
			c.lookedAt(none.Reason())
		}
		return false, nil
	case !c.xlSays():
		c.d.From, c.d.Source, c.d.Required = FromXL, "xl", c.found.Required
		return true, c.xlErr
	}
	// A process that is older than what was said by hand says nothing new.
	if c.have && c.kept.Standing && !c.found.Started.IsZero() && c.kept.Asserted.Add(slack).After(c.found.Started) {
		c.lookedAt("xl config " + policy.Quote(c.found.ConfigPath) + " is older than what was said since")
		return false, nil
	}
	c.kept.Standing = false
	c.d.Warnings = append(c.d.Warnings, c.found.Warnings...)
	e := Entry{
		UUID: c.d.UUID, Name: c.d.Name, Toolstack: ToolstackXL, Source: "xl config " + policy.Quote(c.found.ConfigPath),
		Spec: c.found.Spec, Asserted: c.found.Started.Round(0).UTC(), Captured: c.r.opt.Now().Round(0),
	}
	if c.xlErr != nil {
		c.d.From, c.d.Source, c.d.Required = FromXL, e.Source, c.found.Required
		return true, c.xlErr
	}
	done, err := c.take(e, FromXL)
	if !done {
		c.void = true
		c.lookedAt(e.Source + " has no introspection key")
	}
	return done, err
}

// standing is what was said by hand or by xl config-update, and is no older
// than the admin's file.
func (c *choice) standing() (bool, error) {
	if !c.have || !c.kept.Standing {
		return false, nil
	}
	from := FromXL
	if c.kept.Toolstack == ToolstackHvictl {
		from = FromHvictl
		if c.haveFile && c.file.Modified.After(c.kept.Asserted) {
			return false, nil
		}
	}
	done, err := c.take(c.kept, from)
	if !done {
		c.void = true
		c.lookedAt(shown(c.kept.Source) + " has no policy in it")
	}
	return done, err
}

func (c *choice) adminsFile() (bool, error) {
	if !c.haveFile {
		c.lookedAt("there is no file for it in " + config.DomainsDir)
		return false, nil
	}
	e := Entry{
		UUID: c.d.UUID, Name: c.d.Name, Toolstack: ToolstackFile, Source: c.file.Path, Spec: c.file.Spec,
		Asserted: c.file.Modified.Round(0).UTC(), Captured: c.r.opt.Now().Round(0),
	}
	if c.fileErr != nil {
		c.d.From, c.d.Source, c.d.Required = FromFile, e.Source, c.file.Required
		return true, c.fileErr
	}
	return c.take(e, FromFile)
}

func (c *choice) remembered() (bool, error) {
	if !c.have || c.void || c.kept.Toolstack == ToolstackFile {
		if !c.void {
			c.lookedAt("nothing is kept for its UUID")
		}
		return false, nil
	}
	from := FromKept
	if c.kept.Toolstack == ToolstackHvictl {
		from = FromHvictl
	}
	done, err := c.take(c.kept, from)
	if !done {
		c.lookedAt("nothing is kept for its UUID")
	}
	return done, err
}

func (c *choice) hostDefault() {
	why := "nothing is declared for the domain: " + strings.Join(c.vain, "; ")
	spec := c.r.opt.Default
	if !spec.Declared() {
		c.d.Source = why + "; the host's default is off"
		return
	}
	c.d.From, c.d.Spec = FromDefault, spec
	c.d.Source = fmt.Sprintf("the host's default at %v, since %s", spec.Origins.Mode, why)
}

// refresh reads the policy that the spec names as it is now.
func (c *choice) refresh() error {
	fresh, found, err := c.d.Spec.Refresh(c.r.opt.Files)
	if err != nil {
		c.d.Required = c.d.Spec.RequireAttach
		return fmt.Errorf("policy %s, which %s names, cannot be used: %w", policy.Quote(c.d.Spec.Preset), c.d.Source, err)
	}
	if !found {
		c.d.Warnings = append(c.d.Warnings, fmt.Sprintf(
			"policy %s is not on this host; what it said when the domain's was written down holds", policy.Quote(c.d.Spec.Preset)))
	}
	c.d.Spec = fresh
	return nil
}

// keep writes down what was said, and that the domain is there. failed is that
// what holds cannot be honoured: what was kept stays then.
func (c *choice) keep(failed error) {
	if c.unread {
		return // it is not overwritten blindly
	}
	before, existed := c.before, c.existed
	suspended := before.Suspended || c.have && c.kept.Suspended
	var next *Next
	if c.have {
		next = c.kept.Next
	}
	var e Entry
	switch {
	case failed != nil && !c.have:
		return
	case failed != nil, c.have && c.kept.Standing && c.won == nil:
		e = c.kept
	case c.won != nil:
		e = *c.won
		e.Spec = c.d.Spec
	case suspended || next != nil:
		e = c.kept
		e.Spec, e.Broken, e.Required = policy.Spec{}, "", false
	default:
		if existed {
			c.warn(c.r.drop(c.d.UUID))
		}
		return
	}
	e.UUID, e.Name, e.Domain, e.Gone, e.End = c.d.UUID, c.d.Name, c.info.ID, time.Time{}, Alive
	e.Suspended, e.Next = suspended, next
	if c.incoming && existed && before.Domain != 0 && before.Gone.IsZero() {
		// It is received from this very host, and may yet fail to come: the
		// entry stays that of the domain that is sent.
		e.Domain = before.Domain
	}
	if e.Captured.IsZero() {
		e.Captured = c.r.opt.Now().Round(0)
	}
	same := e
	same.Captured = before.Captured
	if existed && reflect.DeepEqual(same, before) {
		return
	}
	c.warn(c.r.put(e))
}
