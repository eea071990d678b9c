package xentest

import (
	"fmt"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/xen-hvi/hvi/engine/x86"
)

// memory is a domain's memory: pages of a file that has no name, so that a
// page can be mapped anywhere, several times, and stays what it is when the
// guest frame it was behind gets another.
type memory struct {
	fd     int
	frames map[uint64]int64 // guest frame to page of the file
	pages  int64
	max    uint64
}

func newMemory() (*memory, error) {
	fd, err := unix.MemfdCreate("xentest", unix.MFD_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("memfd_create: %w", err)
	}
	return &memory{fd: fd, frames: map[uint64]int64{}}, nil
}

func (m *memory) close() error { return unix.Close(m.fd) }

// populate puts a new page behind a frame.
func (m *memory) populate(gfn uint64) {
	m.frames[gfn] = m.pages
	m.pages++
	m.max = max(m.max, gfn)
	// Growing the file in steps keeps a big domain cheap.
	if m.pages&(m.pages-1) == 0 || m.pages%256 == 1 {
		m.grow()
	}
}

func (m *memory) grow() {
	want := (m.pages + 256) * x86.PageSize
	if err := unix.Ftruncate(m.fd, want); err != nil {
		panic(fmt.Sprintf("xentest: ftruncate: %v", err))
	}
}

func (m *memory) remove(gfn uint64) bool {
	_, ok := m.frames[gfn]
	delete(m.frames, gfn)
	return ok
}

// copy moves bytes between guest memory and buf.
func (m *memory) copy(pa x86.PhysAddr, buf []byte, write bool) {
	for len(buf) > 0 {
		page, ok := m.frames[uint64(pa.GFN())]
		if !ok {
			panic(fmt.Sprintf("xentest: no guest memory at %v", pa))
		}
		n := min(len(buf), x86.PageSize-int(pa.Offset()))
		off := page*x86.PageSize + int64(pa.Offset())
		var err error
		if write {
			_, err = unix.Pwrite(m.fd, buf[:n], off)
		} else {
			_, err = unix.Pread(m.fd, buf[:n], off)
		}
		if err != nil {
			panic(fmt.Sprintf("xentest: guest memory: %v", err))
		}
		buf = buf[n:]
		pa += x86.PhysAddr(n)
	}
}

// reserve returns n pages that cannot be touched.
func reserve(n int) ([]byte, error) {
	return unix.Mmap(-1, 0, n*x86.PageSize, unix.PROT_NONE, unix.MAP_PRIVATE|unix.MAP_ANON)
}

// mapFrames maps frames in order and returns how many of them it could map.
func (m *memory) mapFrames(gfns []uint64, errs []int32, writable, none bool) ([]byte, int, error) {
	mem, err := reserve(len(gfns))
	if err != nil {
		return nil, 0, err
	}
	prot := unix.PROT_READ
	if writable {
		prot |= unix.PROT_WRITE
	}
	good := 0
	for i := 0; i < len(gfns); {
		page, ok := m.frames[gfns[i]]
		if !ok || none {
			errs[i] = -int32(unix.EINVAL)
			i++
			continue
		}
		// Pages that follow one another in the file are mapped together.
		n := 1
		for i+n < len(gfns) {
			next, ok := m.frames[gfns[i+n]]
			if !ok || next != page+int64(n) {
				break
			}
			n++
		}
		if _, err := unix.MmapPtr(m.fd, page*x86.PageSize, unsafe.Pointer(&mem[i*x86.PageSize]),
			uintptr(n*x86.PageSize), prot, unix.MAP_SHARED|unix.MAP_FIXED); err != nil {
			_ = unix.Munmap(mem)
			return nil, 0, err
		}
		for k := range n {
			errs[i+k] = 0
		}
		good += n
		i += n
	}
	return mem, good, nil
}

// mapPage maps one page for the hypervisor itself.
func (m *memory) mapPage(gfn uint64) ([]byte, error) {
	page, ok := m.frames[gfn]
	if !ok {
		return nil, unix.EINVAL
	}
	return unix.Mmap(m.fd, page*x86.PageSize, x86.PageSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
}

// index returns a ring index to access atomically.
func index(page []byte, off int) *atomic.Uint32 {
	return (*atomic.Uint32)(unsafe.Pointer(&page[off]))
}
