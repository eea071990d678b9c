package guard

import (
	"slices"
	"time"

	"github.com/xen-hvi/hvi/engine/guest/linux"
	"github.com/xen-hvi/hvi/engine/guest/report"
	"github.com/xen-hvi/hvi/engine/policy"
	"github.com/xen-hvi/hvi/engine/x86"
)

// BootTime is how long a guest that boots may load modules under
// [policy.NoneAfterBoot]: what it has loaded by then is its own.
const BootTime = 5 * time.Minute

// EBPF finds eBPF programs of types that the policy forbids. A program of a tracing
// type can read all that the kernel and its processes have, and change what system
// calls return and processes read; no distribution loads one by itself, but rootkits
// do, and so do tracers and agents that watch a system, which must be allowed then.
//
// Which process has loaded a program the kernel doesn't keep, but its user. Programs
// that come and go between two looks aren't seen, nor one that was taken out of the
// kernel's table of numbers.
func EBPF() Guard {
	return Guard{Name: policy.GuardEBPF, Look: &Look{Every: LookEvery, Begin: func(p policy.Effective) Find {
		if types, _ := p.List(policy.ListForbiddenEBPF); len(types) == 0 {
			return nil
		}
		return func(r *linux.Reader) (report.Verdict, error) {
			return r.ForbiddenPrograms(func(prog *report.Program) bool {
				return p.ForbidsProgram(prog.Type, string(prog.Name), prog.UID)
			})
		}
	}}}
}

// listedModules is the look of [Modules], which finds those that the policy does not
// list.
func listedModules(p policy.Effective) Find { return findUnlisted(p, (*linux.Reader).Uptime) }

// findUnlisted is that, with how long the guest has run, in seconds.
func findUnlisted(p policy.Effective, uptime func(*linux.Reader) (float64, error)) Find {
	allowed, set := p.List(policy.ListAllowedModules)
	if !set {
		return nil
	}
	type module struct {
		addr x86.VirtAddr
		name report.Text
	}
	// own are those of a guest that may load none after its boot.
	own := map[module]bool{}
	booting := slices.Contains(allowed, policy.NoneAfterBoot)
	return func(r *linux.Reader) (report.Verdict, error) {
		learn := booting
		v, err := r.ForbiddenModules(func(m *report.Module, buildID func() string) bool {
			key := module{m.Addr, m.Name}
			if learn {
				own[key] = true
			}
			return !own[key] && !p.AllowsModule(string(m.Name), buildID)
		})
		// What was there at the first look was there when the guards were armed.
		if up, upErr := uptime(r); booting && v.Clean && (upErr != nil || up >= BootTime.Seconds()) {
			booting = false
		}
		return v, err
	}
}
