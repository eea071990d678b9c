package linux

import "github.com/xen-hvi/hvi/engine/x86"

// maxTasks bounds a walk of all tasks: PID_MAX_LIMIT on 64-bit is 4 Mi, and no
// guest has more than some ten thousand.
const maxTasks = 1 << 20

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
