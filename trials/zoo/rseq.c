// rseq: libc's registration, the processor number it shows, a critical section that aborts when it is stopped in it, or restored.
// zoo: rounds=3
#include "zoo.h"
#include <linux/rseq.h>
#include <sys/rseq.h>

static struct rseq *area;
static volatile int stop, committed, aborted, was_away;
static volatile uint64_t gap;
static uint64_t per_ms;
static pthread_t thread;

/* Begins, spins inside the section until it is done or a stop throws it out to the abort label; counts how it ended. Keeps the
 * longest time from one look at the clock to the next within one section: nobody who is in it is ever stopped. */
static void *run(void *unused)
{
	struct rseq *r = (struct rseq *)((char *)__builtin_thread_pointer() + __rseq_offset);

	while (!stop) {
		uint64_t longest = gap;
		int ended;
		__asm__ volatile(
			".pushsection __rseq_cs, \"aw\"\n.balign 32\n3: .long 0, 0\n.quad 1f, 2f - 1f, 4f\n.popsection\n"
			"lea 3b(%%rip), %%rax; mov %%rax, %[cs]\n"
			"1: rdtsc; shl $32, %%rdx; or %%rdx, %%rax; mov %%rax, %%r8\n"
			"mov $200000, %%rcx\n"
			"5: rdtsc; shl $32, %%rdx; or %%rdx, %%rax; mov %%rax, %%r9; sub %%r8, %%r9; mov %%rax, %%r8\n"
			"cmp %[longest], %%r9; cmova %%r9, %[longest]\n"
			"dec %%rcx; jnz 5b\n"
			"mov $0, %[ended]\n"
			"2: jmp 6f\n"
			".byte 0x0f, 0xb9, 0x3d; .long 0x53053053\n"
			"4: mov $1, %[ended]\n"
			"6: movq $0, %[cs]\n"
			: [ended] "=&r"(ended), [longest] "+r"(longest), [cs] "=m"(r->rseq_cs) : : "rax", "rcx", "rdx", "r8", "r9", "memory", "cc");
		gap = longest;
		if (ended)
			__atomic_add_fetch(&aborted, 1, __ATOMIC_RELAXED);
		else
			__atomic_add_fetch(&committed, 1, __ATOMIC_RELAXED);
	}
	return unused;
}

static void prepare(int round)
{
	if (round == 1) {
		CHECK(__rseq_size > 0, "libc registered nothing");
		area = (struct rseq *)((char *)__builtin_thread_pointer() + __rseq_offset);
		long long from = zoo_ms();
		uint64_t ticks = __builtin_ia32_rdtsc();
		zoo_nap(50);
		per_ms = (__builtin_ia32_rdtsc() - ticks) / (uint64_t)(zoo_ms() - from);
	}
	int before = committed + aborted;

	stop = 0;
	gap = 0;
	SYS(-pthread_create(&thread, NULL, run, NULL));
	while (committed + aborted == before)
		zoo_nap(1);
}

static void check(int round)
{
	cpu_set_t one;
	int before = committed + aborted;
	long away = zoo_away(round);

	for (int i = 0; committed + aborted <= before + 2; i++) {
		CHECK(i < 10000, "the section hangs");
		zoo_nap(1);
	}
	stop = 1;
	SYS(-pthread_join(thread, NULL));
	/* It was in the section then, but for a chance of one in many thousand: not three times. */
	was_away |= away > 0;
	CHECK(away < 10 || gap / per_ms < (uint64_t)away / 2, "the section went on after %lld ms", (long long)(gap / per_ms));
	CHECK(round < zoo_rounds || !was_away || aborted > 0, "no section was aborted");
	/* Registered still: a second registration of the same area is refused as such. */
	EQ(syscall(SYS_rseq, area, 32, 0, RSEQ_SIG), -1);
	EQ(errno, EBUSY);
	/* The kernel writes the processor's number on each way back from it. */
	for (int cpu = 0; cpu < sysconf(_SC_NPROCESSORS_ONLN); cpu++) {
		CPU_ZERO(&one);
		CPU_SET(cpu, &one);
		SYS(sched_setaffinity(0, sizeof one, &one));
		EQ((int)__atomic_load_n(&area->cpu_id, __ATOMIC_RELAXED), cpu);
	}
	CPU_SET(0, &one);
	SYS(sched_setaffinity(0, sizeof one, &one));
}
