package witness

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"
)

// Where a guest's ramdisk keeps kernel modules. OrderFile names those to load
// at once, in their order; the others are for [Serve]'s "load".
const (
	ModuleDir = "/lib/modules"
	OrderFile = ModuleDir + "/order"
)

// kept holds what must stay open as long as the guest lives.
var kept []any

// Setup makes the state. What this kernel will not have is noted in Missing;
// an error means that the guest is of no use.
func Setup() (*State, error) {
	s := &State{Roles: map[string]int{}}
	if err := s.mounts(); err != nil {
		return s, err
	}
	if err := s.modules(); err != nil {
		return s, err
	}
	s.try("kptr_restrict", os.WriteFile("/proc/sys/kernel/kptr_restrict", []byte("0"), 0))
	s.try("hostname", unix.Sethostname([]byte("witness")))
	s.try("loopback", loopbackUp())
	if err := s.processes(); err != nil {
		return s, err
	}
	s.sockets()
	s.bpf()
	s.kprobe()
	return s, openDisks()
}

// try notes what could not be had.
func (s *State) try(what string, err error) bool {
	if err != nil {
		s.Missing = append(s.Missing, what+": "+err.Error())
	}
	return err == nil
}

func (s *State) mounts() error {
	for _, m := range []struct{ kind, at string }{{"proc", "/proc"}, {"sysfs", "/sys"}, {"devtmpfs", "/dev"}} {
		if err := mount(m.kind, m.at); err != nil {
			return err
		}
	}
	for _, m := range []struct{ kind, at string }{
		{"tmpfs", "/run"}, {"tmpfs", "/mnt/odd dir\n(1)"}, {"cgroup2", "/sys/fs/cgroup"}, {"debugfs", "/sys/kernel/debug"},
		{"tracefs", "/sys/kernel/tracing"}, {"bpf", "/sys/fs/bpf"}, {"devpts", "/dev/pts"},
	} {
		s.try("mount "+m.kind, mount(m.kind, m.at))
	}
	s.try("bind mount", errors.Join(os.MkdirAll("/mnt/bind", 0o755), unix.Mount("/run", "/mnt/bind", "", unix.MS_BIND, "")))
	s.try("remount", unix.Mount("", "/mnt/bind", "", unix.MS_REMOUNT|unix.MS_BIND|unix.MS_RDONLY|unix.MS_NOSUID, ""))
	return nil
}

func mount(kind, at string) error {
	if err := os.MkdirAll(at, 0o755); err != nil {
		return err
	}
	if err := unix.Mount(kind, at, kind, 0, ""); err != nil && !errors.Is(err, unix.EBUSY) { // devtmpfs may be there
		return fmt.Errorf("mount %s: %w", at, err)
	}
	return nil
}

func (s *State) modules() error {
	order, err := os.ReadFile(OrderFile)
	if err != nil {
		return err
	}
	for name := range strings.FieldsSeq(string(order)) {
		if err := load(name, ""); err != nil {
			return err
		}
		s.Modules = append(s.Modules, strings.ReplaceAll(name, "-", "_"))
	}
	return nil
}

// load loads a module of ModuleDir.
func load(name, args string) error {
	f, err := os.Open(filepath.Join(ModuleDir, filepath.Base(name)+".ko"))
	if err != nil {
		return err
	}
	defer f.Close()
	if err := unix.FinitModule(int(f.Fd()), args, 0); err != nil {
		return fmt.Errorf("load module %s: %w", name, err)
	}
	return nil
}

func loopbackUp() error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	r, err := unix.NewIfreq("lo")
	if err != nil {
		return err
	}
	r.SetUint16(unix.IFF_UP)
	return unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, r)
}

// start starts a process of a role and waits until it says that it is ready.
func (s *State) start(role string, cmd *exec.Cmd) error {
	cmd.Env = append(cmd.Env, roleVariable+"="+role)
	out, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start %s: %w", role, err)
	}
	if _, err := bufio.NewReader(out).ReadString('\n'); err != nil {
		return fmt.Errorf("start %s: %w", role, err)
	}
	kept = append(kept, out, cmd)
	s.Roles[role] = cmd.Process.Pid
	return nil
}

// own is the witness' program in another role.
func own(args ...string) *exec.Cmd {
	return &exec.Cmd{Path: "/proc/self/exe", Args: args}
}

func (s *State) processes() error {
	user := own("unprivileged")
	user.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 1234, Gid: 5678, Groups: []uint32{5678, 9}}}
	spaces := own("in", "namespaces")
	spaces.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: unix.CLONE_NEWPID | unix.CLONE_NEWUTS | unix.CLONE_NEWNS | unix.CLONE_NEWIPC | unix.CLONE_NEWNET,
	}
	for _, p := range []struct {
		role string
		cmd  *exec.Cmd
	}{
		{"name:a) R 1 (b", own("a) R 1 (b", "", "empty before")},
		{"name:größe→x", own("größe")},
		{"name:tab\tend\\", own("tab\tname", "new\nline")},
		{"name:\xff\xfe\x01raw", own("raw")},
		{"name:fifteen-letters-and-more", own(strings.Repeat("long ", 1000))},
		{"threads", own("threads")},
		{"user", user},
		{"namespaces", spaces},
		{"maps", own("maps")},
		{"stopped", own("stopped")},
		{"hidden", own("to-be-hidden")},
	} {
		if err := s.start(p.role, p.cmd); err != nil {
			return err
		}
	}
	s.try("cgroup", s.cgroup(s.Roles["threads"]))
	s.try("stop", unix.Kill(s.Roles["stopped"], unix.SIGSTOP))

	yes := &exec.Cmd{Path: "/bin/yes", Args: []string{"yes"}} // a link: the name is the process'
	if err := yes.Start(); err != nil {
		return err
	}
	s.Roles["yes"] = yes.Process.Pid
	for role, at := range map[string]string{"gone": "/run/gone", "odd-path": "/mnt/odd dir\n(1)/a program"} {
		cmd, err := s.sleeper(at)
		if err != nil {
			return err
		}
		s.Roles[role] = cmd.Process.Pid
	}
	s.try("unlink", os.Remove("/run/gone"))
	zombie := &exec.Cmd{Path: "/bin/busybox", Args: []string{"true"}}
	if err := zombie.Start(); err != nil {
		return err
	}
	s.Roles["zombie"] = zombie.Process.Pid // nobody waits for it
	return nil
}

// sleeper runs a copy of busybox that sleeps.
func (s *State) sleeper(at string) (*exec.Cmd, error) {
	data, err := os.ReadFile("/bin/busybox")
	if err != nil {
		return nil, err
	}
	if err := os.WriteFile(at, data, 0o755); err != nil {
		return nil, err
	}
	cmd := &exec.Cmd{Path: at, Args: []string{"sleep", "1000000"}}
	return cmd, cmd.Start()
}

func (s *State) cgroup(pid int) error {
	const dir = "/sys/fs/cgroup/odd.slice/inner"
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	return os.WriteFile(dir+"/cgroup.procs", fmt.Appendf(nil, "%d\n", pid), 0)
}

// sockets opens one of each kind.
func (s *State) sockets() {
	keep := func(c io.Closer, err error) {
		if s.try("socket", err) {
			kept = append(kept, c)
		}
	}
	for _, at := range []struct{ network, address string }{{"tcp4", "127.0.0.1:4711"}, {"tcp6", "[::1]:4712"}, {"unix", "/run/stream.sock"}, {"unix", "@abstract"}} {
		l, err := net.Listen(at.network, at.address)
		keep(l, err)
		if err != nil {
			continue
		}
		keep(net.Dial(at.network, at.address))
		keep(l.Accept())
	}
	keep(net.ListenPacket("udp4", "127.0.0.1:4713"))
	keep(net.Dial("udp4", "127.0.0.1:4713"))
	keep(net.ListenPacket("udp6", "[::1]:4714"))
	keep(net.Dial("udp6", "[::1]:4714"))
	keep(net.ListenPacket("unixgram", "/run/datagram.sock"))
	raw := func(domain, kind, protocol int) {
		fd, err := unix.Socket(domain, kind|unix.SOCK_CLOEXEC, protocol)
		if s.try("socket", err) {
			kept = append(kept, fd)
		}
	}
	raw(unix.AF_INET, unix.SOCK_RAW, unix.IPPROTO_ICMP)
	raw(unix.AF_INET6, unix.SOCK_RAW, unix.IPPROTO_ICMPV6)
	raw(unix.AF_PACKET, unix.SOCK_RAW, 0)
	raw(unix.AF_NETLINK, unix.SOCK_RAW, unix.NETLINK_ROUTE)
	if pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0); s.try("socket pair", err) {
		kept = append(kept, pair)
	}
}

// bpf loads programs that let everything pass and attaches what this kernel
// lets it.
func (s *State) bpf() {
	pass := asm.Instructions{asm.Mov.Imm(asm.R0, 1), asm.Return()}
	load := func(name string, t ebpf.ProgramType) *ebpf.Program {
		p, err := ebpf.NewProgram(&ebpf.ProgramSpec{Name: name, Type: t, Instructions: pass, License: "GPL"})
		if !s.try("eBPF program "+name, err) {
			return nil
		}
		kept = append(kept, p)
		return p
	}
	note := func(p *ebpf.Program, to string, err error) {
		if !s.try("attach to "+to, err) {
			return
		}
		if info, err := p.Info(); err == nil {
			if id, ok := info.ID(); ok {
				s.Programs = append(s.Programs, Program{ID: uint32(id), Attached: to})
			}
		}
	}
	if p := load("odd_filter", ebpf.SocketFilter); p != nil {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
		if err == nil {
			err = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ATTACH_BPF, p.FD())
		}
		kept = append(kept, fd)
		note(p, "socket", err)
	}
	if p := load("odd_cgroup", ebpf.CGroupSKB); p != nil {
		l, err := link.AttachCgroup(link.CgroupOptions{Path: "/sys/fs/cgroup/odd.slice", Attach: ebpf.AttachCGroupInetEgress, Program: p})
		kept = append(kept, l)
		note(p, "cgroup", err)
	}
	if p := load("odd_kprobe", ebpf.Kprobe); p != nil {
		l, err := link.Kprobe("vfs_unlink", p, nil)
		kept = append(kept, l)
		note(p, "kprobe vfs_unlink", err)
	}
	if p := load("odd_tracepoint", ebpf.TracePoint); p != nil {
		l, err := link.Tracepoint("sched", "sched_process_exec", p, nil)
		kept = append(kept, l)
		note(p, "tracepoint sched_process_exec", err)
	}
}

// kprobe sets one through tracefs, as an administrator does.
func (s *State) kprobe() {
	const dir = "/sys/kernel/tracing/"
	s.try("kprobe", errors.Join(
		os.WriteFile(dir+"kprobe_events", []byte("p:odd_probe vfs_rmdir\n"), 0),
		os.WriteFile(dir+"events/kprobes/odd_probe/enable", []byte("1"), 0)))
}

// Serve obeys the host, line by line, until it is told to end, and answers each
// with a line, "ok" and what there is to say, or "error" and the reason:
//
//	report PATH     writes a report to a disk
//	load NAME ARGS  loads a module of ModuleDir
//	run COMMAND     has a shell do something, and says what it printed
//	log             says what the lab's own modules logged, lines joined by "; "
//	settle          waits until the kernel is at rest
//	off             ends the guest
func Serve(s *State, port io.ReadWriter) error {
	answer := func(text string, err error) error {
		text = strings.TrimSpace("ok " + text)
		if err != nil {
			text = "error " + err.Error()
		}
		_, err = fmt.Fprintln(port, strings.ReplaceAll(text, "\n", "; "))
		return err
	}
	if err := answer("", nil); err != nil {
		return err
	}
	lines := bufio.NewScanner(port)
	for lines.Scan() {
		if err := answer(s.obey(lines.Text())); err != nil {
			return err
		}
	}
	return errors.Join(errors.New("the host has gone"), lines.Err())
}

func (s *State) obey(line string) (string, error) {
	verb, rest, _ := strings.Cut(line, " ")
	switch verb {
	case "report":
		return "", s.writeTo(rest)
	case "load":
		name, args, _ := strings.Cut(rest, " ")
		return "", load(name, args)
	case "run":
		out, err := exec.Command("/bin/sh", "-c", rest).CombinedOutput()
		if err != nil {
			err = fmt.Errorf("%w: %s", err, bytes.TrimSpace(out))
		}
		return string(bytes.TrimSpace(out)), err
	case "log":
		return strings.Join(marked(), "\n"), nil
	case "settle":
		settle()
		return "", nil
	case "off":
		return "", unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF)
	}
	return "", fmt.Errorf("unknown command %q", verb)
}

// disks are open as long as the guest lives, so that to report changes nothing
// of what is reported: the users of the disk's driver, for one.
var disks = map[string]*os.File{}

func openDisks() error {
	found, err := filepath.Glob("/dev/vd?")
	if err != nil {
		return err
	}
	for _, path := range found {
		// O_SYNC: when the host is told, it can read.
		f, err := os.OpenFile(path, os.O_WRONLY|unix.O_SYNC, 0)
		if err != nil {
			return err
		}
		disks[path] = f
	}
	return nil
}

func (s *State) writeTo(path string) error {
	f := disks[path]
	if f == nil {
		return fmt.Errorf("there is no disk %s", path)
	}
	return s.Write(f)
}

// marked returns what the lab's own modules logged.
func marked() []string {
	buf := make([]byte, 1<<20)
	n, err := unix.Klogctl(unix.SYSLOG_ACTION_READ_ALL, buf)
	if err != nil {
		return nil
	}
	var out []string
	for line := range bytes.Lines(buf[:n]) {
		if _, text, ok := strings.Cut(string(line), "hvi-"); ok {
			out = append(out, "hvi-"+strings.TrimSpace(text))
		}
	}
	return out
}

// settle waits until what the last commands set in motion is done: worker
// threads of the kernel end what they were given, RCU lets go of what is freed.
func settle() { time.Sleep(500 * time.Millisecond) }
