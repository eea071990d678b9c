package linux

import (
	"cmp"
	"slices"
	"strings"

	"github.com/xen-hvi/hvi/engine/x86"
)

// A kernel executes its code and hardly ever reads it: where it checks what it is about
// to patch, or what it has patched; where it decodes an instruction that has failed or
// is to be probed; where it copies a template; and where it copies itself, to sleep or
// to start another.

// textCheckers are the functions of the kernel's that do so, of all releases from 5.10
// to 7.2. Compilers put some of them into others, so callers are among them, and add
// suffixes, which are not part of a name here. Those of modules' code are among them
// where they follow a call into the kernel's.
var textCheckers = []string{
	// arch/x86/kernel/alternative.c, callthunks.c, cfi.c
	"text_poke", "__text_poke", "text_poke_memcpy", "text_poke_kgdb", "text_poke_bp", "text_poke_bp_batch", "text_poke_loc_init",
	"text_poke_queue", "text_poke_flush", "text_poke_finish", "poke_int3_handler",
	"smp_text_poke_single", "smp_text_poke_batch_add", "__smp_text_poke_batch_add", "smp_text_poke_batch_flush",
	"smp_text_poke_batch_finish", "smp_text_poke_int3_handler",
	"alternatives_smp_lock", "alternatives_smp_unlock", "alternatives_enable_smp", "alternatives_smp_module_add",
	"apply_alternatives", "apply_paravirt", "apply_retpolines", "apply_returns", "apply_seal_endbr", "apply_fineibt", "__apply_fineibt",
	"decode_preamble_hash", "decode_caller_hash", "poison_endbr", "patch_retpoline",
	"callthunks_patch_module_calls", "callthunks_translate_call_dest", "patch_dest", "patch_call", "patch_call_sites", "call_get_dest", "skip_addr",
	"handle_cfi_failure", "decode_cfi_insn", "decode_fineibt_insn",
	// jump_label.c, static_call.c
	"__jump_label_patch", "__jump_label_set_jump_code", "__jump_label_transform", "arch_jump_label_transform",
	"arch_jump_label_transform_queue", "arch_jump_label_transform_apply", "arch_jump_entry_size",
	"__static_call_validate", "__static_call_transform", "__static_call_fixup", "arch_static_call_transform",
	// ftrace.c, and kernel/trace/ftrace.c
	"ftrace_verify_code", "ftrace_modify_code", "ftrace_modify_code_direct", "ftrace_make_nop", "ftrace_make_call", "ftrace_replace_code",
	"ftrace_update_ftrace_func", "update_ftrace_func", "ftrace_mod_jmp", "ftrace_enable_ftrace_graph_caller", "ftrace_disable_ftrace_graph_caller",
	"create_trampoline", "arch_ftrace_update_trampoline", "arch_ftrace_trampoline_func", "addr_from_call",
	"arch_ftrace_get_symaddr", "ftrace_call_adjust", "ftrace_bug", "print_ip_ins",
	// kprobes/
	"register_kprobe", "__register_kprobe", "register_kretprobe", "arch_prepare_kprobe", "arch_copy_kprobe", "arch_arm_kprobe", "arch_disarm_kprobe",
	"__copy_instruction", "recover_probed_instruction", "__recover_probed_insn", "recover_optprobed_instruction", "__recover_optprobed_insn",
	"can_probe", "can_boost", "arch_adjust_kprobe_addr", "is_endbr", "skip_prefixes", "kprobe_int3_handler", "kprobe_handler",
	"arch_prepare_optimized_kprobe", "copy_optimized_instructions", "can_optimize", "insn_is_indirect_jump",
	"arch_optimize_kprobes", "arch_unoptimize_kprobe", "arch_unoptimize_kprobes",
	// traps.c, dumpstack.c, mm/fault.c, mm/extable.c, cpu/mce/severity.c
	"is_valid_bugaddr", "decode_bug", "handle_bug", "exc_invalid_op", "fixup_bug", "get_kernel_gp_address", "exc_general_protection", "do_general_protection",
	"do_int3", "exc_int3", "ex_handler_zeropad", "fixup_exception", "copy_code", "show_opcodes", "show_ip", "is_prefetch", "is_copy_from_user",
	// events/
	"branch_type", "get_branch_type", "decode_branch_type", "intel_pmu_pebs_fixup_ip",
	// net/bpf_jit_comp.c, kernel/trace/bpf_trace.c
	"__bpf_arch_text_poke", "bpf_arch_text_poke", "get_entry_ip", "kprobe_multi_link_handler", "bpf_get_func_ip_kprobe",
	// machine_kexec_64.c, power/, kgdb.c
	"machine_kexec", "machine_kexec_prepare", "relocate_restore_code",
	"swsusp_save", "copy_data_pages", "copy_data_page", "do_copy_page", "safe_copy_page",
	"kgdb_arch_set_breakpoint", "kgdb_arch_remove_breakpoint",
}

// textCopiers are functions that read, and so copy, compare or decode, what whoever calls
// them asks for. In these it is the caller who counts.
var textCopiers = []string{
	"memcpy", "__memcpy", "memcpy_orig", "memcpy_erms", "memmove", "__memmove", "memmove_erms", "memcmp", "bcmp",
	"copy_from_kernel_nofault", "copy_page", "copy_page_regs",
	"insn_init", "insn_get_prefixes", "insn_get_opcode", "insn_get_modrm", "insn_get_sib", "insn_get_displacement",
	"insn_get_immediate", "insn_get_length", "insn_decode", "insn_rip_relative", "__get_moffset", "__get_immv32", "__get_immv", "__get_immptr",
	"__insn_get_emulate_prefix", "insn_get_emulate_prefix",
}

// dataInText is what a kernel keeps among its code and reads all day: the word that VERW
// is executed with at each return to a process, where the processor wants that
// (arch/x86/entry/entry.S). A Debian 6.1 and 7.2 were gone through for others.
var dataInText = []string{"x86_verw_sel", "mds_verw_sel"}

// CodeFrames returns the frames of TextFrames without those that have data as well.
func (k *Kernel) CodeFrames() ([]FrameRange, error) {
	list, err := k.TextFrames()
	if err != nil {
		return nil, err
	}
	for _, name := range dataInText {
		va, ok := k.Lookup(name)
		if !ok || va < k.TextStart || va >= k.TextEnd {
			continue
		}
		t, err := k.as.Translate(va)
		if err != nil {
			return nil, &ReadError{What: name, Err: err}
		}
		list = without(list, t.Phys.GFN())
	}
	return list, nil
}

// without returns the frames of a list but for one.
func without(list []FrameRange, gfn x86.GFN) []FrameRange {
	var out []FrameRange
	for _, f := range list {
		if gfn < f.First || uint64(gfn-f.First) >= f.N {
			out = append(out, f)
			continue
		}
		before := uint64(gfn - f.First)
		for _, part := range []FrameRange{{f.First, before}, {gfn + 1, f.N - before - 1}} {
			if part.N > 0 {
				out = append(out, part)
			}
		}
	}
	return out
}

const (
	// maxCopiers is how many of them may have called each other: insn_decode is six deep.
	maxCopiers = 10
	// maxCopierOrcs bounds the entries of their code.
	maxCopierOrcs = 4096
)

// TextReaders tells who reads the kernel's code. It is made once, and asked on the ring
// goroutine, where it allocates nothing. What it unwinds is the stack of who reads, by
// the tables that the kernel has for the copiers' own code, which were read when it was
// made: it is exact where an address is looked for on the stack as if it were one that
// is returned to is not, since such a one is easily put there. A caller can still be
// feigned by whoever has the copier return into a checker, in the middle of it.
type TextReaders struct {
	k    *Kernel
	code []readerCode // by address, without overlap
	orc  []orcStretch // of the copiers', by address
	reg  orcNumbers
}

type readerCode struct {
	Range
	copies bool
}

// orcStretch is an entry with where it begins.
type orcStretch struct {
	from x86.VirtAddr
	orcEntry
}

// NewTextReaders finds them in the kernel. It is [ErrUnsupported] where that has none of
// the functions, or no tables to unwind by.
func (k *Kernel) NewTextReaders() (*TextReaders, error) {
	r := &TextReaders{k: k}
	var err error
	if r.reg, err = k.orcRegisters(); err != nil {
		return nil, &ReadError{What: "the kernel's tables to unwind by (ORC)", Err: ErrUnsupported}
	}
	kind := make(map[string]bool, len(textCheckers)+len(textCopiers))
	for _, name := range textCheckers {
		kind[name] = false
	}
	for _, name := range textCopiers {
		kind[name] = true
	}
	var open *readerCode
	for s := range k.Symbols.All() {
		if s.Absolute || s.Addr < k.TextStart || s.Addr >= k.TextEnd {
			continue
		}
		if open != nil && s.Addr > open.Start {
			open.End, open = s.Addr, nil
		}
		name, _, _ := strings.Cut(s.Name, ".")
		copies, known := kind[name]
		switch {
		case !known:
		case open == nil:
			r.code = append(r.code, readerCode{Range{s.Addr, k.TextEnd}, copies})
			open = &r.code[len(r.code)-1]
		case copies: // one of two names, as bcmp is memcmp's
			open.copies = true
		}
	}
	if !slices.ContainsFunc(r.code, func(c readerCode) bool { return !c.copies }) {
		return nil, &ReadError{What: "functions that check the kernel's code", Err: ErrUnsupported}
	}
	return r, r.readOrc()
}

// readOrc reads the entries of the copiers' code.
func (r *TextReaders) readOrc() error {
	ips, entries, n, err := r.k.orcTable()
	if err != nil {
		return err
	}
	for _, c := range r.code {
		if !c.copies {
			continue
		}
		i, err := r.k.orcFind(ips, n, c.Start)
		if err != nil {
			return err
		}
		for ; i < n; i++ {
			from, err := r.k.orcBegins(ips, i)
			if err != nil {
				return err
			}
			if from >= c.End || len(r.orc) == maxCopierOrcs {
				break
			}
			e, err := r.k.orcAt(entries, i)
			if err != nil {
				return err
			}
			r.orc = append(r.orc, orcStretch{max(from, c.Start), e})
		}
		// What follows is not theirs.
		r.orc = append(r.orc, orcStretch{from: c.End})
	}
	return nil
}

// Own reports whether it is the kernel that reads its code for its own sake, at the
// instruction that the registers lead to.
func (r *TextReaders) Own(regs *x86.Registers) bool {
	if regs.CPL != 0 {
		return false
	}
	ip, sp, bp := x86.VirtAddr(regs.RIP), regs.RSP, regs.RBP
	for range maxCopiers {
		c := r.codeOf(ip)
		if c == nil || !c.copies {
			return c != nil
		}
		var ok bool
		if ip, sp, bp, ok = r.caller(ip, sp, bp); !ok {
			return false
		}
	}
	return false
}

// codeOf returns the checker or copier that an instruction is in, or nil.
func (r *TextReaders) codeOf(ip x86.VirtAddr) *readerCode {
	i, found := slices.BinarySearchFunc(r.code, ip, func(c readerCode, ip x86.VirtAddr) int { return cmp.Compare(c.Start, ip) })
	if !found {
		i--
	}
	if i < 0 || ip >= r.code[i].End {
		return nil
	}
	return &r.code[i]
}

// caller goes from a copier's frame to that of its caller, and returns the last byte of
// the call there.
func (r *TextReaders) caller(ip x86.VirtAddr, sp, bp uint64) (x86.VirtAddr, uint64, uint64, bool) {
	i, found := slices.BinarySearchFunc(r.orc, ip, func(s orcStretch, ip x86.VirtAddr) int { return cmp.Compare(s.from, ip) })
	if !found {
		i--
	}
	if i < 0 || r.orc[i].kind != orcCall {
		return 0, 0, 0, false
	}
	e := &r.orc[i]
	frame := sp
	switch e.spReg {
	case r.reg.sp:
	case r.reg.bp:
		frame = bp
	default:
		return 0, 0, 0, false
	}
	frame += uint64(int64(e.spOffset))
	to, err := r.word(frame - 8)
	if err != nil || frame <= sp {
		return 0, 0, 0, false
	}
	switch e.bpReg {
	case orcUndefined:
	case r.reg.prevSP:
		if bp, err = r.word(frame + uint64(int64(e.bpOffset))); err != nil {
			return 0, 0, 0, false
		}
	case r.reg.bp:
		if bp, err = r.word(bp + uint64(int64(e.bpOffset))); err != nil {
			return 0, 0, 0, false
		}
	default:
		return 0, 0, 0, false
	}
	return x86.VirtAddr(to - 1), frame, bp, true
}

// word reads one of the stack's.
func (r *TextReaders) word(at uint64) (uint64, error) {
	if va := x86.VirtAddr(at); at&7 != 0 || !va.KernelHalf() {
		return 0, errUnwind
	}
	return r.k.as.ReadUint64(x86.VirtAddr(at))
}
