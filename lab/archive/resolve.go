package archive

import (
	"cmp"
	"context"
	"fmt"
	"path"
	"slices"
	"strings"
)

// ClosureOptions steer Closure. The zero value follows Depends and Pre-Depends
// only.
type ClosureOptions struct {
	// Exclude holds names or globs (path.Match) of packages that count as
	// present: they are not taken, and a dependency with one of them among its
	// alternatives is met.
	Exclude []string
	// Recommends follows Recommends too, where they can be met.
	Recommends bool
	// Essential adds the packages that every Debian system has and that
	// therefore nothing depends on, such as coreutils and dpkg.
	Essential bool
}

// Closure returns the packages asked for with all they depend on, ordered by
// name, one version of each name.
//
// Candidates come from all suites; the newest version that meets the conditions
// wins, at equal versions the suite named first. Of alternatives, one that is
// already in the closure is preferred, then the first that can be had; a virtual
// package is met by what provides it. An entry of pkgs is "name" or
// "name=version". Conflicts and Breaks are not looked at, because a tree that
// nothing is configured in doesn't need them. A choice of alternative is not
// taken back where it leads to a dependency that can't be met.
//
// It fails with a NotFoundError for a name that no suite has and with an
// UnsatisfiedError for a dependency that can't be met.
func (a *Archive) Closure(ctx context.Context, suites, pkgs []string, opt ClosureOptions) ([]Package, error) {
	for _, glob := range opt.Exclude {
		if _, err := path.Match(glob, ""); err != nil {
			return nil, fmt.Errorf("exclude pattern %s: %w", quote(glob), err)
		}
	}
	indexes, err := a.load(ctx, suites)
	if err != nil {
		return nil, err
	}
	u := &universe{suites: suites, indexes: indexes, real: make(map[string][]Package), virtual: make(map[string][]Package)}
	pins := make(map[string]string)
	for {
		r := &resolver{universe: u, opt: opt, pins: pins, chosen: make(map[string]*node), provided: make(map[string][]*node)}
		again, err := r.run(pkgs)
		if err != nil {
			return nil, err
		}
		if again {
			continue
		}
		out := make([]Package, 0, len(r.chosen))
		for _, n := range r.chosen {
			out = append(out, n.pkg)
		}
		slices.SortFunc(out, func(a, b Package) int { return strings.Compare(a.Name, b.Name) })
		return out, nil
	}
}

// universe is what the suites offer, read from their indexes as needed.
type universe struct {
	suites  []string
	indexes []*index
	real    map[string][]Package
	virtual map[string][]Package
}

// named returns all versions of a package, newest first, at equal versions in
// the order of the suites.
func (u *universe) named(name string) []Package {
	if list, ok := u.real[name]; ok {
		return list
	}
	var list []Package
	for _, x := range u.indexes {
		list = append(list, x.lookup(name)...)
	}
	slices.SortStableFunc(list, func(a, b Package) int { return CompareVersions(b.Version, a.Version) })
	u.real[name] = list
	return list
}

// providing returns what provides a virtual package, best first: by priority,
// then by name, then newest.
func (u *universe) providing(name string) []Package {
	if list, ok := u.virtual[name]; ok {
		return list
	}
	var list []Package
	for _, x := range u.indexes {
		list = append(list, x.providers(name)...)
	}
	slices.SortStableFunc(list, func(a, b Package) int {
		return cmp.Or(
			slices.Index(priorities, a.Priority)-slices.Index(priorities, b.Priority),
			strings.Compare(a.Name, b.Name),
			CompareVersions(b.Version, a.Version))
	})
	u.virtual[name] = list
	return list
}

// provides reports whether a package's Provides meets a relation. A condition
// on the version is met only by a provide that names one.
func provides(p Package, r Relation) bool {
	if p.Provides == "" {
		return false
	}
	deps, err := ParseDependencies(p.Provides)
	if err != nil {
		return false // an index with such a field isn't built
	}
	for _, d := range deps {
		if v := d[0]; v.Name == r.Name && (r.Op == "" || v.Op == "=" && r.Holds(v.Version)) {
			return true
		}
	}
	return false
}

// node is a package of the closure.
type node struct {
	pkg    Package
	parent *node      // what first wanted it; nil for one asked for
	wanted []Relation // the conditions put on it by name
}

func (n *node) chain() []string {
	var out []string
	for ; n != nil; n = n.parent {
		out = append(out, n.pkg.Name)
	}
	slices.Reverse(out)
	return out
}

// resolver makes one attempt. Where a later condition speaks against an earlier
// choice it pins the version that meets both and starts over; a name is pinned
// only to ever older versions, so that it ends.
type resolver struct {
	*universe
	opt      ClosureOptions
	pins     map[string]string
	chosen   map[string]*node
	provided map[string][]*node // by virtual name
	queue    []*node
}

func (r *resolver) excluded(name string) bool {
	return slices.ContainsFunc(r.opt.Exclude, func(glob string) bool {
		ok, _ := path.Match(glob, name)
		return ok
	})
}

func (r *resolver) run(pkgs []string) (again bool, err error) {
	for _, spec := range pkgs {
		name, version, exact := strings.Cut(spec, "=")
		rel := Relation{Name: name}
		if exact {
			rel.Op, rel.Version = "=", version
		}
		if !validName(name) || exact && version == "" {
			return false, &NotFoundError{Name: quote(spec), Suites: r.suites, Hint: "want name or name=version"}
		}
		if again, err := r.want(nil, Dependency{rel}); err != nil || again {
			return again, err
		}
	}
	if r.opt.Essential {
		for _, x := range r.indexes {
			for i := range x.len() {
				if !x.essential(i) {
					continue
				}
				name := string(x.name(i))
				if r.excluded(name) {
					continue
				}
				if again, err := r.want(nil, Dependency{{Name: name}}); err != nil || again {
					return again, err
				}
			}
		}
	}
	for len(r.queue) > 0 {
		n := r.queue[0]
		r.queue = r.queue[1:]
		deps, err := n.pkg.Dependencies()
		if err != nil {
			return false, err
		}
		for _, d := range deps {
			if again, err := r.want(n, d); err != nil || again {
				return again, err
			}
		}
		if !r.opt.Recommends {
			continue
		}
		deps, err = ParseDependencies(n.pkg.Recommends)
		if err != nil {
			return false, fmt.Errorf("package %s: %w", n.pkg, err)
		}
		for _, d := range deps {
			if r.find(d) != nil {
				if again, err := r.want(n, d); err != nil || again {
					return again, err
				}
			}
		}
	}
	return false, nil
}

// want makes the closure meet a dependency of parent.
func (r *resolver) want(parent *node, d Dependency) (again bool, err error) {
	for _, rel := range d {
		if parent != nil && r.excluded(rel.Name) {
			return false, nil
		}
	}
	// What is there already.
	for _, rel := range d {
		if n := r.chosen[rel.Name]; n != nil && rel.Holds(n.pkg.Version) {
			n.wanted = append(n.wanted, rel)
			return false, nil
		}
		for _, n := range r.provided[rel.Name] {
			if provides(n.pkg, rel) {
				return false, nil
			}
		}
	}
	found := r.find(d)
	if found == nil {
		return r.stuck(parent, d)
	}
	n := &node{pkg: found.pkg, parent: parent}
	if found.rel.Name == n.pkg.Name {
		n.wanted = append(n.wanted, found.rel)
	}
	r.chosen[n.pkg.Name] = n
	if n.pkg.Provides != "" {
		virtual, err := ParseDependencies(n.pkg.Provides)
		if err != nil {
			return false, fmt.Errorf("package %s: %w", n.pkg, err)
		}
		for _, v := range virtual {
			r.provided[v[0].Name] = append(r.provided[v[0].Name], n)
		}
	}
	r.queue = append(r.queue, n)
	return false, nil
}

type match struct {
	pkg Package
	rel Relation
}

// find returns the best package that is not chosen yet and meets a dependency.
func (r *resolver) find(d Dependency) *match {
	usable := func(p Package) bool {
		pin, pinned := r.pins[p.Name]
		return r.chosen[p.Name] == nil && (!pinned || p.Version == pin)
	}
	for _, rel := range d {
		for _, p := range r.named(rel.Name) {
			if rel.Holds(p.Version) && usable(p) {
				return &match{p, rel}
			}
		}
		for _, p := range r.providing(rel.Name) {
			if usable(p) && !r.excluded(p.Name) && provides(p, rel) && r.newest(p) {
				return &match{p, rel}
			}
		}
	}
	return nil
}

// newest reports whether p is the version that its name alone would choose; an
// outdated version's Provides is no reason to take it.
func (r *resolver) newest(p Package) bool {
	want, pinned := r.pins[p.Name]
	if !pinned {
		want = r.named(p.Name)[0].Version
	}
	return p.Version == want
}

// stuck looks for an older version of something already chosen that meets the
// dependency and all that was asked of it before.
func (r *resolver) stuck(parent *node, d Dependency) (again bool, err error) {
	for _, rel := range d {
		n := r.chosen[rel.Name]
		if n == nil {
			continue
		}
		for _, p := range r.named(rel.Name) {
			if CompareVersions(p.Version, n.pkg.Version) >= 0 || !rel.Holds(p.Version) {
				continue
			}
			if !slices.ContainsFunc(n.wanted, func(w Relation) bool { return !w.Holds(p.Version) }) {
				r.pins[p.Name] = p.Version
				return true, nil
			}
		}
	}
	if parent == nil {
		return false, &NotFoundError{Name: d.String(), Suites: r.suites}
	}
	e := &UnsatisfiedError{Dependency: d.String(), Chain: parent.chain(), Suites: r.suites, Reason: "no such package"}
	for _, rel := range d {
		if n := r.chosen[rel.Name]; n != nil {
			e.Reason = fmt.Sprintf("%s %s was chosen for %s, and no version meets both", rel.Name, n.pkg.Version, strings.Join(n.chain(), " → "))
		} else if list := r.named(rel.Name); len(list) > 0 {
			e.Reason = fmt.Sprintf("the newest %s is %s", rel.Name, list[0].Version)
		}
	}
	return false, e
}
