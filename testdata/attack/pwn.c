// SPDX-License-Identifier: GPL-2.0
/*
 * An attack on the kernel it is loaded into, for guests that may be harmed.
 *
 * It does what rootkits do once they run in ring 0: it writes into kernel text
 * past its read-only mapping, or redirects the system call entry. It attacks
 * once, while it is loaded, says what it saw and puts back what it changed.
 * Unload it to use it again. (It could fail to load instead, were it not for
 * busybox' insmod, which tries twice.)
 *
 *	mode=text          clear CR0.WP, store one byte through the text mapping
 *	mode=keep          as text, and leave it so
 *	mode=alias         the same through the direct mapping of the same frame
 *	mode=rep           as text, four bytes with rep movsb
 *	mode=lstar|star|cstar|sysenter-eip
 *	                   write the MSR
 *	times=N            and try so often, or until one write lands
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
 * A is the target's linear address in the text mapping, or the MSR's number;
 * several bytes are shown as one little-endian number.
 */
#include <linux/init.h>
#include <linux/kernel.h>
#include <linux/module.h>
#include <linux/string.h>
#include <asm/io.h>
#include <asm/msr.h>
#include <asm/page.h>
#include <asm/processor-flags.h>
#include <xen/interface/sched.h>
#include <xen/interface/xen.h>
#include <asm/xen/hypercall.h>

static char *mode = "text";
module_param(mode, charp, 0);
static char *symbol = "kernel_restart";
module_param(symbol, charp, 0);
static unsigned long address;
module_param(address, ulong, 0);
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
	u64 before, tried, after;
	unsigned int i = 0;

	do {
		/* No system call may come between the write and its undoing. */
		local_irq_save(flags);
		before = read_msr(number);
		/* In STAR, a selector; in the others, an address that stays canonical. */
		tried = number == MSR_STAR ? before ^ (8ULL << 48) : before ^ 0x1000;
		write_msr(number, tried);
		after = read_msr(number);
		if (after != before)
			write_msr(number, before);
		local_irq_restore(flags);
	} while (++i < times && after == before);
	report(number, before, tried, after);
}

/* write stores n bytes with write protection off. */
static void write(u8 *to, const u8 *from, unsigned long n, bool rep)
{
	unsigned long cr0, i;

	asm volatile("mov %%cr0, %0" : "=r"(cr0));
	asm volatile("mov %0, %%cr0" : : "r"(cr0 & ~X86_CR0_WP) : "memory");
	if (rep) {
		asm volatile("rep movsb" : "+D"(to), "+S"(from), "+c"(n) : : "memory");
	} else {
		for (i = 0; i < n; i++)
			asm volatile("movb %1, (%0)" : : "r"(to + i), "q"(from[i]) : "memory");
	}
	asm volatile("mov %0, %%cr0" : : "r"(cr0) : "memory");
}

static u64 number(const u8 *b, unsigned long n)
{
	u64 v = 0;

	while (n--)
		v = v << 8 | READ_ONCE(b[n]);
	return v;
}

static int attack_text(bool alias, bool rep, bool keep)
{
	unsigned long at = address, flags, n = rep ? 4 : 1;
	u8 before[4], tried[4], after[4];
	u8 *text, *to;
	unsigned long i;

	if (!at)
		at = (unsigned long)__symbol_get(symbol);
	if (!at) {
		pr_info("hvi-pwn: no exported symbol %s\n", symbol);
		return -ENOENT;
	}
	text = (u8 *)at;
	to = alias ? __va(__pa_symbol(at)) : text;

	local_irq_save(flags);
	for (i = 0; i < n; i++) {
		before[i] = READ_ONCE(text[i]);
		tried[i] = before[i] ^ FLIP;
	}
	write(to, tried, n, rep);
	for (i = 0; i < n; i++)
		after[i] = READ_ONCE(text[i]);
	if (!keep && memcmp(after, before, n))
		write(to, before, n, rep);
	local_irq_restore(flags);
	report(at, number(before, n), number(tried, n), number(after, n));
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
	for (i = 0; i < ARRAY_SIZE(msrs); i++) {
		if (!strcmp(mode, msrs[i].name)) {
			attack_msr(msrs[i].number);
			return 0;
		}
	}
	if (!strcmp(mode, "text"))
		return attack_text(false, false, false);
	if (!strcmp(mode, "keep"))
		return attack_text(false, false, true);
	if (!strcmp(mode, "alias"))
		return attack_text(true, false, false);
	if (!strcmp(mode, "rep"))
		return attack_text(false, true, false);
	return -EINVAL;
}
module_init(pwn_init);

static void __exit pwn_exit(void)
{
}
module_exit(pwn_exit);

MODULE_DESCRIPTION("Attack on kernel text and the system call entry, for tests");
MODULE_LICENSE("GPL");
