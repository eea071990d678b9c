package linux

import (
	"strings"
	"testing"

	"github.com/cilium/ebpf/btf"

	"github.com/xen-hvi/hvi/engine/x86"
)

// TestImagesUnwind unwinds the stack of each task of a real kernel that sleeps: it leads
// to where a thread begins, or to where a system call came in.
func TestImagesUnwind(t *testing.T) {
	for _, img := range testImages(t) {
		t.Run(img.name(), func(t *testing.T) {
			r := img.reader(t)
			k := r.Kernel()
			sp := offsetOfSP(t, k)
			list, err := r.Processes()
			if err != nil {
				t.Fatal(err)
			}
			running, err := r.currentTask(0)
			if err != nil {
				t.Fatal(err)
			}
			slept, calls := 0, 0
			for _, p := range list.Items {
				if p.State == "R" || p.State == "Z" || p.Task == running.Addr {
					continue // or about to sleep; a dead one has no stack
				}
				at, err := k.as.ReadPointer(p.Task + x86.VirtAddr(sp))
				if err != nil {
					t.Fatal(err)
				}
				// What __switch_to_asm pushes (struct inactive_task_frame).
				frame := readWords(t, k, at, 7)
				regs := x86.Registers{RIP: frame[6] - 1, RBP: frame[5], RSP: uint64(at) + 7*8}
				if _, off, _ := k.Symbolize(x86.VirtAddr(frame[6])); off == 0 {
					regs.RIP++ // it was just made, and has called nothing
				}
				// As much as there is up to the end of the stack, which is aligned to its
				// size of 16 KiB.
				stack := make([]byte, 0x4000-(regs.RSP&0x3fff))
				if err := k.as.Read(x86.VirtAddr(regs.RSP), stack); err != nil {
					t.Fatal(err)
				}
				found, _, whole := k.Unwind(&regs, stack, 100)
				if !whole || len(found) < 3 && regs.RIP != frame[6] {
					t.Errorf("%s in state %s: %d calls, whole %v: %v, from %v", p.Comm, p.State, len(found), whole, named(k, found), named(k, []x86.VirtAddr{x86.VirtAddr(frame[6])}))
					continue
				}
				if len(found) == 0 {
					continue
				}
				first, _, _ := k.Symbolize(found[len(found)-1] - 1)
				if !strings.HasPrefix(first, "ret_from_fork") && !strings.HasPrefix(first, "entry_SYSCALL") && !strings.HasPrefix(first, "asm_") {
					t.Errorf("%s: the outermost call is of %s: %v", p.Comm, first, named(k, found))
				}
				slept++
				calls += len(found)
				if cut, _, whole := k.Unwind(&regs, stack[:64], 100); whole || len(cut) >= len(found) {
					t.Errorf("%s: with 64 bytes of its stack %d calls, whole %v", p.Comm, len(cut), whole)
				}
			}
			if t.Logf("%d tasks, %d calls", slept, calls); slept < 10 {
				t.Errorf("%d tasks sleep", slept)
			}
		})
	}
}

func named(k *Kernel, at []x86.VirtAddr) (out []string) {
	for _, va := range at {
		name, _, _ := k.Symbolize(va - 1)
		out = append(out, name)
	}
	return out
}

// offsetOfSP is that of task_struct.thread.sp.
func offsetOfSP(t *testing.T, k *Kernel) uint32 {
	t.Helper()
	spec, err := k.BTF()
	if err != nil {
		t.Fatal(err)
	}
	off := uint32(0)
	for i, path := range [][2]string{{"task_struct", "thread"}, {"thread_struct", "sp"}} {
		var s *btf.Struct
		if err := spec.TypeByName(path[0], &s); err != nil {
			t.Fatal(err)
		}
		found := false
		for _, m := range s.Members {
			if m.Name == path[1] {
				off, found = off+m.Offset.Bytes(), true
			}
		}
		if !found {
			t.Fatalf("%d: no member %s", i, path)
		}
	}
	return off
}

func readWords(t *testing.T, k *Kernel, at x86.VirtAddr, n int) []uint64 {
	t.Helper()
	out := make([]uint64, n)
	for i := range out {
		v, err := k.as.ReadUint64(at + x86.VirtAddr(8*i))
		if err != nil {
			t.Fatal(err)
		}
		out[i] = v
	}
	return out
}
