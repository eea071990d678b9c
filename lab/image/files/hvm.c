/*
 * What an HVM guest boots from: the first sectors of its disk. The device model
 * has put the guest's kernel into memory already (QEMU's generic loader), for
 * reading it through an emulated disk would take minutes; all that is left is to
 * jump there as the kernel expects, with what stands at PARAMS.
 */
/* Written by lab/scenario, see hvmParams there. */
#define PARAMS 0x300000
asm(".code16\n"
    ".globl start\n"
    "start: ljmp $0, $1f\n"
    "1: cli\n"
    "xorw %ax, %ax\n"
    "movw %ax, %ds\n"
    "movw %ax, %es\n"
    "movw %ax, %ss\n"
    "movw $0x7c00, %sp\n"
    "cld\n"
    /* the sectors behind this one; the BIOS has left the drive in %dl */
    "movw $packet, %si\n"
    "movb $0x42, %ah\n"
    "int $0x13\n"
    /* the BIOS's memory map, 20 bytes each, and their number */
    "movw $0, 0x5ffc\n"
    "movw $0x6000, %di\n"
    "xorl %ebx, %ebx\n"
    "2: movl $0xe820, %eax\n"
    "movl $20, %ecx\n"
    "movl $0x534d4150, %edx\n"
    "int $0x15\n"
    "jc 3f\n"
    "addw $20, %di\n"
    "incw 0x5ffc\n"
    "testl %ebx, %ebx\n"
    "jnz 2b\n"
    "3: lgdt gdtr\n"
    "movl %cr0, %eax\n"
    "orb $1, %al\n"
    "movl %eax, %cr0\n"
    "ljmp $8, $4f\n"
    ".code32\n"
    "4: movw $0x18, %ax\n"
    "movw %ax, %ds\n"
    "movw %ax, %es\n"
    "movw %ax, %ss\n"
    "movl $0x7c00, %esp\n"
    "call boot\n"
    ".align 8\n"
    /* 32-bit code, 64-bit code, data: the latter two where Linux wants them */
    "gdt: .quad 0, 0x00cf9b000000ffff, 0x00af9b000000ffff, 0x00cf93000000ffff\n"
    "gdtr: .word . - gdt - 1\n"
    ".long gdt\n"
    "packet: .byte 16, 0\n"
    ".word 7\n"
    ".word 0x7e00, 0\n"
    ".quad 1\n"
    ".org 510\n"
    ".word 0xaa55\n");

typedef unsigned char u8;
typedef unsigned int u32;
typedef unsigned long long u64;

struct params { u32 magic, pvh, entry, initrd, initrd_size; char cmdline[2048]; };

#define MAP ((const u32 *)0x6000)
#define MAP_LENGTH (*(volatile u32 *)0x5ffc & 0xffff)
#define TABLES 0x310000
#define ZERO_PAGE 0x320000

static void fill(u32 to, u8 with, u32 n)
{
	volatile u8 *p = (void *)to;

	while (n--)
		*p++ = with;
}

static void put(u32 offset, u32 value)
{
	*(volatile u32 *)(ZERO_PAGE + offset) = value;
}

/* start_linux fills the zero page and jumps to the 64-bit entry point, as
 * Documentation/x86/boot.rst has it. */
static void start_linux(const struct params *p)
{
	volatile u64 *tables = (void *)TABLES;
	u32 i, entries = MAP_LENGTH;

	fill(ZERO_PAGE, 0, 4096);
	for (i = 0; i < entries * 5; i++)
		put(0x2d0 + i * 4, MAP[i]);
	*(volatile u8 *)(ZERO_PAGE + 0x1e8) = entries;
	put(0x1fe, 0xaa55);
	put(0x202, 0x53726448); /* "HdrS" */
	put(0x206, 0x20f);
	*(volatile u8 *)(ZERO_PAGE + 0x210) = 0xff; /* a loader without a number */
	*(volatile u8 *)(ZERO_PAGE + 0x211) = 1; /* loaded high */
	put(0x218, p->initrd);
	put(0x21c, p->initrd_size);
	put(0x228, (u32)p->cmdline);
	put(0x230, 0x1000000);
	put(0x238, sizeof p->cmdline - 1);

	fill(TABLES, 0, 3 * 4096); /* the first GiB, where it is */
	tables[0] = TABLES + 4096 + 3;
	tables[512] = TABLES + 8192 + 3;
	for (i = 0; i < 512; i++)
		tables[1024 + i] = ((u64)i << 21) + 0x83;
	asm volatile("movl %%cr4, %%eax\n"
		     "orl $0x20, %%eax\n"
		     "movl %%eax, %%cr4\n"
		     "movl %0, %%cr3\n"
		     "movl $0xc0000080, %%ecx\n"
		     "rdmsr\n"
		     "orl $0x100, %%eax\n"
		     "wrmsr\n"
		     "movl %%cr0, %%eax\n"
		     "orl $0x80000000, %%eax\n"
		     "movl %%eax, %%cr0\n"
		     "ljmp $0x10, $1f\n"
		     ".code64\n"
		     "1: movl %%esi, %%esi\n"
		     "movl %%edi, %%edi\n"
		     "jmp *%%rdi\n"
		     ".code32\n"
		     : : "r"(TABLES), "S"(ZERO_PAGE), "D"(p->entry) : "eax", "ecx", "edx", "memory");
}

struct start_info { u32 magic, version, flags, modules; u64 modlist, cmdline, rsdp; };

void boot(void)
{
	const struct params *p = (void *)PARAMS;
	static struct start_info info = { .magic = 0x336ec578, .version = 1 };

	if (p->magic != 0x31495648) /* "HVI1" */
		for (;;)
			asm volatile("cli; hlt"); /* which is the end of the domain */
	/* The BIOS's timer goes on: no interrupts from the old controllers. */
	asm volatile("outb %b0, $0x21\n"
		     "outb %b0, $0xa1\n"
		     : : "a"(0xff));
	if (!p->pvh)
		start_linux(p);
	info.cmdline = (u32)p->cmdline;
	asm volatile("jmp *%0" : : "r"(p->entry), "b"(&info) : "memory");
}
