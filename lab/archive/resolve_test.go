package archive

import (
	"errors"
	"slices"
	"strings"
	"testing"
)

func TestClosure(t *testing.T) {
	deb := func(name, version, control string) fakeDeb {
		return fakeDeb{name: name, version: version, control: control}
	}
	m := newFakeMirror(t)
	m.publish(suite{name: "one", debs: []fakeDeb{
		deb("app", "1", "Depends: libx (>= 1), data\nPre-Depends: pre\nRecommends: nice, missing\n"),
		deb("libx", "1.0", ""),
		deb("data", "1", "Depends: app\n"), // a circle
		deb("pre", "1", ""),
		deb("nice", "1", "Recommends: nicer | data\n"),
		deb("nicer", "1", ""),
		// alternatives
		deb("alt", "1", "Depends: nowhere | libx (>= 99) | second | pre\n"),
		deb("second", "1", ""),
		deb("altpre", "1", "Depends: second | pre, pre\n"),
		deb("ordered", "1", "Depends: pre, second | pre\n"),
		// virtual packages
		deb("mailer", "1", "Depends: mta\n"),
		deb("exim", "4", "Provides: mta\nPriority: standard\n"),
		deb("aaamta", "1", "Provides: mta\nPriority: optional\n"),
		deb("wants-exim", "1", "Depends: aaamta, mta\n"),
		deb("needs-api", "1", "Depends: api (>= 2)\n"),
		deb("api1", "1", "Provides: api (= 1), other\n"),
		deb("api2", "1", "Provides: api (= 2.1)\n"),
		deb("api3", "1", "Provides: api\n"),
		deb("needs-other", "1", "Depends: other (>= 1)\n"),
		deb("real-or-virtual", "1", "Depends: libx (>= 3)\n"),
		deb("libx-compat", "1", "Provides: libx (= 3)\n"),
		// qualifiers
		deb("py", "1", "Depends: python3:any (>= 3)\n"),
		deb("python3", "3.11", ""),
		// versions
		deb("strict", "1", "Depends: multi (= 1)\n"),
		deb("loose", "1", "Depends: multi\n"),
		deb("multi", "1", "Provides: multi-abi-1\n"),
		deb("abi1", "1", "Depends: multi-abi-1\n"),
		deb("clash", "1", "Depends: multi (>= 2), strict\n"),
		deb("broken", "1", "Depends: app, deep\n"),
		deb("deep", "1", "Depends: nowhere (>= 7) | elsewhere\n"),
		deb("old", "1", "Depends: libx (>= 99)\n"),
		deb("nonsense", "1", "Depends: (((\n"),
		deb("coreutils", "9", "Essential: yes\nPre-Depends: pre\n"),
		deb("dash", "9", "Essential: yes\n"),
	}})
	m.publish(suite{name: "two", debs: []fakeDeb{
		deb("multi", "2", ""),
		deb("multi", "1.5", ""),
		deb("libx", "1.0", "Depends: second\n"), // the same version in a later suite
		deb("newer", "1", ""),
	}})
	one, both := []string{"one"}, []string{"one", "two"}
	c := m.open(t.TempDir())
	for _, q := range []struct {
		name   string
		suites []string
		ask    string
		opt    ClosureOptions
		want   string
	}{
		{"circle", one, "app", ClosureOptions{}, "app=1 data=1 libx=1.0 pre=1"},
		{"excluded by name and glob", one, "app", ClosureOptions{Exclude: []string{"data", "pr*"}}, "app=1 libx=1.0"},
		{"excluded but asked for", one, "app", ClosureOptions{Exclude: []string{"*"}}, "app=1"},
		{"recommends", one, "app", ClosureOptions{Recommends: true}, "app=1 data=1 libx=1.0 nice=1 pre=1"},
		{"recommends of recommends", one, "nice", ClosureOptions{Recommends: true}, "nice=1 nicer=1"},
		{"first alternative that is there", one, "alt", ClosureOptions{}, "alt=1 second=1"},
		{"an excluded alternative will do", one, "alt", ClosureOptions{Exclude: []string{"nowhere"}}, "alt=1"},
		{"an alternative that comes anyway", one, "ordered", ClosureOptions{}, "ordered=1 pre=1"},
		{"alternatives are decided in order", one, "altpre", ClosureOptions{}, "altpre=1 pre=1 second=1"},
		{"asked for decides alternatives", one, "pre altpre", ClosureOptions{}, "altpre=1 pre=1"},
		{"virtual, by priority", one, "mailer", ClosureOptions{}, "exim=4 mailer=1"},
		{"virtual, one is there", one, "wants-exim", ClosureOptions{}, "aaamta=1 wants-exim=1"},
		{"virtual, excluded", one, "mailer", ClosureOptions{Exclude: []string{"mta"}}, "mailer=1"},
		{"virtual, provider excluded", one, "mailer", ClosureOptions{Exclude: []string{"exim"}}, "aaamta=1 mailer=1"},
		{"virtual asked for", one, "mta", ClosureOptions{}, "exim=4"},
		{"versioned provides", one, "needs-api", ClosureOptions{}, "api2=1 needs-api=1"},
		{"provides in place of too old a package", one, "real-or-virtual", ClosureOptions{}, "libx-compat=1 real-or-virtual=1"},
		{"qualifier", one, "py", ClosureOptions{}, "py=1 python3=3.11"},
		{"newest", both, "loose", ClosureOptions{}, "loose=1 multi=2"},
		{"older on demand", both, "strict", ClosureOptions{}, "multi=1 strict=1"},
		{"older found out late", both, "loose strict", ClosureOptions{}, "loose=1 multi=1 strict=1"},
		{"asked for by version", both, "multi=1.5", ClosureOptions{}, "multi=1.5"},
		{"no outdated provider", both, "newer", ClosureOptions{}, "newer=1"},
		{"first suite at equal versions", both, "libx", ClosureOptions{}, "libx=1.0"},
		{"other order of suites", []string{"two", "one"}, "libx", ClosureOptions{}, "libx=1.0 second=1"},
		{"essential", one, "libx", ClosureOptions{Essential: true}, "coreutils=9 dash=9 libx=1.0 pre=1"},
		{"essential, excluded", one, "libx", ClosureOptions{Essential: true, Exclude: []string{"d*"}}, "coreutils=9 libx=1.0 pre=1"},
		{"nothing", one, "", ClosureOptions{}, ""},
	} {
		t.Run(q.name, func(t *testing.T) {
			got, err := c.Closure(t.Context(), q.suites, strings.Fields(q.ask), q.opt)
			if err != nil {
				t.Fatal(err)
			}
			if want := strings.Fields(q.want); !slices.Equal(names(got), want) {
				t.Errorf("got %v, want %v", names(got), want)
			}
		})
	}
	for _, q := range []struct {
		name   string
		suites []string
		ask    string
		opt    ClosureOptions
		target error
		want   []string // in the error's text
	}{
		{"unknown", one, "nowhere", ClosureOptions{}, ErrNotFound, []string{"nowhere", "one"}},
		{"unknown version", one, "libx=7", ClosureOptions{}, ErrNotFound, []string{"libx (= 7)"}},
		{"missing", one, "broken", ClosureOptions{}, ErrUnsatisfied, []string{"broken → deep needs nowhere (>= 7) | elsewhere", "no such package"}},
		{"too old", both, "old", ClosureOptions{}, ErrUnsatisfied, []string{"old needs libx (>= 99)", "the newest libx is 1.0", "one, two"}},
		{"clash", both, "clash", ClosureOptions{}, ErrUnsatisfied, []string{"clash → strict needs multi (= 1)", "multi 2 was chosen for clash → multi"}},
		{"versioned provides only", one, "needs-other", ClosureOptions{}, ErrUnsatisfied, []string{"other (>= 1)"}},
		{"outdated provider", both, "abi1", ClosureOptions{}, ErrUnsatisfied, []string{"multi-abi-1"}},
		{"malformed", one, "nonsense", ClosureOptions{}, nil, []string{"nonsense 1 (one)", "not a package name"}},
		{"bad name", one, "a*", ClosureOptions{}, ErrNotFound, []string{"name=version"}},
		{"bad version", one, "libx=", ClosureOptions{}, ErrNotFound, []string{"name=version"}},
		{"bad glob", one, "libx", ClosureOptions{Exclude: []string{"["}}, nil, []string{"exclude pattern"}},
		{"no suites", nil, "libx", ClosureOptions{}, nil, []string{"no suite"}},
	} {
		t.Run(q.name, func(t *testing.T) {
			got, err := c.Closure(t.Context(), q.suites, strings.Fields(q.ask), q.opt)
			if err == nil {
				t.Fatalf("got %v, want an error", names(got))
			}
			if q.target != nil && !errors.Is(err, q.target) {
				t.Errorf("got %v, want %v", err, q.target)
			}
			for _, w := range q.want {
				if !strings.Contains(err.Error(), w) {
					t.Errorf("%q does not say %q", err, w)
				}
			}
		})
	}
}
