package xentest

import (
	"fmt"
	"runtime"
	"slices"
	"sort"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"github.com/xen-hvi/hvi/engine/xen"
	"github.com/xen-hvi/hvi/engine/xen/abi"
	"github.com/xen-hvi/hvi/engine/xen/internal/hypercall"
)

// Config says what machine to fake. The zero value is Xen 4.17.5 on Intel,
// with vm_event, without altp2m.
type Config struct {
	// Release is what Xen reports. Zero means 4.17.5.
	Release xen.Release
	// CommandLine is Xen's.
	CommandLine string
	// AMD makes the machine lack what only Intel has: access restriction,
	// altp2m, single-stepping.
	AMD bool
	// AltP2M enables altp2m, as altp2m=1 on the command line does.
	AltP2M bool
	// NoVMEvent is a Xen built without CONFIG_VM_EVENT.
	NoVMEvent bool
	// Unprivileged is a machine seen from a domain other than dom0.
	Unprivileged bool
	// NoMulticall is a machine that takes no calls in bulk.
	NoMulticall bool
	// OtherInterface makes Xen speak another version of its interfaces than
	// its release does, as development builds do.
	OtherInterface bool
	// FreePages is the memory that is left for domains. Zero means plenty.
	FreePages uint64
}

// Hypervisor is a fake Xen. It has dom0, a PV domain.
type Hypervisor struct {
	cfg    Config
	yields atomic.Uint64
	layout *abi.Layout

	mu       sync.Mutex
	domains  map[xen.DomID]*Domain
	free     uint64
	log      []string
	failures map[string][]unix.Errno
	hosts    []*caller
	nextPort uint32
	// fate is what was ordained for a domain, nil for nothing.
	fate *fate
	// calling is who makes the call under way.
	calling *caller
}

// New returns a fake of the machine. It panics for a release that the abi
// package does not have: for those, see NewUnknown.
func New(cfg Config) *Hypervisor {
	if cfg.Release == (xen.Release{}) {
		cfg.Release = xen.Release{Major: 4, Minor: 17, Extra: ".5"}
	}
	l, err := abi.For(cfg.Release.Major, cfg.Release.Minor)
	if err != nil {
		panic(err)
	}
	return newHypervisor(cfg, l)
}

// NewUnknown returns a fake that reports any release. It answers xen_version
// and nothing else.
func NewUnknown(r xen.Release) *Hypervisor {
	return newHypervisor(Config{Release: r}, nil)
}

func newHypervisor(cfg Config, l *abi.Layout) *Hypervisor {
	h := &Hypervisor{
		cfg: cfg, layout: l,
		domains:  map[xen.DomID]*Domain{},
		free:     cfg.FreePages,
		failures: map[string][]unix.Errno{},
		nextPort: 10,
	}
	if h.free == 0 {
		h.free = 1 << 20
	}
	h.AddDomain(Spec{ID: 0, Type: xen.PV, VCPUs: 1, Pages: 16})
	return h
}

// Host opens the fake as a process would open Xen.
func (h *Hypervisor) Host() (*xen.Host, error) {
	c := newCaller(h)
	h.mu.Lock()
	h.hosts = append(h.hosts, c)
	h.mu.Unlock()
	host, err := xen.OpenWith(c, binder{h, c})
	if err != nil {
		if e := c.Close(); e != nil {
			return nil, e
		}
	}
	return host, err
}

// LiveBuffers returns how many hypercall buffers are in use in all hosts. In
// a test that has ended all calls, anything but 0 is a leak.
func (h *Hypervisor) LiveBuffers() int {
	h.mu.Lock()
	defer h.mu.Unlock()
	n := 0
	for _, c := range h.hosts {
		n += c.pool.Live()
	}
	return n
}

// FailNext makes the next call of the given name fail. Names are those of
// xen.OpError.Op, the monitored event left out: "monitor_op(enable)". Several
// failures of one name follow one another; 0 lets a call pass.
func (h *Hypervisor) FailNext(op string, errno unix.Errno) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.failures[op] = append(h.failures[op], errno)
}

// Log returns the calls that were made, in order, as in
// "domctl(pausedomain) 5", and forgets them.
func (h *Hypervisor) Log() []string {
	h.mu.Lock()
	defer h.mu.Unlock()
	log := h.log
	h.log = nil
	return log
}

// begin notes a call and returns what FailNext says about it.
func (h *Hypervisor) begin(op string, dom xen.DomID) error {
	if dom == xen.NoDomain {
		h.log = append(h.log, op)
	} else {
		h.log = append(h.log, fmt.Sprintf("%s %d", op, dom))
	}
	if dom != xen.NoDomain {
		h.meet()
	}
	if h.calling != nil {
		if err := h.calling.death.called(op); err != nil {
			return err
		}
	}
	if f := h.failures[op]; len(f) > 0 {
		h.failures[op] = f[1:]
		if f[0] != 0 {
			return f[0]
		}
	}
	return nil
}

// Domain returns a domain that was added and not destroyed, or nil.
func (h *Hypervisor) Domain(id xen.DomID) *Domain {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.domains[id]
}

// ids returns the numbers of all domains, in order.
func (h *Hypervisor) ids() []xen.DomID {
	ids := make([]xen.DomID, 0, len(h.domains))
	for id := range h.domains {
		ids = append(ids, id)
	}
	sort.Slice(ids, func(i, j int) bool { return ids[i] < ids[j] })
	return ids
}

// Close releases the memory of all domains.
func (h *Hypervisor) Close() error {
	h.mu.Lock()
	defer h.mu.Unlock()
	var first error
	for _, id := range h.ids() {
		if err := h.domains[id].mem.close(); err != nil && first == nil {
			first = err
		}
	}
	clear(h.domains)
	return first
}

// caller is one process's access to the fake. It implements
// hypercall.Caller.
type caller struct {
	h    *Hypervisor
	pool *hypercall.Pool
	// death is its, if that is arranged.
	death *death

	mu   sync.Mutex
	maps map[*byte]mapped
}

// mapped is what MapForeign gave out.
type mapped struct {
	d *Domain
	n int
}

var _ hypercall.Caller = (*caller)(nil)

func newCaller(h *Hypervisor) *caller {
	return &caller{h: h, pool: hypercall.NewPool(slabs{}), maps: map[*byte]mapped{}}
}

// slabs backs hypercall buffers with Go's memory, which does not move and
// which nobody but the fake looks into.
type slabs struct{}

func (slabs) MapSlab(pages int) ([]byte, error) { return make([]byte, pages*hypercall.PageSize), nil }
func (slabs) UnmapSlab([]byte) error            { return nil }
func (slabs) AddressOf(mem []byte) uint64       { return hypercall.AddressOf(mem) }

// Alloc implements hypercall.Caller.
func (c *caller) Alloc(size int) (*hypercall.Buffer, error) { return c.pool.Alloc(size) }

// Close implements hypercall.Caller.
func (c *caller) Close() error { return c.pool.Close() }

// MapForeign implements hypercall.Caller.
func (c *caller) MapForeign(dom uint16, gfns []uint64, errs []int32, writable bool) ([]byte, error) {
	c.h.mu.Lock()
	defer c.h.mu.Unlock()
	c.h.by(c)
	if err := c.h.begin("map", xen.DomID(dom)); err != nil {
		return nil, err
	}
	d := c.h.domains[xen.DomID(dom)]
	if d == nil {
		// Linux reports what Xen says per page.
		for i := range errs {
			errs[i] = -int32(unix.ESRCH)
		}
		return reserve(len(gfns))
	}
	mem, n, err := d.mem.mapFrames(gfns, errs, writable, d.state != alive)
	if err != nil {
		return nil, err
	}
	d.mappedPages += n
	c.mu.Lock()
	c.maps[&mem[0]] = mapped{d, n}
	c.mu.Unlock()
	return mem, nil
}

// Unmap implements hypercall.Caller.
func (c *caller) Unmap(mem []byte) error {
	c.mu.Lock()
	m, ok := c.maps[&mem[0]]
	delete(c.maps, &mem[0])
	c.mu.Unlock()
	if ok {
		c.h.mu.Lock()
		m.d.mappedPages -= m.n
		c.h.mu.Unlock()
	}
	return unix.Munmap(mem)
}

// DMOp implements hypercall.Caller.
func (c *caller) DMOp(dom uint16, op *hypercall.Buffer) error {
	c.h.mu.Lock()
	defer c.h.mu.Unlock()
	c.h.by(c)
	return c.h.dmOp(xen.DomID(dom), handle{c, op.Bytes()})
}

// Yield implements hypercall.Caller.
func (c *caller) Yield() error {
	c.h.yields.Add(1)
	runtime.Gosched()
	return nil
}

// Hypercall implements hypercall.Caller.
func (c *caller) Hypercall(op uint64, a [5]uint64) (int64, error) {
	c.h.mu.Lock()
	defer c.h.mu.Unlock()
	h := c.h
	h.by(c)
	defer c.die()
	if op == abi.HypercallXenVersion {
		return h.xenVersion(c, a)
	}
	if h.layout == nil {
		return 0, unix.ENOSYS
	}
	return h.call(c, op, a)
}

// call carries out one call that any release has.
func (h *Hypervisor) call(c *caller, op uint64, a [5]uint64) (int64, error) {
	switch op {
	case abi.HypercallMulticall:
		return 0, h.multicall(c, a[0], a[1])
	case abi.HypercallDomctl:
		return 0, h.domctl(c, a[0])
	case abi.HypercallSysctl:
		return 0, h.sysctl(c, a[0])
	case abi.HypercallMemoryOp:
		return h.memoryOp(c, a[0], a[1])
	case abi.HypercallHVMOp:
		return 0, h.hvmOp(c, a[0], a[1])
	}
	return 0, unix.ENOSYS
}

// handle is a structure that a guest handle points to.
type handle struct {
	c *caller
	b []byte
}

// at resolves a guest handle. Anything but a live hypercall buffer is EFAULT.
func (c *caller) at(addr uint64, n int) (handle, error) {
	b, ok := c.pool.Find(addr, n)
	if !ok {
		return handle{}, unix.EFAULT
	}
	return handle{c, b}, nil
}

func (h handle) u8(off int) uint8         { return h.b[off] }
func (h handle) u16(off int) uint16       { return uint16(le(h.b[off:], 2)) }
func (h handle) u32(off int) uint32       { return uint32(le(h.b[off:], 4)) }
func (h handle) u64(off int) uint64       { return le(h.b[off:], 8) }
func (h handle) put(off, n int, v uint64) { putLE(h.b[off:], n, v) }

// le reads an n-byte number. The fake does not use the accessors of the code
// it tests.
func le(b []byte, n int) (v uint64) {
	for i := n - 1; i >= 0; i-- {
		v = v<<8 | uint64(b[i])
	}
	return v
}

func putLE(b []byte, n int, v uint64) {
	for i := range n {
		b[i] = byte(v >> (8 * i))
	}
}

// zero reports whether bytes that must be zero are.
func zero(b []byte) bool { return !slices.ContainsFunc(b, func(c byte) bool { return c != 0 }) }

// Yields returns how often a processor was given to others.
func (h *Hypervisor) Yields() uint64 { return h.yields.Load() }
