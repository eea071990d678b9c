package outside

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/xen-hvi/hvi/engine/guest/report"
	"github.com/xen-hvi/hvi/lab/witness"
)

// pfKthread marks a kernel thread in the flags of /proc/PID/stat
// (include/linux/sched.h, PF_KTHREAD).
const pfKthread = 0x0020_0000

// Fields of /proc/PID/stat, counted from the state, which follows the name.
const (
	statState = 0
	statPPID  = 1
	statFlags = 6
	statStart = 19 // in hundredths of a second since boot
)

// processView is what a guest says of its processes.
func processView(r witness.Report) view {
	v := view{}
	for _, pid := range r.Processes() {
		dir := fmt.Sprintf("proc/%d/", pid)
		rec := taskRecord(r, dir)
		if rec == nil {
			continue
		}
		rec["threads"] = statusField(r, dir, "Threads")
		rec["exe"] = text(exe(string(r[dir+"exe"])))
		rec["cgroup"] = cgroup(r.Text(dir + "cgroup"))
		for _, ns := range []string{"cgroup", "ipc", "mnt", "net", "pid", "user", "uts"} {
			if rec["ns/"+ns] = "0"; r[dir+"ns/"+ns] != nil { // a dead process is in none
				rec["ns/"+ns] = nsInode(r.Text(dir + "ns/" + ns))
			}
		}
		if pid == witnessPID {
			// It ran while it wrote this and slept when the image was taken.
			delete(rec, "state")
		}
		v[strconv.Itoa(pid)] = rec
	}
	return v
}

// witnessPID is the witness' own number.
const witnessPID = 1

// threadView is what a guest says of the threads of its processes.
func threadView(r witness.Report) view {
	v := view{}
	for _, pid := range r.Processes() {
		for _, tid := range r.Threads(pid) {
			rec := taskRecord(r, fmt.Sprintf("proc/%d/task/%d/", pid, tid))
			if rec == nil {
				continue
			}
			if pid == witnessPID {
				delete(rec, "state")
			}
			v[strconv.Itoa(tid)] = rec
		}
	}
	return v
}

// taskRecord is what a folder of /proc says of a task, nil if it was gone
// before all was read.
func taskRecord(r witness.Report, dir string) record {
	stat := string(r[dir+"stat"])
	at := strings.LastIndexByte(stat, ')')
	fields := strings.Fields(stat[at+1:])
	if len(fields) <= statStart || r[dir+"status"] == nil || r[dir+"comm"] == nil {
		return nil
	}
	flags, err := strconv.ParseUint(fields[statFlags], 10, 64)
	if err != nil {
		return nil
	}
	rec := record{
		"comm":          comm(strings.TrimSuffix(string(r[dir+"comm"]), "\n")),
		"state":         fields[statState],
		"ppid":          fields[statPPID],
		"start":         fields[statStart],
		"kernel thread": strconv.FormatBool(flags&pfKthread != 0),
		"tgid":          statusField(r, dir, "Tgid"),
		"uids":          statusField(r, dir, "Uid"),
		"gids":          statusField(r, dir, "Gid"),
	}
	if rec["kernel thread"] == "true" && rec["state"] == "R" {
		// The report itself gives the kernel's threads something to do.
		delete(rec, "state")
	}
	for name, field := range map[string]string{"CapInh": "inheritable", "CapPrm": "permitted", "CapEff": "effective", "CapBnd": "bounding", "CapAmb": "ambient"} {
		rec[field] = hex(statusField(r, dir, name))
	}
	return rec
}

// statusField returns a field of /proc/PID/status, its words separated by one
// blank each.
func statusField(r witness.Report, dir, name string) string {
	for line := range strings.Lines(string(r[dir+"status"])) {
		if key, value, ok := strings.Cut(line, ":"); ok && key == name {
			return strings.Join(strings.Fields(value), " ")
		}
	}
	return ""
}

// maxComm is how long a task's name can be (TASK_COMM_LEN, less the zero).
const maxComm = 15

// comm is a task's name as hvi shows it. /proc appends to a worker's what it
// works on ("kworker/0:1-events") and shows a kernel thread's in full, neither
// of which is part of the task's.
func comm(s string) string {
	if pool, work, ok := strings.Cut(s, ":"); ok && strings.HasPrefix(s, "kworker/") {
		if i := strings.IndexAny(work, "-+"); i > 0 {
			s = pool + ":" + work[:i]
		}
	}
	return text(s[:min(len(s), maxComm)])
}

// hex is a number without what makes two spellings of it differ.
func hex(s string) string {
	n, err := strconv.ParseUint(strings.TrimPrefix(s, "0x"), 16, 64)
	if err != nil {
		return s
	}
	return strconv.FormatUint(n, 16)
}

// exe is the path of a file that may be gone, which the kernel says with a word
// at its end.
func exe(path string) string { return strings.TrimSuffix(path, " (deleted)") }

func cgroup(file string) string {
	for line := range strings.Lines(file) {
		if path, ok := strings.CutPrefix(strings.TrimSpace(line), "0::"); ok {
			return text(path)
		}
	}
	return ""
}

// nsInode is the number in "mnt:[4026531840]".
func nsInode(link string) string {
	_, rest, _ := strings.Cut(link, "[")
	return strings.TrimSuffix(rest, "]")
}

// seenProcesses is what hvi says of processes, or of threads.
func seenProcesses(items []report.Process) (view, error) {
	v := view{}
	for _, p := range items {
		id := strconv.Itoa(int(p.PID))
		if v[id] != nil {
			return nil, fmt.Errorf("number %s is there twice", id)
		}
		c := p.Cred
		number := func(ns uint32) string { return strconv.FormatUint(uint64(ns), 10) }
		v[id] = record{
			"comm": string(p.Comm), "state": p.State, "ppid": strconv.Itoa(int(p.PPID)), "tgid": strconv.Itoa(int(p.TGID)),
			"start":         strconv.FormatUint(p.Start/1e7, 10),
			"kernel thread": strconv.FormatBool(p.KernelThread),
			"uids":          fmt.Sprint(c.UID, c.EUID, c.SUID, c.FSUID),
			"gids":          fmt.Sprint(c.GID, c.EGID, c.SGID, c.FSGID),
			"inheritable":   hex(c.Inheritable.String()), "permitted": hex(c.Permitted.String()), "effective": hex(c.Effective.String()),
			"bounding": hex(c.Bounding.String()), "ambient": hex(c.Ambient.String()),
			"threads": strconv.Itoa(p.Threads), "exe": exe(string(p.Exe)), "cgroup": string(p.Cgroup),
			"ns/cgroup": number(p.Namespaces.Cgroup), "ns/ipc": number(p.Namespaces.IPC), "ns/mnt": number(p.Namespaces.Mount),
			"ns/net": number(p.Namespaces.Net), "ns/pid": number(p.Namespaces.PID), "ns/user": number(p.Namespaces.User), "ns/uts": number(p.Namespaces.UTS),
		}
	}
	return v, nil
}

// worker says of a process that the guest showed at no time that it is a
// kernel worker: they come and go as there is work.
func worker(p record) bool {
	return p["kernel thread"] == "true" && strings.HasPrefix(p["comm"], "kworker/")
}
