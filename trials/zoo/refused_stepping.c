// A child that steps through itself with the trap flag: every instruction of a stub would trap, too.
// zoo: rounds=1 refused=late:stepping
#include "zoo.h"
#include <signal.h>

static volatile int *done;
static pid_t child;
static volatile sig_atomic_t traps;

static void trap(int signal)
{
	(void)signal;
	traps++;
}

static void prepare(int round)
{
	struct sigaction action = { .sa_handler = trap };

	(void)round;
	done = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	CHECK(done != MAP_FAILED, "mmap");
	child = SYS(fork());
	if (child == 0) {
		SYS(sigaction(SIGTRAP, &action, NULL));
		__asm__ volatile("subq $128, %%rsp; pushfq; orq $0x100, (%%rsp); popfq; addq $128, %%rsp" ::: "memory", "cc");
		while (*done == 0)
			;
		__asm__ volatile("subq $128, %%rsp; pushfq; andq $~0x100, (%%rsp); popfq; addq $128, %%rsp" ::: "memory", "cc");
		_exit(traps > 100 ? 7 : 1);
	}
}

static void check(int round)
{
	(void)round;
	*done = 1;
	zoo_reap(child, 7 << 8);
}
