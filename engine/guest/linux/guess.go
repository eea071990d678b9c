package linux

import (
	"bytes"

	"github.com/xen-hvi/hvi/engine/x86"
)

// What can be known of task_struct without its layout. The kernel's own first
// tasks have fixed contents: init_task is pid 0 and called "swapper", the tasks
// after it are pid 1 and 2, the latter "kthreadd" (rest_init in init/main.c has
// started them in this order since 2.6), and all processes are on one circular
// list that begins at init_task. Together they leave one possibility, or the
// guess is not made.
const (
	// maxGuess is how much of a task_struct is looked at. With everything
	// configured it has some 10 KiB.
	maxGuess = 12 << 10
	// guessTasks is how many processes must agree. A system that has come up
	// has several times as many kernel threads alone.
	guessTasks = 8
)

// guessOffsets finds tasks, pid, tgid and comm of task_struct, and reports
// whether it has.
func (k *Kernel) guessOffsets() (Offsets, bool) {
	o := noOffsets()
	first, ok := k.Symbols.Lookup("init_task")
	if !ok || first < k.Base || first >= k.Symbols.end {
		return o, false
	}
	init, err := k.copyTask(first)
	if err != nil {
		return o, false
	}
	// The name is 16 bytes, padded with zeros: "swapper", or "swapper/0" from
	// the time on that there may be other processors.
	comm := -1
	for at := 0; at+16 <= len(init); at += 8 { // it follows a pointer
		name, _, _ := bytes.Cut(init[at:at+16], []byte{0})
		if s := string(name); s == "swapper" || s == "swapper/0" {
			if comm >= 0 {
				return o, false
			}
			comm = at
		}
	}
	if comm < 0 {
		return o, false
	}
	found := false
	for at := 0; at+16 <= len(init); at += 8 {
		next := x86.VirtAddr(le64(init[at:]))
		if !next.KernelHalf() || next == first+x86.VirtAddr(at) {
			continue
		}
		tasks := k.guessList(first, at, comm)
		if tasks == nil {
			continue
		}
		pid, ok := guessPID(append([][]byte{init}, tasks...))
		if !ok || found {
			return noOffsets(), false // or two lists that both look right
		}
		found = true
		o.Task.Tasks, o.Task.Comm, o.Task.PID, o.Task.TGID = at, comm, pid, pid+4
	}
	return o, found
}

func (k *Kernel) copyTask(task x86.VirtAddr) ([]byte, error) {
	b := make([]byte, maxGuess)
	return b, k.as.Read(task, b)
}

// guessList copies the first tasks of a list whose nodes are at an offset, or
// nil if that is not the list of processes.
func (k *Kernel) guessList(first x86.VirtAddr, at, comm int) [][]byte {
	var out [][]byte
	head := first + x86.VirtAddr(at)
	prev := head
	node, err := k.as.ReadPointer(head)
	for len(out) < guessTasks {
		if err != nil || node == head || !node.KernelHalf() || node&7 != 0 {
			return nil
		}
		back, err := k.as.ReadPointer(node + 8)
		if err != nil || back != prev {
			return nil
		}
		task, err := k.copyTask(node - x86.VirtAddr(at))
		if err != nil || !plausibleName(task[comm:comm+16]) {
			return nil
		}
		if len(out) == 1 && !bytes.HasPrefix(task[comm:], []byte("kthreadd\x00")) {
			return nil
		}
		out = append(out, task)
		prev = node
		node = x86.VirtAddr(le64(task[at:]))
	}
	return out
}

// plausibleName reports whether 16 bytes are a name with its padding.
func plausibleName(b []byte) bool {
	n := bytes.IndexByte(b, 0)
	if n <= 0 {
		return false
	}
	for _, c := range b[:n] {
		if c < ' ' || c > '~' {
			return false
		}
	}
	return true
}

// guessPID finds where pid and tgid are, next to each other and equal in every
// first thread: 0, 1, 2, and then whatever differs.
func guessPID(tasks [][]byte) (int, bool) {
	found := -1
next:
	for at := 0; at+8 <= maxGuess; at += 4 {
		seen := map[uint32]bool{}
		for i, t := range tasks {
			pid := le32(t[at:])
			if pid != le32(t[at+4:]) || seen[pid] || i < 3 && pid != uint32(i) || pid > 1<<22 {
				continue next
			}
			seen[pid] = true
		}
		if found >= 0 {
			return 0, false
		}
		found = at
	}
	return found, found >= 0
}
