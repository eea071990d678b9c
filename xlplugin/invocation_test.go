package xlplugin

import (
	"reflect"
	"strings"
	"testing"
)

func TestParseInvocation(t *testing.T) {
	create := func(config string, extra ...string) *invocation {
		return &invocation{config: config, extra: extra}
	}
	tests := []struct {
		line    string
		posixly bool
		want    *invocation // nil: creates nothing from a config
	}{
		{"xl create g.cfg", false, create("g.cfg")},
		{"xl create -p /path/g.cfg", false, create("/path/g.cfg")},
		{"xl create /path/g.cfg -c -e", false, create("/path/g.cfg")},
		{"xl -vvv create g.cfg", false, create("g.cfg")},
		{"xl -v -f -t -T create g.cfg", false, create("g.cfg")},
		{"xl -fvT -- create g.cfg", false, create("g.cfg")},
		{"xl cr g.cfg", false, create("g.cfg")},
		{"xl creat g.cfg", false, create("g.cfg")},
		{"xl create g.cfg memory=512 name='x'", false, create("g.cfg", "memory=512", "name='x'")},
		{"xl create memory=512 g.cfg vcpus=2", false, create("g.cfg", "memory=512", "vcpus=2")},
		{"xl create g.cfg memory=512 -p vcpus=2", false, create("g.cfg", "memory=512", "vcpus=2")},
		{"xl create --quiet --defconfig /etc/xen/auto/g.cfg", false, create("/etc/xen/auto/g.cfg")},
		{"xl create --defconfig=g.cfg -q", false, create("g.cfg")},
		{"xl create --def=g.cfg", false, create("g.cfg")},
		{"xl create -fg.cfg", false, create("g.cfg")},
		{"xl create -qpf g.cfg", false, create("g.cfg")},
		{"xl create -f a=b.cfg", false, create("a=b.cfg")},
		{"xl create first.cfg -f second.cfg", false, create("second.cfg")},
		{"xl create /dev/null name='x' memory=1", false, create("/dev/null", "name='x'", "memory=1")},
		{"xl create -- -odd.cfg", false, create("-odd.cfg")},
		{"xl create -p -- g.cfg a=1 -b=2", false, create("g.cfg", "a=1", "-b=2")},
		{"xl create -", false, create("-")},
		{"xl create --vncviewer --vncviewer-autopass --ignore-global-affinity-masks -i g.cfg", false, create("g.cfg")},
		{"xl create --vncviewer-a g.cfg", false, create("g.cfg")},
		{"xl create g.cfg -c a=1", true, create("g.cfg", "a=1")},
		{"xl create a=1 -f=2 g.cfg", true, create("g.cfg", "a=1", "-f=2")},

		{"xl create", false, nil},
		{"xl create memory=512", false, nil},
		{"xl create a.cfg b.cfg", false, nil},
		{"xl create -n g.cfg", false, nil},
		{"xl create --dryrun g.cfg", false, nil},
		{"xl create --dry g.cfg", false, nil},
		{"xl create --d g.cfg", false, nil},
		{"xl create --vnc g.cfg", false, nil},
		{"xl create --quiet=1 g.cfg", false, nil},
		{"xl create -h", false, nil},
		{"xl create g.cfg --help", false, nil},
		{"xl create -z g.cfg", false, nil},
		{"xl create -: g.cfg", false, nil},
		{"xl create --defconfig", false, nil},
		{"xl create -f", false, nil},
		{"xl create a=1 -p g.cfg", true, nil},
		{"xl -N create g.cfg", false, nil},
		{"xl --verbose create g.cfg", false, nil},
		{"xl -z create g.cfg", false, nil},
		{"xl", false, nil},
		{"xl -v", false, nil},
		{"xl c g.cfg", false, nil},
		{"xl list", false, nil},
		{"xl creates g.cfg", false, nil},
		{"xl console g", false, nil},
		{"xl migrate-receive", false, nil},

		{"xl restore -p g.cfg /var/g.save", false, &invocation{restore: true, config: "g.cfg"}},
		{"xl restore /var/g.save", false, &invocation{restore: true}},
		{"xl restore", false, nil},
		{"xl restore -h", false, nil},
		{"xl restore -x g.save", false, nil},
		{"xl restore a b c", false, nil},
	}
	for _, tt := range tests {
		got, ok := parseInvocation(strings.Fields(tt.line), tt.posixly)
		switch {
		case tt.want == nil && ok:
			t.Errorf("%s: got %+v, want nothing", tt.line, got)
		case tt.want != nil && !ok:
			t.Errorf("%s: not understood", tt.line)
		case tt.want != nil && !reflect.DeepEqual(got, *tt.want):
			t.Errorf("%s: got %+v, want %+v", tt.line, got, *tt.want)
		}
	}
	if inv, ok := parseInvocation(nil, false); ok {
		t.Errorf("no arguments gave %+v", inv)
	}
	if inv, ok := parseInvocation([]string{"xl", "create", "", "a=1"}, false); ok {
		t.Errorf("an empty file name gave %+v", inv)
	}
}

func FuzzParseInvocation(f *testing.F) {
	f.Add("xl\x00-v\x00create\x00-f\x00g.cfg\x00a=1", false)
	f.Add("xl\x00create\x00--defconfig=\x00--\x00-x", true)
	f.Add("xl\x00restore\x00-p\x00a\x00b", false)
	f.Fuzz(func(t *testing.T, line string, posixly bool) {
		argv := strings.Split(line, "\x00")
		inv, ok := parseInvocation(argv, posixly)
		if !ok {
			return
		}
		if !inv.restore && inv.config == "" {
			t.Errorf("create without a config: %q", argv)
		}
		for _, e := range inv.extra {
			if !strings.Contains(e, "=") {
				t.Errorf("%q is no assignment", e)
			}
		}
	})
}
