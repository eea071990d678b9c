package engine

import (
	"errors"
	"fmt"
	"slices"

	"github.com/xen-hvi/hvi/engine/guard"
	"github.com/xen-hvi/hvi/engine/ledger"
	"github.com/xen-hvi/hvi/engine/policy"
	"github.com/xen-hvi/hvi/engine/x86"
	"github.com/xen-hvi/hvi/engine/xen"
)

// The guards' pages are restricted in a view of their own where the domain can
// have views: all vCPUs run in it, and what a guard lets through is stepped
// over in the host's view, which restricts nothing.

// ViewStatus is one translation of a domain's memory.
type ViewStatus struct {
	// ID is Xen's number of it; 0 is the host's, which a domain without altp2m
	// has as well.
	ID uint16
	// Current says that the vCPUs run in it, but for one that makes a step in
	// another.
	Current bool
	// Steps says that steps over breakpoints are made in it.
	Steps bool
	// Restricted are the frames that may not be accessed freely, but for those in
	// Shadows.
	Restricted []RestrictedFrames
	// Shadows are the frames that lead to another page than in the host's view,
	// which can be executed and nothing else.
	Shadows []ShadowPage
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

// newViewStatus tells of the host's view, and of one of ours if there is one.
func newViewStatus(view uint16) viewsStatus {
	if view == noView {
		return viewsStatus{{ID: noView, Current: true}}
	}
	return viewsStatus{{ID: noView}, {ID: view, Current: true}}
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
	return append(out, ViewStatus{ID: id, Steps: true, Restricted: current.Restricted})
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

// restrict notes what a guard watches in the current view.
func (v viewsStatus) restrict(a *guard.Armed) {
	current := v.current()
	for _, f := range a.Frames {
		current.Restricted = append(current.Restricted, RestrictedFrames{First: f.First, Count: f.N, Access: a.Watch.Access, Guard: a.Guard.Name})
	}
}

// noView is the number of the host's view, which is no view of ours.
const noView = 0

// openView makes the view in which pages will be restricted, with the domain
// paused. Where that fails it leaves nothing behind, and the status says why
// the tier is the one below.
func (s *Session) openView() (view uint16) {
	if s.Status().Tier != TierViews {
		return noView
	}
	err := s.allowViews()
	if err == nil {
		err = s.growPool(translations)
	}
	if err == nil {
		err = s.ledger.EnableSteps(s.info.VCPUs)
	}
	if err == nil {
		err = s.ledger.EnableViews()
	}
	if err == nil {
		view, err = s.ledger.CreateView()
	}
	if err == nil && view == noView {
		err = errors.New("Xen made a view and called it 0, which is the host's")
	}
	if err != nil {
		s.closeView(err)
		return noView
	}
	return view
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

// translations is how many tables of all memory there are once a guest has been
// all over it in both views: the host's p2m, the view 0 that repeats it while
// views are on, and ours.
const translations = 3

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
