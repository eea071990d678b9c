package linux

import (
	"errors"
	"slices"

	"github.com/xen-hvi/hvi/engine/x86"
)

const (
	// maxTasks bounds a walk of all tasks: PID_MAX_LIMIT on 64-bit is 4 Mi, and
	// no guest has more than some ten thousand.
	maxTasks = 1 << 20
	// maxThreads bounds a walk of one process's threads. A process with more
	// is shown with as many.
	maxThreads = 1 << 17
	// commLen is TASK_COMM_LEN.
	commLen = 16
)

// SignalOffsets lays out struct signal_struct, which a process's threads share.
type SignalOffsets struct {
	Threads    int `c:"nr_threads"`
	ThreadHead int `c:"thread_head"`
}

// eachProcess walks the kernel's list of processes (their first threads), which
// starts at init_task, pid 0 itself left out, and calls f with the address of
// each task_struct. It is one attempt, for [Reader.consistently].
func (r *Reader) eachProcess(f func(task x86.VirtAddr) error) error {
	if err := need("task_struct.tasks", r.k.Offsets.Task.Tasks); err != nil {
		return err
	}
	first, err := r.variable("init_task")
	if err != nil {
		return err
	}
	off := x86.VirtAddr(r.k.Offsets.Task.Tasks)
	return r.list("the list of processes", first+off, maxTasks, func(node x86.VirtAddr) error {
		return f(node - off)
	})
}

// EachTask calls f with each process of the kernel's list, pid 0 left out: the
// quick way to know what there is. What f gets was on the list at one moment and
// is valid during the call. Once it has seen as many processes before, EachTask
// does not allocate.
func (r *Reader) EachTask(f func(*Task)) error {
	if err := r.processes(); err != nil {
		return err
	}
	for i := range r.tasks {
		f(&r.tasks[i])
	}
	return nil
}

// processes fills r.tasks from the kernel's list.
func (r *Reader) processes() error {
	r.tlb.Flush()
	for n := range maxRetries {
		err := r.processesOnce()
		if !errors.Is(err, errTorn) {
			return err
		}
		r.again(n + 1)
	}
	return tooOften("the list of processes", maxRetries)
}

// processesOnce is one attempt. A task is copied before its successor is looked
// at: if that still points back, the task was on the list when it was copied.
func (r *Reader) processesOnce() error {
	o := &r.k.Offsets.Task
	if err := need("task_struct.tasks", o.Tasks, "task_struct.pid", o.PID, "task_struct.tgid", o.TGID, "task_struct.comm", o.Comm); err != nil {
		return err
	}
	if r.brief.n == 0 {
		r.brief = briefOf(o)
		var err error
		if r.brief.first, err = r.variable("init_task"); err != nil {
			return err
		}
	}
	r.tasks = r.tasks[:0]
	head := r.brief.first + x86.VirtAddr(o.Tasks)
	node, err := r.as.ReadPointer(head)
	if err != nil {
		return &ReadError{What: "the list of processes", Err: err}
	}
	prev := head
	for node != head {
		if len(r.tasks) >= maxTasks {
			return tooMany("the list of processes", maxTasks)
		}
		if !node.KernelHalf() || node&7 != 0 {
			return errTorn
		}
		t := Task{Addr: node - x86.VirtAddr(o.Tasks)}
		next, back, err := r.readBrief(&t)
		if err != nil || back != prev {
			return errTorn
		}
		r.tasks = append(r.tasks, t)
		prev, node = node, next
	}
	if back, err := r.as.ReadPointer(head + 8); err != nil || back != prev {
		return errTorn
	}
	return nil
}

// brief says where in a task_struct its number, its name and its links in the
// list of processes are: n bytes from lo on, of which only the parts are read.
// A task_struct has 5 to 10 KiB, and every line of it that is not touched need
// not come into the processor's cache.
type brief struct {
	first                  x86.VirtAddr // init_task
	lo, n                  int
	links, pid, tgid, comm int // from lo on
	parts                  [4][2]int
}

func briefOf(o *TaskOffsets) brief {
	parts := [][2]int{{o.Tasks, 16}, {o.PID, 4}, {o.TGID, 4}, {o.Comm, commLen}}
	slices.SortFunc(parts, func(a, b [2]int) int { return a[0] - b[0] })
	b := brief{lo: parts[0][0]}
	last := len(parts) - 1
	b.n = parts[last][0] + parts[last][1] - b.lo
	b.links, b.pid, b.tgid, b.comm = o.Tasks-b.lo, o.PID-b.lo, o.TGID-b.lo, o.Comm-b.lo
	n := 0
	for _, p := range parts {
		p[0] -= b.lo
		if end := &b.parts[max(n-1, 0)]; n > 0 && p[0] <= end[0]+end[1] {
			end[1] = p[0] + p[1] - end[0]
			continue
		}
		b.parts[n] = p
		n++
	}
	return b
}

// readBrief copies what tells a task from others, and its links.
func (r *Reader) readBrief(t *Task) (next, prev x86.VirtAddr, err error) {
	b := &r.brief
	if cap(r.task.b) < b.n {
		r.task.b = make([]byte, b.n)
	}
	at := t.Addr + x86.VirtAddr(b.lo)
	r.task.at, r.task.b = at, r.task.b[:b.n]
	// Each task is in another page and is looked at once: a cache of
	// translations would cost more than it saves.
	where, err := r.k.as.Translate(at)
	if err != nil {
		return 0, 0, err
	}
	whole := where.PageEnd(at) >= uint64(b.n)
	for _, p := range b.parts {
		switch part := r.task.b[p[0] : p[0]+p[1]]; {
		case len(part) == 0:
		case whole:
			err = r.as.Memory().ReadPhys(where.Phys+x86.PhysAddr(p[0]), part)
		default:
			err = r.as.Read(at+x86.VirtAddr(p[0]), part)
		}
		if err != nil {
			return 0, 0, err
		}
	}
	t.PID, t.TGID = int32(r.task.u32(b.pid)), int32(r.task.u32(b.tgid))
	copy(t.Comm[:], r.task.b[b.comm:])
	return r.task.pointer(b.links), r.task.pointer(b.links + 8), nil
}

// threadsOf calls f with the threads of a process, the first one among them.
// errTorn means that they changed, or that the process is no more.
func (r *Reader) threadsOf(task x86.VirtAddr, f func(thread x86.VirtAddr) error) error {
	o := &r.k.Offsets
	if err := need("task_struct.signal", o.Task.Signal, "task_struct.thread_node", o.Task.ThreadNode, "signal_struct.thread_head", o.Signal.ThreadHead); err != nil {
		return err
	}
	signal, err := r.as.ReadPointer(task + x86.VirtAddr(o.Task.Signal))
	if err != nil || !signal.KernelHalf() {
		return errTorn
	}
	off := x86.VirtAddr(o.Task.ThreadNode)
	return r.list("the threads of a process", signal+x86.VirtAddr(o.Signal.ThreadHead), maxThreads, func(node x86.VirtAddr) error {
		return f(node - off)
	})
}

// everyTask returns the addresses of all threads of all processes, as the
// kernel's lists have them. Processes that end meanwhile are left out.
func (r *Reader) everyTask() ([]x86.VirtAddr, error) {
	if err := r.processes(); err != nil {
		return nil, err
	}
	out := make([]x86.VirtAddr, 0, 2*len(r.tasks))
	for i := range r.tasks {
		own, err := r.threadList(r.tasks[i].Addr)
		if err != nil {
			return nil, err
		}
		if out = append(out, own...); len(out) > maxTasks {
			return nil, tooMany("the list of threads", maxTasks)
		}
	}
	return out, nil
}

// threadList returns the threads of a process, none if it has ended. The task
// itself is one of them: one that a fork has just copied to the memory of one
// that has ended leads to the threads of its parent for a moment.
func (r *Reader) threadList(task x86.VirtAddr) ([]x86.VirtAddr, error) {
	var out []x86.VirtAddr
	for n := range maxRetries {
		out = out[:0]
		among := false
		err := r.threadsOf(task, func(thread x86.VirtAddr) error {
			out = append(out, thread)
			among = among || thread == task
			return nil
		})
		if err == nil && !among {
			err = errTorn
		}
		if !errors.Is(err, errTorn) {
			return out, err
		}
		if !r.linked(task + x86.VirtAddr(r.k.Offsets.Task.Tasks)) {
			return nil, nil
		}
		r.again(n + 1)
	}
	return nil, tooOften("the threads of a process", maxRetries)
}

// linked says whether a node is on a list: its neighbours lead to it.
func (r *Reader) linked(node x86.VirtAddr) bool {
	next, err := r.as.ReadPointer(node)
	if err != nil {
		return false
	}
	prev, err := r.as.ReadPointer(node + 8)
	if err != nil {
		return false
	}
	back, err := r.as.ReadPointer(next + 8)
	if err != nil || back != node {
		return false
	}
	forth, err := r.as.ReadPointer(prev)
	return err == nil && forth == node
}

// findTask returns the task of a number: a process, a thread, or one that only
// the table of process numbers knows.
func (r *Reader) findTask(pid int32) (x86.VirtAddr, error) {
	if err := r.processes(); err != nil {
		return 0, err
	}
	for i := range r.tasks {
		if r.tasks[i].PID == pid {
			return r.tasks[i].Addr, nil
		}
	}
	for i := range r.tasks {
		threads, err := r.threadList(r.tasks[i].Addr)
		if err != nil {
			return 0, err
		}
		for _, t := range threads {
			if n, err := r.as.ReadUint32(t + x86.VirtAddr(r.k.Offsets.Task.PID)); err == nil && int32(n) == pid {
				return t, nil
			}
		}
	}
	var hidden x86.VirtAddr
	c := census{r: r}
	_ = c.numbers(func(task x86.VirtAddr) { // without it there is no more to know
		if n, err := r.as.ReadUint32(task + x86.VirtAddr(r.k.Offsets.Task.PID)); err == nil && int32(n) == pid {
			hidden = task
		}
	})
	if hidden != 0 {
		return hidden, nil
	}
	return 0, noProcess(pid)
}
