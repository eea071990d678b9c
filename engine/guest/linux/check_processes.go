package linux

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/xen-hvi/hvi/engine/guest/report"
	"github.com/xen-hvi/hvi/engine/x86"
)

var processChecks = []check{
	{
		name:  "hidden-processes",
		means: "A process or thread was taken off the kernel's lists, so that the system's own tools don't show it, and lives on.",
		run:   (*Reader).checkHidden,
	},
	{
		name:  "credentials",
		means: "A process has credentials that were not made for it: it was given another's rights by writing into the kernel's memory.",
		run:   (*Reader).checkCredentials,
	},
}

const (
	// maxSources bounds how often a list that changes is walked again: what was
	// seen until then counts, since it is looked for again.
	maxSourceRetries = 8
	// maxChildren bounds one process's children.
	maxChildren = 1 << 18
	// maxRunnable bounds the tasks on one run queue.
	maxRunnable = 1 << 17

	pfIdle = 0x2 // PF_IDLE, since 4.10

	exitDead = 0x10  // EXIT_DEAD, in task_struct.exit_state
	taskNew  = 0x800 // TASK_NEW, in task_struct.__state, since 4.8
	taskDead = 0x80  // TASK_DEAD there, since 4.14
)

// RunQueueOffsets lays out struct rq, a processor's run queue.
type RunQueueOffsets struct {
	Current int `c:"curr"`
	Idle    int `c:"idle"`
	// Fair is the list of all tasks of the fair class, RealTime the array of
	// lists of the real-time class, one for each priority, Deadline the tree of
	// the deadline class, Ext the list of those that a BPF scheduler has.
	Fair          int `c:"cfs_tasks"`
	RealTime      int `c:"rt.active.queue"`
	RealTimeLists int `c:"rt.active.queue[]"`
	Deadline      int `c:"dl.root"`
	Ext           int `c:"scx.runnable_list"`
}

// census finds tasks by every way there is that does not lead over the lists of
// processes and threads.
type census struct {
	r     *Reader
	size  int
	areas []perCPUArea
	// listed are the tasks on the lists, idle those of processors that have
	// nothing to do.
	listed map[x86.VirtAddr]bool
	idle   map[x86.VirtAddr]bool
	// seen says where a task was seen besides.
	seen map[x86.VirtAddr][]string
	// known are tasks by whom to find their children and control groups.
	known []x86.VirtAddr
}

// sources are those ways. Each calls see with what it finds.
var sources = []struct {
	where string
	walk  func(c *census, see func(task x86.VirtAddr)) error
}{
	{"the table of process numbers", (*census).numbers},
	{"a run queue", (*census).runQueues},
	{"a processor, which runs it", (*census).current},
	{"its parent's children", (*census).children},
	{"its control group", (*census).controlGroups},
}

// take makes a census. What the sources show is read before and after the
// lists, so that what is in both readings and not on the lists was not on them in
// between either.
func (c *census) take() error {
	r := c.r
	var err error
	if c.areas, err = r.perCPUAreas(); err != nil && !errors.Is(err, ErrUnsupported) {
		return err
	}
	if c.known, err = r.everyTask(); err != nil {
		return err
	}
	first, err := r.variable("init_task")
	if err != nil {
		return err
	}
	c.idle = map[x86.VirtAddr]bool{first: true}
	c.findIdle()
	before, err := c.look()
	if err != nil {
		return err
	}
	tasks, err := r.everyTask()
	if err != nil {
		return err
	}
	c.listed = make(map[x86.VirtAddr]bool, len(tasks))
	for _, t := range tasks {
		c.listed[t] = true
	}
	c.known = tasks
	c.seen = before
	if !slices.ContainsFunc(keys(before), c.suspicious) {
		return nil
	}
	if c.seen, err = c.look(); err != nil {
		return err
	}
	for task := range c.seen {
		if before[task] == nil {
			delete(c.seen, task)
		}
	}
	return nil
}

func keys(m map[x86.VirtAddr][]string) []x86.VirtAddr {
	out := make([]x86.VirtAddr, 0, len(m))
	for k := range m {
		out = append(out, k)
	}
	return out
}

// suspicious says of a task that was seen that it should be on the lists.
func (c *census) suspicious(task x86.VirtAddr) bool { return !c.listed[task] && !c.idle[task] }

// look asks every source.
func (c *census) look() (map[x86.VirtAddr][]string, error) {
	seen := map[x86.VirtAddr][]string{}
	c.r.tlb.Flush()
	for _, s := range sources {
		see := func(task x86.VirtAddr) {
			if w := seen[task]; len(seen) < maxTasks && !slices.Contains(w, s.where) {
				seen[task] = append(w, s.where)
			}
		}
		for try := 1; ; try++ {
			err := s.walk(c, see)
			if err == nil || errors.Is(err, errTorn) && try >= maxSourceRetries {
				break
			}
			switch {
			case errors.Is(err, errTorn):
				c.r.again(try)
				continue
			case errors.Is(err, ErrUnsupported):
				c.r.missing("hidden-processes: %s: %v", s.where, err)
			default:
				return nil, err
			}
			break
		}
	}
	return seen, nil
}

// numbers walks the table of process numbers of the first PID namespace, in
// which every thread has one. Before 4.15 it was a hash table.
func (c *census) numbers(see func(x86.VirtAddr)) error {
	r, o := c.r, &c.r.k.Offsets
	if err := need("pid_namespace.idr", o.PIDTable.Table, "pid.tasks", o.PID.Tasks, "task_struct.pid_links", o.Task.PIDLinks); err != nil {
		return err
	}
	first, err := r.variable("init_pid_ns")
	if err != nil {
		return err
	}
	return r.idr(first+x86.VirtAddr(o.PIDTable.Table), maxTasks, func(_ uint64, pid x86.VirtAddr) error {
		// The first of the lists is of threads by their own number.
		node, err := r.as.ReadPointer(pid + x86.VirtAddr(o.PID.Tasks))
		if err != nil {
			return errTorn
		}
		if node != 0 {
			see(node - x86.VirtAddr(o.Task.PIDLinks))
		}
		return nil
	})
}

// runQueues walks what waits for each processor, class by class.
func (c *census) runQueues(see func(x86.VirtAddr)) error {
	r, q, t := c.r, &c.r.k.Offsets.RunQueue, &c.r.k.Offsets.Task
	queues, ok := r.k.Symbols.Lookup("runqueues")
	if !ok || q.Fair < 0 || t.FairNode < 0 {
		return &ReadError{What: "runqueues", Err: ErrUnsupported}
	}
	torn := false
	walk := func(head x86.VirtAddr, off int) error {
		err := r.list("a run queue", head, maxRunnable, func(node x86.VirtAddr) error {
			see(node - x86.VirtAddr(off))
			return nil
		})
		// The head of a list that was never used is zero.
		if torn = torn || errors.Is(err, errTorn); torn {
			return nil
		}
		return err
	}
	for _, a := range c.areas {
		rq := a.base + queues
		if err := walk(rq+x86.VirtAddr(q.Fair), t.FairNode); err != nil {
			return err
		}
		if q.Ext >= 0 && t.ExtNode >= 0 {
			if err := walk(rq+x86.VirtAddr(q.Ext), t.ExtNode); err != nil {
				return err
			}
		}
		if q.RealTime >= 0 && t.RealTimeNode >= 0 {
			const most = 128 // MAX_RT_PRIO is 100
			for i := range min(q.RealTimeLists, most) {
				if err := walk(rq+x86.VirtAddr(q.RealTime+16*i), t.RealTimeNode); err != nil {
					return err
				}
			}
		}
		if q.Deadline >= 0 && t.DeadlineNode >= 0 {
			err := r.rbTree("a run queue", rq+x86.VirtAddr(q.Deadline), maxRunnable, func(node x86.VirtAddr) error {
				if !c.server(node - x86.VirtAddr(t.DeadlineNode)) {
					see(node - x86.VirtAddr(t.DeadlineNode))
				}
				return nil
			})
			if torn = torn || errors.Is(err, errTorn); err != nil && !torn {
				return err
			}
		}
	}
	if torn {
		return errTorn
	}
	return nil
}

// server says whether an entity of the deadline class is no task but stands for
// all of another class, which it sees to (6.8).
func (c *census) server(task x86.VirtAddr) bool {
	b := c.r.k.Offsets.Task.DeadlineServer
	if b.Offset < 0 || b.Width > 8 {
		return false
	}
	v, err := c.r.as.ReadUint8(task + x86.VirtAddr(b.Offset))
	return err != nil || v>>b.Shift&1 != 0
}

// current reads what each processor runs: as the processor itself knows it and
// as its run queue does.
func (c *census) current(see func(x86.VirtAddr)) error {
	r := c.r
	if len(c.areas) == 0 || !r.k.addr.haveCurrentTask {
		return &ReadError{What: "current_task", Err: ErrUnsupported}
	}
	queues, haveQueues := r.k.Symbols.Lookup("runqueues")
	for _, a := range c.areas {
		task, err := r.as.ReadPointer(a.base + r.k.addr.currentTask)
		if err != nil {
			return &ReadError{What: "current_task", Err: err}
		}
		see(task)
		if off := r.k.Offsets.RunQueue.Current; haveQueues && off >= 0 {
			if task, err = r.as.ReadPointer(a.base + queues + x86.VirtAddr(off)); err != nil {
				return &ReadError{What: "runqueues", Err: err}
			}
			see(task)
		}
	}
	return nil
}

// findIdle notes the idle task of each processor.
func (c *census) findIdle() {
	r := c.r
	queues, ok := r.k.Symbols.Lookup("runqueues")
	for _, a := range c.areas {
		if off := r.k.Offsets.RunQueue.Idle; ok && off >= 0 {
			if task, err := r.as.ReadPointer(a.base + queues + x86.VirtAddr(off)); err == nil {
				c.idle[task] = true
			}
		}
	}
}

// children walks the children of every task that is known, pid 0 included.
func (c *census) children(see func(x86.VirtAddr)) error {
	r, o := c.r, &c.r.k.Offsets.Task
	if err := need("task_struct.children", o.Children, "task_struct.sibling", o.Sibling); err != nil {
		return err
	}
	return c.members(see, func(task x86.VirtAddr) (x86.VirtAddr, error) {
		return task + x86.VirtAddr(o.Children), nil
	}, o.Sibling, func() []x86.VirtAddr {
		first, _ := r.variable("init_task")
		return append(slices.Clip(c.known), first)
	}())
}

// controlGroups walks the members of the control groups of every task that is
// known.
func (c *census) controlGroups(see func(x86.VirtAddr)) error {
	r, o := c.r, &c.r.k.Offsets
	if err := need("task_struct.cgroups", o.Task.CSSSet, "task_struct.cg_list", o.Task.CSSSetNode, "css_set.tasks", o.CSSSet.Tasks); err != nil {
		return err
	}
	done := map[x86.VirtAddr]bool{}
	return c.members(see, func(task x86.VirtAddr) (x86.VirtAddr, error) {
		set, err := r.as.ReadPointer(task + x86.VirtAddr(o.Task.CSSSet))
		if err != nil || done[set] {
			return 0, err
		}
		done[set] = true
		return set + x86.VirtAddr(o.CSSSet.Tasks), nil
	}, o.Task.CSSSetNode, c.known)
}

// members walks a list for each task: one whose head is found by the task, and
// whose nodes are in tasks at an offset. Tasks that have ended meanwhile have no
// list.
func (c *census) members(see func(x86.VirtAddr), head func(task x86.VirtAddr) (x86.VirtAddr, error), off int, of []x86.VirtAddr) error {
	torn := false
	for _, task := range of {
		at, err := head(task)
		if err != nil || at == 0 {
			continue
		}
		err = c.r.list("a list of tasks", at, maxChildren, func(node x86.VirtAddr) error {
			see(node - x86.VirtAddr(off))
			return nil
		})
		switch {
		case errors.Is(err, errTorn):
			torn = true
		case errors.Is(err, ErrImplausible):
			return err
		}
	}
	if torn {
		return errTorn
	}
	return nil
}

// checkHidden compares the lists with everything else that knows of tasks, and
// the page tables that processors use with those of the tasks.
func (r *Reader) checkHidden() (int, []report.Finding, error) {
	c := &census{r: r, size: span(r.k.Offsets.Task)}
	return r.lasting(func() (int, map[suspect]suspicion, error) {
		before, err := r.roots()
		if err != nil {
			return 0, nil, err
		}
		if err := c.take(); err != nil {
			return 0, nil, err
		}
		found := map[suspect]suspicion{}
		var o object
		for task, where := range c.seen {
			if !c.suspicious(task) || r.read(&o, task, c.size) != nil {
				continue
			}
			s, f := r.hidden(&o, where)
			if f.Detail != "" {
				found[s] = f
			}
		}
		if err := c.pageTables(before, found); err != nil {
			return 0, nil, err
		}
		return len(c.seen), found, nil
	})
}

// hidden describes a task that is not on the lists.
func (r *Reader) hidden(task *object, where []string) (suspect, suspicion) {
	o := &r.k.Offsets.Task
	pid, tgid := int32(task.u32(o.PID)), int32(task.u32(o.TGID))
	s := suspect{task: task.at, pid: pid, start: task.u64(o.StartTime)}
	if pid == 0 && r.k.Offsets.RunQueue.Idle < 0 && task.u32(o.Flags)&pfIdle != 0 {
		return s, suspicion{}
	}
	kind := "process"
	if pid != tgid {
		kind = fmt.Sprintf("thread of process %d:", tgid)
	}
	f := suspicion{Finding: report.Finding{
		Object: report.Text(fmt.Sprintf("%s %d (%s)", kind, pid, task.text(o.Comm, commLen))),
		Detail: report.Text(fmt.Sprintf("not on the kernel's lists of processes and threads, but known to %s (task_struct at %v)", strings.Join(where, ", "), task.at)),
	}}
	// One that is being made is on its parent's list first; one that has ended
	// leaves its processor last.
	f.passing = task.u32(o.ExitState)&exitDead != 0 || task.u32(o.State)&(taskNew|taskDead) != 0
	return s, f
}

// roots are the page tables that each processor uses, by its number.
func (r *Reader) roots() ([]x86.PhysAddr, error) {
	if r.registers != nil {
		regs, err := r.registers()
		if err != nil {
			return nil, &ReadError{What: "the registers of the virtual processors", Err: err}
		}
		r.cpus = regs
	}
	var info report.Info
	_ = r.isolation(&info) // without it a root is what CR3 says
	out := make([]x86.PhysAddr, len(r.cpus))
	for i, regs := range r.cpus {
		if out[i] = x86.PhysAddr(regs.CR3 & x86.CR3AddrMask); info.Isolation {
			out[i] &^= x86.CR3KPTIUser
		}
	}
	return out, nil
}

// pageTables looks for processors that use page tables of no task, before the
// census and now. Those of hidden tasks are the tasks' findings.
func (c *census) pageTables(before []x86.PhysAddr, found map[suspect]suspicion) error {
	r, o := c.r, &c.r.k.Offsets
	if len(before) == 0 {
		r.missing("hidden-processes: page tables in use: no registers")
		return nil
	}
	if err := need("task_struct.active_mm", o.Task.ActiveMM); err != nil {
		return err
	}
	known := map[x86.PhysAddr]bool{r.k.as.Root(): true}
	mms := map[x86.VirtAddr]bool{}
	// The kernel's own address spaces: where it patches itself and where it
	// calls the firmware.
	for _, name := range []string{"init_mm", "efi_mm"} {
		if va, err := r.variable(name); err == nil {
			mms[va] = true
		}
	}
	if r.k.addr.pokingMM != 0 {
		if mm, err := r.as.ReadPointer(r.k.addr.pokingMM); err == nil {
			mms[mm] = true
		}
	}
	of := func(task x86.VirtAddr) {
		for _, off := range []int{o.Task.MM, o.Task.ActiveMM} {
			if mm, err := r.as.ReadPointer(task + x86.VirtAddr(off)); err == nil && mm != 0 {
				mms[mm] = true
			}
		}
	}
	for task := range c.listed {
		of(task)
	}
	for task := range c.idle {
		of(task)
	}
	for task := range c.seen {
		of(task)
	}
	for mm := range mms {
		if root, err := r.pageTables(mm); err == nil {
			known[root] = true
		}
	}
	// Page tables that a process leaves are soon another's, which came after the
	// census: what runs at this moment counts, too. One of many looks sees a
	// processor's register and its task of the same moment.
	const looks = 8
	var now []x86.PhysAddr
	strange := func(i int) bool { return i < len(before) && before[i] == now[i] && !known[now[i]] }
	for range looks {
		var err error
		if now, err = r.roots(); err != nil {
			return err
		}
		clear(mms)
		if err := c.current(of); err != nil && !errors.Is(err, ErrUnsupported) {
			return err
		}
		for mm := range mms {
			if root, err := r.pageTables(mm); err == nil {
				known[root] = true
			}
		}
		found := false
		for i := range now {
			found = found || strange(i)
		}
		if !found {
			return nil
		}
	}
	for i, root := range now {
		if !strange(i) {
			continue
		}
		// A processor in the middle of an exec is between two address spaces, and
		// stays there as long as the host doesn't let it run.
		found[suspect{what: fmt.Sprint("vCPU ", i, root)}] = suspicion{passing: r.wait != nil, Finding: report.Finding{
			Object: report.Text(fmt.Sprintf("page tables at %v", root)),
			Detail: report.Text(fmt.Sprintf("vCPU %d uses them, and they belong to no process", i)),
		}}
	}
	return nil
}

// checkCredentials looks for processes whose credentials were not made for
// them. Each process has its own, which only its threads share: a fork copies
// them (copy_creds of kernel/cred.c) and an exec makes new ones. Those of the
// kernel's first task, which has every right, are no other process's. They are
// never changed once they are in use, and those of a user belong to his account
// (set_user of kernel/sys.c).
func (r *Reader) checkCredentials() (int, []report.Finding, error) {
	o := &r.k.Offsets
	if err := need("task_struct.real_cred", o.Task.RealCred); err != nil {
		return 0, nil, err
	}
	first, err := r.variable("init_cred")
	if err != nil {
		return 0, nil, err
	}
	low, high := r.directMap()
	size := span(o.Task)
	var t object
	return r.lasting(func() (int, map[suspect]suspicion, error) {
		tasks, err := r.everyTask()
		if err != nil {
			return 0, nil, err
		}
		found := map[suspect]suspicion{}
		type owner struct {
			tgid int32
			name string
		}
		owners := map[x86.VirtAddr]owner{}
		for _, task := range tasks {
			if r.read(&t, task, size) != nil {
				continue // has ended
			}
			cred, tgid := t.pointer(o.Task.RealCred), int32(t.u32(o.Task.TGID))
			me := owner{tgid, fmt.Sprintf("process %d (%s)", tgid, t.text(o.Task.Comm, commLen))}
			detail := ""
			switch other, taken := owners[cred]; {
			case cred == first:
				detail = "has the credentials of the kernel's first task (init_cred)"
			case high != 0 && (cred < low || cred >= high):
				detail = fmt.Sprintf("has credentials at %v, which is not memory that the kernel allocates them in", cred)
			case !taken:
				owners[cred] = me
			case other.tgid != tgid:
				detail = fmt.Sprintf("has the same credentials as %s", other.name)
			}
			if detail == "" {
				detail = r.foreignUser(cred)
			}
			if detail == "" {
				continue
			}
			found[suspect{task, int32(t.u32(o.Task.PID)), t.u64(o.Task.StartTime), detail}] = suspicion{
				Finding: report.Finding{Object: report.Text(me.name), Detail: report.Text(detail)},
				passing: t.u32(o.Task.ExitState) != 0,
			}
		}
		return len(tasks), found, nil
	})
}

// foreignUser says what is wrong with credentials whose user's number is not that
// of the account which they are charged to; "" if nothing is, or it can't be told.
func (r *Reader) foreignUser(cred x86.VirtAddr) string {
	o := &r.k.Offsets
	if need("cred.uid", o.Cred.UID, "cred.user", o.Cred.User, "user_struct.uid", o.User.UID) != nil {
		return ""
	}
	uid, err := r.as.ReadUint32(cred + x86.VirtAddr(o.Cred.UID))
	if err != nil {
		return ""
	}
	account, err := r.as.ReadPointer(cred + x86.VirtAddr(o.Cred.User))
	if err != nil || !account.KernelHalf() {
		return ""
	}
	owner, err := r.as.ReadUint32(account + x86.VirtAddr(o.User.UID))
	if err != nil || owner == uid {
		return ""
	}
	return fmt.Sprintf("is user %d by its credentials, which are those of user %d", uid, owner)
}

// directMap returns where the kernel maps all memory, in which it allocates its
// structures, or zeros if that is unknown.
func (r *Reader) directMap() (low, high x86.VirtAddr) {
	for _, v := range []struct {
		name string
		to   *x86.VirtAddr
	}{{"page_offset_base", &low}, {"vmalloc_base", &high}} {
		at, err := r.variable(v.name)
		if err != nil {
			return 0, 0
		}
		if *v.to, err = r.as.ReadPointer(at); err != nil {
			return 0, 0
		}
	}
	if low >= high {
		return 0, 0
	}
	return low, high
}
