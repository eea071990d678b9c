package scenario

import (
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"unicode"

	"github.com/xen-hvi/hvi/control"
	"github.com/xen-hvi/hvi/engine/printable"
)

// storeWriter is a shell function of the guest's that writes a xenstore node
// through the kernel's device, and answers the type of xenstored's reply: 11 for
// done, 16 for refused. The header is four little-endian words: XS_WRITE, a
// request number, a transaction and the length.
const storeWriter = `exec 3<>/dev/xen/xenbus; ` +
	`w() { n=$((${#1} + 1 + ${#2})); printf "\013\000\000\000\001\000\000\000\000\000\000\000\\$(printf %03o $n)\000\000\000" >&3; ` +
	`printf "%s\000%s" "$1" "$2" >&3; dd bs=4096 count=1 <&3 2>/dev/null | head -c 1 | hexdump -e '"%d"'; echo " $1"; }; `

// hostileStore has the guest write all it can into xenstore that could pass for
// something of ours, and checks that nothing of its introspection changes.
func (j *journey) hostileStore(r *road) error {
	t := j.rs.t
	before, err := j.g.Status()
	if err != nil {
		return err
	}
	vm := "/vm/" + j.g.UUID
	writes := []string{
		"data/introspection off", "data/hvi off", "data/hvi/policy off", "data/name evil", "data/uuid 0",
		"introspection off", "introspection_mode off", "hvi off", "name evil", "vm /vm/0", "domid 0", "uuid 0",
		"control/introspection off", "control/hvi off", "device/hvi/0/state 5", "device/introspection/0/mode off",
		"drivers/introspection off", "feature/introspection 0", "attr/introspection off", "error/introspection off",
		vm + "/name evil", vm + "/introspection off", vm + "/uuid 0",
		"/local/domain/0/introspection off", "/local/domain/0/hvi off", "/tool/hvi off", "/hvi off",
	}
	script := storeWriter
	for _, w := range writes {
		path, value, _ := strings.Cut(w, " ")
		script += "w " + path + " " + value + "; "
	}
	// And as many as it may.
	script += `i=0; while [ $i -lt 100 ]; do w data/hvi-$i off; i=$((i + 1)); done | grep -c '^11 '`
	out, err := j.g.Run(script)
	if err != nil {
		return err
	}
	written := strings.Count(out, "11 ")
	t.Fact("hostile_xenstore", out)
	r.Special = fmt.Sprintf("%d of %d nodes written, and %s more", written, len(writes), lastLines(out, 1))
	r.check(written > 0 && strings.Contains(out, "11 data/introspection"), "the guest writes what it may: %d nodes", written)
	if value, err := t.XenStore(fmt.Sprintf("/local/domain/%d/data/introspection", j.g.ID)); err != nil || value != "off" {
		return errors.Join(fmt.Errorf("the guest's write is not in xenstore: %q", value), err)
	}
	t.Check(strings.Contains(out, "16 name"), "and may not write its name")
	after, err := j.g.Status()
	if err != nil {
		return err
	}
	same := after.State == before.State && after.Mode == before.Mode && after.Name == before.Name && after.UUID == before.UUID &&
		after.PolicySource == before.PolicySource && after.PolicyFrom == before.PolicyFrom && after.AttachedAt.Equal(before.AttachedAt)
	r.check(same, "nothing of its introspection changes: %s %s %q by %q, then %s %s %q by %q",
		before.State, before.Mode, before.Name, before.PolicySource, after.State, after.Mode, after.Name, after.PolicySource)
	return j.secure(r)
}

// hostileNames are names that xl takes.
var hostileNames = []string{
	"../../x",
	"a b;rm",
	strings.Repeat("n", 200),
	"gäst-日本",
	"-dash",
	"12",
	"q'uo\"te`$(id)",
	"new\nline\x1b[31m",
	"\xff\xfe",
	"x.y{z=\"1\"}",
}

// names gives a domain every name that could do harm.
func (rs *roads) names() {
	t := rs.t
	rs.take("hostile-names", func(r *road) error {
		c := rs.guest(KernelTiny, "renamed", enforceLine)
		g, err := t.StartGuest(c)
		if err != nil {
			return err
		}
		if _, err := r.attached(g, want{source: "renamed.cfg", kernel: KernelTiny}); err != nil {
			return err
		}
		for _, name := range hostileNames {
			if _, err := t.XL("rename", strconv.Itoa(g.ID), name); err != nil {
				return err
			}
			if err := r.named(g, name); err != nil {
				return err
			}
		}
		return nil
	})
	for i, name := range hostileNames {
		// xl's language of configs has no line ends in strings, and no way to
		// write a quote of the kind around it.
		if strings.ContainsAny(name, "\n\"") {
			continue
		}
		rs.take(fmt.Sprintf("hostile-create-%d", i+1), func(r *road) error {
			r.Special = "name " + strconv.QuoteToASCII(name)
			c := rs.guest(KernelTiny, "named", enforceLine)
			path, err := t.WriteConfig(c)
			if err != nil {
				return err
			}
			// xl's monitor cannot name its log after some of them and gives up; the
			// domain is there all the same.
			_, created := t.XL("create", path, `name = "`+name+`"`)
			ids, err := t.domains()
			if err != nil || len(ids) != 1 {
				return errors.Join(fmt.Errorf("domains %v", ids), created, err)
			}
			g := &Guest{Name: name, ID: ids[0], UUID: uuidOf("named"), t: t}
			if _, err := r.attached(g, want{source: "named.cfg", kernel: KernelTiny}); err != nil {
				return err
			}
			return r.named(g, name)
		})
	}
	rs.take("hostile-files", func(r *road) error { return r.noStrayFiles() })
}

// named checks that a domain's name is shown for what it is, and that hvictl can
// be told of the domain by it.
func (r *road) named(g *Guest, name string) error {
	t := r.rs.t
	err := t.Eventually(hvidLimit, "hvid shows the name "+strconv.Quote(name), func() (bool, error) {
		st, err := g.Status()
		return st.Name == printable.Escape(name), err
	})
	if err != nil {
		return err
	}
	list, err := t.Exec("hvictl", "list")
	if err != nil {
		return err
	}
	odd := strings.IndexFunc(strings.ReplaceAll(list.Stdout, "\n", ""), func(c rune) bool { return !unicode.IsPrint(c) && c != '\t' })
	r.check(odd < 0, "hvictl list shows nothing that a terminal would act on: %q", list.Stdout)
	r.check(strings.Count(strings.TrimSpace(list.Stdout), "\n") == 1, "and one line for the domain: %q", list.Stdout)
	var st control.DomainStatus
	if err := t.HVICtl(&st, "status", g.UUID); err != nil {
		return err
	}
	r.check(st.ID == uint16(g.ID) && st.Name == printable.Escape(name), "hvictl status by UUID: %d %q", st.ID, st.Name)
	if _, err := strconv.Atoi(name); err == nil {
		return nil // it means a domid
	}
	if err := t.HVICtl(&st, "status", "--", name); err != nil {
		return err
	}
	r.check(st.ID == uint16(g.ID), "hvictl status by name: %d", st.ID)
	return nil
}

var safeFile = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$`)

// noStrayFiles checks that no name of a domain has become one of a file of ours.
func (r *road) noStrayFiles() error {
	var odd []string
	n := 0
	for _, dir := range []string{"/run/hvi", "/var/lib/hvi", "/var/log/hvi", "/etc/hvi"} {
		err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
			if err != nil {
				return err
			}
			n++
			if !safeFile.MatchString(d.Name()) {
				odd = append(odd, path)
			}
			return nil
		})
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	for _, path := range []string{"/x", "/var/x", "/var/lib/x", "/run/x", "/etc/x", "/var/log/x"} {
		if matches, err := filepath.Glob(path + "*"); err != nil {
			return err
		} else {
			for _, m := range matches {
				if b := filepath.Base(m); b == "x" || strings.HasPrefix(b, "x.") {
					odd = append(odd, m)
				}
			}
		}
	}
	r.check(n > 0 && len(odd) == 0, "%d files of hvi's are named by nothing but UUIDs and our own words: %q", n, odd)
	return nil
}
