package xentest

import (
	"golang.org/x/sys/unix"

	"github.com/xen-hvi/hvi/engine/xen/internal/hypercall"
)

// Death is when a process dies: with the Call-th of its calls that change
// something of a domain, counted from one; before the call does anything, or After
// it has, with its answer not come back. Of a run of pauses, or of their opposite,
// only the first mostRepeats count: to set a count of pauses takes hundreds, and to
// die with any of them is the same.
type Death struct {
	Call  int
	After bool
}

// death is one that was arranged.
type death struct {
	Death
	calls int
	last  string // call, and how often it was made in a row
	times int
	now   bool // the call that is under way is the last
	dead  bool
	died  chan struct{}
}

const (
	pausing, unpausing = "domctl(pausedomain)", "domctl(unpausedomain)"
	mostRepeats        = 3
)

// changing are the calls that change something of a domain.
var changing = map[string]bool{
	pausing: true, unpausing: true, "domctl(max_mem)": true,
	"domctl(set_paging_mempool_size)": true, "debug_op(single_step)": true,
	"vm_event_op(enable)": true, "vm_event_op(disable)": true,
	"monitor_op(enable)": true, "monitor_op(disable)": true, "monitor_op(control_registers)": true,
	"memory_op(populate_physmap)": true, "memory_op(decrease_reservation)": true,
	"mem_access(set)": true, "hvm_op(set_param altp2m)": true,
	"altp2m(set_domain_state)": true, "altp2m(create_p2m)": true, "altp2m(switch_p2m)": true,
	"altp2m(set_mem_access_multi)": true, "altp2m(change_gfn)": true, "dm_op(remote_shutdown)": true,
}

// Arrange has the process die that opened the fake last. The channel is closed when
// it has. Whoever in it asks anything of Xen from then on gets no answer: like a
// thread of a dead process, it does nothing any more. What it had mapped is given
// back, and its event channels are closed, as the kernel does.
func (h *Hypervisor) Arrange(d Death) (died <-chan struct{}) {
	h.mu.Lock()
	defer h.mu.Unlock()
	c := h.hosts[len(h.hosts)-1]
	c.death = &death{Death: d, died: make(chan struct{})}
	return c.death.died
}

// called is told of a call by the process that makes it, before it does anything.
func (d *death) called(op string) error {
	if d == nil || !changing[op] {
		return nil
	}
	if op != d.last {
		d.last, d.times = op, 0
	}
	if d.times++; d.times > mostRepeats && (op == pausing || op == unpausing) {
		return nil
	}
	d.calls++
	if d.calls != d.Call {
		return nil
	}
	d.now = true
	if d.After {
		return nil
	}
	return unix.EINTR // which nobody gets to see
}

// die ends the process if the call was its last one, or is made by a dead one. It
// is called with the hypervisor locked, and does not return then.
func (c *caller) die() {
	d := c.death
	if d == nil || !d.now && !d.dead {
		return
	}
	if !d.dead {
		d.now, d.dead = false, true
		c.mu.Lock()
		for _, m := range c.maps {
			m.d.mappedPages -= m.n
		}
		// The memory itself stays where it is, for those who don't know yet.
		clear(c.maps)
		c.mu.Unlock()
		for _, dom := range c.h.domains {
			if r := dom.ring; r != nil && r.bound != nil && r.bound.owner == c {
				// Whoever waits for it wakes up, and asks Xen something.
				_ = unix.Shutdown(r.bound.far, unix.SHUT_RDWR)
				r.bound = nil
			}
		}
		close(d.died)
	}
	c.h.mu.Unlock()
	select {} // for ever
}

// by notes who makes the call that begins, and returns when that may go on.
func (h *Hypervisor) by(c *caller) {
	h.calling = c
	if c.death != nil && c.death.dead {
		c.die()
	}
}

var _ hypercall.EventBinder = binder{}
