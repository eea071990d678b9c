// SPDX-License-Identifier: GPL-2.0
/*
 * Loads two eBPF programs of types that trace the kernel, "sneaky", a kprobe's, and
 * "listener", a raw tracepoint's, says so and keeps them until it is killed. They do
 * nothing, and are attached to nothing. It has no C library: a guest's initial file
 * system has none.
 */
enum { WRITE = 1, PAUSE = 34, EXIT = 60, BPF = 321 };
enum { BPF_PROG_LOAD = 5, BPF_PROG_TYPE_KPROBE = 2, BPF_PROG_TYPE_RAW_TRACEPOINT = 17 };

/* The beginning of union bpf_attr, for BPF_PROG_LOAD. */
struct load {
	unsigned int type, count;
	const void *instructions;
	const char *license;
	unsigned int log_level, log_size;
	void *log;
	unsigned int kernel, flags;
	char name[16];
};

static long call(long number, long a, const void *b, long c)
{
	long result;

	asm volatile("syscall" : "=a"(result) : "a"(number), "D"(a), "S"(b), "d"(c) : "rcx", "r11", "memory");
	return result;
}

void _start(void)
{
	/* r0 = 0; exit */
	static const unsigned long code[] = { 0xb7, 0x95 };
	static const struct load loads[] = {
		{ .type = BPF_PROG_TYPE_KPROBE, .count = 2, .instructions = code, .license = "GPL", .name = "sneaky" },
		{ .type = BPF_PROG_TYPE_RAW_TRACEPOINT, .count = 2, .instructions = code, .license = "GPL", .name = "listener" },
	};

	for (int i = 0; i < 2; i++) {
		if (call(BPF, BPF_PROG_LOAD, loads + i, sizeof(loads[i])) < 0) {
			call(WRITE, 1, "refused\n", 8);
			call(EXIT, 1, 0, 0);
		}
	}
	call(WRITE, 1, "loaded\n", 7);
	for (;;)
		call(PAUSE, 0, 0, 0);
}
