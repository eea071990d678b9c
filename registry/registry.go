package registry

import (
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"time"

	"github.com/xen-hvi/hvi/config"
	"github.com/xen-hvi/hvi/engine/policy"
	"github.com/xen-hvi/hvi/engine/xen"
	"github.com/xen-hvi/hvi/xlplugin"
)

// From is the kind of source a decision came from, in one word.
type From string

// The kinds of source.
const (
	// FromNone is nothing: nobody declared anything, and there is no default.
	FromNone From = "none"
	// FromHook is what a toolstack's hook handed over.
	FromHook From = "handed"
	// FromXL is the config of an xl process.
	FromXL From = "xl"
	// FromFile is the admin's file for the domain.
	FromFile From = "file"
	// FromKept is what was kept for the domain's UUID.
	FromKept From = "captured"
	// FromHvictl is what was set by hand.
	FromHvictl From = "hvictl"
	// FromDefault is the host's default.
	FromDefault From = "default"
)

// Decision is what holds for a domain.
type Decision struct {
	// Spec is the policy. It declares nothing if From is FromNone.
	Spec policy.Spec
	// Required says, beside an error, that what was declared says, as far as it
	// can be understood, that the domain may run only while it is attached to.
	Required bool
	// From is the kind of source it came from, and Source the place, for
	// people. If nothing was found, Source says what was looked at.
	From   From
	Source string
	// UUID is the domain's own, and Name its name, where it has temporary ones
	// for the moment.
	UUID xen.UUID
	Name string
	// Temporary says that the domain has a temporary UUID: xenopsd is about to
	// give it its own, which makes it another domain to Xen.
	Temporary bool
	// Captured is when the declaration was written down, if it was.
	Captured time.Time
	// Warnings are for the admin.
	Warnings []string
}

// XL finds configs; [*xlplugin.Resolver] is the real one.
type XL interface {
	Resolve(xlplugin.Domain) (xlplugin.Found, error)
	Updated(xen.DomID, xen.UUID) (xlplugin.Update, bool, error)
}

// XenStore is what is needed of xenstore.
type XenStore interface {
	Read(path string) (string, error)
}

// Options is what a Registry works with. Every field but Store may be left
// zero.
type Options struct {
	Store *Store
	XL    XL
	// Files are the admin's: those of domains, and policies.
	Files *config.Files
	// Default is the host's default.
	Default policy.Spec
	// XenStore tells XAPI's temporary UUIDs.
	XenStore XenStore
	Log      *slog.Logger
	Now      func() time.Time
}

// Registry answers what holds for a domain.
type Registry struct {
	opt Options

	mu sync.Mutex
	// handed is what hooks handed over. It stays for a while after the domain
	// it was for: a restart may hand over anew before the end of the old domain
	// is seen.
	handed map[xen.UUID]*handed
	// next are the UUIDs of kept entries with a Next in them.
	next map[xen.UUID]bool
}

// handed is one hook's word.
type handed struct {
	entry Entry
	at    time.Time
}

// New returns a registry. It reads the store once; what is damaged there is
// logged and set aside.
func New(opt Options) *Registry {
	if opt.Log == nil {
		opt.Log = slog.New(slog.DiscardHandler)
	}
	if opt.Now == nil {
		opt.Now = time.Now
	}
	if opt.Files == nil {
		opt.Files = &config.Files{}
	}
	r := &Registry{opt: opt, handed: map[xen.UUID]*handed{}, next: map[xen.UUID]bool{}}
	entries, err := opt.Store.All()
	if err != nil {
		opt.Log.Error("read what was declared for domains", "err", err)
	}
	for _, e := range entries {
		if e.Next != nil {
			r.next[e.UUID] = true
		}
	}
	return r
}

// Resolve decides what holds for a domain, and keeps what was said. Call it when
// the domain appears, while its toolstack is still creating it, and at any time
// later to ask again.
//
// The error is that somebody declared something that cannot be honoured; it
// names the place. The decision then has From, Source and Required set, and no
// Spec.
func (r *Registry) Resolve(info xen.DomainInfo, name string) (Decision, error) {
	d := Decision{UUID: info.UUID, Name: plainName(name), From: FromNone}
	d.UUID, d.Temporary = r.identity(info.UUID)

	// What may take time is asked before anything is locked.
	c := &choice{r: r, info: info, d: &d, incoming: strings.HasSuffix(name, incomingSuffix)}
	if !d.Temporary && r.opt.XL != nil {
		c.found, c.xlErr = r.opt.XL.Resolve(xlplugin.Domain{ID: info.ID, Name: d.Name, UUID: info.UUID})
		c.asked = true
		r.ConfigUpdated(info.ID, info.UUID)
	}
	c.file, c.haveFile, c.fileErr = r.opt.Files.Domain(d.UUID, d.Name)

	r.mu.Lock()
	defer r.mu.Unlock()
	c.load()
	err := c.choose()
	if err == nil {
		err = c.refresh()
	}
	if err != nil {
		d.Spec = policy.Spec{}
	}
	if !d.Temporary {
		c.keep(err)
	}
	return d, err
}

// What xl adds to the name of a domain that it migrates.
const (
	incomingSuffix = "--incoming"
	awaySuffix     = "--migratedaway"
)

// plainName takes away what xl adds to a name while it migrates a domain.
func plainName(name string) string {
	for _, s := range []string{incomingSuffix, awaySuffix} {
		if n, ok := strings.CutSuffix(name, s); ok && n != "" {
			return n
		}
	}
	return name
}

// identity returns a domain's own UUID, and whether the one it has is temporary.
func (r *Registry) identity(uuid xen.UUID) (xen.UUID, bool) {
	if r.opt.XenStore == nil {
		return uuid, false
	}
	own, temporary := xlplugin.OwnUUID(r.opt.XenStore.Read, uuid)
	return own, temporary
}

// Hand takes over what a toolstack's hook says about a domain that is about to
// start, or, if e.Domain is its number, about one that runs. (A hook that speaks
// of a start leaves it 0 even if a domain of the UUID is still there: that is
// the one before.) A Spec that declares nothing
// says that the domain's configuration has none of our words, and e.Broken that
// it has some that cannot be honoured. It is kept at once, so that hvid may be
// restarted before the domain is there.
func (r *Registry) Hand(e Entry) error {
	now := r.opt.Now().Round(0)
	e.Asserted, e.Captured, e.Gone, e.End, e.Standing, e.Next = now, now, time.Time{}, Alive, false, nil
	if err := e.check(); err != nil {
		return fmt.Errorf("what was handed over for %v: %w", e.UUID, err)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.handed[e.UUID] == nil && len(r.handed) >= maxHanded {
		return fmt.Errorf("what was handed over for %v: more than %d domains are about to start", e.UUID, maxHanded)
	}
	r.handed[e.UUID] = &handed{entry: e, at: now}
	kept, ok, err := r.kept(e.UUID)
	e.Suspended, e.Next = kept.Suspended, kept.Next
	if !e.Spec.Declared() && e.Broken == "" && !e.Suspended && e.Next == nil {
		if ok {
			err = errors.Join(err, r.drop(e.UUID))
		}
		return err
	}
	return errors.Join(err, r.put(e))
}

// Handed returns what a hook handed over last for a UUID, and whether that is
// still remembered.
func (r *Registry) Handed(uuid xen.UUID) (Entry, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	h := r.handed[uuid]
	if h == nil {
		return Entry{}, false
	}
	return h.entry, true
}

// maxHanded bounds what was handed over and not used: there are no more domids.
const maxHanded = 1 << 16

// Set keeps what was declared for a domain by hand. It holds from now on,
// against an xl process and an admin's file that are older.
func (r *Registry) Set(uuid xen.UUID, name string, spec policy.Spec, source string) error {
	now := r.opt.Now().Round(0)
	uuid, _ = r.identity(uuid)
	r.mu.Lock()
	defer r.mu.Unlock()
	e, _, err := r.kept(uuid)
	e.UUID, e.Name, e.Toolstack, e.Source, e.Spec, e.Broken, e.Required = uuid, name, ToolstackHvictl, source, spec, "", false
	e.Asserted, e.Captured, e.Standing = now, now, true
	return errors.Join(err, r.put(e))
}

// Clear forgets what was kept for a UUID. What the domain's toolstack says
// counts again.
func (r *Registry) Clear(uuid xen.UUID) error {
	uuid, _ = r.identity(uuid)
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.drop(uuid)
}

// Import keeps what another host exported, for a domain that is to come from
// there.
func (r *Registry) Import(e Entry) error {
	e.Captured, e.Gone, e.End, e.Domain, e.Next, e.Suspended = r.opt.Now().Round(0), time.Time{}, Alive, 0, nil, true
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.put(e)
}

// Get returns what is kept for a UUID, and whether there is anything.
func (r *Registry) Get(uuid xen.UUID) (Entry, bool, error) {
	uuid, _ = r.identity(uuid)
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.opt.Store.Get(uuid)
}

// All returns everything that is kept, by UUID.
func (r *Registry) All() ([]Entry, error) { return r.opt.Store.All() }

// ConfigUpdated notes the config that `xl config-update` gave a domain for its
// next restart. It is called when one was, and is harmless when none was: what
// cannot be read is logged.
func (r *Registry) ConfigUpdated(id xen.DomID, uuid xen.UUID) {
	if r.opt.XL == nil {
		return
	}
	u, ok, err := r.opt.XL.Updated(id, uuid)
	if err != nil {
		r.opt.Log.Error("what holds from the next restart of the domain on is not known", "domid", id, "uuid", uuid, "err", err)
	}
	if !ok || err != nil {
		return
	}
	n := &Next{
		Name: u.Declared.Name, UUID: u.Declared.UUID, HasUUID: u.Declared.HasUUID,
		Source: "xl config-update of " + u.Stored.UTC().Format(time.RFC3339), Spec: u.Declared.Spec, Asserted: u.Stored.Round(0).UTC(),
	}
	if u.Err != nil {
		n.Required = u.Declared.Required
		n.Broken, n.Spec = shorten(oneLine(u.Err.Error())), policy.Spec{}
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	e, have, err := r.kept(uuid)
	if err == nil && have && e.Next != nil && e.Next.Asserted.Equal(n.Asserted) {
		return
	}
	if !have {
		e = Entry{UUID: uuid, Toolstack: ToolstackXL, Name: n.Name, Source: "xl config-update", Domain: id, Captured: r.opt.Now().Round(0)}
	}
	e.Next = n
	if err := r.put(e); err != nil {
		r.opt.Log.Error("keep what xl config-update said", "domid", id, "uuid", uuid, "err", err)
	}
}

// ShutDown notes that a guest has stopped, and why: it may be restored, or
// started anew, from now on.
func (r *Registry) ShutDown(info xen.DomainInfo) error {
	r.ConfigUpdated(info.ID, info.UUID)
	return r.end(info)
}

// Ended notes that Xen has destroyed a domain. info is what was last known of
// it.
func (r *Registry) Ended(info xen.DomainInfo) error { return r.end(info) }

func (r *Registry) end(info xen.DomainInfo) error {
	uuid, temporary := r.identity(info.UUID)
	if temporary {
		return nil
	}
	now := r.opt.Now().Round(0)
	how := EndOf(info)
	r.mu.Lock()
	defer r.mu.Unlock()
	e, ok, err := r.kept(uuid)
	if err != nil || !ok {
		return err
	}
	if e.Domain != info.ID {
		// Another domain of the UUID has taken its place already, or is about
		// to: it was migrated within the host, or restarted quickly.
		if how != Saved || e.Suspended {
			return nil
		}
		e.Suspended = true
		return r.put(e)
	}
	if err := r.opt.Store.Ended(uuid, how, now); err != nil {
		return err
	}
	if how == Destroyed {
		delete(r.next, uuid)
	}
	return nil
}

// Prune forgets what is of no more use; see [Store.Prune]. It is to be called
// every minute or so.
func (r *Registry) Prune(alive func(xen.UUID) bool) (removed int, err error) {
	now := r.opt.Now()
	r.mu.Lock()
	defer r.mu.Unlock()
	for uuid, h := range r.handed {
		if !alive(uuid) && now.Sub(h.at) >= RestartGrace {
			delete(r.handed, uuid)
		}
	}
	removed, err = r.opt.Store.Prune(now, alive)
	for uuid := range r.next {
		if e, ok, err := r.opt.Store.Get(uuid); err == nil && (!ok || e.Next == nil) {
			delete(r.next, uuid)
		}
	}
	return removed, err
}

// kept reads an entry. A damaged one is logged and counts as none.
func (r *Registry) kept(uuid xen.UUID) (Entry, bool, error) {
	e, ok, err := r.opt.Store.Get(uuid)
	var corrupt *CorruptError
	if errors.As(err, &corrupt) {
		r.opt.Log.Error("what was declared for a domain is lost", "uuid", uuid, "err", err)
		return Entry{}, false, nil
	}
	return e, ok, err
}

func (r *Registry) put(e Entry) error {
	if err := r.opt.Store.Put(e); err != nil {
		return err
	}
	if e.Next != nil {
		r.next[e.UUID] = true
	} else {
		delete(r.next, e.UUID)
	}
	return nil
}

func (r *Registry) drop(uuid xen.UUID) error {
	delete(r.next, uuid)
	return r.opt.Store.Delete(uuid)
}

// oneLine puts the lines of several errors on one.
func oneLine(s string) string { return strings.ReplaceAll(s, "\n", "; ") }

// shorten cuts a text to what an entry can keep.
func shorten(s string) string {
	if len(s) <= MaxText {
		return s
	}
	const mark = "…"
	return s[:MaxText-len(mark)] + mark
}
