package xentest

import (
	"fmt"
	"maps"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/xen-hvi/hvi/engine/x86"
	"github.com/xen-hvi/hvi/engine/xen"
	"github.com/xen-hvi/hvi/engine/xen/abi"
)

// Spec describes a domain to add.
type Spec struct {
	ID   xen.DomID
	UUID xen.UUID
	// Type is PV where it is not set.
	Type xen.DomainType
	// VCPUs is their number. Zero means 1.
	VCPUs int
	// NoVCPUs is a domain whose toolstack has not made its vCPUs yet.
	NoVCPUs bool
	// Pages of memory from frame 0 on. Zero means 256. The ring's page
	// comes on top.
	Pages uint64
	// MaxPages is the limit. Zero means Pages and 16 more.
	MaxPages uint64
	// NoHAP is a domain on shadow paging.
	NoHAP bool
	// PagingPool is the size of the memory for its page tables, in bytes.
	PagingPool uint64
	// OnDemand is how many frames get a page when they are touched first.
	OnDemand uint64
	// Pauses is what the toolstack holds: 1 for a domain that was created
	// and not started yet.
	Pauses int
	// RingFrame is where the builder put the monitor ring's page. Zero means
	// DefaultRingFrame; PV domains have none.
	RingFrame x86.GFN
	// NoRingFrame is a domain whose builder set none aside.
	NoRingFrame bool
	// AltP2M is the mode the toolstack chose.
	AltP2M xen.AltP2MMode
}

// DefaultRingFrame is where the page of the monitor ring is put.
const DefaultRingFrame x86.GFN = 0xfeff2

type lifeState int

const (
	alive lifeState = iota
	dying
)

// Domain is a fake domain. Its methods are what a test does to it or wants to
// know of it; none of them shows in Hypervisor.Log.
type Domain struct {
	h    *Hypervisor
	spec Spec
	mem  *memory
	// maxPages is the limit that the domain came with.
	maxPages uint64

	state          lifeState
	shutdown       bool
	shutdownReason uint8
	announced      *uint8
	pauses         int
	mappedPages    int
	vcpus          []*vcpu
	params         map[uint32]uint64

	access         map[uint64]uint8
	defaultAccess  uint8
	accessRequired bool

	ring           *ring
	waiters        int
	monitored      map[string]MonitorState
	deferRegisters bool
	eachRep        bool
	altp2mActive   bool
	lostDenials    int
	views          []*view // view 0 is the host's and nil
	pool           uint64  // the paging pool in bytes
	view           uint16  // that all vCPUs are in
}

// view is one of a domain's views: the frames whose access is not rwx, and those
// that lead to the page of another.
type view struct {
	access map[uint64]uint8
	leads  map[uint64]uint64
}

type vcpu struct {
	regs       x86.Registers
	offline    bool
	singleStep bool
	fastStep   bool // singleStep is for one instruction
	eventPause int
	injected   *Injected
	// leaving is how often Xen will be asked before the vCPU has left its
	// processor, which it begins to do when it reports an event.
	leaving int
	// writing is a register that gets its value when an event is answered.
	writing *uint64
	value   uint64
}

// Injected is an event that was injected into a vCPU.
type Injected struct {
	Vector, Type, InsnLen uint8
	ErrorCode             uint32
	CR2                   uint64
}

// MonitorState is how an event is monitored.
type MonitorState struct {
	Event          int
	Register       uint8
	MSR            uint32
	Sync           bool
	OnChangeOnly   bool
	IgnoreBits     uint64
	AllowUserspace bool
}

// AddDomain adds a domain. It panics if there is one of that number.
func (h *Hypervisor) AddDomain(s Spec) *Domain {
	if s.VCPUs == 0 {
		s.VCPUs = 1
	}
	if s.Pages == 0 {
		s.Pages = 256
	}
	if s.MaxPages == 0 {
		s.MaxPages = s.Pages + 16
	}
	if s.RingFrame == 0 {
		s.RingFrame = DefaultRingFrame
	}
	mem, err := newMemory()
	if err != nil {
		panic(err)
	}
	d := &Domain{
		h: h, spec: s, mem: mem, pauses: s.Pauses,
		params:        map[uint32]uint64{},
		access:        map[uint64]uint8{},
		defaultAccess: abi.AccessRWX,
		monitored:     map[string]MonitorState{},
		pool:          s.PagingPool,
	}
	for range s.VCPUs {
		if !s.NoVCPUs {
			d.vcpus = append(d.vcpus, &vcpu{})
		}
	}
	for g := range s.Pages {
		mem.populate(g)
	}
	if s.Type != xen.PV {
		d.params[abi.HVMParamAltP2M] = uint64(s.AltP2M)
		if !s.NoRingFrame {
			mem.populate(uint64(s.RingFrame))
			d.params[abi.HVMParamMonitorRingPFN] = uint64(s.RingFrame)
		}
	}
	d.maxPages = s.MaxPages
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.domains[s.ID] != nil {
		panic(fmt.Sprintf("xentest: domain %d exists", s.ID))
	}
	h.domains[s.ID] = d
	return d
}

func (d *Domain) lock() func() {
	d.h.mu.Lock()
	return d.h.mu.Unlock
}

// ID returns the domain's number.
func (d *Domain) ID() xen.DomID { return d.spec.ID }

// Write stores data in guest memory. It panics where there is none.
func (d *Domain) Write(pa x86.PhysAddr, data []byte) {
	defer d.lock()()
	d.mem.copy(pa, data, true)
}

// Read returns guest memory. It panics where there is none.
func (d *Domain) Read(pa x86.PhysAddr, n int) []byte {
	defer d.lock()()
	out := make([]byte, n)
	d.mem.copy(pa, out, false)
	return out
}

// AddPage puts a fresh page behind a frame, in place of one that is there.
// The guest does so with a balloon, or its builder.
func (d *Domain) AddPage(gfn x86.GFN) {
	defer d.lock()()
	d.mem.populate(uint64(gfn))
}

// DropPage takes the page behind a frame away. Mappings keep it.
func (d *Domain) DropPage(gfn x86.GFN) {
	defer d.lock()()
	d.mem.remove(uint64(gfn))
}

// HasPage reports whether there is a page behind a frame.
func (d *Domain) HasPage(gfn x86.GFN) bool {
	defer d.lock()()
	_, ok := d.mem.frames[uint64(gfn)]
	return ok
}

// MappedPages returns how many references on the domain's pages mappings
// hold. A dead domain stays a zombie while there are any.
func (d *Domain) MappedPages() int {
	defer d.lock()()
	return d.mappedPages
}

// SetRegisters sets the registers of a vCPU.
func (d *Domain) SetRegisters(vcpu int, r x86.Registers) {
	defer d.lock()()
	d.vcpus[vcpu].regs = r
}

// Registers returns the registers of a vCPU.
func (d *Domain) Registers(vcpu int) x86.Registers {
	defer d.lock()()
	return d.vcpus[vcpu].regs
}

// SetOnline says whether the guest has started a vCPU.
func (d *Domain) SetOnline(vcpu int, online bool) {
	defer d.lock()()
	d.vcpus[vcpu].offline = !online
}

// Pauses returns how many pauses toolstacks and listeners hold.
func (d *Domain) Pauses() int {
	defer d.lock()()
	return d.pauses
}

// EventPauses returns how many events a vCPU waits for to be answered.
func (d *Domain) EventPauses(vcpu int) int {
	defer d.lock()()
	return d.vcpus[vcpu].eventPause
}

// LostDenials returns how many register writes landed although they were denied:
// Xen had not come to wait for the answer when it was given.
func (d *Domain) LostDenials() int {
	defer d.lock()()
	return d.lostDenials
}

// SingleStepping reports whether a vCPU reports each instruction.
func (d *Domain) SingleStepping(vcpu int) bool {
	defer d.lock()()
	return d.vcpus[vcpu].singleStep
}

// TakeInjected returns the event pending on a vCPU, which then is not pending
// any more, or nil.
func (d *Domain) TakeInjected(vcpu int) *Injected {
	defer d.lock()()
	e := d.vcpus[vcpu].injected
	d.vcpus[vcpu].injected = nil
	return e
}

// Access returns the access of a frame, in the release's own number for the
// default.
func (d *Domain) Access(gfn x86.GFN) uint8 {
	defer d.lock()()
	return d.accessOf(uint64(gfn))
}

func (d *Domain) accessOf(gfn uint64) uint8 {
	if a, ok := d.access[gfn]; ok {
		return a
	}
	return abi.AccessRWX
}

// SetAccess restricts a frame behind the listener's back.
func (d *Domain) SetAccess(gfn x86.GFN, access uint8) {
	defer d.lock()()
	d.access[uint64(gfn)] = access
}

// Restricted returns the frames whose access is not rwx, in order.
func (d *Domain) Restricted() []x86.GFN {
	defer d.lock()()
	var out []x86.GFN
	for g, a := range d.access {
		if a != abi.AccessRWX {
			out = append(out, x86.GFN(g))
		}
	}
	slices.Sort(out)
	return out
}

// DefaultAccess returns the access that new pages get.
func (d *Domain) DefaultAccess() uint8 {
	defer d.lock()()
	return d.defaultAccess
}

// AccessRequired reports whether an access violation without a listener
// crashes the domain.
func (d *Domain) AccessRequired() bool {
	defer d.lock()()
	return d.accessRequired
}

// Monitored returns the events that are monitored, in no order.
func (d *Domain) Monitored() []MonitorState {
	defer d.lock()()
	return slices.Collect(maps.Values(d.monitored))
}

// DefersRegisters reports whether register writes wait for their answer.
func (d *Domain) DefersRegisters() bool {
	defer d.lock()()
	return d.deferRegisters || !d.h.layout.Has.MonitorControlRegisters
}

// EmulatesEachRep reports whether each iteration of a string instruction
// reports.
func (d *Domain) EmulatesEachRep() bool {
	defer d.lock()()
	return d.eachRep
}

// SetAltP2MActive switches views on or off.
func (d *Domain) SetAltP2MActive(on bool) {
	defer d.lock()()
	d.altp2mActive = on
}

// AltP2MActive reports whether views are in use.
func (d *Domain) AltP2MActive() bool {
	defer d.lock()()
	return d.altp2mActive
}

// View returns the view that the vCPUs are in, 0 for the host's.
func (d *Domain) View() uint16 {
	defer d.lock()()
	return d.view
}

// ViewRestricted returns the frames of a view whose access is not rwx, in order.
func (d *Domain) ViewRestricted(view uint16) []x86.GFN {
	defer d.lock()()
	var out []x86.GFN
	if int(view) < len(d.views) && d.views[view] != nil {
		for f, a := range d.views[view].access {
			if a != abi.AccessRWX {
				out = append(out, x86.GFN(f))
			}
		}
	}
	slices.Sort(out)
	return out
}

// SetViewAccess changes a frame's access in a view behind hvi's back, as Xen does
// when the frame changes in the host's.
func (d *Domain) SetViewAccess(view uint16, gfn x86.GFN, access uint8) {
	defer d.lock()()
	d.views[view].access[uint64(gfn)] = access
}

// LeadsTo returns the frame whose page a frame leads to in a view.
func (d *Domain) LeadsTo(view uint16, gfn x86.GFN) x86.GFN {
	defer d.lock()()
	if int(view) < len(d.views) && d.views[view] != nil {
		if to, ok := d.views[view].leads[uint64(gfn)]; ok {
			return x86.GFN(to)
		}
	}
	return gfn
}

// ViewAccess returns the access of a frame in a view: all of it where nobody has
// set it, as Xen 4.20 has it, whatever is permitted in the host's.
func (d *Domain) ViewAccess(view uint16, gfn x86.GFN) uint8 {
	defer d.lock()()
	if a, ok := d.views[view].access[uint64(gfn)]; ok {
		return a
	}
	return abi.AccessRWX
}

// FlushView has a view forget all that was done to it, as Xen does when a page
// that shadows lead past leaves the guest's memory.
func (d *Domain) FlushView(view uint16) {
	defer d.lock()()
	clear(d.views[view].access)
	clear(d.views[view].leads)
}

// MaxPages returns the limit of the domain's pages.
func (d *Domain) MaxPages() uint64 {
	defer d.lock()()
	return d.spec.MaxPages
}

// PagingPool returns the size of the paging pool in bytes.
func (d *Domain) PagingPool() uint64 {
	defer d.lock()()
	return d.pool
}

// Param returns an HVM parameter.
func (d *Domain) Param(index uint32) uint64 {
	defer d.lock()()
	return d.params[index]
}

// Clean reports, as a list of what is left, whether anything of a listener
// remains: an empty list is a domain as if nobody had ever looked.
func (d *Domain) Clean() []string {
	defer d.lock()()
	var left []string
	add := func(bad bool, format string, args ...any) {
		if bad {
			left = append(left, fmt.Sprintf(format, args...))
		}
	}
	add(d.pauses != d.spec.Pauses, "%d pauses, were %d", d.pauses, d.spec.Pauses)
	add(d.ring != nil, "monitor ring connected")
	add(len(d.monitored) > 0, "%d events monitored", len(d.monitored))
	add(d.deferRegisters, "register writes deferred")
	add(d.eachRep, "each rep emulated")
	add(d.defaultAccess != abi.AccessRWX, "default access %d", d.defaultAccess)
	add(d.accessRequired, "access required")
	add(d.altp2mActive, "altp2m active")
	add(d.view != 0, "vCPUs are in view %d", d.view)
	add(d.pool != d.spec.PagingPool, "%d bytes of paging pool, were %d", d.pool, d.spec.PagingPool)
	add(d.spec.MaxPages != d.maxPages, "limit of %d pages, was %d", d.spec.MaxPages, d.maxPages)
	for gfn := range d.mem.frames {
		add(gfn >= 1<<20, "a page at frame %#x", gfn)
	}
	add(d.mappedPages > 0, "%d pages mapped", d.mappedPages)
	n := 0
	for _, a := range d.access {
		if a != abi.AccessRWX {
			n++
		}
	}
	add(n > 0, "%d frames restricted", n)
	for i, v := range d.vcpus {
		add(v.singleStep, "vCPU %d single-steps", i)
		add(v.eventPause > 0, "vCPU %d waits for %d answers", i, v.eventPause)
	}
	return left
}

// Shutdown makes the guest stop, for one of abi.Shutdown*.
func (d *Domain) Shutdown(reason uint8) {
	defer d.lock()()
	d.shutDown(uint32(reason))
}

// Announce has the guest say for what reason it will shut down, whoever does it.
func (d *Domain) Announce(reason uint8) {
	defer d.lock()()
	d.announced = &reason
}

// shutDown does what domain_shutdown does: the reason that was first stays.
func (d *Domain) shutDown(reason uint32) {
	if d.shutdown {
		return
	}
	d.shutdown, d.shutdownReason = true, uint8(reason)
	if d.announced != nil {
		d.shutdownReason = *d.announced
	}
}

// Resume has a domain run on that had shut down, as its toolstack does
// (domctl resumedomain).
func (d *Domain) Resume() {
	defer d.lock()()
	d.shutdown, d.shutdownReason = false, 0
}

// IsShutDown reports whether the domain has shut down, and for what.
func (d *Domain) IsShutDown() (reason uint8, down bool) {
	defer d.lock()()
	return d.shutdownReason, d.shutdown
}

// Kill destroys the domain. It stays, dying, while mappings hold its pages,
// and is gone once Reap finds none.
func (d *Domain) Kill() {
	defer d.lock()()
	d.kill()
}

func (d *Domain) kill() {
	d.state = dying
	d.disconnect()
}

// Reap removes a killed domain, unless mappings hold its pages, and reports
// whether it is gone.
func (d *Domain) Reap() bool {
	defer d.lock()()
	if d.state != dying || d.mappedPages > 0 {
		return false
	}
	if d.h.domains[d.spec.ID] == d {
		delete(d.h.domains, d.spec.ID)
		_ = d.mem.close()
	}
	return true
}

// hvm reports whether the domain runs on hardware virtualization.
func (d *Domain) hvm() bool { return d.spec.Type != xen.PV }

// emulation returns the flags by which Xen tells HVM from PVH.
func (d *Domain) emulation() uint32 {
	switch d.spec.Type {
	case xen.HVM:
		return 0x3ff // all but vPCI
	case xen.PVH:
		return abi.X86EmuLAPIC
	}
	return 0
}

// live returns the domain to operate on as Xen does for memory operations.
func (h *Hypervisor) live(id xen.DomID) (*Domain, error) {
	d := h.domains[id]
	if d == nil {
		return nil, unix.ESRCH
	}
	return d, nil
}
