package witness

import (
	"archive/tar"
	"bufio"
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"strconv"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

// Write writes down what the kernel says about itself. What changes by itself
// comes last.
func (s *State) Write(w io.Writer) error {
	buf := bufio.NewWriterSize(w, 1<<20)
	c := collector{tar: tar.NewWriter(buf)}
	for _, name := range []string{
		"/proc/kallsyms", "/sys/kernel/btf/vmlinux", "/proc/version", "/proc/cmdline",
		"/proc/iomem", "/proc/meminfo", "/proc/cpuinfo", "/proc/sys/kernel/tainted", "/proc/sys/kernel/random/boot_id",
		"/sys/kernel/debug/kprobes/list", "/sys/kernel/tracing/enabled_functions",
	} {
		c.file(name)
	}
	c.processors(s)
	c.programs(s)
	for _, name := range []string{"/proc/modules", "/proc/self/mountinfo", "/proc/mounts"} {
		c.file(name)
	}
	c.glob("/sys/module/*/sections/.text")
	c.glob("/sys/module/*/taint")
	c.glob("/sys/module/*/refcnt")
	for _, name := range []string{"tcp", "tcp6", "udp", "udp6", "unix", "packet", "raw", "raw6", "netlink"} {
		c.file("/proc/net/" + name)
	}
	for _, pid := range numbers("/proc") {
		c.process(pid)
	}
	c.dmesg()
	c.file("/proc/uptime")
	state, err := json.MarshalIndent(s, "", "  ")
	if err != nil {
		return err
	}
	c.put(StateFile, state)
	c.put(completeFile, nil)
	return errors.Join(c.err, c.tar.Close(), buf.Flush())
}

// collector writes files into an archive and remembers the first failure to
// write. A file that can't be read is left out: what is missing shows.
type collector struct {
	tar *tar.Writer
	err error
}

func (c *collector) put(name string, data []byte) {
	if c.err != nil {
		return
	}
	h := tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o444, Size: int64(len(data)), Format: tar.FormatPAX}
	if c.err = c.tar.WriteHeader(&h); c.err == nil {
		_, c.err = c.tar.Write(data)
	}
}

func (c *collector) file(path string) {
	if data, err := os.ReadFile(path); err == nil {
		c.put(path[1:], data)
	}
}

func (c *collector) link(path string) {
	if target, err := os.Readlink(path); err == nil {
		c.put(path[1:], []byte(target))
	}
}

func (c *collector) glob(pattern string) {
	found, err := filepath.Glob(pattern)
	if err != nil {
		c.err = errors.Join(c.err, err)
	}
	for _, path := range found {
		c.file(path)
	}
}

// numbers returns the entries of a folder that are numbers.
func numbers(dir string) []int {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil
	}
	var out []int
	for _, e := range entries {
		if n, err := strconv.Atoi(e.Name()); err == nil {
			out = append(out, n)
		}
	}
	return out
}

func (c *collector) process(pid int) {
	dir := fmt.Sprintf("/proc/%d/", pid)
	for _, name := range []string{"stat", "status", "comm", "cmdline", "cgroup", "maps", "mountinfo"} {
		c.file(dir + name)
	}
	for _, name := range []string{"exe", "cwd", "root", "ns/mnt", "ns/pid", "ns/net", "ns/uts", "ns/ipc", "ns/user", "ns/cgroup"} {
		c.link(dir + name)
	}
	if own, err := os.Readlink("/proc/self/ns/net"); err == nil {
		if net, err := os.Readlink(dir + "ns/net"); err == nil && net != own {
			for _, name := range []string{"tcp", "tcp6", "udp", "udp6", "unix"} {
				c.file(dir + "net/" + name)
			}
		}
	}
	for _, fd := range numbers(dir + "fd") {
		c.link(dir + "fd/" + strconv.Itoa(fd))
	}
	for _, tid := range numbers(dir + "task") {
		for _, name := range []string{"stat", "status", "comm"} {
			c.file(fmt.Sprintf("%stask/%d/%s", dir, tid, name))
		}
	}
}

// dmesg reads the kernel's log from its beginning.
func (c *collector) dmesg() {
	fd, err := unix.Open("/dev/kmsg", unix.O_RDONLY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return
	}
	defer unix.Close(fd)
	var all bytes.Buffer
	record := make([]byte, 8192) // what the kernel asks for at least
	for {
		n, err := unix.Read(fd, record)
		if errors.Is(err, unix.EPIPE) {
			continue // records were overwritten: the next read is of the oldest
		}
		if err != nil {
			break // EAGAIN: that was the last
		}
		all.Write(record[:n])
	}
	c.put(DmesgFile, all.Bytes())
}

// processors reads registers through the msr driver.
func (c *collector) processors(s *State) {
	s.Processors = nil
	for cpu := range runtime.NumCPU() {
		f, err := os.Open(fmt.Sprintf("/dev/cpu/%d/msr", cpu))
		if err != nil {
			s.Missing = append(s.Missing, err.Error())
			return
		}
		var p Processor
		for number, to := range map[int64]*uint64{
			0xc0000080: &p.EFER, 0xc0000081: &p.STAR, 0xc0000082: &p.LSTAR, 0xc0000083: &p.CSTAR, 0xc0000084: &p.SFMask,
			0x174: &p.SysenterCS, 0x175: &p.SysenterESP, 0x176: &p.SysenterEIP,
		} {
			var value [8]byte
			if _, err := f.ReadAt(value[:], number); err != nil {
				s.Missing = append(s.Missing, fmt.Sprintf("MSR %#x: %v", number, err))
				continue
			}
			*to = binary.LittleEndian.Uint64(value[:])
		}
		_ = f.Close()
		s.Processors = append(s.Processors, p)
	}
}

// programs lists what bpf(2) knows.
func (c *collector) programs(s *State) {
	attached := map[uint32]string{}
	for _, p := range s.Programs {
		attached[p.ID] = p.Attached
	}
	s.Programs = nil
	for id := ebpf.ProgramID(0); ; {
		var err error
		if id, err = ebpf.ProgramGetNextID(id); err != nil {
			return // no more
		}
		p, err := ebpf.NewProgramFromID(id)
		if err != nil {
			continue
		}
		if info, err := p.Info(); err == nil {
			s.Programs = append(s.Programs, Program{
				ID: uint32(id), Name: info.Name, Type: info.Type.String(), Tag: info.Tag, Attached: attached[uint32(id)],
			})
		}
		_ = p.Close()
	}
}
