package guard

import (
	"github.com/xen-hvi/hvi/engine/guest/linux"
	"github.com/xen-hvi/hvi/engine/policy"
)

// InterruptTable protects the table that says where interrupts and exceptions
// enter the kernel. All processors use the same, which the kernel writes during
// its boot alone. That a processor was made to use another is found afterwards.
func InterruptTable() Guard {
	g := sealed(policy.GuardInterruptTable, func(k *linux.Kernel) ([]linux.Range, error) {
		r, err := k.InterruptTable()
		return []linux.Range{r}, err
	})
	g.Look = &Look{Checks: []string{"interrupt-table"}, Every: LookEvery}
	return g
}
