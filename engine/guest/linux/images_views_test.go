package linux

import (
	"archive/tar"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/xen-hvi/hvi/engine/guest/report"
	"github.com/xen-hvi/hvi/engine/printable"
	"github.com/xen-hvi/hvi/engine/x86"
)

// witness is what a guest said about itself, files of /proc and others by name:
// a moment before its memory was taken, and a moment after.
type witness map[string]string

// witnesses reads both, or skips: not every image has them.
func (img *testImage) witnesses(tb testing.TB) (before, after witness) {
	var both [2]witness
	for i, name := range []string{"before.tar", "after.tar"} {
		f, err := os.Open(img.file(name))
		if errors.Is(err, os.ErrNotExist) {
			tb.Skipf("the image comes without what its guest said (%s)", name)
		}
		if err != nil {
			tb.Fatal(err)
		}
		defer func() { _ = f.Close() }()
		both[i] = witness{}
		for t := tar.NewReader(f); ; {
			h, err := t.Next()
			if errors.Is(err, io.EOF) || err == nil && h.Name == "complete" {
				break
			}
			if err != nil {
				tb.Fatal(err)
			}
			if strings.HasPrefix(h.Name, "sys/kernel/btf") || h.Name == "proc/kallsyms" {
				continue
			}
			b, err := io.ReadAll(t)
			if err != nil {
				tb.Fatal(err)
			}
			both[i][h.Name] = string(b)
		}
	}
	return both[0], both[1]
}

// agreed is what the guest said of a thing both times, which is how it was in
// between, unless it changed there and back.
func agreed(before, after witness, name string) (string, bool) {
	b, ok := before[name]
	return b, ok && after[name] == b
}

// numbered lists the numbers N for which there is a file prefix/N/suffix.
func (w witness) numbered(prefix, suffix string) []int {
	var out []int
	for name := range w {
		rest, ok := strings.CutPrefix(name, prefix)
		n, tail, _ := strings.Cut(rest, "/")
		if i, err := strconv.Atoi(n); ok && err == nil && tail == suffix {
			out = append(out, i)
		}
	}
	slices.Sort(out)
	return out
}

// status is /proc/PID/status as a table.
func status(text string) map[string][]string {
	out := map[string][]string{}
	for line := range strings.Lines(text) {
		if key, value, ok := strings.Cut(line, ":"); ok {
			out[key] = strings.Fields(value)
		}
	}
	return out
}

// views runs a check on each image with a reader of its kernel and with what
// the guest said.
func views(t *testing.T, f func(t *testing.T, r *Reader, img testImage, before, after witness)) {
	for _, img := range testImages(t) {
		t.Run(img.name(), func(t *testing.T) {
			before, after := img.witnesses(t)
			k, err := Identify(img.memory(t), img.Regs[0])
			if err != nil {
				t.Fatal(err)
			}
			f(t, k.NewReader(img.Regs), img, before, after)
		})
	}
}

func TestImageProcesses(t *testing.T) {
	views(t, func(t *testing.T, r *Reader, _ testImage, before, after witness) {
		list, err := r.Processes()
		if err != nil {
			t.Fatal(err)
		}
		if len(list.Reading.Incomplete) > 0 || list.Reading.Retries > 0 {
			t.Errorf("reading %+v", list.Reading)
		}
		var pids []int
		for _, p := range list.Items {
			pids = append(pids, int(p.PID))
			dir := fmt.Sprintf("proc/%d/", p.PID)
			checkTask(t, p, dir, before, after)
			checkProcess(t, p, dir, before, after)
		}
		// What was there both times is there, and what is there was at one.
		b, a := before.numbered("proc/", "status"), after.numbered("proc/", "status")
		for _, pid := range b {
			if slices.Contains(a, pid) && !slices.Contains(pids, pid) {
				t.Errorf("no process %d", pid)
			}
		}
		for _, pid := range pids {
			if !slices.Contains(b, pid) && !slices.Contains(a, pid) {
				t.Errorf("process %d, which the guest does not have", pid)
			}
		}
		t.Logf("%d processes in %d µs", len(pids), list.Reading.Microseconds)
	})
}

func TestImageThreads(t *testing.T) {
	views(t, func(t *testing.T, r *Reader, _ testImage, before, after witness) {
		list, err := r.Threads(0)
		if err != nil {
			t.Fatal(err)
		}
		if len(list.Reading.Incomplete) > 0 || list.Reading.Retries > 0 {
			t.Errorf("reading %+v", list.Reading)
		}
		threads := map[int][]int{}
		for _, p := range list.Items {
			threads[int(p.TGID)] = append(threads[int(p.TGID)], int(p.PID))
			checkTask(t, p, fmt.Sprintf("proc/%d/task/%d/", p.TGID, p.PID), before, after)
		}
		for pid, got := range threads {
			slices.Sort(got)
			prefix := fmt.Sprintf("proc/%d/task/", pid)
			b, a := before.numbered(prefix, "status"), after.numbered(prefix, "status")
			if !slices.Equal(got, b) && !slices.Equal(got, a) {
				t.Errorf("threads %v of %d, the guest has %v, then %v", got, pid, b, a)
			}
			one, err := r.Threads(int32(pid))
			if err != nil || len(one.Items) != len(got) {
				t.Errorf("%d threads of %d alone, %v; want %v", len(one.Items), pid, err, got)
			}
		}
		if _, err := r.Threads(30000); !errors.Is(err, ErrNoProcess) {
			t.Errorf("threads of no process: %v, want %v", err, ErrNoProcess)
		}
	})
}

// checkTask compares what the kernel says of a thread.
func checkTask(t *testing.T, p report.Process, dir string, before, after witness) {
	t.Helper()
	if before[dir+"status"] == "" {
		if before = after; after[dir+"status"] == "" && (p.TGID == 1 || p.KernelThread) {
			return // a thread that the witness or the kernel has for a while
		}
	}
	b, a := status(before[dir+"status"]), status(after[dir+"status"])
	if len(b["State"]) == 0 || len(a["State"]) == 0 {
		t.Errorf("%s: the guest has no such thread", dir)
		return
	}
	same := func(key, got string) {
		t.Helper()
		if want := strings.Join(b[key], " "); got != want && got != strings.Join(a[key], " ") {
			t.Errorf("%sstatus: %s %q, the guest says %q, then %q", dir, key, got, b[key], a[key])
		}
	}
	same("Pid", fmt.Sprint(p.PID))
	same("Tgid", fmt.Sprint(p.TGID))
	same("PPid", fmt.Sprint(p.PPID))
	// The witness runs while it looks at itself and sleeps when it has done so;
	// and any kernel thread may run at any time, or cease to.
	state := p.State + b["State"][0] + a["State"][0]
	if p.TGID != 1 && (!p.KernelThread || !strings.Contains(state, "R")) && !strings.Contains(state[1:], p.State) {
		t.Errorf("%s: state %s, the guest says %v, then %v", dir, p.State, b["State"], a["State"])
	}
	same("Uid", fmt.Sprint(p.Cred.UID, p.Cred.EUID, p.Cred.SUID, p.Cred.FSUID))
	same("Gid", fmt.Sprint(p.Cred.GID, p.Cred.EGID, p.Cred.SGID, p.Cred.FSGID))
	same("CapInh", fmt.Sprintf("%016x", uint64(p.Cred.Inheritable)))
	same("CapPrm", fmt.Sprintf("%016x", uint64(p.Cred.Permitted)))
	same("CapEff", fmt.Sprintf("%016x", uint64(p.Cred.Effective)))
	same("CapBnd", fmt.Sprintf("%016x", uint64(p.Cred.Bounding)))
	same("CapAmb", fmt.Sprintf("%016x", uint64(p.Cred.Ambient)))
	same("Threads", fmt.Sprint(p.Threads))

	if want, ok := agreed(before, after, dir+"comm"); ok && p.Comm != printable.Escape(strings.TrimSuffix(want, "\n")) {
		// Of a kernel thread, /proc shows the whole of a longer name that is
		// kept elsewhere, and what a worker works on.
		if len(p.Comm) != commLen-1 && !strings.HasPrefix(string(p.Comm), "kworker/") || !p.KernelThread || !strings.HasPrefix(want, string(p.Comm)) {
			t.Errorf("%s: comm %q, the guest says %q", dir, p.Comm, want)
		}
	}
	stat := before[dir+"stat"]
	f := strings.Fields(stat[strings.LastIndexByte(stat, ')')+1:])
	if len(f) < 37 {
		t.Fatalf("%sstat: %q", dir, stat)
	}
	if got := strconv.FormatUint(p.Start/10_000_000, 10); got != f[19] { // in USER_HZ
		t.Errorf("%s: started at %s, the guest says %s", dir, got, f[19])
	}
	switches := func(w map[string][]string) string {
		return strings.Join(w["voluntary_ctxt_switches"], "") + "+" + strings.Join(w["nonvoluntary_ctxt_switches"], "")
	}
	if got := strconv.Itoa(p.CPU); got != f[36] && switches(b) == switches(a) { // it has not run meanwhile
		t.Errorf("%s: on CPU %s, the guest says %s", dir, got, f[36])
	}
	if flags, err := strconv.ParseUint(f[6], 10, 32); err != nil || flags&pfKThread != 0 != p.KernelThread {
		t.Errorf("%s: kernel thread %v, flags %#x", dir, p.KernelThread, flags)
	}
}

// checkProcess compares what the kernel says of a process and not of each
// thread.
func checkProcess(t *testing.T, p report.Process, dir string, before, after witness) {
	t.Helper()
	if want, ok := agreed(before, after, dir+"exe"); ok && p.Exe != printable.Escape(want) || !ok && p.Exe != "" {
		t.Errorf("%s: program %q, the guest says %q", dir, p.Exe, want)
	}
	if want, ok := agreed(before, after, dir+"cgroup"); ok {
		unified := ""
		for line := range strings.Lines(want) {
			if path, ok := strings.CutPrefix(line, "0::"); ok {
				unified = strings.TrimSuffix(path, "\n")
			}
		}
		if p.Cgroup != printable.Escape(unified) {
			t.Errorf("%s: cgroup %q, the guest says %q", dir, p.Cgroup, want)
		}
	}
	for kind, got := range map[string]uint32{
		"cgroup": p.Namespaces.Cgroup, "ipc": p.Namespaces.IPC, "mnt": p.Namespaces.Mount, "net": p.Namespaces.Net,
		"pid": p.Namespaces.PID, "time": p.Namespaces.Time, "user": p.Namespaces.User, "uts": p.Namespaces.UTS,
	} {
		if want, ok := before[dir+"ns/"+kind]; ok && want != fmt.Sprintf("%s:[%d]", kind, got) {
			t.Errorf("%s: namespace %s:[%d], the guest says %s", dir, kind, got, want)
		}
	}
	if maps := before[dir+"maps"]; (maps != "") != (p.MM != 0) || (p.MM != 0) != (p.CR3 != 0) {
		t.Errorf("%s: memory at %v, page tables at %v; the guest says %.60q", dir, p.MM, p.CR3, maps)
	}
}

// TestImageMaps compares the memory of every process that did not change its
// own meanwhile, line by line.
func TestImageMaps(t *testing.T) {
	views(t, func(t *testing.T, r *Reader, _ testImage, before, after witness) {
		compared, lines := 0, 0
		for _, pid := range before.numbered("proc/", "maps") {
			want, ok := agreed(before, after, fmt.Sprintf("proc/%d/maps", pid))
			if !ok {
				continue
			}
			list, err := r.Maps(int32(pid))
			if err != nil {
				t.Fatal(err)
			}
			if len(list.Reading.Incomplete) > 0 || list.Reading.Retries > 0 {
				t.Errorf("%d: reading %+v", pid, list.Reading)
			}
			var got []string
			for _, m := range list.Items {
				got = append(got, mapsLine(m))
			}
			var wanted []string
			for line := range strings.Lines(want) {
				wanted = append(wanted, normalMapsLine(line))
			}
			sameLines(t, fmt.Sprintf("memory of process %d", pid), got, wanted)
			compared, lines = compared+1, lines+len(got)
		}
		if lines < 100 {
			t.Errorf("compared %d processes with %d mappings only", compared, lines)
		}
		t.Logf("%d processes, %d mappings", compared, lines)
		if _, err := r.Maps(30000); !errors.Is(err, ErrNoProcess) {
			t.Errorf("memory of no process: %v, want %v", err, ErrNoProcess)
		}
	})
}

func mapsLine(m report.Mapping) string {
	device := m.Device
	if device == "" {
		device = "0:0"
	}
	return fmt.Sprintf("%x-%x %s %x %s %d %s", uint64(m.Start), uint64(m.End), m.Perm, m.Offset, device, m.Inode, m.Path)
}

// normalMapsLine is a line of /proc/PID/maps in the form of mapsLine.
func normalMapsLine(line string) string {
	line = strings.TrimSuffix(line, "\n")
	f := strings.SplitN(line, " ", 6)
	path := strings.TrimLeft(f[5], " ")
	span := strings.SplitN(f[0], "-", 2)
	var start, end, offset, major, minor uint64
	fmt.Sscanf(span[0], "%x", &start)
	fmt.Sscanf(span[1], "%x", &end)
	fmt.Sscanf(f[2], "%x", &offset)
	fmt.Sscanf(f[3], "%x:%x", &major, &minor)
	return fmt.Sprintf("%x-%x %s %x %d:%d %s %s", start, end, f[1], offset, major, minor, f[4], printable.Escape(unoctal(path)))
}

// unoctal undoes what seq_file does to the bytes that it escapes.
func unoctal(s string) string {
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' && i+3 < len(s) {
			if n, err := strconv.ParseUint(s[i+1:i+4], 8, 8); err == nil {
				b.WriteByte(byte(n))
				i += 3
				continue
			}
		}
		b.WriteByte(s[i])
	}
	return b.String()
}

// sameLines compares line by line and tells the lines that only one side has.
func sameLines(t *testing.T, what string, got, want []string) {
	t.Helper()
	if slices.Equal(got, want) {
		return
	}
	only := func(a, b []string) []string {
		return slices.DeleteFunc(slices.Clone(a), func(s string) bool { return slices.Contains(b, s) })
	}
	t.Errorf("%s: %d lines, the guest says %d; here only:\n%s\nthere only:\n%s", what, len(got), len(want),
		strings.Join(only(got, want), "\n"), strings.Join(only(want, got), "\n"))
}

// TestImageMounts compares the mounts that each process sees.
func TestImageMounts(t *testing.T) {
	views(t, func(t *testing.T, r *Reader, _ testImage, before, after witness) {
		lines := 0
		for _, pid := range before.numbered("proc/", "mountinfo") {
			want, ok := agreed(before, after, fmt.Sprintf("proc/%d/mountinfo", pid))
			if !ok {
				continue
			}
			list, err := r.Mounts(int32(pid))
			if err != nil {
				t.Fatal(err)
			}
			if len(list.Reading.Incomplete) > 0 || list.Reading.Retries > 0 {
				t.Errorf("%d: reading %+v", pid, list.Reading)
			}
			var got, wanted []string
			for _, m := range list.Items {
				got = append(got, fmt.Sprintf("%d %d %s %s %s %s - %s %s %s", m.ID, m.Parent, m.Device, m.Root, m.Point, m.Options, m.Type, m.Source, m.SuperOptions))
			}
			for line := range strings.Lines(want) {
				f := strings.Fields(line)
				dash := slices.Index(f, "-")
				super, _, _ := strings.Cut(f[dash+3], ",") // the rest is the file system's own
				point := printable.Escape(unoctal(f[4]))
				wanted = append(wanted, fmt.Sprintf("%s %s %s %s %s %s - %s %s %s", f[0], f[1], f[2], unoctal(f[3]), point, f[5], f[dash+1], unoctal(f[dash+2]), super))
			}
			sameLines(t, fmt.Sprintf("mounts of process %d", pid), got, wanted)
			lines += len(got)
		}
		if lines < 100 {
			t.Errorf("compared %d mounts only", lines)
		}
	})
}

func TestImageInfo(t *testing.T) {
	views(t, func(t *testing.T, r *Reader, img testImage, before, after witness) {
		info, err := r.Info()
		if err != nil {
			t.Fatal(err)
		}
		if len(info.Reading.Incomplete) > 0 || info.Reading.Retries > 0 {
			t.Errorf("reading %+v", info.Reading)
		}
		if got, want := info.CommandLine, printable.Escape(strings.TrimSpace(before["proc/cmdline"])); got != want {
			t.Errorf("command line %q, the guest says %q", got, want)
		}
		if info.Banner != printable.Escape(img.Version) || info.Hostname != "witness" || info.Types != report.TypesBTF {
			t.Errorf("%+v", info)
		}
		var from, to float64
		fmt.Sscan(before["proc/uptime"], &from)
		fmt.Sscan(after["proc/uptime"], &to)
		// /proc/uptime has hundredths, and is read a tick later at most.
		if info.Uptime < from-0.02 || info.Uptime > to+0.02 || to == 0 {
			t.Errorf("up %v seconds, the guest says %v, then %v", info.Uptime, from, to)
		}
		mask, err := strconv.ParseUint(strings.TrimSpace(before["proc/sys/kernel/tainted"]), 10, 64)
		if err != nil || info.Taints != taintString(mask) {
			t.Errorf("taints %q, the guest says %#x (%v)", info.Taints, mask, err)
		}
		if want := slices.Contains(strings.Fields(before["proc/cpuinfo"]), "pti"); info.Isolation != want {
			t.Errorf("page-table isolation %v, the guest says %v", info.Isolation, want)
		}
		if info.Base != startKernel+x86.VirtAddr(info.Slide) || info.Slide >= 1<<30 || info.Slide&(1<<21-1) != 0 {
			t.Errorf("base %v, slide %#x", info.Base, info.Slide)
		}
		if len(info.CPUs) != len(img.Regs) {
			t.Fatalf("%d processors, want %d", len(info.CPUs), len(img.Regs))
		}
		for i, c := range info.CPUs {
			want := img.Regs[i]
			for what, v := range map[string][2]uint64{
				"FS base": {uint64(c.FSBase), want.FSBase}, "GS base": {uint64(c.GSBase), want.GSBase}, "kernel GS base": {uint64(c.KernelGSBase), want.KernelGSBase},
				"STAR": {uint64(c.STAR), want.STAR}, "SFMASK": {uint64(c.SFMask), want.SFMask},
				"SYSENTER_CS": {uint64(c.SysenterCS), want.SysenterCS}, "SYSENTER_ESP": {uint64(c.SysenterESP), want.SysenterESP},
			} {
				if v[0] != v[1] {
					t.Errorf("%s of CPU %d is %#x, want %#x", what, i, v[0], v[1])
				}
			}
			if c.SFMask == 0 || c.STAR == 0 {
				t.Errorf("the image has no MSRs to compare: %+v", want)
			}
			if c.LSTAR.Symbol != "entry_SYSCALL_64" || c.LSTAR.Offset != 0 || c.LSTAR.In != report.InKernel || uint64(c.CR3) != img.Regs[i].CR3 {
				t.Errorf("processor %+v", c)
			}
			if want := before[fmt.Sprintf("proc/%d/comm", c.PID)]; c.PID != 0 && want != "" && c.Comm != printable.Escape(strings.TrimSuffix(want, "\n")) {
				t.Errorf("processor %d runs %q, the guest says %q", i, c.Comm, want)
			}
			if (c.RIP.In == report.InUser) != c.User {
				t.Errorf("processor %d: user mode %v, at %+v", i, c.User, c.RIP)
			}
		}
	})
}

// TestImageCheck: a guest in which nobody hides anything is clean, and every
// check is made.
func TestImageCheck(t *testing.T) {
	views(t, func(t *testing.T, r *Reader, _ testImage, before, _ witness) {
		v, err := r.Check()
		if err != nil {
			t.Fatal(err)
		}
		if !v.Clean || len(v.Findings) > 0 || len(v.Reading.Incomplete) > 0 {
			t.Errorf("%+v", v)
		}
		for i, c := range v.Checks {
			if c.Status != report.CheckClean || i < len(processChecks) && c.Examined < len(before.numbered("proc/", "status")) {
				t.Errorf("%+v", c)
			}
		}
		t.Logf("%d µs", v.Reading.Microseconds)
	})
}
