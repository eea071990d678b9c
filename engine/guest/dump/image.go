package dump

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"reflect"
	"runtime/debug"
	"slices"
	"syscall"

	"github.com/xen-hvi/hvi/engine/guest"
	"github.com/xen-hvi/hvi/engine/x86"
)

// Format is how a file holds memory.
type Format string

// The formats that are read.
const (
	Raw     Format = "raw"
	LiME    Format = "LiME"
	ELFCore Format = "ELF core"
	XenCore Format = "Xen core"
)

// Image is an open memory image. It implements [guest.Memory],
// [guest.WordReader], [guest.DirectReader] and [guest.CPU].
type Image struct {
	path   string
	format Format
	data   []byte // the whole file, mapped
	layout
	main guest.Direct // the largest segment, where most reads go
}

// layout is what a file's headers say.
type layout struct {
	segments []segment // ascending, apart from each other
	regs     []x86.Registers
}

// segment is memory that is in one piece in the file.
type segment struct {
	start x86.PhysAddr
	size  uint64
	off   uint64 // of its first byte in the file
}

// Open opens a memory image and reads its headers. The error is an
// [*OpenError].
func Open(path string) (*Image, error) { return OpenAs(path, "") }

// OpenAs is Open for a file whose format is known: a raw image that begins as
// another kind of file does. "" tells it by the content.
func OpenAs(path string, as Format) (*Image, error) {
	fail := func(err error) (*Image, error) {
		if e, ok := err.(*OpenError); ok {
			e.Path = path
			return nil, e
		}
		if e, ok := err.(*os.PathError); ok {
			err = e.Err // Path is named already
		}
		out := &OpenError{Path: path, Err: err}
		if errors.Is(err, os.ErrPermission) {
			out.Hint = "a dump is readable for whoever wrote it, as a rule root"
		}
		return nil, out
	}
	// A pipe without a writer would block until there is one.
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return fail(err)
	}
	defer func() { _ = f.Close() }() // the mapping stays
	st, err := f.Stat()
	if err != nil {
		return fail(err)
	}
	if !st.Mode().IsRegular() {
		return fail(&OpenError{Err: ErrNotRegular, Hint: "name the file that a dump was written to"})
	}
	if st.Size() == 0 {
		return fail(&OpenError{Err: ErrEmpty, Hint: "nothing was written to it"})
	}
	conn, err := f.SyscallConn()
	if err != nil {
		return fail(err)
	}
	im := &Image{path: path}
	var mapErr error
	err = conn.Control(func(fd uintptr) {
		im.data, mapErr = syscall.Mmap(int(fd), 0, int(st.Size()), syscall.PROT_READ, syscall.MAP_SHARED)
	})
	if err == nil {
		err = mapErr
	}
	if err != nil {
		return fail(os.NewSyscallError("mmap", err))
	}
	err = im.Guard(func() error {
		var err error
		im.format, im.layout, err = parseAs(im.data, as)
		return err
	})
	if err != nil {
		_ = im.Close()
		return fail(err)
	}
	im.setMain()
	return im, nil
}

func (im *Image) setMain() {
	for _, s := range im.segments {
		if s.size > uint64(len(im.main.Data)) {
			im.main = guest.Direct{Start: s.start, Data: im.data[s.off : s.off+s.size]}
		}
	}
}

// Close unmaps the file. No read may be under way; later ones fail.
func (im *Image) Close() error {
	data := im.data
	im.data, im.layout, im.main = nil, layout{}, guest.Direct{}
	if data == nil {
		return nil
	}
	return syscall.Munmap(data)
}

// Path is what the image was opened as.
func (im *Image) Path() string { return im.path }

// Format is how the file holds memory.
func (im *Image) Format() Format { return im.format }

// Size is the amount of memory in the image, in bytes.
func (im *Image) Size() uint64 {
	n := uint64(0)
	for _, s := range im.segments {
		n += s.size
	}
	return n
}

// Ranges returns the ranges of physical memory in the image, ascending.
func (im *Image) Ranges() []guest.PhysRange {
	var out []guest.PhysRange
	for _, s := range im.segments {
		end := s.start + x86.PhysAddr(s.size)
		if n := len(out); n > 0 && out[n-1].End == s.start {
			out[n-1].End = end
		} else {
			out = append(out, guest.PhysRange{Start: s.start, End: end})
		}
	}
	return out
}

// VCPUs is the number of vCPUs whose registers the image has: 0 for raw and
// LiME.
func (im *Image) VCPUs() int { return len(im.regs) }

// Registers returns the registers of a vCPU. No format has all: an ELF core
// lacks EFER and what MSRs hold but GS bases (QEMU before 2.12: the second of
// those, too), a Xen core also the descriptor tables. What is lacking is zero.
func (im *Image) Registers(vcpu int) (x86.Registers, error) {
	if vcpu < 0 || vcpu >= len(im.regs) {
		return x86.Registers{}, fmt.Errorf("vCPU %d: memory image %s has registers of %d vCPUs", vcpu, im.path, len(im.regs))
	}
	return im.regs[vcpu], nil
}

// Direct implements [guest.DirectReader]: the largest segment. After Close it is
// empty.
func (im *Image) Direct() *guest.Direct { return &im.main }

// find returns the segment that holds an address.
func (l *layout) find(pa x86.PhysAddr) (segment, bool) {
	lo, hi := 0, len(l.segments)
	for lo < hi {
		mid := int(uint(lo+hi) / 2)
		if s := &l.segments[mid]; pa < s.start {
			hi = mid
		} else if uint64(pa-s.start) < s.size {
			return *s, true
		} else {
			lo = mid + 1
		}
	}
	return segment{}, false
}

// ReadPhys implements [guest.Memory]. A range not wholly in the image is a
// [*guest.RangeError].
func (im *Image) ReadPhys(pa x86.PhysAddr, buf []byte) error {
	if i, n := uint64(pa-im.main.Start), uint64(len(im.main.Data)); i < n && uint64(len(buf)) <= n-i {
		copy(buf, im.main.Data[i:])
		return nil
	}
	for done := 0; done < len(buf); {
		at := pa + x86.PhysAddr(done)
		s, ok := im.find(at)
		if !ok || at < pa {
			return im.outside(pa, len(buf))
		}
		i := uint64(at - s.start)
		done += copy(buf[done:], im.data[s.off+i:s.off+s.size])
	}
	return nil
}

// ReadPhysUint64 implements [guest.WordReader].
func (im *Image) ReadPhysUint64(pa x86.PhysAddr) (uint64, error) {
	if i, n := uint64(pa-im.main.Start), uint64(len(im.main.Data)); i < n && n-i >= 8 {
		return binary.LittleEndian.Uint64(im.main.Data[i:]), nil
	}
	return im.wordElsewhere(pa)
}

// wordElsewhere reads a word that isn't in the largest segment.
func (im *Image) wordElsewhere(pa x86.PhysAddr) (uint64, error) {
	var b [8]byte
	err := im.ReadPhys(pa, b[:])
	return binary.LittleEndian.Uint64(b[:]), err
}

func (im *Image) outside(pa x86.PhysAddr, n int) error {
	if im.data == nil {
		return fmt.Errorf("read memory image %s: %w", im.path, os.ErrClosed)
	}
	return &guest.RangeError{Phys: pa, Len: n, Size: im.Size()}
}

// Guard runs an operation that reads the image. If a part of the file is gone
// when it is read, the operation ends there and Guard returns a [*GoneError];
// without Guard the process would end. It costs as much as ten or twenty reads,
// so it goes around a whole operation. What the operation's goroutine holds at
// the fault is released by its deferred calls only; reads in goroutines that it
// starts aren't guarded.
func (im *Image) Guard(operation func() error) (err error) {
	data := im.data
	before := debug.SetPanicOnFault(true)
	defer func() {
		debug.SetPanicOnFault(before)
		r := recover()
		if r == nil {
			return
		}
		// A fault of another origin is a mistake in the program.
		fault, ok := r.(interface{ Addr() uintptr })
		if ok && len(data) > 0 {
			if off := fault.Addr() - reflect.ValueOf(data).Pointer(); off < uintptr(len(data)+os.Getpagesize()) {
				err = &GoneError{Path: im.path, Offset: uint64(off)}
				return
			}
		}
		panic(r)
	}()
	return operation()
}

// add appends a segment. The parsers have checked that it is in the file.
func (l *layout) add(start, size, off uint64) {
	if size == 0 {
		return
	}
	if n := len(l.segments); n > 0 {
		last := &l.segments[n-1]
		if uint64(last.start)+last.size == start && last.off+last.size == off {
			last.size += size
			return
		}
	}
	l.segments = append(l.segments, segment{x86.PhysAddr(start), size, off})
}

// arrange puts the segments in order. Where two hold the same memory, as QEMU
// writes it with paging=true, the one that begins first has it.
func (l *layout) arrange() {
	slices.SortStableFunc(l.segments, func(a, b segment) int {
		switch {
		case a.start < b.start:
			return -1
		case a.start > b.start:
			return 1
		}
		return 0
	})
	out, end := l.segments[:0], uint64(0)
	for _, s := range l.segments {
		if over := end - uint64(s.start); uint64(s.start) < end {
			if over >= s.size {
				continue
			}
			s = segment{s.start + x86.PhysAddr(over), s.size - over, s.off + over}
		}
		end = uint64(s.start) + s.size
		out = append(out, s)
	}
	l.segments = out
}
