// A child that steps through itself with the trap flag: every instruction of a stub would trap, too.
// zoo: rounds=1 refused=late:stepping
#include "zoo.h"
#include <linux/futex.h>
#include <signal.h>
#include <sys/syscall.h>

static volatile int *shared; /* the word to end, and how often the child has trapped */
static pid_t child;

static void trap(int signal)
{
	(void)signal;
	shared[1]++;
}

/* Sleeps in the kernel with the flag set: in the handler it would be clear. */
static void step(void)
{
	__asm__ volatile("subq $128, %%rsp; pushfq; orq $0x100, (%%rsp); popfq; addq $128, %%rsp" ::: "memory", "cc");
	while (shared[0] == 0)
		syscall(SYS_futex, &shared[0], FUTEX_WAIT, 0, NULL, NULL, 0);
	__asm__ volatile("subq $128, %%rsp; pushfq; andq $~0x100, (%%rsp); popfq; addq $128, %%rsp" ::: "memory", "cc");
}

static char state_of(pid_t pid)
{
	char path[64], text[256] = "";
	int fd;

	snprintf(path, sizeof path, "/proc/%d/stat", pid);
	fd = SYS(open(path, O_RDONLY | O_CLOEXEC));
	SYS(read(fd, text, sizeof text - 1));
	SYS(close(fd));
	return strrchr(text, ')') ? strrchr(text, ')')[2] : '?';
}

static void prepare(int round)
{
	struct sigaction action = { .sa_handler = trap };

	(void)round;
	shared = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	CHECK(shared != MAP_FAILED, "mmap");
	child = SYS(fork());
	if (child == 0) {
		SYS(sigaction(SIGTRAP, &action, NULL));
		step();
		_exit(shared[1] > 10 ? 7 : 1);
	}
	while (shared[1] < 5 || state_of(child) != 'S')
		SYS(sched_yield());
}

static void check(int round)
{
	(void)round;
	shared[0] = 1;
	SYS(syscall(SYS_futex, &shared[0], FUTEX_WAKE, 1, NULL, NULL, 0));
	zoo_reap(child, 7 << 8);
}
