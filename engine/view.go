package engine

import (
	"errors"
	"fmt"
	"slices"

	"github.com/xen-hvi/hvi/engine/guard"
	"github.com/xen-hvi/hvi/engine/ledger"
	"github.com/xen-hvi/hvi/engine/policy"
	"github.com/xen-hvi/hvi/engine/view"
	"github.com/xen-hvi/hvi/engine/x86"
	"github.com/xen-hvi/hvi/engine/xen"
)

// The guards' pages are restricted in views of their own where the domain can
// have views: all vCPUs run in one of them, and what a guard lets through is stepped
// over in the host's view, which restricts nothing. There is one for each that the
// policy declares, or one in which all guards hold.

// ViewStatus is one translation of a domain's memory.
type ViewStatus struct {
	// ID is Xen's number of it; 0 is the host's, which a domain without altp2m
	// has as well.
	ID uint16
	// Name is what the policy calls it, empty for one that it doesn't declare.
	Name string
	// Guards are those of memory that hold in it, as the policy declares; nil for all.
	Guards []policy.GuardName
	// Switch is who may have the domain switched to it, of one that is declared.
	Switch policy.ViewSwitch
	// Current says that the vCPUs run in it, but for one that makes a step in
	// another.
	Current bool
	// Steps says that steps over breakpoints are made in it, and reads of what can be
	// executed alone in the one that the domain runs in.
	Steps bool
	// Restricted are the frames that may not be accessed freely, but for those in
	// Shadows.
	Restricted []RestrictedFrames
	// Shadows are the frames that lead to another page than in the host's view,
	// which can be executed and nothing else.
	Shadows []ShadowPage
	// Traps are the frames with breakpoints of a domain without views of ours: what else is
	// permitted of them, they can't be executed.
	Traps []TrappedPage
}

// TrappedPage is a page of the guest's that can't be executed, with breakpoints in it.
type TrappedPage struct {
	*view.Trap
	Breakpoints int
}

// ShadowPage is a page of ours in the place of one of the guest's.
type ShadowPage struct {
	// GFN is the guest's frame, Shadow that of the page it leads to.
	GFN, Shadow x86.GFN
	Breakpoints int
}

// RestrictedFrames are frames in a row with less than full access.
type RestrictedFrames struct {
	First  x86.GFN
	Count  uint64
	Access xen.Access // what they permit
	Guard  policy.GuardName
}

// viewsStatus are a domain's views. They are replaced as a whole when they change.
type viewsStatus []ViewStatus

// newView is a view as a policy declares it, or the one of a policy that declares
// none, where decl is nil.
func newView(id uint16, decl *policy.View) ViewStatus {
	v := ViewStatus{ID: id}
	if decl != nil {
		v.Name, v.Switch = decl.Name, decl.Switch
		v.Guards = append([]policy.GuardName{}, decl.Guards...)
	}
	return v
}

// holds reports whether a guard holds in the view.
func (v *ViewStatus) holds(name policy.GuardName) bool {
	if v.ID == noView && !v.Current {
		return false
	}
	return v.Guards == nil || policy.View{Guards: v.Guards}.Holds(name)
}

func (v viewsStatus) current() *ViewStatus {
	for i := range v {
		if v[i].Current {
			return &v[i]
		}
	}
	return &v[0]
}

// withStepping returns the views with one for steps over breakpoints, restricted
// as the current one is, and the shadow pages of that.
func (v viewsStatus) withStepping(id uint16, shadows []ShadowPage) viewsStatus {
	out := slices.DeleteFunc(slices.Clone(v), func(s ViewStatus) bool { return s.Steps })
	current := out.current()
	current.Shadows = shadows
	steps := ViewStatus{ID: id, Steps: true, Guards: current.Guards, Restricted: slices.Clone(current.Restricted)}
	for i := range steps.Restricted {
		steps.Restricted[i].Access = stepAccess(steps.Restricted[i].Access)
	}
	return append(out, steps)
}

// stepAccess is what the view for steps permits of a frame that permits as much in the
// running one: what can be executed alone there can be read in a step, and written in
// none.
func stepAccess(running xen.Access) xen.Access {
	if running == xen.AccessX {
		return xen.AccessRX
	}
	return running
}

// access returns what a view permits of a frame that it restricts.
func (v viewsStatus) access(id uint16, gfn x86.GFN) (xen.Access, bool) {
	for _, s := range v {
		for _, r := range s.Restricted {
			if s.ID == id && gfn >= r.First && uint64(gfn-r.First) < r.Count {
				return r.Access, true
			}
		}
	}
	return xen.AccessRWX, false
}

// restrict notes what is restricted for a guard.
func (v *ViewStatus) restrict(r guard.Restriction) {
	for _, f := range r.Frames {
		v.Restricted = append(v.Restricted, RestrictedFrames{First: f.First, Count: f.N, Access: r.Access, Guard: r.Guard})
	}
}

// noView is the number of the host's view, which is no view of ours.
const noView = 0

// currentView returns the declared view that the domain is to run in: the one that it
// was switched to, or else the initial one; nil where none is declared.
func (s *Session) currentView() *policy.View {
	if v, err := s.policy.LookupView(s.viewName); err == nil {
		return v
	}
	return s.policy.InitialView()
}

// declaredViews returns the views to be made; nil stands for one that is not declared.
func (s *Session) declaredViews() []*policy.View {
	if len(s.policy.Views) == 0 {
		return []*policy.View{nil}
	}
	var out []*policy.View
	for i := range s.policy.Views {
		out = append(out, &s.policy.Views[i])
	}
	return out
}

// openViews makes the views, restricts in each what the guards watch that hold in it,
// and puts the domain, which is paused, into the one that it is to run in. Where that
// fails it leaves nothing behind, and the status says why the tier is the one below.
// There are none of ours then, and it returns nil.
func (s *Session) openViews(set *guard.Set) viewsStatus {
	if s.Status().Tier != TierViews {
		return nil
	}
	decls := s.declaredViews()
	err := s.allowViews()
	if err == nil {
		err = s.growPool(translations + uint64(len(decls)))
	}
	if err == nil {
		err = s.ledger.EnableSteps(s.info.VCPUs)
	}
	if err == nil {
		err = s.ledger.EnableViews()
	}
	views := viewsStatus{{ID: noView}}
	for _, decl := range decls {
		var v ViewStatus
		if err == nil {
			v, err = s.openView(set, decl)
		}
		v.Current = decl == s.currentView()
		views = append(views, v)
	}
	if err == nil {
		err = s.enter(set, views)
	}
	if err != nil {
		s.closeView(err)
		return nil
	}
	return views
}

// openView makes one view.
func (s *Session) openView(set *guard.Set, decl *policy.View) (v ViewStatus, err error) {
	id, err := s.ledger.CreateView()
	switch {
	case err != nil:
		return v, err
	case id == noView:
		return v, errors.New("Xen made a view and called it 0, which is the host's")
	}
	v = newView(id, decl)
	for _, r := range set.Restrictions(v.holds) {
		for _, f := range r.Frames {
			if err := s.ledger.RestrictView(id, r.Access, f.First, f.N); err != nil {
				return v, err
			}
		}
		v.restrict(r)
	}
	return v, nil
}

// enter puts the domain into the current one of views that were made.
func (s *Session) enter(set *guard.Set, views viewsStatus) error {
	set.UseViews(views.holding())
	view := views.current().ID
	set.UseView(view)
	err := s.ledger.SwitchView(view)
	if err != nil {
		set.UseView(noView)
	}
	return err
}

// holdsAnywhere reports whether a guard holds in any of the views.
func (st *Status) holdsAnywhere(name policy.GuardName) bool {
	return slices.ContainsFunc(st.Views, func(v ViewStatus) bool { return v.holds(name) })
}

// holding returns what tells, for each view, whether a guard holds in it, but for
// views that the domain doesn't run in.
func (v viewsStatus) holding() map[uint16]func(policy.GuardName) bool {
	out := make(map[uint16]func(policy.GuardName) bool)
	for i := range v {
		if s := &v[i]; !s.Steps && (s.ID != noView || s.Current) {
			out[s.ID] = s.holds
		}
	}
	return out
}

// closeView gives up the view, with the domain paused, because of an error.
func (s *Session) closeView(why error) {
	err := s.ledger.Undo(ledger.OpViews, ledger.OpAllowViews, ledger.OpSteps, ledger.OpPagingPool)
	s.update(func(st *Status) {
		st.Tier, st.TierReason = TierAccess, fmt.Sprintf("no view could be made: %v", errors.Join(why, err))
	})
	s.log.Warn("views are given up", "err", errors.Join(why, err))
}

// allowViews says that we may use views, where the toolstack did not say and
// Xen still lets it be said: libvirt has no word for it, and before Xen 4.19 a
// domain's mode could be set after its creation.
func (s *Session) allowViews() error {
	a, err := s.hv.AltP2M(s.info.ID)
	if err == nil && a.Mode == xen.AltP2MDisabled {
		err = s.ledger.AllowViews()
	}
	return err
}

// poolSlack is how many pages of the paging pool are left to what is no second
// level table of memory: the processors' own, and those of special pages.
const poolSlack = 64

// translations is how many tables of all memory there are once a guest has been all
// over it, besides those of each view of ours: the host's p2m, and the view 0 that
// repeats it while views are on.
const translations = 2

// growPool makes sure that the paging pool holds the tables of so many
// translations. Xen crashes a domain that runs in a view for which there is no
// page left.
func (s *Session) growPool(translations uint64) error {
	have, err := s.hv.PagingPool(s.info.ID)
	if err != nil {
		return err
	}
	if want := viewTables(s.info.MaxPages)*translations + poolSlack; have < want*x86.PageSize {
		return s.ledger.GrowPagingPool(have, want*x86.PageSize)
	}
	return nil
}

// viewTables is how many pages of tables a view of n frames takes, each mapped
// by itself.
func viewTables(n uint64) uint64 {
	total := uint64(0)
	for level := 0; level < 4; level++ {
		n = (n + 511) / 512
		total += n
	}
	return total
}
