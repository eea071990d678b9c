package linux

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	"github.com/xen-hvi/hvi/engine/guest"
	"github.com/xen-hvi/hvi/engine/guest/report"
	"github.com/xen-hvi/hvi/engine/printable"
	"github.com/xen-hvi/hvi/engine/x86"
)

// Reader reads what a running kernel keeps about itself: processes, modules,
// sockets, its log. The guest goes on meanwhile, so what is read is checked
// against itself and read again where it does not fit ([Reader.Retries]); what
// never fits is left out and said to be missing, and nothing is made up.
//
// A Reader belongs to one goroutine. It borrows the Kernel's memory and has
// nothing to release.
type Reader struct {
	k *Kernel
	// as is the kernel's own address space, with a cache of translations that
	// is emptied where a reading begins.
	as  guest.AddressSpace
	tlb *guest.TLB
	// cpus are the registers of each virtual processor when the reading began,
	// registers reads them anew and wait lets time pass, where the guest runs.
	cpus      []x86.Registers
	registers func() ([]x86.Registers, error)
	wait      func(time.Duration)

	retries    int
	waited     time.Duration // for what is read again, in this reading
	incomplete []string

	look

	// Memory of walks of all tasks, used again.
	tasks []Task
	task  object
	brief brief
}

// NewReader returns a reader of a kernel. regs are the registers of each
// virtual processor, by its number; without them what only they can tell is
// said to be missing.
func (k *Kernel) NewReader(regs []x86.Registers) *Reader {
	return k.NewReaderWith(guest.NewTLB(), regs)
}

// NewReaderWith is NewReader with a translation cache of the caller's, who has no other
// use for it as long as the reader is used. What it knows is forgotten.
func (k *Kernel) NewReaderWith(tlb *guest.TLB, regs []x86.Registers) *Reader {
	tlb.Flush()
	r := &Reader{k: k, tlb: tlb, cpus: regs}
	r.as = k.as.WithTLB(r.tlb)
	return r
}

// Follow says that the guest runs while it is read, and how the registers of its
// processors are read anew. Without it the memory and the registers are taken to
// be of one moment, as those of an image and of a guest that is paused are.
// [Reader.Check] looks again, after a while, at what is suspicious in a guest
// that runs: it may have been on its way in or out.
// The reading is given up when ctx ends: nothing is waited for any more then, and
// reading must fail by itself.
func (r *Reader) Follow(ctx context.Context, registers func() ([]x86.Registers, error)) {
	r.registers, r.wait = registers, func(d time.Duration) {
		select {
		case <-ctx.Done():
		case <-time.After(d):
		}
	}
}

// Kernel is the kernel that is read.
func (r *Reader) Kernel() *Kernel { return r.k }

// errTorn: a structure changed while it was read. The reading is repeated.
var errTorn = errors.New("changed while it was read")

// Bounds of reading again. A walk of all processes takes microseconds and the
// kernel's lists stand still for longer than that, so one repetition is rare
// and three are not seen; a guest that keeps its lists moving on purpose gets
// no more attention than this.
const maxRetries = 64

// Time between attempts, in a guest that runs. What is between two states stays
// so while its processor waits for a turn on a busy host, tens of milliseconds,
// and 64 attempts take one. After quickAttempts pauses grow, and all of a
// reading's together are no longer than readingPatience.
const (
	quickAttempts   = 8
	shortestPause   = 50 * time.Microsecond
	longestBreak    = 10 * time.Millisecond
	readingPatience = time.Second
)

// again is to be called before something is read again, with how often it has
// been read, and lets time pass if that is often.
func (r *Reader) again(attempts int) {
	r.retries++
	r.tlb.Flush()
	if r.wait == nil || attempts < quickAttempts || r.waited >= readingPatience {
		return
	}
	d := min(shortestPause<<min(attempts-quickAttempts, 16), longestBreak)
	r.waited += d
	r.wait(d)
}

// reading runs f, one report's reading, from a clean state and fills in how it
// went. Every method that makes a report begins with it.
func (r *Reader) reading(out *report.Reading, f func() error) error {
	r.retries, r.waited, r.incomplete = 0, 0, nil
	r.beginLook()
	start := time.Now()
	err := f()
	*out = report.Reading{Retries: r.retries, Incomplete: r.incomplete, Microseconds: time.Since(start).Microseconds()}
	return err
}

// consistently runs f until nothing changed under it. f must begin anew each
// time it is called. what is for the error, in the kernel's words.
func (r *Reader) consistently(what string, f func() error) error {
	noted := len(r.incomplete)
	r.tlb.Flush()
	for n := range maxRetries {
		r.incomplete = r.incomplete[:noted]
		err := f()
		if !errors.Is(err, errTorn) {
			return err
		}
		r.again(n + 1)
	}
	return tooOften(what, maxRetries)
}

func tooOften(what string, attempts int) error {
	return &ReadError{What: what, Got: fmt.Sprintf("a change in each of %d attempts", attempts), Err: ErrImplausible}
}

func tooMany(what string, most int) error {
	return &ReadError{What: what, Got: fmt.Sprintf("more than %d entries", most), Err: ErrImplausible}
}

// missing notes that something is not in the report.
func (r *Reader) missing(format string, args ...any) {
	const most = 16
	if len(r.incomplete) < most {
		r.incomplete = append(r.incomplete, fmt.Sprintf(format, args...))
	}
}

// variable returns the address of a variable of the kernel's image, or an
// error that names it. Of several names the first that there is counts.
func (r *Reader) variable(names ...string) (x86.VirtAddr, error) {
	for _, name := range names {
		if va, ok := r.k.Symbols.Lookup(name); ok && va >= r.k.Base && va < r.k.Symbols.end {
			return va, nil
		}
	}
	return 0, &ReadError{What: names[0], Err: ErrUnsupported}
}

// need returns an error unless the kernel has all members; the pairs are a
// member's name and its offset.
func need(pairs ...any) error {
	for i := 0; i < len(pairs); i += 2 {
		if pairs[i+1].(int) < 0 {
			return &ReadError{What: pairs[i].(string), Got: "no such member in this kernel's types", Err: ErrUnsupported}
		}
	}
	return nil
}

// object is a private copy of a structure, or of as much of it as was asked
// for. Reading beyond it, or at NoOffset, gives zero: who must tell that from a
// zero of the guest's asks need first.
type object struct {
	at x86.VirtAddr // where it was copied from
	b  []byte
}

// read copies n bytes of a structure into o, whose memory is used again.
// Pointers that no kernel has are an error before anything is read.
func (r *Reader) read(o *object, at x86.VirtAddr, n int) error {
	if !at.KernelHalf() || n <= 0 || n > maxStructure {
		return &ReadError{What: "a structure", Got: fmt.Sprintf("%d bytes at %v", n, at), Err: ErrImplausible}
	}
	if cap(o.b) < n {
		o.b = make([]byte, n)
	}
	o.at, o.b = at, o.b[:n]
	return r.as.Read(at, o.b)
}

func (o *object) has(off, n int) bool { return off >= 0 && n >= 0 && off <= len(o.b)-n }

func (o *object) u64(off int) uint64 {
	if !o.has(off, 8) {
		return 0
	}
	return binary.LittleEndian.Uint64(o.b[off:])
}

func (o *object) u32(off int) uint32 {
	if !o.has(off, 4) {
		return 0
	}
	return binary.LittleEndian.Uint32(o.b[off:])
}

func (o *object) u16(off int) uint16 {
	if !o.has(off, 2) {
		return 0
	}
	return binary.LittleEndian.Uint16(o.b[off:])
}

func (o *object) u8(off int) uint8 {
	if !o.has(off, 1) {
		return 0
	}
	return o.b[off]
}

func (o *object) pointer(off int) x86.VirtAddr { return x86.VirtAddr(o.u64(off)) }

// bits reads a bit field of up to 32 bits.
func (o *object) bits(f Bits) uint32 {
	if f.Offset < 0 || f.Width <= 0 || f.Width > 32 {
		return 0
	}
	var v uint64
	for i := 0; i < (f.Shift+f.Width+7)/8; i++ {
		v |= uint64(o.u8(f.Offset+i)) << (8 * i)
	}
	return uint32(v >> f.Shift & (1<<f.Width - 1))
}

// text is a string in an array of n bytes, up to its first NUL.
func (o *object) text(off, n int) report.Text {
	if !o.has(off, n) {
		return ""
	}
	b := o.b[off : off+n]
	if i := bytes.IndexByte(b, 0); i >= 0 {
		b = b[:i]
	}
	return printable.Escape(string(b))
}

// list walks a circular list of the kernel's (struct list_head) and calls f
// with the address of each node but the head. It is errTorn where a node does
// not point back to the one before, and where there are more than most: a list
// that was changed meanwhile, or one that a guest bent. f may return errStop.
func (r *Reader) list(what string, head x86.VirtAddr, most int, f func(node x86.VirtAddr) error) error {
	prev := head
	node, err := r.as.ReadPointer(head)
	if err != nil {
		return &ReadError{What: what, Err: err}
	}
	for n := 0; node != head; n++ {
		if n >= most {
			return tooMany(what, most)
		}
		if !node.KernelHalf() || node&7 != 0 {
			return errTorn
		}
		back, err := r.as.ReadPointer(node + 8)
		if err != nil || back != prev {
			return errTorn
		}
		if err := f(node); err != nil {
			if errors.Is(err, errStop) {
				return nil
			}
			return err
		}
		prev = node
		if node, err = r.as.ReadPointer(node); err != nil {
			return errTorn
		}
	}
	back, err := r.as.ReadPointer(head + 8)
	if err != nil || back != prev {
		return errTorn
	}
	return nil
}

// errStop ends a walk early.
var errStop = errors.New("enough")
