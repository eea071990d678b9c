/*
 * A boot sector that starts a multiboot kernel from a table.
 *
 * The lab boots the same few megabytes over and over in an emulator where a
 * general boot loader's work (file systems, the BIOS's disk services in real
 * mode) costs seconds. This one reads whole extents by programmed I/O from the
 * first ATA disk into their final places and jumps. The host computes all
 * addresses: see Image in image.go, which also holds the constants' twins.
 */
	.set	PARAMS,     0x8000	/* where the parameter sectors go */
	.set	PARAM_LBA,  1
	.set	PARAM_SECTS, 16
	.set	MAGIC,      0x31495648	/* "HVI1" */
	.set	MMAP,       0x6000	/* the E820 map, as multiboot wants it */
	.set	MB_MAGIC,   0x2badb002

	/* offsets in the parameters */
	.set	P_MAGIC,    0
	.set	P_ENTRY,    4		/* kernel entry point */
	.set	P_INFO,     8		/* address of the multiboot information */
	.set	P_LOADS,    12		/* {lba, sectors, address}..., sectors 0 ends */
	.set	MB_MMAP_LENGTH, 44	/* in the multiboot information */

	.code16
	.text
	.globl	_start
_start:	ljmp	$0, $1f
1:	cli
	xorw	%ax, %ax
	movw	%ax, %ds
	movw	%ax, %es
	movw	%ax, %ss
	movw	$0x7c00, %sp
	cld

	/* the BIOS's memory map: 20-byte entries with their size in front */
	movw	$MMAP, %di
	xorl	%ebx, %ebx
2:	movl	$20, (%di)
	addw	$4, %di
	movl	$0xe820, %eax
	movl	$20, %ecx
	movl	$0x534d4150, %edx
	int	$0x15
	jc	3f
	addw	$20, %di
	testl	%ebx, %ebx
	jnz	2b
	addw	$4, %di
3:	subw	$(MMAP + 4), %di
	movw	%di, mmap_length

	inb	$0x92, %al		/* A20 */
	orb	$2, %al
	andb	$0xfe, %al
	outb	%al, $0x92

	lgdt	gdtr
	movl	%cr0, %eax
	orb	$1, %al
	movl	%eax, %cr0
	ljmp	$8, $protected

	.code32
protected:
	movw	$16, %ax
	movw	%ax, %ds
	movw	%ax, %es
	movw	%ax, %ss

	movb	$2, %al			/* no interrupts from the disk */
	movw	$0x3f6, %dx
	outb	%al, %dx

	movl	$PARAM_LBA, %eax
	movl	$PARAM_SECTS, %ecx
	movl	$PARAMS, %edi
	call	read
	cmpl	$MAGIC, PARAMS + P_MAGIC
	jne	fail

	movl	$(PARAMS + P_LOADS), %esi
4:	lodsl
	movl	%eax, %ebx
	lodsl
	movl	%eax, %ecx
	jecxz	start
	lodsl
	movl	%eax, %edi
	movl	%ebx, %eax
	pushl	%esi
	call	read
	popl	%esi
	jmp	4b

start:	xorl	%eax, %eax
	movw	$0x3f6, %dx
	outb	%al, %dx
	movl	PARAMS + P_INFO, %ebx
	movzwl	mmap_length, %eax
	movl	%eax, MB_MMAP_LENGTH(%ebx)
	movl	$MB_MAGIC, %eax
	jmp	*PARAMS + P_ENTRY

/* read ecx sectors at eax to edi; at LBA 0, fill with zeros */
read:	testl	%eax, %eax
	jnz	5f
	shll	$7, %ecx
	rep	stosl
	ret
5:	movl	%ecx, %ebp		/* sectors left */
	movl	%eax, %ebx		/* LBA */
6:	movl	%ebp, %esi
	cmpl	$256, %esi
	jbe	7f
	movl	$256, %esi
7:	call	ready
	movw	$0x1f2, %dx
	movl	%esi, %eax		/* 256 is written as 0 */
	outb	%al, %dx
	incw	%dx
	movl	%ebx, %eax
	outb	%al, %dx
	incw	%dx
	shrl	$8, %eax
	outb	%al, %dx
	incw	%dx
	shrl	$8, %eax
	outb	%al, %dx
	incw	%dx
	shrl	$8, %eax
	orb	$0xe0, %al
	outb	%al, %dx
	incw	%dx
	movb	$0x20, %al		/* READ SECTORS */
	outb	%al, %dx
	addl	%esi, %ebx
	subl	%esi, %ebp
8:	call	ready
	testb	$0x21, %al		/* fault, error */
	jnz	fail
	testb	$8, %al			/* data */
	jz	8b
	movw	$0x1f0, %dx
	movl	$256, %ecx
	rep	insw
	decl	%esi
	jnz	8b
	testl	%ebp, %ebp
	jnz	6b
	ret

ready:	movw	$0x1f7, %dx
9:	inb	%dx, %al
	testb	$0x80, %al
	jnz	9b
	ret

fail:	movl	$message, %esi		/* to the port that the lab reads */
	movl	$(message_end - message), %ecx
	movw	$0xe9, %dx
	rep	outsb
10:	hlt
	jmp	10b

message:
	.ascii	"loader: the disk cannot be read\n"
message_end:
mmap_length:
	.word	0
	.balign	8
gdt:	.quad	0
	.quad	0x00cf9a000000ffff
	.quad	0x00cf92000000ffff
gdtr:	.word	gdtr - gdt - 1
	.long	gdt

	.org	510
	.word	0xaa55
