package engine

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/xen-hvi/hvi/engine/guest"
	"github.com/xen-hvi/hvi/engine/guest/linux"
	"github.com/xen-hvi/hvi/engine/inspect"
	"github.com/xen-hvi/hvi/engine/x86"
	"github.com/xen-hvi/hvi/engine/xen"
)

// maxReaders bounds how many guests are looked into at once: each may take a
// processor of the control domain for a second, and some memory.
const maxReaders = 4

// maxVCPUs bounds for how many virtual processors registers are asked for: Xen
// allows an HVM domain 128 up to 4.20.
const maxVCPUs = 4096

// Errors of looking into a guest, beside those of reading it.
var (
	// ErrPVGuest: a PV guest's memory can't be read as a processor reads it.
	ErrPVGuest = errors.New("the domain is a PV guest")
	// ErrControlDomain: the domain is the one that hvid runs in.
	ErrControlDomain = errors.New("the domain is the control domain")
	// ErrNoKernelYet: no kernel has set up its system calls.
	ErrNoKernelYet = errors.New("the guest's kernel is not up yet")
	// ErrManyReaders: maxReaders guests are looked into already.
	ErrManyReaders = errors.New("too many guests are looked into at once")
)

// Ask answers a question about the guest of a running domain, protected or not.
// It reads registers and memory and changes nothing; the domain is not paused.
// The errors are the ones above, the question's, those of package linux, one
// that matches [xen.ErrNoDomain], and ctx's.
func (e *Engine) Ask(ctx context.Context, id xen.DomID, q inspect.Question, args inspect.Args) (answer any, err error) {
	if err := q.Accepts(args); err != nil {
		return nil, err
	}
	err = e.Look(ctx, id, func(r *linux.Reader) error {
		var err error
		answer, err = q.Ask(r, args)
		return err
	})
	return answer, err
}

// Look calls f with a reader of a running domain's kernel, which is valid until
// f returns. When ctx ends or the domain goes, all reading fails, so that f ends
// soon; nothing of the domain's memory stays mapped afterwards.
func (e *Engine) Look(ctx context.Context, id xen.DomID, f func(*linux.Reader) error) error {
	d := e.byID(id)
	if d == nil {
		return fmt.Errorf("domain %d: %w", id, xen.ErrNoDomain)
	}
	select {
	case e.readers <- struct{}{}:
		defer func() { <-e.readers }()
	case <-ctx.Done():
		return fmt.Errorf("%w: %w", ErrManyReaders, ctx.Err())
	}
	info, err := e.opt.Hypervisor.Domain(id)
	switch {
	case err != nil:
		return err
	case info.Dying || info.UUID != d.info.UUID:
		return fmt.Errorf("domain %d: %w", id, xen.ErrNoDomain)
	case id == 0:
		return ErrControlDomain
	case info.Type == xen.PV:
		return ErrPVGuest
	}
	// Opened for this reading alone: the guest may have exchanged pages since the
	// last one, and a mapping that is kept would show the old ones.
	mem := newReading(ctx, d.left, e.opt.Hypervisor.OpenMemory(id))
	k, regs, err := e.find(d, info, mem)
	if err == nil {
		r := k.NewReader(regs)
		r.Follow(ctx, func() ([]x86.Registers, error) { return registers(e.opt.Hypervisor, info) })
		err = f(r)
	}
	closeErr := mem.Close()
	// A reader may have left out what it could not read any more.
	if why := mem.stopped(); why != nil {
		err = why
	}
	return errors.Join(err, closeErr)
}

// registers are those of each virtual processor. One that is not up has none.
func registers(hv Hypervisor, info xen.DomainInfo) ([]x86.Registers, error) {
	regs := make([]x86.Registers, min(max(info.VCPUs, 1), maxVCPUs))
	for i := range regs {
		r, err := hv.Registers(info.ID, i)
		if i == 0 && errors.Is(err, xen.ErrVCPUOffline) {
			return nil, fmt.Errorf("%w: %w", ErrNoKernelYet, err)
		}
		if err != nil && i == 0 {
			return nil, err
		}
		regs[i] = r
	}
	return regs, nil
}

// maxFinds bounds how often a kernel is looked for: a vCPU's registers lead to
// the page tables of a process that may have ended before they are followed.
const maxFinds = 3

// find returns the domain's kernel and the registers that led to it: the one its
// session protects, the one found by an earlier reading, or what is found now.
func (e *Engine) find(d *domain, info xen.DomainInfo, mem guest.Memory) (k *linux.Kernel, regs []x86.Registers, err error) {
	for try := 1; ; try++ {
		if regs, err = registers(e.opt.Hypervisor, info); err != nil {
			return nil, nil, err
		}
		known := d.knownKernels()
		for _, k := range known {
			if k := k.Over(mem); k.RunsOn(&regs[0]) {
				return k, regs, nil
			}
		}
		if len(known) > 0 && try < maxFinds {
			continue
		}
		if !x86.VirtAddr(regs[0].LSTAR).KernelHalf() {
			return nil, nil, ErrNoKernelYet
		}
		k, err = linux.IdentifyWith(mem, regs[0], e.opt.Identify)
		var not *linux.IdentifyError
		switch {
		case err == nil:
			d.kernel.Store(k)
			return k, regs, nil
		case !errors.As(err, &not) || try >= maxFinds:
			return nil, nil, err
		}
	}
}

// knownKernels are those that were found in the domain before.
func (d *domain) knownKernels() (known []*linux.Kernel) {
	if s := d.current(); s != nil {
		if k := s.kernelRef.Load(); k != nil {
			known = append(known, k)
		}
	}
	if k := d.kernel.Load(); k != nil {
		known = append(known, k)
	}
	return known
}

// reading is a domain's memory while somebody looks into it: reads fail when ctx
// has ended or the domain has left.
type reading struct {
	GuestMemory
	words guest.WordReader // of GuestMemory, or nil
	ctx   context.Context
	left  <-chan struct{}
}

func newReading(ctx context.Context, left <-chan struct{}, mem GuestMemory) *reading {
	words, _ := mem.(guest.WordReader)
	return &reading{GuestMemory: mem, words: words, ctx: ctx, left: left}
}

// stopped is why reads fail, or nil.
func (r *reading) stopped() error {
	select {
	case <-r.left:
		return fmt.Errorf("the domain has gone: %w", xen.ErrNoDomain)
	default:
		return r.ctx.Err()
	}
}

// ReadPhys reads as the memory below does.
func (r *reading) ReadPhys(pa x86.PhysAddr, buf []byte) error {
	if why := r.stopped(); why != nil {
		return why
	}
	return r.GuestMemory.ReadPhys(pa, buf)
}

// ReadPhysUint64 reads as the memory below does.
func (r *reading) ReadPhysUint64(pa x86.PhysAddr) (uint64, error) {
	if why := r.stopped(); why != nil {
		return 0, why
	}
	if r.words != nil {
		return r.words.ReadPhysUint64(pa)
	}
	var b [8]byte
	err := r.GuestMemory.ReadPhys(pa, b[:])
	return binary.LittleEndian.Uint64(b[:]), err
}
