package linuxtest

import (
	"encoding/binary"

	"github.com/xen-hvi/hvi/engine/x86"
)

// FirstTasks makes init_task and the processes after it, on a list of their own:
// pid 1, kthreadd, and kernel threads, n in all besides init_task. It returns
// their addresses, init_task's first. They lie where the current tasks of CPUs
// from 16 on would.
func (g *Guest) FirstTasks(n int) []x86.VirtAddr {
	out := []x86.VirtAddr{g.Addr("init_task")}
	for i := range n {
		out = append(out, DirectMap+Tasks+x86.VirtAddr(16+i)<<12)
	}
	names := []string{"swapper/0", "init", "kthreadd", "rcu_gp", "kworker/0:0", "migration/0"}
	for i, task := range out {
		pid := uint32(i)
		if i > 3 {
			pid += uint32(i) // pids have gaps
		}
		next, prev := out[(i+1)%len(out)], out[(i+len(out)-1)%len(out)]
		g.WriteUint64(task+TaskTasks, uint64(next+TaskTasks))
		g.WriteUint64(task+TaskTasks+8, uint64(prev+TaskTasks))
		g.Write(task+TaskPID, binary.LittleEndian.AppendUint32(nil, pid))
		g.Write(task+TaskTGID, binary.LittleEndian.AppendUint32(nil, pid))
		var comm [16]byte
		copy(comm[:15], names[min(i, len(names)-1)])
		g.Write(task+TaskComm, comm[:])
	}
	return out
}
