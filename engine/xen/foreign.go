package xen

import (
	"fmt"
	"sync"
	"syscall"

	"github.com/xen-hvi/hvi/engine/x86"
	"github.com/xen-hvi/hvi/engine/xen/abi"
)

// Mapping is guest memory mapped into this process, page by page in the order
// asked for. It holds references on the pages until Close. What it shows
// changes while the guest runs: copy before parsing.
type Mapping struct {
	host *Host
	dom  DomID
	gfns []uint64
	errs []int32

	mu  sync.Mutex
	mem []byte
}

// MapForeign maps guest frames. Pages that cannot be mapped do not make it
// fail while others can: see Mapping.Err. If none can it fails with a
// *MapError.
func (h *Host) MapForeign(dom DomID, gfns []x86.GFN, writable bool) (*Mapping, error) {
	if h.closed.Load() {
		return nil, ErrClosed
	}
	raw := make([]uint64, len(gfns))
	for i, g := range gfns {
		raw[i] = uint64(g)
	}
	m := &Mapping{host: h, dom: dom, gfns: raw, errs: make([]int32, len(gfns))}
	mem, err := h.c.MapForeign(uint16(dom), raw, m.errs, writable)
	if err != nil {
		return nil, opError(h.release, "map", dom, err, fmt.Sprintf("%d frames", len(gfns)))
	}
	m.mem = mem
	for _, e := range m.errs {
		if e == 0 {
			return m, nil
		}
	}
	failed := m.FirstErr()
	if err := m.Close(); err != nil {
		return nil, err
	}
	return nil, failed
}

// Len returns the number of pages.
func (m *Mapping) Len() int { return len(m.errs) }

// Err returns why page i could not be mapped, a *MapError, or nil.
func (m *Mapping) Err(i int) error {
	if m.errs[i] == 0 {
		return nil
	}
	return &MapError{
		Domain: m.dom, Frames: []x86.GFN{x86.GFN(m.gfns[i])},
		Errnos: []syscall.Errno{syscall.Errno(-m.errs[i])}, Asked: 1,
	}
}

// FirstErr returns a *MapError that lists every page that could not be
// mapped, or nil if there is none.
func (m *Mapping) FirstErr() error {
	var e *MapError
	for i, errno := range m.errs {
		if errno == 0 {
			continue
		}
		if e == nil {
			e = &MapError{Domain: m.dom, Asked: len(m.errs)}
		}
		e.Frames = append(e.Frames, x86.GFN(m.gfns[i]))
		e.Errnos = append(e.Errnos, syscall.Errno(-errno))
	}
	if e == nil {
		return nil
	}
	return e
}

// Page returns page i, 4 KiB that are valid until Close, or why it could not
// be mapped. Writing to a page of a mapping that was not asked to be writable
// faults.
func (m *Mapping) Page(i int) ([]byte, error) {
	if err := m.Err(i); err != nil {
		return nil, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.mem == nil {
		return nil, ErrClosed
	}
	return m.mem[i*x86.PageSize : (i+1)*x86.PageSize : (i+1)*x86.PageSize], nil
}

// Close unmaps the pages. Slices that Page returned must not be touched
// afterwards. Closing again does nothing.
func (m *Mapping) Close() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.mem == nil {
		return nil
	}
	mem := m.mem
	m.mem = nil
	if err := m.host.c.Unmap(mem); err != nil {
		return opError(m.host.release, "unmap", m.dom, err, "")
	}
	return nil
}

// PageMapping is one page of a domain's, mapped writable. Keep that of the monitor
// ring until the ring is disabled: Xen holds its own reference, but the page leaves
// the guest's memory when the ring is set up and cannot be mapped again.
type PageMapping struct {
	m    *Mapping
	page []byte
}

// MapPage maps one frame writable. Which frame holds a domain's monitor ring
// says HVMParam with abi.HVMParamMonitorRingPFN.
func (h *Host) MapPage(dom DomID, gfn x86.GFN) (*PageMapping, error) {
	m, err := h.MapForeign(dom, []x86.GFN{gfn}, true)
	if err != nil {
		return nil, err
	}
	page, err := m.Page(0)
	if err != nil {
		return nil, err
	}
	return &PageMapping{m: m, page: page}, nil
}

// Bytes returns the page, valid until Close. Its other writer is Xen: indices
// are to be accessed atomically.
func (r *PageMapping) Bytes() []byte { return r.page }

// Close unmaps the page. The caller makes sure that no thread uses it.
func (r *PageMapping) Close() error { return r.m.Close() }

// RingFrame returns the frame that the domain's builder set aside for the
// monitor ring. It fails with an error that matches ErrNotSupported if there
// is none.
func (h *Host) RingFrame(dom DomID) (x86.GFN, error) {
	v, err := h.HVMParam(dom, abi.HVMParamMonitorRingPFN)
	if err != nil {
		return 0, err
	}
	if v == 0 {
		return 0, &NotSupportedError{Feature: "monitor ring", Needs: "a domain whose builder set a frame aside for it"}
	}
	return x86.GFN(v), nil
}
