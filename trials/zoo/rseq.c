// rseq: libc's registration, the processor number it shows, a critical section that aborts when it is stopped in it.
// zoo: rounds=3
#include "zoo.h"
#include <linux/rseq.h>
#include <sys/rseq.h>

static struct rseq *area;
static volatile int stop, committed, aborted;
static pthread_t thread;

/* Begins, spins inside the section until a stop throws it out to the abort label; counts how it ended. */
static void *run(void *unused)
{
	struct rseq *r = (struct rseq *)((char *)__builtin_thread_pointer() + __rseq_offset);

	while (!stop) {
		int ended;
		__asm__ volatile(
			".pushsection __rseq_cs, \"aw\"\n.balign 32\n3: .long 0, 0\n.quad 1f, 2f - 1f, 4f\n.popsection\n"
			"lea 3b(%%rip), %%rax; mov %%rax, %[cs]\n"
			"1: mov $2000000, %%rcx\n"
			"5: dec %%rcx; jnz 5b\n"
			"mov $0, %[ended]\n"
			"2: jmp 6f\n"
			".byte 0x0f, 0xb9, 0x3d; .long 0x53053053\n"
			"4: mov $1, %[ended]\n"
			"6: movq $0, %[cs]\n"
			: [ended] "=&r"(ended), [cs] "=m"(r->rseq_cs) : : "rax", "rcx", "memory", "cc");
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
	}
	int before = committed + aborted;

	stop = 0;
	SYS(-pthread_create(&thread, NULL, run, NULL));
	while (committed + aborted == before)
		zoo_nap(1);
}

static void check(int round)
{
	cpu_set_t one;
	int before = committed + aborted;

	for (int i = 0; committed + aborted <= before + 2; i++) {
		CHECK(i < 10000, "the section hangs");
		zoo_nap(1);
	}
	stop = 1;
	SYS(-pthread_join(thread, NULL));
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
	(void)round;
}
