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
		line string
		want *invocation // nil: creates nothing
	}{
		{"xl create g.cfg", create("g.cfg")},
		{"xl create -p /path/g.cfg", create("/path/g.cfg")},
		{"xl create /path/g.cfg -c -e", create("/path/g.cfg")},
		{"xl -vvv create g.cfg", create("g.cfg")},
		{"xl -v -f -t -T create g.cfg", create("g.cfg")},
		{"xl -fvT -- create g.cfg", create("g.cfg")},
		{"xl cr g.cfg", create("g.cfg")},
		{"xl creat g.cfg", create("g.cfg")},
		{"xl create g.cfg memory=512 name='x'", create("g.cfg", "memory=512", "name='x'")},
		{"xl create memory=512 g.cfg vcpus=2", create("g.cfg", "memory=512", "vcpus=2")},
		{"xl create g.cfg memory=512 -p vcpus=2", create("g.cfg", "memory=512", "vcpus=2")},
		{"xl create --quiet --defconfig /etc/xen/auto/g.cfg", create("/etc/xen/auto/g.cfg")},
		{"xl create --defconfig=g.cfg -q", create("g.cfg")},
		{"xl create --def=g.cfg", create("g.cfg")},
		{"xl create -fg.cfg", create("g.cfg")},
		{"xl create -qpf g.cfg", create("g.cfg")},
		{"xl create -f a=b.cfg", create("a=b.cfg")},
		{"xl create first.cfg -f second.cfg", create("second.cfg")},
		{"xl create /dev/null name='x' memory=1", create("/dev/null", "name='x'", "memory=1")},
		{"xl create -- -odd.cfg", create("-odd.cfg")},
		{"xl create -p -- g.cfg a=1 -b=2", create("g.cfg", "a=1", "-b=2")},
		{"xl create -", create("-")},
		{"xl create --vncviewer --vncviewer-autopass --ignore-global-affinity-masks -i g.cfg", create("g.cfg")},
		{"xl create --vncviewer-a g.cfg", create("g.cfg")},
		{"xl create a=1 -f=2 g.cfg", create("g.cfg", "a=1", "-f=2")},
		{"xl create a=1 -f g.cfg -p", create("g.cfg", "a=1")},
		{"xl create a=1 -odd.cfg", create("-odd.cfg", "a=1")},

		{"xl create", nil},
		{"xl create memory=512", nil},
		{"xl create a.cfg b.cfg", nil},
		{"xl create -n g.cfg", nil},
		{"xl create --dryrun g.cfg", nil},
		{"xl create --dry g.cfg", nil},
		{"xl create --d g.cfg", nil},
		{"xl create --vnc g.cfg", nil},
		{"xl create --quiet=1 g.cfg", nil},
		{"xl create -h", nil},
		{"xl create g.cfg --help", nil},
		{"xl create -z g.cfg", nil},
		{"xl create -: g.cfg", nil},
		{"xl create --defconfig", nil},
		{"xl create -f", nil},
		{"xl create a=1 -z g.cfg", nil},
		{"xl -N create g.cfg", nil},
		{"xl --verbose create g.cfg", nil},
		{"xl -z create g.cfg", nil},
		{"xl", nil},
		{"xl -v", nil},
		{"xl c g.cfg", nil},
		{"xl list", nil},
		{"xl creates g.cfg", nil},
		{"xl console g", nil},
		{"xl migrate --debug g host", nil},
		{"xl migrate- ", nil},
		{"xl config-update g g.cfg", nil},

		{"xl restore -p g.cfg /var/g.save", &invocation{restore: true, config: "g.cfg"}},
		{"xl restore /var/g.save", &invocation{restore: true}},
		{"xl restore -e /etc/xen/g.cfg /var/g.save", &invocation{restore: true, config: "/etc/xen/g.cfg"}},
		{"xl migrate-receive", &invocation{receive: true}},
		{"xl -v migrate-receive -F -r --colo --coloft-script=/x", &invocation{receive: true}},
		{"xl migrate-rec -d", &invocation{receive: true}},
		{"xl migrate-receive g", nil},
		{"xl migrate-receive -h", nil},
		{"xl migrate-receive --unknown", nil},
		{"xl restore", nil},
		{"xl restore -h", nil},
		{"xl restore -x g.save", nil},
		{"xl restore a b c", nil},
	}
	for _, tt := range tests {
		got, ok := parseInvocation(strings.Fields(tt.line))
		switch {
		case tt.want == nil && ok:
			t.Errorf("%s: got %+v, want nothing", tt.line, got)
		case tt.want != nil && !ok:
			t.Errorf("%s: not understood", tt.line)
		case tt.want != nil && !reflect.DeepEqual(got, *tt.want):
			t.Errorf("%s: got %+v, want %+v", tt.line, got, *tt.want)
		}
	}
	if inv, ok := parseInvocation(nil); ok {
		t.Errorf("no arguments gave %+v", inv)
	}
	for _, argv := range [][]string{
		{"xl", "create", "", "a=1"},
		{"xl", "create", "", "g.cfg"},
		{"xl", "create", "--defconfig=", "g.cfg"},
	} {
		if inv, ok := parseInvocation(argv); ok {
			t.Errorf("%q: an empty file name gave %+v", argv, inv)
		}
	}
}

func FuzzParseInvocation(f *testing.F) {
	f.Add("xl\x00-v\x00create\x00-f\x00g.cfg\x00a=1")
	f.Add("xl\x00create\x00--defconfig=\x00--\x00-x")
	f.Add("xl\x00restore\x00-p\x00a\x00b")
	f.Add("xl\x00migrate-receive\x00--coloft-script\x00a")
	f.Fuzz(func(t *testing.T, line string) {
		argv := strings.Split(line, "\x00")
		inv, ok := parseInvocation(argv)
		if !ok {
			return
		}
		if !inv.restore && !inv.receive && inv.config == "" {
			t.Errorf("create without a config: %q", argv)
		}
		for _, e := range inv.extra {
			if !strings.Contains(e, "=") {
				t.Errorf("%q is no assignment", e)
			}
		}
	})
}
