// SPDX-License-Identifier: GPL-2.0
/*
 * Lies in memory for whoever reads it from outside, for guests that may be
 * harmed. It does all that it is told to while it is loaded and undoes nothing.
 *
 *	tables=1	false symbol tables in the layouts of 4.20 and of 6.4,
 *			false type information, false banners
 *	tasks=1		a task list that runs in a circle past its head
 *	modules=1	a module list that does
 *	counts=1	huge counts where a reader takes counts for granted, at the
 *			process of task=NAME
 *
 * The kernel itself would walk such a list for ever; a guest of a few processes
 * lives on for a while if nothing asks for them.
 */
#include <linux/fdtable.h>
#include <linux/init.h>
#include <linux/mm.h>
#include <linux/mm_types.h>
#include <linux/random.h>
#include <linux/slab.h>
#include <linux/string.h>
#include <linux/utsname.h>

#include "kernel.h"

static bool tables;
module_param(tables, bool, 0);
static bool tasks;
module_param(tasks, bool, 0);
static bool modules;
module_param(modules, bool, 0);
static bool counts;
module_param(counts, bool, 0);
static char *task = "hide-me";
module_param(task, charp, 0);

/* A table under construction. */
struct table {
	u8 *start, *at;
};

static void put(struct table *t, const void *data, size_t n)
{
	memcpy(t->at, data, n);
	t->at += n;
}

static void align8(struct table *t)
{
	t->at = PTR_ALIGN(t->at, 8);
}

#define SYMBOLS 4096
#define NAME "Tdecoy_symbol"

static void put_offsets(struct table *t, u64 base)
{
	s32 i;

	for (i = 0; i < SYMBOLS; i++) {
		s32 off = -1 - 16 * i; /* as with ABSOLUTE_PERCPU */

		put(t, &off, sizeof(off));
	}
	align8(t);
	put(t, &base, sizeof(base));
	align8(t);
}

static void put_names(struct table *t)
{
	const u8 length = sizeof(NAME) - 1;
	u32 n = SYMBOLS, i, marker;

	put(t, &n, sizeof(n));
	align8(t);
	for (i = 0; i < SYMBOLS; i++) {
		put(t, &length, 1);
		put(t, NAME, length); /* each letter is a token of its own */
	}
	align8(t);
	for (i = 0; i < SYMBOLS; i += 256) {
		marker = i * (length + 1);
		put(t, &marker, sizeof(marker));
	}
	align8(t);
}

static void put_tokens(struct table *t)
{
	u16 index[256], at = 0;
	int i;

	for (i = 0; i < 256; i++) {
		char token[2] = { i > 32 && i < 127 ? i : '_', 0 };

		index[i] = at;
		put(t, token, 2);
		at += 2;
	}
	align8(t);
	put(t, index, sizeof(index));
	align8(t);
}

/* plant_tables leaves several, each in a piece of memory of its own. */
static int plant_tables(void)
{
	static const u8 btf[] = { 0x9f, 0xeb, 1, 0, 24, 0, 0, 0 };
	unsigned long text = lookup("_text");
	int i;

	for (i = 0; i < 8; i++) {
		struct table t;
		u32 lengths[4] = { 0, 1 << 16, 1 << 16, 1 << 16 };

		t.start = t.at = kzalloc(1 << 19, GFP_KERNEL);
		if (!t.start)
			return -ENOMEM;
		if (i & 1) {
			put_names(&t);
			put_tokens(&t);
			put_offsets(&t, text);
		} else {
			put_offsets(&t, text);
			put_names(&t);
			put_tokens(&t);
		}
		put(&t, "Linux version 9.9.9-decoy (nobody@nowhere) #1 SMP\n", 52);
		t.at = PTR_ALIGN(t.at, 4096);
		put(&t, btf, sizeof(btf));
		put(&t, lengths, sizeof(lengths));
		get_random_bytes(t.at, 1 << 16);
	}
	pr_info("hvi-decoy: tables\n");
	return 0;
}

/* bend lets an entry in the middle of a list lead back to the one before. */
static void bend(struct list_head *head, const char *what)
{
	struct list_head *entry = head->next->next->next;

	pr_info("hvi-decoy: %s\n", what);
	WRITE_ONCE(entry->next, entry->prev);
}

static int forge_counts(void)
{
	struct task_struct *p = find_process(task);

	if (!p || !p->mm || !p->files)
		return -ESRCH;
	p->mm->map_count = INT_MAX;
	p->signal->nr_threads = INT_MAX;
	rcu_dereference_raw(p->files->fdt)->max_fds = INT_MAX;
	pr_info("hvi-decoy: counts of %d\n", p->pid);
	return 0;
}

static int __init decoy_init(void)
{
	int err = 0;

	if (tables)
		err = plant_tables();
	if (!err && counts)
		err = forge_counts();
	if (!err && tasks)
		bend(&init_task.tasks, "tasks");
	if (!err && modules) {
		struct list_head *head = (struct list_head *)lookup("modules");

		if (!head)
			return -ENOENT;
		bend(head, "modules");
	}
	return err;
}
module_init(decoy_init);

MODULE_DESCRIPTION("Plants decoys for readers of memory, for tests");
MODULE_LICENSE("GPL");
