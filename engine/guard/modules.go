package guard

import (
	"time"

	"github.com/xen-hvi/hvi/engine/guest/linux"
	"github.com/xen-hvi/hvi/engine/policy"
	"github.com/xen-hvi/hvi/engine/vmevent"
	"github.com/xen-hvi/hvi/engine/x86"
	"github.com/xen-hvi/hvi/engine/xen"
)

// Moving is what a guard watches whose frames come and go while the guest runs.
type Moving struct {
	// Find returns the frames to watch now.
	Find func(*linux.Reader) ([]linux.MappedFrame, error)
	// Access is what they are restricted to.
	Access xen.Access
	// Every is how long a new one stays unwatched at most, and one that is
	// something else by now watched.
	Every time.Duration
	// Bind returns the judge of an access to a frame that the kernel mapped at an
	// address when it was found. It runs on the ring goroutine and must not allocate.
	Bind func(*Target) (func(*vmevent.Event, x86.VirtAddr) MovingVerdict, error)
}

// MovingVerdict says what an access is to a frame that comes and goes.
type MovingVerdict uint8

// What it can be.
const (
	Rightful  MovingVerdict = iota // the guest's own right
	Violation                      // a violation
	Gone                           // the frame is not what it was when it was found
)

// GoneFrame is one that was accessed, and by which vCPU, when it was not any more
// what a guard had found it to be.
type GoneFrame struct {
	GFN  x86.GFN
	VCPU uint32
}

// ModulesEvery is how long a module that was loaded stays unguarded at most.
const ModulesEvery = 10 * time.Second

// Modules protects the code and the read-only data of loaded modules, with which
// an attacker can do what he could with the kernel's own. The kernel patches them
// as it does its own code, and what that comes to is compared as there. A module that is still being loaded is written by the
// kernel directly, so one is guarded once it is live.
//
// When a module is unloaded, its frames are soon somebody else's, while they are
// still watched. The judge of a write sees that by the kernel's list, from which a
// module is taken before its memory is given back: a frame of no module is let go
// of. Whoever takes a module off the list, so as to write to it, hides it. And it sees it
// by the kernel's page tables, in which another module may be where that one was, as
// when it is loaded again. Whoever has them lead elsewhere for a moment can write to what
// was a module's page. When that is the module's again, it is compared with what it was; if it
// is the first page of a module, that is told of as one that is loaded.
//
// If the policy lists modules, one that it does not list is a violation, too, which is
// looked for on every tier.
func Modules() Guard {
	return Guard{
		Name:  policy.GuardModules,
		Needs: NeedMemAccess,
		Look:  &Look{Every: LookEvery, Begin: listedModules},
		Moving: &Moving{
			Find:   (*linux.Reader).SealedModuleFrames,
			Access: xen.AccessRX,
			Every:  ModulesEvery,
			Bind: func(t *Target) (func(*vmevent.Event, x86.VirtAddr) MovingVerdict, error) {
				foreign, err := foreignWrite(t)
				if err != nil {
					return nil, err
				}
				k, m := t.Kernel, new(linux.Module)
				return func(ev *vmevent.Event, va x86.VirtAddr) MovingVerdict {
					switch {
					case !foreign(ev):
						return Rightful
					case !k.ModuleAt(va, m), !k.Maps(va, ev.Mem.GFN):
						return Gone
					}
					return Violation
				}, nil
			},
		},
	}
}
