// Registers: all general ones, flags, XMM/YMM, x87 and MXCSR, protection keys (PKRU), held in a loop that makes no system call.
// zoo: rounds=3 static=yes
#include "zoo.h"
#include <cpuid.h>

static volatile int stop, spinning;
static uint64_t general[15], vectors[16][4] __attribute__((aligned(32))), seen[16][4] __attribute__((aligned(32)));
static uint64_t direction;
static const double pi_times = 3.25;
static double x87_out;
static uint32_t mxcsr_in = 0x1f80 | 0x6000, mxcsr_out;
static uint16_t control_in = 0x0c7f, control_out;
/* Rights to keys that no memory has; 0 where the processor, or the kernel, has none. */
static volatile uint32_t keys, keys_out;

static int has_keys(void)
{
	unsigned a, b, c, d;

	return __get_cpuid_count(7, 0, &a, &b, &c, &d) && c & 1 << 4 /* OSPKE */;
}

/* Loads every register, spins until the word changes, stores every register. */
__attribute__((noinline, target("avx"))) static void hold(void)
{
	__asm__ volatile(
		"push %%rbx; push %%rbp; push %%r12; push %%r13; push %%r14; push %%r15\n"
		"mov keys_word(%%rip), %%eax; test %%eax, %%eax; je 2f; xor %%ecx, %%ecx; xor %%edx, %%edx; .byte 0x0f, 0x01, 0xef\n"
		"2:\n"
		"fldcw %[ci]; fldl %[pi]; ldmxcsr %[mi]\n"
		"lea %[vec], %%rax\n"
		"vmovaps (%%rax), %%ymm0; vmovaps 32(%%rax), %%ymm1; vmovaps 64(%%rax), %%ymm2; vmovaps 96(%%rax), %%ymm3\n"
		"vmovaps 128(%%rax), %%ymm4; vmovaps 160(%%rax), %%ymm5; vmovaps 192(%%rax), %%ymm6; vmovaps 224(%%rax), %%ymm7\n"
		"vmovaps 256(%%rax), %%ymm8; vmovaps 288(%%rax), %%ymm9; vmovaps 320(%%rax), %%ymm10; vmovaps 352(%%rax), %%ymm11\n"
		"vmovaps 384(%%rax), %%ymm12; vmovaps 416(%%rax), %%ymm13; vmovaps 448(%%rax), %%ymm14; vmovaps 480(%%rax), %%ymm15\n"
		"movl $1, spinning_word(%%rip)\n"
		"movabs $0x1111111111111111, %%rax; movabs $0x2222222222222222, %%rbx; movabs $0x3333333333333333, %%rcx\n"
		"movabs $0x4444444444444444, %%rdx; movabs $0x5555555555555555, %%rsi; movabs $0x6666666666666666, %%rdi\n"
		"movabs $0x7777777777777777, %%rbp; movabs $0x8888888888888888, %%r8; movabs $0x9999999999999999, %%r9\n"
		"movabs $0xaaaaaaaaaaaaaaaa, %%r10; movabs $0xbbbbbbbbbbbbbbbb, %%r11; movabs $0xcccccccccccccccc, %%r12\n"
		"movabs $0xdddddddddddddddd, %%r13; movabs $0xeeeeeeeeeeeeeeee, %%r14; movabs $0xfefefefefefefefe, %%r15\n"
		"std\n"
		"1: cmpl $0, stop_word(%%rip); je 1b\n"
		"mov %%rax, general_words(%%rip); mov %%rbx, 8+general_words(%%rip); mov %%rcx, 16+general_words(%%rip)\n"
		"mov %%rdx, 24+general_words(%%rip); mov %%rsi, 32+general_words(%%rip); mov %%rdi, 40+general_words(%%rip)\n"
		"mov %%rbp, 48+general_words(%%rip); mov %%r8, 56+general_words(%%rip); mov %%r9, 64+general_words(%%rip)\n"
		"mov %%r10, 72+general_words(%%rip); mov %%r11, 80+general_words(%%rip); mov %%r12, 88+general_words(%%rip)\n"
		"mov %%r13, 96+general_words(%%rip); mov %%r14, 104+general_words(%%rip); mov %%r15, 112+general_words(%%rip)\n"
		"pop %%r15; pop %%r14; pop %%r13; pop %%r12; pop %%rbp; pop %%rbx\n"
		"cmpl $0, keys_word(%%rip); je 3f; xor %%ecx, %%ecx; .byte 0x0f, 0x01, 0xee; mov %%eax, keys_out_word(%%rip)\n"
		"3:\n"
		"pushfq; pop %%rax; cld; mov %%rax, %[df]\n"
		"lea %[out], %%rax\n"
		"vmovaps %%ymm0, (%%rax); vmovaps %%ymm1, 32(%%rax); vmovaps %%ymm2, 64(%%rax); vmovaps %%ymm3, 96(%%rax)\n"
		"vmovaps %%ymm4, 128(%%rax); vmovaps %%ymm5, 160(%%rax); vmovaps %%ymm6, 192(%%rax); vmovaps %%ymm7, 224(%%rax)\n"
		"vmovaps %%ymm8, 256(%%rax); vmovaps %%ymm9, 288(%%rax); vmovaps %%ymm10, 320(%%rax); vmovaps %%ymm11, 352(%%rax)\n"
		"vmovaps %%ymm12, 384(%%rax); vmovaps %%ymm13, 416(%%rax); vmovaps %%ymm14, 448(%%rax); vmovaps %%ymm15, 480(%%rax)\n"
		"stmxcsr %[mo]; fstcw %[co]; fstpl %[px]; fninit; vzeroupper\n"
		: [out] "=m"(seen), [df] "=m"(direction), [mo] "=m"(mxcsr_out), [co] "=m"(control_out), [px] "=m"(x87_out)
		: [vec] "m"(vectors), [ci] "m"(control_in), [pi] "m"(pi_times), [mi] "m"(mxcsr_in)
		: "rax", "rcx", "rdx", "rsi", "rdi", "r8", "r9", "r10", "r11", "memory", "cc");
	__asm__ volatile("ldmxcsr %0" : : "m"((uint32_t){ 0x1f80 }));
}

/* Names that the assembly can reach without a register. */
__asm__(".set stop_word, stop\n.set spinning_word, spinning\n.set general_words, general");
__asm__(".set keys_word, keys\n.set keys_out_word, keys_out");

static void *run(void *unused)
{
	hold();
	return unused;
}

static pthread_t thread;

static void prepare(int round)
{
	for (int i = 0; i < 16; i++)
		zoo_fill(vectors[i], 32, round * 100 + i);
	memset(seen, 0, sizeof seen);
	memset(general, 0, sizeof general);
	stop = spinning = 0;
	keys = has_keys() ? 0x55555550u ^ (uint32_t)round << 28 : 0;
	keys_out = 0;
	SYS(-pthread_create(&thread, NULL, run, NULL));
	while (!spinning)
		zoo_nap(1);
}

static void check(int round)
{
	stop = 1;
	SYS(-pthread_join(thread, NULL));
	for (uint64_t i = 0; i < 14; i++)
		EQ(general[i], (i + 1) * 0x1111111111111111ULL);
	EQ(general[14], 0xfefefefefefefefeULL);
	for (int i = 0; i < 16; i++)
		CHECK(zoo_differs(seen[i], 32, round * 100 + i) == -1, "ymm%d", i);
	EQ(direction & 0x400, 0x400);
	EQ(mxcsr_out & ~0x3fu, mxcsr_in & ~0x3fu);
	EQ(control_out, control_in);
	EQ(keys_out, keys);
	CHECK(x87_out == pi_times, "x87 %f", x87_out);
}
