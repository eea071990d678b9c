package guard

import (
	"fmt"

	"github.com/xen-hvi/hvi/engine/policy"
	"github.com/xen-hvi/hvi/engine/vmevent"
	"github.com/xen-hvi/hvi/engine/x86"
)

// SyscallEntry protects the registers that say where a system call enters the
// kernel: rewriting one hooks every system call of the guest at once. Linux
// writes them when a CPU comes up, always with the same values, and never
// again; a write of another value after boot is a violation.
func SyscallEntry() Guard {
	return Guard{
		Name:  policy.GuardSyscallEntry,
		Needs: NeedMSRWrite,
		Watch: func(*Target) (Watch, error) {
			return Watch{MSRs: []uint32{x86.MSRLSTAR, x86.MSRSTAR, x86.MSRCSTAR, x86.MSRSysenterEIP}}, nil
		},
		Bind: func(t *Target) (func(*vmevent.Event) bool, error) {
			boot := t.Boot
			// A guest taken up while it runs may have been hooked already.
			if e := x86.VirtAddr(boot.LSTAR); e < t.Kernel.TextStart || e >= t.Kernel.TextEnd {
				return nil, fmt.Errorf("LSTAR (%s) points outside the kernel's code: system calls are hooked already", e)
			}
			return func(ev *vmevent.Event) bool {
				if ev.Reason != vmevent.ReasonMovToMSR {
					return false
				}
				// A CPU brought back online writes the boot values again.
				switch ev.MSR.MSR {
				case x86.MSRLSTAR:
					return ev.MSR.New != boot.LSTAR
				case x86.MSRSTAR:
					return ev.MSR.New != boot.STAR
				case x86.MSRCSTAR:
					return ev.MSR.New != boot.CSTAR
				case x86.MSRSysenterEIP:
					return ev.MSR.New != boot.SysenterEIP
				}
				return false
			}, nil
		},
	}
}
