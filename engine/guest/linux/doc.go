// Package linux gives meaning to the memory of a Linux guest: where its kernel
// is, what its symbols are called, how its structures are laid out, and what it
// is doing right now. It needs no symbol file and nothing running inside: the
// kernel carries its own symbol table (kallsyms) and its own type information
// (BTF), and both are read from memory.
//
// [Identify] does all of the finding, once, and returns a [Kernel]. It works
// from the moment the boot processor sets up its system-call entry (the first
// write to MSR LSTAR), when most of the kernel is still asleep, and at any time
// after. [Find] does the same for a memory image, which may hold no registers.
//
// [IdentifyWith] knows kernels that were identified before, from a [Cache], and
// takes the layouts of one without BTF from an [ISF]. [ExportISF] writes such a
// file.
//
// # Who owns what
//
// A Kernel borrows the guest.Memory given to Identify and must not be used
// after that is closed. It holds private copies of the tables it parsed (2 to
// 5 MiB, shared by the kernels of one build that one Cache knows) and no
// resource to release. After Identify it is immutable and safe for concurrent
// use.
//
// # The guest is hostile
//
// Whoever owns the guest's kernel can forge everything read here. The promises
// are: no crash, no unbounded loop, no unbounded memory, and no silent mixture
// of two tables: everything is anchored at addresses the processor itself uses
// (LSTAR through the page tables), copied before it is parsed, and refused as a
// whole, with an [*IdentifyError] naming the stage, when one check fails. What
// is read before the guest ran its first user instruction is as good as the
// kernel that was booted.
//
// # Sources
//
// Table layouts are those of Linux's kernel/kallsyms.c, scripts/kallsyms.c and
// include/uapi/linux/btf.h in the releases named beside each; paging set-up is
// that of arch/x86/kernel/head64.c and head_64.S. The format of profiles is that
// of Volatility 3, schema 6.2.0.
package linux
