package hypercall

import "sync/atomic"

// Gate lets a file descriptor be closed while other threads use it: users pass
// in and out, and whoever closes waits for those inside. Without it a number
// that the kernel has given to another file could be used. Passing takes no
// lock.
type Gate struct {
	state atomic.Int32 // users inside, and shut once it is
	idle  chan struct{}
}

const shut = 1 << 30

// NewGate returns an open gate.
func NewGate() *Gate { return &Gate{idle: make(chan struct{})} }

// Enter passes in, unless the gate is shut. Who passed leaves.
func (g *Gate) Enter() bool {
	for {
		n := g.state.Load()
		if n&shut != 0 {
			return false
		}
		if g.state.CompareAndSwap(n, n+1) {
			return true
		}
	}
}

// Leave passes out.
func (g *Gate) Leave() {
	if g.state.Add(-1) == shut {
		close(g.idle)
	}
}

// IsShut reports whether the gate is shut.
func (g *Gate) IsShut() bool { return g.state.Load()&shut != 0 }

// Shut turns away whoever comes from now on. It reports false if the gate was
// shut before.
func (g *Gate) Shut() bool {
	for {
		n := g.state.Load()
		if n&shut != 0 {
			return false
		}
		if g.state.CompareAndSwap(n, n|shut) {
			if n == 0 {
				close(g.idle)
			}
			return true
		}
	}
}

// Wait waits, after Shut, until nobody is inside.
func (g *Gate) Wait() { <-g.idle }
