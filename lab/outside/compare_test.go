package outside

import (
	"reflect"
	"strings"
	"testing"

	"github.com/xen-hvi/hvi/engine/guest/report"
	"github.com/xen-hvi/hvi/lab/scenario"
	"github.com/xen-hvi/hvi/lab/witness"
)

func TestCompare(t *testing.T) {
	one := func(id, name, state string) view { return view{id: {"name": name, "state": state}} }
	all := func(vs ...view) view {
		out := view{}
		for _, v := range vs {
			for id, r := range v {
				out[id] = r
			}
		}
		return out
	}
	before := all(one("1", "init", "S"), one("2", "sh", "R"), one("3", "gone", "S"))
	after := all(one("1", "init", "S"), one("2", "sh", "S"), one("4", "new", "S"))
	for _, c := range []struct {
		name                       string
		got                        view
		things, values, diff, more int
	}{
		{"right", all(one("1", "init", "S"), one("2", "sh", "D")), 2, 3, 0, 0},
		{"what comes and goes may be there", all(one("1", "init", "S"), one("2", "sh", "D"), one("3", "gone", "S"), one("4", "new", "S")), 2, 3, 0, 0},
		{"missing", one("1", "init", "S"), 2, 2, 1, 0},
		{"wrong name", all(one("1", "inti", "S"), one("2", "sh", "D")), 2, 3, 1, 0},
		{"too many", all(one("1", "init", "S"), one("2", "sh", "D"), one("5", "ghost", "S")), 2, 3, 1, 0},
		{"rightly more", all(one("1", "init", "S"), one("2", "sh", "D"), one("5", "worker", "S")), 2, 3, 0, 1},
		{"nothing", view{}, 2, 0, 2, 0},
	} {
		got := compare(before, after, c.got, func(r record) bool { return r["name"] == "worker" })
		if got.Things != c.things || got.Values != c.values || got.Different != c.diff || got.Extra != c.more {
			t.Errorf("%s: %+v", c.name, got)
		}
	}
}

func TestUnescape(t *testing.T) {
	for in, want := range map[string]string{
		`a\040b`: "a b", `\134n`: `\n`, `x\x0ay`: "x\ny", `\x5cx41`: `\x41`, `\9`: `\9`, `\x`: `\x`, "": "", `\04`: `\04`,
	} {
		if got := unescape(in); got != want {
			t.Errorf("%q became %q, want %q", in, got, want)
		}
	}
}

func TestAddress(t *testing.T) {
	for in, want := range map[string]string{
		"0100007F:1267":                         "127.0.0.1:4711",
		"00000000000000000000000001000000:1268": "[::1]:4712",
		"00000000:0000":                         "",
		"00000000:0016":                         "0.0.0.0:22",
		"xyz":                                   "",
		"0100007F":                              "",
	} {
		if got := address(in); got != want {
			t.Errorf("%s became %q, want %q", in, got, want)
		}
	}
}

func TestViews(t *testing.T) {
	stat := "12 (a) R 1 (b) S 1 12 12 0 -1 4194560 100 0 0 0 1 2 0 0 20 0 5 0 345 1 1"
	status := "Name:\ta) R 1 (b\nTgid:\t12\nUid:\t0\t1\t2\t3\nGid:\t4\t5\t6\t7\nThreads:\t5\nCapEff:\t000001ffffffffff\n"
	r := witness.Report{
		"proc/12/stat": []byte(stat), "proc/12/status": []byte(status), "proc/12/comm": []byte("a) R 1 (b\n"),
		"proc/12/exe": []byte("/run/gone (deleted)"), "proc/12/cgroup": []byte("1:cpu:/x\n0::/odd\n"), "proc/12/ns/mnt": []byte("mnt:[4026531840]"),
		"proc/12/fd/3": []byte("socket:[77]"), "proc/12/fd/4": []byte("socket:[79]"), "proc/12/maps": []byte("7f00-8f00 r-xp 00001000 00:1a 9    /etc/a file\\012x (deleted)\nff00-ff01 --xp 00000000 00:00 0 [vsyscall]\n"),
		"proc/modules":  []byte("fat 90112 1 vfat, Live 0xffffffffc040b000\npwn 16384 0 - Live 0xffffffffc0000000 (OE)\n"),
		"proc/net/tcp":  []byte("  sl  local_address ...\n   0: 0100007F:1267 00000000:0000 0A 00000000:00000000 00:00000000 00000000 1234 0 77 1 0 100\n"),
		"proc/net/unix": []byte("Num RefCount ...\n0: 00000002 00000000 00010000 0001 01 78 @abstract\n"),
		"dmesg":         []byte("6,12,345,-;a\\x09b\n SUBSYSTEM=x\n30,13,400,-;c\n"),
		"mountinfo":     []byte("36 35 98:0 /r /mnt\\040x rw,nosuid shared:1 - ext3 /dev/root rw,errors=continue\n"),
	}
	for _, c := range []struct {
		name string
		got  view
		id   string
		want record
	}{
		{"process", processView(r), "12", record{"comm": "a) R 1 (b", "state": "S", "ppid": "1", "start": "345", "kernel thread": "false", "uids": "0 1 2 3",
			"gids": "4 5 6 7", "threads": "5", "effective": "1ffffffffff", "exe": "/run/gone", "cgroup": "/odd", "ns/mnt": "4026531840", "tgid": "12"}},
		{"module", moduleView(r), "fat", record{"size": "90112", "refcount": "1", "users": "vfat", "state": "live", "base": "ffffffffc040b000", "taints": ""}},
		{"tainted module", moduleView(r), "pwn", record{"taints": "OE", "users": ""}},
		{"socket", socketView(r), "77", record{"family": "inet", "type": "stream", "protocol": "tcp", "local": "127.0.0.1:4711", "remote": "",
			"state": "listen", "uid": "1234", "owners": "12/3"}},
		{"unix socket", socketView(r), "78", record{"family": "unix", "type": "stream", "state": "listen", "local": "@abstract"}},
		{"socket that is not bound", socketView(r), "79", record{"owners": "12/4", "family": ""}},
		{"log", logView(r), "12", record{"level": "6", "facility": "0", "microseconds": "345", "message": `a\tb`}},
		{"log of a daemon", logView(r), "13", record{"level": "6", "facility": "3", "message": "c"}},
		{"mount", mountView(r, "mountinfo"), "36", record{"parent": "35", "device": "98:0", "point": "/mnt x", "options": "nosuid,rw", "type": "ext3", "source": "/dev/root"}},
		{"map", mapView(r, 12), "7f00", record{"end": "8f00", "perm": "r-xp", "offset": "1000", "device": "0:26", "inode": "9", "path": `/etc/a file\nx`}},
	} {
		got := c.got[c.id]
		for field, want := range c.want {
			if got[field] != want {
				t.Errorf("%s: %s is %q, want %q", c.name, field, got[field], want)
			}
		}
	}
	if len(mapView(r, 12)) != 1 {
		t.Error("the page for old system calls is a mapping")
	}
}

func TestSeen(t *testing.T) {
	if _, err := seenProcesses([]report.Process{{PID: 4}, {PID: 4}}); err == nil {
		t.Error("a process is there twice")
	}
	if _, err := seenModules([]report.Module{{Name: "a"}, {Name: "a"}}); err == nil {
		t.Error("a module is there twice")
	}
	got := seenMaps([]report.Mapping{{Start: 0x7f00, End: 0x8f00, Perm: "r-xp", Offset: 0x1000, Device: "0:26", Inode: 9, Path: `/x\ny`}})
	want := view{"7f00": {"end": "8f00", "perm": "r-xp", "offset": "1000", "device": "0:26", "inode": "9", "path": `/x\ny`}}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("%v", got)
	}
	p, err := seenProcesses([]report.Process{{PID: 4, Start: 3_450_000_001, Comm: "kworker/0:1", KernelThread: true}})
	if err != nil || p["4"]["start"] != "345" || !worker(p["4"]) {
		t.Errorf("%v, %v", p, err)
	}
}

func TestComm(t *testing.T) {
	for in, want := range map[string]string{"kworker/0:1-events": "kworker/0:1", "kworker/u2:0+flush": "kworker/u2:0", "kworker/R-mm_percpu_wq": "kworker/R-mm_pe", "a-b": "a-b", "rcu_tasks_rude_kthread": "rcu_tasks_rude_", "\xff": `\xff`} {
		if got := comm(in); got != want {
			t.Errorf("%s, want %s", got, want)
		}
	}
}

func TestScenarios(t *testing.T) {
	last := ""
	for _, s := range Scenarios(Env{}) {
		if s.Name <= last || s.Brief == "" || s.Run == nil || s.Emulator != scenario.Host || strings.Contains(s.Brief, "\n") {
			t.Errorf("scenario %q is not as others", s.Name)
		}
		last = s.Name
	}
}
