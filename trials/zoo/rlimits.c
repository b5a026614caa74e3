// Resource limits, soft and hard, of two processes.
// zoo: rounds=3 static=yes
#include "zoo.h"
#include <sys/resource.h>

static pid_t child;
static struct rlimit before[RLIM_NLIMITS];

static void lower(int which, rlim_t soft, rlim_t hard)
{
	struct rlimit l = { soft, hard };

	SYS(setrlimit(which, &l));
}

static void set_all(rlim_t more)
{
	lower(RLIMIT_NOFILE, 500 + more, 900 + more);
	lower(RLIMIT_CORE, 0, 4096 + more);
	lower(RLIMIT_STACK, (4UL << 20) + more * PAGE, 64UL << 20);
	lower(RLIMIT_FSIZE, (1UL << 30) + more, 2UL << 30);
	lower(RLIMIT_CPU, 100000 + more, 200000);
	lower(RLIMIT_SIGPENDING, 100 + more, 200);
	lower(RLIMIT_MSGQUEUE, 1000 + more, 2000);
	lower(RLIMIT_NICE, 0, 0);
	lower(RLIMIT_DATA, (1UL << 33) + more, 1UL << 34);
	lower(RLIMIT_AS, 1UL << 40, RLIM_INFINITY);
	for (int i = 0; i < RLIM_NLIMITS; i++)
		SYS(getrlimit(i, &before[i]));
}

static void look(void)
{
	struct rlimit now;

	for (int i = 0; i < RLIM_NLIMITS; i++) {
		SYS(getrlimit(i, &now));
		CHECK(now.rlim_cur == before[i].rlim_cur && now.rlim_max == before[i].rlim_max, "limit %d: %lu %lu", i,
		      (long)now.rlim_cur, (long)now.rlim_max);
	}
}

static void prepare(int round)
{
	if (round > 1)
		return;
	child = SYS(fork());
	if (child == 0) {
		set_all(1);
		zoo_mark("up", 0);
		for (int r = 1; r <= zoo_rounds; r++) {
			zoo_wait(r);
			look();
		}
		_exit(8);
	}
	set_all(50);
	zoo_await("up", 0);
}

static void check(int round)
{
	look();
	if (round == zoo_rounds)
		zoo_reap(child, 8 << 8);
}
