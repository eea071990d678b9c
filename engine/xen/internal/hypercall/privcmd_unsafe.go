package hypercall

import (
	"errors"
	"io/fs"
	"os"
	"runtime"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/xen-hvi/hvi/engine/xen/abi"
)

// Paths of the devices, below a root that tests replace.
const (
	privcmdPath   = "dev/xen/privcmd"
	hypercallPath = "dev/xen/hypercall"
	evtchnPath    = "dev/xen/evtchn"
)

// privcmdHypercall is struct privcmd_hypercall.
type privcmdHypercall struct {
	op  uint64
	arg [5]uint64
}

// privcmdMmapBatchV2 is struct privcmd_mmapbatch_v2.
type privcmdMmapBatchV2 struct {
	num  uint32
	dom  uint16
	_    uint16
	addr unsafe.Pointer
	arr  *uint64
	err  *int32
}

// privcmdDMOp is struct privcmd_dm_op, privcmdDMOpBuf one of its buffers.
type (
	privcmdDMOp struct {
		dom   uint16
		num   uint16
		_     uint32
		ubufs *privcmdDMOpBuf
	}
	privcmdDMOpBuf struct {
		uptr unsafe.Pointer
		size uint64
	}
)

// Privcmd is the real Caller, over /dev/xen/privcmd.
type Privcmd struct {
	fd   int
	pool *Pool
	gate *Gate
}

var _ Caller = (*Privcmd)(nil)

// Open opens the privileged command device below root, which is "/" except in
// tests. Its error is an *fs.PathError.
func Open(root string) (*Privcmd, error) {
	path := root + privcmdPath
	fd, err := unix.Open(path, unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &fs.PathError{Op: "open", Path: path, Err: err}
	}
	return &Privcmd{fd: fd, pool: NewPool(&slabs{path: root + hypercallPath}), gate: NewGate()}, nil
}

// Hypercall implements Caller. A call that a signal interrupted is repeated;
// that is safe because Xen reports an interrupted operation only before it
// has begun or where it continues by itself. After Close it is EBADF.
func (p *Privcmd) Hypercall(op uint64, args [5]uint64) (int64, error) {
	if !p.gate.Enter() {
		return 0, unix.EBADF
	}
	defer p.gate.Leave()
	call := privcmdHypercall{op: op, arg: args}
	for {
		r, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(p.fd), abi.IoctlPrivcmdHypercall, uintptr(unsafe.Pointer(&call)))
		switch errno {
		case 0:
			return int64(r), nil
		case unix.EINTR:
		default:
			return 0, errno
		}
	}
}

// schedOpYield is SCHEDOP_yield of xen/include/public/sched.h, which takes no argument.
const schedOpYield = 0

// Yield implements Caller. The runtime is not told, as in ReadPorts: to the kernel this is
// a call that does not block, and to a thread it is as if Xen had taken the processor from
// it, which may happen at any instruction.
func (p *Privcmd) Yield() error {
	if !p.gate.Enter() {
		return unix.EBADF
	}
	defer p.gate.Leave()
	call := privcmdHypercall{op: abi.HypercallSchedOp, arg: [5]uint64{schedOpYield}}
	_, _, errno := unix.RawSyscall(unix.SYS_IOCTL, uintptr(p.fd), abi.IoctlPrivcmdHypercall, uintptr(unsafe.Pointer(&call)))
	if errno != 0 && errno != unix.EINTR {
		return errno
	}
	return nil
}

// DMOp implements Caller. The kernel pins the memory of these calls itself,
// which it does only for ordinary memory, so a copy is passed.
func (p *Privcmd) DMOp(dom uint16, op *Buffer) error {
	var mem [64]byte
	if len(op.data) > len(mem) {
		return unix.E2BIG
	}
	if !p.gate.Enter() {
		return unix.EBADF
	}
	defer p.gate.Leave()
	copy(mem[:], op.data)
	buf := privcmdDMOpBuf{uptr: unsafe.Pointer(&mem), size: uint64(len(op.data))}
	call := privcmdDMOp{dom: dom, num: 1, ubufs: &buf}
	for {
		_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(p.fd), abi.IoctlPrivcmdDMOp, uintptr(unsafe.Pointer(&call)))
		runtime.KeepAlive(&buf)
		runtime.KeepAlive(&mem)
		switch errno {
		case 0:
			copy(op.data, mem[:])
			return nil
		case unix.EINTR:
		default:
			return errno
		}
	}
}

// Alloc implements Caller.
func (p *Privcmd) Alloc(size int) (*Buffer, error) { return p.pool.Alloc(size) }

// pagedOutPatience bounds the wait for pages that Xen's pager has to bring
// back. Paging is a technical preview that few enable.
const pagedOutPatience = time.Second

// MapForeign implements Caller by IOCTL_PRIVCMD_MMAPBATCH_V2.
func (p *Privcmd) MapForeign(dom uint16, gfns []uint64, errs []int32, writable bool) ([]byte, error) {
	if len(gfns) == 0 || len(gfns) != len(errs) {
		return nil, unix.EINVAL
	}
	if !p.gate.Enter() {
		return nil, unix.EBADF
	}
	defer p.gate.Leave()
	prot := unix.PROT_READ
	if writable {
		prot |= unix.PROT_WRITE
	}
	mem, err := unix.Mmap(p.fd, 0, len(gfns)*PageSize, prot, unix.MAP_SHARED)
	if err != nil {
		return nil, err
	}
	errno := p.mapBatch(dom, mem, gfns, errs)
	var deadline time.Time // to read the clock can be a system call
	for errno == unix.ENOENT {
		if deadline.IsZero() {
			deadline = time.Now().Add(pagedOutPatience)
		}
		if !time.Now().Before(deadline) {
			break
		}
		time.Sleep(100 * time.Microsecond)
		errno = 0
		for i := range gfns {
			if errs[i] == -int32(unix.ENOENT) {
				if e := p.mapBatch(dom, mem[i*PageSize:(i+1)*PageSize], gfns[i:i+1], errs[i:i+1]); e != 0 {
					errno = e
				}
			}
		}
	}
	if errno != 0 && errno != unix.ENOENT {
		_ = unix.Munmap(mem)
		return nil, errno
	}
	return mem, nil
}

func (p *Privcmd) mapBatch(dom uint16, mem []byte, gfns []uint64, errs []int32) unix.Errno {
	// The kernel copies gfns and errs like any system call's data, so Go
	// memory is right for them; call escapes to the heap and keeps them.
	call := &privcmdMmapBatchV2{
		num: uint32(len(gfns)), dom: dom,
		addr: unsafe.Pointer(&mem[0]), arr: &gfns[0], err: &errs[0],
	}
	for {
		_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(p.fd), abi.IoctlPrivcmdMmapBatchV2, uintptr(unsafe.Pointer(call)))
		runtime.KeepAlive(call)
		if errno != unix.EINTR {
			return errno
		}
	}
}

// Unmap implements Caller.
func (p *Privcmd) Unmap(mem []byte) error { return unix.Munmap(mem) }

// Close implements Caller. It waits for calls under way.
func (p *Privcmd) Close() error {
	if !p.gate.Shut() {
		return nil
	}
	p.gate.Wait()
	return errors.Join(p.pool.Close(), unix.Close(p.fd))
}

// slabs maps the pages of hypercall buffers.
type slabs struct{ path string }

// MapSlab maps pages of the hypercall buffer device, or of locked memory
// where the kernel has no such device. The descriptor is closed at once: the
// mapping keeps what it needs, and the kernel's limit counts per descriptor.
func (s *slabs) MapSlab(pages int) ([]byte, error) {
	fd, err := unix.Open(s.path, unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		if errors.Is(err, os.ErrNotExist) || err == unix.ENXIO || err == unix.ENODEV {
			return s.mapLocked(pages)
		}
		return nil, &fs.PathError{Op: "open", Path: s.path, Err: err}
	}
	defer unix.Close(fd)
	mem, err := unix.Mmap(fd, 0, pages*PageSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return nil, &fs.PathError{Op: "mmap", Path: s.path, Err: err}
	}
	return mem, nil
}

// mapLocked maps anonymous memory that is present, is not swapped and is not
// made copy-on-write by a fork. The kernel may still move it, so a call can
// then and again fail with EFAULT; kernels old enough to lack the device have
// nothing better.
func (s *slabs) mapLocked(pages int) ([]byte, error) {
	mem, err := unix.Mmap(-1, 0, pages*PageSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANON|unix.MAP_LOCKED|unix.MAP_POPULATE)
	if err != nil {
		return nil, os.NewSyscallError("mmap of locked memory", err)
	}
	if err := unix.Madvise(mem, unix.MADV_DONTFORK); err != nil {
		_ = unix.Munmap(mem)
		return nil, os.NewSyscallError("madvise", err)
	}
	for off := 0; off < len(mem); off += PageSize {
		mem[off] = 0
	}
	return mem, nil
}

// UnmapSlab implements Slabber.
func (s *slabs) UnmapSlab(mem []byte) error { return unix.Munmap(mem) }

// AddressOf implements Slabber.
func (s *slabs) AddressOf(mem []byte) uint64 { return AddressOf(mem) }

// AddressOf returns the address of memory that Go's runtime does not manage.
func AddressOf(mem []byte) uint64 { return uint64(uintptr(unsafe.Pointer(unsafe.SliceData(mem)))) }
