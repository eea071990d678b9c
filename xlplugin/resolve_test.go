package xlplugin

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/xen-hvi/hvi/engine/policy"
	"github.com/xen-hvi/hvi/engine/xen"
)

// TestMain lets the test binary play xl: a copy of it that is called xl waits
// until its input closes. With "daemon" as the first line of its input it
// changes to / first, as xl's background process does.
func TestMain(m *testing.M) {
	if filepath.Base(os.Args[0]) == "xl" {
		in := bufio.NewReader(os.Stdin)
		line, _ := in.ReadString('\n')
		if line == "daemon\n" {
			if err := os.Chdir("/"); err != nil {
				fmt.Println(err)
			}
		}
		fmt.Println("ready")
		io.Copy(io.Discard, in)
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// fakeProc is a made-up /proc, and a made-up root file system its processes
// see.
type fakeProc struct {
	t    *testing.T
	dir  string
	root string
}

const bootTime = 1_700_000_000

func newFakeProc(t *testing.T) *fakeProc {
	t.Helper()
	f := &fakeProc{t: t, dir: t.TempDir(), root: t.TempDir()}
	f.write(filepath.Join(f.dir, "stat"), "cpu 1 2 3\nbtime "+strconv.Itoa(bootTime)+"\nprocesses 9\n")
	if err := os.Mkdir(filepath.Join(f.root, "proc"), 0o755); err != nil {
		t.Fatal(err)
	}
	for _, junk := range []string{"self", "sys", "12abc", "-5"} {
		if err := os.Mkdir(filepath.Join(f.dir, junk), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	return f
}

func (f *fakeProc) write(name, content string) {
	f.t.Helper()
	if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		f.t.Fatal(err)
	}
	if err := os.WriteFile(name, []byte(content), 0o644); err != nil {
		f.t.Fatal(err)
	}
}

// config puts a file into the root file system, last changed before any
// process was started.
func (f *fakeProc) config(name, content string) {
	f.t.Helper()
	f.write(f.root+name, content)
	old := time.Unix(bootTime, 0)
	if err := os.Chtimes(f.root+name, old, old); err != nil {
		f.t.Fatal(err)
	}
}

func (f *fakeProc) link(target, name string) {
	f.t.Helper()
	if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		f.t.Fatal(err)
	}
	if err := os.Symlink(target, name); err != nil {
		f.t.Fatal(err)
	}
}

// process is what a fake process shows; zero fields get sensible values.
type process struct {
	exe   string
	argv  []string
	env   []string
	cwd   string
	uids  string
	nspid string
}

func (f *fakeProc) process(pid int, p process) {
	f.t.Helper()
	dir := filepath.Join(f.dir, strconv.Itoa(pid))
	def := func(s *string, v string) {
		if *s == "" {
			*s = v
		}
	}
	me := strconv.Itoa(os.Getuid())
	def(&p.exe, "/usr/lib/xen-4.17/bin/xl")
	def(&p.cwd, "/")
	def(&p.uids, strings.Join([]string{me, me, me, me}, "\t"))
	def(&p.nspid, strconv.Itoa(pid))
	f.write(dir+"/cmdline", strings.Join(p.argv, "\x00")+"\x00")
	f.write(dir+"/environ", strings.Join(append(p.env, ""), "\x00"))
	f.write(dir+"/status", "Name:\txl\nUmask:\t0022\nPid:\t7\nUid:\t"+p.uids+"\nGid:\t0\t0\t0\t0\nNSpid:\t"+p.nspid+"\n")
	// A name with everything in it that could confuse a parser.
	f.write(dir+"/stat", fmt.Sprintf("%d (x l) R 1) S 1 1 1 0 -1 4 1 0 0 0 0 0 0 0 20 0 1 0 %d 1 1\n", pid, pid*100))
	f.link(p.exe, dir+"/exe")
	f.link(p.cwd, dir+"/cwd")
	f.link(f.root, dir+"/root")
}

func (f *fakeProc) resolver() *Resolver {
	return &Resolver{Proc: f.dir, uid: uint32(os.Getuid()), checkProgram: func(int, string) string { return "" }}
}

var (
	uuid1 = xen.UUID{0x6c, 0x9f, 0x7a, 0x1e, 0x0b, 0x1d, 0x4f, 0x0e, 0x9c, 0x5c, 1, 0x23, 0x45, 0x67, 0x89, 0xab}
	uuid2 = xen.UUID{15: 2}
	dom   = Domain{ID: 5, Name: "g1", UUID: uuid1}
)

const enforceG1 = "name = 'g1'\nintrospection = 'enforce'\n"

func TestResolve(t *testing.T) {
	type want struct {
		path  string
		pid   int
		mode  policy.Mode
		match Match
		warn  []string // substrings, one per warning
	}
	tests := []struct {
		name string
		set  func(*fakeProc)
		want want
	}{
		{"by name", func(f *fakeProc) {
			f.config("/etc/xen/g1.cfg", enforceG1)
			f.process(10, process{argv: []string{"/usr/sbin/xl", "create", "-p", "/etc/xen/g1.cfg"}})
		}, want{"/etc/xen/g1.cfg", 10, policy.ModeEnforce, ByName, nil}},

		{"by uuid, although the domain was renamed", func(f *fakeProc) {
			f.config("/g.cfg", "name='before'\nuuid='"+uuid1.String()+"'\nintrospection=1\n")
			f.process(10, process{argv: []string{"xl", "create", "/g.cfg"}})
		}, want{"/g.cfg", 10, policy.ModeObserve, ByUUID, nil}},

		{"uuid beats name", func(f *fakeProc) {
			f.config("/a.cfg", enforceG1)
			f.config("/b.cfg", "name='g1'\nuuid='"+uuid1.String()+"'\nintrospection='observe'\n")
			f.process(10, process{argv: []string{"xl", "create", "/a.cfg"}})
			f.process(11, process{argv: []string{"xl", "create", "/b.cfg"}})
		}, want{"/b.cfg", 11, policy.ModeObserve, ByUUID, nil}},

		{"create beats restore", func(f *fakeProc) {
			f.config("/a.cfg", "name='g1'\nintrospection='observe'\n")
			f.config("/b.cfg", enforceG1)
			f.process(10, process{argv: []string{"xl", "restore", "/a.cfg", "/save"}})
			f.process(11, process{argv: []string{"xl", "create", "/b.cfg"}})
		}, want{"/b.cfg", 11, policy.ModeEnforce, ByName, nil}},

		{"restore with a config", func(f *fakeProc) {
			f.config("/a.cfg", enforceG1)
			f.process(10, process{argv: []string{"xl", "restore", "-p", "/a.cfg", "/save"}})
		}, want{"/a.cfg", 10, policy.ModeEnforce, ByName, nil}},

		{"relative path in the foreground", func(f *fakeProc) {
			f.config("/srv/g1.cfg", enforceG1)
			f.process(10, process{argv: []string{"xl", "create", "sub/../g1.cfg"}, cwd: "/srv", env: []string{"PWD=/elsewhere"}})
			f.config("/srv/sub/x", "")
		}, want{"/srv/g1.cfg", 10, policy.ModeEnforce, ByName, nil}},

		{"relative path in the background", func(f *fakeProc) {
			f.config("/srv/g1.cfg", enforceG1)
			f.process(10, process{argv: []string{"xl", "create", "g1.cfg"}, env: []string{"HOME=/root", "PWD=/srv"}})
		}, want{"/srv/g1.cfg", 10, policy.ModeEnforce, ByName, []string{`relative path "g1.cfg" and has gone to the background`}}},

		{"relative path in the background, PWD misleads", func(f *fakeProc) {
			f.config("/srv/g1.cfg", "name='other'\n")
			f.config("/g1.cfg", enforceG1)
			f.process(10, process{argv: []string{"xl", "create", "g1.cfg"}, env: []string{"PWD=/srv"}})
		}, want{"/g1.cfg", 10, policy.ModeEnforce, ByName, nil}},

		{"while xl goes to the background it is two processes", func(f *fakeProc) {
			f.config("/srv/g1.cfg", enforceG1)
			f.process(10, process{argv: []string{"xl", "create", "g1.cfg"}, env: []string{"PWD=/srv"}})
			f.process(11, process{argv: []string{"xl", "create", "g1.cfg"}, env: []string{"PWD=/srv"}, cwd: "/srv"})
		}, want{"/srv/g1.cfg", 11, policy.ModeEnforce, ByName, nil}},

		{"below the root of the process", func(f *fakeProc) {
			f.config("/srv/g1.cfg", enforceG1)
			f.process(10, process{argv: []string{"xl", "create", "g1.cfg"}, cwd: f.root + "/srv"})
		}, want{"/srv/g1.cfg", 10, policy.ModeEnforce, ByName, nil}},

		{"links are followed below that root", func(f *fakeProc) {
			f.config("/srv/real.cfg", enforceG1)
			f.link("/etc/xen/link.cfg", f.root+"/etc/xen/auto/10-g1.cfg")
			f.link("../../srv/./real.cfg", f.root+"/etc/xen/link.cfg")
			f.process(10, process{argv: []string{"xl", "create", "--quiet", "--defconfig", "/etc/xen/auto/10-g1.cfg"}})
		}, want{"/srv/real.cfg", 10, policy.ModeEnforce, ByName, nil}},

		{"assignments on the command line", func(f *fakeProc) {
			f.config("/g.cfg", "name='other'\nintrospection='enforce'\n# no newline")
			f.process(10, process{argv: []string{"xl", "create", "/g.cfg", "name='g1'", "introspection=\"observe\""}})
		}, want{"/g.cfg", 10, policy.ModeObserve, ByName, nil}},

		{"everything on the command line", func(f *fakeProc) {
			f.process(10, process{argv: []string{"xl", "create", "/dev/null", "name='g1'", "introspection=1"}})
		}, want{"/dev/null", 10, policy.ModeObserve, ByName, nil}},

		{"standard input is a file", func(f *fakeProc) {
			f.config("/srv/g1.cfg", enforceG1)
			f.link("/proc/self/fd/0", f.root+"/dev/stdin")
			f.process(10, process{argv: []string{"xl", "create", "/dev/stdin"}})
			f.link(f.root+"/srv/g1.cfg", f.dir+"/10/fd/0")
		}, want{"/proc/10/fd/0", 10, policy.ModeEnforce, ByName, nil}},

		{"no policy in it", func(f *fakeProc) {
			f.config("/g.cfg", "name='g1'\n")
			f.process(10, process{argv: []string{"xl", "create", "/g.cfg"}})
		}, want{"/g.cfg", 10, policy.ModeOff, ByName, nil}},

		{"the program was replaced by an upgrade", func(f *fakeProc) {
			f.config("/g.cfg", enforceG1)
			f.process(10, process{exe: "/usr/lib/xen-4.17/bin/xl (deleted)", argv: []string{"xl", "create", "/g.cfg"}})
		}, want{"/g.cfg", 10, policy.ModeEnforce, ByName, nil}},

		{"several that say the same", func(f *fakeProc) {
			f.config("/a.cfg", enforceG1)
			f.config("/b.cfg", enforceG1+"introspection_guards = [ 'kernel-text=block' ]\n")
			f.process(10, process{argv: []string{"xl", "create", "/a.cfg"}})
			f.process(11, process{argv: []string{"xl", "create", "/b.cfg"}})
		}, want{"/a.cfg", 10, policy.ModeEnforce, ByName, nil}},

		{"others are not in the way", func(f *fakeProc) {
			f.config("/g.cfg", enforceG1)
			f.config("/other.cfg", "name='g2'\nintrospection='off'\n")
			f.config("/broken.cfg", "name=")
			f.process(9, process{argv: []string{"xl", "create", "/other.cfg"}})
			f.process(10, process{argv: []string{"xl", "create", "/g.cfg"}})
			f.process(11, process{argv: []string{"xl", "create", "/broken.cfg"}})
			f.process(12, process{argv: []string{"xl", "create", "/missing.cfg"}})
			f.process(13, process{argv: []string{"xl", "list"}})
			f.process(14, process{exe: "/bin/bash", argv: []string{"xl", "create", "/other.cfg"}})
		}, want{"/g.cfg", 10, policy.ModeEnforce, ByName, nil}},

		{"others can write it", func(f *fakeProc) {
			f.config("/g.cfg", enforceG1)
			if err := os.Chmod(f.root+"/g.cfg", 0o666); err != nil {
				f.t.Fatal(err)
			}
			f.process(10, process{argv: []string{"xl", "create", "/g.cfg"}})
		}, want{"/g.cfg", 10, policy.ModeEnforce, ByName, []string{"/g.cfg can be written by everybody (mode 0666)"}}},

		{"others can replace it", func(f *fakeProc) {
			f.config("/srv/pub/g.cfg", enforceG1)
			if err := os.Chmod(f.root+"/srv", 0o777); err != nil {
				f.t.Fatal(err)
			}
			f.process(10, process{argv: []string{"xl", "create", "/srv/pub/g.cfg"}})
		}, want{"/srv/pub/g.cfg", 10, policy.ModeEnforce, ByName, []string{"/srv can be written by everybody"}}},

		{"it was changed since", func(f *fakeProc) {
			f.config("/g.cfg", enforceG1)
			f.process(10, process{argv: []string{"xl", "create", "/g.cfg"}})
			later := time.Unix(bootTime+10+60, 0)
			if err := os.Chtimes(f.root+"/g.cfg", later, later); err != nil {
				f.t.Fatal(err)
			}
		}, want{"/g.cfg", 10, policy.ModeEnforce, ByName, []string{"was changed at"}}},

		{"a key nearly ours", func(f *fakeProc) {
			f.config("/g.cfg", "name='g1'\nintrospecton_guards=[]\n")
			f.process(10, process{argv: []string{"xl", "create", "/g.cfg"}})
		}, want{"/g.cfg", 10, policy.ModeOff, ByName, []string{"was introspection_guards meant?"}}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			f := newFakeProc(t)
			tt.set(f)
			got, err := f.resolver().Resolve(dom)
			if err != nil {
				t.Fatal(err)
			}
			if got.ConfigPath != tt.want.path || got.PID != tt.want.pid || got.Spec.Mode != tt.want.mode || got.Match != tt.want.match {
				t.Errorf("got %+v, want %+v", got, tt.want)
			}
			if len(got.Argv) == 0 {
				t.Error("no command line")
			}
			if want := time.Unix(bootTime+int64(got.PID), 0); !got.Started.Equal(want) {
				t.Errorf("started at %v, want %v", got.Started, want)
			}
			if len(got.Warnings) != len(tt.want.warn) {
				t.Fatalf("warnings %q, want %q", got.Warnings, tt.want.warn)
			}
			for i, w := range tt.want.warn {
				if !strings.Contains(got.Warnings[i], w) {
					t.Errorf("warning %q, want one with %q", got.Warnings[i], w)
				}
			}
		})
	}
}

// TestReasonIsBounded is a host full of other domains.
func TestReasonIsBounded(t *testing.T) {
	f := newFakeProc(t)
	for i := range 300 {
		f.config(fmt.Sprintf("/%d.cfg", i), fmt.Sprintf("name='other%d'\n", i))
		f.process(100+i, process{argv: []string{"xl", "create", fmt.Sprintf("/%d.cfg", i)}})
	}
	f.process(1000, process{argv: []string{"xl", "restore", "/g.save"}})
	_, err := f.resolver().Resolve(dom)
	var nc *NoConfigError
	if !errors.As(err, &nc) || len(nc.Looked) != 301 {
		t.Fatalf("%v", err)
	}
	why := nc.Reason()
	if !strings.HasPrefix(why, "process 1000, xl restore /g.save: it restores a domain") || !strings.HasSuffix(why, "; and 297 more xl processes, of other domains") || len(why) > 1000 {
		t.Errorf("%s", why)
	}
}

func TestResolveFindsNothing(t *testing.T) {
	tests := []struct {
		name string
		set  func(*fakeProc)
		want []string
	}{
		{"no xl at all", func(f *fakeProc) {
			f.process(10, process{exe: "/sbin/init", argv: []string{"init"}})
		}, []string{"no xl process is creating"}},
		{"another domain", func(f *fakeProc) {
			f.config("/g.cfg", "name='g2'\n")
			f.process(10, process{argv: []string{"xl", "create", "/g.cfg"}})
		}, []string{`process 10, xl create /g.cfg: its config "/g.cfg" is of a domain named "g2"`}},
		{"the name fits, the uuid does not", func(f *fakeProc) {
			f.config("/g.cfg", enforceG1+"uuid='"+uuid2.String()+"'\n")
			f.process(10, process{argv: []string{"xl", "create", "/g.cfg"}})
		}, []string{"is of a domain with uuid " + uuid2.String()}},
		{"a user's process", func(f *fakeProc) {
			f.config("/g.cfg", enforceG1)
			f.process(10, process{argv: []string{"xl", "create", "/g.cfg"}, uids: "54321\t54321\t54321\t54321"})
		}, []string{"not believed, because it does not run as root alone"}},
		{"a set-uid program with a user's arguments", func(f *fakeProc) {
			f.config("/g.cfg", enforceG1)
			me := strconv.Itoa(os.Getuid())
			f.process(10, process{argv: []string{"xl", "create", "/g.cfg"}, uids: strings.Join([]string{"54321", me, me, me}, "\t")})
		}, []string{"not believed, because it does not run as root alone"}},
		{"a container's process", func(f *fakeProc) {
			f.config("/g.cfg", enforceG1)
			f.process(10, process{argv: []string{"xl", "create", "/g.cfg"}, nspid: "10\t3"})
		}, []string{"not believed, because it runs in a container"}},
		{"no ids", func(f *fakeProc) {
			f.config("/g.cfg", enforceG1)
			f.process(10, process{argv: []string{"xl", "create", "/g.cfg"}})
			f.write(f.dir+"/10/status", "Name:\txl\n")
		}, []string{"cannot tell who runs it"}},
		{"odd ids", func(f *fakeProc) {
			f.config("/g.cfg", enforceG1)
			f.process(10, process{argv: []string{"xl", "create", "/g.cfg"}, uids: "0"})
		}, []string{"cannot tell who runs it"}},
		{"a process that does not show its program", func(f *fakeProc) {
			for pid, comm := range map[string]string{"/10": "xl", "/11": "other"} {
				f.write(f.dir+pid+"/exe", "not a link")
				f.write(f.dir+pid+"/comm", comm+"\n")
			}
		}, []string{"process 10, xl: cannot tell what it runs (that takes CAP_SYS_PTRACE)"}},
		{"restored without a config", func(f *fakeProc) {
			f.process(10, process{argv: []string{"xl", "restore", "/g.save"}})
		}, []string{"restores a domain without a config"}},
		{"received from another xl", func(f *fakeProc) {
			f.process(10, process{argv: []string{"xl", "migrate-receive"}})
		}, []string{"receives a domain from another xl, which sends no config"}},
		{"a pipe on standard input", func(f *fakeProc) {
			f.link("/proc/self/fd/0", f.root+"/dev/stdin")
			f.process(10, process{argv: []string{"xl", "create", "/dev/stdin"}})
			f.fifo(f.dir + "/10/fd/0")
		}, []string{`"/dev/stdin" cannot be read: the config came from standard input`, "hvictl attach"}},
		{"a FIFO", func(f *fakeProc) {
			f.fifo(f.root + "/srv/g.cfg")
			f.process(10, process{argv: []string{"xl", "create", "g.cfg"}, cwd: "/srv"})
		}, []string{"not a regular file (a pipe)"}},
		{"a directory", func(f *fakeProc) {
			f.process(10, process{argv: []string{"xl", "create", "/"}})
		}, []string{"not a regular file (a directory)"}},
		{"a file that is gone", func(f *fakeProc) {
			f.process(10, process{argv: []string{"xl", "create", "/gone.cfg"}})
		}, []string{`"/gone.cfg" cannot be read: no such file or directory`}},
		{"links in a circle", func(f *fakeProc) {
			f.link("b.cfg", f.root+"/a.cfg")
			f.link("a.cfg", f.root+"/b.cfg")
			f.process(10, process{argv: []string{"xl", "create", "/a.cfg"}})
		}, []string{"too many levels of symbolic links"}},
		{"out of the root is nowhere", func(f *fakeProc) {
			f.link("../../../../../../../../../../../../etc/hostname", f.root+"/a.cfg")
			f.process(10, process{argv: []string{"xl", "create", "/a.cfg"}})
		}, []string{"no such file or directory"}},
		{"the working directory is gone", func(f *fakeProc) {
			f.process(10, process{argv: []string{"xl", "create", "a.cfg"}, cwd: "(unreachable)"})
		}, []string{"the working directory of process 10 is gone"}},
		{"a file too large", func(f *fakeProc) {
			f.config("/g.cfg", enforceG1+strings.Repeat("#\n", MaxConfigSize/2))
			f.process(10, process{argv: []string{"xl", "create", "/g.cfg"}})
		}, []string{"file too large"}},
		{"broken syntax", func(f *fakeProc) {
			f.config("/g.cfg", "name='g1'\nintrospection=enforce\n")
			f.process(10, process{argv: []string{"xl", "create", "/g.cfg"}})
		}, []string{"/g.cfg:2:15: near", "it is not what xl read"}},
		{"in the background, nowhere to be found", func(f *fakeProc) {
			f.process(10, process{argv: []string{"xl", "create", "g.cfg"}, env: []string{"PWD=/srv"}})
		}, []string{`"/srv/g.cfg" cannot be read`, `, and its config "/g.cfg" cannot be read`}},
		{"hostile arguments", func(f *fakeProc) {
			f.process(10, process{argv: []string{"xl", "create", "/\x1b[2J\n"}})
		}, []string{`xl create "/\x1b[2J\n"`}},
		{"nothing but a dry run", func(f *fakeProc) {
			f.config("/g.cfg", enforceG1)
			f.process(10, process{argv: []string{"xl", "-N", "create", "/g.cfg"}})
			f.process(11, process{argv: []string{}})
		}, []string{"no xl process"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			f := newFakeProc(t)
			tt.set(f)
			got, err := f.resolver().Resolve(dom)
			var nc *NoConfigError
			if !errors.Is(err, ErrNoConfig) || !errors.As(err, &nc) || nc.Domain != dom {
				t.Fatalf("got %+v, %v", got, err)
			}
			for _, w := range append(tt.want, "domain 5", `"g1"`, uuid1.String()) {
				if !strings.Contains(err.Error(), w) {
					t.Errorf("error %q does not say %q", err, w)
				}
			}
			if strings.ContainsFunc(err.Error(), func(r rune) bool { return r < ' ' }) {
				t.Errorf("the error would control a terminal: %q", err)
			}
		})
	}
}

func (f *fakeProc) fifo(name string) {
	f.t.Helper()
	if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		f.t.Fatal(err)
	}
	if err := syscall.Mkfifo(name, 0o600); err != nil {
		f.t.Fatal(err)
	}
}

func TestResolveAmbiguous(t *testing.T) {
	f := newFakeProc(t)
	f.config("/a.cfg", enforceG1)
	f.config("/b.cfg", "name='g1'\nintrospection='observe'\n")
	f.process(10, process{argv: []string{"xl", "create", "/a.cfg"}})
	f.process(11, process{argv: []string{"xl", "create", "/b.cfg"}})
	_, err := f.resolver().Resolve(dom)
	var amb *AmbiguousError
	if !errors.As(err, &amb) || len(amb.Candidates) != 2 {
		t.Fatalf("got %v", err)
	}
	for _, w := range []string{`"/a.cfg" (process 10, xl create /a.cfg)`, `"/b.cfg" (process 11`, "hvictl attach"} {
		if !strings.Contains(err.Error(), w) {
			t.Errorf("error %q does not say %q", err, w)
		}
	}

	// The same file with other assignments is another config.
	f = newFakeProc(t)
	f.config("/a.cfg", enforceG1)
	f.process(10, process{argv: []string{"xl", "create", "/a.cfg"}})
	f.process(11, process{argv: []string{"xl", "create", "/a.cfg", "introspection=0"}})
	if got, err := f.resolver().Resolve(dom); !errors.As(err, &amb) || got.Required {
		t.Errorf("got %+v, %v", got, err)
	}

	// One of them requires protection.
	f.process(12, process{argv: []string{"xl", "create", "/a.cfg", "introspection_require_attach=1"}})
	if got, err := f.resolver().Resolve(dom); !errors.As(err, &amb) || !got.Required {
		t.Errorf("got %+v, %v", got, err)
	}
}

func TestResolveBadPolicy(t *testing.T) {
	f := newFakeProc(t)
	f.config("/g.cfg", "name='g1'\nintrospection='enfroce'\nintrospection_guards=['kernel=block']\n")
	f.process(10, process{argv: []string{"xl", "create", "/g.cfg"}})
	got, err := f.resolver().Resolve(dom)
	if err == nil || errors.Is(err, ErrNoConfig) || len(policy.Errors(err)) != 2 {
		t.Fatalf("error %v", err)
	}
	if !strings.Contains(err.Error(), "domain 5") || !strings.Contains(err.Error(), `/g.cfg:2:15: unknown mode "enfroce"; did you mean "enforce"?`) {
		t.Errorf("error %v", err)
	}
	if got.ConfigPath != "/g.cfg" || got.PID != 10 || got.Spec.Declared() {
		t.Errorf("found %+v", got)
	}
}

func TestResolveWithoutProc(t *testing.T) {
	_, err := (&Resolver{Proc: "/nowhere/at/all"}).Resolve(dom)
	if !errors.Is(err, os.ErrNotExist) || errors.Is(err, ErrNoConfig) {
		t.Errorf("error %v", err)
	}
}

func TestProgramMustBeRoots(t *testing.T) {
	f := newFakeProc(t)
	exe := "/usr/sbin/xl"
	f.write(f.root+exe, "")
	f.process(10, process{argv: []string{"xl", "create", "/g.cfg"}})
	p := procfs{f.dir}
	me := uint32(os.Getuid())
	check := func(want string, stickyOK bool) {
		t.Helper()
		info, err := os.Stat(f.root + exe)
		if err != nil {
			t.Fatal(err)
		}
		got := p.othersCanWrite(10, exe, info, me, stickyOK)
		if (want == "") != (got == "") || !strings.Contains(got, want) {
			t.Errorf("got %q, want %q", got, want)
		}
	}
	chmod := func(name string, mode os.FileMode) {
		t.Helper()
		if err := os.Chmod(f.root+name, mode); err != nil {
			t.Fatal(err)
		}
	}
	check("", false)
	chmod(exe, 0o757)
	check("/usr/sbin/xl can be written by everybody (mode 0757)", false)
	chmod(exe, 0o755)
	chmod("/usr", 0o777)
	check("/usr can be written by everybody", false)
	chmod("/usr", os.ModeSticky|0o777)
	check("/usr can be written by everybody", false)
	check("", true)
	chmod("/usr", 0o755)
	chmod("/usr/sbin", 0o775)
	if os.Getgid() == 0 {
		check("", false)
	} else {
		check("/usr/sbin can be written by group", false)
	}
	chmod("/usr/sbin", 0o755)
	if me == 0 {
		if err := os.Chown(f.root+"/usr", 54321, 0); err != nil {
			t.Fatal(err)
		}
		check("/usr belongs to user 54321", false)
	}
}

// startXl runs a real process that looks like xl, from a copy of the test
// binary, and returns when it waits.
func startXl(t *testing.T, dir, mode string, args ...string) int {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	xl := filepath.Join(t.TempDir(), "xl")
	data, err := os.ReadFile(self)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(xl, data, 0o755); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(xl, args...)
	cmd.Dir = dir // also sets PWD
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		in.Close()
		if err := cmd.Wait(); err != nil {
			t.Errorf("the fake xl: %v", err)
		}
	})
	if _, err := io.WriteString(in, mode+"\n"); err != nil {
		t.Fatal(err)
	}
	if line, err := bufio.NewReader(out).ReadString('\n'); line != "ready\n" {
		t.Fatalf("the fake xl said %q, %v", line, err)
	}
	return cmd.Process.Pid
}

// TestRealProc reads the /proc of this machine, with real processes in it.
func TestRealProc(t *testing.T) {
	for _, mode := range []string{"foreground", "daemon"} {
		t.Run(mode, func(t *testing.T) {
			dir, err := filepath.EvalSymlinks(t.TempDir())
			if err != nil {
				t.Fatal(err)
			}
			d := Domain{ID: 7, Name: fmt.Sprintf("hvi-test-%d", os.Getpid()), UUID: uuid2}
			config := fmt.Sprintf("name = %q\nintrospection = 'enforce'\n", d.Name)
			if err := os.WriteFile(filepath.Join(dir, "g.cfg"), []byte(config), 0o644); err != nil {
				t.Fatal(err)
			}
			pid := startXl(t, dir, mode, "-v", "create", "-p", "g.cfg", "introspection='observe'")

			r := &Resolver{uid: uint32(os.Getuid()), checkProgram: func(int, string) string { return "" }}
			got, err := r.Resolve(d)
			if err != nil {
				t.Fatal(err)
			}
			if got.PID != pid || got.ConfigPath != filepath.Join(dir, "g.cfg") || got.Spec.Mode != policy.ModeObserve {
				t.Errorf("got %+v", got)
			}
			if guessed := strings.Contains(strings.Join(got.Warnings, "\n"), "gone to the background"); guessed != (mode == "daemon") {
				t.Errorf("warnings %q", got.Warnings)
			}
			if start, err := (procfs{"/proc"}).started(pid); err != nil || time.Since(start) > time.Minute || time.Until(start) > 10*time.Second {
				t.Errorf("the process was started at %v, %v; it is %v", start, err, time.Now())
			}

			// The program lies where others than root can put one.
			r.checkProgram = nil
			_, err = r.Resolve(d)
			if !errors.Is(err, ErrNoConfig) || !strings.Contains(err.Error(), "others than root may have made its program") {
				t.Errorf("a program in a temporary directory: %v", err)
			}
			// And the process is not that of the user who is believed.
			r.uid++
			if _, err = r.Resolve(d); !errors.Is(err, ErrNoConfig) || !strings.Contains(err.Error(), "does not run as root alone") {
				t.Errorf("another user: %v", err)
			}
		})
	}
}

func BenchmarkResolve(b *testing.B) {
	r := &Resolver{}
	for b.Loop() {
		if _, err := r.Resolve(dom); err != nil && !errors.Is(err, ErrNoConfig) {
			b.Fatal(err)
		}
	}
}
