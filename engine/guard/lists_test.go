package guard

import (
	"encoding/binary"
	"errors"
	"slices"
	"testing"

	"github.com/xen-hvi/hvi/engine/guest/linux"
	"github.com/xen-hvi/hvi/engine/guest/linux/linuxtest"
	"github.com/xen-hvi/hvi/engine/guest/report"
	"github.com/xen-hvi/hvi/engine/policy"
	"github.com/xen-hvi/hvi/engine/x86"
)

// listing is a policy with one list.
func listing(name policy.ListName, elements ...string) policy.Effective {
	return policy.Effective{Mode: policy.ModeEnforce, Lists: []policy.ListSetting{{Name: name, Elements: elements}}}
}

// load puts modules, all that there are, on a guest's list.
func load(g *linuxtest.Guest, names ...string) {
	last := g.Addr("modules")
	for i, name := range names {
		at := g.Base + linuxtest.Data + 0x1_0000 + x86.VirtAddr(i)*0x1000
		g.Write(at+linuxtest.ModuleName, append([]byte(name), 0))
		g.WriteUint64(at+linuxtest.ModuleMem+linuxtest.RegionBase, 0xffff_ffff_c020_0000+uint64(i)*0x1_0000)
		g.Write(at+linuxtest.ModuleMem+linuxtest.RegionBytes, binary.LittleEndian.AppendUint32(nil, x86.PageSize))
		g.WriteUint64(last, uint64(at+linuxtest.ModuleList))
		g.WriteUint64(at+linuxtest.ModuleList+8, uint64(last))
		last = at + linuxtest.ModuleList
	}
	g.WriteUint64(last, uint64(g.Addr("modules")))
	g.WriteUint64(g.Addr("modules")+8, uint64(last))
}

// TestListedModules plays a guest's life, look by look, and wants those found that its
// policy doesn't list.
func TestListedModules(t *testing.T) {
	type look struct {
		up   float64 // in seconds; less than 0 is unknown
		mods []string
		want []report.Text
	}
	for _, c := range []struct {
		name    string
		allowed []string
		looks   []look
	}{
		{"nothing allowed", nil, []look{{1, nil, nil}, {2, []string{"a"}, []report.Text{"module a"}}}},
		{"names", []string{"a", "nf*"}, []look{{1, []string{"a", "nf_tables", "b"}, []report.Text{"module b"}}, {999, []string{"a"}, nil}}},
		{"none after boot", []string{policy.NoneAfterBoot}, []look{
			{1, []string{"a"}, nil}, {200, []string{"a", "b"}, nil}, {301, []string{"a", "b", "c"}, nil}, // what came in time was seen late
			{330, []string{"a", "b", "c", "d"}, []report.Text{"module d"}}, {1, []string{"a", "b", "c", "d", "e"}, []report.Text{"module d", "module e"}},
		}},
		{"of a guest that runs already", []string{policy.NoneAfterBoot, "nf*"}, []look{
			{9999, []string{"a"}, nil}, {9999, []string{"a", "nf_x", "b"}, []report.Text{"module b"}},
		}},
		{"of a guest whose clock is unknown", []string{policy.NoneAfterBoot}, []look{{-1, []string{"a"}, nil}, {-1, []string{"a", "b"}, []report.Text{"module b"}}}},
		{"another module where one was", []string{policy.NoneAfterBoot}, []look{{999, []string{"a"}, nil}, {999, []string{"b"}, []report.Text{"module b"}}}},
	} {
		t.Run(c.name, func(t *testing.T) {
			g := linuxtest.New(linuxtest.Config{})
			k, err := linux.Identify(g.Memory(), g.Regs[0])
			if err != nil {
				t.Fatal(err)
			}
			up := 0.0
			find := findUnlisted(listing(policy.ListAllowedModules, c.allowed...), func(*linux.Reader) (float64, error) {
				if up < 0 {
					return 0, errors.New("no clock")
				}
				return up, nil
			})
			for i, l := range c.looks {
				up = l.up
				load(g, l.mods...)
				v, err := find(k.NewReader(nil))
				var got []report.Text
				for _, f := range v.Findings {
					got = append(got, f.Object)
				}
				if err != nil || !slices.Equal(got, l.want) {
					t.Errorf("look %d: %q, %v, want %q", i, got, err, l.want)
				}
			}
			// A list that can't be read is learned from at no time.
			g.WriteUint64(g.Addr("modules"), 8)
			if v, err := find(k.NewReader(nil)); err != nil || v.Clean || v.Checks[0].Status != report.CheckFailed {
				t.Errorf("%+v, %v", v, err)
			}
		})
	}
}

// TestLooksForLists: what a policy doesn't forbid isn't looked for.
func TestLooksForLists(t *testing.T) {
	none := policy.Effective{Mode: policy.ModeEnforce}
	for _, c := range []struct {
		guard Guard
		p     policy.Effective
		looks bool
	}{
		{Modules(), none, false},
		{Modules(), listing(policy.ListAllowedModules), true},
		{EBPF(), none, true},
		{EBPF(), listing(policy.ListForbiddenEBPF), false},
		{EBPF(), listing(policy.ListForbiddenEBPF, "lsm"), true},
		{HiddenObjects(), none, true},
	} {
		if got := c.guard.Look.Finding(c.p) != nil; got != c.looks {
			t.Errorf("%s with %+v looks: %t", c.guard.Name, c.p.Lists, got)
		}
	}
}

// TestTypesOfPrograms: the words that a policy has for types of programs are those that
// the kernel's are told by.
func TestTypesOfPrograms(t *testing.T) {
	l, _ := policy.LookupList(policy.ListForbiddenEBPF)
	if types := linux.ProgramTypes(); !slices.Equal(l.Words, types) {
		t.Errorf("a policy knows %q, the kernel %q", l.Words, types)
	}
	for _, word := range l.Default {
		if !slices.Contains(l.Words, word) {
			t.Errorf("%q is no type", word)
		}
	}
}
