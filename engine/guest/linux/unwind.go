package linux

import (
	"encoding/binary"
	"errors"

	"github.com/xen-hvi/hvi/engine/x86"
)

// OrcOffsets lays out struct orc_entry, which says for a stretch of code how to come
// from one of its frames to the one before. Its types changed their numbers when
// its member end went (6.4).
type OrcOffsets struct {
	Size     int
	SPOffset int  `c:"sp_offset"`
	BPOffset int  `c:"bp_offset"`
	SPReg    Bits `c:"sp_reg"`
	BPReg    Bits `c:"bp_reg"`
	Type     Bits `c:"type"`
	End      Bits `c:"end"`
}

// orcNumbers are the numbers of the registers that a frame's place is told from, which
// were changed once. The other registers are for where the kernel changes its stack, and
// end the unwinding.
type orcNumbers struct{ sp, bp, prevSP uint32 }

var (
	// orcNumbersOld are ORC_REG_* of arch/x86/include/asm/orc_types.h, orcNumbersNew
	// those that a Debian 7.2 has.
	orcNumbersOld = orcNumbers{sp: 5, bp: 4, prevSP: 1}
	orcNumbersNew = orcNumbers{sp: 3, bp: 4, prevSP: 8}
)

// orcUndefined is none of them.
const orcUndefined = 0

// orcSamples is how many entries are looked at to tell which numbers a kernel has: in
// nearly all of them the frame is found from the stack pointer, and in hardly any from
// the register that has its number in the other ones.
const orcSamples = 64

// What a frame is.
type orcType uint8

const (
	orcUnknown orcType = iota
	orcEnd             // the first of its stack
	orcCall            // of a function
	orcRegs            // struct pt_regs
	orcIRet            // the end of one, as the processor pushes it
)

// Where struct pt_regs has RBP, beside what caller.go reads of it, and the frame that the
// processor pushes, which begins with RIP, the rest.
const (
	regsBP = 4 * 8
	iretCS = regsCS - regsIP
	iretSP = regsSP - regsIP
)

// orcEntry is one stretch's.
type orcEntry struct {
	kind               orcType
	spReg, bpReg       uint32
	spOffset, bpOffset int16
}

// errUnwind: there is no way on.
var errUnwind = errors.New("the stack can't be unwound any further")

// maxOrc bounds the entries of a kernel: Debian's have 700,000.
const maxOrc = 1 << 23

// Unwind returns where the calls that are under way return to, the innermost first and
// most of them at most, by the kernel's own tables for that (ORC). stack is what lay at
// regs.RSP. It stops where these bytes end, at code without a table, and where the kernel
// changes its stack; rest is then what of the stack lies beyond the calls that it returns.
// whole says that the outermost call was reached, so that there are no more. All of it is
// what the guest says; it ends in any case.
func (k *Kernel) Unwind(regs *x86.Registers, stack []byte, most int) (calls []x86.VirtAddr, rest []byte, whole bool) {
	reg, err := k.orcRegisters()
	if err != nil {
		return nil, stack, false
	}
	u := unwinder{k: k, reg: reg, stack: stack, base: regs.RSP, ip: regs.RIP, sp: regs.RSP, bp: regs.RBP, exact: true}
	for len(calls) < most {
		end, err := u.step()
		if err != nil || end {
			return calls, u.rest(), err == nil
		}
		calls = append(calls, x86.VirtAddr(u.ip))
	}
	return calls, u.rest(), false
}

// unwinder stands in one frame.
type unwinder struct {
	k     *Kernel
	reg   orcNumbers
	stack []byte
	base  uint64 // where that lies

	ip, sp, bp uint64
	// exact says that ip is the instruction itself, and not the one behind a call, which
	// may be another function's.
	exact bool
}

// word reads one of the stack's.
func (u *unwinder) word(at uint64) (uint64, error) {
	if off := at - u.base; at&7 == 0 && off <= uint64(len(u.stack)) && uint64(len(u.stack))-off >= 8 {
		return binary.LittleEndian.Uint64(u.stack[off:]), nil
	}
	return 0, errUnwind
}

// rest is the stack of the frames that were not come to.
func (u *unwinder) rest() []byte {
	return u.stack[min(u.sp-u.base, uint64(len(u.stack))):]
}

// step goes to the frame before; end says that there is none in the kernel.
func (u *unwinder) step() (end bool, err error) {
	at := u.ip
	if !u.exact {
		at--
	}
	e, err := u.k.orcOf(x86.VirtAddr(at))
	switch {
	case err != nil:
		return false, err
	case e.kind == orcEnd:
		return true, nil
	}
	frame := u.sp
	switch e.spReg {
	case u.reg.sp:
	case u.reg.bp:
		frame = u.bp
	default:
		return false, errUnwind
	}
	frame += uint64(int64(e.spOffset))
	was := *u
	switch e.kind {
	case orcCall:
		u.exact = false
		if u.ip, err = u.word(frame - 8); err != nil {
			return false, err
		}
		u.sp = frame
	case orcRegs, orcIRet:
		u.exact = true
		if e.kind == orcRegs {
			if u.bp, err = u.word(frame + regsBP); err != nil {
				return false, err
			}
			frame += regsIP
		}
		cs, err := u.word(frame + iretCS)
		if err != nil {
			return false, err
		}
		if cs&3 != 0 {
			return true, nil // what was interrupted is a user's
		}
		if u.ip, err = u.word(frame); err != nil {
			return false, err
		}
		if u.sp, err = u.word(frame + iretSP); err != nil {
			return false, err
		}
	default:
		return false, errUnwind
	}
	switch e.bpReg {
	case orcUndefined:
	case u.reg.prevSP, u.reg.bp:
		from := frame
		if e.bpReg == u.reg.bp {
			from = was.bp
		}
		if u.bp, err = u.word(from + uint64(int64(e.bpOffset))); err != nil {
			return false, err
		}
	default:
		return false, errUnwind
	}
	if u.sp <= was.sp || !x86.VirtAddr(u.ip).KernelHalf() {
		return false, errUnwind // a stack goes on upwards
	}
	return false, nil
}

// orcOf returns the entry for an instruction.
func (k *Kernel) orcOf(ip x86.VirtAddr) (orcEntry, error) {
	if k.Offsets.Orc.Size < 6 || k.Offsets.Orc.Size > 16 || k.Offsets.Orc.SPReg.Offset < 0 || k.Offsets.Orc.Type.Offset < 0 {
		return orcEntry{}, errUnwind
	}
	if ip >= k.TextStart && ip < k.TextEnd {
		ips, entries, n, err := k.orcTable()
		if err != nil {
			return orcEntry{}, err
		}
		return k.orcIn(ips, entries, n, ip)
	}
	o := &k.Offsets.Module
	mod, _ := k.moduleOf(ip)
	if mod == 0 || o.OrcIPs < 0 || o.Orcs < 0 || o.NumOrcs < 0 {
		return orcEntry{}, errUnwind
	}
	var table [3]uint64
	var err error
	for i, off := range []int{o.OrcIPs, o.Orcs, o.NumOrcs} {
		if table[i], err = k.as.ReadUint64(mod + x86.VirtAddr(off)); err != nil {
			return orcEntry{}, err
		}
	}
	return k.orcIn(x86.VirtAddr(table[0]), x86.VirtAddr(table[1]), table[2]&0xffff_ffff, ip)
}

// orcTable is the kernel's own: where each of its n entries begins, and the entries.
func (k *Kernel) orcTable() (ips, entries x86.VirtAddr, n uint64, err error) {
	ips, ok := k.Lookup("__start_orc_unwind_ip")
	end, ok2 := k.Lookup("__stop_orc_unwind_ip")
	entries, ok3 := k.Lookup("__start_orc_unwind")
	if n = uint64(end-ips) / 4; !ok || !ok2 || !ok3 || end <= ips || n == 0 || n > maxOrc {
		return 0, 0, 0, errUnwind
	}
	return ips, entries, n, nil
}

// orcRegisters tells by the kernel's table which numbers its registers have.
func (k *Kernel) orcRegisters() (orcNumbers, error) {
	_, entries, n, err := k.orcTable()
	o := &k.Offsets.Orc
	if err != nil || o.Size < 6 || o.Size > 16 || o.SPReg.Offset < 0 {
		return orcNumbers{}, errUnwind
	}
	raw := object{b: make([]byte, o.Size)}
	olds, news := 0, 0
	for i := range uint64(orcSamples) {
		if err := k.as.Read(entries+x86.VirtAddr(i*n/orcSamples)*x86.VirtAddr(o.Size), raw.b); err != nil {
			return orcNumbers{}, err
		}
		switch raw.bits(o.SPReg) {
		case orcNumbersOld.sp:
			olds++
		case orcNumbersNew.sp:
			news++
		}
	}
	if news > olds {
		return orcNumbersNew, nil
	}
	return orcNumbersOld, nil
}

// orcIn looks an instruction up in a table of n entries: where each begins, relative to
// the place that says so, in order, and the entries themselves.
func (k *Kernel) orcIn(ips, entries x86.VirtAddr, n uint64, ip x86.VirtAddr) (orcEntry, error) {
	i, err := k.orcFind(ips, n, ip)
	if err != nil {
		return orcEntry{}, err
	}
	return k.orcAt(entries, i)
}

// orcBegins is where entry i of a table begins.
func (k *Kernel) orcBegins(ips x86.VirtAddr, i uint64) (x86.VirtAddr, error) {
	at := ips + x86.VirtAddr(4*i)
	d, err := k.as.ReadUint32(at)
	return at + x86.VirtAddr(int32(d)), err
}

// orcFind finds the entry, of n, that an instruction belongs to.
func (k *Kernel) orcFind(ips x86.VirtAddr, n uint64, ip x86.VirtAddr) (uint64, error) {
	if n == 0 || n > maxOrc {
		return 0, errUnwind
	}
	low, high := uint64(0), n // the entry is in [low, high)
	for high-low > 1 {
		mid := (low + high) / 2
		at, err := k.orcBegins(ips, mid)
		if err != nil {
			return 0, err
		}
		if at <= ip {
			low = mid
		} else {
			high = mid
		}
	}
	if at, err := k.orcBegins(ips, low); err != nil || at > ip {
		return 0, errUnwind
	}
	return low, nil
}

// orcAt reads an entry.
func (k *Kernel) orcAt(entries x86.VirtAddr, i uint64) (e orcEntry, err error) {
	o := &k.Offsets.Orc
	raw := object{b: make([]byte, o.Size)}
	if err := k.as.Read(entries+x86.VirtAddr(i)*x86.VirtAddr(o.Size), raw.b); err != nil {
		return e, err
	}
	e = orcEntry{
		spReg: raw.bits(o.SPReg), bpReg: raw.bits(o.BPReg),
		spOffset: int16(raw.u16(o.SPOffset)), bpOffset: int16(raw.u16(o.BPOffset)),
	}
	kinds := []orcType{orcUnknown, orcEnd, orcCall, orcRegs, orcIRet}
	if o.End.Offset >= 0 {
		kinds = []orcType{orcCall, orcRegs, orcIRet}
	}
	if t := raw.bits(o.Type); t < uint32(len(kinds)) {
		e.kind = kinds[t]
	}
	if o.End.Offset >= 0 && e.spReg == orcUndefined {
		if e.kind = orcUnknown; raw.bits(o.End) != 0 {
			e.kind = orcEnd
		}
	}
	return e, nil
}
