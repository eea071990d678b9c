package engine

import "github.com/xen-hvi/hvi/engine/guest"

// spareTLBs are translation caches that nobody uses now. One is a third of a megabyte,
// which a look into a guest uses for some milliseconds: to have that of the system, and
// give it back, is most of what some looks would cost.
var spareTLBs = make(chan *guest.TLB, 2)

// borrowTLB returns one, and what gives it back.
func borrowTLB() (tlb *guest.TLB, giveBack func()) {
	select {
	case tlb = <-spareTLBs:
	default:
		tlb = guest.NewTLB()
	}
	return tlb, func() {
		select {
		case spareTLBs <- tlb:
		default:
		}
	}
}
