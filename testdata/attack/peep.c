// SPDX-License-Identifier: GPL-2.0
/*
 * A module that reads the code of the kernel it is loaded into, as what looks for
 * gadgets does. It reads once, while it is loaded.
 *
 *	mode=load	with loads through the text mapping
 *	mode=alias	the same through the direct mapping of the same frame
 *	mode=rep	with rep movsb
 *	mode=copy	with the kernel's own memcpy
 *	mode=pull	with the kernel's copy_from_kernel_nofault, which is at pull=0x...,
 *			called with an address in the function at feigned=0x... in each
 *			register that it may save on its stack
 *	address=0x...	where, in the text mapping
 *	bytes=N		how much, a multiple of 8 of 4096 at most, default 256
 *
 * It logs one line:
 *
 *	hvi-peep: mode=M address=0xA sum=0xS
 *
 * S is a checksum of the bytes that it got.
 */
#include <linux/init.h>
#include <linux/mm.h>
#include <linux/module.h>
#include <linux/slab.h>
#include <linux/string.h>
#include <asm/io.h>

static char *mode = "load";
module_param(mode, charp, 0);
static unsigned long address;
module_param(address, ulong, 0);
static unsigned long pull;
module_param(pull, ulong, 0);
static unsigned long feigned;
module_param(feigned, ulong, 0);
static unsigned int bytes = 256;
module_param(bytes, uint, 0);

/* call_feigning calls a function as if whoever is feigned had: what is left in registers
 * may look like an address to return to. */
static long call_feigning(unsigned long function, void *to, const void *from)
{
	unsigned long n = bytes;
	long err;

	asm volatile("push %%rbx; push %%rbp; push %%r12; push %%r13; push %%r14; push %%r15\n\t"
		     "mov %[feigned], %%rbx; mov %[feigned], %%rbp; mov %[feigned], %%r12\n\t"
		     "mov %[feigned], %%r13; mov %[feigned], %%r14; mov %[feigned], %%r15\n\t"
		     "call *%[function]\n\t"
		     "pop %%r15; pop %%r14; pop %%r13; pop %%r12; pop %%rbp; pop %%rbx"
		     : "=a"(err), "+D"(to), "+S"(from), "+d"(n)
		     : [function] "0"(function), [feigned] "c"(feigned + 16)
		     : "r8", "r9", "r10", "r11", "memory", "cc");
	return err;
}

static int __init peep_init(void)
{
	void *(*volatile copy)(void *, const void *, size_t) = memcpy;
	const u8 *text = (const u8 *)address;
	u64 sum = 0xcbf29ce484222325ULL;
	unsigned int i;
	u8 *got;

	if (!address || !bytes || bytes % 8 || bytes > PAGE_SIZE || (!strcmp(mode, "pull") && !pull))
		return -EINVAL;
	got = kmalloc(bytes, GFP_KERNEL);
	if (!got)
		return -ENOMEM;
	memset(got, 0xa5, bytes);
	if (!strcmp(mode, "alias"))
		text = __va(__pa_symbol(address));
	if (!strcmp(mode, "rep")) {
		unsigned long n = bytes;
		u8 *to = got;

		asm volatile("rep movsb" : "+D"(to), "+S"(text), "+c"(n) : : "memory");
	} else if (!strcmp(mode, "copy")) {
		copy(got, text, bytes);
	} else if (!strcmp(mode, "pull")) {
		call_feigning(pull, got, text);
	} else {
		for (i = 0; i < bytes / 8; i++)
			((u64 *)got)[i] = READ_ONCE(((const u64 *)text)[i]);
	}
	for (i = 0; i < bytes; i++)
		sum = (sum ^ got[i]) * 0x100000001b3ULL;
	kfree(got);
	pr_info("hvi-peep: mode=%s address=0x%lx sum=0x%llx\n", mode, address, sum);
	return 0;
}
module_init(peep_init);

static void __exit peep_exit(void)
{
}
module_exit(peep_exit);

MODULE_DESCRIPTION("Reads kernel text, for tests");
MODULE_LICENSE("GPL");
