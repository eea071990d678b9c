package xentest

import "github.com/xen-hvi/hvi/engine/xen"

// Fate is what becomes of a domain while somebody is at work on it: right before the
// Call-th call that concerns any domain, counted from one and from when it is ordained.
type Fate struct {
	Domain xen.DomID
	Call   int
	// Destroyed says that the domain is destroyed. Else it shuts down, for Reason,
	// one of abi.Shutdown*.
	Destroyed bool
	Reason    uint8
}

// fate is one that was ordained.
type fate struct {
	Fate
	calls    int
	happened chan struct{}
}

// Ordain has something happen to a domain later, instead of what was ordained before.
// The channel is closed when it has.
func (h *Hypervisor) Ordain(f Fate) (happened <-chan struct{}) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.fate = &fate{Fate: f, happened: make(chan struct{})}
	return h.fate.happened
}

// meet lets what was ordained happen, if it is time. The hypervisor is locked.
func (h *Hypervisor) meet() {
	f := h.fate
	if f == nil {
		return
	}
	if f.calls++; f.calls != f.Call {
		return
	}
	if d := h.domains[f.Domain]; d != nil {
		if f.Destroyed {
			d.kill()
		} else {
			d.shutDown(uint32(f.Reason))
		}
	}
	close(f.happened)
}
