package linux

import (
	"fmt"

	"github.com/xen-hvi/hvi/engine/guest/report"
	"github.com/xen-hvi/hvi/engine/x86"
)

// KprobeOffsets lays out struct kprobe.
type KprobeOffsets struct {
	Size        int
	Hash        int `c:"hlist"`
	List        int `c:"list"`
	Addr        int `c:"addr"`
	PreHandler  int `c:"pre_handler"`
	PostHandler int `c:"post_handler"`
	Opcode      int `c:"opcode"` // the byte that the breakpoint displaced
	Flags       int `c:"flags"`
}

// OptKprobeOffsets lays out struct optimized_kprobe, whose first member is its
// kprobe.
type OptKprobeOffsets struct {
	Copied int `c:"optinsn.copied_insn"` // the bytes behind the opcode that a jump displaced
}

// KretprobeOffsets lays out struct kretprobe, whose first member is its kprobe.
type KretprobeOffsets struct {
	Kprobe       int `c:"kp"`
	Handler      int `c:"handler"`
	EntryHandler int `c:"entry_handler"`
}

// FtraceOpsHashOffsets lays out struct ftrace_ops_hash.
type FtraceOpsHashOffsets struct {
	Filter int `c:"filter_hash"`
}

// FtraceHashOffsets lays out struct ftrace_hash, a set of functions.
type FtraceHashOffsets struct {
	Size     int
	SizeBits int `c:"size_bits"`
	Buckets  int `c:"buckets"`
	Count    int `c:"count"`
}

// FtraceEntryOffsets lays out struct ftrace_func_entry.
type FtraceEntryOffsets struct {
	Size   int
	Hash   int `c:"hlist"`
	IP     int `c:"ip"`
	Direct int `c:"direct"` // what is called at once, without ftrace's own code
}

const (
	kprobeBuckets = 64 // KPROBE_TABLE_SIZE, which is no type's and no symbol's
	maxKprobes    = 1 << 16
	// Flags of a kprobe (include/linux/kprobes.h) and of an ftrace_ops.
	kprobeDisabled = 1 << 1 // KPROBE_FLAG_DISABLED
	kprobeGone     = 1 << 0 // KPROBE_FLAG_GONE
	kprobeFtrace   = 1 << 3 // KPROBE_FLAG_FTRACE
	ftraceEnabled  = 1 << 0 // FTRACE_OPS_FL_ENABLED
	// maxFtraceBits is FTRACE_HASH_MAX_BITS, maxFtraceEntries bounds what one
	// bucket has: a kernel has some 60,000 functions.
	maxFtraceBits    = 12
	maxFtraceEntries = 1 << 17
)

// Probes reports the kprobes, kretprobes and users of ftrace that are
// registered.
func (r *Reader) Probes() (report.List[report.Probe], error) {
	out := report.List[report.Probe]{Items: []report.Probe{}}
	err := r.reading(&out.Reading, func() error {
		for _, part := range [...]struct {
			what, symbol string
			read         func(func(report.Probe)) error
		}{
			{"the table of kprobes", "kprobe_table", r.kprobes},
			{"the users of ftrace", "ftrace_ops_list", r.ftraceUsers},
		} {
			if _, err := r.variable(part.symbol); err != nil {
				continue // built without
			}
			n := len(out.Items)
			if err := r.consistently(part.what, func() error {
				out.Items = out.Items[:n]
				return part.read(func(p report.Probe) { out.Items = append(out.Items, p) })
			}); err != nil {
				return err
			}
		}
		return nil
	})
	return out, err
}

// kprobes walks the kernel's table of kprobes. Several at one address hang on
// an aggregate that is in their place. It is one attempt.
func (r *Reader) kprobes(found func(report.Probe)) error {
	o := &r.k.Offsets.Kprobe
	if err := need("kprobe.hlist", o.Hash, "kprobe.list", o.List, "kprobe.addr", o.Addr, "kprobe.pre_handler", o.PreHandler,
		"kprobe.post_handler", o.PostHandler, "kprobe.flags", o.Flags); err != nil {
		return err
	}
	table, err := r.variable("kprobe_table")
	if err != nil {
		return err
	}
	aggregate, _ := r.k.Symbols.Lookup("aggr_pre_handler")
	n := 0
	one := func(at x86.VirtAddr) error {
		p, err := r.kprobe(at)
		if err != nil {
			return err
		}
		if n++; n > maxKprobes {
			return &ReadError{What: "kprobe_table", Got: fmt.Sprintf("more than %d kprobes", maxKprobes), Err: ErrImplausible}
		}
		found(p)
		return nil
	}
	for i := range kprobeBuckets {
		err := r.hashChain(table+x86.VirtAddr(i)*8, maxKprobes, func(node x86.VirtAddr) error {
			at := node - x86.VirtAddr(o.Hash)
			handler, err := r.as.ReadPointer(at + x86.VirtAddr(o.PreHandler))
			if err != nil {
				return errTorn
			}
			if handler == 0 || handler != aggregate {
				return one(at)
			}
			return r.walk("kprobes at one address", at+x86.VirtAddr(o.List), maxKprobes, func(node x86.VirtAddr) error {
				return one(node - x86.VirtAddr(o.List))
			})
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// kprobe reads one kprobe, or the kretprobe that it is a part of.
func (r *Reader) kprobe(at x86.VirtAddr) (report.Probe, error) {
	o := &r.k.Offsets.Kprobe
	var kp object
	if err := r.read(&kp, at, o.Size); err != nil {
		return report.Probe{}, errTorn
	}
	p := report.Probe{Kind: "kprobe", Addr: at, Target: r.place(kp.pointer(o.Addr)),
		Disabled: kp.u32(o.Flags)&(kprobeDisabled|kprobeGone) != 0}
	handler := kp.pointer(o.PreHandler)
	if name, off, ok := r.k.Symbols.Symbolize(handler); ok && off == 0 && name == "pre_handler_kretprobe" {
		ret := &r.k.Offsets.Kretprobe
		if err := need("kretprobe.kp", ret.Kprobe, "kretprobe.handler", ret.Handler); err != nil {
			return report.Probe{}, err
		}
		p.Kind, p.Addr = "kretprobe", at-x86.VirtAddr(ret.Kprobe)
		var err error
		if handler, err = r.as.ReadPointer(p.Addr + x86.VirtAddr(ret.Handler)); err != nil {
			return report.Probe{}, errTorn
		}
		if handler == 0 && ret.EntryHandler >= 0 {
			if handler, err = r.as.ReadPointer(p.Addr + x86.VirtAddr(ret.EntryHandler)); err != nil {
				return report.Probe{}, errTorn
			}
		}
	} else if handler == 0 {
		handler = kp.pointer(o.PostHandler)
	}
	p.Handler = r.place(handler)
	return p, nil
}

// ftraceUsers walks the users of ftrace. It is one attempt.
func (r *Reader) ftraceUsers(found func(report.Probe)) error {
	o := &r.k.Offsets.FtraceOps
	filtered, _ := r.k.Symbols.Lookup("ftrace_pid_func")
	return r.eachFtraceOps(func(ops x86.VirtAddr) error {
		var f object
		if err := r.read(&f, ops, o.Size); err != nil {
			return errTorn
		}
		handler := f.pointer(o.Func)
		if saved := f.pointer(o.SavedFunc); handler == filtered && saved != 0 {
			handler = saved // some processes only are traced
		}
		p := report.Probe{Kind: "ftrace", Addr: ops, Handler: r.place(handler), Disabled: f.u64(o.Flags)&ftraceEnabled == 0}
		p.Target.In = report.InNothing
		var err error
		if p.Targets, err = r.ftraceTargets(f.pointer(o.FuncHash), &p.Target); err != nil {
			return err
		}
		found(p)
		return nil
	})
}

// ftraceTargets counts the functions that a user of ftrace asks for, 0 for all,
// and names the one if it is one.
func (r *Reader) ftraceTargets(hashes x86.VirtAddr, only *report.Place) (int, error) {
	o, h := &r.k.Offsets.FtraceOpsHash, &r.k.Offsets.FtraceHash
	if hashes == 0 || o.Filter < 0 || h.Count < 0 {
		return 0, nil
	}
	at, err := r.as.ReadPointer(hashes + x86.VirtAddr(o.Filter))
	if err != nil {
		return 0, errTorn
	}
	if at == 0 {
		return 0, nil
	}
	var hash object
	if err := r.read(&hash, at, h.Size); err != nil {
		return 0, errTorn
	}
	count := hash.u64(h.Count)
	if count > maxFtraceEntries {
		return 0, &ReadError{What: "ftrace_hash.count", Got: fmt.Sprint(count), Err: ErrImplausible}
	}
	if count == 1 {
		err = r.eachFtraceEntry(&hash, func(ip, _ x86.VirtAddr) error {
			*only = r.place(ip)
			return nil
		})
	}
	return int(count), err
}

// eachFtraceEntry calls f with each function of a set and with what is called
// for it directly.
func (r *Reader) eachFtraceEntry(hash *object, f func(ip, direct x86.VirtAddr) error) error {
	h, e := &r.k.Offsets.FtraceHash, &r.k.Offsets.FtraceEntry
	if err := need("ftrace_hash.size_bits", h.SizeBits, "ftrace_hash.buckets", h.Buckets, "ftrace_func_entry.hlist", e.Hash, "ftrace_func_entry.ip", e.IP); err != nil {
		return err
	}
	bits, buckets := hash.u64(h.SizeBits), hash.pointer(h.Buckets)
	if bits > maxFtraceBits {
		return &ReadError{What: "ftrace_hash.size_bits", Got: fmt.Sprint(bits), Err: ErrImplausible}
	}
	if buckets == 0 {
		return nil // the empty set
	}
	var entry object
	left := maxFtraceEntries
	for i := range 1 << bits {
		if err := r.step(); err != nil {
			return err
		}
		err := r.hashChain(buckets+x86.VirtAddr(i)*8, left, func(node x86.VirtAddr) error {
			left--
			if err := r.read(&entry, node-x86.VirtAddr(e.Hash), e.Size); err != nil {
				return errTorn
			}
			return f(entry.pointer(e.IP), entry.pointer(e.Direct))
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// maxSteps bounds the entries of lists that a reading of the kernel's views, or
// one look of a check, goes through in all: bounds of single lists multiply where
// a guest has lists of lists. A busy guest has some ten thousand.
const maxSteps = 1 << 20

// step counts one entry of a list.
func (r *Reader) step() error {
	if r.steps++; r.steps > maxSteps {
		return &ReadError{What: "the kernel's lists", Got: fmt.Sprintf("more than %d entries in all", maxSteps), Err: ErrImplausible}
	}
	return nil
}

// walk is list that counts its steps.
func (r *Reader) walk(what string, head x86.VirtAddr, most int, f func(node x86.VirtAddr) error) error {
	return r.list(what, head, most, func(node x86.VirtAddr) error {
		if err := r.step(); err != nil {
			return err
		}
		return f(node)
	})
}

// hashChain is chain that counts its steps, of a chain that ends in a null
// pointer (struct hlist_head).
func (r *Reader) hashChain(head x86.VirtAddr, most int, f func(node x86.VirtAddr) error) error {
	return r.chain(head, 0, most, func(node x86.VirtAddr) error {
		if err := r.step(); err != nil {
			return err
		}
		return f(node)
	})
}
