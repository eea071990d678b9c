/*
 * The smallest guest: a PVH kernel that sleeps. It boots in no time and needs
 * 8 MiB, and yet does what a toolstack expects of a guest: it can be saved,
 * restored and migrated, and obeys `xl shutdown` and `xl reboot`.
 *
 * It says "@@GUEST-UP tiny" on its console once. An NMI (`xl trigger GUEST nmi`)
 * pokes it: it says "@@POKED N", N counting pokes in hexadecimal, so that it is
 * seen whether its memory was kept. With a digit as its command line it ends
 * itself when poked instead, with that reason: 0 poweroff, 1 reboot, 2 suspend,
 * 3 crash, 4 watchdog, 5 soft_reset.
 *
 * With "pair" as its command line it has two vCPUs and neither sleeps nor obeys:
 * each comes to one place as often as it can, and counts. It says
 * "@@PAIR CODE COUNTS", in hexadecimal, where the place is and where the numbers.
 *
 * It runs in 32-bit mode without paging, where every address is a physical one.
 * The interfaces are those of xen/include/public; the numbers are theirs.
 */
typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;

/* What Xen enters, with the address of its start information in %ebx. */
void start(void);
asm(".section .note.Xen, \"a\", @note\n"
    ".long 4, 4, 18\n"			/* XEN_ELFNOTE_PHYS32_ENTRY */
    ".asciz \"Xen\"\n"
    ".long start\n"
    ".text\n"
    ".globl start\n"
    "start: cld\n"
    "movl $stack_end, %esp\n"
    "lgdt gdtr\n"
    "ljmp $8, $1f\n"
    "1: movl $16, %eax\n"
    "movl %eax, %ds\n"
    "movl %eax, %es\n"
    "movl %eax, %ss\n"
    "pushl %ebx\n"
    "call run\n");

u8 stack[4096] __attribute__((aligned(16)));
asm(".globl stack_end\n.set stack_end, stack + 4096\n");

static const u64 gdt[] = { 0, 0x00cf9b000000ffff, 0x00cf93000000ffff };
struct table { u16 limit; u32 base; } __attribute__((packed));
const struct table gdtr = { sizeof gdt - 1, (u32)gdt };

/* hypercalls */
enum { MEMORY_OP = 12, SCHED_OP = 29, EVENT_CHANNEL_OP = 32, HVM_OP = 34 };
enum { SCHEDOP_yield = 0, SCHEDOP_shutdown = 2 };
enum { HVMOP_set_param, HVMOP_get_param };
enum { HVM_PARAM_CALLBACK_IRQ = 0, HVM_PARAM_STORE_PFN = 1, HVM_PARAM_STORE_EVTCHN = 2, HVM_PARAM_CONSOLE_PFN = 17, HVM_PARAM_CONSOLE_EVTCHN = 18 };
enum { EVTCHNOP_send = 4, XENMEM_add_to_physmap = 7, DOMID_SELF = 0x7ff0 };

static u8 hypercalls[4096] __attribute__((aligned(4096)));

static u32 hypercall(u32 number, u32 command, const void *arg)
{
	u32 ret;

	asm volatile("call *%%edx" : "=a"(ret), "+b"(command), "+c"(arg) : "d"(hypercalls + number * 32) : "memory", "edi", "esi");
	return ret;
}

static u32 param(u32 index)
{
	struct { u16 domid, pad; u32 index; u64 value; } p = { DOMID_SELF, 0, index, 0 };

	hypercall(HVM_OP, HVMOP_get_param, &p);
	return p.value;
}

static void notify(u32 port)
{
	hypercall(EVENT_CHANNEL_OP, EVTCHNOP_send, &port);
}

/* The console's ring and its port are asked for each time: a restored guest has
 * others. Nobody fills the ring. */
struct console { u8 in[1024], out[2048]; u32 in_cons, in_prod, out_cons, out_prod; };

static void say(const char *text)
{
	volatile struct console *c = (void *)(param(HVM_PARAM_CONSOLE_PFN) << 12);
	u32 at = c->out_prod;

	while (*text)
		c->out[at++ & 2047] = *text++;
	c->out_prod = at;
	notify(param(HVM_PARAM_CONSOLE_EVTCHN));
}

/* The shared page lies where there is no memory. */
struct shared {
	struct { u8 upcall_pending, upcall_mask; u16 pad; u32 pending_sel; u32 arch[6]; u8 time[32]; } vcpu[32];
	u32 pending[32], mask[32];
};
#define SHARED ((volatile struct shared *)0x40000000)

struct frame;

/* An event: all it does is to end the halt. */
__attribute__((interrupt)) static void event(struct frame *f)
{
	int i;

	(void)f;
	SHARED->vcpu[0].upcall_pending = 0;
	SHARED->vcpu[0].pending_sel = 0;
	for (i = 0; i < 32; i++)
		SHARED->pending[i] = 0;
}

static void end(u32 reason)
{
	hypercall(SCHED_OP, SCHEDOP_shutdown, &reason);
}

static int reason = -1;
static u32 pokes;

__attribute__((interrupt)) static void poked(struct frame *f)
{
	char text[] = "@@POKED 00000000\r\n";
	u32 n;
	int i;

	(void)f;
	if (reason >= 0)
		end(reason);
	n = ++pokes;
	for (i = 7; i >= 0; i--, n >>= 4)
		text[8 + i] = "0123456789abcdef"[n & 15];
	say(text);
}

enum { NMI = 2, EVENT = 0x20 };
static struct { u16 low, selector, flags, high; } idt[EVENT + 1];

static void gate(int vector, void (*to)(struct frame *))
{
	idt[vector].low = (u32)to;
	idt[vector].selector = 8;
	idt[vector].flags = 0x8e00;
	idt[vector].high = (u32)to >> 16;
}

/* xenstore */
enum { XS_READ = 2, XS_WATCH = 4, XS_WRITE = 11, XS_WATCH_EVENT = 15, XS_ERROR = 16 };
struct store { u8 req[1024], rsp[1024]; u32 req_cons, req_prod, rsp_cons, rsp_prod; };
struct header { u32 type, request, transaction, length; };

static volatile struct store *store;
static u32 store_port;

static void put(const void *data, u32 n)
{
	const u8 *from = data;
	u32 at = store->req_prod;

	while (n--)
		store->req[at++ & 1023] = *from++;
	store->req_prod = at;
}

static u8 get(void)
{
	u32 at = store->rsp_cons;
	u8 c;

	while (store->rsp_prod == at)
		hypercall(SCHED_OP, SCHEDOP_yield, 0);
	c = store->rsp[at & 1023];
	store->rsp_cons = at + 1;
	return c;
}

/* message takes the next one: its type, and its first byte or 0. */
static u32 message(u8 *first)
{
	struct header h;
	u32 i;

	for (i = 0; i < sizeof h; i++)
		((u8 *)&h)[i] = get();
	*first = 0;
	for (i = 0; i < h.length; i++) {
		u8 c = get();

		if (i == 0)
			*first = c;
	}
	notify(store_port);
	return h.type;
}

static const char node[] = "control/shutdown";

/* ask sends a request about the node and returns the answer's first byte, 0
 * where it is empty or an error. Events that come before it tell nothing new. */
static u8 ask(u32 type, const char *more, u32 n)
{
	struct header h = { type, 0, 0, sizeof node + n };
	u32 got;
	u8 first;

	put(&h, sizeof h);
	put(node, sizeof node);
	put(more, n);
	notify(store_port);
	do
		got = message(&first);
	while (got == XS_WATCH_EVENT);
	return got == XS_ERROR ? 0 : first;
}

/* connect sets up what the toolstack gives a domain anew when it is restored. */
static void connect(void)
{
	struct { u16 domid, size; u32 space, index, gfn; } map = { DOMID_SELF, 0, 0, 0, (u32)SHARED >> 12 };
	struct { u16 domid, pad; u32 index; u64 value; } callback = { DOMID_SELF, 0, HVM_PARAM_CALLBACK_IRQ, 2ULL << 56 | EVENT };
	int i;

	hypercall(MEMORY_OP, XENMEM_add_to_physmap, &map);
	for (i = 0; i < 32; i++)
		SHARED->mask[i] = 0;
	SHARED->vcpu[0].upcall_mask = 0;
	hypercall(HVM_OP, HVMOP_set_param, &callback);
	store = (void *)(param(HVM_PARAM_STORE_PFN) << 12);
	store_port = param(HVM_PARAM_STORE_EVTCHN);
	ask(XS_WATCH, "w", 2);
}

/* obey reads what the toolstack wants and does it. */
static void obey(void)
{
	u8 want = ask(XS_READ, 0, 0);

	if (!want)
		return;
	ask(XS_WRITE, 0, 0); /* taken */
	switch (want) {
	case 'p': /* poweroff */
	case 'h': /* halt */
		end(0);
		break;
	case 'r': /* reboot */
		end(1);
		break;
	case 's': /* suspend */
		end(2);
		connect();
		break;
	}
}

/* pair */
enum { VCPU_OP = 24, VCPUOP_initialise = 0, VCPUOP_up = 1, BREAKPOINT = 3 };

static void vcpu_op(u32 command, u32 vcpu, const void *arg)
{
	u32 ret;

	asm volatile("call *%%eax" : "=a"(ret), "+b"(command), "+c"(vcpu), "+d"(arg) : "0"(hypercalls + VCPU_OP * 32) : "memory", "edi", "esi");
}

/* How often each vCPU came to the place, and how often one took a breakpoint
 * exception that it had not asked for. They have a page of their own, and so has
 * the code: an instruction, and one that repeats itself. What it copies is each
 * vCPU's own. */
u32 counts[1024] __attribute__((aligned(4096)));
u8 copied[2][32];

void place(void);
extern u8 place_repeated[];
asm(".pushsection .text\n"
    ".balign 4096\n"
    ".globl place, place_repeated\n"
    "place: lock incl counts(,%eax,4)\n"
    "movl $8, %ecx\n"
    "movl %eax, %esi\n"
    "shll $5, %esi\n"
    "addl $copied, %esi\n"
    "leal 16(%esi), %edi\n"
    "place_repeated: rep movsb\n"
    "ret\n"
    ".balign 4096\n"
    ".popsection\n");

__attribute__((interrupt)) static void trapped(struct frame *f)
{
	(void)f;
	counts[2]++;
}

__attribute__((noreturn)) static void come(u32 vcpu)
{
	u32 round = 0, i;

	for (;; round++) {
		for (i = 0; i < 8; i++)
			copied[vcpu][i] = round + i;
		asm volatile("call place" : : "a"(vcpu) : "memory", "ecx", "esi", "edi", "cc");
		for (i = 0; i < 8; i++)
			if (copied[vcpu][16 + i] != (u8)(round + i))
				counts[3]++; /* a copy is wrong */
	}
}

u8 second_stack[1024] __attribute__((aligned(16)));
const struct table second_idtr = { sizeof idt - 1, (u32)idt };
void second(void);
asm(".pushsection .text\n"
    ".globl second\n"
    "second: lgdt gdtr\n"
    "lidt second_idtr\n"
    "ljmp $8, $1f\n"
    "1: movl $16, %eax\n"
    "movl %eax, %ds\n"
    "movl %eax, %es\n"
    "movl %eax, %ss\n"
    "call second_comes\n"
    ".popsection\n");

__attribute__((used)) static void second_comes(void) asm("second_comes");
static void second_comes(void) { come(1); }

static char *hex(char *to, u32 n)
{
	int i;

	for (i = 28; i >= 0; i -= 4)
		*to++ = "0123456789abcdef"[n >> i & 15];
	return to;
}

static void pair(void)
{
	/* vcpu_hvm_context, of a vCPU in 32-bit mode without paging */
	static struct {
		u32 mode, pad, general[8], eip, eflags, cr0, cr3, cr4, pad1;
		u64 efer;
		u32 base[5], limit[5];
		u16 access[5], pad2[3];
	} c = { .cr0 = 1, .limit = { ~0u, ~0u, ~0u, ~0u, 0x67 }, .access = { 0xc9b, 0xc93, 0xc93, 0xc93, 0x8b } };
	char text[] = "@@PAIR 00000000 00000000\r\n";

	gate(BREAKPOINT, trapped);
	hex(text + 7, (u32)place);
	hex(text + 16, (u32)counts);
	say(text);
	asm volatile("cli");
	c.general[4] = (u32)(second_stack + sizeof second_stack);
	c.eip = (u32)second;
	vcpu_op(VCPUOP_initialise, 1, &c);
	vcpu_op(VCPUOP_up, 1, 0);
	come(0);
}

struct start_info { u32 magic, version, flags, modules; u64 modlist, cmdline; };

void run(const struct start_info *info)
{
	const struct table idtr = { sizeof idt - 1, (u32)idt };
	const u8 *args = (void *)(u32)info->cmdline;
	u32 a = 0x40000002, b, c, d;

	if (args && *args >= '0' && *args <= '5')
		reason = *args - '0';
	asm volatile("cpuid" : "+a"(a), "=b"(b), "=c"(c), "=d"(d)); /* b: the MSR that fills the page */
	asm volatile("wrmsr" : : "c"(b), "a"(hypercalls), "d"(0) : "memory");
	gate(NMI, poked);
	gate(EVENT, event);
	asm volatile("lidt %0" : : "m"(idtr));
	connect();
	say("@@GUEST-UP tiny\r\n");
	if (args && *args == 'p')
		pair();
	for (;;) {
		u8 first;

		/* An event after the look and before the halt ends the halt. */
		asm volatile("cli");
		if (store->rsp_cons == store->rsp_prod)
			asm volatile("sti; hlt");
		asm volatile("sti");
		if (store->rsp_cons != store->rsp_prod && message(&first) == XS_WATCH_EVENT)
			obey();
	}
}
