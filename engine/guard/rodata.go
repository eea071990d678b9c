package guard

import (
	"fmt"

	"github.com/xen-hvi/hvi/engine/guest/linux"
	"github.com/xen-hvi/hvi/engine/policy"
	"github.com/xen-hvi/hvi/engine/xen"
)

// ReadOnlyData protects the kernel's read-only data, from __start_rodata to
// __end_rodata: constants, tables of function pointers that are constant
// (file_operations and the like), and what is written during boot alone
// (__ro_after_init: security hooks, the table of page protections). Parts of it
// have guards of their own, which come first.
func ReadOnlyData() Guard {
	return Guard{
		Name:  policy.GuardKernelROData,
		Needs: NeedMemAccess,
		Watch: func(t *Target) (Watch, error) {
			r, err := t.Kernel.ROData()
			if err != nil {
				return Watch{}, err
			}
			frames, err := t.Kernel.Frames(r)
			if err != nil {
				return Watch{}, fmt.Errorf("find the frames of read-only data: %w", err)
			}
			return Watch{Frames: frames, Access: xen.AccessRX}, nil
		},
		Bind: anyWrite,
		Scan: func(t *Target) (Scanner, error) {
			r, err := t.Kernel.ROData()
			if err != nil {
				return nil, err
			}
			// What another guard compares is its own to tell.
			var except []linux.Range
			for name, find := range map[policy.GuardName]func(*linux.Kernel) ([]linux.Range, error){
				policy.GuardExceptionTable: exceptionTable,
				policy.GuardSyscallTable:   (*linux.Kernel).SyscallTables,
				policy.GuardVDSO:           (*linux.Kernel).VDSO,
			} {
				if t.Actions[name] == policy.ActionOff {
					continue
				}
				if ranges, err := find(t.Kernel); err == nil {
					except = append(except, ranges...)
				}
			}
			return scanData(t, []linux.Range{r}, except)
		},
	}
}
