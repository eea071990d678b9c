// SPDX-License-Identifier: GPL-2.0
/*
 * A guest's kernel that looks at itself: for what was put into its code, and how
 * often that code is come to.
 *
 *	symbol=NAME	the function in question
 *	own=1		with a probe that is a breakpoint, at an instruction in it;
 *			else the probe is at its entry, by way of ftrace where the
 *			kernel can
 *
 * To be read in /sys/module/observe/parameters:
 *
 *	hits		how often the probe was come to
 *	offset		where it is in the function
 *	sum		a checksum of the page of code that the probe is in, as read
 *			through the text mapping and through the direct mapping
 *
 * and written, with the outcome in the log as "hvi-observe: ...":
 *
 *	copies=N	copy a page N times with the repeated instruction that copy_page
 *			has, whether or not the kernel has found it good to use
 *	peek=ADDRESS	read, write and read 8 bytes of physical memory
 *	drop=FRAME	have Xen take a frame out of the guest's memory
 *	steps=N		compute the root of N, in int_sqrt, step by step: how many
 *			debug exceptions there were, and a checksum of where
 *	watch=N		with the processor's own breakpoints at int_sqrt and at a word
 *			of a page that is copied as for copies=, do both N times, and
 *			copy N times more with interrupts disabled: how often each
 *			was met
 */
#include <linux/hw_breakpoint.h>
#include <linux/io.h>
#include <linux/kdebug.h>
#include <linux/mm.h>
#include <linux/perf_event.h>
#include <xen/interface/xen.h>
#include <xen/interface/memory.h>
#include <asm/xen/hypercall.h>

#include "kernel.h"

static char *symbol = "do_filp_open";
module_param(symbol, charp, 0);
static bool own;
module_param(own, bool, 0);

static struct kprobe probe;
static atomic_long_t hits;

static int count(struct kprobe *p, struct pt_regs *regs)
{
	atomic_long_inc(&hits);
	return 0;
}

static int get_hits(char *buf, const struct kernel_param *kp)
{
	return sprintf(buf, "%ld\n", atomic_long_read(&hits));
}

static int get_offset(char *buf, const struct kernel_param *kp)
{
	return sprintf(buf, "%u\n", probe.offset);
}

/* FNV-1a */
static u64 sum_of(const u8 *p, unsigned long n)
{
	u64 h = 0xcbf29ce484222325ULL;

	while (n--)
		h = (h ^ READ_ONCE(*p++)) * 0x100000001b3ULL;
	return h;
}

static int get_sum(char *buf, const struct kernel_param *kp)
{
	unsigned long page = (unsigned long)probe.addr & PAGE_MASK;

	return sprintf(buf, "%llx %llx\n", sum_of((u8 *)page, PAGE_SIZE),
		       sum_of(__va(__pa_symbol(page)), PAGE_SIZE));
}

typedef void copy_fn(void *to, void *from);

/* Past the jump to another way of copying, or what was put in its place. */
static copy_fn *repeated_copy(void)
{
	unsigned long at = lookup("copy_page");

	return at ? (copy_fn *)(at + 2) : NULL;
}

static int set_copies(const char *val, const struct kernel_param *kp)
{
	copy_fn *copy = repeated_copy();
	unsigned long from, to, n;
	int err = kstrtoul(val, 0, &n);

	if (err)
		return err;
	if (!copy)
		return -ENOENT;
	from = __get_free_page(GFP_KERNEL);
	to = __get_free_page(GFP_KERNEL);
	if (from && to) {
		memset((void *)from, 0xa5, PAGE_SIZE);
		while (n--) {
			memset((void *)to, 0, PAGE_SIZE);
			copy((void *)to, (void *)from);
			if (memcmp((void *)to, (void *)from, PAGE_SIZE))
				pr_info("hvi-observe: a copy differs\n");
		}
		pr_info("hvi-observe: copied\n");
	}
	free_page(from);
	free_page(to);
	return 0;
}

static int set_peek(const char *val, const struct kernel_param *kp)
{
	unsigned long long at;
	u64 __iomem *p;
	u64 first;
	int err = kstrtoull(val, 0, &at);

	if (err)
		return err;
	p = ioremap(at, PAGE_SIZE);
	if (!p)
		return -ENOMEM;
	first = readq(p);
	writeq(0, p);
	pr_info("hvi-observe: at %llx: %llx, then %llx\n", at, first, readq(p));
	iounmap(p);
	return 0;
}

static int set_drop(const char *val, const struct kernel_param *kp)
{
	struct xen_memory_reservation r = { .nr_extents = 1, .domid = DOMID_SELF };
	xen_pfn_t frame;
	int err = kstrtoul(val, 0, &frame);

	if (err)
		return err;
	set_xen_guest_handle(r.extent_start, &frame);
	pr_info("hvi-observe: dropped %d of frame %lx\n",
		(int)HYPERVISOR_memory_op(XENMEM_decrease_reservation, &r), frame);
	return 0;
}

static unsigned long steps;
static u64 steps_sum;

static int on_debug(struct notifier_block *nb, unsigned long why, void *data)
{
	struct die_args *args = data;

	if (why != DIE_DEBUG)
		return NOTIFY_DONE;
	steps++;
	steps_sum = (steps_sum ^ args->regs->ip) * 0x100000001b3ULL;
	return NOTIFY_STOP; /* and the next instruction traps, too */
}

static int set_steps(const char *val, const struct kernel_param *kp)
{
	struct notifier_block nb = { .notifier_call = on_debug };
	unsigned long n, flags;
	int err = kstrtoul(val, 0, &n);

	if (!err)
		err = register_die_notifier(&nb);
	if (err)
		return err;
	steps = 0;
	steps_sum = 0xcbf29ce484222325ULL;
	local_irq_save(flags);
	asm volatile("pushfq; orq %0, (%%rsp); popfq" : : "i"(X86_EFLAGS_TF) : "memory", "cc");
	n = int_sqrt(n);
	asm volatile("pushfq; andq %0, (%%rsp); popfq" : : "i"(~X86_EFLAGS_TF) : "memory", "cc");
	local_irq_restore(flags);
	unregister_die_notifier(&nb);
	pr_info("hvi-observe: root %lu in %lu steps, sum %llx\n", n, steps, steps_sum);
	return 0;
}

static void on_watch(struct perf_event *e, struct perf_sample_data *data, struct pt_regs *regs)
{
	++*(unsigned long *)e->overflow_handler_context;
}

static struct perf_event *__percpu *watch(void *at, unsigned int type, unsigned int len, unsigned long *count)
{
	struct perf_event_attr attr;

	hw_breakpoint_init(&attr);
	attr.bp_addr = (unsigned long)at;
	attr.bp_type = type;
	attr.bp_len = len;
	return register_wide_hw_breakpoint(&attr, on_watch, count);
}

static int set_watch(const char *val, const struct kernel_param *kp)
{
	struct perf_event *__percpu *code, *__percpu *data;
	unsigned long from, to, n, i, flags, roots = 0, executed = 0, written = 0, disturbed;
	copy_fn *copy = repeated_copy();
	int err = kstrtoul(val, 0, &n);

	if (err)
		return err;
	if (!copy)
		return -ENOENT;
	from = __get_free_page(GFP_KERNEL);
	to = __get_free_page(GFP_KERNEL);
	if (from && to) {
		code = watch(int_sqrt, HW_BREAKPOINT_X, sizeof(long), &executed);
		data = watch((void *)(to + 512), HW_BREAKPOINT_W, HW_BREAKPOINT_LEN_8, &written);
		if (!IS_ERR((void __force *)code) && !IS_ERR((void __force *)data)) {
			for (i = 0; i < n; i++) {
				roots += int_sqrt(i * i);
				copy((void *)to, (void *)from);
			}
			disturbed = written;
			for (i = 0; i < n; i++) {
				local_irq_save(flags);
				copy((void *)to, (void *)from);
				local_irq_restore(flags);
			}
			pr_info("hvi-observe: roots %lu, executed %lu, undisturbed %lu, written %lu\n",
				roots, executed, written - disturbed, disturbed);
		}
		if (!IS_ERR((void __force *)code))
			unregister_wide_hw_breakpoint(code);
		if (!IS_ERR((void __force *)data))
			unregister_wide_hw_breakpoint(data);
	}
	free_page(from);
	free_page(to);
	return 0;
}

static const struct kernel_param_ops hits_ops = { .get = get_hits };
static const struct kernel_param_ops offset_ops = { .get = get_offset };
static const struct kernel_param_ops sum_ops = { .get = get_sum };
static const struct kernel_param_ops copies_ops = { .set = set_copies };
static const struct kernel_param_ops peek_ops = { .set = set_peek };
static const struct kernel_param_ops drop_ops = { .set = set_drop };
static const struct kernel_param_ops steps_ops = { .set = set_steps };
static const struct kernel_param_ops watch_ops = { .set = set_watch };

module_param_cb(hits, &hits_ops, NULL, 0400);
module_param_cb(offset, &offset_ops, NULL, 0400);
module_param_cb(sum, &sum_ops, NULL, 0400);
module_param_cb(copies, &copies_ops, NULL, 0200);
module_param_cb(peek, &peek_ops, NULL, 0200);
module_param_cb(drop, &drop_ops, NULL, 0200);
module_param_cb(steps, &steps_ops, NULL, 0200);
module_param_cb(watch, &watch_ops, NULL, 0200);

static int __init observe_init(void)
{
	unsigned int offset = own ? 8 : 0, last = own ? 64 : 0;
	int err;

	/* An address that is not an instruction's is refused. */
	do {
		memset(&probe, 0, sizeof(probe));
		probe.symbol_name = symbol;
		probe.offset = offset;
		probe.pre_handler = count;
		err = register_kprobe(&probe);
	} while (err && ++offset <= last);
	return err;
}
module_init(observe_init);

static void __exit observe_exit(void)
{
	unregister_kprobe(&probe);
}
module_exit(observe_exit);

MODULE_LICENSE("GPL");
