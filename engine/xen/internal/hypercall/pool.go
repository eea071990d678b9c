package hypercall

import (
	"encoding/binary"
	"fmt"
	"math"
	"sync"
	"sync/atomic"
)

// MaxBuffer is the size of the largest buffer, in bytes: room for 7,000 frame
// numbers with an access each.
const MaxBuffer = 16 * PageSize

const (
	// slabPages is mapped at a time. It stays below the 64 pages that some
	// kernels allow per open of /dev/xen/hypercall.
	slabPages = 16
	// maxSlabs bounds a class: what is needed at one time is one buffer or
	// two per thread, so this is a bound on leaks, not on use.
	maxSlabs = 64
)

// A Slabber provides the pages a Pool is made of.
type Slabber interface {
	// MapSlab returns pages that stay where they are and stay present.
	MapSlab(pages int) ([]byte, error)
	// UnmapSlab releases them.
	UnmapSlab(mem []byte) error
	// AddressOf returns the address Xen would know the slab by.
	AddressOf(mem []byte) uint64
}

// Pool hands out hypercall buffers in two sizes, a page and MaxBuffer.
// Allocation and release take constant time and no lock, and do not touch
// Go's heap once the pool has grown to what is used. All methods are safe for
// concurrent use, except that Close must be last.
type Pool struct {
	src          Slabber
	small, large class

	mu     sync.Mutex // guards growth and closing
	slabs  [][]byte
	closed bool
}

// NewPool returns an empty pool over src.
func NewPool(src Slabber) *Pool {
	p := &Pool{src: src}
	p.small.init(p, PageSize, maxSlabs*slabPages)
	p.large.init(p, MaxBuffer, maxSlabs)
	return p
}

// Alloc returns a zeroed buffer of size bytes.
func (p *Pool) Alloc(size int) (*Buffer, error) {
	c := &p.small
	switch {
	case size < 0 || size > MaxBuffer:
		return nil, fmt.Errorf("%w: %d bytes", ErrTooBig, size)
	case size > PageSize:
		c = &p.large
	}
	b := c.pop()
	for b == nil {
		if err := p.grow(c); err != nil {
			return nil, err
		}
		b = c.pop()
	}
	if !b.inUse.CompareAndSwap(false, true) {
		panic("hypercall: a free buffer was in use")
	}
	b.data = b.mem[:size]
	clear(b.data)
	c.live.Add(1)
	return b, nil
}

// grow adds a slab to an empty class.
func (p *Pool) grow(c *class) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return ErrClosed
	}
	if uint32(c.head.Load()) != none {
		return nil // another goroutine was faster
	}
	if c.slabs == maxSlabs {
		return ErrExhausted
	}
	mem, err := p.src.MapSlab(slabPages)
	if err != nil {
		return fmt.Errorf("map hypercall buffers: %w", err)
	}
	p.slabs = append(p.slabs, mem)
	c.slabs++
	addr := p.src.AddressOf(mem)
	for off := 0; off < len(mem); off += c.size {
		c.add(mem[off:off+c.size:off+c.size], addr+uint64(off))
	}
	return nil
}

// Live returns the number of buffers in use.
func (p *Pool) Live() int { return int(p.small.live.Load() + p.large.live.Load()) }

// Close unmaps the pages. It fails, and keeps the pages, while buffers are in
// use: Xen could still write to them.
func (p *Pool) Close() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return nil
	}
	if n := p.Live(); n > 0 {
		return fmt.Errorf("%d hypercall buffers were not freed", n)
	}
	p.closed = true
	p.small.empty()
	p.large.empty()
	var first error
	for _, mem := range p.slabs {
		if err := p.src.UnmapSlab(mem); err != nil && first == nil {
			first = err
		}
	}
	p.slabs = nil
	return first
}

// Find returns the n bytes of the buffer in use at a guest handle. A fake
// hypervisor resolves handles by it, so that a handle to anything but a live
// buffer is noticed.
func (p *Pool) Find(addr uint64, n int) ([]byte, bool) {
	for _, c := range []*class{&p.small, &p.large} {
		for i := range c.buffers() {
			b := &c.all[i]
			off := addr - b.addr
			if addr >= b.addr && off < uint64(c.size) && b.inUse.Load() {
				if n < 0 || off+uint64(n) > uint64(len(b.data)) {
					return nil, false
				}
				return b.data[off : off+uint64(n)], true
			}
		}
	}
	return nil, false
}

// none is the index that ends the list of free buffers.
const none = math.MaxUint32

// class is the free list of one size: a stack linked by indices, its head
// carrying a count in the upper half that makes a stale head fail to compare.
type class struct {
	pool  *Pool
	size  int
	slabs int
	live  atomic.Int64
	head  atomic.Uint64
	n     atomic.Uint32 // buffers made, guarded for writing by Pool.mu
	all   []Buffer      // capacity fixed at the start, so pointers stay valid
}

func (c *class) init(p *Pool, size, limit int) {
	c.pool, c.size = p, size
	c.all = make([]Buffer, limit)
	c.head.Store(none)
}

func (c *class) buffers() []Buffer { return c.all[:c.n.Load()] }

func (c *class) add(mem []byte, addr uint64) {
	i := c.n.Load()
	b := &c.all[i]
	b.class, b.index, b.mem, b.addr = c, i, mem, addr
	c.n.Store(i + 1)
	c.push(b)
}

func (c *class) push(b *Buffer) {
	for {
		head := c.head.Load()
		b.next.Store(uint32(head))
		if c.head.CompareAndSwap(head, link(head, b.index)) {
			return
		}
	}
}

func (c *class) pop() *Buffer {
	for {
		head := c.head.Load()
		if uint32(head) == none {
			return nil
		}
		b := &c.all[uint32(head)]
		if c.head.CompareAndSwap(head, link(head, b.next.Load())) {
			return b
		}
	}
}

// link returns the head that follows head and points to index.
func link(head uint64, index uint32) uint64 { return (head>>32+1)<<32 | uint64(index) }

func (c *class) empty() { c.head.Store(none) }

// Buffer is memory that Xen can be pointed to. The numbers in it are
// little-endian. It is owned by whoever allocated it and must not be used
// after Free. A negative offset, which abi uses for a field that a release
// does not have, panics.
type Buffer struct {
	class *class
	index uint32
	next  atomic.Uint32
	inUse atomic.Bool
	mem   []byte
	data  []byte
	addr  uint64
}

// Addr returns the address to put into a guest handle.
func (b *Buffer) Addr() uint64 { return b.addr }

// Bytes returns the buffer's memory.
func (b *Buffer) Bytes() []byte { return b.data }

// Free returns the buffer to its pool. Freeing twice panics: the second owner
// would lose its data.
func (b *Buffer) Free() {
	if !b.inUse.CompareAndSwap(true, false) {
		panic("hypercall: buffer freed twice")
	}
	b.data = nil
	b.class.live.Add(-1)
	b.class.push(b)
}

// PutU8 stores v at off.
func (b *Buffer) PutU8(off int, v uint8) { b.data[off] = v }

// PutU16 stores v at off.
func (b *Buffer) PutU16(off int, v uint16) { binary.LittleEndian.PutUint16(b.data[off:], v) }

// PutU32 stores v at off.
func (b *Buffer) PutU32(off int, v uint32) { binary.LittleEndian.PutUint32(b.data[off:], v) }

// PutU64 stores v at off.
func (b *Buffer) PutU64(off int, v uint64) { binary.LittleEndian.PutUint64(b.data[off:], v) }

// PutBool stores 1 or 0 at off, one byte wide.
func (b *Buffer) PutBool(off int, v bool) {
	b.data[off] = 0
	if v {
		b.data[off] = 1
	}
}

// U8 loads from off.
func (b *Buffer) U8(off int) uint8 { return b.data[off] }

// U16 loads from off.
func (b *Buffer) U16(off int) uint16 { return binary.LittleEndian.Uint16(b.data[off:]) }

// U32 loads from off.
func (b *Buffer) U32(off int) uint32 { return binary.LittleEndian.Uint32(b.data[off:]) }

// U64 loads from off.
func (b *Buffer) U64(off int) uint64 { return binary.LittleEndian.Uint64(b.data[off:]) }
