package xen

import (
	"encoding/binary"
	"errors"
	"fmt"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/xen-hvi/hvi/engine/x86"
)

// Frames are mapped some at a time, a chunk. What that and its undoing cost is nearly
// all for each frame: about 11,000 instructions in a paravirtualized dom0, which unmaps
// page by page.
const (
	// wideShift is of memory that is kept mapped, and scanned: 256 frames, or 1 MiB.
	wideShift = x86.PageShift + 8
	// narrowShift is of memory that is looked into once, here and there: 8 frames. A look
	// at the processes of a small guest reads 200 frames, in 80 chunks of this size, 68 of
	// twice as much, and 106 of half; one at all data of its kernel 2,000, in 270.
	narrowShift = x86.PageShift + 3
	// middleShift is of memory that is read in a row, once: 64 frames.
	middleShift = x86.PageShift + 6
	// maxChunkPages is what the larger has.
	maxChunkPages = 1 << (wideShift - x86.PageShift)

	// The window is a set-associative cache: an address can be in any of
	// ways slots of one set. 128 × 8 chunks of 1 MiB bound what is mapped of
	// one domain to 1 GiB of address space.
	sets = 128
	ways = 8

	// holePatience is how long a frame that could not be mapped is believed
	// not to be there. A guest can add memory at any time.
	holePatience = 250 * time.Millisecond

	// physBits is the width of a guest physical address that x86 allows.
	physBits = 52
)

// Memory reads a domain's physical memory through mappings that it makes when
// they are needed, in chunks of 1 MiB, and keeps, up to 1 GiB; or of less, and less (OpenMemoryFor).
//
// ReadPhys can be called by many goroutines at a time. A read of what is
// mapped takes no lock and does not allocate; other reads of the domain wait
// for one another while a chunk is mapped. Close and Invalidate can be called
// at any time.
//
// A mapping shows the machine page that was behind a frame when it was made.
// If the guest exchanges the page, by ballooning or a reset, reads go on
// showing the old one until Invalidate. A guest can do so on purpose: a guard
// that must not be deceived invalidates before it reads.
//
// Mapping a frame populates it in a domain that uses populate-on-demand
// (memory= below maxmem=); such domains should not be read before their
// balloon has come up.
type Memory struct {
	host *Host
	dom  DomID
	now  func() time.Time
	// shift is of a chunk's size in bytes.
	shift uint

	slots [sets][ways]atomic.Pointer[chunk]

	mu     sync.Mutex // guards what follows, and all changes of slots
	hand   [sets]uint8
	closed bool
	errs   []error // failures to unmap, for Close

	mapped  atomic.Int64
	maps    atomic.Uint64
	evicted atomic.Uint64
}

// chunk is one mapped range of frames. refs counts the slot it is in and the
// readers that copy from it; whoever drops the last reference unmaps it.
type chunk struct {
	owner *Memory
	index uint64
	mem   []byte // nil where no frame could be mapped
	errs  []int32
	holes bool
	since time.Time
	refs  atomic.Int32
	used  atomic.Bool
}

// ReadError is a read of guest physical memory that failed.
type ReadError struct {
	Domain DomID
	// Addr is the first address that could not be read.
	Addr x86.PhysAddr
	Err  error
}

// Error names the domain, the address and the reason.
func (e *ReadError) Error() string {
	return fmt.Sprintf("read domain %d at %v: %v", e.Domain, e.Addr, e.Err)
}

// Unwrap returns the reason.
func (e *ReadError) Unwrap() error { return e.Err }

// OpenMemory returns a reader of a domain's memory. It maps nothing yet and
// does not check that there is such a domain. Close it when the domain goes.
func (h *Host) OpenMemory(dom DomID) *Memory {
	return &Memory{host: h, dom: dom, now: time.Now, shift: wideShift}
}

// Reading is how a domain's memory is read for a while.
type Reading uint8

// Ways of reading.
const (
	// HereAndThere is a look at some structures: chunks of 32 KiB, up to 32 MiB.
	HereAndThere Reading = iota
	// InARow is a look at much that lies together: chunks of 256 KiB, up to 256 MiB.
	InARow
)

// OpenMemoryFor returns one for a while, after which it is closed: it maps less around
// what is read than OpenMemory does.
func (h *Host) OpenMemoryFor(dom DomID, how Reading) *Memory {
	m := &Memory{host: h, dom: dom, now: time.Now, shift: narrowShift}
	if how == InARow {
		m.shift = middleShift
	}
	return m
}

// chunkBytes is the size of a chunk.
func (m *Memory) chunkBytes() int { return 1 << m.shift }

// chunkPages is how many frames a chunk has.
func (m *Memory) chunkPages() int { return 1 << (m.shift - x86.PageShift) }

// ReadPhys copies guest physical memory at pa into buf. It fails with a
// *ReadError that matches ErrNoPage where the guest has no memory; buf then
// holds an unspecified part. Eight aligned bytes are read as one, so a
// page-table entry is never half old.
func (m *Memory) ReadPhys(pa x86.PhysAddr, buf []byte) error {
	for len(buf) > 0 {
		if pa>>physBits != 0 {
			return &ReadError{m.dom, pa, fmt.Errorf("%w: address of more than %d bits", ErrNoPage, physBits)}
		}
		off := int(pa) & (m.chunkBytes() - 1)
		n := min(len(buf), m.chunkBytes()-off)
		c, err := m.acquire(uint64(pa) >> m.shift)
		if err != nil {
			return &ReadError{m.dom, pa, err}
		}
		if c.holes {
			if bad, errno := c.firstHole(off, n); errno != 0 {
				retry := m.now().Sub(c.since) > holePatience
				c.release()
				if !retry {
					return &ReadError{m.dom, pa + x86.PhysAddr(bad-off), m.holeError(pa+x86.PhysAddr(bad-off), errno)}
				}
				m.forget(uint64(pa) >> m.shift)
				continue
			}
		}
		ok := copyGuarded(buf[:n], c.mem[off:off+n])
		c.release()
		if !ok {
			m.forget(uint64(pa) >> m.shift)
			return &ReadError{m.dom, pa, errFault}
		}
		pa += x86.PhysAddr(n)
		buf = buf[n:]
	}
	return nil
}

var errFault = errors.New("the mapping faulted")

func (m *Memory) holeError(pa x86.PhysAddr, errno syscall.Errno) error {
	return &MapError{Domain: m.dom, Frames: []x86.GFN{pa.GFN()}, Errnos: []syscall.Errno{errno}, Asked: 1}
}

// firstHole returns the offset of the first byte in a range that is not
// mapped, and why.
func (c *chunk) firstHole(off, n int) (int, syscall.Errno) {
	for p := off >> x86.PageShift; p <= (off+n-1)>>x86.PageShift; p++ {
		if e := c.errs[p]; e != 0 {
			return max(off, p<<x86.PageShift), syscall.Errno(-e)
		}
	}
	return 0, 0
}

// copyGuarded copies guest memory and reports whether it could be read. A
// fault would otherwise end the process.
func copyGuarded(dst, src []byte) (ok bool) {
	old := debug.SetPanicOnFault(true)
	defer func() {
		debug.SetPanicOnFault(old)
		if r := recover(); r != nil {
			if _, fault := r.(interface{ Addr() uintptr }); !fault {
				panic(r)
			}
			ok = false
		}
	}()
	copy(dst, src)
	return true
}

// acquire returns the chunk with a reference for the caller to release.
func (m *Memory) acquire(index uint64) (*chunk, error) {
	if c := m.lookup(index); c != nil {
		return c, nil
	}
	return m.mapChunk(index)
}

func (m *Memory) lookup(index uint64) *chunk {
	set := &m.slots[setOf(index)]
	for i := range set {
		if c := set[i].Load(); c != nil && c.index == index && c.tryRef() {
			if !c.used.Load() {
				c.used.Store(true)
			}
			return c
		}
	}
	return nil
}

// setOf spreads chunks that lie apart by a power of two, as the tables of a
// page walk often do.
func setOf(index uint64) uint64 { return (index * 0x9e3779b97f4a7c15) >> 57 % sets }

// tryRef takes a reference unless the chunk is being unmapped.
func (c *chunk) tryRef() bool {
	for {
		n := c.refs.Load()
		if n == 0 {
			return false
		}
		if c.refs.CompareAndSwap(n, n+1) {
			return true
		}
	}
}

func (c *chunk) release() {
	if c.refs.Add(-1) == 0 && c.mem != nil {
		m := c.owner
		m.mapped.Add(-int64(m.chunkBytes()))
		if err := m.host.c.Unmap(c.mem); err != nil {
			m.mu.Lock()
			m.errs = append(m.errs, m.host.fail("unmap", m.dom, err))
			m.mu.Unlock()
		}
	}
}

// mapChunk maps a chunk into its set, in place of one that was not used since
// the hand last passed it.
func (m *Memory) mapChunk(index uint64) (*chunk, error) {
	var out *chunk // released after the lock is
	defer func() {
		if out != nil {
			out.release()
		}
	}()
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.closed || m.host.closed.Load() {
		return nil, ErrClosed
	}
	if c := m.lookup(index); c != nil {
		return c, nil // another goroutine was faster
	}
	pages := m.chunkPages()
	c := &chunk{owner: m, index: index, errs: make([]int32, pages)}
	var all [maxChunkPages]uint64
	gfns := all[:pages]
	for i := range gfns {
		gfns[i] = index*uint64(pages) + uint64(i)
	}
	mem, err := m.host.c.MapForeign(uint16(m.dom), gfns, c.errs, false)
	if err != nil {
		return nil, opError(m.host.release, "map", m.dom, err, fmt.Sprintf("%d frames from %v", pages, x86.GFN(gfns[0])))
	}
	m.maps.Add(1)
	good := 0
	for _, e := range c.errs {
		if e == 0 {
			good++
		}
	}
	if c.holes = good < pages; c.holes {
		c.since = m.now()
	}
	if good == 0 {
		// Nothing to hold on to: what is kept is that there is nothing.
		if err := m.host.c.Unmap(mem); err != nil {
			return nil, m.host.fail("unmap", m.dom, err)
		}
	} else {
		c.mem = mem
		m.mapped.Add(int64(m.chunkBytes()))
	}
	c.refs.Store(2) // the slot and the caller
	set, s := &m.slots[setOf(index)], setOf(index)
	way := -1
	for i := range set {
		if set[i].Load() == nil {
			way = i
			break
		}
	}
	for n := 0; way < 0; n++ {
		i := int(m.hand[s]) % ways
		m.hand[s]++
		if old := set[i].Load(); !old.used.Swap(false) || n >= ways {
			way = i
			m.evicted.Add(1)
		}
	}
	out = set[way].Swap(c)
	return c, nil
}

// forget drops the chunk, which the next read maps anew.
func (m *Memory) forget(index uint64) {
	m.mu.Lock()
	var out *chunk
	set := &m.slots[setOf(index)]
	for i := range set {
		if c := set[i].Load(); c != nil && c.index == index {
			out = set[i].Swap(nil)
		}
	}
	m.mu.Unlock()
	if out != nil {
		out.release()
	}
}

// Invalidate makes later reads of n frames from first map them anew. Whole
// chunks are forgotten, so frames nearby are mapped anew too.
func (m *Memory) Invalidate(first x86.GFN, n uint64) {
	if n == 0 {
		return
	}
	lo := uint64(first) >> (m.shift - x86.PageShift)
	hi := (uint64(first) + n - 1) >> (m.shift - x86.PageShift)
	if uint64(first)+n-1 < uint64(first) || hi-lo >= sets*ways {
		m.drop(func(c *chunk) bool { return c.index >= lo && (c.index <= hi || hi < lo) })
		return
	}
	for i := lo; i <= hi; i++ {
		m.forget(i)
	}
}

// InvalidateAll makes all later reads map anew.
func (m *Memory) InvalidateAll() { m.drop(func(*chunk) bool { return true }) }

func (m *Memory) drop(which func(*chunk) bool) {
	var out []*chunk
	m.mu.Lock()
	for s := range m.slots {
		for w := range m.slots[s] {
			if c := m.slots[s][w].Load(); c != nil && which(c) {
				out = append(out, m.slots[s][w].Swap(nil))
			}
		}
	}
	m.mu.Unlock()
	for _, c := range out {
		c.release()
	}
}

// MemoryStats counts what a Memory does.
type MemoryStats struct {
	// MappedBytes is the address space mapped now.
	MappedBytes int64
	// Maps counts chunks mapped, Evictions those replaced by others.
	Maps, Evictions uint64
}

// Stats returns what the Memory has done so far.
func (m *Memory) Stats() MemoryStats {
	return MemoryStats{m.mapped.Load(), m.maps.Load(), m.evicted.Load()}
}

// Close unmaps everything; what a read that is under way still uses goes when
// it ends. Later reads fail with ErrClosed. Closing again does nothing.
func (m *Memory) Close() error {
	m.mu.Lock()
	if m.closed {
		m.mu.Unlock()
		return nil
	}
	m.closed = true
	m.mu.Unlock()
	m.InvalidateAll()
	m.mu.Lock()
	defer m.mu.Unlock()
	return errors.Join(m.errs...)
}

// Domain returns the domain whose memory this is.
func (m *Memory) Domain() DomID { return m.dom }

// ReadPhysUint64 returns the little-endian word at pa, which must be a multiple
// of 8. It fails as ReadPhys does. Walks of page tables use it: it spares them a
// buffer on the heap.
func (m *Memory) ReadPhysUint64(pa x86.PhysAddr) (uint64, error) {
	var b [8]byte
	err := m.ReadPhys(pa, b[:])
	return binary.LittleEndian.Uint64(b[:]), err
}
