package linux

import (
	"fmt"
	"testing"

	"github.com/xen-hvi/hvi/engine/x86"
)

// TestImagesSMP finds each processor's own area, and there a task of its own:
// an idle one's is named after the processor.
func TestImagesSMP(t *testing.T) {
	for _, img := range testImages(t) {
		t.Run(img.name(), func(t *testing.T) {
			if !img.Running {
				t.Skip("other processors have not been started")
			}
			k, err := Identify(img.memory(t), img.Regs[0])
			if err != nil {
				t.Fatal(err)
			}
			areas, tasks := map[x86.VirtAddr]int{}, map[x86.VirtAddr]int{}
			for i := range img.Regs {
				base, err := k.PerCPUBase(&img.Regs[i])
				if err != nil {
					t.Fatalf("vCPU %d: %v", i, err)
				}
				if j, ok := areas[base]; ok {
					t.Errorf("vCPU %d has the area of %d, %v", i, j, base)
				}
				areas[base] = i
				task, err := k.CurrentTask(&img.Regs[i])
				if err != nil {
					t.Fatalf("vCPU %d: %v", i, err)
				}
				if j, ok := tasks[task.Addr]; ok {
					t.Errorf("vCPU %d has the task of %d, %+v", i, j, task)
				}
				tasks[task.Addr] = i
				if want := fmt.Sprintf("swapper/%d", i); task.PID == 0 && task.Name() != want {
					t.Errorf("vCPU %d is idle in %q, want %q", i, task.Name(), want)
				}
				t.Logf("vCPU %d: %s, pid %d, area %v", i, task.Name(), task.PID, base)
			}
		})
	}
}
