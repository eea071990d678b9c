package linux

import (
	"encoding/binary"
	"strings"
	"testing"

	"github.com/xen-hvi/hvi/engine/guest/linux/linuxtest"
	"github.com/xen-hvi/hvi/engine/guest/report"
	"github.com/xen-hvi/hvi/engine/x86"
)

// Without types, pid and name of tasks are found by what the first tasks must
// contain, and no further guess is made.
func TestGuess(t *testing.T) {
	for l := range linuxtest.NumLayouts {
		g := linuxtest.New(linuxtest.Config{Layout: l, NoBTF: true, CPUs: 2})
		g.FirstTasks(20)
		k, err := Identify(g.Memory(), g.Regs[1])
		if err != nil {
			t.Fatal(err)
		}
		want := noOffsets()
		want.Task.Tasks, want.Task.PID, want.Task.TGID, want.Task.Comm = linuxtest.TaskTasks, linuxtest.TaskPID, linuxtest.TaskTGID, linuxtest.TaskComm
		if k.Types != report.TypesGuess || k.Offsets != want || !strings.Contains(k.TypesNote, "CONFIG_DEBUG_INFO_BTF") || !strings.Contains(k.TypesNote, "first ones") {
			t.Errorf("%v: types %v, %q, %+v", l, k.Types, k.TypesNote, k.Offsets)
		}
		task, err := k.CurrentTask(&g.Regs[1])
		if l == linuxtest.Seqs62 || l == linuxtest.Seqs63 || l == linuxtest.After64 {
			continue // current_task is a member of pcpu_hot, of which nothing is known
		}
		if err != nil || task.PID != 101 || task.TGID != 100 || task.Name() != "task-1" {
			t.Errorf("%v: current task %+v, %v", l, task, err)
		}
	}
}

// Where the first tasks leave more than one possibility, or none, there is no
// guess.
func TestNoGuess(t *testing.T) {
	le := binary.LittleEndian
	for name, spoil := range map[string]func(g *linuxtest.Guest, tasks []x86.VirtAddr){
		"nothing else has started": func(g *linuxtest.Guest, tasks []x86.VirtAddr) {
			g.WriteUint64(tasks[0]+linuxtest.TaskTasks, uint64(tasks[0]+linuxtest.TaskTasks))
			g.WriteUint64(tasks[0]+linuxtest.TaskTasks+8, uint64(tasks[0]+linuxtest.TaskTasks))
		},
		"another name": func(g *linuxtest.Guest, tasks []x86.VirtAddr) {
			g.Write(tasks[0]+linuxtest.TaskComm, []byte("idle\x00\x00\x00\x00\x00"))
		},
		"the name twice": func(g *linuxtest.Guest, tasks []x86.VirtAddr) {
			g.Write(tasks[0]+linuxtest.TaskComm+64, []byte("swapper\x00"))
		},
		"no kthreadd": func(g *linuxtest.Guest, tasks []x86.VirtAddr) {
			g.Write(tasks[2]+linuxtest.TaskComm, []byte("kthreade"))
		},
		"a list that does not point back": func(g *linuxtest.Guest, tasks []x86.VirtAddr) {
			g.WriteUint64(tasks[5]+linuxtest.TaskTasks+8, uint64(tasks[3]+linuxtest.TaskTasks))
		},
		"a list into user space": func(g *linuxtest.Guest, tasks []x86.VirtAddr) {
			g.WriteUint64(tasks[4]+linuxtest.TaskTasks, 0x1000)
		},
		"a task that is not mapped": func(g *linuxtest.Guest, tasks []x86.VirtAddr) {
			g.WriteUint64(tasks[4]+linuxtest.TaskTasks, 0xffff_c900_0000_0000)
		},
		"a loop": func(g *linuxtest.Guest, tasks []x86.VirtAddr) {
			g.WriteUint64(tasks[4]+linuxtest.TaskTasks, uint64(tasks[4]+linuxtest.TaskTasks))
		},
		"pids that are not those of the first": func(g *linuxtest.Guest, tasks []x86.VirtAddr) {
			g.Write(tasks[2]+linuxtest.TaskPID, le.AppendUint64(nil, 7<<32|7))
		},
		"a pid twice": func(g *linuxtest.Guest, tasks []x86.VirtAddr) {
			g.Write(tasks[5]+linuxtest.TaskPID, le.AppendUint64(nil, 2<<32|2))
		},
		"pids twice": func(g *linuxtest.Guest, tasks []x86.VirtAddr) {
			for i, task := range tasks {
				g.Write(task+64, le.AppendUint64(nil, uint64(i)<<32|uint64(i)))
			}
		},
		"two lists": func(g *linuxtest.Guest, tasks []x86.VirtAddr) {
			for i, task := range tasks {
				g.WriteUint64(task+512, uint64(tasks[(i+1)%len(tasks)]+512))
				g.WriteUint64(task+520, uint64(tasks[(i+len(tasks)-1)%len(tasks)]+512))
			}
		},
	} {
		g := linuxtest.New(linuxtest.Config{Layout: linuxtest.Relative61, NoBTF: true})
		spoil(g, g.FirstTasks(20))
		k, err := Identify(g.Memory(), g.Regs[0])
		if err != nil {
			t.Fatal(err)
		}
		if k.Types != report.TypesNone || k.Offsets != noOffsets() || k.TypesNote == "" {
			t.Errorf("%s: types %v, %+v", name, k.Types, k.Offsets)
		}
	}
}
