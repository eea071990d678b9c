package scenario

import (
	"encoding/binary"
	"errors"
	"fmt"
	"regexp"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/xen-hvi/hvi/engine/ledger"
	"github.com/xen-hvi/hvi/engine/view"
	"github.com/xen-hvi/hvi/engine/vmevent"
	"github.com/xen-hvi/hvi/engine/x86"
	"github.com/xen-hvi/hvi/engine/xen"
	"github.com/xen-hvi/hvi/engine/xen/abi"
)

func init() {
	Register(Scenario{
		Name:     "breakpoints-vcpus",
		Brief:    "Hidden breakpoints to which two vCPUs come at once, and which are taken away from under them",
		Emulator: Bochs,
		Timeout:  15 * time.Minute,
		Run:      breakpointsOfVCPUs,
	})
}

// In a guest whose code is a few instructions it can be said exactly how often both vCPUs
// come to one of them, and a breakpoint can be taken away at the very moment that one of
// them is at it. hvid would not protect such a guest, so the scenario puts engine/view
// into Xen itself, as the engine does.

const (
	// pairCalls are counted exactly. Each is some ten events.
	pairCalls = 300
	// pairClears are breakpoints taken away from under a vCPU, and pairRemovals the same
	// with the shadow, wherever the vCPUs are.
	pairClears, pairRemovals = 60, 30
	// pairShadow is where the shadow page lies, at 4 GiB.
	pairShadow x86.GFN = 1 << 20
	pairLimit          = 2 * time.Minute
)

// pair is a guest of two vCPUs that count how often they come to a place, see
// lab/image/files/tiny.c, with breakpoints at it.
type pair struct {
	t      *T
	h      *xen.Host
	dom    xen.DomID
	ring   *ownRing
	server *vmevent.Server
	counts *xen.PageMapping
	shadow *xen.PageMapping

	running, stepping uint16
	live              *view.Breakpoints
	page              *view.Page
	code              x86.PhysAddr
	place, repeated   *view.Point

	// first, if set, sees an event before the breakpoints do, on the ring goroutine.
	first atomic.Pointer[func(*vmevent.Event)]
	stray atomic.Uint64
	// over says that the views are being taken away: everything is let pass.
	over atomic.Bool
}

// HandleEvent implements vmevent.Handler.
func (p *pair) HandleEvent(ev *vmevent.Event) vmevent.Verdict {
	if first := p.first.Load(); first != nil {
		(*first)(ev)
	}
	if p.over.Load() {
		return vmevent.Continue
	}
	v, ok := p.live.HandleEvent(ev)
	if !ok {
		p.stray.Add(1)
	}
	return v
}

// count is one of the numbers that the guest keeps: calls of vCPU 0 and 1, breakpoint
// exceptions, and wrong copies.
func (p *pair) count(i int) uint32 { return binary.LittleEndian.Uint32(p.counts.Bytes()[4*i:]) }

const (
	pairTraps  = 2
	pairWrongs = 3
)

func (p *pair) calls() uint64 { return uint64(p.count(0)) + uint64(p.count(1)) }

// comes waits until each vCPU has made so many calls more.
func (p *pair) comes(calls uint32) error {
	c0, c1 := p.count(0), p.count(1)
	return p.t.Eventually(pairLimit, "both vCPUs go on", func() (bool, error) {
		return p.count(0)-c0 >= calls && p.count(1)-c1 >= calls, nil
	})
}

// paused does something with the domain paused.
func (p *pair) paused(do func() error) error {
	if err := p.ring.ledger.Pause(); err != nil {
		return err
	}
	return errors.Join(do(), p.ring.ledger.Unpause())
}

var pairSays = regexp.MustCompile(`@@PAIR ([0-9a-f]{8}) ([0-9a-f]{8})`)

func breakpointsOfVCPUs(t *T) error {
	g, err := t.StartGuest(GuestConfig{Name: "pair", Kernel: KernelTiny, KernelArgs: []string{"pair"}, VCPUs: 2, Altp2m: "external"})
	if err != nil {
		return err
	}
	var at [2]x86.PhysAddr
	if err := t.Eventually(bootLimit, "the guest says where it counts", func() (bool, error) {
		m := pairSays.FindStringSubmatch(g.Console())
		for i := range at {
			if m == nil {
				return false, nil
			}
			n, err := strconv.ParseUint(m[i+1], 16, 32)
			if err != nil {
				return false, err
			}
			at[i] = x86.PhysAddr(n)
		}
		return true, nil
	}); err != nil {
		return err
	}
	h, err := xen.Open()
	if err != nil {
		return err
	}
	defer h.Close()
	p, err := t.watchPair(h, g, at[0], at[1])
	if err != nil {
		return err
	}
	for _, part := range []struct {
		name string
		do   func() error
	}{{"counted", p.counted}, {"cleared", p.clearedUnder}, {"removed", p.removedUnder}} {
		if err := t.Step(part.name, part.do); err != nil {
			return errors.Join(err, p.close())
		}
	}
	if err := p.close(); err != nil {
		return err
	}
	left, err := t.leftovers(g.ID)
	if err != nil {
		return err
	}
	t.Check(left.restricted == 0 && left.frames > 0 && !left.views && !left.paused && left.steps == 0,
		"nothing is left: %d of %d frames restricted, views %v, paused %v, %d steps", left.restricted, left.frames, left.views, left.paused, left.steps)
	return g.Destroy()
}

// watchPair puts a guest of two vCPUs into a view with breakpoints at its place.
func (t *T) watchPair(h *xen.Host, g *Guest, code, counts x86.PhysAddr) (p *pair, err error) {
	dom := xen.DomID(g.ID)
	info, err := h.Domain(dom)
	if err != nil {
		return nil, err
	}
	p = &pair{t: t, h: h, dom: dom, code: code}
	if p.counts, err = h.MapPage(dom, counts.GFN()); err != nil {
		return nil, err
	}
	repeated, err := p.repeatedAt()
	if err != nil {
		return nil, err
	}
	p.place, p.repeated = &view.Point{At: code}, &view.Point{At: code + x86.PhysAddr(repeated)}
	if p.ring, err = t.openRing(h, info); err != nil {
		return nil, err
	}
	channel, err := h.BindInterdomain(dom, p.ring.port)
	if err != nil {
		return nil, errors.Join(err, p.ring.close())
	}
	t.Cleanup(func() { channel.Close() })
	l := p.ring.ledger
	return p, p.paused(func() error {
		var fails []error
		try := func(err error) { fails = append(fails, err) }
		made := func(v uint16, err error) uint16 { try(err); return v }
		try(l.EnableSteps(info.VCPUs))
		try(l.EnableViews())
		p.running, p.stepping = made(l.CreateView()), made(l.CreateView())
		try(l.RaiseMaxPages(info.MaxPages, info.MaxPages+1))
		try(l.PopulateShadow(pairShadow))
		try(l.Restrict(xen.AccessN, pairShadow, 1))
		for _, v := range []uint16{p.running, p.stepping} {
			try(l.RestrictView(v, xen.AccessN, pairShadow, 1))
		}
		try(l.Monitor(ledger.MonitorOp{Event: abi.MonitorEventSoftwareBreakpoint}))
		if err := errors.Join(fails...); err != nil {
			return err
		}
		var err error
		if p.shadow, err = h.MapPage(dom, pairShadow); err != nil {
			return err
		}
		p.live = view.New(p.running, p.stepping, info.VCPUs, h.OpenMemory(dom), l.ReturnBreakpoint)
		p.server = vmevent.NewServer(p.ring.ring, channel, h.CPU(dom), p, new(atomic.Uint64))
		go p.server.Run()
		return errors.Join(p.lead(), l.SwitchView(p.running))
	})
}

// repeatedAt finds the repeated instruction in the code of the place.
func (p *pair) repeatedAt() (int, error) {
	code, err := codeOf(p.h, p.dom, []x86.GFN{p.code.GFN()})
	if err != nil {
		return 0, err
	}
	for i := int(p.code.Offset()); i+2 < len(code) && i < int(p.code.Offset())+64; i++ {
		if code[i] == 0xf3 && code[i+1] == 0xa4 && code[i+2] == 0xc3 { // rep movsb; ret
			return i - int(p.code.Offset()), nil
		}
	}
	return 0, fmt.Errorf("no rep movsb at %s", p.code)
}

// lead has the running view lead to the shadow of the page, with both breakpoints in
// it. The domain is paused.
func (p *pair) lead() error {
	l := p.ring.ledger
	p.page = view.NewPage(p.code.GFN(), pairShadow, p.shadow.Bytes())
	return errors.Join(p.live.Shadow(p.page), p.live.Set(p.page, p.place), p.live.Set(p.page, p.repeated),
		l.Remap(p.running, p.page.GFN, pairShadow), l.RestrictView(p.running, xen.AccessX, p.page.GFN, 1))
}

// unlead is its undo.
func (p *pair) unlead() error {
	err := errors.Join(p.live.Clear(p.page, p.place), p.live.Clear(p.page, p.repeated), p.ring.ledger.Unmap(p.running, p.page.GFN))
	p.live.Unshadow(p.page)
	return err
}

// counted compares hits with the guest's own numbers.
func (p *pair) counted() error {
	var calls, hits, turns uint64
	look := func() error {
		calls, hits, turns = p.calls()-calls, p.place.Hits.Load()-hits, p.repeated.Hits.Load()-turns
		return nil
	}
	if err := p.paused(look); err != nil {
		return err
	}
	if err := p.comes(pairCalls); err != nil {
		return err
	}
	if err := p.paused(look); err != nil {
		return err
	}
	p.t.Fact("calls", map[string]uint64{"vcpu0": uint64(p.count(0)), "vcpu1": uint64(p.count(1))})
	p.t.Fact("hits", hits)
	// A vCPU may have been stopped behind its hit and before it counts.
	off := func(n uint64) bool { return n+2 >= calls && n <= calls+2 }
	p.t.Check(calls >= 2*pairCalls && off(hits) && off(turns), "both vCPUs' hits are counted: the guest came there %d times, %d hits, and %d of a repeated instruction behind it", calls, hits, turns)
	p.sound("")
	return nil
}

// sound checks what must never be.
func (p *pair) sound(when string) {
	p.t.Check(p.count(pairTraps) == 0 && p.count(pairWrongs) == 0 && p.stray.Load() == 0,
		"%sthe guest saw no breakpoint and copied right: %d exceptions, %d wrong copies, %d stray events", when, p.count(pairTraps), p.count(pairWrongs), p.stray.Load())
}

// clearedUnder takes the breakpoint away while a vCPU has come to it and has no answer
// yet, of each vCPU in turn, and sets it again while both run.
func (p *pair) clearedUnder() error {
	var late uint64
	for i := range pairClears {
		vcpu, cleared := uint32(i%2), make(chan error, 1)
		first := func(ev *vmevent.Event) {
			if ev.VCPU == vcpu && ev.Reason == vmevent.ReasonSoftwareBreakpoint && ev.Stop.GFN == p.code.GFN() && ev.Regs.RIP&x86.PageMask == p.code.Offset() {
				p.first.Store(nil)
				cleared <- p.live.Clear(p.page, p.place)
			}
		}
		p.first.Store(&first)
		select {
		case err := <-cleared:
			if err != nil {
				return err
			}
		case <-time.After(pairLimit):
			return fmt.Errorf("vCPU %d does not come to the breakpoint any more", vcpu)
		}
		hits := p.place.Hits.Load()
		if err := p.comes(2); err != nil {
			return err
		}
		late += p.place.Hits.Load() - hits
		if err := p.live.Set(p.page, p.place); err != nil {
			return err
		}
	}
	p.t.Check(late == 0, "a breakpoint that is taken away with a vCPU at it is hit no more, %d times: %d hits", pairClears, late)
	p.sound("meanwhile ")
	return nil
}

// removedUnder takes the shadow away with the breakpoints, wherever the vCPUs are, in a
// step or about to be answered.
func (p *pair) removedUnder() error {
	var late uint64
	for range pairRemovals {
		if err := p.paused(p.unlead); err != nil {
			return err
		}
		hits := p.place.Hits.Load() + p.repeated.Hits.Load()
		if err := p.comes(2); err != nil {
			return err
		}
		late += p.place.Hits.Load() + p.repeated.Hits.Load() - hits
		if err := p.paused(p.lead); err != nil {
			return err
		}
		if err := p.comes(2); err != nil {
			return err
		}
	}
	p.t.Check(late == 0, "with the shadow taken away nothing is hit, %d times: %d hits", pairRemovals, late)
	p.sound("meanwhile ")
	return nil
}

// close takes the views away and the ring, as a session does.
func (p *pair) close() error {
	l := p.ring.ledger
	p.over.Store(true)
	err := errors.Join(l.Undo(ledger.OpViews), l.Undo(ledger.OpAccess, ledger.OpMonitor), p.comes(2))
	err = errors.Join(err, p.paused(func() error {
		return errors.Join(p.server.Stop(), l.Undo(ledger.OpSteps), l.Undo(ledger.OpRing), p.shadow.Close(), l.Undo(ledger.OpShadow, ledger.OpMaxPages))
	}))
	return errors.Join(err, p.comes(100), p.counts.Close(), p.ring.close())
}
