package linux

import (
	"bytes"
	"errors"
	"fmt"
	"math/bits"

	"github.com/xen-hvi/hvi/engine/guest/report"
	"github.com/xen-hvi/hvi/engine/printable"
	"github.com/xen-hvi/hvi/engine/x86"
)

const (
	// pfKThread is PF_KTHREAD (include/linux/sched.h, since 2.6.27).
	pfKThread = 0x0020_0000
	// maxPIDLevel is MAX_PID_NS_LEVEL.
	maxPIDLevel = 32
	// maxTaskRetries bounds how often one task is read again because it
	// changed what it has: its program, its credentials.
	maxTaskRetries = 16
	// maxUnsettled bounds how many tasks may change in each of these attempts
	// before a list of the others is worth nothing, and maxNamed how many of
	// them are named.
	maxUnsettled = 64
	maxNamed     = 8
	// maxRounds bounds how often all processes are read again because some
	// became others while they were read.
	maxRounds = 3
	// maxCGroupLinks bounds the hierarchies that a process is in: 1 and at
	// most one for each controller and name.
	maxCGroupLinks = 64
)

// Flags of task_struct.__state (include/linux/sched.h). Those that are shown
// are bits whose number is that of the letter; what it means to be idle was
// composed of two since 4.2, and since 6.1 there may be more besides.
const (
	taskUninterruptible = 0x0002
	taskReport          = 0x007f
	taskNoLoad          = 0x0400
	taskIdle            = taskUninterruptible | taskNoLoad
	taskRTLockWait      = 0x1000 // waits for a sleeping lock, with PREEMPT_RT
	taskFrozen          = 0x8000

	taskLetters = "RSDTtXZP" // task_state_array of fs/proc/array.c
)

// CredOffsets lays out struct cred.
type CredOffsets struct {
	Size        int
	UID         int `c:"uid"`
	GID         int `c:"gid"`
	SUID        int `c:"suid"`
	SGID        int `c:"sgid"`
	EUID        int `c:"euid"`
	EGID        int `c:"egid"`
	FSUID       int `c:"fsuid"`
	FSGID       int `c:"fsgid"`
	Inheritable int `c:"cap_inheritable"`
	Permitted   int `c:"cap_permitted"`
	Effective   int `c:"cap_effective"`
	Bounding    int `c:"cap_bset"`
	Ambient     int `c:"cap_ambient"`
	UserNS      int `c:"user_ns"`
	User        int `c:"user"`
}

// PIDOffsets lays out struct pid, and struct upid at the end of it.
type PIDOffsets struct {
	Size    int
	Level   int `c:"level"`
	Tasks   int `c:"tasks"`
	Numbers int `c:"numbers"`
}

// PIDTableOffsets lays out what struct pid_namespace has of its numbers.
type PIDTableOffsets struct {
	Table int `c:"idr"`
}

// UPIDOffsets lays out struct upid: a number and where it counts.
type UPIDOffsets struct {
	Size      int
	Number    int `c:"nr"`
	Namespace int `c:"ns"`
}

// NSProxyOffsets lays out struct nsproxy.
type NSProxyOffsets struct {
	UTS    int `c:"uts_ns"`
	IPC    int `c:"ipc_ns"`
	Mount  int `c:"mnt_ns"`
	Net    int `c:"net_ns"`
	Time   int `c:"time_ns"`
	CGroup int `c:"cgroup_ns"`
}

// NamespaceOffsets lays out what namespaces of each kind have.
type NamespaceOffsets struct {
	Inode int `c:"ns.inum"`
}

// CSSSetOffsets lays out struct css_set: the control groups of a process.
type CSSSetOffsets struct {
	Default int `c:"dfl_cgrp"`
	Tasks   int `c:"tasks"`
	Links   int `c:"cgrp_links"`
}

// CGroupLinkOffsets lays out struct cgrp_cset_link.
type CGroupLinkOffsets struct {
	CGroup int `c:"cgrp"`
	Link   int `c:"cgrp_link"`
}

// CGroupOffsets lays out struct cgroup.
type CGroupOffsets struct {
	Node int `c:"kn"`
	Root int `c:"root"`
}

// CGroupRootOffsets lays out struct cgroup_root: a hierarchy.
type CGroupRootOffsets struct {
	Name       int `c:"name"`
	NameLength int `c:"name[]"`
}

// KernFSNodeOffsets lays out struct kernfs_node.
type KernFSNodeOffsets struct {
	Parent int `c:"__parent|parent"` // renamed in 6.15
	Name   int `c:"name"`
}

// Processes reports all processes.
func (r *Reader) Processes() (report.List[report.Process], error) {
	return r.listTasks(func() ([]x86.VirtAddr, error) {
		err := r.processes()
		found := make([]x86.VirtAddr, len(r.tasks))
		for i := range r.tasks {
			found[i] = r.tasks[i].Addr
		}
		return found, err
	}, r.k.Offsets.Task.Tasks)
}

// Threads reports the threads of a process, or with 0 of all. Without such a
// process it is [ErrNoProcess].
func (r *Reader) Threads(pid int32) (report.List[report.Process], error) {
	return r.listTasks(func() ([]x86.VirtAddr, error) {
		if pid == 0 {
			return r.everyTask()
		}
		task, err := r.findTask(pid)
		if err != nil {
			return nil, err
		}
		return r.threadList(task)
	}, r.k.Offsets.Task.ThreadNode)
}

func noProcess(pid int32) error {
	return &ReadError{What: fmt.Sprintf("process %d", pid), Err: ErrNoProcess}
}

// listTasks reports the tasks that find finds, each linked by the member at
// offset node. What ends while it is read is left out, as it would be a moment
// later. What never stands still is said to be missing. But a process may have
// handed on its number, to the thread that runs another program: then all are read
// anew, a few times.
func (r *Reader) listTasks(find func() ([]x86.VirtAddr, error), node int) (report.List[report.Process], error) {
	out := report.List[report.Process]{Items: []report.Process{}}
	err := r.reading(&out.Reading, func() error {
		t := r.taskReader()
		for round := 1; ; round++ {
			tasks, err := find()
			if err != nil {
				return err
			}
			out.Items = out.Items[:0]
			t.unsettled = t.unsettled[:0]
			ended, found := map[x86.VirtAddr]bool{}, map[int32]bool{}
			unsure := 0 // numbers that are there twice, or are another's now
			for _, task := range tasks {
				p, err := t.read(task, node)
				switch {
				case errors.Is(err, errEnded):
					ended[task] = true
				case errors.Is(err, errTorn) && len(t.unsettled) < maxUnsettled:
					t.unsettled = append(t.unsettled, fmt.Sprintf("task %d (%s) at %v", p.PID, p.Comm, task))
				case errors.Is(err, errTorn):
					return tooOften(fmt.Sprintf("more than %d tasks", maxUnsettled), maxTaskRetries)
				case err != nil:
					return err
				case found[p.PID]:
					unsure++
				default:
					found[p.PID] = true
					out.Items = append(out.Items, p)
				}
			}
			handedOn, err := r.handedOn(ended)
			if err != nil {
				return err
			}
			if unsure += handedOn; unsure == 0 {
				break
			}
			if round == maxRounds {
				r.missing("%d processes that became others while they were read", unsure)
				break
			}
			r.again(round)
		}
		t.tellMissing()
		return nil
	})
	return out, err
}

// handedOn counts the numbers of processes that have ended which are numbers of
// processes now. The walk of all processes that the reading began with knows
// them.
func (r *Reader) handedOn(ended map[x86.VirtAddr]bool) (n int, err error) {
	numbers := map[int32]bool{}
	for i := range r.tasks {
		if ended[r.tasks[i].Addr] {
			numbers[r.tasks[i].PID] = true
		}
	}
	if len(numbers) == 0 {
		return 0, nil
	}
	if err := r.processes(); err != nil {
		return 0, err
	}
	for i := range r.tasks {
		if numbers[r.tasks[i].PID] {
			n++
		}
	}
	return n, nil
}

// errEnded: a task is no longer on the list it was found on.
var errEnded = errors.New("has ended")

// taskReader reads all that is reported of tasks. What they share is read anew
// for each, since it may be freed and used again in between.
type taskReader struct {
	r                        *Reader
	paths                    *pathReader
	task, again, cred, other object
	taskSize, credSize       int
	proxySize                int
	// identity are the members that must not change while a task is read, as
	// offset and length.
	identity [][2]int

	noExe, noCGroup, noCred int // tasks of which these could not be read
	why                     error
	unsettled               []string // the tasks that changed in each attempt
}

func (r *Reader) taskReader() *taskReader {
	o := &r.k.Offsets
	t := &taskReader{r: r, paths: r.pathReader(), taskSize: span(o.Task), credSize: span(o.Cred), proxySize: span(o.NSProxy)}
	for _, off := range []int{o.Task.MM, o.Task.Cred, o.Task.NSProxy, o.Task.FS, o.Task.Signal, o.Task.CSSSet, o.Task.RealParent, o.Task.ThreadPID, o.Task.StartTime} {
		if off >= 0 {
			t.identity = append(t.identity, [2]int{off, 8})
		}
	}
	t.identity = append(t.identity, [2]int{o.Task.Comm, commLen}, [2]int{o.Task.PID, 4}, [2]int{o.Task.TGID, 4})
	return t
}

// ProcessOf returns what there is to know of a task, as it is now. It is an error if the
// task is another one by now.
func (r *Reader) ProcessOf(task *Task) (report.Process, error) {
	r.tlb.Flush()
	t, node := r.taskReader(), r.k.Offsets.Task.ThreadNode
	if node < 0 {
		node = r.k.Offsets.Task.Tasks
	}
	if node < 0 {
		return report.Process{}, &ReadError{What: "task_struct.thread_node", Err: ErrUnsupported}
	}
	p, err := t.read(task.Addr, node)
	if err == nil && (p.PID != task.PID || p.TGID != task.TGID) {
		err = errEnded
	}
	return p, err
}

// tellMissing notes which tasks are not there, and what others lack.
func (t *taskReader) tellMissing() {
	for i, task := range t.unsettled {
		if i == maxNamed {
			t.r.missing("%d more tasks that changed in each of %d attempts", len(t.unsettled)-i, maxTaskRetries)
			break
		}
		t.r.missing("%s: a change in each of %d attempts", task, maxTaskRetries)
	}
	for _, m := range []struct {
		n    int
		what string
	}{{t.noCred, "credentials"}, {t.noExe, "path of the program"}, {t.noCGroup, "control group"}} {
		if m.n > 0 {
			t.r.missing("%s of %d tasks: %v", m.what, m.n, t.why)
		}
	}
	if t.r.k.Offsets.Task.CSSSet < 0 {
		t.r.missing("control groups: this kernel has none")
	}
}

// read reads a task that is linked by its member node. The answer is of one
// moment as far as what the task has is concerned: the pointers to its
// credentials, memory and the rest are the same after all has been followed as
// before. It is errEnded if the task isn't on its list then, and errTorn, with
// what was read last, if no attempt has met it standing still.
func (t *taskReader) read(task x86.VirtAddr, node int) (p report.Process, err error) {
	r := t.r
	for n := range maxTaskRetries {
		noExe, noCGroup, noCred := t.noExe, t.noCGroup, t.noCred
		p, err = t.once(task)
		if err == nil {
			err = t.unchanged(task)
		}
		if !r.linked(task + x86.VirtAddr(node)) {
			t.noExe, t.noCGroup, t.noCred = noExe, noCGroup, noCred
			return p, errEnded
		}
		if !errors.Is(err, errTorn) {
			return p, err
		}
		t.noExe, t.noCGroup, t.noCred = noExe, noCGroup, noCred
		r.again(n + 1)
	}
	return p, err
}

// unchanged is errTorn unless what the task has is what it had when it was
// copied.
func (t *taskReader) unchanged(task x86.VirtAddr) error {
	if err := t.r.read(&t.again, task, t.taskSize); err != nil {
		return errTorn
	}
	for _, m := range t.identity {
		if !t.task.has(m[0], m[1]) || !bytes.Equal(t.task.b[m[0]:m[0]+m[1]], t.again.b[m[0]:m[0]+m[1]]) {
			return errTorn
		}
	}
	return nil
}

func (t *taskReader) once(task x86.VirtAddr) (report.Process, error) {
	r, o := t.r, &t.r.k.Offsets
	if err := r.read(&t.task, task, t.taskSize); err != nil {
		return report.Process{}, errTorn
	}
	p := report.Process{
		PID:          int32(t.task.u32(o.Task.PID)),
		TGID:         int32(t.task.u32(o.Task.TGID)),
		Comm:         t.task.text(o.Task.Comm, commLen),
		State:        stateLetter(t.task.u32(o.Task.State), t.task.u32(o.Task.ExitState)),
		KernelThread: t.task.u32(o.Task.Flags)&pfKThread != 0,
		CPU:          int(t.task.u32(o.Task.CPU)),
		Start:        t.task.u64(o.Task.StartTime),
		Task:         task,
		MM:           t.task.pointer(o.Task.MM),
	}
	if parent := t.task.pointer(o.Task.RealParent); parent != 0 {
		n, err := r.as.ReadUint32(parent + x86.VirtAddr(o.Task.TGID))
		if err != nil {
			return p, errTorn
		}
		p.PPID = int32(n)
	}
	if signal := t.task.pointer(o.Task.Signal); signal != 0 && o.Signal.Threads >= 0 {
		n, err := r.as.ReadUint32(signal + x86.VirtAddr(o.Signal.Threads))
		if err != nil {
			return p, errTorn
		}
		p.Threads = int(min(n, maxTasks))
	}
	if err := t.credentials(&p); err != nil {
		if errors.Is(err, errTorn) {
			return p, err
		}
		t.noCred, t.why = t.noCred+1, err
	}
	if err := t.namespaces(&p); err != nil {
		return p, errTorn
	}
	if err := t.memory(&p); err != nil {
		if errors.Is(err, errTorn) {
			return p, err
		}
		t.noExe, t.why = t.noExe+1, err
	}
	group, err := t.cgroup(t.task.pointer(o.Task.CSSSet))
	switch {
	case err == nil:
		p.Cgroup = group
	case errors.Is(err, errTorn):
		return p, err
	default:
		t.noCGroup, t.why = t.noCGroup+1, err
	}
	return p, nil
}

// stateLetter is the letter of /proc/PID/status (task_state_index of
// include/linux/sched.h).
func stateLetter(state, exit uint32) string {
	s := (state | exit) & taskReport
	switch {
	case state&taskIdle == taskIdle:
		return "I"
	case state&(taskRTLockWait|taskFrozen) != 0:
		s = taskUninterruptible
	}
	if s == 0 {
		return taskLetters[:1]
	}
	n := bits.Len32(s)
	return taskLetters[n : n+1]
}

func (t *taskReader) credentials(p *report.Process) error {
	o := &t.r.k.Offsets.Cred
	p.Cred.Addr = t.task.pointer(t.r.k.Offsets.Task.Cred)
	if err := t.r.read(&t.cred, p.Cred.Addr, t.credSize); err != nil {
		return err
	}
	c := &t.cred
	p.Cred = report.Credentials{
		UID: c.u32(o.UID), GID: c.u32(o.GID), SUID: c.u32(o.SUID), SGID: c.u32(o.SGID),
		EUID: c.u32(o.EUID), EGID: c.u32(o.EGID), FSUID: c.u32(o.FSUID), FSGID: c.u32(o.FSGID),
		// kernel_cap_t has 64 bits, in two words before 6.3.
		Inheritable: report.Hex(c.u64(o.Inheritable)), Permitted: report.Hex(c.u64(o.Permitted)), Effective: report.Hex(c.u64(o.Effective)),
		Bounding: report.Hex(c.u64(o.Bounding)), Ambient: report.Hex(c.u64(o.Ambient)),
		Addr: p.Cred.Addr,
	}
	return nil
}

// namespaces reads the inode numbers of a task's namespaces. A process that has
// ended has left most of them.
func (t *taskReader) namespaces(p *report.Process) error {
	r, o := t.r, &t.r.k.Offsets
	var err error
	inode := func(ns x86.VirtAddr, l NamespaceOffsets) uint32 {
		if ns == 0 || l.Inode < 0 || err != nil {
			return 0
		}
		var n uint32
		n, err = r.as.ReadUint32(ns + x86.VirtAddr(l.Inode))
		return n
	}
	if proxy := t.task.pointer(o.Task.NSProxy); proxy != 0 {
		if err := r.read(&t.other, proxy, t.proxySize); err != nil {
			return err
		}
		p.Namespaces = report.Namespaces{
			Cgroup: inode(t.other.pointer(o.NSProxy.CGroup), o.CGroupNamespace),
			IPC:    inode(t.other.pointer(o.NSProxy.IPC), o.IPCNamespace),
			Mount:  inode(t.other.pointer(o.NSProxy.Mount), o.MountNamespace),
			Net:    inode(t.other.pointer(o.NSProxy.Net), o.NetNamespace),
			Time:   inode(t.other.pointer(o.NSProxy.Time), o.TimeNamespace),
			UTS:    inode(t.other.pointer(o.NSProxy.UTS), o.UTSNamespace),
		}
	}
	if len(t.cred.b) > 0 && t.cred.at == p.Cred.Addr {
		p.Namespaces.User = inode(t.cred.pointer(o.Cred.UserNS), o.UserNamespace)
	}
	pid := t.task.pointer(o.Task.ThreadPID)
	if pid == 0 || o.PID.Level < 0 || o.PID.Numbers < 0 || o.UPID.Namespace < 0 || err != nil {
		return err
	}
	level, err := r.as.ReadUint32(pid + x86.VirtAddr(o.PID.Level))
	if err != nil || level > maxPIDLevel {
		return errTorn
	}
	// The number of the deepest namespace is the last.
	ns, err := r.as.ReadPointer(pid + x86.VirtAddr(o.PID.Numbers+int(level)*o.UPID.Size+o.UPID.Namespace))
	if err != nil {
		return err
	}
	p.Namespaces.PID = inode(ns, o.PIDNamespace)
	return err
}

// memory reads what a task's memory tells: its page tables and its program.
func (t *taskReader) memory(p *report.Process) error {
	r, o := t.r, &t.r.k.Offsets
	if p.MM == 0 {
		return nil
	}
	root, err := r.pageTables(p.MM)
	if err != nil {
		return errTorn
	}
	p.CR3 = root
	if p.KernelThread || o.MM.ExeFile < 0 {
		return nil
	}
	file, err := r.as.ReadPointer(p.MM + x86.VirtAddr(o.MM.ExeFile))
	if err != nil {
		return errTorn
	}
	if file == 0 {
		return nil
	}
	at, err := t.paths.fileAt(file)
	if err != nil {
		return err
	}
	top, err := t.paths.rootOf(t.task.pointer(o.Task.FS))
	if err != nil {
		return err
	}
	text, err := t.paths.read(at, top)
	if err == nil {
		p.Exe = printable.Escape(string(text))
	}
	return err
}

// pageTables returns where the page tables of a struct mm_struct begin.
func (r *Reader) pageTables(mm x86.VirtAddr) (x86.PhysAddr, error) {
	pgd, err := r.as.ReadPointer(mm + x86.VirtAddr(r.k.Offsets.MM.PGD))
	if err != nil {
		return 0, err
	}
	if !pgd.KernelHalf() || pgd.Offset() != 0 {
		return 0, &ReadError{What: "mm_struct.pgd", Got: pgd.String(), Err: ErrImplausible}
	}
	at, err := r.as.Translate(pgd)
	return at.Phys, err
}

// cgroup returns the path of a process in the unified hierarchy or, if it is at
// the top of that, in the first hierarchy that has a name: systemd's own, beside
// those of the old controllers.
func (t *taskReader) cgroup(set x86.VirtAddr) (report.Text, error) {
	r, o := t.r, &t.r.k.Offsets
	if set == 0 || o.CSSSet.Default < 0 || o.CGroup.Node < 0 {
		return "", nil
	}
	group, err := r.as.ReadPointer(set + x86.VirtAddr(o.CSSSet.Default))
	if err != nil {
		return "", errTorn
	}
	text, err := t.cgroupPath(group)
	if err != nil || text != "/" || need("links", o.CSSSet.Links, "cgrp", o.CGroupLink.CGroup, "cgrp_link", o.CGroupLink.Link, "root", o.CGroup.Root, "name", o.CGroupRoot.Name) != nil {
		return text, err
	}
	err = r.list("the control groups of a process", set+x86.VirtAddr(o.CSSSet.Links), maxCGroupLinks, func(node x86.VirtAddr) error {
		group, err := r.as.ReadPointer(node + x86.VirtAddr(o.CGroupLink.CGroup-o.CGroupLink.Link))
		if err != nil {
			return errTorn
		}
		root, err := r.as.ReadPointer(group + x86.VirtAddr(o.CGroup.Root))
		if err != nil {
			return errTorn
		}
		if named, err := r.as.ReadUint8(root + x86.VirtAddr(o.CGroupRoot.Name)); err != nil || named == 0 {
			return err
		}
		if text, err = t.cgroupPath(group); err != nil {
			return err
		}
		return errStop
	})
	return text, err
}

// cgroupPath is the path of a control group in its hierarchy.
func (t *taskReader) cgroupPath(group x86.VirtAddr) (report.Text, error) {
	r, o := t.r, &t.r.k.Offsets
	node, err := r.as.ReadPointer(group + x86.VirtAddr(o.CGroup.Node))
	if err != nil {
		return "", errTorn
	}
	p := t.paths
	p.at = len(p.text)
	for range maxPathSteps {
		parent, err := r.as.ReadPointer(node + x86.VirtAddr(o.KernFSNode.Parent))
		if err != nil {
			return "", errTorn
		}
		if parent == 0 {
			if p.at == len(p.text) {
				return "/", nil
			}
			return printable.Escape(string(p.text[p.at:])), nil
		}
		name, err := r.as.ReadPointer(node + x86.VirtAddr(o.KernFSNode.Name))
		if err != nil {
			return "", errTorn
		}
		s, err := r.as.ReadCString(name, maxName)
		if err != nil {
			return "", errTorn
		}
		if err := p.prepend([]byte("/" + s)); err != nil {
			return "", err
		}
		node = parent
	}
	return "", tooMany("the path of a control group", maxPathSteps)
}
